"""The HTTP half of the server's port: one request a connection, parsed with h11.

A request for a WebSocket is checked and handed on; everything else is a page.
"""

from __future__ import annotations

import base64
import binascii
import http
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import h11
import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.channels.network import UpgradeRequest
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.channels.websocket import (
    GOING_AWAY,
    NORMAL,
    WebSocketChannel,
    aclose_shielded,
    serve_websocket_channel,
)
from trio_overlay.errors import UsageError
from trio_overlay.signaling import limits
from trio_overlay.signaling.pages import Page, Pages, text_page

LINGER_TIMEOUT: Final = 1.0
"""Seconds for a client to read our answer before the socket is closed for good."""

STOPPING: Final = "the server is stopping"

_CHUNK_SIZE: Final = 2**16
_HEAD_CHUNK_SIZE: Final = 2**12

logger = logging.getLogger(__name__)


async def serve_http(
    stream: trio.SocketStream,
    pages: Pages,
    handle_upgrade: Callable[[UpgradeRequest], Awaitable[None]],
) -> None:
    """Serve the one request of a connection, and close *stream*.

    Nothing that a client does is raised. When this is cancelled, a WebSocket is closed with 1001.
    """
    try:
        connection = _HttpConnection(stream)
        with trio.move_on_after(limits.HEAD_TIMEOUT) as head_scope:
            try:
                request = await connection.read_request()
            except _BadRequest as error:
                await connection.respond(text_page(error.status, f"{error}\n"))
                return
        if head_scope.cancelled_caught:
            logger.info("%s took too long over its request", connection.remote)
            await connection.respond(text_page(408, "the request took too long\n"))
        elif request is None:
            return
        elif request.wants_websocket:
            await _serve_upgrade(connection, request, handle_upgrade)
        elif request.method not in ("GET", "HEAD"):
            await connection.respond(
                text_page(405, "only GET and HEAD are allowed here\n"), [("Allow", "GET, HEAD")]
            )
        else:
            page = await pages.get(request.path)
            await connection.respond(page, with_body=request.method == "GET")
    except trio.BrokenResourceError:
        pass  # the client is gone
    finally:
        await trio.aclose_forcefully(stream)


async def refuse_connection(stream: trio.SocketStream, reason: str) -> None:
    """Answer 503 with *reason* to whoever is there, unheard, and close *stream*."""
    try:
        await _HttpConnection(stream).respond(text_page(503, f"{reason}\n"), [("Retry-After", "5")])
    except trio.BrokenResourceError:
        pass
    finally:
        await trio.aclose_forcefully(stream)


class _BadRequest(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Request:
    """The head of a request, checked."""

    def __init__(self, event: h11.Request) -> None:
        self.method = event.method.decode("ascii")
        target = event.target.decode("ascii", "replace")
        if not target.startswith("/"):
            # The absolute form that proxies use: http://host/path
            _, _, rest = target.partition("://")
            target = "/" + rest.partition("/")[2]
        self.path, _, self.query = target.partition("?")
        self._headers: dict[bytes, list[bytes]] = {}
        for name, value in event.headers:
            self._headers.setdefault(bytes(name), []).append(bytes(value))
        self.wants_websocket = (
            self.method == "GET"
            and b"websocket" in self._tokens(b"upgrade")
            and b"upgrade" in self._tokens(b"connection")
        )

    def websocket_key(self) -> bytes:
        """The client's key for the handshake.

        _BadRequest: this is no handshake of RFC 6455.
        """
        if self._headers.get(b"sec-websocket-version") != [b"13"]:
            raise _BadRequest(426, "this server speaks WebSocket version 13")
        keys = self._headers.get(b"sec-websocket-key", [])
        try:
            if [len(base64.b64decode(key, validate=True)) for key in keys] == [16]:
                return keys[0]
        except binascii.Error:
            pass
        raise _BadRequest(400, "a WebSocket handshake has a Sec-WebSocket-Key of 16 bytes")

    def _tokens(self, name: bytes) -> list[bytes]:
        joined = b",".join(self._headers.get(name, []))
        return [token.strip().lower() for token in joined.split(b",")]


class _HttpConnection:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.remote = _name_of(stream)
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.MAX_HEAD_SIZE)

    @property
    def trailing_data(self) -> bytes:
        """What was read after the head of the request."""
        return self._http.trailing_data[0]

    async def read_request(self) -> _Request | None:
        """The request; None when the client goes without one.

        _BadRequest: it is no HTTP request, or too long.
        """
        try:
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    # Little by little: h11 counts only what makes no whole head yet.
                    self._http.receive_data(await self.stream.receive_some(_HEAD_CHUNK_SIZE))
                elif isinstance(event, h11.Request):
                    return _Request(event)
                else:
                    return None
        except h11.RemoteProtocolError as error:
            logger.info("%s sent no HTTP request: %s", self.remote, error)
            raise _BadRequest(error.error_status_hint, "this is no HTTP request") from None

    async def respond(
        self, page: Page, headers: list[tuple[str, str]] | None = None, *, with_body: bool = True
    ) -> None:
        """Send *page*, and wait a moment for the client to take it and hang up.

        trio.BrokenResourceError: the client is gone.
        """
        try:
            with trio.move_on_after(limits.RESPONSE_TIMEOUT):
                await self.stream.send_all(self._head(page, headers or []))
                if with_body:
                    await self._send_body(page)
        finally:
            if page.file is not None:
                page.file.close()
        with trio.move_on_after(LINGER_TIMEOUT):
            # Closed with something unread in it, the socket would send a reset, and the client
            # throw away our answer.
            await self.stream.send_eof()
            while await self.stream.receive_some(_CHUNK_SIZE):
                pass

    def _head(self, page: Page, headers: list[tuple[str, str]]) -> bytes:
        # Written by hand: h11 lets nothing be said before a request was understood.
        lines = [
            f"HTTP/1.1 {page.status} {_phrase(page.status)}",
            f"Content-Type: {page.content_type}",
            f"Content-Length: {page.size}",
            "Connection: close",
            "X-Content-Type-Options: nosniff",
            *(f"{name}: {value}" for name, value in headers),
            "\r\n",
        ]
        return "\r\n".join(lines).encode("ascii")

    async def _send_body(self, page: Page) -> None:
        if page.file is None:
            await self.stream.send_all(page.body)
            return
        left = page.size
        while left:
            try:
                chunk = await trio.to_thread.run_sync(page.file.read, min(left, _CHUNK_SIZE))
            except OSError as error:
                logger.warning("a file cannot be read to its end: %s", error)
                return
            if not chunk:
                return  # the file has become shorter; the client sees that something is missing
            await self.stream.send_all(chunk)
            left -= len(chunk)


class _HttpUpgradeRequest(UpgradeRequest):
    def __init__(
        self, connection: _HttpConnection, request: _Request, key: bytes, nursery: trio.Nursery
    ) -> None:
        self.path = request.path
        self.query = request.query
        self.remote = connection.remote
        self.channel: WebSocketChannel | None = None
        self.is_answered = False
        self._connection = connection
        self._key = key
        self._nursery = nursery

    async def accept(self) -> Channel:
        self._answer()
        # Only what has been checked is handed on: wsproto stumbles over some strange heads.
        head = (
            b"GET / HTTP/1.1\r\nHost: trio-overlay\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: " + self._key + b"\r\n\r\n"
        )
        replay = head + self._connection.trailing_data
        channel: WebSocketChannel = await self._nursery.start(
            serve_websocket_channel, self._connection.stream, replay
        )
        self.channel = channel
        return channel

    async def reject(self, status: int, reason: str) -> None:
        if not 400 <= status <= 599:
            raise UsageError(f"a request is rejected with a status from 400 to 599, not {status}")
        self._answer()
        await self._connection.respond(text_page(status, f"{reason}\n"))

    def _answer(self) -> None:
        if self.is_answered:
            raise UsageError("this request has been answered already")
        self.is_answered = True


async def _serve_upgrade(
    connection: _HttpConnection,
    request: _Request,
    handle_upgrade: Callable[[UpgradeRequest], Awaitable[None]],
) -> None:
    try:
        key = request.websocket_key()
    except _BadRequest as error:
        await connection.respond(
            text_page(error.status, f"{error}\n"), [("Sec-WebSocket-Version", "13")]
        )
        return
    async with open_background_nursery() as nursery:
        upgrade = _HttpUpgradeRequest(connection, request, key, nursery)
        code, reason = GOING_AWAY, STOPPING
        try:
            await handle_upgrade(upgrade)
            code, reason = NORMAL, ""
        except Exception:
            # A defect of a handler, ours or the embedding program's: it must not take everybody
            # else's connection with it.
            logger.exception("serving %s failed", connection.remote)
            code, reason = 1011, "the server failed"
        finally:
            if upgrade.channel is not None:
                await aclose_shielded(upgrade.channel, reason, code=code)
        if not upgrade.is_answered:
            await upgrade.reject(500, "the server failed")


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Refused"


def _name_of(stream: trio.SocketStream) -> str:
    try:
        host, port, *_ = stream.socket.getpeername()
    except (OSError, ValueError):
        return "somebody who is gone"
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
