"""Roads between nodes of the tree that share a neighbour: no server takes part.

A request for a place that came over a road is a request like any other: it takes a place here, or
goes down the tree to where one is free, with the key `BY_ROAD`. Only the answer goes back the way
that the request came, hop by hop, and not through the server.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from trio_overlay.channels.timeline import Appointment
from trio_overlay.errors import ConnectionFailed, MalformedFrame
from trio_overlay.nodes.tree_channel import TreeChannel
from trio_overlay.protocol.bootstrap import SignalFrame, signal_frame
from trio_overlay.protocol.crossings import Crossings
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.signals import Signal, decode_signal, encode_signal, is_offer
from trio_overlay.protocol.tree import (
    BY_ROAD,
    EXTENSIONS,
    ROADS,
    RoadEnd,
    RoadRequest,
    RoadSignal,
    Wish,
)
from trio_overlay.signaling.bootstrap import Connection, Request
from trio_overlay.signaling.neighbour_road import NeighbourRoad, answer_over, connect_over

if TYPE_CHECKING:
    from trio_overlay.nodes.tree import TreeNode

logger = logging.getLogger(__name__)

ROAD_TIMEOUT = 4.0
"""Seconds for a handshake over neighbours; then there are other ways."""
MAX_SOURCES_EACH = 64
"""Requests for a place that one neighbour may have handed to us at a time."""
MAX_CROSSINGS = 256
"""Roads that lead over one node at a time."""
MAX_CROSSINGS_EACH = 64
"""Of those, how many one neighbour may have opened."""
MAX_REASON = 200


@dataclass(eq=False, slots=True)
class _Source:
    """Where a request came from, if not from the server, and so where its answer goes."""

    link: TreeChannel
    name: str
    end: Appointment
    """When it is forgotten."""
    rank: int = 0


class Roads:
    """The roads that begin, end or pass at one node."""

    def __init__(self, node: TreeNode) -> None:
        self._node = node
        self._crossings: Crossings[TreeChannel] = Crossings(
            max_opened=MAX_CROSSINGS_EACH, max_in_all=MAX_CROSSINGS
        )
        """The roads of others that lead over this node."""
        self._own: dict[tuple[TreeChannel, str], NeighbourRoad] = {}
        """Those that this node opened, or answers for another purpose than a place."""
        self._sources: dict[str, _Source] = {}
        """By origin."""
        self._origins: dict[tuple[TreeChannel, str], str] = {}
        """Of the same requests, by whence they came."""

    def __len__(self) -> int:
        self._crossings.expire(trio.current_time())
        return len(self._crossings) + len(self._own) + len(self._sources)

    # --- roads of our own -----------------------------------------------------------------

    @asynccontextmanager
    async def connect(
        self, link: TreeChannel, wish: Wish, more: Mapping[str, JSON]
    ) -> AsyncIterator[Connection]:
        """A connection to whom the neighbour on *link* leads us to; leaving closes it.

        JoinTimeout, ConnectionFailed: it leads nowhere, or there is no neighbour any more.
        """
        if not link.is_open or ROADS not in link.extensions:
            raise ConnectionFailed(f"no road leads over {link.id}")
        name = self._make_name()
        is_first = True

        def say(signal: Signal) -> None:
            nonlocal is_first
            value = encode_signal(signal)
            if is_first:
                is_first = False
                frame = signal_frame(
                    value, destination=None, rank=0, extensions=EXTENSIONS, more=more
                )
                link.post(RoadRequest(name, wish, frame))
            else:
                link.post(RoadSignal(name, value))

        road = self._own[link, name] = NeighbourRoad(name, say)
        try:
            async with connect_over(road, self._node._network, timeout=ROAD_TIMEOUT) as connection:
                yield connection
        finally:
            # The other end has its last word to say when all is well; else this is ours.
            if self._own.pop((link, name), None) is not None and not is_first:
                link.post(RoadEnd(name, "given up"))

    async def until_quiet(self, link: TreeChannel) -> None:
        """Wait until the other ends of our roads over *link* have said their last; if none is
        open, for ever.
        """
        roads = [road for (other, _), road in self._own.items() if other is link]
        for road in roads:
            await road.ended.wait()
        if not roads:
            await trio.sleep_forever()

    @asynccontextmanager
    async def accept(self, link: TreeChannel, frame: RoadRequest) -> AsyncIterator[Connection]:
        """A connection to who opened this road with *frame*, for another purpose than a place."""
        request = Request(frame.road, frame.frame.extensions)
        request.deliver(frame.frame)
        road = self._own[link, frame.road] = self._answering_road(link, frame.road)
        try:
            network = self._node._network
            async with answer_over(road, request, network, timeout=ROAD_TIMEOUT) as connection:
                if self._own.pop((link, frame.road), None) is not None:
                    link.post(RoadEnd(frame.road, "connected", is_connected=True))
                yield connection
        finally:
            if self._own.pop((link, frame.road), None) is not None:
                link.post(RoadEnd(frame.road, "given up"))

    # --- requests that came over a road ---------------------------------------------------

    def answer(self, request: Request) -> AbstractAsyncContextManager[Connection] | None:
        """How to answer the applicant of *request*, if it came over a road."""
        source = self._sources.get(request.origin)
        if source is None:
            return None
        road = self._answering_road(source.link, source.name)
        return answer_over(road, request, self._node._network, timeout=self._node.request_timeout)

    def note_request(self, link: TreeChannel, frame: SignalFrame) -> None:
        """The parent passes on a request; it may have come over a road."""
        origin = frame.origin
        if (
            origin is not None
            and frame.fields.get(BY_ROAD) is True
            and ROADS in link.extensions
            and is_offer(frame.signal)
            and not self._node._branch.knows(origin)
        ):
            self._add_source(origin, link, origin)

    def may_go_to(self, origin: str, child: TreeChannel) -> bool:
        """Whether *child* can take the request of *origin*: its answer must find the way back."""
        return origin not in self._sources or ROADS in child.extensions

    def end_request(self, origin: str, reason: str, *, is_connected: bool = False) -> None:
        """The request of *origin* is over: if it came over a road, say so to whence it came."""
        source = self._drop_source(origin)
        if source is not None:
            source.link.post(RoadEnd(source.name, reason[:MAX_REASON], is_connected))

    # --- frames ---------------------------------------------------------------------------

    def take(self, link: TreeChannel, frame: RoadRequest | RoadSignal | RoadEnd) -> None:
        self._crossings.expire(self._node._timeline.now())
        match frame:
            case RoadRequest():
                self._take_request(link, frame)
            case RoadSignal(name, signal, extensions):
                self._take_signal(link, name, signal, extensions)
            case RoadEnd(name, reason, is_connected):
                self._take_end(link, name, reason, is_connected)

    def lose(self, link: TreeChannel) -> None:
        """The neighbour on *link* is gone."""
        reason = "a neighbour on the way is gone"
        for (other, name), road in list(self._own.items()):
            if other is link:
                del self._own[link, name]
                road.end(reason)
        self._crossings.expire(trio.current_time())
        for opposite, name in self._crossings.lose(link):
            opposite.post(RoadEnd(name, reason))
        for origin, source in list(self._sources.items()):
            if source.link is link:
                self._drop_source(origin)
                self._node._take_withdrawal(origin, reason)

    def _take_request(self, link: TreeChannel, frame: RoadRequest) -> None:
        name = frame.road
        if (link, name) in self._own or (link, name) in self._origins:
            return
        node = self._node
        goes_on = (
            node._standby.goes_on(link, frame)
            or node._leaving.goes_on(link, frame)
            or node._pulls.goes_on(link, frame)
        )
        if goes_on is not None:
            target, wish = goes_on
            self._cross(link, frame, target, wish)
        elif frame.wish is Wish.STAND_BY:
            node._standby.take_request(link, frame)
        elif (
            frame.wish not in (Wish.PLACE, Wish.HIGHER)
            or (frame.wish is Wish.HIGHER and not node.is_root)
            or not node.path
            or node._leaving.has_begun
        ):
            if not node.path:
                node._standby.note_refused(link)
            link.post(RoadEnd(name, "this node can do nothing for anybody"))
        elif sum(source.link is link for source in self._sources.values()) >= MAX_SOURCES_EACH:
            link.post(RoadEnd(name, "too many requests"))
        else:
            if frame.wish is Wish.HIGHER:
                node._pulls.note_application()
            origin = f"{node._rng.getrandbits(128):032x}"
            self._add_source(origin, link, name)
            fields = {**frame.frame.fields, "origin": origin, BY_ROAD: True}
            for key in ("type", "road", "wish"):
                fields.pop(key, None)
            node._take_request(SignalFrame(fields, frame.frame.size), is_from_parent=False)

    def _take_signal(
        self, link: TreeChannel, name: str, signal: JSON, extensions: frozenset[str]
    ) -> None:
        node = self._node
        road = self._own.get((link, name))
        across = self._crossings.across((link, name))
        if road is not None:
            road.extensions |= extensions
            try:
                road.deliver(decode_signal(signal))
            except MalformedFrame as error:
                # The neighbour is not to blame for what it carries.
                logger.info("a signal that came over %s is passed over: %s", link, error)
        elif across is not None:
            across[0].post(RoadSignal(across[1], signal, extensions))
        elif (link, name) in self._origins:
            origin = self._origins[link, name]
            source = self._sources[origin]
            source.rank += 1
            if node._branch.knows(origin):
                fields = {"origin": origin, "signal": signal, "rank": source.rank, BY_ROAD: True}
                node._take_request(SignalFrame(fields), is_from_parent=False)
        elif (passed := self._source_of_answer(link, name)) is not None:
            passed.link.post(RoadSignal(passed.name, signal, extensions))

    def _take_end(self, link: TreeChannel, name: str, reason: str, is_connected: bool) -> None:
        road = self._own.pop((link, name), None)
        across = self._crossings.close((link, name))
        if road is not None:
            road.end(reason, is_connected=is_connected)
        elif across is not None:
            across[0].post(RoadEnd(across[1], reason[:MAX_REASON], is_connected))
        elif (link, name) in self._origins:
            origin = self._origins[link, name]
            self._drop_source(origin)
            self._node._take_withdrawal(origin, reason)
        elif self._source_of_answer(link, name) is not None:
            self.end_request(name, reason, is_connected=is_connected)
            self._node._forget_request(name)

    def _source_of_answer(self, link: TreeChannel, origin: str) -> _Source | None:
        """Whence the request of *origin* came, if it was given to the child on *link*."""
        if self._node._branch.child_of(origin) != link.id:
            return None
        return self._sources.get(origin)

    # --- what is kept ---------------------------------------------------------------------

    def _cross(
        self, link: TreeChannel, frame: RoadRequest, target: TreeChannel, wish: Wish
    ) -> None:
        end, other = (link, frame.road), (target, self._make_name())
        expires_at = trio.current_time() + self._node.request_timeout
        if not self._crossings.open(end, other, expires_at):
            link.post(RoadEnd(frame.road, "too many roads lead over this node"))
            return
        target.post(RoadRequest(other[1], wish, frame.frame))

    def _add_source(self, origin: str, link: TreeChannel, name: str) -> None:
        self._drop_source(origin)
        end = self._node._timeline.after(
            self._node.request_timeout, partial(self._drop_source, origin)
        )
        self._sources[origin] = _Source(link, name, end)
        self._origins[link, name] = origin

    def _drop_source(self, origin: str) -> _Source | None:
        source = self._sources.pop(origin, None)
        if source is not None:
            del self._origins[source.link, source.name]
            source.end.cancel()
        return source

    def _answering_road(self, link: TreeChannel, name: str) -> NeighbourRoad:
        extensions = EXTENSIONS

        def say(signal: Signal) -> None:
            nonlocal extensions
            link.post(RoadSignal(name, encode_signal(signal), extensions))
            extensions = frozenset()

        return NeighbourRoad(name, say)

    def _make_name(self) -> str:
        return f"{self._node._rng.getrandbits(64):016x}"
