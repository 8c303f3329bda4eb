"""A relay peer: messages to an id, passed on by whoever is nearer to it.

It does what peer-relay 0.0.2 does, and speaks with it. What it decides is decided in
protocol/relay_peer.py; here is what lives in time: connections to neighbours, the server that
others dial, the bootstrap servers that we dial. Those that are coming up are in relay_sessions.py.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import ClassVar, TypeAlias
from urllib.parse import urlsplit

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.channels.internet import IceServer, Internet
from trio_overlay.channels.network import ListeningNetwork, Network, UpgradeRequest
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import (
    ConnectionFailed,
    DeliveryFailed,
    MalformedFrame,
    MessageTooLarge,
    OutcomeError,
    ServerUnreachable,
    UsageError,
)
from trio_overlay.nodes.relay_identity import Identity, is_proved, require_cryptography
from trio_overlay.nodes.relay_link import RelayLink
from trio_overlay.nodes.relay_sessions import Session, Sessions
from trio_overlay.nodes.relay_urls import UrlGuard
from trio_overlay.nodes.streams import Stream
from trio_overlay.protocol.buckets import random_peer_id
from trio_overlay.protocol.json import JSON, encode_json
from trio_overlay.protocol.relay import (
    MAX_ENVELOPE_SIZE,
    ROOM_FOR_PATH,
    Envelope,
    PeerId,
    decode_first_frame,
    encode_first_frame,
    is_peer_id,
)
from trio_overlay.protocol.relay_actions import (
    Action,
    Close,
    Connect,
    Deliver,
    Failed,
    Received,
    Send,
    Signalled,
)
from trio_overlay.protocol.relay_peer import (
    CONNECT_TIMEOUT,
    NO_ROOM,
    RelayPeer,
)
from trio_overlay.protocol.relay_routing import Policy
from trio_overlay.signaling.listening import format_address
from trio_overlay.signaling.pages import Pages
from trio_overlay.signaling.server import serve_upgrades

logger = logging.getLogger(__name__)

TICK_INTERVAL = 1.0
FIRST_FRAME_TIMEOUT = 10.0
"""Seconds for the other end of a new WebSocket to say its id."""
SPARE_TIMEOUT = 15.0
"""Seconds after which, of two connections to one peer, we close the newer if it has not."""
FIRST_RETRY = 1.0
"""Seconds to a receipt before a message is sent again; each next time twice as long."""
MAX_SPARES = 16
MIN_REDIAL_DELAY, MAX_REDIAL_DELAY = 0.5, 30.0
MAX_CROWDED_REDIAL_DELAY = 300.0
"""The same where there was no room for us, while there are other neighbours."""


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """The relay has one neighbour more."""

    name: ClassVar[str] = "peer-joined"
    id: PeerId


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """A neighbour is gone."""

    name: ClassVar[str] = "peer-left"
    id: PeerId
    reason: str


RelayEvent: TypeAlias = PeerJoined | PeerLeft


@dataclass(frozen=True, slots=True)
class RelayMessage:
    """What some peer sent to this one."""

    sender: PeerId
    """Who says to have sent it. Anybody on the way could have made it up, unless `is_proved`."""
    data: JSON
    is_proved: bool
    """Whether it was signed with the key that *sender* is the hash of."""
    hops: int
    """How many connections it came over."""


@asynccontextmanager
async def open_relay(
    *,
    host: str | None = "127.0.0.1",
    port: int | None = None,
    announce_url: str | None = None,
    bootstrap: Iterable[str] = (),
    webrtc: bool = True,
    id: PeerId | bytes | None = None,  # noqa: A002 - it is what everybody calls it
    identity: Identity | None = None,
    accepts_unproved: bool = True,
    allow_private_addresses: bool = False,
    policy: Policy = Policy(),  # noqa: B008 - it is frozen
    ice_servers: Iterable[IceServer] = (),
    network: Network | None = None,
    rng: random.Random | None = None,
) -> AsyncIterator[Relay]:
    """A relay peer, listening, and on its way to its first neighbours.

    With a *port* it listens on *host* (None for all addresses; port 0 for a free one), and tells
    others to dial *announce_url*, by default ``ws://HOST:PORT``, or nothing when it listens on all
    addresses. It dials the *bootstrap* URLs, and again whenever it has lost them, for as long as
    it lives; that none answers is no error. *webrtc* says whether it makes peer connections.

    *id* is 40 hex digits or 20 bytes, by default at random. With an *identity* the id is its own,
    and what is sent is signed; others then know that it comes from nobody else
    (`RelayMessage.is_proved`). With *accepts_unproved* false, messages and receipts that are not
    signed are dropped. See docs/relay.md for what a proof does not say.

    URLs that other peers announce are dialled unless they lead to loopback, private or otherwise
    special addresses; *allow_private_addresses* has those dialled, too, as peers on one machine or
    in one home need it. The bootstrap URLs are yours, and always dialled.

    Leaving the context closes everything that was opened, at once, but for what was sent and still
    arrives over a slow network: that gets up to ten seconds.

    UsageError: *id* is none, or another than the identity's; a URL is no WebSocket's; an identity
    needs ``cryptography``, which is not installed.
    ConfigurationError: it cannot listen there.
    """
    urls = list(dict.fromkeys(bootstrap))
    for url in (*urls, *([announce_url] if announce_url is not None else [])):
        _check_url(url)
    rng = rng or random.SystemRandom()
    if identity is not None:
        if id is not None and peer_id(id) != identity.id:
            raise UsageError("the id of a relay with an identity is the identity's")
        id = identity.id  # noqa: A001
    if not accepts_unproved:
        require_cryptography()
    own_id = random_peer_id(rng) if id is None else peer_id(id)
    mind = RelayPeer(
        own_id,
        rng,
        policy=policy,
        url=announce_url,
        webrtc=webrtc,
        prove=None if identity is None else identity.prove,
        is_proved=_has_proof,
        accepts_unproved=accepts_unproved,
    )
    async with open_background_nursery() as nursery:
        guard = UrlGuard(allows_private=allow_private_addresses)
        relay = Relay(mind, network or Internet(ice_servers=ice_servers), rng, guard)
        await nursery.start(partial(relay._live, host=host, port=port, bootstrap=urls))
        yield relay


def peer_id(value: PeerId | bytes) -> PeerId:
    """*value*, 40 hex digits or 20 bytes, as relays write ids.

    UsageError: it is neither.
    """
    text = value.hex() if isinstance(value, bytes) else value.lower()
    if not is_peer_id(text):
        raise UsageError(f"the id of a peer is 40 hex digits or 20 bytes, not {value!r}")
    return text


class Relay:
    """A relay peer; made by `open_relay`."""

    def __init__(
        self, mind: RelayPeer, network: Network, rng: random.Random, guard: UrlGuard
    ) -> None:
        self.id = mind.id
        """160 bits, as 40 hex digits."""
        self.events: Stream[RelayEvent] = Stream()
        """Neighbours coming and going, from the beginning; unread, the newest thousand."""
        self.messages: Stream[RelayMessage] = Stream()
        """What other peers send to this one; unread, the newest thousand, up to a mebibyte.

        Whoever is slow to read loses the oldest (`messages.count_dropped`): here is nobody who
        could be made to wait.
        """
        self._network = network
        self._rng = rng
        self._guard = guard
        self._mind = mind
        self._nursery: trio.Nursery
        self._left = trio.Event()
        self._links: dict[PeerId, RelayLink] = {}
        self._spares: dict[PeerId, RelayLink] = {}
        """Second connections to a neighbour; the other end is to close one of the two."""
        self._gone: dict[PeerId, trio.Event] = {}
        """Set when the link of that peer has ended."""
        self._sessions = Sessions(self)
        self._connecting: dict[PeerId, _Outcome] = {}
        self._receipts: dict[str, _Outcome] = {}
        self._lonely = trio.lowlevel.ParkingLot()
        """Where those wait who dial again when the last neighbour is gone."""

    def __repr__(self) -> str:
        return f"<Relay {self.id}, {len(self._links)} neighbours>"

    @property
    def url(self) -> str | None:
        """Where others are told to dial this peer; None if nowhere."""
        return self._mind.url

    @property
    def peers(self) -> Mapping[PeerId, RelayLink]:
        """The neighbours by their ids, in the order they came; a live view."""
        return MappingProxyType(self._links)

    async def connect(
        self,
        id: PeerId | bytes,  # noqa: A002
        *,
        timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        """Be connected to the peer *id*, which any number of hops may lie before.

        By WebRTC if both can, signalled through the relays between, else by its URL. Cancelled,
        there is no connection, or there is a whole one; a peer of ours that was asked is told.

        ConnectionFailed: it did not answer, or no transport worked, within *timeout* seconds.
        UsageError: *id* is no id, or our own.
        trio.ClosedResourceError: this relay is closed.
        """
        peer = peer_id(id)
        if peer == self.id:
            raise UsageError("a relay does not connect to itself")
        await trio.lowlevel.checkpoint()
        self._check_open()
        if peer in self._links:
            return
        outcome = self._connecting.get(peer)
        if outcome is None:
            outcome = self._connecting[peer] = _Outcome()
        outcome.count_waiting += 1
        try:
            self._perform(self._mind.connect(peer, trio.current_time()))
            with trio.move_on_after(timeout):
                await outcome.wait()
                return
        finally:
            outcome.count_waiting -= 1
            if not outcome.count_waiting and self._connecting.get(peer) is outcome:
                del self._connecting[peer]
                if not outcome.is_known:
                    self._perform(self._mind.withdraw(peer, trio.current_time()))
                    self._sessions.cancel(peer)
        raise ConnectionFailed(f"{peer} was not connected within {timeout:g} s")

    async def disconnect(self, id: PeerId | bytes) -> None:  # noqa: A002
        """Close the connection to the neighbour *id*, and open none to it for half a minute.

        Nothing happens if it is no neighbour. UsageError: *id* is no id.
        """
        peer = peer_id(id)
        await trio.lowlevel.checkpoint()
        spare = self._spares.get(peer)
        if spare is not None:
            spare.end("disconnected")
        self._perform(self._mind.disconnect(peer, trio.current_time()))
        gone = self._gone.get(peer)
        if gone is not None:
            await gone.wait()

    async def send(
        self,
        to: PeerId | bytes,
        data: JSON,
        *,
        wait_for_receipt: bool = False,
        timeout: float = 30.0,
    ) -> None:
        """Send *data*, any JSON value, towards the peer *to*.

        Waits while the neighbours that it goes to read more slowly than we write. Nothing is
        promised: it may be lost, and overtake what was sent before. With no neighbour yet it waits
        inside for the first, up to a minute; of more than a hundred such the oldest is dropped.

        With *wait_for_receipt* it is sent again, by other ways, until a receipt of *to* comes;
        only peers of ours give one. The receipt says that it is in the other's `messages`, once.
        Cancelled, it may have arrived, or may yet.

        DeliveryFailed: no receipt within *timeout* seconds; it may have arrived.
        MessageTooLarge: over about a quarter of a mebibyte as JSON; nothing was sent.
        TypeError, ValueError: *data* is no JSON value. UsageError: *to* is no id.
        trio.ClosedResourceError: this relay is closed.
        """
        peer = peer_id(to)
        size = len(encode_json(data))
        await trio.lowlevel.checkpoint()
        if size > MAX_ENVELOPE_SIZE - ROOM_FOR_PATH:
            raise MessageTooLarge(
                f"a message of {size} bytes; relays take {MAX_ENVELOPE_SIZE - ROOM_FOR_PATH}"
            )
        self._check_open()
        if not wait_for_receipt:
            actions = self._mind.send(peer, data, trio.current_time())
            self._perform(actions)
            await self._wait_for_room(actions)
            return
        receipt = self._mind.expect(peer)
        outcome = self._receipts[receipt] = _Outcome()
        try:
            with trio.move_on_after(timeout):
                await self._send_until(outcome, peer, data, receipt)
                return
        finally:
            del self._receipts[receipt]
            self._mind.expect_no_more(receipt)
        raise DeliveryFailed(f"no receipt of {peer} within {timeout:g} s")

    async def _send_until(self, outcome: _Outcome, peer: PeerId, data: JSON, receipt: str) -> None:
        attempt, delay = 0, FIRST_RETRY
        while True:
            now = trio.current_time()
            self._perform(self._mind.send(peer, data, now, receipt=receipt, attempt=attempt))
            with trio.move_on_after(delay):
                await outcome.wait()
                return
            attempt, delay = attempt + 1, 2 * delay

    def close(self) -> None:
        """Close this relay, without waiting until everything is closed: `aclose` does."""
        self._nursery.cancel_scope.cancel()

    async def aclose(self) -> None:
        """Close all connections, and the server. The end of `open_relay`'s context does it too."""
        self.close()
        await self._left.wait()

    async def wait_closed(self) -> None:
        """Wait until this relay is closed."""
        await self._left.wait()

    @property
    def is_closed(self) -> bool:
        """Whether it is, or is about to be."""
        return self._left.is_set() or self._nursery.cancel_scope.cancel_called

    def _check_open(self) -> None:
        if self.is_closed:
            raise trio.ClosedResourceError("this relay is closed")

    async def _wait_for_room(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Send) and action.neighbour in self._links:
                await self._links[action.neighbour].wait_for_room()

    # --- what lives in time ---------------------------------------------------------------

    async def _live(
        self,
        *,
        host: str | None,
        port: int | None,
        bootstrap: Iterable[str],
        task_status: trio.TaskStatus[None],
    ) -> None:
        try:
            async with open_background_nursery() as self._nursery:
                if port is not None:
                    await self._nursery.start(self._listen, host, port)
                self._nursery.start_soon(self._let_time_pass)
                for url in bootstrap:
                    self._nursery.start_soon(self._keep_bootstrapped, url)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self.events.close()
            self.messages.close()
            for outcome in (*self._connecting.values(), *self._receipts.values()):
                outcome.fail(trio.ClosedResourceError("this relay was closed"))
            self._left.set()

    async def _let_time_pass(self) -> None:
        while True:
            await trio.sleep(TICK_INTERVAL)
            self._perform(self._mind.tick(trio.current_time()))

    async def _listen(
        self, host: str | None, port: int, *, task_status: trio.TaskStatus[None]
    ) -> None:
        if isinstance(self._network, ListeningNetwork):
            async with self._network.open_listener(self._serve) as url:
                self._mind.url = self._mind.url or url
                task_status.started()
                await trio.sleep_forever()
        async with open_background_nursery() as nursery:
            pages = Pages(lambda: {"status": "ok", "peers": len(self._links)}, None)
            addresses = await nursery.start(
                partial(serve_upgrades, self._serve, pages, host=host, port=port)
            )
            if self._mind.url is None and host is not None:
                self._mind.url = f"ws://{format_address(host, addresses[0][1])}"
            self.port = addresses[0][1]
            task_status.started()
            await trio.sleep_forever()

    async def _serve(self, request: UpgradeRequest) -> None:
        """Somebody dialled us, at whatever path."""
        try:
            channel = await request.accept()
        except trio.BrokenResourceError:
            return
        try:
            await self._live_with_websocket(channel, is_incoming=True)
        except OutcomeError as error:
            logger.info("%s did not become a neighbour: %s", request.remote, error)

    async def _keep_bootstrapped(self, url: str) -> None:
        """Be connected to whoever answers at *url*; again, ever less often, when that has ended."""
        delay = MIN_REDIAL_DELAY
        while True:
            began_at = trio.current_time()
            longest = MAX_REDIAL_DELAY
            try:
                peer, reason = await self._live_with_url(url)
                if peer in self._links:  # by another connection
                    await self._gone[peer].wait()
                elif reason == NO_ROOM:
                    longest = MAX_CROWDED_REDIAL_DELAY
            except OutcomeError as error:
                logger.info("the bootstrap server did not connect: %s", error)
            if trio.current_time() - began_at > MAX_REDIAL_DELAY:
                delay = MIN_REDIAL_DELAY
            delay = await self._wait_to_redial(delay, longest)

    async def _wait_to_redial(self, delay: float, longest: float) -> float:
        """Wait for about *delay* seconds; the next delay. Shorter once nobody else is left."""
        if self._links:
            delay = longest if longest > MAX_REDIAL_DELAY else delay
            with trio.move_on_after(delay * self._rng.uniform(0.5, 1.0)):
                await self._lonely.park()
                delay = MIN_REDIAL_DELAY  # and below, for all who lost the same server at once
        if not self._links:
            delay = min(delay, MAX_REDIAL_DELAY)
            await trio.sleep(delay * self._rng.uniform(0.5, 1.0))
        return min(2 * delay, MAX_REDIAL_DELAY)

    # --- connections that come up ---------------------------------------------------------

    async def _live_with_url(
        self, url: str, expected: PeerId | None = None, session: Session | None = None
    ) -> tuple[PeerId, str | None]:
        """Dial *url*, and be connected until that ends; who was there, and why it ended.

        OutcomeError: nobody, or another than *expected*.
        """
        async with self._network.dial(url) as channel:
            return await self._live_with_websocket(channel, expected, session)

    async def _live_with_websocket(
        self,
        channel: Channel,
        expected: PeerId | None = None,
        session: Session | None = None,
        *,
        is_incoming: bool = False,
    ) -> tuple[PeerId, str | None]:
        try:
            with trio.move_on_after(FIRST_FRAME_TIMEOUT) as scope:
                await channel.send(encode_first_frame(self.id))
                peer = decode_first_frame(await channel.receive())
            if scope.cancelled_caught:
                raise ServerUnreachable("the other end does not say its id")
        except (trio.BrokenResourceError, trio.EndOfChannel) as error:
            raise ServerUnreachable("the other end hung up before it said its id") from error
        except MalformedFrame as error:
            raise ServerUnreachable(f"the other end is no relay: {error}") from error
        if expected not in (None, peer):
            raise ConnectionFailed(f"another peer than {expected} answers there")
        link = RelayLink(channel, peer, "websocket", is_incoming=is_incoming)
        await self._live_with_link(link, session)
        return peer, link.close_reason

    async def _live_with_link(self, link: RelayLink, session: Session | None) -> None:
        """Have the other end of *link* for a neighbour, if we take it, until that ends.

        *session* is the attempt that it came from; any other to the same peer is needless now.

        ConnectionFailed: there is no room for it.
        """
        peer = link.id
        if peer in self._spares or len(self._spares) >= MAX_SPARES:
            return
        admission, actions = self._mind.admit(peer, trio.current_time())
        self._sessions.settle(peer, session)
        match admission:
            case "refused":
                self._perform(actions)
                if peer in self._links:
                    return
                raise ConnectionFailed(f"there is no room for {peer}")
            case "spare":
                self._spares[peer] = link
                link.end_in(SPARE_TIMEOUT)
            case "neighbour" | "visitor":
                self._links[peer] = link
                self._gone[peer] = trio.Event()
                self.events.put(PeerJoined(peer))
                outcome = self._connecting.pop(peer, None)
                if outcome is not None:
                    outcome.succeed()
        try:
            self._perform(actions)
            await link.run(self._take)
        finally:
            self._drop(link)

    def _take(self, envelope: Envelope, link: RelayLink) -> None:
        self._perform(self._mind.take(envelope, link.id, trio.current_time()))

    def _drop(self, link: RelayLink) -> None:
        """*link* has ended."""
        peer, reason = link.id, link.close_reason or ""
        if self._spares.get(peer) is link:
            del self._spares[peer]
            return
        spare = self._spares.pop(peer, None)
        if spare is not None:
            self._links[peer] = spare
            spare.end_in(float("inf"))
            self._mind.renew(peer, trio.current_time())
            return
        del self._links[peer]
        self._gone.pop(peer).set()
        self.events.put(PeerLeft(peer, reason))
        if not self._links:
            self._lonely.unpark_all()
        self._perform(self._mind.lose(peer, trio.current_time(), is_dead=link.is_dead))

    def _note_failed(self, peer: PeerId, error: OutcomeError) -> None:
        """The attempt to connect to *peer* came to nothing."""
        self._mind.attempt_failed(peer, trio.current_time())
        outcome = self._connecting.pop(peer, None)
        if outcome is not None:
            outcome.fail(error)

    # --- what is to be done ---------------------------------------------------------------

    def _perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Send(neighbour, envelope):
                    if neighbour in self._links:
                        self._links[neighbour].post(envelope)
                case Deliver(sender, data, is_proved, hops):
                    message = RelayMessage(sender, data, is_proved, hops)
                    self.messages.put(message, len(encode_json(data)))
                case Received(receipt):
                    if receipt in self._receipts:
                        self._receipts[receipt].succeed()
                case Connect():
                    self._sessions.connect(action)
                case Signalled(peer, signal):
                    self._sessions.take_signal(peer, signal)
                case Failed(peer, reason):
                    self._sessions.cancel(peer)
                    outcome = self._connecting.pop(peer, None)
                    if outcome is not None:
                        outcome.fail(ConnectionFailed(f"{peer}: {reason}"))
                case Close(neighbour, reason, is_dead):
                    if neighbour in self._links:
                        self._links[neighbour].end(reason, is_dead=is_dead)


class _Outcome:
    """Something that several may wait for."""

    def __init__(self) -> None:
        self.count_waiting = 0
        self.is_known = False
        self._event = trio.Event()
        self._error: Exception | None = None

    async def wait(self) -> None:
        await self._event.wait()
        if self._error is not None:
            raise self._error

    def succeed(self) -> None:
        self.is_known = True
        self._event.set()

    def fail(self, error: Exception) -> None:
        self._error = error
        self.succeed()


def _has_proof(envelope: Envelope) -> bool:
    if "proof" not in envelope.more:
        return False
    try:
        return is_proved(envelope)
    except UsageError:  # without cryptography nothing is
        return False


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise UsageError(f"the URL of a relay is ws://HOST:PORT or wss://HOST:PORT, not {url!r}")
