"""Which URLs that strangers announce are followed, and how often.

A peer that says where it can be dialled makes us open a connection there. Without care, anybody
could have us speak to what only we can reach (server-side request forgery), or, all of us
together, to somebody who never asked for it.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit, urlunsplit

import trio

from trio_overlay.errors import ConnectionFailed
from trio_overlay.protocol.allowance import Allowance

MAX_DIALS_AT_ONCE, DIALS_PER_SECOND = 30, 1.0
MAX_DIALS_TO_ONE, DIALS_TO_ONE_PER_SECOND = 3, 1 / 60
MAX_AUTHORITIES = 1000
RESOLVE_TIMEOUT = 10.0


class UrlGuard:
    """Looks at announced URLs; with *allows_private*, only at how many there are."""

    def __init__(self, *, allows_private: bool) -> None:
        self._allows_private = allows_private
        self._all = Allowance(MAX_DIALS_AT_ONCE, DIALS_PER_SECOND)
        self._by_authority: dict[str, Allowance] = {}

    async def check(self, url: str) -> str:
        """The URL to dial in place of *url*.

        Not one on a loopback, private or otherwise special address, whatever name it is given
        by; names are looked up here, and what is dialled is the address found, lest it be another
        one a moment later. (For ``wss`` it is the name: what answers must have its certificate.)

        ConnectionFailed: it is not to be dialled, or not now; the message says why.
        """
        await trio.lowlevel.checkpoint()
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ConnectionFailed("what it announces is no URL") from None
        if parts.scheme not in ("ws", "wss") or not host or parts.username is not None:
            raise ConnectionFailed("what it announces is no URL of a WebSocket")
        port = port or (443 if parts.scheme == "wss" else 80)
        address = host
        if not self._allows_private:
            address = await _public_address(host, port)
        # Counted when it is known to be one, and before it is dialled.
        self._count(f"{address}:{port}")
        if self._allows_private or parts.scheme == "wss":
            return url
        netloc = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        return urlunsplit((parts.scheme, netloc, parts.path, parts.query, ""))

    def _count(self, authority: str) -> None:
        now = trio.current_time()
        one = self._by_authority.pop(authority, None)
        if one is None:
            one = Allowance(MAX_DIALS_TO_ONE, DIALS_TO_ONE_PER_SECOND)
            if len(self._by_authority) >= MAX_AUTHORITIES:
                del self._by_authority[next(iter(self._by_authority))]
        self._by_authority[authority] = one
        if not one.take(now, 1) or not self._all.take(now, 1):
            raise ConnectionFailed("too many announced URLs were dialled just now")


async def _public_address(host: str, port: int) -> str:
    """The first address of *host*, all of which are public.

    ConnectionFailed: there is none, or one is not.
    """
    found: list[str] = []
    try:
        with trio.fail_after(RESOLVE_TIMEOUT):
            entries = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
            found = [str(entry[4][0]) for entry in entries]
    except (OSError, UnicodeError, trio.TooSlowError):
        pass
    if not found:
        raise ConnectionFailed("the host that it announces is unknown")
    for text in found:
        if not is_public(text):
            raise ConnectionFailed(
                "it announces an address that is not public; "
                "allow_private_addresses lets those be dialled"
            )
    return found[0]


def is_public(text: str) -> bool:
    """Whether the IP address *text* belongs to the open internet."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        # Three ways to write an IPv4 address as one of version 6, none of them what it seems.
        inner = address.ipv4_mapped or address.sixtofour
        if address.teredo is not None:
            inner = address.teredo[1]
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return address.is_global and not address.is_multicast


_NAT64 = ipaddress.ip_network("64:ff9b::/96")
