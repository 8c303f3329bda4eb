"""Whoever opens, bridges or accepts an arc may be cancelled at any checkpoint: no half of an arc is
left at either end, nor anything at the bridge.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from tests.nodes.neighbourhoods import Neighbourhoods, by_callbacks, open_world
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import OutcomeError, OverlayError
from trio_overlay.nodes.neighbours import Neighbours
from trio_overlay.signaling.bootstrap import Request, open_bootstrap
from trio_overlay.testing.cancellation import Scenario, Trial, cancel_at_every_checkpoint
from trio_overlay.testing.signaling import AUTHORITY, SECRET, open_signaling

SETTLING = 2.0
"""Seconds in which farewells have arrived everywhere."""
ATTEMPT = 16.0
"""Seconds after which nobody has an attempt in mind that nobody has given up."""
PATIENCE = 30.0


def under_way(world: Neighbourhoods) -> dict[str, int]:
    """How much each peer has under way, of those that have anything."""
    found = {
        name: len(node._attempts) + len(node._answers) + len(node._bridging)
        for name, node in world.nodes.items()
    }
    return {name: count for name, count in found.items() if count}


def check_quiet(world: Neighbourhoods) -> None:
    """Nobody has anything under way, and no connection is there for nothing."""
    assert under_way(world) == {}
    links = sum(len(node._hood.links) for node in world.nodes.values())
    assert world.network.count_open_peers == links, "\n".join(world.network.list_open())


def check_ends(world: Neighbourhoods) -> None:
    """Both ends of each arc have it."""
    for name, node in world.nodes.items():
        for end, count in node.outview.items():
            assert world[end[:-2]].inview.get(f"{name}-O") == count, (name, end)
        for end, count in node.inview.items():
            assert world[end[:-2]].outview.get(f"{name}-I") == count, (name, end)


@asynccontextmanager
async def unharmed(world: Neighbourhoods, *names: str, soon: bool = True) -> AsyncIterator[None]:
    """After the block both ends of each arc agree, nobody has anything under way, and the peers
    *names* can still be bridged to each other.

    Not *soon* means that others have their attempts under way until the time of those is over;
    the arcs agree at once all the same.
    """
    yield
    await trio.sleep(SETTLING)
    check_ends(world)
    if not soon:
        await trio.sleep(ATTEMPT)
    check_quiet(world)
    check_ends(world)
    async with world.open("late") as late:
        with trio.fail_after(PATIENCE):
            for name in names:
                await by_callbacks(late, world[name])
            if len(names) == 2:
                one, other = names
                before = world[one].outview.get(f"{other}-I", 0)
                await late.connect(f"{one}-I", f"{other}-I")
                await until_arcs(world[one], f"{other}-I", before + 1)
    await trio.sleep(SETTLING)
    check_quiet(world)
    check_ends(world)


async def until_arcs(node: Neighbours, end: str, count: int = 1) -> None:
    while node.outview.get(end, 0) < count:
        await node.events.receive()


async def initiating(trial: Trial) -> None:
    # The end that answers by callbacks is told only if it is known, by its answer, to be ours.
    async with open_world("a", "b") as world, unharmed(world, "a", "b", soon=False):
        with trial.under_test():
            await world.link("a", "b")


async def being_initiated(trial: Trial) -> None:
    async with open_world("a", "b") as world, open_background_nursery() as nursery:

        async def reach(node: Neighbours) -> None:
            with suppress(OverlayError):  # a peer that has left accepts nothing
                await by_callbacks(world["a"], node)
            over.set()

        over = trio.Event()
        async with unharmed(world, "a", "b", soon=False):
            with trial.under_test():
                async with world.open("c") as node:
                    nursery.start_soon(reach, node)
                    await over.wait()


async def doubling(trial: Trial) -> None:
    async with open_world("a", "b") as world:
        await world.link("a", "b")
        async with unharmed(world, "a", "b"):
            with trial.under_test():
                await world["a"].connect(to="b-I")


async def connecting_back(trial: Trial) -> None:
    async with open_world("a", "b") as world:
        await world.link("a", "b")
        async with unharmed(world, "a", "b"):
            with trial.under_test():
                await world["b"].connect(to="a-O")


async def opening_over_a_bridge(trial: Trial) -> None:
    async with open_world("bridge", "b") as world:
        await world.link("bridge", "b")
        # Cancelled before the bridge has an arc to it, it is the bridge's attempt that ends.
        async with unharmed(world, "bridge", "b", soon=False):
            with trial.under_test():
                async with world.open("a") as node:
                    await world.link("bridge", "a")
                    await world["bridge"].connect("a-I", "b-I")
                    await until_arcs(node, "b-I")


async def accepting_over_a_bridge(trial: Trial) -> None:
    async with open_world("bridge", "a") as world:
        await world.link("bridge", "a")
        async with unharmed(world, "bridge", "a", soon=False):
            with trial.under_test():
                async with world.open("b"):
                    await world.link("bridge", "b")
                    await world["bridge"].connect("a-I", "b-I")
                    await until_arcs(world["a"], "b-I")


async def bridging(trial: Trial) -> None:
    async with open_world("a", "b") as world, unharmed(world, "a", "b", soon=False):
        with trial.under_test():
            async with world.open("bridge") as bridge:
                await world.link("bridge", "a")
                await world.link("bridge", "b")
                await bridge.connect("a-I", "b-I")
                await until_arcs(world["a"], "b-I")
                await trio.sleep(SETTLING)


async def attaching(trial: Trial) -> None:
    """Through the bootstrap server, either end of it."""
    async with open_world("a", "b") as world, open_signaling(world.network) as host:
        before = host.server.status()
        with trial.under_test():
            async with open_background_nursery() as nursery:
                await attach(world["a"], world["b"], nursery)
        await trio.sleep(ATTEMPT)  # a joiner that is gone without a word is noticed by a timeout
        assert host.server.status() == before
        async with unharmed(world, "a", "b"), open_background_nursery() as nursery:
            with trio.fail_after(PATIENCE):
                await attach(world["a"], world["b"], nursery)


async def attach(one: Neighbours, other: Neighbours, nursery: trio.Nursery) -> None:
    """An arc from *one* to *other*, which is the root of a bootstrap server meanwhile."""
    rng = random.Random(1)
    networks = one._hood.network, other._hood.network
    async with (
        open_bootstrap(AUTHORITY, network=networks[0], rng=rng) as client,
        open_bootstrap(AUTHORITY, network=networks[1], rng=rng) as root,
        root.root(SECRET) as requests,
    ):

        async def answer(request: Request) -> None:
            with suppress(OutcomeError):
                await other.attach(root.answer(request), is_outgoing=False)

        async def answer_all() -> None:
            async for request in requests:
                nursery.start_soon(answer, request)

        nursery.start_soon(answer_all)
        await one.attach(client.connect())
        await trio.sleep(SETTLING)


@pytest.mark.parametrize(
    ("scenario", "least"),
    [
        (initiating, 5),
        (being_initiated, 5),
        (doubling, 2),
        (connecting_back, 10),
        (opening_over_a_bridge, 40),
        (accepting_over_a_bridge, 40),
        (bridging, 60),
        (attaching, 30),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_no_half_of_an_arc_is_left_wherever_it_is_cancelled(scenario: Scenario, least: int) -> None:
    async def whole(trial: Trial) -> None:
        await scenario(trial)
        assert trial.list_tasks_left() == []

    assert cancel_at_every_checkpoint(whole) >= least
