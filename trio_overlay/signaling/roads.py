"""Roads over something that others read: a channel two peers share, a relay, a broker.

The road through the bootstrap server, which reads a socket of its own, is in bootstrap.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import trio

from trio_overlay.errors import OutcomeError
from trio_overlay.protocol.signals import Signal
from trio_overlay.signaling.handshake import Road

MAX_SIGNALS = 100


class PushedRoad(Road):
    """A road whose owner reads for it, and pushes in what the other end says.

    *carry* takes a signal on its way out, and may raise an OutcomeError.
    """

    def __init__(self, carry: Callable[[Signal], Awaitable[None]]) -> None:
        self._carry = carry
        self._arrived, self._signals = trio.open_memory_channel[Signal | OutcomeError](MAX_SIGNALS)

    async def send(self, signal: Signal) -> None:
        await self._carry(signal)

    async def receive(self) -> Signal:
        arrived = await self._signals.receive()
        if isinstance(arrived, OutcomeError):
            raise arrived
        return arrived

    def deliver(self, signal: Signal) -> None:
        """The other end said *signal*; more than 100 that nobody has taken yet are dropped."""
        self._push(signal)

    def fail(self, error: OutcomeError) -> None:
        """The other end has given up, or cannot be reached: `receive` raises *error*."""
        self._push(error)

    def _push(self, item: Signal | OutcomeError) -> None:
        # No handshake has as many signals as that; it goes on with those it has.
        with contextlib.suppress(trio.WouldBlock):
            self._arrived.send_nowait(item)
