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
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

import trio

from trio_overlay.channels.network import UpgradeHandler, UpgradeRequest
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.channels.websocket import limit_socket_buffers
from trio_overlay.errors import ConfigurationError, UsageError
from trio_overlay.protocol.bootstrap import JOIN_PATH, ROOT_PATH_SUFFIX, SNAPSHOT_PATH_SUFFIX
from trio_overlay.protocol.broker_registrations import BrokerLimits
from trio_overlay.protocol.cluster import tagged_identifiers
from trio_overlay.protocol.identifiers import random_identifiers, seeded_identifiers
from trio_overlay.protocol.switchboard import (
    DEFAULT_GRACE_TIMEOUT,
    DEFAULT_HOLD_TIMEOUT,
    DEFAULT_TIMEOUT,
)
from trio_overlay.signaling.bootstrap_service import BootstrapService
from trio_overlay.signaling.broker import BROKER_PATHS, BrokerService
from trio_overlay.signaling.cluster import Cluster, open_cluster
from trio_overlay.signaling.cluster_registry import ClusterRegistry
from trio_overlay.signaling.config import DEFAULT_PORT
from trio_overlay.signaling.http import refuse_connection, serve_http
from trio_overlay.signaling.limits import (
    ReserveDescriptor,
    max_connections_by_descriptors,
    raise_descriptor_limit,
)
from trio_overlay.signaling.listening import address_of, format_address, open_listeners
from trio_overlay.signaling.pages import Pages
from trio_overlay.signaling.registry import Registry

_FULL: Final = "the server is full; try again later"
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
    redis: str | None = None,
    reuse_port: bool = False,
    max_connections: int | None = None,
    task_status: trio.TaskStatus[ListeningServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """A signaling server, until cancelled; ``await nursery.start(serve_signaling, secret)``.

    Started, it gives a `ListeningServer`. *host* is a name or address of this machine, or None for
    all of its addresses, IPv4 and IPv6; *port* 0 takes a free one. *timeout* is how many seconds a
    prospect may stay. *public* is a directory of static files. *seed* makes ids repeatable, for
    tests only: whoever knows them can speak to other people's prospects. *handlers* are
    WebSocket handlers by path. The broker is at *broker_paths* (none: no broker) and asks of each
    peer to keep *broker_limits*; with a *registry* it is one of several that act as one. *redis* is
    the URL of a Redis that this server shares with others, to act as one with them: see
    docs/cluster.md. With *reuse_port*, several processes of one user may listen on one port, and
    the system deals the connections out. More than *max_connections* (by default what file
    descriptors allow) are refused with status 503. Raises this process's soft limit of descriptors
    to the hard one.

    Cancelled, it stops accepting, closes all WebSockets with code 1001 and is gone in a second or
    so.

    ConfigurationError: a parameter is no good, or the port is in use.
    """
    async with _cluster_at(redis) as cluster:
        server = SignalingServer(
            secret,
            timeout=timeout,
            seed=seed,
            handlers=handlers,
            broker_paths=broker_paths,
            broker_limits=broker_limits,
            registry=registry,
            cluster=cluster,
        )
        pages = Pages(server.status, public)
        serve = partial(
            serve_upgrades,
            server.handle_upgrade,
            pages,
            host=host,
            port=port,
            reuse_port=reuse_port,
            max_connections=max_connections,
        )
        async with open_background_nursery() as nursery:
            await nursery.start(server.run)
            listening = ListeningServer(server, await nursery.start(serve))
            task_status.started(listening)
            await trio.sleep_forever()


@asynccontextmanager
async def _cluster_at(url: str | None) -> AsyncIterator[Cluster | None]:
    if url is None:
        yield None
        return
    try:
        from trio_overlay.signaling.redis_store import RedisStore
    except ImportError as error:
        raise ConfigurationError(
            f"redis: this takes the extra 'cluster' of trio-overlay: {error}"
        ) from error
    async with open_cluster(RedisStore(url)) as cluster:
        yield cluster


async def serve_upgrades(
    handle_upgrade: UpgradeHandler,
    pages: Pages,
    *,
    host: str | None,
    port: int,
    reuse_port: bool = False,
    max_connections: int | None = None,
    task_status: trio.TaskStatus[tuple[tuple[str, int], ...]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """*pages*, and *handle_upgrade* for each WebSocket that is asked for, until cancelled.

    Started, it gives host and port of each listening socket; otherwise as `serve_signaling`.
    """
    raise_descriptor_limit()
    listeners = await open_listeners(host, port, reuse_port=reuse_port)
    reserve = ReserveDescriptor()
    try:
        async with open_background_nursery() as nursery:
            acceptor = _Acceptor(
                pages,
                handle_upgrade,
                nursery,
                max_connections or max_connections_by_descriptors(),
                reserve,
            )
            for listener in listeners:
                nursery.start_soon(acceptor.accept_from, listener)
            addresses = tuple(address_of(each.socket) for each in listeners)
            logger.debug("listening on %s", ", ".join(format_address(*each) for each in addresses))
            task_status.started(addresses)
            await trio.sleep_forever()
    finally:
        reserve.release()
        for listener in listeners:  # those that nobody came to accept from, too
            listener.socket.close()


class SignalingServer:
    """Gives each WebSocket request to whoever serves its path. No sockets in here.

    *secret* is what roots must know. *seed* makes the ids of prospects those of the original's
    server with this seed; otherwise they come from *rng*, by default the system's. *handlers* come
    before the broker where they want one of its paths. In a *cluster* the server acts as one with
    the others there, its broker by a registry of the cluster's unless another *registry* is given.
    `run` must be running for timeouts to pass.

    ConfigurationError: *secret* is empty, *timeout* is not above zero, or *seed* is given in a
        cluster, where no two servers may give the same ids.
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
        cluster: Cluster | None = None,
    ) -> None:
        if not secret:
            raise ConfigurationError("secret: a server needs one that is not empty")
        if not 0 < timeout < float("inf"):
            raise ConfigurationError(f"timeout: seconds above zero are needed, not {timeout}")
        self._cluster = cluster
        rng = rng or random.SystemRandom()
        identifiers: Iterator[str]
        if cluster is not None:
            if seed:
                raise ConfigurationError("seed: the ids of a cluster's servers cannot be repeated")
            identifiers = tagged_identifiers(rng, cluster.tag)
            registry = registry or ClusterRegistry(cluster)
        else:
            # As the original: a seed of 0 is none.
            identifiers = seeded_identifiers(seed) if seed else random_identifiers(rng)
        self._bootstrap = BootstrapService(
            identifiers,
            timeout=timeout,
            hold_timeout=hold_timeout,
            grace_timeout=grace_timeout,
            cluster=cluster,
        )
        # Only hashes are kept, so that no dump or traceback shows the secret. Hashes also have one
        # length, without which the comparison would take a time that tells the secret's.
        self._secret_handlers: dict[bytes, UpgradeHandler] = {
            _hash(f"/{secret}{ROOT_PATH_SUFFIX}"): self._bootstrap.serve_root,
            _hash(f"/{secret}{SNAPSHOT_PATH_SUFFIX}"): self._bootstrap.serve_asker,
        }
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
        if path in self._handlers or self._secret_handler(path) is not None:
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
        handler = self._handlers.get(request.path) or self._secret_handler(request.path)
        try:
            if handler is not None:
                await handler(request)
            else:
                # No path is ever logged: it may be the secret with a slip in it.
                if request.path.endswith(ROOT_PATH_SUFFIX):
                    logger.warning("%s wants to be root with a wrong secret", request.remote)
                elif request.path.endswith(SNAPSHOT_PATH_SUFFIX):
                    logger.warning("%s asks for the tree with a wrong secret", request.remote)
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
            **({} if self._cluster is None else {"cluster": self._cluster.status()}),
        }

    def _secret_handler(self, path: str) -> UpgradeHandler | None:
        """Who serves *path*, if the secret is in it."""
        # Clients differ in what they percent-encode.
        for candidate in (path, unquote(path, errors="replace")):
            found = _hash(candidate)
            for known, handler in self._secret_handlers.items():
                if hmac.compare_digest(found, known):
                    return handler
        return None


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


# --- the sockets --------------------------------------------------------------------------


class _Acceptor:
    """Takes calls as long as there is room, and refuses those it cannot take."""

    def __init__(
        self,
        pages: Pages,
        handle_upgrade: UpgradeHandler,
        nursery: trio.Nursery,
        max_connections: int,
        reserve: ReserveDescriptor,
    ) -> None:
        self._pages = pages
        self._handle_upgrade = handle_upgrade
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
            await serve_http(stream, self._pages, self._handle_upgrade)
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
