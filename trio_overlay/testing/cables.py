"""What lies between two hosts of a virtual network: ways, wires and cables.

A *way* leads from one host to another and knows what the rules say of it. A *wire* is one
direction of one connection, and keeps its frames in order. A *cable* is a connection: two wires
and the channel ends on them.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from trio_overlay.channels.channel import Frame
from trio_overlay.channels.memory import MemoryChannel, memory_channel_pair
from trio_overlay.channels.timeline import Appointment, Timeline
from trio_overlay.testing.faults import Carrier, Conditions, Latency
from trio_overlay.testing.history import History

if TYPE_CHECKING:
    from trio_overlay.testing.network import VirtualHost

JITTER = 0.1
"""A frame takes up to so much longer than the way's latency, as a fraction of it."""

LONGEST_FRAME_IN_HISTORY = 500


class _Conditions(dict[Carrier, Conditions]):
    """Found when they are asked for, which is for each frame twice."""

    def __init__(
        self, source: str, target: str, find: Callable[[str, str, Carrier], Conditions]
    ) -> None:
        self._source = source
        self._target = target
        self._find = find

    def __missing__(self, carrier: Carrier) -> Conditions:
        found = self[carrier] = self._find(self._source, self._target, carrier)
        return found


class Way:
    """From one host to another."""

    def __init__(
        self,
        source: str,
        target: str,
        rng: random.Random,
        find: Callable[[str, str, Carrier], Conditions],
    ) -> None:
        self.source = source
        self.target = target
        self._rng = rng
        # Where in a range of latencies this way lies: the same under every rule.
        self._length = rng.random()
        self.conditions = _Conditions(source, target, find)
        """What the rules make of this way, by carrier; remembered until `forget_conditions`."""

    def forget_conditions(self) -> None:
        """The rules for this way have changed."""
        self.conditions.clear()

    def draw_delay(self, latency: Latency) -> float:
        """Seconds that one frame takes here."""
        shortest = latency.low + (latency.high - latency.low) * self._length
        return shortest * (1 + JITTER * self._rng.random())

    def draw_lateness(self, probability: float, seconds: float) -> float:
        """With *probability* anything up to *seconds*, else 0."""
        return self._rng.uniform(0, seconds) if self.draw(probability) else 0.0

    def draw(self, probability: float) -> bool:
        """True with *probability*."""
        return probability > 0 and self._rng.random() < probability


class Wire:
    """One direction of a cable: what it carries arrives in order, later, and perhaps never."""

    def __init__(self, way: Way, timeline: Timeline, carrier: Carrier) -> None:
        self.way = way
        self._timeline = timeline
        self._carrier = carrier
        self._under_way: deque[tuple[float, Callable[[], None]]] = deque()
        self._last_arrival_at = 0.0
        self._next: Appointment | None = None
        self._is_dead = False

    def carry(self, arrival: Callable[[], None], _: Frame | None = None) -> None:
        """Call *arrival* when what was sent now has got through."""
        if self._is_dead:
            return
        conditions = self.way.conditions[self._carrier]
        arrives_at = self._timeline.now() + self.way.draw_delay(conditions.latency)
        if arrives_at < self._last_arrival_at:
            arrives_at = self._last_arrival_at
        if conditions.frames_per_second is not None:
            arrives_at = max(arrives_at, self._last_arrival_at + 1 / conditions.frames_per_second)
        self._last_arrival_at = arrives_at
        self._under_way.append((arrives_at, arrival))
        if self._next is None and not conditions.is_cut:
            self._next = self._timeline.at(self._under_way[0][0], self._arrive)

    def resume(self) -> None:
        """The rules have changed: what was held goes on if the way is free now."""
        conditions = self.way.conditions[self._carrier]
        if not conditions.is_cut and self._under_way and self._next is None:
            again_at = self._timeline.now() + self.way.draw_delay(conditions.latency)
            self._next = self._timeline.at(max(again_at, self._under_way[0][0]), self._arrive)

    def die(self) -> None:
        """Nothing gets through any more, and what is under way is lost."""
        self._is_dead = True
        self._under_way.clear()
        if self._next is not None:
            self._next.cancel()

    def _arrive(self) -> None:
        self._next = None
        if self.way.conditions[self._carrier].is_cut:
            return  # held; `resume` sends it on
        now = self._timeline.now()
        while self._under_way and self._under_way[0][0] <= now:
            self._under_way.popleft()[1]()
        if self._under_way and self._next is None:
            self._next = self._timeline.at(self._under_way[0][0], self._arrive)


class Cable:
    """A connection between two hosts, from its first frame until both ends have let go."""

    def __init__(
        self,
        number: int,
        hosts: tuple[VirtualHost, VirtualHost],
        carrier: Carrier,
        wires: tuple[Wire, Wire],
        timeline: Timeline,
        history: History | None,
    ) -> None:
        self.number = number
        self.hosts = hosts
        self.names = (hosts[0].name, hosts[1].name)
        self.carrier: Carrier = carrier
        self.wires = wires
        self.ends: tuple[MemoryChannel, MemoryChannel] | None = None
        self._timeline = timeline
        self._history = history
        self._break: Appointment | None = None
        self._is_held = [True, True]

    def __str__(self) -> str:
        return f"{self.carrier} #{self.number} {self.names[0]}-{self.names[1]}"

    def open_ends(self, max_frame_size: int) -> tuple[MemoryChannel, MemoryChannel]:
        """Put a channel on the wires; its two ends, in the order of `names`."""
        self.ends = memory_channel_pair(
            max_frame_size=max_frame_size,
            wires=(self._way_in(0), self._way_in(1)),
        )
        return self.ends

    def refresh(self, is_cut: bool, noticed_after: float | None) -> None:
        """The rules have changed; *is_cut* in at least one direction, or not."""
        for wire in self.wires:
            wire.resume()
        if not is_cut:
            if self._break is not None:
                self._break.cancel()
                self._break = None
        elif self._break is None and noticed_after is not None:
            self._break = self._timeline.after(
                noticed_after, lambda: self._notice(f"nothing was heard for {noticed_after:g} s")
            )

    def crash_end(self, index: int, noticed_after: float | None) -> None:
        """The host of one end is no more: its end breaks now, the other in *noticed_after*."""
        for wire in self.wires:
            wire.die()
        if self.ends is None:
            return
        self.ends[index].break_nowait("this host has crashed")
        if noticed_after is not None:
            other = self.ends[1 - index]
            self._timeline.after(
                noticed_after,
                lambda: other.break_nowait(f"nothing is heard from {self.names[index]}"),
            )

    def let_go(self, index: int) -> bool:
        """The owner of one end closes it; whether nobody holds the other end any more either."""
        if self.ends is not None:
            self.ends[index].close_nowait()
        self._is_held[index] = False
        if any(self._is_held):
            return False
        for wire in self.wires:
            wire.die()
        if self._break is not None:
            self._break.cancel()
        return True

    def _way_in(self, index: int) -> Callable[[Callable[[], None], Frame | None], None]:
        """What the channel's end of that *index* is given for a wire."""
        history, wire = self._history, self.wires[index]
        if history is None:
            return wire.carry

        def carry(arrival: Callable[[], None], frame: Frame | None) -> None:
            what = "closes" if frame is None else _brief(frame)
            history.record(f"{self.names[index]} on {self}: {what}")
            wire.carry(arrival)

        return carry

    def _notice(self, reason: str) -> None:
        if self.ends is not None:
            for end in self.ends:
                end.break_nowait(reason)


def _brief(frame: Frame) -> str:
    if len(frame) <= LONGEST_FRAME_IN_HISTORY:
        return repr(frame)
    content = frame if isinstance(frame, bytes) else frame.encode("utf-8", "surrogatepass")
    return f"{len(frame)} long, {hashlib.sha256(content).hexdigest()}"
