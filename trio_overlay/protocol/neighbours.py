"""What neighbours that signal for each other say.

The format is neighborhood-wrtc 3.0.0's and n2n-overlay-wrtc 2.0.10's. A peer ``P`` has two ends:
``P-O``, from which it opens arcs, and ``P-I``, to which others open theirs. A `pid` names one of
the protocols that share the connections; a `tid` one attempt at an arc, and between peers of ours
the arc that came of it.

What goes beyond the originals is said only to those who named it under ``extensions`` in a request
or a response, keys that the originals pass on and do not look at. An `ArcEnd` inside a `Forward`
is the exception: the originals pass on any message, and ignore those of an unknown type.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.json import JSON, decode_json, encode_json
from trio_overlay.protocol.signals import is_offer

ARCS = "arcs"
"""The extension of those who name arcs: they say when one is removed or an attempt given up."""
CREDIT = "credit"
"""The extension of those who count what they send and are told what was read."""
BEAT = "beat"
"""The extension of those who give a sign of life when they are asked for one."""

EXTENSIONS = frozenset({ARCS, CREDIT, BEAT})
"""What a peer of this package says it understands."""

INIT = "init"
RENEGOTIATION = "renegociate"
"""The originals' `offer_type` of signals that change an open connection, for media."""

MAX_NAME = 256
"""Characters of an end, a pid or a tid."""
MAX_REASON = 200
"""Characters of a reason that are said."""


class Side(Enum):
    """Which of a peer's two views an arc is in."""

    IN = "I"
    """The inview: arcs that others opened."""
    OUT = "O"
    """The outview: arcs that this peer opened."""

    @property
    def opposite(self) -> Side:
        """Where the same arc is at its other end."""
        return Side.OUT if self is Side.IN else Side.IN

    def end_of(self, peer: str) -> str:
        """What the end of *peer* on this side is called."""
        return f"{peer}-{self.value}"


def peer_of(end: str) -> str:
    """The peer whose *end* that is: without its ``-I`` or ``-O``, if it has one."""
    return end[:-2] if end.endswith(("-I", "-O")) else end


# --- what is said -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ArcRequest:
    """One signal of an attempt to open an arc from `peer`; or, without one, on this connection.

    A request without a signal goes only over a connection that the two have: one arc more.
    """

    tid: str
    peer: str
    """The end that opens the arc."""
    pid: str
    offer: JSON
    """A signal, an object, not decoded; or None."""
    offer_type: str = INIT
    extensions: frozenset[str] = frozenset()

    @property
    def begins(self) -> bool:
        """Whether an attempt can begin with this: what else there is needs one that has begun."""
        return self.offer is None or is_offer(self.offer)


@dataclass(frozen=True, slots=True)
class ArcResponse:
    """One signal of the end that is to accept; without a signal, the arc is open already."""

    tid: str
    peer: str
    """The end that accepts the arc."""
    pid: str
    offer: JSON
    offer_type: str = INIT
    extensions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ArcEnd:
    """The attempt `tid` is over for `peer`. Extension `ARCS`, or inside a `Forward`.

    Whoever passes its messages on need not keep it in mind any more.
    """

    tid: str
    peer: str
    pid: str
    reason: str | None
    """Why it came to nothing; None if there is an arc now."""


ArcMessage: TypeAlias = ArcRequest | ArcResponse | ArcEnd
"""What the two ends of an attempt say to each other, by whatever road."""


@dataclass(frozen=True, slots=True)
class ConnectTo:
    """Please open an arc to `to`, through me; `from_` is the end of yours that I know."""

    from_: str
    to: str


@dataclass(frozen=True, slots=True)
class Forward:
    """Pass `message` on to `to`; or, if it `has_arrived`, here is what `from_` sent to you.

    The message is the JSON it came as, unknown keys and all.
    """

    from_: str
    to: str
    message: JSON
    has_arrived: bool


@dataclass(frozen=True, slots=True)
class Direct:
    """Please open an arc to me."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The arc `tid` is removed. Extension `ARCS`."""

    tid: str


@dataclass(frozen=True, slots=True)
class Credit:
    """*size* more bytes of messages were read, and as many may be sent. Extension `CREDIT`."""

    size: int


@dataclass(frozen=True, slots=True)
class Beat:
    """The sender is alive; if it `asks`, it wants to hear that we are. Extension `BEAT`."""

    asks: bool


@dataclass(frozen=True, slots=True)
class Application:
    """Anything else: a message of the application."""

    data: JSON


Payload: TypeAlias = (
    ArcMessage | ConnectTo | Forward | Direct | Disconnect | Credit | Beat | Application
)

RESERVED = frozenset(
    {
        "MRequest",
        "MResponse",
        "MConnectTo",
        "MForwardTo",
        "MForwarded",
        "MDirect",
        "MArcEnd",
        "MDisconnect",
        "MCredit",
        "MBeat",
    }
)
"""Types of payloads that are not the application's."""


@dataclass(frozen=True, slots=True)
class Send:
    """A payload for the protocol `pid`, from the end `peer`."""

    peer: str
    pid: str
    payload: JSON = field(default=None)


@dataclass(frozen=True, slots=True)
class InternalSend:
    """The renegotiation of a connection for media streams, which a data library has none of.

    `fields` is the whole JSON object.
    """

    fields: dict[str, JSON]


NeighbourFrame: TypeAlias = Send | InternalSend


# --- frames -------------------------------------------------------------------------------


def decode_neighbour(frame: str | bytes) -> NeighbourFrame:
    """The frame that a neighbour sent; binary frames are taken as the text they hold.

    MalformedFrame: no frame of this protocol; the message says why.
    """
    value = decode_json(frame)
    if not isinstance(value, dict):
        raise MalformedFrame(f"a frame is an object, not {type(value).__name__}")
    match value.get("type"):
        case "MSend":
            # JSON.stringify leaves out a key whose value is undefined.
            return Send(_name(value, "peer"), _name(value, "pid"), value.get("payload"))
        case "MInternalSend":
            return InternalSend(value)
        case other:
            raise MalformedFrame(f"no frame between neighbours has the type {other!r:.40}")


def encode_neighbour(frame: NeighbourFrame) -> str:
    """*frame* as JSON text.

    TypeError, ValueError: the payload is no JSON value.
    """
    match frame:
        case Send(peer, pid, payload):
            return encode_json({"peer": peer, "pid": pid, "payload": payload, "type": "MSend"})
        case InternalSend(fields):
            return encode_json(fields)


# --- payloads -----------------------------------------------------------------------------


def decode_payload(value: JSON, extensions: frozenset[str] = EXTENSIONS) -> Payload:
    """What the payload of a `Send` says, coming from one who understands *extensions*.

    MalformedFrame: it has a type with a meaning, and not what belongs to it.
    """
    kind = value.get("type") if isinstance(value, dict) else None
    match kind:
        case "MRequest" | "MResponse":
            return decode_arc_message(value)
        case "MConnectTo":
            return ConnectTo(_name(value, "from"), _name(value, "to"))
        case "MForwardTo" | "MForwarded":
            message = value.get("message")
            if not isinstance(message, dict):
                raise MalformedFrame(f"the message of an {kind} is an object")
            return Forward(_name(value, "from"), _name(value, "to"), message, kind == "MForwarded")
        case "MDirect":
            return Direct()
        case "MArcEnd" if ARCS in extensions:
            return decode_arc_message(value)
        case "MDisconnect" if ARCS in extensions:
            return Disconnect(_name(value, "tid"))
        case "MCredit" if CREDIT in extensions:
            size = value.get("size")
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise MalformedFrame("the size of an MCredit is a positive number")
            return Credit(size)
        case "MBeat" if BEAT in extensions:
            asks = value.get("asks")
            if not isinstance(asks, bool):
                raise MalformedFrame("the asks of an MBeat is true or false")
            return Beat(asks)
    return Application(value)


def encode_payload(payload: Payload) -> JSON:
    """*payload* as a JSON value."""
    match payload:
        case ArcRequest() | ArcResponse() | ArcEnd():
            return encode_arc_message(payload)
        case ConnectTo(from_, to):
            return {"from": from_, "to": to, "type": "MConnectTo"}
        case Forward(from_, to, message, has_arrived):
            kind = "MForwarded" if has_arrived else "MForwardTo"
            return {"from": from_, "to": to, "message": message, "type": kind}
        case Direct():
            return {"type": "MDirect"}
        case Disconnect(tid):
            return {"tid": tid, "type": "MDisconnect"}
        case Credit(size):
            return {"size": size, "type": "MCredit"}
        case Beat(asks):
            return {"asks": asks, "type": "MBeat"}
        case Application(data):
            return data


def decode_arc_message(value: JSON) -> ArcMessage:
    """What one end of an attempt said to the other, as it came by whatever road.

    MalformedFrame: nothing that belongs to an attempt; the message says why.
    """
    if not isinstance(value, dict):
        raise MalformedFrame(f"a message of an attempt is an object, not {type(value).__name__}")
    kind = value.get("type")
    if kind == "MArcEnd":
        reason = value.get("reason")
        if reason is not None and not isinstance(reason, str):
            raise MalformedFrame("the reason of an MArcEnd is a string or null")
        return ArcEnd(
            _name(value, "tid"),
            _name(value, "peer"),
            _name(value, "pid"),
            None if reason is None else reason[:MAX_REASON],
        )
    if kind not in ("MRequest", "MResponse"):
        raise MalformedFrame(f"no message of an attempt has the type {kind!r:.40}")
    offer = value.get("offer")
    if offer is not None and not isinstance(offer, dict):
        raise MalformedFrame(f"the offer of an {kind} is a signal or null")
    offer_type = value.get("offerType", INIT)
    if not isinstance(offer_type, str):
        raise MalformedFrame(f"the offerType of an {kind} is a string")
    extensions = value.get("extensions", [])
    if not isinstance(extensions, list):
        raise MalformedFrame(f"the extensions of an {kind} are a list")
    make = ArcRequest if kind == "MRequest" else ArcResponse
    return make(
        _name(value, "tid"),
        _name(value, "peer"),
        _name(value, "pid"),
        offer,
        offer_type,
        frozenset(name for name in extensions if isinstance(name, str)),
    )


def encode_arc_message(message: ArcMessage) -> JSON:
    """*message* as a JSON value, its keys in the originals' order."""
    if isinstance(message, ArcEnd):
        reason = message.reason
        return {
            "tid": message.tid,
            "peer": message.peer,
            "pid": message.pid,
            "reason": None if reason is None else reason[:MAX_REASON],
            "type": "MArcEnd",
        }
    value: dict[str, JSON] = {
        "tid": message.tid,
        "peer": message.peer,
        "pid": message.pid,
        "offer": message.offer,
        "type": "MRequest" if isinstance(message, ArcRequest) else "MResponse",
        "offerType": message.offer_type,
    }
    if message.extensions:
        value["extensions"] = sorted(message.extensions)
    return value


def is_reserved(data: JSON) -> bool:
    """Whether *data*, sent as a message, would be taken for something else than a message."""
    kind = data.get("type") if isinstance(data, dict) else None
    return isinstance(kind, str) and kind in RESERVED


def _name(value: dict[str, JSON], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str) or not 0 < len(found) <= MAX_NAME:
        raise MalformedFrame(f"the {key} of an {value['type']} has 1 to {MAX_NAME} characters")
    return found
