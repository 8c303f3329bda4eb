"""Roads over something that others read: a channel two peers share, a relay, a broker.

The road through the bootstrap server, which reads a socket of its own, is in bootstrap.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

from trio_overlay.channels.network import PeerConnection
from trio_overlay.errors import OutcomeError
from trio_overlay.protocol.signals import Signal
from trio_overlay.signaling.handshake import Road

MAX_SIGNALS = 100
"""Signals kept for one handshake before somebody takes them; more than that is no handshake."""


class SignalInbox:
    """What the other end says, for a peer connection that may be yet to come."""

    __slots__ = ("_peer", "early")

    def __init__(self) -> None:
        self.early: list[Signal] = []
        """What came before there was a peer connection for it."""
        self._peer: PeerConnection | None = None

    def deliver(self, signal: Signal) -> None:
        """The other end said *signal*; more than `MAX_SIGNALS` that come early are dropped."""
        if self._peer is not None:
            self._peer.signal_nowait(signal)
        elif len(self.early) < MAX_SIGNALS:
            self.early.append(signal)

    def attach(self, peer: PeerConnection) -> None:
        """Hand all signals, those that came and those that will, to *peer*."""
        self._peer = peer
        for signal in self.early:
            peer.signal_nowait(signal)
        self.early.clear()


class PushedRoad(Road):
    """A road whose owner reads for it, and pushes in what the other end says.

    *carry* takes a signal on its way out, and may raise an OutcomeError.
    """

    def __init__(self, carry: Callable[[Signal], Awaitable[None]]) -> None:
        self._carry = carry
        self._arrived, self._signals = trio.open_memory_channel[Signal | OutcomeError](MAX_SIGNALS)

    async def send(self, signal: Signal) -> None:
        await self._carry(signal)

    async def deliver_to(self, take: Callable[[Signal], object]) -> NoReturn:
        while True:
            arrived = await self._signals.receive()
            if isinstance(arrived, OutcomeError):
                raise arrived
            take(arrived)

    def deliver(self, signal: Signal) -> None:
        """The other end said *signal*; more than `MAX_SIGNALS` that wait are dropped."""
        self._push(signal)

    def fail(self, error: OutcomeError) -> None:
        """The other end has given up, or cannot be reached: *error* leaves `deliver_to`."""
        self._push(error)

    def _push(self, item: Signal | OutcomeError) -> None:
        # The handshake goes on with those it has.
        with contextlib.suppress(trio.WouldBlock):
            self._arrived.send_nowait(item)
