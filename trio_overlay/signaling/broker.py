"""The broker's tasks: they carry out what the registrations decide, and ask the registry.

One connection has a reader and a writer with a bounded queue. Knows channels and requests for
them, no sockets: in memory and under a virtual clock it is the same.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

import trio

from trio_overlay.channels.network import UpgradeRequest
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import ClusterUnavailable
from trio_overlay.protocol.broker import Failure, PeerSignal
from trio_overlay.protocol.broker_registrations import (
    Action,
    BrokerLimits,
    Claim,
    Close,
    Forward,
    Locate,
    Member,
    Question,
    Registrations,
    Release,
    Send,
    unavailable,
)
from trio_overlay.signaling import limits
from trio_overlay.signaling.connection import ClientConnection
from trio_overlay.signaling.registry import LocalPeers, LocalRegistry, Registry

QUESTION_TIMEOUT = 5.0
"""Seconds for the registry to answer; then the peer gets an error."""

BROKER_PATHS = ("/", "/broker")
"""Where a server has its broker: linkup's is at any path, ours shares the port with others."""

logger = logging.getLogger(__name__)


class BrokerService(LocalPeers):
    """Serves the peers of one server; `run` must be running meanwhile.

    With a *registry* it is one of several servers that act as one.
    """

    def __init__(
        self, *, registry: Registry | None = None, broker_limits: BrokerLimits | None = None
    ) -> None:
        self.registrations = Registrations(broker_limits)
        self._registry = registry or LocalRegistry()
        self._connections: dict[Member, ClientConnection] = {}
        self._tick_at = math.inf
        self._rescheduled = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let time pass for leases, and the registry do its work; runs until cancelled."""
        async with open_background_nursery() as nursery:
            await nursery.start(self._registry.run, self)
            task_status.started()
            while True:
                self._act(self.registrations.tick(trio.current_time()))
                self._rescheduled = trio.Event()
                self._tick_at = self.registrations.next_tick_at
                with trio.CancelScope(deadline=self._tick_at):
                    await self._rescheduled.wait()

    async def serve(self, request: UpgradeRequest) -> None:
        """One peer, from its request to its end."""
        channel = await request.accept()
        # From entering the registrations to here and from here to leaving them there is no await:
        # who is in the one is in the other.
        member = self.registrations.enter(trio.current_time())
        connection = ClientConnection(
            channel, f"the peer at {request.remote}", limits.MAX_QUEUED_BYTES
        )
        self._connections[member] = connection
        if self.registrations.next_tick_at < self._tick_at:
            self._rescheduled.set()
        try:
            with connection.life:
                async with open_background_nursery() as nursery:
                    connection.write_in(nursery)
                    await self._read(member, connection)
        finally:
            del self._connections[member]
            self._act(self.registrations.leave(member))

    def holds(self, identifier: str) -> bool:
        return self.registrations.holds(identifier)

    def deliver_nowait(self, signal: PeerSignal) -> None:
        self._act(self.registrations.deliver(signal))

    def lose_nowait(self, identifier: str, reason: str) -> None:
        logger.info("the id %s is lost: %s", identifier, reason)
        self._act(self.registrations.lose(identifier, reason))

    async def _read(self, member: Member, connection: ClientConnection) -> None:
        """Take in what *member* says, until its connection has ended.

        One frame after the other: while the registry is asked about one, the others wait, and
        then their sender does.
        """
        while not member.is_closed:
            try:
                text = await connection.channel.receive()
            except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
                return
            self._registry.catch_up_nowait()
            actions, question = self.registrations.receive(trio.current_time(), member, text)
            self._act(actions)
            while question is not None:
                outcome = await self._ask(question)
                actions, question = self.registrations.answered(
                    trio.current_time(), member, outcome
                )
                self._act(actions)
        await connection.closed.wait()

    async def _ask(self, question: Question) -> bool | Failure:
        outcome: bool | Failure = unavailable("the other servers do not answer")
        with trio.move_on_after(QUESTION_TIMEOUT):
            try:
                match question:
                    case Claim(identifier, digest):
                        outcome = await self._registry.claim(identifier, digest)
                    case Locate(identifier):
                        outcome = await self._registry.locate(identifier)
                    case Forward(signal):
                        await self._registry.forward(signal)
                        outcome = True
            except ClusterUnavailable as error:
                logger.info("a question to the other servers fails: %s", error)
                outcome = unavailable(str(error))
        return outcome

    def _act(self, actions: Iterable[Action]) -> None:
        """Do what was decided; never waits."""
        for action in actions:
            match action:
                case Send(member, text):
                    connection = self._connections.get(member)
                    if connection is not None:
                        connection.send_nowait(text)
                case Close(member, reason):
                    connection = self._connections.get(member)
                    if connection is not None:
                        logger.info("%s is closed: %s", connection.name, reason)
                        connection.close_nowait(reason)
                case Release(identifier):
                    self._registry.release_nowait(identifier)
        if self.registrations.next_tick_at < self._tick_at:
            self._rescheduled.set()
