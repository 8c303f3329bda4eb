"""The bootstrap client on the virtual network, against our server."""

from __future__ import annotations

import contextlib
import random
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock

from tests.world import AUTHORITY, SECRET, World, open_world
from trio_overlay.channels.memory import memory_channel_pair
from trio_overlay.channels.network import UpgradeRequest
from trio_overlay.errors import (
    JoinRefused,
    JoinTimeout,
    OutcomeError,
    PeerNotFound,
    ServerRefused,
    ServerUnreachable,
    UsageError,
)
from trio_overlay.protocol.bootstrap import SignalFrame
from trio_overlay.protocol.json import encode_json
from trio_overlay.protocol.signals import Answer, Signal
from trio_overlay.signaling.bootstrap import Bootstrap, Request, server_url
from trio_overlay.signaling.bootstrap_road import BootstrapRoad
from trio_overlay.signaling.registration import reconnect_delay


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("localhost:5000", "ws://localhost:5000"),
        ("http://a.example/", "ws://a.example"),
        ("https://a.example:444", "wss://a.example:444"),
        ("wss://a.example/behind/proxy/", "wss://a.example/behind/proxy"),
        ("[::1]:5000", "ws://[::1]:5000"),
    ],
)
def test_server_is_named_by_url_or_host_and_port(given: str, expected: str) -> None:
    assert server_url(given) == expected


@pytest.mark.parametrize("given", ["", "ws://", "ftp://a", "host:notaport", "ws://h:99999", "[::1"])
def test_what_is_no_server_is_a_usage_error(given: str) -> None:
    with pytest.raises(UsageError, match="no URL of a server"):
        server_url(given)


async def serve_one(client: Bootstrap, request: Request, replies: list[object]) -> None:
    async with client.answer(request) as channel:
        replies.append(await channel.receive())
        await channel.send("pong")
        with pytest.raises((trio.EndOfChannel, trio.BrokenResourceError)):
            await channel.receive()


async def test_newcomer_reaches_the_root_and_sockets_close_when_done(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        host = await stack.enter_async_context(world.client("root"))
        requests = await stack.enter_async_context(host.root(SECRET))
        nursery = await stack.enter_async_context(trio.open_nursery())
        joiner = await stack.enter_async_context(world.client("joiner"))
        known: list[str] = []
        replies: list[object] = []

        async def answer() -> None:
            request = await requests.receive()
            await serve_one(host, request, replies)
            assert request.origin == known[0]

        nursery.start_soon(answer)
        async with joiner.connect(on_identifier=known.append) as connection:
            assert connection.identifier == known[0]
            assert connection.partner not in (None, connection.identifier)
            await trio.sleep(1)
            # The root's own socket is the only one left.
            assert world.network.count_open_sockets == 1
            await connection.send("ping")
            assert await connection.receive() == "pong"
        await trio.sleep(1)
        assert replies == ["ping"]


async def test_any_prospect_is_reached_by_its_identifier(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        listening = await stack.enter_async_context(world.client("listening"))
        calling = await stack.enter_async_context(world.client("calling"))
        listener = await stack.enter_async_context(listening.listen())
        nursery = await stack.enter_async_context(trio.open_nursery())
        replies: list[object] = []

        async def answer() -> None:
            await serve_one(listening, await listener.requests.receive(), replies)

        nursery.start_soon(answer)
        async with calling.connect(listener.identifier) as channel:
            await channel.send("hello")
            assert await channel.receive() == "pong"


async def test_unknown_destination_is_told_at_once(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.client("a") as client:
        started_at = trio.current_time()
        with pytest.raises(PeerNotFound, match="0123"):
            async with client.connect("0123" * 8):
                pass
        assert trio.current_time() - started_at < 1


async def test_connect_ends_at_its_timeout(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        host = await stack.enter_async_context(world.client("root"))
        await stack.enter_async_context(host.root(SECRET))  # which answers nobody
        client = await stack.enter_async_context(world.client("a"))
        started_at = trio.current_time()
        with pytest.raises(JoinTimeout, match="7 s"):
            async with client.connect(timeout=7):
                pass
        assert 7 <= trio.current_time() - started_at < 8.5


@pytest.mark.parametrize("said", [None, '{"type":"news"}', "no json", b"\xff\xfe", "[" * 10_000])
async def test_server_of_another_kind_costs_the_time_limit_and_hardly_more(
    said: str | bytes | None, autojump_clock: MockClock
) -> None:
    """One that takes every WebSocket and says nothing that we know, as the original's may."""

    async def handle(request: UpgradeRequest) -> None:
        channel = await request.accept()
        if said is not None:
            await channel.send(said)
        with contextlib.suppress(trio.EndOfChannel, trio.BrokenResourceError):
            while True:
                await channel.receive()

    async with open_world() as world, world.client("a") as client:
        world.network.listen("other:5000", handle)
        client.url = "ws://other:5000"
        started_at = trio.current_time()
        with pytest.raises(JoinTimeout, match="7 s"):
            async with client.connect(timeout=7):
                pass
        assert trio.current_time() - started_at < 7.3


async def test_server_that_echoes_is_no_root_and_no_peer(autojump_clock: MockClock) -> None:
    async def echo(request: UpgradeRequest) -> None:
        channel = await request.accept()
        with contextlib.suppress(trio.EndOfChannel, trio.BrokenResourceError):
            while True:
                await channel.send(await channel.receive())

    async with open_world() as world, world.client("a") as client:
        world.network.listen("echo:5000", echo)
        client.url = "ws://echo:5000"
        with pytest.raises(OutcomeError):
            async with client.connect(timeout=7):
                pass
        with pytest.raises(ServerUnreachable, match="identifiers"):
            async with client.listen():
                pass


async def test_server_that_is_not_there_is_unreachable(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.client("a") as client:
        world.stop_server()
        with pytest.raises(ServerUnreachable):
            async with client.connect():
                pass
        with pytest.raises(ServerUnreachable):
            async with client.root(SECRET):
                pass
        with pytest.raises(ServerUnreachable):
            async with client.listen():
                pass


async def test_wrong_secret_is_refused(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.client("a") as client:
        with pytest.raises(ServerRefused):
            async with client.root("wrong"):
                pass


async def test_root_registers_again_when_the_server_is_back(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        host = await stack.enter_async_context(world.client("root"))
        requests = await stack.enter_async_context(host.root(SECRET))
        await trio.sleep(1)
        dials = world.network.count_dials["root"]
        world.stop_server()
        await trio.sleep(300)
        tried = world.network.count_dials["root"] - dials
        # Delays double up to 5 s: about five before they reach it, and one in 2.5 to 5 s after.
        assert 60 <= tried <= 130
        assert sum("without its server" in each for each in caplog.messages) == 1
        await world.start_server()
        await trio.sleep(31)
        assert world.server.status()["roots"] == 1
        nursery = await stack.enter_async_context(trio.open_nursery())
        replies: list[object] = []

        async def answer() -> None:
            await serve_one(host, await requests.receive(), replies)

        nursery.start_soon(answer)
        client = await stack.enter_async_context(world.client("a"))
        async with client.connect() as channel:
            await channel.send("ping")
            assert await channel.receive() == "pong"


async def test_cancelled_connect_withdraws_the_request(autojump_clock: MockClock) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        host = await stack.enter_async_context(world.client("root"))
        requests = await stack.enter_async_context(host.root(SECRET))
        client = await stack.enter_async_context(world.client("a"))
        with trio.move_on_after(0.5):
            async with client.connect():
                pass
        request = await requests.receive()
        await trio.sleep(0.2)
        assert request.withdrawn == "cancelled"
        with pytest.raises(JoinRefused, match="withdrawn"):
            async with host.answer(request):
                pass


async def test_cancelled_answer_is_told_to_the_applicant(autojump_clock: MockClock) -> None:
    async with open_world(latency=0.2) as world, AsyncExitStack() as stack:
        host = await stack.enter_async_context(world.client("root"))
        requests = await stack.enter_async_context(host.root(SECRET))
        client = await stack.enter_async_context(world.client("a"))
        nursery = await stack.enter_async_context(trio.open_nursery())

        async def answer_half() -> None:
            request = await requests.receive()
            with trio.move_on_after(1.1):
                async with host.answer(request):
                    pass

        nursery.start_soon(answer_half)
        with pytest.raises(JoinRefused, match="gone"):
            async with client.connect():
                pass
        assert trio.current_time() < 4


async def test_request_can_be_looked_at_and_nobody_has_to_take_it(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        host = await stack.enter_async_context(world.client("root"))
        requests = await stack.enter_async_context(host.root(SECRET))
        client = await stack.enter_async_context(world.client("a"))
        with trio.move_on_after(1):
            async with client.connect(timeout=5):
                pass
        request = await requests.receive()
        assert request.signals
        assert request.origin in repr(request)


async def test_body_error_leaves_as_itself(autojump_clock: MockClock) -> None:
    class OwnError(Exception):
        pass

    async with open_world() as world, world.client("a") as client:
        with pytest.raises(OwnError):
            async with client.root(SECRET):
                raise OwnError
        with pytest.raises(ExceptionGroup) as caught:
            async with client.root(SECRET):
                raise ExceptionGroup("mine", [OwnError()])
        assert caught.value.message == "mine"


async def hostile_answerer(world: World, frames: list[str]) -> None:
    """A root by hand: it says *frames* to whoever asks first, each with the asker's id in it."""
    host = world.network.host("hostile")
    async with (
        host.dial(f"ws://{AUTHORITY}/{SECRET}/webrtc-bootstrap-root") as root,
        host.dial(f"ws://{AUTHORITY}/join") as socket,
    ):
        text = await root.receive()
        assert isinstance(text, str)
        origin = text.split('"origin":"')[1].split('"')[0]
        for frame in frames:
            await socket.send(frame.replace("ORIGIN", origin))
        await trio.sleep_forever()


@pytest.mark.parametrize(
    "signal",
    [
        '{"type":"answer","sdp":17}',
        '{"type":"nonsense"}',
        '{"candidate":{"candidate":"candidate:1 1 udp 1 x.local 9 typ host","sdpMid":"0"}}',
        '{"type":"offer","sdp":"v=0"}',
        '{"renegotiate":true}',
    ],
)
async def test_bad_answers_make_no_connection_and_no_harm(
    signal: str, autojump_clock: MockClock
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        frame = '{"destination":"ORIGIN","signal":SIGNAL,"rank":0}'.replace("SIGNAL", signal)
        nursery.start_soon(hostile_answerer, world, [frame] * 3)
        await trio.sleep(1)
        client = await stack.enter_async_context(world.client("a"))
        with pytest.raises(OutcomeError):
            async with client.connect(timeout=5):
                pass
        assert trio.current_time() < 8
        nursery.cancel_scope.cancel()


def test_signals_kept_for_a_request_are_bounded() -> None:
    request = Request("abc")
    for _ in range(10_000):
        request.deliver(SignalFrame({"signal": {"type": "offer", "sdp": "v=0"}}))
    assert len(request.signals) == 100


async def test_second_answerer_is_not_listened_to(autojump_clock: MockClock) -> None:
    """Whoever answers first is the partner; a stranger cannot break into the handshake."""
    server, socket = memory_channel_pair()
    road = BootstrapRoad(None, None, (), None)
    road.socket = socket
    for origin, sdp in [("first", "a"), ("stranger", "b"), ("first", "c")]:
        signal = {"type": "answer", "sdp": sdp}
        await server.send(encode_json({"origin": origin, "destination": "me", "signal": signal}))
    heard: list[Signal] = []
    with trio.move_on_after(1):
        await road.deliver_to(heard.append)
    assert heard == [Answer("a"), Answer("c")]
    assert road.partner == "first"
    assert road.identifier == "me"


def test_reconnect_delays_are_jittered_and_bounded() -> None:
    rng = random.Random(1)
    delays = [reconnect_delay(failures, rng) for failures in range(100)]
    assert max(delays) <= 30
    assert delays[0] <= 0.2
    assert len(set(delays)) == 100
