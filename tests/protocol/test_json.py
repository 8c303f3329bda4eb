"""JSON that strangers sent."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.json import decode_json, encode_json

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
"""Any JSON value, lone surrogates in strings included."""


@given(st.binary() | st.text())
@example(b"\xff")
@example(b"\xef\xbb\xbf1")
@example("\ud800")
@example("")
def test_any_input_is_a_value_or_malformed(given_text: str | bytes) -> None:
    with contextlib.suppress(MalformedFrame):
        decode_json(given_text)


@given(values)
def test_values_come_back_equal_and_of_the_same_types(value: Any) -> None:
    again = decode_json(encode_json(value))
    assert repr(again) == repr(value)  # 1 and 1.0 and True are equal, but not the same


@given(values)
def test_what_is_encoded_is_ascii_and_what_other_decoders_read(value: Any) -> None:
    text = encode_json(value)
    assert text.isascii()
    assert json.loads(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10_000 + "]" * 10_000,
        '{"a":' * 100_000,
        "NaN",
        "1e999",
        "[-1e999]",
        "-Infinity",
        "9" * 5_000,
        b"\xff\xfe",
        "{'single': 'quotes'}",
        "[1,]",
        "1 2",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_no_json_is_malformed(text: str | bytes) -> None:
    with pytest.raises(MalformedFrame):
        decode_json(text)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), {1, 2}, b"bytes", object()])
def test_what_json_does_not_have_is_not_encoded(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode_json(value)


def test_a_value_that_holds_itself_is_not_encoded() -> None:
    value: list[Any] = []
    value.append({"again": value})
    with pytest.raises(ValueError, match="Circular"):
        encode_json(value)
    assert encode_json([[], []]) == "[[],[]]"  # and leaves nothing behind


@pytest.mark.parametrize("text", [' {"a":1}', '{"a":1}\n', '\t{ "a" : 1 }  ', b'\r\n{"a":1}'])
def test_white_space_around_a_value_is_passed_over(text: str | bytes) -> None:
    assert decode_json(text) == {"a": 1}


@given(values)
def test_it_encodes_as_the_library_does(value: Any) -> None:
    assert encode_json(value) == json.dumps(value, separators=(",", ":"))
