"""A node that changes its parent keeps the old one until the new one has confirmed it."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock

from tests.nodes.test_tree import enter_child, enter_root, past_events, until
from tests.world import open_world
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import JoinRefused, OutcomeError
from trio_overlay.nodes.tree import TreeNode
from trio_overlay.nodes.tree_events import ParentClose, ParentConnect, PathChange


def ids(*nodes: TreeNode) -> tuple[str, ...]:
    return tuple(node.id for node in nodes)


async def watch(node: TreeNode, seen: set[bool]) -> None:
    """Add to *seen* whether *node* has a parent and a path, again and again."""
    while True:
        seen.add(node.parent is not None and bool(node.path) and node._branch.is_open)
        await trio.sleep(0.001)


async def test_moving_node_always_has_a_parent_and_below_it_only_paths_change(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=2)
        a = await enter_child(world, stack, "a", max_degree=1)
        x = await enter_child(world, stack, "x", max_degree=1)
        b = await enter_child(world, stack, "b", max_degree=1)
        assert b.path == ids(root, a, b)
        await x.aclose()
        c = await enter_child(world, stack, "c", max_degree=1)
        d = await enter_child(world, stack, "d", max_degree=1)
        assert d.path == ids(root, c, d)
        e = await enter_child(world, stack, "e", max_degree=1)
        assert e.path == ids(root, a, b, e)
        await c.aclose()
        await until(lambda: d.path == ids(root, d))
        await d.aclose()
        await until(lambda: root.children_count == 1)
        past_events(b), past_events(e)

        seen: set[bool] = set()
        old = b.parent
        async with open_background_nursery() as nursery:
            for node in (b, e):
                nursery.start_soon(watch, node, seen)
            parent = await b._way_up.move_to(b._way_up.by_server)
            assert b.parent is parent is not old
            assert old is not None
            assert old.is_open  # for a moment
            assert b.path == ids(root, b)
            await until(lambda: e.path == ids(root, b, e))
            await until(lambda: a.children_count == 0)
        assert seen == {True}
        assert root.children_count == 2
        assert [type(event) for event in past_events(b)] == [ParentClose, ParentConnect]
        assert [type(event) for event in past_events(e)] == [PathChange]
        assert "moved" in str(old.close_reason)
        # It is a child like all others: whoever comes finds places below it.
        await trio.sleep(3)
        assert b.path == ids(root, b)


async def test_new_parent_may_be_further_from_the_root_than_the_old_one(
    autojump_clock: MockClock,
) -> None:
    """Its numbers always come later: a node that went on taking the old one's would wait."""
    async with open_world(latency=0.05) as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=2)
        a = await enter_child(world, stack, "a", max_degree=1)
        b = await enter_child(world, stack, "b", max_degree=1)
        with trio.fail_after(3):
            await b._way_up.move_to(b._way_up.by_server)
        assert b.path == ids(root, a, b)
        await until(lambda: root.children_count == 1)
        numbers = {b._ancestry.number}
        for _ in range(3):
            await trio.sleep(1)
            numbers.add(b._ancestry.number)
        assert len(numbers) == 4  # they grow again


async def test_node_that_is_given_its_own_request_stays_where_it_is(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        a = await enter_child(world, stack, "a", max_degree=1)
        past_events(a)
        old = a.parent
        with pytest.raises(JoinRefused, match="own ancestors"):
            await a._way_up.move_to(a._way_up.by_server)
        assert a.parent is old
        assert a.path == ids(root, a)
        await until(lambda: not a._applicants)
        assert past_events(a) == []
        await enter_child(world, stack, "b", max_degree=1)  # its place is free again


async def test_move_that_fails_or_is_cancelled_changes_nothing(autojump_clock: MockClock) -> None:
    async with open_world(latency=0.05) as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=2)
        a = await enter_child(world, stack, "a", max_degree=1)
        past_events(a)
        for moment in range(1, 20):
            with trio.move_on_after(moment * 0.05):
                await a._way_up.move_to(a._way_up.by_server)
                break
            assert a.path == ids(root, a)
            assert a.parent is not None
        assert moment > 5
        await until(lambda: root.children_count == 1)
        await trio.sleep(1)
        world.stop_server()
        old = a.parent
        with pytest.raises(OutcomeError):
            await a._way_up.move_to(a._way_up.by_server)
        assert a.parent is old
        numbers = a._ancestry.number
        await trio.sleep(1)
        assert a._ancestry.number > numbers


async def test_parent_lost_in_the_middle_of_a_move_is_replaced_by_the_new_one(
    autojump_clock: MockClock,
) -> None:
    async with open_world(latency=0.05) as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=2)
        a = await enter_child(world, stack, "a", max_degree=1)
        x = await enter_child(world, stack, "x", max_degree=1)
        b = await enter_child(world, stack, "b", max_degree=1)
        assert b.path == ids(root, a, b)
        await x.aclose()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b._way_up.move_to, b._way_up.by_server)
            await trio.sleep(0.3)
            assert b.parent is not None
            await a.aclose()
        assert b.path == ids(root, b)
        await trio.sleep(3)  # nor does it find another, because it has one
        assert root.children_count == 1
