"""JSON text that strangers sent, decoded with one documented exception.

Every frame of every system here is JSON; this is the one place that knows in how many ways
Python's decoder can fail on hostile input.
"""

from __future__ import annotations

import json
import json.encoder
import math
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeAlias

from trio_overlay.errors import MalformedFrame

JSON: TypeAlias = Any
"""None, bool, int, float, str, list or dict with str keys, of the same."""


MAX_DEPTH = 128
"""How deep lists and objects may be nested: whatever was decoded can also be encoded again, from
any depth of the stack, without a RecursionError."""


def decode_json(text: str | bytes) -> JSON:
    """The value that *text* stands for.

    MalformedFrame: no JSON, no UTF-8, nested too deep, a number too long to be read, or one of
    the NaN and infinities that JSON does not have.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text), "surrogatepass")
        value = _decode(text)
    except RecursionError:
        # From inside the C scanner; how deep is too deep differs between Python versions.
        raise MalformedFrame("JSON is nested too deep") from None
    except ValueError as error:
        # JSONDecodeError, UnicodeDecodeError, and int's limit of 4300 digits.
        raise MalformedFrame(f"not JSON: {error}") from None
    # Counting brackets is quick, and nearly always shows that a closer look is not needed.
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_too_deep(value):
        raise MalformedFrame(f"JSON is nested more than {MAX_DEPTH} deep")
    return value


def encode_json(value: JSON) -> str:
    """*value* as compact JSON text, in ASCII, so that lone surrogates survive.

    TypeError, ValueError: *value* is no JSON value.
    """
    try:
        return "".join(_encode(value, 0))
    except RecursionError:
        return _encoder.encode(value)  # it says what is wrong: a value that holds itself


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # 1e999: Python would make an infinity of it, and not encode it again
        raise ValueError(f"{text:.40} is too large")
    return number


# `json.loads` and `json.dumps` would make one for each frame.
_decoder = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
_scan = _decoder.scan_once  # type: ignore[attr-defined]  # undocumented; `raw_decode` calls it
_encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def _decode(text: str) -> JSON:
    # What `decode` does beyond this is to look for white space around the value, and to say what
    # is wrong.
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        end = -1
    return value if end == len(text) else _decoder.decode(text)


def _make_encode() -> Callable[[JSON, int], Iterable[str]]:
    """What `JSONEncoder.encode` makes anew for each value: half the time that a small one takes."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # an interpreter whose json is Python all through
        return lambda value, _: (_encoder.encode(value),)
    write_string = json.encoder.encode_basestring_ascii
    found: Callable[[JSON, int], Iterable[str]] = make(
        None, _encoder.default, write_string, None, ":", ",", False, False, False
    )
    return found


_encode = _make_encode()


def _is_too_deep(value: JSON) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True
