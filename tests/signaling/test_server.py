"""The signaling server on loopback sockets, against clients with manners and without."""

from __future__ import annotations

import json
import logging
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trio_websocket

from trio_overlay.channels.network import UpgradeRequest
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.channels.websocket import open_websocket_channel
from trio_overlay.errors import ConfigurationError, ServerRefused
from trio_overlay.signaling import http, limits
from trio_overlay.signaling.server import ListeningServer, serve_signaling

SECRET = "hush-hush"
PATIENCE = 120


@asynccontextmanager
async def open_server(**options: Any) -> AsyncIterator[ListeningServer]:
    with trio.fail_after(PATIENCE):
        async with open_background_nursery() as nursery:
            yield await nursery.start(partial(serve_signaling, SECRET, port=0, **options))


async def raw(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port)


async def read_all(stream: trio.SocketStream) -> bytes:
    answer = b""
    while chunk := await stream.receive_some():
        answer += chunk
    return answer


async def ask(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers with lower-case names, and body of the answer to *request*."""
    async with await raw(port) as stream:
        await stream.send_all(request)
        answer = await read_all(stream)
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("ascii").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(status.split()[1]), {name.lower(): headers[name] for name in headers}, body


async def get(port: int, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    return await ask(port, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


UPGRADE = (
    b"GET /join HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


# --- listening ----------------------------------------------------------------------------


async def test_it_says_where_it_listens_and_can_be_dialled_there() -> None:
    async with open_server() as server:
        assert server.addresses == (("127.0.0.1", server.port),)
        assert server.urls == (f"ws://127.0.0.1:{server.port}",)
        async with open_websocket_channel(f"{server.urls[0]}/join?trio-overlay=1") as channel:
            assert json.loads(await channel.receive())["type"] == "hello"


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_ipv6_addresses_are_written_as_urls_want_them() -> None:
    if not has_ipv6():  # then it must at least be said what is wrong
        with pytest.raises(ConfigurationError):
            async with open_server(host="::1"):
                pass
        return
    async with open_server(host="::1") as server:
        assert server.urls == (f"ws://[::1]:{server.port}",)
        async with open_websocket_channel(f"{server.urls[0]}/join") as channel:
            assert channel.close_reason is None


async def test_a_port_in_use_is_a_clear_error() -> None:
    async with open_server() as server:
        with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{server.port}.* in use"):
            await serve_signaling(SECRET, port=server.port)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 65536}, "port"),
        ({"host": "no such host"}, "host"),
        ({"host": "192.0.2.1", "port": 0}, "host: this is no address of this machine"),
        ({"public": "/no/such/directory", "port": 0}, "public"),
        ({"timeout": 0, "port": 0}, "timeout"),
    ],
)
async def test_what_cannot_be_is_named(options: dict[str, Any], message: str) -> None:
    with trio.fail_after(PATIENCE), pytest.raises(ConfigurationError, match=message):
        await serve_signaling(SECRET, **options)


# --- pages --------------------------------------------------------------------------------


async def test_the_front_page_and_the_health_of_the_server() -> None:
    async with open_server() as server:
        status, headers, body = await get(server.port, "/")
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert b"signaling server" in body
        status, headers, body = await get(server.port, "/healthz?please")
        assert (status, headers["content-type"]) == (200, "application/json; charset=utf-8")
        assert json.loads(body) == {
            "status": "ok",
            "roots": 0,
            "prospects": 0,
            "held": 0,
            "peers": 0,
        }
        assert (await get(server.port, "/nowhere"))[0] == 404
        assert SECRET.encode() not in body


async def test_head_gives_the_same_without_the_body_and_nothing_may_be_posted() -> None:
    async with open_server() as server:
        _, expected, body = await get(server.port, "/")
        assert await get(server.port, "/", "HEAD") == (200, expected, b"")
        assert expected["content-length"] == str(len(body))
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "BREW"):
            status, headers, _ = await get(server.port, "/", method)
            assert (status, headers["allow"]) == (405, "GET, HEAD")


async def test_static_files_are_served_and_an_index_of_theirs_wins(tmp_path: Path) -> None:
    big = bytes(range(256)) * 4000
    (tmp_path / "index.html").write_text("<p>ours")
    (tmp_path / "big.bin").write_bytes(big)
    (tmp_path / "a b.js").write_text("1")
    async with open_server(public=tmp_path) as server:
        assert (await get(server.port, "/"))[2] == b"<p>ours"
        status, headers, body = await get(server.port, "/big.bin")
        assert (status, body) == (200, big)
        assert headers["content-type"] == "application/octet-stream"
        assert headers["content-length"] == str(len(big))
        status, headers, _ = await get(server.port, "/a%20b.js?version=1")
        assert (status, headers["content-type"]) == (200, "text/javascript; charset=utf-8")
        assert (await get(server.port, "/healthz"))[0] == 200
        assert (await get(server.port, "/../" + tmp_path.name + "/big.bin"))[0] == 404


# --- requests that are none ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no host
        (b"GET /" + b"x" * 30_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"x" * 20_000, 431),
        (UPGRADE.replace(b": 13", b": 8"), 426),
        (UPGRADE.replace(b"A==", b"A="), 400),
        (UPGRADE.replace(b"Sec-WebSocket-Key", b"X"), 400),
        (UPGRADE.replace(b"/join", b"/elsewhere"), 404),
        (UPGRADE.replace(b"GET", b"POST"), 405),
        (UPGRADE.replace(b"websocket", b"h2c"), 404),  # then it is a page
    ],
)
async def test_what_is_no_request_for_us_is_answered_and_done_with(
    request_bytes: bytes, status: int
) -> None:
    async with open_server() as server:
        assert (await ask(server.port, request_bytes))[0] == status
        assert (await get(server.port, "/healthz"))[0] == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        UPGRADE,
        UPGRADE.replace(b"/join", b"http://x/join"),
        UPGRADE.replace(b"/join", b"/join?a=b"),
        UPGRADE.replace(b"websocket", b"WebSocket").replace(b"keep-alive, Upgrade", b"UPGRADE"),
        # wsproto raises UnicodeDecodeError on this; it must never see it
        UPGRADE.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: caf\xe9\r\n\r\n"),
        UPGRADE.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
    ],
)
async def test_strange_but_honest_requests_get_their_websocket(request_bytes: bytes) -> None:
    async with open_server() as server, await raw(server.port) as stream:
        # A ping right behind the request, before the answer.
        await stream.send_all(request_bytes + b"\x89\x80\0\0\0\0")
        answer = b""
        while not answer.endswith(b"\x8a\0"):
            chunk = await stream.receive_some()
            assert chunk
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 101 ")


async def test_a_request_that_drips_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_TIMEOUT", 0.05)
    async with open_server() as server, await raw(server.port) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: ")
        assert (await read_all(stream)).startswith(b"HTTP/1.1 408 ")


async def test_more_connections_than_allowed_are_refused_with_a_reason() -> None:
    async with open_server(max_connections=1) as server:
        async with open_websocket_channel(f"{server.urls[0]}/join"):
            with pytest.raises(ServerRefused, match=r"503, the server is full"):
                async with open_websocket_channel(f"{server.urls[0]}/join"):
                    pass
            assert (await get(server.port, "/"))[1]["retry-after"]
        while True:  # the server learns of the end of the first in its own time
            try:
                async with open_websocket_channel(f"{server.urls[0]}/join"):
                    break
            except ServerRefused:
                await trio.lowlevel.checkpoint()


# --- strangers ----------------------------------------------------------------------------


def client_frame(opcode: int, payload: bytes) -> bytes:
    return bytes([0x80 | opcode, 0xFF]) + struct.pack("!Q", len(payload)) + bytes(4) + payload


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"\x83\x80\0\0\0\0", 1002),  # a reserved opcode
        (b"\xc1\x80\0\0\0\0", 1002),  # a reserved bit
        (b"\x81\x00", 1002),  # not masked
        (b"\x81\x82\0\0\0\0\xff\xfe", 1007),
        (client_frame(1, b"x" * (2**20 + 1)), 1009),
        (client_frame(2, b"x" * (3 * 2**20)), 1009),
        (b"\x81\x84\0\0\0\0null", 1000),
    ],
)
async def test_bad_frames_close_the_connection_with_a_reason_and_nobody_elses(
    said: bytes, code: int
) -> None:
    async with open_server() as server:
        root_url = f"{server.urls[0]}/{SECRET}/webrtc-bootstrap-root"
        async with open_websocket_channel(root_url) as root, await raw(server.port) as stream:
            await stream.send_all(UPGRADE)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += await stream.receive_some()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, said)
                answer = answer.partition(b"\r\n\r\n")[2] + await read_all(stream)
            assert answer[0] == 0x88
            assert int.from_bytes(answer[2:4], "big") == code
            assert len(answer) > 4  # a reason
            async with open_websocket_channel(f"{server.urls[0]}/join") as joiner:
                await joiner.send('{"signal":{"type":"offer","sdp":""}}')
                assert "offer" in str(await root.receive())


async def test_clients_that_vanish_at_any_moment_leave_nothing() -> None:
    async with open_server() as server:
        requests = [b"", b"GET", UPGRADE[:50], UPGRADE, UPGRADE + b"\x81", UPGRADE + b"\x88\x80"]
        for request in requests:
            for abrupt in (True, False):
                stream = await raw(server.port)
                if abrupt:
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await stream.send_all(request)
                await stream.aclose()
        while json.loads((await get(server.port, "/healthz"))[2])["prospects"]:
            await trio.lowlevel.checkpoint()


async def test_a_foreign_client_is_served_as_by_the_original() -> None:
    async with open_server(seed=1) as server:
        root_url = f"{server.urls[0]}/{SECRET}/webrtc-bootstrap-root"
        async with (
            trio_websocket.open_websocket_url(root_url) as root,
            trio_websocket.open_websocket_url(f"{server.urls[0]}/join") as joiner,
        ):
            await joiner.send_message('{"rank":0,"signal":{"type":"offer","sdp":""},"more":[1]}')
            assert json.loads(await root.get_message()) == {
                "rank": 0,
                "signal": {"type": "offer", "sdp": ""},
                "more": [1],
                "origin": "143c5677bb8026ada7ad6dbd4a44e705",
            }


async def test_a_handler_that_fails_ends_its_own_connection_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail_late(request: UpgradeRequest) -> None:
        await request.accept()
        raise ZeroDivisionError

    async def fail_early(request: UpgradeRequest) -> None:
        raise ZeroDivisionError

    async def forget(request: UpgradeRequest) -> None:
        pass

    async def decline(request: UpgradeRequest) -> None:
        await request.reject(403, "not today")

    handlers = {"/late": fail_late, "/early": fail_early, "/forget": forget}
    async with open_server(handlers=handlers) as server:
        server.upgrade("/decline", decline)
        async with open_websocket_channel(f"{server.urls[0]}/late") as channel:
            with pytest.raises(trio.BrokenResourceError):
                await channel.receive()
            assert channel.close_reason == "the server failed"
        for path, status in (("early", 500), ("forget", 500), ("decline", 403)):
            with pytest.raises(ServerRefused, match=str(status)):
                async with open_websocket_channel(f"{server.urls[0]}/{path}"):
                    pass
        assert (await get(server.port, "/"))[0] == 200
    assert sum(each.levelno == logging.ERROR for each in caplog.records) == 2


# --- stopping and running out -------------------------------------------------------------


async def test_a_server_that_stops_tells_everybody_and_is_gone() -> None:
    codes: list[int | None] = []

    async def be_told(url: str, task_status: trio.TaskStatus[None]) -> None:
        async with open_websocket_channel(url) as channel:
            task_status.started()
            with pytest.raises(trio.EndOfChannel):
                await channel.receive()
            assert channel.close_reason == http.STOPPING
            closed = channel._websocket.closed
            codes.append(None if closed is None else closed.code)

    async with trio.open_nursery() as nursery:
        async with open_server() as server:
            for path in ("join", f"{SECRET}/webrtc-bootstrap-root"):
                await nursery.start(be_told, f"{server.urls[0]}/{path}")
            idle = await raw(server.port)
        assert await read_all(idle) == b""
        await idle.aclose()
        with pytest.raises(OSError, match=r"connect"):
            await raw(server.port)
    assert codes == [1001, 1001]


OUT_OF_DESCRIPTORS = """
    import errno, os, resource, sys
    import trio
    from trio_overlay.channels.websocket import open_websocket_channel
    from trio_overlay.errors import ServerRefused
    from trio_overlay.signaling.server import serve_signaling

    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))

    async def main():
        async with trio.open_nursery() as nursery:
            server = await nursery.start(lambda task_status: serve_signaling(
                "secret", port=0, max_connections=100_000, task_status=task_status))
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 256, "raised to the hard one"
            url = server.urls[0] + "/join"
            async with open_websocket_channel(url):
                # The dialler needs a socket, then the server needs one more: let it have none.
                client = await trio.open_tcp_stream("127.0.0.1", server.port)
                await client.send_all(b"GET /healthz HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
                hog = []
                waiting = trio.socket.socket()
                while True:
                    try:
                        hog.append(os.open(os.devnull, os.O_RDONLY))
                    except OSError as error:
                        assert error.errno == errno.EMFILE
                        break
                await waiting.connect(("127.0.0.1", server.port))
                stream = trio.SocketStream(waiting)
                answer = b""
                while chunk := await stream.receive_some():
                    answer += chunk
                assert answer.startswith(b"HTTP/1.1 503 "), answer
                assert b"full" in answer, answer
                for descriptor in hog:
                    os.close(descriptor)
            await stream.aclose()
            async with open_websocket_channel(url):
                print("the server lives")
            nursery.cancel_scope.cancel()

    with_timeout = lambda: trio.run(main)
    with_timeout()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of descriptors")
def test_without_descriptors_joins_are_refused_and_the_server_lives() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(OUT_OF_DESCRIPTORS)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("the server lives\n", 0), done.stderr
