"""The server's listening sockets: on which addresses, and what to say when that cannot be."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from trio_overlay.errors import ConfigurationError

_BACKLOG: Final = 1024
_MAX_PORT_TRIES: Final = 20


async def open_listeners(
    host: str | None, port: int, *, reuse_port: bool = False
) -> list[trio.SocketListener]:
    """Sockets that listen on one *port* of all addresses of *host*, of this machine if it is None.

    0 takes a free port. With *reuse_port*, others of this user may listen there as well, if they
    all say so, and the system deals the connections out.

    ConfigurationError: that cannot be; the message says why.
    """

    async def open_them(port: int) -> list[trio.socket.SocketType]:
        if not reuse_port:
            listeners = await trio.open_tcp_listeners(port, host=host, backlog=_BACKLOG)
            return [each.socket for each in listeners]
        sockets = await _bind_shared(host, port)
        for each in sockets:
            each.listen(_BACKLOG)
        return sockets

    return [trio.SocketListener(each) for each in await _on_one_port(host, port, open_them)]


async def reserve_port(host: str | None, port: int) -> list[trio.socket.SocketType]:
    """Sockets that keep *port* (0: a free one) for those who `open_listeners` with *reuse_port*.

    They do not listen, and so are dealt no connection.

    ConfigurationError: that cannot be; the message says why.
    """

    async def bind(port: int) -> list[trio.socket.SocketType]:
        return await _bind_shared(host, port)

    return await _on_one_port(host, port, bind)


def address_of(listening: trio.socket.SocketType) -> tuple[str, int]:
    """Host, numeric, and port."""
    host, port, *_ = listening.getsockname()
    return host, port


def format_address(host: str, port: int) -> str:
    """``HOST:PORT``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _on_one_port(
    host: str | None,
    port: int,
    open_them: Callable[[int], Awaitable[list[trio.socket.SocketType]]],
) -> list[trio.socket.SocketType]:
    """What *open_them* gives: sockets on all addresses of *host*, and on the same port of each."""
    where = format_address(host or "*", port)
    if not 0 <= port <= 65535:
        raise ConfigurationError(f"port: a number from 0 to 65535 is needed, not {port}")
    for _ in range(_MAX_PORT_TRIES):
        try:
            sockets = await open_them(port)
            ports = {address_of(each)[1] for each in sockets}
            if len(ports) == 1:
                return sockets
            # A free port was asked for on several addresses: have the same on all.
            for each in sockets:
                each.close()
            return await open_them(min(ports))
        except OSError as error:
            if port == 0 and error.errno == errno.EADDRINUSE:
                continue
            raise _cannot_listen(where, error) from error
        except UnicodeError as error:
            raise ConfigurationError(f"host: {host!r} is no host name") from error
    raise ConfigurationError(f"no port is free on all addresses of {host or 'this machine'}")


async def _bind_shared(host: str | None, port: int) -> list[trio.socket.SocketType]:
    """Sockets bound as `trio.open_tcp_listeners` binds them, but with SO_REUSEPORT."""
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigurationError("workers: this system does not let processes share a port")
    found = await trio.socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[trio.socket.SocketType] = []
    try:
        for family, kind, protocol, _, address in found:
            try:
                bound = trio.socket.socket(family, kind, protocol)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT and len(found) > 1:
                    continue  # a machine without IPv6 may have names with such addresses
                raise
            sockets.append(bound)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            await bound.bind(address)
    except BaseException:
        for each in sockets:
            each.close()
        raise
    return sockets


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
