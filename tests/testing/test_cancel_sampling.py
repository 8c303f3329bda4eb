"""Whoever samples the network may be cancelled at any checkpoint: nothing of it is left anywhere,
and the others' views and arcs agree. `HYPOTHESIS_PROFILE=long` tries each checkpoint.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import settings

from tests.nodes.neighbourhoods import by_callbacks
from tests.nodes.samplings import Samplings, open_town
from trio_overlay.nodes.neighbours import ATTEMPT_TIMEOUT, Neighbours, open_neighbours
from trio_overlay.nodes.sampling import Sampling, open_sampling
from trio_overlay.protocol.sampling_frames import PROTOCOL_ID
from trio_overlay.testing.cancellation import Scenario, Trial, cancel_at_every_checkpoint

LONG = 1e6
"""An interval in which nobody begins an exchange."""
SETTLING = 2 * ATTEMPT_TIMEOUT
"""Seconds in which arcs in hand are closed, and attempts that nobody gave up are over."""
PATIENCE = 60.0


def check_books(town: Samplings) -> None:
    """Views are arcs, both ends of which know of them, and nobody is doing anything."""
    town.check_quiet()
    for name, node in town.nodes.items():
        arcs = node.neighbours
        assert not set(node.view) - set(town.nodes), f"{name} knows somebody who is gone"
        assert not node._handed, f"{name} holds arcs that are to be another's"
        assert [len(arcs._attempts), len(arcs._answers), len(arcs._bridging)] == [0, 0, 0], name


@asynccontextmanager
async def unharmed(town: Samplings, *names: str) -> AsyncIterator[None]:
    """After the block the books of all are right, and a newcomer gets to know *names*, each of whom
    makes it known to others.
    """
    yield
    await trio.sleep(SETTLING)
    check_books(town)
    await town.add("late", interval=LONG)
    arcs = town["late"].neighbours
    for name in names:
        count = sum(arcs.inview.values())
        with trio.fail_after(PATIENCE):
            await town.join("late", name)
        await trio.sleep(SETTLING)
        assert sum(arcs.inview.values()) > count, f"{name} has told nobody of the newcomer"
    assert set(names) <= set(town["late"].view)
    check_books(town)


@asynccontextmanager
async def open_four() -> AsyncIterator[Samplings]:
    """Four peers: *a* knows the others, *b* knows *a*; *c* and *d* know each other."""
    async with open_town(*"abcd", interval=LONG) as town:
        for one, other in ("ab", "ac", "ad", "ba", "cd", "dc"):
            await link(town, one, other)
        await trio.sleep(1)
        yield town


async def link(town: Samplings, one: str, other: str) -> None:
    await by_callbacks(town[one].neighbours, town[other].neighbours)


async def joining(trial: Trial) -> None:
    async with open_four() as town:
        await town.add("new", interval=LONG)
        async with unharmed(town, "a"):
            with trial.under_test():
                await town.join("new", "a")


async def joining_by_whom_it_finds(trial: Trial) -> None:
    async with open_four() as town:

        async def find_contact(neighbours: Neighbours) -> str:
            return await by_callbacks(neighbours, town["a"].neighbours)

        await town.add("new", interval=LONG, find_contact=find_contact)
        async with unharmed(town, "a", "c"):
            with trial.under_test():
                await town["new"].join()


async def leaving(trial: Trial) -> None:
    async with open_four() as town, unharmed(town, "c", "d"):
        with trial.under_test():
            await town["a"].leave()
        arcs = town["a"].neighbours
        assert not town["a"].has_left or arcs.outview == arcs.inview == {}
        await town.remove("a")


async def living(trial: Trial) -> None:
    """The context of a peer that joins, exchanges, and has others join by it."""
    async with open_four() as town, unharmed(town, "a", "c"):
        with trial.under_test():
            async with town.open("new", interval=LONG) as node:
                await town.join("new", "a")
                await trio.sleep(1)
                await begin_exchange(node)
                await trio.sleep(SETTLING)


async def sampling_on_a_peer_that_stays(trial: Trial) -> None:
    async with open_four() as town, unharmed(town, "a", "c"):
        network = town.network.host("x")
        async with open_neighbours(
            "chat", peer="x", network=network, heartbeat=None, rng=random.Random(2)
        ) as chat:
            with trial.under_test():
                async with (
                    chat.open_protocol(PROTOCOL_ID) as arcs,
                    open_sampling(arcs, interval=LONG, rng=random.Random(1)) as node,
                ):
                    await node.join(await by_callbacks(arcs, town["a"].neighbours))
                    await trio.sleep(1)
            await trio.sleep(SETTLING)
            assert chat.neighbours().outview == chat.neighbours().inview == {}


async def being_the_contact(trial: Trial) -> None:
    """The context of the peer that another joins by, which bridges for it."""
    async with open_four() as town, unharmed(town, "a", "b"):
        with trial.under_test():
            async with town.open("contact", interval=LONG) as node:
                for other in "ac":
                    await link(town, "contact", other)
                await by_callbacks(town["d"].neighbours, node.neighbours)
                await town["d"].join("contact-I")
                await trio.sleep(SETTLING)


async def begin_exchange(node: Sampling) -> None:
    """Have *node* begin its next exchange now."""
    node._pause.deadline = trio.current_time()
    await trio.lowlevel.checkpoint()


SCENARIOS: dict[str, tuple[Scenario, int, int]] = {
    # Each with the fewest checkpoints that it may have, and how many of them are passed over in
    # an ordinary run: the long ones have hundreds, and whole handshakes of others among them.
    "joining": (joining, 10, 1),
    "joining_by_whom_it_finds": (joining_by_whom_it_finds, 10, 2),
    "leaving": (leaving, 2, 1),
    "living": (living, 100, 47),
    "sampling_on_a_peer_that_stays": (sampling_on_a_peer_that_stays, 20, 5),
    "being_the_contact": (being_the_contact, 100, 29),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_of_a_peer_is_left_wherever_it_is_cancelled(name: str) -> None:
    scenario, least, stride = SCENARIOS[name]

    async def whole(trial: Trial) -> None:
        await scenario(trial)
        assert trial.list_tasks_left() == []

    is_long = settings().max_examples > 1_000
    assert cancel_at_every_checkpoint(whole, stride=1 if is_long else stride) >= least
