"""The tree as a world for stories, and how a told story is replayed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import trio

from trio_overlay.channels.memory import MemoryChannel
from trio_overlay.nodes.tree import LEAVE_TIMEOUT, TreeNode, open_tree_node
from trio_overlay.nodes.tree_channel import Heartbeat, TreeChannel
from trio_overlay.protocol.filling import same
from trio_overlay.testing.determinism import SteppedRun
from trio_overlay.testing.history import History
from trio_overlay.testing.signaling import AUTHORITY, SECRET
from trio_overlay.testing.story import Story
from trio_overlay.testing.world import Life, VirtualWorld

ROOT = "root"
WITHDRAWAL_DELAY = 2.0
"""Seconds in which a withdrawal has gone down every hop of a tree of thirty nodes."""


class TreeWorld(VirtualWorld):
    """A root, and nodes that join, leave, crash and withdraw.

    Settings, besides those of every world: ``max_degree`` (2), ``request_timeout`` (10) and
    ``heartbeat`` (4), the seconds between signs of life. That is more than the default of nodes,
    because most of what a story costs is signs of life.
    """

    def __init__(self, settings: Mapping[str, str], *, history: History | None = None) -> None:
        super().__init__(settings, history=history)
        self.max_degree = int(settings.get("max_degree", "2"))
        self.request_timeout = float(settings.get("request_timeout", "10"))
        self.heartbeat = float(settings.get("heartbeat", "4"))
        self._searched_at = float("-inf")
        self.nodes: dict[str, TreeNode] = {}
        """Those that are open, the root among them, oldest first."""

    @property
    def join_timeout(self) -> float:
        return self.request_timeout

    @property
    def leave_timeout(self) -> float:
        return LEAVE_TIMEOUT

    @property
    def residents(self) -> frozenset[str]:
        return super().residents | {ROOT}

    async def open(self, stack: AsyncExitStack) -> None:
        root = await stack.enter_async_context(self._open_node(ROOT))
        await root.become_root(SECRET)
        self.nodes[ROOT] = root

    async def live(self, life: Life) -> None:
        async with self._open_node(life.name) as node:
            self.nodes[life.name] = node
            try:
                try:
                    with life.joining:
                        await node.join()
                        life.has_joined = True
                        self.count_joined += 1
                finally:
                    life.join_ended_at = trio.current_time()
                if life.has_joined:
                    with life.staying:
                        await self.stay(life, node)
                    await node.aclose()
            finally:
                del self.nodes[life.name]

    async def stay(self, life: Life, node: TreeNode) -> None:  # noqa: ARG002 - for those who extend
        """What the application does with its *node* until it leaves; nothing, here."""
        await trio.sleep_forever()

    def check(self) -> None:
        self.check_lives()
        for name, node in self.nodes.items():
            taken = len(node._branch.children) + len(node._branch.applicants)
            assert taken <= self.max_degree, f"{name} has {taken} places taken"
            assert node.children_count <= self.max_degree
            has_a_way = node.is_root or node.parent is not None
            assert has_a_way or not node._branch.is_open, f"{name}, an orphan, takes children"
        self._check_places()
        parents = self.parents()
        for name in parents:
            path = [name]
            while path[-1] in parents:
                path.append(parents[path[-1]])
                assert path[-1] != name, f"a cycle: {' -> '.join(path)}"
                if len(path) > len(parents):
                    break  # somebody else's cycle; it is found from there

    def check_quiet(self) -> None:
        parents = self.parents()
        for name, node in self.nodes.items():
            assert name == ROOT or name in parents, f"{name} has found no parent: {node!r}"
        for name, node in self.nodes.items():
            branch = node._branch
            assert not branch.applicants, f"{name} keeps applicants: {branch.applicants}"
            assert not branch.requests, f"{name} keeps requests: {branch.requests}"
            assert not len(node._roads), f"{name} keeps {len(node._roads)} roads"
            assert not node._requests, f"{name} keeps tasks for {list(node._requests)}"
            assert not node._applicants, f"{name} keeps applicants: {list(node._applicants)}"
            assert set(branch.children) == set(node.children)
            children = [child for child, parent in parents.items() if parent == name]
            assert len(children) == node.children_count, (
                f"{name} has {node.children_count} children, and those who call it their parent "
                f"are {children}"
            )
            if node.parent is not None:
                assert name in parents, f"the parent of {name} does not know it"
        for child, parent in parents.items():
            self._check_belief(parent, child)
        standbys = sum(node._standby.count_links for node in self.nodes.values())
        connections = 2 * len(parents) + standbys
        assert self.network.count_open_peers == connections, "\n".join(self.network.list_open())

    def _check_belief(self, parent: str, child: str) -> None:
        """What the *parent* believes of the free places below the *child* is so."""
        link = self.nodes[child].parent
        views = self.nodes[parent]._branch.views
        for channel in self.nodes[parent].children.values():
            if link is not None and _end_of(channel).other_end is _end_of(link):
                believed, view = views[channel.id], self.nodes[child]._branch.view
                assert same(believed, view), (
                    f"{parent} believes that {child} has the places {believed}, and it has {view}"
                )

    def is_settled(self) -> bool:
        # The root dials a server that has restarted in up to half a minute.
        if not self.signaling.server.status()["roots"]:
            return False
        return self.parents().keys() >= self.nodes.keys() - {ROOT}

    def parents(self) -> dict[str, str]:
        """Whose child each node is, as both ends see it, by name."""
        owners = {
            _end_of(child): name
            for name, node in self.nodes.items()
            for child in node.children.values()
        }
        found: dict[str, str] = {}
        for name, node in self.nodes.items():
            if node.parent is not None:
                owner = owners.get(_end_of(node.parent).other_end)
                if owner is not None:
                    found[name] = owner
        return found

    def _check_places(self) -> None:
        """Nobody keeps a place for one who has given up, once its withdrawal must have arrived.

        Only while nothing else happens: who carries a withdrawal may be gone, and then the place
        is free when the request's time is over; and requests that a child was given are placed
        again when it leaves, those of applicants who have long been connected as well.
        """
        now = trio.current_time()
        if any(node.parent is None for name, node in self.nodes.items() if name != ROOT):
            self._searched_at = now  # somebody joins, or looks for a new parent
        calm_for = min(self.calm_for, now - self._searched_at)
        if calm_for < self.request_timeout + self.noticed_after + WITHDRAWAL_DELAY:
            return
        places = sum(len(node._branch.applicants) for node in self.nodes.values())
        joining = sum(
            life.join_ended_at is None or now - life.join_ended_at < WITHDRAWAL_DELAY
            for life in self.lives.values()
        )
        gone = sum(now - ended_at < WITHDRAWAL_DELAY for ended_at in self.endings)
        assert places <= joining + gone, (
            f"{places} places are kept for applicants, where {joining + gone} are joining"
        )

    def _open_node(self, name: str) -> AbstractAsyncContextManager[TreeNode]:
        return open_tree_node(
            AUTHORITY,
            max_degree=self.max_degree,
            request_timeout=self.request_timeout,
            heartbeat=Heartbeat(self.heartbeat, 2.5 * self.heartbeat),
            network=self.network.host(name),
            rng=random.Random(f"{self.seed} {name}"),
        )


def replay(
    story: Story | str,
    open_world: Callable[[Mapping[str, str]], VirtualWorld] = TreeWorld,
) -> VirtualWorld:
    """Live through *story* from its beginning, and check as the machine that told it did.

    The world as it was at the end. It raises what failed then: an AssertionError, or what a task
    of the world raised.

    ValueError: the text is no story.
    """
    if isinstance(story, str):
        story = Story.parse(story)
    world = open_world(story.settings)
    with SteppedRun(lambda: world, seed=world.seed) as run:
        for step in story.steps:
            run.call(lambda world, step=step: world.play(step))  # type: ignore[misc]
        run.call(lambda world: world.finish())
    return world


def _end_of(channel: TreeChannel) -> MemoryChannel:
    end = channel._channel
    assert isinstance(end, MemoryChannel)
    return end
