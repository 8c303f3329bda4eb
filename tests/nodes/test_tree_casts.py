"""Messages that go further than a neighbour: broadcasts, letters, and how slow ones are borne."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from tests.nodes.test_tree import enter_child, enter_root, past_events, until
from tests.nodes.test_tree_hostile import FalseRoot, say
from tests.world import World, open_world
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import DeliveryFailed, MessageTooLarge, PeerNotFound, UsageError
from trio_overlay.nodes.tree import TreeNode
from trio_overlay.nodes.tree_cast_links import CAST_WINDOW, MAX_MESSAGE, CastLimits
from trio_overlay.nodes.tree_events import ChildClose, ChildError, ParentClose
from trio_overlay.protocol.ancestry import Descent
from trio_overlay.protocol.cast_frames import (
    Cast,
    CastCredit,
    Entry,
    Letter,
    Resume,
    Routes,
)
from trio_overlay.protocol.tree import EXTENSIONS, Beat, Data, decode_tree
from trio_overlay.testing import virtual_test
from trio_overlay.testing.faults import SlowReader

LARGE = "x" * 50_000


async def enter_tree(
    world: World, stack: AsyncExitStack, count: int, **options: Any
) -> dict[str, TreeNode]:
    """A root and n1, n2, ... in the order in which the places fill: n1 and n2 below the root."""
    options = {"max_degree": 2, **options}
    nodes = {"root": await enter_root(world, stack, **options)}
    for number in range(1, count + 1):
        nodes[f"n{number}"] = await enter_child(world, stack, f"n{number}", **options)
    return nodes


def heard(node: TreeNode) -> list[object]:
    """What has come since the last look."""
    return [node.casts.receive_nowait().data for _ in range(len(node.casts))]


def find_parent(nodes: dict[str, TreeNode], name: str) -> str:
    (found,) = [other for other, node in nodes.items() if node.id == nodes[name].path[-2]]
    return found


# --- broadcasts -------------------------------------------------------------------------------


@virtual_test
async def test_all_hear_what_anybody_broadcasts_once_and_in_the_same_order() -> None:
    async with open_world(latency=0.05) as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 9)
        async with trio.open_nursery() as nursery:
            for number in range(5):
                for name, node in nodes.items():
                    nursery.start_soon(node.broadcast, f"{name} {number}")
                    await trio.sleep(0.02)
        await trio.sleep(3)
        said = {name: heard(node) for name, node in nodes.items()}
        everything = set().union(*said.values())
        assert len(everything) == 50
        for name, messages in said.items():
            own = {f"{name} {number}" for number in range(5)}
            assert len(messages) == 45
            assert set(messages) == everything - own
            for other, others in said.items():
                common = set(messages) & set(others)
                assert [m for m in messages if m in common] == [m for m in others if m in common], (
                    f"{name} and {other} heard the same in two orders"
                )


@virtual_test
async def test_a_broadcast_to_the_subtree_goes_to_nobody_else() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 8)
        for number in range(3):
            await nodes["n1"].broadcast(number, to_subtree=True)
        await trio.sleep(1)
        for node in nodes.values():
            is_below = nodes["n1"].id in node.path[:-1]
            assert heard(node) == ([0, 1, 2] if is_below else [])
        assert sum(nodes["n1"].id in node.path[:-1] for node in nodes.values()) >= 2


@virtual_test
async def test_who_comes_later_hears_nothing_of_the_past() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 1)
        await nodes["n1"].broadcast("before")
        await trio.sleep(1)
        late = await enter_child(world, stack, "late")
        await nodes["n1"].broadcast("after")
        await trio.sleep(1)
        assert heard(late) == ["after"]
        assert heard(nodes["root"]) == ["before", "after"]


@virtual_test
async def test_a_broadcast_of_who_has_not_joined_yet_goes_out_when_it_has() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 1)
        node = await stack.enter_async_context(world.node("new"))
        await node.broadcast("early")
        await node.join()
        await trio.sleep(1)
        assert heard(nodes["root"]) == heard(nodes["n1"]) == ["early"]


@virtual_test
async def test_who_was_cut_off_misses_nothing_and_what_it_said_is_not_lost() -> None:
    async with open_world(latency=0.05) as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 6)
        upper = find_parent(nodes, "n6")
        await nodes["root"].broadcast(0)
        await trio.sleep(1)
        await nodes["n6"].broadcast("on its way")
        world.network.crash(upper, noticed_after=None)
        for number in range(1, 5):
            await nodes["root"].broadcast(number)
            await nodes["n6"].broadcast(f"from n6, {number}")
            if number == 2:
                await until(lambda: nodes["n6"].path == ())  # it has noticed
        await trio.sleep(10)
        assert [data for data in heard(nodes["n6"]) if data in range(5)] == [0, 1, 2, 3, 4]
        for name, node in nodes.items():
            if name not in (upper, "n6"):
                said = [data for data in heard(node) if str(data).startswith(("from", "on its"))]
                assert said == ["on its way", *(f"from n6, {number}" for number in range(1, 5))]
                assert node.count_missed == 0
        await nodes[upper].aclose()


@virtual_test
async def test_who_was_away_for_longer_than_its_messages_are_kept_counts_what_it_missed() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        limits = CastLimits(max_lag=200_000)
        nodes = await enter_tree(world, stack, 2, cast_limits=limits)
        async with open_background_nursery() as nursery:
            for node in nodes.values():
                nursery.start_soon(read_all, node, [])
            await nodes["root"].broadcast("first")
            await trio.sleep(1)
            world.network.freeze("n2")
            await until(lambda: nodes["root"].children_count == 1)
            for _ in range(10):
                await nodes["root"].broadcast(LARGE)
            await trio.sleep(1)
            world.network.thaw("n2")
            await trio.sleep(10)
            # Three of them are within 200,000 bytes.
            assert nodes["n2"].count_missed == 7
            assert nodes["n1"].count_missed == 0


async def read_all(node: TreeNode, into: list[object]) -> None:
    async for message in node.casts:
        into.append(message.data)  # noqa: PERF401 - looked at before it ends


@virtual_test
async def test_a_branch_that_was_cut_off_hears_all_below_a_node_that_came_later() -> None:
    """It did not: its new parent had kept nothing from before its own time. Fuzzing found it."""
    async with open_world(latency=0.05) as world, AsyncExitStack() as stack:
        options = {"max_degree": 1, "standby": False}
        nodes = await enter_tree(world, stack, 4, **options)
        cut = world.network.cut("n2 <-> server*")
        world.network.crash("n1", noticed_after=None)
        await until(lambda: not nodes["root"].children and not nodes["n4"].path)
        for number in range(3):
            await nodes["root"].broadcast(number)
        young = [await enter_child(world, stack, name, **options) for name in ("y1", "y2")]
        await nodes["root"].broadcast(3)
        await trio.sleep(1)
        world.network.lift(cut)
        await until(lambda: nodes["n4"].path, 60)
        assert young[1].id in nodes["n2"].path
        await nodes["root"].broadcast(4)
        await trio.sleep(2)
        for name in ("n2", "n3", "n4"):
            assert heard(nodes[name]) == [0, 1, 2, 3, 4]
            assert nodes[name].count_missed == 0
        for node in young:
            assert heard(node) == [3, 4]
        await nodes["n1"].aclose()


# --- who reads slowly -------------------------------------------------------------------------


@virtual_test
async def test_a_slow_child_delays_its_own_branch_only_and_is_left_when_it_is_too_far_behind() -> (
    None
):
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 4)
        slow = find_parent(nodes, "n3")
        (fast,) = {"n1", "n2"} - {slow}
        with pytest.raises(trio.WouldBlock):
            nodes[slow].casts.receive_nowait()  # it reads, and from now on it doesn't
        said: dict[str, list[object]] = {name: [] for name in nodes}
        past_events(nodes["root"])
        async with open_background_nursery() as nursery:
            for name, node in nodes.items():
                if name != slow:
                    nursery.start_soon(read_all, node, said[name])
            started_at = trio.current_time()
            for number in range(60):
                await nodes["root"].broadcast([number, LARGE])
            await trio.sleep(1)
            assert len(said[fast]) == 60
            assert trio.current_time() - started_at < 10
            assert nodes["root"]._casts._log.size <= CastLimits().max_lag
            events = past_events(nodes["root"])
            closed = [event for event in events if isinstance(event, ChildClose)]
            assert [event.reason for event in closed[:1]] == [
                "it is more than 1048576 bytes of messages behind"
            ]
            # What is below it has been told as much as it has taken, and no more.
            assert len(said["n3"]) < 10


@virtual_test
async def test_while_all_children_are_slow_the_sender_waits_and_memory_is_bounded() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 3, max_degree=1)
        world.network.apply("n1 <-> n2", SlowReader(2.0))
        said: list[object] = []
        async with open_background_nursery() as nursery:
            nursery.start_soon(read_all, nodes["n3"], said)
            nursery.start_soon(read_all, nodes["n1"], [])
            started_at = trio.current_time()
            for number in range(40):
                await nodes["root"].broadcast([number, LARGE])
                for node in nodes.values():
                    assert node._casts._held_bytes <= CAST_WINDOW + 60_000
                    assert node._casts._up_size <= 2 * CAST_WINDOW
            # Two a second are read; at each of three hops, and in the channels, some wait.
            assert trio.current_time() - started_at > 8
            await until(lambda: len(said) == 40, 60)


@virtual_test
async def test_a_child_that_takes_nothing_is_left_after_a_while_even_if_it_is_the_only_one() -> (
    None
):
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 1, cast_limits=CastLimits(stall_timeout=20))
        with pytest.raises(trio.WouldBlock):
            nodes["n1"].casts.receive_nowait()
        past_events(nodes["root"])
        with trio.move_on_after(15) as patience:
            for _ in range(20):
                await nodes["root"].broadcast(LARGE)
        assert patience.cancelled_caught
        assert nodes["root"].children_count == 1
        with trio.fail_after(10):
            event = await nodes["root"].events.receive()
        assert isinstance(event, ChildClose)
        assert event.reason == "it has taken no messages for 20 s"


@virtual_test
async def test_a_node_that_reads_nothing_at_all_keeps_the_newest_and_delays_nobody() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 3, max_degree=1)
        for number in range(50):
            await nodes["root"].broadcast([number, LARGE])
        await trio.sleep(5)
        for name in ("n1", "n2", "n3"):
            assert [message[0] for message in heard(nodes[name])] == [49]  # type: ignore[index]


# --- letters ----------------------------------------------------------------------------------


@virtual_test
async def test_anybody_can_write_to_anybody_and_letters_keep_their_order() -> None:
    async with open_world(latency=0.03) as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 8)
        names = list(nodes)
        async with trio.open_nursery() as nursery:
            for number in range(10):
                for index, name in enumerate(names):
                    target = nodes[names[(index + 3) % len(names)]]
                    nursery.start_soon(nodes[name].send_to, target.id, [name, number])
                await trio.testing.wait_all_tasks_blocked()
        for index, name in enumerate(names):
            sender = names[(index - 3) % len(names)]
            messages = [nodes[name].casts.receive_nowait() for _ in range(10)]
            assert [message.data for message in messages] == [[sender, n] for n in range(10)]
            assert {message.origin for message in messages} == {nodes[sender].id}
            assert not any(message.is_broadcast for message in messages)


@virtual_test
async def test_a_letter_finds_its_way_while_its_target_changes_its_place() -> None:
    async with open_world(latency=0.05) as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 6)
        upper = find_parent(nodes, "n6")
        world.network.crash(upper, noticed_after=None)
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(nodes["root"].send_to, nodes["n6"].id, number)
                nursery.start_soon(nodes["n6"].send_to, nodes["root"].id, number)
                await trio.sleep(0.5)
        assert heard(nodes["n6"]) == heard(nodes["root"]) == [0, 1, 2, 3, 4]
        await nodes[upper].aclose()


@virtual_test
async def test_what_is_wrong_with_a_letter_is_said_at_once_or_after_six_seconds() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 3)
        node = nodes["n3"]
        with pytest.raises(UsageError, match="to itself"):
            await node.send_to(node.id, 1)

        async def write(data: object) -> None:
            await node.send_to(nodes["root"].id, data)

        for send in (node.broadcast, write):
            with pytest.raises(MessageTooLarge, match="60000"):
                await send("x" * MAX_MESSAGE)
            with pytest.raises(TypeError):
                await send(object())
            deep: object = 1
            for _ in range(125):
                deep = [deep]
            with pytest.raises(ValueError, match="nested"):
                await send(deep)
        started_at = trio.current_time()
        with pytest.raises(PeerNotFound, match="no node of the tree has the id nobody"):
            await node.send_to("nobody", 1)
        assert 6 <= trio.current_time() - started_at < 8
        assert len(node._casts.outboxes) == 0


@virtual_test
async def test_a_letter_to_who_does_not_read_on_is_undelivered_and_costs_nobody_else() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 3, max_degree=1)
        lazy = nodes["n2"]
        with pytest.raises(trio.WouldBlock):
            lazy.casts.receive_nowait()
        for number in range(3):
            await nodes["root"].send_to(lazy.id, [number, LARGE])
        with pytest.raises(DeliveryFailed, match="within 5 s"):
            await nodes["root"].send_to(lazy.id, [3, LARGE], timeout=5)
        await nodes["root"].send_to(nodes["n3"].id, "past it", timeout=1)
        assert [lazy.casts.receive_nowait().data[0] for _ in range(3)] == [0, 1, 2]
        await nodes["root"].send_to(lazy.id, "now", timeout=1)
        assert heard(lazy) == ["now"]


@virtual_test
async def test_a_node_that_has_left_says_nothing_and_ends_what_is_being_said() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 2)
        node = nodes["n1"]
        async with trio.open_nursery() as nursery:

            async def fail(target: str) -> None:
                with pytest.raises(trio.ClosedResourceError, match="has left"):
                    await node.send_to(target, 1)

            nursery.start_soon(fail, "nobody")
            await trio.sleep(1)
            await node.aclose()
        await fail(nodes["n2"].id)
        with pytest.raises(trio.ClosedResourceError):
            await node.broadcast(1)
        with pytest.raises(trio.ClosedResourceError):
            await node.gather("anything")


# --- the old protocol -------------------------------------------------------------------------


@virtual_test
async def test_to_a_child_of_the_old_protocol_a_broadcast_is_a_message_like_any_other() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 1)
        client = await stack.enter_async_context(world.client("old"))
        old = await stack.enter_async_context(client.connect())
        await trio.sleep(1)
        await nodes["n1"].broadcast({"for": "all"})
        await trio.sleep(1)
        await nodes["root"].broadcast("below", to_subtree=True)
        frames = [decode_tree(await old.receive()) for _ in range(2)]
        assert frames == [Data({"for": "all"}), Data("below")]
        await trio.sleep(100)
        assert nodes["root"].children_count == 2


@virtual_test
async def test_to_a_parent_of_the_old_protocol_goes_what_is_for_all() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        client = await stack.enter_async_context(world.client("old-root"))
        requests = await stack.enter_async_context(client.root("swordfish"))
        node = await stack.enter_async_context(world.node("ours"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.join)
            request = await requests.receive()
            old = await stack.enter_async_context(client.answer(request))
        await node.broadcast("for nobody above", to_subtree=True)
        await node.broadcast("for all")
        assert decode_tree(await old.receive()) == Data("for all")


# --- the hostile ------------------------------------------------------------------------------


@virtual_test
async def test_a_child_that_sends_without_credit_loses_its_link() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 1)
        client = await stack.enter_async_context(world.client("greedy"))
        greedy = await stack.enter_async_context(client.connect(extensions=EXTENSIONS))
        await say(greedy, Beat())
        await trio.sleep(0.5)
        assert nodes["root"].children_count == 2
        past_events(nodes["root"])
        with pytest.raises(trio.WouldBlock):
            nodes["root"].casts.receive_nowait()  # it reads, and from now on it doesn't
        with pytest.raises(trio.BrokenResourceError, match="without credit"):
            for number in range(100):
                await say(greedy, Cast("greedy", number + 1, 0, LARGE))
        errors = [type(event) for event in past_events(nodes["root"])]
        assert errors == [ChildError, ChildClose]
        assert nodes["root"]._casts._up_size + nodes["root"]._casts._held_bytes <= 400_000
        assert nodes["n1"].parent is not None


@virtual_test
async def test_what_only_a_parent_may_say_is_ignored_from_a_child() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 1)
        client = await stack.enter_async_context(world.client("upstart"))
        upstart = await stack.enter_async_context(client.connect(extensions=EXTENSIONS))
        await say(upstart, Beat())
        await say(upstart, Entry("its own log", 1, "upstart", 1, "hear me"))
        await trio.sleep(1)
        assert heard(nodes["root"]) == heard(nodes["n1"]) == []
        await say(upstart, Cast("upstart", 1, 0, "hear me"))
        await trio.sleep(1)
        assert heard(nodes["root"]) == heard(nodes["n1"]) == ["hear me"]


@virtual_test
async def test_what_a_parent_sends_without_credit_ends_its_link_and_not_the_node() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        false_root = FalseRoot(world, stack)
        await false_root.open()
        node = await stack.enter_async_context(world.node("a"))
        with pytest.raises(trio.WouldBlock):
            node.casts.receive_nowait()
        link = await false_root.adopt(node, Descent((1, 1), ("f",)))
        for number in range(20):
            await say(link, Entry("log", number + 1, "f", number + 1, LARGE))
        await until(lambda: node.parent is None)
        (closed,) = [event for event in past_events(node) if isinstance(event, ParentClose)]
        assert "without credit" in closed.reason
        assert len(node.casts) <= 4


@virtual_test
async def test_nonsense_from_a_parent_is_survived() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        false_root = FalseRoot(world, stack)
        await false_root.open()
        node = await stack.enter_async_context(world.node("a"))
        link = await false_root.adopt(node, Descent((1, 1), ("f",)))
        for frame in (
            CastCredit(2**52),
            Resume("log", 3),
            Routes(("x",), (), True),
            Letter("f", "elsewhere", 1, 0, None),
            Letter("f", node.id, 1, 0, "for you"),
            Letter("f", node.id, 1, 0, "for you"),
            Entry("log", 2**52, "f", 2**52, "far ahead"),
            Entry("another", 0, node.id, 2**52, "in its own name"),
        ):
            await say(link, frame)
        await trio.sleep(1)
        assert node.parent is not None
        assert heard(node) == ["for you", "far ahead"]


@virtual_test
async def test_a_storm_of_broadcasts_and_letters_through_crashes_keeps_its_promises() -> None:
    """What `TreeWorld` checks in short stories, here with full windows."""
    rng = random.Random(1)
    async with open_world(latency=0.03) as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 14)
        said: dict[str, list[object]] = {name: [] for name in nodes}
        gone: set[str] = set()
        speakers = ["root", "n9", "n14"]
        async with open_background_nursery() as nursery:
            for name, node in nodes.items():
                nursery.start_soon(read_all, node, said[name])

            async def speak(name: str) -> None:
                for number in range(60):
                    await nodes[name].broadcast([name, number, "x" * rng.randrange(8000)])

            async with trio.open_nursery() as crowd:
                for name in speakers:
                    crowd.start_soon(speak, name)
                for _ in range(4):
                    await trio.sleep(2)
                    victim = rng.choice(
                        [name for name in nodes if name not in gone and name not in speakers]
                    )
                    gone.add(victim)
                    world.network.crash(victim, noticed_after=None)
            await trio.sleep(40)
            for name in nodes.keys() - gone:
                for speaker in speakers:
                    numbers = [m[1] for m in said[name] if m[0] == speaker]  # type: ignore[index]
                    expected = [] if speaker == name else list(range(60))
                    assert numbers == expected, f"{name} heard of {speaker}: {numbers}"
        for name in gone:
            await nodes[name].aclose()
