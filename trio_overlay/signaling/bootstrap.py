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
from dataclasses import dataclass
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
    OverlayError,
    ServerUnreachable,
    SnapshotFailed,
    UsageError,
)
from trio_overlay.protocol.bootstrap import (
    ANNOUNCEMENT,
    JOIN_PATH,
    MAX_SNAPSHOT_TIMEOUT,
    ROOT_PATH_SUFFIX,
    SNAPSHOT,
    SNAPSHOT_PATH_SUFFIX,
    AskSnapshot,
    BootstrapFrame,
    Done,
    Hello,
    Refused,
    Registration,
    Role,
    SignalFrame,
    SnapshotPart,
    Withdrawn,
)
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.signals import Signal, decode_signal, is_offer
from trio_overlay.signaling.bootstrap_road import BootstrapRoad
from trio_overlay.signaling.bootstrap_socket import next_frame, say
from trio_overlay.signaling.handshake import shake_hands
from trio_overlay.signaling.registration import Registered, RootFrame
from trio_overlay.signaling.roads import MAX_SIGNALS, SignalInbox
from trio_overlay.signaling.snapshots import Describe, Picture

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = 30.0
MAX_REQUESTS = 10_000
"""Origins that a registration tells apart at a time; the one silent for longest is forgotten."""
MAX_WAITING_REQUESTS = 1_000
FAREWELL_TIMEOUT = 1.0
HELLO_TIMEOUT = 5.0
SNAPSHOT_MARGIN = 0.2
"""The part of an asker's time that is left for the answer's way back."""


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
            road = BootstrapRoad(None, destination, extensions, on_identifier, more)
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
            road = BootstrapRoad(request.origin, request.origin, extensions, None)
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
                hello = await next_frame(socket)
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
                await say(socket, AskSnapshot(left * (1 - SNAPSHOT_MARGIN)))
                picture = await _receive_picture(socket)
        if picture is not None:
            return picture
        raise SnapshotFailed(f"the root has not answered within {timeout:g} s")

    @asynccontextmanager
    async def register(
        self, secret: str, *, takeover: bool = False, describe: Describe | None = None
    ) -> AsyncIterator[trio.MemoryReceiveChannel[RootFrame]]:
        """Be the root, and see the frames themselves: for who passes them on. As `root`.

        The first is a `Role`, and another comes whenever it changes. While the server is gone,
        the last one stands. Who asks the server for a picture of the tree gets what *describe*
        gives; without it, a refusal.
        """
        path = _secret_path(secret, ROOT_PATH_SUFFIX)
        backlog, frames = trio.open_memory_channel[RootFrame](MAX_REQUESTS)
        token = f"{self._rng.getrandbits(64):016x}"
        async with open_background_nursery() as nursery:
            extensions = frozenset() if describe is None else frozenset({SNAPSHOT})
            registration = Registration(token, takes_over=takeover, extensions=extensions)
            registered = Registered(
                self.network, self.url, path, registration, describe, backlog, self._rng
            )
            await nursery.start(registered.stay)
            yield frames

    async def _through_server(self, road: BootstrapRoad, peer: PeerConnection) -> Channel:
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


async def _receive_picture(socket: Channel) -> Picture:
    nodes: list[JSON] = []
    while True:
        match await next_frame(socket):
            case SnapshotPart(_, part, count_missing, is_last):
                nodes += part
                if is_last:
                    return Picture(nodes, count_missing)
            case Refused(reason):
                raise SnapshotFailed(reason)
            case _:
                pass


async def _feed_from(
    socket: Channel, frames: trio.MemorySendChannel[SignalFrame | Withdrawn]
) -> None:
    with frames:
        while True:
            try:
                frame = await next_frame(socket)
            except ServerUnreachable:
                return
            if isinstance(frame, SignalFrame | Withdrawn):
                await frames.send(frame)


async def _gather_requests(
    frames: trio.MemoryReceiveChannel[RootFrame]
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
