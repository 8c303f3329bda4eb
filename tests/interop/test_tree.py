"""Trees of our nodes and the original's, on our bootstrap server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
import trio.testing

from tests.interop.ends import SECRET, open_server
from tests.interop.node import PATIENCE, Event, NodeProcess, open_node_process, runs_originals
from tests.nodes.test_tree import until
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import NotSupported, ServerUnreachable, SnapshotFailed
from trio_overlay.nodes.tree import TreeNode, open_tree_node
from trio_overlay.nodes.tree_channel import TreeChannel
from trio_overlay.nodes.tree_events import ChildClose, ChildConnect
from trio_overlay.nodes.tree_snapshots import ask_tree_snapshot
from trio_overlay.signaling.server import SignalingServer

pytestmark = [*runs_originals, pytest.mark.webrtc]


@dataclass
class MixedTree:
    """Nodes of both kinds by their names, all on one server; `grow` adds some at once."""

    host: str
    js: NodeProcess
    max_degree: int
    nursery: trio.Nursery
    ours: dict[str, TreeNode] = field(default_factory=dict)
    originals: list[str] = field(default_factory=list)
    root: str = ""

    async def plant(self, name: str) -> None:
        """Make the root, one of the original's if its *name* begins with "js"."""
        self.root = name
        if name.startswith("js"):
            self.originals.append(name)
            await self.js.send("root", node=name, secret=SECRET, maxDegree=self.max_degree)
            await self.js.wait_for("root", node=name)
        else:
            node = await self.nursery.start(self._hold, name)
            await node.become_root(SECRET)

    async def grow(self, *names: str) -> None:
        """Let nodes join, all at once, as in `plant`; returns when all have parents."""
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(self._join, name)

    async def _join(self, name: str) -> None:
        if name.startswith("js"):
            self.originals.append(name)
            await self.js.send("join", node=name, maxDegree=self.max_degree)
            await self.js.wait_for("parent-connect", node=name)
        else:
            node = await self.nursery.start(self._hold, name)
            await node.join()

    async def _hold(self, name: str, *, task_status: trio.TaskStatus[TreeNode]) -> None:
        async with open_tree_node(self.host, max_degree=self.max_degree) as node:
            self.ours[name] = node
            task_status.started(node)
            await trio.sleep_forever()

    async def check_links(self) -> dict[str, str]:
        """Each node's parent, by names, found by a word up each link and an answer down it.

        Fails unless every node but the root has one, and each answer reaches who asked.
        """
        parents: dict[str, str] = {}
        answered: set[str] = set()
        expected = {*self.ours, *self.originals} - {self.root}
        done = trio.Event()

        def note(name: str, data: object, *, is_parent: bool) -> str | None:
            """Take what *name* got; the child to be answered, if it came from one."""
            assert isinstance(data, dict)
            if is_parent:
                assert data == {"down": name}
                assert name not in answered
                answered.add(name)
                if answered == expected:
                    done.set()
                return None
            child = data["up"]
            assert child not in parents
            parents[child] = name
            return str(child)

        async def read_ours(name: str, node: TreeNode) -> None:
            async for message in node.messages:
                child = note(name, message.data, is_parent=message.is_parent)
                if child is not None:
                    await message.channel.send({"down": child})

        async def read_originals() -> None:
            while True:
                event = await self.js.wait_for("data")
                name, source = event["node"], event["source"]
                child = note(name, event["data"], is_parent=source == "parent")
                if child is not None:
                    await self.js.send("send", node=name, to=source, data={"down": child})

        with trio.fail_after(PATIENCE):
            async with open_background_nursery() as nursery:
                nursery.start_soon(read_originals)
                for name, node in self.ours.items():
                    nursery.start_soon(read_ours, name, node)
                for name in expected:
                    if name in self.ours:
                        parent = self.ours[name].parent
                        assert parent is not None
                        await parent.send({"up": name})
                    else:
                        await self.js.send("send", node=name, to="parent", data={"up": name})
                await done.wait()
        assert set(parents) == expected
        for parent_name in parents.values():
            assert list(parents.values()).count(parent_name) <= self.max_degree
        for name in expected:
            assert self.path(name, parents)[-1] == self.root
        return parents

    @staticmethod
    def path(name: str, parents: dict[str, str]) -> list[str]:
        path = [name]
        while path[-1] in parents:
            assert len(path) <= len(parents), "a cycle"
            path.append(parents[path[-1]])
        return path


@asynccontextmanager
async def open_mixed_tree(
    *, max_degree: int = 2, whose_server: str = "ours", variant: tuple[str, ...] = ()
) -> AsyncIterator[MixedTree]:
    async with (
        open_server(whose_server) as host,
        open_node_process("tree.js", host, *variant) as js,
        open_background_nursery() as nursery,
    ):
        yield MixedTree(host, js, max_degree, nursery)


async def first_child(node: TreeNode) -> TreeChannel:
    with trio.fail_after(PATIENCE):
        while True:
            event = await node.events.receive()
            if isinstance(event, ChildConnect):
                return event.channel


ORIGINALS = [f"js{number}" for number in range(9)]
OURS = [f"our{number}" for number in range(9)]


@pytest.mark.parametrize("variant", [(), ("--simple-peer", "9", "--no-trickle")], ids=" ".join)
async def test_originals_under_our_root(
    variant: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long an answer takes, down there: until then the server keeps what comes after offers.
    defaults = SignalingServer.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "hold_timeout", PATIENCE)
    async with open_mixed_tree(variant=variant) as tree:
        await tree.plant("our root")
        await tree.grow(*ORIGINALS)
        await tree.check_links()
        # To late frames of its own child an original gives a second place, for half a minute.
        for name in ORIGINALS:
            await tree.js.send("state", node=name)
            assert (await tree.js.wait_for("state", node=name))["candidates"] == []


@pytest.mark.parametrize("whose_server", ["original", "ours"])
async def test_our_nodes_under_the_original_root(whose_server: str) -> None:
    async with open_mixed_tree(whose_server=whose_server) as tree:
        await tree.plant("js root")
        await tree.grow(*OURS)
        await tree.check_links()


async def test_our_nodes_below_originals_in_the_middle_of_our_tree() -> None:
    async with open_mixed_tree() as tree:
        await tree.plant("our root")
        await tree.grow("js left", "js right")
        await tree.grow(*OURS[:7])
        parents = await tree.check_links()
        assert parents["js left"] == parents["js right"] == "our root"
        assert "our root" not in [parents[name] for name in OURS[:7]]


async def test_all_kinds_joining_at_once() -> None:
    async with open_mixed_tree() as tree:
        await tree.plant("our root")
        await tree.grow(*OURS[:5], *ORIGINALS[:4])
        await tree.check_links()


async def test_what_our_nodes_understand_comes_through_an_original_between_them() -> None:
    async with open_mixed_tree(max_degree=1) as tree:
        await tree.plant("our root")
        for name in ("js middle", "upper", "lower"):
            await tree.grow(name)
        upper, lower = tree.ours["upper"], tree.ours["lower"]
        assert upper.parent is not None
        assert lower.parent is not None
        assert upper.parent.extensions == frozenset()
        child = await first_child(upper)
        assert child.extensions == lower.parent.extensions != frozenset()


async def test_an_original_is_asked_for_nothing_that_it_does_not_know() -> None:
    async with open_mixed_tree(max_degree=1) as tree:
        await tree.plant("our root")
        await tree.grow("js middle")
        child = await first_child(tree.ours["our root"])
        with pytest.raises(NotSupported):
            async with child.open_channel():
                raise AssertionError
        await child.send("ping")  # it would have thrown by now
        await tree.js.wait_for("data", node="js middle", data="ping")


async def test_an_original_is_not_told_that_a_delegated_request_is_withdrawn() -> None:
    async with open_mixed_tree(max_degree=1) as tree:
        await tree.plant("our root")
        await tree.grow("js middle")
        child = await first_child(tree.ours["our root"])
        async with open_tree_node(tree.host) as node, open_background_nursery() as nursery:
            nursery.start_soon(node.join)
            state: Event = {"candidates": []}
            while not state["candidates"]:
                await tree.js.send("state", node="js middle")
                state = await tree.js.wait_for("state")
        await trio.testing.wait_all_tasks_blocked(0.1)  # the withdrawal has come to our root
        await child.send("ping")
        await tree.js.wait_for("data", node="js middle", data="ping")


async def test_originals_in_the_middle_and_at_leaves_are_unharmed_by_all_that_ours_say() -> None:
    """An original throws on what it does not know: then its process dies, and the test fails."""
    async with open_mixed_tree() as tree:
        await tree.plant("our root")
        # One by one: so each comes to stand where what follows wants it.
        for name in ("our upper", "js upper", "js0", *OURS[:2], "js1", *OURS[2:4], "js2", "our4"):
            await tree.grow(name)
        parents = await tree.check_links()
        islands = find_islands(tree, parents)
        assert len(islands) > 1, "no node of ours below an original"
        # Signs of life, and connections to stand by: those come two to four seconds after a child.
        await trio.sleep(5)
        async with open_background_nursery() as nursery:
            heard: dict[str, list[object]] = {name: [] for name in tree.ours}
            for name, node in tree.ours.items():
                nursery.start_soon(hear_casts, node, heard[name])
                node.answer_gathers("name", partial(answer, name))
            for name, node in tree.ours.items():
                await node.broadcast({"by": name})
                await node.broadcast({"below": name}, to_subtree=True)
            for island in islands:
                for asker in island:
                    found = await tree.ours[asker].gather("name", timeout=30, of_all=True)
                    assert sorted(found.value) == sorted(island)
                    snapshot = await tree.ours[asker].snapshot_tree(timeout=30)
                    assert len(snapshot.nodes) == len(island)
                    for other in island - {asker}:
                        await tree.ours[asker].send_to(tree.ours[other].id, {"from": asker})
            with trio.fail_after(PATIENCE):
                for island in islands:
                    for name in island:
                        await until(partial(is_complete, heard[name], name, island), PATIENCE)
        # To an original a broadcast to all is data of each neighbour that has heard it.
        for name in tree.originals:
            around = [other for other, parent in parents.items() if parent == name]
            for neighbour in {*around, parents[name]} & tree.ours.keys():
                (island,) = (each for each in islands if neighbour in each)
                for speaker in island:
                    await tree.js.wait_for("data", node=name, data={"by": speaker})
        assert await ask_tree_snapshot(tree.host, SECRET, timeout=30)
        # A goodbye above an original, and above one of ours, which is handed over.
        children = {name for name, parent in parents.items() if parent == "our upper"}
        assert children == {"js0", "our1"}
        await tree.ours["our upper"].aclose()
        await trio.sleep(3)
        for name in tree.originals:
            await tree.js.send("state", node=name)
            await tree.js.wait_for("state", node=name)


@pytest.mark.parametrize("whose_server", ["original", "ours"])
async def test_an_original_as_root_or_server_is_unharmed_by_who_asks_for_a_picture(
    whose_server: str,
) -> None:
    async with open_mixed_tree(whose_server=whose_server) as tree:
        await tree.plant("js root")
        with pytest.raises(SnapshotFailed if whose_server == "ours" else ServerUnreachable):
            await ask_tree_snapshot(tree.host, SECRET, timeout=30)
        await tree.grow("our node")
        await tree.check_links()


async def test_an_original_beside_a_leaf_that_is_pulled_up_is_unharmed() -> None:
    async with open_mixed_tree() as tree:
        await tree.plant("our root")
        for name in (*OURS[:5], "js0", *OURS[5:9]):
            await tree.grow(name)
        parents = await tree.check_links()
        original_above = parents["js0"]
        (leaf,) = (
            name
            for name, parent in parents.items()
            if parents.get(parent) == original_above and name in tree.ours and parent != "js0"
        )
        assert parents[original_above] == "our root"
        # All on the other side of the root go at once: its place is for a leaf from this side.
        for name in tree.ours.keys() - {"our root"}:
            if original_above not in tree.path(name, parents):
                tree.ours[name].close()
        assert len(tree.ours[leaf].path) == 4
        with trio.fail_after(PATIENCE):
            await until(lambda: len(tree.ours[leaf].path) == 2, PATIENCE)
        for sender in (parents["js0"], *(name for name in tree.ours if parents.get(name) == "js0")):
            await neighbour_of(tree, sender, "js0", parents).send({"from": sender})
            await tree.js.wait_for("data", node="js0", data={"from": sender})


def neighbour_of(tree: MixedTree, name: str, other: str, parents: dict[str, str]) -> TreeChannel:
    """The channel of *name*, one of ours, to the original *other*, its parent or child."""
    if parents.get(name) == other:
        parent = tree.ours[name].parent
        assert parent is not None
        return parent
    (child,) = (each for each in tree.ours[name].children.values() if not each.extensions)
    return child


async def hear_casts(node: TreeNode, heard: list[object]) -> None:
    async for message in node.casts:
        heard.append(message.data)  # noqa: PERF401 - it never ends


async def answer(name: str, _: object) -> object:
    return name


def is_complete(heard: list[object], name: str, island: set[str]) -> bool:
    """Whether *name* has heard all that was due to it, each once."""
    letters = [each for each in heard if isinstance(each, dict) and "from" in each]
    casts = [each for each in heard if isinstance(each, dict) and "by" in each]
    expected = island - {name}
    assert len(letters) <= len(expected)
    assert len(casts) <= len(expected)
    return len(letters) == len(casts) == len(expected)


def find_islands(tree: MixedTree, parents: dict[str, str]) -> list[set[str]]:
    """Our nodes, those together that reach each other without an original."""
    islands: list[set[str]] = []
    for name in sorted(tree.ours, key=lambda name: len(tree.path(name, parents))):
        if parents.get(name) in tree.ours:
            next(each for each in islands if parents[name] in each).add(name)
        else:
            islands.append({name})
    return islands


async def test_each_side_is_told_when_the_other_leaves() -> None:
    async with open_mixed_tree() as tree:
        await tree.plant("our root")
        await tree.grow("js child", "js other")
        root = tree.ours["our root"]
        events = root.events
        with trio.fail_after(PATIENCE):
            connected = [await events.receive(), await events.receive()]
            assert all(isinstance(event, ChildConnect) for event in connected)
            await tree.js.send("close", node="js child")
            gone = await events.receive()
            assert isinstance(gone, ChildClose)
            assert gone.reason
            assert root.children_count == 1
            await root.aclose()
        await tree.js.wait_for("parent-close", node="js other")
