"""A broker of linkup in the cluster, over a real Redis: what it publishes there, and what it hears.

linkup is not on npm. What it does on its channel is scripted here, from WIRE.md.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from tests.cluster.redis import PATIENCE, RedisServer, ask, open_redis, season
from tests.cluster.world import call, hear_json
from tests.cluster.world import signal as say_signal
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.channels.websocket import open_websocket_channel
from trio_overlay.protocol.broker import ID_TAKEN
from trio_overlay.signaling.server import serve_signaling

OFFER = {"type": "offer", "sdp": "v=0"}


class Linkup:
    """A subscriber of linkup's channel that is no server of ours."""

    def __init__(self, server: RedisServer, stream: trio.SocketStream) -> None:
        self._server = server
        self._stream = stream
        self._received = b""

    async def say(self, kind: str, data: object) -> None:
        await ask(self._server, "PUBLISH", "linkup", json.dumps({"type": kind, "data": data}))

    async def hear(self) -> Any:
        """The next message of the channel, its own ones too."""
        words = await self._words()
        assert words[0] == b"message"
        return json.loads(words[2])

    async def is_subscribed(self) -> None:
        """Wait until Redis has taken it in: until then nobody asks this broker."""
        assert (await self._words())[0] == b"subscribe"

    async def _words(self) -> list[bytes]:
        return [await self._word() for _ in range(int((await self._line())[1:]))]

    async def _word(self) -> bytes:
        line = await self._line()
        if not line.startswith(b"$"):
            return line
        return (await self._bytes(int(line[1:]) + 2))[:-2]

    async def _line(self) -> bytes:
        while b"\r\n" not in self._received:
            await self._receive()
        line, _, self._received = self._received.partition(b"\r\n")
        return line

    async def _bytes(self, count: int) -> bytes:
        while len(self._received) < count:
            await self._receive()
        found, self._received = self._received[:count], self._received[count:]
        return found

    async def _receive(self) -> None:
        with trio.fail_after(PATIENCE):
            chunk = await self._stream.receive_some()
        assert chunk, "Redis hung up"
        self._received += chunk


@asynccontextmanager
async def open_linkup(server: RedisServer) -> AsyncIterator[Linkup]:
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(b"SUBSCRIBE linkup\r\n")
        linkup = Linkup(server, stream)
        await linkup.is_subscribed()
        yield linkup


async def test_a_broker_of_linkup_and_two_of_ours_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # However slow the machine is, linkup's answers come in time.
    monkeypatch.setattr("trio_overlay.signaling.cluster_registry.INQUIRY_TIMEOUT", PATIENCE)
    monkeypatch.setattr("trio_overlay.signaling.broker.QUESTION_TIMEOUT", PATIENCE)
    async with open_redis() as redis, open_background_nursery() as nursery:
        await season(redis)
        start = partial(serve_signaling, "secret", port=0, redis=redis.url)
        urls = [(await nursery.start(start)).urls[0] for _ in range(2)]
        async with (
            open_linkup(redis) as linkup,
            open_websocket_channel(urls[0]) as anna,
            open_websocket_channel(urls[1]) as ben,
        ):
            # Two registrations: each is asked for, and all subscribers answer, linkup at last.
            for peer, name in ((anna, "anna"), (ben, "ben")):
                async with trio.open_nursery() as asking:
                    asking.start_soon(partial(call, peer, "register", id=name))
                    assert await linkup.hear() == {"type": "find", "data": {"id": name}}
                    await linkup.say("found", {"id": name, "found": False})
                answers = [await linkup.hear() for _ in range(3)]
                assert sorted(each["data"]["found"] for each in answers) == [False, False, True]
            # linkup asks: each of ours answers once, and it needs three answers in all.
            for name, found in (("anna", [False, True]), ("nobody", [False, False])):
                await linkup.say("find", {"id": name})
                assert (await linkup.hear())["type"] == "find"
                answers = [await linkup.hear() for _ in range(2)]
                assert {each["type"] for each in answers} == {"found"}
                assert sorted(each["data"]["found"] for each in answers) == found
            # Ours ask for what linkup has.
            outcomes: dict[str, object] = {}

            async def note(method: str) -> None:
                outcomes[method] = await call(ben, method, id="luis")

            for method, outcome in (("exists", True), ("register", ID_TAKEN)):
                async with trio.open_nursery() as asking:
                    asking.start_soon(note, method)
                    while (await linkup.hear())["type"] != "find":
                        pass
                    await linkup.say("found", {"id": "luis", "found": True})
                assert outcomes[method] == outcome
                while not (await linkup.hear())["data"]["found"]:
                    pass
            # Signals, both ways; those between ours are none of linkup's business.
            said = await say_signal(anna, "anna", "ben", OFFER)
            assert await hear_json(ben) == said
            said = await say_signal(anna, "anna", "luis", {**OFFER, "more": "\u00e9"})
            heard = await linkup.hear()
            while heard["type"] != "signal":
                heard = await linkup.hear()
            assert heard == {"type": "signal", "data": said["params"]}
            await linkup.say("signal", {"from": "luis", "to": "anna", "signal": OFFER})
            back = await hear_json(anna)
            assert back["params"] == {"from": "luis", "to": "anna", "signal": OFFER}
