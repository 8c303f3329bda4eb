"""Prospects and roots at several servers, on a virtual store and under a virtual clock."""

from __future__ import annotations

import random
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TypeVar

import trio
import trio.testing

from tests.cluster.world import LEASE, hear, open_world
from tests.signaling.test_service import SECRET, offer, say
from trio_overlay.channels.channel import Channel
from trio_overlay.channels.network import UpgradeRequest
from trio_overlay.nodes.tree import TreeNode, open_tree_node
from trio_overlay.protocol.bootstrap import (
    ROOT_PATH_SUFFIX,
    SNAPSHOT,
    SNAPSHOT_PATH_SUFFIX,
    AskSnapshot,
    Done,
    Heartbeat,
    Refused,
    Registration,
    SignalFrame,
    Withdrawn,
    signal_frame,
    snapshot_parts,
)
from trio_overlay.protocol.switchboard import DEFAULT_HOLD_TIMEOUT
from trio_overlay.testing.network import VirtualNetwork

Clock = trio.testing.MockClock
T = TypeVar("T")


async def test_a_joiner_and_an_answerer_meet_through_three_servers(autojump_clock: Clock) -> None:
    async with open_world("a", "b", "c") as world:
        a, b, c = world.servers
        root = await b.root()
        joiner, joiner_id = await a.prospect()
        await say(joiner, offer())
        assert await hear(root) == offer().with_origin(joiner_id)
        answerer, answerer_id = await c.prospect()
        answer = signal_frame({"type": "answer", "sdp": "v=0"}, destination=joiner_id, rank=0)
        await say(answerer, answer)
        assert await hear(joiner) == answer.with_origin(answerer_id)
        await say(joiner, Done())
        await joiner.aclose()
        await answerer.aclose()
        with trio.move_on_after(3) as quiet:
            while isinstance(await hear(root), Heartbeat):
                pass
        assert quiet.cancelled_caught
        for server in world.servers:
            assert server.server.status()["roots"] == 1
            assert server.server.status()["cluster"]["connected"] is True


async def test_old_clients_find_the_root_at_another_server(autojump_clock: Clock) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        root = await b.root(announced=False)
        joiner, _ = await a.prospect(announced=False)
        await say(joiner, offer())
        request = await hear(root)
        assert isinstance(request, SignalFrame)
        answerer, _ = await b.prospect(announced=False)
        await say(answerer, signal_frame({"type": "answer"}, destination=request.origin, rank=0))
        answer = await hear(joiner)
        assert isinstance(answer, SignalFrame)
        assert answer.destination == request.origin


async def test_the_root_that_stands_by_at_another_server_takes_over(autojump_clock: Clock) -> None:
    async with open_world("a", "b", "c") as world:
        a, b, c = world.servers
        standby = await b.root()
        await trio.sleep(0.1)  # the clocks of two servers agree to some milliseconds
        active = await c.root()
        await trio.sleep(1)
        first, first_id = await a.prospect()
        await say(first, offer())
        assert await hear(active) == offer().with_origin(first_id)
        c.crash()
        second, second_id = await a.prospect()
        await say(second, offer())  # its server's death is found out by this
        # Nobody has answered the first one yet, so it is the new root's, too.
        assert await hear(standby) == offer().with_origin(first_id)
        assert await hear(standby) == offer().with_origin(second_id)


async def test_a_root_whose_server_dies_is_the_root_at_another_and_all_joiners_reach_it(
    autojump_clock: Clock,
) -> None:
    name = "a"

    async def handle(request: UpgradeRequest) -> None:
        (server,) = [each for each in world.servers if each.name == name]
        await server.handle(request)

    def node(who: str) -> AbstractAsyncContextManager[TreeNode]:
        return open_tree_node("door:1", network=network.host(who), rng=random.Random(who))

    async with (
        open_world("a", "b", "c") as world,
        VirtualNetwork(1) as network,
        AsyncExitStack() as stack,
    ):
        network.listen("door:1", handle)
        root, standby = [await stack.enter_async_context(node(who)) for who in ("root", "standby")]
        await root.become_root(SECRET)
        name = "b"
        await standby.become_root(SECRET)
        await trio.sleep(5)
        assert (root.is_root, standby.is_root) == (True, False)
        name = "c"
        world.servers[0].crash()
        await trio.sleep(3)  # the root has dialled again, and its former server is not yet missed
        await world.start("a")
        for name in "abc":
            joiner = await stack.enter_async_context(node(f"joiner-{name}"))
            await joiner.join()
        await trio.sleep(1)  # a child counts when it has said that it is one
        assert (root.children_count, standby.children_count) == (4, 0)
        await trio.sleep(2 * LEASE)
        assert (root.is_root, standby.is_root) == (True, False)
        assert [each.server.status()["roots"] for each in world.servers] == [2, 2, 2]


async def test_a_withdrawal_crosses_servers_within_a_round_trip(autojump_clock: Clock) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        root = await b.root()
        joiner, joiner_id = await a.prospect()
        await say(joiner, offer())
        await hear(root)
        began = trio.current_time()
        await say(joiner, Withdrawn(reason="changed its mind"))
        assert await hear(root) == Withdrawn(joiner_id, "changed its mind")
        assert trio.current_time() - began < 0.1


async def test_without_the_store_the_server_of_the_root_goes_on_and_the_others_say_why(
    autojump_clock: Clock,
) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        root = await b.root()
        await trio.sleep(1)
        world.store.stop()
        await trio.sleep(1)
        near, near_id = await b.prospect()
        await say(near, offer())
        assert await hear(root) == offer().with_origin(near_id)
        far, far_id = await a.prospect()
        await say(far, offer())
        began = trio.current_time()
        refused = await hear(far)
        assert isinstance(refused, Refused)
        assert "another server" in refused.reason
        assert trio.current_time() - began <= DEFAULT_HOLD_TIMEOUT + 0.1
        held, held_id = await a.prospect()
        await say(held, offer())
        await trio.sleep(1)
        world.store.start()
        await say(far, offer())
        # The one that waited comes first; both were asked for once.
        requests = [await hear(root), await hear(root)]
        assert requests == [offer().with_origin(held_id), offer().with_origin(far_id)]


async def test_a_server_that_ends_takes_its_roots_with_it_at_once(autojump_clock: Clock) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        await b.root()
        await trio.sleep(1)
        assert a.server.status()["roots"] == 1
        b.stop()
        await trio.sleep(1)
        assert a.server.status()["roots"] == 0


async def test_roots_stay_known_for_as_long_as_their_servers_live(autojump_clock: Clock) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        root = await b.root()

        async def listen() -> None:
            while True:
                await hear(root)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            for _ in range(20):
                await trio.sleep(LEASE / 2)
                assert a.server.status()["roots"] == 1
            nursery.cancel_scope.cancel()
        b.crash()
        await trio.sleep(LEASE + 1)
        assert a.server.status()["roots"] == 0


async def test_a_picture_asked_for_at_one_server_comes_from_the_root_at_another(
    autojump_clock: Clock,
) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        query = Registration("t", extensions=frozenset({SNAPSHOT})).encode()
        root = await b.dial(f"/{SECRET}{ROOT_PATH_SUFFIX}", query)
        await trio.sleep(1)
        asker = await a.dial(f"/{SECRET}{SNAPSHOT_PATH_SUFFIX}")
        await say(asker, AskSnapshot(5))
        question = await hear_of(AskSnapshot, root)
        assert question.timeout == 5
        parts = list(snapshot_parts(question.origin or "", [{"id": "x" * 5000}] * 40, 2))
        assert len(parts) > 5
        for part in parts:
            await say(root, part)
        for part in parts:
            assert await hear(asker) == part
        other = await a.dial(f"/{SECRET}{SNAPSHOT_PATH_SUFFIX}")
        await say(other, AskSnapshot(5))
        question = await hear_of(AskSnapshot, root)
        await other.aclose()
        assert (await hear_of(Withdrawn, root)).origin == question.origin
        b.crash()
        last = await a.dial(f"/{SECRET}{SNAPSHOT_PATH_SUFFIX}")
        await say(last, AskSnapshot(5))
        refused = await hear(last)
        assert isinstance(refused, Refused)
        assert "lost" in refused.reason


async def hear_of(kind: type[T], channel: Channel) -> T:
    """The next frame of this *kind*; others are passed over."""
    while True:
        frame = await hear(channel)
        if isinstance(frame, kind):
            return frame
