"""The signaling server: one port for pages, the bootstrap service and handlers of your own.

`serve_signaling` is the server; `SignalingServer` is the half of it that knows no sockets, and
takes WebSocket requests from wherever they come.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import logging
import os
import random
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

import trio

from trio_overlay.channels.network import UpgradeHandler, UpgradeRequest
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.channels.websocket import limit_socket_buffers
from trio_overlay.errors import ConfigurationError, UsageError
from trio_overlay.protocol.bootstrap import JOIN_PATH, ROOT_PATH_SUFFIX
from trio_overlay.protocol.broker_registrations import BrokerLimits
from trio_overlay.protocol.switchboard import (
    DEFAULT_GRACE_TIMEOUT,
    DEFAULT_HOLD_TIMEOUT,
    DEFAULT_TIMEOUT,
    random_identifiers,
    seeded_identifiers,
)
from trio_overlay.signaling.bootstrap_service import BootstrapService
from trio_overlay.signaling.broker import BROKER_PATHS, BrokerService
from trio_overlay.signaling.config import DEFAULT_PORT
from trio_overlay.signaling.http import refuse_connection, serve_http
from trio_overlay.signaling.limits import (
    ReserveDescriptor,
    max_connections_by_descriptors,
    raise_descriptor_limit,
)
from trio_overlay.signaling.pages import Pages
from trio_overlay.signaling.registry import Registry

_BACKLOG: Final = 1024
_FULL: Final = "the server is full; try again later"
_MAX_PORT_TRIES: Final = 20
_MAX_REFUSALS: Final = 32
"""Those over this, at one time, are refused without a word."""
_OUT_OF_RESOURCES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_REFUSAL_TIMEOUT: Final = 0.5
_RETRY_INTERVAL: Final = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ListeningServer:
    """What `serve_signaling` gives to `nursery.start`: a server that can be dialled."""

    server: SignalingServer
    addresses: tuple[tuple[str, int], ...]
    """Host and port of each listening socket, numeric."""

    @property
    def port(self) -> int:
        """The port; it is the same on all addresses."""
        return self.addresses[0][1]

    @property
    def urls(self) -> tuple[str, ...]:
        """``ws://HOST:PORT`` for each address, as `open_bootstrap` takes it."""
        return tuple(f"ws://{format_address(*address)}" for address in self.addresses)

    def upgrade(self, path: str, handler: UpgradeHandler) -> None:
        """Let *handler* serve WebSockets at exactly *path*; see `SignalingServer.upgrade`."""
        self.server.upgrade(path, handler)


async def serve_signaling(
    secret: str,
    *,
    host: str | None = "127.0.0.1",
    port: int = DEFAULT_PORT,
    timeout: float = DEFAULT_TIMEOUT,
    public: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    handlers: Mapping[str, UpgradeHandler] | None = None,
    broker_paths: Iterable[str] = BROKER_PATHS,
    broker_limits: BrokerLimits | None = None,
    registry: Registry | None = None,
    max_connections: int | None = None,
    task_status: trio.TaskStatus[ListeningServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """A signaling server, until cancelled; ``await nursery.start(serve_signaling, secret)``.

    Started, it gives a `ListeningServer`. *host* is a name or address of this machine, or None for
    all of its addresses, IPv4 and IPv6; *port* 0 takes a free one. *timeout* is how many seconds a
    prospect may stay. *public* is a directory of static files. *seed* makes ids repeatable, for
    tests only: whoever knows them can speak to other people's prospects. *handlers* are
    WebSocket handlers by path. The broker is at *broker_paths* (none: no broker) and asks of each
    peer to keep *broker_limits*; with a *registry* it is one of several that act as one. More
    than *max_connections* (by default what file descriptors
    allow) are refused with status 503. Raises this process's soft limit of
    descriptors to the hard one.

    Cancelled, it stops accepting, closes all WebSockets with code 1001 and is gone in a second or
    so.

    ConfigurationError: a parameter is no good, or the port is in use.
    """
    raise_descriptor_limit()
    server = SignalingServer(
        secret,
        timeout=timeout,
        seed=seed,
        handlers=handlers,
        broker_paths=broker_paths,
        broker_limits=broker_limits,
        registry=registry,
    )
    pages = Pages(server.status, public)
    listeners = await _open_listeners(host, port)
    reserve = ReserveDescriptor()
    try:
        async with open_background_nursery() as nursery:
            await nursery.start(server.run)
            acceptor = _Acceptor(
                pages,
                server,
                nursery,
                max_connections or max_connections_by_descriptors(),
                reserve,
            )
            for listener in listeners:
                nursery.start_soon(acceptor.accept_from, listener)
            listening = ListeningServer(server, tuple(_address_of(each) for each in listeners))
            logger.debug("listening on %s", ", ".join(listening.urls))
            task_status.started(listening)
            await trio.sleep_forever()
    finally:
        reserve.release()
        for listener in listeners:  # those that nobody came to accept from, too
            listener.socket.close()


class SignalingServer:
    """Gives each WebSocket request to whoever serves its path. No sockets in here.

    *secret* is what roots must know. *seed* makes the ids of prospects those of the original's
    server with this seed; otherwise they come from *rng*, by default the system's. *handlers* come
    before the broker where they want one of its paths. `run` must be running for timeouts to pass.

    ConfigurationError: *secret* is empty, or *timeout* is not above zero.
    """

    def __init__(
        self,
        secret: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        hold_timeout: float = DEFAULT_HOLD_TIMEOUT,
        grace_timeout: float = DEFAULT_GRACE_TIMEOUT,
        seed: int | None = None,
        rng: random.Random | None = None,
        handlers: Mapping[str, UpgradeHandler] | None = None,
        broker_paths: Iterable[str] = BROKER_PATHS,
        broker_limits: BrokerLimits | None = None,
        registry: Registry | None = None,
    ) -> None:
        if not secret:
            raise ConfigurationError("secret: a server needs one that is not empty")
        if not 0 < timeout < float("inf"):
            raise ConfigurationError(f"timeout: seconds above zero are needed, not {timeout}")
        # Only a hash is kept, so that no dump or traceback shows the secret. Hashes also have one
        # length, without which the comparison would take a time that tells the secret's.
        self._root_path_hash = _hash(f"/{secret}{ROOT_PATH_SUFFIX}")
        # As the original: a seed of 0 is none.
        identifiers: Iterator[str] = (
            seeded_identifiers(seed) if seed else random_identifiers(rng or random.SystemRandom())
        )
        self._bootstrap = BootstrapService(
            identifiers, timeout=timeout, hold_timeout=hold_timeout, grace_timeout=grace_timeout
        )
        self._handlers: dict[str, UpgradeHandler] = {JOIN_PATH: self._bootstrap.serve_prospect}
        for path, handler in (handlers or {}).items():
            self.upgrade(path, handler)
        self._broker = BrokerService(registry=registry, broker_limits=broker_limits)
        for path in dict.fromkeys(broker_paths):
            if path not in (handlers or {}):
                self.upgrade(path, self._broker.serve)

    def upgrade(self, path: str, handler: UpgradeHandler) -> None:
        """Let *handler* serve WebSocket requests for exactly *path*.

        *path* is as in a URL, percent-encoded. The handler accepts or rejects the request; the
        connection ends when it returns. What it raises ends this connection only.

        UsageError: the path is taken or does not begin with a slash.
        """
        if not path.startswith("/"):
            raise UsageError(f"a path begins with a slash, unlike {path!r}")
        if path in self._handlers or self._is_root_path(path):
            raise UsageError("this path is served already")
        self._handlers[path] = handler

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let time pass: timeouts, held requests, withdrawals. Runs until cancelled."""
        async with open_background_nursery() as nursery:
            await nursery.start(self._bootstrap.run)
            await nursery.start(self._broker.run)
            task_status.started()
            await trio.sleep_forever()

    async def handle_upgrade(self, request: UpgradeRequest) -> None:
        """Serve one client, from its request to its end. Any number may be served at a time.

        Returns when the client is gone or done with, raises nothing that a stranger can cause.
        """
        handler = self._handlers.get(request.path)
        if handler is None and self._is_root_path(request.path):
            handler = self._bootstrap.serve_root
        try:
            if handler is not None:
                await handler(request)
            else:
                # No path is ever logged: it may be the secret with a slip in it.
                if request.path.endswith(ROOT_PATH_SUFFIX):
                    logger.warning("%s wants to be root with a wrong secret", request.remote)
                else:
                    logger.info("%s wants a WebSocket at an unknown path", request.remote)
                # One answer to both: a wrong secret is just an unknown path, as in the original,
                # and nobody learns that there is something to be guessed.
                await request.reject(404, "nothing is here: the path or the secret is wrong")
        except trio.BrokenResourceError:
            logger.debug("%s hung up before its WebSocket was open", request.remote)

    def status(self) -> dict[str, Any]:
        """Figures for those who watch over the server, as a JSON object."""
        switchboard = self._bootstrap.switchboard
        return {
            "status": "ok",
            "roots": switchboard.count_roots,
            "prospects": switchboard.count_prospects,
            "held": switchboard.count_held,
            "peers": self._broker.registrations.count_registered,
        }

    def _is_root_path(self, path: str) -> bool:
        # Clients differ in what they percent-encode.
        candidates = (path, unquote(path, errors="replace"))
        return any(
            hmac.compare_digest(_hash(candidate), self._root_path_hash) for candidate in candidates
        )


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


# --- the sockets --------------------------------------------------------------------------


class _Acceptor:
    """Takes calls as long as there is room, and refuses those it cannot take."""

    def __init__(
        self,
        pages: Pages,
        server: SignalingServer,
        nursery: trio.Nursery,
        max_connections: int,
        reserve: ReserveDescriptor,
    ) -> None:
        self._pages = pages
        self._server = server
        self._nursery = nursery
        self._max_connections = max_connections
        self._count_connections = 0
        self._count_refusals = 0
        self._reserve = reserve
        self._is_full = False

    async def accept_from(self, listener: trio.SocketListener) -> None:
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in _OUT_OF_RESOURCES:
                        raise
                    await self._refuse_without_descriptor(listener, error)
                    continue
                self._reserve.keep()
                if self._count_connections < self._max_connections:
                    self._note_room()
                    self._count_connections += 1
                    self._nursery.start_soon(self._serve, stream)
                elif self._count_refusals < _MAX_REFUSALS:
                    self._note_full(f"there are {self._count_connections} connections")
                    self._count_refusals += 1
                    self._nursery.start_soon(self._refuse, stream)
                else:
                    await trio.aclose_forcefully(stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            limit_socket_buffers(stream)
            await serve_http(stream, self._pages, self._server.handle_upgrade)
        finally:
            self._count_connections -= 1

    async def _refuse(self, stream: trio.SocketStream) -> None:
        try:
            await refuse_connection(stream, _FULL)
        finally:
            self._count_refusals -= 1

    async def _refuse_without_descriptor(
        self, listener: trio.SocketListener, error: OSError
    ) -> None:
        """Take one call with the descriptor kept for this, say that there is no room."""
        self._note_full(str(error))
        if self._reserve.release():
            stream: trio.SocketStream | None = None
            with trio.move_on_after(_REFUSAL_TIMEOUT):
                with suppress(OSError):  # somebody else took the descriptor
                    stream = await listener.accept()
                if stream is not None:
                    await refuse_connection(stream, _FULL)
            self._reserve.keep()
        else:
            await trio.sleep(_RETRY_INTERVAL)

    def _note_full(self, why: str) -> None:
        if not self._is_full:
            self._is_full = True
            logger.error("no room for more connections (%s): they are refused", why)

    def _note_room(self) -> None:
        if self._is_full:
            self._is_full = False
            logger.warning("there is room for connections again")


async def _open_listeners(host: str | None, port: int) -> list[trio.SocketListener]:
    where = format_address(host or "*", port)
    if not 0 <= port <= 65535:
        raise ConfigurationError(f"port: a number from 0 to 65535 is needed, not {port}")
    for _ in range(_MAX_PORT_TRIES):
        try:
            listeners = await trio.open_tcp_listeners(port, host=host, backlog=_BACKLOG)
            ports = {_address_of(each)[1] for each in listeners}
            if len(ports) == 1:
                return listeners
            # A free port was asked for on several addresses: have the same on all.
            for each in listeners:
                await each.aclose()
            return await trio.open_tcp_listeners(min(ports), host=host, backlog=_BACKLOG)
        except OSError as error:
            if port == 0 and error.errno == errno.EADDRINUSE:
                continue
            raise _cannot_listen(where, error) from error
        except UnicodeError as error:
            raise ConfigurationError(f"host: {host!r} is no host name") from error
    raise ConfigurationError(f"no port is free on all addresses of {host or 'this machine'}")


def _cannot_listen(where: str, error: OSError) -> ConfigurationError:
    if isinstance(error, socket.gaierror):
        return ConfigurationError(f"host: the address in {where} is unknown: {error.strerror}")
    match error.errno:
        case errno.EADDRINUSE:
            why = "port: it is in use by another program; choose another, or 0 for any"
        case errno.EACCES:
            why = "port: this user may not open it; ports from 1024 on are open to all"
        case errno.EADDRNOTAVAIL:
            why = "host: this is no address of this machine"
        case _:
            why = str(error)
    return ConfigurationError(f"cannot listen on {where}: {why}")


def _address_of(listener: trio.SocketListener) -> tuple[str, int]:
    host, port, *_ = listener.socket.getsockname()
    return host, port


def format_address(host: str, port: int) -> str:
    """``HOST:PORT``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
