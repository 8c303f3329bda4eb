"""A tree of five nodes over real sockets: messages across it, and one in the middle that dies."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.nodes.tree import TreeNode, open_tree_node
from trio_overlay.nodes.tree_gathers import Gathered
from trio_overlay.protocol.json import JSON
from trio_overlay.signaling.server import serve_signaling

pytestmark = pytest.mark.webrtc

PATIENCE = 180.0
LARGE = "x" * 50_000


class Wood:
    """A root and four nodes of degree 2, by name, and what each has heard of whom."""

    def __init__(self) -> None:
        self.nodes: dict[str, TreeNode] = {}
        self.heard: defaultdict[str, list[JSON]] = defaultdict(list)
        self.scopes: dict[str, trio.CancelScope] = {}
        self._changed = trio.Event()

    async def live(self, name: str, url: str, *, task_status: trio.TaskStatus[TreeNode]) -> None:
        with trio.CancelScope() as self.scopes[name]:
            async with open_tree_node(url, max_degree=2) as node:
                await (node.join() if self.nodes else node.become_root("swordfish"))
                self.nodes[name] = node
                task_status.started(node)
                async for message in node.casts:
                    self.heard[name].append(message.data)
                    self._changed.set()
                    self._changed = trio.Event()

    async def wait_for(self, name: str, count: int) -> list[JSON]:
        """What *name* has heard, once it is *count* messages."""
        while len(self.heard[name]) < count:
            await self._changed.wait()
        return self.heard[name]

    def middle(self) -> str:
        """A node with a parent and children."""
        return next(name for name, n in self.nodes.items() if n.parent and n.children)


@asynccontextmanager
async def open_wood() -> AsyncIterator[Wood]:
    with trio.fail_after(PATIENCE):
        async with open_background_nursery() as nursery:
            start = functools.partial(serve_signaling, "swordfish", host="127.0.0.1", port=0)
            server = await nursery.start(start)
            wood = Wood()
            for name in ("root", "a", "b", "c", "d"):
                await nursery.start(wood.live, name, server.urls[0])
            yield wood


async def test_broadcasts_letters_and_questions_cross_a_real_tree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trio_overlay.nodes.tree_messages.MEASURE_TIMEOUT", PATIENCE)
    async with open_wood() as wood:
        nodes = wood.nodes
        assert max(len(node.path) for node in nodes.values()) == 3
        async with trio.open_nursery() as nursery:
            for name, node in nodes.items():
                for number in range(3):
                    nursery.start_soon(node.broadcast, [name, number, LARGE])
                    await trio.lowlevel.checkpoint()
        said = {name: await wood.wait_for(name, 12) for name in nodes}
        for name in nodes:
            assert len(said[name]) == 12
            others = {(other, number) for other in nodes if other != name for number in range(3)}
            assert {(each[0], each[1]) for each in said[name]} == others
            for other in nodes:  # all heard all in one order
                common = [each for each in said[other] if each in said[name]]
                assert common == [each for each in said[name] if each in said[other]]
        await nodes["d"].send_to(nodes["c"].id, {"from": "d"})
        await nodes["c"].send_to(nodes["root"].id, {"from": "c"})
        assert (await wood.wait_for("c", 13))[-1] == {"from": "d"}
        assert (await wood.wait_for("root", 13))[-1] == {"from": "c"}
        for node in nodes.values():
            node.answer_gathers("depth", functools.partial(depth_of, node), lambda x, y: x + y)
        total = sum(len(node.path) for node in nodes.values())
        for asker in ("root", "d"):
            found = await nodes[asker].gather("depth", 10, timeout=PATIENCE, of_all=True)
            assert found == Gathered(10 * total, 5, 0)
        tree = await nodes["d"].snapshot_tree(timeout=PATIENCE)
        assert tree.nodes.keys() == {node.id for node in nodes.values()}
        assert tree.count_missing == 0
        trips = [node.round_trip_time for node in tree.nodes.values() if node.depth]
        assert all(trip is not None and 0 < trip < PATIENCE for trip in trips)


async def depth_of(node: TreeNode, factor: JSON) -> JSON:
    return factor * len(node.path)


async def test_what_is_broadcast_while_a_node_in_the_middle_dies_is_heard_by_all_others_once() -> (
    None
):
    async with open_wood() as wood:
        victim = wood.middle()
        lower = next(n for n, node in wood.nodes.items() if wood.nodes[victim].id in node.path[:-1])
        for number in range(20):
            await wood.nodes["root"].broadcast([number, LARGE])
            if number == 5:
                wood.scopes[victim].cancel()
        for name in wood.nodes.keys() - {victim, "root"}:
            said = await wood.wait_for(name, 20)
            assert [each[0] for each in said] == list(range(20))
        assert wood.nodes[victim].id not in wood.nodes[lower].path
        await wood.nodes[lower].broadcast("thanks")
        assert (await wood.wait_for("root", 1)) == ["thanks"]
