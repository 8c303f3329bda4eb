"""Relays of ours and of peer-relay 0.0.2, in one network."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from tests.interop.node import Event, NodeProcess, open_node_process, runs_originals
from trio_overlay.nodes.datagram import open_relay_socket
from trio_overlay.nodes.relay import Relay, RelayMessage, open_relay
from trio_overlay.nodes.relay_identity import Identity
from trio_overlay.protocol.relay_routing import Policy

pytestmark = runs_originals

PATIENCE = 120.0
_QUIET = Policy(max_attempts=0)


class Mixed:
    """Relays of both kinds; all are gone when the context is left."""

    def __init__(self, js: NodeProcess, stack: AsyncExitStack) -> None:
        self.js = js
        self._stack = stack

    async def ours(self, name: str, **options: Any) -> Relay:
        defaults: Any = {
            "webrtc": False,
            "allow_private_addresses": True,
            "rng": random.Random(name),
        }
        relay = open_relay(**defaults | options)
        return await self._stack.enter_async_context(relay)

    async def theirs(self, name: str, **options: Any) -> Event:
        await self.js.send("peer", node=name, **options)
        return await self.js.wait_for("ready", node=name)

    async def transports(self, name: str) -> dict[str, str]:
        """The neighbours of one of theirs, and by what they are connected."""
        await self.js.send("state", node=name)
        state = await self.js.wait_for("state", node=name)
        return {peer["id"]: peer["transport"] for peer in state["peers"]}

    async def until_theirs(self, name: str, claim: Callable[[dict[str, str]], object]) -> None:
        """Wait until *claim* holds of the neighbours of one of theirs."""
        while not claim(await self.transports(name)):  # noqa: ASYNC110 - it is another process
            await trio.sleep(0.05)


@asynccontextmanager
async def open_mixed() -> AsyncIterator[Mixed]:
    with trio.fail_after(PATIENCE):
        async with open_node_process("relay.js") as js, AsyncExitStack() as stack:
            yield Mixed(js, stack)


async def until(claim: Callable[[], object]) -> None:
    while not claim():  # noqa: ASYNC110 - there is no event for what tests look at
        await trio.sleep(0.05)


async def test_messages_pass_through_a_chain_whose_middle_is_the_original() -> None:
    async with open_mixed() as mixed:
        middle = await mixed.theirs("middle", listens=True)
        first = await mixed.ours("first", bootstrap=[middle["url"]])
        last = await mixed.ours("last", bootstrap=[middle["url"]])
        await until(lambda: middle["id"] in first.peers and middle["id"] in last.peers)
        for one, other in ((first, last), (last, first)):
            await one.send(other.id, {"to": other.id, "ü": [1, None]}, wait_for_receipt=True)
            message = await other.messages.receive()
            assert message == RelayMessage(one.id, {"to": other.id, "ü": [1, None]}, False, 2)
        assert set(first.peers) == set(last.peers) == {middle["id"]}


async def test_messages_pass_through_a_chain_whose_middle_is_ours() -> None:
    async with open_mixed() as mixed:
        middle = await mixed.ours("middle", port=0)
        first = await mixed.theirs("first", bootstrap=[middle.url])
        last = await mixed.theirs("last", bootstrap=[middle.url])
        await until(lambda: {first["id"], last["id"]} <= set(middle.peers))
        for one, other, name in ((first, last, "last"), (last, first, "first")):
            await mixed.js.send("send", node=one["node"], to=other["id"], data=["hello", name])
            message = await mixed.js.wait_for("message", node=name)
            assert message["from"] == one["id"]
            assert message["data"] == ["hello", name]
        assert set(await mixed.transports("first")) == {middle.id}


async def test_direct_messages_go_both_ways() -> None:
    async with open_mixed() as mixed:
        theirs = await mixed.theirs("js", listens=True)
        ours = await mixed.ours("ours", bootstrap=[theirs["url"]])
        await ours.send(theirs["id"], "before there is a neighbour")
        message = await mixed.js.wait_for("message", node="js")
        assert (message["from"], message["data"]) == (ours.id, "before there is a neighbour")
        await mixed.js.send("send", node="js", to=ours.id, data={"n": 1.5})
        assert await ours.messages.receive() == RelayMessage(theirs["id"], {"n": 1.5}, False, 1)
        # A sign of life, which the original gives by answering findPeers.
        neighbour = ours._mind._neighbour(theirs["id"])
        assert not neighbour.is_ours
        heard_at = neighbour.heard_at
        ours._perform(ours._mind._ask_for_life(theirs["id"], neighbour, trio.current_time()))
        await until(lambda: neighbour.heard_at > heard_at)
        await ours.disconnect(theirs["id"])
        await mixed.until_theirs("js", lambda peers: not peers)


async def test_all_are_connected_to_all_after_meeting_at_one() -> None:
    async with open_mixed() as mixed:
        hub = await mixed.theirs("hub", listens=True)
        names = ["js1", "js2", "js3"]
        theirs = [await mixed.theirs(name, listens=True, bootstrap=[hub["url"]]) for name in names]
        ours = [
            await mixed.ours(f"ours{number}", port=0, bootstrap=[hub["url"]]) for number in range(3)
        ]
        everybody = {hub["id"], *(each["id"] for each in theirs), *(relay.id for relay in ours)}
        for relay in ours:
            await until(lambda relay=relay: set(relay.peers) == everybody - {relay.id})  # type: ignore[misc]
        # Two of the originals may have refused each other's second connection, and then have none.
        for name in ["hub", *names]:
            await mixed.until_theirs(name, lambda peers: {each.id for each in ours} <= set(peers))


@pytest.mark.webrtc
@pytest.mark.parametrize("asker", ["ours", "theirs"])
@pytest.mark.parametrize("hub", ["ours", "theirs"])
async def test_webrtc_comes_up_signalled_through_the_relay(asker: str, hub: str) -> None:
    async with open_mixed() as mixed:
        if hub == "ours":
            relay = await mixed.ours("hub", port=0)
            hub_id, url = relay.id, relay.url
        else:
            ready = await mixed.theirs("hub", listens=True)
            hub_id, url = ready["id"], ready["url"]
        js = await mixed.theirs("js", wrtc=True, bootstrap=[url])
        await mixed.js.wait_for("peer", node="js", id=hub_id)
        # Populating would connect the two in either direction; here one asks.
        options = {} if asker == "ours" else {"policy": _QUIET}
        ours = await mixed.ours("ours", webrtc=True, bootstrap=[url], **options)
        await until(lambda: hub_id in ours.peers)
        if asker == "ours":
            await ours.connect(js["id"])
        else:
            await mixed.js.send("connect", node="js", to=ours.id)
            await until(lambda: js["id"] in ours.peers)
        assert ours.peers[js["id"]].transport == "webrtc"
        await mixed.until_theirs("js", lambda peers: peers.get(ours.id) == "webrtc")
        await ours.disconnect(hub_id)
        await ours.send(js["id"], "hello")
        assert (await mixed.js.wait_for("message", node="js"))["data"] == "hello"
        await mixed.js.send("send", node="js", to=ours.id, data="and back")
        message = await ours.messages.receive()
        assert (message.data, message.hops) == ("and back", 1)


async def test_datagrams_go_both_ways() -> None:
    async with open_mixed() as mixed:
        hub = await mixed.ours("hub", port=0)
        await mixed.js.send("socket", node="js", bootstrap=[hub.url], port=4000)
        theirs = await mixed.js.wait_for("bound", node="js")
        assert theirs["port"] == 4000
        async with open_relay_socket(relay=hub) as ours:
            await ours.bind(5000)
            await ours.sendto("grüße".encode(), (theirs["id"], 4000))
            datagram = await mixed.js.wait_for("datagram", node="js")
            assert (datagram["text"], datagram["address"]) == ("grüße", hub.id)
            assert datagram["port"] == 5000
            await mixed.js.send("sendto", node="js", text="back", port=5000, address=hub.id)
            assert await ours.recvfrom() == (b"back", (theirs["id"], 4000))


async def test_a_signed_message_passes_the_original_unharmed() -> None:
    async with open_mixed() as mixed:
        middle = await mixed.theirs("middle", listens=True)
        signer = await mixed.ours("first", bootstrap=[middle["url"]], identity=Identity(b"i" * 32))
        strict = await mixed.ours("last", bootstrap=[middle["url"]], accepts_unproved=False)
        await until(lambda: signer.peers and strict.peers)
        data = {"z": 1.0, "a": [1e21, -0.5, 2**53], "1": "ü\ud800", "0": None}
        await signer.send(strict.id, data)
        message = await strict.messages.receive()
        assert (message.is_proved, message.hops) == (True, 2)
        await signer.send(middle["id"], "signed, which it does not mind")
        assert (await mixed.js.wait_for("message", node="middle"))["from"] == signer.id
