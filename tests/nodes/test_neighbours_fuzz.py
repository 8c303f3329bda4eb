"""Any mix of connects, bridges, disconnects, crashes and lost messages leaves both ends of each
arc with the same arcs, and nothing else.

`HYPOTHESIS_PROFILE=long` looks much longer; `ci` tells the same stories every time.
"""

from __future__ import annotations

import pytest

from tests.profiles import how_long
from trio_overlay.nodes.neighbour_attempts import Attempt
from trio_overlay.nodes.neighbour_link import Link
from trio_overlay.nodes.neighbourhood import Neighbourhood
from trio_overlay.testing.neighbours import NeighboursMachine
from trio_overlay.testing.neighbours_world import NeighboursWorld
from trio_overlay.testing.tree_world import replay

BOUNDED = 15
"""Stories in an ordinary run: a few seconds for each test."""


class Troubled(NeighboursMachine):
    """Stories of nodes that are crashed, cut off and frozen, too, and of lost messages."""


class Peaceful(NeighboursMachine):
    """Without cuts and silence more comes up, and more of it at the same time."""

    has_faults = False


TestNeighbours = Troubled.TestCase
TestNeighbours.settings = how_long(BOUNDED, 30)
TestPeacefulNeighbours = Peaceful.TestCase
TestPeacefulNeighbours.settings = how_long(BOUNDED, 30)

DROPPED = "n1 joins at 0 s; gate drops n1 at 1 s; time passes at 60 s"
GIVEN_UP = "n1 joins at 0 s; n2 joins at 0 s; n2 reaches n1 at 1 s; n2 gives_up at 1.25 s"


def test_an_arc_that_only_one_end_has_removed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of the story it is gone at both: the connection was kept for no arc any more."""
    replay(DROPPED, NeighboursWorld)
    remove = Neighbourhood.remove_arc

    def say_nothing(hood: Neighbourhood, link: Link, tid: str, reason: str, *, tell: bool) -> bool:
        return remove(hood, link, tid, reason, tell=False)

    monkeypatch.setattr(Neighbourhood, "remove_arc", say_nothing)
    with pytest.raises(
        AssertionError, match=r"n1 has the arc .* with gate, which has not, for 2 s"
    ):
        replay(DROPPED, NeighboursWorld)
    replay("n1 joins at 0 s; n1 loses gate at 1 s; gate drops n1 at 1.001 s", NeighboursWorld)


def test_an_answer_to_who_has_given_up_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(GIVEN_UP, NeighboursWorld)
    say_end = Attempt.say_end

    def say_nothing(attempt: Attempt, reason: str | None) -> None:
        if reason != "cancelled":
            say_end(attempt, reason)

    monkeypatch.setattr(Attempt, "say_end", say_nothing)
    with pytest.raises(AssertionError, match="n1 answers n2, which has given up 2 s ago"):
        replay(GIVEN_UP, NeighboursWorld)
