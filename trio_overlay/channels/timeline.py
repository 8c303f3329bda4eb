"""What is to happen, and when: one task for all that will.

A task for each timeout, or for each frame under way in a virtual network, would cost more than
whatever it waits for.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import NoReturn

import trio

_MIN_SWEPT = 64
"""So few appointments are kept without a look at how many of them were cancelled."""


class Appointment:
    """Something that a timeline will do; `cancel` takes it off."""

    __slots__ = ("action", "at")

    def __init__(self, at: float, action: Callable[[], object]) -> None:
        self.at = at
        self.action: Callable[[], object] | None = action
        """None once it is done or cancelled."""

    def cancel(self) -> None:
        """Not to happen any more; whatever the action held is let go."""
        self.action = None


class Timeline:
    """Actions in the order of their moments, those of one moment in the order they were made.

    They are done while `run` runs, in its task or in its place; what is left when it ends never is.
    Those that were cancelled are kept for a while, but never more than there are others, and a few.
    """

    def __init__(self) -> None:
        self.now: Callable[[], float] = trio.current_time
        """The time by which appointments are kept: as `trio.current_time`, and cheaper."""
        # The number keeps the order of equal moments, and keeps heapq from comparing further.
        self._heap: list[tuple[float, int, Appointment]] = []
        self._numbers = count()
        self._sweep_at = _MIN_SWEPT
        """How long the heap is when those that were cancelled are taken out."""
        self._alarm: trio.CancelScope | None = None
        self._take: Callable[[Appointment], None] = self._put
        """Who keeps what is appointed: this timeline, or whom `give_away` has given it to."""
        self._list_given: Callable[[], list[Appointment]] = list

    def at(self, moment: float, action: Callable[[], object]) -> Appointment:
        """Do *action* at *moment* by `trio.current_time`, or at once if that is past.

        An action never waits, and what it raises comes out of `run`.
        """
        appointment = Appointment(moment, action)
        self._take(appointment)
        return appointment

    def after(self, delay: float, action: Callable[[], object]) -> Appointment:
        """Do *action* in *delay* seconds."""
        return self.at(self.now() + delay, action)

    async def run(self) -> None:
        """Keep the appointments, until cancelled."""
        clock = trio.lowlevel.current_clock()
        self.now = clock.current_time
        if isinstance(clock, TimelineClock):
            await clock.keep(self)
        while True:
            with trio.CancelScope(deadline=self._next_moment()) as self._alarm:
                await trio.sleep_forever()
            # While actions make new appointments there is no alarm to move.
            self._alarm = None
            now = self.now()
            # What is made meanwhile comes in the next round: an action that is always due again is
            # not to keep Trio's other tasks from ever running.
            end = next(self._numbers)
            while self._heap and self._heap[0][0] <= now and self._heap[0][1] < end:
                appointment = heappop(self._heap)[2]
                action, appointment.action = appointment.action, None
                if action is not None:
                    action()

    def list_pending(self) -> list[Appointment]:
        """What is still to be done, in no order."""
        own = [appointment for _, _, appointment in self._heap]
        return [each for each in own + self._list_given() if each.action is not None]

    def give_away(
        self, take: Callable[[Appointment], None], list_given: Callable[[], list[Appointment]]
    ) -> None:
        """Let somebody else do what is to be done: *take* gets all that is and will be.

        *list_given* lists what is not done of it.
        """
        self._take, self._list_given = take, list_given
        heap, self._heap = sorted(self._heap), []
        for _, _, appointment in heap:
            take(appointment)

    def _put(self, appointment: Appointment) -> None:
        if len(self._heap) >= self._sweep_at:
            self._heap = [entry for entry in self._heap if entry[2].action is not None]
            heapify(self._heap)
            self._sweep_at = max(_MIN_SWEPT, 2 * len(self._heap))
        heappush(self._heap, (appointment.at, next(self._numbers), appointment))
        if self._alarm is not None and appointment.at < self._alarm.deadline:
            self._alarm.deadline = appointment.at

    def _next_moment(self) -> float:
        while self._heap and self._heap[0][2].action is None:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf


class TimelineClock(trio.abc.Clock):
    """A clock that keeps appointments itself, without waking a task for each."""

    @abc.abstractmethod
    async def keep(self, timeline: Timeline) -> NoReturn:
        """Keep the appointments of *timeline*, until cancelled; what an action raises comes out."""
