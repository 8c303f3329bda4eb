"""The ready Hypothesis state machine for neighbours that signal for each other.

Take it as it is, in a test module::

    from trio_overlay.testing.neighbours import NeighboursMachine

    TestNeighbours = NeighboursMachine.TestCase

or extend it as `TreeMachine` is extended in docs/testing.md, and `NeighboursWorld` with what your
nodes do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from trio_overlay.testing.arcs import ArcsMachine
from trio_overlay.testing.arcs_world import GATE
from trio_overlay.testing.machine import picks, second_thoughts, short_pauses
from trio_overlay.testing.neighbours_world import NeighboursWorld


class NeighboursMachine(ArcsMachine[NeighboursWorld]):
    """Tells stories of arcs that are opened in all ways, dropped, and given up half way.

    What holds after each step is `NeighboursWorld.check`; once all is quiet, both ends of each
    arc know of it, and nobody keeps anything for an arc that there is not.
    """

    open_world: Callable[[Mapping[str, str]], NeighboursWorld] = NeighboursWorld

    @initialize(
        seed=st.integers(0, 999),
        loss=st.sampled_from([0, 0, 0.05, 0.3]),
        count=st.integers(0, 5),
    )
    def begin(self, seed: int, loss: float, count: int) -> None:
        """Once upon a time there was a gate, and some who knew each other by it."""
        self.begin_arcs({"seed": seed, "loss": loss}, count)

    @precondition(lambda self: self.names)
    @rule(pause=short_pauses, pick=picks, other=picks, given_up_after=second_thoughts)
    def reach(self, pause: float, pick: int, other: int, given_up_after: float | None) -> None:
        """Somebody opens an arc to somebody, known to it or not; the application helps."""
        who = self._pick(pick)
        everybody = [GATE, *self.names]
        self.tell(who, "reaches", everybody[other % len(everybody)], pause=pause)
        self.tell_second_thoughts(who, given_up_after)

    @precondition(lambda self: self._list_linked())
    @rule(
        pause=short_pauses,
        pick=picks,
        other=picks,
        verb=st.sampled_from(["doubles", "invites"]),
        count=st.integers(1, 3),
    )
    def connect(self, pause: float, pick: int, other: int, verb: str, count: int) -> None:
        """Somebody opens arcs to a neighbour, or asks it to open some."""
        who = self._pick(pick, self._list_linked())
        whom = self._pick(other, self._neighbours_of(who))
        for index in range(count):
            self.tell(who, verb, whom, pause=0.0 if index else pause)

    @precondition(lambda self: self._list_linked(2))
    @rule(pause=short_pauses, pick=picks, opens=picks, accepts=picks, count=st.integers(1, 3))
    def bridge(self, pause: float, pick: int, opens: int, accepts: int, count: int) -> None:
        """Somebody has neighbours open arcs to each other."""
        who = self._pick(pick, self._list_linked(2))
        neighbours = self._neighbours_of(who)
        for index in range(count):
            one = neighbours[opens % len(neighbours)]
            others = [name for name in neighbours if name != one]
            whom = f"{one},{others[(accepts + index) % len(others)]}"
            self.tell(who, "bridges", whom, pause=0.0 if index else pause)

    @precondition(lambda self: self._list_linked())
    @rule(pause=short_pauses, pick=picks, other=picks)
    def drop(self, pause: float, pick: int, other: int) -> None:
        """Somebody removes an arc, perhaps its last to that neighbour."""
        who = self._pick(pick, self._list_linked())
        self.tell(who, "drops", self._pick(other, self._neighbours_of(who)), pause=pause)

    @precondition(lambda self: self._list_linked())
    @rule(pause=short_pauses, pick=picks)
    def drop_all(self, pause: float, pick: int) -> None:
        """Somebody removes all the arcs it has."""
        self.tell(self._pick(pick, self._list_linked()), "drops_all", pause=pause)

    def _list_linked(self, least: int = 1) -> list[str]:
        """Those who have at least so many neighbours."""
        names = self.world.nodes if self.is_begun else ()
        return [name for name in names if len(self._neighbours_of(name)) >= least]

    def _neighbours_of(self, name: str) -> list[str]:
        return self.world.nodes[name].unique_neighbours()

    def _pick(self, pick: int, names: list[str] | None = None) -> str:
        names = self.names if names is None else names
        return names[pick % len(names)]
