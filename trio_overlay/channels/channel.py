"""The one interface of everything that carries frames between two ends."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import NoReturn, TypeAlias

import trio

Frame: TypeAlias = str | bytes
"""One message: text or binary, and the receiver gets the same kind."""


class Channel(trio.abc.Channel[Frame]):
    """Frames between two ends: whole, in order, each once.

    Nothing is promised about what was under way when a channel ends: a frame handed over by
    `send` may or may not have arrived. One task may send and another receive at the same
    time; several tasks may send; only one receives.
    """

    max_frame_size: int
    """The largest frame `send` takes, in bytes (text counted as UTF-8)."""

    @property
    @abc.abstractmethod
    def close_reason(self) -> str | None:
        """Why this channel ended, in words for a person; None while it is open."""

    @abc.abstractmethod
    async def send(self, value: Frame) -> None:
        """Hand *value* to the transport; wait while the other end reads more slowly than we write.

        Cancelled, the frame was sent whole, or not at all, or the channel is closed: never a
        torn frame.

        MessageTooLarge: over `max_frame_size`; nothing was sent and the channel stays open.
        trio.BrokenResourceError: the connection is gone; *value* may or may not have arrived.
        trio.ClosedResourceError: this end was closed.
        """

    def send_nowait(self, value: Frame) -> None:  # noqa: ARG002 - others need it
        """Hand *value* to the transport, after all that was handed to it before, without waiting.

        A transport that may have to wait for each frame never does that.

        trio.WouldBlock: it cannot be done at once; nothing was sent. Otherwise as `send`.
        """
        raise trio.WouldBlock

    async def send_soon(self, value: Frame) -> None:
        """As `send`, but if that need not wait, it does not: then this is no checkpoint."""
        try:
            self.send_nowait(value)
        except trio.WouldBlock:
            await self.send(value)

    @abc.abstractmethod
    async def receive(self) -> Frame:
        """The next frame; waits for one. Cancelled, no frame is lost.

        What had arrived when the other end closed is still received first.

        trio.EndOfChannel: the other end closed in an orderly way.
        trio.BrokenResourceError: the connection was lost; `close_reason` says how.
        trio.ClosedResourceError: this end was closed.
        trio.BusyResourceError: another task is receiving.
        """

    async def deliver_to(self, take: Callable[[Frame], object]) -> NoReturn:
        """Receive every frame and call *take* with it, until this is cancelled or no more come.

        *take* never waits. A transport may call it in the moment in which a frame arrives, outside
        of any task; current time, nurseries and events can be used there. What it raises comes out
        here. Otherwise as `receive`.
        """
        while True:
            take(await self.receive())

    def close_at_once(self, reason: str = "") -> bool:  # noqa: ARG002 - others need it
        """As `aclose`, if that takes no time; whether it was done."""
        return False

    @abc.abstractmethod
    async def aclose(self, reason: str = "") -> None:
        """Close this end; *reason* is told to the other end where the transport can carry it.

        Idempotent. Tasks waiting in `send` or `receive` get `trio.ClosedResourceError`.
        Frames that `send` has accepted still leave, within a short time limit. Cancelled, the
        channel is closed all the same, without the courtesies.
        """
