"""Attempts at arcs, ours and those we answer, and the ways their messages travel.

An attempt is data here; the task that lives with it is in neighbours.py.
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.errors import ConnectionFailed, OutcomeError, PeerNotFound, ProtocolError
from trio_overlay.nodes.neighbour_link import Link
from trio_overlay.nodes.neighbourhood import Neighbourhood
from trio_overlay.protocol.arcs import Initiator
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.neighbours import (
    ARCS,
    EXTENSIONS,
    ArcEnd,
    ArcMessage,
    ArcRequest,
    ArcResponse,
    Forward,
    Payload,
    Send,
    Side,
    decode_neighbour,
    decode_payload,
    encode_arc_message,
    encode_neighbour,
    encode_payload,
    peer_of,
)
from trio_overlay.protocol.signals import Signal, encode_signal
from trio_overlay.signaling.roads import PushedRoad

logger = logging.getLogger(__name__)

FAREWELL_TIMEOUT = 1.0

Carry: TypeAlias = Callable[[JSON], Awaitable[None]]
"""An application's way to bring a message of an attempt to the other end."""


# --- ways ---------------------------------------------------------------------------------


class Way(abc.ABC):
    """How the messages of one attempt get to its other end."""

    source: str | None
    """The neighbour by which they come; None for a way that the application brought."""

    @abc.abstractmethod
    async def carry(self, message: ArcMessage) -> None:
        """Bring *message* to the other end.

        OutcomeError: it cannot be reached this way. Others: what an application's way raises.
        """

    @abc.abstractmethod
    def say_nowait(self, message: ArcMessage, *, is_understood: bool) -> None:
        """The same without waiting, if it can be done, for an answer that nobody waits for.

        *is_understood* says whether the other end is known to be ours: what the originals have
        no name for goes to nobody else, unless it does no harm.
        """


class OnLink(Way):
    """Over a connection that the two have."""

    def __init__(self, hood: Neighbourhood, pid: str, end: str) -> None:
        self.source = peer_of(end)
        self._hood, self._pid, self._end = hood, pid, end

    async def carry(self, message: ArcMessage) -> None:
        link = self._hood.find_link(self._end, self._pid)
        if link is None:
            raise PeerNotFound(f"the connection to {self._end} is gone")
        link.post(self._pid, message)
        await trio.lowlevel.checkpoint()

    def say_nowait(self, message: ArcMessage, *, is_understood: bool) -> None:  # noqa: ARG002
        link = self._hood.find_link(self._end, self._pid)
        if link is not None and (ARCS in link.extensions or not isinstance(message, ArcEnd)):
            link.post(self._pid, message)


class Bridged(Way):
    """Through a neighbour that is connected to both."""

    def __init__(self, hood: Neighbourhood, pid: str, bridge: str, own: str, other: str) -> None:
        self.source = peer_of(bridge)
        self._hood, self._pid = hood, pid
        self._bridge = bridge
        self._own, self._other = own, other
        """The two ends, as the bridge calls them."""

    async def carry(self, message: ArcMessage) -> None:
        link = self._hood.find_link(self._bridge, self._pid)
        if link is None:
            raise PeerNotFound(f"the connection to the bridge {self._bridge} is gone")
        link.post(self._pid, self._wrap(message))
        await trio.lowlevel.checkpoint()

    def say_nowait(self, message: ArcMessage, *, is_understood: bool) -> None:  # noqa: ARG002
        link = self._hood.find_link(self._bridge, self._pid)
        if link is not None:
            # The originals pass on any message, and ignore those of a type unknown to them.
            link.post(self._pid, self._wrap(message))

    def _wrap(self, message: ArcMessage) -> Payload:
        return Forward(self._own, self._other, encode_arc_message(message), has_arrived=False)


class Carried(Way):
    """By a function that the application brought."""

    source = None

    def __init__(self, hood: Neighbourhood, carry: Carry) -> None:
        self._hood, self._carry = hood, carry

    async def carry(self, message: ArcMessage) -> None:
        await self._carry(encode_arc_message(message))

    def say_nowait(self, message: ArcMessage, *, is_understood: bool) -> None:
        if is_understood or not isinstance(message, ArcEnd):
            self._hood.nursery.start_soon(self._say, message)

    async def _say(self, message: ArcMessage) -> None:
        try:
            with trio.move_on_after(FAREWELL_TIMEOUT, shield=True):
                await self.carry(message)
        except OutcomeError as error:
            logger.info("a word on an attempt did not arrive: %s", error)


# --- attempts -----------------------------------------------------------------------------


class Attempt:
    """An attempt of ours at an arc to *target*, or to whoever answers."""

    def __init__(
        self,
        hood: Neighbourhood,
        pid: str,
        way: Way,
        target: str | None,
        timeout: float | None,
        asked_by: str | None = None,
    ) -> None:
        self.tid = hood.make_tid()
        self.initiator = Initiator(hood.peer, self.tid, pid, target)
        self.target = target
        self.asked_by = asked_by
        """The neighbour at whose wish it is made, if it is not our own."""
        self.timeout = hood.attempt_timeout if timeout is None else timeout
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
        self.error: Exception | None = None
        """What the application's way raised."""
        self._way = way
        self._pid = pid
        self._own_end = Side.OUT.end_of(hood.peer)
        self._has_spoken = False

    @property
    def is_decided(self) -> bool:
        """Whether there is an arc, on a connection that there was, or there will be none."""
        return self.arc_on is not None or self.failure is not None

    def ask(self, link: Link) -> None:
        """Ask for an arc more on *link*, which leads to one of ours."""
        self.asked_on = link
        link.keep_for_now()
        link.post(
            self._pid, ArcRequest(self.tid, self._own_end, self._pid, None, extensions=EXTENSIONS)
        )

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
        """Tell those who know of this attempt that it is over; None: there is an arc."""
        end = ArcEnd(self.tid, self._own_end, self._pid, reason)
        if self.asked_on is not None and reason is not None:
            self.asked_on.post(self._pid, end)
        if self._has_spoken:
            self._has_spoken = False
            if reason is not None or isinstance(self._way, Bridged):
                is_understood = ARCS in self.initiator.extensions
                self._way.say_nowait(end, is_understood=is_understood)
        self.asked_on = None

    async def _carry(self, signal: Signal) -> None:
        self._has_spoken = True
        message = ArcRequest(
            self.tid, self._own_end, self._pid, encode_signal(signal), extensions=EXTENSIONS
        )
        self.error = await _carry_by(self._way, message)
        if self.error is not None:
            raise ConnectionFailed("the message could not be carried") from self.error


class Answer:
    """An attempt of somebody else's that is being answered."""

    def __init__(
        self, hood: Neighbourhood, pid: str, request: ArcRequest, way: Way, timeout: float | None
    ) -> None:
        self.request = request
        self.timeout = hood.attempt_timeout if timeout is None else timeout
        self.road = PushedRoad(self._carry)
        self.shaking = trio.CancelScope(deadline=trio.current_time() + self.timeout)
        self.failure: OutcomeError | None = None
        self.error: Exception | None = None
        """What the application's way raised."""
        self._way = way
        self._pid = pid
        self._own_end = Side.IN.end_of(hood.peer)
        self._is_refused = False

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
            self._way.say_nowait(end, is_understood=True)

    async def _carry(self, signal: Signal) -> None:
        message = ArcResponse(
            self.request.tid,
            self._own_end,
            self._pid,
            encode_signal(signal),
            extensions=EXTENSIONS,
        )
        self.error = await _carry_by(self._way, message)
        if self.error is not None:
            raise ConnectionFailed("the message could not be carried") from self.error


async def _carry_by(way: Way, message: ArcMessage) -> Exception | None:
    """Carry *message*; what an application's way raises is returned, to be raised elsewhere.

    A handshake would make a group of it, and so hide it from who is to catch it.
    """
    try:
        await way.carry(message)
    except OutcomeError:
        raise
    except Exception as error:  # noqa: BLE001 - it is the application's, and goes back to it
        return error
    return None


# --- a channel that there is --------------------------------------------------------------


async def ask_on(channel: Channel, own_end: str, pid: str, tid: str) -> ArcResponse:
    """Open an arc over a fresh *channel*, by being the first to speak; what was answered.

    ConnectionFailed: the other end did not agree.
    """
    request = ArcRequest(tid, own_end, pid, None, extensions=EXTENSIONS)
    await _say_on(channel, own_end, pid, request)
    answer = await _hear_on(channel)
    if isinstance(answer, ArcEnd):
        raise ConnectionFailed(f"{answer.peer} refused: {answer.reason}")
    if not isinstance(answer, ArcResponse) or (answer.tid, answer.offer) != (tid, None):
        raise ConnectionFailed("the other end of the channel does not answer what it was asked")
    return answer


async def hear_on(channel: Channel) -> ArcRequest:
    """What the other end of a fresh *channel* asks for.

    ConnectionFailed: no arc.
    """
    request = await _hear_on(channel)
    if not isinstance(request, ArcRequest) or request.offer is not None:
        raise ConnectionFailed("the other end of the channel asks for no arc")
    return request


async def answer_on(channel: Channel, own_end: str, message: ArcResponse | ArcEnd) -> None:
    """Say whether there is an arc."""
    await _say_on(channel, own_end, message.pid, message)


async def _say_on(channel: Channel, own_end: str, pid: str, message: ArcMessage) -> None:
    try:
        await channel.send(encode_neighbour(Send(own_end, pid, encode_payload(message))))
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise ConnectionFailed(f"the channel has ended: {channel.close_reason}") from error


async def _hear_on(channel: Channel) -> ArcMessage:
    try:
        frame = decode_neighbour(await channel.receive())
        payload = decode_payload(frame.payload) if isinstance(frame, Send) else None
    except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise ConnectionFailed(f"the channel has ended: {channel.close_reason}") from error
    except ProtocolError as error:
        raise ConnectionFailed(
            f"the other end of the channel broke the protocol: {error}"
        ) from error
    if not isinstance(payload, ArcRequest | ArcResponse | ArcEnd):
        raise ConnectionFailed("the other end of the channel speaks of no arc")
    return payload
