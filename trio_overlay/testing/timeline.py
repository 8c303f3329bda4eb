"""What is to happen, and when: one task for all that is on its way in a virtual network.

A task for each frame under way would cost more than the nodes themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import NoReturn

import trio
import trio._core._run  # for `GLOBAL_RUN_CONTEXT`, which has no public name

_MAX_JUMPS = 1_000
"""After so many moments in which no task was woken Trio sees to signals and threads."""


class Appointment:
    """Something that a timeline will do; `cancel` takes it off."""

    __slots__ = ("action", "at")

    def __init__(self, at: float, action: Callable[[], None]) -> None:
        self.at = at
        self.action: Callable[[], None] | None = action
        """None once it is done or cancelled."""

    def cancel(self) -> None:
        """Not to happen any more; whatever the action held is let go."""
        self.action = None


class Timeline:
    """Actions in the order of their moments, those of one moment in the order they were made."""

    def __init__(self) -> None:
        # The number keeps the order of equal moments, and keeps heapq from comparing further.
        self._heap: list[tuple[float, int, Appointment]] = []
        self._numbers = count()
        self._alarm: trio.CancelScope | None = None

    def at(self, moment: float, action: Callable[[], None]) -> Appointment:
        """Do *action* at *moment* by `trio.current_time`, or at once if that is past.

        An action never waits, and what it raises ends the network: it is a bug, not a fault.
        """
        appointment = Appointment(moment, action)
        heappush(self._heap, (moment, next(self._numbers), appointment))
        if self._alarm is not None and moment < self._alarm.deadline:
            self._alarm.deadline = moment
        return appointment

    def after(self, delay: float, action: Callable[[], None]) -> Appointment:
        """Do *action* in *delay* seconds."""
        return self.at(trio.current_time() + delay, action)

    async def run(self) -> None:
        """Keep the appointments, until cancelled."""
        clock = trio.lowlevel.current_clock()
        if isinstance(clock, JumpingClock):
            await clock.keep(self)
        while True:
            with trio.CancelScope(deadline=self.next_moment()) as self._alarm:
                await trio.sleep_forever()
            # While actions make new appointments there is no alarm to move.
            self._alarm = None
            self.act(trio.current_time())

    def act(self, now: float) -> None:
        """Do all that is due by *now*."""
        while self._heap and self._heap[0][0] <= now:
            action = self._take_first()
            if action is not None:
                action()

    def next_moment(self) -> float:
        """When the next action is due; infinity if there is none."""
        while self._heap and self._heap[0][2].action is None:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def _take_first(self) -> Callable[[], None] | None:
        _, _, appointment = heappop(self._heap)
        action, appointment.action = appointment.action, None
        return action


class JumpingClock(trio.abc.Clock):
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
        self._timelines: list[Timeline] = []
        self._failed = trio.Event()
        self._failure: BaseException | None = None

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
        for _ in range(_MAX_JUMPS):
            moment = min(deadline, self.next_action_at)
            if self._now < moment < math.inf:
                self._now = moment
            self._act()
            # Many an action wakes nobody: a pass of Trio's loop costs more than most of them.
            deadline = runner.deadlines.next_deadline()
            if runner.runq or deadline <= self._now or self.next_action_at == math.inf:
                break
        return 0.0

    def _act(self) -> None:
        for timeline in self._timelines:
            try:
                timeline.act(self._now)
            except BaseException as error:  # noqa: BLE001 - it leaves `keep`, instead of Trio's loop
                self._failure = error
                self._failed.set()

    @property
    def next_action_at(self) -> float:
        """When the next action of a timeline is due; infinity if there is none."""
        return min((timeline.next_moment() for timeline in self._timelines), default=math.inf)

    async def keep(self, timeline: Timeline) -> NoReturn:
        """Keep the appointments of *timeline*, until cancelled; what an action raises comes out."""
        self._timelines.append(timeline)
        try:
            await self._failed.wait()
        finally:
            self._timelines.remove(timeline)
        assert self._failure is not None
        raise self._failure
