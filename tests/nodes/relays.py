"""Relays on a virtual network, for the tests of everything that stands on them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.nodes.relay import Relay, RelayEvent, open_relay
from trio_overlay.protocol.relay import (
    Body,
    Envelope,
    PeerId,
    decode_first_frame,
    encode_envelope,
    encode_first_frame,
)
from trio_overlay.protocol.relay_routing import Policy
from trio_overlay.testing.faults import Latency
from trio_overlay.testing.network import VirtualNetwork

QUIET = Policy(max_attempts=0)
"""Nobody connects unasked."""


class Relays:
    """Relays by the names of their hosts; each lives to the end unless it is closed before."""

    def __init__(self, network: VirtualNetwork, stack: AsyncExitStack) -> None:
        self.network = network
        self.stack = stack

    def opening(
        self, name: str, *bootstrap: str, listens: bool = False, **options: Any
    ) -> AbstractAsyncContextManager[Relay]:
        """A relay on the host *name*, which dials the hosts *bootstrap*."""
        defaults: Any = {"allow_private_addresses": True, "rng": random.Random(name)}
        return open_relay(
            network=self.network.host(name),
            port=0 if listens else None,
            bootstrap=[f"ws://{each}" for each in bootstrap],
            **defaults | options,
        )

    async def open(self, name: str, *bootstrap: str, **options: Any) -> Relay:
        return await self.stack.enter_async_context(self.opening(name, *bootstrap, **options))

    async def chain(self, *names: str, **options: Any) -> list[Relay]:
        """Relays each of which has dialled the one before it, and that connect no further."""
        relays: list[Relay] = []
        for before, name in zip(("", *names), names, strict=False):
            dialled = [before] if before else []
            relay = await self.open(name, *dialled, listens=True, policy=QUIET, **options)
            relays.append(relay)
            if before:
                former = relays[-2]
                await until(
                    lambda one=former, two=relay: two.id in one.peers and one.id in two.peers  # type: ignore[misc]
                )
        return relays

    async def stranger(self, to: str, peer: PeerId) -> Channel:
        """A raw channel to the relay on the host *to*, as a peer that says to be *peer*."""
        dial = self.network.host("stranger").dial(f"ws://{to}")
        channel = await self.stack.enter_async_context(dial)
        await channel.send(encode_first_frame(peer))
        decode_first_frame(await channel.receive())
        return channel


@asynccontextmanager
async def open_relays(*, latency: float = 0.01) -> AsyncIterator[Relays]:
    """A network that must be quiet when it is left."""
    async with VirtualNetwork(1, latency=Latency(latency, latency)) as network:
        async with AsyncExitStack() as stack:
            yield Relays(network, stack)
        await trio.sleep(5)
        network.assert_quiet()


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Let virtual time pass until *condition* holds."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event for what tests look at
            await trio.sleep(0.01)


async def say(channel: Channel, sender: PeerId, to: PeerId, body: Body, nonce: str = "n") -> None:
    """Send what a peer *sender* at the other end of *channel* might."""
    await channel.send(encode_envelope(Envelope(to, sender, (sender,), nonce, body)))


def past_events(relay: Relay) -> list[RelayEvent]:
    return [relay.events.receive_nowait() for _ in range(len(relay.events))]
