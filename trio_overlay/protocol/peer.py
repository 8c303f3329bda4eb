"""What two peers who know each other by id say: signals of one attempt to connect, and messages.

linkup's peers exchange plain signals, which cannot be told from those of the attempt before, and
JSON text. Ours add keys to the signals, which linkup passes over: the name of the attempt, and
what its sender understands beyond linkup. Only to those who said so do we say more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.json import JSON, decode_json, encode_json
from trio_overlay.protocol.signals import Offer, Signal, decode_signal, encode_signal

BYTES: Final = "bytes"
"""The extension of those who take binary messages as bytes."""
FAREWELL: Final = "farewell"
"""The extension of those who want to be told that an attempt was refused or given up."""
EXTENSIONS: Final = (BYTES, FAREWELL)
"""What our peers understand."""

MAX_REASON_LENGTH: Final = 200


@dataclass(frozen=True, slots=True)
class Refused:
    """The other peer does not want to be connected to us."""

    reason: str


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The other peer has ended this attempt; nothing more will come of it."""

    reason: str


@dataclass(frozen=True, slots=True)
class AttemptSignal:
    """One signal of an attempt to connect, with what our peers add to it."""

    said: Signal | Refused | GivenUp
    attempt: str | None = None
    """What the initiator calls the attempt; None from a peer of linkup's."""
    extensions: frozenset[str] = field(default_factory=frozenset)

    @property
    def is_offer(self) -> bool:
        """Whether it begins an attempt."""
        return isinstance(self.said, Offer)


Message: TypeAlias = JSON | bytes
"""What applications send to each other."""


def encode_attempt_signal(signal: AttemptSignal) -> Mapping[str, JSON]:
    """*signal* as the object that a broker carries."""
    fields: dict[str, JSON]
    match signal.said:
        case Refused(reason):
            fields = {"type": "refused", "reason": reason}
        case GivenUp(reason):
            fields = {"type": "given-up", "reason": reason}
        case said:
            fields = dict(encode_signal(said))
    if signal.attempt is not None:
        fields["attempt"] = signal.attempt
    if signal.extensions:
        fields["extensions"] = sorted(signal.extensions)
    return fields


def decode_attempt_signal(value: JSON) -> AttemptSignal:
    """The signal that a broker brought as the object *value*.

    MalformedFrame: it is none.
    """
    if not isinstance(value, dict):
        raise MalformedFrame("a signal is an object")
    attempt, names, reason = value.get("attempt"), value.get("extensions"), value.get("reason")
    said: Signal | Refused | GivenUp
    match value.get("type"):
        case "refused":
            said = Refused(_reason(reason))
        case "given-up":
            said = GivenUp(_reason(reason))
        case _:
            said = decode_signal(value)
    return AttemptSignal(
        said,
        attempt if isinstance(attempt, str) else None,
        frozenset(_strings(names if isinstance(names, list) else ())),
    )


def encode_message(message: Message) -> str | bytes:
    """*message* as a frame: bytes as they are, everything else as JSON text.

    TypeError, ValueError: it is no JSON value.
    """
    return bytes(message) if isinstance(message, bytes | bytearray) else encode_json(message)


def decode_message(frame: str | bytes) -> Message:
    """The message that came as *frame*.

    MalformedFrame: text that is no JSON.
    """
    return frame if isinstance(frame, bytes) else decode_json(frame)


def gives_way(own: str, other: str, *, has_offered: bool) -> bool:
    """Whether the peer *own*, on its way to *other*, drops its attempt for the offer of *other*.

    Both decide by the same rule and nothing else: of two offers that cross, that of the greater
    id (by code points) leads to the connection. An offer that was not sent yet crosses nothing.
    """
    return not has_offered or own < other


def _reason(value: JSON) -> str:
    text = value if isinstance(value, str) else ""
    printable = "".join(character for character in text if character.isprintable())
    return printable[:MAX_REASON_LENGTH] or "no reason given"


def _strings(values: Iterable[JSON]) -> Iterable[str]:
    return (value for value in values if isinstance(value, str))
