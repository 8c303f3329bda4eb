"""The ready Hypothesis state machine for the tree: joins, leaves, crashes, cuts, and more.

Take it as it is, in a test module::

    from trio_overlay.testing.tree import TreeMachine

    TestTree = TreeMachine.TestCase

or extend it with rules and invariants of your own, and `TreeWorld` with what your nodes do. A
failure is shrunk, and prints the story that leads to it, for `replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from trio_overlay.testing.machine import StoryMachine, pauses, picks
from trio_overlay.testing.tree_world import BECOMES_ROOT, ROOT, TAKES_OVER, TreeWorld
from trio_overlay.testing.world import SERVER

MAX_ROOTS = 3
"""So many live at a time, in stories that are told here."""


class TreeMachine(StoryMachine[TreeWorld]):
    """Tells stories of a tree, with all that can go wrong in those of a `StoryMachine`.

    Nodes say something to each other and to all. If there are to be faults, the root leaves and
    crashes, too; there may be several, that stand by or take over.

    What holds after each step is `TreeWorld.check`: places, no cycle of confirmed links, joins that
    end, no connection left by who has ended, no message twice or out of order.
    """

    open_world: Callable[[Mapping[str, str]], TreeWorld] = TreeWorld

    @initialize(seed=st.integers(0, 999), max_degree=st.integers(1, 4), count=st.integers(0, 8))
    def begin(self, seed: int, max_degree: int, count: int) -> None:
        """Once upon a time there was a root, and some who had joined it."""
        self.begin_story({"seed": seed, "max_degree": max_degree}, newcomers=count)

    @rule(pause=pauses, pick=picks)
    def broadcast(self, pause: float, pick: int) -> None:
        """Somebody says something to all."""
        everybody = [ROOT, *self.names]
        self.tell(everybody[pick % len(everybody)], "broadcasts", pause=pause)

    @precondition(lambda self: self.names)
    @rule(pause=pauses, pick=picks, other=picks)
    def write(self, pause: float, pick: int, other: int) -> None:
        """Somebody says something to somebody."""
        everybody = [ROOT, *self.names]
        who, whom = everybody[pick % len(everybody)], everybody[other % len(everybody)]
        self.tell(who, "writes", whom, pause=pause)

    @precondition(lambda self: self.has_faults and self._count_roots() < MAX_ROOTS)
    @rule(pause=pauses, verb=st.sampled_from([BECOMES_ROOT, BECOMES_ROOT, TAKES_OVER]))
    def bring_a_root(self, pause: float, verb: str) -> None:
        """Another root comes: it stands by, or replaces the one that there is."""
        self.tell_newcomer(verb, pause=pause)

    @precondition(lambda self: self.has_faults and self._active_root() is not None)
    @rule(pause=pauses, verb=st.sampled_from(["leaves", "crashes", "crashes"]))
    def end_the_root(self, pause: float, verb: str) -> None:
        """The root goes, as it should or without a word; perhaps there is another."""
        root = self._active_root()
        assert root is not None
        self.tell(root, verb, pause=pause)

    @property
    def names(self) -> list[str]:
        """Those who live now, oldest first, without the first root."""
        return [name for name in super().names if name != ROOT]

    @property
    def residents(self) -> list[str]:
        return [ROOT, SERVER]

    def _count_roots(self) -> int:
        """How many live as roots, the active one and those that stand by."""
        lives = self.world.lives.values() if self.is_begun else ()
        return sum(life.verb != "joins" for life in lives)

    def _active_root(self) -> str | None:
        """Who is the root, of those who believe it the one that has lived for longest."""
        nodes = self.world.nodes if self.is_begun else {}
        return next((name for name, node in nodes.items() if node.is_root), None)
