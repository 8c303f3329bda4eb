"""How a node leaves: its children are handed over before it goes, and nobody is without a parent.

The leaver tells its parent, whose place for it is free from then on, and its children, who ask the
parent for a place, over the leaver: it is their common neighbour and carries their signals. If the
parent is full, it passes them on to where the shallowest free place is, as anybody else.
"""

from __future__ import annotations

import logging
from collections.abc import KeysView, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING

import trio

from trio_overlay.channels.timeline import Appointment
from trio_overlay.errors import OutcomeError
from trio_overlay.nodes.tree_channel import TreeChannel
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.tree import ROADS, Leaving, RoadRequest, Wish
from trio_overlay.signaling.bootstrap import Connection

if TYPE_CHECKING:
    from trio_overlay.nodes.tree import TreeNode

logger = logging.getLogger(__name__)

LINGER_TIMEOUT = 1.0
"""Seconds for which a node that has moved still hears its old parent: what was under way comes."""
GO_TIMEOUT = 30.0
"""Seconds after which a child that said it leaves must have gone."""


class Leave:
    """The leaving of one node, and of its neighbours as far as it concerns the node."""

    def __init__(self, node: TreeNode) -> None:
        self._node = node
        self.has_begun = False
        self._leavers: dict[TreeChannel, Appointment] = {}
        self._left_behind: set[TreeChannel] = set()
        self._child_gone = trio.Event()

    @property
    def leavers(self) -> KeysView[TreeChannel]:
        """Children that hold no place any more, and hand over their own; a live view."""
        return self._leavers.keys()

    # --- this node leaves -----------------------------------------------------------------

    async def hand_over(self) -> None:
        """Have all children find other parents; returns when they have, or if none can."""
        if self.has_begun:
            return
        self.has_begun = True
        node = self._node
        parent = node.parent
        if not node.path or not self._those_who_can():
            return
        if parent is None and not node._rootship.resign():
            return  # the children are to wait for another root, or stay together without one
        carries = parent is not None and ROADS in parent.extensions
        if parent is not None and carries:
            parent.post(Leaving())
        node._branch.retire()
        for child in self._those_who_can():
            child.post(Leaving(carries))
        while self._those_who_can():
            self._child_gone = trio.Event()
            await self._child_gone.wait()

    def goes_on(self, link: TreeChannel, frame: RoadRequest) -> tuple[TreeChannel, Wish] | None:
        """Where a road that a child opens leads, while this node leaves."""
        parent = self._node.parent
        if not self.has_begun or parent is None or frame.wish is not Wish.PLACE:
            return None
        return (parent, Wish.PLACE) if self._node._children.get(link.id) is link else None

    def note_child(self, child: TreeChannel) -> None:
        """There is a new child, which was on the way in."""
        if self.has_begun and ROADS in child.extensions:
            child.post(Leaving(carries=self._node.parent is not None))

    def note_child_gone(self, child: TreeChannel) -> None:
        deadline = self._leavers.pop(child, None)
        if deadline is not None:
            deadline.cancel()
        self._child_gone.set()

    def note_parent_gone(self, parent: TreeChannel) -> None:
        self._left_behind.discard(parent)

    def _those_who_can(self) -> list[TreeChannel]:
        """The children that know how to find another parent before they leave this one."""
        return [child for child in self._node._children.values() if ROADS in child.extensions]

    # --- a neighbour leaves ---------------------------------------------------------------

    def take(self, link: TreeChannel, frame: Leaving) -> None:
        """The neighbour on *link* says that it is leaving."""
        node = self._node
        if link is node.parent:
            if link not in self._left_behind and not self.has_begun:
                self._left_behind.add(link)
                node._nursery.start_soon(self._leave_behind, link, frame.carries)
        elif node._children.get(link.id) is link and link not in self._leavers:
            reason = "it said that it was leaving, and has not left"
            self._leavers[link] = node._timeline.after(GO_TIMEOUT, partial(link.end, reason))
            node._carry_out_all(node._branch.lose(link.id))

    async def _leave_behind(self, parent: TreeChannel, carries: bool) -> None:
        """Find another parent while the old one is there; if nobody is found, it will be missed."""
        node = self._node

        def over_parent(more: Mapping[str, JSON]) -> AbstractAsyncContextManager[Connection]:
            return node._roads.connect(parent, Wish.PLACE, more)

        by_server = node._way_up.by_server
        for connect in (over_parent, by_server) if carries else (by_server,):
            try:
                await node._way_up.move_to(connect)
                return
            except OutcomeError as error:
                logger.info("%s finds no other parent: %s", node.id, error)
            if node.parent is not parent:
                return

    async def linger(self, old: TreeChannel) -> None:
        """Part from a former parent, when what it was about to say has come.

        If it carried our signals, the last that comes over it is the new parent's word that it has
        taken us: whatever that sends from then on, it sends to us itself.
        """
        with trio.move_on_after(LINGER_TIMEOUT):
            await self._node._roads.until_quiet(old)
        old.end("this node has moved to another parent")
