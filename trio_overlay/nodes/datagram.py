"""A datagram socket over a relay: ids for addresses, and otherwise as a UDP socket of Trio.

As peer-relay's `Socket`: the bytes, with the sender's port beside them, are the data of a message.
There is one socket to a relay. The original has no port of the receiver in its datagrams, and takes
all that comes; between ours it is in an extra key, and what is for another port is dropped.
"""

from __future__ import annotations

import errno
import logging
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple, TypeGuard

import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.nodes.relay import Relay, RelayMessage, open_relay, peer_id
from trio_overlay.nodes.streams import Stream
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.relay import PeerId

logger = logging.getLogger(__name__)

FAMILY = "peer-relay"
MAX_DATAGRAM_SIZE = 64_000
"""Bytes: about what UDP takes; as JSON they are four times as many."""
LOCALHOST = ("localhost", "127.0.0.1")
EPHEMERAL_PORTS = range(49152, 65536)

_sockets: trio.lowlevel.RunVar[dict[int, RelaySocket]] = trio.lowlevel.RunVar("relay sockets")
"""The sockets of this run of Trio, by their ports: what ``localhost`` reaches."""


class RelayAddress(NamedTuple):
    """Where a socket is; `RelaySocket.sendto` takes it, as it takes its first two alone."""

    id: PeerId
    port: int
    family: str = FAMILY


@asynccontextmanager
async def open_relay_socket(
    *, relay: Relay | None = None, **options: Any
) -> AsyncIterator[RelaySocket]:
    """A socket over *relay*, whose messages it takes all; else over a new one.

    *options* are those of `open_relay`, for the new one. Leaving the context closes the socket,
    and with it the relay if it is the socket's own.

    UsageError, ConfigurationError: as `open_relay`.
    """
    async with AsyncExitStack() as stack:
        if relay is None:
            relay = await stack.enter_async_context(open_relay(**options))
        nursery = await stack.enter_async_context(open_background_nursery())
        socket = RelaySocket(relay)
        nursery.start_soon(socket._run)
        try:
            yield socket
        finally:
            socket.close()


class RelaySocket:
    """A datagram socket; made by `open_relay_socket`.

    As with UDP datagrams may be lost, overtake each other and come twice, and say who sent them
    without a proof. Until `bind`, or the first `sendto`, it has no port.
    """

    family = FAMILY

    def __init__(self, peer: Relay) -> None:
        self.peer = peer
        """The relay below."""
        self._port = 0
        self._arrived: Stream[tuple[bytes, tuple[str, int]]] = Stream()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<RelaySocket {self.peer.id} port {self._port}>"

    async def bind(self, address: int | tuple[Any, ...]) -> None:
        """Take a port: *address* is one, or a pair of a host, which is ignored, and one.

        0 takes a free one. It does not wait for neighbours; what is sent meanwhile does.

        OSError: the socket has a port (EINVAL), or another of this process has that one
        (EADDRINUSE). trio.ClosedResourceError: this socket is closed.
        """
        await trio.lowlevel.checkpoint()
        self._check_open()
        port = address if isinstance(address, int) else address[1]
        if not 0 <= port <= 65535:
            raise OverflowError(f"a port is a number from 0 to 65535, not {port}")
        if self._port:
            raise OSError(errno.EINVAL, "this socket is bound already")
        self._bind(port)

    def getsockname(self) -> RelayAddress:
        """The id of the relay, the port (0 if there is none yet), and `FAMILY`.

        trio.ClosedResourceError: this socket is closed.
        """
        self._check_open()
        return RelayAddress(self.peer.id, self._port)

    async def sendto(self, data: bytes | bytearray | memoryview, *arguments: Any) -> int:
        """``sendto(data, address)``, or ``sendto(data, flags, address)``: how many bytes it had.

        The address is an id and a port. With ``localhost`` for an id it goes to the socket of this
        process that has that port, by the shortest way; to nobody if none has it.

        Waits while the neighbours it goes to read more slowly than we write.

        OSError: larger than `MAX_DATAGRAM_SIZE` (EMSGSIZE). UsageError: the id is none.
        trio.ClosedResourceError: this socket, or its relay, is closed.
        """
        if not 1 <= len(arguments) <= 2:
            raise TypeError("sendto takes data, perhaps flags, and an address")
        host, port = arguments[-1][:2]
        payload = bytes(data)
        await trio.lowlevel.checkpoint()
        self._check_open()
        if len(payload) > MAX_DATAGRAM_SIZE:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        if not self._port:
            self._bind(0)
        if host in LOCALHOST:
            socket = _all_sockets().get(port)
            if socket is not None:
                socket._put(payload, (host, self._port))
            return len(payload)
        datagram = {
            "buffer": {"type": "Buffer", "data": list(payload)},
            "address": self.peer.id,
            "port": self._port,
            "destination": port,
        }
        await self.peer.send(peer_id(host), datagram)
        return len(payload)

    async def recvfrom(
        self,
        bufsize: int = MAX_DATAGRAM_SIZE,
        flags: int = 0,  # noqa: ARG002 - a UDP socket's
    ) -> tuple[bytes, tuple[str, int]]:
        """The next datagram, cut at *bufsize* bytes, and where from: an id and a port.

        Waits for one. Cancelled, none is lost. Of those that nobody takes, the newest thousand are
        kept, up to a mebibyte.

        trio.ClosedResourceError: this socket, or its relay, is closed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()  # cancelled with its relay, it is not closed
        self._check_open()
        try:
            data, address = await self._arrived.receive()
        except trio.EndOfChannel:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise trio.ClosedResourceError("this socket was closed") from None
        return data[:bufsize], address

    def close(self) -> None:
        """Close the socket, and its port is free; what waits in `recvfrom` is told."""
        self._is_closed = True
        if _all_sockets().get(self._port) is self:
            del _all_sockets()[self._port]
        while len(self._arrived):
            self._arrived.receive_nowait()
        self._arrived.close()

    def _check_open(self) -> None:
        if self._is_closed or self.peer.is_closed:
            raise trio.ClosedResourceError("this socket is closed")

    def _bind(self, port: int) -> None:
        taken = _all_sockets()
        if port in taken:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        if not port:
            free = [each for each in EPHEMERAL_PORTS if each not in taken]
            if not free:
                raise OSError(errno.EADDRINUSE, "no port is free")
            port = random.choice(free)
        self._port = port
        taken[port] = self

    async def _run(self) -> None:
        """Take what comes over the relay, until it is closed: then so is this socket."""
        try:
            async for message in self.peer.messages:
                self._take(message)
        finally:
            self.close()

    def _take(self, message: RelayMessage) -> None:
        datagram = decode_datagram(message.data)
        if datagram is None:
            logger.debug("a message of %s is no datagram", message.sender)
            return
        data, port, destination = datagram
        if destination in (None, self._port):
            # Not the address that it says itself, which may be anybody's.
            self._put(data, (message.sender, port))

    def _put(self, data: bytes, address: tuple[str, int]) -> None:
        self._arrived.put((data, address), len(data) + 100)


def decode_datagram(value: JSON) -> tuple[bytes, int, int | None] | None:
    """The bytes, the sender's port and the receiver's (None of an original); None if it is none."""
    if not isinstance(value, dict):
        return None
    buffer, port, destination = (value.get(key) for key in ("buffer", "port", "destination"))
    octets = buffer.get("data") if isinstance(buffer, dict) else None
    if not isinstance(octets, list) or not _is_port(port):
        return None
    try:
        data = bytes(octets)
    except (TypeError, ValueError):
        return None
    return data, port, destination if _is_port(destination) else None


def _is_port(value: JSON) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= 65535


def _all_sockets() -> dict[int, RelaySocket]:
    try:
        return _sockets.get()
    except LookupError:
        sockets: dict[int, RelaySocket] = {}
        _sockets.set(sockets)
        return sockets
