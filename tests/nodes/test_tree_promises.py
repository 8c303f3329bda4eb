"""What docs/tree.md promises of messages while nodes come, go, crash, freeze and read slowly.

Of broadcasts to all and of letters `TreeMachine` checks it in all its stories. Here are the rest:
what goes to a subtree, questions, slow branches, and the bounds on memory in the middle of it.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import NamedTuple

import pytest
import trio

from tests.nodes.test_tree import past_events, until
from tests.nodes.test_tree_casts import LARGE, enter_tree, find_parent, read_all
from tests.world import World, open_world
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import DeliveryFailed, OutcomeError
from trio_overlay.nodes.tree import TreeNode
from trio_overlay.nodes.tree_cast_links import CAST_WINDOW, MAX_MESSAGE, CastLimits
from trio_overlay.nodes.tree_casts import MAX_UP
from trio_overlay.nodes.tree_events import ChildClose, ParentClose, ParentConnect, PathChange
from trio_overlay.nodes.tree_gathers import MAX_OPEN
from trio_overlay.protocol.json import JSON
from trio_overlay.testing.determinism import run_virtual, virtual_test
from trio_overlay.testing.faults import SlowReader

SEEDS = 100 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 1
SIZE = 14
COUNT = 40
PIECE = "x" * 20_000
DELIVERY_TIME = 5.0
"""Seconds in which what is said comes to who is there, and in which silence is noticed."""


def check_memory(nodes: dict[str, TreeNode]) -> None:
    """What waits in each node is bounded, however slow its neighbours are."""
    for name, node in nodes.items():
        casts = node._casts
        children = max(1, len(casts.below))
        assert casts._log.size <= CastLimits().max_lag, name
        assert casts._held_bytes <= CAST_WINDOW + MAX_MESSAGE, name
        # Its own, and a window of each child.
        assert casts._up_size <= min(MAX_UP, (children + 2) * CAST_WINDOW), name
        assert all(link._queued <= 2 * CAST_WINDOW for link in casts.below.values()), name
        assert len(node._gathers._open) <= MAX_OPEN, name
        assert len(casts.stream) * MAX_MESSAGE <= 100 * MAX_MESSAGE, name


class Told(NamedTuple):
    """What somebody has said to its subtree."""

    at: float
    sender: str
    below: dict[str, tuple[str, ...]]
    """Who was there, and where, by ids."""


class Forest:
    """A tree in the storm, what everybody was told and heard, and who was where."""

    def __init__(self, world: World, nodes: dict[str, TreeNode], seed: int) -> None:
        self.world = world
        self.nodes = nodes
        """Those alive, by name."""
        self.rng = random.Random(seed)
        self.told: list[Told] = []
        """What was said to subtrees; each is known by its place here."""
        self.heard: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(
            lambda: defaultdict(list)
        )
        """By the hearer's id and the sender's."""
        self.ways: defaultdict[str, list[tuple[float, tuple[str, ...]]]] = defaultdict(list)
        """The paths of each node, by its id, each with the time since when it has been so."""
        self.failures: list[tuple[float, str]] = []
        """When which node, by its id, crashed or froze."""
        self.count_answers = 0
        self._names = SIZE

    async def listen(self, node: TreeNode) -> None:
        async for message in node.casts:
            self.heard[node.id][message.origin].append(message.data[0])

    async def follow(self, node: TreeNode) -> None:
        self.ways[node.id].append((trio.current_time(), node.path))
        async for event in node.events:
            if isinstance(event, PathChange | ParentConnect | ParentClose):
                self.ways[node.id].append((trio.current_time(), node.path))

    def live(self, nursery: trio.Nursery, node: TreeNode) -> None:
        nursery.start_soon(self.listen, node)
        nursery.start_soon(self.follow, node)
        node.answer_gathers("who", partial(self._answer, node))

    async def _answer(self, node: TreeNode, _: JSON) -> JSON:
        await trio.sleep(self.rng.random() / 2)
        return node.id

    async def tell(self, node: TreeNode) -> None:
        """A broadcast to the subtree."""
        number = len(self.told)
        below = {other.id: other.path for other in self.nodes.values() if node.id in other.path}
        self.told.append(Told(trio.current_time(), node.id, below))
        piece = PIECE[: self.rng.randrange(len(PIECE))]
        with suppress(trio.ClosedResourceError):
            await node.broadcast([number, piece], to_subtree=True)

    async def ask(self, node: TreeNode, *, of_all: bool) -> None:
        """A question: nobody answers twice, nobody answers who is not there."""
        try:
            found = await node.gather("who", timeout=4, of_all=of_all)
        except trio.ClosedResourceError:
            return
        except DeliveryFailed:
            assert of_all
            return
        ids = found.value
        assert len(set(ids)) == len(ids) == found.count
        assert set(ids) <= self.ways.keys()
        if not of_all:
            assert node.id in ids
        self.count_answers += found.count

    def check_order(self) -> None:
        for node in self.nodes.values():
            for sender, numbers in self.heard[node.id].items():
                assert sorted(set(numbers)) == numbers, f"{node.id} heard {numbers} of {sender}"

    def check_what_was_due(self) -> int:
        """All has been heard that was due; how much that was."""
        count = 0
        here = {node.id for node in self.nodes.values()}
        for number, told in enumerate(self.told):
            for hearer in told.below.keys() & here - {told.sender}:
                if self.was_due(told, hearer):
                    count += 1
                    way = f"which has been at {self.ways[hearer]}"
                    heard = self.heard[hearer][told.sender]
                    assert number in heard, f"{told} has not come to {hearer}, {way}"
        return count

    def was_due(self, told: Told, hearer: str) -> bool:
        """Whether nothing on the way to *hearer* failed or moved while it was being said."""
        # Who has just come knows its place before those above it do.
        since, by = told.at - 1, told.at + DELIVERY_TIME
        way = told.below[hearer]
        has_moved = any(since <= at <= by for at, _ in self.ways[hearer])
        has_failed = any(
            at <= by and by - at < 2 * DELIVERY_TIME and who in way for at, who in self.failures
        )
        return not (has_moved or has_failed)


async def storm(seed: int) -> None:
    async with (
        open_world(seed=seed, latency=0.03) as world,
        open_background_nursery() as nursery,
        AsyncExitStack() as stack,
    ):
        forest = Forest(world, await enter_tree(world, stack, SIZE), seed)
        for node in forest.nodes.values():
            forest.live(nursery, node)
        for _ in range(40):
            await trio.sleep(forest.rng.uniform(0.05, 0.8))
            await act(forest, stack, nursery)
            check_memory(forest.nodes)
        await trio.sleep(30)
        check_memory(forest.nodes)
        forest.check_order()
        assert forest.check_what_was_due()
        assert forest.count_answers > 20


async def act(forest: Forest, stack: AsyncExitStack, nursery: trio.Nursery) -> None:
    """Something happens."""
    rng, world = forest.rng, forest.world
    name = rng.choice([name for name in forest.nodes if name != "root"])
    node = forest.nodes[name]
    speaker = rng.choice(list(forest.nodes.values()))
    match rng.choices(
        ["tell", "ask", "ask all", "crash", "freeze", "leave", "come"], [10, 3, 3, 1, 1, 1, 2]
    )[0]:
        case "tell":
            top = forest.nodes["root"] if rng.random() < 0.3 else speaker
            nursery.start_soon(forest.tell, top)
        case "ask":
            nursery.start_soon(partial(forest.ask, speaker, of_all=False))
        case "ask all":
            nursery.start_soon(partial(forest.ask, speaker, of_all=True))
        case "crash":
            forest.failures.append((trio.current_time(), node.id))
            del forest.nodes[name]
            world.network.crash(name, noticed_after=5)
            node.close()
        case "freeze":
            forest.failures.append((trio.current_time(), node.id))
            world.network.freeze(name)
            await trio.sleep(rng.choice([1, 5]))
            world.network.thaw(name)
        case "leave":
            del forest.nodes[name]
            nursery.start_soon(node.aclose)
        case "come":
            await come(forest, stack, nursery)


async def come(forest: Forest, stack: AsyncExitStack, nursery: trio.Nursery) -> None:
    forest._names += 1
    name = f"n{forest._names}"
    node = await stack.enter_async_context(forest.world.node(name, max_degree=2))
    try:
        await node.join()
    except OutcomeError:
        return
    forest.nodes[name] = node
    forest.live(nursery, node)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_goes_to_a_subtree_and_questions_keep_their_promises_in_a_storm(seed: int) -> None:
    run_virtual(partial(storm, seed), seed=seed)


@virtual_test
async def test_who_has_none_but_a_slow_child_is_not_left_for_its_sake() -> None:
    """It was: it waited for that child while its sibling was fast, and missed what came then."""
    async with (
        open_world(latency=0.03) as world,
        open_background_nursery() as nursery,
        AsyncExitStack() as stack,
    ):
        nodes = await enter_tree(world, stack, 3)
        (upper,) = (name for name in ("n1", "n2") if nodes[name].children)
        (fast,) = {"n1", "n2"} - {upper}
        world.network.apply(f"{upper} <-> n3", SlowReader(0.2))
        said: dict[str, list[object]] = {name: [] for name in nodes}
        for name, node in nodes.items():
            past_events(node)
            nursery.start_soon(read_all, node, said[name])
        for number in range(COUNT):
            await nodes["root"].broadcast([number, LARGE])
        for name in (upper, fast):
            await until(lambda name=name: len(said[name]) == COUNT, 5)  # type: ignore[misc]
        assert not past_events(nodes["root"])
        (left,) = past_events(nodes[upper])
        assert isinstance(left, ChildClose)
        assert left.reason == "it is more than 1048576 bytes of messages behind"


async def slow_branch(seed: int) -> None:
    """A random link takes little, somebody else crashes, and much is broadcast."""
    rng = random.Random(seed)
    async with (
        open_world(seed=seed, latency=0.03) as world,
        open_background_nursery() as nursery,
        AsyncExitStack() as stack,
    ):
        nodes = await enter_tree(world, stack, 10)
        slow = rng.choice([name for name in nodes if name != "root"])
        upper = find_parent(nodes, slow)
        branch = {name for name, node in nodes.items() if nodes[slow].id in node.path}
        leaves = [name for name, node in nodes.items() if not node.children and name not in branch]
        crashed = rng.choice(leaves)
        may_leave = {upper, find_parent(nodes, crashed), *branch}
        said: dict[str, list[object]] = {name: [] for name in nodes}
        for name, node in nodes.items():
            past_events(node)
            nursery.start_soon(read_all, node, said[name])
        rule = world.network.apply(f"{upper} <-> {slow}", SlowReader(rng.uniform(0.1, 1.0)))
        started_at = trio.current_time()
        for number in range(COUNT):
            if number == COUNT // 3:
                world.network.crash(crashed, noticed_after=5)
                nodes.pop(crashed).close()
            await nodes["root"].broadcast([number, LARGE])
            check_memory(nodes)
        # Nor are those above it dropped for its sake, who have no other child to go on with.
        for name in nodes.keys() - branch - {"root"}:
            await until(lambda name=name: len(said[name]) == COUNT, 10)  # type: ignore[misc]
        # The slow one takes a mebibyte in half a minute at the very best.
        assert trio.current_time() - started_at < 20
        await trio.sleep(40)
        check_memory(nodes)
        world.network.lift(rule)
        for _ in range(30):  # what is on that link is as slow as it was
            await trio.sleep(20)
            if all(len(said[name]) + nodes[name].count_missed == COUNT for name in branch):
                break
        for name, node in nodes.items():
            numbers = [message[0] for message in said[name]]  # type: ignore[index]
            assert numbers == sorted(set(numbers))
            assert name == "root" or len(numbers) + node.count_missed == COUNT, name
            left = [event.reason for event in past_events(node) if isinstance(event, ChildClose)]
            for reason in left:
                if "behind" in reason or "taken no messages" in reason:
                    assert name in may_leave, f"{name} has left a child: {reason}"
        assert nodes[slow].path


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_slow_branch_delays_nobody_else_and_is_left_or_catches_up(seed: int) -> None:
    run_virtual(partial(slow_branch, seed), seed=seed)
