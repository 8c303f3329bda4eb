"""A server of a cluster may be cancelled at any checkpoint, and nothing is left in the store."""

from __future__ import annotations

import random

import trio

from tests.cluster.world import LEASE, call, open_world
from tests.signaling.test_service import SECRET, MemoryRequest
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.signaling.cluster import open_cluster
from trio_overlay.signaling.server import SignalingServer
from trio_overlay.testing.cancellation import Trial, cancel_at_every_checkpoint


async def serving_in_a_cluster(trial: Trial) -> None:
    """Somebody registers at it, moves to another id, and asks for one at another server."""
    async with open_world("other") as world:
        (other,) = world.servers
        ben = await other.registered("ben")
        rng = random.Random(1)
        with trial.under_test():
            async with (
                open_cluster(world.store, lease=LEASE, rng=rng) as cluster,
                open_background_nursery() as nursery,
            ):
                server = SignalingServer(SECRET, rng=rng, cluster=cluster)
                await nursery.start(server.run)
                request = MemoryRequest("/")
                nursery.start_soon(server.handle_upgrade, request)
                await request.is_accepted.wait()
                assert await call(request.client, "register", id="anna") == "anna"
                assert await call(request.client, "register", id="hanna") == "hanna"
                assert await call(request.client, "exists", id="ben") is True
        await trio.sleep(1)
        assert trial.list_tasks_left() == []
        assert [world.store.holder(each) for each in ("anna", "hanna")] == [None, None]
        assert await call(ben, "exists", id="anna") is False
        for name in ("anna", "hanna"):
            await other.registered(name)


def test_wherever_a_server_is_cancelled_its_ids_are_free_at_once() -> None:
    assert cancel_at_every_checkpoint(serving_in_a_cluster) >= 30
