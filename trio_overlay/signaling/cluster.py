"""One server's place among several that act as one: its session with what they share.

Keeps the session, comes back when it breaks, and passes messages on to those services of the server
that take part. What they make of it stands with them: cluster_registry.py for the broker,
bootstrap_service.py for prospects and roots.
"""

from __future__ import annotations

import abc
import logging
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import ClusterUnavailable, MalformedFrame
from trio_overlay.protocol.cluster import (
    COMMON_CHANNEL,
    LINKUP_CHANNEL,
    Farewell,
    LinkupMessage,
    ServerMessage,
    decode_linkup,
    decode_server_message,
    encode_server_message,
    random_tag,
    server_channel,
)
from trio_overlay.protocol.leases import DEFAULT_LEASE, RENEWALS
from trio_overlay.signaling.shared_store import Answer, Entry, Session, SharedStore, T

MIN_RECONNECT_DELAY: Final = 0.1
MAX_RECONNECT_DELAY: Final = 2.0
"""Well below a lease, so that a store that was away for a moment costs nobody an id."""

FAREWELL_TIMEOUT: Final = 1.0

logger = logging.getLogger(__name__)


class ClusterMember(abc.ABC):
    """A service of this server that takes part in the cluster. Nothing here waits."""

    @abc.abstractmethod
    def connected_nowait(self, session: Session, entry: Entry) -> None:
        """There is a session; *entry* is what the store said to it."""

    @abc.abstractmethod
    def refresh_nowait(self, session: Session) -> None:
        """Some part of a lease has passed: keep alive what must be."""

    @abc.abstractmethod
    def disconnected_nowait(self) -> None:
        """The session is gone. What was asked on it and not answered is lost, or done."""

    @abc.abstractmethod
    def hear_nowait(self, tag: str, message: ServerMessage) -> None:
        """The server *tag*, another one, has said *message* to all or to this one."""

    @abc.abstractmethod
    def hear_linkup_nowait(self, message: LinkupMessage) -> None:
        """Somebody, this server too, has said *message* on linkup's channel."""


class Cluster:
    """This server in its cluster; made by `open_cluster`."""

    def __init__(self, store: SharedStore, *, lease: float, rng: random.Random) -> None:
        self.store = store
        self.lease = lease
        self.rng = rng
        self.tag = random_tag(rng)
        """By which the other servers know this one; another one at each start."""
        self._members: list[ClusterMember] = []
        self._connection: _Connection | None = None
        self._scope = trio.CancelScope()

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    @property
    def session(self) -> Session:
        """The session there is now.

        ClusterUnavailable: there is none.
        """
        return self._connected().session

    def attach(self, member: ClusterMember) -> None:
        """From now on *member* takes part."""
        self._members.append(member)
        if self._connection is not None:
            member.connected_nowait(self._connection.session, self._connection.entry)

    def detach(self, member: ClusterMember) -> None:
        """The end of `attach`."""
        self._members.remove(member)

    def say_nowait(
        self,
        message: ServerMessage,
        tag: str | None = None,
        on_outcome: Callable[[int | None], object] | None = None,
    ) -> None:
        """Say *message* to the server *tag*, or to all.

        *on_outcome* is called, unless there is no session meanwhile, with how many heard it:
        0 when that server is gone; None when it is not known, because the session broke.

        ClusterUnavailable: it cannot be said.
        """
        connection = self._connected()
        channel = COMMON_CHANNEL if tag is None else server_channel(tag)
        answer = connection.session.publish(channel, encode_server_message(self.tag, message))
        if on_outcome is not None:
            self.when_answered(answer, on_outcome)

    def when_answered(self, answer: Answer[T], tell: Callable[[T | None], object]) -> None:
        """Call *tell*, which must not wait, with *answer*, or with None if it will not come."""
        connection = self._connected()
        connection.expected.append((answer, tell))
        connection.has_expected.unpark()

    def status(self) -> dict[str, Any]:
        """Figures for those who watch over the server, as a JSON object."""
        return {"server": self.tag, "connected": self.is_connected}

    def _connected(self) -> _Connection:
        if self._connection is None:
            raise ClusterUnavailable("this server has no connection to the others")
        return self._connection

    async def _stay_connected(self, *, task_status: trio.TaskStatus[None]) -> None:
        failures = 0

        def start() -> None:
            if not self._scope.shield:
                # From now on others rely on the store, and it has to be there until they end.
                self._scope.shield = True
                task_status.started()

        with self._scope:
            while True:
                try:
                    async with self.store.connect(self.tag, self.lease) as session:
                        entry = await session.enter().wait()
                        logger.info("server %s is connected to %s", self.tag, self.store)
                        failures = 0
                        await self._live(_Connection(session, entry), start)
                except ClusterUnavailable as error:
                    level = logging.DEBUG if failures else logging.WARNING
                    logger.log(level, "server %s is on its own: %s", self.tag, error)
                start()
                await trio.sleep(self._reconnect_delay(failures))
                failures += 1

    async def _live(self, connection: _Connection, start: Callable[[], None]) -> None:
        """One session, from its beginning to its end, which is a ClusterUnavailable."""
        self._connection = connection
        try:
            async with open_background_nursery() as nursery:
                nursery.start_soon(connection.hear_answers)
                nursery.start_soon(self._refresh, connection.session)
                for member in self._members:
                    member.connected_nowait(connection.session, connection.entry)
                start()
                await self._read(connection.session)
        finally:
            self._connection = None
            connection.abandon()
            for member in self._members:
                member.disconnected_nowait()

    async def _read(self, session: Session) -> None:
        while True:
            channel, text = await session.receive()
            try:
                if channel == LINKUP_CHANNEL:
                    said = decode_linkup(text)
                    for member in self._members:
                        member.hear_linkup_nowait(said)
                else:
                    tag, message = decode_server_message(text)
                    if tag != self.tag:
                        for member in self._members:
                            member.hear_nowait(tag, message)
            except MalformedFrame as error:
                logger.warning("a message on %s is passed over: %s", channel, error)

    async def _refresh(self, session: Session) -> None:
        while True:
            await trio.sleep(self.lease / RENEWALS)
            for member in self._members:
                member.refresh_nowait(session)

    async def _say_farewell(self) -> None:
        with trio.move_on_after(FAREWELL_TIMEOUT, shield=True):
            try:
                text = encode_server_message(self.tag, Farewell())
                await self.session.publish(COMMON_CHANNEL, text).wait()
            except ClusterUnavailable:
                pass

    def _reconnect_delay(self, failures: int) -> float:
        longest = min(MAX_RECONNECT_DELAY, MIN_RECONNECT_DELAY * math.pow(2, min(failures, 30)))
        return longest * self.rng.uniform(0.5, 1)


class _Connection:
    """A session and who waits for what of it."""

    def __init__(self, session: Session, entry: Entry) -> None:
        self.session = session
        self.entry = entry
        self.expected: deque[tuple[Answer[Any], Callable[[Any], object]]] = deque()
        self.has_expected = trio.lowlevel.ParkingLot()

    async def hear_answers(self) -> None:
        while True:
            while not self.expected:
                await self.has_expected.park()
            answer, _ = self.expected[0]
            try:
                value = await answer.wait()
            except ClusterUnavailable:
                value = None
            _, tell = self.expected.popleft()
            tell(value)

    def abandon(self) -> None:
        """Tell those who wait that nothing will come."""
        while self.expected:
            _, tell = self.expected.popleft()
            tell(None)


@asynccontextmanager
async def open_cluster(
    store: SharedStore, *, lease: float = DEFAULT_LEASE, rng: random.Random | None = None
) -> AsyncIterator[Cluster]:
    """This server's place among those that share *store*.

    Entered when the store was reached, or could not be: then it is tried again, for as long as the
    block. An id is held for *lease* seconds at a time, the same for all servers. When the block is
    left, cancelled or not, the store is there until what was started inside it has ended.
    """
    cluster = Cluster(store, lease=lease, rng=rng or random.SystemRandom())
    async with open_background_nursery() as nursery:
        await nursery.start(cluster._stay_connected)
        try:
            yield cluster
        finally:
            # Before the store's own tasks are cancelled, which are inside this scope.
            await cluster._say_farewell()
            cluster._scope.cancel()
