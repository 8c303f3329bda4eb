"""What is going to happen in a simulated world, and when.

Built for tens of millions of events in CPython: an event is a plain tuple, never an object of its
own, those that are alike and come at one moment are one tuple together, a row, and what waits for a
timeout, which most often comes to nothing, takes 16 bytes.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, insort_left
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import compress, repeat
from operator import itemgetter
from typing import TypeAlias

Act: TypeAlias = Callable[[float, int, int], None]
"""What an event does: it is called with the moment and with the two numbers of the event."""

Matter: TypeAlias = Callable[[Sequence[int]], Iterable[bool]]
"""Given the first numbers of some events, whether each of these still matters to anybody. One that
does not must not do so later."""

RowAct: TypeAlias = Callable[[float, int, Sequence[int]], None]
"""What a row of events does, which have the moment and the first of the numbers in common."""

Event: TypeAlias = tuple[float, Act, int, int]

_moment_of = itemgetter(0)


def _moment_before(event: Event) -> float:
    """What events are sorted by where the last comes first."""
    return -event[0]


_MAX_MOVED = 1000
"""So many timeouts are kept after they have become events; dropping them moves all the others."""


class Agenda:
    """Events in the order of their moments, those of one moment in the order they were put in.

    A calendar queue (Brown 1988): events go unsorted into buckets of *bucket_width* seconds, and a
    bucket is sorted when its time has come. Compared with one heap, it touches each event twice
    instead of some twenty times, and what it touches lies together.
    """

    def __init__(self, bucket_width: float = 0.01) -> None:
        self.now = 0.0
        """The beginning of the bucket that `run` is at; events in it may be later."""
        self.count_events = 0
        """Events that have happened."""
        self._bucket_width = bucket_width
        # By their numbers, which are whole, but floats: to make integers of them costs more.
        self._buckets: dict[float, list[Event]] = {}
        self._numbers: list[float] = []  # a heap of the buckets there are
        self._current = -1.0
        self._due: list[Event] = []  # what is left of the bucket that is happening, last first
        self._timeouts: list[Timeouts] = []
        self._sweep: Callable[[float], int] | None = None

    def put(self, moment: float, act: Act, one: int, other: int) -> None:
        """Let ``act(moment, one, other)`` happen at *moment*, which is not in the past."""
        number = moment // self._bucket_width
        bucket = self._buckets.get(number)
        if bucket is not None:
            bucket.append((moment, act, one, other))
        elif number > self._current:
            self._buckets[number] = [(moment, act, one, other)]
            heappush(self._numbers, number)
        else:
            # `run` is taking events from the end of this list: to the left of everything that is
            # not later, so that it comes after that.
            insort_left(self._due, (moment, act, one, other), key=_moment_before)
            self.count_events += 1

    def put_row(self, moment: float, act: RowAct, one: int, others: Sequence[int]) -> None:
        """As `put` with each of *others*, in this order; but ``act(moment, one, others)`` is called
        once for all of them.
        """
        self.put(moment, partial(self._happen_in_row, act, others), one, 0)

    def _happen_in_row(
        self, act: RowAct, others: Sequence[int], moment: float, one: int, _: int
    ) -> None:
        self.count_events += len(others) - 1
        act(moment, one, others)

    def timeouts(self, duration: float, act: Act, matter: Matter | None = None) -> Timeouts:
        """A queue of events that all come *duration* seconds after they were put in.

        Given *matter*, those that it says do not matter happen, and are counted, without a call.

        ValueError: *duration* is less than two buckets; what is put in must not come in the same.
        """
        if duration < 2 * self._bucket_width:
            raise ValueError(f"a timeout of {duration} s in buckets that are about as wide")
        timeouts = Timeouts(duration, act, matter)
        self._timeouts.append(timeouts)
        return timeouts

    def sweep_with(self, sweep: Callable[[float], int]) -> None:
        """Before each bucket, and once after the last, call *sweep* with the moment it begins.

        For what happens in such numbers, and so much on its own, that its order among the events
        does not matter. What *sweep* returns counts as so many events.
        """
        self._sweep = sweep

    def run(self, until: float = math.inf, on_bucket: Callable[[], None] | None = None) -> None:
        """Let everything happen that comes before *until*; *on_bucket* is called now and then.

        What comes at *until* or later never happens, if it is in another bucket: after this,
        nothing more can be put in.
        """
        last = math.inf if until == math.inf else until // self._bucket_width
        while (number := self._next_number()) is not None and number < last:
            self._happen(number)
            if on_bucket is not None:
                on_bucket()
        self.now = max(self.now, 0.0 if until == math.inf else until)
        if self._sweep is not None:
            self.count_events += self._sweep(until)

    def _next_number(self) -> float | None:
        next_at = min((timeouts.next_at for timeouts in self._timeouts), default=math.inf)
        numbers = self._numbers[:1]
        if next_at < math.inf:
            numbers.append(next_at // self._bucket_width)
        return min(numbers, default=None)

    def _happen(self, number: float) -> None:
        due: list[Event] = []
        if self._numbers and self._numbers[0] == number:
            heappop(self._numbers)
            due = self._buckets.pop(number)
        for timeouts in self._timeouts:
            self.count_events += timeouts.move_due(due, number, self._bucket_width)
        # Stable, and by the moment alone: what came first stays first.
        due.sort(key=_moment_of)
        self._current = number
        self._due = due
        self.now = number * self._bucket_width
        if self._sweep is not None:
            self.count_events += self._sweep(self.now)
        self.count_events += len(due)
        # From the end, because what has happened is freed there and then: its memory is what the
        # next event is made of, while it is still in the processor's cache.
        due.reverse()
        pop = due.pop
        while due:
            moment, act, one, other = pop()
            act(moment, one, other)


class Timeouts:
    """Events that all come the same time after they were put in; made by `Agenda.timeouts`.

    So the first in is the first out. A million joins leave six million of these waiting for half
    a minute each: they are three numbers in arrays, and become events when their bucket comes.
    """

    def __init__(self, duration: float, act: Act, matter: Matter | None) -> None:
        self.duration = duration
        self._act = act
        self._matter = matter
        self._moments = array("d")
        self._ones = array("i")
        self._others = array("i")
        self._first = 0  # what stands before it has become events

    def __len__(self) -> int:
        return len(self._moments) - self._first

    @property
    def next_at(self) -> float:
        """When the first comes; infinity if there is none."""
        return self._moments[self._first] if self._first < len(self._moments) else math.inf

    def put(self, now: float, one: int, other: int) -> None:
        """Begin to wait; *now* is never before that of an earlier call."""
        self._moments.append(now + self.duration)
        self._ones.append(one)
        self._others.append(other)

    def move_due(self, due: list[Event], number: float, bucket_width: float) -> int:
        """Move what belongs into the bucket *number* or before it to *due*, if it matters.

        Returns how many do not matter.
        """
        first = self._first
        moments = self._moments
        end = bisect_left(moments, (number + 1) * bucket_width, first)
        # A moment near the edge belongs where `put` would put it, however that is rounded.
        while end < len(moments) and moments[end] // bucket_width <= number:
            end += 1
        while end > first and moments[end - 1] // bucket_width > number:
            end -= 1
        if end == first:
            return 0
        span = slice(first, end)
        acts = repeat(self._act, end - first)
        ones = self._ones[span]
        events = zip(self._moments[span], acts, ones, self._others[span], strict=True)
        count = len(due)
        due.extend(events if self._matter is None else compress(events, self._matter(ones)))
        self._first = end
        if end > _MAX_MOVED and 2 * end > len(self._moments):
            del self._moments[:end], self._ones[:end], self._others[:end]
            self._first = 0
        return len(ones) - (len(due) - count)
