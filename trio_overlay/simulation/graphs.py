"""Measures of directed graphs with several arcs between two nodes, and random ones to compare with.

A graph is a list: at each node's number, the numbers of the nodes that its arcs lead to, a node as
often as there are arcs to it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

Graph: TypeAlias = Sequence[Sequence[int]]


def random_graph(graph: Graph, rng: random.Random) -> list[list[int]]:
    """Each node has as many arcs as in *graph*, each to any other node, all equally likely."""
    count = len(graph)
    others = count - 1
    return [
        [(node + 1 + int(rng.random() * others)) % count for _ in targets]
        for node, targets in enumerate(graph)
    ]


def in_degrees(graph: Graph) -> list[int]:
    """How many arcs lead to each node."""
    degrees = [0] * len(graph)
    for targets in graph:
        for target in targets:
            degrees[target] += 1
    return degrees


def histogram(numbers: Sequence[int]) -> list[int]:
    """How often each number from 0 up to the largest is in *numbers*."""
    counts = Counter(numbers)
    return [counts[number] for number in range(max(numbers, default=-1) + 1)]


def neighbourhoods(graph: Graph) -> list[set[int]]:
    """Whom each node is connected to, whoever opened the arcs."""
    neighbours: list[set[int]] = [set() for _ in graph]
    for node, targets in enumerate(graph):
        for target in targets:
            neighbours[node].add(target)
            neighbours[target].add(node)
    return neighbours


def clustering(graph: Graph) -> float:
    """How many of the pairs of a node's neighbours are neighbours, on the average of all nodes.

    The clustering coefficient of Watts and Strogatz ("Collective dynamics of 'small-world'
    networks", 1998); a node with fewer than two neighbours counts as 0.
    """
    neighbours = neighbourhoods(graph)
    total = 0.0
    for own in neighbours:
        degree = len(own)
        if degree > 1:
            total += sum(len(own & neighbours[other]) for other in own) / (degree * (degree - 1))
    return total / len(graph) if graph else 0.0


def largest_component(graph: Graph) -> int:
    """How many nodes the largest part has in which everybody reaches everybody.

    Arcs are connections, and connections go both ways.
    """
    return largest_survivor(graph, [True] * len(graph))


def largest_survivor(graph: Graph, is_alive: Sequence[bool]) -> int:
    """The same, of the nodes that are alive."""
    # Disjoint sets, halving paths: Tarjan and van Leeuwen 1984.
    parents = list(range(len(graph)))
    sizes = [1] * len(graph)

    def find(node: int) -> int:
        while parents[node] != node:
            parents[node] = node = parents[parents[node]]
        return node

    for node, targets in enumerate(graph):
        if not is_alive[node]:
            continue
        one = find(node)
        for target in targets:
            if is_alive[target] and (other := find(target)) != one:
                if sizes[one] < sizes[other]:
                    one, other = other, one
                parents[other] = one
                sizes[one] += sizes[other]
    return max((size for size, alive in zip(sizes, is_alive, strict=True) if alive), default=0)


def mean_distance(graph: Graph, rng: random.Random, *, max_sources: int = 50) -> float:
    """How many connections lie between two nodes, on average over those that reach each other.

    From up to *max_sources* nodes at random to all others; 0.0 if nobody reaches anybody.
    """
    neighbours = neighbourhoods(graph)
    total = reached = 0
    for source in rng.sample(range(len(graph)), min(max_sources, len(graph))):
        seen = {source}
        border = {source}
        distance = 0
        while border:
            distance += 1
            border = set().union(*(neighbours[node] for node in border)) - seen
            seen |= border
            total += distance * len(border)
        reached += len(seen) - 1
    return total / reached if reached else 0.0


def shares_after_losses(
    graph: Graph, losses: Sequence[float], rng: random.Random, *, trials: int
) -> list[list[float]]:
    """For each of *losses*, a share of all nodes that is taken away at random, *trials* times: the
    share of the survivors in the largest component, right after.
    """
    count = len(graph)
    shares: list[list[float]] = []
    for loss in losses:
        shares.append([])
        for _ in range(trials):
            is_alive = [True] * count
            for node in rng.sample(range(count), round(loss * count)):
                is_alive[node] = False
            shares[-1].append(largest_survivor(graph, is_alive) / max(1, sum(is_alive)))
    return shares
