"""One attempt to connect two peers, from its beginning until there is a connection, or none."""

from __future__ import annotations

from typing import Final

import trio

from trio_overlay.errors import ConnectionFailed, OutcomeError, PeerRefused
from trio_overlay.nodes.peer_connection import Connection
from trio_overlay.protocol.peer import AttemptSignal, GivenUp, Refused
from trio_overlay.signaling.roads import PushedRoad

HANDSHAKE_TIMEOUT: Final = 30.0
"""Seconds that an attempt may take, whoever began it and whoever waits for it."""


class Attempt:
    """What is known of an attempt; the peer has a task for it, and whoever wants may wait."""

    def __init__(
        self, other: str, key: str | None, *, is_initiator: bool, extensions: frozenset[str]
    ) -> None:
        self.other = other
        self.key = key
        """What its initiator calls it; None if that is a peer of linkup's."""
        self.is_initiator = is_initiator
        self.extensions = extensions
        """What the other peer understands, as far as it has said so yet."""
        self.has_offered = False
        """Whether our offer is out."""
        self.is_wanted = is_initiator
        """Whether somebody here wants it, and nobody needs to be asked if we accept it."""
        self.road: PushedRoad
        self.scope = trio.CancelScope(deadline=trio.current_time() + HANDSHAKE_TIMEOUT)
        """Around the attempt, and what comes of it; has its deadline for the attempt only."""
        self.ended = trio.Event()
        self.connection: Connection | None = None
        self.error: OutcomeError | None = None
        self.was_told = False
        """Whether the other peer has ended it, and need not be told that we do."""
        self.is_replaced = False
        """Whether another attempt has taken its place, which those who wait shall wait for."""
        self._count_waiting = 0

    def take(self, signal: AttemptSignal) -> None:
        """The other peer said *signal*."""
        self.extensions |= signal.extensions
        match signal.said:
            case Refused(reason):
                self.was_told = True
                self.road.fail(PeerRefused(f"{self.other} refused: {reason}"))
            case GivenUp(reason):
                self.was_told = True
                self.road.fail(ConnectionFailed(f"{self.other} has given up: {reason}"))
            case said:
                self.road.deliver(said)

    async def wait(self) -> None:
        """Until it has ended; when nobody waits any more for one of ours, it is given up."""
        self._count_waiting += 1
        try:
            await self.ended.wait()
        finally:
            self._count_waiting -= 1
            if self._count_waiting == 0 and self.is_initiator:
                self.give_up(f"nobody waits for {self.other} any more")

    def succeed(self, connection: Connection) -> None:
        self.connection = connection
        self.scope.deadline = float("inf")
        self.ended.set()

    def fail(self, error: OutcomeError) -> None:
        """End it with *error*, unless it has ended."""
        if not self.ended.is_set():
            self.error = error
            self.ended.set()

    def give_up(self, reason: str) -> None:
        """End it, and its task, unless it has ended."""
        if not self.ended.is_set():
            self.fail(ConnectionFailed(reason))
            self.scope.cancel()

    def replace(self) -> None:
        """End it for another attempt."""
        self.is_replaced = True
        self.was_told = True
        self.give_up(f"another attempt with {self.other} takes its place")
