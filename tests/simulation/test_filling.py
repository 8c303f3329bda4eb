"""Simulated trees that fill exactly: perfect in quiet, and again after whatever happened."""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest

from tests.simulation.test_world import check
from trio_overlay.nodes.tree import REPORT_INTERVAL
from trio_overlay.protocol.filling import same
from trio_overlay.simulation.filling import FillingTreeWorld
from trio_overlay.simulation.links import Links, parse_latency, uniform
from trio_overlay.simulation.reports import Depths, report_on
from trio_overlay.simulation.scenarios import SCENARIOS, Crash, Dials, Plan


def world_of(plan: Plan, *, seed: int = 1, **options: Any) -> FillingTreeWorld:
    """A world that has run."""
    links = options.pop("links", None) or Links(uniform(0.005, 0.05, seed))
    world = FillingTreeWorld(plan, links, seed=seed, **{"max_degree": 3, **options})
    world.run()
    return world


def plan_of(scenario: str, count: int, seed: int = 1) -> Plan:
    return SCENARIOS[scenario](count, random.Random(seed), Dials(session=3600))


def churn(count: int, seed: int) -> Plan:
    """*count* join in a minute; in the next, half of them crash and as many come."""
    rng = random.Random(seed)
    before = sorted(60 * rng.random() for _ in range(count))
    after = sorted(60 + 60 * rng.random() for _ in range(count // 2))
    crashed = rng.sample(range(1, count + 1), count // 2)
    crashes = [Crash(at, (node,)) for at, node in zip(after, crashed, strict=True)]
    return Plan(before + after, crashes=crashes)


def check_beliefs(world: FillingTreeWorld) -> None:
    """What a parent believes of the free places below its child is so."""
    for node in world.depths():
        for child in world.children_of(node):
            origin = world.origin_of(child)
            assert origin is not None
            assert same(world.branch(node).views[origin], world.branch(child).view)


def depths_of(world: FillingTreeWorld) -> Depths:
    return report_on(world).depths


@pytest.mark.parametrize("pulls", [False, True])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_keeps_the_invariants(scenario: str, pulls: bool) -> None:
    world = world_of(plan_of(scenario, 300), pulls=pulls)
    check(world)
    check_beliefs(world)


@pytest.mark.parametrize("scenario", ["flash-crowd", "massacre", "partition"])
@pytest.mark.parametrize("seed", range(3))
def test_invariants_hold_with_handshakes_that_fail(scenario: str, seed: int) -> None:
    links = Links(parse_latency("lognormal:0.04:0.6", 401, seed), handshake_failure=0.1)
    world = world_of(plan_of(scenario, 400, seed), seed=seed, links=links, attempts=9)
    check(world)
    check_beliefs(world)
    assert depths_of(world).balance >= 0.99


@pytest.mark.parametrize(("count", "degree"), [(364, 3), (500, 2), (1000, 10)])
def test_one_after_another_fill_the_tree_perfectly(count: int, degree: int) -> None:
    depths = depths_of(world_of(plan_of("none", count), max_degree=degree))
    assert depths.nodes == depths.perfect


@pytest.mark.parametrize("degree", [2, 3, 10])
def test_a_thousand_at_the_same_moment_fill_the_tree(degree: int) -> None:
    assert depths_of(world_of(plan_of("flash-crowd", 1000), max_degree=degree)).balance >= 0.99


@pytest.mark.parametrize("seed", range(3))
def test_the_tree_is_filled_after_half_have_gone_and_as_many_have_come(seed: int) -> None:
    depths = depths_of(world_of(churn(1000, seed), seed=seed, attempts=9))
    assert sum(depths.nodes) == 1001
    assert depths.balance >= 0.99
    assert depths.height <= depths.perfect_height + 1


def test_it_is_the_pull_that_fills_holes_after_a_massacre() -> None:
    plan = plan_of("massacre", 1000)
    without = depths_of(world_of(plan, pulls=False))
    with_it = depths_of(world_of(plan))
    assert without.balance < 0.95
    assert with_it.nodes == with_it.perfect


class Watched(FillingTreeWorld):
    """Notes when each node reports, and how each move changes a leaf's depth."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.reported_at: dict[int, list[float]] = defaultdict(list)
        self.moves: list[tuple[int, int]] = []

    def _up(self, now: float, node: int, kind: int, act: Any, link: int, other: int) -> None:
        if act == self._take_report:
            self.reported_at[node].append(now)
        super()._up(now, node, kind, act, link, other)

    def _confirm_pulled(self, now: float, link: int) -> None:
        node = self.node_of[link]
        before, count = self._depth_of(node), self.count_moved
        super()._confirm_pulled(now, link)
        if self.count_moved > count:
            self.moves.append((before, self._depth_of(node)))


def watched() -> Watched:
    links = Links(uniform(0.005, 0.05, 1), handshake_failure=0.05)
    world = Watched(plan_of("massacre", 1000), links, seed=1, max_degree=3, attempts=5)
    world.run()
    return world


def test_a_leaf_moves_only_to_where_it_stands_higher() -> None:
    world = watched()
    assert len(world.moves) == world.count_moved > 10
    assert all(after < before for before, after in world.moves)


def test_a_node_reports_a_few_times_a_second_at_most() -> None:
    moments = watched().reported_at
    assert sum(map(len, moments.values())) > 100
    for times in moments.values():
        gaps = [later - sooner for sooner, later in pairwise(times)]
        assert all(gap >= REPORT_INTERVAL - 1e-9 for gap in gaps)


def test_a_storm_without_failures_costs_few_reports() -> None:
    report = report_on(world_of(plan_of("flash-crowd", 3000), max_degree=10))
    assert report.messages["report"] < 0.05 * report.joined
