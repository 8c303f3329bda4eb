"""How a connection comes up: one piece of code for every topology and every road.

A *signal road* carries the signals of one handshake to the other end and back. Which way they
travel (a server, a neighbour, a channel the two already share) is the road's business; when to
give up is the caller's, by a cancel scope.
"""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Callable
from typing import NoReturn

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

    def send_nowait(self, signal: Signal) -> None:  # noqa: ARG002 - others need it
        """As `send`, on a road that is not busy; some roads always may be.

        trio.WouldBlock: it cannot be done at once; nothing was sent.
        """
        raise trio.WouldBlock

    @abc.abstractmethod
    async def deliver_to(self, take: Callable[[Signal], object]) -> NoReturn:
        """Call *take*, which never waits, with each signal of the other end, until cancelled.

        OutcomeError: the other end has given up, or turned us down.
        """


async def shake_hands(peer: PeerConnection, road: Road) -> Channel:
    """Carry signals both ways until *peer* is connected; its open channel.

    OutcomeError: the road or the connection failed, whichever was first.
    """
    failures: list[OverlayError] = []
    channel: Channel | None = None
    waiting: deque[Signal] = deque()

    def say(signal: Signal) -> None:
        if not waiting:
            try:
                road.send_nowait(signal)
                return
            except trio.WouldBlock:
                nursery.start_soon(carry_out)
        waiting.append(signal)

    async def carry_out() -> None:
        try:
            while waiting:
                await road.send(waiting[0])
                waiting.popleft()
        except OverlayError as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async def carry_in() -> None:
        try:
            await road.deliver_to(peer.signal_nowait)
        except OverlayError as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(carry_in)
        try:
            channel = await peer.connect(say)
        except OverlayError as error:
            failures.append(error)
        nursery.cancel_scope.cancel()
    if channel is not None:
        # A road that fails after the connection is up has done its work.
        return channel
    raise failures[0]
