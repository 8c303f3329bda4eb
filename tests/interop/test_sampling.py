"""Peers that sample one network, ours and those of the original, spray-wrtc."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from tests.interop.node import PATIENCE, Event, NodeProcess, open_node_process, runs_originals
from tests.nodes.neighbourhoods import by_callbacks
from trio_overlay.nodes.sampling import Sampling, open_sampling
from trio_overlay.protocol.json import JSON

pytestmark = runs_originals

LONG = 3600.0
"""An interval in which nobody begins an exchange that the test has not asked for."""


class Mixed:
    """Peers of ours and of the original's in one network: `js` is the process of the latter."""

    def __init__(self, js: NodeProcess, stack: AsyncExitStack) -> None:
        self.js = js
        self.ours: dict[str, Sampling] = {}
        self._stack = stack

    async def add_ours(self, *names: str) -> None:
        for name in names:
            opening = open_sampling(peer=name, interval=LONG, rng=random.Random(name))
            self.ours[name] = await self._stack.enter_async_context(opening)

    async def add_original(self, *names: str) -> None:
        for name in names:
            await self.js.send("make", peer=name)
            await self.js.wait_for("made", peer=name)

    async def original_joins_ours(self, original: str, contact: str) -> None:
        async def back(message: JSON) -> None:
            await self.js.send("finalize", peer=original, message=message)

        async def carry() -> None:
            while True:
                said = await self.js.wait_for("carry", peer=original, timeout=600)
                self.ours[contact].neighbours.accept(back, said["message"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry)
            await self.js.send("join", peer=original)
            await self.js.wait_for("joined", peer=original)
            nursery.cancel_scope.cancel()

    async def ours_joins_original(self, name: str, contact: str) -> None:
        node = self.ours[name]

        async def there(message: JSON) -> None:
            await self.js.send("accept", peer=contact, message=message)

        async def carry() -> None:
            while True:
                said = await self.js.wait_for("carry", peer=contact, timeout=600)
                node.neighbours.finalize(said["message"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry)
            await node.join(await node.neighbours.initiate(there))
            nursery.cancel_scope.cancel()

    async def ours_join(self, name: str, contact: str) -> None:
        node = self.ours[name]
        await node.join(await by_callbacks(node.neighbours, self.ours[contact].neighbours))

    async def state(self, original: str) -> Event:
        await self.js.send("state", peer=original)
        return await self.js.wait_for("state", peer=original)

    async def wait_until_original_has(
        self, original: str, view: dict[str, int], *, inview: set[str] | None = None
    ) -> None:
        """Its view is *view*, and if *inview* is given, those are who has it in theirs."""
        state: Event = {}
        with trio.move_on_after(PATIENCE):
            while state.get("view") != view or inview not in (None, set(state["inview"])):
                await trio.sleep(0.05)  # it has no event for arcs that it hands over
                state = await self.state(original)
        assert state["view"] == view
        assert inview in (None, set(state["inview"]))

    async def wait_until_ours_has(self, name: str, view: dict[str, int]) -> None:
        with trio.move_on_after(PATIENCE):
            while self.ours[name].view != view:
                await self.ours[name].wait_for_change()
        assert self.ours[name].view == view

    async def wait_until_original_has_arcs(self, original: str, count: int) -> dict[str, int]:
        with trio.fail_after(PATIENCE):
            while True:
                view: dict[str, int] = (await self.state(original))["view"]
                if sum(view.values()) == count:
                    return view
                await trio.sleep(0.05)


@asynccontextmanager
async def open_mixed(*variant: str) -> AsyncIterator[Mixed]:
    async with open_node_process("sampling.js", *variant) as js, AsyncExitStack() as stack:
        yield Mixed(js, stack)


async def test_original_joins_by_a_contact_of_ours() -> None:
    async with open_mixed() as world:
        await world.add_ours("a", "b")
        await world.ours_join("b", "a")
        await world.wait_until_ours_has("a", {"b": 1})
        await world.add_original("js")
        await world.original_joins_ours("js", "a")
        await world.wait_until_ours_has("b", {"a": 1, "js": 1})
        await world.wait_until_original_has("js", {"a-I": 1}, inview={"b-O"})


async def test_ours_joins_by_an_original_that_knows_an_original() -> None:
    async with open_mixed() as world:
        await world.add_original("js1", "js2")
        await world.add_ours("a", "b")
        await world.ours_joins_original("a", "js1")
        await world.wait_until_original_has("js1", {"a-I": 2})  # alone, it opens 2a
        await world.ours_joins_original("b", "js1")
        await world.wait_until_ours_has("a", {"js1": 1, "b": 2})
        assert world.ours["b"].view == {"js1": 1}


@pytest.mark.parametrize("variant", [(), ("--no-trickle",)], ids=["trickle", "no trickle"])
async def test_originals_exchange_halves_of_their_views_with_ours(
    variant: tuple[str, ...],
) -> None:
    async with open_mixed(*variant) as world:
        await world.add_ours("a", "b", "c")
        await world.add_original("js")
        await world.original_joins_ours("js", "a")
        await world.wait_until_ours_has("a", {"js": 1})
        for name in "bc":
            await by_callbacks(world.ours["a"].neighbours, world.ours[name].neighbours)
        # The original has an arc to a, gives it, and gets half of what a has.
        await world.js.send("exchange", peer="js")
        view = await world.wait_until_original_has_arcs("js", 2)
        assert set(view) <= {"a-I", "b-I", "c-I"}
        a = world.ours["a"]
        with trio.fail_after(PATIENCE):
            while sum(a.view.values()) != 2:
                await a.wait_for_change()
        assert a.view["js"] >= 1, "the arc that it had to us is ours to it now"


async def test_ours_exchanges_halves_of_its_view_with_an_original() -> None:
    async with open_mixed() as world:
        await world.add_original("js")
        await world.add_ours("a", "b", "c")
        await world.ours_joins_original("a", "js")
        await world.wait_until_original_has("js", {"a-I": 2})
        for name in "bc":
            await by_callbacks(world.ours["a"].neighbours, world.ours[name].neighbours)
        a = world.ours["a"]
        await world.wait_until_ours_has("a", {"js": 1, "b": 1, "c": 1})
        await a._exchange()  # the oldest arc leads to the original
        # a gives two: its arc to js becomes one of js, another one goes there; js gives one of
        # its two to a, which becomes one of a to js.
        with trio.fail_after(PATIENCE):
            while not (sum(a.view.values()) == 2 and a.view.get("js") == 1):
                await a.wait_for_change()
        view = await world.wait_until_original_has_arcs("js", 3)
        assert view["a-I"] == 2
        assert set(view) - {"a-I"} <= {"b-I", "c-I"}


async def test_original_that_leaves_is_forgotten_by_ours() -> None:
    async with open_mixed() as world:
        await world.add_ours("a", "b")
        await world.ours_join("b", "a")
        await world.add_original("js")
        await world.original_joins_ours("js", "a")
        await world.wait_until_ours_has("b", {"a": 1, "js": 1})
        # It tells only those whom it knows to have it in their views.
        await world.wait_until_original_has("js", {"a-I": 1}, inview={"b-O"})
        await world.js.send("leave", peer="js", time=5000)
        await world.wait_until_ours_has("b", {"a": 1})


async def test_ours_that_leaves_is_forgotten_by_an_original() -> None:
    async with open_mixed() as world:
        await world.add_original("js")
        await world.add_ours("a")
        await world.ours_joins_original("a", "js")
        await world.wait_until_original_has("js", {"a-I": 2})
        await world.ours["a"].leave()
        await world.wait_until_original_has("js", {})
