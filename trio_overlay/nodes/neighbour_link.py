"""One connection to the end of another peer, which any number of arcs share.

A link knows its two ends and carries payloads; what they mean for arcs is the node's business.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TypeAlias

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import ConnectionFailed, MessageTooLarge, ProtocolError
from trio_overlay.nodes.closing import close_channel
from trio_overlay.nodes.heartbeat import Heartbeat
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.neighbours import (
    BEAT,
    CREDIT,
    Application,
    Beat,
    ConnectTo,
    Credit,
    Direct,
    Forward,
    InternalSend,
    Payload,
    Send,
    Side,
    decode_neighbour,
    decode_payload,
    encode_neighbour,
    encode_payload,
    peer_of,
)

logger = logging.getLogger(__name__)

WINDOW = 256 << 10
"""Bytes of messages that a neighbour of ours sends before it waits for us to read."""
MAX_UNREAD = 1 << 20
"""Bytes of unread messages at which a neighbour that does not wait loses its connection."""
MIN_COST = 256
"""What a message counts for at least: a small one takes more memory than its bytes."""
MAX_POSTED = 1000
"""Payloads of the node's own that wait for a neighbour; one that lets more pile up is left."""
MAX_POSTED_FOR_OTHERS = 800
"""How full that queue may be for something to be put there that is passed on for others."""
FAREWELL_TIMEOUT = 2.0
"""Seconds in which what was posted before the end is said."""
BEAT_PID = "-"
"""What signs of life are said in, which are no protocol's; only to those who understand them."""

OnPayload: TypeAlias = Callable[["Link", str, Payload, int], None]
"""Called with the link, the pid, what was said, and the bytes it counts for."""
OnEnd: TypeAlias = Callable[["Link"], None]
"""Called once, when the link has ended; it is closed only after that."""


class Link:
    """A connection to `end`, from when both were sure of it to its end: see `run`.

    It ends by itself when no arc has been on it for *keep_timeout* seconds, or when a neighbour of
    ours has given no sign of life, though asked for one, for as long as *heartbeat* says.
    """

    def __init__(
        self,
        number: int,
        channel: Channel,
        side: Side,
        own_end: str,
        end: str,
        *,
        extensions: frozenset[str],
        keep_timeout: float,
        heartbeat: Heartbeat | None,
        on_payload: OnPayload,
        on_end: OnEnd,
    ) -> None:
        self.number = number
        self.side = side
        """The view of ours that its arcs are in."""
        self.own_end = own_end
        self.end = end
        """The other peer's end."""
        self.extensions = extensions
        """What the other peer said it understands beyond the originals."""
        self.pids: set[str] = set()
        """The protocols of which the other peer has spoken: the originals die of any other."""
        self._channel = channel
        self._keep_timeout = keep_timeout
        self._heartbeat = heartbeat
        self._heard_at = trio.current_time()
        self._on_payload = on_payload
        self._on_end = on_end
        self._unread = 0  # bytes in the node's streams
        self._read = 0  # bytes read that the neighbour was not told of yet
        self._read_pid = ""
        self._on_the_way = 0  # bytes sent that the neighbour has not said it read
        self._credit_came = trio.Event()
        self._sending = trio.StrictFIFOLock()
        self._posted, self._to_write = trio.open_memory_channel[tuple[str, Payload]](MAX_POSTED)
        self._saying: tuple[str, Payload] | None = None
        """What was taken from the queue last, until it is said."""
        self._scope = trio.CancelScope()
        self._keeping = trio.CancelScope()
        self._close_reason: str | None = None
        self.failure: Exception | None = None
        """What the neighbour did wrong, if that is why the link ended."""

    def __repr__(self) -> str:
        state = "open" if self._close_reason is None else f"closed: {self._close_reason}"
        return f"<Link {self.own_end} to {self.end}, {state}>"

    @property
    def peer(self) -> str:
        """The other peer."""
        return peer_of(self.end)

    @property
    def is_open(self) -> bool:
        return self._close_reason is None

    @property
    def close_reason(self) -> str | None:
        """Why this link ended; None while it is open."""
        return self._close_reason

    def keep(self, *, is_used: bool) -> None:
        """It is in use; or, from now on, it is not, and ends when its time is over."""
        self._keeping.deadline = math.inf if is_used else trio.current_time() + self._keep_timeout

    def keep_for_now(self) -> None:
        """It may be in use soon: its time without arcs, if it runs, begins again."""
        if not math.isinf(self._keeping.deadline):
            self.keep(is_used=False)

    async def send(self, pid: str, data: JSON) -> None:
        """Send a message of the application; waits while the neighbour reads more slowly.

        TypeError, ValueError: *data* is no JSON value.
        MessageTooLarge: over the neighbour's limit; nothing was sent.
        trio.BrokenResourceError: the link has ended; *data* may or may not have arrived.
        """
        text = encode_neighbour(Send(self.own_end, pid, data))
        size = len(text)  # it is ASCII
        if size > self._channel.max_frame_size:
            raise MessageTooLarge(
                f"a message of {size} bytes: {self.end} takes {self._channel.max_frame_size}"
            )
        async with self._sending:
            while self.is_open and CREDIT in self.extensions and self._on_the_way >= WINDOW:
                await self._credit_came.wait()
            if not self.is_open:
                raise trio.BrokenResourceError(self._close_reason)
            try:
                await self._channel.send(text)
            except trio.ClosedResourceError as error:
                raise trio.BrokenResourceError(self._close_reason) from error
            # Not before: cancelled in `send`, nothing is on the way.
            self._on_the_way += max(size, MIN_COST)

    def post(self, pid: str, payload: Payload) -> None:
        """Say something of the node's own, without waiting; a neighbour too slow for it is left.

        What is passed on for others, or asked by the application, is dropped before that: it
        shall not cost us a neighbour.
        """
        if not self.is_open:
            return
        if (
            isinstance(payload, Forward | ConnectTo | Direct)
            and self._posted.statistics().current_buffer_used >= MAX_POSTED_FOR_OTHERS
        ):
            logger.warning("%r reads slowly: something said to it is dropped", self)
            return
        try:
            self._posted.send_nowait((pid, payload))
        except trio.WouldBlock:
            self.end_nowait("it reads too slowly")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it has ended meanwhile

    def end_nowait(self, reason: str, failure: Exception | None = None) -> None:
        """Close, and let `run` return; the first *reason* given is the one that counts."""
        if self._close_reason is None:
            self._close_reason = reason
            self.failure = failure
            self._scope.cancel()
            self._credit_came.set()
            self._on_end(self)

    def hold(self, pid: str, size: int) -> None:
        """A message of *size* bytes waits to be read."""
        self._unread += size
        self._read_pid = pid
        if self._unread > MAX_UNREAD:
            self.end_nowait("its messages were read too slowly, and it does not wait")

    def release(self, size: int) -> None:
        """It does not any more: the neighbour may send as much again."""
        self._unread -= size
        self._read += size
        if self._read >= WINDOW // 4 and CREDIT in self.extensions:
            self.post(self._read_pid, Credit(self._read))
            self._read = 0

    async def run(self) -> None:
        """Live: read, write, until either end closes or this is cancelled; then close for good.

        What was posted before the end still leaves, if it can within a short time.
        """
        try:
            with self._scope:
                async with open_background_nursery() as nursery:
                    nursery.start_soon(self._write_posted)
                    nursery.start_soon(self._expire)
                    if self._heartbeat is not None and BEAT in self.extensions:
                        nursery.start_soon(self._watch, self._heartbeat)
                    await self._read_frames()
        finally:
            self.end_nowait("the node left")
            self._posted.close()
            with trio.move_on_after(FAREWELL_TIMEOUT, shield=True):
                await self._say_last()
            await close_channel(self._channel, self._close_reason or "")
            self._to_write.close()

    async def _expire(self) -> None:
        with self._keeping:
            await trio.sleep_forever()
        if self._keeping.cancelled_caught:
            self.end_nowait(f"no arc has been here for {self._keep_timeout:g} s")

    async def _watch(self, heartbeat: Heartbeat) -> None:
        """Ask for a sign of life when there was none for a while, and end when none comes."""
        while True:
            silent_at = self._heard_at + heartbeat.interval
            if trio.current_time() < silent_at:
                await trio.sleep_until(silent_at)
                continue  # it may have been heard meanwhile
            # Asked once for each silence: nothing gets lost on a channel.
            self.post(BEAT_PID, Beat(asks=True))
            if not await self._is_heard_again(heartbeat):
                reason = f"no sign of life for {heartbeat.timeout:g} s"
                self.end_nowait(reason, ConnectionFailed(reason))
                return

    async def _is_heard_again(self, heartbeat: Heartbeat) -> bool:
        """Whether anything comes from now on; or else, whether that says nothing of the neighbour.

        If it was this program that was held up, what has come may not have been read yet.
        """
        now = asked_at = trio.current_time()
        over_at = asked_at + heartbeat.timeout - heartbeat.interval
        while now < over_at:
            await trio.sleep_until(min(now + heartbeat.interval, over_at))
            now = trio.current_time()
            if self._heard_at >= asked_at:
                return True
        return now > over_at + heartbeat.interval

    async def _read_frames(self) -> None:
        while True:
            try:
                frame = await self._channel.receive()
                self._heard_at = trio.current_time()
                self._take(frame)
            except trio.EndOfChannel:
                self.end_nowait(self._channel.close_reason or "closed by the neighbour")
            except trio.BrokenResourceError as error:
                self.end_nowait(self._channel.close_reason or "the connection was lost", error)
            except ProtocolError as error:
                logger.warning("%s broke the protocol: %s", self.end, error)
                self.end_nowait(f"it broke the protocol: {error}", error)

    def _take(self, frame: str | bytes) -> None:
        match decode_neighbour(frame):
            case InternalSend():
                pass  # media, of which we have none: see docs/neighbours.md
            case Send(peer, _, _) if peer != self.end:
                raise ProtocolError(f"{self.end} speaks for {peer:.80}")
            case Send(_, pid, value):
                payload = decode_payload(value, self.extensions)
                match payload:
                    case Credit(read):
                        self._on_the_way -= read
                        self._credit_came.set()
                        self._credit_came = trio.Event()
                    case Beat(asks):
                        if asks:
                            self.post(BEAT_PID, Beat(asks=False))
                    case Application():
                        self._on_payload(self, pid, payload, max(len(frame), MIN_COST))
                    case _:
                        self._on_payload(self, pid, payload, 0)

    async def _write_posted(self) -> None:
        async for posted in self._to_write:
            self._saying = posted
            if not await self._say(*posted):
                return  # the reader meets the same, and knows the reason
            self._saying = None

    async def _say_last(self) -> None:
        """Say what was posted before the end: farewells, above all."""
        if self._saying is not None and not isinstance(self._saying[1], ConnectTo | Direct):
            # Cancelled while it was being said, and perhaps it was: twice is as good as once,
            # but for wishes.
            await self._say(*self._saying)
        await self._write_posted()

    async def _say(self, pid: str, payload: Payload) -> bool:
        """Whether the channel is still open."""
        text = encode_neighbour(Send(self.own_end, pid, encode_payload(payload)))
        try:
            await self._channel.send(text)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        except MessageTooLarge as error:
            # It is somebody else who made it so large; the neighbour can do nothing for it.
            logger.info("what was to be passed on does not fit %r: %s", self, error)
        return True
