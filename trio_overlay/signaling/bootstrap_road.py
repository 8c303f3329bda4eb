"""The road through the bootstrap server: the signals of one handshake, over a prospect's socket."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import NoReturn

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.errors import JoinRefused, MalformedFrame, OverlayError, PeerNotFound, ServerLost
from trio_overlay.protocol.bootstrap import (
    AskSnapshot,
    BootstrapFrame,
    Done,
    Heartbeat,
    Hello,
    Refused,
    Role,
    SignalFrame,
    SnapshotPart,
    Withdrawn,
    encode_bootstrap,
    signal_frame,
)
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.signals import Signal, decode_signal, encode_signal
from trio_overlay.signaling.bootstrap_socket import deliver_frames, next_frame
from trio_overlay.signaling.handshake import Road

HELLO_GRACE = 0.2
"""Seconds that whoever gives up waits for a hello that has not come yet. Our server says it right
behind its answer to the dial, before it hears anything, so it is here by then, or lost on the way,
or nobody says one: then the server finds the withdrawal out by the close, a few seconds later."""

logger = logging.getLogger(__name__)


class BootstrapRoad(Road):
    """The road through the server, over a prospect's socket."""

    def __init__(
        self,
        partner: str | None,
        destination: str | None,
        extensions: Iterable[str],
        on_identifier: Callable[[str], object] | None,
        more: Mapping[str, JSON] | None = None,
    ) -> None:
        self.socket: Channel
        self.identifier: str | None = None
        self.partner = partner
        """Who shakes our hand: for a joiner, the first who answers, and nobody else after that."""
        self.extensions: frozenset[str] = frozenset()
        self._destination = destination
        self._own_extensions = tuple(extensions)
        self._on_identifier = on_identifier
        self._more = more
        self._rank = 0
        self._first_frame: BootstrapFrame | None = None
        """The server's first, which is a hello if and only if the server is one of ours."""

    async def send(self, signal: Signal) -> None:
        text = self._encode(signal)
        self._rank += 1  # cancelled, it may have been sent
        with suppress(trio.BrokenResourceError):  # the reader meets the same, and decides
            await self.socket.send(text)

    def send_nowait(self, signal: Signal) -> None:
        with suppress(trio.BrokenResourceError):
            self.socket.send_nowait(self._encode(signal))
        self._rank += 1

    async def deliver_to(self, take: Callable[[Signal], object]) -> NoReturn:
        try:
            await deliver_frames(self.socket, partial(self._take_frame, take))
        except ServerLost:
            if self.partner is None:
                raise
        # Offer and answer may both have been through: the connection can still come up.
        await trio.sleep_forever()

    def _encode(self, signal: Signal) -> str:
        is_first = self._rank == 0
        return encode_bootstrap(
            signal_frame(
                encode_signal(signal),
                destination=self.partner or self._destination,
                rank=self._rank,
                extensions=self._own_extensions if is_first else (),
                more=self._more if is_first else None,
            )
        )

    def _take_frame(self, take: Callable[[Signal], object], frame: BootstrapFrame) -> None:
        self._first_frame = self._first_frame or frame
        match frame:
            case SignalFrame():
                signal = self._take(frame)
                if signal is not None:
                    take(signal)
            case Hello(identifier):
                self._learn_identifier(identifier)
            case Refused(reason):
                raise JoinRefused(reason or "the server refused, and gave no reason")
            case Withdrawn(origin, reason):
                if origin is not None and origin == self.partner:
                    raise JoinRefused(f"{origin} is gone: {reason}")
                if origin is not None and origin == self._destination:
                    raise PeerNotFound(f"the server knows no prospect {origin}")
            case Heartbeat() | Done() | Role() | AskSnapshot() | SnapshotPart():
                pass

    async def say(self, farewell: Done | Withdrawn) -> None:
        """Tell the server, if it is one of ours, how it ended; never fails."""
        try:
            if isinstance(farewell, Withdrawn) and self._rank and self._first_frame is None:
                # Given up before the first frame was read, which is our server's hello. An old
                # server says none, and often nothing at all.
                with trio.move_on_after(HELLO_GRACE):
                    self._first_frame = await next_frame(self.socket)
            if isinstance(self._first_frame, Hello):
                await self.socket.send_soon(encode_bootstrap(farewell))
        except (OverlayError, trio.BrokenResourceError):
            pass

    def _take(self, frame: SignalFrame) -> Signal | None:
        if self.partner is None:
            self.partner = frame.origin
            self.extensions = frame.extensions
        if frame.origin != self.partner:
            return None
        self._learn_identifier(frame.destination)
        try:
            return decode_signal(frame.signal)
        except MalformedFrame as error:
            logger.info("a signal of %s is passed over: %s", frame.origin, error)
            return None

    def _learn_identifier(self, identifier: str | None) -> None:
        if self.identifier is None and identifier is not None:
            self.identifier = identifier
            if self._on_identifier is not None:
                self._on_identifier(identifier)
