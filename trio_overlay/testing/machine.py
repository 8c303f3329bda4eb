"""What the state machines of all overlays share: a story told as it is lived through.

A machine for an overlay begins a story by `begin_story` in an ``initialize`` rule of its own, says
by `open_world` what world it happens to, and adds what only its nodes can do.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar, cast

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_overlay.testing.determinism import SteppedRun
from trio_overlay.testing.story import Step, Story
from trio_overlay.testing.world import SERVER, VirtualWorld

T = TypeVar("T")
WorldT = TypeVar("WorldT", bound=VirtualWorld)

pauses = st.integers(0, 20).map(lambda tenths: tenths / 10)
"""Seconds between two steps. A join takes about half of one, so steps often meet a join."""
picks = st.integers(0, 29)
"""Which of those that there are, counted round and round."""


class StoryMachine(RuleBasedStateMachine, Generic[WorldT]):
    """Tells a story of up to `max_nodes` nodes at a time, and lives through it as it tells.

    The nodes are real, and so is the server; the network and the clock are virtual. Rules are
    plain functions: each lets one and the same Trio run (`SteppedRun`) go on until its step is
    done. That is faster than living through the story anew for each step, and lets rules look
    at the nodes to decide what comes next.

    `check` of the world is called after each step. At the end of each story everything is healed
    and, when all is quiet, nothing may be kept for anybody; then all leave, and tasks, connections
    and the server's tables must be as before.

    In rules and invariants of your own read `world`, have it act with `tell` (a step of the
    story) or `call` (anything else, which then is not in the story). Give a subclass another
    world by `open_world`.
    """

    max_nodes = 30
    open_world: Callable[[Mapping[str, str]], WorldT]
    has_faults = True
    """Whether links are cut, nodes are frozen and the server crashes, too."""

    world: WorldT
    story: Story

    def __init__(self) -> None:
        super().__init__()
        self._run: SteppedRun[WorldT] | None = None
        self._count_names = 0

    # --- the story ------------------------------------------------------------------------

    def begin_story(self, settings: Mapping[str, object]) -> None:
        """Once upon a time there was a world with these *settings*; ``seed`` is one of them."""
        self.story = Story(settings)
        self.world = type(self).open_world(self.story.settings)
        # A cast, because mypy loses a world's Self on the way through the type variable.
        opened = cast("AbstractAsyncContextManager[WorldT]", self.world)
        self._run = SteppedRun(lambda: opened, seed=self.world.seed)
        self._run.start()

    @property
    def is_begun(self) -> bool:
        """Whether there is a `world` yet: Hypothesis asks for invariants before there is one."""
        return self._run is not None

    @property
    def names(self) -> list[str]:
        """Those who live now, oldest first."""
        return list(self.world.lives)

    @property
    def residents(self) -> list[str]:
        """Those beside `names` that can be cut off as well."""
        return []

    @property
    def those_who_freeze(self) -> list[str]:
        """Those who may fall silent."""
        return self.names

    def tell(self, who: str, verb: str, whom: str | None = None, *, pause: float = 0.0) -> None:
        """One more step of the story, *pause* seconds after now, done and checked."""
        at = round(max(self.world.age, self._last_at()) + pause, 3)
        step = Step(at, who, verb, whom)
        self.story.add(step)
        self.call(lambda world: world.play(step))

    def tell_newcomer(
        self, verb: str = "joins", whom: str | None = None, *, pause: float = 0.0
    ) -> None:
        """As `tell`, of somebody new, who gets the next name."""
        self._count_names += 1
        self.tell(f"n{self._count_names}", verb, whom, pause=pause)

    def call(self, command: Callable[[WorldT], Awaitable[T]]) -> T:
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
            self.tell_newcomer(pause=0.0 if index else pause)

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
        everybody = [*self.residents, *self.names]
        one, two = self.names[pick % len(self.names)], everybody[other % len(everybody)]
        verb = "regains" if self.world.is_cut(one, two) else "loses"
        self.tell(one, verb, two, pause=pause)

    @precondition(lambda self: self.has_faults and self.those_who_freeze)
    @rule(pause=pauses, pick=picks)
    def freeze_or_thaw(self, pause: float, pick: int) -> None:
        """A node falls silent, or is heard again."""
        names = self.those_who_freeze
        name = names[pick % len(names)]
        self.tell(name, "thaws" if self.world.is_frozen(name) else "freezes", pause=pause)

    @precondition(lambda self: self.has_faults)
    @rule(pause=pauses)
    def crash_or_restart_server(self, pause: float) -> None:
        """Nobody can join for a while, and those who are connected stay so."""
        is_running = self.world.signaling.is_running
        self.tell(SERVER, "crashes" if is_running else "restarts", pause=pause)

    @rule(seconds=st.integers(1, 60))
    def wait(self, seconds: int) -> None:
        """Nothing happens for a while."""
        self.tell("time", "passes", pause=float(seconds))

    @invariant()
    def holds(self) -> None:
        """`check` of the world, once more after whatever your own rules did."""
        if self.is_begun:
            self.world.check()

    def _joining(self) -> list[str]:
        return [name for name, life in self.world.lives.items() if life.join_ended_at is None]
