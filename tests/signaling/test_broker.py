"""The broker's tasks without sockets: peers and a registry in memory, under a virtual clock."""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.signaling import test_service
from tests.signaling.test_service import SECRET, MemoryRequest
from trio_overlay.channels.channel import Channel
from trio_overlay.channels.memory import MemoryChannel
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import ClusterUnavailable, UsageError
from trio_overlay.protocol.broker import ID_TAKEN, UNAVAILABLE, PeerSignal, peer_signal
from trio_overlay.protocol.broker_registrations import DEFAULT_LEASE, BrokerLimits
from trio_overlay.signaling import limits
from trio_overlay.signaling.broker import QUESTION_TIMEOUT
from trio_overlay.signaling.connection import CLOSE_TIMEOUT
from trio_overlay.signaling.registry import LocalPeers, Registry
from trio_overlay.signaling.server import SignalingServer

DATA = Path(__file__).parent.parent / "data"
OFFER = {"type": "offer", "sdp": "v=0"}

Clock = trio.testing.MockClock


class World(test_service.World):
    async def registered(self, identifier: str) -> MemoryChannel:
        peer = await self.dial()
        assert await call(peer, "register", id=identifier) == identifier
        return peer


@asynccontextmanager
async def open_world(**options: Any) -> AsyncIterator[World]:
    server = SignalingServer(SECRET, **options)
    async with open_background_nursery() as nursery:
        await nursery.start(server.run)
        yield World(server, nursery)


async def say(channel: Channel, value: Any) -> None:
    await channel.send(json.dumps(value))


async def hear(channel: Channel) -> Any:
    with trio.fail_after(60):
        return json.loads(await channel.receive())


async def call(channel: Channel, method: str, **params: Any) -> Any:
    """The result of a request, or the code of its error."""
    await say(channel, {"jsonrpc": "2.0", "id": method, "method": method, "params": params})
    answer = await hear(channel)
    assert answer["id"] == method
    return answer["result"] if answer["error"] is None else answer["error"]["code"]


def signal(sender: str, recipient: str) -> Any:
    params = {"from": sender, "to": recipient, "signal": OFFER}
    return {"jsonrpc": "2.0", "method": "signal", "params": params}


class OtherServers(Registry):
    """A registry whose other servers are this test."""

    def __init__(self) -> None:
        self.peers: LocalPeers
        self.taken: set[str] = set()
        self.forwarded: list[PeerSignal] = []
        self.released: list[str] = []
        self.failure: str | None = None
        self.delay = 0.0

    async def run(
        self, peers: LocalPeers, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        self.peers = peers
        task_status.started()
        await trio.sleep_forever()

    def catch_up_nowait(self) -> None:
        pass

    async def claim(self, identifier: str, digest: str = "") -> bool:  # noqa: ARG002
        return not await self.locate(identifier)

    def release_nowait(self, identifier: str) -> None:
        self.released.append(identifier)

    async def locate(self, identifier: str) -> bool:
        await trio.sleep(self.delay)
        if self.failure is not None:
            raise ClusterUnavailable(self.failure)
        return identifier in self.taken

    async def forward(self, signal: PeerSignal) -> None:
        await trio.sleep(self.delay)
        if self.failure is not None:
            raise ClusterUnavailable(self.failure)
        self.forwarded.append(signal)


@pytest.mark.parametrize("path", ["/", "/broker"])
async def test_two_peers_signal_to_each_other_by_id(path: str, autojump_clock: Clock) -> None:
    async with open_world() as world:
        ada, bob = await world.registered("ada"), await world.dial(path)
        assert await call(bob, "register", id="ada") == ID_TAKEN
        assert await call(bob, "register", id="bob") == "bob"
        assert await call(bob, "exists", id="ada") is True
        await say(bob, signal("bob", "ada"))
        assert await hear(ada) == signal("bob", "ada")
        assert world.server.status()["peers"] == 2


async def test_an_id_is_free_as_soon_as_its_connection_is_gone(autojump_clock: Clock) -> None:
    async with open_world() as world:
        ada, bob = await world.registered("ada"), await world.registered("bob")
        await ada.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert await call(bob, "exists", id="ada") is False
        await world.registered("ada")


@pytest.mark.parametrize("lease", [None, 45.5, 600])
async def test_the_id_of_a_half_open_connection_is_free_in_a_stated_time(
    lease: float | None, autojump_clock: Clock
) -> None:
    options: dict[str, Any] = {}
    if lease is not None:
        options["broker_limits"] = BrokerLimits(lease=lease)
    async with open_world(**options) as world:
        other = await world.dial()
        ada = await world.registered("ada")
        await trio.sleep(20)
        assert await call(ada, "ping") == "pong"
        # From now on nothing comes from the one, and nobody is told that nothing ever will.
        last_heard_at = trio.current_time()
        while (answer := await call(other, "register", id="ada")) != "ada":
            assert answer == ID_TAKEN
            await trio.sleep(1.1)
        assert 0 <= trio.current_time() - last_heard_at - (lease or DEFAULT_LEASE) < 1.2
        assert DEFAULT_LEASE == 100


async def test_a_silent_connection_is_closed_after_its_lease(autojump_clock: Clock) -> None:
    async with open_world(broker_limits=BrokerLimits(lease=50)) as world:
        began = trio.current_time()
        ada, bob = await world.registered("ada"), await world.registered("bob")
        await trio.sleep(30)
        assert await call(bob, "ping") == "pong"
        with pytest.raises(trio.EndOfChannel):
            await ada.receive()
        assert trio.current_time() == began + 50
        assert ada.close_reason == "nothing was heard for 50 s"
        assert await call(bob, "exists", id="ada") is False


async def test_a_peer_that_does_not_read_is_closed(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_QUEUED_BYTES", 1000)
    async with open_world() as world:
        ada, bob = await world.registered("ada"), await world.registered("bob")
        for _ in range(30):
            await say(bob, signal("bob", "ada"))
        await trio.sleep(CLOSE_TIMEOUT)
        assert await call(bob, "exists", id="ada") is False
        assert await call(bob, "ping") == "pong"
        with pytest.raises((trio.EndOfChannel, trio.BrokenResourceError)):
            while True:
                await ada.receive()


async def test_what_is_no_text_of_json_does_no_harm(autojump_clock: Clock) -> None:
    async with open_world() as world:
        ada, eve = await world.registered("ada"), await world.dial()
        for frame in (b"\xff", "{", '{"id":"constructor","result":1}', "null", "[]", b'"x"'):
            await eve.send(frame)
            assert (await hear(eve))["error"]["code"] in (-32700, -32600)
        assert await call(ada, "ping") == "pong"


async def test_other_servers_are_asked_and_answered(autojump_clock: Clock) -> None:
    others = OtherServers()
    others.taken.add("far")
    async with open_world(registry=others) as world:
        ada = await world.registered("ada")
        assert await call(ada, "exists", id="far") is True
        assert await call(ada, "register", id="far") == ID_TAKEN
        await say(ada, signal("ada", "far"))
        assert others.peers.holds("ada")
        others.peers.deliver_nowait(peer_signal("far", "ada", OFFER))
        assert await hear(ada) == signal("far", "ada")
        await trio.testing.wait_all_tasks_blocked()
        assert others.forwarded == [peer_signal("ada", "far", OFFER)]
        await ada.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert others.released == ["ada"]


async def test_without_the_other_servers_what_needs_none_goes_on(autojump_clock: Clock) -> None:
    others = OtherServers()
    async with open_world(registry=others) as world:
        ada, bob = await world.registered("ada"), await world.registered("bob")
        others.failure = "nobody is there"
        assert await call(ada, "exists", id="far") == UNAVAILABLE
        assert await call(ada, "register", id="eve") == UNAVAILABLE
        await say(ada, signal("ada", "far"))
        assert await call(ada, "exists", id="bob") is True
        await say(ada, signal("ada", "bob"))
        assert await hear(bob) == signal("ada", "bob")
        others.failure, others.delay = None, math.inf
        began = trio.current_time()
        assert await call(ada, "exists", id="far") == UNAVAILABLE
        assert trio.current_time() == began + QUESTION_TIMEOUT


async def test_a_peer_whose_id_was_lost_is_told_by_a_close(autojump_clock: Clock) -> None:
    others = OtherServers()
    async with open_world(registry=others) as world:
        ada, bob = await world.registered("ada"), await world.registered("bob")
        others.peers.lose_nowait("ada", "the id could not be renewed")
        assert not others.peers.holds("ada")
        with pytest.raises(trio.EndOfChannel):
            await ada.receive()
        assert ada.close_reason == "the id could not be renewed"
        assert await call(bob, "ping") == "pong"
        assert others.released == []


async def test_the_broker_has_further_paths_or_none(autojump_clock: Clock) -> None:
    async with open_world(broker_paths=("/find",)) as world:
        assert await call(await world.dial("/find"), "ping") == "pong"
        for path in ("/", "/broker"):
            request = MemoryRequest(path)
            await world.server.handle_upgrade(request)
            assert request.rejection is not None
            assert request.rejection[0] == 404
    with pytest.raises(UsageError):
        SignalingServer(SECRET, broker_paths=["/join"])


def conversations() -> dict[str, list[str]]:
    text = (DATA / "broker-conversations.txt").read_text(encoding="utf-8")
    title, *parts = re.split(r"^== (.*)\n", text, flags=re.MULTILINE)
    assert all(line.startswith("#") for line in title.splitlines() if line)
    return {
        name: [line for line in lines.splitlines() if line]
        for name, lines in zip(parts[::2], parts[1::2], strict=True)
    }


@pytest.mark.parametrize("name", conversations())
async def test_the_broker_says_what_the_script_has_it_say(name: str, autojump_clock: Clock) -> None:
    async with open_world() as world:
        peers: dict[str, MemoryChannel] = {}
        for line in conversations()[name]:
            who, direction, frame = line.split(" ", 2)
            if who not in peers:
                peers[who] = await world.dial()
            if direction == ">":
                await peers[who].send(frame)
            else:
                assert await hear(peers[who]) == json.loads(frame), line
        await trio.sleep(1)
        for peer in peers.values():  # and nothing else
            await say(peer, {"id": "last", "method": "ping"})
            assert (await hear(peer))["id"] == "last"
