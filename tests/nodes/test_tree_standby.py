"""A node whose parent crashed turns to a neighbour it has, and needs no server."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack

import pytest
import trio
from hypothesis import settings
from trio.testing import MockClock

from tests.nodes.test_tree import enter_child, enter_root, until
from tests.nodes.test_tree_moving import ids
from tests.world import SECRET, World, open_world
from trio_overlay.errors import ServerUnreachable
from trio_overlay.nodes.tree import TreeNode
from trio_overlay.protocol.filling import same
from trio_overlay.testing import virtual_test


async def grow(
    world: World, stack: AsyncExitStack, count: int, degree: int
) -> tuple[TreeNode, dict[str, TreeNode]]:
    """A root and *count* nodes that have joined at once, and had time to get to know each other."""
    root = await stack.enter_async_context(world.node("root", max_degree=degree))
    await root.become_root(SECRET)
    nodes = {
        f"n{i}": await stack.enter_async_context(world.node(f"n{i}", max_degree=degree))
        for i in range(count)
    }
    async with trio.open_nursery() as nursery:
        for node in nodes.values():
            nursery.start_soon(node.join)
    await trio.sleep(10)
    return root, nodes


def crash(world: World, nodes: dict[str, TreeNode], name: str) -> None:
    world.network.crash(name, noticed_after=30)
    nodes.pop(name).close()


def choose_victim(nodes: dict[str, TreeNode], number: int, rng: random.Random) -> str:
    """Whose turn it is: a child of the root's, a lowest parent, one in between, a leaf; anybody."""
    by_depth = sorted(nodes, key=lambda name: len(nodes[name].path))
    inner = [name for name in by_depth if nodes[name].children_count]
    if number < 4:
        return [inner[0], inner[-1], inner[len(inner) // 2], by_depth[-1]][number]
    return rng.choice(by_depth)


async def test_orphans_are_taken_by_their_grandparent_and_their_heir_without_a_server(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        middle = await enter_child(world, stack, "middle", max_degree=3)
        low = [await enter_child(world, stack, name, max_degree=3) for name in "abc"]
        await trio.sleep(6)
        assert [node._standby.is_there for node in (root, middle, *low)] == [False] * 2 + [True] * 3
        # The heir has one to the grandparent, and its siblings to the heir.
        assert [node._standby.count_links for node in (root, *low)] == [1, 3, 1, 1]
        world.stop_server()
        world.network.crash("middle", noticed_after=30)
        middle.close()
        crashed_at = trio.current_time()
        heir, *others = low
        await until(lambda: heir.path == ids(root, heir), 5)
        await until(lambda: all(each.path == ids(root, heir, each) for each in others), 5)
        assert trio.current_time() - crashed_at < 5
        # They get to know each other anew: the next crash is as harmless.
        await trio.sleep(6)
        assert others[0]._standby.count_links + others[1]._standby.count_links == 3
        world.network.crash("a", noticed_after=30)
        heir.close()
        await until(lambda: all(each.path[:1] == (root.id,) for each in others), 6)


async def test_who_asks_a_standby_without_a_place_waits_until_that_has_one(
    autojump_clock: MockClock,
) -> None:
    """It asked three times a second, each time with a new peer connection."""
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        middle = await enter_child(world, stack, "middle", max_degree=3)
        heir, other = [await enter_child(world, stack, name, max_degree=3) for name in "ab"]
        await trio.sleep(6)
        world.stop_server()
        world.network.cut("root <-> a", noticed_after=None)
        world.network.crash("middle", noticed_after=30)
        middle.close()
        before = world.network.count_peers["b"]
        await trio.sleep(7)  # heirs wait longer than that for a sign of life of their standby
        assert other.path == ()
        # It asks the server, too, a few times.
        assert world.network.count_peers["b"] - before <= 10
        world.network.heal()
        await until(lambda: heir.path == ids(root, heir), 10)
        # A handshake's time: it was told, and its own next try is later.
        await until(lambda: other.path == ids(root, heir, other), 0.5)


@virtual_test
async def test_tree_of_a_hundred_heals_from_single_crashes_without_a_server() -> None:
    """Whoever it is but the root: a child of the root's, a lowest parent, one in between, a leaf.

    `HYPOTHESIS_PROFILE=long` goes on, one after another, until half of the nodes are gone.
    """
    count = 50 if settings().max_examples > 1_000 else 4
    async with open_world(latency=0.03) as world, AsyncExitStack() as stack:
        root, nodes = await grow(world, stack, 100, 4)
        world.stop_server()
        rng = random.Random(1)
        for number in range(count):
            crash(world, nodes, choose_victim(nodes, number, rng))
            await trio.sleep(3)  # by then it is noticed
            await until(lambda: all(n.path[:1] == (root.id,) for n in nodes.values()), 7)
            await trio.sleep(6)
            paths = {node.path for node in (root, *nodes.values())}
            assert all(path[:-1] in paths for path in paths - {root.path}), "one tree"
        assert len(nodes) == 100 - count
        depths = [len(node.path) for node in nodes.values()]
        assert max(depths) <= 8
        with pytest.raises(ServerUnreachable):  # that it is down is no mistake of the test
            async with world.client("late") as client, client.connect():
                pass
        # What it costs: one connection for each node, with two ends.
        held = [node._standby.count_links for node in (root, *nodes.values())]
        assert sum(held) <= 2 * len(nodes)
        assert max(held) <= 4 + 4


@virtual_test
async def test_after_a_crash_the_orphans_are_attached_within_five_seconds() -> None:
    """At default parameters, with 100 nodes and the server there."""
    async with open_world(latency=0.03) as world, AsyncExitStack() as stack:
        root, nodes = await grow(world, stack, 100, 10)
        rng = random.Random(2)
        for _ in range(3):
            name = rng.choice([name for name, node in nodes.items() if node.children_count])
            crash(world, nodes, name)
            with trio.fail_after(5):
                await trio.sleep(2.9)  # by then it is noticed
                while not all(n.path[:1] == (root.id,) for n in nodes.values()):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            await trio.sleep(10)


async def test_who_does_not_want_a_standby_asks_the_server(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        middle = await enter_child(world, stack, "middle", max_degree=3)
        low = [await enter_child(world, stack, n, max_degree=3, standby=False) for n in "ab"]
        await trio.sleep(6)
        assert [node._standby.count_links for node in (root, middle, *low)] == [0] * 4
        world.network.crash("middle", noticed_after=30)
        middle.close()
        await until(lambda: all(node.path[:1] == (root.id,) for node in low), 6)


@pytest.mark.parametrize("name", ["a", "b"])
async def test_standby_that_is_gone_is_replaced(name: str, autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        await enter_child(world, stack, "middle", max_degree=4)
        low = {n: await enter_child(world, stack, n, max_degree=3) for n in "abcd"}
        await trio.sleep(6)
        low.pop(name).close()
        await trio.sleep(8)
        assert sorted(node._standby.count_links for node in low.values()) == [1, 1, 3]
        assert root._standby.count_links == 1


async def test_parent_is_told_of_a_child_that_came_over_a_road(autojump_clock: MockClock) -> None:
    """The heir counted its siblings' requests as the parent's, who never heard of them.

    Found by fuzz: the root went on believing that the places they took were free.
    """
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        middle = await enter_child(world, stack, "middle", max_degree=3)
        low = [await enter_child(world, stack, name, max_degree=3) for name in "abc"]
        await trio.sleep(6)
        world.network.crash("middle", noticed_after=30)
        middle.close()
        await trio.sleep(4)  # by then it is noticed
        await until(lambda: all(node.path[:1] == (root.id,) for node in low), 6)
        await trio.sleep(1)
        heir = next(node for node in low if len(node.path) == 2)
        (believed,) = root._branch.views.values()
        assert same(believed, heir._branch.view)
