"""Questions to a whole subtree, answers combined on the way up, and the picture of the tree."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from dataclasses import asdict

import pytest
import trio
import trio.lowlevel

from tests.nodes.test_tree import enter_child, enter_root, until
from tests.nodes.test_tree_casts import enter_tree, find_parent
from tests.nodes.test_tree_hostile import FalseRoot, say
from tests.world import open_world
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import DeliveryFailed, MalformedFrame, MessageTooLarge, UsageError
from trio_overlay.nodes.tree import TreeNode
from trio_overlay.nodes.tree_gathers import MAX_OPEN, Gathered
from trio_overlay.nodes.tree_snapshots import NodeSnapshot
from trio_overlay.protocol.ancestry import Descent
from trio_overlay.protocol.cast_frames import Answers, Ask
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.tree import EXTENSIONS, Beat
from trio_overlay.protocol.version import __version__
from trio_overlay.testing import virtual_test


def answer_sums(node: TreeNode) -> None:
    async def answer(question: JSON) -> JSON:
        await trio.sleep(0.1)
        return question * len(node.path)

    node.answer_gathers("sum", answer, lambda one, other: one + other)


def answer_ids(node: TreeNode) -> None:
    async def answer(_: JSON) -> JSON:
        return node.id

    node.answer_gathers("ids", answer)


@virtual_test
async def test_answers_of_all_below_are_combined_on_the_way_up() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 9)
        for node in nodes.values():
            answer_sums(node)
        total = sum(len(node.path) for node in nodes.values())
        assert await nodes["root"].gather("sum", 10) == Gathered(10 * total, 10, 0)
        n1 = nodes["n1"]
        below = [node for node in nodes.values() if n1.id in node.path]
        assert await n1.gather("sum", 1) == Gathered(
            sum(len(node.path) for node in below), len(below), 0
        )
        # One frame a child, however many are below it.
        assert await nodes["n9"].gather("sum", 10, of_all=True) == Gathered(10 * total, 10, 0)


@virtual_test
async def test_answers_that_cannot_be_combined_come_one_by_one() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 9)
        for node in nodes.values():
            answer_ids(node)
        everybody = sorted(node.id for node in nodes.values())
        for asker in ("root", "n5"):
            gathered = await nodes[asker].gather("ids", of_all=True)
            assert sorted(gathered.value) == everybody
            assert (gathered.count, gathered.count_missing) == (10, 0)


@virtual_test
async def test_who_has_no_answer_counts_as_missing_and_passes_the_others_on() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 6)
        silent = find_parent(nodes, "n6")
        for name, node in nodes.items():
            if name != silent:
                answer_sums(node)
        depths = sum(len(node.path) for name, node in nodes.items() if name != silent)
        assert await nodes["root"].gather("sum", 1) == Gathered(depths, 6, 1)
        assert await nodes["root"].gather("nobody knows") == Gathered([], 0, 7)


@virtual_test
async def test_a_node_that_dies_meanwhile_is_counted_with_those_below_it_and_not_waited_for() -> (
    None
):
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 6)
        dead = find_parent(nodes, "n6")
        for node in nodes.values():
            answer_sums(node)
        below = sum(nodes[dead].id in node.path for node in nodes.values())
        world.network.crash(dead, noticed_after=None)
        started_at = trio.current_time()
        gathered = await nodes["root"].gather("sum", 1, timeout=60)
        assert gathered.count == 7 - below
        assert gathered.count_missing == below
        assert trio.current_time() - started_at < 4  # a heartbeat's time, and not the deadline
        await nodes[dead].aclose()


@virtual_test
async def test_who_is_late_is_counted_and_the_others_are_in_time() -> None:
    async with open_world(latency=0.05) as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 6, max_degree=1)
        for name, node in nodes.items():
            if name != "n6":
                answer_sums(node)

        async def dawdle(_: JSON) -> JSON:
            await trio.sleep(100)

        nodes["n6"].answer_gathers("sum", dawdle, lambda one, other: one + other)
        for timeout in (2.0, 10.0):
            started_at = trio.current_time()
            gathered = await nodes["root"].gather("sum", 1, timeout=timeout)
            assert gathered == Gathered(1 + 2 + 3 + 4 + 5 + 6, 6, 1)
            assert trio.current_time() - started_at <= timeout


@virtual_test
async def test_what_an_answer_or_a_combination_raises_costs_only_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 3, max_degree=1)

        async def fail(_: JSON) -> JSON:
            raise ValueError("no")

        async def large(_: JSON) -> JSON:
            return "x" * 50_000

        async def no_json(_: JSON) -> JSON:
            return object()

        for name, answer in (("n1", fail), ("n2", large), ("n3", no_json)):
            nodes[name].answer_gathers("a", answer)
        with caplog.at_level(logging.CRITICAL):
            gathered = await nodes["root"].gather("a")
        assert gathered == Gathered(["x" * 50_000], 1, 3)

        def refuse(_one: JSON, _other: JSON) -> JSON:
            raise ValueError("no")

        for node in nodes.values():
            node.answer_gathers("b", large, refuse)
            node.answer_gathers("c", large, lambda one, other: one + other)
        with caplog.at_level(logging.CRITICAL):
            combined_badly = await nodes["root"].gather("b")
            grown_too_large = await nodes["root"].gather("c")
        assert (combined_badly.count, combined_badly.count_missing) == (1, 3)
        # Two of them fit no frame any more: n1's and those that it has from below.
        assert grown_too_large.count + grown_too_large.count_missing == 4
        assert 1 <= grown_too_large.count < 4


@virtual_test
async def test_nobody_answers_a_question_twice_although_its_parent_changes() -> None:
    async with open_world(latency=0.05) as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 6)
        upper = find_parent(nodes, "n6")
        count_asked = 0

        async def answer(_: JSON) -> JSON:
            nonlocal count_asked
            count_asked += 1
            await trio.sleep(6)
            return 1

        for node in nodes.values():
            node.answer_gathers("slow", answer, lambda one, other: one + other)
        async with trio.open_nursery() as nursery:
            results = []

            async def ask() -> None:
                results.append(await nodes["root"].gather("slow", timeout=30))

            nursery.start_soon(ask)
            await trio.sleep(1)
            world.network.crash(upper, noticed_after=None)
        assert count_asked == 7
        assert results[0].value == results[0].count <= 6
        await nodes[upper].aclose()


@virtual_test
async def test_a_question_to_all_from_who_is_cut_off_is_undelivered() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 1)
        world.network.freeze("root")
        await until(lambda: nodes["n1"].path == ())
        with pytest.raises(DeliveryFailed, match="within 3 s"):
            await nodes["n1"].gather("sum", 1, timeout=3, of_all=True)
        assert await nodes["n1"].gather("sum", 1, timeout=3) == Gathered([], 0, 1)
        world.network.thaw("root")


@virtual_test
async def test_what_is_wrong_with_a_question_is_said() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        answer_sums(root)
        with pytest.raises(UsageError, match="already"):
            answer_sums(root)

        async def answer(_: JSON) -> JSON:
            raise AssertionError

        for topic in ("", "\n", "é", "x" * 129):
            with pytest.raises(ValueError, match="a topic has"):
                root.answer_gathers(topic, answer)
        with pytest.raises(MessageTooLarge):
            await root.gather("sum", "x" * 60_000)
        with pytest.raises(TypeError):
            await root.gather("sum", object())
        for timeout in (0, -1, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                await root.gather("sum", 1, timeout=timeout)
        assert not root._gathers._open


@virtual_test
async def test_a_node_works_on_so_many_questions_and_no_more() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        false_root = FalseRoot(world, stack)
        await false_root.open()
        node = await stack.enter_async_context(world.node("a"))

        async def dawdle(_: JSON) -> JSON:
            await trio.sleep(100)

        node.answer_gathers("slow", dawdle)
        link = await false_root.adopt(node, Descent((1, 1), ("f",)))
        for number in range(2 * MAX_OPEN):
            await say(link, Ask(f"q{number}", "slow", None, 2.0**52, is_for_all=False))
        await say(link, Answers("q1", (1,), 2**52, 2**52, is_last=True))
        await trio.sleep(1)
        assert len(node._gathers._open) == MAX_OPEN
        assert node.parent is not None


@virtual_test
async def test_a_child_that_lies_about_counts_distorts_them_and_harms_nobody() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 1, max_degree=2)
        client = await stack.enter_async_context(world.client("liar"))
        liar = await stack.enter_async_context(client.connect(extensions=EXTENSIONS))
        await say(liar, Beat())
        await trio.sleep(0.5)
        async with open_background_nursery() as nursery:
            nursery.start_soon(nodes["root"].gather, "sum", 1)
            await until(lambda: nodes["root"]._gathers._open)
            (question_id,) = nodes["root"]._gathers._open
            for _ in range(3):
                await say(liar, Answers(question_id, (1,), 2**53 - 1, 2**53 - 1, is_last=False))
            await trio.sleep(1)
        assert (await nodes["n1"].gather("sum", 1, timeout=3, of_all=True)).count < 2**53
        assert nodes["n1"].parent is not None


# --- the picture of the whole -------------------------------------------------------------------


@virtual_test
async def test_the_whole_tree_is_seen_from_the_root_and_from_anywhere() -> None:
    async with open_world(latency=0.05) as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 9)
        for asker in ("root", "n9"):
            tree = await nodes[asker].snapshot_tree()
            assert tree.count_missing == 0
            assert tree.nodes.keys() == {node.id for node in nodes.values()}
            assert [snapshot.depth for snapshot in tree.nodes.values()] == sorted(
                len(node.path) - 1 for node in nodes.values()
            )
            for node in nodes.values():
                seen = tree.nodes[node.id]
                assert seen.parent == (node.path[-2] if len(node.path) > 1 else None)
                assert (seen.degree, seen.max_degree) == (node.children_count, 2)
                assert seen.descendants == sum(
                    node.id in other.path[:-1] for other in nodes.values()
                )
                assert seen.version == __version__
                assert seen.age == pytest.approx(node.snapshot().age, abs=1)
                if seen.parent is not None:
                    assert seen.round_trip_time == pytest.approx(0.1, abs=0.02)


@virtual_test
async def test_a_node_that_is_in_no_tree_sees_itself() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        node = await stack.enter_async_context(world.node("alone"))
        assert node.snapshot() == NodeSnapshot(
            node.id, None, None, 0, 10, 0, None, 0.0, __version__
        )


@virtual_test
async def test_a_node_that_is_gone_is_not_in_the_picture() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 3)
        await nodes["n3"].aclose()
        new = await enter_child(world, stack, "new")
        tree = await nodes["root"].snapshot_tree()
        assert nodes["n3"].id not in tree.nodes
        assert new.id in tree.nodes
        assert tree.count_missing == 0


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"id": 1},
        [],
        {"id": "a", "parent": None, "depth": "deep"},
        # What a terminal would take for an order.
        asdict(NodeSnapshot("a", None, 0, 0, 10, 0, None, 0.0, "\x1b[2J")),
        asdict(NodeSnapshot("a\x1b[2J", None, 0, 0, 10, 0, None, 0.0, "1.0")),
    ],
)
def test_what_is_no_snapshot_is_malformed(value: JSON) -> None:
    with pytest.raises(MalformedFrame):
        NodeSnapshot.from_json(value)
