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
from trio_overlay.testing.tree_world import ROOT, TreeWorld


class TreeMachine(StoryMachine[TreeWorld]):
    """Tells stories of a tree: see `StoryMachine`.

    What holds after each step is `TreeWorld.check`: places, cycles, joins that end, no connection
    left by who has ended.
    """

    open_world: Callable[[Mapping[str, str]], TreeWorld] = TreeWorld

    @initialize(seed=st.integers(0, 999), max_degree=st.integers(1, 4))
    def begin(self, seed: int, max_degree: int) -> None:
        """Once upon a time there was a root."""
        self.begin_story({"seed": seed, "max_degree": max_degree})

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

    @property
    def residents(self) -> list[str]:
        return [ROOT]
