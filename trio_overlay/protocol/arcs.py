"""What a peer decides about arcs: its own, those that it is asked to accept, those that it bridges.

An *arc* leads from one peer's outview to another's inview and lives on one *link*, a connection
between the two ends; any number of arcs share a link. Links are numbered by the caller. Between
peers of ours an arc is known to both ends by the `tid` of the attempt that made it, so that both
can say which one is removed, and however messages cross or are repeated, both have the same arcs.
The originals only count.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from trio_overlay.protocol.crossings import Crossings
from trio_overlay.protocol.neighbours import (
    INIT,
    ArcEnd,
    ArcMessage,
    ArcRequest,
    ArcResponse,
    Side,
    peer_of,
)
from trio_overlay.protocol.signals import is_offer

MAX_REMEMBERED = 1_000
"""Attempts that are over and still known: a signal of theirs that comes late begins nothing."""


MAX_ARCS_EACH = 1_000
"""Arcs on one link that others may have us count: a flood of requests shall not fill our memory."""


# --- the arcs there are -------------------------------------------------------------------


@dataclass(slots=True)
class _LinkArcs:
    side: Side
    end: str
    arcs: dict[str, str] = field(default_factory=dict)
    """The pid of each arc by its tid, oldest first."""


class ArcTable:
    """The arcs of one peer, by the links they live on.

    An arc is on one link, and is gone with it.
    """

    def __init__(self) -> None:
        self._links: dict[int, _LinkArcs] = {}

    def add_link(self, link: int, side: Side, end: str) -> None:
        """A connection to the other peer's *end* is up; *side* is the view its arcs are in."""
        self._links[link] = _LinkArcs(side, end)

    def remove_link(self, link: int) -> Mapping[str, str]:
        """It is gone; the pids of the arcs that were on it, by their tids."""
        return self._links.pop(link).arcs

    def open(self, link: int, tid: str, pid: str) -> bool:
        """There is an arc more; False if it was known."""
        arcs = self._links[link].arcs
        if tid in arcs:
            return False
        arcs[tid] = pid
        return True

    def close(self, link: int, tid: str) -> str | None:
        """There is an arc less; its pid, or None if it was not known."""
        return self._links[link].arcs.pop(tid, None)

    def arcs_of(self, link: int) -> Mapping[str, str]:
        """The pids of the arcs on *link* by their tids, oldest first; a live view."""
        return MappingProxyType(self._links[link].arcs)

    def find(self, pid: str, end: str | None = None) -> Iterator[tuple[int, str]]:
        """The arcs of *pid*, those to *end* if one is given: link and tid of each, newest first."""
        for link, found in reversed(self._links.items()):
            if end is None or found.end == end:
                for tid in [tid for tid, of in reversed(found.arcs.items()) if of == pid]:
                    yield link, tid

    def view(self, pid: str, side: Side) -> dict[str, int]:
        """How many arcs of *pid* there are to each end, on one *side*."""
        counts: Counter[str] = Counter()
        for found in self._links.values():
            if found.side is side:
                counts[found.end] += sum(of == pid for of in found.arcs.values())
        return {end: count for end, count in counts.items() if count}

    def neighbours(self, side: Side) -> dict[str, dict[str, int]]:
        """How many arcs of each pid there are to each end that has any, on one *side*."""
        found: dict[str, Counter[str]] = {}
        for link in self._links.values():
            if link.side is side and link.arcs:
                found.setdefault(link.end, Counter()).update(link.arcs.values())
        return {end: dict(counts) for end, counts in found.items()}


# --- attempts of ours ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TakeSignal:
    """The message has a signal for the attempt under way."""


@dataclass(frozen=True, slots=True)
class TakeArc:
    """The other end has a connection to us already, and the arc is on it."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The attempt has come to nothing."""

    reason: str


@dataclass(frozen=True, slots=True)
class Drop:
    """The message is ignored."""

    reason: str


class Initiator:
    """One attempt of ours to open an arc, to *target* or to whoever answers."""

    def __init__(self, own_peer: str, tid: str, pid: str, target: str | None = None) -> None:
        self.tid = tid
        self.pid = pid
        self.end: str | None = None
        """The other end, from its first response on; nobody else is heard after that."""
        self.extensions: frozenset[str] = frozenset()
        self._own_peer = own_peer
        self._target = target

    def take(self, message: ArcMessage) -> TakeSignal | TakeArc | Fail | Drop:
        """What a *message* that names this attempt means for it."""
        if message.pid != self.pid or isinstance(message, ArcRequest):
            return Drop("it is no answer to what was asked")
        if self._target is not None and peer_of(message.peer) != peer_of(self._target):
            return Drop(f"{message.peer} answers for {self._target}")
        if self.end is not None and message.peer != self.end:
            return Drop(f"{message.peer} answers for {self.end}")
        if isinstance(message, ArcEnd):
            return Fail(message.reason or "it was given up") if message.reason else Drop("it is up")
        if peer_of(message.peer) == self._own_peer:
            return Fail("a peer has no arc to itself")
        if message.offer_type != INIT:
            return Drop("there is nothing to renegotiate")
        if is_offer(message.offer):
            return Fail(f"an offer of {message.peer} where an answer belongs")
        if self.end is None:
            self.end, self.extensions = message.peer, message.extensions
        return TakeArc() if message.offer is None else TakeSignal()


# --- attempts of others -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """Answer a new attempt."""


@dataclass(frozen=True, slots=True)
class AddArc:
    """The two are connected already: count an arc more, and say so."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Give the signal to the answer under way."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """End the answer under way: its attempt was given up."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Begin nothing, and say why."""

    reason: str


AcceptVerdict: TypeAlias = Begin | AddArc | HandOver | Withdraw | Refuse | Drop


class Acceptor:
    """What a peer is asked to accept: at most *max_attempts* at a time from one source, and
    *max_attempts_in_all*.

    A source is whoever the messages come from: a neighbour, which may be a bridge, or None for
    roads that the application brought.
    """

    def __init__(self, own_peer: str, max_attempts: int, max_attempts_in_all: int) -> None:
        self.max_attempts = max_attempts
        self.max_attempts_in_all = max_attempts_in_all
        self._own_peer = own_peer
        self._answering: dict[str, tuple[str, str, str | None]] = {}
        self._over: OrderedDict[str, None] = OrderedDict()

    @property
    def answering(self) -> tuple[str, ...]:
        """The tids of the attempts that are being answered, oldest first."""
        return tuple(self._answering)

    def take(
        self, message: ArcRequest | ArcEnd, source: str | None, arcs: int | None
    ) -> AcceptVerdict:
        """What to do with *message*; *arcs* are on our link to its sender, None without a link."""
        tid, peer, pid = message.tid, message.peer, message.pid
        known = self._answering.get(tid)
        if known is not None:
            if known[:2] != (peer, pid):
                return Drop(f"the attempt is not {peer}'s")
            if isinstance(message, ArcRequest):
                return HandOver()
            return Drop("it is up") if message.reason is None else Withdraw(message.reason)
        if isinstance(message, ArcEnd):
            self._remember(tid)  # what was overtaken by its own end shall not begin
            return Drop("there is nothing to end")
        if peer_of(peer) == self._own_peer:
            return Refuse("a peer has no arc to itself")
        if message.offer_type != INIT:
            return Drop("there is nothing to renegotiate")
        if tid in self._over:
            return Drop("that attempt is over")
        if not message.begins:
            return Drop("it is no offer")
        if arcs is not None:
            if arcs >= MAX_ARCS_EACH:
                return Refuse("too many arcs are on this connection")
            self._remember(tid)
            return AddArc()
        if message.offer is None:
            return Refuse("there is no connection for an arc without an offer")
        if len(self._answering) >= self.max_attempts_in_all:
            return Refuse("too many attempts are being answered")
        if sum(of == source for _, _, of in self._answering.values()) >= self.max_attempts:
            return Refuse("too many attempts of one neighbour are being answered")
        self._answering[tid] = (peer, pid, source)
        return Begin()

    def end(self, tid: str) -> None:
        """The answer to *tid* is over: there is an arc, or there will be none."""
        del self._answering[tid]
        self._remember(tid)

    def _remember(self, tid: str) -> None:
        self._over[tid] = None
        if len(self._over) > MAX_REMEMBERED:
            self._over.popitem(last=False)


# --- attempts that pass through -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pass:
    """Pass the message on to the peer `to`."""

    to: str


class Bridge:
    """The attempts that a peer bridges: at most *max_attempts* at a time for each neighbour,
    those that it begins and those that it shall accept counted apart.

    Only the messages of an attempt pass, only between those whose attempt it is, and only while
    we are connected to both. What is said about peers is without the ends' suffixes.
    """

    def __init__(self, own_peer: str, max_attempts: int) -> None:
        self.crossings: Crossings[str] = Crossings(
            max_opened=max_attempts, max_accepted=max_attempts
        )
        """Who opens and who accepts, each with the tid of the attempt."""
        self._own_peer = own_peer

    def take(
        self,
        sender: str,
        from_: str,
        to: str,
        message: ArcMessage,
        is_connected: Callable[[str], bool],
        expires_at: float,
    ) -> Pass | Refuse | Drop:
        """What to do with *message*, which the neighbour *sender* wants to reach the end *to*.

        An attempt that begins with it is kept until *expires_at*.
        """
        source, target = peer_of(from_), peer_of(to)
        if source != sender or peer_of(message.peer) != sender:
            return Drop(f"{sender} speaks for {from_} and {message.peer}")
        if target == self._own_peer:
            return Drop("the bridge is no end of it")
        if target == sender:
            return Drop("a peer has no arc to itself")
        here, there = (sender, message.tid), (target, message.tid)
        is_known = self.crossings.across(here) == there
        match message:
            case ArcRequest() if here not in self.crossings and there not in self.crossings:
                if not is_offer(message.offer):
                    return Drop("it begins nothing")
                if not is_connected(target):
                    return Refuse(f"{to} is no neighbour of the bridge")
                if not self.crossings.open(here, there, expires_at):
                    return Refuse("too many attempts go over this bridge")
                return Pass(target)
            case ArcRequest() if is_known and self.crossings.has_opened(here):
                pass
            case ArcResponse() if is_known and self.crossings.has_opened(there):
                pass
            case ArcEnd() if is_known:
                self.crossings.close(here)
                if message.reason is None:
                    return Drop("there is an arc, and nobody else needs to know")
            case _:
                return Drop("no such attempt goes over this bridge")
        if not is_connected(target):
            return Refuse(f"{to} is no neighbour of the bridge any more")
        return Pass(target)
