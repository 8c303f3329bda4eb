"""Who comes, goes and fails, and when: plans, and the scenarios that make them.

A plan holds everything that chance decides about it, so that real nodes on the virtual network
and the simulator can live through the same one.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

DAY: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Crash:
    """At the moment `at`, the processes of `nodes` die without a word."""

    at: float
    nodes: Sequence[int]


@dataclass(frozen=True, slots=True)
class Partition:
    """From `at` to `heals_at` nothing gets from one group to another."""

    at: float
    heals_at: float
    group_of: Sequence[int]
    """Each node's group, the root's first; the server is in group 0."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens to a world, but for what its nodes do. Moments are seconds from the beginning.

    Node 0 is the root, there from the beginning and to the end; others are counted from 1.
    """

    arrivals: Sequence[float]
    """When each node begins to join, node 1 first."""
    departures: Sequence[float] | None = None
    """When each node closes, node 1 first; infinity for never. None: nobody does."""
    crashes: Sequence[Crash] = ()
    partition: Partition | None = None
    node_ids: Sequence[int] | None = None
    """Each node's number for the hash of the original, the root's first; None: they are drawn."""
    ends_at: float = math.inf
    """When the story is over; infinity: when nothing happens any more."""

    @property
    def count_nodes(self) -> int:
        """How many nodes there are, the root among them."""
        return len(self.arrivals) + 1


@dataclass(frozen=True, slots=True)
class Dials:
    """What can be turned at the scenarios; each uses what it has use for."""

    interval: float = 2.0
    """none: seconds between two arrivals; a join takes less, unless the latencies are long."""
    rate: float = 100.0
    """poisson: arrivals a second, on average."""
    session: float = 7200.0
    """diurnal: the mean length of a session, in seconds."""
    share: float = 0.5
    """massacre: of those who have joined, how many crash; partition: how many are cut off."""
    cut_duration: float = 120.0
    """partition: seconds until it is healed."""


def one_by_one(count: int, rng: random.Random, dials: Dials) -> Plan:  # noqa: ARG001
    """One after another, and nobody leaves."""
    return Plan(array("d", (dials.interval * number for number in range(count))))


def flash_crowd(count: int, rng: random.Random, dials: Dials) -> Plan:  # noqa: ARG001
    """All at the same moment."""
    return Plan(array("d", bytes(8 * count)))


def poisson(count: int, rng: random.Random, dials: Dials) -> Plan:
    """Independently of each other, at a constant rate."""
    now = 0.0
    arrivals = array("d")
    for _ in range(count):
        now += rng.expovariate(dials.rate)
        arrivals.append(now)
    return Plan(arrivals)


def diurnal(count: int, rng: random.Random, dials: Dials) -> Plan:
    """The arrivals of one day, from midnight to midnight, most at noon; sessions end.

    The rate follows a cosine down to a tenth of its peak at night. The lengths of sessions are
    exponential, as in most studies of churn that know no better; everybody leaves in good order.
    """
    arrivals = array("d", sorted(_moment_of_day(rng) for _ in range(count)))
    departures = array("d", (at + rng.expovariate(1 / dials.session) for at in arrivals))
    return Plan(arrivals, departures, ends_at=DAY)


def massacre(count: int, rng: random.Random, dials: Dials) -> Plan:
    """Nine tenths join in a minute; a share of them crashes at 120 s; the rest come after it."""
    arrivals, there = _before_and_after(count, rng)
    crashed = sorted(rng.sample(range(1, there + 1), round(there * dials.share)))
    return Plan(arrivals, crashes=(Crash(_FAILURE_AT, crashed),))


def partition(count: int, rng: random.Random, dials: Dials) -> Plan:
    """Nine tenths join in a minute; a share is cut off at 120 s; the rest come while it is."""
    arrivals, _ = _before_and_after(count, rng)
    group_of = bytearray(count + 1)
    for node in rng.sample(range(1, count + 1), round(count * dials.share)):
        group_of[node] = 1
    cut = Partition(_FAILURE_AT, _FAILURE_AT + dials.cut_duration, group_of)
    return Plan(arrivals, partition=cut)


SCENARIOS: Final = MappingProxyType[str, Callable[[int, random.Random, Dials], Plan]](
    {
        "none": one_by_one,
        "flash-crowd": flash_crowd,
        "poisson": poisson,
        "diurnal": diurnal,
        "massacre": massacre,
        "partition": partition,
    }
)
"""By name: given how many join the root, they make a plan."""


_FAILURE_AT: Final = 120.0


def _before_and_after(count: int, rng: random.Random) -> tuple[array[float], int]:
    """Arrivals in the first minute, and in the minute after the failure; how many are the first."""
    first = count - count // 10
    before = sorted(60 * rng.random() for _ in range(first))
    after = sorted(_FAILURE_AT + 60 * rng.random() for _ in range(count - first))
    return array("d", before + after), first


def _moment_of_day(rng: random.Random) -> float:
    while True:
        at = DAY * rng.random()
        if rng.random() < 0.55 - 0.45 * math.cos(math.tau * at / DAY):
            return at
