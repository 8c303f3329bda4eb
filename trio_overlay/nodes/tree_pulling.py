"""How leaves are pulled up into holes that nobody else fills: see protocol/pulling.py.

The root's wish goes down to the deepest leaves. One that is meant asks the root for a place, over
its parents, and moves if what it finds is higher than where it stands; else it stays.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from trio_overlay.channels.timeline import Appointment
from trio_overlay.errors import OutcomeError
from trio_overlay.nodes.tree_channel import TreeChannel
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.pulling import Pull, Pulling, share_out
from trio_overlay.protocol.tree import ROADS, PullUp, RoadRequest, Wish
from trio_overlay.signaling.bootstrap import Connection

if TYPE_CHECKING:
    from trio_overlay.nodes.tree import TreeNode

logger = logging.getLogger(__name__)

PULL_INTERVAL = 1.0
"""Seconds from one round of the root's pulling to the next."""


class Pulls:
    """The pulling at one node: as the root, as one between, as the leaf."""

    def __init__(self, node: TreeNode) -> None:
        self._node = node
        self._pulling = Pulling()
        self._is_climbing = False
        self._next_round: Appointment | None = None

    @property
    def is_quiet(self) -> bool:
        """Whether, at the root, there are no holes that leaves are to be pulled up to."""
        return not self._pulling.is_expecting

    def begin(self) -> None:
        """Be the root that pulls, for as long as this node is the root."""
        if self._next_round is not None:
            self._next_round.cancel()
        self._pulling = Pulling()
        self._plan_round()

    def _plan_round(self) -> None:
        self._next_round = self._node._timeline.after(PULL_INTERVAL, self._pull)

    def _pull(self) -> None:
        node = self._node
        pull = self._pulling.next_round(node._branch.view, node.max_degree)
        if pull is not None and not self._pass_on(pull):
            self._pulling.note_nobody_asked()
        if node._rootship.is_active:
            self._plan_round()

    def take(self, parent: TreeChannel, pull: Pull) -> None:
        """The *parent* passes on a wish of the root's."""
        node = self._node
        if not node.path or node._leaving.has_begun:
            return
        if node._branch.children:
            self._pass_on(pull)
        elif (
            not (node._branch.applicants or node._way_up.is_searched or self._is_climbing)
            and len(node.path) > pull.depth
            and ROADS in parent.extensions
        ):
            self._is_climbing = True
            node._nursery.start_soon(self._climb, parent)

    def goes_on(self, link: TreeChannel, frame: RoadRequest) -> tuple[TreeChannel, Wish] | None:
        """Where the road of a leaf that was pulled leads, if this is not the root."""
        parent = self._node.parent
        if frame.wish is not Wish.HIGHER or parent is None or ROADS not in parent.extensions:
            return None
        return (parent, Wish.HIGHER) if self._node._children.get(link.id) is link else None

    def note_application(self) -> None:
        """At the root: a leaf has come."""
        self._pulling.note_application()

    def _pass_on(self, pull: Pull) -> bool:
        """Ask the children for leaves below them; whether there was one to ask."""
        node = self._node
        views = {
            child: view
            for child, view in node._branch.views.items()
            if ROADS in node._children[child].extensions
        }
        shares = share_out(pull, len(node.path) - 1, views, node.max_degree)
        for child, count in shares.items():
            node._children[child].post(PullUp(Pull(pull.depth, count)))
        return bool(shares)

    async def _climb(self, parent: TreeChannel) -> None:
        node = self._node

        def over_parent(more: Mapping[str, JSON]) -> AbstractAsyncContextManager[Connection]:
            return node._roads.connect(parent, Wish.HIGHER, more)

        try:
            await node._way_up.move_to(over_parent, only_higher=True)
        except OutcomeError as error:
            logger.debug("%s stays where it is: %s", node.id, error)
        finally:
            self._is_climbing = False
