"""Connections of a relay that are coming up by the wish of one end: signalled, or dialled.

Each is a task, from the first word to the end of the connection. What comes of one, a neighbour or
not, is the relay's business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from trio_overlay.errors import ConnectionFailed, MalformedFrame, OutcomeError
from trio_overlay.nodes.relay_link import RelayLink
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.relay import PeerId
from trio_overlay.protocol.relay_actions import Connect
from trio_overlay.protocol.relay_peer import CONNECT_TIMEOUT
from trio_overlay.protocol.signals import Signal, decode_signal, encode_signal
from trio_overlay.signaling.handshake import shake_hands
from trio_overlay.signaling.roads import PushedRoad

if TYPE_CHECKING:
    from trio_overlay.nodes.relay import Relay

logger = logging.getLogger(__name__)

WEBRTC_TIMEOUT = 15.0
"""Seconds for a WebRTC connection, if there is a URL to be tried after it."""
MAX_SESSIONS = 64
"""WebRTC connections that come up at a time."""


class Session:
    """A connection that is coming up, from the first thing done for it."""

    def __init__(self, road: PushedRoad) -> None:
        self.scope = trio.CancelScope()
        self.road = road


class Sessions:
    """Those of one relay, at most `MAX_SESSIONS`, and one to each peer."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._sessions: dict[PeerId, Session] = {}

    def __repr__(self) -> str:
        return f"<Sessions with {', '.join(self._sessions) or 'nobody'}>"

    def __len__(self) -> int:
        return len(self._sessions)

    def connect(self, connect: Connect) -> None:
        """Connect to who has said how, if there is room for that."""
        self._begin(connect.peer, self._live_with_connection, connect)

    def take_signal(self, peer: PeerId, value: JSON) -> None:
        """*peer* signals: for a session that there is, or for one that it begins."""
        try:
            signal = decode_signal(value)
        except MalformedFrame as error:
            logger.debug("%s signals nonsense: %s", peer, error)
            return
        session = self._sessions.get(peer)
        if session is None:
            session = self._begin(peer, self._answer_connection, peer)
        if session is not None:
            session.road.deliver(signal)

    def cancel(self, peer: PeerId) -> None:
        """Give up the session with *peer*, if there is one."""
        if peer in self._sessions:
            self._sessions[peer].scope.cancel()

    def settle(self, peer: PeerId, by: Session | None) -> None:
        """There is a connection with *peer*, that came *by* this session: any other is needless."""
        pending = self._sessions.pop(peer, None)
        if pending is not None and pending is not by:
            pending.scope.cancel()

    def _begin(self, peer: PeerId, live: Callable[..., object], argument: object) -> Session | None:
        if peer in self._sessions or len(self._sessions) >= MAX_SESSIONS:
            return None
        session = self._sessions[peer] = Session(PushedRoad(partial(self._carry, peer)))
        self._relay._nursery.start_soon(live, argument)  # type: ignore[arg-type]
        return session

    def _end(self, peer: PeerId, session: Session) -> None:
        if self._sessions.get(peer) is session:
            del self._sessions[peer]

    async def _live_with_connection(self, connect: Connect) -> None:
        """Connect to who has said how, and be connected until that ends."""
        relay, peer, url = self._relay, connect.peer, connect.url
        failure: OutcomeError = ConnectionFailed(f"no transport to {peer}")
        session = self._sessions[peer]
        try:
            with session.scope:
                if connect.webrtc:
                    try:
                        timeout = CONNECT_TIMEOUT if url is None else WEBRTC_TIMEOUT
                        await self._live_with_webrtc(peer, session, timeout, is_initiator=True)
                        return
                    except OutcomeError as error:
                        failure = error
                if url is not None and url != relay.url:
                    try:
                        url = await relay._guard.check(url)
                        await relay._live_with_url(url, peer, session)
                        return
                    except OutcomeError as error:
                        failure = error
            if self._sessions.get(peer) is session:  # else it has been connected
                relay._note_failed(peer, failure)
        finally:
            self._end(peer, session)

    async def _answer_connection(self, peer: PeerId) -> None:
        """Be connected to *peer*, which begins to signal, until that ends."""
        session = self._sessions[peer]
        try:
            with session.scope:
                try:
                    await self._live_with_webrtc(peer, session, CONNECT_TIMEOUT, is_initiator=False)
                    return
                except OutcomeError as error:
                    logger.info("no WebRTC connection with %s: %s", peer, error)
            # It may yet dial our URL; if not, the attempt ends when its time is over.
        finally:
            self._end(peer, session)

    async def _carry(self, peer: PeerId, signal: Signal) -> None:
        relay, now = self._relay, trio.current_time()
        relay._perform(relay._mind.signal(peer, encode_signal(signal), now))
        await trio.lowlevel.checkpoint()

    async def _live_with_webrtc(
        self, peer: PeerId, session: Session, timeout: float, *, is_initiator: bool
    ) -> None:
        relay = self._relay
        async with relay._network.open_peer(initiator=is_initiator) as connection:
            with trio.move_on_after(timeout) as scope:
                channel = await shake_hands(connection, session.road)
            if scope.cancelled_caught:
                raise ConnectionFailed(f"{peer} was not connected by WebRTC in {timeout:g} s")
            link = RelayLink(channel, peer, "webrtc", is_incoming=not is_initiator)
            await relay._live_with_link(link, session)
