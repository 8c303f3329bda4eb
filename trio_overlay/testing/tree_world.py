"""The tree as a world for stories, and how a told story is replayed."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import ClassVar, cast

import trio

from trio_overlay.channels.memory import MemoryChannel
from trio_overlay.errors import OutcomeError
from trio_overlay.nodes.heartbeat import Heartbeat
from trio_overlay.nodes.tree import LEAVE_TIMEOUT, TreeNode, open_tree_node
from trio_overlay.nodes.tree_casts import CastMessage
from trio_overlay.nodes.tree_channel import TreeChannel
from trio_overlay.nodes.tree_way_up import MAX_REJOIN_DELAY
from trio_overlay.protocol.filling import same
from trio_overlay.protocol.switchboard_clients import Prospect
from trio_overlay.testing.determinism import SteppedRun
from trio_overlay.testing.history import History
from trio_overlay.testing.overhearing import Overheard, as_told, content_of, is_told
from trio_overlay.testing.signaling import AUTHORITY, SECRET
from trio_overlay.testing.story import Step, Story
from trio_overlay.testing.world import MAX_LATENESS, SERVER, Life, VirtualWorld

ROOT = "root"
LATE_ROOT = "lateroot"
"""Who comes at the end of a story that has left nobody to be the root."""
BECOMES_ROOT, TAKES_OVER = "becomes_root", "takes_over"
SEARCH_TIME = 5.0
"""Seconds that a search for a parent takes if nothing goes wrong, and more than that."""


@dataclass(eq=False)
class Broadcast:
    """What somebody has broadcast to all, and who is to hear it unless it ends before."""

    origin: str
    due_to: frozenset[str]
    count_terms: int
    """How many times a node had become the root by then: of those that fail, what they had written
    and not yet told everybody may be lost."""
    has_one_root: bool
    """Whether nobody else was the root, or that of a tree apart, who fails when it hears of it."""


@dataclass(eq=False)
class Withdrawal:
    """A join that was given up, of which all must hear who have a part in it."""

    name: str
    origin: str
    at: float
    path: dict[str, TreeChannel | None]
    """Who had its request then, by name, from the root down: each with its link to the one above.
    """


class TreeWorld(VirtualWorld):
    """A root, and nodes that join, leave, crash and withdraw, broadcast and write to each other.

    Further steps than those of every world:

    =================  ============================================================================
    n1 becomes_root    n1 begins to live, as a root: it stands by, or is active if there is none
    n1 takes_over      the same, but it replaces the root that there is
    n1 broadcasts      n1 says something to all
    n1 writes n2       n1 says something to n2
    =================  ============================================================================

    The first root is called ``root``: it can leave, crash, freeze and be cut off as everybody can.
    If none is left at the end of the story, one comes then.

    Nobody hears anything twice or out of order; and at the end everybody has heard what it was
    there for, of all broadcasts of those who are still there, whatever has happened in between to
    anybody but the root.

    Settings, besides those of every world: ``max_degree`` (2), ``request_timeout`` (10) and
    ``heartbeat`` (4), the seconds between signs of life. That is more than the default of nodes,
    because most of what a story costs is signs of life.
    """

    defaults: ClassVar = {
        **VirtualWorld.defaults,
        "max_degree": 2,
        "request_timeout": 10.0,
        "heartbeat": 4.0,
    }

    def __init__(self, settings: Mapping[str, str], *, history: History | None = None) -> None:
        super().__init__(settings, history=history)
        self.max_degree = int(self.settings["max_degree"])
        self.request_timeout = self.settings["request_timeout"]
        self.heartbeat = self.settings["heartbeat"]
        self._heartbeat = Heartbeat(self.heartbeat, 2.5 * self.heartbeat)
        self._searched_at = float("-inf")
        self._too_late: deque[float] = deque(maxlen=100)
        """When those withdrew who were connected, and had told the server that they were."""
        self._behind: dict[tuple[str, TreeChannel, tuple[str, ...]], float] = {}
        """Who does not stand where it should by the path of its parent, and since when."""
        self._withdrawals: deque[Withdrawal] = deque()
        """Those of which not all must have heard yet, oldest first."""
        self.nodes: dict[str, TreeNode] = {}
        """Those that are open, the root among them, oldest first."""
        self._terms: dict[str, int] = {}
        """How often each node has become the root, of those that have."""
        self._emptiness: dict[str, object] = {}
        """What is measured before even the root is there."""
        self._broadcasts: dict[int, Broadcast] = {}
        self._heard: defaultdict[str, list[int]] = defaultdict(list)
        """The numbers of the broadcasts that each node has heard, in the order in which it did."""
        self._letters: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        """The numbers of the letters that came, by who heard them and who sent them."""
        self._confirmed: dict[int, str] = {}
        """Who was written to in each letter that was confirmed."""
        self._has_news = False
        """Whether somebody has heard something since the last check."""
        self._numbers = itertools.count(1)

    @property
    def join_timeout(self) -> float:
        return self.request_timeout

    @property
    def leave_timeout(self) -> float:
        return LEAVE_TIMEOUT

    @property
    def settle_timeout(self) -> float:
        """Seconds from the end of all faults until all who live are in one tree: 35.

        A neighbour that is gone is missed by then, a search that the faults have spoilt has come to
        nothing, the longest delay before the next one has passed, and that one has succeeded.
        """
        return self._heartbeat.timeout + self.request_timeout + MAX_REJOIN_DELAY + SEARCH_TIME

    def measure(self) -> dict[str, object]:
        return {
            **super().measure(),
            "timers": {name: _count_timers(node) for name, node in self.nodes.items()},
        }

    async def open(self, stack: AsyncExitStack) -> None:  # noqa: ARG002 - the root may crash
        self._emptiness = self.measure()
        self.begin(ROOT, BECOMES_ROOT)

    async def live(self, life: Life) -> None:
        async with self._open_node(life.name) as node:
            self._overhear(node)
            self.nodes[life.name] = node
            try:
                with self.joining(life):
                    await self._enter_tree(life, node)
                if life.has_joined:
                    with life.staying:
                        await (self.stay_root if life.name == ROOT else self.stay)(life, node)
                    await node.aclose()
            finally:
                del self.nodes[life.name]

    async def _enter_tree(self, life: Life, node: TreeNode) -> None:
        if life.verb == "joins":
            await node.join()
        else:
            life.joining.deadline = trio.current_time() + self.join_timeout
            await node.become_root(SECRET, takeover=life.verb == TAKES_OVER)

    async def stay(self, life: Life, node: TreeNode) -> None:  # noqa: ARG002 - for those who extend
        """What the application does with its *node* until it leaves; nothing, here.

        It is called for all nodes but the first root. What comes out of `TreeNode.casts` is what
        the application has said: of what the story says it hears nothing.
        """
        await trio.sleep_forever()

    async def stay_root(self, life: Life, node: TreeNode) -> None:  # noqa: ARG002 - as above
        """The same for the first root."""
        await trio.sleep_forever()

    def perform(self, step: Step) -> None:
        node = self.nodes.get(step.who)
        match step.verb:
            case "becomes_root" | "takes_over":
                self._trouble_at = trio.current_time()
                self.begin(step.who, step.verb)
            case "broadcasts":
                if node is not None and node._casts._log.log is not None:
                    self._nursery.start_soon(self._broadcast, node)
            case "writes":
                target = self.nodes.get(step.whom or "")
                if node is not None and target is not None and node is not target:
                    self._nursery.start_soon(self._write, node, target.id)
            case _:
                life = self.lives.get(step.who)
                if step.verb in ("withdraws", "leaves") and life and life.join_ended_at is None:
                    self._note_withdrawal(step.who)
                super().perform(step)

    def _note_withdrawal(self, name: str) -> None:
        """Who is called *name* gives up joining now."""
        now = trio.current_time()
        if self._is_connected(name):
            self._too_late.append(now)
            return
        prospect = self._prospect_of(name)
        if prospect is not None and prospect.root is not None:
            path = self._path_of_request(prospect.identifier)
            self._withdrawals.append(Withdrawal(name, prospect.identifier, now, path))
            self.look_in(MAX_LATENESS)

    def _prospect_of(self, name: str) -> Prospect | None:
        """What the server has for the join of *name*; None if it has not heard of it."""
        ends = {
            cable.ends[1]
            for cable in self.network._cables.values()
            if cable.names == (name, AUTHORITY) and cable.ends is not None
        }
        for client, connection in self.signaling.server._bootstrap._connections.items():
            if isinstance(client, Prospect) and connection.channel in ends:
                return client
        return None

    def _path_of_request(self, origin: str) -> dict[str, TreeChannel | None]:
        """Who has the request of *origin*, from the root down: see `Withdrawal`."""
        path: dict[str, TreeChannel | None] = {}
        parents = self.parents()
        name = next((name for name, node in self.nodes.items() if node.is_root), None)
        while name is not None and self.nodes[name]._branch.knows(origin):
            node = self.nodes[name]
            path[name] = node.parent
            link = node.children.get(node._branch.child_of(origin) or "")
            below = [child for child, parent in parents.items() if parent == name]
            name = next((each for each in below if self._is_child_on(each, link)), None)
        return path

    def _is_connected(self, name: str) -> bool:
        peers = self.network._peers.values()
        return any(peer.cable is not None for peer in peers if peer.host.name == name)

    async def _broadcast(self, node: TreeNode) -> None:
        await trio.lowlevel.checkpoint()
        number = next(self._numbers)
        # Who has joined, and was told where in the order of all broadcasts it begins.
        there = {other.id for other in self.nodes.values() if other._casts._log.log is not None}
        due_to = frozenset(there - {node.id})
        # A root that was replaced goes on as that of its tree until it has a place in the other.
        has_one_root = (
            sum(other.is_root or other._casts.is_top for other in self.nodes.values()) <= 1
        )
        self._broadcasts[number] = Broadcast(node.id, due_to, self._count_terms(), has_one_root)
        with contextlib.suppress(trio.ClosedResourceError):
            await node.broadcast(as_told(number))

    async def _write(self, node: TreeNode, target: str) -> None:
        number = next(self._numbers)
        with contextlib.suppress(OutcomeError, trio.ClosedResourceError):
            await node.send_to(target, as_told(number))
            self._confirmed[number] = target

    def _overhear(self, node: TreeNode) -> None:
        """Take note of what *node* hears that others have said for the story's sake."""

        def hear(message: CastMessage) -> None:
            if is_told(message.data):
                self._has_news = True
                number = cast("int", content_of(message.data))
                if message.is_broadcast:
                    self._heard[node.id].append(number)
                else:
                    self._letters[node.id, message.origin].append(number)

        node._casts.stream = Overheard(
            node._casts.stream, hear, lambda message: is_told(message.data)
        )

    def _check_messages(self) -> None:
        """Nobody hears anything twice, or in another order than the others."""
        count_terms = self._count_terms()
        if not self._has_news:
            return
        self._has_news = False
        in_order: list[int] = []
        if count_terms == 1 and ROOT in self.nodes:
            in_order = self._heard[self.nodes[ROOT].id]
        places = {number: place for place, number in enumerate(in_order)}
        for name, node in self.nodes.items():
            numbers = self._heard[node.id]
            assert len(set(numbers)) == len(numbers), f"{name} has heard twice: {numbers}"
            order = [places[number] for number in numbers if number in places]
            assert order == sorted(order), f"{name} has heard out of order: {numbers}"
            for origin in {self._broadcasts[number].origin for number in numbers}:
                own = [number for number in numbers if self._broadcasts[number].origin == origin]
                assert own == sorted(own), f"{name} has heard {origin} out of order: {own}"
        names = {node.id: name for name, node in self.nodes.items()}
        for (reader, _), letters in self._letters.items():
            if reader in names:
                assert sorted(set(letters)) == letters, f"{names[reader]} heard letters {letters}"

    def _check_that_all_was_heard(self) -> None:
        """All are in one tree again: what was kept for them has come."""
        names = {node.id: name for name, node in self.nodes.items()}
        heard = {number for numbers in self._letters.values() for number in numbers}
        for number, target in self._confirmed.items():
            assert target not in names or number in heard, (
                f"{names[target]} has confirmed letter {number} and not heard it"
            )
        for number, broadcast in self._broadcasts.items():
            may_be_lost = broadcast.count_terms < self._count_terms() or not broadcast.has_one_root
            if broadcast.origin in names and not may_be_lost:
                for node_id in broadcast.due_to & names.keys():
                    assert number in self._heard[node_id], (
                        f"{names[node_id]} has not heard broadcast {number}, of "
                        f"{names[broadcast.origin]}"
                    )
        for name, node in self.nodes.items():
            assert self._count_terms() > 1 or node.count_missed == 0, (
                f"{name} has missed {node.count_missed} broadcasts"
            )
            assert node._casts.outboxes.is_settled, f"{name} keeps what it has broadcast"
            below = self._count_below(name)
            assert len(node._casts.routes) == below, (
                f"{name} knows of {len(node._casts.routes)} nodes below it, of {below}"
            )

    def _count_terms(self) -> int:
        """How often a node has become the root, up to now."""
        for name, node in self.nodes.items():
            if node._casts._count_logs:
                self._terms[name] = node._casts._count_logs
        return sum(self._terms.values())

    def _count_below(self, name: str) -> int:
        parents = self.parents()
        children = [child for child, parent in parents.items() if parent == name]
        return len(children) + sum(map(self._count_below, children))

    def check(self) -> None:
        self.check_lives()
        self._check_messages()
        for name, node in self.nodes.items():
            branch, ancestry = node._branch, node._ancestry
            taken = branch.count_taken
            assert taken <= self.max_degree, f"{name} has {taken} places taken"
            assert node.children_count <= self.max_degree
            assert ancestry.path or not branch.is_open, f"{name}, cut off, takes children"
            has_a_way = ancestry.issues or node.parent is not None
            assert has_a_way or not ancestry.path, (
                f"{name}, an orphan, believes that it has a way up"
            )
        self._check_withdrawals()
        self._check_places()
        self._check_confirmed_links()

    def _check_confirmed_links(self) -> None:
        """There is no cycle, and numbers grow towards the root: see protocol/ancestry.py."""
        parents = self._confirmed_parents()
        seen: dict[str, str] = {}
        for begins_at in parents:
            name = begins_at
            while name in parents and name not in seen:
                seen[name] = begins_at
                name = parents[name]
            # Every walk ends at a root, or where an earlier one has been.
            assert seen.get(name) != begins_at, f"a cycle, of which {name} is one: {parents}"
        self._check_paths(parents)
        for child, parent in parents.items():
            below, above = self.nodes[child]._ancestry, self.nodes[parent]._ancestry
            assert below.number <= above.number, (
                f"{child} has the number {below.number}, and its parent {parent} {above.number}"
            )

    def _check_paths(self, parents: Mapping[str, str]) -> None:
        """Each node stands below its parent, or is cut off as that is, but for what is on its way.

        *parents* are those that have confirmed their children.
        """
        now = trio.current_time()
        behind: dict[tuple[str, TreeChannel, tuple[str, ...]], float] = {}
        for name, parent in parents.items():
            node, path = self.nodes[name], self.nodes[parent].path
            if node.path == ((*path, node.id) if path else ()):
                continue
            assert node.parent is not None
            key = name, node.parent, path
            since = behind[key] = self._behind.get(key, now)
            if since == now:
                self.look_in(MAX_LATENESS)
            assert now < since + MAX_LATENESS or not self.could_hear_each_other(
                {name, parent}, since - MAX_LATENESS
            ), f"{name} believes {node.path}, and its parent {parent} {path}, for {now - since:g} s"
        self._behind = behind

    def check_settled(self) -> None:
        assert self.is_settled(), (
            f"{self.settle_timeout:g} s after the last fault there are {self._list_tops()}, "
            "without a parent that knows them, or leaves are still being moved"
        )

    def check_quiet(self) -> None:
        self._check_that_all_was_heard()
        parents = self.parents()
        self._check_that_it_is_one_tree(parents)
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

    def _check_that_it_is_one_tree(self, parents: Mapping[str, str]) -> None:
        tops = self._list_tops()
        assert len(tops) == 1, f"{tops} have no parent, or one who does not know of it"
        assert self.nodes[tops[0]].is_root, f"{tops[0]} is on top and not the root"
        for name, node in self.nodes.items():
            path = [name]
            while path[-1] in parents:
                path.append(parents[path[-1]])
            ids = tuple(self.nodes[each].id for each in reversed(path))
            assert node.path == ids, f"{name} stands below {path[1:]}, and believes {node.path}"
            assert node.is_root == (name == tops[0]), f"{name} and {tops[0]} are roots"

    def _list_tops(self) -> list[str]:
        parents = self.parents()
        return [name for name in self.nodes if name not in parents]

    def _check_belief(self, parent: str, child: str) -> None:
        """What the *parent* believes of the free places below the *child* is so."""
        views = self.nodes[parent]._branch.views
        for channel in self.nodes[parent].children.values():
            if self._is_child_on(child, channel):
                believed, view = views[channel.id], self.nodes[child]._branch.view
                assert same(believed, view), (
                    f"{parent} believes that {child} has the places {believed}, and it has {view}"
                )

    def is_settled(self) -> bool:
        # A root dials a server that has restarted in some seconds.
        roots = [node for node in self.nodes.values() if node.is_root]
        return (
            len(roots) == 1
            and roots[0]._pulls.is_quiet
            and self.signaling.server.status()["roots"] == self._count_roots()
            and len(self.parents()) == len(self.nodes) - 1
        )

    def is_at_rest(self) -> bool:
        # Who was not introduced to a standby asks again every ten seconds or so, over a road; an
        # application may broadcast now and then; and a report goes up hop by hop.
        if any(
            len(node._roads) or not node._casts.outboxes.is_settled for node in self.nodes.values()
        ):
            return False
        try:
            for child, parent in self.parents().items():
                self._check_belief(parent, child)
        except AssertionError:
            return False
        return True

    def _count_roots(self) -> int:
        return sum(node.is_root or node.stands_by for node in self.nodes.values())

    async def recover(self) -> None:
        """Have somebody be the root."""
        while not any(self._is_to_stay(life) and life.has_joined for life in self._root_lives()):
            if not self.has_root:
                self.begin(LATE_ROOT, BECOMES_ROOT)
            await trio.sleep(1)
            self.check()

    @property
    def has_root(self) -> bool:
        """Whether somebody is the root, stands by, or is about to, and nothing ends its life."""
        return any(self._is_to_stay(life) for life in self._root_lives())

    def _root_lives(self) -> list[Life]:
        return [life for life in self.lives.values() if life.verb in (BECOMES_ROOT, TAKES_OVER)]

    def _is_to_stay(self, life: Life) -> bool:
        scopes = (life.scope, life.joining, life.staying)
        return not any(scope.cancel_called for scope in scopes)

    async def empty(self) -> None:
        if ROOT in self.lives:
            await self.let_leave([name for name in self.lives if name != ROOT], self._baseline)
        await self.let_leave(list(self.lives), self._emptiness)

    def _confirmed_parents(self) -> dict[str, str]:
        """Who has taken each node for its child, as the node sees it; the parent may hear it later.

        Of those whose parent is still there.
        """
        return self._find_parents(
            {
                _end_of(link): name
                for name, node in self.nodes.items()
                for link in node._links.values()
            }
        )

    def parents(self) -> dict[str, str]:
        """Whose child each node is, as both ends see it, by name."""
        return self._find_parents(
            {
                _end_of(child): name
                for name, node in self.nodes.items()
                for child in node.children.values()
            }
        )

    def _find_parents(self, owners: Mapping[MemoryChannel, str]) -> dict[str, str]:
        """Each node's parent, by name, whose end of their connection is among those of *owners*."""
        found: dict[str, str] = {}
        for name, node in self.nodes.items():
            parent = node.parent
            if parent is not None:
                owner = owners.get(_end_of(parent).other_end)
                if owner is not None:
                    found[name] = owner
        return found

    def _check_places(self) -> None:
        """Nobody keeps a place or a request for one who has given up, once all must have heard it.

        Only while nothing else happens: who carries a withdrawal may be gone, and then the place
        is free when the request's time is over; and requests that a child was given are placed
        again when it leaves, those of applicants who have long been connected as well.
        """
        now = trio.current_time()
        if any(
            self.lives[name].has_joined
            and (node._way_up.is_searched or (node.parent is None and not node.is_root))
            for name, node in self.nodes.items()
        ):
            self._searched_at = now  # somebody looks for a new parent, or for a higher one
        calm_for = min(self.calm_for, now - self._searched_at)
        if calm_for < self.request_timeout + self.noticed_after + MAX_LATENESS:
            return
        places = sum(len(node._branch.applicants) for node in self.nodes.values())
        joining = sum(
            life.join_ended_at is None or now - life.join_ended_at < MAX_LATENESS
            for life in self.lives.values()
        )
        gone = sum(now - ended_at < MAX_LATENESS for ended_at in self.endings)
        assert places <= joining + gone, (
            f"{places} places are kept for applicants, where {joining + gone} are joining"
        )
        children = {origin for node in self.nodes.values() for origin in node.children}
        requests = {origin for node in self.nodes.values() for origin in node._branch.requests}
        # A request is kept for its whole time if the applicant was connected: nobody withdraws it.
        whole_time = self.request_timeout + MAX_LATENESS
        too_late = sum(now - withdrew_at < whole_time for withdrew_at in self._too_late)
        waiting = len(requests - children)
        assert waiting <= joining + gone + too_late, (
            f"{waiting} requests are kept of those who are nobody's child, where "
            f"{joining + gone + too_late} are joining"
        )

    def _is_child_on(self, name: str, link: TreeChannel | None) -> bool:
        """Whether *link* is the parent's end of the link to the child *name*."""
        parent = self.nodes[name].parent
        if link is None or parent is None:
            return False
        return _end_of(link).other_end is _end_of(parent)

    def _check_withdrawals(self) -> None:
        """Nobody keeps a place or a request for one who has given up, once it must have heard so.

        If none on the way was harmed, and it is still the same, whatever else has happened.
        """
        now = trio.current_time()
        while self._withdrawals and now >= self._withdrawals[0].at + MAX_LATENESS:
            withdrawal = self._withdrawals.popleft()
            on_the_way = [withdrawal.name, SERVER]
            for name, link in withdrawal.path.items():
                on_the_way.append(name)
                node = self.nodes.get(name)
                if node is None or node.parent is not link:
                    break
                if node._branch.knows(withdrawal.origin):
                    assert not self.could_hear_each_other(on_the_way, withdrawal.at), (
                        f"{name} keeps the request of {withdrawal.name}, which was withdrawn "
                        f"{now - withdrawal.at:g} s ago"
                    )
                    break

    def _open_node(self, name: str) -> AbstractAsyncContextManager[TreeNode]:
        return open_tree_node(
            AUTHORITY,
            max_degree=self.max_degree,
            request_timeout=self.request_timeout,
            heartbeat=self._heartbeat,
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

    ValueError: the text is no story. BadSetting: the world has no such setting. UnknownStep:
    nobody there can do such a step.
    """
    if isinstance(story, str):
        story = Story.parse(story)
    world = story.open_world(open_world)
    with SteppedRun(lambda: world, seed=world.seed) as run:
        for step in story.steps:
            run.call(lambda world, step=step: world.play(step))  # type: ignore[misc]
        run.call(lambda world: world.finish())
    return world


def _count_timers(node: TreeNode) -> int:
    """The timers of *node*, but for that of what is sent again: there is one at the most, and it
    may outlive the last letter by some seconds.
    """
    again = node._casts.outboxes._next
    return sum(timer is not again for timer in node._timeline.list_pending())


def _end_of(channel: TreeChannel) -> MemoryChannel:
    end = channel._channel
    assert isinstance(end, MemoryChannel)
    return end
