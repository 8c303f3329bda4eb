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
    OutcomeError,
    PeerNotFound,
    UsageError,
)
from trio_overlay.nodes.neighbour_attempts import (
    Answer,
    Attempt,
    Bridged,
    Carried,
    Carry,
    OnLink,
    Way,
    answer_on,
    ask_on,
    hear_on,
)
from trio_overlay.nodes.neighbour_link import WINDOW, Link
from trio_overlay.nodes.neighbourhood import Neighbourhood
from trio_overlay.nodes.streams import Stream
from trio_overlay.protocol.arcs import (
    AddArc,
    Begin,
    Bridge,
    Drop,
    Fail,
    HandOver,
    Pass,
    Refuse,
    TakeArc,
    TakeSignal,
    Withdraw,
)
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.neighbours import (
    ARCS,
    EXTENSIONS,
    MAX_NAME,
    Application,
    ArcEnd,
    ArcMessage,
    ArcRequest,
    ArcResponse,
    ConnectTo,
    Credit,
    Direct,
    Disconnect,
    Forward,
    Payload,
    Side,
    decode_arc_message,
    encode_arc_message,
    is_reserved,
    peer_of,
)
from trio_overlay.protocol.signals import decode_signal
from trio_overlay.signaling.handshake import shake_hands
from trio_overlay.signaling.roads import PushedRoad

logger = logging.getLogger(__name__)

ATTEMPT_TIMEOUT = 10.0
KEEP_TIMEOUT = 60.0
RETRIES = 5
RETRY_DELAY = 1.0
"""Seconds that each retry of a `send` waits for a connection to come up."""
MAX_ATTEMPTS = 32
"""Attempts at a time for each neighbour: those it has us begin, answer, and bridge, each."""
BRIDGE_GRACE = 5.0
"""Seconds that a bridge keeps an attempt in mind longer than its ends do."""


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
    rng: random.Random | None = None,
) -> AsyncIterator[Neighbours]:
    """A peer of the protocol *pid*, without any neighbour yet.

    *peer* is what it is called, and has to be unique among all that may ever meet; at random by
    default. Peer connections are made on *network*, else over the internet with *ice_servers*.

    An attempt to open an arc fails after *attempt_timeout* seconds; a connection without arcs is
    kept for *keep_timeout* seconds. For each neighbour at most *max_attempts* are begun at its
    wish, answered, and bridged at a time.

    Leaving the context says farewell and closes everything that was opened, at once.

    ValueError: a timeout not above 0, *max_attempts* less than 1, or *pid* or *peer* not 1 to 250
    characters long.
    """
    for name, value in (("attempt_timeout", attempt_timeout), ("keep_timeout", keep_timeout)):
        if not value > 0:
            raise ValueError(f"{name} is above 0 seconds, not {value}")
    if max_attempts < 1:
        raise ValueError(f"max_attempts is at least 1, not {max_attempts}")
    # Who can guess the tid of an attempt can put in signals of their own.
    rng = rng or random.SystemRandom()
    hood = Neighbourhood(
        _checked_name("peer", peer if peer is not None else f"{rng.getrandbits(64):016x}"),
        network or Internet(ice_servers=ice_servers),
        rng,
        attempt_timeout=attempt_timeout,
        keep_timeout=keep_timeout,
        max_attempts=max_attempts,
    )
    node = Neighbours(hood, _checked_name("pid", pid))
    async with open_background_nursery() as nursery:
        await nursery.start(hood.live)
        hood.members[pid] = node
        try:
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
        self._bridge = Bridge(hood.peer, hood.max_attempts)
        self._bridging: dict[str, trio.CancelScope] = {}
        self._attempts: dict[str, Attempt] = {}
        self._answers: dict[str, Answer] = {}
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
            self._live_with_new_attempt, Carried(self._hood, carry), None, timeout
        )
        return end

    def accept(self, carry: Carry, request: JSON, *, timeout: float | None = None) -> None:
        """Take in a message that somebody's `initiate` carried here; answers go by *carry*.

        An `ArcOpen` or `ArcFail` follows. What *carry* raises, but for an OutcomeError, ends
        this node.

        MalformedFrame: *request* is none.
        UsageError: this node has left.
        """
        self._check_here()
        message = decode_arc_message(request)
        if isinstance(message, ArcResponse):
            raise MalformedFrame("an MResponse where an MRequest belongs")
        self._take_request(message, Carried(self._hood, carry), None, timeout)

    def finalize(self, response: JSON) -> None:
        """Take in a message that the other end's `accept` carried here.

        One of an attempt that is over, or that nobody here began, is ignored.

        MalformedFrame: *response* is none.
        """
        message = decode_arc_message(response)
        if isinstance(message, ArcRequest):
            raise MalformedFrame("an MRequest where an MResponse belongs")
        self._take_response(message, None)

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
            end: str = await self._hood.start(self._live_with_new_attempt, way, target, None)
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
            case ConnectTo(from_, to):
                if peer_of(from_) != self.peer or peer_of(to) == self.peer:
                    logger.info("%r asks for an arc from %.80s to %.80s", link, from_, to)
                else:
                    self._begin_for(link, Bridged(self._hood, self.pid, link.end, from_, to), to)
            case Direct():
                self._begin_for(link, OnLink(self._hood, self.pid, link.end), link.end)
            case ArcRequest() | ArcResponse() | ArcEnd():
                if peer_of(payload.peer) != link.peer:
                    logger.info("%r speaks for %.80s: it is ignored", link, payload.peer)
                else:
                    self._take_message(payload, OnLink(self._hood, self.pid, link.end), link)
            case Forward(has_arrived=False):
                self._take_for_others(link, payload)
            case Forward():
                self._take_forwarded(link, payload)
            case Disconnect(tid):
                if self._hood.arcs.arcs_of(link.number).get(tid) == self.pid:
                    self._hood.remove_arc(link, tid, "removed by the neighbour", tell=False)
            case Credit():
                raise AssertionError("the link takes those")

    def note_arc(self, link: Link) -> None:
        """See `Member`."""
        self.events.put(ArcOpen(link.end, link.side is Side.OUT))

    def note_arc_end(self, link: Link, reason: str) -> None:
        """See `Member`."""
        self.events.put(ArcClose(link.end, link.side is Side.OUT, reason))

    def note_link(self, link: Link) -> None:
        """See `Member`."""
        for attempt in list(self._attempts.values()):
            if attempt.awaits_link and link.end == attempt.initiator.end:
                self._settle(attempt, link)

    def note_link_end(self, link: Link) -> None:
        """See `Member`."""
        for attempt in list(self._attempts.values()):
            if attempt.asked_on is link:
                attempt.asking.cancel()  # it goes on to a connection of its own
        for tid, ends in list(self._bridge.attempts.items()):
            if link.peer in ends and self._hood.find_link(link.end, self.pid) is None:
                self._forget_bridged(tid)

    def leave(self) -> None:
        """See `Member`."""
        self._has_left = True
        for attempt in list(self._attempts.values()):
            attempt.fail("the node left")
            attempt.say_end("the node left")
        for answer in list(self._answers.values()):
            answer.fail("the node left")
            answer.refuse("the node left")
        for tid in list(self._bridge.attempts):
            self._forget_bridged(tid)
        self.events.close()
        self.messages.close()

    # --- attempts of ours -----------------------------------------------------------------

    def _begin_for(self, link: Link, way: Way, target: str) -> None:
        """Try to open an arc because the neighbour on *link* asks for it."""
        asked = sum(attempt.asked_by == link.peer for attempt in self._attempts.values())
        if asked >= self._hood.max_attempts or self._has_left:
            logger.info("%r asks for too many arcs: one is not tried", link)
            return
        attempt = self._make_attempt(way, target, None, link.peer)
        self._hood.nursery.start_soon(self._try, attempt)

    async def _try(self, attempt: Attempt) -> None:
        try:
            await self._live_with_attempt(attempt)
        except OutcomeError as error:
            logger.info(
                "no arc to %s, which %s asked for: %s", attempt.target, attempt.asked_by, error
            )

    def _make_attempt(
        self, way: Way, target: str | None, timeout: float | None, asked_by: str | None = None
    ) -> Attempt:
        attempt = Attempt(self._hood, self.pid, way, target, timeout, asked_by)
        self._attempts[attempt.tid] = attempt
        return attempt

    async def _live_with_new_attempt(
        self,
        way: Way,
        target: str | None,
        timeout: float | None,
        *,
        task_status: trio.TaskStatus[str],
    ) -> None:
        await self._live_with_attempt(self._make_attempt(way, target, timeout), task_status)

    async def _live_with_attempt(
        self, attempt: Attempt, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Try to open an arc, and live with the connection if it is a new one."""
        reason = "cancelled"
        try:
            await self._ask_for_arc(attempt)
            if not attempt.is_decided:
                async with self._hood.network.open_peer(initiator=True) as peer:
                    channel: Channel | None = None
                    with attempt.shaking:
                        channel = await shake_hands(peer, attempt.road)
                    if channel is not None and not attempt.is_decided:
                        link = self._open_link(attempt, channel)
                        task_status.started(link.end)
                        await link.run()
                        return
            if attempt.arc_on is None:
                raise attempt.failure or ConnectionFailed(f"no arc within {attempt.timeout:g} s")
            end = attempt.arc_on.end
            self._end_attempt(attempt, None)
            task_status.started(end)
        except OutcomeError as error:
            reason = str(error)
            if attempt.error is not None:
                raise attempt.error from None
            raise
        finally:
            if attempt.tid in self._attempts:
                self._end_attempt(attempt, reason)

    async def _ask_for_arc(self, attempt: Attempt) -> None:
        """If we are connected to the target, and it is one of ours, ask for an arc more there."""
        if attempt.target is None:
            return
        link = self._hood.find_link(attempt.target, self.pid, Side.OUT)
        if link is not None and ARCS in link.extensions:
            attempt.ask(link)
            with attempt.asking:
                await trio.sleep_forever()

    def _open_link(self, attempt: Attempt, channel: Channel) -> Link:
        """The connection that *attempt* has come to, with its first arc."""
        initiator = attempt.initiator
        assert initiator.end is not None
        link = self._hood.add_link(channel, Side.OUT, initiator.end, initiator.extensions)
        self._hood.add_arc(link, attempt.tid, self.pid)
        self._end_attempt(attempt, None)
        self._hood.announce(link)
        return link

    def _end_attempt(self, attempt: Attempt, reason: str | None) -> None:
        """It is over; with a *reason*, it came to nothing."""
        del self._attempts[attempt.tid]
        attempt.say_end(reason)
        if reason is not None:
            if attempt.arc_on is not None and attempt.arc_on.is_open:
                self._hood.remove_arc(attempt.arc_on, attempt.tid, reason, tell=True)
            self.events.put(ArcFail(attempt.initiator.end or attempt.target, True, reason))

    def _settle(self, attempt: Attempt, link: Link) -> None:
        """The other end has counted the arc on *link*, and so do we."""
        self._hood.add_arc(link, attempt.tid, self.pid)
        attempt.settle(link)

    def _take_response(self, message: ArcResponse | ArcEnd, link: Link | None) -> None:
        """Somebody answers an attempt, by the connection *link* between the two if there is one."""
        attempt = self._attempts.get(message.tid)
        if attempt is None:
            self._disown(message, link)
            return
        match attempt.initiator.take(message):
            case TakeSignal():
                _deliver(attempt.road, message)
            case TakeArc() if ARCS in attempt.initiator.extensions:
                # One of ours says so on the connection itself, if it says so elsewhere or not:
                # there may be two, and both ends are to mean the same.
                if link is not None and (link.side, link.end) == (Side.OUT, message.peer):
                    self._settle(attempt, link)
            case TakeArc():
                known = self._link_from(Side.OUT, message.peer)
                attempt.awaits_link = known is None
                if known is not None:
                    self._settle(attempt, known)
            case Fail(reason):
                attempt.fail(reason)
            case Drop(reason):
                logger.info("an answer of %.80s is ignored: %s", message.peer, reason)

    def _disown(self, message: ArcResponse | ArcEnd, link: Link | None) -> None:
        """Of an attempt that is over here the other end may have made an arc: tell it."""
        if (
            isinstance(message, ArcResponse)
            and message.offer is None
            and link is not None
            and link.side is Side.OUT
            and message.tid not in self._hood.arcs.arcs_of(link.number)
            and ARCS in link.extensions
        ):
            link.post(self.pid, Disconnect(message.tid))

    def _link_from(self, side: Side, end: str) -> Link | None:
        """The oldest connection to exactly *end* whose arcs are in the view *side*."""
        links = self._hood.links.values()
        return next((link for link in links if (link.side, link.end) == (side, end)), None)

    # --- attempts of others ---------------------------------------------------------------

    def _take_message(self, message: ArcMessage, way: Way, link: Link | None) -> None:
        """One end of an attempt said *message*, by *way*; on *link*, if that leads to it."""
        if message.pid != self.pid:
            logger.info("a message of the protocol %.80s is ignored in another", message.pid)
        elif isinstance(message, ArcResponse) or message.tid in self._attempts:
            assert not isinstance(message, ArcRequest) or message.tid in self._attempts
            if not isinstance(message, ArcRequest):
                self._take_response(message, link)
        else:
            self._take_request(message, way, link, None)

    def _take_request(
        self, message: ArcRequest | ArcEnd, way: Way, link: Link | None, timeout: float | None
    ) -> None:
        if isinstance(message, ArcRequest) and message.offer is None:
            known = link if link and (link.side, link.end) == (Side.IN, message.peer) else None
        else:
            known = self._link_from(Side.IN, message.peer)
        if isinstance(message, ArcEnd) and message.reason is not None:
            self._take_back(message)
        verdict = self._hood.acceptor.take(message, way.source, is_connected=known is not None)
        match verdict:
            case Begin():
                assert isinstance(message, ArcRequest)
                answer = Answer(self._hood, self.pid, message, way, timeout)
                self._answers[message.tid] = answer
                _deliver(answer.road, message)
                self._hood.nursery.start_soon(self._live_with_answer, answer)
            case HandOver():
                assert isinstance(message, ArcRequest)
                _deliver(self._answers[message.tid].road, message)
            case AddArc():
                assert known is not None
                self._hood.add_arc(known, message.tid, self.pid)
                response = ArcResponse(
                    message.tid, self.inview_id, self.pid, None, extensions=EXTENSIONS
                )
                if ARCS in known.extensions:
                    known.post(self.pid, response)
                if ARCS not in known.extensions or way.source is None:
                    way.say_nowait(response, is_understood=True)
            case Withdraw(reason):
                self._answers[message.tid].fail(reason)
            case Refuse(reason):
                logger.info("an arc of %.80s is refused: %s", message.peer, reason)
                if isinstance(message, ArcRequest) and ARCS in message.extensions:
                    end = ArcEnd(message.tid, self.inview_id, self.pid, reason)
                    way.say_nowait(end, is_understood=True)
            case Drop(reason):
                logger.debug("a message of %.80s is ignored: %s", message.peer, reason)

    def _take_back(self, end: ArcEnd) -> None:
        """An attempt came to nothing at its own end: what we have counted of it is no arc."""
        for link in list(self._hood.links.values()):
            if (link.side, link.end) == (Side.IN, end.peer):
                self._hood.remove_arc(link, end.tid, end.reason or "", tell=False)

    async def _live_with_answer(self, answer: Answer) -> None:
        """Answer an attempt, and live with the connection that it comes to."""
        request = answer.request
        reason = "cancelled"
        try:
            async with self._hood.network.open_peer(initiator=False) as peer:
                channel: Channel | None = None
                with answer.shaking:
                    channel = await shake_hands(peer, answer.road)
                if channel is None or answer.failure is not None:
                    raise answer.failure or ConnectionFailed(f"no arc within {answer.timeout:g} s")
                link = self._hood.add_link(channel, Side.IN, request.peer, request.extensions)
                self._hood.add_arc(link, request.tid, self.pid)
                self._end_answer(answer, None)
                self._hood.announce(link)
                await link.run()
        except OutcomeError as error:
            reason = str(error)
            if answer.error is not None:
                raise answer.error from None
        finally:
            if request.tid in self._answers:
                self._end_answer(answer, reason)

    def _end_answer(self, answer: Answer, reason: str | None) -> None:
        """It is over; with a *reason*, it came to nothing."""
        del self._answers[answer.request.tid]
        self._hood.acceptor.end(answer.request.tid)
        if reason is not None:
            answer.refuse(reason)
            self.events.put(ArcFail(answer.request.peer, False, reason))

    # --- attempts that we bridge ----------------------------------------------------------

    def _take_for_others(self, link: Link, forward: Forward) -> None:
        """A neighbour wants a message passed on."""
        try:
            message = decode_arc_message(forward.message)
        except MalformedFrame as error:
            logger.info("%r wants something else passed on: %s", link, error)
            return
        if message.pid != self.pid:
            return
        verdict = self._bridge.take(
            link.peer,
            forward.from_,
            forward.to,
            message,
            lambda peer: self._hood.find_link(peer, self.pid) is not None,
        )
        match verdict:
            case Pass(to):
                target = self._hood.find_link(forward.to, self.pid)
                assert target is not None, f"the bridge passes on to {to}"
                arrived = Forward(forward.from_, forward.to, forward.message, has_arrived=True)
                target.post(self.pid, arrived)
            case Refuse(reason):
                logger.info("%r wants what cannot be: %s", link, reason)
                if ARCS in link.extensions and not isinstance(message, ArcEnd):
                    end = ArcEnd(message.tid, forward.to, self.pid, reason)
                    said = encode_arc_message(end)
                    link.post(self.pid, Forward(forward.to, forward.from_, said, has_arrived=True))
            case Drop(reason):
                logger.debug("what %r wants passed on is ignored: %s", link, reason)
        self._note_bridging(message.tid)

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

    def _note_bridging(self, tid: str) -> None:
        """Own, for as long as it is kept in mind, the attempt *tid* that we bridge."""
        if tid not in self._bridge.attempts:
            self._forget_bridged(tid)
        elif tid not in self._bridging:
            scope = self._bridging[tid] = trio.CancelScope()
            self._hood.nursery.start_soon(self._live_with_bridged, tid, scope)

    def _forget_bridged(self, tid: str) -> None:
        self._bridge.forget(tid)
        scope = self._bridging.pop(tid, None)
        if scope is not None:
            scope.cancel()

    async def _live_with_bridged(self, tid: str, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep(self._hood.attempt_timeout + BRIDGE_GRACE)
        if self._bridging.get(tid) is scope:
            self._forget_bridged(tid)

    # --- channels that come up by other means ---------------------------------------------

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
                introduce = self._introduce_out if is_outgoing else self._introduce_in
                link = await introduce(channel)
            if link is None:
                raise ConnectionFailed("the other end of the channel does not speak of an arc")
            task_status.started(link.end)
            self._hood.announce(link)
            await link.run()

    async def _introduce_out(self, channel: Channel) -> Link:
        tid = self._hood.make_tid()
        answer = await ask_on(channel, self.outview_id, self.pid, tid)
        if peer_of(answer.peer) == self.peer:
            raise ConnectionFailed("a peer has no arc to itself")
        link = self._hood.add_link(channel, Side.OUT, answer.peer, answer.extensions)
        self._hood.add_arc(link, tid, self.pid)
        return link

    async def _introduce_in(self, channel: Channel) -> Link:
        request = await hear_on(channel)
        refusal = None
        if request.pid != self.pid:
            refusal = f"it speaks of the protocol {request.pid:.80}, and this is {self.pid}"
        elif peer_of(request.peer) == self.peer:
            refusal = "a peer has no arc to itself"
        if refusal is not None:
            end = ArcEnd(request.tid, self.inview_id, request.pid, refusal)
            await answer_on(channel, self.inview_id, end)
            raise ConnectionFailed(refusal)
        response = ArcResponse(request.tid, self.inview_id, self.pid, None, extensions=EXTENSIONS)
        await answer_on(channel, self.inview_id, response)
        link = self._hood.add_link(channel, Side.IN, request.peer, request.extensions)
        self._hood.add_arc(link, request.tid, self.pid)
        return link


def _deliver(road: PushedRoad, message: ArcRequest | ArcResponse | ArcEnd) -> None:
    """Hand the signal in *message* to *road*; one that cannot be understood is passed over."""
    assert not isinstance(message, ArcEnd)
    try:
        road.deliver(decode_signal(message.offer))
    except MalformedFrame as error:
        logger.info("a signal of %.80s is passed over: %s", message.peer, error)


def _checked_name(what: str, name: str) -> str:
    if not 0 < len(name) <= MAX_NAME - 2:
        raise ValueError(f"a {what} has 1 to {MAX_NAME - 2} characters, not {len(name)}")
    return name
