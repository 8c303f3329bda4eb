"""Three servers, a store that breaks in every way, and a model that is too simple to be wrong.

The servers are real but for their sockets, and so is their clock. The model: each id that somebody
wants is held by one of those who want it, when all has been whole for long enough; and at no moment
at all by two. Two servers may hold it for one peer that has moved from the one to the other, for as
long as the former cannot know. `HYPOTHESIS_PROFILE=long` looks much longer.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.cluster.wanderers import Crowd, Letter, Wanderer, watch_holders
from tests.cluster.world import LEASE, Door, Server, World, open_world
from tests.profiles import how_long
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.protocol.broker_registrations import Member
from trio_overlay.testing.determinism import SteppedRun, run_virtual
from trio_overlay.testing.faults import Latency
from trio_overlay.testing.store import ANSWER_TIMEOUT, VirtualStore

NAMES = ("a", "b", "c")
MAX_PEERS = 8
RECOVERY = 2 * LEASE + 20.0
"""Seconds after the last fault in which all is as it should be: a dead server's leases end, a store
without data is quarantined, servers and peers dial again."""
CHURN = 6.0
"""Seconds after which those who came, moved or changed their ids have what they can have."""

DURATIONS = [0.01, 0.3, 3.0, LEASE - 1, LEASE + 2]
durations = st.sampled_from(DURATIONS)
"""Seconds that a fault lasts."""

IDENTIFIERS = ("ada", "bob", "eve")
identifiers = st.sampled_from(IDENTIFIERS)
picks = st.integers(0, 29)
pauses = st.sampled_from([0.0, 0.002, 0.1, 1.0, 3.0])
"""Seconds before a step."""


class Trouble:
    """The servers, those who want ids there, and what was seen that must not be."""

    def __init__(self, world: World, nursery: trio.Nursery, seed: int, latency: float) -> None:
        self.world = world
        self.latency = latency
        """The longest that a message to or from the store takes."""
        self.store = world.store
        self.crowd = Crowd(Door(world, random.Random(seed)), "ws://door", random.Random(seed))
        self.wrong: list[str] = []
        self.lost_at = -math.inf
        """When the store had last lost what it knew, as far as anybody can tell."""
        self.silent_at = -math.inf
        """When something was last kept from arriving for a while."""
        self.fault_at = -math.inf
        self.churn_at = -math.inf
        self._left_behind: dict[Member, float] = {}
        """Connections whose peers have taken their ids along to another server, and since when."""
        self._left: dict[tuple[str, Server], tuple[float, str]] = {}
        """When an id was last given up at a server, and under which digest."""
        self._servers: list[Server] = []
        """Those whose brokers may hold ids: all that did not crash, the ended ones as well."""
        self._nursery = nursery

    def watch(self, server: Server) -> None:
        self._servers.append(server)
        watch_holders(
            server.server, partial(self._note_taken, server), partial(self._note_left, server)
        )

    def _note_left(self, server: Server, identifier: str, digest: str) -> None:
        self._left[identifier, server] = trio.current_time(), digest

    def _note_taken(self, server: Server, identifier: str, digest: str) -> None:
        now = trio.current_time()
        for other, holder in self._holders_of(identifier).items():
            if other is server:
                continue
            if digest and holder.digest == digest:
                self._left_behind.setdefault(holder, now)
            else:
                self.wrong.append(f"{now:g} s: {other.name} and {server.name} hold {identifier}")
        if digest and self._left.get((identifier, server)) == (now, digest):
            return  # from one connection of a peer's to the next: that needs no grant
        # What was granted before may still have been on its way.
        is_new = self.lost_at + 2 * self.latency < now < self.lost_at + LEASE
        if is_new and self.silent_at < self.lost_at - ANSWER_TIMEOUT and not self.is_silent:
            self.wrong.append(f"{now:g} s: {identifier} is granted, and data lost {self.lost_at:g}")

    def _holders_of(self, identifier: str) -> dict[Server, Member]:
        registered = {each: each.server._broker.registrations for each in self._servers}
        return {
            server: each._holders[identifier]
            for server, each in registered.items()
            if each.holds(identifier)
        }

    @property
    def running(self) -> list[Server]:
        return [server for server in self.world.servers if server.is_running]

    @property
    def frozen(self) -> list[Server]:
        return [server for server in self.running if server.cluster.tag in self.store._frozen]

    @property
    def is_silent(self) -> bool:
        return self.store.is_paused or bool(self.frozen)

    @property
    def calm_for(self) -> float:
        """Seconds since the last fault; 0 while any lasts."""
        if self.is_silent or not self.store.is_running or len(self.running) < len(NAMES):
            return 0.0
        return trio.current_time() - self.fault_at

    @property
    def is_calm(self) -> bool:
        return self.calm_for > RECOVERY

    def has_gone_on_alone(self) -> bool:
        """Whether the store is away, and all servers know it."""
        return not self.store.is_running and trio.current_time() > self.fault_at + ANSWER_TIMEOUT

    def note_fault(self) -> None:
        self.fault_at = trio.current_time()

    def note_churn(self) -> None:
        self.churn_at = max(self.churn_at, trio.current_time())

    # --- what happens ---------------------------------------------------------------------

    def come(self, wanted: str, *, is_known_again: bool = True) -> None:
        self.note_churn()
        secret = f"{self.crowd.rng.getrandbits(128):032x}" if is_known_again else None
        self._nursery.start_soon(Wanderer(self.crowd, wanted, secret=secret).run)

    def lose_touch(self, wanderer: Wanderer, seconds: float) -> None:
        """Its broker does not know for so long that it has gone."""
        self.churn_at = max(self.churn_at, trio.current_time() + seconds)
        wanderer.lose_touch(seconds)

    def disturb(self, what: str, server_name: str, seconds: float) -> None:
        """Let one thing go wrong, for so long."""
        self._nursery.start_soon(self._disturb, what, server_name, seconds)

    async def _disturb(self, what: str, server_name: str, seconds: float) -> None:
        server = next((each for each in self.running if each.name == server_name), None)
        match what:
            case "crash" | "stop" if server is not None:
                await self._end_server(server, seconds, is_crash=what == "crash")
            case "cut" if server is not None and server not in self.frozen:
                self._note_silence()
                self.store.freeze(server.cluster.tag)
                await trio.sleep(seconds)
                self._note_silence()
                self.store.thaw(server.cluster.tag)
            case "pause" if self.store.is_running and not self.store.is_paused:
                self._note_silence()
                self.store.pause()
                await trio.sleep(seconds)
                self._note_silence()
                self.store.resume()
            case "restart" | "loss" | "setback" if self.store.is_running:
                self.note_fault()
                self.store.stop(saves=what == "restart")
                await trio.sleep(seconds)
                self._note_loss()
                self.store.start(keeps_data=what != "loss")
            case "save":
                self.store.save()
            case "emptied":
                self._note_loss()
                self.store.empty()

    async def _end_server(self, server: Server, seconds: float, *, is_crash: bool) -> None:
        self.note_fault()
        if is_crash:
            server.crash()
            self._servers.remove(server)
        else:
            server.stop()
        await trio.sleep(seconds)
        self.note_fault()
        self.watch(await self.world.start(server.name))

    def _note_silence(self) -> None:
        self.note_fault()
        self.silent_at = trio.current_time()

    def _note_loss(self) -> None:
        self.note_fault()
        self.lost_at = trio.current_time()

    async def write(self, sender: Wanderer, recipient: str) -> None:
        """Send a letter, which arrives if nothing at all excuses that it does not."""
        receiver = self.crowd.registered.get(recipient)
        before = self._state_of(sender), self._state_of(receiver)
        must_arrive = self._can_hear(sender, receiver)
        letter = await sender.say(recipient)
        await trio.sleep(3)
        after = self._state_of(sender), self._state_of(receiver)
        if must_arrive and before == after and self._can_hear(sender, receiver):
            assert isinstance(letter, Letter)
            assert letter.heard_by is receiver, f"{receiver} does not hear {sender}"

    async def ask(self, asker: Wanderer, identifier: str) -> None:
        """Whether the id is held: an answer that is right, if it can be given."""
        holder = self.crowd.registered.get(identifier)
        must_know = self._can_hear(asker, holder)
        before = self._state_of(asker), self._state_of(holder)
        broker = asker.broker
        if must_know and broker is not None:
            with trio.fail_after(3):
                found = await broker.exists(identifier)
            assert found or before != (self._state_of(asker), self._state_of(holder))

    def _state_of(self, wanderer: Wanderer | None) -> object:
        return wanderer and (wanderer.identifier, wanderer.broker, wanderer.count_registrations)

    def _can_hear(self, one: Wanderer, other: Wanderer | None) -> bool:
        if other is None or not one.is_registered or not other.is_registered:
            return False
        if trio.current_time() < other.registered_at + 2 * self.latency:
            return False  # its former server may not know yet
        if self.is_calm:
            return True
        servers = self._servers_of(one)
        return self.has_gone_on_alone() and len(servers) == 1 and servers == self._servers_of(other)

    def _servers_of(self, wanderer: Wanderer) -> list[str]:
        return [each.name for each in self.running if each.holds(wanderer.identifier)]

    # --- what must hold -------------------------------------------------------------------

    def check(self) -> None:
        assert self.wrong == []
        now = trio.current_time()
        for member, since in self._left_behind.items():
            holders = self._holders_of(member.identifier or "").values()
            assert member not in holders or now <= since + 2 * LEASE, "nobody has told its server"
        kept_until = max(self.store.kept_until(each) for each in IDENTIFIERS)
        if self.is_calm and now > max(self.churn_at, kept_until) + CHURN:
            self.check_calm()

    def check_calm(self) -> None:
        """What the model says."""
        assert self.crowd.is_settled, f"{self.crowd.wanderers}"
        held = [identifier for server in self._servers for identifier in server.held]
        assert sorted(held) == sorted(self.crowd.registered)
        for identifier in held:
            assert self.store.holder(identifier) is not None

    async def finish(self) -> None:
        """When all is mended all are registered and hear each other; and they leave nothing."""
        await trio.sleep(max(DURATIONS) + RECOVERY + CHURN + LEASE)
        self.check()
        assert self.is_calm
        self.check_calm()
        for sender in self.crowd.registered.values():
            for recipient in self.crowd.registered:
                await self.write(sender, recipient)
        for wanderer in self.crowd.wanderers:
            wanderer.end()
        await trio.sleep(3)  # a claim may be granted and released again meanwhile
        assert [server.held for server in self.running] == [[]] * len(NAMES)
        assert {self.store.holder(each) for each in IDENTIFIERS} == {None}


@asynccontextmanager
async def open_trouble(seed: int, latency: float) -> AsyncIterator[Trouble]:
    async with (
        open_world(*NAMES, seed=seed, latency=Latency(0.0005, latency)) as world,
        open_background_nursery() as nursery,
    ):
        trouble = Trouble(world, nursery, seed, latency)
        for server in world.servers:
            trouble.watch(server)
        yield trouble


class ClusterMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._run: SteppedRun[Trouble] | None = None
        self.trouble: Trouble

    @initialize(
        seed=st.integers(0, 99),
        latency=st.sampled_from([0.005, 0.5]),
        wanted=st.lists(st.tuples(identifiers, st.booleans()), min_size=4, max_size=6),
    )
    def begin(self, seed: int, latency: float, wanted: list[tuple[str, bool]]) -> None:
        self._run = SteppedRun(lambda: open_trouble(seed, latency), seed=seed)
        self._run.start()
        for identifier, is_known_again in wanted:
            self.come(0.0, identifier, is_known_again)

    def do(self, pause: float, act: Callable[[Trouble], Awaitable[None] | None]) -> None:
        """*pause* seconds later, *act*, and check."""

        async def command(trouble: Trouble) -> None:
            self.trouble = trouble
            await trio.sleep(pause)
            result = act(trouble)
            if result is not None:
                await result
            await trio.lowlevel.checkpoint()
            trouble.check()

        assert self._run is not None
        self._run.call(command)

    def teardown(self) -> None:
        if self._run is None:
            return
        try:
            if sys.exc_info()[0] is None:
                self._run.call(lambda trouble: trouble.finish())
        finally:
            self._run.close()

    # --- what happens ---------------------------------------------------------------------

    @property
    def peers(self) -> list[Wanderer]:
        return self.trouble.crowd.wanderers if self._run is not None else []

    def pick(self, pick: int) -> Wanderer | None:
        """One of them; None if the last has gone in the pause before this step."""
        return self.peers[pick % len(self.peers)] if self.peers else None

    @precondition(lambda self: len(self.peers) < MAX_PEERS)
    @rule(pause=pauses, wanted=identifiers, is_known_again=st.booleans())
    def come(self, pause: float, wanted: str, is_known_again: bool) -> None:
        """Somebody comes, with a secret or without."""
        self.do(pause, lambda trouble: trouble.come(wanted, is_known_again=is_known_again))

    @precondition(lambda self: self.peers)
    @rule(pause=pauses, pick=picks, how=st.sampled_from(["goes", "moves"]) | identifiers)
    def change(self, pause: float, pick: int, how: str) -> None:
        """Somebody goes, or dials again, wherever that leads, or wants another id."""

        def act(trouble: Trouble) -> None:
            trouble.note_churn()
            peer = self.pick(pick)
            if peer is None:
                return
            match how:
                case "goes":
                    peer.end()
                case "moves":
                    peer.move()
                case _:
                    peer.want(how)

        self.do(pause, act)

    @precondition(lambda self: self.peers)
    @rule(pause=pauses, pick=picks, seconds=durations)
    def lose_touch(self, pause: float, pick: int, seconds: float) -> None:
        """Somebody dials again, and its server believes that it is still there."""

        def act(trouble: Trouble) -> None:
            peer = self.pick(pick)
            if peer is not None:
                trouble.lose_touch(peer, seconds)

        self.do(pause, act)

    @precondition(lambda self: self.peers)
    @rule(pause=pauses, pick=picks, identifier=identifiers, is_letter=st.booleans())
    def speak(self, pause: float, pick: int, identifier: str, is_letter: bool) -> None:
        """Somebody writes to who holds an id, or asks whether anybody does."""

        async def act(trouble: Trouble) -> None:
            peer = self.pick(pick)
            if peer is not None:
                await (trouble.write if is_letter else trouble.ask)(peer, identifier)

        self.do(pause, act)

    @precondition(lambda self: self._run is not None)
    @rule(pause=pauses, name=st.sampled_from(NAMES), seconds=durations)
    def cut_off(self, pause: float, name: str, seconds: float) -> None:
        """Nothing passes between one server and the store."""
        self.do(pause, lambda trouble: trouble.disturb("cut", name, seconds))

    @precondition(lambda self: self._run is not None)
    @rule(pause=pauses, name=st.sampled_from(NAMES), seconds=durations, is_crash=st.booleans())
    def end_server(self, pause: float, name: str, seconds: float, is_crash: bool) -> None:
        what = "crash" if is_crash else "stop"
        self.do(pause, lambda trouble: trouble.disturb(what, name, seconds))

    @precondition(lambda self: self._run is not None)
    @rule(
        pause=pauses,
        what=st.sampled_from(["pause", "restart", "loss", "emptied", "save", "setback"]),
        seconds=durations,
    )
    def disturb_store(self, pause: float, what: str, seconds: float) -> None:
        self.do(pause, lambda trouble: trouble.disturb(what, "", seconds))

    @precondition(lambda self: self._run is not None)
    @rule(seconds=st.sampled_from([0.5, 3.0, LEASE - 1, LEASE + 2, RECOVERY]))
    def wait(self, seconds: float) -> None:
        self.do(seconds, lambda _: None)

    @invariant()
    def holds(self) -> None:
        if self._run is not None:
            self.do(0.0, lambda _: None)


TestThreeServers = ClusterMachine.TestCase
TestThreeServers.settings = how_long(12, 30, one_in=5)


def test_a_holder_that_stops_too_late_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> list[str]:
        async with open_trouble(seed=1, latency=0.005) as trouble:
            trouble.come("ada")
            trouble.come("ada")
            await trio.sleep(CHURN)
            (holder,) = [server for server in trouble.running if server.held]
            trouble.disturb("cut", holder.name, LEASE + 2)
            await trio.sleep(LEASE + 2)
            return trouble.wrong

    assert run_virtual(scenario) == []
    monkeypatch.setattr("trio_overlay.protocol.leases.MARGIN", -1)
    (wrong,) = run_virtual(scenario)
    assert wrong.endswith("hold ada")


def test_an_id_that_is_not_kept_for_who_has_moved_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> list[str]:
        async with open_trouble(seed=4, latency=0.005) as trouble:
            trouble.come("ada")
            await trio.sleep(CHURN)
            (mover,) = trouble.crowd.wanderers
            (former,) = [server for server in trouble.running if server.held]
            trouble.disturb("cut", former.name, LEASE + 2)
            trouble.lose_touch(mover, LEASE + 2)
            await trio.sleep(2)
            assert [len(server.held) for server in trouble.running].count(1) == 2, "it has moved"
            mover.want("bob")
            for _ in range(4):  # not all of them come out at the server that is cut off
                trouble.come("ada")
            await trio.sleep(LEASE + 2)
            assert sorted(trouble.crowd.registered) == ["ada", "bob"]
            return trouble.wrong

    assert run_virtual(scenario) == []
    keeps = VirtualStore._standing

    def forgets(store: VirtualStore, table: Mapping[str, Any], identifier: str) -> Any:
        return None if table is store._kept else keeps(store, table, identifier)

    monkeypatch.setattr(VirtualStore, "_standing", forgets)
    (wrong,) = run_virtual(scenario)
    assert wrong.endswith("hold ada")
