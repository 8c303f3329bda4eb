"""Arcs between our peers and those of n2n-overlay-wrtc, in each of the three roles."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from tests.interop.node import PATIENCE, NodeProcess, open_node_process, runs_originals
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.nodes.neighbours import Neighbours, open_neighbours
from trio_overlay.protocol.json import JSON

pytestmark = [*runs_originals, pytest.mark.webrtc]

PID = "interop"


class Mixed:
    """Peers of both kinds, the original's those whose names begin with "js"."""

    def __init__(self, js: NodeProcess, stack: AsyncExitStack, nursery: trio.Nursery) -> None:
        self.js = js
        self.ours: dict[str, Neighbours] = {}
        self._stack = stack
        self._nursery = nursery
        self._carriers: dict[str, Any] = {}
        """Where the callbacks of each of the original's peers lead just now."""

    async def add(self, *names: str, **options: Any) -> None:
        for name in names:
            if name.startswith("js"):
                await self.js.send("make", peer=name, pid=PID)
                await self.js.wait_for("made", peer=name)
                self._nursery.start_soon(self._read_carried, name)
            else:
                opened = open_neighbours(PID, peer=name, **options)
                self.ours[name] = await self._stack.enter_async_context(opened)

    async def link(self, one: str, other: str) -> None:
        """The first arc, from *one* to *other*, by callbacks; both know of it on return."""

        async def there(message: JSON) -> None:
            if other in self.ours:
                self.ours[other].accept(back, message)
            else:
                await self.js.send("accept", peer=other, message=message)

        async def back(message: JSON) -> None:
            if one in self.ours:
                self.ours[one].finalize(message)
            else:
                await self.js.send("finalize", peer=one, message=message)

        self._carriers[one], self._carriers[other] = there, back
        with trio.fail_after(PATIENCE):
            if one in self.ours:
                await self.ours[one].initiate(there)
            else:
                await self.js.send("initiate", peer=one)
                await self.expect_open(one, other)
            await self.check_arc(one, other)

    async def expect_open(self, one: str, other: str, count: int = 1) -> None:
        """Wait until *one* tells of an arc from it to *other*; if ours, of so many."""
        with trio.fail_after(PATIENCE):
            if one not in self.ours:
                await self.js.wait_for("open", peer=one, end=f"{other}-I")
                return
            while self.ours[one].outview.get(f"{other}-I", 0) < count:
                await self.ours[one].events.receive()

    async def check_arc(self, one: str, other: str) -> None:
        """Data go both ways on the arc from *one* to *other*."""
        for source, source_end, target, target_end in (
            (one, f"{one}-O", other, f"{other}-I"),
            (other, f"{other}-I", one, f"{one}-O"),
        ):
            data = {"from": source, "to": target, "text": "ünï\U0001f600"}
            if source in self.ours:
                await self.ours[source].send(target_end, data)
            else:
                await self._until_knows(source, target_end)
                await self.js.send("send", peer=source, to=target_end, data=data)
            with trio.fail_after(PATIENCE):
                if target in self.ours:
                    received = await self.ours[target].messages.receive()
                    assert (received.peer, received.data) == (source_end, data)
                else:
                    await self.js.wait_for("receive", peer=target, end=source_end, data=data)

    async def _until_knows(self, name: str, end: str) -> None:
        """Wait until the original *name* has the arc with *end*: it does not wait to send."""
        with trio.fail_after(PATIENCE):
            inview, outview = await self.views(name)
            while end not in {*inview, *outview}:
                await trio.sleep(0.05)  # it has no event for arcs that others open
                inview, outview = await self.views(name)

    async def views(self, name: str) -> tuple[dict[str, int], dict[str, int]]:
        if name in self.ours:
            return dict(self.ours[name].inview), dict(self.ours[name].outview)
        await self.js.send("state", peer=name)
        state = await self.js.wait_for("state", peer=name)
        return state["inview"], state["outview"]

    async def _read_carried(self, name: str) -> None:
        while True:
            event = await self.js.wait_for("carry", peer=name, timeout=float("inf"))
            await self._carriers[name](event["message"])


@asynccontextmanager
async def open_mixed(*names: str, variant: tuple[str, ...] = ()) -> AsyncIterator[Mixed]:
    async with (
        open_node_process("neighbours.js", *variant) as js,
        open_background_nursery() as nursery,
        AsyncExitStack() as stack,
    ):
        mixed = Mixed(js, stack, nursery)
        await mixed.add(*names)
        yield mixed


ROLES = [
    roles for roles in itertools.product(("js", "our"), repeat=3) if set(roles) == {"js", "our"}
]


@pytest.mark.parametrize(("initiator", "bridge", "acceptor"), ROLES, ids=str)
async def test_arc_comes_up_over_a_bridge_whoever_plays_which_role(
    initiator: str, bridge: str, acceptor: str
) -> None:
    one, middle, other = f"{initiator}1", f"{bridge}2", f"{acceptor}3"
    variant = ("--no-trickle",) if initiator == acceptor else ()
    async with open_mixed(one, middle, other, variant=variant) as mixed:
        await mixed.link(middle, one)
        await mixed.link(middle, other)
        if middle in mixed.ours:
            await mixed.ours[middle].connect(f"{one}-I", f"{other}-I")
        else:
            await mixed.js.send("connect", peer=middle, **{"from": f"{one}-I", "to": f"{other}-I"})
        await mixed.expect_open(one, other)
        await mixed.check_arc(one, other)
        assert await mixed.views(one) == ({f"{middle}-O": 1}, {f"{other}-I": 1})
        assert await mixed.views(other) == ({f"{middle}-O": 1, f"{one}-O": 1}, {})


async def test_peers_open_arcs_to_each_other_over_the_arc_they_have() -> None:
    async with open_mixed("js1", "our2") as mixed:
        await mixed.link("js1", "our2")
        ours = mixed.ours["our2"]
        with trio.fail_after(PATIENCE):
            assert await ours.connect(to="js1-O") == "js1-I"  # an arc back
            await mixed.check_arc("our2", "js1")
            await ours.connect(from_="js1-O")  # one more from there
            await mixed.expect_open("js1", "our2")
            await mixed.js.send("connect", peer="js1", **{"from": "our2-O", "to": None})
            await mixed.expect_open("our2", "js1", count=2)
        assert await mixed.views("our2") == ({"js1-O": 2}, {"js1-I": 2})
        inview, outview = await mixed.views("js1")
        assert outview == {"our2-I": 2}
        # Our request is one message, so that even the original counts its arc once.
        assert inview == {"our2-O": 2}


async def test_connection_of_the_original_without_arcs_is_revived() -> None:
    async with open_mixed("js1", "our2", "our3") as mixed:
        await mixed.link("our2", "js1")
        await mixed.link("our2", "our3")
        await mixed.link("our3", "js1")
        two, three = mixed.ours["our2"], mixed.ours["our3"]
        assert three.disconnect("js1-I") == 1
        await mixed.js.send("disconnect", peer="js1", end="our3-O")
        with trio.fail_after(PATIENCE):
            await two.connect("our3-I", "js1-I")
            await mixed.expect_open("our3", "js1")
        await mixed.check_arc("our3", "js1")
        assert (await mixed.views("js1"))[0] == {"our2-O": 1, "our3-O": 1}


async def test_each_side_is_told_when_the_other_leaves() -> None:
    async with open_mixed("js1", "js2") as mixed:
        async with open_neighbours(PID, peer="our3") as node:
            mixed.ours["our3"] = node
            await mixed.link("js1", "our3")
            await mixed.link("js2", "our3")
            assert set(node.inview) == {"js1-O", "js2-O"}
        await mixed.js.wait_for("close", peer="js1", end="our3-I")
        await mixed.js.wait_for("close", peer="js2", end="our3-I")


async def test_the_original_is_told_nothing_that_it_dies_of() -> None:
    """What we say among ourselves, null, and other protocols; it answers afterwards."""
    async with open_mixed("js1", "our2") as mixed:
        await mixed.link("our2", "js1")
        ours = mixed.ours["our2"]
        async with ours.open_protocol("other") as other:
            with pytest.raises(Exception, match="no connection"):
                await other.send("js1-I", "hello", retries=0)
            with pytest.raises(Exception, match="None"):
                await ours.send("js1-I", None)
        ours.disconnect("js1-I")
        with trio.fail_after(PATIENCE):
            assert await ours.connect(to="js1-I") == "js1-I"
        await mixed.check_arc("our2", "js1")
