"""The ready machine for the tree finds what is planted, and its stories replay."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import trio
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from trio_overlay.nodes.tree import TreeNode
from trio_overlay.protocol.branch import Branch, PlaceRule
from trio_overlay.testing.history import History
from trio_overlay.testing.story import Step, Story
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
    with pytest.raises(ValueError, match="nobody knows how to do this: n1 dances at 0 s"):
        replay("n1 dances at 0 s")


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
    # An orphan that goes on as if nothing had happened.
    monkeypatch.setattr(TreeNode, "_cut_off", lambda _self: None)
    error, story = find(SmallTree)
    assert "an orphan, takes children" in str(error)
    assert len(Story.parse(story).steps) <= 8, story  # of up to 100 that a story begins with
    with pytest.raises(AssertionError, match="an orphan, takes children"):
        replay(story)
    monkeypatch.undo()
    replay(story)


async def keep_for_ever(_node: TreeNode, _origin: str, _scope: trio.CancelScope) -> None:
    await trio.sleep_forever()


_init = Branch.__init__


def take_one_too_many(
    branch: Branch[object], node_id: int, max_degree: int, place_rule: PlaceRule | None = None
) -> None:
    _init(branch, node_id, max_degree + 1, place_rule)


@pytest.mark.parametrize(
    ("owner", "name", "broken", "complaint"),
    [
        (TreeNode, "_live_with_request", keep_for_ever, "root keeps requests"),
        (Branch, "__init__", take_one_too_many, "root has 2 places taken"),
    ],
)
def test_a_node_that_forgets_nothing_or_counts_wrongly_is_found(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, broken: object, complaint: str
) -> None:
    monkeypatch.setattr(owner, name, broken)
    story = "max_degree=1;" + ";".join(f"n{number} joins at 0 s" for number in range(6))
    with pytest.raises((AssertionError, ExceptionGroup)) as caught:
        replay(story)
    assert re.search(complaint, repr(flatten(caught.value)))
    monkeypatch.undo()
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
            orphans[step.verb] = len(self.lives) - len(self.parents())
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
    # It tries again every half minute by then; nobody else would have been missing.
    replay("server crashes at 0 s; time passes at 116 s")
