"""The ready machine for the tree finds what is planted, and its stories replay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import pytest
import trio
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.planted import plant_a_place_too_many
from trio_overlay.nodes.tree import TreeNode
from trio_overlay.nodes.tree_channel import TreeChannel
from trio_overlay.nodes.tree_way_up import WayUp
from trio_overlay.protocol.ancestry import Ancestry, Descent
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.tree import Descend, TreeFrame, Wish, Withdraw
from trio_overlay.signaling.bootstrap import Connection
from trio_overlay.testing.faults import FailHandshakes
from trio_overlay.testing.history import History
from trio_overlay.testing.story import BadSetting, Step, Story, UnknownStep
from trio_overlay.testing.tree import TreeMachine
from trio_overlay.testing.tree_world import TreeWorld, replay
from trio_overlay.testing.world import Life

STORY = """\
seed=7 max_degree=2
n1 joins at 0 s
n2 joins at 0 s
n3 joins at 0.3 s
n4 joins at 0.3 s
n5 joins at 1 s
n5 withdraws at 1.1 s
n6 joins at 1.1 s
n3 freezes at 3 s
n2 loses root at 3.5 s
n2 regains root at 5 s
n1 crashes at 6 s
n3 thaws at 7 s
n4 leaves at 20 s
time passes at 30 s
"""


def history_of(story: str) -> History:
    history = History()

    def open_world(settings: Mapping[str, str]) -> TreeWorld:
        return TreeWorld(settings, history=history)

    world = replay(story, open_world)
    assert isinstance(world, TreeWorld)
    assert world.count_joined == 5
    return history


def test_a_story_plays_the_same_each_time_it_is_replayed() -> None:
    first, second = history_of(STORY), history_of(STORY)
    assert str(first) == str(second)
    assert first.count_lines > 100
    assert history_of(STORY.replace("seed=7", "seed=8")).digest != first.digest


def test_whoever_cannot_do_what_a_step_says_does_nothing() -> None:
    text = "n1 leaves at 0 s; n2 joins at 1 s; n2 joins at 2 s; n2 regains n9 at 3 s"
    world = replay(text)
    assert world.count_joined == 1


def test_a_step_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(UnknownStep, match="nobody knows how to do this: n1 dances at 0 s"):
        replay("n1 dances at 0 s")


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("max_degre=3", "max_degre is no setting here; there are heartbeat, max_degree, noticed"),
        ("loss=0", "loss is no setting here"),  # of other worlds
        ("max_degree=2.5", "max_degree is a whole number, not '2.5'"),
        ("heartbeat=often", "heartbeat is a number, not 'often'"),
    ],
)
def test_a_setting_that_there_is_not_is_an_error_with_its_line(
    setting: str, complaint: str
) -> None:
    with pytest.raises(BadSetting, match=f"line 3: {complaint}"):
        replay(f"# a story\nseed=3\nrequest_timeout=8 {setting}; n1 joins at 0 s")
    with pytest.raises(BadSetting, match=f"^{complaint}"):
        TreeWorld(dict([setting.split("=")]))


class SmallTree(TreeMachine):
    """Shrinks in seconds."""

    max_nodes = 4
    has_faults = False


def find(machine: type[TreeMachine]) -> tuple[BaseException, str]:
    """The failure that *machine* ends with and the story it tells of it."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - whatever was planted
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=500,
                stateful_step_count=8,
                derandomize=True,
                database=None,
                phases=(Phase.generate, Phase.shrink),
            ),
        )
    notes = "\n".join(getattr(caught.value, "__notes__", []))
    found = re.search(r"replay:\n((?:.*(?:=| at ).*\n?)+)", notes)
    assert found is not None, notes
    return caught.value, found[1]


def test_a_planted_bug_is_found_and_its_shrunk_story_replays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant_a_place_too_many(monkeypatch)
    error, story = find(SmallTree)
    assert "root has 2 places taken" in str(error)
    assert len(Story.parse(story).steps) <= 8, story  # of up to 100 that a story begins with
    with pytest.raises(AssertionError, match="root has 2 places taken"):
        replay(story)
    monkeypatch.undo()
    replay(story)


JOINS = "max_degree=1;" + ";".join(f"n{number} joins at 0 s" for number in range(6))
CHAIN = "max_degree=1; n1 joins at 0 s; n2 joins at 2 s; n3 joins at 4 s; n4 joins at 4 s"
# A look every 20 ms: at one of them n2, with n3 or n4 below it, has yet to find another parent.
# A crash: who leaves as it should hands its child over. It is noticed after five seconds.
CUT_CHAIN = f"{CHAIN}; n1 crashes at 6 s;" + ";".join(
    f"time passes at {11 + tick / 50} s" for tick in range(50)
)


@pytest.mark.parametrize(
    ("name", "broken", "story", "complaint"),
    [
        ("_expire_request", lambda _node, _origin: None, JOINS, "root keeps requests"),
        ("_cut_off", lambda _node: None, CUT_CHAIN, "n2, cut off, takes children"),
    ],
)
def test_a_node_that_forgets_nothing_or_goes_on_when_cut_off_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, broken: object, story: str, complaint: str
) -> None:
    monkeypatch.setattr(TreeNode, name, broken)
    with pytest.raises((AssertionError, ExceptionGroup)) as caught:
        replay(story)
    assert re.search(complaint, repr(flatten(caught.value)))
    monkeypatch.undo()
    replay(story)


OTHER_TROUBLE = "n9 loses root at 3.9 s"
MORE_TROUBLE = "n8 freezes at 4.4 s; signals get_lost 50% at 4.5 s"
CHAIN_OF_TWO = "max_degree=1; n1 joins at 0 s; n2 joins at 2 s"
GIVEN_UP = "n3 joins at 4 s; n3 withdraws at 4.3 s"


def lose_withdrawals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that go down the tree; who answers is told by the server, too."""
    post = TreeChannel.post

    def post_others(channel: TreeChannel, frame: TreeFrame, text: str | None = None) -> None:
        if not isinstance(frame, Withdraw):
            post(channel, frame, text)

    monkeypatch.setattr(TreeChannel, "post", post_others)


@pytest.mark.parametrize(
    "story",
    [
        f"{CHAIN_OF_TWO}; {GIVEN_UP}; time passes at 7 s",
        f"{CHAIN_OF_TWO}; {GIVEN_UP}; time passes at 60 s",
        f"{CHAIN_OF_TWO}; {OTHER_TROUBLE}; {GIVEN_UP}; {MORE_TROUBLE}; time passes at 7 s",
    ],
    ids=["in the calm", "in a long pause", "among other troubles"],
)
def test_a_withdrawal_that_is_lost_on_its_way_down_is_found(
    monkeypatch: pytest.MonkeyPatch, story: str
) -> None:
    replay(story)
    lose_withdrawals(monkeypatch)
    with pytest.raises(AssertionError, match="n1 keeps the request of n3, which was withdrawn 2 s"):
        replay(story)


@pytest.mark.parametrize(
    "trouble", ["root cannot_hear n1,n2", "n1 freezes", "server crashes", "n1 leaves"]
)
def test_a_withdrawal_that_cannot_get_through_is_no_mistake(
    monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    lose_withdrawals(monkeypatch)
    replay(f"{CHAIN_OF_TWO}; n3 joins at 4 s; n3 withdraws at 4.3 s; {trouble} at 4.4 s")


def test_an_orphan_that_tells_nobody_below_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It notices that it has no parent after five seconds."""
    story = f"{CHAIN_OF_TWO}; n1 loses root,server at 4 s; time passes at 10 s; time passes at 30 s"
    replay(story)
    post = TreeChannel.post

    def say_nothing_of_it(channel: TreeChannel, frame: TreeFrame, text: str | None = None) -> None:
        if not isinstance(frame, Descend) or frame.descent.path:
            post(channel, frame, text)

    monkeypatch.setattr(TreeChannel, "post", say_nothing_of_it)
    with pytest.raises(AssertionError, match=r"n2 believes .*, and its parent n1 \(\), for 2 s"):
        replay(story)
    replay(story.replace("n1 loses root", "n1 loses n2,root"))


def test_a_cycle_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An orphan asks its own child for a place, which does not know that it has lost its way up."""
    story = "max_degree=1; n1 joins at 0 s; n2 joins at 2 s; root crashes at 4 s"
    replay(story)
    post, by_server = TreeChannel.post, WayUp.by_server

    def ask_below(
        way_up: WayUp, more: Mapping[str, JSON]
    ) -> AbstractAsyncContextManager[Connection]:
        for child in way_up._node.children.values():
            return way_up._node._roads.connect(child, Wish.PLACE, more)
        return by_server(way_up, more)

    def say_nothing_of_it(channel: TreeChannel, frame: TreeFrame, text: str | None = None) -> None:
        if not isinstance(frame, Descend) or frame.descent.path:
            post(channel, frame, text)

    def follow_anybody(ancestry: Ancestry, descent: Descent) -> bool:
        ancestry._has_parent = bool(descent.path)
        if ancestry._has_parent:
            ancestry.path = (*descent.path, ancestry._identifier)
        return ancestry._has_parent

    monkeypatch.setattr(WayUp, "by_server", ask_below)
    monkeypatch.setattr(TreeChannel, "post", say_nothing_of_it)
    monkeypatch.setattr(Ancestry, "follow", follow_anybody)
    monkeypatch.setattr(Ancestry, "is_above", lambda _ancestry, _descent: False)
    with pytest.raises(AssertionError, match="a cycle, of which n1 is one"):
        replay(story)


def flatten(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in flatten(each)]
    return [error]


class Greeters(TreeWorld):
    """Nodes that greet their parent: an application's own world."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        super().__init__(settings)
        self.greeted: list[object] = []

    async def stay(self, life: Life, node: TreeNode) -> None:
        if node.parent is not None:
            await node.parent.send(f"hello from {life.name}")
        async for message in node.messages:
            self.greeted.append(message.data)
        await trio.sleep_forever()


def test_an_application_brings_its_own_world_and_invariants() -> None:
    world = replay("max_degree=1; n1 joins at 0 s; n2 joins at 2 s; n3 joins at 4 s", Greeters)
    assert isinstance(world, Greeters)
    assert sorted(map(str, world.greeted)) == ["hello from n2", "hello from n3"]


class Gossips(TreeWorld):
    """Nodes of an application that says things to all, the root too, and reads what it hears."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        super().__init__(settings)
        self.heard: dict[str, list[object]] = {}

    async def stay(self, life: Life, node: TreeNode) -> None:
        heard = self.heard[life.name] = []
        await node.broadcast({"from": life.name})
        while True:
            heard.append((await node.casts.receive()).data)

    async def stay_root(self, life: Life, node: TreeNode) -> None:
        await self.stay(life, node)


def test_an_application_hears_itself_and_nothing_of_the_story() -> None:
    """The story read everything, and failed where it was not what it had said itself."""
    world = replay(
        "n1 joins at 0 s; root broadcasts at 3 s; n1 writes root at 3 s; root writes n1 at 3 s;"
        "n2 joins at 5 s; n2 broadcasts at 8 s; time passes at 12 s",
        Gossips,
    )
    assert isinstance(world, Gossips)
    from_n1, from_n2 = {"from": "n1"}, {"from": "n2"}
    assert world.heard == {"root": [from_n1, from_n2], "n1": [from_n2], "n2": []}


def test_the_server_crashes_and_restarts_as_the_story_says() -> None:
    world = replay(
        "n1 joins at 0 s; n2 joins at 2 s; server crashes at 5 s; n3 joins at 6 s;"
        "time passes at 8 s; server restarts at 9 s; n4 joins at 30 s; time passes at 32 s"
    )
    assert (world.count_joined, world.count_refused) == (3, 1)  # n3 alone found no server


def test_while_the_server_is_gone_orphans_wait_for_it() -> None:
    """And when it is back everybody is in one tree again: `finish` checks it."""
    joins = ";".join(f"n{number} joins at 0 s" for number in range(1, 8))
    orphans: dict[str, int] = {}

    class Watched(TreeWorld):
        def perform(self, step: Step) -> None:
            orphans[step.verb] = len(self.nodes) - len(self.parents()) - 1  # the root
            super().perform(step)

    world = replay(
        f"max_degree=2;{joins};server crashes at 5 s; n1 crashes at 6 s; n2 crashes at 6 s;"
        "server restarts at 30 s; time passes at 60 s",
        Watched,
    )
    assert world.count_joined == 7
    assert orphans["restarts"] > 0
    assert orphans["passes"] == 0


def test_a_story_may_end_without_a_server() -> None:
    world = replay("n1 joins at 0 s; server crashes at 5 s")
    assert world.signaling.is_running


def test_the_end_of_a_story_waits_until_the_root_has_found_the_next_server() -> None:
    # It tries again every five seconds by then; nobody else would have been missing.
    replay("server crashes at 0 s; time passes at 116 s")


class Seen(TreeWorld):
    """Remembers what stood when somebody had to do something, by the verb."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        super().__init__(settings)
        self.paths: dict[str, dict[str, list[str]]] = {}

    def perform(self, step: Step) -> None:
        names = {node.id: name for name, node in self.nodes.items()}
        self.paths[step.verb] = {
            name: [names.get(each, "?") for each in node.path] for name, node in self.nodes.items()
        }
        super().perform(step)


def see(story: str) -> dict[str, dict[str, list[str]]]:
    """The path of each node, by names, when each verb was done for the last time."""
    world = replay(story, Seen)
    assert isinstance(world, Seen)
    return world.paths


FOUR = "max_degree=4;" + ";".join(f"n{number} joins at {number} s" for number in (1, 2, 3, 4))


def test_a_group_that_is_cut_off_has_no_way_up_until_it_is_healed() -> None:
    paths = see(
        f"{FOUR}; n1,n2 loses root,n3,n4,server at 10 s; n1,n2 regains root,n3,n4,server at 40 s;"
        "time passes at 90 s"
    )
    cut_off = paths["regains"]
    assert [name for name, path in cut_off.items() if not path] == ["n1", "n2"]
    assert all(path[0] == "root" for path in paths["passes"].values())


@pytest.mark.parametrize("deaf", ["root cannot_hear n1,n2", "n1,n2 cannot_hear root"])
def test_who_is_not_heard_or_hears_nothing_has_no_way_up(deaf: str) -> None:
    healed = deaf.replace("cannot_hear", "hears")
    # Nor over anybody else: nobody has a place for them.
    story = FOUR.replace("max_degree=4", "max_degree=2")
    paths = see(f"{story}; {deaf} at 10 s; n3,n4 loses n1,n2 at 10 s; {healed} at 40 s")
    assert not paths["hears"]["n1"]
    assert not paths["hears"]["n2"]


def test_nobody_joins_while_all_signals_are_lost_and_late_ones_arrive() -> None:
    world = replay(
        "n1 joins at 0 s; signals get_lost 100% at 2 s; n2 joins at 3 s;"
        "signals get_through at 30 s;"
        "signals get_late 100% at 31 s; n3 joins at 32 s; time passes at 50 s"
    )
    assert (world.count_joined, world.count_refused) == (2, 1)


def test_a_root_that_stands_by_takes_over_when_the_root_crashes() -> None:
    paths = see("n1 becomes_root at 0 s; n2 joins at 3 s; root crashes at 6 s; time passes at 30 s")
    assert paths["crashes"]["n1"] == ["root", "n1"]
    assert paths["passes"] == {"n1": ["n1"], "n2": ["n1", "n2"]}


@pytest.mark.parametrize("moment", [20, 25, 30])
def test_who_asks_for_a_standby_when_a_story_ends_does_not_keep_a_road(moment: int) -> None:
    """It was said to: it asks every ten seconds or so, and roads were counted meanwhile, too."""

    class Apart(TreeWorld):
        async def open(self, stack: AsyncExitStack) -> None:
            self.network.apply("n1 <-> n2", FailHandshakes())  # of which n1 is to stand by
            await super().open(stack)

    replay(f"n1 joins at 0 s; n2 joins at 1 s; time passes at {moment} s", Apart)


def test_what_a_root_broadcasts_that_was_replaced_unheard_is_due_to_nobody() -> None:
    """It was: but who is the root instead was never below it, and the promise ends with a root."""
    replay("root freezes at 11 s; n1 becomes_root at 75 s; root broadcasts at 121 s")


def test_what_a_root_broadcasts_that_has_been_replaced_is_not_due_to_the_other_tree() -> None:
    """It was, to the new root: to which the old one had just begun to look for a way."""
    replay("seed=0 max_degree=1; n9 takes_over at 0 s; root broadcasts at 0.1 s")


def test_a_root_that_takes_over_has_the_other_below_it() -> None:
    paths = see("n1 joins at 0 s; n2 takes_over at 3 s; time passes at 20 s")
    assert paths["passes"]["root"] == ["n2", "root"]


def test_a_tree_without_a_root_waits_for_the_next() -> None:
    paths = see(
        "n1 joins at 0 s; n2 joins at 3 s; root leaves at 6 s; n3 becomes_root at 20 s;"
        "time passes at 60 s; n3 crashes at 61 s"  # and in the end another one comes
    )
    assert not any(paths["becomes_root"].values())
    assert {path[0] for path in paths["passes"].values()} == {"n3"}


def test_a_node_whose_number_is_ahead_of_its_parents_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_below = Ancestry._stand_below

    def be_ahead(ancestry: Ancestry, descent: Descent) -> None:
        epoch, count = descent.number
        stand_below(ancestry, Descent((epoch, count + 1), descent.path))

    monkeypatch.setattr(Ancestry, "_stand_below", be_ahead)
    with pytest.raises(AssertionError, match=r"n1 has the number \(.*\), and its parent root"):
        replay("n1 joins at 0 s; time passes at 5 s")
