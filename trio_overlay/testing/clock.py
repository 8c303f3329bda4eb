"""A clock for runs without I/O, whose time jumps to what happens next."""

from __future__ import annotations

import contextvars
import math
from heapq import heappop, heappush
from itertools import count
from typing import NoReturn

import trio
import trio._core._run  # for `GLOBAL_RUN_CONTEXT`, which has no public name

from trio_overlay.channels.timeline import Appointment, Timeline, TimelineClock

_MAX_JUMPS = 1_000
"""After so many moments in which no task was woken Trio sees to signals and to other threads."""


class JumpingClock(TimelineClock):
    """Virtual time that jumps to what happens next in the pass in which all tasks wait.

    As `trio.testing.MockClock` with a threshold of 0, at half the cost of a story. That one lets
    Trio make a pass in which nothing happens before it jumps, and a timeline's task wakes by a
    cancellation before it can wake whom a frame is for: here both are one pass. But that one looks
    for I/O before it jumps; this one does not, so it is for runs that have none.
    """

    def __init__(self) -> None:
        self.is_stopped = False
        """While it is, time stands still even if all tasks wait."""
        self._now = 0.0
        self._heap: list[tuple[float, int, Appointment, _Keeper]] = []
        self._numbers = count()

    def start_clock(self) -> None:
        """Time begins at 0, and goes nowhere by itself."""

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Trio asks this when no task is ready; seconds that it may sleep, which is none."""
        runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
        if runner.waiting_for_idle:
            return math.inf  # somebody is in `wait_all_tasks_blocked`: they come before any jump
        if self.is_stopped:
            return 0.0
        heap = self._heap
        for _ in range(_MAX_JUMPS):
            while heap and (heap[0][2].action is None or heap[0][3].is_over):
                heappop(heap)
            action_at = heap[0][0] if heap else math.inf
            moment = min(action_at, deadline)
            if moment == math.inf:
                break
            has_moved = moment > self._now
            if has_moved:
                self._now = moment
            if action_at <= self._now:
                self._act()
            # Many an action wakes nobody: a pass of Trio's loop costs more than most of them.
            deadline = runner.deadlines.next_deadline()
            if runner.runq or deadline <= self._now or not has_moved:
                break
        return 0.0

    def _act(self) -> None:
        heap = self._heap
        # What is made meanwhile comes in the next round: an action that is always due again is not
        # to keep all others from ever being done.
        end = next(self._numbers)
        while heap and heap[0][0] <= self._now and heap[0][1] < end:
            _, _, appointment, keeper = heappop(heap)
            action, appointment.action = appointment.action, None
            if action is None or keeper.is_over:
                continue
            try:
                keeper.context.run(action)
            except BaseException as error:  # noqa: BLE001 - it leaves `keep`, not Trio's loop
                keeper.fail(error)

    @property
    def has_appointments(self) -> bool:
        """Whether some timeline has something left to do."""
        return any(
            not (appointment.action is None or keeper.is_over)
            for _, _, appointment, keeper in self._heap
        )

    async def keep(self, timeline: Timeline) -> NoReturn:
        keeper = _Keeper()

        def take(appointment: Appointment) -> None:
            heappush(self._heap, (appointment.at, next(self._numbers), appointment, keeper))

        def list_given() -> list[Appointment]:
            return [each for _, _, each, its_keeper in self._heap if its_keeper is keeper]

        timeline.give_away(take, list_given)
        await keeper.wait()


class _Keeper:
    """The task that keeps a timeline, as far as the clock acts in its place."""

    def __init__(self) -> None:
        self.is_over = False
        self.context = contextvars.copy_context()
        self._failure: BaseException | None = None
        self._failed = trio.Event()

    async def wait(self) -> NoReturn:
        try:
            await self._failed.wait()
        finally:
            self.is_over = True
        assert self._failure is not None
        raise self._failure

    def fail(self, error: BaseException) -> None:
        self.is_over = True
        self._failure = error
        self._failed.set()
