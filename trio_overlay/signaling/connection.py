"""What the server has for each of its clients: a bounded queue of what is to be said, a way to end.

Whose client it is and what is said stands with the services: bootstrap_service.py, broker.py.
"""

from __future__ import annotations

import logging
from collections import deque

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.errors import MessageTooLarge, ProtocolError
from trio_overlay.protocol.allowance import Allowance

CLOSE_TIMEOUT = 2.0
"""Seconds for the last words to a client that is being closed."""

logger = logging.getLogger(__name__)


class ClientConnection:
    """The way to one client: what is to be said to it waits here, up to a limit."""

    def __init__(
        self,
        channel: Channel,
        name: str,
        max_queued_bytes: int,
        *,
        frames: Allowance | None = None,
        bytes_: Allowance | None = None,
    ) -> None:
        self.channel = channel
        self.name = name
        self.life = trio.CancelScope()
        """Around all tasks of this connection; has a deadline once it is being closed."""
        self.closed = trio.Event()
        """Set when it has been closed after `close_nowait`."""
        self._max_queued_bytes = max_queued_bytes
        self._queue: deque[str] = deque()
        self._queued_bytes = 0
        self._close_reason: str | None = None
        self._nursery: trio.Nursery | None = None
        self._is_writing = False
        self._frames = frames
        self._bytes = bytes_

    @property
    def is_closing(self) -> bool:
        """Whether nothing more is said to this client than what waits."""
        return self._close_reason is not None

    def check_allowance(self, now: float, size: int) -> None:
        """ProtocolError: this client floods us."""
        if self._frames is not None and not self._frames.take(now, 1):
            raise ProtocolError("too many frames in a short time")
        if self._bytes is not None and not self._bytes.take(now, size):
            raise ProtocolError("too many bytes in a short time")

    def send_nowait(self, text: str) -> None:
        """Say *text*, in its turn; a client that lets too much pile up is closed."""
        if self._close_reason is not None:
            return
        if self._queued_bytes + len(text) > self._max_queued_bytes:
            logger.warning("%s is closed: it does not read what it is sent", self.name)
            self._queue.clear()
            self.close_nowait("you do not read what you are sent")
            return
        if not self._queued_bytes and self._send_at_once(text):
            return
        self._queue.append(text)
        self._queued_bytes += len(text)
        self._write_if_needed()

    def close_nowait(self, reason: str) -> None:
        """Close, after what is already queued, or when `CLOSE_TIMEOUT` has passed."""
        if self._close_reason is None:
            self._close_reason = reason
            self.life.deadline = trio.current_time() + CLOSE_TIMEOUT
            self._write_if_needed()

    def write_in(self, nursery: trio.Nursery) -> None:
        """What cannot be said at once is said by a task of this background nursery."""
        self._nursery = nursery
        self._write_if_needed()

    def _send_at_once(self, text: str) -> bool:
        """Say *text* if that need not wait; whether it is done with."""
        try:
            self.channel.send_nowait(text)
        except trio.WouldBlock:
            return False
        except MessageTooLarge as error:
            self._drop(error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the reader meets the same
        return True

    def _drop(self, error: MessageTooLarge) -> None:
        # This client's limit is lower than the sender's was.
        logger.info("a frame for %s is dropped: %s", self.name, error)

    def _write_if_needed(self) -> None:
        if (
            (self._queue or self._close_reason is not None)
            and not self._is_writing
            and self._nursery is not None
            and not self._nursery.cancel_scope.cancel_called
        ):
            self._is_writing = True
            self._nursery.start_soon(self._write)

    async def _write(self) -> None:
        try:
            # Cancelled, this would close without a word what the server closes with one.
            await trio.lowlevel.checkpoint_if_cancelled()
            while self._queue:
                text = self._queue.popleft()
                try:
                    await self.channel.send(text)
                except MessageTooLarge as error:
                    self._drop(error)
                self._queued_bytes -= len(text)
            if self._close_reason is not None:
                await self.channel.aclose(self._close_reason)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the reader meets the same
        finally:
            self._is_writing = False
            if self._close_reason is not None:
                self.closed.set()
