"""Neighbours that signal for each other as a world for stories."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import OutcomeError
from trio_overlay.nodes.neighbours import ArcClose, ArcFail, ArcOpen, Neighbours, open_neighbours
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.neighbours import Side, peer_of
from trio_overlay.signaling.bootstrap import Request, open_bootstrap
from trio_overlay.testing.faults import FailHandshakes, LoseSignals
from trio_overlay.testing.history import History
from trio_overlay.testing.signaling import AUTHORITY, SECRET
from trio_overlay.testing.story import Step
from trio_overlay.testing.world import Life, VirtualWorld

GATE = "gate"
PID = "story"
MAX_CARRY_DELAY = 0.2
"""Seconds that a message between two nodes takes when the application carries it."""


class NeighboursWorld(VirtualWorld):
    """A gate, to which nodes open their first arc through the server, and what they do then.

    Settings, besides those of every world: ``attempt_timeout`` (10) and ``keep_timeout`` (4),
    both in seconds, and ``loss`` (0), the probability that a signal, or a message that the
    application carries, gets lost, and that a handshake comes to nothing.

    Further steps:

    =================  =======================================================================
    n1 reaches n2      n1 opens an arc to n2; the application carries the messages
    n1 doubles n2      n1 opens an arc to n2, to which it is connected
    n1 invites n2      n1 asks n2 to open an arc to it
    n1 bridges n2,n3   n1 asks n2 to open an arc to n3
    n1 drops n2        n1 removes an arc to or from n2
    n1 drops_all       n1 removes its arcs
    n1 gives_up        what n1 tries to open is cancelled
    =================  =======================================================================
    """

    def __init__(self, settings: Mapping[str, str], *, history: History | None = None) -> None:
        super().__init__(settings, history=history)
        self.attempt_timeout = float(settings.get("attempt_timeout", "10"))
        self.keep_timeout = float(settings.get("keep_timeout", "4"))
        self.loss = float(settings.get("loss", "0"))
        self.nodes: dict[str, Neighbours] = {}
        """Those that are open, the gate among them, oldest first."""
        self._nurseries: dict[str, trio.Nursery] = {}
        self._tries: dict[str, list[trio.CancelScope]] = {}
        """One around each arc that a node tries to open."""
        self._told: dict[str, Counter[str]] = {}
        """The arcs of each node by the other end, as its events tell."""
        self._rng = random.Random(f"{self.seed} carriers")

    @property
    def join_timeout(self) -> float:
        return self.attempt_timeout

    @property
    def residents(self) -> frozenset[str]:
        return super().residents | {GATE}

    async def open(self, stack: AsyncExitStack) -> None:
        if self.loss:
            self.network.apply("* -> *", LoseSignals(self.loss))
            self.network.apply("* -> *", FailHandshakes(self.loss))
        gate = await stack.enter_async_context(self._open_node(GATE))
        network, rng = self.network.host(GATE), random.Random(f"{self.seed} gate")
        bootstrap = await stack.enter_async_context(
            open_bootstrap(AUTHORITY, network=network, rng=rng)
        )
        requests = await stack.enter_async_context(bootstrap.root(SECRET))
        nursery = await stack.enter_async_context(open_background_nursery())
        self._note_node(GATE, gate, nursery)

        async def admit(request: Request) -> None:
            answer = bootstrap.answer(request, timeout=self.attempt_timeout)
            await self._ignore_outcome(lambda: gate.attach(answer, is_outgoing=False))

        async def admit_all() -> None:
            async for request in requests:
                nursery.start_soon(admit, request)

        nursery.start_soon(admit_all)

    async def live(self, life: Life) -> None:
        network, rng = self.network.host(life.name), random.Random(f"{self.seed} {life.name} b")
        async with (
            self._open_node(life.name) as node,
            open_bootstrap(AUTHORITY, network=network, rng=rng) as bootstrap,
            open_background_nursery() as nursery,
        ):
            self._note_node(life.name, node, nursery)
            try:
                try:
                    with life.joining:
                        await node.attach(bootstrap.connect(timeout=self.attempt_timeout))
                        life.has_joined = True
                        self.count_joined += 1
                finally:
                    life.join_ended_at = trio.current_time()
                if life.has_joined:
                    with life.staying:
                        await self.stay(life, node)
            finally:
                self._forget_node(life.name)

    async def stay(self, life: Life, node: Neighbours) -> None:  # noqa: ARG002 - to be extended
        """What the application does with its *node* until it leaves; nothing, here."""
        await trio.sleep_forever()

    # --- steps ----------------------------------------------------------------------------

    def perform(self, step: Step) -> None:
        node, whom = self.nodes.get(step.who), step.whom
        match step.verb:
            case "reaches" | "doubles" | "invites" | "bridges" | "drops" | "drops_all" | "gives_up":
                if node is not None:
                    self._let(step.who, node, step.verb, whom)
            case _:
                super().perform(step)

    def _let(self, name: str, node: Neighbours, verb: str, whom: str | None) -> None:
        if whom is not None and len({name, *whom.split(",")}) == 1:
            return  # no peer has an arc to itself
        match verb, whom:
            case "gives_up", None:
                for scope in self._tries[name]:
                    scope.cancel()
            case "drops_all", None:
                node.disconnect()
            case "drops", str():
                if not node.disconnect(f"{whom}-I"):
                    node.disconnect(f"{whom}-O")
            case "reaches", str():
                if whom in self.nodes:
                    self._try(name, lambda: self._reach(name, whom))
            case "doubles", str():
                self._try(name, lambda: node.connect(to=f"{whom}-I"))
            case "invites", str():
                self._try(name, lambda: node.connect(from_=f"{whom}-O"))
            case "bridges", str() if whom.count(",") == 1:
                opens, accepts = whom.split(",")
                if opens != accepts:
                    self._try(name, lambda: node.connect(f"{opens}-O", f"{accepts}-I"))
            case _:
                raise ValueError(f"nobody knows how to do this: {verb} {whom}")

    def _try(self, name: str, action: Callable[[], Awaitable[object]]) -> None:
        scope = trio.CancelScope()
        self._tries[name].append(scope)

        async def run() -> None:
            try:
                with scope:
                    await self._ignore_outcome(action)
            finally:
                tries.remove(scope)

        tries = self._tries[name]
        self._nurseries[name].start_soon(run)

    async def _ignore_outcome(self, action: Callable[[], Awaitable[object]]) -> None:
        try:
            await action()
        except OutcomeError as error:
            self.network.note(f"it came to nothing: {error}")

    async def _reach(self, name: str, whom: str) -> None:
        """An arc whose messages the application carries, now and then to nobody."""

        async def there(message: JSON) -> None:
            await trio.sleep(self._rng.uniform(0, MAX_CARRY_DELAY))
            node = self.nodes.get(whom)
            if node is not None and self._arrives(name, whom):
                node.accept(back, message)

        async def back(message: JSON) -> None:
            await trio.sleep(self._rng.uniform(0, MAX_CARRY_DELAY))
            node = self.nodes.get(name)
            if node is not None and self._arrives(whom, name):
                node.finalize(message)

        await self.nodes[name].initiate(there)

    def _arrives(self, source: str, target: str) -> bool:
        """Whether what the application carries gets there."""
        cut_off = {source, target} & set(self.network.frozen)
        is_cut = self.is_cut(source, target) or self.is_cut(target, source)
        return not (cut_off or is_cut) and self._rng.random() >= self.loss

    # --- checks ---------------------------------------------------------------------------

    def is_settled(self) -> bool:
        # The gate dials a server that has restarted in up to half a minute.
        return bool(self.signaling.server.status()["roots"])

    def check(self) -> None:
        self.check_lives()
        for name, node in self.nodes.items():
            hood = node._hood
            for link in hood.links.values():
                assert link.peer != name, f"{name} has a connection to itself"
            views = {**node.outview, **node.inview}
            assert len(views) == len(node.outview) + len(node.inview)
            told = self._hear(name, node)
            assert told == views, f"the events of {name} tell {told}, and its views {views}"
            assert len(hood.acceptor.answering) == len(node._answers)
            begun = Counter(opens for opens, _ in node._bridging.attempts.values())
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

    def _hear(self, name: str, node: Neighbours) -> dict[str, int]:
        """The arcs of *node*, by the other end, as its events have told up to now."""
        told = self._told[name]
        for _ in range(len(node.events)):
            match node.events.receive_nowait():
                case ArcOpen(end):
                    told[end] += 1
                case ArcClose(end):
                    told[end] -= 1
                case ArcFail():
                    pass
        return {end: count for end, count in told.items() if count}

    def _note_node(self, name: str, node: Neighbours, nursery: trio.Nursery) -> None:
        self.nodes[name] = node
        self._nurseries[name] = nursery
        self._tries[name] = []
        self._told[name] = Counter()

    def _forget_node(self, name: str) -> None:
        for table in (self.nodes, self._nurseries, self._tries, self._told):
            del table[name]

    def _open_node(self, name: str) -> AbstractAsyncContextManager[Neighbours]:
        return open_neighbours(
            PID,
            peer=name,
            network=self.network.host(name),
            attempt_timeout=self.attempt_timeout,
            keep_timeout=self.keep_timeout,
            rng=random.Random(f"{self.seed} {name}"),
        )
