"""Who is connected to a bootstrap server, and what its switchboard has done to them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

from trio_overlay.protocol.bootstrap import BootstrapFrame, Role, encode_bootstrap
from trio_overlay.protocol.cluster import ServerMessage


@dataclass(eq=False, slots=True)
class Root:
    """One registration as root, from its coming to its going."""

    is_announced: bool
    server: str = ""
    """The tag of the server it is connected to; empty for a server that is in no cluster."""
    number: int = 0
    """Which of that server's."""
    registered_at: float = 0.0
    """By the clock of the cluster; before all others if it stands by. The roots of all servers have
    one order, see `_order`, and the last in it is the active one."""
    came_at: float = 0.0
    """By the same clock."""
    token: str | None = None
    """What a root of ours calls itself."""
    term: int = 0
    """Of its last activity, here or elsewhere."""
    brought_term: int = 0
    """The same, when it came."""
    extensions: frozenset[str] = frozenset()
    """What else it can be asked; not known of the roots of other servers."""
    told: Role | None = None


@dataclass(eq=False, slots=True)
class Prospect:
    """One client of the path ``/join``, from its coming until nobody need be told it is gone."""

    identifier: str
    is_announced: bool
    expires_at: float
    root: Root | None = None
    """Who got its first frame: all others without a destination go there as well."""
    partners: dict[str, None] = field(default_factory=dict)
    """The prospects it exchanged frames with, in that order; some may have left."""
    is_turned_away: bool = False
    """Its request was given up: what belongs to it is of no use to a root that comes later."""
    is_done: bool = False
    """Its channel is open, so it said: its leaving means nothing bad."""
    is_withdrawn: bool = False
    """It has given up, and who need know has been told."""
    leaves_at: float = math.inf
    """When its leaving without a word counts as a withdrawal."""
    has_begun: bool = False
    """Whether it has sent an offer to a root."""
    answerer: str | None = None
    """The first prospect that spoke to it after that."""


@dataclass(eq=False, slots=True)
class Asker:
    """One client that wants a picture of the tree, from its coming to its going."""

    identifier: str
    expires_at: float
    has_asked: bool = False
    root: Root | None = None
    """Who is to answer; None before it has asked, and after the last word."""


Client: TypeAlias = Root | Prospect | Asker


@dataclass(frozen=True, slots=True)
class Send:
    """Give *to* the frame *text*."""

    to: Client
    text: str


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection of *client*, after what was sent to it."""

    client: Client
    reason: str


@dataclass(frozen=True, slots=True)
class Forward:
    """Say *message* to the server *server*; if it cannot be, say so to `undelivered`."""

    server: str
    message: ServerMessage


@dataclass(frozen=True, slots=True)
class Announce:
    """Say *message* to all servers."""

    message: ServerMessage


Action: TypeAlias = Send | Close | Forward | Announce


def send(to: Client, frame: BootstrapFrame) -> Send:
    """Give *to* this *frame*."""
    return Send(to, encode_bootstrap(frame))
