"""The ways on which the two ends of an attempt at an arc talk to each other."""

from __future__ import annotations

import abc
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from trio_overlay.errors import ConnectionFailed, OutcomeError, PeerNotFound
from trio_overlay.nodes.neighbour_link import Link
from trio_overlay.nodes.neighbourhood import Neighbourhood
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.neighbours import (
    ARCS,
    ArcEnd,
    ArcMessage,
    Forward,
    Payload,
    encode_arc_message,
    peer_of,
)

logger = logging.getLogger(__name__)

FAREWELL_TIMEOUT = 1.0

Carry: TypeAlias = Callable[[JSON], Awaitable[None]]
"""An application's way to bring a message of an attempt, a JSON object, to the other end."""


class Way(abc.ABC):
    """How the messages of one attempt get to its other end."""

    source: str | None
    """The neighbour by which they come; None for a way that the application brought."""
    error: Exception | None = None
    """What an application's way raised, if it is no outcome."""

    @abc.abstractmethod
    async def carry(self, message: ArcMessage) -> None:
        """Bring *message* to the other end.

        OutcomeError: it cannot be reached this way.
        """

    @abc.abstractmethod
    def say_nowait(self, message: ArcMessage, *, is_understood: bool) -> None:
        """The same without waiting, if it can be done, for a word that nobody waits for.

        *is_understood* says whether the other end is known to be ours: what the originals have
        no name for goes to nobody else, unless it does no harm.
        """


class OnLink(Way):
    """Over a connection that the two have."""

    def __init__(self, hood: Neighbourhood, pid: str, end: str) -> None:
        self.source = peer_of(end)
        self._hood, self._pid, self._end = hood, pid, end

    async def carry(self, message: ArcMessage) -> None:
        await trio.lowlevel.checkpoint()
        link = self._link()
        if link is None:
            raise PeerNotFound(f"the connection to {self._end} is gone")
        link.post(self._pid, message)

    def say_nowait(self, message: ArcMessage, *, is_understood: bool) -> None:  # noqa: ARG002
        link = self._link()
        if link is not None and (ARCS in link.extensions or not isinstance(message, ArcEnd)):
            link.post(self._pid, message)

    def _link(self) -> Link | None:
        return self._hood.find_link(self._end, self._pid)


class Bridged(Way):
    """Through a neighbour that is connected to both."""

    def __init__(self, hood: Neighbourhood, pid: str, bridge: str, own: str, other: str) -> None:
        self.source = peer_of(bridge)
        self._hood, self._pid = hood, pid
        self._bridge = bridge
        # The two ends, as the bridge calls them.
        self._own, self._other = own, other

    async def carry(self, message: ArcMessage) -> None:
        await trio.lowlevel.checkpoint()
        link = self._link()
        if link is None:
            raise PeerNotFound(f"the connection to the bridge {self._bridge} is gone")
        link.post(self._pid, self._wrap(message))

    def say_nowait(self, message: ArcMessage, *, is_understood: bool) -> None:  # noqa: ARG002
        link = self._link()
        if link is not None:
            # The originals pass on any message, and ignore those of a type unknown to them.
            link.post(self._pid, self._wrap(message))

    def _link(self) -> Link | None:
        return self._hood.find_link(self._bridge, self._pid)

    def _wrap(self, message: ArcMessage) -> Payload:
        return Forward(self._own, self._other, encode_arc_message(message), has_arrived=False)


class Carried(Way):
    """By a function that the application brought."""

    source = None

    def __init__(self, hood: Neighbourhood, carry: Carry) -> None:
        self._hood, self._carry = hood, carry

    async def carry(self, message: ArcMessage) -> None:
        try:
            await self._carry(encode_arc_message(message))
        except OutcomeError:
            raise
        except Exception as error:
            # A handshake would make a group of it, and hide it from the application.
            self.error = error
            raise ConnectionFailed("the application could not carry a message") from error

    def say_nowait(self, message: ArcMessage, *, is_understood: bool) -> None:
        if is_understood or not isinstance(message, ArcEnd):
            self._hood.nursery.start_soon(self._say, message)

    async def _say(self, message: ArcMessage) -> None:
        try:
            with trio.move_on_after(FAREWELL_TIMEOUT, shield=True):
                await self._carry(encode_arc_message(message))
        except OutcomeError as error:
            logger.info("a word on an attempt did not arrive: %s", error)
        except Exception:
            # There is no call of the application's left that could raise it, and no other
            # neighbour shall suffer for it.
            logger.exception("the application could not carry a word on an attempt")
