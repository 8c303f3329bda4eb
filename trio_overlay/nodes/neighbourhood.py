"""The connections of one peer, and the arcs on them, for all the protocols that share them.

What a protocol does with its arcs is in neighbours.py.
"""

from __future__ import annotations

import logging
import random
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.channels.network import Network
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import UsageError
from trio_overlay.nodes.heartbeat import Heartbeat
from trio_overlay.nodes.neighbour_link import Link
from trio_overlay.protocol.arcs import Acceptor, ArcTable
from trio_overlay.protocol.neighbours import ARCS, Disconnect, Payload, Side, peer_of

logger = logging.getLogger(__name__)

MAX_ATTEMPTS_IN_ALL = 256
"""Attempts that a peer answers at a time, whoever began them."""


class Member(Protocol):
    """What a neighbourhood tells each of the protocols that share it."""

    def take(self, link: Link, payload: Payload, size: int) -> None:
        """The other end of *link* said *payload*, which counts for *size* bytes."""

    def note_arc(self, link: Link) -> None:
        """There is an arc more on *link*."""

    def note_arc_end(self, link: Link, reason: str) -> None:
        """There is an arc less on *link*."""

    def note_link(self, link: Link) -> None:
        """There is a new *link*."""

    def note_link_end(self, link: Link) -> None:
        """*link* has ended, and the ends of its arcs are noted."""

    def leave(self) -> None:
        """Say farewell, now, and begin nothing any more."""


class Neighbourhood:
    """The links of one peer, and the nursery of whatever lives in time there."""

    def __init__(
        self,
        peer: str,
        network: Network,
        rng: random.Random,
        *,
        attempt_timeout: float,
        keep_timeout: float,
        max_attempts: int,
        heartbeat: Heartbeat | None,
    ) -> None:
        self.peer = peer
        self.network = network
        self.attempt_timeout = attempt_timeout
        self.max_attempts = max_attempts
        self.arcs = ArcTable()
        self.links: dict[int, Link] = {}
        """Those that have not ended, by their numbers, oldest first."""
        self.members: dict[str, Member] = {}
        """The protocols, by their pids."""
        self.acceptor = Acceptor(peer, max_attempts, MAX_ATTEMPTS_IN_ALL)
        self.nursery: trio.Nursery
        self.has_left = False
        """Whether `leave` was called."""
        self.entered = trio.Event()
        """Set when `live` has begun."""
        self.left = trio.Event()
        """Set when everything is closed."""
        self._rng = rng
        self._keep_timeout = keep_timeout
        self._heartbeat = heartbeat
        self._life = trio.CancelScope(shield=True)
        self._entering: set[trio.CancelScope] = set()
        self._count_links = 0
        self._waiting = trio.lowlevel.ParkingLot()

    # --- life -----------------------------------------------------------------------------

    async def live(self) -> None:
        """Own everything that lives in time, until `leave`.

        Cancelling this does nothing: farewells are said first, and to say them is `leave`'s.
        """
        try:
            with self._life:
                async with open_background_nursery() as self.nursery:
                    self.entered.set()
                    await trio.sleep_forever()
        finally:
            self.left.set()

    def leave(self) -> None:
        """Say farewell and close everything; `live` returns when that is done."""
        self.has_left = True
        for member in self.members.values():
            member.leave()
        for scope in list(self._entering):
            scope.cancel()
        self._life.cancel()

    async def start(self, live: Callable[..., Awaitable[object]], *args: object) -> Any:
        """Run *live* in the nursery, from when it says that it has started; what it says then.

        Until then it is the caller's, and the end of the nursery would wait for it.
        """
        if not self.has_left:
            with trio.CancelScope() as scope:
                self._entering.add(scope)
                try:
                    return await self.nursery.start(live, *args)
                finally:
                    self._entering.discard(scope)
        await trio.lowlevel.checkpoint_if_cancelled()
        raise UsageError("this node has left")

    def make_tid(self) -> str:
        """A new name for an attempt: a random UUID, as the originals have it."""
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))

    # --- links ----------------------------------------------------------------------------

    def add_link(self, channel: Channel, side: Side, end: str, extensions: frozenset[str]) -> Link:
        """A connection to *end* is up; whoever opened it goes on to `Link.run`."""
        self._count_links += 1
        link = self.links[self._count_links] = Link(
            self._count_links,
            channel,
            side,
            side.end_of(self.peer),
            end,
            extensions=extensions,
            keep_timeout=self._keep_timeout,
            heartbeat=self._heartbeat,
            on_payload=self._take,
            on_end=self._note_end,
        )
        self.arcs.add_link(link.number, side, end)
        return link

    def announce(self, link: Link) -> None:
        """Tell of a new *link* whoever waits for one; it has its first arc by now."""
        self._waiting.unpark_all()
        for member in list(self.members.values()):
            member.note_link(link)

    def find_link(self, end: str, pid: str, side: Side | None = None) -> Link | None:
        """A link to *end*, or else to the other end of the same peer; those with arcs first.

        One of the old protocol only if it knows *pid*, for it would die of anything else. With a
        *side*, only a link whose arcs are in that view, to either end.
        """
        found = [
            link
            for link in self.links.values()
            if link.peer == peer_of(end)
            and (side is None or link.side is side)
            and (ARCS in link.extensions or pid in link.pids)
        ]
        found.sort(key=lambda link: (link.end != end, not self.arcs.arcs_of(link.number)))
        return found[0] if found else None

    def link_between(self, side: Side, end: str) -> Link | None:
        """The oldest link to exactly *end* whose arcs are in the view *side*."""
        links = self.links.values()
        return next((link for link in links if (link.side, link.end) == (side, end)), None)

    async def wait_for_link(self, end: str, pid: str, seconds: float) -> None:
        """Wait until there is a link to *end*, but no longer than so many *seconds*."""
        with trio.move_on_after(seconds):
            while self.find_link(end, pid) is None:
                await self._waiting.park()

    # --- arcs -----------------------------------------------------------------------------

    def add_arc(self, link: Link, tid: str, pid: str) -> None:
        """There is an arc of *pid* more on *link*; nothing happens if it is known."""
        if self.arcs.open(link.number, tid, pid):
            link.pids.add(pid)
            link.keep(is_used=True)
            if pid in self.members:
                self.members[pid].note_arc(link)

    def remove_arc(self, link: Link, tid: str, reason: str, *, tell: bool) -> bool:
        """There is an arc less on *link*; whether there was one. *tell* the other end."""
        pid = self.arcs.close(link.number, tid)
        if pid is None:
            return False
        if tell and ARCS in link.extensions:
            link.post(pid, Disconnect(tid))
        if not self.arcs.arcs_of(link.number):
            link.keep(is_used=False)
        if pid in self.members:
            self.members[pid].note_arc_end(link, reason)
        return True

    def _take(self, link: Link, pid: str, payload: Payload, size: int) -> None:
        member = self.members.get(pid)
        if member is None:
            logger.debug("%r speaks of the protocol %.80r, which is not here", link, pid)
            return
        link.pids.add(pid)
        member.take(link, payload, size)

    def _note_end(self, link: Link) -> None:
        del self.links[link.number]
        arcs = self.arcs.remove_link(link.number)
        spare = None
        if ARCS not in link.extensions:
            # The originals never keep two connections to one end: they close the newer, and
            # count its arc on the older.
            spare = next(
                (
                    other
                    for other in self.links.values()
                    if (other.side, other.end) == (link.side, link.end)
                ),
                None,
            )
        for tid, pid in arcs.items():
            if spare is not None:
                self.arcs.open(spare.number, tid, pid)
                spare.keep(is_used=True)
            elif pid in self.members:
                self.members[pid].note_arc_end(link, link.close_reason or "")
        for member in list(self.members.values()):
            member.note_link_end(link)
