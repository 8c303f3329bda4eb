"""The shared store of a cluster, in memory: the real one's answers, and it breaks when you say."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.channels.timeline import Timeline
from trio_overlay.errors import ClusterUnavailable
from trio_overlay.protocol.cluster import (
    COMMON_CHANNEL,
    LINKUP_CHANNEL,
    server_channel,
    with_claim,
)
from trio_overlay.signaling.shared_store import (
    Answer,
    Entry,
    Outcome,
    Session,
    SharedStore,
    T,
    Verdict,
    Whereabouts,
)
from trio_overlay.testing.block import BlockContext
from trio_overlay.testing.faults import Latency

ANSWER_TIMEOUT = 4.0
"""Seconds after which a session that owes an answer breaks, as with the real store."""

_EPOCH = 1_700_000_000.0
"""What the store's clock says when Trio's says 0."""


class VirtualStore(BlockContext, SharedStore):
    """A store for a `Cluster` under test: ``async with VirtualStore(seed) as store``.

    Questions and answers take *latency* each way, drawn from a generator of *seed*, and keep their
    order within a session.
    """

    def __init__(self, seed: int = 0, *, latency: Latency | None = None) -> None:
        self._rng = random.Random(f"store {seed}")
        self._latency = latency or Latency(0.0005, 0.005)
        self._timeline = Timeline()
        self._nursery: trio.Nursery
        self._life = 1
        """Which process this is; 0 while there is none."""
        self._count_lives = 1
        self._is_paused = False
        self._frozen: set[str] = set()
        self._waiting: deque[tuple[_VirtualSession, Callable[[], None]]] = deque()
        """What has arrived, in that order, and is not seen yet."""
        self._sessions: list[_VirtualSession] = []
        """Those that the store believes to be there."""
        # The data.
        self._entered_life = 0
        self._quarantined_until = 0.0
        self._claims: dict[str, _Kept] = {}
        """By id, what is held."""
        self._kept: dict[str, _Kept] = {}
        """By id, for whom alone it is when released: see `Session.claim`."""
        self._saved: tuple[dict[str, _Kept], dict[str, _Kept]] = {}, {}

    @asynccontextmanager
    async def _hold_open(self) -> AsyncIterator[None]:
        async with open_background_nursery() as self._nursery:
            self._nursery.start_soon(self._timeline.run)
            yield

    def __str__(self) -> str:
        return "the virtual store"

    # --- what happens to it ---------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether servers can reach it, if it is not paused."""
        return self._life != 0

    @property
    def is_paused(self) -> bool:
        """Whether it takes what servers say, and answers nobody for now."""
        return self._is_paused

    def holder(self, identifier: str) -> str | None:
        """The token under which *identifier* is held just now."""
        claim = self._standing(self._claims, identifier)
        return None if claim is None else claim.token

    def kept_until(self, identifier: str) -> float:
        """Until when *identifier* is, or was last, kept for a peer that moved; -inf for never."""
        kept = self._kept.get(identifier)
        return -math.inf if kept is None else kept.until

    def save(self) -> None:
        """What it holds now is what a process that keeps old data begins with."""
        self._saved = self._claims.copy(), self._kept.copy()

    def stop(self, *, saves: bool = True) -> None:
        """The process dies; what was on its way to it is lost. Again: nothing.

        It *saves* its data before, or those of the last `save` are what is left of them.
        """
        if saves and self._life:
            self.save()
        self._life = 0
        self._waiting.clear()
        for session in self._sessions.copy():
            session.break_("the store died")
        self._sessions.clear()

    def start(self, *, keeps_data: bool = False) -> None:
        """Another process comes up, with nothing in it, or with old data. If one runs: nothing."""
        if self._life:
            return
        self._count_lives += 1
        self._life = self._count_lives
        self._is_paused = False
        if keeps_data:
            self._claims, self._kept = (each.copy() for each in self._saved)
        else:
            self.empty()

    def empty(self) -> None:
        """Somebody deletes everything."""
        self._entered_life = 0
        self._claims.clear()
        self._kept.clear()

    def pause(self) -> None:
        """The process stands still; what comes waits for it."""
        self._is_paused = True

    def resume(self) -> None:
        """It goes on."""
        self._is_paused = False
        self._see_waiting()

    def freeze(self, tag: str) -> None:
        """Nothing passes between the store and the server *tag*, and neither is told."""
        self._frozen.add(tag)

    def thaw(self, tag: str) -> None:
        """What was sent arrives."""
        self._frozen.discard(tag)
        self._see_waiting()

    def lose(self, tag: str) -> None:
        """The server *tag* dies without a word; what it said and has not arrived never does."""
        for session in [each for each in self._sessions if each.tag == tag]:
            session.life = 0
            self._sessions.remove(session)
            session.break_("this server is dead")

    # --- sessions -------------------------------------------------------------------------

    def connect(self, tag: str, lease: float) -> AbstractAsyncContextManager[Session]:
        return self._connect(tag, lease, {LINKUP_CHANNEL, COMMON_CHANNEL, server_channel(tag)})

    def connect_linkup(self) -> AbstractAsyncContextManager[Session]:
        """A session such as a broker of linkup has: it hears linkup's channel and nothing else."""
        return self._connect("linkup", 1.0, {LINKUP_CHANNEL})

    @asynccontextmanager
    async def _connect(
        self, tag: str, lease: float, channels: Collection[str]
    ) -> AsyncIterator[Session]:
        await trio.sleep(self._delay())
        if tag in self._frozen or self._is_paused:
            await trio.sleep(ANSWER_TIMEOUT)
        if tag in self._frozen or self._is_paused or not self._life:
            raise ClusterUnavailable(f"nobody answers at {self}")
        session = _VirtualSession(self, tag, lease, channels, self._life)
        self._sessions.append(session)
        try:
            yield session
        finally:
            session.break_("the session was left")

    def _delay(self) -> float:
        return self._rng.uniform(self._latency.low, self._latency.high)

    def _arrive(self, session: _VirtualSession, step: Callable[[], None]) -> None:
        if session.life == self._life != 0:
            self._waiting.append((session, step))
            self._see_waiting()

    def _see_waiting(self) -> None:
        if self._is_paused:
            return
        seen, self._waiting = self._waiting, deque()
        for session, step in seen:
            if session.tag in self._frozen:
                self._waiting.append((session, step))
            else:
                step()

    def _forget(self, session: _VirtualSession) -> None:
        if session in self._sessions:
            self._sessions.remove(session)

    # --- what is asked: each one step -----------------------------------------------------

    def _enter(self, lease: float) -> Entry:
        now = trio.current_time()
        if self._entered_life != self._life:
            self._entered_life = self._life
            self._quarantined_until = now + lease
        return Entry(now + _EPOCH, max(0.0, self._quarantined_until - now))

    def _claim(
        self, identifier: str, token: str, digest: str, moved_message: str, lease: float
    ) -> Outcome:
        self._check_data()
        now = trio.current_time()
        former, kept = (self._standing(each, identifier) for each in (self._claims, self._kept))
        is_move = former is not None and former.token != token
        owner = former if is_move else kept if former is None else None
        if owner is not None and (not digest or owner.digest != digest):
            return Outcome(Verdict.TAKEN)
        if self._quarantined_until > now and (former is None or is_move):
            return Outcome(Verdict.QUARANTINED, self._quarantined_until - now)
        if is_move:
            assert former is not None
            until = former.until if kept is None else max(former.until, kept.until)
            self._kept[identifier] = _Kept("", digest, until)
            self._publish_to_holder(former.token, moved_message)
        self._claims[identifier] = _Kept(token, digest, now + lease)
        return Outcome(Verdict.GRANTED, 0.0, *self._subscribers())

    def _renew(self, claims: Sequence[tuple[str, str, str]], lease: float) -> list[bool]:
        self._check_data()
        outcomes = []
        for identifier, token, digest in claims:
            holder, kept = self.holder(identifier), self._standing(self._kept, identifier)
            is_free = holder is None and kept is None
            outcomes.append(holder == token or is_free)
            if outcomes[-1]:
                self._claims[identifier] = _Kept(token, digest, trio.current_time() + lease)
        return outcomes

    def _release(self, claims: Sequence[tuple[str, str]]) -> int:
        held = [identifier for identifier, token in claims if self.holder(identifier) == token]
        for identifier in held:
            del self._claims[identifier]
        return len(held)

    def _look_up(self, identifier: str) -> Whereabouts:
        return Whereabouts(self.holder(identifier) is not None, *self._subscribers())

    def _pass_on(self, identifier: str, message: str, linkup_message: str) -> int:
        holder = self.holder(identifier)
        if holder is not None:
            return self._publish_to_holder(holder, message)
        foreign, _ = self._subscribers()
        if foreign:
            self._publish(LINKUP_CHANNEL, linkup_message)
        return foreign

    def _publish_to_holder(self, token: str, message: str) -> int:
        return self._publish(server_channel(token[:8]), with_claim(message, token))

    def _publish(self, channel: str, message: str) -> int:
        subscribed = [session for session in self._sessions if channel in session.channels]
        for session in subscribed:
            session.deliver(channel, message)
        return len(subscribed)

    def _subscribers(self) -> tuple[int, int]:
        count = sum(LINKUP_CHANNEL in session.channels for session in self._sessions)
        ours = sum(COMMON_CHANNEL in session.channels for session in self._sessions)
        return count - ours, count

    def _standing(self, table: Mapping[str, _Kept], identifier: str) -> _Kept | None:
        kept = table.get(identifier)
        return kept if kept is not None and kept.until > trio.current_time() else None

    def _check_data(self) -> None:
        if self._entered_life != self._life:
            raise _DataLost


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the store remembers of an id, for so long."""

    token: str
    digest: str
    until: float


class _DataLost(Exception):
    pass


class _VirtualSession(Session):
    def __init__(
        self, store: VirtualStore, tag: str, lease: float, channels: Collection[str], life: int
    ) -> None:
        self.tag = tag
        self.channels = channels
        self.life = life
        self._store = store
        self._lease = lease
        self._failure: str | None = None
        self._unanswered: set[Answer[object]] = set()
        self._messages: deque[tuple[str, bytes]] = deque()
        self._has_news = trio.lowlevel.ParkingLot()
        self._there_at = self._back_at = 0.0

    def enter(self) -> Answer[Entry]:
        return self._ask(lambda: self._store._enter(self._lease))

    def claim(
        self, identifier: str, token: str, digest: str = "", moved_message: str = ""
    ) -> Answer[Outcome]:
        return self._ask(
            lambda: self._store._claim(identifier, token, digest, moved_message, self._lease)
        )

    def renew(self, claims: Sequence[tuple[str, str, str]]) -> Answer[list[bool]]:
        return self._ask(lambda: self._store._renew(claims, self._lease))

    def release(self, claims: Sequence[tuple[str, str]]) -> Answer[int]:
        return self._ask(lambda: self._store._release(claims))

    def look_up(self, identifier: str) -> Answer[Whereabouts]:
        return self._ask(lambda: self._store._look_up(identifier))

    def pass_on(self, identifier: str, message: str, linkup_message: str) -> Answer[int]:
        return self._ask(lambda: self._store._pass_on(identifier, message, linkup_message))

    def publish(self, channel: str, message: str) -> Answer[int]:
        return self._ask(lambda: self._store._publish(channel, message))

    async def receive(self) -> tuple[str, bytes]:
        while not self._messages:
            if self._failure is not None:
                raise ClusterUnavailable(self._failure)
            await self._has_news.park()
        await trio.lowlevel.checkpoint()
        return self._messages.popleft()

    def deliver(self, channel: str, message: str) -> None:
        """For the store: a message is on its way to this session's server."""

        def hear() -> None:
            if self._failure is None:
                self._messages.append((channel, message.encode()))
                self._has_news.unpark()

        self._back(hear)

    def break_(self, reason: str) -> None:
        """Let the session end at this end, where it had not; the store learns of it later."""
        if self._failure is not None:
            return
        self._failure = reason
        for answer in self._unanswered:
            answer.fail(reason)
        self._unanswered.clear()
        self._has_news.unpark_all()
        self._there(lambda: self._store._forget(self))

    def _ask(self, step: Callable[[], T]) -> Answer[T]:
        if self._failure is not None:
            raise ClusterUnavailable(self._failure)
        answer = Answer[T]()
        self._unanswered.add(answer)  # type: ignore[arg-type]  # only to fail it

        def see() -> None:
            try:
                value = step()
            except _DataLost:
                self._back(lambda: self.break_("the store has lost its data"))
            else:
                self._back(lambda: conclude(value))

        def conclude(value: T) -> None:
            if answer in self._unanswered:
                self._unanswered.remove(answer)  # type: ignore[arg-type]
                answer.resolve(value)

        def give_up() -> None:
            if answer in self._unanswered:
                self.break_(f"no answer in {ANSWER_TIMEOUT:g} s")

        self._there(see)
        self._store._timeline.after(ANSWER_TIMEOUT, give_up)
        return answer

    def _there(self, step: Callable[[], None]) -> None:
        self._there_at = max(self._there_at, trio.current_time() + self._store._delay())
        self._store._timeline.at(self._there_at, lambda: self._store._arrive(self, step))

    def _back(self, step: Callable[[], None]) -> None:
        self._back_at = max(self._back_at, trio.current_time() + self._store._delay())

        def arrive() -> None:
            # On a frozen way back it waits as well: for the store to see it once more.
            if self.tag in self._store._frozen:
                self._store._waiting.append((self, step))
            else:
                step()

        self._store._timeline.at(self._back_at, arrive)
