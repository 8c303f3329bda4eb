"""What the servers of a cluster say to each other, and to linkup's brokers among them.

All of it is JSON on the channels of a shared Redis, which passes it on and keeps nothing. On the
channel `LINKUP_CHANNEL` travel linkup's own three messages (WIRE.md, section 4) and nothing else;
ours have channels of their own: one for all servers, and one for each.

A server is known by its *tag*, eight hex digits at random for each start. Prospects' ids end in
the tag of their server, so that whoever has an id knows the way; they begin as before with random
digits, because the JavaScript tree places its children by those.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Final, TypeAlias, assert_never

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.json import JSON, decode_json, encode_json

LINKUP_CHANNEL: Final = "linkup"
COMMON_CHANNEL: Final = "trio-overlay:all"

_TAG: Final = re.compile("[0-9a-f]{8}")
_TAG_LENGTH: Final = 8
_MAX_NUMBER: Final = 2**53


def server_channel(tag: str) -> str:
    """The channel to which only the server *tag* listens."""
    return f"trio-overlay:server:{tag}"


def random_tag(rng: random.Random) -> str:
    return f"{rng.getrandbits(32):08x}"


def tagged_identifiers(rng: random.Random, tag: str) -> Iterator[str]:
    """Ids of prospects of the server *tag*: 24 random hex digits and the tag."""
    while True:
        yield f"{rng.getrandbits(96):024x}{tag}"


def tag_of(identifier: str) -> str | None:
    """The server of the prospect *identifier*, connected or not; None if it is no such id."""
    tag = identifier[-_TAG_LENGTH:]
    return tag if len(identifier) == 32 and _TAG.fullmatch(tag) else None


# --- between our servers ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RootEntry:
    """A root connected to the server that says so."""

    number: int
    """Which of that server's; never given again."""
    registered_at: float
    """Seconds by the clock of Redis: the newest root of all is the active one."""
    is_announced: bool
    came_at: float
    """When it dialled, by the same clock: of two with one token, the earlier is only not yet known
    to be gone."""
    token: str | None = None
    """What a root of ours calls itself, wherever it registers."""
    term: int = 0
    """Of its last activity."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """A server has come to the cluster, or come back: it wants to know who is there."""


@dataclass(frozen=True, slots=True)
class Presence:
    """A server is alive, and has these roots. Those that it named before and not now are gone."""

    roots: tuple[RootEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Farewell:
    """A server is about to end."""


@dataclass(frozen=True, slots=True)
class ToRoot:
    """A bootstrap frame of the prospect *origin* for a root of the server addressed."""

    root: int
    origin: str
    begins: bool
    """Whether the frame begins a request."""
    text: str


@dataclass(frozen=True, slots=True)
class NoRoot:
    """The answer to a `ToRoot` that came too late: that root is gone, and no other is there."""

    origin: str


@dataclass(frozen=True, slots=True)
class ToProspect:
    """A bootstrap frame of the prospect *origin* for a prospect of the server addressed."""

    destination: str
    origin: str
    text: str


@dataclass(frozen=True, slots=True)
class Gone:
    """*origin* has given up, or was never there: tell *to*, a prospect, or a root."""

    origin: str
    """A prospect, or an asker."""
    to: str | int
    reason: str


@dataclass(frozen=True, slots=True)
class AskRoot:
    """The question of the asker *origin* for a root of the server addressed."""

    root: int
    origin: str
    text: str


@dataclass(frozen=True, slots=True)
class ToAsker:
    """What a root, or for want of one its server, says to the asker *destination*."""

    destination: str
    ends: bool
    """Whether nothing more will come."""
    text: str


@dataclass(frozen=True, slots=True)
class PassedOn:
    """A signal between registered peers, for whoever holds the recipient's id."""

    params: JSON
    claim: str = ""
    """The claim under which it is held: who came to hold the id by a later one does not get it.
    Put in on the way, by `with_claim`."""


@dataclass(frozen=True, slots=True)
class Moved:
    """The peer that held *identifier* at the server addressed has shown its secret at another."""

    identifier: str
    claim: str = ""
    """The claim that has ended thereby; put in on the way, as that of a `PassedOn`."""


ServerMessage: TypeAlias = (
    Greeting
    | Presence
    | Farewell
    | ToRoot
    | NoRoot
    | ToProspect
    | Gone
    | AskRoot
    | ToAsker
    | PassedOn
    | Moved
)


def encode_server_message(tag: str, message: ServerMessage) -> str:
    """What the server *tag* says, as JSON text."""
    return encode_json({"server": tag, **_fields(message)})


def _fields(message: ServerMessage) -> dict[str, JSON]:
    match message:
        case Greeting():
            return {"type": "greeting"}
        case Presence(roots):
            return {"type": "presence", "roots": [list(astuple(each)) for each in roots]}
        case Farewell():
            return {"type": "farewell"}
        case ToRoot(root, origin, begins, text):
            return {
                "type": "to-root",
                "root": root,
                "origin": origin,
                "begins": begins,
                "text": text,
            }
        case NoRoot(origin):
            return {"type": "no-root", "origin": origin}
        case ToProspect(destination, origin, text):
            return {
                "type": "to-prospect",
                "destination": destination,
                "origin": origin,
                "text": text,
            }
        case Gone(origin, to, reason):
            return {"type": "gone", "origin": origin, "to": to, "reason": reason}
        case AskRoot(root, origin, text):
            return {"type": "ask-root", "root": root, "origin": origin, "text": text}
        case ToAsker(destination, ends, text):
            return {"type": "to-asker", "destination": destination, "ends": ends, "text": text}
        case PassedOn(params, claim):
            return {"type": "signal", "params": params, "claim": claim}
        case Moved(identifier, claim):
            return {"type": "moved", "id": identifier, "claim": claim}
        case _:
            assert_never(message)


def with_claim(text: str, claim: str) -> str:
    """*text*, an encoded `PassedOn` or `Moved`, with this *claim*; as a script in Redis does it.

    Appended, and not decoded and encoded again: of two keys that are equal, the later counts.
    """
    return f'{text[:-1]},"claim":"{claim}"}}'


def decode_server_message(text: str | bytes) -> tuple[str, ServerMessage]:
    """Who said it, and what.

    MalformedFrame: no message of this protocol, or a newer one's.
    """
    value = decode_json(text)
    if not isinstance(value, dict):
        raise MalformedFrame("a server's message is an object")
    tag = _text(value, "server")
    if not _TAG.fullmatch(tag):
        raise MalformedFrame("a server's tag is eight hex digits")
    return tag, _message(value)


def _message(value: dict[str, JSON]) -> ServerMessage:
    match value.get("type"):
        case "greeting":
            return Greeting()
        case "presence":
            rows = value.get("roots")
            if not isinstance(rows, list):
                raise MalformedFrame("the roots of a server are a list")
            return Presence(tuple(_root_entry(row) for row in rows))
        case "farewell":
            return Farewell()
        case "to-root":
            begins = value.get("begins") is True
            return ToRoot(
                _number(value.get("root")), _text(value, "origin"), begins, _text(value, "text")
            )
        case "no-root":
            return NoRoot(_text(value, "origin"))
        case "to-prospect":
            return ToProspect(
                _text(value, "destination"), _text(value, "origin"), _text(value, "text")
            )
        case "gone":
            to = value.get("to")
            return Gone(
                _text(value, "origin"),
                to if isinstance(to, str) else _number(to),
                _text(value, "reason"),
            )
        case "ask-root":
            root = _number(value.get("root"))
            return AskRoot(root, _text(value, "origin"), _text(value, "text"))
        case "to-asker":
            ends = value.get("ends") is True
            return ToAsker(_text(value, "destination"), ends, _text(value, "text"))
        case "signal":
            return PassedOn(value.get("params"), _text(value, "claim"))
        case "moved":
            return Moved(_text(value, "id"), _text(value, "claim"))
    raise MalformedFrame("a server's message has a known type")


def _root_entry(row: JSON) -> RootEntry:
    match row:
        case [
            number,
            int() | float() as registered_at,
            bool(is_announced),
            int() | float() as came_at,
            str() | None as token,
            term,
        ]:
            return RootEntry(
                _number(number),
                float(registered_at),
                is_announced,
                float(came_at),
                token,
                _number(term),
            )
    raise MalformedFrame(
        "a root is its number, the time it registered at, a yes or no, the time it came at, "
        "its token and its term"
    )


def _number(value: JSON) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_NUMBER:
        return value
    raise MalformedFrame("the number of a root, or its term, is a whole number")


def _text(value: dict[str, JSON], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str):
        raise MalformedFrame(f"the {key} of this message is a string")
    return found


# --- with linkup's brokers ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkupSignal:
    """A signal for whoever has the recipient connected; not checked further."""

    params: JSON


@dataclass(frozen=True, slots=True)
class LinkupFind:
    """Who has this peer? Every subscriber answers, the asker too, and each exactly once."""

    identifier: JSON
    """Whatever it is, it is answered: what linkup waits for, it waits for without end."""


@dataclass(frozen=True, slots=True)
class LinkupFound:
    """One subscriber's answer."""

    identifier: JSON
    found: bool


LinkupMessage: TypeAlias = LinkupSignal | LinkupFind | LinkupFound


def encode_linkup(message: LinkupMessage) -> str:
    """*message* as JSON text, equal to what a linkup broker would say."""
    data: JSON
    match message:
        case LinkupSignal(params):
            kind, data = "signal", params
        case LinkupFind(identifier):
            kind, data = "find", {"id": identifier}
        case LinkupFound(identifier, found):
            kind, data = "found", {"id": identifier, "found": found}
        case _:
            assert_never(message)
    return encode_json({"type": kind, "data": data})


def decode_linkup(text: str | bytes) -> LinkupMessage:
    """What was said on linkup's channel.

    MalformedFrame: none of its three messages.
    """
    match decode_json(text):
        case {"type": "signal", "data": dict(params)}:
            return LinkupSignal(params)
        case {"type": "find", "data": dict(data)}:
            return LinkupFind(data.get("id"))
        case {"type": "found", "data": dict(data)}:
            return LinkupFound(data.get("id"), data.get("found") is True)
    raise MalformedFrame("linkup's brokers say signal, find and found")


class Inquiry:
    """One `find` on linkup's channel, from asking to knowing.

    Nobody says who answers, or whose question: so answers are counted, as linkup counts them,
    against the number of subscribers. Other than there, a question that somebody else puts
    meanwhile is known to bring as many answers again, and one that does not come is waited for
    only so long; that is the caller's business.
    """

    def __init__(self, count_subscribers: int) -> None:
        self._count_subscribers = count_subscribers
        self._count_questions = 0
        self._count_answers = 0
        self._yes = 0
        self._own_yes = 0

    def hear_question(self, *, own_answer: bool) -> None:
        """Somebody, this server too, asks for the id; what this server says to that.

        It says yes while it claims the id, so that nobody else takes it; such an answer comes
        back with the others, and tells nothing.
        """
        self._count_questions += 1
        self._own_yes += own_answer

    def hear_answer(self, *, found: bool) -> None:
        """Somebody, this server too, has answered."""
        self._count_answers += 1
        self._yes += found

    @property
    def is_found(self) -> bool:
        """Whether some other server has the peer, by the answers so far."""
        return self._yes > self._own_yes

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to wait for."""
        due = self._count_questions * self._count_subscribers
        return self.is_found or 0 < due <= self._count_answers
