"""What is said between a broker and its peers: linkup's frames, of both generations.

The current one (linkup 0.4) is JSON-RPC 2.0, and every bad request gets an error with a code of
that specification; the older one (0.3) wraps everything in ``message``. They are told apart by key,
frame by frame, so that one connection may even speak both. Who holds which id is decided in
broker_registrations.py.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.json import JSON, decode_json, encode_json

MAX_IDENTIFIER_LENGTH: Final = 128
"""Characters of an id."""
SECRET_LENGTHS: Final = range(16, 129)
"""Characters of a secret."""
MAX_BATCH_LENGTH: Final = 100
"""Requests in one JSON-RPC batch."""

# JSON-RPC 2.0, section 5.1.
PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
# -32000 to -32099 are the server's own.
ID_TAKEN: Final = -32000
UNAVAILABLE: Final = -32001
TOO_MANY: Final = -32002
WRONG_SENDER: Final = -32003


class Generation(enum.Enum):
    """Which linkup's frames; an answer and a signal come in the generation of who gets them."""

    JSON_RPC = "0.4"
    MESSAGES = "0.3"


# --- messages -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ping:
    """A sign of life."""


@dataclass(frozen=True, slots=True)
class Exists:
    """Whether a peer is registered by this id: the answer is true or false."""

    identifier: str


@dataclass(frozen=True, slots=True)
class Find:
    """The same, but the answer is the id or null."""

    identifier: str


@dataclass(frozen=True, slots=True)
class Register:
    """Let me be found by this id, and by no other."""

    identifier: str
    secret: str | None = field(default=None, repr=False)
    """By which this peer, and nobody else, takes its id over from another connection of its own;
    see `digest_of`. Ours add it, as ``resume``, where linkup does not look."""


@dataclass(frozen=True, slots=True)
class Unregister:
    """Let me not be found any more."""


Call: TypeAlias = Ping | Exists | Find | Register | Unregister


@dataclass(frozen=True, slots=True)
class Request:
    """A call that wants an answer with the same `key`, or none if it has no key."""

    call: Call
    key: JSON
    """The ``id`` of the request: a string, a number or null. A uuid from the originals."""
    generation: Generation = Generation.JSON_RPC
    is_notification: bool = False
    """Without an ``id`` at all: it is done, and nobody is told."""


@dataclass(frozen=True, slots=True)
class PeerSignal:
    """A signal on its way from one registered peer to another; wants no answer.

    `params` is an object with ``from``, ``to`` and ``signal`` (an object: a signal as in
    signals.py, not decoded), and every other key that came with them; checked.
    """

    params: Mapping[str, JSON]
    generation: Generation = field(default=Generation.JSON_RPC, compare=False)
    """The generation it came in."""
    more: Mapping[str, JSON] = field(default_factory=dict)
    """Unknown keys beside the params; kept within a generation."""
    request: Request | None = field(default=None, compare=False)
    """Set if, against the protocol, it came with an ``id``, so that it can be answered."""

    @property
    def sender(self) -> str:
        identifier: str = self.params["from"]
        return identifier

    @property
    def recipient(self) -> str:
        identifier: str = self.params["to"]
        return identifier

    @property
    def signal(self) -> JSON:
        return self.params["signal"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no result."""

    code: int
    message: str
    data: JSON = None


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to a `Request`: a result, or a failure."""

    key: JSON
    result: JSON = None
    failure: Failure | None = None
    generation: Generation = Generation.JSON_RPC


@dataclass(frozen=True, slots=True)
class BadRequest:
    """A frame that is no request; `answer` is what its sender is to be told, if anything."""

    reason: str
    answer: Response | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Several JSON-RPC requests in one frame, to be answered in one."""

    requests: tuple[Request | PeerSignal | BadRequest, ...]


def peer_signal(sender: str, recipient: str, signal: JSON) -> PeerSignal:
    """The message that *sender* says *signal* to *recipient*."""
    return PeerSignal({"from": sender, "to": recipient, "signal": signal})


def check_identifier(value: JSON) -> str:
    """*value*, if it can be the id of a peer.

    Up to 128 printable characters (Unicode; no control characters, no lone surrogates), a space
    not first and not last. Compared character by character.

    MalformedFrame: it cannot.
    """
    if not isinstance(value, str):
        raise MalformedFrame(f"an id is a string, not {_kind(value)}")
    if not 0 < len(value) <= MAX_IDENTIFIER_LENGTH:
        raise MalformedFrame(f"an id has 1 to {MAX_IDENTIFIER_LENGTH} characters, not {len(value)}")
    if not value.isprintable() or value != value.strip():
        raise MalformedFrame("an id is printable, and has no space at its ends")
    return value


def check_secret(value: JSON) -> str:
    """*value*, if it can be a peer's secret: 16 to 128 visible ASCII characters.

    MalformedFrame: it cannot; the message does not show it.
    """
    if not isinstance(value, str) or len(value) not in SECRET_LENGTHS:
        raise MalformedFrame("resume, if given, is a string of 16 to 128 characters")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise MalformedFrame("resume, if given, is of visible ASCII characters")
    return value


def digest_of(secret: str) -> str:
    """What brokers keep of a *secret*: 32 hex digits, from which nobody comes to the secret."""
    return hashlib.sha256(secret.encode()).hexdigest()[:32]


def check_peer_signal(params: JSON) -> PeerSignal:
    """The signal with these *params*, as a broker or another server of a cluster said them.

    MalformedFrame: they are none.
    """
    if not isinstance(params, dict):
        raise MalformedFrame(f"the params of a signal are an object, not {_kind(params)}")
    check_identifier(params.get("from"))
    check_identifier(params.get("to"))
    if not isinstance(params.get("signal"), dict):
        raise MalformedFrame(f"a signal is an object, not {_kind(params.get('signal'))}")
    return PeerSignal(params)


# --- the broker's side --------------------------------------------------------------------


def decode_request(text: str | bytes) -> Request | PeerSignal | BadRequest | Batch:
    """What a peer said; never raises."""
    try:
        value = decode_json(text)
    except MalformedFrame as error:
        return _bad(str(error), None, PARSE_ERROR)
    if not isinstance(value, list):
        return _decode_request(value)
    if not 0 < len(value) <= MAX_BATCH_LENGTH:
        return _bad(
            f"a batch has 1 to {MAX_BATCH_LENGTH} requests, not {len(value)}", None, INVALID_REQUEST
        )
    return Batch(tuple(_decode_request(each, in_batch=True) for each in value))


def encode_response(response: Response) -> str:
    """*response* as the text of a frame, in its generation."""
    return encode_json(_response_fields(response))


def encode_responses(responses: Iterable[Response]) -> str:
    """The answer to a batch."""
    return encode_json([_response_fields(each) for each in responses])


def encode_peer_signal(signal: PeerSignal, generation: Generation = Generation.JSON_RPC) -> str:
    """*signal* as the text of a frame for somebody of *generation*."""
    more = signal.more if signal.generation is generation else {}
    if generation is Generation.JSON_RPC:
        fields = {"jsonrpc": "2.0", "method": "signal", "params": dict(signal.params), **more}
    else:
        told = {**signal.params, "signal": encode_json(signal.signal)}
        fields = {"message": {"type": "signal", **told}, **more}
    return encode_json(fields)


def _decode_request(value: JSON, *, in_batch: bool = False) -> Request | PeerSignal | BadRequest:
    if not isinstance(value, dict):
        return _bad(f"a request is an object, not {_kind(value)}", None, INVALID_REQUEST)
    key = value.get("id")
    if isinstance(key, bool | list | dict):
        return _bad(f"an id is a string or a number, not {_kind(key)}", None, INVALID_REQUEST)
    if "method" in value or in_batch or "message" not in value:
        return _decode_rpc(value, key)
    return _decode_message(value, key)


def _decode_rpc(value: dict[str, JSON], key: JSON) -> Request | PeerSignal | BadRequest:
    method = value.get("method")
    # linkup's own documentation leaves "jsonrpc" out.
    if value.get("jsonrpc", "2.0") != "2.0":
        return _bad("this is JSON-RPC 2.0", key, INVALID_REQUEST)
    if not isinstance(method, str):
        return _bad(f"a method is a string, not {_kind(method)}", key, INVALID_REQUEST)
    is_notification = "id" not in value
    params = value.get("params", {})
    if not isinstance(params, dict):
        if isinstance(params, list):
            return _bad("params are given by name here", key, INVALID_PARAMS, is_notification)
        return _bad(f"params are an object, not {_kind(params)}", key, INVALID_REQUEST)
    try:
        call = _call(method, params, Generation.JSON_RPC)
    except MalformedFrame as error:
        return _bad(str(error), key, INVALID_PARAMS, is_notification)
    if call is None:
        return _bad(
            "unknown method", key, METHOD_NOT_FOUND, is_notification, data={"method": method}
        )
    if isinstance(call, PeerSignal):
        more = {name: value[name] for name in value.keys() - {"jsonrpc", "id", "method", "params"}}
        request = None if is_notification else Request(Ping(), key)
        return PeerSignal(call.params, more=more, request=request)
    return Request(call, key, is_notification=is_notification)


def _decode_message(value: dict[str, JSON], key: JSON) -> Request | PeerSignal | BadRequest:
    generation = Generation.MESSAGES
    is_notification = "id" not in value
    message = value["message"]
    if not isinstance(message, dict):
        return _bad(
            f"a message is an object, not {_kind(message)}",
            key,
            INVALID_REQUEST,
            generation=generation,
        )
    kind = message.get("type")
    params = {name: each for name, each in message.items() if name != "type"}
    try:
        call = _call(kind, params, generation)
    except MalformedFrame as error:
        return _bad(str(error), key, INVALID_PARAMS, is_notification, generation=generation)
    if call is None:
        return _bad(
            "unknown type of message", key, METHOD_NOT_FOUND, is_notification, generation=generation
        )
    if isinstance(call, PeerSignal):
        more = {name: value[name] for name in value.keys() - {"id", "message"}}
        request = None if is_notification else Request(Ping(), key, generation)
        return PeerSignal(call.params, generation, more, request)
    return Request(call, key, generation, is_notification)


def _call(
    method: JSON, params: dict[str, JSON], generation: Generation
) -> Call | PeerSignal | None:
    """The call with this name and these *params*; None if there is no such.

    MalformedFrame: there is, and its *params* are others.
    """
    match method:
        case "ping":
            return Ping()
        case "exists":
            return Exists(check_identifier(params.get("id")))
        case "find":
            return Find(check_identifier(params.get("id")))
        case "register":
            secret = check_secret(params["resume"]) if "resume" in params else None
            return Register(check_identifier(params.get("id")), secret)
        case "unregister":
            return Unregister()
        case "signal":
            return check_peer_signal(_with_signal_read(params, generation))
        case _:
            return None


def _with_signal_read(params: dict[str, JSON], generation: Generation) -> dict[str, JSON]:
    """*params*, with the signal as an object: the older generation has a string of JSON there.

    MalformedFrame: the string is not JSON.
    """
    signal = params.get("signal")
    if generation is Generation.MESSAGES and isinstance(signal, str):
        return {**params, "signal": decode_json(signal)}
    return params


def _bad(
    reason: str,
    key: JSON,
    code: int,
    is_notification: bool = False,
    *,
    data: JSON = None,
    generation: Generation = Generation.JSON_RPC,
) -> BadRequest:
    # JSON-RPC 2.0, section 4.1: a notification is not answered, not even with an error; but
    # what is no request at all is, with an id of null.
    answer = Response(key, failure=Failure(code, reason, data), generation=generation)
    return BadRequest(reason, None if is_notification else answer)


def _response_fields(response: Response) -> dict[str, JSON]:
    failure = response.failure
    if response.generation is Generation.MESSAGES:
        error = None if failure is None else failure.message
        return {"id": response.key, "message": response.result, "error": error}
    fields: dict[str, JSON] = {"jsonrpc": "2.0", "id": response.key, "result": response.result}
    if failure is None:
        fields["error"] = None  # which JSON-RPC leaves out, and linkup does not
    else:
        fields["error"] = {"code": failure.code, "message": failure.message, "data": failure.data}
    return fields


# --- the peer's side ----------------------------------------------------------------------


def encode_request(request: Request) -> str:
    """*request* as the text of a frame, in its generation."""
    name = type(request.call).__name__.lower()
    params: dict[str, JSON] = {}
    match request.call:
        case Exists(identifier) | Find(identifier):
            params["id"] = identifier
        case Register(identifier, secret):
            params["id"] = identifier
            if secret is not None:
                params["resume"] = secret
        case Ping() | Unregister():
            pass
    fields: dict[str, JSON]
    if request.generation is Generation.JSON_RPC:
        fields = {"jsonrpc": "2.0", "id": request.key, "method": name, "params": params}
    else:
        fields = {"id": request.key, "message": {"type": name, **params}}
    if request.is_notification:
        del fields["id"]
    return encode_json(fields)


def decode_answer(text: str | bytes) -> Response | PeerSignal:
    """What a broker said: an answer, or somebody's signal.

    MalformedFrame: neither.
    """
    value = decode_json(text)
    if not isinstance(value, dict):
        raise MalformedFrame(f"a broker's frame is an object, not {_kind(value)}")
    if "method" in value or "message" in value:
        said = _decode_request(value)
        if isinstance(said, PeerSignal):
            return said
    if "id" not in value:
        raise MalformedFrame("neither an answer nor a signal")
    generation = Generation.MESSAGES if "message" in value else Generation.JSON_RPC
    # linkup leaves the result of `unregister` out.
    result = value.get("message" if generation is Generation.MESSAGES else "result")
    error = value.get("error")
    if error is None:
        return Response(value["id"], result, None, generation)
    return Response(value["id"], result, _decode_failure(error), generation)


def _decode_failure(error: JSON) -> Failure:
    if not isinstance(error, dict):
        return Failure(INTERNAL_ERROR, error if isinstance(error, str) else encode_json(error))
    code, message = error.get("code"), error.get("message")
    return Failure(
        code if isinstance(code, int) else INTERNAL_ERROR,
        message if isinstance(message, str) else "no reason given",
        error.get("data"),
    )


def _kind(value: JSON) -> str:
    return "null" if value is None else type(value).__name__
