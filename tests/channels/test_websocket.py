"""What WebSocket channels promise beyond the contract that all channels share."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import ipaddress
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
import trio_websocket
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from tests.channels.makers import open_websocket_ends, stream_of
from trio_overlay.channels import websocket
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.channels.websocket import (
    WebSocketChannel,
    open_websocket_channel,
    serve_websocket_channel,
)
from trio_overlay.errors import ServerRefused, ServerUnreachable, UsageError

HEAD = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
Handler = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[int]:
    """The port of a TCP server that runs *handler* for each connection."""
    async with open_background_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def serve(stream: trio.SocketStream) -> None:
            async with stream:
                await handler(stream)

        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield listener.socket.getsockname()[1]


async def read_head(stream: trio.abc.ReceiveStream) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        received = await stream.receive_some()
        assert received, "hung up within the head"
        head += received
    return head


async def dial(port: int, **options: float) -> None:
    with trio.fail_after(60):
        async with open_websocket_channel(f"ws://127.0.0.1:{port}/hush-hush/x", **options):  # type: ignore[arg-type]
            pass


# --- dialling -----------------------------------------------------------------------------


async def test_where_nobody_listens_is_unreachable() -> None:
    with socket.socket() as bound:  # bound but not listening: nobody else gets the port
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:\d+ .*refused") as caught:
            await dial(bound.getsockname()[1])
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nnah", ServerRefused, "404, nah"),
        (b"HTTP/1.1 503 Full\r\nContent-Length: 0\r\n\r\n", ServerRefused, "status 503"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", ServerUnreachable, "no WebSocket"),
        (b"220 mail.example ESMTP\r\n", ServerUnreachable, "no WebSocket server"),
        (b"HTTP/1.1 404 \xff\x00\r\n\r\n", ServerUnreachable, "no WebSocket server"),
        (b"", ServerUnreachable, "closed the connection"),
    ],
)
async def test_a_server_that_is_none_of_ours_is_named(
    answer: bytes, error: type[Exception], message: str
) -> None:
    async def respond(stream: trio.SocketStream) -> None:
        await read_head(stream)
        await stream.send_all(answer)

    async with served(respond) as port:
        with pytest.raises(error, match=message) as caught:
            await dial(port)
    assert "hush" not in str(caught.value)


async def test_a_wrong_accept_key_is_no_websocket_server() -> None:
    async def respond(stream: trio.SocketStream) -> None:
        await read_head(stream)
        await stream.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: AAAA\r\n\r\n"
        )
        await trio.sleep_forever()

    async with served(respond) as port:
        with pytest.raises(ServerUnreachable, match="no WebSocket server"):
            await dial(port)


async def test_a_server_that_never_answers_is_given_up_in_time() -> None:
    async def say_nothing(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with served(say_nothing) as port:
        with pytest.raises(ServerUnreachable, match=r"within 0\.05 s"):
            await dial(port, connect_timeout=0.05)


async def test_a_dial_that_is_cancelled_leaves_as_cancelled() -> None:
    dialled = trio.Event()

    async def say_nothing(stream: trio.SocketStream) -> None:
        dialled.set()
        await trio.sleep_forever()

    async with served(say_nothing) as port, trio.open_nursery() as nursery:
        nursery.start_soon(dial, port)
        await dialled.wait()
        nursery.cancel_scope.cancel()
    assert nursery.cancel_scope.cancelled_caught


async def test_plain_text_where_tls_was_asked_for_is_unreachable() -> None:
    async def answer_plainly(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with served(answer_plainly) as port:
        with trio.fail_after(60), pytest.raises(ServerUnreachable, match="cannot be reached"):
            async with open_websocket_channel(f"wss://127.0.0.1:{port}/"):
                pass


@asynccontextmanager
async def tls_served(certificate: Path) -> AsyncIterator[int]:
    """The port of a WebSocket server over TLS that echoes one frame."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def echo(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        with contextlib.suppress(trio.BrokenResourceError, trio.EndOfChannel):
            head = await read_head(tls)
            async with open_background_nursery() as nursery:
                channel: WebSocketChannel = await nursery.start(serve_websocket_channel, tls, head)
                await channel.send(await channel.receive())
                await channel.receive()

    async with served(echo) as port:
        yield port


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(
        built.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


async def test_wss_with_a_trusted_certificate_carries_frames(certificate: Path) -> None:
    context = ssl.create_default_context(cafile=certificate)
    with trio.fail_after(60):
        async with (
            tls_served(certificate) as port,
            open_websocket_channel(f"wss://127.0.0.1:{port}/", ssl_context=context) as channel,
        ):
            await channel.send("over TLS")
            assert await channel.receive() == "over TLS"


async def test_wss_with_a_certificate_nobody_vouches_for_is_unreachable(certificate: Path) -> None:
    with trio.fail_after(60):
        async with tls_served(certificate) as port:
            with pytest.raises(ServerUnreachable, match="certificate"):
                async with open_websocket_channel(f"wss://127.0.0.1:{port}/"):
                    pass


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/",
        "ws:///x",
        "localhost:5000",
        "ws://h:99999/",
        "ws://[::1/",
        "",
        "ws://h:p",
    ],
)
async def test_what_is_no_websocket_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(UsageError):
        async with open_websocket_channel(url):
            pass


async def test_what_the_block_raises_leaves_as_itself() -> None:
    error = ZeroDivisionError("the caller's own")

    async def accept(stream: trio.SocketStream) -> None:
        await serve_websocket_channel(stream, await read_head(stream))

    async with served(accept) as port:
        with pytest.raises(ZeroDivisionError) as caught:
            async with open_websocket_channel(f"ws://127.0.0.1:{port}/"):
                raise error
    assert caught.value is error


async def test_leaving_the_block_by_a_cancel_still_says_goodbye() -> None:
    reasons: list[int | None] = []

    async def accept(stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            request = await trio_websocket.wrap_server_stream(nursery, stream)
            connection = await request.accept()
            with pytest.raises(trio_websocket.ConnectionClosed) as caught:
                await connection.get_message()
            reasons.append(caught.value.reason.code if caught.value.reason else None)
            heard.set()

    heard = trio.Event()
    with trio.fail_after(60):
        async with served(accept) as port:
            with trio.CancelScope() as scope:
                async with open_websocket_channel(f"ws://127.0.0.1:{port}/"):
                    scope.cancel()
                    await trio.sleep_forever()
            await heard.wait()
    assert reasons == [1000]


# --- against a foreign end ----------------------------------------------------------------


class RawEnd:
    """A WebSocket client without manners, on a stream in memory."""

    def __init__(self, stream: trio.abc.Stream, channel: WebSocketChannel) -> None:
        self.stream = stream
        self.channel = channel

    async def say(self, opcode: int, payload: bytes = b"", *, final: bool = True) -> None:
        head = bytes([(0x80 if final else 0) | opcode])
        size = len(payload)
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 2**16:
            head += bytes([0x80 | 126]) + struct.pack("!H", size)
        else:
            head += bytes([0x80 | 127]) + struct.pack("!Q", size)
        await self.stream.send_all(head + bytes(4) + payload)  # masked with zeros

    async def hear_close(self) -> tuple[int, str]:
        """Code and reason of the close frame, which must be the next and the last thing said."""
        heard = b""
        while chunk := await self.stream.receive_some():
            heard += chunk
        assert heard[0] == 0x88
        assert heard[1] == len(heard) - 2
        return int.from_bytes(heard[2:4], "big"), heard[4:].decode()


@asynccontextmanager
async def open_raw_end() -> AsyncIterator[RawEnd]:
    ours, theirs = memory_stream_pair()
    async with open_background_nursery() as nursery:
        with trio.fail_after(60):
            channel = await nursery.start(serve_websocket_channel, ours, HEAD)
            assert (await read_head(theirs)).startswith(b"HTTP/1.1 101")
            yield RawEnd(theirs, channel)


@pytest.mark.parametrize(
    ("opcode", "payload", "code"),
    [
        (0x3, b"", 1002),  # reserved
        (0xB, b"", 1002),
        (0x1, b"caf\xe9 ", 1007),  # no UTF-8
        (0x0, b"continues nothing", 1002),
    ],
)
async def test_who_breaks_the_protocol_is_told_so_and_closed(
    autojump_clock: trio.testing.MockClock, opcode: int, payload: bytes, code: int
) -> None:
    async with open_raw_end() as raw, trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await raw.channel.receive()

        nursery.start_soon(receive)
        await raw.say(opcode, payload)
        heard, reason = await raw.hear_close()
        assert heard == code
        assert reason
        await raw.stream.aclose()


async def test_a_frame_over_the_limit_breaks_the_channel_with_1009(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_raw_end() as raw, trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await raw.channel.receive()

        nursery.start_soon(receive)
        await raw.say(0x2, bytes(websocket.MAX_FRAME_SIZE + 1))
        code, reason = await raw.hear_close()
        assert code == 1009
        assert "size" in reason
        assert "size" in (raw.channel.close_reason or "")
        await raw.stream.aclose()


async def test_the_limit_counts_bytes_of_text_and_not_characters(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_raw_end() as raw, trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.BrokenResourceError, match="size"):
                await raw.channel.receive()

        nursery.start_soon(receive)
        text = "\u20ac" * (websocket.MAX_FRAME_SIZE // 3 + 1)
        await raw.say(0x1, text.encode())
        code, _ = await raw.hear_close()
        assert code == 1009
        await raw.stream.aclose()


async def test_empty_fragments_for_ever_end_the_channel(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "_MAX_BYTES_WITHOUT_MESSAGE", 60_000)
    async with open_raw_end() as raw:
        await raw.say(0x2, final=False)
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await raw.stream.send_all(bytes([0x00, 0x80, 0, 0, 0, 0]) * 1000)
        with pytest.raises(trio.BrokenResourceError):
            await raw.channel.receive()
        assert "fragments" in (raw.channel.close_reason or "")


async def test_a_ping_during_our_close_harms_nobody(autojump_clock: trio.testing.MockClock) -> None:
    async with open_raw_end() as raw, trio.open_nursery() as nursery:
        nursery.start_soon(raw.channel.aclose, "bye")
        await wait_all_tasks_blocked()
        await raw.say(0x9, b"are you there?")  # trio-websocket's reader fails on it
        assert await raw.hear_close() == (1000, "bye")
        await raw.stream.aclose()
    assert raw.channel.close_reason == "bye"


async def test_pings_are_answered_while_nobody_receives(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_raw_end() as raw:
        await raw.say(0x9, b"12")
        assert await raw.stream.receive_some() == b"\x8a\x0212"


async def test_a_reason_longer_than_the_protocol_allows_is_cut(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_raw_end() as raw, trio.open_nursery() as nursery:
        nursery.start_soon(raw.channel.aclose, "\u20ac" * 1000)
        code, reason = await raw.hear_close()
        assert (code, set(reason)) == (1000, {"\u20ac"})
        await raw.stream.aclose()


async def test_a_close_does_not_wait_for_a_peer_that_never_answers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_raw_end() as raw:
        began = trio.current_time()
        await raw.channel.aclose()
        assert trio.current_time() - began <= websocket.CLOSE_TIMEOUT


async def test_cancelled_with_its_owner_a_channel_is_gone_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        channel: WebSocketChannel = await nursery.start(serve_websocket_channel, ours, HEAD)
        # Two messages that nobody takes: trio-websocket's reader waits with the second.
        raw = RawEnd(theirs, channel)
        for _ in range(3):
            await raw.say(0x1, b"unread")
        await wait_all_tasks_blocked()
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began <= websocket.FAREWELL_TIMEOUT
    with pytest.raises(trio.BrokenResourceError):
        await theirs.send_all(b"x")


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_close_is_over_in_time_with_messages_unread(
    autojump_clock: trio.testing.MockClock, is_cancelled: bool
) -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        channel: WebSocketChannel = await nursery.start(serve_websocket_channel, ours, HEAD)
        raw = RawEnd(theirs, channel)
        for _ in range(3):
            await raw.say(0x1, b"unread")
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            if is_cancelled:
                scope.cancel()
            await channel.aclose()
        nursery.cancel_scope.deadline = trio.current_time() + 60
    assert not nursery.cancel_scope.cancelled_caught
    # The nursery has ended: no task waits with a message for a reader that will never come.


async def test_the_kernel_may_not_buffer_megabytes() -> None:
    async with open_websocket_ends() as ends:
        for channel in ends:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                # Linux doubles what it is told.
                size = stream_of(channel).getsockopt(socket.SOL_SOCKET, option)
                assert isinstance(size, int)
                assert size <= 2**20


async def test_a_client_that_is_gone_before_it_was_accepted_is_reported() -> None:
    ours, theirs = memory_stream_pair()
    await theirs.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await serve_websocket_channel(ours, b"GET / HTTP/1.1\r\n")


async def test_a_fin_without_a_close_frame_is_a_lost_connection() -> None:
    async with open_websocket_ends() as (client, server):
        await stream_of(server).send_eof()
        with trio.fail_after(60), pytest.raises(trio.BrokenResourceError):
            await client.receive()
        assert client.close_reason == "the connection was lost"


async def test_lone_surrogates_and_other_types_are_the_callers_fault() -> None:
    async with open_websocket_ends() as (client, server):
        with pytest.raises(ValueError, match="surrogates"):
            await client.send("\ud800")
        with pytest.raises(TypeError):
            await client.send(bytearray(b"x"))  # type: ignore[arg-type]
        await client.send("fine")
        assert await server.receive() == "fine"


async def test_a_hostile_server_cannot_fill_the_memory_of_a_client_that_does_not_look() -> None:
    sent = 0

    async def answer(stream: trio.SocketStream) -> None:
        nonlocal sent
        head = await read_head(stream)
        [key] = [
            line.split(b": ")[1]
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key")
        ]
        accept = base64.b64encode(
            hashlib.sha1(
                key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False
            ).digest()
        )
        await stream.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + b"\x83\x00"
        )
        try:
            while sent < 50_000_000:
                await stream.send_all(bytes(50_000))
                sent += 50_000
        except trio.BrokenResourceError:
            pass
        done.set()

    done = trio.Event()
    async with served(answer) as port:
        with trio.fail_after(60):
            async with open_websocket_channel(f"ws://127.0.0.1:{port}/") as channel:
                await done.wait()
                with pytest.raises(trio.BrokenResourceError):
                    await channel.receive()
