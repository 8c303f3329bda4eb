"""Relays as a world for stories."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import ClassVar, cast

import trio

from trio_overlay.nodes.relay import PeerJoined, Relay, RelayMessage, open_relay
from trio_overlay.protocol.relay import PeerId
from trio_overlay.protocol.relay_routing import MAX_NONCES
from trio_overlay.testing.history import History
from trio_overlay.testing.overhearing import Overheard, as_told, content_of, is_told
from trio_overlay.testing.story import Step, UnknownStep
from trio_overlay.testing.world import Life, VirtualWorld

HUB = "hub"
MAX_REMEMBERED = MAX_NONCES + 20_000
"""Entries of all tables of one relay, whatever happens to it."""


class RelayWorld(VirtualWorld):
    """A hub that listens, and relays that dial it; every other one of them listens, too.

    Settings, besides those of every world: ``join_timeout`` (30), the seconds in which a relay has
    a neighbour or is let live without; ``receipt_timeout`` (20).

    Further steps:

    ================  ===========================================================================
    n1 tells n2       n1 sends a message to n2
    n1 assures n2     the same, with a receipt
    n1 connects n2    n1 wants a connection to n2
    n1 lets_go n2     n1 closes the one it has
    hub crashes       and ``hub restarts``, with another id
    ================  ===========================================================================
    """

    defaults: ClassVar = {**VirtualWorld.defaults, "join_timeout": 30.0, "receipt_timeout": 20.0}

    def __init__(self, settings: Mapping[str, str], *, history: History | None = None) -> None:
        super().__init__(settings, history=history)
        self.receipt_timeout = self.settings["receipt_timeout"]
        self.nodes: dict[str, Relay] = {}
        """Those that are open, the hub among them, oldest first."""
        self.count_confirmed = 0
        self._join_timeout = self.settings["join_timeout"]
        self._hub: trio.CancelScope | None = None
        self._count_hubs = 0
        self._count_messages = 0
        self._arrived: Counter[tuple[str, int]] = Counter()
        """How often each message has come out, by the name of who has got it and its number."""

    @property
    def join_timeout(self) -> float:
        return self._join_timeout

    @property
    def residents(self) -> frozenset[str]:
        return super().residents | {HUB}

    @property
    def hub_is_running(self) -> bool:
        """Whether the hub is neither crashed nor gone."""
        return self._hub is not None

    async def open(self, stack: AsyncExitStack) -> None:  # noqa: ARG002 - the hub may crash
        self._begin_hub()

    async def live(self, life: Life) -> None:
        name = life.name
        async with self._open_node(name) as relay, self._taking_part(name, relay):
            with trio.move_on_after(self.join_timeout), self.joining(life):
                await self._wait_for_a_neighbour(relay)
            if not life.joining.cancel_called:
                with life.staying:
                    await self.stay(life, relay)

    async def stay(self, life: Life, node: Relay) -> None:  # noqa: ARG002 - to be extended
        """What the application does with its *node* until it leaves; nothing, here.

        What comes out of `Relay.messages` is what the application has said, and not the story.
        """
        await trio.sleep_forever()

    async def finish(self) -> None:
        self.network.thaw(HUB)
        if self._hub is None:
            self._restart_hub()
        await super().finish()

    # --- steps ----------------------------------------------------------------------------

    def perform(self, step: Step) -> None:
        relay, whom = self.nodes.get(step.who), step.whom
        match step.verb:
            case "crashes" if step.who == HUB:
                if self._hub is not None:
                    self._trouble_at = trio.current_time()
                    self.network.crash(HUB, noticed_after=self.noticed_after)
                    self._hub.cancel()
                    self._hub = None
            case "restarts" if step.who == HUB:
                if self._hub is None:
                    self._restart_hub()
            case "tells" | "assures" | "connects" | "lets_go" if whom is not None:
                other = self.nodes.get(whom)
                if relay is not None and other is not None and relay is not other:
                    self._let(step.who, relay, step.verb, whom, other.id)
            case "tells" | "assures" | "connects" | "lets_go":
                raise UnknownStep(step)
            case _:
                super().perform(step)

    def _let(self, name: str, relay: Relay, verb: str, whom: str, peer: PeerId) -> None:
        self._count_messages += 1
        number = self._count_messages

        async def assure() -> None:
            told = as_told([number, 1])
            await relay.send(peer, told, wait_for_receipt=True, timeout=self.receipt_timeout)
            assert self._arrived[whom, number], f"{whom} confirmed what it never got"
            self.count_confirmed += 1

        match verb:
            case "tells":
                self.attempt(name, lambda: relay.send(peer, as_told([number, 0])))
            case "assures":
                self.attempt(name, assure)
            case "connects":
                self.attempt(name, lambda: relay.connect(peer))
            case "lets_go":
                self.attempt(name, lambda: relay.disconnect(peer))

    def _overhear(self, name: str, relay: Relay) -> None:
        """Count what comes to *relay* that others have said for the story's sake."""

        def hear(message: RelayMessage) -> None:
            if is_told(message.data):
                number, _ = cast("list[int]", content_of(message.data))
                self._arrived[name, number] += 1

        relay.messages = Overheard(relay.messages, hear, lambda message: is_told(message.data))

    # --- checks ---------------------------------------------------------------------------

    def check(self) -> None:
        self.check_lives()
        for (name, number), count in self._arrived.items():
            assert count == 1, f"{name} got message {number} twice"
        for name, relay in self.nodes.items():
            mind = relay._mind
            assert set(relay.peers) == set(mind._links), f"{name} is of two minds"
            assert relay.id not in relay.peers, f"{name} is its own neighbour"
            for index in mind.neighbours.indices:
                assert mind.neighbours.count(index) <= mind.policy.bucket_size
            assert mind.count_remembered <= MAX_REMEMBERED
            assert len(relay._sessions) <= len(mind.attempts) + 2 * len(self.nodes)

    def check_quiet(self) -> None:
        names = {relay.id: name for name, relay in self.nodes.items()}
        count_links: Counter[str] = Counter()
        for name, relay in self.nodes.items():
            for peer, link in relay.peers.items():
                assert peer in names, f"{name} has {peer} for a neighbour, who is gone"
                other = self.nodes[names[peer]]
                assert relay.id in other.peers, f"{names[peer]} does not know of {name}"
                count_links[link.transport] += 1
            missing = {other for peer, other in names.items() if peer not in relay.peers}
            assert missing == {name}, f"{name} is not connected to {missing - {name}}"
            for what in ("_sessions", "_connecting", "_receipts", "_spares"):
                assert not getattr(relay, what), f"{name} keeps {what}"
            assert not relay._mind._expected
        assert self.network.count_open_peers == count_links["webrtc"]
        assert 2 * self.network.count_open_sockets == count_links["websocket"], "\n".join(
            self.network.list_open()
        )

    def is_settled(self) -> bool:
        everybody = {relay.id for relay in self.nodes.values()}
        return all(
            relay.peers.keys() == everybody - {relay.id} and not relay._sessions
            for relay in self.nodes.values()
        )

    # --- nodes ----------------------------------------------------------------------------

    def _begin_hub(self) -> None:
        self._hub = trio.CancelScope()
        self._count_hubs += 1
        self._nursery.start_soon(self._run_hub, self._hub, self._count_hubs)

    def _restart_hub(self) -> None:
        self._trouble_at = trio.current_time()
        self.network.restart(HUB)
        self._begin_hub()

    async def _run_hub(self, scope: trio.CancelScope, number: int) -> None:
        with scope:
            async with (
                self._open_node(HUB, f"{HUB} {number}") as relay,
                self._taking_part(HUB, relay),
            ):
                await trio.sleep_forever()

    async def _wait_for_a_neighbour(self, relay: Relay) -> None:
        async for event in relay.events:
            if isinstance(event, PeerJoined):
                return

    def _open_node(self, name: str, seed: str = "") -> AbstractAsyncContextManager[Relay]:
        rng = random.Random(f"{self.seed} {seed or name}")
        listens = name == HUB or name[-1] in "02468"
        return open_relay(
            network=self.network.host(name),
            port=0 if listens else None,
            bootstrap=[] if name == HUB else [f"ws://{HUB}"],
            allow_private_addresses=True,
            rng=rng,
        )

    @asynccontextmanager
    async def _taking_part(self, name: str, relay: Relay) -> AsyncIterator[None]:
        async with self.acting(name):
            self._overhear(name, relay)
            self.nodes[name] = relay
            try:
                yield
            finally:
                del self.nodes[name]
