"""The road over neighbours: who shares a neighbour with somebody needs no server to connect.

A road leads over one neighbour or several. On each link it passes it has a name, given by whoever
opened it there, which means something on that link only: so nobody can speak on a road that does
not lead over it. What is said there is an overlay's business; here is what they have in common.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

from trio_overlay.channels.network import Network
from trio_overlay.errors import ConnectionFailed, JoinRefused, JoinTimeout
from trio_overlay.protocol.signals import Signal
from trio_overlay.signaling.bootstrap import Connection, Request
from trio_overlay.signaling.handshake import shake_hands
from trio_overlay.signaling.roads import PushedRoad

NeighbourT = TypeVar("NeighbourT", bound=Hashable)

MAX_CROSSINGS = 256
"""Roads that lead over one node at a time."""
MAX_CROSSINGS_EACH = 64
"""Of those, how many one neighbour may have opened."""


class NeighbourRoad(PushedRoad):
    """One end of a road; its owner delivers to it what comes."""

    def __init__(self, name: str, carry: Callable[[Signal], Awaitable[None]]) -> None:
        super().__init__(carry)
        self.name = name
        self.extensions: frozenset[str] = frozenset()
        """What the other end said it understands."""
        self.ended = trio.Event()
        """Set when the other end has said its last, or cannot be reached any more."""

    def end(self, reason: str, *, is_connected: bool = False) -> None:
        """The other end has said its last: it *is connected*, or has given up."""
        self.ended.set()
        if not is_connected:
            self.fail(ConnectionFailed(reason))


@asynccontextmanager
async def connect_over(
    road: NeighbourRoad, network: Network, *, timeout: float
) -> AsyncIterator[Connection]:
    """A connection to whoever answers at the end of *road*; leaving the context closes it.

    JoinTimeout: no open channel within *timeout* seconds.
    ConnectionFailed: the other end has given up, or the road is broken.
    """
    async with network.open_peer(initiator=True) as peer:
        with trio.move_on_after(timeout) as scope:
            channel = await shake_hands(peer, road)
        if scope.cancelled_caught:
            raise JoinTimeout(f"no connection over a neighbour within {timeout:g} s")
        yield Connection(channel, None, road.name, road.extensions)


@asynccontextmanager
async def answer_over(
    road: NeighbourRoad, request: Request, network: Network, *, timeout: float
) -> AsyncIterator[Connection]:
    """A connection to the applicant whose *request* came over *road*; as `Bootstrap.answer`.

    JoinRefused: the applicant has withdrawn. JoinTimeout, ConnectionFailed: as in `connect_over`.
    """
    async with network.open_peer(initiator=False) as peer:
        with trio.move_on_after(timeout) as deadline, request.scope as scope:
            request.attach(peer)
            channel = await shake_hands(peer, road)
        if scope.cancelled_caught:
            raise JoinRefused(f"{request.origin} has withdrawn: {request.withdrawn}")
        if deadline.cancelled_caught:
            raise JoinTimeout(f"{request.origin} did not connect within {timeout:g} s")
        yield Connection(channel, None, request.origin, request.extensions)


class Crossings(Generic[NeighbourT]):
    """The roads that lead over us: where each goes on, in both directions. Pure.

    An end is a neighbour and the road's name on the link to it.
    """

    def __init__(
        self, *, max_crossings: int = MAX_CROSSINGS, max_each: int = MAX_CROSSINGS_EACH
    ) -> None:
        self._max_crossings = max_crossings
        self._max_each = max_each
        self._across: dict[tuple[NeighbourT, str], tuple[NeighbourT, str]] = {}
        self._opened: dict[NeighbourT, int] = {}
        self._openers: dict[tuple[NeighbourT, str], NeighbourT] = {}

    def __len__(self) -> int:
        return len(self._across) // 2

    def open(self, one: tuple[NeighbourT, str], other: tuple[NeighbourT, str]) -> bool:
        """A road *one* opened goes on at *other*; False if there are too many, or it exists."""
        opener = one[0]
        if (
            one in self._across
            or other in self._across
            or one[0] == other[0]
            or len(self) >= self._max_crossings
            or self._opened.get(opener, 0) >= self._max_each
        ):
            return False
        self._across[one], self._across[other] = other, one
        self._openers[one] = self._openers[other] = opener
        self._opened[opener] = self._opened.get(opener, 0) + 1
        return True

    def across(self, end: tuple[NeighbourT, str]) -> tuple[NeighbourT, str] | None:
        """The other end of the road that has this one; None if we know no such road."""
        return self._across.get(end)

    def close(self, end: tuple[NeighbourT, str]) -> tuple[NeighbourT, str] | None:
        """The road with this *end* leads over us no more; its other end, who need know."""
        other = self._across.pop(end, None)
        if other is not None:
            del self._across[other], self._openers[other]
            opener = self._openers.pop(end)
            self._opened[opener] -= 1
            if not self._opened[opener]:
                del self._opened[opener]
        return other

    def lose(self, neighbour: NeighbourT) -> list[tuple[NeighbourT, str]]:
        """The *neighbour* is gone, and all roads over it; their other ends, who need know."""
        ends = [end for end in self._across if end[0] == neighbour]
        return [other for end in ends if (other := self.close(end)) is not None]
