"""Several servers in one process that share a virtual store, and clients of them in memory."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import Any

import trio

from tests.signaling.test_service import SECRET, MemoryRequest
from trio_overlay.channels.channel import Channel
from trio_overlay.channels.memory import MemoryChannel
from trio_overlay.channels.network import Network, PeerConnection, UpgradeRequest
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import ServerUnreachable
from trio_overlay.protocol.bootstrap import BootstrapFrame, Hello, decode_bootstrap
from trio_overlay.protocol.broker import peer_signal
from trio_overlay.protocol.json import JSON
from trio_overlay.signaling.cluster import Cluster, open_cluster
from trio_overlay.signaling.server import SignalingServer
from trio_overlay.testing.faults import Latency
from trio_overlay.testing.store import VirtualStore

LEASE = 10.0
PATIENCE = 60
ANNOUNCED = "trio-overlay=1"


class Server:
    """One process of a cluster, which ends, or is killed, and comes up again as another."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self._world = world
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery
        self.server: SignalingServer
        self.cluster: Cluster
        self.is_running = False

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        rng = random.Random(f"{self.name} {next(self._world.numbers)}")
        with trio.CancelScope() as self._scope:
            async with (
                open_cluster(self._world.store, lease=LEASE, rng=rng) as self.cluster,
                open_background_nursery() as self._nursery,
            ):
                self.server = SignalingServer(
                    SECRET, rng=rng, cluster=self.cluster, **self._world.options
                )
                await self._nursery.start(self.server.run)
                self.is_running = True
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self.is_running = False

    def stop(self) -> None:
        """End as on SIGTERM."""
        self._scope.cancel()

    def crash(self) -> None:
        """End without a word to the store."""
        self.is_running = False
        self._world.store.lose(self.cluster.tag)
        self._scope.cancel()

    def holds(self, identifier: str) -> bool:
        return self.is_running and self.server._broker.holds(identifier)

    @property
    def held(self) -> list[str]:
        return list(self.server._broker.registrations._holders) if self.is_running else []

    async def dial(self, path: str = "/", query: str = "") -> MemoryChannel:
        request = MemoryRequest(path, query)

        async def serve() -> None:
            try:
                await self.server.handle_upgrade(request)
            finally:
                request.is_accepted.set()  # and closed at once, if this server is just ending
                with trio.CancelScope(shield=True):
                    await request._server.aclose()

        self._nursery.start_soon(serve)
        with trio.fail_after(PATIENCE):
            await request.is_accepted.wait()
        return request.client

    async def handle(self, request: UpgradeRequest) -> None:
        """Serve somebody who came by a network; returns when that is over, or this server is."""
        is_over = trio.Event()

        async def serve() -> None:
            try:
                await self.server.handle_upgrade(request)
            finally:
                is_over.set()

        self._nursery.start_soon(serve)
        await is_over.wait()

    async def root(self, *, announced: bool = True) -> MemoryChannel:
        root = await self.dial(f"/{SECRET}/webrtc-bootstrap-root", ANNOUNCED if announced else "")
        if announced:
            assert isinstance(await hear(root), Hello)
        return root

    async def prospect(self, *, announced: bool = True) -> tuple[MemoryChannel, str]:
        prospect = await self.dial("/join", ANNOUNCED if announced else "")
        hello = await hear(prospect) if announced else Hello("")
        assert isinstance(hello, Hello)
        return prospect, hello.identifier or ""

    async def registered(self, identifier: str) -> MemoryChannel:
        peer = await self.dial()
        assert await call(peer, "register", id=identifier) == identifier
        return peer


class World:
    def __init__(self, store: VirtualStore, nursery: trio.Nursery, options: Any) -> None:
        self.store = store
        self.options = options
        self.numbers = count()
        self.servers: list[Server] = []
        self._nursery = nursery

    async def start(self, name: str) -> Server:
        """A server, in the place of one of that name that ended."""
        server = Server(self, name)
        self.servers = [each for each in self.servers if each.name != name]
        self.servers.append(server)
        self.servers.sort(key=lambda each: each.name)
        await self._nursery.start(server.run)
        return server


@asynccontextmanager
async def open_world(
    *names: str,
    seed: int = 0,
    latency: Latency | None = None,
    is_seasoned: bool = True,
    **options: Any,
) -> AsyncIterator[World]:
    """A world with servers of these *names*; *is_seasoned*, after the store's first quarantine."""
    async with VirtualStore(seed, latency=latency) as store, open_background_nursery() as nursery:
        world = World(store, nursery, options)
        for name in names:
            await world.start(name)
        if is_seasoned:
            await trio.sleep(LEASE + 1)
        yield world


class Door(Network):
    """Leads whoever dials, whatever the address, to one of the servers that run."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng

    @asynccontextmanager
    async def dial(self, url: str) -> AsyncIterator[Channel]:
        running = [server for server in self._world.servers if server.is_running]
        if not running:
            raise ServerUnreachable(f"nobody is behind {url}")
        channel = await self._rng.choice(running).dial()
        try:
            yield channel
        finally:
            with trio.CancelScope(shield=True):
                await channel.aclose()

    def open_peer(self, *, initiator: bool) -> AbstractAsyncContextManager[PeerConnection]:
        raise NotImplementedError("only servers are behind this door")


async def hear(channel: Channel) -> BootstrapFrame:
    with trio.fail_after(PATIENCE):
        return decode_bootstrap(await channel.receive())


async def hear_json(channel: Channel) -> Any:
    with trio.fail_after(PATIENCE):
        return json.loads(await channel.receive())


async def call(channel: Channel, method: str, **params: Any) -> Any:
    """The result of a request to the broker, or the code of its error."""
    request = {"jsonrpc": "2.0", "id": method, "method": method, "params": params}
    await channel.send(json.dumps(request))
    answer = await hear_json(channel)
    assert answer["id"] == method
    return answer["result"] if answer["error"] is None else answer["error"]["code"]


async def signal(channel: Channel, sender: str, recipient: str, what: JSON) -> dict[str, JSON]:
    """Say a signal by the broker; the frame that *recipient* is to hear."""
    params = dict(peer_signal(sender, recipient, what).params)
    frame = {"jsonrpc": "2.0", "method": "signal", "params": params}
    await channel.send(json.dumps(frame))
    return frame
