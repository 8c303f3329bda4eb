"""What a timeline does and when, kept by a task and kept by a clock."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias

import pytest
import trio

from trio_overlay.channels.timeline import Timeline
from trio_overlay.testing.determinism import SteppedRun, TimeStandsStill, run_virtual

Scenario: TypeAlias = Callable[[Timeline, trio.Nursery], Awaitable[None]]
"""What happens to a timeline that runs in a nursery of its own."""

owner = contextvars.ContextVar("owner", default="nobody")


@asynccontextmanager
async def open_timeline() -> AsyncIterator[tuple[Timeline, trio.Nursery]]:
    timeline = Timeline()
    timeline.at(0.5, lambda: None)  # those made before it runs are kept, too
    async with trio.open_nursery() as nursery:
        token = owner.set("the timeline")
        nursery.start_soon(timeline.run)
        owner.reset(token)
        yield timeline, nursery
        nursery.cancel_scope.cancel()


def kept_by_a_task(scenario: Scenario) -> None:
    async def run() -> None:
        async with open_timeline() as opened:
            await scenario(*opened)

    run_virtual(run)


def kept_by_a_clock(scenario: Scenario) -> None:
    with SteppedRun(open_timeline) as run:
        run.call(lambda opened: scenario(*opened))


keepers = pytest.mark.parametrize("keep", [kept_by_a_task, kept_by_a_clock])


@keepers
def test_actions_are_done_in_the_order_of_their_moments_and_then_of_their_making(
    keep: Callable[[Scenario], None],
) -> None:
    done: list[tuple[str, float]] = []

    async def scenario(timeline: Timeline, _: trio.Nursery) -> None:
        def note(name: str) -> None:
            done.append((name, timeline.now()))

        timeline.at(3.0, partial(note, "last"))
        timeline.after(2.0, partial(note, "second"))
        timeline.at(2.0, partial(note, "third"))
        timeline.at(1.0, lambda: timeline.at(0.0, partial(note, "first, overdue")))
        timeline.at(2.5, partial(note, "cancelled")).cancel()
        await trio.sleep(1.5)
        timeline.at(1.75, partial(note, "sooner than all others"))
        await trio.sleep(2)
        assert timeline.now() == trio.current_time() == 3.5

    keep(scenario)
    assert done == [
        ("first, overdue", 1.0),
        ("sooner than all others", 1.75),
        ("second", 2.0),
        ("third", 2.0),
        ("last", 3.0),
    ]


@keepers
def test_nothing_is_done_once_its_task_has_ended(keep: Callable[[Scenario], None]) -> None:
    done: list[str] = []

    async def scenario(timeline: Timeline, nursery: trio.Nursery) -> None:
        timeline.at(1.0, partial(done.append, "in time"))
        timeline.at(2.0, nursery.cancel_scope.cancel)
        timeline.at(2.0, partial(done.append, "at the same moment"))
        timeline.at(3.0, partial(done.append, "too late"))
        with trio.CancelScope(shield=True):
            await trio.sleep(2.5)
            timeline.after(0.0, partial(done.append, "made too late"))
            await trio.sleep(2)

    keep(scenario)
    # What is due when the end comes is still done, as by a task that has been woken for it.
    assert done == ["in time", "at the same moment"]


@keepers
def test_an_action_runs_in_the_context_of_the_task_that_keeps_it(
    keep: Callable[[Scenario], None],
) -> None:
    seen: list[str] = []

    async def scenario(timeline: Timeline, _: trio.Nursery) -> None:
        timeline.at(1.0, lambda: seen.append(owner.get()))
        await trio.sleep(2)

    keep(scenario)
    assert seen == ["the timeline"]


@keepers
def test_what_an_action_raises_leaves_its_own_run_and_no_other(
    keep: Callable[[Scenario], None],
) -> None:
    done: list[str] = []

    def fail() -> None:
        raise KeyError("of an action")

    async def scenario(timeline: Timeline, nursery: trio.Nursery) -> None:
        timeline.at(2.0, partial(done.append, "another timeline goes on"))
        failing = Timeline()
        failing.at(1.0, fail)
        failing.at(1.0, partial(done.append, "after the failure"))
        with pytest.raises(KeyError, match="of an action"):
            await failing.run()
        assert trio.current_time() == 1.0
        await trio.sleep(2)

    keep(scenario)
    assert done == ["another timeline goes on"]


def test_a_storm_of_timeouts_that_are_cancelled_leaves_no_heap_of_them() -> None:
    done: list[int] = []

    async def scenario(timeline: Timeline, _: trio.Nursery) -> None:
        for number in range(100):
            timeline.at(2.0 + number / 1000, partial(done.append, number))
        for _repeat in range(10_000):
            timeline.after(30.0, partial(done.append, -1)).cancel()
            assert len(timeline._heap) <= 2 * 101 + 1
        await trio.sleep(3)

    kept_by_a_task(scenario)
    assert done == list(range(100))


def test_an_action_that_is_always_due_again_keeps_nobody_from_running() -> None:
    count = 0

    async def scenario(timeline: Timeline, nursery: trio.Nursery) -> None:
        def again() -> None:
            nonlocal count
            count += 1
            timeline.after(0, again)

        again()
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert trio.current_time() == 0.0

    kept_by_a_task(scenario)
    assert 0 < count <= 101


def test_in_a_stepped_run_that_is_a_livelock_and_is_named_as_one() -> None:
    async def scenario(timeline: Timeline, _: trio.Nursery) -> None:
        def again() -> None:
            timeline.after(0, again)

        again()
        await trio.sleep(1)

    with pytest.raises(TimeStandsStill):
        kept_by_a_clock(scenario)
