"""Holes high up are filled by leaves that the root pulls up to them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack

import trio

from tests.nodes.test_tree_filling import share_at_the_perfect_depth
from tests.world import SECRET, World, open_world
from trio_overlay.nodes.tree import TreeNode
from trio_overlay.nodes.tree_events import ChildConnect
from trio_overlay.protocol.bootstrap import signal_frame
from trio_overlay.protocol.pulling import Pull
from trio_overlay.protocol.tree import PullUp, RoadRequest, Wish
from trio_overlay.testing import virtual_test


async def grow(world: World, stack: AsyncExitStack, count: int) -> list[TreeNode]:
    """A root and *count* nodes, joined one after another, of degree 2."""
    root = await stack.enter_async_context(world.node("root", max_degree=2))
    await root.become_root(SECRET)
    nodes = [root]
    for number in range(count):
        node = await stack.enter_async_context(world.node(f"n{number}", max_degree=2))
        await node.join()
        nodes.append(node)
    await trio.sleep(0.5)
    return nodes


def depths(nodes: Iterable[TreeNode]) -> Counter[int]:
    return Counter(len(node.path) - 1 for node in nodes)


@virtual_test
async def test_a_hole_that_a_leaver_leaves_is_filled_from_below() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await grow(world, stack, 8)  # 2, 4, and 2 of 8 places
        leaf = next(each for each in nodes if len(each.path) == 3 and not each.children)
        await leaf.aclose()
        nodes.remove(leaf)
        assert depths(nodes) == {0: 1, 1: 2, 2: 3, 3: 2}
        await trio.sleep(8)
        assert depths(nodes) == {0: 1, 1: 2, 2: 4, 3: 1}
        assert nodes[0]._pulls.is_quiet


@virtual_test
async def test_the_tree_is_perfect_again_after_half_have_crashed() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await grow(world, stack, 62)
        gone = random.Random(3).sample(nodes[1:], 31)
        for node in gone:
            node.close()
        stay = [node for node in nodes[1:] if node not in gone]
        await trio.sleep(40)
        assert share_at_the_perfect_depth(stay, 2) == 1.0
        assert nodes[0]._pulls.is_quiet


@virtual_test
async def test_a_leaf_that_finds_nothing_higher_stays() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await grow(world, stack, 10)
        leaf = nodes[-1]
        assert len(leaf.path) == 4
        parent, path = leaf.parent, leaf.path
        assert parent is not None
        # Somebody above is mistaken: there is no hole.
        leaf._pulls.take(parent, Pull(3, 1))
        has_tried = leaf._pulls._is_climbing
        await trio.sleep(10)
        assert has_tried
        assert not leaf._pulls._is_climbing
        assert leaf.parent is parent
        assert leaf.path == path
        assert not any(len(node._roads) or node._branch.applicants for node in nodes)
        assert len(leaf.events) == 1  # its first parent


@virtual_test
async def test_who_has_children_or_stands_too_high_is_not_pulled() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await grow(world, stack, 6)
        before = [node.path for node in nodes]
        for node in nodes[1:]:
            assert node.parent is not None
            node._pulls.take(node.parent, Pull(3, 5))
        await trio.sleep(5)
        assert [node.path for node in nodes] == before


@virtual_test
async def test_only_a_parent_may_pull_and_only_a_child_may_be_led_up() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await grow(world, stack, 6)
        root, middle = nodes[0], nodes[1]
        assert middle.parent is not None
        middle.parent.post(PullUp(Pull(1, 5)))  # from a child
        leaf = next(node for node in nodes if node.path[1:2] == (middle.id,) and node is not middle)
        offer = signal_frame({"type": "offer", "sdp": "?"}, destination=None, rank=0)
        (link,) = [c for c in middle.children.values() if leaf.parent is not None][:1]
        link.post(RoadRequest("r", Wish.HIGHER, offer))  # down, where it leads nowhere
        await trio.sleep(5)
        assert depths(nodes) == {0: 1, 1: 2, 2: 4}
        assert not any(len(node._roads) for node in nodes)
        assert root.children_count == 2


@virtual_test
async def test_a_pulled_leaf_is_a_child_like_any_other() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await grow(world, stack, 8)
        leaf = next(each for each in nodes if len(each.path) == 3 and not each.children)
        await leaf.aclose()
        nodes.remove(leaf)
        before = {node.id: node.path for node in nodes}
        await trio.sleep(8)
        (moved,) = [node for node in nodes if len(node.path) < len(before[node.id])]
        (parent,) = [node for node in nodes if node.id == moved.path[-2]]
        assert moved.parent is not None
        await moved.parent.send("up here")
        message = await parent.messages.receive()
        assert message.data == "up here"
        found = [parent.events.receive_nowait() for _ in range(3)]
        assert any(isinstance(event, ChildConnect) for event in found)
