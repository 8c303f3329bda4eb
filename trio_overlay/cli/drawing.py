"""Trees of nodes as they are drawn in a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rich.console import Group
from rich.text import Text
from rich.tree import Tree

INDENT = 4
"""Columns that Rich takes for each level of a tree."""


class Twig(NamedTuple):
    """One node of a drawing."""

    name: str
    parent: str | None
    """The name of the node that it hangs from; None if it stands on top."""
    label: Text


def draw_trees(twigs: Iterable[Twig], width: int) -> Group | None:
    """What *twigs* make, parents given before their children, siblings in the order given.

    None if that takes more than *width* columns.
    """
    tops: list[Tree] = []
    drawn: dict[str, tuple[Tree, int]] = {}
    for name, parent, label in twigs:
        if parent is None:
            tree, depth = Tree(label), 0
            tops.append(tree)
        else:
            above, depth = drawn[parent]
            tree, depth = above.add(label), depth + 1
        if INDENT * depth + label.cell_len > width:
            return None
        drawn[name] = tree, depth
    return Group(*tops)
