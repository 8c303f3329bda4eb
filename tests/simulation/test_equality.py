"""One plan, lived through by real nodes on the virtual network and by the simulator: one tree."""

from __future__ import annotations

import contextlib
import math
import random
from contextlib import AsyncExitStack
from functools import partial
from typing import TypeAlias

import pytest
import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import OutcomeError
from trio_overlay.nodes.heartbeat import Heartbeat
from trio_overlay.nodes.tree import TreeNode, open_tree_node
from trio_overlay.protocol.branch import PlaceRule, hash_place, make_node_id
from trio_overlay.protocol.identifiers import seeded_identifiers
from trio_overlay.signaling.server import SignalingServer
from trio_overlay.simulation.filling import FillingTreeWorld
from trio_overlay.simulation.links import SERVER, Links
from trio_overlay.simulation.scenarios import Plan
from trio_overlay.simulation.traffic import ROOT
from trio_overlay.simulation.world import TreeWorld
from trio_overlay.testing import handshakes
from trio_overlay.testing.cables import Way
from trio_overlay.testing.determinism import run_virtual
from trio_overlay.testing.handshakes import VirtualPeer
from trio_overlay.testing.network import VirtualNetwork

AUTHORITY = "server:5000"
SECRET = "swordfish"
BEGINNING = 5.0
"""When the plan begins for the real nodes: by then the root has registered."""
SEED = 7

Tree: TypeAlias = dict[int, list[tuple[str, int]]]
"""By node, its children in the order of their places, each with the origin it joined as."""


class Settled(random.Random):
    """Chance that always decides the same: the parent sees the channel open before the joiner."""

    def random(self) -> float:
        return 0.75


@pytest.fixture(autouse=True)
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take from the virtual network all that a plan does not say.

    Ways of different lengths take the last of it: what happens at the very same moment happens in
    an order that Trio's scheduler tosses for.
    """
    chance = Settled()
    monkeypatch.setattr(
        Way, "draw_delay", lambda way, _: latency(number_of(way.source), number_of(way.target))
    )
    monkeypatch.setattr(handshakes, "GATHERING_DELAY", 0.0)
    monkeypatch.setattr(
        VirtualPeer, "rng", property(lambda _: chance, lambda _, __: None), raising=False
    )


def latency(source: int, target: int) -> float:
    """Between 40 and 60 ms, for each way its own."""
    low, high = sorted((source, target))
    return 0.04 + 0.02 * random.Random(f"{low} {high}").random()


def number_of(host: str) -> int:
    return SERVER if host == AUTHORITY else int(host.removeprefix("n"))


def simulated(plan: Plan, max_degree: int, place_rule: PlaceRule | None = hash_place) -> Tree:
    links = Links(latency, joiner_sees_first=0.0)
    make = FillingTreeWorld if place_rule is None else partial(TreeWorld, place_rule=place_rule)
    world = make(
        plan, links, max_degree=max_degree, identifiers=seeded_identifiers(SEED), rejoins=False
    )
    world.run()
    tree: Tree = {}
    for node in world.depths():
        origins = world.branch(node).children
        tree[node] = list(zip(origins, world.children_of(node), strict=True))
    return tree


def lived(plan: Plan, max_degree: int, place_rule: PlaceRule | None = hash_place) -> Tree:
    return run_virtual(live, plan, max_degree, place_rule)


async def live(plan: Plan, max_degree: int, place_rule: PlaceRule | None) -> Tree:
    # By default the server's patience with a joiner ends in the same moment as the joiner's own.
    server = SignalingServer(SECRET, seed=SEED, timeout=60)
    async with (
        VirtualNetwork(trickle=0.0) as network,
        open_background_nursery() as nursery,
        AsyncExitStack() as stack,
    ):
        await nursery.start(server.run)
        network.listen(AUTHORITY, server.handle_upgrade)
        nodes = [
            await stack.enter_async_context(
                open_tree_node(
                    AUTHORITY,
                    network=network.host(f"n{number}"),
                    rng=random.Random(f"n{number}"),
                    max_degree=max_degree,
                    place_rule=place_rule,
                    rejoins=False,  # when one tries again is chance
                    heartbeat=Heartbeat(interval=20, timeout=60),  # they take most of the time
                )
            )
            for number in range(plan.count_nodes)
        ]
        assert plan.node_ids is not None
        assert [node._branch.node_id for node in nodes] == list(plan.node_ids)
        await nodes[ROOT].become_root(SECRET)
        async with trio.open_nursery() as crowd:
            for number, node in enumerate(nodes[1:], 1):
                leaves_at = plan.departures[number - 1] if plan.departures else math.inf
                crowd.start_soon(live_as, node, number, plan.arrivals[number - 1], leaves_at)
        await trio.sleep(40)  # until all that was under way has ended, one way or the other
        return await read_tree(nodes)


async def live_as(node: TreeNode, number: int, arrives_at: float, leaves_at: float) -> None:
    """Join at its time, tell the parent who has joined, leave at its time."""
    await trio.sleep_until(BEGINNING + arrives_at)
    with contextlib.suppress(OutcomeError), trio.move_on_at(BEGINNING + leaves_at):
        parent = await node.join()
        await parent.send(number)
    if leaves_at < math.inf:
        await trio.sleep_until(BEGINNING + leaves_at)
        node.close()  # the simulated ones hand nobody over
        await node.aclose()


async def read_tree(nodes: list[TreeNode]) -> Tree:
    numbers = {}
    for node in nodes:
        with trio.move_on_after(0.1):
            async for message in node.messages:
                assert isinstance(message.data, int)
                numbers[message.channel.id] = message.data
    tree: Tree = {}
    level = [ROOT]
    while level:
        for number in level:
            origins = nodes[number]._branch.children
            tree[number] = [(origin, numbers[origin]) for origin in origins]
        level = [child for number in level for _, child in tree[number]]
    return tree


def plan_of(arrivals: list[float], departures: list[float] | None = None) -> Plan:
    ids = [make_node_id(random.Random(f"n{number}")) for number in range(len(arrivals) + 1)]
    return Plan(arrivals, departures, node_ids=ids)


def test_joins_far_apart_build_the_same_tree() -> None:
    plan = plan_of([3.0 * number for number in range(40)])
    tree = simulated(plan, max_degree=2)
    assert len(tree) == 41
    assert tree == lived(plan, max_degree=2)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("max_degree", [1, 3])
def test_joins_at_the_same_time_build_the_same_tree(seed: int, max_degree: int) -> None:
    rng = random.Random(seed)
    count = 8 if max_degree == 1 else 60
    plan = plan_of([2 * rng.random() for _ in range(count)])
    tree = simulated(plan, max_degree)
    assert len(tree) == count + 1
    assert tree == lived(plan, max_degree)


@pytest.mark.parametrize("seed", range(5))
def test_leaving_in_the_midst_of_joining_leaves_the_same_tree(seed: int) -> None:
    rng = random.Random(seed)
    arrivals = [20 * rng.random() for _ in range(60)]
    # A third leave, some of them before they have joined at all.
    departures = [
        at + 1.0 + 10 * rng.random() if rng.random() < 0.3 else math.inf for at in arrivals
    ]
    plan = plan_of(arrivals, departures)
    tree = simulated(plan, max_degree=3)
    assert 5 < len(tree) < 60
    assert tree == lived(plan, max_degree=3)


@pytest.mark.parametrize("seed", range(3))
def test_a_tree_that_fills_exactly_is_the_same_tree(seed: int) -> None:
    rng = random.Random(seed)
    plan = plan_of([2 * rng.random() for _ in range(60)])
    tree = simulated(plan, 3, place_rule=None)
    assert len(tree) == 61
    assert tree == lived(plan, 3, place_rule=None)
