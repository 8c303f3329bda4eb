"""A bootstrap server and hosts on a virtual network, for the tests of nodes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.nodes.peer import Peer, open_peer
from trio_overlay.nodes.tree import TreeNode, open_tree_node
from trio_overlay.signaling.bootstrap import Bootstrap, open_bootstrap
from trio_overlay.signaling.server import SignalingServer
from trio_overlay.testing.faults import Latency
from trio_overlay.testing.network import VirtualNetwork, VirtualServer

SECRET = "swordfish"
AUTHORITY = "server:5000"


class World:
    """One server, and as many hosts as names are used."""

    def __init__(self, network: VirtualNetwork, nursery: trio.Nursery, options: Any) -> None:
        self.network = network
        self.server: SignalingServer
        self._nursery = nursery
        self._options = options
        self._listening: VirtualServer

    async def start_server(self) -> None:
        self.server = SignalingServer(SECRET, **self._options)
        await self._nursery.start(self.server.run)
        self._listening = self.network.listen(AUTHORITY, self.server.handle_upgrade)

    def stop_server(self) -> None:
        self._listening.close()

    def client(self, name: str) -> AbstractAsyncContextManager[Bootstrap]:
        network = self.network.host(name)
        return open_bootstrap(AUTHORITY, network=network, rng=random.Random(name))

    def node(self, name: str, **options: Any) -> AbstractAsyncContextManager[TreeNode]:
        network = self.network.host(name)
        return open_tree_node(AUTHORITY, network=network, rng=random.Random(name), **options)

    def peer(self, name: str, **options: Any) -> AbstractAsyncContextManager[Peer]:
        network = self.network.host(name)
        return open_peer(name, AUTHORITY, network=network, rng=random.Random(name), **options)


@asynccontextmanager
async def open_world(
    *, seed: int = 1, latency: float = 0.01, **options: Any
) -> AsyncIterator[World]:
    """A world that must be quiet when it is left: every socket and connection closed."""
    async with (
        VirtualNetwork(seed, latency=Latency(latency, latency)) as network,
        open_background_nursery() as nursery,
    ):
        world = World(network, nursery, {"rng": random.Random(seed), **options})
        await world.start_server()
        yield world
        await trio.sleep(5)  # farewells on their way, virtual seconds
        network.assert_quiet()
