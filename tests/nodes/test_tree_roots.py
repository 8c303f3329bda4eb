"""One root is active, the others stand by, and the tree moves whole to whoever is next."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock

from tests.nodes.test_tree import enter_child, enter_root, past_events, until
from tests.nodes.test_tree_moving import ids, watch
from tests.world import AUTHORITY, SECRET, World, open_world
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import JoinTimeout, ServerUnreachable
from trio_overlay.nodes.tree import TreeNode
from trio_overlay.nodes.tree_events import ParentClose, PathChange


async def enter_standby(world: World, stack: AsyncExitStack, name: str = "second") -> TreeNode:
    node = await stack.enter_async_context(world.node(name, max_degree=2))
    await node.become_root(SECRET)
    return node


def all_below(root: TreeNode, nodes: list[TreeNode]) -> bool:
    return root.is_root and all(node.path[:1] == (root.id,) for node in nodes)


async def test_second_root_stands_by_as_a_member_of_the_tree(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        first = await enter_root(world, stack, max_degree=2)
        second = await enter_standby(world, stack)
        assert first.is_root
        assert second.stands_by
        assert not second.is_root
        await until(lambda: second.path == ids(first, second))
        await enter_child(world, stack, "a")
        assert first.children_count == 2
        await second.aclose()
        await trio.sleep(1)
        assert first.is_root


@pytest.mark.parametrize("is_silent", [False, True])
async def test_root_that_stands_by_takes_over_within_five_seconds_of_the_others_death(
    is_silent: bool, autojump_clock: MockClock
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        first = await enter_root(world, stack, max_degree=2)
        second = await enter_standby(world, stack)
        nodes = [await enter_child(world, stack, f"n{i}", max_degree=2) for i in range(10)]
        past_events(nodes[-1])
        if is_silent:  # its machine is without power: nobody closes its socket
            world.network.freeze("root")
        else:
            world.network.crash("root", noticed_after=30)
        died_at = trio.current_time()
        await until(lambda: second.is_root, 5)
        assert isinstance(past_events(second)[-1], ParentClose | PathChange)  # it is told
        await until(lambda: all_below(second, nodes), 10)
        assert trio.current_time() - died_at < 10
        await enter_child(world, stack, "late")
        if is_silent:
            # When it comes back it is one of several, and brings all that it has below it.
            world.network.thaw("root")
            await until(lambda: first.stands_by, 10)
            await until(lambda: first.path[:1] == (second.id,), 20)
            assert all_below(second, nodes)


async def test_root_that_takes_over_has_the_whole_tree_and_nobody_is_cut_off(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        first = await enter_root(world, stack, max_degree=2)
        nodes = [await enter_child(world, stack, f"n{i}", max_degree=2) for i in range(6)]
        second = await stack.enter_async_context(world.node("second", max_degree=2))
        for node in nodes:
            past_events(node)
        seen: set[bool] = set()
        async with open_background_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(watch, node, seen)
            await second.become_root(SECRET, takeover=True)
            await until(lambda: first.path == ids(second, first), 5)
            await until(lambda: all_below(second, nodes))
        assert seen == {True}
        for node in nodes:
            assert {type(event) for event in past_events(node)} == {PathChange}
        assert first.stands_by
        # And back, when the new one goes as it should: it hands its child over first.
        seen.clear()
        async with open_background_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(watch, node, seen)
            await second.aclose()
            await until(lambda: all_below(first, nodes), 5)
        assert seen == {True}


async def test_restarted_server_finds_its_root_again_and_not_another(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        first = await enter_root(world, stack, max_degree=3)
        second = await enter_standby(world, stack)
        await until(lambda: second.parent)

        async def restart_server(active: TreeNode, standing_by: TreeNode) -> None:
            for _ in range(5):
                world.stop_server()
                await trio.sleep(7)
                await world.start_server()
                await trio.sleep(10)
                assert active.is_root
                assert standing_by.path == ids(active, standing_by)

        await restart_server(first, second)
        await first.aclose()
        await until(lambda: second.is_root)
        third = await enter_standby(world, stack, "third")
        await restart_server(second, third)
        await enter_child(world, stack, "a")


async def test_open_joins_are_tried_again_when_the_server_has_restarted(
    autojump_clock: MockClock,
) -> None:
    async with open_world(latency=0.05) as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        nodes = [await stack.enter_async_context(world.node(f"n{i}")) for i in range(8)]
        async with trio.open_nursery() as nursery:
            for index, node in enumerate(nodes):
                nursery.start_soon(node.join)
                await trio.sleep(0.05 if index < 7 else 0.06)
            world.stop_server()
            await trio.sleep(3)
            await world.start_server()
        assert all(node.parent for node in nodes)
        await until(lambda: root.children_count == 8)


@pytest.mark.parametrize("request_timeout", [2, 5, 10])
async def test_join_whose_server_goes_for_good_ends_in_its_time(
    request_timeout: float, autojump_clock: MockClock
) -> None:
    """Found by the story of docs/testing.md: the last try had less than no time left."""
    async with open_world(latency=0.05) as world, AsyncExitStack() as stack:
        await enter_root(world, stack)
        for number in range(3):
            name = f"a{number}"
            options = {"request_timeout": request_timeout}
            node = await stack.enter_async_context(world.node(name, **options))
            began_at = trio.current_time()
            async with trio.open_nursery() as nursery:

                async def fail_to_join(node: TreeNode = node) -> None:
                    with pytest.raises((ServerUnreachable, JoinTimeout)):
                        await node.join()

                nursery.start_soon(fail_to_join)
                await trio.sleep(0.2)
                world.stop_server()
            assert trio.current_time() - began_at < request_timeout + 2
            await world.start_server()
            await trio.sleep(6)


async def test_requests_of_a_root_that_dies_are_answered_by_the_next(
    autojump_clock: MockClock,
) -> None:
    """A dead root took the request, and nobody knows yet that it is dead."""
    async with open_world() as world, AsyncExitStack() as stack:
        await enter_root(world, stack, max_degree=2)
        second = await enter_standby(world, stack)
        await until(lambda: second.parent)
        node = await stack.enter_async_context(world.node("a"))
        world.network.freeze("root")
        with trio.fail_after(6):
            await node.join()
        assert node.path[:1] == (second.id,)


async def test_of_old_roots_the_newest_is_active_and_the_former_comes_back(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        ours = await enter_root(world, stack)
        host = world.network.host("old")
        async with host.dial(f"ws://{AUTHORITY}/{SECRET}/webrtc-bootstrap-root"):
            await until(lambda: ours.stands_by)
            assert ours.path == (ours.id,)  # it goes on until it finds a place below the other
        await until(lambda: ours.is_root)
        await enter_child(world, stack, "a")
        assert [event for event in past_events(ours) if isinstance(event, ParentClose)] == []
