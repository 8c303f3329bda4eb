"""The road over neighbours: who shares a neighbour with somebody needs no server to connect.

A road leads over one neighbour or several. On each link it passes it has a name, given by whoever
opened it there, which means something on that link only: so nobody can speak on a road that does
not lead over it. What is said there is an overlay's business; here is what both ends need. What
is kept in mind by those in between is in protocol/crossings.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from trio_overlay.channels.network import Network
from trio_overlay.errors import ConnectionFailed, JoinRefused, JoinTimeout
from trio_overlay.protocol.signals import Signal
from trio_overlay.signaling.bootstrap import Connection, Request
from trio_overlay.signaling.handshake import shake_hands
from trio_overlay.signaling.roads import PushedRoad


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
