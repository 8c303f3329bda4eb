"""What is to happen, and when: one task for all that is on its way in a virtual network.

A task for each frame under way would cost more than the nodes themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

import trio


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
        while True:
            with trio.CancelScope(deadline=self._next_moment()) as self._alarm:
                await trio.sleep_forever()
            # While actions make new appointments there is no alarm to move.
            self._alarm = None
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                action = self._take_first()
                if action is not None:
                    action()

    def _next_moment(self) -> float:
        while self._heap and self._heap[0][2].action is None:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def _take_first(self) -> Callable[[], None] | None:
        _, _, appointment = heappop(self._heap)
        action, appointment.action = appointment.action, None
        return action
