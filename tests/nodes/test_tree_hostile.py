"""What a hostile applicant, child or parent can cause a node to do: nothing to anybody else."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from tests.nodes.test_tree import enter_child, enter_root, past_events, until
from tests.world import AUTHORITY, SECRET, World, open_world
from trio_overlay.channels.channel import Channel
from trio_overlay.channels.network import Network, PeerConnection
from trio_overlay.errors import OverlayError, UsageError
from trio_overlay.nodes.tree import TreeNode, open_tree_node
from trio_overlay.nodes.tree_events import ChildConnect, ParentError
from trio_overlay.nodes.tree_roads import MAX_CROSSINGS_EACH
from trio_overlay.protocol.ancestry import MAX_NUMBER, Descent
from trio_overlay.protocol.bootstrap import SignalFrame, signal_frame
from trio_overlay.protocol.json import JSON, encode_json
from trio_overlay.protocol.tree import (
    EXTENSIONS,
    ROADS,
    Beat,
    Descend,
    RoadEnd,
    RoadRequest,
    TreeFrame,
    Wish,
    decode_tree,
    encode_tree,
)
from trio_overlay.signaling.bootstrap import Connection
from trio_overlay.signaling.bootstrap_road import BootstrapRoad
from trio_overlay.signaling.handshake import shake_hands


class FalseRoot:
    """Somebody who knows the secret and the protocol, and tells joiners what the test says."""

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        self._world = world
        self._stack = stack

    async def open(self) -> None:
        self._client = await self._stack.enter_async_context(self._world.client("false-root"))
        self._requests = await self._stack.enter_async_context(self._client.root(SECRET))

    async def adopt(self, node: TreeNode, descent: Descent) -> Connection:
        """Be the parent of *node*, standing where *descent* says."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.join)
            request = await self._requests.receive()
            answer = self._client.answer(request, extensions=EXTENSIONS)
            link = await self._stack.enter_async_context(answer)
            await say(link, Descend(descent))
        return link

    async def answer_next(self) -> Connection:
        request = await self._requests.receive()
        answer = self._client.answer(request, extensions=EXTENSIONS)
        return await self._stack.enter_async_context(answer)


async def say(link: Channel, frame: TreeFrame) -> None:
    await link.send(encode_tree(frame))


async def send_to_root(world: World, name: str, stack: AsyncExitStack, **fields: JSON) -> Channel:
    """A prospect's socket, over which an offer with further *fields* went to the root."""
    host = world.network.host(name)
    socket = await stack.enter_async_context(host.dial(f"ws://{AUTHORITY}/join"))
    signal = {"type": "offer", "sdp": "v=0"}
    await socket.send(encode_json({"destination": None, "signal": signal, "rank": 0, **fields}))
    return socket


class SlowToClose(Network):
    """A network whose peer connections take a while to close, as those of the internet do."""

    def __init__(self, network: Network) -> None:
        self._network = network

    @asynccontextmanager
    async def _open_peer(self, initiator: bool) -> AsyncIterator[PeerConnection]:
        async with self._network.open_peer(initiator=initiator) as peer:
            try:
                yield peer
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.3)

    def open_peer(self, *, initiator: bool) -> AbstractAsyncContextManager[PeerConnection]:
        return self._open_peer(initiator)

    def dial(self, url: str) -> AbstractAsyncContextManager[Channel]:
        return self._network.dial(url)


async def test_origin_that_applies_again_while_its_link_closes_keeps_its_new_place(
    autojump_clock: MockClock,
) -> None:
    """The end of its first life is not the end of its second."""
    async with open_world(latency=0.1) as world, AsyncExitStack() as stack:
        network = SlowToClose(world.network.host("root"))
        root = await stack.enter_async_context(
            open_tree_node(AUTHORITY, network=network, rng=random.Random(1))
        )
        await root.become_root(SECRET)
        host = world.network.host("twice")
        socket = await stack.enter_async_context(host.dial(f"ws://{AUTHORITY}/join"))
        for life in range(2):
            async with host.open_peer(initiator=True) as peer:
                road = BootstrapRoad(None, None, (), None)
                road.socket = socket
                channel = await shake_hands(peer, road)
                await until(lambda: root.children_count == 1)
                if life:
                    await trio.sleep(2)  # the first is closed now
                    assert root.children_count == 1
                    await channel.send('{"type":"DATA","data":"still here"}')
                    assert (await root.messages.receive()).data == "still here"
            await until(lambda: root.children_count == 0)
        await trio.sleep(2)
        assert root._branch.applicants == root._branch.children == ()


async def test_applicant_with_the_greatest_number_does_not_end_the_tree(
    autojump_clock: MockClock,
) -> None:
    """No number that an applicant claims makes the root issue one that its children refuse."""
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        node = await enter_child(world, stack, "a")
        for attempt in range(3):
            await send_to_root(
                world, f"liar{attempt}", stack, number=[MAX_NUMBER - 1, MAX_NUMBER - 1]
            )
        await trio.sleep(3)
        assert node.parent is not None
        assert [type(event) for event in past_events(root)] == [ChildConnect]
        assert root._ancestry.number[0] < MAX_NUMBER // 2
        await enter_child(world, stack, "b")


async def test_request_too_large_to_be_passed_on_costs_nobody_else(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        node = await enter_child(world, stack, "a")
        await send_to_root(world, "loud", stack, ballast="x" * 400_000)
        await trio.sleep(1)
        assert node.parent is not None
        assert root.children_count == 1
        await enter_child(world, stack, "b")
        assert node.children_count == 1


async def test_reason_too_large_to_be_passed_on_costs_nobody_else(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1)
        node = await enter_child(world, stack, "a", max_degree=1)
        (child,) = root.children.values()
        await send_to_root(world, "loud", stack)
        await until(lambda: node._applicants)
        ((origin, request),) = node._applicants.items()
        root._take_withdrawal(origin, "x" * 400_000)
        await until(lambda: request.withdrawn)
        assert request.withdrawn == "x" * 200
        assert child.is_open


async def test_path_too_long_to_be_told_on_costs_only_the_link_it_came_over(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        parent = FalseRoot(world, stack)
        await parent.open()
        node = await stack.enter_async_context(world.node("a"))
        link = await parent.adopt(node, Descent((1, 1), ("false",)))
        await until(lambda: node.parent)
        past_events(node)
        await say(link, Descend(Descent((1, 2), ("x" * 262_000,))))
        await until(lambda: node.parent is None)
        error, _ = past_events(node)
        assert isinstance(error, ParentError)
        assert "up to 64 ASCII characters" in str(error.error)
        assert node.path == ()


async def test_path_of_a_former_parent_says_nothing_of_the_next(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        parent = FalseRoot(world, stack)
        await parent.open()
        node = await stack.enter_async_context(world.node("a"))
        link = await parent.adopt(node, Descent((1, 1), ("former", "parent")))
        await until(lambda: node.parent)
        await link.aclose()
        link = await parent.answer_next()
        await say(link, Beat((7, 1)))
        await trio.sleep(1)
        assert node.parent is None
        assert node.path == ()


async def test_restless_parent_costs_us_no_child(autojump_clock: MockClock) -> None:
    """However much it has to say at once: of where we stand a child is told the newest."""
    async with open_world() as world, AsyncExitStack() as stack:
        await enter_root(world, stack, max_degree=1)
        middle = await enter_child(world, stack, "middle")
        bottom = await enter_child(world, stack, "bottom")
        assert middle.parent is not None
        (child,) = middle.children.values()
        for count in range(1, 5_000):
            descent = Descent((2, 2 * count), ("elsewhere", str(count)))
            middle._take_frame(middle.parent, Descend(descent))
            middle._take_frame(middle.parent, Beat((2, 2 * count + 1)))
        await trio.sleep(0.1)
        assert child.is_open
        assert bottom.path == ("elsewhere", "4999", middle.id, bottom.id)
        assert bottom._ancestry.number == (2, 9_999)


async def test_storm_of_requests_costs_us_no_child(autojump_clock: MockClock) -> None:
    """A root with one child, and thousands who come at once, faster than the child can be told."""
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=1, request_timeout=3)
        node = await enter_child(world, stack, "a", max_degree=1, request_timeout=3)
        (child,) = root.children.values()
        for number in range(5_000):
            fields = {"origin": f"{number:06x}", "signal": {"type": "offer", "sdp": ""}}
            root._take_request(SignalFrame(fields))
        await trio.sleep(5)
        assert child.is_open
        assert not root._requests
        await enter_child(world, stack, "b")
        assert node.children_count == 1


async def test_leaving_does_not_wait_for_a_join_under_way(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        node = await stack.enter_async_context(world.node("a"))
        ended_with: list[OverlayError] = []

        async def join() -> None:
            with pytest.raises(UsageError, match="left") as caught:
                await node.join()
            ended_with.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(join)
            await trio.sleep(1)  # there is no root: the server holds the request
            started_at = trio.current_time()
            await node.aclose()
            assert trio.current_time() - started_at < 0.5
        assert ended_with


async def test_flood_of_roads_over_a_node_is_bounded_and_over_at_its_time(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack, max_degree=2)
        heir = await enter_child(world, stack, "heir", max_degree=2)
        client = await stack.enter_async_context(world.client("flooder"))
        link = await stack.enter_async_context(client.connect(extensions=frozenset({ROADS})))
        await trio.sleep(1)
        sdp = "virtual offer 1000000 of x with 0 candidates"  # it is answered, and leads nowhere
        offer = signal_frame({"type": "offer", "sdp": sdp}, destination=None, rank=0)
        for number in range(MAX_CROSSINGS_EACH + 40):
            await say(link, RoadRequest(f"road {number}", Wish.STANDBY, offer))
        await trio.sleep(0.5)
        assert len(root._roads) == MAX_CROSSINGS_EACH
        refused = 0
        with trio.move_on_after(1):
            while True:
                frame = decode_tree(await link.receive())
                if isinstance(frame, RoadEnd):
                    assert "too many" in frame.reason
                    refused += 1
        assert refused == 40
        await trio.sleep(root.request_timeout + 1)
        assert len(root._roads) == 0
        assert heir.parent is not None
        await heir.parent.send("still here")
        assert (await root.messages.receive()).data == "still here"
