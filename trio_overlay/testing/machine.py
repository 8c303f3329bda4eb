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
short_pauses = st.integers(0, 12).map(lambda twentieths: twentieths / 20)
"""A handshake takes half a second, so that steps often meet one on its way."""
second_thoughts = st.none() | short_pauses
"""Seconds after which somebody gives up what it has begun; None for never."""
picks = st.integers(0, 29)
"""Which of those that there are, counted round and round."""
groups = st.lists(picks, min_size=1, max_size=6)
"""Picks of several."""


class StoryMachine(RuleBasedStateMachine, Generic[WorldT]):
    """Tells a story of up to `max_nodes` nodes at a time, and lives through it as it tells.

    Nodes join, give up joining or what else they try, leave and crash. If there are to be faults,
    links and whole groups are cut, also in one direction only, nodes, those that were there before
    them and the server fall silent, the server crashes, signals are lost, late and out of order.

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
    """Whether the network and the server fail, too."""

    world: WorldT
    story: Story

    def __init__(self) -> None:
        super().__init__()
        self._run: SteppedRun[WorldT] | None = None
        self._count_names = 0

    # --- the story ------------------------------------------------------------------------

    def begin_story(
        self, settings: Mapping[str, object], *, newcomers: int = 0, pause: float = 0.0
    ) -> None:
        """Once upon a time there was a world with these *settings*; ``seed`` is one of them.

        So many *newcomers* came, all at once, and *pause* seconds passed.
        """
        self.story = Story(settings)
        self.world = type(self).open_world(self.story.settings)
        # A cast, because mypy loses a world's Self on the way through the type variable.
        opened = cast("AbstractAsyncContextManager[WorldT]", self.world)
        self._run = SteppedRun(lambda: opened, seed=self.world.seed)
        self._run.start()
        for _ in range(min(newcomers, self.max_nodes)):
            self.tell_newcomer()
        if pause:
            self.tell("time", "passes", pause=pause)

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
        """Those beside `names` that can be cut off and fall silent as well: the server."""
        return [SERVER]

    @property
    def everybody(self) -> list[str]:
        """Those who can be cut off and fall silent: `names`, and then the `residents`."""
        return [*self.names, *self.residents]

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

    def tell_second_thoughts(self, who: str, after: float | None) -> None:
        """Give up what was told of *who* last, *after* so many seconds; not if that is None.

        What is begun is over within a second or so. If only `think_better` gave it up, few stories
        would have that in the middle of it.
        """
        if after is not None and who in self.world.list_busy():
            self.tell(who, "gives_up", pause=after)

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
    @rule(pause=short_pauses, pick=picks)
    def withdraw(self, pause: float, pick: int) -> None:
        """A node that is joining thinks better of it."""
        joining = self._joining()
        self.tell(joining[pick % len(joining)], "withdraws", pause=pause)

    @precondition(lambda self: len(self.names) < self.max_nodes)
    @rule(pause=pauses, after=short_pauses)
    def join_and_withdraw(self, pause: float, after: float) -> None:
        """A node comes, and thinks better of it on its way in.

        With `join` and `withdraw` alone few meet each other, of all that may happen between them.
        """
        self.tell_newcomer(pause=pause)
        name = f"n{self._count_names}"
        if name in self.world.lives:
            self.tell(name, "withdraws", pause=after)

    @precondition(lambda self: self.world.list_busy())
    @rule(pause=short_pauses, pick=picks)
    def think_better(self, pause: float, pick: int) -> None:
        """Somebody gives up what it is about to do."""
        busy = self.world.list_busy()
        self.tell(busy[pick % len(busy)], "gives_up", pause=pause)

    @precondition(lambda self: self.has_faults and self.names)
    @rule(pause=pauses, pick=picks, other=picks)
    def cut_or_heal(self, pause: float, pick: int, other: int) -> None:
        """Two nodes lose each other, or find each other again."""
        everybody = self.everybody
        one, two = self.names[pick % len(self.names)], everybody[other % len(everybody)]
        verb = "regains" if self.world.is_cut(one, two) else "loses"
        self.tell(one, verb, two, pause=pause)

    @precondition(lambda self: self.has_faults and self.names)
    @rule(pause=pauses, some=groups, residents=st.integers(0, 3))
    def cut_group(self, pause: float, some: list[int], residents: int) -> None:
        """Some lose all others; each resident is in one of the two halves, as its bit says."""
        group = self._group(some)
        others = [name for name in self.names if name not in group]
        for index, resident in enumerate(self.residents):
            (group if residents >> index & 1 else others).append(resident)
        if others:
            self.tell(",".join(group), "loses", ",".join(others), pause=pause)

    @precondition(lambda self: self.has_faults and self.names)
    @rule(pause=pauses, some=groups, pick=picks, is_mute=st.booleans())
    def cut_one_way(self, pause: float, some: list[int], pick: int, is_mute: bool) -> None:
        """Some hear nothing of somebody any more, or are not heard by it."""
        everybody = self.everybody
        one = everybody[pick % len(everybody)]
        group = [name for name in self._group(some) if name != one]
        if group:
            who, whom = (one, ",".join(group)) if is_mute else (",".join(group), one)
            self.tell(who, "cannot_hear", whom, pause=pause)

    @precondition(lambda self: self.world.list_cuts())
    @rule(pause=pauses, pick=picks)
    def heal(self, pause: float, pick: int) -> None:
        """What was cut is whole again."""
        cuts = self.world.list_cuts()
        who, verb, whom = cuts[pick % len(cuts)]
        self.tell(who, verb, whom, pause=pause)

    @precondition(lambda self: self.has_faults and self.everybody)
    @rule(pause=pauses, pick=picks)
    def freeze_or_thaw(self, pause: float, pick: int) -> None:
        """A node falls silent, or is heard again."""
        everybody = self.everybody
        name = everybody[pick % len(everybody)]
        self.tell(name, "thaws" if self.world.is_frozen(name) else "freezes", pause=pause)

    @precondition(lambda self: self.has_faults)
    @rule(
        pause=pauses,
        verb=st.sampled_from(["get_lost", "get_late"]),
        percentage=st.sampled_from([10, 50, 100]),
    )
    def trouble_signals_or_not(self, pause: float, verb: str, percentage: int) -> None:
        """Signals are lost, or late and out of order; or all get through again."""
        if self.world.has_good_signals:
            self.tell("signals", verb, f"{percentage}%", pause=pause)
        else:
            self.tell("signals", "get_through", pause=pause)

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

    def _group(self, some: list[int]) -> list[str]:
        """Those that were picked, each once."""
        return list(dict.fromkeys(self.names[pick % len(self.names)] for pick in some))

    def _joining(self) -> list[str]:
        return [name for name, life in self.world.lives.items() if life.join_ended_at is None]
