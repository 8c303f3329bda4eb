"""The signaling server without sockets: requests in memory, under a virtual clock."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from trio_overlay.channels.channel import Channel
from trio_overlay.channels.memory import MemoryChannel, memory_channel_pair
from trio_overlay.channels.network import UpgradeRequest
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import ConfigurationError, UsageError
from trio_overlay.protocol.allowance import Allowance
from trio_overlay.protocol.bootstrap import (
    BootstrapFrame,
    Done,
    Heartbeat,
    Hello,
    Refused,
    SignalFrame,
    Withdrawn,
    decode_bootstrap,
    encode_bootstrap,
    signal_frame,
)
from trio_overlay.signaling import limits
from trio_overlay.signaling.server import SignalingServer

SECRET = "open sesame"
ROOT_PATH = "/open%20sesame/webrtc-bootstrap-root"
ANNOUNCED = "trio-overlay=1"
OFFER = {"type": "offer", "sdp": "v=0"}

Clock = trio.testing.MockClock


class MemoryRequest(UpgradeRequest):
    """A request whose client is `client`, once it was accepted."""

    def __init__(self, path: str, query: str = "") -> None:
        self.path = path
        self.query = query
        self.remote = "somebody in memory"
        self.client, self._server = memory_channel_pair(max_buffered_frames=2)
        self.is_accepted = trio.Event()
        self.rejection: tuple[int, str] | None = None

    async def accept(self) -> Channel:
        await trio.lowlevel.checkpoint()
        self.is_accepted.set()
        return self._server

    async def reject(self, status: int, reason: str) -> None:
        await trio.lowlevel.checkpoint()
        self.rejection = (status, reason)


class World:
    def __init__(self, server: SignalingServer, nursery: trio.Nursery) -> None:
        self.server = server
        self._nursery = nursery

    async def dial(self, path: str = "/", query: str = "") -> MemoryChannel:
        request = MemoryRequest(path, query)

        async def serve() -> None:
            await self.server.handle_upgrade(request)
            await request._server.aclose()

        self._nursery.start_soon(serve)
        with trio.fail_after(60):
            await request.is_accepted.wait()
        return request.client

    async def root(self) -> MemoryChannel:
        root = await self.dial(ROOT_PATH, ANNOUNCED)
        assert isinstance(await hear(root), Hello)
        return root

    async def prospect(self) -> tuple[MemoryChannel, str]:
        prospect = await self.dial("/join", ANNOUNCED)
        hello = await hear(prospect)
        assert isinstance(hello, Hello)
        assert hello.identifier
        return prospect, hello.identifier

    async def refused(self, path: str) -> tuple[int, str] | None:
        request = MemoryRequest(path)
        with trio.fail_after(60):
            await self.server.handle_upgrade(request)
        return request.rejection


@asynccontextmanager
async def open_world(**options: float) -> AsyncIterator[World]:
    server = SignalingServer(SECRET, seed=1, **options)  # type: ignore[arg-type]
    async with open_background_nursery() as nursery:
        await nursery.start(server.run)
        yield World(server, nursery)


async def say(channel: Channel, frame: BootstrapFrame) -> None:
    await channel.send(encode_bootstrap(frame))


async def hear(channel: Channel) -> BootstrapFrame:
    with trio.fail_after(60):
        return decode_bootstrap(await channel.receive())


def offer(destination: str | None = None) -> SignalFrame:
    return signal_frame(OFFER, destination=destination, rank=0)


async def test_a_joiner_and_an_answerer_meet_through_the_server(autojump_clock: Clock) -> None:
    async with open_world() as world:
        root = await world.root()
        joiner, joiner_id = await world.prospect()
        await say(joiner, offer())
        request = await hear(root)
        assert request == offer().with_origin(joiner_id)
        answerer, answerer_id = await world.prospect()
        answer = signal_frame({"type": "answer", "sdp": "v=0"}, destination=joiner_id, rank=0)
        await say(answerer, answer)
        assert await hear(joiner) == answer.with_origin(answerer_id)
        await say(joiner, Done())
        await joiner.aclose()
        await say(answerer, Withdrawn(reason="changed its mind"))
        await answerer.aclose()
        with trio.move_on_after(14) as quiet:  # the next heartbeat is at 15 s
            await root.receive()
        assert quiet.cancelled_caught
        figures = {"status": "ok", "roots": 1, "prospects": 0, "held": 0, "peers": 0}
        assert world.server.status() == figures


async def test_a_joiner_that_dies_without_a_word_is_withdrawn_after_the_grace(
    autojump_clock: Clock,
) -> None:
    async with open_world(grace_timeout=3) as world:
        root = await world.root()
        joiner, joiner_id = await world.prospect()
        await say(joiner, offer())
        await hear(root)
        began = trio.current_time()
        joiner.kill()
        gone = await hear(root)
        assert isinstance(gone, Withdrawn)
        assert gone.origin == joiner_id
        assert trio.current_time() - began == pytest.approx(3)


async def test_roots_hear_heartbeats_and_may_send_them_and_prospects_hear_none(
    autojump_clock: Clock,
) -> None:
    async with open_world(timeout=1000) as world:
        root = await world.root()
        former = root
        root = await world.root()  # the former stays, and gets heartbeats
        prospect, _ = await world.prospect()
        began = trio.current_time()
        for number in (1, 2, 3):
            await root.send("heartbeat")
            assert await hear(root) == Heartbeat()
            assert await hear(former) == Heartbeat()
            assert trio.current_time() - began == pytest.approx(15 * number)
        with trio.move_on_after(100) as quiet:
            await prospect.receive()
        assert quiet.cancelled_caught


async def test_prospects_are_closed_at_the_timeout_and_told_why(autojump_clock: Clock) -> None:
    async with open_world(timeout=30) as world:
        began = trio.current_time()
        old = await world.dial("/join")
        new, _ = await world.prospect()
        refused = await hear(new)
        assert isinstance(refused, Refused)
        assert "timeout of 30 s" in refused.reason
        for channel in (old, new):
            with pytest.raises(trio.EndOfChannel):
                await channel.receive()
            assert "timeout of 30 s" in (channel.close_reason or "")
        assert trio.current_time() - began == pytest.approx(30)


async def test_a_request_without_a_root_is_held_and_then_refused(autojump_clock: Clock) -> None:
    async with open_world(hold_timeout=5) as world:
        lucky, lucky_id = await world.prospect()
        await say(lucky, offer())
        await trio.sleep(4)
        late, _ = await world.prospect()
        root = await world.root()
        assert await hear(root) == offer().with_origin(lucky_id)
        await root.aclose()
        await trio.testing.wait_all_tasks_blocked()
        await say(late, offer())
        assert isinstance(await hear(late), Refused)


BAD_FRAMES: dict[str, str | bytes] = {
    "no JSON": "nonsense",
    "null": "null",
    "of the wrong shape": '{"signal": "offer"}',
    "nested 10,000 deep": "[" * 10_000 + "]" * 10_000,
    "no UTF-8": b"\xff\xfe",
    "infinite": '{"signal":{},"n":1e999}',
    "too large when passed on": '{"signal":{"sdp":"' + "\xff" * 120_000 + '"}}',
}


@pytest.mark.parametrize(
    ("path", "bad"),
    [
        pytest.param(path, bad, id=f"{who}-{name}")
        for who, path in [("prospect", "/join"), ("root", ROOT_PATH)]
        for name, bad in BAD_FRAMES.items()
        if who == "prospect" or '"signal":{' not in str(bad)  # a root's signals go nowhere
    ],
)
async def test_a_bad_frame_closes_its_sender_with_a_reason_and_harms_nobody_else(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture, path: str, bad: str | bytes
) -> None:
    limit = 2**17
    async with open_world() as world:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("trio_overlay.protocol.switchboard.MAX_FRAME_SIZE", limit)
            root = await world.root()
            joiner, joiner_id = await world.prospect()
            stranger = await world.dial(path)
            caplog.clear()
            caplog.set_level(logging.INFO)
            await stranger.send(bad)
            with trio.fail_after(60), pytest.raises(trio.EndOfChannel):
                await stranger.receive()
            assert stranger.close_reason not in (None, "", "closed by the other end")
            await trio.testing.wait_all_tasks_blocked()
            about_it = [each for each in caplog.messages if "is closed" in each]
            assert len(about_it) == 1
            await say(joiner, offer())
            assert await hear(root) == offer().with_origin(joiner_id)


async def test_binary_frames_are_passed_on_as_text(autojump_clock: Clock) -> None:
    async with open_world() as world:
        root = await world.root()
        joiner, _ = await world.prospect()
        await joiner.send(encode_bootstrap(offer()).encode())
        assert isinstance(await root.receive(), str)


async def test_a_stranger_who_does_not_read_is_closed_and_nobody_waits_for_it(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_QUEUED_BYTES", 2_000)
    async with open_world() as world:
        root = await world.root()
        deaf, deaf_id = await world.prospect()
        joiner, _ = await world.prospect()
        with trio.fail_after(1):
            for _ in range(100):
                await say(joiner, offer(deaf_id))
            await say(joiner, offer())
        assert isinstance(await hear(root), SignalFrame)
        await trio.sleep(5)
        assert not deaf.is_open
        assert world.server.status()["prospects"] == 1
        assert joiner.is_open


async def test_a_flood_is_stopped_at_its_source(autojump_clock: Clock) -> None:
    async with open_world() as world:
        flooder, _ = await world.prospect()
        with pytest.raises(trio.BrokenResourceError):
            for _ in range(5_000):
                await say(flooder, Heartbeat())
        assert "too many frames" in (flooder.close_reason or "")


async def test_a_wrong_secret_is_answered_as_any_unknown_path(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_world() as world:
        refusals = [
            await world.refused(path)
            for path in (
                "/guess/webrtc-bootstrap-root",
                "//webrtc-bootstrap-root",
                "/nowhere",
                "/join/",
                "/join%00",
                "/open%20sesame/webrtc-bootstrap-rooot",
                "/open%20sesame",
                "/open%20sesamf/webrtc-bootstrap-root",
                "/%ff/webrtc-bootstrap-root",
            )
        ]
        await world.root()
        # Clients differ in what they encode.
        await world.dial("/open sesame/webrtc-bootstrap-root")
        await world.dial("/%6fpen%20sesame/webrtc-bootstrap-root")
    assert len(set(refusals)) == 1
    assert refusals[0] is not None
    assert refusals[0][0] == 404
    warnings = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(warnings) == 4  # of those who wanted to be root
    assert "sesam" not in caplog.text


def test_an_empty_secret_and_an_endless_timeout_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="secret"):
        SignalingServer("")
    for timeout in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ConfigurationError, match="timeout"):
            SignalingServer("x", timeout=timeout)


async def test_an_embedding_program_may_serve_paths_of_its_own(autojump_clock: Clock) -> None:
    async def echo(request: UpgradeRequest) -> None:
        channel = await request.accept()
        await channel.send(f"{request.path}?{request.query}")

    async with open_world() as world:
        world.server.upgrade("/echo", echo)
        client = await world.dial("/echo", "loud")
        assert await client.receive() == "/echo?loud"
        with pytest.raises(trio.EndOfChannel):
            await client.receive()
        assert await world.refused("/echo/") is not None
        for taken in ("/echo", "/join", ROOT_PATH, "no-slash"):
            with pytest.raises(UsageError) as caught:
                world.server.upgrade(taken, echo)
            assert "sesame" not in str(caught.value)


async def test_what_a_handler_raises_is_not_hidden_from_who_runs_it(autojump_clock: Clock) -> None:
    async def fail(request: UpgradeRequest) -> None:
        raise ZeroDivisionError

    server = SignalingServer(SECRET, handlers={"/fail": fail})
    with pytest.raises(ZeroDivisionError):
        await server.handle_upgrade(MemoryRequest("/fail"))


async def test_a_client_gone_before_it_was_accepted_is_nothing_to_worry_about() -> None:
    class Gone(MemoryRequest):
        async def accept(self) -> Channel:
            raise trio.BrokenResourceError

    await SignalingServer(SECRET).handle_upgrade(Gone("/join"))


async def test_the_seed_gives_the_originals_ids_one_after_the_other(autojump_clock: Clock) -> None:
    async with open_world() as world:
        ids = [(await world.prospect())[1] for _ in range(2)]
    assert ids == ["143c5677bb8026ada7ad6dbd4a44e705", "8d468468b9b6f61c1a9621ebff91acc5"]


def test_an_allowance_is_so_much_at_once_and_then_so_much_a_second() -> None:
    allowance = Allowance(capacity=10, per_second=2)
    assert allowance.take(100, 10)
    assert not allowance.take(100, 1)
    assert not allowance.take(101, 3)
    assert allowance.take(101, 2)
    assert allowance.take(1000, 10)
    assert not allowance.take(1000, 1)
