"""Peers found by id as a world for stories."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass

import trio

from trio_overlay.channels.memory import MemoryChannel
from trio_overlay.errors import OutcomeError, UsageError
from trio_overlay.nodes.peer import Peer, open_peer
from trio_overlay.nodes.peer_connection import Connection, PeerMessage
from trio_overlay.testing.history import History
from trio_overlay.testing.overhearing import Overheard, as_told, content_of, is_told
from trio_overlay.testing.signaling import AUTHORITY
from trio_overlay.testing.story import Step
from trio_overlay.testing.world import (
    FAULTS,
    MAX_LATENESS,
    SERVER,
    SETTLE_TIMEOUT,
    Life,
    VirtualWorld,
)

REGISTRATION_TIMEOUT = 40.0
"""Seconds for a dial and an answer, at the most; longer than any attempt to connect takes."""


@dataclass(eq=False, slots=True)
class _Call:
    """An attempt at a connection: what the world remembers of it."""

    caller: Peer
    seen_at: float
    over_since: float = math.inf
    """When it was first seen to be over at its own end, and not at the other."""


class BrokerWorld(VirtualWorld):
    """Peers that register, each by its own name or another's, and connect to each other.

    Steps, besides those of every world: ``n3 takes n1`` (joins, with the id n1), ``n1 calls n2``
    (sends a message to whoever has the id n2), ``n1 hangs_up n2``.
    """

    def __init__(self, settings: Mapping[str, str], *, history: History | None = None) -> None:
        super().__init__(settings, history=history)
        self.peers: dict[str, Peer] = {}
        """Those that were registered and live, by the names of their lives, oldest first."""
        self.count_calls = 0
        """Messages that were sent, as far as their senders know."""
        self.count_heard = 0
        self._hung_up_at = -math.inf
        self._fault_at = -math.inf
        self._wanted: dict[str, str] = {}
        self._calls: dict[str, _Call] = {}
        """The attempts that go on at one end, by their keys."""
        self._mistaken: list[str] = []
        """What has come to somebody for whom it was not, or from somebody else."""

    @property
    def join_timeout(self) -> float:
        return REGISTRATION_TIMEOUT

    async def open(self, stack: AsyncExitStack) -> None:
        pass

    def perform(self, step: Step) -> None:
        who, whom = step.who, step.whom
        peer = self.peers.get(who)
        if step.verb in FAULTS or who == SERVER:
            self._fault_at = trio.current_time()
        match step.verb:
            case "takes" if whom is not None:
                if who not in self.lives and not self.network.host(who).is_crashed:
                    self._wanted[who] = whom
                super().perform(Step(step.at, who, "joins"))
            case "calls" if peer is not None and whom is not None:
                self.attempt(who, lambda: self._call(peer, whom))
            case "hangs_up" if peer is not None and whom is not None:
                self._hung_up_at = trio.current_time()
                self.attempt(who, lambda: peer.disconnect(whom))
            case "calls" | "hangs_up" | "takes":
                pass
            case _:
                super().perform(step)

    async def live(self, life: Life) -> None:
        identifier = self._wanted.pop(life.name, life.name)
        try:
            with life.joining:
                async with self._open_peer(life.name, identifier) as peer:
                    self._overhear(peer)
                    life.join_ended_at = trio.current_time()
                    life.has_joined = True
                    self.count_joined += 1
                    async with self.acting(life.name):
                        self.peers[life.name] = peer
                        with life.staying:
                            await self.stay(life, peer)
        finally:
            life.join_ended_at = life.join_ended_at or trio.current_time()
            self.peers.pop(life.name, None)

    async def stay(self, life: Life, node: Peer) -> None:  # noqa: ARG002 - for those who extend
        """What the application does with its peer, *node*, until it leaves; nothing, here.

        What comes out of `Peer.messages` is what the application has said, and not the story. Who
        reads from a connection itself gets all.
        """
        await trio.sleep_forever()

    def give_up(self, name: str) -> None:
        self._note_calls()
        super().give_up(name)

    def check(self) -> None:
        self.check_lives()
        self._check_answers()
        assert not self._mistaken, "; ".join(self._mistaken)
        holders = self.signaling.server._broker.registrations._holders
        for identifier, holder in holders.items():
            assert holder.identifier == identifier
        ends = self._ends()
        for end, (peer, other) in ends.items():
            far_peer, far_other = ends.get(end.other_end, (None, None))
            if far_peer is not None:
                assert (far_peer.id, far_other) == (other, peer.id), (
                    f"{peer.id} is connected to {far_peer.id}, and takes it for {other}, "
                    f"which takes it for {far_other}"
                )

    def _check_answers(self) -> None:
        """Nobody answers who has given up, once it must have been told; in the calm."""
        self._note_calls()
        for peer in self.peers.values():
            for attempt in peer._attempts.values():
                call = self._calls.get(attempt.key or "")
                if call is not None and not attempt.is_initiator and not attempt.ended.is_set():
                    self._check_answer(peer, call, attempt.key)

    def _check_answer(self, peer: Peer, call: _Call, key: str | None) -> None:
        now, caller = trio.current_time(), call.caller
        connection = caller.connections.get(peer.id)
        if _calls(caller, peer.id, key) or (connection is not None and connection.attempt == key):
            call.over_since = math.inf
        elif call.over_since == math.inf:
            call.over_since = now
            self.look_in(MAX_LATENESS)
        is_excused = (
            self.has_faults
            or self._fault_at >= call.seen_at - SETTLE_TIMEOUT
            or caller not in self.peers.values()
            or not (caller.is_registered and peer.is_registered)
        )
        assert now < call.over_since + MAX_LATENESS or is_excused, (
            f"{peer.id} answers {caller.id}, which has given up {now - call.over_since:g} s ago"
        )

    def _note_calls(self) -> None:
        """Remember who has begun what goes on at either end."""
        calls: dict[str, _Call] = {}
        for peer in self.peers.values():
            for attempt in peer._attempts.values():
                key = attempt.key or ""
                if key in self._calls:
                    calls[key] = self._calls[key]
                elif attempt.is_initiator:
                    calls[key] = _Call(peer, trio.current_time())
        self._calls = calls

    def check_quiet(self) -> None:
        ends = self._ends()
        for name, peer in self.peers.items():
            assert not peer._attempts, f"{name} keeps attempts with {list(peer._attempts)}"
        for identifier in self._identifiers():
            count = sum(peer.is_registered for peer in self.peers.values() if peer.id == identifier)
            assert count == 1, f"{count} peers are registered by the id {identifier}"
        for end, (peer, other) in ends.items():
            assert end.other_end in ends, f"{other} does not know that {peer.id} is connected to it"
        assert self.network.count_open_peers == len(ends), "\n".join(self.network.list_open())
        registered, wanted = self.signaling.server.status()["peers"], len(self._identifiers())
        assert registered == wanted, f"{registered} ids are held, where {wanted} are wanted"

    def is_settled(self) -> bool:
        registered = {peer.id for peer in self.peers.values() if peer.is_registered}
        return registered == self._identifiers()

    def _identifiers(self) -> set[str]:
        return {peer.id for peer in self.peers.values()}

    def _ends(self) -> dict[MemoryChannel, tuple[Peer, str]]:
        """Whose each end of an open connection is, and to whom it believes to be connected."""
        return {
            _end_of(connection): (peer, other)
            for peer in self.peers.values()
            for other, connection in peer.connections.items()
        }

    async def _call(self, peer: Peer, whom: str) -> None:
        began_at = trio.current_time()
        failure: OutcomeError | None = None
        must_succeed = self._can_be_called(whom, began_at)
        try:
            await peer.send(whom, as_told({"from": peer.id, "to": whom}))
            self.count_calls += 1
        except (UsageError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except OutcomeError as error:
            failure = error
        if must_succeed and self._can_be_called(whom, began_at):
            assert failure is None, f"{peer.id} cannot call {whom}: {failure}"

    def _can_be_called(self, identifier: str, since: float) -> bool:
        """Whether nothing excuses who cannot reach the peer with this id, tried *since* then.

        The peer was registered a moment before, and still is; there were no faults, and nobody
        has hung up, then and for long enough before.
        """
        return (
            not self.has_faults
            and self._fault_at < since - SETTLE_TIMEOUT
            and self._hung_up_at < since - 1
            and any(
                peer.id == identifier
                and peer.is_registered
                and (self.lives[name].join_ended_at or since) < since - 1
                for name, peer in self.peers.items()
            )
        )

    def _open_peer(self, name: str, identifier: str) -> AbstractAsyncContextManager[Peer]:
        secret = random.Random(f"{self.seed} {name} secret").getrandbits(128)
        return open_peer(
            identifier,
            AUTHORITY,
            network=self.network.host(name),
            rng=random.Random(f"{self.seed} {name}"),
            secret=f"{secret:032x}",  # the same each time: it stands in histories
        )

    def _overhear(self, peer: Peer) -> None:
        """Take note of what comes to *peer* that others have said for the story's sake."""

        def hear(message: PeerMessage) -> None:
            if is_told(message.data):
                content = content_of(message.data)
                if content != {"from": message.sender, "to": peer.id}:
                    self._mistaken.append(f"{peer.id} got {content} from {message.sender}")
                self.count_heard += 1

        peer.messages = Overheard(peer.messages, hear, lambda message: is_told(message.data))


def _calls(caller: Peer, other: str, key: str | None) -> bool:
    attempt = caller._attempts.get(other)
    return attempt is not None and attempt.key == key and not attempt.ended.is_set()


def _end_of(connection: Connection) -> MemoryChannel:
    end = connection._channel
    assert isinstance(end, MemoryChannel)
    return end
