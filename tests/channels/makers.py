"""Makers of connected channels, for the one suite that all kinds of channel must pass.

To add a kind: write an async context manager that gives a `Pair`, and add a `Maker` to `MAKERS`.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from tests.channels import peers
from trio_overlay.channels import webrtc
from trio_overlay.channels.bridge import BridgeChoice
from trio_overlay.channels.channel import Channel
from trio_overlay.channels.memory import memory_channel_pair
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.channels.websocket import (
    WebSocketChannel,
    limit_socket_buffers,
    open_websocket_channel,
    serve_websocket_channel,
)


@dataclass(frozen=True)
class Pair:
    """Two ends of an open connection. Whoever made them closes what the test leaves open."""

    a: Channel
    b: Channel
    kill_b: Callable[[], Awaitable[None]]
    """End *b* as if its process had died: no farewell, and nobody runs its cleanup."""


@dataclass(frozen=True)
class Maker:
    name: str
    open: Callable[[], AbstractAsyncContextManager[Pair]]

    # What this kind cannot do; the suite then expects less, or passes the test over.
    carries_reasons: bool = True
    """What is said to `aclose` is the `close_reason` at the other end."""
    carries_empty_frames: bool = True
    sends_at_once: bool = True
    """`send_nowait` sends, when there is room."""
    bulk_size: int = 100_000_000
    """Bytes for the test of backpressure."""
    marks: tuple[pytest.MarkDecorator, ...] = ()


@asynccontextmanager
async def memory_pair() -> AsyncIterator[Pair]:
    a, b = memory_channel_pair()

    async def kill_b() -> None:
        b.kill()

    yield Pair(a, b, kill_b)
    await a.aclose()
    await b.aclose()


@asynccontextmanager
async def websocket_pair() -> AsyncIterator[Pair]:
    """The client is *a*."""
    async with open_websocket_ends() as (client, server):
        yield Pair(client, server, lambda: reset(server))


@asynccontextmanager
async def websocket_pair_from_server() -> AsyncIterator[Pair]:
    async with open_websocket_ends() as (client, server):
        yield Pair(server, client, lambda: reset(client))


@asynccontextmanager
async def open_websocket_ends() -> AsyncIterator[tuple[WebSocketChannel, WebSocketChannel]]:
    """Client and server of a WebSocket over a loopback socket."""
    accepted: list[WebSocketChannel] = []
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with open_background_nursery() as nursery, listener:
        has_accepted = trio.Event()

        async def accept() -> None:
            stream = await listener.accept()
            limit_socket_buffers(stream)
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += await stream.receive_some()
            accepted.append(await nursery.start(serve_websocket_channel, stream, head))
            has_accepted.set()

        nursery.start_soon(accept)
        port = listener.socket.getsockname()[1]
        async with open_websocket_channel(f"ws://127.0.0.1:{port}/any/path?query") as client:
            await has_accepted.wait()
            yield client, accepted[0]
            # Closed by both at once: neither waits for the other to read.
            async with trio.open_nursery() as closers:
                closers.start_soon(accepted[0].aclose)
                closers.start_soon(client.aclose)


def stream_of(channel: WebSocketChannel) -> trio.SocketStream:
    """The socket under *channel*, for tests that misuse it."""
    stream = channel._wire._stream
    assert isinstance(stream, trio.SocketStream)
    return stream


async def reset(channel: WebSocketChannel) -> None:
    """Close the socket under *channel* with a TCP reset, as a dying process does."""
    stream = stream_of(channel)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(stream)


def webrtc_maker(bridge: BridgeChoice, *, from_acceptor: bool = False) -> Maker:
    """Two peers of ours over *bridge*; *a* is the initiator unless *from_acceptor*."""

    @asynccontextmanager
    async def webrtc_pair() -> AsyncIterator[Pair]:
        with pytest.MonkeyPatch.context() as patches:
            # A close takes as long as it takes: what was sent before arrives on any machine.
            patches.setattr(webrtc, "LINGER", 60)
            patches.setattr(webrtc, "GREETING_TIMEOUT", 60)
            peers.ask_for_life(patches)
            async with peers.open_pair(bridge) as channels:
                a, b = channels[::-1] if from_acceptor else channels

                async def kill_b() -> None:
                    peers.silence(b)
                    peers.expect_life(patches)

                yield Pair(a, b, kill_b)

    return Maker(
        f"webrtc-{bridge}{'-from-acceptor' if from_acceptor else ''}",
        webrtc_pair,
        bulk_size=12_000_000,
        marks=(pytest.mark.webrtc,),
    )


MAKERS = (
    Maker("memory", memory_pair),
    Maker("websocket", websocket_pair, sends_at_once=False),
    Maker("websocket-from-server", websocket_pair_from_server, sends_at_once=False),
    webrtc_maker("stepped"),
    webrtc_maker("stepped", from_acceptor=True),
    *([] if sys.version_info >= (3, 14) else [webrtc_maker("trio-asyncio")]),
)
