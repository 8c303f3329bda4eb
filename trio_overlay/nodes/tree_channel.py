"""One neighbour in the tree, as the application and the node see it.

A channel knows its neighbour, and the node knows the tree: frames about the tree go to the node by
a callback, and messages and further connections stay here.
"""

from __future__ import annotations

import logging
import random
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeGuard, cast, get_args

import trio

from trio_overlay.channels.channel import Channel, Frame
from trio_overlay.channels.network import Network
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.channels.timeline import Appointment, Timeline
from trio_overlay.errors import (
    ConnectionFailed,
    JoinTimeout,
    MessageTooLarge,
    NotSupported,
    OutcomeError,
    ProtocolError,
)
from trio_overlay.nodes.closing import close_channel
from trio_overlay.nodes.heartbeat import Heartbeat
from trio_overlay.nodes.streams import Stream, Substream
from trio_overlay.protocol.ancestry import Descent, Number
from trio_overlay.protocol.cast_frames import CastFrame
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.signals import Offer, Signal, decode_signal, encode_signal
from trio_overlay.protocol.tree import (
    CONNECTIONS,
    CREDIT,
    HEAL,
    Beat,
    ConnectionRefused,
    ConnectionSignal,
    Credit,
    Data,
    Descend,
    JoinRequest,
    RoadRequest,
    RoadSignal,
    TreeFrame,
    TreeOnly,
    Withdraw,
    decode_tree,
    encode_tree,
)
from trio_overlay.signaling.handshake import shake_hands
from trio_overlay.signaling.roads import PushedRoad

logger = logging.getLogger(__name__)

WINDOW = 256 << 10
"""Bytes of messages that a neighbour of ours sends before it waits for us to read."""
MAX_UNREAD = 1 << 20
"""Bytes of unread messages at which a neighbour that does not wait loses its channel."""
MIN_COST = 256
"""What a message counts for at least: a small one takes more memory than its bytes."""
MAX_POSTED = 1000
"""Frames of the node's own that wait for a neighbour; one that lets more pile up is left."""
MAX_POSTED_REQUESTS = 900
"""How full that queue may be for a frame of somebody's request to be put there."""
MAX_CONNECTIONS = 16
"""Dedicated channels that a neighbour may have opened to us and that nobody has taken yet."""
CONNECTION_TIMEOUT = 30.0


_TREE_ONLY = frozenset(get_args(TreeOnly))


def _is_tree_only(frame: TreeFrame) -> TypeGuard[TreeOnly]:
    # Most frames are. To ask a union of so many types takes as long as to read the frame.
    return type(frame) in _TREE_ONLY


@dataclass(frozen=True, slots=True)
class Message:
    """What a neighbour sent to the application."""

    channel: TreeChannel
    data: JSON
    is_parent: bool
    """Whether it came from the parent; otherwise it came from a child."""


class TreeChannel:
    """The channel to a parent or a child.

    Messages come out of the node's `messages`, until somebody reads from this channel itself, by
    iterating it or by `receive`; from then on they come out here, beginning with those that nobody
    has read there yet. They wait for their reader; a neighbour of ours waits with them
    (backpressure), and one of the old protocol that has sent a mebibyte more than was read loses
    the channel, with that reason. The tree's own frames never wait behind messages.
    """

    def __init__(
        self,
        channel: Channel,
        identifier: str,
        *,
        is_parent: bool,
        extensions: frozenset[str],
        network: Network,
        rng: random.Random,
        heartbeat: Heartbeat,
        timeline: Timeline,
        messages: Stream[Message],
        on_frame: Callable[[TreeChannel, TreeOnly], None],
        on_cast: Callable[[TreeChannel, CastFrame, int], None],
    ) -> None:
        self.id = identifier
        """What the bootstrap server, or the road that led there, called the other end for this
        connection."""
        self.is_parent = is_parent
        self.extensions = extensions
        """What the neighbour said it understands beyond the old protocol."""
        self.incoming: Stream[Channel] = Stream(keeps_what_is_read=True)
        """Dedicated channels that the neighbour opened to us with its `open_channel`."""
        self._channel = channel
        self._network = network
        self._rng = rng
        self._heartbeat = heartbeat
        self._timeline = timeline
        self._heard_at = trio.current_time()
        self._said_at = float("-inf")
        self._next_look: Appointment | None = None
        """When the signs of life are seen to."""
        self._on_frame = on_frame
        self._on_cast = on_cast
        itself = weakref.ref(self)  # or Python would have to look for cycles to free it
        self._messages = Substream(messages, lambda message: message.channel is itself())
        self._unread = 0  # bytes in the streams, ours and the node's
        self._read = 0  # bytes read that the neighbour was not told of yet
        self._on_the_way = 0  # bytes sent that the neighbour has not said it read
        self._credit_came = trio.Event()
        self._accepting: dict[str, PushedRoad] = {}
        self._sending = trio.StrictFIFOLock()
        self._posted: deque[TreeFrame | None] = deque()
        """What could not be sent at once; a frame stays in it until it is sent."""
        self._standing: Beat | Descend | None = None
        """What stands in the queue as None: where this node stands, the newest word on it."""
        self._nursery: trio.Nursery | None = None
        """That of `run`, while it runs."""
        self._is_writing = False
        """Whether a task sends what waits: one is only started when something has to wait."""
        self._roads: dict[str, PushedRoad] = {}
        self._carries_messages = False
        self._may_send = trio.Event()
        """Set when messages may be sent: the neighbour has been told that it is one, or we have."""
        self.waits_with: Number | None = None
        """The number that this node has frozen, while it waits for the other end to confirm it."""
        self._close_reason: str | None = None
        self._is_closed_here = False
        self._failure: Exception | None = None

    def __repr__(self) -> str:
        state = "open" if self._close_reason is None else f"closed: {self._close_reason}"
        return f"<TreeChannel to {'parent' if self.is_parent else 'child'} {self.id}, {state}>"

    @property
    def is_open(self) -> bool:
        return self._close_reason is None

    @property
    def close_reason(self) -> str | None:
        """Why this channel ended; None while it is open."""
        return self._close_reason

    async def send(self, data: JSON) -> None:
        """Send *data* to this neighbour; wait while it reads more slowly than we write.

        Delivered whole and in order, or not at all. Returning means handed to the transport,
        not received.

        TypeError, ValueError: *data* is no JSON value.
        MessageTooLarge: over the neighbour's limit, as JSON; nothing was sent.
        trio.BrokenResourceError: the channel is gone; *data* may or may not have arrived.
        trio.ClosedResourceError: this channel was closed on our side.
        """
        text = encode_tree(Data(data))
        size = len(text)  # it is ASCII
        if size > self._channel.max_frame_size:
            raise MessageTooLarge(
                f"a message of {size} bytes: the neighbour {self.id} takes "
                f"{self._channel.max_frame_size}"
            )
        async with self._sending:
            if not self._may_send.is_set():
                await self._may_send.wait()
            while self.is_open and CREDIT in self.extensions and self._on_the_way >= WINDOW:
                await self._credit_came.wait()
            self._check_open()
            try:
                await self._channel.send(text)
            except trio.ClosedResourceError:
                self._check_open()  # we closed it, but perhaps because the neighbour had
                raise
            # Not before: cancelled in `send`, nothing is on the way. Its credit may have come
            # back already, and the sum is below zero for a moment.
            self._on_the_way += max(size, MIN_COST)

    async def receive(self) -> JSON:
        """The neighbour's next message; waits for one. Cancelled, none is lost.

        trio.EndOfChannel: the channel is closed, by whichever end, and all was read.
        """
        return (await self._messages.receive()).data

    def __aiter__(self) -> TreeChannel:
        return self

    async def __anext__(self) -> JSON:
        return (await self._messages.__anext__()).data

    async def aclose(self, reason: str = "closed by the application") -> None:
        """Leave this neighbour. The node goes on, and reports the close as any other."""
        self._is_closed_here = self._is_closed_here or self.is_open
        self.end(reason)
        await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def open_channel(self, *, timeout: float = 30.0) -> AsyncIterator[Channel]:
        """A dedicated connection to this neighbour, for heavy traffic: a channel of frames.

        The neighbour finds it in its `incoming`. It is signalled over this channel, no server
        takes part, and it ends with the context, or when this channel ends at the other side.

        NotSupported: the neighbour speaks the old protocol only.
        ConnectionFailed: it did not come up; JoinTimeout: not within *timeout* seconds.
        """
        if CONNECTIONS not in self.extensions:
            raise NotSupported(f"the neighbour {self.id} knows no dedicated channels")
        self._check_open()
        name = f"{self._rng.getrandbits(64):016x}"
        road = self._roads[name] = PushedRoad(self._carrier(name))
        try:
            async with self._network.open_peer(initiator=True) as peer:
                channel: Channel | None = None
                try:
                    with trio.move_on_after(timeout):
                        channel = await shake_hands(peer, road)
                finally:
                    if channel is None and self.is_open:
                        self.post(ConnectionRefused(name, "given up"))
                if channel is None:
                    raise JoinTimeout(f"no dedicated channel to {self.id} within {timeout:g} s")
                yield channel
        finally:
            del self._roads[name]

    # What follows is for the node.

    @property
    def failure(self) -> Exception | None:
        """What the neighbour did wrong, if that is why the channel ended."""
        return self._failure

    def carry_messages(self) -> None:
        """The other end is a neighbour from now on.

        Before that, and if it never becomes one, what it says to the application is ignored.
        """
        self._carries_messages = True
        if self.is_parent and HEAL in self.extensions:
            self.waits_with = None
            self.post(Beat())  # so the parent learns of it, before the first message
        else:
            self._may_send.set()

    def post(self, frame: TreeFrame, text: str | None = None) -> None:
        """Send a frame of the tree's own, without waiting; a neighbour too slow for it is left.

        Who tells several neighbours the same encodes it once, and gives the *text* as well.
        Of where we stand only the newest waits to be sent. Requests that there is no room for are
        dropped: neither they nor a restless parent of ours shall cost us a neighbour.
        """
        if self._close_reason is not None:
            return
        self._said_at = self._timeline.now()
        if self._posted or not self._write_nowait(frame, text or encode_tree(frame)):
            self._queue(frame)

    def _queue(self, frame: TreeFrame) -> None:
        waiting: TreeFrame | None = frame
        match frame:
            case Beat() | Descend() if not self.is_parent:
                is_queued = self._standing is not None
                self._standing = _newest(self._standing, frame)
                if is_queued:
                    return
                waiting = None
            case JoinRequest() | RoadRequest() | RoadSignal():
                if len(self._posted) >= MAX_POSTED_REQUESTS:
                    logger.warning("%s reads slowly: a frame of a request is dropped", self)
                    return
        if len(self._posted) >= MAX_POSTED:
            self.end("it reads too slowly")
            return
        self._posted.append(waiting)
        self._write_if_posted()

    async def send_text(self, text: str) -> None:
        """Send a frame whose credit is counted by whoever calls; raises as `Channel.send`."""
        await self._channel.send(text)

    def end(self, reason: str, failure: Exception | None = None) -> None:
        """Close, and let `run` return; the first *reason* given is the one that counts."""
        if self._close_reason is None:
            self._close_reason = reason
            # Its traceback is of this class's own frames, and they refer to this channel.
            self._failure = None if failure is None else failure.with_traceback(None)
            if self._nursery is not None:
                self._nursery.cancel_scope.cancel()
            self._may_send.set()
            self._credit_came.set()

    def release(self, size: int) -> None:
        """A message of *size* bytes left its stream: the neighbour may send as much again."""
        self._unread -= size
        self._read += size
        if self._read >= WINDOW // 4 and CREDIT in self.extensions and self.is_open:
            self.post(Credit(self._read))
            self._read = 0

    async def run(self) -> None:
        """Live: read, write, until either end closes or this is cancelled; then close for good."""
        try:
            async with open_background_nursery() as self._nursery:
                if not self.is_open:
                    return
                self._write_if_posted()
                if HEAL in self.extensions:
                    self._keep_alive()
                await self._read_frames()
        finally:
            self._nursery = None
            if self._next_look is not None:
                self._next_look.cancel()
            self.end("the node left")
            reason = self._close_reason or ""
            if not self._channel.close_at_once(reason):
                await close_channel(self._channel, reason)
            self._posted.clear()
            self._messages.close()
            self.incoming.close()
            for road in self._roads.values():  # those of `open_channel`, which others run
                road.fail(ConnectionFailed(f"the channel to {self.id} ended"))

    def _keep_alive(self) -> None:
        """Say something now and then, and end when the neighbour does not.

        A parent says more than enough: each number of the root passes through it.
        """
        now = self._timeline.now()
        pace = self._heartbeat
        if self._next_look is not None:
            # What has come while this program was held up may not have been read yet: the silence
            # of that time is none of the neighbour's.
            self._heard_at = min(now, self._heard_at + now - self._next_look.at)
        if now >= self._heard_at + pace.timeout:
            reason = f"no sign of life for {pace.timeout:g} s"
            self.end(reason, ConnectionFailed(reason))
            return
        if now >= self._said_at + pace.interval:
            self.post(Beat(self.waits_with))
        due_at = min(self._heard_at + pace.timeout, self._said_at + pace.interval)
        self._next_look = self._timeline.at(due_at, self._keep_alive)

    async def _read_frames(self) -> None:
        try:
            await self._channel.deliver_to(self._hear)
        except trio.EndOfChannel:
            self.end(self._channel.close_reason or "closed by the neighbour")
        except trio.BrokenResourceError as error:
            self.end(self._channel.close_reason or "the connection was lost", error)

    def _hear(self, frame: Frame) -> None:
        self._heard_at = self._timeline.now()
        try:
            self._take(decode_tree(frame), len(frame))
        except ProtocolError as error:
            logger.warning("the neighbour %s broke the protocol: %s", self.id, error)
            self.end(f"it broke the protocol: {error}", error)

    def _take(self, frame: TreeFrame, size: int) -> None:
        if _is_tree_only(frame):
            self._on_frame(self, frame)
            return
        if not self._carries_messages:
            logger.info("%s sends what only a neighbour may: it is ignored", self)
            return
        match frame:
            case Data(data):
                self._take_data(data, max(size, MIN_COST))
            case Credit(read):
                self._on_the_way -= read
                self._credit_came.set()
                self._credit_came = trio.Event()
            case ConnectionSignal(name, signal):
                self._take_signal(name, signal)
            case ConnectionRefused(name, reason):
                road = self._roads.get(name) or self._accepting.get(name)
                if road is not None:
                    road.fail(ConnectionFailed(f"{self.id} refused: {reason}"))
            case _:
                self._on_cast(self, cast("CastFrame", frame), size)  # nothing else is left

    def _take_data(self, data: JSON, size: int) -> None:
        self._unread += size
        self._messages.put(Message(self, data, self.is_parent), size)
        if self._unread > MAX_UNREAD:
            self.end("its messages were read too slowly, and it does not wait")

    def _take_signal(self, name: str, value: JSON) -> None:
        signal = decode_signal(value)
        road = self._roads.get(name) or self._accepting.get(name)
        if road is None and isinstance(signal, Offer) and self._nursery is not None:
            if len(self._accepting) + len(self.incoming) >= MAX_CONNECTIONS:
                self.post(ConnectionRefused(name, "too many wait to be taken"))
                return
            road = self._accepting[name] = PushedRoad(self._carrier(name))
            self._nursery.start_soon(self._accept, name, road)
        if road is not None:
            road.deliver(signal)

    async def _accept(self, name: str, road: PushedRoad) -> None:
        """Bring up a dedicated channel that the neighbour opens, and keep it while it lasts."""
        async with self._network.open_peer(initiator=False) as peer:
            channel: Channel | None = None
            reason = f"not within {CONNECTION_TIMEOUT:g} s"
            try:
                with trio.move_on_after(CONNECTION_TIMEOUT):
                    channel = await shake_hands(peer, road)
            except OutcomeError as error:
                reason = str(error)
            finally:
                del self._accepting[name]
            if channel is None:
                self.post(ConnectionRefused(name, reason))
                return
            lent = _LentChannel(channel)
            self.incoming.put(lent)
            await lent.returned.wait()

    def _carrier(self, name: str) -> Callable[[Signal], Awaitable[None]]:
        async def carry(signal: Signal) -> None:
            self.post(ConnectionSignal(name, encode_signal(signal)))
            await trio.lowlevel.checkpoint_if_cancelled()

        return carry

    def _check_open(self) -> None:
        if self._close_reason is None:
            return
        if self._is_closed_here:
            raise trio.ClosedResourceError(self._close_reason)
        raise trio.BrokenResourceError(self._close_reason)

    def _write_nowait(self, frame: TreeFrame, text: str) -> bool:
        """Send *frame* if that need not wait; whether it is done with."""
        try:
            self._channel.send_nowait(text)
        except trio.WouldBlock:
            return False
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return True  # the reader meets the same, and knows the reason
        except MessageTooLarge as error:
            self._does_not_fit(frame, error)
            return True
        if isinstance(frame, Beat) and frame.number is None:
            self._may_send.set()
        return True

    def _write_if_posted(self) -> None:
        if (
            self._posted
            and not self._is_writing
            and self._nursery is not None
            and not self._nursery.cancel_scope.cancel_called
        ):
            self._is_writing = True
            self._nursery.start_soon(self._write_posted)

    async def _write_posted(self) -> None:
        while self._posted:
            frame = self._posted[0]
            if frame is None:
                frame, self._standing = self._standing, None
                assert frame is not None
            try:
                await self._channel.send(encode_tree(frame))
                if isinstance(frame, Beat) and frame.number is None:
                    self._may_send.set()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the reader meets the same, and knows the reason
            except MessageTooLarge as error:
                self._does_not_fit(frame, error)
            self._posted.popleft()
        self._is_writing = False

    def _does_not_fit(self, frame: TreeFrame, error: MessageTooLarge) -> None:
        if isinstance(frame, JoinRequest | Withdraw | RoadRequest | RoadSignal):
            # It is a stranger who made it so large; the neighbour can do nothing for it.
            logger.info("what a stranger says does not fit %s: %s", self, error)
        else:
            self.end(f"it takes no frames that we need: {error}", error)


def _newest(waiting: Beat | Descend | None, frame: Beat | Descend) -> Beat | Descend:
    """One frame that says what *waiting* and then *frame* say."""
    match waiting, frame:
        case Beat() | Descend(), Beat(None):
            return waiting
        case Descend(Descent(_, path)), Beat(tuple() as number):
            return Descend(Descent(number, path))
    return frame


class _LentChannel(Channel):
    """A channel of ours that the application uses; `returned` is set when it is done with it."""

    def __init__(self, channel: Channel) -> None:
        self.max_frame_size = channel.max_frame_size
        self.returned = trio.Event()
        self._channel = channel

    @property
    def close_reason(self) -> str | None:
        return self._channel.close_reason

    async def send(self, value: Frame) -> None:
        await self._channel.send(value)

    def send_nowait(self, value: Frame) -> None:
        self._channel.send_nowait(value)

    async def receive(self) -> Frame:
        try:
            return await self._channel.receive()
        except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
            self.returned.set()
            raise

    async def aclose(self, reason: str = "") -> None:
        try:
            await self._channel.aclose(reason)
        finally:
            self.returned.set()
