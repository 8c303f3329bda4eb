"""How patient neighbours of any overlay are with each other when nothing is heard."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How often to see to signs of life, and how long to wait for one; in seconds.

    Whatever is heard is one. In the tree they are given unasked, as what they carry flows all the
    time; neighbours with arcs are asked for one after a silence, and need not know each other's
    intervals.
    """

    interval: float = 1.0
    timeout: float = 2.8


class Pulse:
    """One timer for the signs of life on all links of a node: a task for each link costs more.

    What is given to `keeping` sees to its link, and says when it has to do so next. It may give a
    sign of life a little early, so that one wakeup does for several.
    """

    def __init__(self) -> None:
        self._kept: dict[Callable[[], float], None] = {}
        self._alarm = trio.CancelScope()

    @contextmanager
    def keeping(self, see_to_it: Callable[[], float]) -> Iterator[None]:
        """In this block *see_to_it* is called now and whenever it is due, as it says itself.

        It returns the moment, by `trio.current_time`, infinity for never.
        """
        self._kept[see_to_it] = None
        try:
            self._alarm.deadline = min(self._alarm.deadline, see_to_it())
            yield
        finally:
            del self._kept[see_to_it]

    async def run(self) -> None:
        """See to all links, until cancelled."""
        while True:
            due_at = min((see_to_it() for see_to_it in list(self._kept)), default=math.inf)
            with trio.CancelScope(deadline=due_at) as self._alarm:
                await trio.sleep_forever()
