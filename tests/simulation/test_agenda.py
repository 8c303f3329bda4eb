"""The order of events."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_overlay.simulation.agenda import Agenda

MOMENTS = st.lists(st.integers(0, 60).map(lambda tick: tick / 20), max_size=60)


@given(MOMENTS, st.sampled_from([0.01, 0.3, 10.0]))
def test_events_come_in_the_order_of_their_moments_and_else_as_put_in(
    moments: list[float], width: float
) -> None:
    agenda = Agenda(width)
    seen: list[tuple[float, int]] = []
    for index, moment in enumerate(moments):
        agenda.put(moment, lambda now, one, _: seen.append((now, one)), index, 0)
    agenda.run()
    assert seen == sorted((moment, index) for index, moment in enumerate(moments))
    assert agenda.count_events == len(moments)


@given(st.integers(0, 2**32), st.sampled_from([0.01, 0.1, 0.35]))
def test_what_events_and_timeouts_bring_about_keeps_the_order(seed: int, width: float) -> None:
    agenda = Agenda(width)
    rng = random.Random(seed)
    due: list[float] = []
    seen: list[float] = []

    def act(now: float, _: int, __: int) -> None:
        seen.append(now)
        if len(due) < 200:
            delay = rng.choice((0.0, 0.001, 0.01, 0.5, 3.0))
            agenda.put(now + delay, act, 0, 0)
            timeouts.put(now, 0, 0)
            due.extend((now + delay, now + timeouts.duration))

    timeouts = agenda.timeouts(0.7, act)
    for _ in range(3):
        at = rng.random()
        due.append(at)
        agenda.put(at, act, 0, 0)
    agenda.run()
    assert seen == sorted(due)
    assert len(timeouts) == 0


def test_timeouts_as_short_as_a_bucket_are_refused() -> None:
    with pytest.raises(ValueError, match="buckets"):
        Agenda(0.5).timeouts(0.5, lambda _, __, ___: None)


def test_many_timeouts_are_let_go_and_none_is_lost() -> None:
    agenda = Agenda(0.1)
    seen: list[int] = []
    timeouts = agenda.timeouts(5.0, lambda _, one, __: seen.append(one))
    for number in range(5000):
        agenda.put(number / 100, lambda now, one, _: timeouts.put(now, one, 0), number, 0)
    agenda.run()
    assert seen == list(range(5000))
    assert len(timeouts._moments) < 1100


def test_timeouts_that_do_not_matter_are_counted_and_not_called() -> None:
    agenda = Agenda(0.1)
    seen: list[tuple[float, int, int]] = []
    timeouts = agenda.timeouts(
        5.0,
        lambda now, one, other: seen.append((now, one, other)),
        lambda ones: [one % 3 == 0 for one in ones],
    )
    for number in range(10):
        agenda.put(number / 4, lambda now, one, _: timeouts.put(now, one, -one), number, 0)
    agenda.run()
    assert seen == [(5.0, 0, 0), (5.75, 3, -3), (6.5, 6, -6), (7.25, 9, -9)]
    assert agenda.count_events == 20


@given(MOMENTS, st.sampled_from([0.01, 10.0]))
def test_row_comes_where_its_events_would_come(moments: list[float], width: float) -> None:
    rows, single = Agenda(width), Agenda(width)
    seen: list[tuple[float, int, int]] = []
    expected: list[tuple[float, int, int]] = []

    def act_on_row(now: float, one: int, others: Sequence[int]) -> None:
        seen.extend((now, one, other) for other in others)

    def act(now: float, one: int, other: int) -> None:
        expected.append((now, one, other))

    for index, moment in enumerate(moments):
        others = range(1 + index % 3)
        rows.put_row(moment, act_on_row, index, others)
        for other in others:
            single.put(moment, act, index, other)
    rows.run()
    single.run()
    assert seen == expected
    assert rows.count_events == single.count_events


def test_what_comes_after_the_end_does_not_happen() -> None:
    agenda = Agenda(0.5)
    seen: list[float] = []
    for number in range(10):
        agenda.put(number / 2, lambda now, _, __: seen.append(now), 0, 0)
    agenda.run(until=2.0)
    assert seen == [0.0, 0.5, 1.0, 1.5]
    assert agenda.now == 2.0
