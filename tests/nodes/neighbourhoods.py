"""Peers on a virtual network whose arcs begin by callbacks, for the tests of neighbours."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.nodes.neighbours import NeighbourEvent, Neighbours, open_neighbours
from trio_overlay.nodes.streams import Stream
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.neighbours import (
    EXTENSIONS,
    ArcRequest,
    Payload,
    Send,
    decode_neighbour,
    decode_payload,
    encode_arc_message,
    encode_neighbour,
    encode_payload,
)
from trio_overlay.protocol.signals import Signal, decode_signal, encode_signal
from trio_overlay.signaling.handshake import shake_hands
from trio_overlay.signaling.roads import PushedRoad
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
        # Signs of life are for tests of them; the others have minutes in which nothing is said.
        options = {"heartbeat": None, "rng": random.Random(name)} | options
        network = self.network.host(name)
        async with open_neighbours(pid, peer=name, network=network, **options) as node:
            self.nodes[name] = node
            try:
                yield node
            finally:
                del self.nodes[name]

    def __getitem__(self, name: str) -> Neighbours:
        return self.nodes[name]

    @asynccontextmanager
    async def stranger(
        self,
        name: str,
        to: str,
        *,
        extensions: frozenset[str] = EXTENSIONS,
        pid: str = "test",
        tid: str | None = None,
    ) -> AsyncIterator[Stranger]:
        """Somebody with an arc to the peer *to*, who then says what the test wants."""
        node = self[to]
        tid = tid or f"arc of {name}"
        async with self.network.host(name).open_peer(initiator=True) as peer:

            async def back(message: JSON) -> None:
                peer.signal_nowait(decode_signal(message["offer"]))
                await trio.lowlevel.checkpoint()

            async def carry(signal: Signal) -> None:
                offer = encode_signal(signal)
                request = ArcRequest(tid, f"{name}-O", pid, offer, extensions=extensions)
                node.accept(back, encode_arc_message(request))
                await trio.lowlevel.checkpoint()

            channel = await shake_hands(peer, PushedRoad(carry))
            arcs = node._hood.arcs
            while all(tid not in arcs.arcs_of(link) for link in node._hood.links):  # noqa: ASYNC110
                await trio.sleep(0.01)  # of virtual time; the events are for the test to read
            yield Stranger(name, channel, pid, tid)

    async def link(self, one: str, other: str) -> None:
        """An arc from *one* to *other*, by callbacks that take a moment."""
        await by_callbacks(self[one], self[other])


class Stranger:
    """One end of a connection in the hands of a test."""

    def __init__(self, name: str, channel: Channel, pid: str, tid: str) -> None:
        self.name = name
        self.end = f"{name}-O"
        self.channel = channel
        self.pid = pid
        self.tid = tid
        """Of the arc that it has."""

    async def say(self, payload: Payload | JSON, *, peer: str | None = None) -> None:
        """Send a payload, as JSON or not yet; *peer* is who it says that it is."""
        value = payload
        if dataclasses.is_dataclass(payload):
            value = encode_payload(payload)  # type: ignore[arg-type]
        await self.channel.send(encode_neighbour(Send(peer or self.end, self.pid, value)))

    async def hear(self) -> Payload:
        """The next payload that was said to it."""
        frame = decode_neighbour(await self.channel.receive())
        assert isinstance(frame, Send)
        return decode_payload(frame.payload)

    async def hear_nothing(self) -> None:
        """Fails if something was said to it, or its connection is gone."""
        with trio.move_on_after(SETTLING):
            raise AssertionError(await self.hear())

    async def is_left(self) -> bool:
        """Whether its connection ends, within a short time; what is said before is passed over."""
        with trio.move_on_after(SETTLING):
            try:
                while True:
                    await self.channel.receive()
            except (trio.EndOfChannel, trio.BrokenResourceError):
                return True
        return False


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
