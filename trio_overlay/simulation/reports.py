"""What came of a simulated world: the figures that the Genet paper asks for, and their JSON.

Lavoie, Hendren, Desprez, Correia: "Genet: A Quickly Scalable Fat-Tree Overlay for Personal
Volunteer Computing using WebRTC" (SASO 2019) asks how deep and how balanced the tree is, how long
joining takes, and what it costs the root and the bootstrap server.
"""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from trio_overlay.protocol.json import JSON
from trio_overlay.simulation.frames import FRAME_SIZES, KINDS
from trio_overlay.simulation.world import TreeWorld

MAX_BINS = 500


@dataclass(frozen=True, slots=True)
class Depths:
    """How deep the nodes of the root's tree sit, the root (depth 0) among them."""

    nodes: tuple[int, ...]
    """How many at each depth."""
    perfect: tuple[int, ...]
    """How many there would be if the same nodes filled the tree perfectly."""

    @property
    def height(self) -> int:
        return len(self.nodes) - 1

    @property
    def perfect_height(self) -> int:
        return len(self.perfect) - 1

    @property
    def mean(self) -> float:
        return sum(depth * count for depth, count in enumerate(self.nodes)) / sum(self.nodes)

    @property
    def perfect_mean(self) -> float:
        return sum(depth * count for depth, count in enumerate(self.perfect)) / sum(self.perfect)

    @property
    def balance(self) -> float:
        """The share of the nodes that sit at or above the depth of a perfectly filled tree."""
        return sum(self.nodes[: len(self.perfect)]) / sum(self.nodes)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Durations in seconds, of `count` cases; all 0 if there is none."""

    count: int
    mean: float
    quantiles: tuple[float, ...]
    """The 0th to the 100th percentile."""

    @property
    def median(self) -> float:
        return self.quantiles[50]


@dataclass(frozen=True, slots=True)
class Load:
    """What one of the two that everybody needs had to carry, in and out together."""

    messages: int
    bytes: int
    peak: int
    """Messages in the busiest second."""
    bin_seconds: int
    series: tuple[int, ...]
    """Messages in the busiest second of each `bin_seconds`."""


@dataclass(frozen=True, slots=True)
class TreeReport:
    """Everything that is said of a world when it is over; a run repeated gives the same."""

    nodes: int
    """All there were, the root among them."""
    closed: int
    """How many left or crashed."""
    joined: int
    """How many of those that were to join got a parent, ever."""
    failed_attempts: int
    attached: int
    """How many are in the root's tree at the end, the root among them."""
    unattached: int
    """How many are alive at the end, but not in it: orphans, all below them, who never joined."""
    depths: Depths
    join_time: Distribution
    """From a node's arrival to its first parent."""
    messages: Mapping[str, int]
    """Frames sent, by kind; a frame counts once on each leg of its way."""
    lost: int
    """Frames to those who were dead, gone or cut off."""
    dropped: int
    """Requests that a node did not take."""
    orphaned: int
    """How often a node lost its parent and lived on."""
    orphans: int
    """How many are without their parent at the end."""
    peak_orphans: int
    orphan_time: Distribution
    """From the loss of a parent to a new one, or else to the end; without those who ended first."""
    root: Load
    """Requests and withdrawals only."""
    root_peak_requests: int
    """Delegated requests that the root kept at a time; a real node keeps 10,000."""
    server: Load
    events: int
    seconds: float
    """Virtual seconds from the beginning to the last event."""

    @property
    def messages_per_join(self) -> float:
        """All messages, by the number of those who joined."""
        return sum(self.messages.values()) / max(1, self.joined)

    def to_json(self, setting: Mapping[str, JSON] | None = None) -> str:
        """The report as JSON text, with *setting*, what it is a report of, before it.

        The same world gives the same text, byte for byte.
        """
        fields = asdict(self)
        fields["depths"] |= {
            "height": self.depths.height,
            "perfect_height": self.depths.perfect_height,
            "mean": self.depths.mean,
            "balance": self.depths.balance,
        }
        fields["messages_per_join"] = self.messages_per_join
        return json.dumps({"setting": dict(setting or {}), "report": fields}, indent=1) + "\n"


def report_on(world: TreeWorld) -> TreeReport:
    """The report on a *world* that has run."""
    depths = world.depths()
    traffic = world.traffic
    counts = Counter(depths.values())
    alive = sum(world.is_alive)
    waiting = [world.now - since for since in world.orphaned_at if not math.isnan(since)]
    joined = array("d", (seconds for seconds in world.joined_after if not math.isnan(seconds)))
    return TreeReport(
        nodes=world.count_nodes,
        closed=world.count_closed,
        joined=len(joined),
        failed_attempts=world.count_failed,
        attached=len(depths),
        unattached=alive - len(depths),
        depths=Depths(
            tuple(counts[depth] for depth in range(len(counts))),
            perfect_tree(len(depths), world.max_degree),
        ),
        join_time=distribution(joined),
        messages=dict(zip(KINDS, traffic.count_sent, strict=True)),
        lost=sum(traffic.count_lost),
        dropped=world.count_dropped,
        orphaned=world.count_orphaned,
        orphans=world.count_orphans,
        peak_orphans=max(world.orphans.values()),
        orphan_time=distribution([*world.orphan_times, *waiting]),
        root=_load(traffic.root_load, traffic.root_bytes),
        root_peak_requests=world.peak_requests,
        server=_load(
            traffic.server_load,
            sum(n * size for n, size in zip(traffic.count_by_server, FRAME_SIZES, strict=True)),
        ),
        events=world.agenda.count_events,
        seconds=world.now,
    )


def perfect_tree(count: int, max_degree: int) -> tuple[int, ...]:
    """How many nodes stand at each depth when *count* fill the tree from the top."""
    levels = []
    places = 1
    while count > 0:
        levels.append(min(count, places))
        count -= places
        places *= max_degree
    return tuple(levels)


def distribution(durations: Sequence[float]) -> Distribution:
    """The *durations*, which need not be sorted."""
    ordered = sorted(durations)
    if not ordered:
        return Distribution(0, 0.0, (0.0,) * 101)
    last = len(ordered) - 1
    # The nearest that there was; in between nobody waited.
    quantiles = tuple(ordered[math.ceil(last * share / 100)] for share in range(101))
    return Distribution(len(ordered), math.fsum(ordered) / len(ordered), quantiles)


def _load(by_second: Sequence[int], size: int) -> Load:
    width = math.ceil(len(by_second) / MAX_BINS) or 1
    series = tuple(
        max(by_second[start : start + width]) for start in range(0, len(by_second), width)
    )
    return Load(sum(by_second), size, max(by_second, default=0), width, series)
