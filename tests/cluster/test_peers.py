"""Peers of ours whose broker is three servers, on a virtual store and under a virtual clock."""

from __future__ import annotations

import random
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from itertools import count
from statistics import median

import pytest
import trio
import trio.testing

from tests.cluster.world import LEASE, Door, open_world
from trio_overlay.channels.network import UpgradeRequest
from trio_overlay.errors import IdTaken
from trio_overlay.nodes.peer import BrokerLost, Peer, Registered, open_peer
from trio_overlay.testing.determinism import run_virtual
from trio_overlay.testing.network import VirtualNetwork

Clock = trio.testing.MockClock
ADDRESS = "door:1"
COUNT_CRASHES = 20


async def test_peers_at_three_servers_find_each_other_and_again_when_one_has_died(
    autojump_clock: Clock,
) -> None:
    turns = count()

    async def handle(request: UpgradeRequest) -> None:
        running = [server for server in world.servers if server.is_running]
        await running[next(turns) % len(running)].handle(request)

    def peer(name: str, host: str = "") -> AbstractAsyncContextManager[Peer]:
        network = hosts.host(host or name)
        return open_peer(name, ADDRESS, network=network, rng=random.Random(name))

    async with (
        open_world("a", "b", "c") as world,
        VirtualNetwork(1) as hosts,
        AsyncExitStack() as stack,
    ):
        hosts.listen(ADDRESS, handle)
        names = ["ada", "bob", "eve"]
        peers = [await stack.enter_async_context(peer(name)) for name in names]
        assert [server.held for server in world.servers] == [["ada"], ["bob"], ["eve"]]
        for one in peers:
            for other in peers:
                if one is not other:
                    await one.send(other.id, f"for {other.id}")
                    assert (await other.messages.receive()).data == f"for {other.id}"
        with pytest.raises(IdTaken):
            async with peer("ada", "thief"):
                pass
        world.servers[0].crash()
        await peers[0].send("bob", "still here")
        assert (await peers[1].messages.receive()).data == "still here"
        await trio.sleep(1)
        # Its server's claim would have stood for most of a lease; but it is the same peer.
        assert [each.is_registered for each in peers] == [True, True, True]
        assert sorted(world.servers[1].held + world.servers[2].held) == names
        async with peer("new") as new:
            await new.send("ada", "hello")
            assert (await peers[0].messages.receive()).data == "hello"
        with pytest.raises(IdTaken):
            async with peer("ada", "thief"):
                pass


def test_a_peer_whose_server_dies_is_registered_again_within_a_second() -> None:
    def how_long(seed: int) -> float:
        """Seconds without an id, after a crash at some moment of the lease."""
        rng = random.Random(seed)

        async def scenario() -> float:
            async with open_world("a", "b", "c", seed=seed) as world:
                door = Door(world, rng)
                async with open_peer("ada", ADDRESS, network=door, rng=rng) as ada:
                    await ada.events.receive()
                    await trio.sleep(rng.uniform(2 * LEASE, 4 * LEASE))
                    (holder,) = [server for server in world.servers if server.held]
                    crashed_at = trio.current_time()
                    holder.crash()
                    assert isinstance(await ada.events.receive(), BrokerLost)
                    assert isinstance(await ada.events.receive(), Registered)
                    return trio.current_time() - crashed_at

        return run_virtual(scenario)

    spans = sorted(how_long(seed) for seed in range(COUNT_CRASHES))
    print(f"{spans[0]:.2f} to {spans[-1]:.2f} s, median {median(spans):.2f}")  # noqa: T201
    assert spans[-1] < 1
