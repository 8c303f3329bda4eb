"""A peer that others find by its id: it registers at a broker, and connects to whom it is told.

It does what linkup's peer does, and speaks with it. The broker only brings peers together: open
connections go on without it, and the peer registers again when it is back.
"""

from __future__ import annotations

import inspect
import logging
import math
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Final, TypeAlias

import trio

from trio_overlay.channels.internet import IceServer, Internet
from trio_overlay.channels.network import Network
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import (
    ConnectionFailed,
    MalformedFrame,
    OutcomeError,
    OverlayError,
    PeerNotFound,
    PeerRefused,
    ServerUnreachable,
    UsageError,
)
from trio_overlay.nodes.peer_attempt import HANDSHAKE_TIMEOUT, Attempt
from trio_overlay.nodes.peer_connection import (
    DEFAULT_SEND_TIMEOUT,
    MAX_UNREAD,
    Connection,
    PeerMessage,
)
from trio_overlay.nodes.streams import Stream
from trio_overlay.protocol.broker import PeerSignal, check_identifier, check_secret
from trio_overlay.protocol.peer import (
    EXTENSIONS,
    FAREWELL,
    AttemptSignal,
    GivenUp,
    Message,
    Refused,
    decode_attempt_signal,
    encode_attempt_signal,
    gives_way,
)
from trio_overlay.protocol.signals import Answer, Signal
from trio_overlay.signaling.broker_client import BrokerClient, broker_address, open_broker
from trio_overlay.signaling.handshake import shake_hands
from trio_overlay.signaling.roads import PushedRoad

logger = logging.getLogger(__name__)

DEFAULT_CONNECT_TIMEOUT: Final = 30.0
FAREWELL_TIMEOUT: Final = 1.0
MAX_ANSWERS: Final = 64
"""Offers of strangers that are answered at a time; further ones are refused."""
MIN_RECONNECT_DELAY: Final = 0.2
MAX_RECONNECT_DELAY: Final = 30.0
FIND_INTERVAL: Final = 0.5
"""Seconds until a broker that has just come back is asked again for a peer it does not know yet."""
STABLE_AFTER: Final = 10.0
"""Seconds that a registration must last for the next one to come without a longer delay."""


@dataclass(frozen=True, slots=True)
class Registered:
    """The broker has registered this peer: at first, and again each time it was lost."""

    name: ClassVar[str] = "registered"
    id: str


@dataclass(frozen=True, slots=True)
class BrokerLost:
    """The broker is gone; the peer dials it again. Open connections go on."""

    name: ClassVar[str] = "broker-lost"
    reason: str


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """There is a connection to another peer, whichever of the two opened it."""

    name: ClassVar[str] = "peer-connected"
    connection: Connection


@dataclass(frozen=True, slots=True)
class PeerDisconnected:
    """A connection has ended."""

    name: ClassVar[str] = "peer-disconnected"
    connection: Connection
    reason: str


@dataclass(frozen=True, slots=True)
class PeerError:
    """Something failed that nobody here waited for."""

    name: ClassVar[str] = "peer-error"
    error: OverlayError
    id: str | None
    """The other peer whose attempt or signal it was; None: it was the broker."""


PeerEvent: TypeAlias = Registered | BrokerLost | PeerConnected | PeerDisconnected | PeerError

Accept: TypeAlias = Callable[[str], bool | Awaitable[bool]]
"""Says of an id whether its peer may connect."""


@asynccontextmanager
async def open_peer(
    identifier: str,
    broker_url: str,
    *,
    accept: Accept | None = None,
    ice_servers: Iterable[IceServer] = (),
    network: Network | None = None,
    rng: random.Random | None = None,
    secret: str | None = None,
) -> AsyncIterator[Peer]:
    """A peer that is registered by *identifier* at the broker at *broker_url*.

    *identifier* is up to 128 printable characters; *broker_url* is ``ws://host:port``, with a path
    if the broker has one, or just ``host:port``. Later, while the broker is gone, it is dialled
    again, with growing, jittered delays. Each peer that wants to connect is let in, unless *accept*
    is given, which is called with its id and says whether it may; it may be async; what it raises
    leaves this context. A peer that we are connecting to ourselves is not asked about.

    It registers with a *secret*, by which a broker of ours, or another server of its cluster, knows
    for the same one a peer that comes back, and gives it its id at once. It is drawn anew, unless
    you give one (16 to 128 visible ASCII characters), so that your program has its id at once when
    it is started again.

    Connections are made on *network*, else over the internet, with *ice_servers* (none by default:
    no address outside is ever asked). Leaving the context closes everything, at once, but for what
    was sent and still arrives over a slow network: that gets up to ten seconds.

    IdTaken: another peer is registered by *identifier*.
    ServerUnreachable, ServerRefused: the broker cannot be reached, or does not want us.
    UsageError: *identifier* or *secret* cannot be one, or *broker_url* is no address of a server.
    """
    try:
        check_identifier(identifier)
    except MalformedFrame as error:
        raise UsageError(str(error)) from None
    if secret is None:
        secret = secrets.token_hex(16)
    try:
        check_secret(secret)
    except MalformedFrame:
        raise UsageError("a peer's secret is 16 to 128 visible ASCII characters") from None
    url = broker_address(broker_url)
    network = network or Internet(ice_servers=ice_servers)
    peer = Peer(identifier, url, accept, network, rng or random.Random(), secret)
    async with open_background_nursery() as nursery:
        await nursery.start(peer._live)
        yield peer


class Peer:
    """A peer with an id; made by `open_peer`."""

    def __init__(
        self,
        identifier: str,
        url: str,
        accept: Accept | None,
        network: Network,
        rng: random.Random,
        secret: str,
    ) -> None:
        self.id = identifier
        self.broker_url = url
        self.events: Stream[PeerEvent] = Stream()
        """What happens, from the beginning; unread, the newest thousand."""
        self.incoming: Stream[Connection] = Stream()
        """The connections that other peers opened; unread, the newest thousand."""
        self.messages: Stream[PeerMessage] = Stream(
            max_bytes=MAX_UNREAD // 2,  # below it, so that nobody waits for who reads nothing
            keeps_what_is_read=True,
            on_leave=lambda message, size: message.connection.release(size),
        )
        """What all others send, but for connections that are read themselves.

        Unread, only the newest are kept, up to 128 KiB. Once somebody reads, nothing is dropped:
        the others wait until their messages are read.
        """
        self._accept = accept
        self._network = network
        self._rng = rng
        self._secret = secret
        """By which brokers know this peer when it comes back. Not drawn of *rng*: from what others
        see of that they could tell it, and two peers of one seed would take each other's ids."""
        self._nursery: trio.Nursery
        self._life = trio.CancelScope()
        self._registration = trio.CancelScope()
        """Around the way to the broker, which must outlive the attempts, to say their farewells."""
        self._was_registered = False
        self._is_closing = False
        self._left = trio.Event()
        self._broker: BrokerClient | None = None
        self._registered = trio.Event()
        self._back_at = -math.inf
        """When the broker had last come back."""
        self._attempts: dict[str, Attempt] = {}
        self._connections: dict[str, Connection] = {}

    def __repr__(self) -> str:
        state = "registered" if self.is_registered else "not registered"
        return f"<Peer {self.id}, {state}, {len(self._connections)} connections>"

    @property
    def is_registered(self) -> bool:
        """Whether others can find this peer now."""
        return self._broker is not None

    @property
    def connections(self) -> Mapping[str, Connection]:
        """The open connections by the ids of the other peers, oldest first; a live view."""
        return MappingProxyType(self._connections)

    async def exists(self, identifier: str) -> bool:
        """Whether a peer is registered by *identifier*, here or at another broker of the cluster.

        ServerUnreachable, ServerRefused: the broker is away, or cannot tell.
        """
        self._check_open()
        if self._broker is None:
            raise ServerUnreachable(f"the broker at {self.broker_url} is away")
        return await self._broker.exists(identifier)

    async def connect(
        self, identifier: str, *, timeout: float = DEFAULT_CONNECT_TIMEOUT
    ) -> Connection:
        """The connection to the peer *identifier*: the one there is, or a new one.

        If both peers connect to each other at a time, both get the same connection. Cancelled,
        an attempt that nobody else waits for is taken back.

        PeerNotFound: nobody is registered by *identifier*; if the broker had been away, nobody
            after half a minute either.
        PeerRefused: the other peer does not want a connection.
        ConnectionFailed: it did not come up, or not within *timeout* seconds.
        ServerUnreachable, ServerRefused: the broker is away for so long, or cannot tell.
        UsageError: *identifier* is this peer's own, or cannot be one.
        trio.ClosedResourceError: this peer was closed.
        """
        self._check_other(identifier)
        with trio.move_on_after(timeout):
            await trio.lowlevel.checkpoint()
            while True:
                self._check_open()
                connection = self._connections.get(identifier)
                if connection is not None and connection.is_open:
                    return connection
                attempt = self._attempt_with(identifier) or self._begin(identifier)
                await attempt.wait()
                if attempt.connection is not None:
                    return attempt.connection
                # One that began at the other end says nothing about one that begins here.
                if attempt.error is not None and attempt.is_initiator and not attempt.is_replaced:
                    self._check_open()
                    raise type(attempt.error)(str(attempt.error)) from attempt.error
        if not self.is_registered:
            raise ServerUnreachable(f"the broker at {self.broker_url} is away for {timeout:g} s")
        raise ConnectionFailed(f"no connection to {identifier} within {timeout:g} s")

    async def disconnect(self, identifier: str) -> None:
        """Close the connection to this peer, or end the attempt; nothing if there is neither."""
        attempt, connection = self._attempts.get(identifier), self._connections.get(identifier)
        if attempt is not None:
            attempt.give_up("disconnected by the application")
        if connection is not None:
            await connection.aclose()
        else:
            await trio.lowlevel.checkpoint()

    async def send(
        self,
        identifier: str,
        message: Message,
        *,
        timeout: float = DEFAULT_SEND_TIMEOUT,
    ) -> None:
        """Send *message* to the peer *identifier*, over the connection there is or a new one.

        *timeout* is for all of it together. It raises what `connect` and `Connection.send` do.
        """
        began_at = trio.current_time()
        connection = await self.connect(identifier, timeout=timeout)
        left = max(0.0, timeout - (trio.current_time() - began_at))
        await connection.send(message, timeout=left)

    async def aclose(self) -> None:
        """Close all connections and be found no more. Idempotent."""
        self._is_closing = True
        self._life.cancel()
        await self._left.wait()

    # --- the broker -----------------------------------------------------------------------

    async def _live(self, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            with self._life:
                async with open_background_nursery() as nursery:
                    try:
                        await nursery.start(self._stay_registered)
                        # Not before: Trio lets nobody start who is cancelled on the way to it.
                        self._registration.shield = True
                        async with open_background_nursery() as self._nursery:
                            task_status.started()
                            try:
                                await trio.sleep_forever()
                            finally:
                                self._is_closing = True  # before the nursery takes no more tasks
                    finally:
                        self._registration.cancel()
        finally:
            for stream in (self.events, self.incoming, self.messages):
                stream.close()
            self._left.set()

    async def _stay_registered(self, *, task_status: trio.TaskStatus[None]) -> None:
        failures = 0
        with self._registration:
            while True:
                began_at = trio.current_time()
                try:
                    await self._be_registered(task_status)
                except OutcomeError as error:
                    if not self._was_registered:
                        raise  # the first time, it is whoever opens us that is told
                    logger.warning("%s is not registered: %s", self.id, error)
                    self.events.put(PeerError(error, None))
                failures = 0 if trio.current_time() - began_at > STABLE_AFTER else failures + 1
                ceiling = min(MAX_RECONNECT_DELAY, MIN_RECONNECT_DELAY * 2.0 ** min(failures, 20))
                await trio.sleep(self._rng.uniform(ceiling / 2, ceiling))

    async def _be_registered(self, task_status: trio.TaskStatus[None]) -> None:
        """Register, and stay as long as the broker does."""
        async with open_broker(
            self.broker_url, network=self._network, rng=self._rng, on_signal=self._take_signal
        ) as broker:
            await broker.register(self.id, secret=self._secret)
            self._broker = broker
            self._registered.set()
            if self._was_registered:
                self._back_at = trio.current_time()
            self.events.put(Registered(self.id))
            if not self._was_registered:
                self._was_registered = True
                task_status.started()
            try:
                await broker.lost.wait()
                self.events.put(BrokerLost(broker.lost_reason))
            finally:
                self._broker = None
                self._registered = trio.Event()

    async def _wait_for_broker(self) -> BrokerClient:
        while self._broker is None:
            await self._registered.wait()
        return self._broker

    def _take_signal(self, signal: PeerSignal) -> None:
        """What another peer says by way of the broker; never waits."""
        other = signal.sender
        if signal.recipient != self.id or other == self.id or self._is_closing:
            return
        try:
            said = decode_attempt_signal(signal.signal)
        except MalformedFrame as error:
            self.events.put(PeerError(error, other))
            return
        attempt = self._attempt_with(other)
        if said.is_offer:
            self._take_offer(other, said, attempt)
        elif attempt is not None and said.attempt in (None, attempt.key):
            attempt.take(said)
        elif isinstance(said.said, Answer) and FAREWELL in said.extensions:
            connection = self._connections.get(other)
            if connection is None or connection.attempt != said.attempt:
                # Only now do we know that it is one of ours, and what it waits for is given up.
                farewell = AttemptSignal(GivenUp("it was given up before"), said.attempt)
                self._nursery.start_soon(self._say, other, farewell)

    def _take_offer(self, other: str, offer: AttemptSignal, attempt: Attempt | None) -> None:
        if attempt is not None:
            if attempt.is_initiator:
                if not gives_way(self.id, other, has_offered=attempt.has_offered):
                    return
            elif offer.attempt is not None and offer.attempt == attempt.key:
                return
        elif sum(not each.is_initiator for each in self._attempts.values()) >= MAX_ANSWERS:
            if FAREWELL in offer.extensions:
                refusal = AttemptSignal(Refused("too busy, try again later"), offer.attempt)
                self._nursery.start_soon(self._say, other, refusal)
            return
        answer = Attempt(other, offer.attempt, is_initiator=False, extensions=offer.extensions)
        answer.is_wanted = attempt is not None and attempt.is_wanted
        self._start(answer)
        answer.take(offer)
        if attempt is not None:
            attempt.replace()

    # --- attempts -------------------------------------------------------------------------

    def _attempt_with(self, other: str) -> Attempt | None:
        """The attempt under way; one that has failed may still be saying farewell."""
        attempt = self._attempts.get(other)
        return None if attempt is None or attempt.ended.is_set() else attempt

    def _begin(self, other: str) -> Attempt:
        key = f"{self._rng.getrandbits(64):016x}"
        attempt = Attempt(other, key, is_initiator=True, extensions=frozenset())
        self._start(attempt)
        return attempt

    def _start(self, attempt: Attempt) -> None:
        attempt.road = PushedRoad(self._carrier(attempt))
        self._attempts[attempt.other] = attempt
        self._nursery.start_soon(self._run_attempt, attempt)

    async def _run_attempt(self, attempt: Attempt) -> None:
        """Bring a connection up, and live as long as it does."""
        other = attempt.other
        try:
            with attempt.scope:
                if attempt.is_initiator:
                    await self._find(other)
                elif not await self._is_accepted(attempt):
                    raise PeerRefused(f"{other} was refused")
                async with self._network.open_peer(initiator=attempt.is_initiator) as end:
                    channel = await shake_hands(end, attempt.road)
                    connection = Connection(
                        other,
                        channel,
                        attempt=attempt.key,
                        is_initiator=attempt.is_initiator,
                        extensions=attempt.extensions,
                        messages=self.messages,
                    )
                    await self._live_connected(attempt, connection)
            if not attempt.ended.is_set():
                raise ConnectionFailed(f"{other} did not connect within {HANDSHAKE_TIMEOUT:g} s")
        except OutcomeError as error:
            attempt.fail(error)
        finally:
            if self._attempts.get(other) is attempt:
                del self._attempts[other]
            attempt.fail(ConnectionFailed("this peer is closing"))
            await self._end_attempt(attempt)

    async def _find(self, other: str) -> None:
        """Return if *other* is registered.

        A broker that has just come back does not know everybody yet: it is asked again.

        PeerNotFound: it is not. ServerUnreachable, ServerRefused: the broker does not answer.
        """
        while True:
            broker = await self._wait_for_broker()
            try:
                if await broker.exists(other):
                    return
            except ServerUnreachable:
                if not broker.lost.is_set():
                    raise
            else:
                if trio.current_time() > self._back_at + MAX_RECONNECT_DELAY:
                    raise PeerNotFound(f"no peer is registered by the id {other!r}")
            await trio.sleep(FIND_INTERVAL)

    async def _live_connected(self, attempt: Attempt, connection: Connection) -> None:
        other = attempt.other
        former = self._connections.pop(other, None)
        if former is not None:
            # The other peer would not have begun again if it still had it.
            former.end("a new connection took its place")
        if self._attempts.get(other) is attempt:
            del self._attempts[other]
        self._connections[other] = connection
        attempt.succeed(connection)
        self.events.put(PeerConnected(connection))
        if not attempt.is_wanted:
            self.incoming.put(connection)
        try:
            await connection.run()
        finally:
            if self._connections.get(other) is connection:
                del self._connections[other]
            self.events.put(PeerDisconnected(connection, connection.close_reason or ""))

    async def _end_attempt(self, attempt: Attempt) -> None:
        """Tell of an attempt that has failed, whoever must know."""
        error = attempt.error
        if error is None or attempt.was_told:
            return
        if not attempt.is_initiator and not isinstance(error, PeerRefused):
            self.events.put(PeerError(error, attempt.other))
        if FAREWELL in attempt.extensions:
            reason = str(error)
            refused = isinstance(error, PeerRefused)
            said = Refused("it does not want to be connected") if refused else GivenUp(reason)
            with trio.CancelScope(shield=True):
                await self._say(attempt.other, AttemptSignal(said, attempt.key))

    async def _is_accepted(self, attempt: Attempt) -> bool:
        if self._accept is None or attempt.is_wanted:
            return True
        accepted = self._accept(attempt.other)
        if inspect.isawaitable(accepted):
            return bool(await accepted)
        return bool(accepted)

    def _carrier(self, attempt: Attempt) -> Callable[[Signal], Awaitable[None]]:
        """Takes the signals of *attempt* to the broker; to the next, if one goes away meanwhile."""
        extensions = frozenset(EXTENSIONS)
        is_first = True

        async def carry(signal: Signal) -> None:
            nonlocal is_first
            said = AttemptSignal(signal)
            if attempt.is_initiator or attempt.extensions:
                said = AttemptSignal(signal, attempt.key, extensions if is_first else frozenset())
            is_first = False
            while True:
                broker = await self._wait_for_broker()
                attempt.has_offered = attempt.is_initiator
                with suppress(ServerUnreachable):
                    await broker.send_signal(self.id, attempt.other, encode_attempt_signal(said))
                    return
                await broker.lost.wait()

        return carry

    async def _say(self, other: str, said: AttemptSignal) -> None:
        """Tell *other* something it need not know; never fails."""
        with trio.move_on_after(FAREWELL_TIMEOUT), suppress(OutcomeError):
            if self._broker is not None:
                await self._broker.send_signal(self.id, other, encode_attempt_signal(said))

    def _check_other(self, other: str) -> None:
        try:
            check_identifier(other)
        except MalformedFrame as error:
            raise UsageError(str(error)) from None
        if other == self.id:
            raise UsageError("a peer cannot be connected to itself")

    def _check_open(self) -> None:
        if self._is_closing:
            raise trio.ClosedResourceError("this peer was closed")
