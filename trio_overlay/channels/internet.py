"""The real network: WebSockets to servers, WebRTC between peers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from trio_overlay.channels.bridge import BridgeChoice
from trio_overlay.channels.channel import Channel
from trio_overlay.channels.network import Network, PeerConnection
from trio_overlay.errors import ConfigurationError

_STUN = re.compile(r"stuns?:[^?:\s]+(:[0-9]{1,5})?")
_TURN = re.compile(r"turns?:[^?:\s]+(:[0-9]{1,5})?(\?transport=(udp|tcp))?")


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server that tells peers behind a NAT how they can be reached.

    ConfigurationError: *urls* has none, or one that is not ``stun:host:port`` or the like.
    """

    urls: str | tuple[str, ...]
    """``stun:``, ``turn:`` or ``turns:`` and a host, with a port and ``?transport=`` or without."""
    username: str | None = None
    """For TURN."""
    credential: str | None = None
    """The password for TURN."""

    def __post_init__(self) -> None:
        urls = (self.urls,) if isinstance(self.urls, str) else self.urls
        if not urls:
            raise ConfigurationError("an ICE server needs a URL")
        for url in urls:
            if _STUN.fullmatch(url) is None and _TURN.fullmatch(url) is None:
                raise ConfigurationError(
                    f"the URL of an ICE server is stun:host:port or turn:host:port, not {url!r}"
                )


class Internet(Network):
    """Connections over the network this machine is on.

    *ice_servers*: none by default, and nobody is asked then: peers find each other on one network
    and where the answering side has a public address. The first STUN and the first TURN server are
    used. One that does not answer delays every connection by 5 s (aiortc gathers for so long).

    *bridge*: how aiortc is run; "auto" needs no thought. The asyncio loop is opened with the
    first peer connection and closed with the last.
    """

    def __init__(
        self, *, ice_servers: Iterable[IceServer] = (), bridge: BridgeChoice = "auto"
    ) -> None:
        self._ice_servers = tuple(ice_servers)
        self._bridge: BridgeChoice = bridge

    @asynccontextmanager
    async def open_peer(self, *, initiator: bool) -> AsyncIterator[PeerConnection]:
        # aiortc is large (it brings ffmpeg along) and many programs only dial servers.
        from trio_overlay.channels.webrtc import open_webrtc_peer

        async with open_webrtc_peer(
            initiator=initiator, ice_servers=self._ice_servers, bridge=self._bridge
        ) as peer:
            yield peer

    def dial(self, url: str) -> AbstractAsyncContextManager[Channel]:
        from trio_overlay.channels.websocket import open_websocket_channel

        return open_websocket_channel(url)
