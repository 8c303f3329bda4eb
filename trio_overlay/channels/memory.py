"""A channel between two ends in one process: the cheapest maker, and the one tests stand on.

What travels between the ends may be handed to a *wire*, which decides when it arrives; the
virtual network of `trio_overlay.testing` brings latency and faults that way. Nothing here knows
of time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Literal, NoReturn, TypeAlias

import trio
from trio.lowlevel import (
    Abort,
    RaiseCancelT,
    Task,
    checkpoint,
    current_task,
    reschedule,
    wait_task_rescheduled,
)

from trio_overlay.channels.channel import Channel, Frame
from trio_overlay.errors import MessageTooLarge

DEFAULT_MAX_FRAME_SIZE = 262_144
"""What a data channel between browsers takes (WIRE.md, section 1)."""
DEFAULT_MAX_BUFFERED_BYTES = 1_048_576
DEFAULT_MAX_BUFFERED_FRAMES = 256

Wire: TypeAlias = Callable[[Callable[[], None], Frame | None], None]
"""Given an arrival and the frame it brings (None: the close), calls the arrival once, or never.

Arrivals are called in the order in which they were given, from the thread of Trio.
"""


def memory_channel_pair(
    *,
    max_frame_size: int = DEFAULT_MAX_FRAME_SIZE,
    max_buffered_bytes: int = DEFAULT_MAX_BUFFERED_BYTES,
    max_buffered_frames: int = DEFAULT_MAX_BUFFERED_FRAMES,
    wires: tuple[Wire, Wire] | None = None,
) -> tuple[MemoryChannel, MemoryChannel]:
    """Two ends, each receiving what the other sends.

    In each direction `send` waits while *max_buffered_bytes* or *max_buffered_frames* are sent
    and not yet received; one frame always has room. *wires* are the way from the first end to
    the second and the way back; without them everything arrives at once.
    """
    there, back = wires or (None, None)
    first = MemoryChannel(max_frame_size, max_buffered_bytes, max_buffered_frames, there)
    second = MemoryChannel(max_frame_size, max_buffered_bytes, max_buffered_frames, back)
    first._other, second._other = second, first
    return first, second


class MemoryChannel(Channel):
    """One end; made by `memory_channel_pair`."""

    def __init__(
        self, max_frame_size: int, max_bytes: int, max_frames: int, wire: Wire | None
    ) -> None:
        self.max_frame_size = max_frame_size
        self._max_bytes = max_bytes
        self._max_frames = max_frames
        self._wire = wire
        self._other: MemoryChannel
        self._state: Literal["open", "closed here", "closed there", "broken"] = "open"
        self._reason: str | None = None
        # Ours, on their way or waiting to be received at the other end.
        self._unread_bytes = 0
        self._unread_frames = 0
        # Senders wait in order of arrival. Who frees room puts their frame on the wire for
        # them, so a cancelled `send` has sent nothing, and a woken one has sent its frame.
        self._senders: dict[Task, _Outgoing] = {}
        self._arrived: deque[tuple[Frame, int]] = deque()
        self._is_receiving = False
        self._receiver: Task | None = None
        self._take: Callable[[Frame], object] | None = None
        """What the receiver would call with the next frame, and so may be called in its place."""
        self._failure: BaseException | None = None
        """What it raised then."""

    def __repr__(self) -> str:
        return f"<MemoryChannel {self._state}, {len(self._arrived)} frames arrived>"

    @property
    def close_reason(self) -> str | None:
        return self._reason

    @property
    def other_end(self) -> MemoryChannel:
        """The end that receives what this one sends; once both are closed, some other channel."""
        return self._other

    @property
    def is_open(self) -> bool:
        """Whether this end could still send, as far as it knows."""
        return self._state == "open"

    @property
    def is_closed_here(self) -> bool:
        """Whether this end was closed by its owner: a leak if not, whatever the other end did."""
        return self._state == "closed here"

    @property
    def unread_frames(self) -> int:
        """Frames that this end has sent and the other has not yet received."""
        return self._unread_frames

    async def send(self, value: Frame) -> None:
        size = self._checked_size(value)
        await checkpoint()
        if self._state != "open":
            self._raise_not_sendable()
        if not self._senders and self._has_room(size):
            self._transmit(value, size)
            return
        task = current_task()
        outgoing = self._senders[task] = _Outgoing(value, size)

        def abort(_: RaiseCancelT) -> Abort:
            del self._senders[task]
            # A large frame at the head may have kept smaller ones waiting.
            self._admit_senders()
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)
        if not outgoing.was_sent:
            self._raise_not_sendable()

    def send_nowait(self, value: Frame) -> None:
        size = self._checked_size(value)
        if self._state != "open":
            self._raise_not_sendable()
        if self._senders or not self._has_room(size):
            raise trio.WouldBlock
        self._transmit(value, size)

    async def receive(self) -> Frame:
        if self._is_receiving:
            raise trio.BusyResourceError("another task is receiving from this channel")
        self._is_receiving = True
        try:
            if self._arrived or self._state != "open":
                await checkpoint()
            while True:
                if self._state == "closed here":
                    raise trio.ClosedResourceError
                if self._arrived:
                    value, size = self._arrived.popleft()
                    self._other._was_read(size)
                    return value
                if self._state == "closed there":
                    raise trio.EndOfChannel
                if self._state == "broken":
                    raise trio.BrokenResourceError(self._reason)
                self._receiver = current_task()
                await wait_task_rescheduled(self._abort_receive)
                self._raise_failure()
        finally:
            self._is_receiving = False

    async def deliver_to(self, take: Callable[[Frame], object]) -> NoReturn:
        if self._other._wire is None:
            # Frames arrive while they are sent: two ends that answer each other at once would
            # call each other deeper and deeper.
            await super().deliver_to(take)
        self._take = take
        try:
            await super().deliver_to(take)
        finally:
            self._take = None
            self._raise_failure()  # if the same call cancelled this task, which so did not wake

    async def aclose(self, reason: str = "") -> None:
        self.close_nowait(reason)
        await checkpoint()

    def close_at_once(self, reason: str = "") -> bool:
        self.close_nowait(reason)
        return True

    def close_nowait(self, reason: str = "") -> None:
        """Close this end, as `aclose` does, without being a checkpoint."""
        if self._state == "closed here":
            return
        was_open = self._state == "open"
        self._state = "closed here"
        if self._reason is None:
            self._reason = reason or "closed at this end"
        self._arrived.clear()
        self._wake_all()
        if was_open and self._wire is None:
            self._other._closed_there(reason)
        elif was_open and self._wire is not None:
            self._wire(partial(self._other._closed_there, reason), None)
        if self._other._state == "closed here":
            # Nothing passes any more. Two that hold each other are only freed when Python looks.
            self._other._other = self._other = _NOBODY

    def kill(self, reason: str = "the connection was lost") -> None:
        """Break both ends at once, as when a cable is cut and both notice.

        What had arrived is still received; what was on its way is lost.
        """
        self.break_nowait(reason)
        self._other.break_nowait(reason)

    def break_nowait(self, reason: str) -> None:
        """Break this end alone; the other learns nothing of it."""
        if self._state == "open":
            self._state = "broken"
            self._reason = reason
            self._wake_all()

    def _checked_size(self, value: Frame) -> int:
        # Nearly all frames are short texts, and a text has as many bytes as characters or more.
        size = len(value) if isinstance(value, str) and value.isascii() else frame_size(value)
        if size > self.max_frame_size:
            raise MessageTooLarge(
                f"a frame of {size} bytes; this channel takes up to {self.max_frame_size}"
            )
        return size

    def _raise_not_sendable(self) -> NoReturn:
        if self._state == "closed here":
            raise trio.ClosedResourceError
        raise trio.BrokenResourceError(self._reason)

    def _has_room(self, size: int) -> bool:
        return not self._unread_frames or (
            self._unread_frames < self._max_frames and self._unread_bytes + size <= self._max_bytes
        )

    def _transmit(self, value: Frame, size: int) -> None:
        self._unread_bytes += size
        self._unread_frames += 1
        if self._wire is None:
            self._other._arrive(value, size)
        else:
            self._wire(partial(self._other._arrive, value, size), value)

    def _arrive(self, value: Frame, size: int) -> None:
        if self._state != "open":
            return  # whoever has ended hears no more
        if self._take is not None and self._receiver is not None:
            self._take_for(self._receiver, self._take, value, size)
            return
        self._arrived.append((value, size))
        self._wake_receiver()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _take_for(
        self, receiver: Task, take: Callable[[Frame], object], value: Frame, size: int
    ) -> None:
        """What *receiver* would do with this frame if it were woken, without the waking."""
        self._other._was_read(size)
        try:
            receiver.context.run(take, value)
        except BaseException as error:  # noqa: BLE001 - it leaves `deliver_to`
            self._failure = error
            self._wake_receiver()

    def _closed_there(self, reason: str) -> None:
        if self._state == "open":
            self._state = "closed there"
            self._reason = reason or "closed by the other end"
            self._wake_all()

    def _was_read(self, size: int) -> None:
        self._unread_bytes -= size
        self._unread_frames -= 1
        if self._senders:
            self._admit_senders()

    def _admit_senders(self) -> None:
        while self._senders:
            task, outgoing = next(iter(self._senders.items()))
            if self._state != "open" or not self._has_room(outgoing.size):
                return
            del self._senders[task]
            outgoing.was_sent = True
            self._transmit(outgoing.frame, outgoing.size)
            reschedule(task)

    def _abort_receive(self, _: RaiseCancelT) -> Abort:
        self._receiver = None
        return Abort.SUCCEEDED

    def _wake_receiver(self) -> None:
        if self._receiver is not None:
            reschedule(self._receiver)
            self._receiver = None

    def _wake_all(self) -> None:
        self._wake_receiver()
        senders = list(self._senders)
        self._senders.clear()
        for task in senders:
            reschedule(task)


class _Outgoing:
    """A frame whose sender waits for room."""

    __slots__ = ("frame", "size", "was_sent")

    def __init__(self, frame: Frame, size: int) -> None:
        self.frame = frame
        self.size = size
        self.was_sent = False


def frame_size(value: Frame) -> int:
    """The bytes that *value* counts for against `Channel.max_frame_size`.

    TypeError: it is no frame.
    """
    if isinstance(value, str):
        # A lone surrogate has no UTF-8; here it counts for three bytes and passes.
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, bytes):
        return len(value)
    raise TypeError(f"a frame is str or bytes, not {type(value).__name__}")


_NOBODY = MemoryChannel(0, 0, 0, None)
"""The other end of those that have none any more."""
_NOBODY._state = "closed here"
