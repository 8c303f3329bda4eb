"""Neighbours that signal for each other as a world for stories."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio

from trio_overlay.nodes.neighbours import (
    ArcClose,
    ArcFail,
    ArcOpen,
    NeighbourEvent,
    Neighbours,
)
from trio_overlay.testing.arcs_world import ArcsWorld
from trio_overlay.testing.history import History
from trio_overlay.testing.overhearing import Overheard
from trio_overlay.testing.story import Step, UnknownStep
from trio_overlay.testing.world import Life

PID = "story"


class NeighboursWorld(ArcsWorld):
    """A gate, to which nodes open their first arc through the server, and what they do then.

    Settings are those of every `ArcsWorld`. Further steps:

    =================  =======================================================================
    n1 reaches n2      n1 opens an arc to n2; the application carries the messages
    n1 doubles n2      n1 opens an arc to n2, to which it is connected
    n1 invites n2      n1 asks n2 to open an arc to it
    n1 bridges n2,n3   n1 asks n2 to open an arc to n3
    n1 drops n2        n1 removes an arc to or from n2
    n1 drops_all       n1 removes its arcs
    =================  =======================================================================
    """

    def __init__(self, settings: Mapping[str, str], *, history: History | None = None) -> None:
        super().__init__(settings, PID, history=history)
        self._told: dict[str, Counter[str]] = {}
        """The arcs of each node by the other end, as its events tell."""

    async def live(self, life: Life) -> None:
        async with (
            self.open_node(life.name) as node,
            self.open_bootstrap(life.name) as bootstrap,
            self.taking_part(life.name, node),
        ):
            with self.joining(life):
                await self.attach(node, bootstrap)
            if life.has_joined:
                with life.staying:
                    await self.stay(life, node)

    async def stay(self, life: Life, node: Neighbours) -> None:  # noqa: ARG002 - to be extended
        """What the application does with its *node* until it leaves; nothing, here."""
        await trio.sleep_forever()

    @asynccontextmanager
    async def taking_part(self, name: str, node: Neighbours) -> AsyncIterator[trio.Nursery]:
        self._overhear(name, node)
        async with super().taking_part(name, node) as nursery:
            yield nursery

    # --- steps ----------------------------------------------------------------------------

    def perform(self, step: Step) -> None:
        node = self.nodes.get(step.who)
        match step.verb:
            case "reaches" | "doubles" | "invites" | "bridges" | "drops" | "drops_all":
                if node is not None:
                    self._let(node, step)
            case _:
                super().perform(step)

    def _let(self, node: Neighbours, step: Step) -> None:
        name, whom = step.who, step.whom
        if whom is not None and len({name, *whom.split(",")}) == 1:
            return  # no peer has an arc to itself
        match step.verb, whom:
            case "drops_all", None:
                node.disconnect()
            case "drops", str():
                if not node.disconnect(f"{whom}-I"):
                    node.disconnect(f"{whom}-O")
            case "reaches", str():
                if whom in self.nodes:
                    self.attempt(name, lambda: self.reach(name, whom))
            case "doubles", str():
                self.attempt(name, lambda: node.connect(to=f"{whom}-I"))
            case "invites", str():
                self.attempt(name, lambda: node.connect(from_=f"{whom}-O"))
            case "bridges", str() if whom.count(",") == 1:
                opens, accepts = whom.split(",")
                if opens != accepts:
                    self.attempt(name, lambda: node.connect(f"{opens}-O", f"{accepts}-I"))
            case _:
                raise UnknownStep(step)

    # --- checks ---------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        for name, node in self.nodes.items():
            views = {**node.outview, **node.inview}
            assert len(views) == len(node.outview) + len(node.inview)
            told = {end: count for end, count in self._told[name].items() if count}
            assert told == views, f"the events of {name} tell {told}, and its views {views}"

    def _overhear(self, name: str, node: Neighbours) -> None:
        """Count the arcs of *node* as its events tell of them; the application has them, too."""
        told = self._told[name] = Counter()

        def hear(event: NeighbourEvent) -> None:
            match event:
                case ArcOpen(end):
                    told[end] += 1
                case ArcClose(end):
                    told[end] -= 1
                case ArcFail():
                    pass

        node.events = Overheard(node.events, hear)
