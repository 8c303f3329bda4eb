"""Views of free places: a parent and its child that agree without talking."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_overlay.protocol.filling import (
    MAX_LEVELS,
    MAX_UNREPORTED,
    ChildView,
    ParentBelief,
    add,
    occupy,
    same,
    shallowest,
)

VIEWS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


def test_the_shallowest_place_is_taken_and_brings_places_below_it() -> None:
    view = [0, 2, 1]
    assert occupy(view, [10]) == 1
    assert view == [0, 1, 11]


def test_an_orphan_brings_the_places_of_its_subtree() -> None:
    view = [1]
    assert occupy(view, [0, 3, 7]) == 0
    assert view == [0, 0, 3, 7]


def test_full_view_has_no_place_and_stays_as_it_is() -> None:
    view = [0, 0]
    assert shallowest(view) is None
    assert occupy(view, [10]) is None
    assert view == [0, 0]


@pytest.mark.parametrize("degree", [2, 3, 10])
def test_joining_one_by_one_fills_level_by_level(degree: int) -> None:
    view = [degree]
    levels = [occupy(view, [degree]) for _ in range(1200)]
    assert levels == sorted(level for level in levels if level is not None)
    for level in range(3):
        assert levels.count(level) == degree ** (level + 1)


def test_places_too_deep_to_count_are_left_out() -> None:
    view = [1]
    add(view, [1] * 100, 1)
    assert len(view) == MAX_LEVELS


@given(VIEWS, VIEWS)
def test_nobody_gets_lost(view: list[int], brought: list[int]) -> None:
    places = sum(view)
    level = occupy(view, brought)
    assert sum(view) == (places if level is None else places - 1 + sum(brought))
    assert min(view) >= 0


@given(VIEWS, st.integers(0, 3))
def test_zeros_at_the_end_make_no_difference(view: list[int], zeros: int) -> None:
    assert same(view, view + [0] * zeros)
    assert same(view + [0] * zeros, view)
    assert not same(view, [*view, *[0] * zeros, 1])


def test_false_reports_do_no_harm() -> None:
    child = ChildView([10])
    child.delegate([10])
    child.correct([-5, 3] * 100, seen=10**9)
    assert child.view[0] == 0
    assert len(child.view) <= MAX_LEVELS
    child.correct([2], seen=-7)
    assert child.view == [2]


class TwoEnds(RuleBasedStateMachine):
    """A parent and a child with a way of any length between them, and surprises at the child."""

    def __init__(self) -> None:
        super().__init__()
        self.parent = ChildView([2])
        self.belief = ParentBelief([2])
        self.actual = [2]
        self.down: deque[list[int]] = deque()
        self.up: deque[tuple[tuple[int, ...], int]] = deque()

    @rule(brought=VIEWS)
    def delegate(self, brought: list[int]) -> None:
        self.parent.delegate(brought)
        self.down.append(brought)

    @precondition(lambda self: self.down)
    @rule()
    def request_arrives(self) -> None:
        brought = self.down.popleft()
        occupy(self.actual, brought)
        self.belief.see(brought)

    @rule(view=VIEWS)
    def surprise(self, view: list[int]) -> None:
        self.actual = view

    @rule()
    def report(self) -> None:
        if self.belief.is_wrong(self.actual):
            self.up.append(self.belief.report(self.actual))

    @precondition(lambda self: self.up)
    @rule()
    def report_arrives(self) -> None:
        self.parent.correct(*self.up.popleft())

    @invariant()
    def once_quiet_both_know_the_same(self) -> None:
        if not self.up and not self.down and not self.belief.is_wrong(self.actual):
            assert same(self.parent.view, self.actual)


TestTwoEnds = TwoEnds.TestCase


def test_without_surprises_there_are_few_reports() -> None:
    parent, belief, actual = ChildView([3]), ParentBelief([3]), [3]
    reports = 0
    for _ in range(1000):
        parent.delegate([3])
        belief.see([3])
        occupy(actual, [3])
        if belief.is_wrong(actual):
            parent.correct(*belief.report(actual))
            reports += 1
    assert same(parent.view, actual)
    assert reports == 1000 // MAX_UNREPORTED
    assert len(parent._on_the_way) < MAX_UNREPORTED
