"""What tree nodes of this package say to each other about what goes further than a neighbour.

All of it is the extension `CASTS`: a node of the old protocol throws on types it doesn't know, so
it gets none of these, and of a broadcast only the data, as an ordinary message. What the frames
are for is in docs/tree.md; what is decided about them, in casting.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.json import JSON, encode_json

CASTS = "casts"
"""The extension of those who pass messages on along the tree."""

MAX_ID = 64
"""Characters of an id: all that are told can be told to anybody."""
MAX_LOG = 96
MAX_TOPIC = 128
MAX_COUNT = 1 << 53
MAX_IDS = 1000
"""Ids in one `Routes`."""


@dataclass(frozen=True, slots=True)
class Cast:
    """A broadcast to all, on its way up to the root, who puts it in order."""

    origin: str
    sequence: int
    after: int
    """The sequence of the one before it that has not come back yet; 0 if all before it have."""
    data: JSON


@dataclass(frozen=True, slots=True)
class Entry:
    """A broadcast on its way down, the *index*-th of the *log* that one root writes.

    Without a log it is a broadcast to the subtree of its origin, and its index means nothing.
    """

    log: str | None
    index: int
    origin: str
    sequence: int
    data: JSON


@dataclass(frozen=True, slots=True)
class Resume:
    """A child tells its new parent what it has heard of last; None: of nothing yet."""

    log: str | None
    index: int


@dataclass(frozen=True, slots=True)
class Start:
    """The answer to a `Resume` of nothing: what the child will hear comes after this."""

    log: str
    index: int


@dataclass(frozen=True, slots=True)
class Refill:
    """A child that came later asks for what it needs for a child of its own that has been longer
    in the tree: the entries of *log* after *index*, up to *upto*.
    """

    log: str
    index: int
    upto: int


@dataclass(frozen=True, slots=True)
class Past:
    """One entry that answers a `Refill`; it is older than what its receiver was to hear."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class PastEnd:
    """All that is kept of what a `Refill` of the same *log* and *index* asked for has been sent."""

    log: str
    index: int


@dataclass(frozen=True, slots=True)
class Hurry:
    """A child that waits for its own children is told to go on without them: it is far behind."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A message from one node to one node."""

    origin: str
    target: str
    sequence: int
    after: int
    """The sequence of the one before it, to this target, that is unsettled; 0 if none is."""
    data: JSON


@dataclass(frozen=True, slots=True)
class Receipt:
    """All that *target* sent, up to *sequence*, has been taken by *origin*."""

    origin: str
    target: str
    sequence: int
    is_for_all: bool
    """Whether it is about broadcasts to all, which a root has taken; else, about letters."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The root tells *target* that it knows no way to the node *wanted*."""

    target: str
    wanted: str


@dataclass(frozen=True, slots=True)
class Routes:
    """Which ids are below the sender, itself included: what has changed since it said so last."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    is_complete: bool
    """Whether the sender could keep all the ids below it; if not, others may be there as well."""


@dataclass(frozen=True, slots=True)
class CastCredit:
    """*size* more bytes of casts may be sent; before the first one, none may."""

    size: int


@dataclass(frozen=True, slots=True)
class Ask:
    """A question to all in the receiver's subtree, or (*is_for_all*, on its way up) to all."""

    question_id: str
    topic: str
    question: JSON
    timeout: float
    """Seconds in which the sender wants to hear all there will be."""
    is_for_all: bool


@dataclass(frozen=True, slots=True)
class Answers:
    """Some of the answers to a question."""

    question_id: str
    parts: tuple[JSON, ...]
    count: int
    """How many nodes have answered with these parts."""
    missing: int
    """Of how many more it is known that they will not answer."""
    is_last: bool


@dataclass(frozen=True, slots=True)
class Ping:
    number: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to the `Ping` of the same number."""

    number: int


CastFrame: TypeAlias = (
    Cast
    | Entry
    | Resume
    | Start
    | Refill
    | Past
    | PastEnd
    | Hurry
    | Letter
    | Receipt
    | Unknown
    | Routes
    | CastCredit
    | Ask
    | Answers
    | Ping
    | Pong
)


def decode_cast(value: dict[str, JSON]) -> CastFrame | None:
    """The frame of this extension that *value*, decoded JSON, is; None if its type is another's.

    MalformedFrame: it is one of this extension, and wrong.
    """
    match value.get("type"):
        case "CAST":
            return Cast(
                _id(value, "origin"),
                _count(value, "sequence"),
                _count(value, "after"),
                value.get("data"),
            )
        case "ENTRY":
            return _entry(value)
        case "PAST":
            return Past(_entry(value))
        case "REFILL":
            return Refill(_id(value, "log", MAX_LOG), _count(value, "index"), _count(value, "upto"))
        case "PAST-END":
            return PastEnd(_id(value, "log", MAX_LOG), _count(value, "index"))
        case "RESUME":
            log = value.get("log")
            return Resume(
                None if log is None else _id(value, "log", MAX_LOG), _count(value, "index")
            )
        case "START":
            return Start(_id(value, "log", MAX_LOG), _count(value, "index"))
        case "HURRY":
            return Hurry()
        case "LETTER":
            return Letter(
                _id(value, "origin"),
                _id(value, "target"),
                _count(value, "sequence"),
                _count(value, "after"),
                value.get("data"),
            )
        case "RECEIPT":
            return Receipt(
                _id(value, "origin"),
                _id(value, "target"),
                _count(value, "sequence"),
                _flag(value, "all"),
            )
        case "UNKNOWN":
            return Unknown(_id(value, "target"), _id(value, "wanted"))
        case "ROUTES":
            return Routes(_ids(value, "added"), _ids(value, "removed"), _flag(value, "complete"))
        case "CAST-CREDIT":
            return CastCredit(_count(value, "size"))
        case "ASK":
            timeout = value.get("timeout")
            if not isinstance(timeout, int | float) or not 0 <= timeout < MAX_COUNT:
                raise MalformedFrame("the timeout of an ASK is a number of seconds")
            return Ask(
                _id(value, "id"),
                _id(value, "topic", MAX_TOPIC),
                value.get("question"),
                float(timeout),
                _flag(value, "all"),
            )
        case "ANSWERS":
            parts = value.get("parts")
            if not isinstance(parts, list):
                raise MalformedFrame("the parts of an ANSWERS are a list")
            return Answers(
                _id(value, "id"),
                tuple(parts),
                _count(value, "count"),
                _count(value, "missing"),
                _flag(value, "last"),
            )
        case "PING":
            return Ping(_count(value, "number"))
        case "PONG":
            return Pong(_count(value, "number"))
    return None


def encode_cast(frame: CastFrame) -> str:
    """*frame* as JSON text.

    TypeError, ValueError: what the application put into it is no JSON value.
    """
    return encode_json(_fields(frame))


def _fields(frame: CastFrame) -> dict[str, JSON]:
    match frame:
        case Cast(origin, sequence, after, data):
            return {
                "type": "CAST",
                "origin": origin,
                "sequence": sequence,
                "after": after,
                "data": data,
            }
        case Entry():
            return {"type": "ENTRY", **_entry_fields(frame)}
        case Past(entry):
            return {"type": "PAST", **_entry_fields(entry)}
        case Refill(log, index, upto):
            return {"type": "REFILL", "log": log, "index": index, "upto": upto}
        case PastEnd(log, index):
            return {"type": "PAST-END", "log": log, "index": index}
        case Resume(log, index):
            return {"type": "RESUME", "log": log, "index": index}
        case Start(log, index):
            return {"type": "START", "log": log, "index": index}
        case Hurry():
            return {"type": "HURRY"}
        case Letter(origin, target, sequence, after, data):
            return {
                "type": "LETTER",
                "origin": origin,
                "target": target,
                "sequence": sequence,
                "after": after,
                "data": data,
            }
        case Receipt(origin, target, sequence, is_for_all):
            return {
                "type": "RECEIPT",
                "origin": origin,
                "target": target,
                "sequence": sequence,
                "all": is_for_all,
            }
        case Unknown(target, wanted):
            return {"type": "UNKNOWN", "target": target, "wanted": wanted}
        case Routes(added, removed, is_complete):
            return {"type": "ROUTES", "added": added, "removed": removed, "complete": is_complete}
        case CastCredit(size):
            return {"type": "CAST-CREDIT", "size": size}
        case Ask(question_id, topic, question, timeout, is_for_all):
            return {
                "type": "ASK",
                "id": question_id,
                "topic": topic,
                "question": question,
                "timeout": timeout,
                "all": is_for_all,
            }
        case Answers(question_id, parts, count, missing, is_last):
            return {
                "type": "ANSWERS",
                "id": question_id,
                "parts": parts,
                "count": count,
                "missing": missing,
                "last": is_last,
            }
        case Ping(number):
            return {"type": "PING", "number": number}
        case Pong(number):
            return {"type": "PONG", "number": number}


def _entry(value: dict[str, JSON]) -> Entry:
    log = value.get("log")
    return Entry(
        None if log is None else _id(value, "log", MAX_LOG),
        _count(value, "index"),
        _id(value, "origin"),
        _count(value, "sequence"),
        value.get("data"),
    )


def _entry_fields(entry: Entry) -> dict[str, JSON]:
    return {
        "log": entry.log,
        "index": entry.index,
        "origin": entry.origin,
        "sequence": entry.sequence,
        "data": entry.data,
    }


def is_id(name: JSON, limit: int = MAX_ID) -> bool:
    return (
        isinstance(name, str) and 0 < len(name) <= limit and name.isascii() and name.isprintable()
    )


def _id(value: dict[str, JSON], key: str, limit: int = MAX_ID) -> str:
    name = value.get(key)
    if not isinstance(name, str) or not is_id(name, limit):
        raise MalformedFrame(
            f"the {key} of a {value['type']} has 1 to {limit} printable ASCII characters"
        )
    return name


def _ids(value: dict[str, JSON], key: str) -> tuple[str, ...]:
    names = value.get(key)
    if not isinstance(names, list) or len(names) > MAX_IDS or not all(map(is_id, names)):
        raise MalformedFrame(f"what a ROUTES has {key} is a list of up to {MAX_IDS} ids")
    return tuple(names)


def _count(value: dict[str, JSON], key: str) -> int:
    count = value.get(key)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < MAX_COUNT:
        raise MalformedFrame(f"the {key} of a {value['type']} is a whole number from 0 up")
    return count


def _flag(value: dict[str, JSON], key: str) -> bool:
    flag = value.get(key)
    if not isinstance(flag, bool):
        raise MalformedFrame(f"the {key} of a {value['type']} is true or false")
    return flag
