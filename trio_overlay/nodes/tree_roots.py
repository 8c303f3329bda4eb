"""A node that is registered as root: the active one, or one that stands by to take over.

One root is active at a time, which the server decides. The others are members of the tree like all
nodes. One that becomes active leaves its parent and keeps what is below it; one that is replaced
looks for a place below the new root, and keeps what is below it as well, all the time.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.protocol.bootstrap import Role, SignalFrame, Withdrawn
from trio_overlay.signaling.snapshots import Picture

if TYPE_CHECKING:
    from trio_overlay.nodes.tree import TreeNode

logger = logging.getLogger(__name__)


class Rootship:
    """What one node is to the server, as a root."""

    def __init__(self, node: TreeNode) -> None:
        self._node = node
        self.is_registered = False
        self.is_active = False
        self._count_others = 0
        self._registration = trio.CancelScope()
        self._below = trio.CancelScope()
        """Around the life of this node below another root, while it stands by."""

    async def live(
        self, secret: str, takeover: bool, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Be registered until this is cancelled or `resign` is called."""
        node = self._node
        has_begun = False
        self._registration = trio.CancelScope()
        with self._registration:
            async with (
                node._bootstrap.register(
                    secret, takeover=takeover, describe=self._describe
                ) as frames,
                open_background_nursery() as nursery,
            ):
                async for frame in frames:
                    match frame:
                        case Role(is_active, _, count_others):
                            self._count_others = count_others
                            if not (has_begun and is_active == self.is_active):
                                self._play(is_active, nursery, is_news=has_begun)
                            if not has_begun:
                                has_begun = True
                                task_status.started()
                        case SignalFrame() if self.is_active:
                            node._take_request(frame)
                        case Withdrawn(str() as origin, reason) if self.is_active:
                            node._take_withdrawal(origin, reason)
                        case _:
                            pass  # for a root that is no more; the new one will be asked

    def resign(self) -> bool:
        """Make way for another root, that the children can be handed over to; False if none is."""
        if not (self.is_active and self._count_others):
            return False
        self._registration.cancel()
        return True

    async def _describe(self, timeout: float) -> Picture:
        """The tree, for who asks the server."""
        tree = await self._node.snapshot_tree(timeout=timeout)
        return Picture([asdict(node) for node in tree.nodes.values()], tree.count_missing)

    def _play(self, is_active: bool, nursery: trio.Nursery, *, is_news: bool) -> None:
        self.is_active = is_active
        self._below.cancel()
        if is_active:
            logger.info("%s is the root", self._node.id)
            self._node._way_up.stand_on_top(is_news=is_news)
        else:
            logger.info("%s stands by as root", self._node.id)
            self._below = trio.CancelScope()
            nursery.start_soon(self._live_below, self._below)

    async def _live_below(self, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._node._way_up.live, True)
