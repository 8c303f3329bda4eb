"""What the worlds of peers with arcs share: a gate to the network, first arcs, both ends' books."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import OutcomeError, PeerNotFound
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

    def __init__(
        self, settings: Mapping[str, str], pid: str, *, history: History | None = None
    ) -> None:
        super().__init__(settings, history=history)
        self.pid = pid
        self.attempt_timeout = float(settings.get("attempt_timeout", "10"))
        self.keep_timeout = float(settings.get("keep_timeout", "4"))
        self.heartbeat = float(settings.get("heartbeat", "5"))
        self.loss = float(settings.get("loss", "0"))
        self.nodes: dict[str, Neighbours] = {}
        """Those that are open, the gate among them, oldest first."""
        self._nurseries: dict[str, trio.Nursery] = {}
        self._tries: dict[str, list[trio.CancelScope]] = {}
        """One around each thing that a node tries to do."""
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
        nursery = await stack.enter_async_context(open_background_nursery())
        self.note_node(GATE, gate, nursery)

        async def admit(request: Request) -> None:
            answer = bootstrap.answer(request, timeout=self.attempt_timeout)
            await self._ignore_outcome(lambda: gate.attach(answer, is_outgoing=False))

        async def admit_all() -> None:
            async for request in requests:
                nursery.start_soon(admit, request)

        nursery.start_soon(admit_all)

    async def finish(self) -> None:
        self.loss = 0.0
        for rule in self.network.rules:
            if isinstance(rule.action, LoseSignals | FailHandshakes):
                self.network.lift(rule)
        await super().finish()

    async def attach(self, node: Neighbours, bootstrap: Bootstrap) -> str:
        """Open *node*'s arc to the gate through the server; the gate's end."""
        return await node.attach(bootstrap.connect(timeout=self.attempt_timeout))

    def is_settled(self) -> bool:
        # The gate dials a server that has restarted in up to half a minute.
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

    def note_node(self, name: str, node: Neighbours, nursery: trio.Nursery) -> None:
        """From now on *node* can do what steps say, in its *nursery*."""
        self.nodes[name] = node
        self._nurseries[name] = nursery
        self._tries[name] = []

    def forget_node(self, name: str) -> None:
        """It can't any more."""
        for table in (self.nodes, self._nurseries, self._tries):
            del table[name]

    def attempt(self, name: str, action: Callable[[], Awaitable[object]]) -> None:
        """Let the node *name* try *action*, until `give_up`; an outcome is only noted."""
        scope = trio.CancelScope()
        tries = self._tries[name]
        tries.append(scope)

        async def run() -> None:
            try:
                with scope:
                    await self._ignore_outcome(action)
            finally:
                tries.remove(scope)

        self._nurseries[name].start_soon(run)

    def give_up(self, name: str) -> None:
        """Cancel what *name* tries."""
        for scope in self._tries[name]:
            scope.cancel()

    async def reach(self, name: str, whom: str) -> str:
        """An arc from *name* whose messages the application carries, now and then to nobody.

        PeerNotFound: *name* has ended before it came to that. What `Neighbours.initiate` raises.
        """
        node = self.nodes.get(name)
        if node is None:
            raise PeerNotFound(f"{name} has ended")

        async def there(message: JSON) -> None:
            await trio.sleep(self._rng.uniform(0, MAX_CARRY_DELAY))
            other = self.nodes.get(whom)
            if other is not None and self._arrives(name, whom):
                other.accept(back, message)

        async def back(message: JSON) -> None:
            await trio.sleep(self._rng.uniform(0, MAX_CARRY_DELAY))
            if self._arrives(whom, name):
                node.finalize(message)

        return await node.initiate(there)

    def _arrives(self, source: str, target: str) -> bool:
        """Whether what the application carries gets there."""
        cut_off = {source, target} & set(self.network.frozen)
        is_cut = self.is_cut(source, target) or self.is_cut(target, source)
        return not (cut_off or is_cut) and self._rng.random() >= self.loss

    async def _ignore_outcome(self, action: Callable[[], Awaitable[object]]) -> None:
        try:
            await action()
        except OutcomeError as error:
            self.network.note(f"it came to nothing: {error}")

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
