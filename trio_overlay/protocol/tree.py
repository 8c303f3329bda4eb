"""What two neighbours in the tree say to each other on their channel.

`Data` and `JoinRequest` are webrtc-tree-overlay 1.0.13's. A JavaScript node throws on any other
type, so the rest goes only to a neighbour that named the frame's extension when it joined or
answered.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.ancestry import MAX_NUMBER, NEVER, Descent, Number
from trio_overlay.protocol.bootstrap import WITHDRAW, SignalFrame, check_signal_frame
from trio_overlay.protocol.cast_frames import CASTS, CastFrame, decode_cast, encode_cast
from trio_overlay.protocol.filling import MAX_LEVELS, OLD_PROTOCOL_VIEW
from trio_overlay.protocol.json import JSON, decode_json, encode_json
from trio_overlay.protocol.pulling import Pull

CREDIT = "credit"
"""The extension of those who count what they send and are told what was read."""
CONNECTIONS = "connections"
"""The extension of those who can make further connections, signalled over the tree's channel."""

HEAL = "heal"
"""The extension of those who give signs of life, and tell and hear where in the tree they are."""

ROADS = "roads"
"""The extension of those who carry signals for their neighbours, and say that they leave."""

EXTENSIONS = frozenset({WITHDRAW, CREDIT, CONNECTIONS, HEAL, ROADS, CASTS})
"""What a node of this package says it understands."""

MAX_CONNECTION_NAME = 64
BY_ROAD = "by_road"
"""The key of a request that came over a road: whoever answers it says so to whom it came from."""
MAX_ID = 64
"""Characters of an id in a path: the longest path that is believed can be told to anybody."""


@dataclass(frozen=True, slots=True)
class Data:
    """A message of the application, any JSON value."""

    data: JSON


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """One bootstrap frame of somebody who wants a place in the receiver's part of the tree."""

    frame: SignalFrame


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The request of *origin* is taken back. Extension `WITHDRAW`."""

    origin: str
    reason: str


@dataclass(frozen=True, slots=True)
class Credit:
    """*size* more bytes of `Data` frames were read, and as many may be sent. Extension `CREDIT`."""

    size: int


@dataclass(frozen=True, slots=True)
class ConnectionSignal:
    """A signal for a further connection between the two neighbours. Extension `CONNECTIONS`.

    Whoever opens the connection names it; the name means something on this channel only.
    """

    connection: str
    signal: JSON


@dataclass(frozen=True, slots=True)
class ConnectionRefused:
    """The further connection *connection* is given up. Extension `CONNECTIONS`."""

    connection: str
    reason: str


@dataclass(frozen=True, slots=True)
class Descend:
    """The parent's word on where it stands, and so where the child does. Extension `HEAL`."""

    descent: Descent


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life. Extension `HEAL`.

    A parent's has its newest number, and says that it stands where it did. An applicant's has the
    number that it has frozen; its first one without says that it has taken its parent's word, and
    is a child: until then neither passes anything on to the other.
    """

    number: Number | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The free places a child has, by level, after *seen* requests of its parent's. `HEAL`."""

    view: tuple[int, ...]
    seen: int


class Wish(enum.Enum):
    """What the opener of a road wants of whom it leads to."""

    PLACE = "place"
    """To be a child, of the receiver or of somebody below it."""
    STANDBY = "standby"
    """A connection over which to ask for a place one day; the receiver knows with whom."""
    STAND_BY = "stand-by"
    """The same, with the receiver."""
    HIGHER = "higher"
    """To be a child wherever there is room; the way leads up to the root."""


@dataclass(frozen=True, slots=True)
class RoadRequest:
    """A road begins, and its first signal is in `frame`, a request as joiners make it. `ROADS`.

    The name `road` means something on this link only.
    """

    road: str
    wish: Wish
    frame: SignalFrame


@dataclass(frozen=True, slots=True)
class RoadSignal:
    """One more signal on a road, either way. Extension `ROADS`."""

    road: str
    signal: JSON
    extensions: frozenset[str] = frozenset()
    """What the end that answers understands; only in its first signal."""


@dataclass(frozen=True, slots=True)
class RoadEnd:
    """The last word on a road, by either end or by who stands between them. Extension `ROADS`."""

    road: str
    reason: str
    is_connected: bool = False
    """Whether the two are connected, and the one has taken the other for what it wanted."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """The sender is about to leave the tree. Extension `ROADS`.

    A child's place is free from now on; its link stays until it has handed its children over. The
    children of a parent are to find another one, and ask this parent first if it *carries*.
    """

    carries: bool = False


@dataclass(frozen=True, slots=True)
class StandBy:
    """The parent would introduce the child to somebody to turn to when it is lost. `ROADS`.

    On a standby connection: who had no place when it was asked for one has a place now.
    """


@dataclass(frozen=True, slots=True)
class PullUp:
    """Some leaves at the receiver's, or below it, are to apply to the root again. `ROADS`."""

    pull: Pull


TreeOnly: TypeAlias = (
    JoinRequest
    | Withdraw
    | Descend
    | Beat
    | Report
    | RoadRequest
    | RoadSignal
    | RoadEnd
    | Leaving
    | StandBy
    | PullUp
)
"""Frames that are about the tree, and so the node's business and not the channel's."""

TreeFrame: TypeAlias = TreeOnly | Data | Credit | ConnectionSignal | ConnectionRefused | CastFrame


def decode_tree(frame: str | bytes) -> TreeFrame:
    """The frame that a neighbour sent; binary frames are taken as the text they hold.

    MalformedFrame: no frame of this protocol; the message says why.
    """
    value = decode_json(frame)
    if not isinstance(value, dict):
        raise MalformedFrame(f"a frame is an object, not {type(value).__name__}")
    match value.get("type"):
        case "DATA":
            # JSON.stringify leaves out a key whose value is undefined.
            return Data(value.get("data"))
        case "JOIN-REQUEST":
            request = check_signal_frame(value, len(frame))
            if request.origin is None:
                raise MalformedFrame("a JOIN-REQUEST has an origin")
            return JoinRequest(request)
        case "WITHDRAW":
            return Withdraw(_text(value, "origin"), _text(value, "reason"))
        case "CREDIT":
            size = value.get("size")
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise MalformedFrame("the size of a CREDIT is a positive number")
            return Credit(size)
        case "BEAT":
            number = value.get("number")
            return Beat(None if number is None else _number(number))
        case "REPORT":
            view, seen = value.get("free"), value.get("seen")
            if not _is_view(view) or not _is_count(seen):
                raise MalformedFrame("a REPORT has counts of free places, and of requests seen")
            return Report(tuple(view), seen)
        case "DESCENT":
            path = value.get("path")
            if not isinstance(path, list) or not all(map(_is_id, path)):
                raise MalformedFrame(
                    f"the path of a DESCENT is a list of ids of up to {MAX_ID} ASCII characters"
                )
            return Descend(Descent(_number(value.get("number")), tuple(path)))
        case "CONNECTION-SIGNAL":
            if not isinstance(value.get("signal"), dict):
                raise MalformedFrame("the signal of a CONNECTION-SIGNAL is an object")
            return ConnectionSignal(_name(value), value["signal"])
        case "CONNECTION-REFUSED":
            return ConnectionRefused(_name(value), _text(value, "reason"))
        case "ROAD-REQUEST":
            try:
                wish = Wish(value.get("wish"))
            except ValueError:
                raise MalformedFrame("a ROAD-REQUEST has a wish") from None
            return RoadRequest(_name(value, "road"), wish, check_signal_frame(value, len(frame)))
        case "ROAD-SIGNAL":
            if not isinstance(value.get("signal"), dict):
                raise MalformedFrame("the signal of a ROAD-SIGNAL is an object")
            names = value.get("extensions", [])
            if not isinstance(names, list):
                raise MalformedFrame("the extensions of a ROAD-SIGNAL are a list")
            extensions = frozenset(name for name in names if isinstance(name, str))
            return RoadSignal(_name(value, "road"), value["signal"], extensions)
        case "ROAD-END":
            is_connected = value.get("connected") is True
            return RoadEnd(_name(value, "road"), _text(value, "reason"), is_connected)
        case "LEAVING":
            return Leaving(value.get("carries") is True)
        case "STAND-BY":
            return StandBy()
        case "PULL":
            depth, count = value.get("depth"), value.get("count")
            if not _is_count(depth) or not _is_count(count):
                raise MalformedFrame("a PULL has a depth and a count")
            return PullUp(Pull(depth, count))
        case other:
            cast = decode_cast(value)
            if cast is not None:
                return cast
            raise MalformedFrame(f"no frame of the tree has the type {other!r:.40}")


def encode_tree(frame: TreeFrame) -> str:
    """*frame* as JSON text.

    TypeError, ValueError: the data of a `Data` is no JSON value.
    """
    match frame:
        case Data(data):
            return encode_json({"type": "DATA", "data": data})
        case JoinRequest(request):
            # From a bootstrap server: the original, too, adds the type to whatever came.
            return encode_json({**request.fields, "type": "JOIN-REQUEST"})
        case Report(view, seen):
            return encode_json({"type": "REPORT", "free": view, "seen": seen})
        case Beat(number):
            return encode_json({"type": "BEAT", "number": number})
        case Descend(Descent(number, path)):
            return encode_json({"type": "DESCENT", "number": number, "path": path})
        case Withdraw(origin, reason):
            return encode_json({"type": "WITHDRAW", "origin": origin, "reason": reason})
        case Credit(size):
            return encode_json({"type": "CREDIT", "size": size})
        case ConnectionSignal(connection, signal):
            return encode_json(
                {"type": "CONNECTION-SIGNAL", "connection": connection, "signal": signal}
            )
        case ConnectionRefused(connection, reason):
            return encode_json(
                {"type": "CONNECTION-REFUSED", "connection": connection, "reason": reason}
            )
        case RoadRequest() | RoadSignal() | RoadEnd():
            return _encode_road(frame)
        case Leaving(carries):
            return encode_json({"type": "LEAVING", "carries": carries})
        case StandBy():
            return encode_json({"type": "STAND-BY"})
        case PullUp(Pull(depth, count)):
            return encode_json({"type": "PULL", "depth": depth, "count": count})
        case _:
            return encode_cast(frame)


def _encode_road(frame: RoadRequest | RoadSignal | RoadEnd) -> str:
    match frame:
        case RoadRequest(road, wish, request):
            fields = {**request.fields, "type": "ROAD-REQUEST", "road": road, "wish": wish.value}
            return encode_json(fields)
        case RoadSignal(road, signal, extensions):
            value: dict[str, JSON] = {"type": "ROAD-SIGNAL", "road": road, "signal": signal}
            if extensions:
                value["extensions"] = sorted(extensions)
            return encode_json(value)
        case RoadEnd(road, reason, is_connected):
            return encode_json(
                {"type": "ROAD-END", "road": road, "reason": reason, "connected": is_connected}
            )


def frozen_number(frame: SignalFrame) -> Number:
    """The number that the applicant of this frame has frozen; NEVER for who had no parent yet."""
    try:
        return _number(frame.fields["number"])
    except (KeyError, MalformedFrame):
        return NEVER


def brought_view(frame: SignalFrame) -> tuple[int, ...]:
    """The free places that the applicant of this frame brings along, by level."""
    view = frame.fields.get("free")
    return tuple(view) if _is_view(view) and view else OLD_PROTOCOL_VIEW


def _is_view(value: JSON) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) <= MAX_LEVELS and all(map(_is_count, value))


def _is_count(value: JSON) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value < MAX_NUMBER


def _number(value: JSON) -> Number:
    match value:
        case [int(epoch), int(count)] if 0 <= epoch < MAX_NUMBER and 0 <= count < MAX_NUMBER:
            return epoch, count
    raise MalformedFrame("a number of the root is two whole numbers from 0 up")


def _is_id(name: JSON) -> bool:
    return isinstance(name, str) and len(name) <= MAX_ID and name.isascii() and name.isprintable()


def _text(value: dict[str, JSON], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str):
        raise MalformedFrame(f"the {key} of a {value['type']} is a string")
    return found


def _name(value: dict[str, JSON], key: str = "connection") -> str:
    name = _text(value, key)
    if not 0 < len(name) <= MAX_CONNECTION_NAME:
        raise MalformedFrame(f"the name of a {key} has 1 to {MAX_CONNECTION_NAME} characters")
    return name
