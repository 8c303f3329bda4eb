"""What lies between the nodes of a simulated world: how long frames take, and what fails."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Protocol

from trio_overlay.errors import UsageError
from trio_overlay.nodes.heartbeat import Heartbeat

SERVER: Final = -1
"""The bootstrap server's number; nodes count from 0, which is the root."""

_QUANTILES: Final = 4096


class Latency(Protocol):
    """Seconds that a frame takes from one end to another, the server (`SERVER`) among them.

    A way always takes the same time, in both directions, as a cable does: so a channel keeps its
    frames in order, and no chance is needed once the world stands.
    """

    def __call__(self, source: int, target: int) -> float: ...


class Distributed:
    """Ways whose lengths are distributed as *quantile* says: of 0 to 1, the share below.

    Which length a way has is drawn by a hash of its two ends and *seed*: nothing need be kept.
    """

    def __init__(self, quantile: Callable[[float], float], seed: int) -> None:
        self._lengths = [quantile((index + 0.5) / _QUANTILES) for index in range(_QUANTILES)]
        self._salt = random.Random(f"{seed}/ways").getrandbits(32)

    def __call__(self, source: int, target: int) -> float:
        low, high = (source, target) if source < target else (target, source)
        # Python's hash of whole numbers and tuples of them is salted by nothing.
        return self._lengths[hash((low, high, self._salt)) % _QUANTILES]


class Geographic:
    """Ways as long as the great circle between two points on a globe, at light's pace in glass.

    The *count* nodes and the server live at random points of *count_cities* cities. Real routes
    are longer than the great circle by a factor of about 1.5, and begin with *access* seconds of
    the last mile at either end.
    """

    def __init__(
        self, count: int, seed: int, *, count_cities: int = 100, access: float = 0.004
    ) -> None:
        rng = random.Random(f"{seed}/globe")
        cities = [_random_point(rng) for _ in range(count_cities)]
        self._access = access
        self._city_of = [int(rng.random() * count_cities) for _ in range(count + 1)]
        kilometres_per_second = 200_000 / 1.5
        self._lengths = [
            [
                math.acos(max(-1.0, min(1.0, _dot(a, b)))) * 6371 / kilometres_per_second
                for b in cities
            ]
            for a in cities
        ]

    def __call__(self, source: int, target: int) -> float:
        return 2 * self._access + self._lengths[self._city_of[source]][self._city_of[target]]


def constant(seconds: float) -> Latency:
    """Every way takes *seconds*."""
    return lambda source, target: seconds  # noqa: ARG005 - a Latency has both


def uniform(low: float, high: float, seed: int) -> Latency:
    """Ways between *low* and *high* seconds."""
    return Distributed(lambda share: low + (high - low) * share, seed)


def lognormal(median: float, sigma: float, seed: int) -> Latency:
    """Ways around *median* seconds with a long tail; *sigma* is that of the logarithm.

    Measured internet latencies look like it: at a sigma of 0.5, 98 % are below 2.8 times the
    median.
    """
    normal = NormalDist(math.log(median), sigma)
    return Distributed(lambda share: math.exp(normal.inv_cdf(share)), seed)


def parse_latency(text: str, count: int, seed: int) -> Latency:
    """The latency that *text* names, for *count* nodes.

    ``constant:0.05``, ``uniform:0.005:0.05``, ``lognormal:0.04:0.5`` or ``geographic``; numbers are
    seconds, but for the sigma of the lognormal.

    UsageError: *text* names none.
    """
    name, *rest = text.split(":")
    try:
        numbers = [float(number) for number in rest]
    except ValueError:
        numbers = [-1.0]
    if all(0 <= number < math.inf for number in numbers):
        match name, numbers:
            case "constant", [seconds]:
                return constant(seconds)
            case "uniform", [low, high] if low <= high:
                return uniform(low, high, seed)
            case "lognormal", [median, sigma] if median > 0 and sigma > 0:
                return lognormal(median, sigma, seed)
            case "geographic", []:
                return Geographic(count, seed)
    raise UsageError(
        f"{text!r} is no latency: constant:SECONDS, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA and "
        "geographic are"
    )


@dataclass(frozen=True, slots=True)
class Links:
    """Everything that holds for the ways of one world."""

    latency: Latency
    bandwidth: float | None = None
    """Bytes a second of each node's uplink, which sends one frame after another; None: no limit."""
    server_bandwidth: float | None = None
    """The same, of the server."""
    flights_to_connect: int = 6
    """Flights between the two ends that ICE, DTLS and SCTP take after both descriptions are there;
    as in the virtual network."""
    handshake_failure: float = 0.0
    """Probability that a handshake comes to nothing: all is said, and nothing connects."""
    joiner_sees_first: float = 0.5
    """Probability that the joiner, not the parent, is the first to see the channel open; the other
    sees it one flight later."""
    noticed_after: float = Heartbeat().timeout
    """Seconds of silence after which a channel counts as lost."""


def _random_point(rng: random.Random) -> tuple[float, float, float]:
    z = 2 * rng.random() - 1
    angle = math.tau * rng.random()
    radius = math.sqrt(1 - z * z)
    return radius * math.cos(angle), radius * math.sin(angle), z


def _dot(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
