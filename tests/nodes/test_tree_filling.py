"""Our nodes fill the tree exactly, whoever joins when."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import AsyncExitStack

import pytest
import trio

from tests.world import SECRET, open_world
from trio_overlay.nodes.tree import TreeNode
from trio_overlay.testing import virtual_test


def share_at_the_perfect_depth(nodes: list[TreeNode], degree: int) -> float:
    """The share of the nodes (the root not counted) that are no deeper than they could be."""
    depths = Counter(len(node.path) - 1 for node in nodes)
    assert 0 not in depths, "somebody is cut off"
    left = len(nodes)
    level = well_placed = 0
    while left > 0:
        level += 1
        room = degree**level
        well_placed += min(depths[level], room)
        left -= room
    return well_placed / len(nodes)


@pytest.mark.parametrize("degree", [2, 3])
@virtual_test
async def test_nodes_that_join_one_after_another_fill_the_tree_perfectly(degree: int) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await stack.enter_async_context(world.node("root", max_degree=degree))
        await root.become_root(SECRET)
        nodes = []
        for number in range(60):
            node = await stack.enter_async_context(world.node(f"n{number}", max_degree=degree))
            await node.join()
            nodes.append(node)
        assert share_at_the_perfect_depth(nodes, degree) == 1.0


@pytest.mark.parametrize("count", [39, 100, 150])
@virtual_test
async def test_nodes_that_join_at_once_fill_the_tree(count: int) -> None:
    async with open_world(latency=0.05) as world, AsyncExitStack() as stack:
        root = await stack.enter_async_context(world.node("root", max_degree=3))
        await root.become_root(SECRET)
        nodes = [
            await stack.enter_async_context(world.node(f"n{number}", max_degree=3))
            for number in range(count)
        ]
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(node.join)
        assert share_at_the_perfect_depth(nodes, 3) == 1.0


@virtual_test
async def test_places_of_those_who_left_are_taken_again() -> None:
    rng = random.Random(1)
    async with open_world() as world, AsyncExitStack() as stack:
        root = await stack.enter_async_context(world.node("root", max_degree=2))
        await root.become_root(SECRET)
        nodes = [
            await stack.enter_async_context(world.node(f"n{number}", max_degree=2))
            for number in range(62)
        ]
        for node in nodes:
            await node.join()
        leaves = [node for node in nodes if not node.children_count]
        gone = rng.sample(leaves, 10)
        for node in gone:
            await node.aclose()
        await trio.sleep(2)
        stay = [node for node in nodes if node not in gone]
        for number in range(10):
            node = await stack.enter_async_context(world.node(f"m{number}", max_degree=2))
            await node.join()
            stay.append(node)
        assert share_at_the_perfect_depth(stay, 2) == 1.0


@virtual_test
async def test_places_that_were_closed_for_want_of_a_way_up_are_reported_again() -> None:
    """A node that was cut off and had said so was believed to be full for good."""
    async with open_world() as world, AsyncExitStack() as stack:

        async def joined(name: str) -> TreeNode:
            node = await stack.enter_async_context(world.node(name, max_degree=2))
            await node.join()
            return node

        root = await stack.enter_async_context(world.node("root", max_degree=1))
        await root.become_root(SECRET)
        top, left, right = [await joined(name) for name in ("top", "left", "right")]
        leaf = await joined("leaf")
        await trio.sleep(0.1)
        (parent,) = [node for node in (left, right) if node.children_count]
        assert top.parent is not None
        await top.parent.aclose()
        await trio.sleep(0.1)
        assert not top.path
        await leaf.aclose()
        await trio.sleep(5)
        assert top.path
        assert parent.parent is not None
        assert top._branch.views == {identifier: [2] for identifier in top.children}
