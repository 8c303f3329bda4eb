"""Many nodes crash at one moment, and the rest is one tree again in bounded time."""

from __future__ import annotations

import os
import random
from contextlib import AsyncExitStack

import pytest
import trio

from tests.world import SECRET, open_world
from trio_overlay.testing.determinism import run_virtual

SEEDS = 200 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 1
COUNT = 200
HEALED_WITHIN = 30.0
"""Virtual seconds, at default parameters."""


async def survive(seed: int, share: float) -> float:
    """Seconds from the crash of a *share* of the nodes until the rest is one tree."""
    rng = random.Random(seed)
    async with open_world(seed=seed, latency=0.03) as world, AsyncExitStack() as stack:
        root = await stack.enter_async_context(world.node("root"))
        await root.become_root(SECRET)
        nodes = {
            f"n{number}": await stack.enter_async_context(world.node(f"n{number}"))
            for number in range(COUNT)
        }
        async with trio.open_nursery() as nursery:
            for node in nodes.values():
                nursery.start_soon(node.join)
        await trio.sleep(6)
        for name in rng.sample(sorted(nodes), round(share * COUNT)):
            world.network.crash(name, noticed_after=30)
            nodes.pop(name).close()
        crashed_at = trio.current_time()
        await trio.sleep(2.9)  # by then everybody has noticed
        with trio.fail_after(HEALED_WITHIN - 2.9):
            while not all(node.path[:1] == (root.id,) for node in nodes.values()):  # noqa: ASYNC110
                await trio.sleep(0.1)
        return trio.current_time() - crashed_at


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_rest_of_two_hundred_is_one_tree_again(seed: int, share: float) -> None:
    assert run_virtual(survive, seed, share) < HEALED_WITHIN
