"""How a connection comes up: one piece of code for every topology and every road.

A *signal road* carries the signals of one handshake to the other end and back. Which way they
travel (a server, a neighbour, a channel the two already share) is the road's business; when to
give up is the caller's, by a cancel scope.
"""

from __future__ import annotations

import abc

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.channels.network import PeerConnection
from trio_overlay.errors import OverlayError
from trio_overlay.protocol.signals import Signal


class Road(abc.ABC):
    """One way for the signals of one handshake, as one of the two ends sees it."""

    @abc.abstractmethod
    async def send(self, signal: Signal) -> None:
        """Hand *signal* to the road; waits while the road is busy.

        OutcomeError: the other end cannot be reached by this road any more.
        """

    @abc.abstractmethod
    async def receive(self) -> Signal:
        """The other end's next signal; waits for one, for ever if no more will come.

        OutcomeError: the other end has given up, or turned us down.
        """


async def shake_hands(peer: PeerConnection, road: Road) -> Channel:
    """Carry signals both ways until *peer* is connected; its open channel.

    OutcomeError: the road or the connection failed, whichever was first.
    """
    failures: list[OverlayError] = []
    channel: Channel | None = None

    async def carry_out() -> None:
        try:
            while True:
                await road.send(await peer.next_signal())
        except trio.EndOfChannel:
            return
        except OverlayError as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async def carry_in() -> None:
        try:
            while True:
                peer.signal_nowait(await road.receive())
        except OverlayError as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(carry_out)
        nursery.start_soon(carry_in)
        try:
            channel = await peer.connected()
        except OverlayError as error:
            failures.append(error)
        nursery.cancel_scope.cancel()
    if channel is not None:
        # A road that fails after the connection is up has done its work.
        return channel
    raise failures[0]
