"""What the worlds of peers with arcs share: a gate to the network, first arcs, both ends' books."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar

import trio

from trio_overlay.channels.memory import MemoryChannel
from trio_overlay.errors import PeerNotFound
from trio_overlay.nodes.heartbeat import Heartbeat
from trio_overlay.nodes.neighbour_link import Link
from trio_overlay.nodes.neighbours import Neighbours, open_neighbours
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.neighbours import ARCS, Side, peer_of
from trio_overlay.signaling.bootstrap import Bootstrap, Connection, Request, open_bootstrap
from trio_overlay.testing.faults import FailHandshakes, LoseSignals
from trio_overlay.testing.history import History
from trio_overlay.testing.signaling import AUTHORITY, SECRET
from trio_overlay.testing.world import MAX_LATENESS, VirtualWorld

GATE = "gate"
CALM_HEARTBEAT = 30
"""Seconds between signs of life where nobody falls silent: they cost more than all else."""
MAX_CARRY_DELAY = 0.2
"""Seconds that a message between two nodes takes when the application carries it."""


@dataclass(eq=False, slots=True)
class _Try:
    """An attempt at an arc: what the world remembers of it."""

    name: str
    way: frozenset[str]
    """Who begins it, and over whom its words go: who it is for, or a bridge."""
    links: frozenset[int] | None
    """The numbers of the connections to that; None if the application carries the words."""
    over_since: float = math.inf
    """When it was first seen to be over at its own end, and not at the other."""


class ArcsWorld(VirtualWorld):
    """A gate, to which nodes open their first arc through the server, and whoever comes by it.

    Settings, besides those of every world: ``attempt_timeout`` (10) and ``keep_timeout`` (4),
    ``heartbeat`` (5), the silence after which a neighbour is asked for a sign of life, all in
    seconds, and ``loss`` (0), the probability that a signal, or a message that the application
    carries, gets lost, and that a handshake comes to nothing.

    *pid* is the protocol of the arcs.
    """

    defaults: ClassVar = {
        **VirtualWorld.defaults,
        "attempt_timeout": 10.0,
        "keep_timeout": 4.0,
        "heartbeat": 5.0,
        "loss": 0.0,
    }

    def __init__(
        self, settings: Mapping[str, str], pid: str, *, history: History | None = None
    ) -> None:
        super().__init__(settings, history=history)
        self.pid = pid
        self.attempt_timeout = self.settings["attempt_timeout"]
        self.keep_timeout = self.settings["keep_timeout"]
        self.heartbeat = self.settings["heartbeat"]
        self.loss = self.settings["loss"]
        self.nodes: dict[str, Neighbours] = {}
        """Those that are open, the gate among them, oldest first."""
        self._rng = random.Random(f"{self.seed} carriers")
        self._tries: dict[str, _Try] = {}
        """The attempts of whose end others are told, by their tids, as they were last seen."""
        self._differing: dict[tuple[MemoryChannel, str], float] = {}
        """The arcs, by their tids, that this end of a connection knows and the other does not, and
        since when."""

    @property
    def join_timeout(self) -> float:
        return self.attempt_timeout

    @property
    def residents(self) -> frozenset[str]:
        return super().residents | {GATE}

    # --- the gate -------------------------------------------------------------------------

    async def open(self, stack: AsyncExitStack) -> None:
        if self.loss:
            self.network.apply("* -> *", LoseSignals(self.loss))
            self.network.apply("* -> *", FailHandshakes(self.loss))
        gate = await stack.enter_async_context(self.open_node(GATE))
        bootstrap = await stack.enter_async_context(self.open_bootstrap(GATE))
        requests = await stack.enter_async_context(bootstrap.root(SECRET))
        nursery = await stack.enter_async_context(self.taking_part(GATE, gate))

        async def admit(request: Request) -> None:
            answer = bootstrap.answer(request, timeout=self.attempt_timeout)
            await self.ignore_outcome(lambda: gate.attach(answer, is_outgoing=False))

        async def admit_all() -> None:
            async for request in requests:
                nursery.start_soon(admit, request)

        nursery.start_soon(admit_all)

    async def finish(self) -> None:
        for rule in self.network.rules:
            if isinstance(rule.action, LoseSignals | FailHandshakes):
                self.network.lift(rule)
        await super().finish()

    async def attach(self, node: Neighbours, bootstrap: Bootstrap) -> str:
        """Open *node*'s arc to the gate through the server; the gate's end."""
        return await node.attach(bootstrap.connect(timeout=self.attempt_timeout))

    def give_up(self, name: str) -> None:
        self._note_tries()
        super().give_up(name)

    def is_settled(self) -> bool:
        # The gate dials a server that has restarted within five seconds.
        return bool(self.signaling.server.status()["roots"])

    # --- nodes ----------------------------------------------------------------------------

    def open_node(self, name: str) -> AbstractAsyncContextManager[Neighbours]:
        """The peer called *name*, on its host."""
        return open_neighbours(
            self.pid,
            peer=name,
            network=self.network.host(name),
            attempt_timeout=self.attempt_timeout,
            keep_timeout=self.keep_timeout,
            heartbeat=Heartbeat(self.heartbeat, 2 * self.heartbeat),
            rng=random.Random(f"{self.seed} {name}"),
        )

    def open_bootstrap(self, name: str) -> AbstractAsyncContextManager[Bootstrap]:
        """A client of the server on the host *name*."""
        rng = random.Random(f"{self.seed} {name} b")
        return open_bootstrap(AUTHORITY, network=self.network.host(name), rng=rng)

    @asynccontextmanager
    async def taking_part(self, name: str, node: Neighbours) -> AsyncIterator[trio.Nursery]:
        """In this block *node* is one of `nodes`, and can do what steps say."""
        async with self.acting(name) as nursery:
            self.nodes[name] = node
            try:
                yield nursery
            finally:
                del self.nodes[name]

    async def reach(self, name: str, whom: str) -> str:
        """An arc from *name* whose messages the application carries, now and then to nobody.

        PeerNotFound: *name* has ended before it came to that. What `Neighbours.initiate` raises.
        """
        node = self.nodes.get(name)
        if node is None:
            raise PeerNotFound(f"{name} has ended")

        async def there(message: JSON) -> None:
            is_there = await self._carry(name, whom)
            other = self.nodes.get(whom)
            if other is not None and is_there:
                other.accept(back, message)

        async def back(message: JSON) -> None:
            if await self._carry(whom, name):
                node.finalize(message)

        return await node.initiate(there)

    async def _carry(self, source: str, target: str) -> bool:
        """Take the time of a message that the application carries; whether it gets there."""
        lateness = self.network.draw_signal_delay(source, target)
        await trio.sleep(self._rng.uniform(0, MAX_CARRY_DELAY) + lateness)
        is_cut = self.network.conditions(source, target, "peer").is_cut
        return not (is_cut or self.network.loses_signal(source, target))

    # --- checks ---------------------------------------------------------------------------

    def check(self) -> None:
        self.check_lives()
        for name, node in self.nodes.items():
            hood = node._hood
            for link in hood.links.values():
                assert link.peer != name, f"{name} has a connection to itself"
            assert len(hood.acceptor.answering) == len(node._answers)
            begun = Counter(opens for (opens, _), _ in node._bridging.crossings)
            assert max(begun.values(), default=0) <= hood.max_attempts
        self._check_answers()
        self._check_books()

    def _check_answers(self) -> None:
        """Nobody answers an attempt any more that is over where it began, once it was told so.

        If none on the way was harmed, and the connection that led there is still the same.
        """
        self._note_tries()
        for answerer, node in self.nodes.items():
            for tid in node._answers._answers:
                begun = self._tries.get(tid)
                begins_at = None if begun is None else self.nodes.get(begun.name)
                if begun and begins_at and tid not in begins_at._attempts:
                    self._check_answer(answerer, begun)

    def _note_tries(self) -> None:
        answered = {tid for node in self.nodes.values() for tid in node._answers._answers}
        self._tries = {tid: begun for tid, begun in self._tries.items() if tid in answered}
        for name, node in self.nodes.items():
            for tid, attempt in node._attempts._attempts.items():
                source = attempt.way.source
                if source is not None:
                    links = self._links_between(name, source)
                    self._tries[tid] = _Try(name, frozenset([name, source]), links)
                elif ARCS in attempt.initiator.extensions and self.carries_all:
                    self._tries[tid] = _Try(name, frozenset([name]), None)

    @property
    def carries_all(self) -> bool:
        """Whether what the application carries gets there, if the two can hear each other."""
        return not self.loss and self.has_good_signals

    def _check_answer(self, answerer: str, begun: _Try) -> None:
        now = trio.current_time()
        if begun.over_since == math.inf:
            begun.over_since = now
            self.look_in(MAX_LATENESS)
            return
        is_excused = (
            not self.carries_all
            if begun.links is None
            else begun.links != self._links_between(begun.name, *begun.way - {begun.name})
        )
        assert (
            is_excused
            or now < begun.over_since + MAX_LATENESS
            or not self.could_hear_each_other(
                {answerer, *begun.way}, begun.over_since - MAX_LATENESS
            )
        ), f"{answerer} answers {begun.name}, which has given up {now - begun.over_since:g} s ago"

    def _links_between(self, name: str, other: str) -> frozenset[int]:
        links = self.nodes[name]._hood.links.values()
        return frozenset(link.number for link in links if link.peer == other)

    def _check_books(self) -> None:
        """Both ends of a connection know of the same arcs, but for what is still on its way."""
        now = trio.current_time()
        ends = {
            _end_of(link): (name, node._hood.arcs.arcs_of(link.number).keys())
            for name, node in self.nodes.items()
            for link in node._hood.links.values()
            if link.is_open
        }
        differing: dict[tuple[MemoryChannel, str], float] = {}
        for channel, (name, tids) in ends.items():
            other, others = ends.get(channel.other_end, ("", tids))
            for tid in tids - others if tids != others else ():
                since = differing[channel, tid] = self._differing.get((channel, tid), now)
                if since == now:
                    self.look_in(MAX_LATENESS)
                assert now < since + MAX_LATENESS or not self.could_hear_each_other(
                    {name, other}, since - MAX_LATENESS
                ), f"{name} has the arc {tid} with {other}, which has not, for {now - since:g} s"
        self._differing = differing

    def check_quiet(self) -> None:
        arcs = self._list_arcs()
        for name, node in self.nodes.items():
            hood = node._hood
            assert not len(node._attempts), f"{name} keeps attempts"
            assert not len(node._answers), f"{name} keeps answers"
            assert not len(node._bridging), f"{name} keeps what it bridges"
            for link in hood.links.values():
                assert hood.arcs.arcs_of(link.number), f"{name} keeps {link!r} without an arc"
                assert link.peer in self.nodes, f"{name} keeps {link!r} to who has ended"
            for side in Side:
                for end in hood.arcs.view(node.pid, side):
                    here = arcs[name, side, peer_of(end)]
                    there = arcs.get((peer_of(end), side.opposite, name), [])
                    assert here == there, f"{name} has the arcs {here} to {end}, which has {there}"
        links = sum(len(node._hood.links) for node in self.nodes.values())
        assert self.network.count_open_peers == links, "\n".join(self.network.list_open())

    def _list_arcs(self) -> dict[tuple[str, Side, str], list[str]]:
        """The tids of each node's arcs, by the view they are in and the other peer; sorted."""
        found: dict[tuple[str, Side, str], list[str]] = {}
        for name, node in self.nodes.items():
            for link in node._hood.links.values():
                tids = node._hood.arcs.arcs_of(link.number)
                found.setdefault((name, link.side, link.peer), []).extend(tids)
        return {key: sorted(tids) for key, tids in found.items()}


def _end_of(link: Link) -> MemoryChannel:
    channel = link._channel
    end = channel.channel if isinstance(channel, Connection) else channel
    assert isinstance(end, MemoryChannel)
    return end
