"""Whom the root pulls up, how many, and when it leaves it for a while."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_overlay.protocol.pulling import (
    MAX_PAUSE,
    MAX_PULL,
    Pull,
    Pulling,
    deepest_level,
    share_out,
)

views = st.lists(st.integers(0, 50), max_size=8)


@pytest.mark.parametrize(
    "view",
    [
        [],
        [3],  # a root alone
        [1, 6],  # two children: the next joiner comes to stand beside them
        [0, 1, 24],  # the last hole of a level, and leaves right below it
        [0, 0, 0],
    ],
)
def test_a_tree_without_a_hole_worth_filling_is_left_alone(view: list[int]) -> None:
    assert Pulling().next_round(view, 3) is None


def test_the_deepest_leaves_are_asked_one_for_each_hole() -> None:
    assert Pulling().next_round([0, 2, 5, 30], 3) == Pull(depth=3, count=2)


def test_no_more_are_asked_than_there_are_leaves_so_deep() -> None:
    assert Pulling().next_round([0, 9, 0, 6], 3) == Pull(depth=3, count=2)


@given(views, st.integers(1, 10))
def test_a_pull_is_for_leaves_that_can_gain(view: list[int], max_degree: int) -> None:
    pulling = Pulling()
    pull = pulling.next_round(view, max_degree)
    assert pulling.is_expecting == (pull is not None)
    if pull is None:
        return
    hole = next(level for level, count in enumerate(view) if count)
    assert hole + 1 < pull.depth <= deepest_level(view)
    assert 0 < pull.count <= min(MAX_PULL, sum(view[: pull.depth - 1]))


def test_whoever_has_not_come_yet_keeps_its_hole() -> None:
    pulling = Pulling()
    view = [0, 5, 5, 300]
    assert pulling.next_round(view, 3) == Pull(3, 5)
    pulling.note_application()
    pulling.note_application()
    # The places of those two are taken in the view; three holes are for those still on the way.
    assert pulling.next_round([0, 3, 5, 300], 3) is None
    assert pulling.next_round([0, 3, 5, 300], 3) == Pull(3, 3)


def test_pulls_that_come_to_nothing_become_rare_and_mean_others() -> None:
    pulling = Pulling()
    view = [0, 1, 0, 0, 30]
    pulls = [pulling.next_round(view, 3) for _ in range(300)]
    made = [(at, pull) for at, pull in enumerate(pulls) if pull is not None]
    assert made[0] == (0, Pull(4, 1))
    assert {pull for _, pull in made[1:]} == {Pull(3, 1)}
    pauses = [later - sooner for (sooner, _), (later, _) in pairwise(made)]
    assert pauses[:6] == [2, 3, 5, 9, 17, 33]
    assert set(pauses[6:]) == {MAX_PAUSE + 1}
    assert pulling.is_barren
    while pulling.next_round(view, 3) is None:
        pass
    pulling.note_application()
    assert pulling.next_round(view, 3) == Pull(4, 1)
    assert not pulling.is_barren


def test_a_pull_that_reached_nobody_makes_none_rare() -> None:
    pulling = Pulling()
    for _ in range(10):
        assert pulling.next_round([1, 0, 4], 2) == Pull(2, 1)
        pulling.note_nobody_asked()
        assert not pulling.is_expecting


@given(
    st.dictionaries(st.text(max_size=3), views, max_size=6),
    st.integers(1, 8),
    st.integers(0, 8),
    st.integers(1, 200),
    st.integers(1, 10),
)
def test_no_child_is_asked_for_more_leaves_than_it_can_have(
    children: dict[str, list[int]], depth: int, at: int, count: int, max_degree: int
) -> None:
    shares = share_out(Pull(depth, count), at, children, max_degree)
    assert sum(shares.values()) <= count
    for child, share in shares.items():
        view = children[child]
        level = max(0, depth - at - 1)
        assert 0 < share <= max(1, -(-sum(view[level:]) // max_degree))
        assert any(view[level:])


def test_children_are_asked_alike_and_what_one_has_not_another_gives() -> None:
    children = {"few": [0, 3], "many": [0, 30], "more": [0, 60], "leaf": [3], "none": [0, 0]}
    assert share_out(Pull(2, 9), 0, children, 3) == {"few": 1, "many": 4, "more": 4}
    assert share_out(Pull(1, 2), 0, {"leaf": [3]}, 3) == {"leaf": 1}
