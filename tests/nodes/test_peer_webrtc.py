"""Two peers over real sockets: a broker, WebRTC, and no broker."""

from __future__ import annotations

import functools

import pytest
import trio

from tests.channels.test_ice_servers import open_coturn
from tests.cli.test_tree import open_server
from tests.cluster.world import call, hear_json
from trio_overlay.channels.internet import IceServer
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.channels.websocket import open_websocket_channel
from trio_overlay.nodes import closing
from trio_overlay.nodes.peer import BrokerLost, open_peer
from trio_overlay.nodes.peer_connection import Connection
from trio_overlay.signaling.server import serve_signaling

PATIENCE = 180


@pytest.mark.webrtc
async def test_two_peers_meet_at_a_broker_and_go_on_without_it() -> None:
    with trio.fail_after(PATIENCE):
        async with open_background_nursery() as nursery:
            start = functools.partial(serve_signaling, "swordfish", host="127.0.0.1", port=0)
            server_scope = trio.CancelScope()

            async def serve(*, task_status: trio.TaskStatus[object]) -> None:
                with server_scope:
                    await start(task_status=task_status)

            server = await nursery.start(serve)
            url = f"{server.urls[0]}/broker"
            async with open_peer("ada", url) as ada, open_peer("bob", url) as bob:
                got: list[Connection] = []

                async def connect(whom: str, by: object) -> None:
                    got.append(await (ada if by is ada else bob).connect(whom))

                async with trio.open_nursery() as both:  # at the same moment
                    both.start_soon(connect, "bob", ada)
                    both.start_soon(connect, "ada", bob)
                to_bob, to_ada = ada.connections["bob"], bob.connections["ada"]
                assert {to_bob, to_ada} == set(got)
                messages = [{"a": [1, None]}, "x" * 200_000, b"\x00" * 200_000, b"", ""]
                for message in messages:
                    await to_bob.send(message)
                for message in messages:
                    assert (await bob.messages.receive()).data == message
                server_scope.cancel()
                async for event in ada.events:
                    if isinstance(event, BrokerLost):
                        break
                await to_ada.send("without a broker")
                assert await to_bob.receive() == "without a broker"
                await ada.disconnect("bob")
                assert [message async for message in to_ada] == []
                assert to_ada.close_reason


@pytest.mark.webrtc
async def test_what_was_sent_arrives_though_its_sender_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(closing, "CLOSE_TIMEOUT", 0.01)  # less than what is under way takes
    messages = [bytes([number]) * 100_000 for number in range(12)]
    got: list[object] = []

    async def read(connection: Connection) -> None:
        got.extend([message async for message in connection])

    with trio.fail_after(PATIENCE):
        async with (
            open_server() as server,
            open_peer("bob", server.urls[0]) as bob,
            trio.open_nursery() as nursery,
            open_peer("ada", server.urls[0]) as ada,
        ):
            await ada.connect("bob")
            nursery.start_soon(read, await bob.incoming.receive())
            for message in messages:
                await ada.send("bob", message)
    assert got == messages


@pytest.mark.webrtc
async def test_a_peer_asks_the_ice_servers_it_was_given_and_no_others() -> None:
    async with open_coturn() as port, open_server() as server:
        stun = IceServer(f"stun:127.0.0.1:{port}")
        for ice_servers in ((), (stun,)):
            async with (
                open_websocket_channel(server.urls[0]) as stranger,
                open_peer("ada", server.urls[0], ice_servers=ice_servers) as ada,
                open_background_nursery() as nursery,
            ):
                assert await call(stranger, "register", id="stranger") == "stranger"
                nursery.start_soon(ada.connect, "stranger")
                offer = (await hear_json(stranger))["params"]["signal"]
                assert offer["type"] == "offer"
                assert (" typ srflx" in offer["sdp"]) is bool(ice_servers)
