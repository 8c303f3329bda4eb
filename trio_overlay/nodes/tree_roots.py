"""One root at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_overlay.nodes.tree import TreeNode


class Rootship:
    """What a node is to the server, as a root; there is one root at a time yet."""

    def __init__(self, node: TreeNode) -> None:
        self._node = node

    def resign(self) -> bool:
        """Make way for another root; False if there is none."""
        return False
