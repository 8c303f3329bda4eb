"""A node that leaves hands its children over first: nobody is without a parent."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock

from tests.nodes.test_tree import enter_child, enter_root, past_events, until
from tests.nodes.test_tree_moving import ids, watch
from tests.world import open_world
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import JoinTimeout
from trio_overlay.nodes.tree import TreeNode
from trio_overlay.nodes.tree_events import ParentClose, ParentConnect


def assert_forgotten(*nodes: TreeNode) -> None:
    for node in nodes:
        assert len(node._roads) == 0
        assert not node._applicants


async def test_children_of_a_leaver_go_to_its_parent_and_none_is_without_one(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        middle = await enter_child(world, stack, "middle", max_degree=3)
        below = [await enter_child(world, stack, name, max_degree=2) for name in "abc"]
        world.stop_server()
        await trio.sleep(1)
        dials = sum(world.network.count_dials[name] for name in ("middle", "a", "b", "c"))
        seen: set[bool] = set()
        async with open_background_nursery() as nursery:
            for node in below:
                nursery.start_soon(watch, node, seen)
            started_at = trio.current_time()
            await middle.aclose()
            assert trio.current_time() - started_at < 3
        assert seen == {True}
        assert root.children_count == 1
        top = next(node for node in below if len(node.path) == 2)
        rest = [node for node in below if node is not top]
        # The root has one place: who came too late for it goes below who has it.
        assert all(node.path == ids(root, top, node) for node in rest)
        for node in below:
            about_parents = [
                event
                for event in past_events(node)
                if isinstance(event, ParentConnect | ParentClose)
            ]
            assert [type(event) for event in about_parents] == [
                ParentConnect, ParentClose, ParentConnect,
            ]  # fmt: skip
        assert dials == sum(world.network.count_dials[name] for name in ("middle", "a", "b", "c"))
        await until(lambda: root.children.keys() == {root._branch.children[0]})
        assert_forgotten(root, top, *rest)


async def test_leaver_in_a_long_line_is_replaced_where_it_stood(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        line = [await enter_child(world, stack, f"n{i}", max_degree=1) for i in range(6)]
        seen: set[bool] = set()
        async with open_background_nursery() as nursery:
            for node in line[3:]:
                nursery.start_soon(watch, node, seen)
            # All at once: a leaver's parent may be leaving, and passes its request on.
            async with trio.open_nursery() as leaving:
                for node in line[:3]:
                    leaving.start_soon(node.aclose)
        assert line[5].path == ids(root, *line[3:])
        assert seen == {True}
        assert_forgotten(root, *line[3:])


async def test_leaver_whose_child_does_not_go_leaves_after_its_time(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        middle = await enter_child(world, stack, "middle", max_degree=3, leave_timeout=4)
        low = await enter_child(world, stack, "low")
        world.network.freeze("low")
        started_at = trio.current_time()
        await middle.aclose()
        assert trio.current_time() - started_at < 5.1
        assert middle.children_count == 0
        world.network.thaw("low")
        await until(lambda: low.path == ids(root, low), 20)
        await trio.sleep(1)
        assert_forgotten(root, low)


async def test_leaving_can_be_cancelled_and_is_over_then(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        middle = await enter_child(world, stack, "middle")
        low = await enter_child(world, stack, "low")
        with trio.move_on_after(0.1) as scope:
            await middle.aclose()
        assert scope.cancelled_caught
        assert middle.parent is None
        await middle.aclose()  # again: nothing
        await until(lambda: low.path == ids(root, low), 20)
        await trio.sleep(1)
        assert_forgotten(root, low)


async def test_who_is_on_the_way_in_when_a_node_leaves_is_handed_over_as_well(
    autojump_clock: MockClock,
) -> None:
    async with open_world(latency=0.05) as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        middle = await enter_child(world, stack, "middle", max_degree=5)
        first = await enter_child(world, stack, "first", max_degree=5)
        late = await stack.enter_async_context(world.node("late"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(late.join)
            await until(lambda: middle._applicants)
            await middle.aclose()
        await until(lambda: late.path and first.path, 10)
        await trio.sleep(31)
        assert {len(late.path), len(first.path)} == {2, 3}
        assert_forgotten(root, first, late)


async def test_children_of_a_leaver_of_which_one_is_old(autojump_clock: MockClock) -> None:
    """One that understands nothing of it is closed when the others have gone."""
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        middle = await enter_child(world, stack, "middle")
        old = await stack.enter_async_context(world.client("old"))
        connection = await stack.enter_async_context(old.connect())
        low = await enter_child(world, stack, "low")
        assert middle.children_count == 2
        await middle.aclose()
        assert low.path == ids(root, low)
        with pytest.raises((trio.EndOfChannel, trio.BrokenResourceError)):
            await connection.receive()  # no frame before it


async def test_who_has_no_way_to_a_root_keeps_no_broadcasts_for_one(
    autojump_clock: MockClock,
) -> None:
    """It waited its whole time for a root, and was on its way to none."""
    async with open_world() as world, AsyncExitStack() as stack:
        alone = await stack.enter_async_context(world.node("alone"))
        await alone.broadcast("to nobody")
        assert await measure_leaving(alone) == 0
        root = await enter_root(world, stack)
        orphan = await stack.enter_async_context(world.node("orphan", rejoins=False))
        await orphan.join()
        root.close()
        await until(lambda: not orphan.path)
        await orphan.broadcast("to nobody any more")
        assert await measure_leaving(orphan) == 0


async def test_broadcasts_are_kept_for_a_root_until_a_join_has_failed(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        node = await stack.enter_async_context(world.node("a", request_timeout=2))
        await node.broadcast("perhaps")
        async with trio.open_nursery() as nursery:

            async def fail_to_join() -> None:
                with pytest.raises(JoinTimeout):
                    await node.join()

            nursery.start_soon(fail_to_join)
            await trio.sleep(0.5)
            assert 1.4 < await measure_leaving(node) < 1.6


async def measure_leaving(node: TreeNode) -> float:
    started_at = trio.current_time()
    await node.aclose()
    return trio.current_time() - started_at
