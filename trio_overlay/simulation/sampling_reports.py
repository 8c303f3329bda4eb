"""What came of a network of peers that sample it, beside random graphs of the same size.

The figures are those of the Spray papers: how many arcs, how clustered, how evenly they lead to
everybody, and how many peers may be lost until the network falls apart.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from trio_overlay.protocol.json import JSON
from trio_overlay.simulation.graphs import (
    Graph,
    clustering,
    histogram,
    in_degrees,
    largest_component,
    mean_distance,
    random_graph,
    shares_after_losses,
)
from trio_overlay.simulation.sampling import SamplingWorld, Watch

LOSSES = tuple(percent / 100 for percent in range(5, 100, 5))


@dataclass(frozen=True, slots=True)
class Shape:
    """A graph's figures."""

    clustering: float
    in_degrees: tuple[int, ...]
    """To how many peers 0, 1, 2 … arcs lead."""
    mean_distance: float
    """Connections between two peers, from 50 peers at random to all."""
    largest: float
    """The share of all peers in the largest connected part."""

    @property
    def in_degree_variance(self) -> float:
        count = sum(self.in_degrees)
        mean = sum(degree * n for degree, n in enumerate(self.in_degrees)) / count
        return sum(n * (degree - mean) ** 2 for degree, n in enumerate(self.in_degrees)) / count


@dataclass(frozen=True, slots=True)
class Estimates:
    """What peers think how many they are."""

    low: float
    """Five percent think it is less."""
    median: float
    high: float
    """Five percent think it is more."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A network at one moment."""

    moment: float
    alive: int
    views: tuple[int, ...]
    """How many peers have 0, 1, 2 … arcs in their views."""
    mean_view: float
    expected_view: float
    """a·ln(n)+b, of those alive."""
    isolated: int
    """Peers without an arc to or from anybody alive."""
    estimates: Estimates
    sampled: Shape
    random: Shape
    """A random graph with the same number of arcs at each peer."""


@dataclass(frozen=True, slots=True)
class Round:
    """What is looked at more often."""

    moment: float
    alive: int
    mean_view: float
    largest: float
    estimates: Estimates


@dataclass(frozen=True, slots=True)
class Loss:
    """What is left of the settled network right after a share of it is taken away at random."""

    share: float
    least: float
    """The share of the survivors in the largest part, in the worst of the trials."""
    mean: float
    random_least: float
    """The same of the random graph."""
    random_mean: float


@dataclass(frozen=True, slots=True)
class SamplingReport:
    """Everything that is said of a world when it is over; a run repeated gives the same."""

    settled: Snapshot
    after_failure: Snapshot | None
    """When those who crashed are gone, and nobody has noticed."""
    healed: Snapshot | None
    rounds: tuple[Round, ...]
    losses: tuple[Loss, ...]
    trials: int
    exchanges: int
    arcs: int
    """Opened, in all."""
    connections: int
    """WebRTC connections made for them."""
    failed: int
    rejoined: int
    """How often a peer with no arc left joined again."""
    events: int
    seconds: float
    """Virtual seconds."""

    @property
    def breaks_at(self) -> float | None:
        """The least of `LOSSES` whose worst trial leaves more than one part; None: none does."""
        return next((loss.share for loss in self.losses if loss.least < 1), None)

    @property
    def random_breaks_at(self) -> float | None:
        return next((loss.share for loss in self.losses if loss.random_least < 1), None)

    def to_json(self, setting: Mapping[str, JSON] | None = None) -> str:
        """The report as JSON text, with *setting*, what it is a report of, before it.

        The same world gives the same text, byte for byte.
        """
        fields = asdict(self) | {
            "breaks_at": self.breaks_at,
            "random_breaks_at": self.random_breaks_at,
        }
        return json.dumps({"setting": dict(setting or {}), "report": fields}, indent=1) + "\n"


class Observer:
    """Watches a world while it runs, and reports on it afterwards."""

    def __init__(
        self,
        world: SamplingWorld,
        *,
        seed: int = 0,
        a: float = 1.0,
        b: float = 0.0,
        trials: int = 10,
    ) -> None:
        self.watch = Watch(self._end_round, self._before_failure, self._after_failure)
        self._world = world
        self._a = a
        self._b = b
        self._trials = trials
        self._rng = random.Random(f"{seed}/observer")
        self._rounds: list[Round] = []
        self._settled: Snapshot | None = None
        self._after: Snapshot | None = None
        self._losses: tuple[Loss, ...] = ()

    def report(self) -> SamplingReport:
        """What came of the world, which has run with our `watch`."""
        world = self._world
        assert self._settled is not None
        return SamplingReport(
            settled=self._settled,
            after_failure=self._after,
            healed=self._look(world.now) if world.plan.has_failure else None,
            rounds=tuple(self._rounds),
            losses=self._losses,
            trials=self._trials,
            exchanges=world.count_exchanges,
            arcs=world.count_arcs,
            connections=world.count_connections,
            failed=world.count_failed,
            rejoined=world.count_rejoined,
            events=world.agenda.count_events,
            seconds=world.now,
        )

    def _end_round(self, moment: float) -> None:
        alive = self._world.alive()
        self._rounds.append(
            Round(
                moment,
                len(alive),
                sum(len(self._world.sprays[node].view) for node in alive) / len(alive),
                largest_component(self._world.graph()) / len(alive),
                self._estimates(alive),
            )
        )

    def _before_failure(self, moment: float) -> None:
        self._settled = self._look(moment)
        graph = self._world.graph()
        found = shares_after_losses(graph, LOSSES, self._rng, trials=self._trials)
        random_one = random_graph(graph, self._rng)
        chance = shares_after_losses(random_one, LOSSES, self._rng, trials=self._trials)
        self._losses = tuple(
            Loss(loss, min(here), _mean(here), min(there), _mean(there))
            for loss, here, there in zip(LOSSES, found, chance, strict=True)
        )

    def _after_failure(self, moment: float) -> None:
        self._after = self._look(moment)

    def _look(self, moment: float) -> Snapshot:
        world = self._world
        alive = world.alive()
        views = [len(world.sprays[node].view) for node in alive]
        graph = world.graph()
        degrees = in_degrees(graph)
        return Snapshot(
            moment,
            len(alive),
            tuple(histogram(views)),
            _mean(views),
            self._a * math.log(len(alive)) + self._b,
            sum(not targets and not degree for targets, degree in zip(graph, degrees, strict=True)),
            self._estimates(alive),
            self._shape(graph),
            self._shape(random_graph(graph, self._rng)),
        )

    def _shape(self, graph: Graph) -> Shape:
        return Shape(
            clustering(graph),
            tuple(histogram(in_degrees(graph))),
            mean_distance(graph, self._rng),
            largest_component(graph) / len(graph),
        )

    def _estimates(self, alive: Sequence[int]) -> Estimates:
        ordered = sorted(self._world.sprays[node].estimate_size() for node in alive)
        last = len(ordered) - 1
        low, median, high = (ordered[round(last * share)] for share in (0.05, 0.5, 0.95))
        return Estimates(low, median, high)


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers)
