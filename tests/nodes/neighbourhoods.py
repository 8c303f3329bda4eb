"""Peers on a virtual network whose arcs begin by callbacks, for the tests of neighbours."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from trio_overlay.nodes.neighbours import NeighbourEvent, Neighbours, open_neighbours
from trio_overlay.nodes.streams import Stream
from trio_overlay.protocol.json import JSON
from trio_overlay.testing.network import VirtualNetwork

SETTLING = 2.0
"""Seconds in which a bridged arc is up, and farewells have arrived everywhere."""


class Neighbourhoods:
    """Peers by their names; `link` makes the first arcs."""

    def __init__(self, network: VirtualNetwork, stack: AsyncExitStack) -> None:
        self.network = network
        self.nodes: dict[str, Neighbours] = {}
        self._stack = stack

    async def add(self, *names: str, pid: str = "test", **options: Any) -> None:
        for name in names:
            self.nodes[name] = await self._stack.enter_async_context(
                self.open(name, pid=pid, **options)
            )

    @asynccontextmanager
    async def open(
        self, name: str, *, pid: str = "test", **options: Any
    ) -> AsyncIterator[Neighbours]:
        async with open_neighbours(
            pid, peer=name, network=self.network.host(name), rng=random.Random(name), **options
        ) as node:
            self.nodes[name] = node
            yield node

    def __getitem__(self, name: str) -> Neighbours:
        return self.nodes[name]

    async def link(self, one: str, other: str) -> None:
        """An arc from *one* to *other*, by callbacks that take a moment."""
        await by_callbacks(self[one], self[other])


async def by_callbacks(one: Neighbours, other: Neighbours) -> str:
    async def there(message: JSON) -> None:
        await trio.sleep(0.01)
        other.accept(back, message)

    async def back(message: JSON) -> None:
        await trio.sleep(0.01)
        one.finalize(message)

    return await one.initiate(there)


@asynccontextmanager
async def open_world(*names: str, **options: Any) -> AsyncIterator[Neighbourhoods]:
    async with VirtualNetwork(1) as network:
        async with AsyncExitStack() as stack:
            world = Neighbourhoods(network, stack)
            await world.add(*names, **options)
            yield world
        await trio.sleep(1)
    network.assert_quiet()


def past(stream: Stream[NeighbourEvent]) -> list[NeighbourEvent]:
    """What has come out of *stream* up to now."""
    events = []
    while True:
        try:
            events.append(stream.receive_nowait())
        except trio.WouldBlock:
            return events
