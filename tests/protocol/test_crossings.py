"""What leads over a bridge: two ends of each, bounds for each neighbour, and nothing for ever."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from trio_overlay.protocol.crossings import Crossings, End

ONE, OTHER = ("a", "1"), ("b", "2")


def crossings(max_opened: int = 2, **bounds: int) -> Crossings[str]:
    return Crossings(max_opened=max_opened, **bounds)


def test_each_end_leads_to_the_other_until_it_is_closed() -> None:
    table = crossings()
    assert table.open(ONE, OTHER, 10)
    assert (table.across(ONE), table.across(OTHER)) == (OTHER, ONE)
    assert (table.has_opened(ONE), table.has_opened(OTHER)) == (True, False)
    assert list(table) == [(ONE, OTHER)]
    assert table.close(OTHER) == ONE
    assert table.across(ONE) is table.across(OTHER) is table.close(ONE) is None
    assert len(table) == 0


@pytest.mark.parametrize("end", [("c", "1"), ("a", "2"), ("b", "1")])
def test_nobody_else_finds_anything_by_it(end: End[str]) -> None:
    table = crossings()
    table.open(ONE, OTHER, 10)
    assert table.across(end) is None
    assert end not in table
    assert not table.has_opened(end)
    assert table.close(end) is None
    assert len(table) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ONE, ("c", "3")),
        (OTHER, ("c", "3")),
        (("c", "3"), ONE),
        (("c", "3"), OTHER),
        (("c", "3"), ("c", "4")),
    ],
)
def test_an_end_has_one_crossing_and_nobody_one_to_itself(one: End[str], other: End[str]) -> None:
    table = crossings()
    table.open(ONE, OTHER, 10)
    assert not table.open(one, other, 10)
    assert list(table) == [(ONE, OTHER)]


def test_neighbour_that_is_lost_takes_all_that_led_over_it_along() -> None:
    table = crossings()
    table.open(ONE, OTHER, 10)
    table.open(("c", "3"), ("a", "4"), 10)
    table.open(("b", "5"), ("c", "6"), 10)
    assert table.lose("a") == [OTHER, ("c", "3")]
    assert list(table) == [(("b", "5"), ("c", "6"))]


def test_what_nobody_ends_is_forgotten_at_its_time_and_makes_room() -> None:
    table = crossings(max_opened=1)
    table.open(ONE, OTHER, 10)
    table.open(("c", "3"), ("b", "4"), 20)
    table.expire(9.9)
    assert not table.open(("a", "5"), ("c", "6"), 30)
    table.expire(10)
    assert list(table) == [(("c", "3"), ("b", "4"))]
    assert table.open(("a", "5"), ("c", "6"), 30)
    table.expire(float("inf"))
    assert len(table) == 0


class Bounded(RuleBasedStateMachine):
    """Whatever is opened, closed and lost, no bound is passed, and all counts are right."""

    def __init__(self) -> None:
        super().__init__()
        self.table = crossings(2, max_accepted=3, max_in_all=4)
        self.now = 0.0
        self.names = 0

    @rule(one=st.sampled_from("abcd"), other=st.sampled_from("abcd"))
    def open(self, one: str, other: str) -> None:
        self.names += 1
        ends = (one, str(self.names)), (other, str(self.names))
        pairs = [(opens, accepts) for (opens, _), (accepts, _) in self.table]
        has_room = (
            one != other
            and [opens for opens, _ in pairs].count(one) < 2
            and [accepts for _, accepts in pairs].count(other) < 3
            and len(pairs) < 4
        )
        assert self.table.open(*ends, self.now + 10) == has_room

    @rule(name=st.integers(1, 20), neighbour=st.sampled_from("abcd"))
    def close(self, name: int, neighbour: str) -> None:
        self.table.close((neighbour, str(name)))

    @rule(neighbour=st.sampled_from("abcd"))
    def lose(self, neighbour: str) -> None:
        self.table.lose(neighbour)
        assert not any(neighbour in (one[0], other[0]) for one, other in self.table)

    @rule(seconds=st.integers(0, 15))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds
        self.table.expire(self.now)

    @rule()
    def clear(self) -> None:
        self.table.clear()
        assert len(self.table) == 0

    @invariant()
    def both_ends_agree(self) -> None:
        assert len(list(self.table)) == len(self.table)
        for one, other in self.table:
            assert (self.table.across(one), self.table.across(other)) == (other, one)


TestBounded = Bounded.TestCase
TestBounded.settings = settings(max_examples=50, stateful_step_count=30)
