"""What a relay peer's mind wants done, in the order in which it says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.relay import Envelope, PeerId


@dataclass(frozen=True, slots=True)
class Send:
    """Give *envelope* to a neighbour; if there is no room on the way to it, drop it."""

    neighbour: PeerId
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Deliver:
    """A message for the application."""

    sender: PeerId
    data: JSON
    is_proved: bool
    hops: int
    """How many connections it came over."""


@dataclass(frozen=True, slots=True)
class Received:
    """The message whose receipt this is has arrived."""

    receipt: str


@dataclass(frozen=True, slots=True)
class Connect:
    """*peer* has said how: by WebRTC, we being the initiator, and if that fails at *url*.

    Call `admit` with what comes of it, or `attempt_failed`.
    """

    peer: PeerId
    webrtc: bool
    url: str | None


@dataclass(frozen=True, slots=True)
class Signalled:
    """A signal for the connection with *peer*; the first one, if it is to begin it."""

    peer: PeerId
    signal: JSON


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no connection to *peer* from this attempt."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection to a neighbour, and say why; then call `lose`."""

    neighbour: PeerId
    reason: str
    is_dead: bool = False


Action: TypeAlias = Send | Deliver | Received | Connect | Signalled | Failed | Close

Admission: TypeAlias = Literal["neighbour", "visitor", "spare", "refused"]
