"""How long frames take."""

from __future__ import annotations

import statistics

import pytest

from trio_overlay.errors import UsageError
from trio_overlay.simulation.links import SERVER, parse_latency

COUNT = 200


@pytest.mark.parametrize(
    "text", ["constant:0.05", "uniform:0.01:0.2", "lognormal:0.04:0.5", "geographic"]
)
def test_a_way_always_takes_the_same_time_in_both_directions(text: str) -> None:
    latency, again = (parse_latency(text, COUNT, 1) for _ in range(2))
    for source in (SERVER, 0, 17, COUNT - 1):
        for target in (SERVER, 3, COUNT - 2):
            delay = latency(source, target)
            assert delay == latency(target, source) == again(source, target)
            assert 0 < delay < 1


def test_latencies_are_distributed_as_they_say() -> None:
    ways = [(source, target) for source in range(COUNT) for target in range(source)]
    latency = parse_latency("uniform:0.01:0.2", COUNT, 1)
    uniform = sorted(latency(*way) for way in ways)
    assert uniform[0] >= 0.01
    assert uniform[-1] <= 0.2
    assert statistics.fmean(uniform) == pytest.approx(0.105, rel=0.02)
    latency = parse_latency("lognormal:0.04:0.5", COUNT, 1)
    lognormal = sorted(latency(*way) for way in ways)
    assert statistics.median(lognormal) == pytest.approx(0.04, rel=0.02)
    assert lognormal[int(len(ways) * 0.98)] == pytest.approx(0.04 * 2.8, rel=0.05)


def test_the_globe_is_round() -> None:
    latency = parse_latency("geographic", COUNT, 1)
    delays = [latency(0, other) for other in range(1, COUNT)]
    half_way_around = 2 * 0.004 + 20_015 / (200_000 / 1.5)
    assert max(delays) <= half_way_around
    assert min(delays) < 0.05 < max(delays)


@pytest.mark.parametrize(
    "text",
    ["", "constant", "constant:x", "constant:-1", "constant:nan", "uniform:2:1", "lognormal:0:1",
     "lognormal:1", "geographic:1", "moon"],
)  # fmt: skip
def test_what_is_no_latency_is_refused_with_what_would_be(text: str) -> None:
    with pytest.raises(UsageError, match="constant:SECONDS"):
        parse_latency(text, COUNT, 1)
