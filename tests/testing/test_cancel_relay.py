"""Whatever a relay does may be cancelled at any checkpoint, and nothing is left of it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio

from trio_overlay.nodes.datagram import open_relay_socket
from trio_overlay.nodes.relay import Relay, open_relay
from trio_overlay.protocol.relay_peer import CONNECT_TIMEOUT
from trio_overlay.protocol.relay_routing import Policy
from trio_overlay.testing.cancellation import Scenario, Trial, cancel_at_every_checkpoint
from trio_overlay.testing.faults import Latency
from trio_overlay.testing.network import VirtualNetwork

QUIET = Policy(max_attempts=0)
"""Nobody connects unasked: what goes on is what the scenario does."""
SETTLING = 5.0


class World:
    """Three relays in a chain; the first of them is the one that does something."""

    def __init__(self, network: VirtualNetwork) -> None:
        self.network = network

    def opening(
        self, name: str, *bootstrap: str, **options: Any
    ) -> AbstractAsyncContextManager[Relay]:
        return open_relay(
            network=self.network.host(name),
            bootstrap=[f"ws://{each}" for each in bootstrap],
            rng=random.Random(name),
            policy=QUIET,
            allow_private_addresses=True,
            **options,
        )


@asynccontextmanager
async def open_world() -> AsyncIterator[tuple[World, list[Relay]]]:
    async with VirtualNetwork(1, latency=Latency(0.01, 0.01)) as network:
        world = World(network)
        async with (
            world.opening("last", port=0) as last,
            world.opening("middle", "last", port=0) as middle,
            world.opening("first", "middle") as first,
        ):
            await trio.sleep(1)
            assert len(middle.peers) == 2
            yield world, [first, middle, last]
        await trio.sleep(SETTLING)
        network.assert_quiet()


@asynccontextmanager
async def unchanged(world: World, relays: list[Relay]) -> AsyncIterator[None]:
    """After the block all is as before, and a message still gets through, with its receipt."""

    def measure() -> object:
        return [
            (relay._sessions, relay._connecting, relay._receipts, relay._mind._expected)
            for relay in relays
        ], dict(world.network.count_open())

    before = repr(measure())
    yield
    await trio.sleep(SETTLING)
    assert repr(measure()) == before
    first, _, last = relays
    for _ in range(len(last.messages)):
        last.messages.receive_nowait()
    await first.send(last.id, "afterwards", wait_for_receipt=True)
    assert (await last.messages.receive()).data == "afterwards"


async def sending_with_a_receipt(trial: Trial) -> None:
    async with open_world() as (world, relays):
        first, _, last = relays
        async with unchanged(world, relays):
            with trial.under_test():
                await first.send(last.id, 1, wait_for_receipt=True)
        assert trial.list_tasks_left() == []
        assert len(last.messages) == 0  # whether it came or not was no concern of `unchanged`


async def sending_with_a_receipt_that_comes_late(trial: Trial) -> None:
    async with open_world() as (world, relays):
        first, _, last = relays
        async with unchanged(world, relays):
            world.network.freeze("last")
            world.network.timeline.after(2.5, lambda: world.network.thaw("last"))
            with trial.under_test():
                await first.send(last.id, 1, wait_for_receipt=True)
            await trio.sleep(3)
        assert trial.list_tasks_left() == []


async def connecting_and_disconnecting(trial: Trial) -> None:
    async with open_world() as (world, relays):
        first, _, last = relays
        async with unchanged(world, relays):
            with trial.under_test():
                await first.connect(last.id)
                await first.disconnect(last.id)
            await trio.sleep(SETTLING)
            await first.disconnect(last.id)  # it may have been cancelled in between
        assert trial.list_tasks_left() == []


async def living(trial: Trial) -> None:
    async with open_world() as (world, relays):
        last = relays[-1]
        async with unchanged(world, relays):
            with trial.under_test():
                async with world.opening("new", "middle", port=0) as new:
                    await new.send(last.id, 1, wait_for_receipt=True)
                    await new.connect(last.id)
            # Who was asked waits for signals until it gives the handshake up.
            await trio.sleep(CONNECT_TIMEOUT)
        assert trial.list_tasks_left() == []


async def talking_by_datagrams(trial: Trial) -> None:
    async with open_world() as (world, relays):
        first, _, last = relays
        async with unchanged(world, relays):
            with trial.under_test():
                async with (
                    open_relay_socket(relay=first) as client,
                    open_relay_socket(relay=last) as server,
                ):
                    await server.bind(7)
                    await client.sendto(b"ping", server.getsockname())
                    data, address = await server.recvfrom()
                    await server.sendto(data, address)
                    assert await client.recvfrom() == (b"ping", (last.id, 7))
        assert trial.list_tasks_left() == []


SCENARIOS: dict[str, tuple[Scenario, int]] = {
    "sending with a receipt": (sending_with_a_receipt, 1),
    "sending with a receipt that comes late": (sending_with_a_receipt_that_comes_late, 1),
    "connecting and disconnecting": (connecting_and_disconnecting, 1),
    "living": (living, 3),
    "talking by datagrams": (talking_by_datagrams, 1),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_left_wherever_it_is_cancelled(name: str) -> None:
    scenario, stride = SCENARIOS[name]
    count = cancel_at_every_checkpoint(scenario, stride=stride)
    assert count >= 2
