"""What is said on the bootstrap server's WebSockets.

Two layers share the sockets. The *signal frames* are webrtc-bootstrap 4.4.1's, and all that peers
of the old protocol ever see. The *control frames* are ours, and go only between ends that have
both announced themselves: the client by `ANNOUNCEMENT` in the query of the URL, which the
original server ignores, the server by a first frame `Hello`, which it sends only to those who
announced themselves.

What a peer understands beyond the old protocol it says in the key ``extensions`` of its first
frame to another: a list of names, which the JavaScript server and nodes pass on untouched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.json import JSON, decode_json, encode_json

ANNOUNCEMENT = "trio-overlay=1"
"""The query of the URL by which a client says that it understands control frames."""

JOIN_PATH = "/join"
ROOT_HEARTBEAT_INTERVAL = 1.0
ROOT_SILENCE_TIMEOUT = 3.0
"""How often server and root of ours give each other a sign of life, and when one is missed: another
root has to take over within 5 s."""
MAX_TERM = 1 << 48
"""Terms are below it."""
MAX_TOKEN = 64
ROOT_PATH_SUFFIX = "/webrtc-bootstrap-root"
"""The root's path is ``/{secret}`` and this."""
SNAPSHOT_PATH_SUFFIX = "/trio-overlay-snapshot"
"""Where those who know the secret ask for a picture of the tree: ``/{secret}`` and this."""
SNAPSHOT = "snapshot"
"""The extension of roots that can be asked for it."""
MAX_SNAPSHOT_TIMEOUT = 60.0
"""Seconds that a root is given for it, at most."""
MAX_PART_SIZE = 2**14
"""Bytes of a part of a picture, roughly: far below every limit of a frame, and between two of them
there is room for signs of life and requests."""

WITHDRAW = "withdraw"
"""The extension of those who want to be told when a request is withdrawn."""


@dataclass(frozen=True, slots=True)
class SignalFrame:
    """One signal on its way from peer to peer, with everything that came with it.

    `fields` is the whole JSON object, in its order; who passes a frame on changes as little of
    it as possible. The object is checked: what the properties return has the type they say.
    """

    fields: Mapping[str, JSON]
    size: int = field(default=0, compare=False)
    """Bytes of the JSON it came as, for those who keep frames and count; 0 for one made here."""

    @property
    def origin(self) -> str | None:
        """Who sent it, as the server says; None on the way to the server."""
        return self.fields.get("origin") or None

    @property
    def destination(self) -> str | None:
        """The prospect it is for; None means the root."""
        return self.fields.get("destination") or None

    @property
    def signal(self) -> JSON:
        """The signal, an object, not decoded."""
        return self.fields["signal"]

    @property
    def extensions(self) -> frozenset[str]:
        """What the sender says it understands beyond the old protocol."""
        names = self.fields.get("extensions", ())
        return frozenset(name for name in names if isinstance(name, str))

    def with_origin(self, origin: str) -> SignalFrame:
        """The same frame with the sender's id in it, whatever the sender had said it was."""
        return SignalFrame({**self.fields, "origin": origin}, self.size)

    def with_destination(self, destination: str) -> SignalFrame:
        """The same frame, for the prospect *destination*."""
        return SignalFrame({**self.fields, "destination": destination}, self.size)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Nothing but a sign of life, either way between server and root."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The server's first frame to a client that announced itself."""

    identifier: str | None
    """The id the server gave to this prospect; None for a root."""
    extensions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Done:
    """A client's farewell: the channel is open, and the close of this socket means nothing bad."""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Somebody has given up a handshake, or is gone.

    From a client (without origin) it speaks of the client itself. From the server it names the
    prospect that is gone, and goes to the root and to those prospects it exchanged signals with.
    """

    origin: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """What was asked for is not to be had, and why: the server's word to a joiner or an asker.

    With a destination it is a root's, and for that asker.
    """

    reason: str
    destination: str | None = None


@dataclass(frozen=True, slots=True)
class AskSnapshot:
    """Somebody wants a picture of the whole tree: from an asker to the server, and on to a root."""

    timeout: float
    """Seconds in which the root has to say what it knows by then."""
    origin: str | None = None
    """The asker, as the server says."""


@dataclass(frozen=True, slots=True)
class SnapshotPart:
    """Some nodes of the tree, in any order and as their program describes them."""

    destination: str | None
    """The asker."""
    nodes: tuple[JSON, ...]
    count_missing: int
    """How many nodes that are in no part are known to be there; said with the last part."""
    is_last: bool


@dataclass(frozen=True, slots=True)
class Role:
    """The server's word to a root of ours: whether it is the one that gets the requests.

    Said after the `Hello`, and again whenever it changes.
    """

    is_active: bool
    term: int
    """Of the one that is active; says in a later `Registration` that this root was it before."""
    count_others: int
    """How many other roots are registered, and would take over."""


@dataclass(frozen=True, slots=True)
class Registration:
    """What a root of ours says of itself in the query of the URL, beside the `ANNOUNCEMENT`."""

    token: str
    """At random: says that a root which comes back is the one that was there."""
    term: int = 0
    """The term in which it was active last; 0 if it never was."""
    takes_over: bool = False
    """Whether it wants to be active at once, rather than to stand by for the one that is."""
    extensions: frozenset[str] = frozenset()
    """What else it can be asked."""

    def encode(self) -> str:
        query = f"{ANNOUNCEMENT}&root={self.token}&term={self.term}"
        if self.takes_over:
            query += "&takeover=1"
        if self.extensions:
            query += f"&extensions={','.join(sorted(self.extensions))}"
        return query

    @classmethod
    def decode(cls, query: str) -> Registration | None:
        """What *query* says; None if no root of ours wrote it."""
        fields = dict(part.partition("=")[::2] for part in query.split("&"))
        token, term = fields.get("root", ""), fields.get("term", "")
        if not (0 < len(token) <= MAX_TOKEN and term.isascii() and term.isdigit()):
            return None
        if len(term) > 15 or int(term) >= MAX_TERM:
            return None
        names = filter(None, fields.get("extensions", "").split(","))
        return cls(token, int(term), fields.get("takeover") == "1", frozenset(names))


Control: TypeAlias = Hello | Done | Withdrawn | Refused | Role | AskSnapshot | SnapshotPart
BootstrapFrame: TypeAlias = SignalFrame | Heartbeat | Control


def signal_frame(
    signal: JSON,
    *,
    destination: str | None,
    rank: int,
    extensions: Iterable[str] = (),
    more: Mapping[str, JSON] | None = None,
) -> SignalFrame:
    """A client's frame, its keys in the original's order; extensions and *more* keys after them."""
    fields: dict[str, JSON] = {
        "origin": None,
        "destination": destination,
        "signal": signal,
        "rank": rank,
    }
    names = sorted(extensions)
    if names:
        fields["extensions"] = names
    fields.update(more or {})
    return SignalFrame(fields)


def decode_bootstrap(frame: str | bytes) -> BootstrapFrame:
    """The frame that a peer or the server sent; binary frames are taken as the text they hold.

    MalformedFrame: no frame of this protocol; the message says why.
    """
    if frame in ("heartbeat", b"heartbeat"):  # the original's client sends it without quotes
        return Heartbeat()
    value = decode_json(frame)
    if value == "heartbeat":
        return Heartbeat()
    if not isinstance(value, dict):
        raise MalformedFrame(f"a frame is an object or a heartbeat, not {type(value).__name__}")
    if "signal" in value:
        return check_signal_frame(value, len(frame))
    match value.get("type"):
        case "hello":
            names = _optional(value, "extensions", list) or ()
            return Hello(
                _optional(value, "id", str),
                frozenset(name for name in names if isinstance(name, str)),
            )
        case "done":
            return Done()
        case "withdrawn":
            return Withdrawn(_optional(value, "origin", str), _optional(value, "reason", str) or "")
        case "role":
            return Role(value.get("active") is True, _count(value, "term"), _count(value, "others"))
        case "refused":
            return Refused(
                _optional(value, "reason", str) or "", _optional(value, "destination", str)
            )
        case "ask-snapshot":
            return AskSnapshot(_seconds(value, "timeout"), _optional(value, "origin", str))
        case "snapshot":
            return SnapshotPart(
                _optional(value, "destination", str),
                tuple(_optional(value, "nodes", list) or ()),
                _count(value, "missing"),
                value.get("last") is True,
            )
    raise MalformedFrame("a frame has a signal, or is a control frame of a known type")


def encode_bootstrap(frame: BootstrapFrame) -> str:
    """*frame* as JSON text."""
    match frame:
        case SignalFrame(fields):
            return encode_json(dict(fields))
        case Heartbeat():
            return '"heartbeat"'
        case Hello(identifier, extensions):
            return encode_json(
                {"type": "hello", "id": identifier, "extensions": sorted(extensions)}
            )
        case Done():
            return encode_json({"type": "done"})
        case Withdrawn(origin, reason):
            return encode_json({"type": "withdrawn", "origin": origin, "reason": reason})
        case Role(is_active, term, count_others):
            return encode_json(
                {"type": "role", "active": is_active, "term": term, "others": count_others}
            )
        case Refused(reason, destination):
            whose = {} if destination is None else {"destination": destination}
            return encode_json({"type": "refused", "reason": reason, **whose})
        case AskSnapshot(timeout, origin):
            return encode_json({"type": "ask-snapshot", "timeout": timeout, "origin": origin})
        case SnapshotPart(destination, nodes, count_missing, is_last):
            return encode_json(
                {
                    "type": "snapshot",
                    "destination": destination,
                    "nodes": nodes,
                    "missing": count_missing,
                    "last": is_last,
                }
            )


def check_signal_frame(value: dict[str, JSON], size: int) -> SignalFrame:
    """The signal frame that the JSON object *value*, of *size* bytes, is.

    MalformedFrame: a key is missing or of the wrong type.
    """
    if not isinstance(value.get("signal"), dict):
        raise MalformedFrame("the signal of a frame is an object")
    for key in ("origin", "destination"):
        # Falsy means nobody in particular: the original tests for truth.
        if value.get(key) and not isinstance(value[key], str):
            raise MalformedFrame(f"the {key} of a frame is a string or null")
    if not isinstance(value.get("extensions", []), list):
        raise MalformedFrame("the extensions of a frame are a list")
    return SignalFrame(value, size)


def snapshot_parts(
    destination: str, nodes: Iterable[JSON], count_missing: int
) -> Iterator[SnapshotPart]:
    """The picture of *nodes* for the asker *destination*, in parts of `MAX_PART_SIZE`."""
    part: list[JSON] = []
    size = 0
    for node in nodes:
        size_of_node = len(encode_json(node))
        if part and size + size_of_node > MAX_PART_SIZE:
            yield SnapshotPart(destination, tuple(part), 0, is_last=False)
            part, size = [], 0
        part.append(node)
        size += size_of_node
    yield SnapshotPart(destination, tuple(part), count_missing, is_last=True)


def _seconds(value: dict[str, JSON], key: str) -> float:
    found = value.get(key)
    if not isinstance(found, int | float) or isinstance(found, bool):
        raise MalformedFrame(f"the {key} of this frame is a number of seconds")
    if not 0 < found <= MAX_SNAPSHOT_TIMEOUT:
        raise MalformedFrame(f"a {key} is above 0 and up to {MAX_SNAPSHOT_TIMEOUT:g} s")
    return float(found)


def _count(value: dict[str, JSON], key: str) -> int:
    found = value.get(key)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < MAX_TERM:
        raise MalformedFrame(f"the {key} of this frame is a whole number from 0 up")
    return found


def _optional(value: dict[str, JSON], key: str, kind: type) -> JSON:
    found = value.get(key)
    if found is not None and not isinstance(found, kind):
        raise MalformedFrame(f"the {key} of this frame is a {kind.__name__} or null")
    return found
