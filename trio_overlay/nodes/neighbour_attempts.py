"""Our own attempts at arcs: each a task, from the first word to the end of the connection."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.errors import ConnectionFailed, MalformedFrame, OutcomeError
from trio_overlay.nodes.neighbour_link import Link
from trio_overlay.nodes.neighbour_ways import Bridged, Way
from trio_overlay.nodes.neighbourhood import Neighbourhood
from trio_overlay.protocol.arcs import MAX_ARCS_EACH, Drop, Fail, Initiator, TakeArc, TakeSignal
from trio_overlay.protocol.neighbours import (
    ARCS,
    EXTENSIONS,
    ArcEnd,
    ArcRequest,
    ArcResponse,
    Disconnect,
    Side,
)
from trio_overlay.protocol.signals import Signal, decode_signal, encode_signal
from trio_overlay.signaling.handshake import shake_hands
from trio_overlay.signaling.roads import PushedRoad

logger = logging.getLogger(__name__)


class Attempt:
    """An attempt at an arc to *target*, or to whoever answers."""

    def __init__(
        self,
        hood: Neighbourhood,
        pid: str,
        way: Way,
        target: str | None,
        timeout: float | None,
        asked_by: str | None,
    ) -> None:
        self.tid = hood.make_tid()
        self.initiator = Initiator(hood.peer, self.tid, pid, target)
        self.target = target
        self.asked_by = asked_by
        """The neighbour at whose wish it is made, if it is not our own."""
        self.timeout = hood.attempt_timeout if timeout is None else timeout
        self.way = way
        self.road = PushedRoad(self._carry)
        deadline = trio.current_time() + self.timeout
        self.asking = trio.CancelScope(deadline=deadline)
        """Around waiting for an arc more on the connection `asked_on`."""
        self.asked_on: Link | None = None
        self.shaking = trio.CancelScope(deadline=deadline)
        """Around the handshake for a connection of its own."""
        self.awaits_link = False
        """Whether the other end has counted the arc on a connection that is not here yet."""
        self.arc_on: Link | None = None
        """The connection that there was already, once the arc is open on it."""
        self.failure: OutcomeError | None = None
        self._pid = pid
        self._own_end = Side.OUT.end_of(hood.peer)
        self._has_spoken = False

    @property
    def is_decided(self) -> bool:
        """Whether there is an arc, on a connection that there was, or there will be none."""
        return self.arc_on is not None or self.failure is not None

    @property
    def end(self) -> str | None:
        """The other end, as far as it is known."""
        return self.initiator.end or self.target

    def ask(self, link: Link) -> None:
        """Ask for an arc more on *link*, which leads to one of ours."""
        self.asked_on = link
        link.keep_for_now()
        request = ArcRequest(self.tid, self._own_end, self._pid, None, extensions=EXTENSIONS)
        link.post(self._pid, request)

    def settle(self, link: Link) -> None:
        """The arc is open, on the connection *link*."""
        self.arc_on = link
        self.asking.cancel()
        self.shaking.cancel()

    def fail(self, reason: str) -> None:
        """There will be no arc."""
        if not self.is_decided:
            self.failure = ConnectionFailed(reason)
            self.asking.cancel()
            self.shaking.cancel()

    def say_end(self, reason: str | None) -> None:
        """Tell those who know of this attempt that it is over, once; None: there is an arc."""
        end = ArcEnd(self.tid, self._own_end, self._pid, reason)
        if self.asked_on is not None and reason is not None:
            self.asked_on.post(self._pid, end)
        # Where there is an arc, only a bridge does not know it yet.
        if self._has_spoken and (reason is not None or isinstance(self.way, Bridged)):
            self.way.say_nowait(end, is_understood=ARCS in self.initiator.extensions)
        self.asked_on = None
        self._has_spoken = False

    async def _carry(self, signal: Signal) -> None:
        self._has_spoken = True
        offer = encode_signal(signal)
        await self.way.carry(
            ArcRequest(self.tid, self._own_end, self._pid, offer, extensions=EXTENSIONS)
        )


class Attempts:
    """The attempts of one protocol that are under way.

    *on_fail* is called with the other end, as far as it is known, and the reason of each that
    comes to nothing.
    """

    def __init__(
        self, hood: Neighbourhood, pid: str, on_fail: Callable[[str | None, str], object]
    ) -> None:
        self._hood = hood
        self._pid = pid
        self._on_fail = on_fail
        self._attempts: dict[str, Attempt] = {}

    def __len__(self) -> int:
        return len(self._attempts)

    def __contains__(self, tid: object) -> bool:
        return tid in self._attempts

    async def run(
        self,
        way: Way,
        target: str | None,
        timeout: float | None,
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Try to open an arc, and live with the connection if it is a new one.

        Started when the arc is open, with its other end.

        ConnectionFailed, and what an application's way raises: it came to nothing.
        """
        await self._live(self._begin(way, target, timeout, None), task_status)

    def run_for(self, neighbour: str, way: Way, target: str) -> None:
        """Try to open an arc because *neighbour* asks for it; not too many at a time."""
        asked = sum(attempt.asked_by == neighbour for attempt in self._attempts.values())
        link = self._hood.find_link(target, self._pid, Side.OUT)
        arcs = 0 if link is None else len(self._hood.arcs.arcs_of(link.number))
        if asked >= self._hood.max_attempts or arcs >= MAX_ARCS_EACH:
            logger.info("%s asks for too many arcs: one is not tried", neighbour)
            return
        attempt = self._begin(way, target, None, neighbour)
        self._hood.nursery.start_soon(self._try, attempt)

    def take(self, message: ArcResponse | ArcEnd, link: Link | None) -> None:
        """Somebody answers an attempt: by *link*, if that is a connection between its two ends."""
        attempt = self._attempts.get(message.tid)
        if attempt is None:
            self._disown(message, link)
            return
        match attempt.initiator.take(message):
            case TakeSignal():
                try:
                    attempt.road.deliver(decode_signal(message.offer))  # type: ignore[union-attr]
                except MalformedFrame as error:
                    logger.info("a signal of %.80s is passed over: %s", message.peer, error)
            case TakeArc() if ARCS in attempt.initiator.extensions:
                # One of ours says so on the connection itself, if it says so elsewhere or not:
                # there may be two, and both ends are to mean the same.
                if link is not None and (link.side, link.end) == (Side.OUT, message.peer):
                    self._settle(attempt, link)
            case TakeArc():
                known = self._hood.link_between(Side.OUT, message.peer)
                attempt.awaits_link = known is None
                if known is not None:
                    self._settle(attempt, known)
            case Fail(reason):
                attempt.fail(reason)
            case Drop(reason):
                logger.info("an answer of %.80s is ignored: %s", message.peer, reason)

    def note_link(self, link: Link) -> None:
        """There is a new *link*; an attempt may have its arc on it already."""
        for attempt in list(self._attempts.values()):
            if attempt.awaits_link and (link.side, link.end) == (Side.OUT, attempt.initiator.end):
                self._settle(attempt, link)

    def note_link_end(self, link: Link) -> None:
        """*link* has ended: who has asked for an arc on it goes on to a connection of its own."""
        for attempt in list(self._attempts.values()):
            if attempt.asked_on is link:
                attempt.asking.cancel()

    def leave(self, reason: str) -> None:
        """Give all of them up, and say so now."""
        for attempt in list(self._attempts.values()):
            attempt.fail(reason)
            if attempt.failure is not None:
                attempt.say_end(reason)

    def _begin(
        self, way: Way, target: str | None, timeout: float | None, asked_by: str | None
    ) -> Attempt:
        attempt = Attempt(self._hood, self._pid, way, target, timeout, asked_by)
        self._attempts[attempt.tid] = attempt
        return attempt

    async def _try(self, attempt: Attempt) -> None:
        try:
            await self._live(attempt)
        except OutcomeError as error:
            neighbour = attempt.asked_by
            logger.info("no arc to %s, which %s asked for: %s", attempt.target, neighbour, error)

    async def _live(
        self, attempt: Attempt, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
    ) -> None:
        reason = "cancelled"
        try:
            await self._ask(attempt)
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
            self._end(attempt, None)
            task_status.started(attempt.arc_on.end)
        except OutcomeError as error:
            reason = str(error)
            if attempt.way.error is not None:
                raise attempt.way.error from None
            raise
        finally:
            if attempt.tid in self._attempts:
                self._end(attempt, reason)

    async def _ask(self, attempt: Attempt) -> None:
        """If we are connected to the target, and it is one of ours, ask for an arc more there."""
        if attempt.target is None:
            return
        link = self._hood.find_link(attempt.target, self._pid, Side.OUT)
        if link is not None and ARCS in link.extensions:
            attempt.ask(link)
            with attempt.asking:
                await trio.sleep_forever()

    def _open_link(self, attempt: Attempt, channel: Channel) -> Link:
        """The connection that *attempt* has come to, with its first arc."""
        initiator = attempt.initiator
        assert initiator.end is not None
        link = self._hood.add_link(channel, Side.OUT, initiator.end, initiator.extensions)
        self._hood.add_arc(link, attempt.tid, self._pid)
        self._end(attempt, None)
        self._hood.announce(link)
        return link

    def _settle(self, attempt: Attempt, link: Link) -> None:
        """The other end has counted the arc on *link*, and so do we."""
        self._hood.add_arc(link, attempt.tid, self._pid)
        attempt.settle(link)

    def _end(self, attempt: Attempt, reason: str | None) -> None:
        """It is over; with a *reason*, it came to nothing."""
        del self._attempts[attempt.tid]
        attempt.say_end(reason)
        if reason is not None:
            if attempt.arc_on is not None and attempt.arc_on.is_open:
                self._hood.remove_arc(attempt.arc_on, attempt.tid, reason, tell=True)
            self._on_fail(attempt.end, reason)

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
            link.post(self._pid, Disconnect(message.tid))
