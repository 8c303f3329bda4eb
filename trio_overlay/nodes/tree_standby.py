"""Whom a node turns to when its parent is gone, before it asks the server.

With the parent dead there is nobody left to signal over, so a connection must be there before. Each
child has one: the oldest child of a node, its *heir*, to the node's own parent, and its other
children to the heir. That is one connection more for each node; the most that one node holds beside
those to its neighbours are one for each of its siblings and one for each of its children.

The parent introduces them, as their common neighbour, some seconds after a child has come.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import trio

from trio_overlay.errors import OutcomeError
from trio_overlay.nodes.heartbeat import Heartbeat
from trio_overlay.nodes.tree_channel import TreeChannel
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.tree import (
    ROADS,
    RoadEnd,
    RoadRequest,
    RoadSignal,
    StandBy,
    TreeOnly,
    Wish,
)
from trio_overlay.signaling.bootstrap import Connection

if TYPE_CHECKING:
    from trio_overlay.nodes.tree import TreeNode

logger = logging.getLogger(__name__)

INTRODUCTION_DELAY = 2.0
"""Seconds that a parent waits until it introduces a new child: many come and go at once."""
RETRY_DELAY = 10.0
"""Seconds before a child asks to be introduced again."""
ASK_AGAIN_DELAY, MAX_ASK_AGAIN_DELAY = 0.3, 5.0
"""Seconds before an orphan asks its standby again; each time twice as long, unless that says that
it has a place itself now."""
HEAD_START = 1.0
"""Seconds that a node asks its standby before it asks the server as well."""
MAX_HELD = 64
"""Standby connections that others may have to this node."""
SLOWER = 5
"""How much rarer signs of life are than between parent and child: nothing waits for them here."""


class Standby:
    """The standby connections of one node: its own, and those that others have to it."""

    def __init__(self, node: TreeNode, is_wanted: bool) -> None:
        self._node = node
        self._is_wanted = is_wanted
        self._own: TreeChannel | None = None
        self._held: set[TreeChannel] = set()
        self._accepting = 0
        self._told: dict[TreeChannel, TreeChannel] = {}
        """By child, whom it was introduced to last."""
        self._is_about_to_introduce = False
        self._is_searching = False
        self._may_ask = trio.Event()
        """Set when a search need not wait any longer before it asks again."""
        self._refused: dict[TreeChannel, None] = {}
        """Those that got no place because this node had none itself, in that order; they are told
        when it has."""
        self._asking: set[TreeChannel] = set()
        """Parents that are introducing this node."""
        self._parent_gone = trio.Event()
        """Set when a parent is gone; a new one then."""

    @property
    def count_links(self) -> int:
        """The standby connections that end here."""
        return len(self._held) + (self._own is not None)

    @property
    def is_there(self) -> bool:
        """Whether this node has somebody to turn to."""
        return self._own is not None and self._own.is_open

    # --- the parent introduces ------------------------------------------------------------

    def note_family(self) -> None:
        """The children, or the parent, are others than before."""
        if self._node._children and not self._is_about_to_introduce:
            self._is_about_to_introduce = True
            delay = INTRODUCTION_DELAY * (1 + self._node._rng.random())
            self._node._timeline.after(delay, self._introduce)

    def _introduce(self) -> None:
        self._is_about_to_introduce = False
        children = self._node._children.values()
        self._told = {child: whom for child, whom in self._told.items() if child in children}
        for child in children:
            target = self._target_of(child)
            if target is not None and self._told.get(child) is not target:
                self._told[child] = target
                child.post(StandBy())

    def _target_of(self, child: TreeChannel) -> TreeChannel | None:
        """Whom *child* is to turn to when this node is gone."""
        if ROADS not in child.extensions:
            return None
        leavers = self._node._leaving.leavers
        heir = next(
            (
                each
                for each in self._node._children.values()
                if ROADS in each.extensions and each not in leavers
            ),
            None,
        )
        if child is not heir:
            return heir
        parent = self._node.parent
        return parent if parent is not None and ROADS in parent.extensions else None

    def goes_on(self, link: TreeChannel, frame: RoadRequest) -> tuple[TreeChannel, Wish] | None:
        """Where the road leads that a child opens to be introduced."""
        if frame.wish is not Wish.STANDBY or self._node._children.get(link.id) is not link:
            return None
        target = self._target_of(link)
        return None if target is None else (target, Wish.STAND_BY)

    # --- the child is introduced ----------------------------------------------------------

    def be_introduced(self, parent: TreeChannel) -> None:
        """The parent knows somebody to turn to when it is gone."""
        if self._is_wanted and parent not in self._asking:
            self._asking.add(parent)
            self._node._nursery.start_soon(self._have_a_standby, parent)

    async def _have_a_standby(self, parent: TreeChannel) -> None:
        node = self._node
        while True:
            try:
                async with node._roads.connect(parent, Wish.STANDBY, {}) as connection:
                    self._asking.discard(parent)
                    await self._live_with_own(self._link_over(connection))
            except OutcomeError as error:
                logger.info("%s was not introduced: %s", node.id, error)
                self._asking.discard(parent)
            await self._wait_before_asking_again(parent)
            if self._own is not None or parent in self._asking or parent is not node.parent:
                return  # it was introduced to somebody else, or is about to be
            self._asking.add(parent)

    async def _wait_before_asking_again(self, parent: TreeChannel) -> None:
        """Wait for some seconds, or until this is the *parent* no more."""
        if parent is not self._node.parent:
            return
        with trio.move_on_after(RETRY_DELAY * (0.5 + self._node._rng.random())):
            while parent is self._node.parent:
                await self._parent_gone.wait()

    def note_parent_gone(self) -> None:
        """A parent is gone, and introduces nobody any more."""
        self._parent_gone.set()
        self._parent_gone = trio.Event()

    async def _live_with_own(self, link: TreeChannel) -> None:
        if self._own is not None:
            self._own.end("another stands by")
        self._own = link
        try:
            await link.run()
        finally:
            if self._own is link:
                self._own = None
            self._node._roads.lose(link)

    def take_request(self, link: TreeChannel, frame: RoadRequest) -> None:
        """A neighbour introduces somebody who would turn to this node one day."""
        if self._accepting + len(self._held) >= MAX_HELD:
            link.post(RoadEnd(frame.road, "too many turn to this node already"))
        else:
            self._accepting += 1
            self._node._nursery.start_soon(self._stand_by, link, frame)

    async def _stand_by(self, link: TreeChannel, frame: RoadRequest) -> None:
        is_accepting = True
        try:
            async with self._node._roads.accept(link, frame) as connection:
                held = self._link_over(connection)
                self._accepting -= 1
                is_accepting = False
                self._held.add(held)
                try:
                    await held.run()
                finally:
                    self._held.discard(held)
                    self._refused.pop(held, None)
                    self._node._roads.lose(held)
        except OutcomeError as error:
            logger.info("%s did not connect: %s", frame.road, error)
        finally:
            self._accepting -= is_accepting

    def note_refused(self, link: TreeChannel) -> None:
        """Who asked on *link* got no place here, for this node has none."""
        if link in self._held:
            self._refused[link] = None

    def note_place(self) -> None:
        """This node has a place in the tree again."""
        for link in self._refused:
            link.post(StandBy())
        self._refused.clear()

    # --- the parent is gone ---------------------------------------------------------------

    def note_orphaned(self) -> None:
        self._may_ask.set()
        if self.is_there and not self._is_searching:
            self._is_searching = True
            self._node._nursery.start_soon(self._search)

    async def _search(self) -> None:
        """Ask for a place until there is one, or nobody to ask; the server is asked meanwhile."""
        node = self._node
        delay = ASK_AGAIN_DELAY
        try:
            while node.parent is None and not node.is_root:
                link = self._own
                if link is None or not link.is_open:
                    return
                self._may_ask = trio.Event()

                def over_standby(
                    more: Mapping[str, JSON], link: TreeChannel = link
                ) -> AbstractAsyncContextManager[Connection]:
                    return node._roads.connect(link, Wish.PLACE, more)

                try:
                    await node._way_up.move_to(over_standby)
                except OutcomeError as error:
                    logger.info("%s got no place over its standby: %s", node.id, error)
                    with trio.move_on_after(delay * (0.5 + node._rng.random())) as waiting:
                        await self._may_ask.wait()
                    delay = (
                        min(2 * delay, MAX_ASK_AGAIN_DELAY)
                        if waiting.cancelled_caught
                        else ASK_AGAIN_DELAY
                    )
        finally:
            self._is_searching = False

    # --- links ----------------------------------------------------------------------------

    def _link_over(self, connection: Connection) -> TreeChannel:
        node = self._node
        pace = node._heartbeat
        return node._channel_to(  # no neighbour: it carries no messages
            connection,
            is_parent=False,
            on_frame=self._take_frame,
            heartbeat=Heartbeat(SLOWER * pace.interval, SLOWER * pace.timeout),
        )

    def _take_frame(self, link: TreeChannel, frame: TreeOnly) -> None:
        match frame:
            case RoadRequest(wish=Wish.PLACE) | RoadSignal() | RoadEnd():
                self._node._roads.take(link, frame)
            case StandBy() if link is self._own:
                self._may_ask.set()
            case _:
                pass
