"""Attempts of others at arcs to us: each a task, from the first word to the connection's end."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.errors import ConnectionFailed, MalformedFrame, OutcomeError
from trio_overlay.nodes.neighbour_link import Link
from trio_overlay.nodes.neighbour_ways import Way
from trio_overlay.nodes.neighbourhood import Neighbourhood
from trio_overlay.protocol.arcs import AddArc, Begin, Drop, HandOver, Refuse, Withdraw
from trio_overlay.protocol.neighbours import (
    ARCS,
    EXTENSIONS,
    ArcEnd,
    ArcRequest,
    ArcResponse,
    Side,
)
from trio_overlay.protocol.signals import Signal, decode_signal, encode_signal
from trio_overlay.signaling.handshake import shake_hands
from trio_overlay.signaling.roads import PushedRoad

logger = logging.getLogger(__name__)


class Answer:
    """An attempt that is being answered."""

    def __init__(
        self, hood: Neighbourhood, pid: str, request: ArcRequest, way: Way, timeout: float | None
    ) -> None:
        self.request = request
        self.timeout = hood.attempt_timeout if timeout is None else timeout
        self.way = way
        self.road = PushedRoad(self._carry)
        self.shaking = trio.CancelScope(deadline=trio.current_time() + self.timeout)
        """Around the handshake."""
        self.failure: OutcomeError | None = None
        self._pid = pid
        self._own_end = Side.IN.end_of(hood.peer)
        self._is_refused = False

    def deliver(self, request: ArcRequest) -> None:
        """Hand on the signal in *request*; one that cannot be understood is passed over."""
        try:
            self.road.deliver(decode_signal(request.offer))
        except MalformedFrame as error:
            logger.info("a signal of %.80s is passed over: %s", request.peer, error)

    def fail(self, reason: str) -> None:
        """There will be no arc."""
        if self.failure is None:
            self.failure = ConnectionFailed(reason)
            self.shaking.cancel()

    def refuse(self, reason: str) -> None:
        """Tell the other end, if it understands, that there will be no arc; once."""
        if not self._is_refused and ARCS in self.request.extensions:
            self._is_refused = True
            end = ArcEnd(self.request.tid, self._own_end, self._pid, reason)
            self.way.say_nowait(end, is_understood=True)

    async def _carry(self, signal: Signal) -> None:
        tid, offer = self.request.tid, encode_signal(signal)
        await self.way.carry(
            ArcResponse(tid, self._own_end, self._pid, offer, extensions=EXTENSIONS)
        )


class Answers:
    """The attempts of others that one protocol answers.

    *on_fail* is called with the other end and the reason of each that comes to nothing.
    """

    def __init__(
        self, hood: Neighbourhood, pid: str, on_fail: Callable[[str, str], object]
    ) -> None:
        self._hood = hood
        self._pid = pid
        self._own_end = Side.IN.end_of(hood.peer)
        self._on_fail = on_fail
        self._answers: dict[str, Answer] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def take(
        self,
        message: ArcRequest | ArcEnd,
        way: Way,
        link: Link | None,
        timeout: float | None = None,
    ) -> None:
        """Somebody wants an arc, or no more: by *way*; on *link*, if that leads to its end."""
        if isinstance(message, ArcRequest) and message.offer is None:
            known = link if link and (link.side, link.end) == (Side.IN, message.peer) else None
        else:
            known = self._hood.link_between(Side.IN, message.peer)
        if isinstance(message, ArcEnd):
            self._take_back(message)
        arcs = None if known is None else len(self._hood.arcs.arcs_of(known.number))
        verdict = self._hood.acceptor.take(message, way.source, arcs)
        match verdict:
            case Begin():
                assert isinstance(message, ArcRequest)
                answer = Answer(self._hood, self._pid, message, way, timeout)
                self._answers[message.tid] = answer
                answer.deliver(message)
                self._hood.nursery.start_soon(self._live, answer)
            case HandOver():
                assert isinstance(message, ArcRequest)
                self._answers[message.tid].deliver(message)
            case AddArc():
                assert known is not None
                self._add_arc(known, message.tid, way)
            case Withdraw(reason):
                self._answers[message.tid].fail(reason)
            case Refuse(reason):
                logger.info("an arc of %.80s is refused: %s", message.peer, reason)
                if isinstance(message, ArcRequest) and ARCS in message.extensions:
                    end = ArcEnd(message.tid, self._own_end, self._pid, reason)
                    way.say_nowait(end, is_understood=True)
            case Drop(reason):
                logger.debug("a message of %.80s is ignored: %s", message.peer, reason)

    def leave(self, reason: str) -> None:
        """Give all of them up, and say so now."""
        for answer in list(self._answers.values()):
            answer.fail(reason)
            answer.refuse(reason)

    def _add_arc(self, link: Link, tid: str, way: Way) -> None:
        """There is an arc more on a connection that there was; tell the other end."""
        self._hood.add_arc(link, tid, self._pid)
        response = ArcResponse(tid, self._own_end, self._pid, None, extensions=EXTENSIONS)
        if ARCS in link.extensions:
            # On the connection itself: whatever becomes of the way, both ends count the same.
            link.post(self._pid, response)
        if ARCS not in link.extensions or way.source is None:
            way.say_nowait(response, is_understood=True)

    def _take_back(self, end: ArcEnd) -> None:
        """An attempt came to nothing at its own end: what we have counted of it is no arc."""
        if end.reason is None:
            return
        for link in list(self._hood.links.values()):
            if (link.side, link.end) == (Side.IN, end.peer):
                self._hood.remove_arc(link, end.tid, end.reason, tell=False)

    async def _live(self, answer: Answer) -> None:
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
                self._hood.add_arc(link, request.tid, self._pid)
                self._end(answer, None)
                self._hood.announce(link)
                await link.run()
        except OutcomeError as error:
            reason = str(error)
            logger.info("an arc of %s did not come up: %s", request.peer, error)
            if answer.way.error is not None:
                logger.error("the application could not carry an answer", exc_info=answer.way.error)
        finally:
            if request.tid in self._answers:
                self._end(answer, reason)

    def _end(self, answer: Answer, reason: str | None) -> None:
        """It is over; with a *reason*, it came to nothing."""
        del self._answers[answer.request.tid]
        self._hood.acceptor.end(answer.request.tid)
        if reason is not None:
            answer.refuse(reason)
            self._on_fail(answer.request.peer, reason)
