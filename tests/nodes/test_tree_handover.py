"""What is broadcast while nodes leave reaches everyone who stays, once and in one order.

The first that it found was a leaf whose last word before `aclose` nobody heard.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import NamedTuple

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.nodes.test_tree import enter_child, until
from tests.world import SECRET, open_world
from trio_overlay.nodes.tree import TreeNode
from trio_overlay.testing import virtual_test

INTERVAL = 0.05
"""Seconds between two broadcasts: some are always on each hop of the way up and down."""


class Departure(NamedTuple):
    """One that leaves, of those who are there, and how long after the one before."""

    pick: int
    delay: float


departures = st.builds(Departure, st.integers(0, 20), st.sampled_from([0.0, 0.02, 0.1, 0.3, 1.0]))


EXAMPLES = 500 if settings().max_examples > 1_000 else 8


class Gossip:
    """Nodes that broadcast by turns, and what each of them has heard."""

    def __init__(self, nodes: dict[str, TreeNode]) -> None:
        self._nodes = nodes
        self.said: list[str] = []
        self.heard: dict[str, list[object]] = {name: [] for name in nodes}
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Have one after the other say something, until `stop`."""
        with self._scope:
            while True:
                for name in list(self._nodes):
                    if name in self._nodes:  # it may have left meanwhile
                        await self.say(name)
                        await trio.sleep(INTERVAL)

    async def say(self, name: str) -> None:
        text = f"{name} {len(self.said)}"
        self.said.append(text)
        await self._nodes[name].broadcast(text)

    def stop(self) -> None:
        self._scope.cancel()

    def listen(self) -> None:
        """Take in what has come to everybody."""
        for name, node in self._nodes.items():
            self.heard[name] += [node.casts.receive_nowait().data for _ in range(len(node.casts))]


@given(
    st.integers(0, 999),
    st.integers(1, 3),
    st.integers(4, 8),
    st.lists(departures, min_size=1, max_size=3),
)
@settings(max_examples=EXAMPLES)
@virtual_test
async def test_a_broadcast_during_handovers_reaches_all_who_stay_exactly_once(
    seed: int, degree: int, count: int, leaving: list[Departure]
) -> None:
    async with open_world(seed=seed, latency=0.03) as world, AsyncExitStack() as stack:
        nodes: dict[str, TreeNode] = {}
        nodes["root"] = await stack.enter_async_context(world.node("root", max_degree=degree))
        await nodes["root"].become_root(SECRET)
        for number in range(count):
            name = f"n{number}"
            nodes[name] = await enter_child(world, stack, name, max_degree=degree)
        gossip = Gossip(nodes)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gossip.run)
            await trio.sleep(1)
            async with trio.open_nursery() as departing:
                for pick, delay in leaving:
                    await trio.sleep(delay)
                    names = [name for name in nodes if name != "root"]
                    name = names[pick % len(names)]
                    await gossip.say(name)  # its last word
                    departing.start_soon(nodes.pop(name).aclose)
            await trio.sleep(1)
            gossip.stop()
        await until(lambda: all(node.path for node in nodes.values()))
        await trio.sleep(5)
        gossip.listen()
        in_order = [text for text in gossip.heard["root"] if isinstance(text, str)]
        for name in nodes:
            heard = gossip.heard[name]
            of_others = [text for text in gossip.said if not text.startswith(f"{name} ")]
            assert sorted(map(str, heard)) == sorted(of_others), name
            assert [text for text in in_order if text in heard] == [
                text for text in heard if text in in_order
            ], f"{name} has heard out of order"
