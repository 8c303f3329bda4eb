"""Neighbours that signal for each other: a peer with an inview and an outview of counted arcs.

It does what n2n-overlay-wrtc and, below it, neighborhood-wrtc do, and speaks with them. What it
decides is decided in protocol/arcs.py; the connections are in neighbourhood.py; here are the
attempts at arcs, each a task: those of this peer, and those that it answers or bridges.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.channels.internet import IceServer, Internet
from trio_overlay.channels.network import Network
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import (
    ConnectionFailed,
    MalformedFrame,
    NotSupported,
    PeerNotFound,
    UsageError,
)
from trio_overlay.nodes.heartbeat import Heartbeat
from trio_overlay.nodes.neighbour_answers import Answers
from trio_overlay.nodes.neighbour_attempts import Attempts
from trio_overlay.nodes.neighbour_bridge import Bridging
from trio_overlay.nodes.neighbour_channels import introduce
from trio_overlay.nodes.neighbour_link import WINDOW, Link
from trio_overlay.nodes.neighbour_ways import Bridged, Carried, Carry, OnLink, Way
from trio_overlay.nodes.neighbourhood import Neighbourhood
from trio_overlay.nodes.streams import Stream
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.neighbours import (
    ARCS,
    MAX_NAME,
    Application,
    ArcEnd,
    ArcMessage,
    ArcRequest,
    ArcResponse,
    Beat,
    ConnectTo,
    Credit,
    Direct,
    Disconnect,
    Forward,
    Payload,
    Side,
    decode_arc_message,
    is_reserved,
    peer_of,
)

logger = logging.getLogger(__name__)

ATTEMPT_TIMEOUT = 10.0
KEEP_TIMEOUT = 60.0
RETRIES = 5
RETRY_DELAY = 1.0
"""Seconds that each retry of a `send` waits for a connection to come up."""
HEARTBEAT = Heartbeat(interval=2.0, timeout=8.0)
MAX_ATTEMPTS = 32
"""Attempts at a time for each neighbour: those it has us begin, answer, and bridge, each."""


@dataclass(frozen=True, slots=True)
class ArcOpen:
    """There is an arc more to or from `peer`."""

    name: ClassVar[str] = "open"
    peer: str
    """The other peer's end: ``…-I`` in our outview, ``…-O`` in our inview."""
    is_outgoing: bool
    """Whether it is in our outview; the original tells of those only."""


@dataclass(frozen=True, slots=True)
class ArcClose:
    """There is an arc less, whoever removed it."""

    name: ClassVar[str] = "close"
    peer: str
    is_outgoing: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ArcFail:
    """An attempt of ours to open an arc, or one that we answered, came to nothing."""

    name: ClassVar[str] = "fail"
    peer: str | None
    """The other end, or None if it was not known yet."""
    is_outgoing: bool
    reason: str


NeighbourEvent: TypeAlias = ArcOpen | ArcClose | ArcFail


@dataclass(frozen=True, slots=True)
class Received:
    """A message of a neighbour for the application."""

    name: ClassVar[str] = "receive"
    peer: str
    """The end that sent it; `Neighbours.send` takes it for an answer."""
    data: JSON
    _link: Link = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Views:
    """The arcs of all the protocols that share a peer's connections."""

    inview: Mapping[str, Mapping[str, int]]
    """For each end with arcs to us, how many there are of each pid."""
    outview: Mapping[str, Mapping[str, int]]
    """For each end that we have arcs to, how many there are of each pid."""


@asynccontextmanager
async def open_neighbours(
    pid: str,
    *,
    peer: str | None = None,
    ice_servers: Iterable[IceServer] = (),
    network: Network | None = None,
    attempt_timeout: float = ATTEMPT_TIMEOUT,
    keep_timeout: float = KEEP_TIMEOUT,
    max_attempts: int = MAX_ATTEMPTS,
    heartbeat: Heartbeat | None = HEARTBEAT,
    rng: random.Random | None = None,
) -> AsyncIterator[Neighbours]:
    """A peer of the protocol *pid*, without any neighbour yet.

    *peer* is what it is called, and has to be unique among all that may ever meet; at random by
    default. Peer connections are made on *network*, else over the internet with *ice_servers*.

    An attempt to open an arc fails after *attempt_timeout* seconds; a connection without arcs is
    kept for *keep_timeout* seconds. For each neighbour at most *max_attempts* are begun at its
    wish, answered, and bridged at a time.

    A neighbour of ours that was silent for the interval of *heartbeat* is asked for a sign of life,
    and its connection closed when it was silent for the timeout. Without a *heartbeat*, and where
    one of the originals is the neighbour, only the network notices (aiortc after 30 s).

    Leaving the context says farewell and closes everything that was opened, at once, but for what
    was sent and still arrives over a slow network: that gets up to ten seconds.

    ValueError: a timeout not above 0, *max_attempts* less than 1, a *heartbeat* whose interval is
    not above 0 and below its timeout, or *pid* or *peer* not 1 to 250 characters long.
    """
    for name, value in (("attempt_timeout", attempt_timeout), ("keep_timeout", keep_timeout)):
        if not value > 0:
            raise ValueError(f"{name} is above 0 seconds, not {value}")
    if max_attempts < 1:
        raise ValueError(f"max_attempts is at least 1, not {max_attempts}")
    if heartbeat is not None and not 0 < heartbeat.interval < heartbeat.timeout:
        raise ValueError(f"an interval is above 0 s and below the timeout, not as in {heartbeat}")
    # Who can guess the tid of an attempt can put in signals of their own.
    rng = rng or random.SystemRandom()
    hood = Neighbourhood(
        _checked_name("peer", peer if peer is not None else f"{rng.getrandbits(64):016x}"),
        network or Internet(ice_servers=ice_servers),
        rng,
        attempt_timeout=attempt_timeout,
        keep_timeout=keep_timeout,
        max_attempts=max_attempts,
        heartbeat=heartbeat,
    )
    node = Neighbours(hood, _checked_name("pid", pid))
    async with open_background_nursery() as nursery:
        nursery.start_soon(hood.live)
        try:
            await hood.entered.wait()
            hood.members[pid] = node
            yield node
        finally:
            hood.leave()
            with trio.CancelScope(shield=True):
                await hood.left.wait()


class Neighbours:
    """A peer, as one of its protocols sees it; made by `open_neighbours` and `open_protocol`."""

    def __init__(self, hood: Neighbourhood, pid: str) -> None:
        self.pid = pid
        self.events: Stream[NeighbourEvent] = Stream()
        """What happens to arcs, from the beginning; unread, the newest thousand."""
        self.messages: Stream[Received] = Stream(
            # Below the window, so that nobody ever waits for a peer that reads nothing.
            max_bytes=WINDOW // 2,
            keeps_what_is_read=True,
            on_leave=lambda message, size: message._link.release(size),
        )
        """What neighbours send; unread, only the newest, up to 128 KiB.

        Once somebody reads, nothing is dropped: neighbours of ours wait until their messages are
        read. One of the originals does not know how to wait, and loses its connection when it has
        sent a mebibyte more than was read.
        """
        self._hood = hood
        self._attempts = Attempts(
            hood, pid, lambda end, reason: self.events.put(ArcFail(end, True, reason))
        )
        self._answers = Answers(
            hood, pid, lambda end, reason: self.events.put(ArcFail(end, False, reason))
        )
        self._bridging = Bridging(hood, pid)
        self._has_left = False

    def __repr__(self) -> str:
        arcs_out, arcs_in = sum(self.outview.values()), sum(self.inview.values())
        return f"<Neighbours {self.peer} in {self.pid}, {arcs_out} arcs out, {arcs_in} in>"

    # --- what there is --------------------------------------------------------------------

    @property
    def peer(self) -> str:
        """What this peer is called, without the suffix of either end."""
        return self._hood.peer

    @property
    def inview_id(self) -> str:
        """The end to which others open arcs."""
        return Side.IN.end_of(self._hood.peer)

    @property
    def outview_id(self) -> str:
        """The end from which we open arcs."""
        return Side.OUT.end_of(self._hood.peer)

    @property
    def inview(self) -> Mapping[str, int]:
        """How many arcs of this protocol come from each end; as it is now."""
        return self._hood.arcs.view(self.pid, Side.IN)

    @property
    def outview(self) -> Mapping[str, int]:
        """How many arcs of this protocol lead to each end; as it is now."""
        return self._hood.arcs.view(self.pid, Side.OUT)

    def neighbours(self) -> Views:
        """Everybody with arcs to or from this peer, whichever protocol's they are."""
        arcs = self._hood.arcs
        return Views(arcs.neighbours(Side.IN), arcs.neighbours(Side.OUT))

    def unique_neighbours(self) -> list[str]:
        """The peers, without the suffix of their ends, in either view; oldest connection first."""
        views = self.neighbours()
        return list(dict.fromkeys(map(peer_of, (*views.inview, *views.outview))))

    # --- the first arc --------------------------------------------------------------------

    async def initiate(self, carry: Carry, *, timeout: float | None = None) -> str:
        """Open an arc to whoever answers; the end that did.

        *carry* brings messages, JSON objects, to the other end by whatever road: there they go to
        `accept`, and what that says comes back to `finalize` here. Some are needed, in
        order; with most networks it is one each way.

        Cancelled, nothing is left, and the other end is told if it can be.

        ConnectionFailed: no arc within *timeout* seconds (by default those of the node), or the
        two did not connect. What *carry* raises is raised here.
        UsageError: this node has left.
        """
        end: str = await self._hood.start(
            self._attempts.run, Carried(self._hood, carry), None, timeout
        )
        return end

    def accept(self, carry: Carry, request: JSON, *, timeout: float | None = None) -> None:
        """Take in a message that somebody's `initiate` carried here; answers go by *carry*.

        An `ArcOpen` or `ArcFail` follows. What *carry* raises makes it the latter, and is logged.

        MalformedFrame: *request* is none.
        UsageError: this node has left.
        """
        self._check_here()
        message = decode_arc_message(request)
        if isinstance(message, ArcResponse):
            raise MalformedFrame("an MResponse where an MRequest belongs")
        if message.pid == self.pid:
            self._answers.take(message, Carried(self._hood, carry), None, timeout)

    def finalize(self, response: JSON) -> None:
        """Take in a message that the other end's `accept` carried here.

        One of an attempt that is over, or that nobody here began, is ignored.

        MalformedFrame: *response* is none.
        """
        message = decode_arc_message(response)
        if isinstance(message, ArcRequest):
            raise MalformedFrame("an MRequest where an MResponse belongs")
        self._attempts.take(message, None)

    async def attach(
        self, connecting: AbstractAsyncContextManager[Channel], *, is_outgoing: bool = True
    ) -> str:
        """Open an arc over a channel that comes up by other means; the end at its other side.

        *connecting* is entered here, and left when the connection is not needed any more: for
        example ``bootstrap.connect()``, and at the other end, where *is_outgoing* is false,
        ``bootstrap.answer(request)``. Nobody else may read the channel. Both ends are ours: the
        originals do not have this.

        ConnectionFailed: the other end does not say within the time of an attempt that it wants
        the same. What *connecting* raises is raised here.
        UsageError: this node has left.
        """
        end: str = await self._hood.start(self._live_attached, connecting, is_outgoing)
        return end

    # --- arcs between neighbours ----------------------------------------------------------

    async def connect(self, from_: str | None = None, to: str | None = None) -> str | None:
        """Open an arc from the neighbour *from_* to the neighbour *to*; None means this peer.

        With *to* only: an arc from here; returns the other end, ``…-I``, once it is open. From
        a neighbour that has arcs to us it makes one in each direction; to one that we have arcs
        to already, an arc more on the same connection, to be removed as often.

        With *from_* only, the neighbour is asked to open an arc to us; with both, to open one to
        *to*, for which we carry the signals. These return None, once the neighbour was asked.

        PeerNotFound: there is no connection to one of them.
        ConnectionFailed: with *to* only: as for `initiate`.
        UsageError: both are the same peer, or this node has left.
        """
        await trio.lowlevel.checkpoint()
        self._check_here()
        source, target = (
            None if end is None or peer_of(end) == self.peer else end for end in (from_, to)
        )
        links = {end: self._find(end) for end in (source, target) if end is not None}
        if (source is None and target is None) or (
            source is not None and target is not None and peer_of(source) == peer_of(target)
        ):
            raise UsageError(f"no peer has an arc to itself: from {from_} to {to}")
        if source is None:
            assert target is not None
            way = OnLink(self._hood, self.pid, target)
            end: str = await self._hood.start(self._attempts.run, way, target, None)
            return end
        links[source].post(self.pid, Direct() if target is None else ConnectTo(source, target))
        return None

    def disconnect(self, peer: str | None = None) -> int:
        """Remove one arc to or from the end *peer*, or all of this protocol; how many there were.

        The other end is told, if it is one of ours; the originals find out when the connection
        closes, a minute after its last arc.
        """
        arcs = list(self._hood.arcs.find(self.pid, peer))
        if peer is not None:
            del arcs[1:]
        for number, tid in arcs:
            link = self._hood.links[number]
            self._hood.remove_arc(link, tid, "removed here", tell=True)
        return len(arcs)

    async def send(self, peer: str, data: JSON, *, retries: int = RETRIES) -> None:
        """Send a message to *peer*, an end of either view, or connected still; the other end of
        that peer does as well.

        Waits while the neighbour reads more slowly than we write. Messages to one end arrive
        whole and in order. Returning means handed to the transport, not received.

        Without a connection it is tried again, up to *retries* times, each when there is one or
        after a second. A message whose connection broke while it was being sent is sent again,
        and may arrive twice; not so with ``retries=0``.

        PeerNotFound: there was no connection in all that time.
        MessageTooLarge: over the neighbour's limit; nothing was sent.
        NotSupported: the original, at the other end, cannot take a message that is None.
        TypeError, ValueError: *data* is no JSON value, or an object whose ``type`` is one of
        those that the protocol uses itself.
        UsageError: this node has left.
        """
        if is_reserved(data):
            raise ValueError(f"messages of the type {data['type']} are the protocol's own")
        for retry in range(retries + 1):
            await trio.lowlevel.checkpoint()
            self._check_here()
            if retry:
                await self._hood.wait_for_link(peer, self.pid, RETRY_DELAY)
            link = self._hood.find_link(peer, self.pid)
            if link is None:
                continue
            if data is None and ARCS not in link.extensions:
                raise NotSupported(f"{link.end} cannot take None for a message")
            try:
                await link.send(self.pid, data)
            except trio.BrokenResourceError:
                continue
            return
        raise PeerNotFound(f"there is no connection to {peer}")

    @asynccontextmanager
    async def open_protocol(self, pid: str) -> AsyncIterator[Neighbours]:
        """Another protocol of this peer, which shares its connections and has arcs of its own.

        Leaving the context removes them.

        ValueError: *pid* is in use here, or not 1 to 250 characters long.
        UsageError: this node has left.
        """
        await trio.lowlevel.checkpoint()
        self._check_here()
        if _checked_name("pid", pid) in self._hood.members:
            raise ValueError(f"the protocol {pid} is open here already")
        other = self._hood.members[pid] = Neighbours(self._hood, pid)
        try:
            yield other
        finally:
            other.disconnect()
            other.leave()
            del self._hood.members[pid]
            await trio.lowlevel.cancel_shielded_checkpoint()

    def close(self) -> None:
        """Leave, with all protocols, without waiting until everything is closed."""
        self._hood.leave()

    async def aclose(self) -> None:
        """Leave, with all protocols: say farewell and close everything that was opened.

        The end of `open_neighbours`'s context does it too. Afterwards the node can only be read.
        """
        self._hood.leave()
        await self._hood.left.wait()

    def _check_here(self) -> None:
        if self._has_left:
            raise UsageError("this node has left")

    def _find(self, end: str) -> Link:
        link = self._hood.find_link(end, self.pid)
        if link is None:
            raise PeerNotFound(f"there is no connection to {end}")
        return link

    # --- what the neighbourhood tells -----------------------------------------------------

    def take(self, link: Link, payload: Payload, size: int) -> None:
        """See `Member`."""
        match payload:
            case Application(data):
                link.hold(self.pid, size)
                self.messages.put(Received(link.end, data, link), size)
            case ConnectTo():
                self._begin_for(link, payload)
            case Direct():
                way = OnLink(self._hood, self.pid, link.end)
                self._attempts.run_for(link.peer, way, link.end)
            case ArcRequest() | ArcResponse() | ArcEnd():
                self._take_direct(link, payload)
            case Forward(has_arrived=False):
                self._bridging.take(link, payload)
            case Forward():
                self._take_forwarded(link, payload)
            case Disconnect(tid):
                if self._hood.arcs.arcs_of(link.number).get(tid) == self.pid:
                    self._hood.remove_arc(link, tid, "removed by the neighbour", tell=False)
            case Credit() | Beat():
                raise AssertionError("the link takes those")

    def note_arc(self, link: Link) -> None:
        """See `Member`."""
        self.events.put(ArcOpen(link.end, link.side is Side.OUT))

    def note_arc_end(self, link: Link, reason: str) -> None:
        """See `Member`."""
        self.events.put(ArcClose(link.end, link.side is Side.OUT, reason))

    def note_link(self, link: Link) -> None:
        """See `Member`."""
        self._attempts.note_link(link)

    def note_link_end(self, link: Link) -> None:
        """See `Member`."""
        self._attempts.note_link_end(link)
        self._bridging.note_link_end(link)

    def leave(self) -> None:
        """See `Member`."""
        self._has_left = True
        self._attempts.leave("the node left")
        self._answers.leave("the node left")
        self._bridging.leave()
        self.events.close()
        self.messages.close()

    # --- what is said of arcs -------------------------------------------------------------

    def _begin_for(self, link: Link, wish: ConnectTo) -> None:
        """A neighbour wants us to open an arc to another of its neighbours."""
        if peer_of(wish.from_) != self.peer or peer_of(wish.to) == self.peer:
            logger.info("%r asks for an arc from %.80s to %.80s", link, wish.from_, wish.to)
            return
        way = Bridged(self._hood, self.pid, link.end, wish.from_, wish.to)
        self._attempts.run_for(link.peer, way, wish.to)

    def _take_forwarded(self, link: Link, forward: Forward) -> None:
        """A bridge has passed a message on to us."""
        try:
            message = decode_arc_message(forward.message)
        except MalformedFrame as error:
            logger.info("%r passes on something else: %s", link, error)
            return
        if peer_of(forward.to) != self.peer or peer_of(message.peer) != peer_of(forward.from_):
            logger.info("%r passes on what is not for us, or forged", link)
            return
        way = Bridged(self._hood, self.pid, link.end, forward.to, forward.from_)
        self._take_message(message, way, None)

    def _take_direct(self, link: Link, message: ArcMessage) -> None:
        """The neighbour itself speaks of an arc."""
        if peer_of(message.peer) != link.peer:
            logger.info("%r speaks for %.80s: it is ignored", link, message.peer)
            return
        self._take_message(message, OnLink(self._hood, self.pid, link.end), link)

    def _take_message(self, message: ArcMessage, way: Way, link: Link | None) -> None:
        """One end of an attempt said *message*, by *way*; on *link*, if that leads to it."""
        if message.pid != self.pid:
            logger.info("a message of the protocol %.80s is ignored in another", message.pid)
            return
        match message:
            case ArcRequest():
                self._answers.take(message, way, link)
            case ArcEnd() if message.tid not in self._attempts:
                self._answers.take(message, way, link)
            case ArcResponse() | ArcEnd():
                self._attempts.take(message, link)

    async def _live_attached(
        self,
        connecting: AbstractAsyncContextManager[Channel],
        is_outgoing: bool,
        *,
        task_status: trio.TaskStatus[str],
    ) -> None:
        async with connecting as channel:
            link: Link | None = None
            with trio.move_on_after(self._hood.attempt_timeout):
                link = await introduce(self._hood, self.pid, channel, is_outgoing=is_outgoing)
            if link is None:
                raise ConnectionFailed("nobody spoke of an arc at the other end of the channel")
            task_status.started(link.end)
            self._hood.announce(link)
            await link.run()


def _checked_name(what: str, name: str) -> str:
    if not 0 < len(name) <= MAX_NAME - 2:
        raise ValueError(f"a {what} has 1 to {MAX_NAME - 2} characters, not {len(name)}")
    return name
