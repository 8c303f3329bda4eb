"""What happens to the neighbours of a tree node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from trio_overlay.nodes.tree_channel import TreeChannel


@dataclass(frozen=True, slots=True)
class ParentConnect:
    """The node has a parent now."""

    name: ClassVar[str] = "parent-connect"
    channel: TreeChannel


@dataclass(frozen=True, slots=True)
class ParentClose:
    """The node has no parent any more; it keeps its children, and takes no new ones meanwhile."""

    name: ClassVar[str] = "parent-close"
    channel: TreeChannel
    reason: str


@dataclass(frozen=True, slots=True)
class ParentError:
    """The parent was lost, or broke the protocol; `ParentClose` follows."""

    name: ClassVar[str] = "parent-error"
    channel: TreeChannel
    error: Exception


@dataclass(frozen=True, slots=True)
class ChildConnect:
    """The node has one child more."""

    name: ClassVar[str] = "child-connect"
    channel: TreeChannel


@dataclass(frozen=True, slots=True)
class ChildClose:
    """A child is gone; one that never connected is not reported."""

    name: ClassVar[str] = "child-close"
    channel: TreeChannel
    reason: str


@dataclass(frozen=True, slots=True)
class ChildError:
    """A child was lost, or broke the protocol; `ChildClose` follows."""

    name: ClassVar[str] = "child-error"
    channel: TreeChannel
    error: Exception


@dataclass(frozen=True, slots=True)
class PathChange:
    """The parent stands elsewhere in the tree, with all that is below it, or nowhere for now; or
    this node, which stood by and has no parent, is the root.
    """

    name: ClassVar[str] = "path-change"
    path: tuple[str, ...]
    """The ids from the root down to this node, itself included; empty if it is cut off."""


Event: TypeAlias = (
    ParentConnect | ParentClose | ParentError | ChildConnect | ChildClose | ChildError | PathChange
)
