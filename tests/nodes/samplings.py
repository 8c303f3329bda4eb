"""Peers on a virtual network that sample it, for the tests of sampling."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from tests.nodes.neighbourhoods import by_callbacks
from trio_overlay.nodes.sampling import Sampling, open_sampling
from trio_overlay.protocol.neighbours import peer_of
from trio_overlay.simulation.graphs import largest_component
from trio_overlay.testing.network import VirtualNetwork

INTERVAL = 60.0
SETTLING = 15.0
"""Seconds in which everything that was begun is over: arcs in hand are kept for ten."""


class Samplings:
    """Peers by their names; each that `join`s does so by one that is there."""

    def __init__(self, network: VirtualNetwork, seed: int) -> None:
        self.network = network
        self.nodes: dict[str, Sampling] = {}
        self.rng = random.Random(seed)
        self._nursery: trio.Nursery
        self._lives: dict[str, tuple[trio.Event, trio.Event]] = {}

    async def add(self, *names: str, **options: Any) -> None:
        for name in names:
            await self._nursery.start(self._live, name, options)

    @asynccontextmanager
    async def open(self, name: str, **more: Any) -> AsyncIterator[Sampling]:
        # Signs of life are for tests of them; in these there are hours in which nothing is said.
        defaults = {"interval": INTERVAL, "rng": random.Random(name), "heartbeat": None}
        options: Any = defaults | more
        async with open_sampling(peer=name, network=self.network.host(name), **options) as node:
            self.nodes[name] = node
            try:
                yield node
            finally:
                self.nodes.pop(name, None)

    async def _live(self, name: str, options: Any, *, task_status: trio.TaskStatus[None]) -> None:
        goes, gone = self._lives[name] = trio.Event(), trio.Event()
        async with self.open(name, **options):
            task_status.started()
            await goes.wait()
        gone.set()

    async def remove(self, name: str) -> None:
        """Let *name* leave its context."""
        goes, gone = self._lives[name]
        goes.set()
        await gone.wait()

    def crash(self, name: str) -> None:
        """Let *name* vanish from the network without a word."""
        self.network.crash(name)
        self._lives[name][0].set()
        del self.nodes[name]

    async def join(self, name: str, contact: str) -> None:
        node = self.nodes[name]
        await node.join(await by_callbacks(node.neighbours, self.nodes[contact].neighbours))

    async def grow(self, count: int, every: float = 20.0, **options: Any) -> None:
        """Let there be *count* peers, each of which has joined by a random one."""
        while len(self.nodes) < count:
            name = f"p{len(self._lives)}"
            others = list(self.nodes)
            await self.add(name, **options)
            if others:
                await self.join(name, self.rng.choice(others))
            await trio.sleep(every)

    def __getitem__(self, name: str) -> Sampling:
        return self.nodes[name]

    @property
    def count_arcs(self) -> int:
        return sum(sum(node.view.values()) for node in self.nodes.values())

    def check_quiet(self) -> None:
        """What is true when nothing is under way: views are arcs, and both ends count the same."""
        for name, node in self.nodes.items():
            outview = by_peer(node.neighbours.outview)
            assert name not in outview
            assert node.view == outview, name
            for peer, count in outview.items():
                if peer in self.nodes:
                    assert by_peer(self.nodes[peer].neighbours.inview)[name] == count, (name, peer)

    def is_connected(self) -> bool:
        numbers = {name: number for number, name in enumerate(self.nodes)}
        graph = [
            [numbers[peer] for peer in node.view if peer in numbers] for node in self.nodes.values()
        ]
        return largest_component(graph) == len(graph)


def by_peer(view: Any) -> Counter[str]:
    counts: Counter[str] = Counter()
    for end, count in view.items():
        counts[peer_of(end)] += count
    return counts


@asynccontextmanager
async def open_town(*names: str, seed: int = 1, **options: Any) -> AsyncIterator[Samplings]:
    """*names* are there, and know nobody yet; in the end, nothing is left of anybody."""
    async with VirtualNetwork(seed) as network:
        town = Samplings(network, seed)
        async with AsyncExitStack() as stack:
            town._nursery = await stack.enter_async_context(trio.open_nursery())
            await town.add(*names, **options)
            yield town
            for goes, _ in town._lives.values():
                goes.set()
        await trio.sleep(2)
    network.assert_quiet()
