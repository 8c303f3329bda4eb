"""What goes over the link to one neighbour of what travels further: a queue, credit, and a writer.

Nothing is sent before the other end has given credit, and it does that only when it has taken us
for its neighbour; so a link that is not confirmed carries none of this.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import trio

from trio_overlay.errors import MessageTooLarge, ProtocolError
from trio_overlay.nodes.tree_channel import MIN_COST, TreeChannel
from trio_overlay.protocol.cast_frames import (
    CASTS,
    CastCredit,
    CastFrame,
    PastEnd,
    Refill,
    encode_cast,
)
from trio_overlay.protocol.casting import Kept

logger = logging.getLogger(__name__)

CAST_WINDOW = 128 << 10
"""Bytes of casts that a neighbour may send and that are not yet out of our hands."""
MAX_MESSAGE = 60_000
"""Bytes of JSON that a message to others than a neighbour may have: old neighbours of the original
take 64 KiB, and there is an envelope."""


@dataclass(frozen=True, slots=True)
class CastLimits:
    """How slow a child may be before it is left; all others go on without it meanwhile."""

    max_lag: int = 1 << 20
    """Bytes of broadcasts that it may be behind; the node keeps as many, and no more."""
    stall_timeout: float = 30.0
    """Seconds in which it must take something, if there is something for it."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A frame that waits for its turn."""

    frame: CastFrame
    size: int
    on_leave: Callable[[], None] | None = None
    """Called when it is sent, or dropped."""

    @classmethod
    def make(cls, frame: CastFrame, on_leave: Callable[[], None] | None = None) -> Outgoing:
        return cls(frame, cost_of(encode_cast(frame)), on_leave)

    def leave(self) -> None:
        if self.on_leave is not None:
            self.on_leave()


def cost_of(text: str) -> int:
    return max(len(text), MIN_COST)


class CastLink:
    """One confirmed neighbour: the parent, or a child."""

    def __init__(
        self,
        channel: TreeChannel,
        *,
        queue: deque[Outgoing],
        limits: CastLimits,
        kept_at: Callable[[CastLink], Kept | None],
        on_sent: Callable[[CastLink], None],
        held: Callable[[CastLink], int],
        nursery: trio.Nursery,
    ) -> None:
        self.channel = channel
        self.speaks_casts = CASTS in channel.extensions
        self.position: int | None = None
        """Of the next broadcast to be sent, in the node's log; None: nothing of it is."""
        self.wants_start = False
        self.resumes_at: tuple[str, int] | None = None
        """What this child has heard of last, while we do not know enough to tell it the rest."""
        self.wants_past: Refill | None = None
        """What this child has asked for, and we have to ask for ourselves."""
        self.past: deque[Kept | PastEnd] = deque()
        """What is sent before everything else."""
        self.hurried_at = -math.inf
        """When this child was told last to go on without its own."""
        self.held_bytes = 0
        """What came over this link and is still in our hands, if it is a child's."""
        self.round_trip_time: float | None = None
        self.queue = queue
        """What is sent besides the log; the node's own, if this is the link to the parent."""
        self._queued = 0
        self._limits = limits
        self._kept_at = kept_at
        self._on_sent = on_sent
        self._held = held
        self._credit = 0  # bytes we may send
        self._allowance = 0  # bytes that the other end may send
        self._moved_at = 0.0  # when it last took something, or had nothing to take
        self._log_is_next = False
        self._nursery = nursery
        self._writing: trio.CancelScope | None = None
        """Around the task that sends; there is one while there is something to be sent."""
        self._is_over = False
        self._got_credit = trio.Event()

    @property
    def id(self) -> str:
        return self.channel.id

    def wake(self) -> None:
        """There may be something new to be sent."""
        if self._writing is None and not self._is_over and self._has_something:
            self._moved_at = trio.current_time()  # it had nothing to take
            self._writing = trio.CancelScope()
            self._nursery.start_soon(self._write, self._writing)

    def put_nowait(self, frame: CastFrame) -> bool:
        """Queue *frame* for this child; False if it was dropped, because too much waits already."""
        outgoing = Outgoing.make(frame)
        if not self.speaks_casts or self._queued + outgoing.size > 2 * CAST_WINDOW:
            return False
        self.queue.append(outgoing)
        self._queued += outgoing.size
        self.wake()
        return True

    def take_credit(self, size: int) -> None:
        self._credit += size
        self._moved_at = trio.current_time()
        self._got_credit.set()

    def count_received(self, size: int) -> None:
        """The neighbour has sent *size* bytes.

        ProtocolError: without credit.
        """
        if self._allowance <= 0:
            raise ProtocolError("it sent casts without credit")
        self._allowance -= size

    def grant(self) -> None:
        """Give the neighbour as much credit as we have room for, if that is worth a frame."""
        owed = CAST_WINDOW - self._held(self) - self._allowance
        if owed >= CAST_WINDOW // 4 and self.speaks_casts:
            self._allowance += owed
            self.channel.post(CastCredit(owed))

    async def _write(self, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await self._write_all()
        finally:
            self._writing = None

    async def _write_all(self) -> None:
        """Send what there is, as fast as it is taken, or until the channel ends."""
        while self.channel.is_open and self._has_something:
            deadline = math.inf
            if not self.channel.is_parent:
                deadline = self._moved_at + self._limits.stall_timeout
            with trio.move_on_at(deadline) as patience:
                if self.speaks_casts and self._credit <= 0:
                    self._got_credit = trio.Event()
                    await self._got_credit.wait()
                elif not await self._send_next():
                    return
            if patience.cancelled_caught:
                seconds = self._limits.stall_timeout
                self.channel.end(f"it has taken no messages for {seconds:g} s")

    def end(self) -> None:
        """The neighbour is none any more."""
        self._is_over = True
        if self._writing is not None:
            self._writing.cancel()

    def clear(self) -> None:
        """The child is gone, and what was queued for it."""
        self.end()
        for outgoing in self.queue:
            outgoing.leave()
        self.queue.clear()

    @property
    def _has_something(self) -> bool:
        return bool(self.queue or self.past) or self._kept_at(self) is not None

    async def _send_next(self) -> bool:
        """Send one thing, of the queue and of the log in turns; False if the link has ended."""
        if self.past:
            past = self.past.popleft()
            return await self._send(past.past_text if isinstance(past, Kept) else encode_cast(past))
        kept = self._kept_at(self)
        if kept is not None and (self._log_is_next or not self.queue):
            self._log_is_next = False
            try:
                if self.speaks_casts:
                    sent = await self._send(kept.text)
                else:
                    sent = await self._send_data(kept)
            finally:
                if self.position is not None:
                    self.position += 1
            self._on_sent(self)
            return sent
        self._log_is_next = True
        outgoing = self.queue.popleft()
        if not self.channel.is_parent:
            self._queued -= outgoing.size
        outgoing.leave()
        return await self._send(encode_cast(outgoing.frame))

    async def _send(self, text: str) -> bool:
        self._credit -= cost_of(text)
        try:
            await self.channel.send_text(text)
        except MessageTooLarge as error:
            self._credit += cost_of(text)
            logger.info("a cast does not fit %s: %s", self.channel, error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False  # the channel's reader meets the same, and knows the reason
        self._moved_at = trio.current_time()
        return True

    async def _send_data(self, kept: Kept) -> bool:
        """To a neighbour of the old protocol a broadcast is a message like any other."""
        try:
            await self.channel.send(kept.data)
        except MessageTooLarge as error:
            logger.info("a broadcast does not fit %s: %s", self.channel, error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        self._moved_at = trio.current_time()
        return True
