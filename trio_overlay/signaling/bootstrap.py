"""The bootstrap client: what a newcomer, an answerer and a root do on a bootstrap server.

The server itself is in server.py. Everything here speaks to the original's server as well, which
says no `Hello`; then no control frame is sent, and the promises that need them are weaker: a
withdrawn request is noticed by a closed socket or a timeout.
"""

from __future__ import annotations

import logging
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from urllib.parse import quote, urlsplit

import trio

from trio_overlay.channels.channel import Channel, Frame
from trio_overlay.channels.internet import IceServer, Internet
from trio_overlay.channels.network import Network, PeerConnection
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import (
    JoinRefused,
    JoinTimeout,
    MalformedFrame,
    OutcomeError,
    OverlayError,
    PeerNotFound,
    ServerLost,
    ServerUnreachable,
    SnapshotFailed,
    UsageError,
)
from trio_overlay.protocol.bootstrap import (
    ANNOUNCEMENT,
    JOIN_PATH,
    MAX_SNAPSHOT_TIMEOUT,
    ROOT_HEARTBEAT_INTERVAL,
    ROOT_PATH_SUFFIX,
    SNAPSHOT,
    SNAPSHOT_PATH_SUFFIX,
    AskSnapshot,
    BootstrapFrame,
    Done,
    Heartbeat,
    Hello,
    Refused,
    Registration,
    Role,
    SignalFrame,
    SnapshotPart,
    Withdrawn,
    decode_bootstrap,
    encode_bootstrap,
    signal_frame,
)
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.signals import Signal, decode_signal, encode_signal, is_offer
from trio_overlay.signaling.handshake import Road, shake_hands
from trio_overlay.signaling.roads import MAX_SIGNALS, SignalInbox
from trio_overlay.signaling.snapshots import Answering, Describe, Picture

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = 30.0
MAX_REQUESTS = 10_000
"""Origins that a registration tells apart at a time; the one silent for longest is forgotten."""
MAX_WAITING_REQUESTS = 1_000
FAREWELL_TIMEOUT = 1.0
HELLO_TIMEOUT = 5.0
HELLO_GRACE = 0.2
"""Seconds that whoever gives up waits for a hello that has not come yet. Our server says it right
behind its answer to the dial, before it hears anything, so it is here by then, or lost on the way,
or nobody says one: then the server finds the withdrawal out by the close, a few seconds later."""
SILENCE_TIMEOUT = 45.0
"""A root's server that says nothing for three of its heartbeats is taken for dead."""
OUR_SILENCE_TIMEOUT = 5.0
"""The same for a server of ours, whose heartbeats come every second."""
ROLE_TIMEOUT = 0.5
"""Seconds that a root waits for the first word of its server. One of ours says what it is to do
right behind the answer to the dial; an old one says nothing, and the newest root is active."""
SNAPSHOT_MARGIN = 0.2
"""The part of an asker's time that is left for the answer's way back."""
MIN_RECONNECT_DELAY, MAX_RECONNECT_DELAY = 0.2, 5.0
"""Seconds: a server that has restarted holds requests for a root as long as that."""


@asynccontextmanager
async def open_bootstrap(
    url: str,
    *,
    ice_servers: Iterable[IceServer] = (),
    network: Network | None = None,
    rng: random.Random | None = None,
) -> AsyncIterator[Bootstrap]:
    """A client of the bootstrap server at *url*, which may be just ``host:port``.

    Nothing is dialled before it is needed. Peer connections are made on *network*, or on the
    internet, with *ice_servers* (none by default: no address outside is ever asked).

    UsageError: *url* is no URL of a server.
    """
    await trio.lowlevel.checkpoint()
    network = network or Internet(ice_servers=ice_servers)
    yield Bootstrap(server_url(url), network, rng or random.Random())


class Connection(Channel):
    """An open channel to the peer that a handshake led to."""

    def __init__(
        self,
        channel: Channel,
        identifier: str | None,
        partner: str | None,
        extensions: frozenset[str],
    ) -> None:
        self.channel = channel
        """What carries the frames; this object only passes on to it."""
        self.identifier = identifier
        """The id that the server gave to this end; None from an old server before it was told, and
        where there was no server."""
        self.partner = partner
        """The id that the server, or the road that led there, gave to the other end."""
        self.extensions = extensions
        """What the other end said it understands; empty for the JavaScript originals."""
        self.max_frame_size = channel.max_frame_size

    @property
    def close_reason(self) -> str | None:
        return self.channel.close_reason

    async def send(self, value: Frame) -> None:
        await self.channel.send(value)

    def send_nowait(self, value: Frame) -> None:
        self.channel.send_nowait(value)

    async def receive(self) -> Frame:
        return await self.channel.receive()

    async def aclose(self, reason: str = "") -> None:
        await self.channel.aclose(reason)


class Request:
    """Somebody's wish to connect: its signals, gathered until somebody answers it.

    `Bootstrap.answer` takes it. Whoever made the request out of frames goes on to give it the
    later frames of the same origin.
    """

    def __init__(self, origin: str, extensions: frozenset[str] = frozenset()) -> None:
        self.origin = origin
        """The id that the server gave to the applicant."""
        self.extensions = extensions
        self.withdrawn: str | None = None
        """Why the applicant has given up; None as long as it has not."""
        self._inbox = SignalInbox()
        self.scope = trio.CancelScope()
        """Around the handshake of whoever answers, which a withdrawal cancels."""

    def __repr__(self) -> str:
        return f"<Request of {self.origin}, {len(self._inbox.early)} signals waiting>"

    @property
    def signals(self) -> tuple[Signal, ...]:
        """The signals that came so far and were not yet taken by `Bootstrap.answer`."""
        return tuple(self._inbox.early)

    def deliver(self, frame: SignalFrame) -> None:
        """Take in one more frame of this origin; one that holds no signal is passed over."""
        try:
            signal = decode_signal(frame.signal)
        except MalformedFrame as error:
            logger.info("a signal of %s is passed over: %s", self.origin, error)
            return
        self._inbox.deliver(signal)

    def withdraw(self, reason: str) -> None:
        """The applicant has given up: an answer under way is cancelled."""
        if self.withdrawn is None:
            self.withdrawn = reason
            self.scope.cancel()

    def attach(self, peer: PeerConnection) -> None:
        """Hand all signals, those that came and those that will, to *peer*."""
        self._inbox.attach(peer)


@dataclass(frozen=True, slots=True)
class Listener:
    """A prospect that waits for others; made by `Bootstrap.listen`."""

    identifier: str
    """What others give to `Bootstrap.connect` as the destination."""
    requests: trio.MemoryReceiveChannel[Request]


class Bootstrap:
    """A client of one bootstrap server; made by `open_bootstrap`."""

    def __init__(self, base: str, network: Network, rng: random.Random) -> None:
        self.url = base
        self.network = network
        self._rng = rng

    @asynccontextmanager
    async def connect(
        self,
        destination: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        extensions: Iterable[str] = (),
        more: Mapping[str, JSON] | None = None,
        network: Network | None = None,
        on_identifier: Callable[[str], object] | None = None,
    ) -> AsyncIterator[Connection]:
        """A connection to whoever the root gives us to, or to the prospect *destination*.

        Entering waits until the channel is open; by then the socket to the server is closed.
        Leaving closes the channel. Cancelling the entry takes the request back, at every peer
        it was passed on to. *extensions* and *more* go into the first frame: what we say we
        understand, and further keys for whoever answers. *on_identifier* is called with the id
        that the server gave us as soon as it is known: at once by our server, with the first
        answer by the original's.

        JoinTimeout: no open channel within *timeout* seconds.
        JoinRefused: the server, or who was to answer, turned us down.
        ServerUnreachable, ServerRefused, ConnectionFailed: as their names say.
        """
        async with (network or self.network).open_peer(initiator=True) as peer:
            road = _BootstrapRoad(None, destination, extensions, on_identifier, more)
            with _deadline(timeout, f"no connection within {timeout:g} s"):
                channel = await self._through_server(road, peer)
            yield Connection(channel, road.identifier, road.partner, road.extensions)

    @asynccontextmanager
    async def answer(
        self,
        request: Request,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        extensions: Iterable[str] = (),
        network: Network | None = None,
    ) -> AsyncIterator[Connection]:
        """A connection to the applicant whose *request* this is.

        Entering, leaving and cancelling are as in `connect`: an applicant of ours is told at
        once when its answer is cancelled. A request can be answered once.

        JoinRefused: the applicant has withdrawn; nothing of the request is left.
        JoinTimeout, ServerUnreachable, ServerRefused, ConnectionFailed: as in `connect`.
        """
        async with (network or self.network).open_peer(initiator=False) as peer:
            road = _BootstrapRoad(request.origin, request.origin, extensions, None)
            channel: Channel | None = None
            message = f"{request.origin} did not connect within {timeout:g} s"
            with request.scope, _deadline(timeout, message):
                request.attach(peer)
                channel = await self._through_server(road, peer)
            if channel is None:
                raise JoinRefused(f"{request.origin} has withdrawn: {request.withdrawn}")
            yield Connection(channel, road.identifier, road.partner, request.extensions)

    @asynccontextmanager
    async def root(
        self, secret: str, *, takeover: bool = False
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Request]]:
        """Be the root: an async iterator of the requests that reach it.

        With a server of ours that has a root already, this one stands by and gets no requests
        until that one is gone, or replaces it at once with *takeover*.

        Registered when entered. Later, while the server is gone, the client dials it again, with
        growing, jittered delays, for as long as the context is open. A request that nobody takes
        from the iterator waits there, up to 1,000 of them; further ones are dropped.

        ServerUnreachable, ServerRefused: the first registration failed; a wrong secret is refused.
        """
        async with (
            self.register(secret, takeover=takeover) as frames,
            open_background_nursery() as nursery,
        ):
            taken, requests = trio.open_memory_channel[Request](MAX_WAITING_REQUESTS)
            nursery.start_soon(_gather_requests, frames, taken)
            yield requests

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Listener]:
        """Be a prospect that others can `connect` to by its identifier.

        Works with our server only: the original's tells a prospect its id too late. The server
        closes a prospect's socket after its own timeout (30 s by default); then the requests end.

        ServerUnreachable: also when the server does not say our identifier.
        """
        async with self.network.dial(self._address(JOIN_PATH)) as socket:
            hello: BootstrapFrame | None = None
            with trio.move_on_after(HELLO_TIMEOUT):
                hello = await _next_frame(socket)
            if not (isinstance(hello, Hello) and hello.identifier):
                raise ServerUnreachable(f"{self.url} does not tell prospects their identifiers")
            fed, frames = trio.open_memory_channel[SignalFrame | Withdrawn](MAX_SIGNALS)
            taken, requests = trio.open_memory_channel[Request](MAX_WAITING_REQUESTS)
            async with open_background_nursery() as nursery:
                nursery.start_soon(_feed_from, socket, fed)
                nursery.start_soon(_gather_requests, frames, taken)
                yield Listener(hello.identifier, requests)

    async def ask_snapshot(self, secret: str, timeout: float = 10.0) -> Picture:
        """The whole tree, as the active root knows it; whoever knows the secret may ask.

        Of the *timeout* seconds, at most 60, the root gets what is left when it is asked, less a
        fifth for the way back. A cancelled question is taken back at the root.

        SnapshotFailed: there is no root, it cannot be asked, or has not answered in time.
        ServerRefused: the secret is wrong, or the server does not know the question.
        ServerUnreachable: as its name says.
        UsageError: the secret is empty, or *timeout* no such number.
        """
        if not 0 < timeout <= MAX_SNAPSHOT_TIMEOUT:
            most = MAX_SNAPSHOT_TIMEOUT
            raise UsageError(f"a timeout is above 0 and up to {most:g} s, not {timeout}")
        path = _secret_path(secret, SNAPSHOT_PATH_SUFFIX)
        picture: Picture | None = None
        with trio.move_on_after(timeout) as scope:
            async with self.network.dial(self.url + path) as socket:
                left = scope.deadline - trio.current_time()
                await _say(socket, AskSnapshot(left * (1 - SNAPSHOT_MARGIN)))
                picture = await _receive_picture(socket)
        if picture is not None:
            return picture
        raise SnapshotFailed(f"the root has not answered within {timeout:g} s")

    @asynccontextmanager
    async def register(
        self, secret: str, *, takeover: bool = False, describe: Describe | None = None
    ) -> AsyncIterator[trio.MemoryReceiveChannel[SignalFrame | Withdrawn | Role]]:
        """Be the root, and see the frames themselves: for who passes them on. As `root`.

        The first is a `Role`, and another comes whenever it changes. While the server is gone,
        the last one stands. Who asks the server for a picture of the tree gets what *describe*
        gives; without it, a refusal.
        """
        path = _secret_path(secret, ROOT_PATH_SUFFIX)
        backlog, frames = trio.open_memory_channel[SignalFrame | Withdrawn | Role](MAX_REQUESTS)
        token = f"{self._rng.getrandbits(64):016x}"
        async with open_background_nursery() as nursery:
            extensions = frozenset() if describe is None else frozenset({SNAPSHOT})
            registration = Registration(token, takes_over=takeover, extensions=extensions)
            await nursery.start(self._stay_registered, path, registration, describe, backlog)
            yield frames

    async def _stay_registered(
        self,
        path: str,
        registration: Registration,
        describe: Describe | None,
        backlog: trio.MemorySendChannel[SignalFrame | Withdrawn | Role],
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        registered = is_missed = False
        failures = 0
        while True:
            try:
                address = f"{self.url}{path}?{registration.encode()}"
                async with self.network.dial(address) as socket:
                    if not registered:
                        task_status.started()
                        registered = True
                    logger.info("registered as root at %s", self.url)
                    is_missed, failures = False, 0
                    term = await self._serve_registration(socket, describe, backlog)
                    # It took over, if it was to: from now on it is one of several.
                    registration = replace(
                        registration, term=max(registration.term, term), takes_over=False
                    )
            except OutcomeError as error:
                if not registered:
                    raise
                # A warning once for as long as it is gone, not at each of many tries.
                level = logging.DEBUG if is_missed else logging.WARNING
                logger.log(level, "the root is without its server at %s: %s", self.url, error)
                is_missed = True
            await trio.sleep(self._reconnect_delay(failures))
            failures += 1

    async def _serve_registration(
        self,
        socket: Channel,
        describe: Describe | None,
        backlog: trio.MemorySendChannel[SignalFrame | Withdrawn | Role],
    ) -> int:
        """Feed *backlog* until the server is gone or silent for too long.

        The term in which this root was active; 0 if it was not, or the server knows no terms.
        """
        term = 0
        async with open_background_nursery() as nursery:
            nursery.start_soon(_send_heartbeats, socket)
            answering = None if describe is None else Answering(socket, describe, nursery)
            # Until then, or when an old server says nothing.
            patience = ROLE_TIMEOUT
            has_role = False
            while True:
                frame: BootstrapFrame | None = None
                with trio.move_on_after(patience):
                    try:
                        frame = await _next_frame(socket)
                    except OutcomeError as error:
                        logger.info("the server hung up on its root: %s", error)
                        return term
                match frame:
                    case None if has_role:
                        logger.warning("the server has been silent for %g s", patience)
                        return term
                    case Hello():
                        patience = OUR_SILENCE_TIMEOUT
                        continue
                    case Role():
                        has_role = True
                        term = frame.term if frame.is_active else term
                    case Heartbeat():
                        patience = min(patience, SILENCE_TIMEOUT)
                    case _:
                        pass
                if not has_role:
                    has_role = True
                    patience = float("inf")
                    _feed(backlog, Role(is_active=True, term=0, count_others=0))
                if isinstance(frame, AskSnapshot | Withdrawn) and answering is not None:
                    await answering.take(frame)
                if isinstance(frame, Role | SignalFrame) or (
                    isinstance(frame, Withdrawn) and frame.origin is not None
                ):
                    _feed(backlog, frame)

    def _reconnect_delay(self, failures: int) -> float:
        """Seconds before the next try: doubling, with full jitter, never all roots at once."""
        ceiling = min(MAX_RECONNECT_DELAY, MIN_RECONNECT_DELAY * 2.0 ** min(failures, 20))
        return self._rng.uniform(ceiling / 2, ceiling)

    async def _through_server(self, road: _BootstrapRoad, peer: PeerConnection) -> Channel:
        """Shake hands over a prospect's socket of our own, which is closed on return.

        Whatever ends this, the server is told whether the handshake came to its good end.
        """
        async with self.network.dial(self._address(JOIN_PATH)) as socket:
            road.socket = socket
            farewell: Done | Withdrawn = Withdrawn(reason="cancelled")
            try:
                channel = await shake_hands(peer, road)
                farewell = Done()
            except OverlayError as error:
                farewell = Withdrawn(reason=str(error))
                raise
            finally:
                with trio.move_on_after(FAREWELL_TIMEOUT, shield=True):
                    await road.say(farewell)
        return channel

    def _address(self, path: str) -> str:
        return f"{self.url}{path}?{ANNOUNCEMENT}"


class _BootstrapRoad(Road):
    """The road through the server, over a prospect's socket."""

    def __init__(
        self,
        partner: str | None,
        destination: str | None,
        extensions: Iterable[str],
        on_identifier: Callable[[str], object] | None,
        more: Mapping[str, JSON] | None = None,
    ) -> None:
        self.socket: Channel
        self.identifier: str | None = None
        self.partner = partner
        """Who shakes our hand: for a joiner, the first who answers, and nobody else after that."""
        self.extensions: frozenset[str] = frozenset()
        self._destination = destination
        self._own_extensions = tuple(extensions)
        self._on_identifier = on_identifier
        self._more = more
        self._rank = 0
        self._first_frame: BootstrapFrame | None = None
        """The server's first, which is a hello if and only if the server is one of ours."""

    async def send(self, signal: Signal) -> None:
        frame = signal_frame(
            encode_signal(signal),
            destination=self.partner or self._destination,
            rank=self._rank,
            extensions=self._own_extensions if self._rank == 0 else (),
            more=self._more if self._rank == 0 else None,
        )
        self._rank += 1
        try:
            await self.socket.send_soon(encode_bootstrap(frame))
        except trio.BrokenResourceError as error:
            if self.partner is None:
                raise JoinRefused(f"the server hung up: {self.socket.close_reason}") from error
            await trio.sleep_forever()  # as in receive: the connection may yet come up

    async def receive(self) -> Signal:
        while True:
            try:
                frame = await _next_frame(self.socket)
            except OutcomeError:
                if self.partner is None:
                    raise
                # Offer and answer may both have been through: the connection can still come up.
                await trio.sleep_forever()
            self._first_frame = self._first_frame or frame
            match frame:
                case SignalFrame():
                    signal = self._take(frame)
                    if signal is not None:
                        return signal
                case Hello(identifier):
                    self._learn_identifier(identifier)
                case Refused(reason):
                    raise JoinRefused(reason or "the server refused, and gave no reason")
                case Withdrawn(origin, reason):
                    if origin is not None and origin == self.partner:
                        raise JoinRefused(f"{origin} is gone: {reason}")
                    if origin is not None and origin == self._destination:
                        raise PeerNotFound(f"the server knows no prospect {origin}")
                case Heartbeat() | Done() | Role() | AskSnapshot() | SnapshotPart():
                    pass

    async def say(self, farewell: Done | Withdrawn) -> None:
        """Tell the server, if it is one of ours, how it ended; never fails."""
        try:
            if isinstance(farewell, Withdrawn) and self._rank and self._first_frame is None:
                # Given up before the first frame was read, which is our server's hello. An old
                # server says none, and often nothing at all.
                with trio.move_on_after(HELLO_GRACE):
                    self._first_frame = await _next_frame(self.socket)
            if isinstance(self._first_frame, Hello):
                await self.socket.send(encode_bootstrap(farewell))
        except (OverlayError, trio.BrokenResourceError):
            pass

    def _take(self, frame: SignalFrame) -> Signal | None:
        if self.partner is None:
            self.partner = frame.origin
            self.extensions = frame.extensions
        if frame.origin != self.partner:
            return None
        self._learn_identifier(frame.destination)
        try:
            return decode_signal(frame.signal)
        except MalformedFrame as error:
            logger.info("a signal of %s is passed over: %s", frame.origin, error)
            return None

    def _learn_identifier(self, identifier: str | None) -> None:
        if self.identifier is None and identifier is not None:
            self.identifier = identifier
            if self._on_identifier is not None:
                self._on_identifier(identifier)


def server_url(url: str) -> str:
    """*url* as ``ws://host:port`` or ``wss://...``, without a slash at the end.

    UsageError: it is none; the message says what would be.
    """
    if "://" not in url:
        url = f"ws://{url}"
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is no number
    except ValueError as error:
        raise UsageError(f"{url!r} is no URL of a server: {error}") from error
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in ("ws", "wss") or not parts.hostname:
        raise UsageError(f"{url!r} is no URL of a server: ws://host:port would be, or host:port")
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _secret_path(secret: str, suffix: str) -> str:
    """The path that only those know who know *secret*.

    UsageError: *secret* is empty.
    """
    if not secret:
        raise UsageError("the secret of a root cannot be empty")
    # As the URL parsers of JavaScript do it, so that the original's server knows the path.
    return "/" + quote(secret, safe="/!$&'()*+,;=:@~%") + suffix


@contextmanager
def _deadline(seconds: float, message: str) -> Iterator[None]:
    """A time limit of *seconds* that ends in JoinTimeout."""
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise JoinTimeout(message)


async def _say(socket: Channel, frame: BootstrapFrame) -> None:
    try:
        await socket.send(encode_bootstrap(frame))
    except trio.BrokenResourceError as error:
        raise ServerLost(f"the server hung up: {socket.close_reason}") from error


async def _receive_picture(socket: Channel) -> Picture:
    nodes: list[JSON] = []
    while True:
        match await _next_frame(socket):
            case SnapshotPart(_, part, count_missing, is_last):
                nodes += part
                if is_last:
                    return Picture(nodes, count_missing)
            case Refused(reason):
                raise SnapshotFailed(reason)
            case _:
                pass


async def _next_frame(socket: Channel) -> BootstrapFrame:
    """The server's next frame that can be understood.

    ServerLost: the server hung up.
    """
    while True:
        try:
            return decode_bootstrap(await socket.receive())
        except MalformedFrame as error:
            logger.info("a frame of the server is passed over: %s", error)
        except trio.EndOfChannel as error:
            reason = socket.close_reason
            raise ServerLost(f"the server closed the connection: {reason}") from error
        except trio.BrokenResourceError as error:
            reason = socket.close_reason
            raise ServerLost(f"the connection to the server broke: {reason}") from error


def _feed(
    backlog: trio.MemorySendChannel[SignalFrame | Withdrawn | Role],
    frame: SignalFrame | Withdrawn | Role,
) -> None:
    try:
        backlog.send_nowait(frame)
    except trio.WouldBlock:
        logger.warning("nobody takes the root's requests: one is dropped")


async def _feed_from(
    socket: Channel, frames: trio.MemorySendChannel[SignalFrame | Withdrawn]
) -> None:
    with frames:
        while True:
            try:
                frame = await _next_frame(socket)
            except ServerUnreachable:
                return
            if isinstance(frame, SignalFrame | Withdrawn):
                await frames.send(frame)


async def _send_heartbeats(socket: Channel) -> None:
    while True:
        await trio.sleep(ROOT_HEARTBEAT_INTERVAL)
        try:
            await socket.send_soon(encode_bootstrap(Heartbeat()))
        except trio.BrokenResourceError:
            return  # the reader meets the same, and decides


async def _gather_requests(
    frames: trio.MemoryReceiveChannel[SignalFrame | Withdrawn | Role]
    | trio.MemoryReceiveChannel[SignalFrame | Withdrawn],
    requests: trio.MemorySendChannel[Request],
) -> None:
    """Make requests of a stream of frames: one for each origin that sends an offer.

    A frame without an offer from an origin that nobody knows makes no request. This runs
    whether or not anybody takes the requests, so that a request under way gets its late signals.
    """
    known: OrderedDict[str, Request] = OrderedDict()
    with requests:
        async for frame in frames:
            if isinstance(frame, Role) or frame.origin is None:
                continue
            request = known.get(frame.origin)
            if isinstance(frame, Withdrawn):
                if request is not None:
                    del known[frame.origin]
                    request.withdraw(frame.reason or "no reason given")
            elif request is not None:
                known.move_to_end(frame.origin)
                request.deliver(frame)
            elif is_offer(frame.signal):
                request = Request(frame.origin, frame.extensions)
                request.deliver(frame)
                try:
                    requests.send_nowait(request)
                except trio.WouldBlock:
                    logger.warning("nobody takes the requests: %s is dropped", frame.origin)
                    continue
                known[frame.origin] = request
                if len(known) > MAX_REQUESTS:
                    known.popitem(last=False)
