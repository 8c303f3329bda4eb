"""Peers that sample their network as a world for stories."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import ClassVar

import trio

from trio_overlay.nodes.neighbours import Neighbours
from trio_overlay.nodes.sampling import (
    LEAVE_TIME,
    FindContact,
    Sampling,
    SamplingState,
    open_sampling,
)
from trio_overlay.protocol.neighbours import peer_of
from trio_overlay.protocol.sampling_frames import PROTOCOL_ID
from trio_overlay.simulation.graphs import largest_component
from trio_overlay.testing.arcs_world import GATE, ArcsWorld
from trio_overlay.testing.history import History
from trio_overlay.testing.story import Step
from trio_overlay.testing.world import Life

NEVER = 1e9
"""Seconds: an interval in which nobody exchanges any more."""
HARMLESS = frozenset({"joins", "meets", "exchanges", "passes"})
"""What a network in which nothing ever fails may live through, and stay one."""


class SamplingWorld(ArcsWorld):
    """Peers that join by a gate, or by each other, and exchange what they know.

    Settings, besides those of every `ArcsWorld`: ``interval`` (20), the seconds between exchanges,
    ``a`` (1) and ``b`` (0), and ``max_arcs`` (24), as those of `open_sampling`.

    Further steps:

    ===============  =========================================================================
    n1 meets n2      n1 opens an arc to n2, carried by the application, and joins by it
    n1 exchanges     n1 begins its next exchange now
    ===============  =========================================================================

    Once all is quiet, exchanges over, views and arcs are the same at both ends, and whoever is
    there has a neighbour. All are one network if nothing has gone wrong for anybody. That is not
    promised after a loss: whom a peer knows is chance, and a few that know each other can be
    left together, a hole away from all others (docs/sampling.md).
    """

    defaults: ClassVar = {
        **ArcsWorld.defaults,
        "interval": 20.0,
        "a": 1.0,
        "b": 0.0,
        "max_arcs": 24,
    }

    def __init__(self, settings: Mapping[str, str], *, history: History | None = None) -> None:
        super().__init__(settings, PROTOCOL_ID, history=history)
        self.interval = self.settings["interval"]
        self.a = self.settings["a"]
        self.b = self.settings["b"]
        self.max_arcs = int(self.settings["max_arcs"])
        self.samplings: dict[str, Sampling] = {}
        """Those that are open, the gate's among them, oldest first."""
        self.is_unharmed = not self.loss
        """Whether nobody has left, failed, given up or been cut off yet."""
        self._is_over = False

    @property
    def settle_timeout(self) -> float:
        # Who has lost everybody tries again in up to 45 s, and then perhaps in vain for a while.
        return 2 * super().settle_timeout

    @property
    def leave_timeout(self) -> float:
        # What a leaver was about to pass on is given up by nobody but its timeout.
        return LEAVE_TIME + self.attempt_timeout

    async def open(self, stack: AsyncExitStack) -> None:
        await super().open(stack)
        gate = await stack.enter_async_context(self._open_sampling(GATE, self.nodes[GATE], None))
        self.samplings[GATE] = gate

    async def live(self, life: Life) -> None:
        name = life.name
        async with self.open_node(name) as node, self.open_bootstrap(name) as bootstrap:

            async def find_contact(neighbours: Neighbours) -> str:
                return await self.attach(neighbours, bootstrap)

            async with (
                self._open_sampling(name, node, find_contact) as sampling,
                self.taking_part(name, node),
            ):
                self.samplings[name] = sampling
                if self._is_over:
                    self._let_rest(sampling)
                try:
                    with self.joining(life):
                        await sampling.join()
                    if life.has_joined:
                        with life.staying:
                            await self.stay(life, sampling)
                        await sampling.leave()
                finally:
                    del self.samplings[name]

    async def stay(self, life: Life, node: Sampling) -> None:  # noqa: ARG002 - to be extended
        """What the application does with its *node* until it leaves; nothing, here."""
        await trio.sleep_forever()

    async def finish(self) -> None:
        self._is_over = True
        for sampling in self.samplings.values():
            self._let_rest(sampling)
        await super().finish()

    def _let_rest(self, sampling: Sampling) -> None:
        """Have it begin no exchange any more: without them there is a moment of quiet."""
        sampling.interval = NEVER
        sampling._pause.deadline = trio.current_time() + NEVER

    # --- steps ----------------------------------------------------------------------------

    def perform(self, step: Step) -> None:
        self.is_unharmed &= step.verb in HARMLESS
        sampling, whom = self.samplings.get(step.who), step.whom
        match step.verb, whom:
            case "meets", str():
                if sampling is not None and whom in self.samplings and whom != step.who:
                    self.attempt(step.who, lambda: self._meet(step.who, whom))
            case "exchanges", None:
                if sampling is not None:
                    sampling._pause.deadline = trio.current_time()
            case _:
                super().perform(step)

    async def _meet(self, name: str, whom: str) -> None:
        contact = await self.reach(name, whom)
        sampling = self.samplings.get(name)
        if sampling is not None and not sampling.has_left:
            await sampling.join(contact)

    # --- checks ---------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        for name, sampling in self.samplings.items():
            view = sampling._spray.view
            assert name not in sampling.view, f"{name} has itself in its view"
            assert len(view) <= self.max_arcs, f"the view of {name} has {len(view)} arcs"
            assert 1 <= sampling.estimate_size() < float("inf")

    def is_settled(self) -> bool:
        return super().is_settled() and not (
            self._list_lonely()
            or any(sampling._handed for sampling in self.samplings.values())
            or any(len(node._attempts) for node in self.nodes.values())
        )

    def check_quiet(self) -> None:
        super().check_quiet()
        for name, sampling in self.samplings.items():
            assert not sampling._handed, f"{name} still holds arcs that are to be another's"
            outview: Counter[str] = Counter()
            for end, count in sampling.neighbours.outview.items():
                outview[peer_of(end)] += count
            assert sampling.view == outview, f"{name} sees {sampling.view}, and has {outview}"
            assert sampling.view.keys() <= self.samplings.keys(), f"{name} knows who is gone"
        assert not self._list_lonely(), f"{self._list_lonely()} know nobody"
        if self.is_unharmed:
            assert self.is_connected(), f"several networks: {self._list_views()}"

    def is_connected(self) -> bool:
        """Whether the arcs, in whichever direction, make all peers one network."""
        numbers = {name: number for number, name in enumerate(self.samplings)}
        graph = [
            [numbers[peer] for peer in sampling.view if peer in numbers]
            for sampling in self.samplings.values()
        ]
        return largest_component(graph) == len(graph)

    def _list_lonely(self) -> list[str]:
        if len(self.samplings) == 1:
            return []
        return [
            name
            for name, sampling in self.samplings.items()
            if sampling.state is SamplingState.DISCONNECTED and name != GATE
        ]

    def _list_views(self) -> dict[str, dict[str, int]]:
        return {name: dict(sampling.view) for name, sampling in self.samplings.items()}

    def _open_sampling(
        self, name: str, node: Neighbours, find_contact: FindContact | None
    ) -> AbstractAsyncContextManager[Sampling]:
        return open_sampling(
            node,
            find_contact=find_contact,
            interval=self.interval,
            a=self.a,
            b=self.b,
            max_arcs=self.max_arcs,
            rng=random.Random(f"{self.seed} {name} s"),
        )
