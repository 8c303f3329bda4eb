"""A network of peers that sample it, in virtual time: what is promised of it, and its books."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache

import pytest

from trio_overlay.simulation.links import Links, constant
from trio_overlay.simulation.sampling import SamplingPlan, SamplingWorld, Watch
from trio_overlay.simulation.sampling_reports import LOSSES, Observer, SamplingReport


def live(plan: SamplingPlan, *, seed: int = 1, failure: float = 0.0, **options: float) -> Observer:
    links = Links(constant(0.02), handshake_failure=failure)
    world = SamplingWorld(plan, links, seed=seed, **options)
    observer = Observer(world, seed=seed, trials=5, **options)
    world.run(observer.watch)
    check_books(world)
    return observer


@cache
def half_lost() -> SamplingReport:
    """Two hundred peers, half of whom crash."""
    return live(SamplingPlan(200, rounds=12, crash=0.5)).report()


def check_books(world: SamplingWorld) -> None:
    """Both ends of each arc know of it, and those of views are open."""
    seen: Counter[tuple[int, int]] = Counter()
    for node in world.alive():
        assert str(node) not in world.outviews[node]
        assert not world.sprays[node].view.counts() - world.outviews[node]
        for peer, count in world.outviews[node].items():
            seen[node, int(peer)] += count
            assert world.is_alive[int(peer)] or world.plan.leave
    for node in world.alive():
        for peer, count in world.inviews[node].items():
            assert not world.is_alive[int(peer)] or seen[int(peer), node] == count


def test_settled_network_looks_like_a_random_graph_but_evener() -> None:
    settled = half_lost().settled
    assert settled.alive == 200
    assert settled.sampled.largest == 1
    assert settled.mean_view == pytest.approx(math.log(200), abs=1)
    assert settled.sampled.clustering == pytest.approx(settled.random.clustering, rel=0.4)
    assert settled.sampled.mean_distance == pytest.approx(settled.random.mean_distance, rel=0.1)
    assert settled.sampled.in_degree_variance < settled.random.in_degree_variance
    assert sum(settled.sampled.in_degrees) == sum(settled.views) == 200


def test_survivors_of_a_crash_heal_into_one_network_with_fewer_arcs() -> None:
    report = half_lost()
    assert report.after_failure is not None
    assert report.healed is not None
    assert report.after_failure.alive == report.healed.alive == 100
    assert report.healed.sampled.largest == 1
    assert report.healed.isolated == 0
    assert report.settled.mean_view - report.healed.mean_view == pytest.approx(
        math.log(2), abs=0.25
    )


def test_losses_break_the_network_late_and_the_worst_ones_for_sure() -> None:
    report = half_lost()
    assert [loss.share for loss in report.losses] == list(LOSSES)
    assert report.breaks_at is not None
    assert report.breaks_at > 0.3
    assert report.losses[-1].least < 1
    assert all(loss.least <= loss.mean for loss in report.losses)


def test_estimates_follow_the_size() -> None:
    report = half_lost()
    assert report.healed is not None
    before, after = report.settled.estimates, report.healed.estimates
    assert before.low <= before.median <= before.high
    assert 0.5 < after.median / before.median < 0.75
    assert 60 < before.median < 500


def test_peers_that_leave_are_missed_by_nobody() -> None:
    report = live(SamplingPlan(100, rounds=14, leave=0.5)).report()
    assert report.healed is not None
    assert report.healed.alive == 50
    assert report.healed.sampled.largest == 1
    assert report.settled.mean_view - report.healed.mean_view == pytest.approx(math.log(2), abs=0.4)


def test_who_is_left_alone_joins_again_unless_it_is_not_to() -> None:
    rejoined = live(SamplingPlan(60, rounds=6, crash=0.8), seed=2).report()
    assert rejoined.rejoined > 0
    assert rejoined.healed is not None
    assert rejoined.healed.isolated == 0
    left = live(SamplingPlan(60, rounds=6, crash=0.8, rejoins=False), seed=2).report()
    assert left.rejoined == 0
    assert left.healed is not None
    assert left.healed.isolated > 0


def test_handshakes_that_fail_cost_no_arcs() -> None:
    report = live(SamplingPlan(100, rounds=10), failure=0.2).report()
    assert report.failed > 100
    assert report.settled.sampled.largest == 1
    assert report.settled.mean_view == pytest.approx(math.log(100), abs=1.2)
    assert report.healed is None


def test_b_is_that_many_arcs_more() -> None:
    means = [
        live(SamplingPlan(50, rounds=3), seed=seed, b=5).report().settled.mean_view
        for seed in range(6)
    ]
    assert sum(means) / 6 == pytest.approx(math.log(50) + 5, abs=1.5)


def test_one_seed_gives_one_report_and_another_another() -> None:
    texts = [live(SamplingPlan(40, rounds=3), seed=seed).report().to_json() for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_failure_is_watched_before_and_after_anybody_is_gone() -> None:
    alive: list[int] = []
    world = SamplingWorld(SamplingPlan(20, rounds=2, crash=0.25), Links(constant(0.02)))

    def look(moment: float) -> None:
        alive.append(len(world.alive()))

    world.run(Watch(before_failure=look, after_failure=look))
    assert alive == [20, 15]


def test_arcs_handed_to_the_dead_come_back() -> None:
    plan = SamplingPlan(100, rounds=8, crash=0.3)
    drops = []
    for noticed_after in (
        1.0,
        120.0,
    ):  # two rounds, in which a third of all exchanges are with them
        links = Links(constant(0.02), noticed_after=noticed_after)
        world = SamplingWorld(plan, links, seed=4)
        observer = Observer(world, seed=4, trials=1)
        world.run(observer.watch)
        report = observer.report()
        assert report.healed is not None
        drops.append(report.settled.mean_view - report.healed.mean_view)
    assert drops[1] == pytest.approx(drops[0], abs=0.4)
