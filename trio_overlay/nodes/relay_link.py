"""One connection to a neighbour of a relay: envelopes out of a bounded queue, envelopes in.

A link knows how to carry envelopes; where they go is the relay's business.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Literal

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import MalformedFrame, MessageTooLarge
from trio_overlay.nodes.closing import close_channel
from trio_overlay.protocol.relay import (
    Envelope,
    NotJSON,
    PeerId,
    decode_envelope,
    encode_envelope,
)

logger = logging.getLogger(__name__)

MAX_QUEUED = 1000
MAX_QUEUED_BYTES = 1 << 20
"""What waits for a neighbour that reads slowly; envelopes over this are dropped."""
LOW_WATER = 64 << 10
"""Senders of our own wait until less than this waits."""

Transport = Literal["websocket", "webrtc"]


class RelayLink:
    """A connection to the peer `id`; made by `Relay`."""

    def __init__(
        self, channel: Channel, peer: PeerId, transport: Transport, *, is_incoming: bool
    ) -> None:
        self.id = peer
        self.transport: Transport = transport
        """By what it is connected."""
        self.is_incoming = is_incoming
        """Whether the other end connected."""
        self.connected_at = trio.current_time()
        self.count_dropped = 0
        """Envelopes that found the queue full, or were too large for the other end."""
        self.count_malformed = 0
        """Frames that were no envelopes; whoever relays for others may have had them from them."""
        self.is_dead = True
        """Once it has ended: whether that was without a goodbye."""
        self._channel = channel
        self._queue: deque[str] = deque()
        self._size = 0
        self._reason: str | None = None
        self._scope = trio.CancelScope()
        self._writer = trio.lowlevel.ParkingLot()
        self._senders = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        state = "open" if self._reason is None else f"closed: {self._reason}"
        return f"<RelayLink to {self.id} by {self.transport}, {state}>"

    @property
    def close_reason(self) -> str | None:
        """Why it ended; None while it is open."""
        return self._reason

    def post(self, envelope: Envelope) -> None:
        """Send *envelope* when its turn comes, if there is room for it; never waits."""
        text = encode_envelope(envelope)
        if (
            self._reason is not None
            or len(self._queue) >= MAX_QUEUED
            or self._size + len(text) > MAX_QUEUED_BYTES
        ):
            self.count_dropped += 1
            return
        self._queue.append(text)
        self._size += len(text)
        self._writer.unpark()

    async def wait_for_room(self) -> None:
        """Wait while the neighbour reads more slowly than we write; not once the link has ended."""
        while self._size >= LOW_WATER and self._reason is None:
            await self._senders.park()

    def end(self, reason: str, *, is_dead: bool = False) -> None:
        """Close this link, soon."""
        if self._reason is None:
            self._reason = reason
            self.is_dead = is_dead
        self._scope.cancel()

    def end_in(self, seconds: float) -> None:
        """Close this link then, unless it is told otherwise; infinity for never."""
        self._scope.deadline = trio.current_time() + seconds

    async def run(self, take: Callable[[Envelope, RelayLink], None]) -> None:
        """Carry envelopes until either end closes, giving *take* what comes; then close."""
        try:
            with self._scope:
                async with open_background_nursery() as nursery:
                    nursery.start_soon(self._write)
                    await self._read(take)
        finally:
            if self._reason is None:
                self._reason = "the other one is kept" if self._scope.cancel_called else "left"
                self.is_dead = False
            self._senders.unpark_all()
            said = "" if self._reason == "left" else self._reason
            await close_channel(self._channel, said)

    async def _read(self, take: Callable[[Envelope, RelayLink], None]) -> None:
        while True:
            try:
                frame = await self._channel.receive()
            except trio.EndOfChannel:
                self.end(self._channel.close_reason or "closed by the other end")
                return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.end(self._channel.close_reason or "the connection was lost", is_dead=True)
                return
            try:
                envelope = decode_envelope(frame)
            except NotJSON as error:
                self.end(f"it broke the protocol: {error}", is_dead=True)
                return
            except MalformedFrame as error:
                # An original passes on whatever it is sent: the neighbour may be innocent.
                self.count_malformed += 1
                logger.debug("%s sent what is no envelope: %s", self.id, error)
                continue
            take(envelope, self)

    async def _write(self) -> None:
        while True:
            while not self._queue:
                await self._writer.park()
            text = self._queue[0]
            try:
                await self._channel.send(text)
            except MessageTooLarge:
                self.count_dropped += 1
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                # The reader sees it, too, after it has read what came before.
                await trio.sleep_forever()
            self._queue.popleft()
            self._size -= len(text)
            if self._size < LOW_WATER:
                self._senders.unpark_all()
