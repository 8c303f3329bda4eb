"""Channels over WebSockets, client side and server side, on trio-websocket.

trio-websocket alone does not keep the promises of `Channel`: a cancelled send leaves half a
frame, a close waits for the other end for as long as it likes, a close it begins for a reason of
its own leaves the socket open. So it never sees the real stream but a `_Wire`, on which sending
does not wait and closing is bounded; backpressure is applied before a frame is handed over.
"""

from __future__ import annotations

import logging
import math
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final, TypeAlias
from urllib.parse import quote, urlsplit

import trio
import trio_websocket
from wsproto.frame_protocol import FrameProtocol
from wsproto.utilities import LocalProtocolError

from trio_overlay.channels.channel import Channel, Frame
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import MessageTooLarge, ServerRefused, ServerUnreachable, UsageError

MAX_FRAME_SIZE: Final = 2**20
"""The largest frame either way; nothing that peers of the five systems say comes near it."""

CONNECT_TIMEOUT: Final = 20.0
"""Seconds for name, TCP, TLS and handshake together."""

CLOSE_TIMEOUT: Final = 2.0
"""Seconds for the last frames to leave and the other end to answer our close."""

FAREWELL_TIMEOUT: Final = 1.0
"""The same when the caller was cancelled and waits only for decency's sake."""

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
POLICY_VIOLATION: Final = 1008
MESSAGE_TOO_BIG: Final = 1009
_ABNORMAL: Final = 1006  # never sent: what a connection that broke is said to have closed with
_ORDERLY: Final = frozenset({NORMAL, GOING_AWAY, 1005})  # 1005: a close frame without a code

_MAX_UNSENT: Final = 2**16
"""A frame is taken when less than this is waiting for the socket."""

_MAX_BYTES_WITHOUT_MESSAGE: Final = 16 * MAX_FRAME_SIZE
"""What may come in before a message is complete: trio-websocket counts the bytes of a message
but not its fragments, and empty ones for ever would fill the memory. The most wasteful honest
message, one byte a fragment, takes 7 MiB."""

_READ_SIZE: Final = 2**16
_SOCKET_BUFFER: Final = 2**19
"""Left alone the kernel grows a socket's buffers to megabytes, and senders would not wait."""

_CLOSE_OPCODE: Final = 0x88
_PONG_OPCODE: Final = 0x8A

logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_websocket_channel(
    url: str,
    *,
    ssl_context: ssl.SSLContext | None = None,
    connect_timeout: float = CONNECT_TIMEOUT,
    max_frame_size: int = MAX_FRAME_SIZE,
) -> AsyncIterator[WebSocketChannel]:
    """A channel to the WebSocket server at *url*, closed when the block is left.

    *ssl_context* is for ``wss://`` and defaults to the system's certificates. Leaving the block
    takes at most `CLOSE_TIMEOUT`, or `FAREWELL_TIMEOUT` when cancelled. No error's message holds
    the path of *url*, for a path can hold a secret.

    UsageError: *url* is no WebSocket URL.
    ServerUnreachable: nobody listens there, no WebSocket server does, or none that answers
        within *connect_timeout*.
    ServerRefused: the server said no; the message has its status and reason.
    """
    address = _Address(url, ssl_context)
    async with open_background_nursery() as nursery:
        channel = await _dial(nursery, address, connect_timeout, max_frame_size)
        try:
            yield channel
        finally:
            await aclose_shielded(channel)


async def serve_websocket_channel(
    stream: trio.abc.Stream,
    request: bytes,
    *,
    max_frame_size: int = MAX_FRAME_SIZE,
    task_status: trio.TaskStatus[WebSocketChannel] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept the WebSocket that a client asked for on *stream*; for `nursery.start`.

    Gives the open channel and runs until it has ended, by either end's doing. *request* is all
    that has been read from *stream*: a handshake that wsproto is known to accept (the caller
    has checked it), and whatever came after it. Owns *stream* from the call on: however this
    ends, *stream* is closed. Cancelled, it leaves `FAREWELL_TIMEOUT` for a last `aclose` of the
    channel, shielded by its caller.

    trio.BrokenResourceError: the client was gone before it was accepted.
    """

    async def accept(nursery: trio.Nursery, wire: _Wire) -> trio_websocket.WebSocketConnection:
        proposal = await trio_websocket.wrap_server_stream(
            nursery, wire, max_message_size=max_frame_size, receive_buffer_size=_READ_SIZE
        )
        return await proposal.accept()

    try:
        await _run(_Wire(stream, request), accept, max_frame_size, task_status)
    except _HandshakeFailed as error:
        raise trio.BrokenResourceError(str(error)) from error.__cause__


async def aclose_shielded(
    channel: WebSocketChannel, reason: str = "", *, code: int = NORMAL
) -> None:
    """Close *channel* with its courtesies, even when cancelled: then in `FAREWELL_TIMEOUT`."""
    is_cancelled = trio.current_effective_deadline() == -math.inf
    limit = FAREWELL_TIMEOUT if is_cancelled else CLOSE_TIMEOUT
    with trio.CancelScope(deadline=trio.current_time() + limit, shield=True):
        await channel.aclose(reason, code=code)


class WebSocketChannel(Channel):
    """One end of a WebSocket. Made by `open_websocket_channel` and `serve_websocket_channel`."""

    def __init__(
        self, websocket: trio_websocket.WebSocketConnection, wire: _Wire, max_frame_size: int
    ) -> None:
        self.max_frame_size = max_frame_size
        self._websocket = websocket
        self._wire = wire
        self._reason: str | None = None
        """Set by our `aclose` or our verdict over the other end; else trio-websocket knows."""
        self._is_closed = False
        self._is_receiving = False
        self._send_lock = trio.StrictFIFOLock()  # senders are served in the order they came
        self._waiting: set[trio.CancelScope] = set()

    @property
    def close_reason(self) -> str | None:
        if self._reason is not None:
            return self._reason
        closed = self._websocket.closed
        if closed is not None and not (closed.code == _ABNORMAL and self._wire.failure):
            return _in_words(closed)
        return self._wire.failure

    async def send(self, value: Frame) -> None:
        size = _size(value)
        if size > self.max_frame_size:
            await trio.lowlevel.checkpoint()
            raise MessageTooLarge(
                f"a frame of {size} bytes is over this channel's limit of {self.max_frame_size}"
            )
        with self._until_closed():
            async with self._send_lock:
                await self._wire.wait_for_room()
                try:
                    # Cancelled before the wire has the frame, nothing of it leaves. There is no
                    # checkpoint after that.
                    await self._websocket.send_message(value)
                except (trio_websocket.ConnectionClosed, LocalProtocolError):
                    raise trio.BrokenResourceError(self.close_reason) from None

    async def receive(self) -> Frame:
        if self._is_receiving:
            raise trio.BusyResourceError("another task is receiving from this channel")
        self._is_receiving = True
        try:
            with self._until_closed():
                frame = await self._websocket.get_message()
        except trio_websocket.ConnectionClosed:
            if self._reason is None and _is_orderly(self._websocket.closed):
                raise trio.EndOfChannel from None
            raise trio.BrokenResourceError(self.close_reason) from None
        finally:
            self._is_receiving = False
        self._wire.count_since_message = 0
        if isinstance(frame, str) and _size(frame) > self.max_frame_size:
            # trio-websocket counts characters. It takes three times as many bytes to get here.
            await self._fail("a text frame over the size limit", MESSAGE_TOO_BIG)
            raise trio.BrokenResourceError(self.close_reason)
        return frame

    async def aclose(self, reason: str = "", *, code: int = NORMAL) -> None:
        """Close this end, with *reason* and a WebSocket close *code*.

        Takes at most `CLOSE_TIMEOUT`. A *reason* is cut at 123 bytes on the wire.
        """
        if not self._is_closed:
            if self.close_reason is None:
                self._reason = reason or "closed by this end"
            self._is_closed = True
            for scope in self._waiting:
                scope.cancel()
        await self._end(reason, code)

    async def _fail(self, reason: str, code: int) -> None:
        self._reason = reason
        await self._end(reason, code)

    async def _end(self, reason: str, code: int) -> None:
        try:
            with trio.move_on_after(CLOSE_TIMEOUT):
                self._wire.is_closing = True
                await self._websocket.aclose(code, reason or None)
                self._wire.finish()
                await self._wire.finished.wait()
        finally:
            self._wire.kill()
            # It may be waiting to hand over a message that nobody will take.
            self._wire.reader.cancel()
            with trio.CancelScope(shield=True):  # a few ticks: closing the socket does not wait
                await self._wire.finished.wait()

    @contextmanager
    def _until_closed(self) -> Iterator[None]:
        """Turn our own `aclose` while the block waits into `trio.ClosedResourceError`."""
        if self._is_closed:
            raise trio.ClosedResourceError(self.close_reason)
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                yield
            except trio.BrokenResourceError:
                # Woken by our own closing down, not by the other end's.
                if self._is_closed:
                    raise trio.ClosedResourceError(self.close_reason) from None
                raise
            finally:
                self._waiting.discard(scope)
        if scope.cancelled_caught:
            raise trio.ClosedResourceError(self.close_reason)


# --- how one comes up ---------------------------------------------------------------------

_Handshake: TypeAlias = Callable[
    [trio.Nursery, "_Wire"], Awaitable[trio_websocket.WebSocketConnection]
]


class _HandshakeFailed(Exception):
    """There is no WebSocket; the cause, where there is one, is trio-websocket's."""


class _Address:
    """A URL taken apart, every part checked."""

    def __init__(self, url: str, ssl_context: ssl.SSLContext | None) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
            host = parts.hostname
            self.host_header = parts.netloc.rpartition("@")[2].encode("idna").decode("ascii")
        except ValueError as error:  # UnicodeError is one
            # Neither the URL nor the cause is shown whole: the path can hold a secret.
            raise UsageError(f"no WebSocket URL: {_plain(str(error), 100)}") from None
        if parts.scheme not in ("ws", "wss") or not host:
            raise UsageError(
                f"a WebSocket URL begins with ws://HOST or wss://HOST, not {parts.scheme}://{host}"
            )
        self.is_tls = parts.scheme == "wss"
        self.ssl_context = ssl_context
        self.host = host
        self.port = port or (443 if self.is_tls else 80)
        self.resource = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        if parts.query:
            self.resource += "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~")

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


async def _dial(
    nursery: trio.Nursery, address: _Address, timeout: float, max_frame_size: int
) -> WebSocketChannel:
    async def shake_hands(nursery: trio.Nursery, wire: _Wire) -> trio_websocket.WebSocketConnection:
        return await trio_websocket.wrap_client_stream(
            nursery,
            wire,  # type: ignore[arg-type]  # the annotation is narrower than the code
            address.host_header,
            address.resource,
            max_message_size=max_frame_size,
            receive_buffer_size=_READ_SIZE,
        )

    with trio.move_on_after(timeout):
        try:
            stream = await _open_stream(address)
            channel: WebSocketChannel = await nursery.start(
                _run, _Wire(stream), shake_hands, max_frame_size
            )
            return channel
        except (OSError, trio.BrokenResourceError) as error:
            raise ServerUnreachable(f"{address} cannot be reached: {_cause_of(error)}") from error
        except UnicodeError as error:
            raise UsageError(f"{address.host!r} is no host name: {_plain(error)}") from None
        except _HandshakeFailed as error:
            raise _why_no_handshake(address, error) from error.__cause__
    raise ServerUnreachable(f"{address} did not answer as a WebSocket server within {timeout:g} s")


async def _open_stream(address: _Address) -> trio.abc.Stream:
    stream = await trio.open_tcp_stream(address.host, address.port)
    try:
        limit_socket_buffers(stream)
        if not address.is_tls:
            return stream
        context = address.ssl_context or ssl.create_default_context()
        tls = trio.SSLStream(stream, context, server_hostname=address.host, https_compatible=True)
        await tls.do_handshake()
        return tls
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


def limit_socket_buffers(stream: trio.SocketStream) -> None:
    """Keep the kernel from buffering megabytes for *stream*: backpressure would come too late."""
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        with suppress(OSError):  # the socket may be dead already; whoever uses it will see
            stream.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)


def _why_no_handshake(address: _Address, error: _HandshakeFailed) -> Exception:
    cause = error.__cause__
    if isinstance(cause, trio_websocket.ConnectionRejected):
        said = f"status {cause.status_code}"
        body = _plain((cause.body or b"").decode("utf-8", "replace"))
        if cause.status_code >= 400:
            return ServerRefused(f"{address} refused: {said}" + (f", {body}" if body else ""))
        return ServerUnreachable(f"{address} is no WebSocket server: it answered with {said}")
    return ServerUnreachable(f"{address} is no WebSocket server: {error}")


async def _run(
    wire: _Wire,
    shake_hands: _Handshake,
    max_frame_size: int,
    task_status: trio.TaskStatus[WebSocketChannel],
) -> None:
    """All tasks of one WebSocket, from its handshake until its stream is closed.

    _HandshakeFailed: it did not come up.
    """
    failure: _HandshakeFailed | None = None
    is_up = False
    async with trio.open_nursery() as watch:
        watch.start_soon(wire.watch_for_cancellation)
        # Cancelled with its owner, a channel would be gone before the owner can say goodbye.
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wire.write)
                try:
                    async with trio.open_nursery() as nursery_of_reader:
                        wire.reader = nursery_of_reader.cancel_scope
                        with wire.opening:
                            websocket = await shake_hands(nursery_of_reader, wire)
                            is_up = True
                        if is_up:
                            wire.websocket = websocket
                            channel = WebSocketChannel(websocket, wire, max_frame_size)
                            task_status.started(channel)
                except* trio_websocket.ConnectionRejected as group:
                    failure = _HandshakeFailed("it refused")
                    failure.__cause__ = group.exceptions[0]
                except* Exception as group:
                    # trio-websocket's reader, on bytes of a stranger: a ping after our close is
                    # one of several ways to make it raise. That ends this one connection.
                    logger.debug("trio-websocket failed", exc_info=group)
                    wire.fail(f"the connection failed: {_plain(group.exceptions[0])}")
                # The reader has ended: there is nothing more to come.
                wire.finish()
                if not is_up:
                    wire.kill()
        watch.cancel_scope.cancel()
    if not is_up:
        await trio.lowlevel.checkpoint_if_cancelled()
        raise failure or _HandshakeFailed(wire.failure or "it closed the connection")


# --- what trio-websocket stands on --------------------------------------------------------


class _Wire(trio.abc.Stream):
    """A stream on which sending never waits and nothing is torn, in front of a real one.

    What is sent is kept whole and written by `write`, a task of its own, so that no cancellation
    of a sender meets half a frame. Senders wait in `wait_for_room` before they make a frame.
    trio-websocket must have its `StrictFIFOLock` to itself for moments only.
    """

    def __init__(self, stream: trio.abc.Stream, received: bytes = b"") -> None:
        self.websocket: trio_websocket.WebSocketConnection | None = None
        self.failure: str | None = None
        """Why the real stream is of no more use, in words."""
        self.reader = trio.CancelScope()
        """Around trio-websocket's own task."""
        self.opening = trio.CancelScope()
        """Around the handshake: trio-websocket waits for ever when the stream ends within it."""
        self.is_closing = False
        """Our own end has begun to close."""
        self.finished = trio.Event()
        """The real stream is closed."""
        self.count_since_message = 0
        self._stream = stream
        head, end_of_head, self._rest = received.partition(b"\r\n\r\n")
        self._head = head + end_of_head
        """What was read from the real stream before; `_rest` came after it."""
        self._answered = trio.Event()
        self._frames: list[bytes] = []
        self._count_unsent = 0
        self._pong = b""
        """The newest only, as RFC 6455 5.5.3 allows: pings from who does not read fill nothing."""
        self._has_said_close = False
        self._must_end = False
        self._is_deaf = False
        """The other end takes no more bytes; there may still be some to read."""
        self._is_finishing = False
        self._life = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._read_lock = trio.Lock()
        self._writer = trio.lowlevel.ParkingLot()
        self._senders = trio.lowlevel.ParkingLot()

    # What trio-websocket calls

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Take *data*, which is one frame or one HTTP head. No checkpoint."""
        self._answered.set()
        if self._is_deaf or self._is_finishing:
            # Nothing is said to trio-websocket: it would stop reading, and what the other end
            # said before it went is still to be read.
            return
        if data[0] == _PONG_OPCODE:
            self._pong = b"" if self._has_said_close else bytes(data)
        else:
            self._has_said_close = data[0] == _CLOSE_OPCODE
            self._frames.append(bytes(data))
            self._count_unsent += len(data)
        self._writer.unpark()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._head:
            await trio.lowlevel.checkpoint()
            data, self._head = self._head, b""
            return data
        if self._rest:
            # Given with the head, trio-websocket would not look at it before more came.
            await self._answered.wait()
            data, self._rest = self._rest, b""
            return data
        self._finish_if_closed()
        data = b""
        async with self._read_lock:
            if self._is_finishing:
                raise trio.ClosedResourceError
            with trio.CancelScope() as self._reading:
                try:
                    data = bytes(await self._stream.receive_some(max_bytes))
                except trio.BrokenResourceError as error:
                    self.fail(f"the connection was lost: {_cause_of(error)}")
                    raise
        if self._is_finishing:
            raise trio.ClosedResourceError
        if not data:
            self.opening.cancel()
        self.count_since_message += len(data)
        if self.count_since_message > _MAX_BYTES_WITHOUT_MESSAGE:
            self.fail("many fragments that make no message")
            raise trio.BrokenResourceError(self.failure)
        return data

    async def aclose(self) -> None:
        """trio-websocket wants no more of the stream."""
        self.opening.cancel()
        self.finish()
        await trio.lowlevel.checkpoint()

    # What channels and `_run` call

    async def watch_for_cancellation(self) -> None:
        """Cancelled, leave the owner `FAREWELL_TIMEOUT` for its close, but no more."""
        try:
            await trio.sleep_forever()
        finally:
            self._must_end = True
            if self.websocket is None:
                self.kill()
            elif self.finished.is_set():
                self.reader.cancel()
            else:
                limit = trio.current_time() + FAREWELL_TIMEOUT
                self._life.deadline = min(self._life.deadline, limit)

    async def wait_for_room(self) -> None:
        """Wait until a frame may be made.

        trio.BrokenResourceError: nothing can be sent any more.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._count_unsent >= _MAX_UNSENT and not (self._is_deaf or self._is_finishing):
            await self._senders.park()
        if self._is_deaf or self._is_finishing:
            raise trio.BrokenResourceError(self.failure or "the connection has ended")

    def finish(self) -> None:
        """Write what was taken, say goodbye if nobody has, and close; within `CLOSE_TIMEOUT`."""
        if self._is_finishing:
            return
        closed = None if self.websocket is None else self.websocket.closed
        if closed is not None and closed.code != _ABNORMAL and not self._has_said_close:
            # trio-websocket says nothing to those who break the protocol.
            is_client = self.websocket is not None and self.websocket.is_client
            frame = FrameProtocol(is_client, []).close(closed.code, closed.reason)
            self._frames.append(bytes(frame))
        self._is_finishing = True
        limit = trio.current_time() + CLOSE_TIMEOUT
        self._life.deadline = min(self._life.deadline, limit)
        self._reading.cancel()
        self._wake_all()

    def fail(self, reason: str) -> None:
        """Nothing more goes over this wire, either way."""
        self._note(reason)
        self.kill()

    def kill(self) -> None:
        """Close the real stream at once."""
        self._is_finishing = True
        self.opening.cancel()
        self._life.cancel()
        self._answered.set()
        self._reading.cancel()
        self._wake_all()

    async def write(self) -> None:
        """Write what is sent until `finish` or `kill`, then close the real stream."""
        try:
            with self._life:
                try:
                    await self._write_until_finished()
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    self._note(f"the connection was lost: {_cause_of(error)}")
                    self._is_deaf = True
                    self._senders.unpark_all()
                    while not self._is_finishing:
                        await self._writer.park()
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._hang_up()
        finally:
            self._is_finishing = True
            self._reading.cancel()
            self._wake_all()
            try:
                await trio.aclose_forcefully(self._stream)
            finally:
                self.finished.set()
                if self._must_end:
                    self.reader.cancel()

    async def _write_until_finished(self) -> None:
        while True:
            if self._pong:
                data, self._pong = self._pong, b""
                await self._stream.send_all(data)
            elif self._frames:
                data = b"".join(self._frames)
                self._frames.clear()
                await self._stream.send_all(data)
                self._count_unsent -= len(data)
                self._senders.unpark_all()
            elif self._is_finishing:
                return
            else:
                await self._writer.park()

    async def _hang_up(self) -> None:
        """Close so that the other end can read our last words.

        A socket closed with unread data in it sends a reset, on which the other end throws away
        what it has not read. So: half a close, then read until the other end has closed too.
        """
        async with self._read_lock:
            if not isinstance(self._stream, trio.abc.HalfCloseableStream):
                await self._stream.aclose()
                return
            await self._stream.send_eof()
            while await self._stream.receive_some(_READ_SIZE):
                pass

    def _finish_if_closed(self) -> None:
        # With a verdict of its own trio-websocket reads on, on the client side for ever and into a
        # buffer that nobody empties. When it was the other end that closed, all has been read.
        if not self.is_closing and self.websocket is not None and self.websocket.closed is not None:
            self.finish()
            raise trio.ClosedResourceError

    def _note(self, reason: str) -> None:
        if self.failure is None:
            self.failure = reason

    def _wake_all(self) -> None:
        self._writer.unpark_all()
        self._senders.unpark_all()


# --- words --------------------------------------------------------------------------------


def _size(frame: Frame) -> int:
    if isinstance(frame, str):
        return len(frame) if frame.isascii() else len(frame.encode("utf-8"))
    if isinstance(frame, bytes):
        return len(frame)
    raise TypeError(f"a frame is str or bytes, not {type(frame).__name__}")


def _is_orderly(closed: trio_websocket.CloseReason | None) -> bool:
    # The other codes say that something failed at one end or the other.
    return closed is not None and (closed.code in _ORDERLY or closed.code >= 3000)


def _in_words(closed: trio_websocket.CloseReason) -> str:
    if closed.reason:
        return closed.reason
    match closed.code:
        case 1000 | 1005:
            return "closed by the other end"
        case 1001:
            return "the other end is going away"
        case 1006:
            return "the connection was lost"
        case code:
            return f"closed with code {code} ({closed.name})"


def _cause_of(error: BaseException) -> str:
    """What the operating system or the TLS library said; trio wraps it."""
    cause = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):  # one for each address that was tried
        cause = cause.exceptions[0]
    return _plain(cause)


def _plain(text: object, max_length: int = 200) -> str:
    """*text* on one line, without control characters, not too long: strangers wrote it."""
    line = " ".join(str(text).split())
    line = "".join(character for character in line if character.isprintable())
    return line if len(line) <= max_length else line[: max_length - 1] + "…"
