"""Tree nodes on the virtual network: what neighbours, applicants and leavers see."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock

from tests.world import AUTHORITY, SECRET, World, open_world
from trio_overlay.errors import (
    JoinRefused,
    JoinTimeout,
    NotSupported,
    OverlayError,
    ServerRefused,
    UsageError,
)
from trio_overlay.nodes.tree import TreeNode, open_tree_node
from trio_overlay.nodes.tree_channel import MAX_UNREAD, WINDOW
from trio_overlay.nodes.tree_events import (
    ChildClose,
    ChildConnect,
    ChildError,
    Event,
    ParentClose,
    ParentConnect,
)
from trio_overlay.protocol.json import encode_json
from trio_overlay.simulation.collector import no_collector


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    """Let virtual time pass until *condition* holds."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event for what tests look at
            await trio.sleep(0.005)


def past_events(node: TreeNode) -> list[Event]:
    return [node.events.receive_nowait() for _ in range(len(node.events))]


async def enter_root(world: World, stack: AsyncExitStack, **options: int) -> TreeNode:
    root = await stack.enter_async_context(world.node("root", **options))
    await root.become_root(SECRET)
    return root


async def enter_child(world: World, stack: AsyncExitStack, name: str, **options: int) -> TreeNode:
    """A node that has joined, and whose parent knows it too."""
    node = await stack.enter_async_context(world.node(name, **options))
    await node.join()
    await trio.sleep(1)
    return node


async def test_joiner_becomes_a_child_and_both_are_told(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        async with world.node("a") as node:
            parent = await node.join()
            assert node.parent is parent
            assert isinstance(await node.events.receive(), ParentConnect)
            event = await root.events.receive()
            assert isinstance(event, ChildConnect)
            assert root.children == {event.channel.id: event.channel}
            assert root.children_count == 1
            assert not event.channel.is_parent
            assert parent.is_parent
        event = await root.events.receive()
        assert isinstance(event, ChildClose)
        assert "left" in event.reason
        assert root.children_count == 0


@pytest.mark.parametrize("ending", ["leaves", "crashes"])
async def test_channel_that_has_ended_is_freed_at_once(
    autojump_clock: MockClock, ending: str
) -> None:
    with no_collector():
        async with open_world() as world, AsyncExitStack() as stack:
            root = await enter_root(world, stack)
            async with world.node("a") as node:
                await node.join()
                await until(lambda: root.children_count)
                reference = weakref.ref(next(iter(root.children.values())))
                if ending == "crashes":
                    world.network.crash("a")
                    await until(lambda: root.children_count == 0, 60)
            await trio.sleep(60)
            past_events(root)
            assert root.children_count == 0
            assert reference() is None


@pytest.mark.parametrize("seconds", [2.5, 60])
async def test_who_was_held_up_itself_misses_nobody(
    seconds: float, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """As a laptop that was closed: what has come meanwhile is read after the clock was."""
    async with open_world(latency=0.05) as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        upper = await enter_child(world, stack, "upper", max_degree=1)
        lower = await enter_child(world, stack, "lower")
        parents = upper.parent, lower.parent
        for node in (root, upper, lower):
            past_events(node)
        for _ in range(20):
            await trio.sleep(0.83)
            autojump_clock.jump(seconds)
        await trio.sleep(10)
        assert [past_events(node) for node in (root, upper, lower)] == [[], [], []]
        assert (upper.parent, lower.parent) == parents
        assert caplog.messages == [], "nor does the server miss the root, nor the root the server"
        world.network.crash("upper", noticed_after=60)
        await until(lambda: lower.parent not in (None, parents[1]), 10)


async def test_data_travels_both_ways_in_order_with_its_channel(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        node = await enter_child(world, stack, "a")
        assert node.parent is not None
        for number in range(100):
            await node.parent.send({"up": number})
        got = [await root.messages.receive() for _ in range(100)]
        assert [message.data for message in got] == [{"up": number} for number in range(100)]
        assert not got[0].is_parent
        await got[0].channel.send(["down", None, 1.5])
        answer = await node.messages.receive()
        assert answer.data == ["down", None, 1.5]
        assert answer.is_parent
        assert answer.channel is node.parent


async def test_full_nodes_delegate_and_everybody_finds_a_place(autojump_clock: MockClock) -> None:
    async with open_world(latency=0.05) as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=2)
        nodes = [
            await stack.enter_async_context(world.node(f"n{number}", max_degree=2))
            for number in range(30)
        ]
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(node.join)
        everyone = [root, *nodes]
        await until(lambda: not any(node._applicants for node in everyone))
        assert all(node.children_count <= 2 for node in everyone)
        assert sum(node.children_count for node in everyone) == 30
        assert all(node.parent is not None for node in nodes)
        # A delegated request is forgotten when its time is over.
        await trio.sleep(31)
        assert not any(node._requests or node._branch.requests for node in everyone)


async def test_channel_that_is_iterated_leaves_the_stream_of_its_node(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        first = await enter_child(world, stack, "a")
        second = await enter_child(world, stack, "b")
        assert first.parent is not None
        assert second.parent is not None
        mine = next(iter(root.children.values()))

        async with trio.open_nursery() as nursery:
            received: list[object] = []

            async def iterate() -> None:
                async for data in mine:
                    received.append(data)  # noqa: PERF401 - looked at before it ends

            nursery.start_soon(iterate)
            await trio.testing.wait_all_tasks_blocked()
            await first.parent.send("for the channel")
            await second.parent.send("for the node")
            assert (await root.messages.receive()).data == "for the node"
            await until(lambda: received)
            assert received == ["for the channel"]
            await mine.aclose()  # which ends the iteration


async def test_cancelled_join_is_taken_back_at_every_hop_within_a_round_trip(
    autojump_clock: MockClock,
) -> None:
    async with open_world(latency=0.1) as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        middle = await enter_child(world, stack, "middle", max_degree=1)
        bottom = await enter_child(world, stack, "bottom", max_degree=1)
        joiner = await stack.enter_async_context(world.node("joiner"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(joiner.join)
            await until(lambda: bottom._applicants)
            (origin,) = bottom._applicants
            assert origin in root._requests
            assert origin in middle._requests
            nursery.cancel_scope.cancel()
        # To the server, and from there to the answerer and down the tree: four hops.
        await trio.sleep(0.5)
        for node in (root, middle, bottom):
            assert origin not in node._applicants
            assert origin not in node._requests
            assert origin not in node._branch.requests
        assert bottom.children_count == 0
        # The place is free again.
        await enter_child(world, stack, "next")
        assert bottom.children_count == 1


async def test_join_without_a_root_is_refused_or_times_out(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        node = await stack.enter_async_context(world.node("a"))
        with pytest.raises(JoinRefused):
            await node.join()
        hasty = await stack.enter_async_context(world.node("b", request_timeout=2))
        started_at = trio.current_time()
        with pytest.raises(JoinTimeout, match="2 s"):
            await hasty.join()
        assert trio.current_time() - started_at < 3
        assert hasty.parent is None
        # It can try again.
        await enter_root(world, stack)
        await hasty.join()


async def test_request_is_held_for_a_root_that_comes_soon(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        node = await stack.enter_async_context(world.node("a"))
        root = await stack.enter_async_context(world.node("root"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.join)
            await trio.sleep(2)
            await root.become_root(SECRET)
        assert node.parent is not None


async def test_wrong_secret_is_refused(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        node = await stack.enter_async_context(world.node("a"))
        with pytest.raises(ServerRefused):
            await node.become_root("wrong")
        assert not node.is_root
        with pytest.raises(UsageError):
            await node.become_root("")
        await node.become_root(SECRET)
        assert node.is_root


async def test_one_node_is_one_thing(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        with pytest.raises(UsageError):
            await root.join()
        child = await enter_child(world, stack, "a")
        with pytest.raises(UsageError):
            await child.join()
        with pytest.raises(UsageError):
            await child.become_root(SECRET)
        await child.aclose()
        with pytest.raises(UsageError, match="has left"):
            await child.join()


async def test_orphan_is_told_and_takes_no_children(autojump_clock: MockClock) -> None:
    async with open_world(latency=0.1) as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        middle = await enter_child(world, stack, "middle", max_degree=2)
        bottom = await enter_child(world, stack, "bottom", max_degree=2)
        late = await stack.enter_async_context(world.node("late", request_timeout=3))
        async with trio.open_nursery() as nursery:

            async def fail_to_join() -> None:
                with pytest.raises((JoinRefused, JoinTimeout)):
                    await late.join()

            nursery.start_soon(fail_to_join)
            await until(lambda: middle._applicants)
            await root.aclose()
            await until(lambda: middle.parent is None)
            assert not middle._branch.has_room
        assert bottom.parent is not None  # it keeps its own
        assert [type(event) for event in past_events(root)] == [ChildConnect, ChildClose]
        events = past_events(middle)
        assert [type(event) for event in events] == [ParentConnect, ChildConnect, ParentClose]
        assert middle.children_count == 1


async def test_leaving_closes_children_and_parent_with_a_reason(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        await enter_root(world, stack, max_degree=1)
        middle = await enter_child(world, stack, "middle")
        bottom = await enter_child(world, stack, "bottom")
        middle.close()  # at once: it hands nobody over
        await middle.aclose()
        assert middle.parent is None
        assert middle.children_count == 0
        await until(lambda: bottom.parent is None)
        events = past_events(middle)
        assert [type(event) for event in events[:2]] == [ParentConnect, ChildConnect]
        assert {type(event) for event in events[2:]} == {ParentClose, ChildClose}
        assert all(event.reason for event in events[2:])  # type: ignore[union-attr]


async def test_child_can_be_sent_away(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        node = await enter_child(world, stack, "a")
        parent = node.parent
        assert parent is not None
        (child,) = root.children.values()
        await child.aclose("too loud")
        with pytest.raises(trio.ClosedResourceError):
            await child.send("never")
        await until(lambda: node.parent is None)
        assert parent.close_reason == "too loud"
        with pytest.raises(trio.BrokenResourceError):
            await parent.send("never")
        assert root.children_count == 0
        await until(lambda: node.parent is not None)  # it asks again


async def test_slow_reader_makes_the_sender_wait_and_nothing_grows(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        node = await enter_child(world, stack, "a")
        assert node.parent is not None
        with pytest.raises(trio.WouldBlock):
            root.messages.receive_nowait()  # now somebody reads
        text = "x" * 10_000
        sent = 0
        with trio.move_on_after(10):
            while True:
                await node.parent.send(text)
                sent += 1
        assert WINDOW <= sent * len(text) <= WINDOW + 2 * len(text)
        assert sent - 1 <= len(root.messages) <= sent
        for _ in range(100):
            received = root.messages.receive_nowait if len(root.messages) else None
            if received is None:
                break
            assert received().data == text
        with trio.fail_after(5):
            await node.parent.send("again")


async def test_reply_that_comes_before_the_first_receive_is_not_lost(
    autojump_clock: MockClock,
) -> None:
    """It once went to the node's stream, for nobody had read from the channel yet."""
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        node = await enter_child(world, stack, "a")
        assert node.parent is not None
        await node.parent.send("ping")
        async for message in root.messages:
            await message.channel.send("pong")
            break
        await trio.sleep(1)
        with trio.fail_after(5):
            assert await node.parent.receive() == "pong"
        assert len(node.messages) == 0


async def test_unread_messages_neither_block_nor_grow(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        node = await enter_child(world, stack, "a")
        assert node.parent is not None
        with trio.fail_after(60):
            for _ in range(500):
                await node.parent.send("x" * 10_000)
        await trio.sleep(1)
        assert root.messages.count_dropped > 480
        assert sum(len(message.data) for message, _ in root.messages._items) <= WINDOW // 2
        # Requests pass all the same.
        await enter_child(world, stack, "b")


async def test_abandoned_reader_of_a_channel_does_not_hold_up_the_tree(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        middle = await enter_child(world, stack, "a", max_degree=5)
        assert middle.parent is not None
        (child,) = root.children.values()
        await child.send("first")
        assert await middle.parent.receive() == "first"
        with trio.move_on_after(5):
            while True:
                await child.send("x" * 10_000)
        await enter_child(world, stack, "b")
        assert middle.children_count == 1


async def test_old_neighbour_that_sends_faster_than_is_read_loses_its_channel(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        client = await stack.enter_async_context(world.client("old"))
        connection = await stack.enter_async_context(client.connect())
        with pytest.raises(trio.WouldBlock):
            root.messages.receive_nowait()
        frame = encode_json({"type": "DATA", "data": "x" * 10_000})
        with pytest.raises(trio.BrokenResourceError):
            for _ in range(MAX_UNREAD):
                await connection.send(frame)
        assert isinstance(await root.events.receive(), ChildConnect)
        event = await root.events.receive()
        assert isinstance(event, ChildClose)
        assert "too slowly" in event.reason


@pytest.mark.parametrize(
    "frame",
    [
        "no json",
        '{"type":"NONSENSE"}',
        "[" * 10_000,
        b"\xff\xfe",
        '{"type":"JOIN-REQUEST","origin":1}',
        '{"type":"CONNECTION-SIGNAL","connection":"c","signal":{"type":"offer","sdp":1}}',
    ],
)
async def test_bad_frame_costs_its_sender_the_channel_and_nobody_else(
    frame: str | bytes, autojump_clock: MockClock
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        good = await enter_child(world, stack, "good")
        client = await stack.enter_async_context(world.client("bad"))
        connection = await stack.enter_async_context(client.connect())
        await until(lambda: root.children_count == 2)
        await connection.send(frame)
        with pytest.raises((trio.EndOfChannel, trio.BrokenResourceError)):
            await connection.receive()
        await until(lambda: root.children_count == 1)
        events = past_events(root)
        assert [type(event) for event in events[2:]] == [ChildError, ChildClose]
        assert good.parent is not None
        await good.parent.send("still here")
        assert (await root.messages.receive()).data == "still here"


async def test_join_request_of_a_child_is_ignored(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        client = await stack.enter_async_context(world.client("forger"))
        connection = await stack.enter_async_context(client.connect())
        signal = {"type": "offer", "sdp": "v=0"}
        request = {"type": "JOIN-REQUEST", "origin": "ab", "signal": signal, "rank": 0}
        await connection.send(encode_json(request))
        await connection.send('{"type":"DATA","data":"done"}')
        assert (await root.messages.receive()).data == "done"
        assert not root._applicants
        assert root.children_count == 1


async def test_frame_without_an_offer_takes_no_place(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        host = world.network.host("odd")
        socket = await stack.enter_async_context(host.dial(f"ws://{AUTHORITY}/join"))
        signal = {"candidate": {"candidate": "", "sdpMid": "0"}}
        await socket.send(encode_json({"destination": None, "signal": signal, "rank": 0}))
        await trio.sleep(1)
        assert not root._applicants
        assert root._branch.has_room


@pytest.mark.parametrize("dies_at", [step * 0.05 for step in range(1, 25)])
async def test_joiner_that_dies_at_any_stage_costs_nobody_anything(
    dies_at: float, autojump_clock: MockClock
) -> None:
    """Without a word: no farewell to the server, no close of its channel."""
    async with open_world(latency=0.05) as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1, request_timeout=10)
        middle = await enter_child(world, stack, "middle", max_degree=1, request_timeout=10)

        async def live() -> None:
            # What the dead see is nobody's concern.
            with contextlib.suppress(OverlayError):
                async with world.node("mortal") as node:
                    await node.join()
                    await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(live)
            await trio.sleep(dies_at)
            world.network.crash("mortal", noticed_after=5)
            nursery.cancel_scope.cancel()
        await trio.sleep(15)
        assert middle.children_count == 0
        for survivor in (root, middle):
            assert not survivor._applicants
            assert not survivor._requests
            assert not survivor._branch.requests
        await enter_child(world, stack, "next")
        assert middle.children_count == 1


async def test_dedicated_channel_carries_frames_beside_the_tree(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        node = await enter_child(world, stack, "a")
        assert node.parent is not None
        dials = sum(world.network.count_dials.values())
        (child,) = root.children.values()
        async with node.parent.open_channel() as dedicated:
            incoming = await child.incoming.receive()
            await dedicated.send(b"heavy")
            assert await incoming.receive() == b"heavy"
            await incoming.send("light")
            assert await dedicated.receive() == "light"
        with pytest.raises((trio.EndOfChannel, trio.BrokenResourceError)):
            await incoming.receive()
        assert sum(world.network.count_dials.values()) == dials  # no server took part
        await until(lambda: world.network.count_open_peers == 2)


async def test_dedicated_channels_nobody_takes_are_bounded(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        await enter_root(world, stack)
        node = await enter_child(world, stack, "a")
        assert node.parent is not None
        opened: list[object] = []
        failures: list[Exception] = []

        async def open_one(inner: AsyncExitStack) -> None:
            assert node.parent is not None
            try:
                opened.append(await inner.enter_async_context(node.parent.open_channel()))
            except Exception as error:  # noqa: BLE001 - collected, and looked at below
                failures.append(error)

        async with AsyncExitStack() as inner:
            for _ in range(20):
                await open_one(inner)
            assert len(opened) == 16
            assert all("too many" in str(error) for error in failures)


async def test_old_neighbours_have_no_dedicated_channels(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        client = await stack.enter_async_context(world.client("old"))
        await stack.enter_async_context(client.connect())
        await until(lambda: root.children)
        (child,) = root.children.values()
        with pytest.raises(NotSupported):
            async with child.open_channel():
                pass


async def test_body_error_leaves_as_itself(autojump_clock: MockClock) -> None:
    class OwnError(Exception):
        pass

    async with open_world() as world, AsyncExitStack() as stack:
        await enter_root(world, stack)
        with pytest.raises(OwnError):
            async with world.node("a") as node:
                await node.join()
                raise OwnError


async def test_a_node_has_a_child_or_more_and_some_time_for_requests() -> None:
    with pytest.raises(ValueError, match="max_degree is at least 1, not 0"):
        async with open_tree_node("server:5000", max_degree=0):
            pass
    with pytest.raises(ValueError, match="request_timeout is above 0 seconds, not 0"):
        async with open_tree_node("server:5000", request_timeout=0):
            pass
