"""What the worlds of peers with arcs share: a gate to the network, first arcs, both ends' books."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import ClassVar

import trio

from trio_overlay.errors import PeerNotFound
from trio_overlay.nodes.heartbeat import Heartbeat
from trio_overlay.nodes.neighbours import Neighbours, open_neighbours
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.neighbours import Side, peer_of
from trio_overlay.signaling.bootstrap import Bootstrap, Request, open_bootstrap
from trio_overlay.testing.faults import FailHandshakes, LoseSignals
from trio_overlay.testing.history import History
from trio_overlay.testing.signaling import AUTHORITY, SECRET
from trio_overlay.testing.world import VirtualWorld

GATE = "gate"
CALM_HEARTBEAT = 30
"""Seconds between signs of life where nobody falls silent: they cost more than all else."""
MAX_CARRY_DELAY = 0.2
"""Seconds that a message between two nodes takes when the application carries it."""


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
