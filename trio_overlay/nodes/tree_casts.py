"""How one node passes on what goes further than a neighbour: broadcasts, and letters to one node.

What is decided is decided in protocol/casting.py, and docs/tree.md argues it; here is what lives
in time: links, queues and credit, and the root's pen. What is sent again is in tree_outboxes.py.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from trio_overlay.channels.timeline import Appointment, Timeline
from trio_overlay.errors import (
    MalformedFrame,
    MessageTooLarge,
    UsageError,
)
from trio_overlay.nodes.streams import Stream
from trio_overlay.nodes.tree_cast_links import (
    CAST_WINDOW,
    MAX_MESSAGE,
    CastLimits,
    CastLink,
    Outgoing,
    cost_of,
)
from trio_overlay.nodes.tree_channel import MIN_COST, TreeChannel
from trio_overlay.nodes.tree_outboxes import Outboxes
from trio_overlay.protocol.cast_frames import (
    Answers,
    Ask,
    Cast,
    CastCredit,
    CastFrame,
    Entry,
    Hurry,
    Letter,
    Past,
    PastEnd,
    Ping,
    Pong,
    Receipt,
    Refill,
    Resume,
    Routes,
    Start,
    Unknown,
    encode_cast,
)
from trio_overlay.protocol.casting import (
    MAX_ROUTES,
    Inbox,
    Kept,
    Log,
    RoutingTable,
)
from trio_overlay.protocol.json import JSON, MAX_DEPTH, decode_json, encode_json

logger = logging.getLogger(__name__)

MAX_UP = 4 << 20
"""Bytes that wait for a parent, at the most; what comes on top is dropped, and is sent again."""
ROUTES_INTERVAL = 0.25
HURRY_TIME = 1.0
"""Seconds for which a node that was told to hurry does not wait for its children."""
PING_INTERVAL = 30.0

COUNTED = (Cast, Entry, Past, PastEnd, Letter, Receipt, Unknown, Ask, Answers)
"""What needs credit; all else is small, and there is little of it."""


@dataclass(frozen=True, slots=True)
class CastMessage:
    """What some node of the tree sent to all, or to its subtree, or to this node."""

    origin: str
    """The id of the node that sent it."""
    data: JSON
    is_broadcast: bool


class Casts:
    """One node's; it belongs to the node, and lives in its nursery."""

    def __init__(
        self, node_id: str, limits: CastLimits, max_degree: int, timeline: Timeline
    ) -> None:
        self.stream: Stream[CastMessage] = Stream(
            max_bytes=CAST_WINDOW // 2, keeps_what_is_read=True, on_leave=self._on_read
        )
        self.routes = RoutingTable(node_id, max(1000, MAX_ROUTES // max_degree))
        self.above: CastLink | None = None
        self.below: dict[str, CastLink] = {}
        self.outboxes = Outboxes(node_id, timeline, to_root=self.push_up, to_target=self._route)
        self.is_top = False
        """Whether this node has the pen: a root, or one below a node of the old protocol."""
        self.count_missed = 0
        self.on_question: Callable[[CastLink, Ask, int], None]
        self.on_answers: Callable[[CastLink, Answers, int], None]
        self.on_lost_child: Callable[[str], None]
        self._id = node_id
        self._limits = limits
        self._timeline = timeline
        self._is_closed = False
        self._callers: set[trio.CancelScope] = set()
        self._path: tuple[str, ...] = ()
        self._nursery: trio.Nursery
        self._log = Log(limits.max_lag)
        self._inbox = Inbox()
        self._count_logs = 0
        self._up: deque[Outgoing] = deque()
        self._up_size = 0
        self._up_came = trio.Event()
        # Broadcasts that are not yet out of our hands: not read here, or not sent to any child.
        self._held: deque[tuple[int, int]] = deque()  # position and size
        self._held_bytes = 0
        self._held_less = trio.Event()
        self._hurries_until = -math.inf
        self._past_from: int | None = None
        """After which index of our log we have asked the parent for what we have not kept."""
        self._past: list[Kept] = []
        self._past_size = 0
        self._unread_entries: deque[int] = deque()
        self._unread_letters = 0
        self._in_stream: deque[int | None] = deque()  # positions; None for letters
        self._pings: dict[int, float] = {}
        self._count_pings = 0
        self._got_pong = trio.Event()
        self._next_ping: Appointment | None = None
        self._next_news: Appointment | None = None
        """When the parent is told again who is below; None if that can be at once."""

    def start(self, nursery: trio.Nursery) -> None:
        """Live in *nursery*, the node's, until it is cancelled."""
        self._nursery = nursery
        nursery.start_soon(self._write_the_log)

    # --- what the application asks for ----------------------------------------------------

    def close(self) -> None:
        """The node has left: end all calls under way."""
        self._is_closed = True
        self.stream.close()
        for scope in self._callers:
            scope.cancel()

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Around a call of the application's.

        trio.ClosedResourceError: the node has left, or leaves meanwhile.
        """
        with trio.CancelScope() as scope:
            if self._is_closed:
                scope.cancel()
            self._callers.add(scope)
            try:
                yield
            finally:
                self._callers.discard(scope)
        if scope.cancelled_caught:
            raise trio.ClosedResourceError("this node has left the tree")

    async def broadcast(self, data: JSON, *, to_subtree: bool) -> None:
        size = self._check(data)
        if to_subtree:
            await trio.lowlevel.checkpoint()
            while self._held_bytes >= CAST_WINDOW:
                await self._held_less.wait()
            self._accept(Entry(None, 0, self._id, self.outboxes.next_sequence(), data))
        else:
            await self.outboxes.broadcast(data, size)

    async def send_to(self, target: str, data: JSON, timeout: float) -> None:
        size = self._check(data)
        if target == self._id:
            raise UsageError("a node sends no messages to itself")
        await self.outboxes.send_to(target, data, size, timeout)

    # --- what the node tells --------------------------------------------------------------

    def stand(self, parent: TreeChannel | None, path: tuple[str, ...], *, is_top: bool) -> None:
        """The node has this *parent* now, and the pen or not; called whenever it may have changed.

        The parent has confirmed us.
        """
        if self.above is not None and self.above.channel is not parent:
            self.above.end()
            self.above = None
            if self._next_ping is not None:
                self._next_ping.cancel()
        if is_top and not self.is_top:
            self._count_logs += 1
            self._log.begin(f"{self._id}.{self._count_logs}", 0)
            self._up_came.set()
            self.is_top = True
            self._past_from = None  # nobody is above to be asked
            self._reconsider()
        self.is_top = is_top
        if parent is not None and self.above is None:
            self._meet_parent(parent)
        if path != self._path:
            self._path = path
            if path:
                self.outboxes.send_soon()
            self._update_held()

    def take_child(self, channel: TreeChannel) -> None:
        link = self.below[channel.id] = self._link(channel, deque())
        if link.speaks_casts:
            link.grant()
        else:
            link.position = self._log.end

    def lose_child(self, channel: TreeChannel) -> None:
        link = self.below.pop(channel.id, None)
        if link is not None:
            link.clear()
            self.routes.lose(channel.id)
            self._report_routes()
            self._update_held()
            self.on_lost_child(channel.id)

    def take(self, channel: TreeChannel, frame: CastFrame, size: int) -> None:
        """A frame came from *channel*; from who is no neighbour yet, or any more, it is ignored.

        ProtocolError: its sender must not say that.
        """
        if self.above is not None and channel is self.above.channel:
            link = self.above
        elif channel.id in self.below and self.below[channel.id].channel is channel:
            link = self.below[channel.id]
        else:
            return
        is_above = link is self.above
        size = max(size, MIN_COST)
        if isinstance(frame, COUNTED):
            link.count_received(size)
        match frame:
            case CastCredit(credit):
                link.take_credit(credit)
            case Ping(number):
                channel.post(Pong(number))
            case Pong(number):
                self._take_pong(link, number)
            case Entry() if is_above:
                self._hear(frame)
            case Start(log, index) if is_above:
                if self._log.log is None:
                    self._log.begin(log, index)
                    self._reconsider()
            case Past(entry) if is_above:
                self._take_past(entry, size)
            case PastEnd(log, index) if is_above:
                self._end_past(log, index)
            case Hurry() if is_above:
                self._hurries_until = trio.current_time() + HURRY_TIME
                self._update_held()
            case Refill() if not is_above:
                link.wants_past = frame
                self._tell_past(link)
            case Resume(log, index) if not is_above:
                self._resume(link, log, index)
            case Routes() if not is_above:
                self.routes.learn(link.id, frame)
                self._report_routes()
            case Cast() if not is_above:
                self.push_up(frame, size, link)
            case Letter() | Receipt() | Unknown():
                self._route(frame, size, link)
            case Ask():
                self.on_question(link, frame, size)
            case Answers():
                self.on_answers(link, frame, size)
            case _:
                logger.info("%s says what it must not: it is ignored", channel)
        link.grant()

    def push_up(
        self,
        frame: CastFrame,
        size: int,
        source: CastLink | None = None,
        on_leave: Callable[[], None] | None = None,
    ) -> None:
        """Pass *frame* on to the parent, or to our own pen, in its turn; *source* waits for it."""
        if self._up_size + size > MAX_UP:
            if on_leave is not None:
                on_leave()
            return
        self._up_size += size
        if source is not None:
            source.held_bytes += size

        def leave() -> None:
            self._up_size -= size
            if source is not None:
                source.held_bytes -= size
                if self.below.get(source.id) is source:
                    source.grant()
            if on_leave is not None:
                on_leave()

        self._up.append(Outgoing(frame, size, leave))
        self._up_came.set()
        if self.above is not None:
            self.above.wake()

    async def measure_round_trip(self, timeout: float) -> float | None:
        """The seconds to the parent and back, now; None without a parent that answers in time."""
        link = self.above
        if link is None or not link.speaks_casts:
            return None
        self._ping(link)
        number = self._count_pings
        with trio.move_on_after(timeout):
            while number in self._pings:
                await self._got_pong.wait()
        return link.round_trip_time

    # --- broadcasts -----------------------------------------------------------------------

    async def _write_the_log(self) -> None:
        """While we have the pen, put in order what has come up."""
        while True:
            if not (self.is_top and self._up):
                self._up_came = trio.Event()
                await self._up_came.wait()
                continue
            if self._held_bytes >= CAST_WINDOW:
                await self._held_less.wait()
                continue
            outgoing = self._up.popleft()
            outgoing.leave()
            match outgoing.frame:
                case Cast() as cast:
                    self._put_in_order(cast)
                case Letter() | Receipt() | Unknown() as frame:
                    self._route(frame, outgoing.size, None)
                case Ask() as ask if ask.is_for_all:
                    logger.debug(
                        "a question from before this node was the root is dropped: %s", ask
                    )
            await trio.lowlevel.checkpoint()

    def _put_in_order(self, cast: Cast) -> None:
        verdict = self._inbox.judge("all", cast.origin, cast.sequence, cast.after)
        if verdict == "new":
            index = self._log.index + 1
            assert self._log.log is not None
            self._log.hear(self._log.log, index)
            entry = Entry(self._log.log, index, cast.origin, cast.sequence, cast.data)
            self._accept(entry)
        if verdict == "old" and cast.origin != self._id:
            # Its sender cannot have heard it come back.
            receipt = Receipt(self._id, cast.origin, cast.sequence, is_for_all=True)
            self._route(receipt, MIN_COST, None)
        elif cast.origin == self._id and verdict != "early":
            self.outboxes.settle_broadcasts(cast.sequence)

    def _hear(self, entry: Entry) -> None:
        """An entry came from the parent."""
        kind = "subtree"
        if entry.log is not None:
            kind = "all"
            is_another = entry.log != self._log.log
            self.count_missed += self._log.hear(entry.log, entry.index)
            if is_another:
                self._past_from = None  # nobody needs more of the log before
                self._reconsider()
            if entry.origin == self._id:
                self.outboxes.settle_broadcasts(entry.sequence)
        if self._inbox.judge(kind, entry.origin, entry.sequence) == "new":
            self._accept(entry)

    def _accept(self, entry: Entry) -> None:
        """Keep it for the children, and give it to the application."""
        text = encode_cast(entry)
        size = cost_of(text)
        position = self._log.append(Kept(entry.log, entry.index, text, entry.data, size))
        self._held.append((position, size))
        self._held_bytes += size
        if entry.origin != self._id:
            self._unread_entries.append(position)
            self._in_stream.append(position)
            self.stream.put(CastMessage(entry.origin, entry.data, is_broadcast=True), size)
        for link in list(self.below.values()):
            if link.position is not None and link.position < self._log.start:
                lag = self._limits.max_lag
                link.channel.end(f"it is more than {lag} bytes of messages behind")
            else:
                self._hurry(link)
            link.wake()
        if self.above is not None and not self.above.speaks_casts:
            self.above.wake()
        self._update_held()

    def _hurry(self, link: CastLink) -> None:
        """Tell a child that is far behind; it may be waiting for one of its own that is slow.

        That one is to be left in the end, and not this child, which takes what it can.
        """
        if not link.speaks_casts or link.position is None or link.position >= self._log.middle:
            return
        now = trio.current_time()
        if now - link.hurried_at >= HURRY_TIME / 2:
            link.hurried_at = now
            link.channel.post(Hurry())

    def _on_read(self, _: CastMessage, size: int) -> None:
        if not self._in_stream:
            return  # the stream is closed
        position = self._in_stream.popleft()
        if position is None:
            self._unread_letters -= size
        else:
            self._unread_entries.popleft()
            self._update_held()

    def _update_held(self, _: CastLink | None = None) -> None:
        """Give credit for what was read here, and sent to the fastest of those who are told.

        In a hurry it need not be sent to any.
        """
        links = list(self.below.values())
        if self.above is not None:
            links.append(self.above)  # it has a position if it is of the old protocol
        told = [link.position for link in links if link.position is not None]
        done = max(told, default=self._log.end)
        if trio.current_time() < self._hurries_until:
            done = self._log.end
        if self._unread_entries:
            done = min(done, self._unread_entries[0])
        before = self._held_bytes
        while self._held and self._held[0][0] < done:
            self._held_bytes -= self._held.popleft()[1]
        if self._held_bytes < before:
            self._held_less.set()
            self._held_less = trio.Event()
            if self.above is not None:
                self.above.grant()

    def _kept_at(self, link: CastLink) -> Kept | None:
        """What of the log *link* is to be sent next."""
        while link.position is not None and link.position < self._log.end:
            # A child that is too far behind is left; a parent of the old protocol misses some.
            link.position = max(link.position, self._log.start)
            kept = self._log[link.position]
            if link is not self.above or kept.log is not None:
                return kept
            link.position += 1  # not for what is above
            self._update_held()
        return None

    def _resume(self, link: CastLink, log: str | None, index: int) -> None:
        """A child says what it has heard of last."""
        if link.position is not None or link.resumes_at is not None:
            return
        if log is None:
            link.position = self._log.end
            link.wants_start = True
        else:
            link.resumes_at = (log, index)
        self._consider(link)

    def _consider(self, link: CastLink) -> None:
        """Begin to tell *link* what it has not heard, if we know that, and where it starts."""
        if self._log.log is None:
            return
        if link.wants_start:
            link.wants_start = False
            link.channel.post(Start(self._log.log, self._log.index))
        if link.resumes_at is not None:
            lacking = None if self.is_top else self._log.lacks(*link.resumes_at)
            if lacking is not None:
                self._ask_for_past(lacking)
                return
            link.position = self._log.find(*link.resumes_at)
            link.resumes_at = None
        link.wake()
        self._update_held()

    def _reconsider(self) -> None:
        """We know more than before of what was broadcast."""
        for link in self.below.values():
            self._consider(link)
            self._tell_past(link)

    # A node keeps nothing from before its own time. If it takes a child that has been in the tree
    # for longer, and was cut off, it has to ask its parent for what that child has missed.

    def _ask_for_past(self, index: int) -> None:
        if self._past_from is None:  # one after the other
            self._past_from = index
            self._post_refill()

    def _post_refill(self) -> None:
        """Ask for it; once more, if there is a new parent."""
        self._past = []
        self._past_size = 0
        if self.above is not None and self._past_from is not None:
            assert self._log.log is not None
            self.above.channel.post(Refill(self._log.log, self._past_from, self._log.floor))

    def _tell_past(self, link: CastLink) -> None:
        refill = link.wants_past
        if refill is None or self._log.log is None:
            return
        if not self.is_top and refill.log == self._log.log:
            lacking = self._log.lacks(refill.log, refill.index)
            if lacking is not None:
                self._ask_for_past(lacking)
                return
        link.wants_past = None
        link.past.clear()
        link.past.extend(self._log.between(refill.log, refill.index, refill.upto))
        link.past.append(PastEnd(refill.log, refill.index))
        link.wake()

    def _take_past(self, entry: Entry, size: int) -> None:
        self._past_size += size
        if self._past_from is not None and self._past_size <= self._limits.max_lag:
            text = encode_cast(entry)
            self._past.append(Kept(entry.log, entry.index, text, entry.data, cost_of(text)))

    def _end_past(self, log: str, index: int) -> None:
        if index != self._past_from:
            return
        self._past_from = None
        past, self._past = self._past, []
        if log == self._log.log:
            self._log.refill(index, past)
        self._reconsider()

    def _meet_parent(self, parent: TreeChannel) -> None:
        link = self.above = self._link(parent, self._up)
        if link.speaks_casts:
            link.grant()
            parent.post(Resume(self._log.log, self._log.index))
            self._post_refill()
            self.routes.meet_parent()
            self._report_routes()
        else:
            link.queue = deque()
            link.position = self._log.end
        link.wake()
        if link.speaks_casts:
            self._measure()

    def _link(self, channel: TreeChannel, queue: deque[Outgoing]) -> CastLink:
        return CastLink(
            channel,
            queue=queue,
            limits=self._limits,
            kept_at=self._kept_at,
            on_sent=self._update_held,
            held=lambda link: self._held_bytes if link is self.above else link.held_bytes,
            nursery=self._nursery,
        )

    # --- letters --------------------------------------------------------------------------

    def _route(
        self,
        frame: Letter | Receipt | Unknown,
        size: int,
        source: CastLink | None,
        on_leave: Callable[[], None] | None = None,
    ) -> None:
        """Pass *frame* on towards its target; where it came from, it never goes."""
        if frame.target == self._id:
            self._take_own(frame, size)
            return
        towards = self.routes.child_towards(frame.target)
        if towards is not None and (source is None or source.id != towards):
            self.below[towards].put_nowait(frame)
        elif not self.is_top and (source is None or source is not self.above):
            self.push_up(frame, size, source, on_leave)
            return
        else:
            perhaps = [self.below[child] for child in self.routes.incomplete if child in self.below]
            for link in perhaps:
                if link is not source:
                    link.put_nowait(frame)
            if not perhaps and self.is_top and isinstance(frame, Letter):
                self._route(Unknown(frame.origin, frame.target), MIN_COST, None)
        if on_leave is not None:
            on_leave()

    def _take_own(self, frame: Letter | Receipt | Unknown, size: int) -> None:
        match frame:
            case Letter():
                self._take_letter(frame, size)
            case Receipt(_, _, sequence, True):
                self.outboxes.settle_broadcasts(sequence)
            case Receipt(origin, _, sequence, False):
                self.outboxes.settle_letters(origin, sequence)
            case Unknown(_, wanted):
                self.outboxes.note_unknown(wanted)

    def _take_letter(self, letter: Letter, size: int) -> None:
        if self.stream.is_read and self._unread_letters >= CAST_WINDOW:
            return  # it will be sent again
        verdict = self._inbox.judge("letter", letter.origin, letter.sequence, letter.after)
        if verdict == "early":
            return
        if verdict == "new":
            self._unread_letters += size
            self._in_stream.append(None)
            self.stream.put(CastMessage(letter.origin, letter.data, is_broadcast=False), size)
        receipt = Receipt(self._id, letter.origin, letter.sequence, is_for_all=False)
        self._route(receipt, MIN_COST, None)

    def _check(self, data: JSON) -> int:
        """The size of *data* as JSON.

        TypeError, ValueError: it is none. MessageTooLarge: it is over the limit.
        """
        text = encode_json(data)
        if len(text) > MAX_MESSAGE:
            raise MessageTooLarge(
                f"a message of {len(text)} bytes: to others than neighbours go {MAX_MESSAGE}"
            )
        check_depth(text)
        return cost_of(text)

    # --- the rest -------------------------------------------------------------------------

    def _report_routes(self) -> None:
        """Tell the parent who is below: at once, but not again within a quarter of a second."""
        if self._next_news is None:
            self._next_news = self._timeline.after(0, self._tell_news)

    def _tell_news(self) -> None:
        self._next_news = None
        if self.above is None or not self.above.speaks_casts or not self.routes.has_news:
            return
        for news in self.routes.take_news():
            self.above.channel.post(news)
        self._next_news = self._timeline.after(ROUTES_INTERVAL, self._tell_news)

    def _measure(self) -> None:
        """Measure the round-trip time to the parent, now and every half minute."""
        assert self.above is not None
        self._ping(self.above)
        self._next_ping = self._timeline.after(PING_INTERVAL, self._measure)

    def _ping(self, link: CastLink) -> None:
        self._count_pings += 1
        self._pings = {self._count_pings: trio.current_time()}
        link.channel.post(Ping(self._count_pings))

    def _take_pong(self, link: CastLink, number: int) -> None:
        said_at = self._pings.pop(number, None)
        if said_at is not None:
            link.round_trip_time = trio.current_time() - said_at
            self._got_pong.set()
            self._got_pong = trio.Event()


def check_depth(text: str) -> None:
    """ValueError: what *text*, JSON, stands for is nested too deep to travel in a frame."""
    if text.count("[") + text.count("{") > MAX_DEPTH - 8:
        # The frame around it adds a few levels.
        try:
            decode_json("[" * 8 + text + "]" * 8)
        except MalformedFrame as error:
            raise ValueError(str(error)) from None
