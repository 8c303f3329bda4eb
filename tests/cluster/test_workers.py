"""``trio-overlay server --workers``: real processes, a real Redis, one port."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.cli.test_server import PATIENCE, SECRET, Running, running
from tests.cluster.redis import RedisServer, open_redis, season
from tests.cluster.world import call, hear, hear_json
from tests.cluster.world import signal as say_signal
from tests.signaling.test_service import offer, say
from trio_overlay.channels.channel import Channel
from trio_overlay.channels.websocket import open_websocket_channel
from trio_overlay.cli import main
from trio_overlay.errors import ServerRefused, ServerUnreachable
from trio_overlay.protocol.bootstrap import Heartbeat, Hello, SignalFrame, signal_frame
from trio_overlay.protocol.cluster import tag_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SO_REUSEPORT")

OFFER = {"type": "offer", "sdp": "v=0"}


@asynccontextmanager
async def cluster(redis: RedisServer, *more: str) -> AsyncIterator[Running]:
    words = ["--port", "0", "--workers", "2", "--redis", redis.url, *more]
    async with running(*words, environment={"SECRET": SECRET}) as server:
        yield server


async def prospect_at(stack: AsyncExitStack, url: str) -> tuple[Channel, str]:
    channel = await stack.enter_async_context(open_websocket_channel(f"{url}/join?trio-overlay=1"))
    hello = await hear(channel)
    assert isinstance(hello, Hello)
    assert hello.identifier is not None
    return channel, hello.identifier


async def one_at_each(stack: AsyncExitStack, url: str) -> dict[str, tuple[Channel, str]]:
    """A prospect at each of two workers, by their tags; dialled until there are both."""
    found: dict[str, tuple[Channel, str]] = {}
    while len(found) < 2:  # one may be just coming up, for as long as `running` has patience
        try:
            channel, identifier = await prospect_at(stack, url)
        except (ServerUnreachable, ServerRefused, trio.EndOfChannel, trio.BrokenResourceError):
            continue  # a worker that is just dying
        tag = tag_of(identifier)
        assert tag is not None
        if tag in found:
            await channel.aclose()
        found.setdefault(tag, (channel, identifier))
    return found


async def test_two_workers_on_one_port_are_one_server() -> None:
    async with open_redis() as redis:
        await season(redis)
        async with cluster(redis) as server, AsyncExitStack() as stack:
            assert server.url.count("ws://") == 1
            root = await stack.enter_async_context(
                open_websocket_channel(f"{server.url}/{SECRET}/webrtc-bootstrap-root")
            )
            # A joiner at each worker, and an answerer wherever it comes out.
            joiners = await one_at_each(stack, server.url)
            for joiner, joiner_id in joiners.values():
                await say(joiner, offer())
                request: object = Heartbeat()
                while isinstance(request, Heartbeat):
                    request = await hear(root)
                assert request == offer().with_origin(joiner_id)
                answerer, answerer_id = await prospect_at(stack, server.url)
                answer = signal_frame({"type": "answer"}, destination=joiner_id, rank=0)
                await say(answerer, answer)
                heard = await hear(joiner)
                assert isinstance(heard, SignalFrame)
                assert heard == answer.with_origin(answerer_id)
            # So many peers that it takes ill luck for all to be at one worker.
            peers = []
            for number in range(8):
                peer = await stack.enter_async_context(open_websocket_channel(server.url))
                assert await call(peer, "register", id=f"p{number}") == f"p{number}"
                peers.append(peer)
            for number, peer in enumerate(peers):
                after = (number + 1) % len(peers)
                assert await call(peer, "exists", id=f"p{after}") is True
                said = await say_signal(peer, f"p{number}", f"p{after}", OFFER)
                assert await hear_json(peers[after]) == said
            assert await server.stop() == 0
            for peer in peers:
                with trio.fail_after(PATIENCE), pytest.raises(trio.EndOfChannel):
                    await peer.receive()
                assert peer.close_reason == "the server is stopping"
            assert "Traceback" not in server.log


def workers_of(parent: int) -> list[int]:
    """The processes whose parent is *parent*, by what Linux says."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(words[1]) == parent and words[0] != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


async def test_a_dead_worker_is_replaced_and_all_end_with_their_parent() -> None:
    async with (
        open_redis() as redis,
        cluster(redis) as server,
        AsyncExitStack() as stack,
    ):
        before = await one_at_each(stack, server.url)
        workers = workers_of(server.process.pid)
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        after = await one_at_each(stack, server.url)
        assert len(before.keys() & after.keys()) == 1
        assert len(workers_of(server.process.pid)) == 2
        server.process.kill()  # the parent has no time to say anything
        await server.process.wait()
        for channel, _ in after.values():
            with trio.fail_after(PATIENCE), pytest.raises(trio.EndOfChannel):
                await channel.receive()
            assert channel.close_reason == "the server is stopping"


async def test_without_a_redis_the_workers_come_up_and_find_it_later() -> None:
    async with open_redis() as redis:
        await redis.kill()
        async with cluster(redis) as server:
            async with open_websocket_channel(server.url) as peer:
                assert await call(peer, "ping") == "pong"
            await redis.start()
            with trio.fail_after(PATIENCE):
                while not await is_connected(server.url):
                    pass
            assert await server.stop(signal.SIGINT) == 0
            assert "is on its own" in server.log
            assert "Traceback" not in server.log


async def is_connected(url: str) -> bool:
    host, port = url.removeprefix("ws://").split(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while chunk := await stream.receive_some():
            answer += chunk
    status = json.loads(answer.partition(b"\r\n\r\n")[2])
    return bool(status["cluster"]["connected"])


# --- what cannot be -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "2"], "give redis, too"),
        (["--workers", "0"], "--workers: a whole number from 1 up"),
        (["--redis", "http://localhost"], "redis: this is no URL of a Redis"),
        (["--redis", "redis://127.0.0.1:1", "--seed", "1", "--port", "0"], "seed: "),
    ],
)
def test_what_cannot_be_is_said_on_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.delenv("PORT", raising=False)
    assert main(["server", *arguments]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "trio-overlay: " in line]
    assert len(said) == 1
    assert message in said[0]


async def test_workers_that_cannot_start_end_the_command_with_what_is_wrong() -> None:
    words = ["--port", "0", "--workers", "2", "--redis", "redis://127.0.0.1:1"]
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            [sys.executable, "-m", "trio_overlay", "server", *words, "--public", "/nowhere"],
            env={**os.environ, "SECRET": SECRET},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stdout == b""
    assert b"public: '/nowhere' is no directory" in done.stderr
    assert b"Traceback" not in done.stderr
