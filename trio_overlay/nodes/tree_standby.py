"""Whom a node can turn to when its parent is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_overlay.nodes.tree_channel import TreeChannel
from trio_overlay.protocol.tree import RoadRequest, Wish

if TYPE_CHECKING:
    from trio_overlay.nodes.tree import TreeNode


class Standby:
    """The standby connections of one node; there are none yet."""

    def __init__(self, node: TreeNode) -> None:
        self._node = node

    def goes_on(self, *_: object) -> tuple[TreeChannel, Wish] | None:
        return None

    def take_request(self, _link: TreeChannel, _frame: RoadRequest) -> None: ...

    def be_introduced(self, _parent: TreeChannel) -> None: ...

    def note_children(self) -> None: ...
