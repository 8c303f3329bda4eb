"""Measures of graphs, on those whose measures are known."""

from __future__ import annotations

import random

import pytest

from trio_overlay.simulation.graphs import (
    clustering,
    histogram,
    in_degrees,
    largest_component,
    largest_survivor,
    mean_distance,
    neighbourhoods,
    random_graph,
    shares_after_losses,
)

RING = [[(node + 1) % 10] for node in range(10)]
FULL = [[other for other in range(6) if other != node] for node in range(6)]


def test_arcs_count_in_one_direction_and_connect_in_both() -> None:
    graph = [[1, 1, 2], [2], []]
    assert in_degrees(graph) == [0, 2, 2]
    assert neighbourhoods(graph) == [{1, 2}, {0, 2}, {0, 1}]
    assert histogram(in_degrees(graph)) == [1, 0, 2]
    assert histogram([]) == []


def test_clustering_is_1_where_all_know_each_other_and_0_on_a_ring() -> None:
    assert clustering(FULL) == 1
    assert clustering(RING) == 0
    assert clustering([[1, 2, 3], [2], [], []]) == pytest.approx((1 / 3 + 1 + 1 + 0) / 4)


def test_component_is_as_large_as_those_who_reach_each_other() -> None:
    assert largest_component(RING) == 10
    assert largest_component([[1], [], [3], [4], []]) == 3
    assert largest_component([[], []]) == 1
    assert largest_component([]) == 0


def test_survivors_reach_nobody_through_the_dead() -> None:
    is_alive = [True] * 10
    is_alive[0] = is_alive[4] = False
    assert largest_survivor(RING, is_alive) == 5
    assert largest_survivor(RING, [False] * 10) == 0


def test_distance_is_the_mean_over_all_pairs_that_reach_each_other() -> None:
    assert mean_distance(FULL, random.Random(1)) == 1
    assert mean_distance(RING, random.Random(1)) == pytest.approx((2 * (1 + 2 + 3 + 4) + 5) / 9)
    assert mean_distance([[], []], random.Random(1)) == 0


def test_random_graph_has_as_many_arcs_at_each_node_none_to_itself_and_all_equally_likely() -> None:
    graph = [[1] * 30 for _ in range(50)]
    chance = random_graph(graph, random.Random(1))
    assert [len(targets) for targets in chance] == [30] * 50
    assert all(node not in targets for node, targets in enumerate(chance))
    degrees = in_degrees(chance)
    assert sum(degrees) == 1500
    assert min(degrees) > 10
    assert max(degrees) < 55


def test_losses_leave_shares_of_the_survivors() -> None:
    shares = shares_after_losses(FULL, (0.5,), random.Random(1), trials=4)
    assert shares == [[1, 1, 1, 1]]
    (after,) = shares_after_losses(RING, (0.5,), random.Random(1), trials=20)
    assert len(set(after)) > 1
    assert all(0.2 <= share <= 1 for share in after)
