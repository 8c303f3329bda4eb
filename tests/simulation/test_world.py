"""Simulated worlds: what holds whatever happens, and what each scenario is about."""

from __future__ import annotations

import gc
import math
import random
from typing import Any

import pytest

from trio_overlay.protocol.branch import MAX_REQUESTS
from trio_overlay.simulation.frames import FRAME_SIZES, KINDS, OFFER
from trio_overlay.simulation.links import Links, constant, parse_latency, uniform
from trio_overlay.simulation.placements import PLACEMENTS
from trio_overlay.simulation.reports import report_on
from trio_overlay.simulation.scenarios import SCENARIOS, Crash, Dials, Partition, Plan
from trio_overlay.simulation.traffic import ROOT
from trio_overlay.simulation.world import TreeWorld


def world_of(scenario: str, count: int = 300, *, seed: int = 1, **options: Any) -> TreeWorld:
    """A world that has run."""
    links = options.pop("links", None) or Links(uniform(0.005, 0.05, seed))
    plan = SCENARIOS[scenario](count, random.Random(seed), Dials(session=3600))
    world = TreeWorld(plan, links, seed=seed, **{"max_degree": 3, **options})
    world.run()
    return world


def check(world: TreeWorld) -> None:
    """What holds for every world at its end."""
    depths = world.depths()  # asserts that there is no cycle
    parents: dict[int, int] = {}
    for node in range(world.count_nodes):
        branch = world.branch(node)
        assert len(branch.children) + len(branch.applicants) <= world.max_degree
        for child in world.children_of(node):
            assert child not in parents
            assert world.is_alive[node]
            assert world.is_alive[child]
            parents[child] = node
    for node in range(1, world.count_nodes):
        # Who has a parent is below the root, or below somebody who has lost his own.
        above, steps = node, 0
        while above in parents:
            above, steps = parents[above], steps + 1
            assert steps < world.count_nodes, "a cycle among orphans"
        assert (above == ROOT) == (node in depths)
    traffic = world.traffic
    under_way = [
        sent - arrived - lost
        for sent, arrived, lost in zip(
            traffic.count_sent, traffic.count_arrived, traffic.count_lost, strict=True
        )
    ]
    if world.plan.ends_at == math.inf:
        assert not any(under_way)
        assert not any(world.branch(node).requests for node in range(world.count_nodes))
    else:
        assert all(0 <= count < 100 for count in under_way)
    orphans = [since for since in world.orphaned_at if not math.isnan(since)]
    assert len(orphans) == world.count_orphans
    assert sum(world.is_alive) == world.count_nodes - world.count_closed


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_keeps_the_invariants(scenario: str, placement: str) -> None:
    check(world_of(scenario, place_rule=PLACEMENTS[placement](random.Random(1))))


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("seed", range(5))
def test_invariants_hold_with_failures_and_those_who_try_again(scenario: str, seed: int) -> None:
    links = Links(
        parse_latency("lognormal:0.04:0.6", 201, seed),
        bandwidth=100_000,
        server_bandwidth=1_000_000,
        handshake_failure=0.1,
    )
    world = world_of(scenario, 200, seed=seed, links=links, attempts=5)
    check(world)
    assert world.count_failed > 0


@pytest.mark.parametrize("scenario", ["flash-crowd", "massacre"])
@pytest.mark.parametrize("latency", ["constant:0.05", "uniform:0.005:0.05"])
def test_frames_that_go_in_rows_do_what_they_do_alone(scenario: str, latency: str) -> None:
    # An uplink without end takes no time, but each frame has to be asked about.
    reports = [
        report_on(world_of(scenario, links=Links(parse_latency(latency, 301, 1), bandwidth=width)))
        for width in (None, math.inf)
    ]
    assert reports[0].to_json() == reports[1].to_json()


@pytest.mark.parametrize("scenario", ["none", "flash-crowd", "poisson"])
def test_without_churn_everybody_joins_and_is_below_the_root(scenario: str) -> None:
    world = world_of(scenario)
    assert world.count_connected == 300
    assert len(world.depths()) == 301
    assert world.count_orphaned == world.count_failed == world.count_dropped == 0
    assert not any(world.traffic.count_lost)


def test_a_join_costs_its_frames_and_a_request_at_each_hop() -> None:
    world = world_of("none")
    hops = sum(world.depths().values())
    assert dict(zip(KINDS, world.traffic.count_sent, strict=True)) == {
        "dial": 600,
        "hello": 600,
        "offer": 300,
        "request": hops,
        "answer": 600,
        "done": 600,
        "withdrawn": 0,
        "descent": 300,
        "beat": 300,
        "report": 0,
        "pull": 0,
        "climb": 0,
        "return": 0,
    }


def test_a_join_takes_its_flights() -> None:
    # To the server, back and there again; to the root; to the server and back, and its answer by
    # way of it; six to connect; one until the joiner has seen it, too, and has its parent's word.
    world = TreeWorld(Plan([0.0]), Links(constant(0.1), joiner_sees_first=0.0))
    world.run()
    assert world.joined_after[1] == pytest.approx(0.4 + 0.4 + 0.6 + 0.1)
    world = TreeWorld(Plan([0.0]), Links(constant(0.1), joiner_sees_first=1.0))
    world.run()
    assert world.joined_after[1] == pytest.approx(0.4 + 0.4 + 0.6 + 0.2)


def test_one_seed_gives_one_report_and_another_seed_another() -> None:
    first, again, other = (
        report_on(world_of("massacre", seed=seed)).to_json() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_requests_in_turn_fill_the_tree_where_the_hash_does_not() -> None:
    by_hash = report_on(world_of("none", 364 - 1))
    in_turn = report_on(
        world_of("none", 364 - 1, place_rule=PLACEMENTS["in-turn"](random.Random()))
    )
    assert in_turn.depths.nodes == in_turn.depths.perfect == (1, 3, 9, 27, 81, 243)
    assert in_turn.depths.balance == 1.0
    assert by_hash.depths.balance < 0.95


def test_orphans_that_do_not_rejoin_stay_orphans_and_are_counted() -> None:
    # The third node is a child of the first; the first dies.
    plan = Plan([0.0, 10.0, 20.0], crashes=[Crash(30.0, [1])])
    world = TreeWorld(plan, Links(constant(0.01)), max_degree=1, rejoins=False)
    world.run()
    check(world)
    report = report_on(world)
    assert (report.orphaned, report.orphans, report.peak_orphans) == (1, 1, 1)
    assert (report.attached, report.unattached, report.closed) == (1, 2, 1)
    assert report.orphan_time.count == 1
    # Who is below an orphan is told, and takes nobody either.
    assert not world.branch(2).is_open
    assert not world.branch(3).is_open


def test_an_orphan_that_joins_again_keeps_its_subtree() -> None:
    plan = Plan([0.0, 10.0, 20.0], crashes=[Crash(30.0, [1])])
    world = TreeWorld(plan, Links(constant(0.01)), max_degree=1)
    world.run()
    check(world)
    assert world.depths() == {0: 0, 2: 1, 3: 2}
    assert world.branch(3).is_open
    # 2.8 s until the silence is noticed, up to 0.3 of our own, and 15 or 16 flights.
    assert 2.8 < world.orphan_times[0] < 2.8 + 0.3 + 0.17


def test_an_orphan_waits_for_a_number_newer_than_its_own() -> None:
    # The first leaves just after a number of the root; the second is back in time to wait for the
    # next, which is issued at 30.6 s.
    plan = Plan([0.0, 10.0], [29.71, math.inf])
    world = TreeWorld(plan, Links(constant(0.001)), max_degree=1)
    world.run()
    check(world)
    assert world.depths() == {0: 0, 2: 1}
    assert world.orphan_times[0] == pytest.approx(30.6 - 29.71, abs=0.003)


def test_what_is_cut_for_a_moment_is_held_and_goes_on() -> None:
    plan = Plan([0.0, 10.0], partition=Partition(10.05, 12.0, [0, 0, 1]))
    world = TreeWorld(plan, Links(constant(0.01)))
    world.run()
    check(world)
    assert world.count_orphaned == world.count_failed == 0
    assert world.joined_after[2] == pytest.approx(2.0, abs=0.3)


def test_what_is_cut_for_long_comes_apart_at_both_ends() -> None:
    plan = Plan([0.0, 10.0], partition=Partition(15.0, 60.0, [0, 0, 1]))
    world = TreeWorld(plan, Links(constant(0.01)))
    world.run()
    check(world)
    assert world.count_orphaned == 1
    # It has tried in vain as long as it was cut off, and then again.
    assert world.count_failed >= 1
    assert world.children_of(ROOT) == [1, 2]
    assert 45 < world.orphan_times[0] < 85


def test_an_uplink_sends_one_frame_after_another() -> None:
    plan = Plan([0.0] * 10)
    slow = TreeWorld(plan, Links(constant(0.01), server_bandwidth=FRAME_SIZES[OFFER] / 2))
    slow.run()
    check(slow)
    fast = TreeWorld(plan, Links(constant(0.01)))
    fast.run()
    assert max(slow.joined_after[1:]) > max(fast.joined_after[1:]) + 5


def test_with_limits_the_root_keeps_as_many_requests_as_a_real_one() -> None:
    without = world_of("flash-crowd", 10_500, max_degree=10)
    within = world_of("flash-crowd", 10_500, max_degree=10, has_limits=True)
    assert without.peak_requests == 10_490
    assert without.count_connected == 10_500
    assert within.peak_requests <= MAX_REQUESTS
    assert within.count_dropped == within.count_failed == 10_490 - within.peak_requests


def test_a_handshake_that_fails_is_given_up_and_its_place_is_free_again() -> None:
    plan = Plan([0.0, 0.1])
    world = TreeWorld(plan, Links(constant(0.01), handshake_failure=1.0), max_degree=1)
    world.run()
    check(world)
    assert world.count_failed == 2
    assert world.branch(ROOT).has_room


def test_a_world_leaves_the_collector_as_it_was() -> None:

    assert gc.isenabled()
    world_of("none", 3)
    assert gc.isenabled()
