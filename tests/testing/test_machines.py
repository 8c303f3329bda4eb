"""The ready state machines of all overlays tell of everything that can go wrong below them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from trio_overlay.cli.fuzz import OVERLAYS, load_machine
from trio_overlay.nodes.neighbours import ArcOpen, Neighbours
from trio_overlay.nodes.peer import Peer
from trio_overlay.nodes.relay import Relay
from trio_overlay.nodes.streams import Stream
from trio_overlay.testing.broker import BrokerMachine
from trio_overlay.testing.broker_world import BrokerWorld
from trio_overlay.testing.machine import StoryMachine
from trio_overlay.testing.neighbours_world import NeighboursWorld
from trio_overlay.testing.relay_world import RelayWorld
from trio_overlay.testing.story import Step
from trio_overlay.testing.tree_world import replay
from trio_overlay.testing.world import Life

RULES_WITH_FAULTS = {
    "cut_or_heal",
    "cut_group",
    "cut_one_way",
    "freeze_or_thaw",
    "crash_or_restart_server",
    "trouble_signals_or_not",
}


@contextmanager
def begun(overlay: str, *, has_faults: bool = True) -> Iterator[StoryMachine[Any]]:
    """The machine of *overlay*, with n1, n2 and n3; at the end it finishes its story."""
    machine = load_machine(overlay)()
    machine.has_faults = has_faults
    try:
        machine.begin_story({"seed": 1}, newcomers=3, pause=3.0)
        yield machine
        machine.call(lambda world: world.finish())  # no `teardown`, which speaks to Hypothesis
    finally:
        assert machine._run is not None
        machine._run.close()


def rules_of(machine: StoryMachine[Any]) -> set[str]:
    """The names of the rules that can be told now."""
    members = inspect.getmembers(type(machine))
    rules = {name: getattr(member, "hypothesis_stateful_rule", None) for name, member in members}
    return {
        name
        for name, rule in rules.items()
        if rule is not None and all(holds(machine) for holds in rule.preconditions)
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_stories_of_every_overlay_have_every_fault_and_its_end(overlay: str) -> None:
    with begun(overlay) as machine:
        assert rules_of(machine) >= RULES_WITH_FAULTS
        residents, count = machine.residents, len(machine.story.steps)
        assert residents
        machine.cut_group(0.0, [0, 1, 0], 1)
        machine.cut_one_way(0.0, [0], 1, is_mute=False)
        machine.cut_one_way(0.0, [0], 3, is_mute=True)
        machine.freeze_or_thaw(0.0, 3)
        assert machine.world.has_faults
        machine.freeze_or_thaw(1.0, 3)
        for _ in range(3):
            machine.heal(0.0, 0)
        machine.trouble_signals_or_not(0.0, "get_lost", 50)
        machine.trouble_signals_or_not(1.0, "get_late", 50)
        assert not machine.world.has_faults
        first = residents[0]
        assert [str(step).partition(" at ")[0] for step in machine.story.steps[count:]] == [
            f"n1,n2,{first} loses {','.join(['n3', *residents[1:]])}",
            "n1 cannot_hear n2",
            f"{first} cannot_hear n1",
            f"{first} freezes",
            f"{first} thaws",
            f"n1,n2,{first} regains {','.join(['n3', *residents[1:]])}",
            "n1 hears n2",
            f"{first} hears n1",
            "signals get_lost 50%",
            "signals get_through",
        ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_without_faults_the_network_does_as_it_should(overlay: str) -> None:
    with begun(overlay, has_faults=False) as machine:
        assert {"join", "leave", "crash"} <= rules_of(machine)
        assert not RULES_WITH_FAULTS & rules_of(machine)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_in_stories_of_every_overlay_some_give_up_on_their_way_in(overlay: str) -> None:
    with begun(overlay) as machine:
        machine.join_and_withdraw(0.0, 0.2)
        last = [str(step).partition(" at ")[0] for step in machine.story.steps[-2:]]
        assert last == ["n4 joins", "n4 withdraws"]


def test_what_is_to_be_so_at_a_moment_is_looked_at_then_also_in_a_long_pause() -> None:
    looks: list[float] = []

    class Looking(RelayWorld):
        def perform(self, step: Step) -> None:
            super().perform(step)
            self.look_in(7.0)

        def check(self) -> None:
            looks.append(round(self.age, 3))

    replay("time passes at 1 s; time passes at 30 s; time passes at 31 s", Looking)
    assert looks[:4] == [1.0, 8.0, 30.0, 31.0]


TROUBLES = """
n1 loses n2 at 10 s
n1 regains n2 at 20 s
n3,n1 cannot_hear hub at 30 s
n3,n1 hears hub at 40 s
n2 freezes at 50 s
n2 thaws at 60 s
server crashes at 70 s
server restarts at 80 s
n2 leaves at 90 s
time passes at 100 s
"""


def test_who_could_hear_each_other_is_known_of_every_moment() -> None:
    found: dict[float, set[str]] = {}

    class Asked(RelayWorld):
        def perform(self, step: Step) -> None:
            super().perform(step)
            pairs = ["n1 n2", "n1 hub", "n1 n3", "n2 n3", "n1 server"]
            since = trio.current_time() - 1
            found[step.at] = {
                pair for pair in pairs if not self.could_hear_each_other(pair.split(), since)
            }

    replay("n1 joins at 0 s; n2 joins at 0 s; n3 joins at 0 s" + TROUBLES.replace("\n", ";"), Asked)
    assert list(found.values()) == [
        set(),
        *[{"n1 n2"}] * 2,
        *[{"n1 hub"}] * 2,
        *[{"n1 n2", "n2 n3"}] * 2,
        *[{"n1 server"}] * 2,
        {"n1 n2", "n2 n3"},
        set(),
    ]


def test_whoever_tries_something_may_think_better_of_it() -> None:
    with begun("relay") as machine:
        assert "think_better" not in rules_of(machine)
        machine.tell("n1", "assures", "n2")
        assert "think_better" in rules_of(machine)
        machine.think_better(0.0, 0)
        assert str(machine.story.steps[-1]).startswith("n1 gives_up at")
        assert machine.world.list_busy() == []
        assert machine.world.count_confirmed == 0


class Watched(NeighboursWorld):
    """Remembers the neighbours of n1 when time passes for the last time, but for the gate."""

    neighbours: set[str]

    def perform(self, step: Step) -> None:
        if step.verb == "passes":
            self.neighbours = set(self.nodes["n1"].unique_neighbours()) - {"gate"}
        super().perform(step)


THREE = "heartbeat=2; n1 joins at 0 s; n2 joins at 0 s; n3 joins at 0 s"


@pytest.mark.parametrize(
    ("fault", "healed", "reached"),
    [
        ("n1,n2 loses n3,gate,server", "n1,n2 regains n3,gate,server", {"n2"}),
        ("n2,n3 cannot_hear n1", "n2,n3 hears n1", set()),
        ("n1 cannot_hear n2,n3", "n1 hears n2,n3", set()),
        ("signals get_lost 100%", "signals get_through", set()),
        ("signals get_late 100%", "signals get_through", {"n2", "n3"}),
    ],
)
def test_arcs_come_up_as_far_as_faults_let_them(fault: str, healed: str, reached: set[str]) -> None:
    """What the application carries for an arc is lost in a cut, and not kept until it is healed."""
    tries = (
        f"n1 reaches n2 at 3.1 s; n1 reaches n3 at 3.1 s; {healed} at 3.6 s; time passes at 30 s"
    )
    world = replay(f"{THREE}; {fault} at 3 s; {tries}", Watched)
    assert isinstance(world, Watched)
    assert world.neighbours == reached


def test_what_was_just_begun_may_be_given_up_on_its_way() -> None:
    with begun("broker") as machine:
        assert isinstance(machine, BrokerMachine)
        machine.call_each_other(0.0, 0, 1, is_mutual=False, given_up_after=0.25)
        machine.call_each_other(0.0, 1, 2, is_mutual=False, given_up_after=None)
        last = [str(step).partition(" at ")[0] for step in machine.story.steps[-3:]]
        assert last == ["n1 calls n2", "n1 gives_up", "n2 calls n3"]


def test_a_call_may_be_given_up_and_made_again() -> None:
    world = replay(
        "n1 joins at 0 s; n2 joins at 0 s; n1 calls n2 at 2 s; n1 gives_up at 2.1 s;"
        "n1 calls n2 at 5 s; time passes at 10 s",
        BrokerWorld,
    )
    assert isinstance(world, BrokerWorld)
    assert (world.count_calls, world.count_heard) == (1, 1)


def test_what_a_cut_off_relay_assures_is_confirmed_when_it_is_back() -> None:
    world = replay(
        "n1 joins at 0 s; n2 joins at 0.1 s; hub,n1 loses n2 at 5 s; n1 assures n2 at 6 s;"
        "hub,n1 regains n2 at 8 s; time passes at 30 s",
        RelayWorld,
    )
    assert isinstance(world, RelayWorld)
    assert world.count_confirmed == 1


class Reads:
    """What each node of an application has heard and been told of, by its name."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        super().__init__(settings)  # type: ignore[call-arg]  # beside a world
        self.heard: dict[str, list[Any]] = {}

    async def read(self, life: Life, stream: Stream[Any]) -> None:
        heard = self.heard[life.name] = []
        while True:
            heard.append(await stream.receive())


class ReadingRelays(Reads, RelayWorld):
    async def stay(self, life: Life, node: Relay) -> None:
        await trio.sleep(5)  # all are neighbours by then
        for peer in node.peers:
            await node.send(peer, f"hello from {life.name}")
        await self.read(life, node.messages)


class ReadingPeers(Reads, BrokerWorld):
    async def stay(self, life: Life, node: Peer) -> None:
        if life.name == "n2":
            await node.send("n1", "hello")
        await self.read(life, node.messages)


class ReadingNeighbours(Reads, NeighboursWorld):
    async def stay(self, life: Life, node: Neighbours) -> None:
        await self.read(life, node.events)


def test_an_application_hears_itself_and_nothing_of_the_story() -> None:
    relays = replay(
        "n1 joins at 0 s; n2 joins at 20 s; n1 tells n2 at 40 s; n2 assures n1 at 40 s",
        ReadingRelays,
    )
    assert isinstance(relays, ReadingRelays)
    assert relays.count_confirmed == 1
    assert [message.data for message in relays.heard["n1"]] == ["hello from n2"]
    assert relays.heard["n2"] == []

    peers = replay("n1 joins at 0 s; n2 joins at 5 s; n1 calls n2 at 9 s", ReadingPeers)
    assert isinstance(peers, ReadingPeers)
    assert (peers.count_calls, peers.count_heard) == (1, 1)
    assert [message.data for message in peers.heard["n1"]] == ["hello"]
    assert peers.heard["n2"] == []


def test_an_application_is_told_of_its_arcs_while_the_story_counts_them() -> None:
    world = replay("n1 joins at 0 s; n2 joins at 5 s; n1 reaches n2 at 9 s", ReadingNeighbours)
    assert isinstance(world, ReadingNeighbours)
    ends = [event.peer for event in world.heard["n2"] if isinstance(event, ArcOpen)]
    assert sorted(ends) == ["gate-I", "n1-O"]
