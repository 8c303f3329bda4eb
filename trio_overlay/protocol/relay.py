"""What relay peers say: ids, envelopes, and the bodies in them, as peer-relay 0.0.2 says them.

An envelope is passed on by whoever gets it, towards the id in its `to`; the body is for the peer
with that id alone. What a peer understands beyond the original it says in the key ``extensions``
of its findPeers, foundPeers, handshake-offer and handshake-answer, where the original does not
look. Bodies of an unknown type the original ignores, and passes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias, TypeGuard

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.json import JSON, decode_json, encode_json

PeerId: TypeAlias = str
"""160 bits as 40 hex digits, in lower case."""

ID_BITS: Final = 160
MAX_HOPS: Final = 20
"""An envelope whose path has so many ids is passed on no further."""
MAX_FOUND: Final = 20
"""Ids in an answer to findPeers; further ones are not read."""
MAX_NONCE: Final = 40
MAX_URL: Final = 2048
MAX_ENVELOPE_SIZE: Final = 262_144
"""Bytes of an envelope as JSON: what a data channel takes (WIRE.md, section 1)."""
ROOM_FOR_PATH: Final = MAX_HOPS * 43 + 2_000
"""Bytes that the path, and a proof, may add to an envelope on its way."""

ALIVE: Final = "alive"
"""The extension of those who answer `Ping` and give receipts."""
EXTENSIONS: Final = frozenset({ALIVE})

_HEX: Final = re.compile(r"[0-9a-fA-F]{40}")
_ROUTED: Final = ("to", "from", "path", "nonce", "data")


# --- ids ----------------------------------------------------------------------------------


def is_peer_id(value: object) -> bool:
    """Whether *value* is a `PeerId`."""
    return isinstance(value, str) and _HEX.fullmatch(value) is not None and value == value.lower()


def decode_id(value: JSON) -> PeerId:
    """The id that *value* stands for: 40 hex digits, or the JSON of a Node buffer of 20 bytes.

    MalformedFrame: it stands for none.
    """
    if isinstance(value, str) and _HEX.fullmatch(value):
        return value.lower()
    if isinstance(value, dict) and value.get("type") == "Buffer":
        data = value.get("data")
        if isinstance(data, list) and len(data) == ID_BITS // 8 and all(map(_is_byte, data)):
            return bytes(data).hex()
    raise MalformedFrame("an id is 40 hex digits, or a Buffer of 20 bytes")


def encode_id(identifier: PeerId) -> JSON:
    """*identifier* as the JSON of a Node buffer: the first frame of each end of a WebSocket."""
    return {"type": "Buffer", "data": list(bytes.fromhex(identifier))}


def _is_byte(value: JSON) -> bool:
    return type(value) is int and 0 <= value <= 255


# --- bodies -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class User:
    """What an application sends to another."""

    data: JSON
    receipt: str | None = None
    """Asks for a `Receipt` with this in it: the same for each copy sent again (an extra key)."""


@dataclass(frozen=True, slots=True)
class FindPeers:
    """Which peers are nearest to *target*, of those you know?"""

    target: PeerId
    extensions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class FoundPeers:
    """The answer, nearest first; at most `MAX_FOUND`."""

    peers: tuple[PeerId, ...]
    extensions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class HandshakeOffer:
    """By what transports can you be connected?"""

    extensions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class HandshakeAnswer:
    """By these; the asker connects."""

    url: str | None
    webrtc: bool
    extensions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PeerSignal:
    """A signal of a WebRTC connection that is coming up, undecoded."""

    signal: JSON


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The handshake that the sender has offered is given up. Only ours say and understand it."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The `User` message that asked for this arrived. Only ours give and understand it."""

    receipt: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Say something. Only ours understand it; others are asked by `FindPeers`."""


@dataclass(frozen=True, slots=True)
class Pong:
    """Something."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A body of a type that is none of these: passed on, otherwise ignored."""

    value: JSON


Body: TypeAlias = (
    User | FindPeers | FoundPeers | HandshakeOffer | HandshakeAnswer | PeerSignal
    | Withdrawn | Receipt | Ping | Pong | Unknown
)  # fmt: skip


def decode_body(value: JSON) -> Body:
    """The body that *value* stands for.

    MalformedFrame: it is none that can be said, and one that an original might die of.
    """
    if not isinstance(value, dict):
        raise MalformedFrame("a body is an object")
    data = value.get("data")
    match value.get("type"):
        case "user":
            receipt = value.get("receipt")
            return User(data, receipt if _is_short(receipt) else None)
        case "findPeers":
            return FindPeers(decode_id(data), _extensions(value))
        case "foundPeers":
            if not isinstance(data, list):
                raise MalformedFrame("foundPeers has a list of ids")
            peers = dict.fromkeys(decode_id(each) for each in data[:MAX_FOUND])
            return FoundPeers(tuple(peers), _extensions(value))
        case "handshake-offer":
            return HandshakeOffer(_extensions(value))
        case "handshake-answer":
            if not isinstance(data, dict):
                raise MalformedFrame("a handshake-answer has an object")
            url = data.get("ws")
            is_url = isinstance(url, str) and 0 < len(url) <= MAX_URL
            return HandshakeAnswer(
                url if is_url else None, bool(data.get("wrtc")), _extensions(value)
            )
        case "signal":
            if not isinstance(data, dict):
                raise MalformedFrame("a signal is an object")
            return PeerSignal(data)
        case "withdrawn":
            return Withdrawn()
        case "receipt" if _is_short(data):
            return Receipt(data)
        case "ping":
            return Ping()
        case "pong":
            return Pong()
        case str():
            return Unknown(value)
        case _:
            raise MalformedFrame("the type of a body is a string")


def encode_body(body: Body) -> JSON:
    """*body* as a JSON value; extra keys come after those of the original."""
    value: dict[str, JSON]
    match body:
        case User(data, receipt):
            value = {"type": "user", "data": data}
            return value if receipt is None else value | {"receipt": receipt}
        case FindPeers(target, extensions):
            value = {"type": "findPeers", "data": target}
        case FoundPeers(peers, extensions):
            value = {"type": "foundPeers", "data": list(peers)}
        case HandshakeOffer(extensions):
            value = {"type": "handshake-offer"}
        case HandshakeAnswer(url, webrtc, extensions):
            value = {"type": "handshake-answer", "data": {"ws": url, "wrtc": webrtc}}
        case PeerSignal(signal):
            return {"type": "signal", "data": signal}
        case Withdrawn():
            return {"type": "withdrawn"}
        case Receipt(receipt):
            return {"type": "receipt", "data": receipt}
        case Ping():
            return {"type": "ping"}
        case Pong():
            return {"type": "pong"}
        case Unknown(value):
            return value
    if extensions:
        value["extensions"] = sorted(extensions)
    return value


def _extensions(value: Mapping[str, JSON]) -> frozenset[str]:
    names = value.get("extensions")
    return EXTENSIONS.intersection(filter(_is_short, names)) if isinstance(names, list) else _NONE


def _is_short(value: JSON) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_NONCE


_NONE: Final[frozenset[str]] = frozenset()


# --- envelopes ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Envelope:
    """A body on its way from one id to another."""

    to: PeerId
    sender: PeerId
    path: tuple[PeerId, ...]
    """The ids that it passed, the sender first; before it has left the sender, none."""
    nonce: str
    body: Body
    more: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the envelope that are not ours, a proof among them; passed on as they are."""
    raw: JSON = None
    """The body as it came, with keys that we do not know: so it is passed on."""
    buffers: frozenset[str] = frozenset()
    """Which of ``to`` and ``from`` came as Node buffers, as a relay of the original writes them."""

    def passed(self, by: PeerId) -> Envelope:
        """This envelope as the peer *by* sends it on."""
        return Envelope(
            self.to, self.sender, (*self.path, by), self.nonce, self.body, self.more, self.raw
        )

    def with_more(self, key: str, value: JSON) -> Envelope:
        """This envelope with one extra key more."""
        return replace(self, more={**self.more, key: value})


def decode_envelope(text: str | bytes) -> Envelope:
    """The envelope that a frame holds.

    NotJSON: it holds no JSON object, which no original ever sends.
    MalformedFrame: it is none that may be passed on: an original would die of some of those.
    """
    try:
        value = decode_json(text)
    except MalformedFrame as error:
        raise NotJSON(str(error)) from None
    if not isinstance(value, dict):
        raise NotJSON("an envelope is an object")
    return envelope_of(value)


class NotJSON(MalformedFrame):
    """What came is not even JSON: whoever says this speaks another protocol."""


def envelope_of(value: dict[str, JSON]) -> Envelope:
    """The envelope that the JSON object *value* stands for; MalformedFrame if it is none."""
    path, nonce = value.get("path"), value.get("nonce")
    if not isinstance(path, list) or not 1 <= len(path) <= MAX_HOPS + 1:
        raise MalformedFrame(f"the path of an envelope has 1 to {MAX_HOPS + 1} ids")
    if not _is_short(nonce):
        raise MalformedFrame(f"a nonce is a string of up to {MAX_NONCE} characters")
    body = value.get("data")
    return Envelope(
        decode_id(value.get("to")),
        decode_id(value.get("from")),
        tuple(map(decode_id, path)),
        nonce,
        decode_body(body),
        {key: each for key, each in value.items() if key not in _ROUTED},
        body,
        frozenset(key for key in ("to", "from") if isinstance(value[key], dict)),
    )


def encode_envelope(envelope: Envelope) -> str:
    """*envelope* as JSON text, in ASCII, its keys in the original's order.

    TypeError, ValueError: what a body of ours holds is no JSON value.
    """
    return encode_json(value_of(envelope))


def value_of(envelope: Envelope) -> dict[str, JSON]:
    """*envelope* as a JSON object."""
    to, sender = envelope.to, envelope.sender
    return {
        "to": encode_id(to) if "to" in envelope.buffers else to,
        "from": encode_id(sender) if "from" in envelope.buffers else sender,
        "path": list(envelope.path),
        "nonce": envelope.nonce,
        "data": encode_body(envelope.body) if envelope.raw is None else envelope.raw,
        **envelope.more,
    }


def decode_first_frame(text: str | bytes) -> PeerId:
    """The id with which the other end of a WebSocket begins.

    MalformedFrame: it is none.
    """
    return decode_id(decode_json(text))


def encode_first_frame(identifier: PeerId) -> str:
    """The frame with which our end of a WebSocket begins."""
    return encode_json(encode_id(identifier))


def sorted_by_distance(peers: Iterable[PeerId], target: PeerId) -> list[PeerId]:
    """*peers*, those nearest to *target* first; nearness is the XOR of the ids."""
    aim = int(target, 16)
    return sorted(peers, key=lambda peer: int(peer, 16) ^ aim)
