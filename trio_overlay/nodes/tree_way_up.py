"""The way up from a node of the tree: to its parent, and from a lost parent to the next.

What makes a link to the parent of an open channel is decided in protocol/ancestry.py; here are the
searches, which may be several at a time, and the links that they lead to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import trio

from trio_overlay.errors import JoinRefused, OutcomeError, ServerLost, ServerUnreachable
from trio_overlay.nodes.tree_channel import TreeChannel
from trio_overlay.nodes.tree_events import ParentClose, ParentConnect, ParentError
from trio_overlay.nodes.tree_standby import HEAD_START
from trio_overlay.protocol.ancestry import Descent
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.tree import EXTENSIONS, HEAL, Beat, Descend
from trio_overlay.signaling.bootstrap import Connection

if TYPE_CHECKING:
    from trio_overlay.nodes.tree import TreeNode

logger = logging.getLogger(__name__)

CONFIRM_TIMEOUT = 5.0
"""Seconds from an open channel to the parent's number that proves it is not below us."""
MIN_REJOIN_DELAY, MAX_REJOIN_DELAY = 0.3, 10.0

Connect: TypeAlias = Callable[[Mapping[str, JSON]], AbstractAsyncContextManager[Connection]]
"""One way to somebody who takes us for a child: it asks there, with the keys given in its request.

A context manager as `Bootstrap.connect` gives one, which raises what that raises.
"""


@dataclass(eq=False, slots=True)
class _Way:
    """A link to who is the parent, or is to be it, or was before this node moved."""

    link: TreeChannel
    view: list[int]
    """The free places that the other end was told of in our request."""
    search: trio.CancelScope
    """Around all that belongs to this way; it ends with the link."""
    only_higher: bool
    """Whether nothing is gained by it unless it leads to a place that is higher up."""
    task_status: trio.TaskStatus[TreeChannel]
    is_confirmed: bool = False
    """Whether this has been the way to the parent, as it may still be."""
    path: tuple[str, ...] = ()
    """What the other end said last of where it stands; a `Beat` means the same."""


class WayUp:
    """The parent of one node, who may become it, and who was it lately."""

    def __init__(self, node: TreeNode, rejoins: bool) -> None:
        self._node = node
        self._branch = node._branch
        self._ancestry = node._ancestry
        self._rejoins = rejoins
        self.parent: TreeChannel | None = None
        """The way up that confirmed us last; there is never another beside it."""
        self.found = trio.Event()
        """Set when there is a parent; a new one when there is none any more."""
        self._orphaned = trio.Event()
        """Set when there is no parent any more; a new one when there is one."""
        self._ways: dict[TreeChannel, _Way] = {}
        """The links to the parent, to those who may confirm us, and to parents left lately."""
        self._searches: set[trio.CancelScope] = set()
        """Around each search for a parent that goes on: the first that succeeds ends all others."""
        self._is_issuing = False
        self._join_deadline: float | None = None
        """When a `join` under way has to have a parent."""

    @property
    def is_searched(self) -> bool:
        """Whether a search for a parent goes on."""
        return bool(self._searches)

    def leads_over(self, link: TreeChannel) -> bool:
        """Whether *link* goes to the parent, or to who may be it or was, and so not to a child."""
        return link in self._ways

    async def live(
        self, persists: bool = False, *, task_status: trio.TaskStatus[TreeChannel | None]
    ) -> None:
        """Have a parent, and another one after it, until the node leaves.

        It is started when there is the first. If that fails, so does this, unless it *persists*.
        """
        has_joined = persists
        failures = 0
        was_with_server = False
        deadline = trio.current_time() + self._node.request_timeout
        if persists:
            task_status.started(None)
        while True:
            try:
                self._join_deadline = None if has_joined else deadline
                parent = self.parent or await self.move_to(self.by_server)
            except OutcomeError as error:
                was_with_server = was_with_server or isinstance(error, ServerLost)
                if not has_joined and not (
                    # It may have restarted, and is just about to be back.
                    was_with_server
                    and isinstance(error, ServerUnreachable)
                    and trio.current_time() < deadline - 1
                ):
                    raise
                failures += 1
                logger.info("%s found no new parent: %s", self._node.id, error)
            else:
                failures = 0
                if not has_joined:
                    has_joined = True
                    task_status.started(parent)
                await self._orphaned.wait()
                if not (self._rejoins or persists):
                    self._node._give_up()
                    return
            if self._node._standby.is_there and not failures:
                with trio.move_on_after(HEAD_START):
                    await self.found.wait()
            delay = self._rejoin_delay(failures)
            if not has_joined:  # a join has a time limit
                delay = min(delay, 1.0)
            await trio.sleep(delay)

    def _rejoin_delay(self, failures: int) -> float:
        """Seconds before the next try; never all siblings at once."""
        ceiling = min(MAX_REJOIN_DELAY, MIN_REJOIN_DELAY * 2.0 ** min(failures, 10))
        return self._node._rng.uniform(0 if failures == 0 else ceiling / 2, ceiling)

    def by_server(self, more: Mapping[str, JSON]) -> AbstractAsyncContextManager[Connection]:
        """Ask the root, through the bootstrap server, to be given a parent. A `Connect`."""
        node = self._node
        timeout = node.request_timeout
        if self._join_deadline is not None:  # several tries have one time limit
            timeout = max(0.0, min(timeout, self._join_deadline - trio.current_time()))
        return node._bootstrap.connect(
            timeout=timeout, extensions=EXTENSIONS, more=more, network=node._network
        )

    async def move_to(self, connect: Connect, *, only_higher: bool = False) -> TreeChannel:
        """Find a new parent by *connect*; the channel to it.

        Make before break: a parent that there is stays the parent until the new one has confirmed
        us, and is still heard for a moment after that. Cancelled, all is as before. While a
        parent is missing, several may search at once. If the new place is to be *only higher*, one
        that is not is turned down, for as long as the parent is there.

        OutcomeError: nobody was found, or confirmed us; or another search was faster.
        """
        nursery = self._node._nursery
        parent: TreeChannel = await nursery.start(self._have_a_parent, connect, only_higher)
        return parent

    async def _have_a_parent(
        self, connect: Connect, only_higher: bool, *, task_status: trio.TaskStatus[TreeChannel]
    ) -> None:
        """Search by *connect*, and be a child of who is found; until that link has ended."""
        deadline = trio.current_time() + self._node.request_timeout
        view = self._branch.potential_view
        more = {"number": self._ancestry.number, "free": view}
        is_confirmed = False
        with trio.CancelScope() as search:
            self._searches.add(search)
            try:
                async with connect(more) as connection:
                    link = self._node._channel_to(connection, is_parent=True)
                    way = self._ways[link] = _Way(link, view, search, only_higher, task_status)
                    try:
                        await self._live_with_way_up(way, deadline)
                    finally:
                        is_confirmed = way.is_confirmed
                        self._part_from(way)
                if not is_confirmed:
                    raise JoinRefused(f"{link.id} did not confirm us: {link.close_reason}")
            finally:
                self._searches.discard(search)
        if not is_confirmed:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise JoinRefused("another parent was found first")

    async def _live_with_way_up(self, way: _Way, deadline: float) -> None:
        link = way.link
        if HEAL in link.extensions:
            self._ancestry.holds = True
            link.waits_with = self._ancestry.number
        elif self.parent is None and not self._node.is_root:
            before = self._ancestry.descent
            self._ancestry.meet_old_parent()
            self._take_parent(way)
            self._node._after_change(before, is_news=False)
            self._begin_to_issue()
        else:
            link.end("it cannot say where it stands, and this node has a place")
        too_late = self._node._timeline.at(
            min(deadline, trio.current_time() + CONFIRM_TIMEOUT),
            partial(self._note_not_confirmed, way),
        )
        try:
            await link.run()
        finally:
            too_late.cancel()

    def _note_not_confirmed(self, way: _Way) -> None:
        if not way.is_confirmed:
            way.link.end("it did not say in time where it stands")

    def take(self, link: TreeChannel, frame: Descend | Beat) -> None:
        """Who is above on *link*, or may be it, or was, says where it stands."""
        way = self._ways[link]
        match frame:
            case Descend(descent):
                self._hear(way, descent)
            case Beat(number) if number is not None:
                self._hear(way, Descent(number, way.path))

    def _hear(self, way: _Way, descent: Descent) -> None:
        node = self._node
        before = self._ancestry.descent
        way.path = descent.path
        if way.link is self.parent:
            if not self._ancestry.take(descent):
                way.link.end("this node is among its own ancestors")
            node._after_change(before)
        elif not way.is_confirmed:
            if self._ancestry.is_above(descent):
                way.link.end("this node is among its own ancestors")
            elif way.only_higher and node.path and len(descent.path) + 1 >= len(node.path):
                way.link.end("its place is no higher than the one this node has")
            elif self._ancestry.follow(descent):
                self._take_parent(way)
                node._after_change(before, is_news=False)

    def _take_parent(self, way: _Way) -> None:
        """*way* leads to the parent from now on: the ancestry says so already."""
        node = self._node
        old, self.parent = self.parent, way.link
        way.is_confirmed = True
        self._searches.discard(way.search)
        for search in self._searches:
            search.cancel()
        if self._orphaned.is_set():
            self._orphaned = trio.Event()
        self.found.set()
        if old is not None:
            node.events.put(ParentClose(old, "this node has moved to another parent"))
            node._nursery.start_soon(node._leaving.linger, old)
        way.link.carry_messages()
        if HEAL in way.link.extensions:
            self._branch.meet_parent(way.view)
            # The places may be others since the request, and have been told to the old parent.
            self._branch.is_surprising = True
            node._note_surprise()
        node.events.put(ParentConnect(way.link))
        node._standby.note_family()
        way.task_status.started(way.link)

    def _part_from(self, way: _Way) -> None:
        """The link to the parent, or to who may have become it, or was it, is gone."""
        node = self._node
        del self._ways[way.link]
        node._roads.lose(way.link)
        node._leaving.note_parent_gone(way.link)
        self._ancestry.holds = any(not other.is_confirmed for other in self._ways.values())
        if way.link is not self.parent:
            node._standby.note_parent_gone()
            return
        before = self._ancestry.descent
        self.parent = None
        node._standby.note_parent_gone()
        self._branch.belief = None
        self._ancestry.lose_parent()
        if way.link.failure is not None:
            node.events.put(ParentError(way.link, way.link.failure))
        node.events.put(ParentClose(way.link, way.link.close_reason or ""))
        self._orphaned.set()
        self.found = trio.Event()
        node._after_change(before, is_news=False)
        if self._rejoins:
            node._standby.note_orphaned()

    def _begin_to_issue(self) -> None:
        """Be the one whose numbers all below this node pass on, as it may have been all along."""
        if not self._is_issuing:
            self._is_issuing = True
            self._plan_to_issue()

    def _plan_to_issue(self) -> None:
        # A little more often than signs of life are due, which are not needed then.
        self._node._timeline.after(0.9 * self._node._heartbeat.interval, self._issue_number)

    def _issue_number(self) -> None:
        self._is_issuing = self._ancestry.issues
        if not self._is_issuing:
            return  # there is a parent now that passes numbers on
        before = self._ancestry.descent
        self._ancestry.issue()
        self._node._after_change(before)
        self._plan_to_issue()

    def stand_on_top(self, *, is_news: bool) -> None:
        """Be the root of what is below, whoever was above.

        If it *is news* to the application, it is told: of the parent's close, or of the new path.
        """
        node = self._node
        for search in self._searches:
            search.cancel()
        old, self.parent = self.parent, None
        self._branch.belief = None
        before = self._ancestry.descent
        self._ancestry.become_root()
        if old is not None:
            node.events.put(ParentClose(old, "this node is the root"))
            old.end("this node is the root")
        node._after_change(before, is_news=is_news and old is None)
        self._begin_to_issue()
        node._pulls.begin()
