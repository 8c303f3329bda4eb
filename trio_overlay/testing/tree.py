"""The ready Hypothesis state machine for the tree: joins, leaves, crashes, cuts, and more.

Take it as it is, in a test module::

    from trio_overlay.testing.tree import TreeMachine

    TestTree = TreeMachine.TestCase

or extend it with rules and invariants of your own, and `TreeWorld` with what your nodes do. A
failure is shrunk, and prints the story that leads to it, for `replay`.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trio_overlay.testing.determinism import SteppedRun
from trio_overlay.testing.story import Step, Story
from trio_overlay.testing.tree_world import TreeWorld
from trio_overlay.testing.world import SERVER

T = TypeVar("T")

pauses = st.integers(0, 20).map(lambda tenths: tenths / 10)
"""Seconds between two steps. A join takes about half of one, so steps often meet a join."""
picks = st.integers(0, 29)
"""Which of those that there are, counted round and round."""


class TreeMachine(RuleBasedStateMachine):
    """Tells a story of up to `max_nodes` nodes at a time, and lives through it as it tells.

    The nodes are real, and so is the server; the network and the clock are virtual. Rules are
    plain functions: each lets one and the same Trio run (`SteppedRun`) go on until its step is
    done. That is faster than living through the story anew for each step, and lets rules look
    at the nodes to decide what comes next.

    What holds after each step is `TreeWorld.check`: places, cycles, joins that end, no connection
    left by who has ended. At the end of each story everything is healed and, when all is quiet,
    nothing may be kept for anybody; then all leave, and tasks, connections and the server's
    tables must be as before.

    In rules and invariants of your own read `world`, have it act with `tell` (a step of the
    story) or `call` (anything else, which then is not in the story). Give a subclass another
    world by `open_world`.
    """

    max_nodes = 30
    open_world: Callable[[Mapping[str, str]], TreeWorld] = TreeWorld
    has_faults = True
    """Whether links are cut, nodes are frozen and the server crashes, too."""

    world: TreeWorld
    story: Story

    def __init__(self) -> None:
        super().__init__()
        self._run: SteppedRun[TreeWorld] | None = None
        self._count_names = 0

    # --- the story ------------------------------------------------------------------------

    @initialize(seed=st.integers(0, 999), max_degree=st.integers(1, 4))
    def begin(self, seed: int, max_degree: int) -> None:
        """Once upon a time there was a root."""
        self.story = Story({"seed": seed, "max_degree": max_degree})
        self.world = type(self).open_world(self.story.settings)
        self._run = SteppedRun(lambda: self.world, seed=seed)
        self._run.start()

    @property
    def is_begun(self) -> bool:
        """Whether there is a `world` yet: Hypothesis asks for invariants before there is one."""
        return self._run is not None

    @property
    def names(self) -> list[str]:
        """Those who live now, oldest first."""
        return list(self.world.lives)

    def tell(self, who: str, verb: str, whom: str | None = None, *, pause: float = 0.0) -> None:
        """One more step of the story, *pause* seconds after now, done and checked."""
        at = round(max(self.world.age, self._last_at()) + pause, 3)
        step = Step(at, who, verb, whom)
        self.story.add(step)
        self.call(lambda world: world.play(step))

    def call(self, command: Callable[[TreeWorld], Awaitable[T]]) -> T:
        """Let the run go on until *command*, given the world, has returned."""
        assert self._run is not None
        return self._run.call(command)

    def teardown(self) -> None:
        """Finish the story, if it got so far without a failure; end the run."""
        if self._run is None:
            return
        note(f"The story, for trio_overlay.testing.replay:\n{self.story}")
        try:
            # Hypothesis calls this while a failure is on its way out, too.
            if sys.exc_info()[0] is None:
                self.call(lambda world: world.finish())
        finally:
            self._run.close()

    def _last_at(self) -> float:
        return self.story.steps[-1].at if self.story.steps else 0.0

    # --- rules ----------------------------------------------------------------------------

    @rule(pause=pauses, count=st.integers(1, 6))
    def join(self, pause: float, count: int) -> None:
        """New nodes come, all at once."""
        for index in range(min(count, self.max_nodes - len(self.names))):
            self._count_names += 1
            self.tell(f"n{self._count_names}", "joins", pause=0.0 if index else pause)

    @precondition(lambda self: self.names)
    @rule(pause=pauses, pick=picks)
    def leave(self, pause: float, pick: int) -> None:
        """A node goes, as it should."""
        self.tell(self.names[pick % len(self.names)], "leaves", pause=pause)

    @precondition(lambda self: self.names)
    @rule(pause=pauses, pick=picks)
    def crash(self, pause: float, pick: int) -> None:
        """A node is gone without a word."""
        self.tell(self.names[pick % len(self.names)], "crashes", pause=pause)

    @precondition(lambda self: self._joining())
    @rule(pause=st.integers(0, 10).map(lambda n: n / 20), pick=picks)
    def withdraw(self, pause: float, pick: int) -> None:
        """A node that is joining thinks better of it."""
        joining = self._joining()
        self.tell(joining[pick % len(joining)], "withdraws", pause=pause)

    @precondition(lambda self: self.has_faults and self.names)
    @rule(pause=pauses, pick=picks, other=picks)
    def cut_or_heal(self, pause: float, pick: int, other: int) -> None:
        """Two nodes lose each other, or find each other again."""
        everybody = ["root", *self.names]
        one, two = self.names[pick % len(self.names)], everybody[other % len(everybody)]
        verb = "regains" if self.world.is_cut(one, two) else "loses"
        self.tell(one, verb, two, pause=pause)

    @precondition(lambda self: self.has_faults and self.names)
    @rule(pause=pauses, pick=picks)
    def freeze_or_thaw(self, pause: float, pick: int) -> None:
        """A node falls silent, or is heard again."""
        name = self.names[pick % len(self.names)]
        self.tell(name, "thaws" if name in self.world.network.frozen else "freezes", pause=pause)

    @precondition(lambda self: self.has_faults)
    @rule(pause=pauses)
    def crash_or_restart_server(self, pause: float) -> None:
        """Nobody can join for a while, and those in the tree stay in it."""
        is_running = self.world.signaling.is_running
        self.tell(SERVER, "crashes" if is_running else "restarts", pause=pause)

    @rule(seconds=st.integers(1, 60))
    def wait(self, seconds: int) -> None:
        """Nothing happens for a while."""
        self.tell("time", "passes", pause=float(seconds))

    @invariant()
    def holds(self) -> None:
        """`TreeWorld.check`, once more after whatever your own rules did."""
        if self.is_begun:
            self.world.check()

    def _joining(self) -> list[str]:
        return [name for name, life in self.world.lives.items() if life.join_ended_at is None]
