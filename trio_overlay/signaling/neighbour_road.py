"""The road over neighbours: who shares a neighbour with somebody needs no server to connect.

A road leads over one neighbour or several. On each link it passes it has a name, given by whoever
opened it there, which means something on that link only: so nobody can speak on a road that does
not lead over it. What is said there is an overlay's business; here is what both ends need. What
is kept in mind by those in between is in protocol/crossings.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.channels.network import Network, PeerConnection
from trio_overlay.errors import ConnectionFailed, JoinRefused, JoinTimeout
from trio_overlay.protocol.signals import Signal
from trio_overlay.signaling.bootstrap import Connection, Request
from trio_overlay.signaling.roads import SignalInbox


class NeighbourRoad:
    """One end of a road; its owner delivers to it what comes, and *says* what goes out.

    Neither ever waits, so a handshake over it takes no tasks besides the one that wants it.
    """

    def __init__(self, name: str, say: Callable[[Signal], object]) -> None:
        self.name = name
        self.extensions: frozenset[str] = frozenset()
        """What the other end said it understands."""
        self.ended = trio.Event()
        """Set when the other end has said its last, or cannot be reached any more."""
        self._say = say
        self._inbox = SignalInbox()
        self._shaking: trio.CancelScope | None = None
        self._failure: str | None = None

    def deliver(self, signal: Signal) -> None:
        """The other end said *signal*."""
        self._inbox.deliver(signal)

    def end(self, reason: str, *, is_connected: bool = False) -> None:
        """The other end has said its last: it *is connected*, or has given up."""
        self.ended.set()
        if not is_connected and self._failure is None:
            self._failure = reason
            if self._shaking is not None:
                self._shaking.cancel()

    async def shake_hands(
        self, peer: PeerConnection, timeout: float, scope: trio.CancelScope
    ) -> Channel | None:
        """As `handshake.shake_hands`, in *scope*.

        None if that was cancelled, as it is when it has taken *timeout* seconds.
        """
        self._inbox.attach(peer)
        self._shaking = scope
        scope.deadline = trio.current_time() + timeout
        if self._failure is not None:
            scope.cancel()
        with scope:
            return await peer.connect(self._say)
        if self._failure is not None:
            raise ConnectionFailed(self._failure)
        return None


@asynccontextmanager
async def connect_over(
    road: NeighbourRoad, network: Network, *, timeout: float
) -> AsyncIterator[Connection]:
    """A connection to whoever answers at the end of *road*; leaving the context closes it.

    JoinTimeout: no open channel within *timeout* seconds.
    ConnectionFailed: the other end has given up, or the road is broken.
    """
    async with network.open_peer(initiator=True) as peer:
        channel = await road.shake_hands(peer, timeout, trio.CancelScope())
        if channel is None:
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
        request.attach(peer)
        channel = await road.shake_hands(peer, timeout, request.scope)
        if channel is None and request.withdrawn is not None:
            raise JoinRefused(f"{request.origin} has withdrawn: {request.withdrawn}")
        if channel is None:
            raise JoinTimeout(f"{request.origin} did not connect within {timeout:g} s")
        yield Connection(channel, None, request.origin, request.extensions)
