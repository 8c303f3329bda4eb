"""`trio-overlay fuzz`: what it finds, what it prints, and that both can be had again."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.planted import plant_a_place_too_many
from trio_overlay.cli import main
from trio_overlay.cli.fuzz import OVERLAYS, describe
from trio_overlay.testing.broker import BrokerMachine
from trio_overlay.testing.broker_world import BrokerWorld
from trio_overlay.testing.fuzz import FuzzRun, fuzz, shorten
from trio_overlay.testing.story import Step, Story
from trio_overlay.testing.tree import TreeMachine
from trio_overlay.testing.tree_world import TreeWorld, replay
from trio_overlay.testing.world import FAULTS


def run_fuzz(*arguments: object) -> int:
    return main(["fuzz", *map(str, arguments)])


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    plant_a_place_too_many(monkeypatch)
    return monkeypatch


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_failure_is_said_and_is_0(overlay: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_fuzz("--overlay", overlay, "--examples", 3, "--steps", 5, "--seed", 1) == 0
    said = capsys.readouterr()
    assert re.fullmatch(r"seed 1: \d+ stories, \d+ steps\nno failure\n", said.out)
    assert said.err == ""


def test_a_planted_bug_is_found_shrunk_and_replayed(
    planted: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    planted.chdir(tmp_path)
    assert run_fuzz("--overlay", "tree", "--examples", 200, "--steps", 8, "--seed", 1) == 1
    said = capsys.readouterr().out
    assert "root has 2 places taken" in said
    assert "\x1b" not in said  # no colour and no progress when piped
    path = tmp_path / "tree-fuzz-story.txt"
    story = Story.parse(path.read_text())
    assert 1 <= len(story.steps) <= 6
    assert f"\n{story}\n" in said
    command = f"trio-overlay fuzz --overlay tree --replay {path.name}"
    assert said.endswith(f"to replay it: {command}\n")

    assert main(command.split()[1:]) == 1
    again = capsys.readouterr()
    assert "root has 2 places taken" in again.out
    assert "Traceback" in again.err
    planted.undo()
    assert run_fuzz("--replay", path) == 0
    assert capsys.readouterr().out.startswith(f"no failure: {len(story.steps)} steps, ")


def test_without_faults_the_network_and_the_server_do_as_they_should(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: set[str] = set()
    perform = TreeWorld.perform

    def note(world: TreeWorld, step: Step) -> None:
        told.add(f"server {step.verb}" if step.who == "server" else step.verb)
        perform(world, step)

    monkeypatch.setattr(TreeWorld, "perform", note)
    arguments = ("--examples", 25, "--steps", 10, "--seed", 1)
    assert run_fuzz(*arguments) == 0
    faults = told & {*FAULTS, "server crashes", "takes_over"}
    assert len(faults) >= 4
    told.clear()
    assert run_fuzz(*arguments, "--no-faults") == 0
    assert told >= {"joins", "leaves", "crashes"}
    assert not told & {*FAULTS, "server crashes", "takes_over"}


def test_one_seed_tells_the_same_stories_and_another_tells_others() -> None:
    def stories_of(seed: int) -> list[str]:
        told: list[str] = []

        class Eavesdropped(TreeMachine):
            def teardown(self) -> None:
                super().teardown()
                told.append(str(self.story))

        run = fuzz(Eavesdropped, seed=seed, max_examples=4, max_steps=4)
        assert run.failure is None
        assert len(told) == run.count_stories >= 4
        return told

    first = stories_of(1)
    assert stories_of(1) == first
    assert stories_of(2) != first


def test_time_ends_it_after_the_story_that_is_being_told() -> None:
    run = fuzz(TreeMachine, seed=1, max_examples=None, max_seconds=1e-9)
    assert run.count_stories == 1
    assert run.failure is None
    assert run.story is None


@pytest.mark.usefixtures("planted")
def test_shrinking_takes_as_long_as_it_may_and_leaves_no_needless_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_fuzz("--examples", 200, "--steps", 8, "--seed", 1, "--shrink-time", 1e-9) == 1
    assert "places taken" in capsys.readouterr().out
    story = Story.parse((tmp_path / "tree-fuzz-story.txt").read_text())
    assert story.steps
    assert shorten(story, TreeWorld) == story


def test_a_long_story_is_shortened_without_living_through_each_part_of_it_anew() -> None:
    """Step by step, and from the end again after each needless one, it took many times as long."""
    count_stories = 0

    class Fragile(BrokerWorld):
        def __init__(self, settings: Mapping[str, str]) -> None:
            nonlocal count_stories
            count_stories += 1
            super().__init__(settings)

        def perform(self, step: Step) -> None:
            super().perform(step)
            assert (step.who, step.verb) != ("n7", "leaves") or "n13" not in self.lives

    joins = [Step(number, f"n{number}", "joins") for number in range(20)]
    story = Story({"seed": 1}, [*joins, Step(20, "n7", "leaves"), Step(21, "time", "passes")])
    assert str(shorten(story, Fragile)).splitlines()[1:] == [
        "n13 joins at 0 s",
        "n7 leaves at 0 s",
    ]
    assert count_stories < 40


class TwoBugs(BrokerWorld):
    """The third who lives is too many, and nobody may crash."""

    def perform(self, step: Step) -> None:
        super().perform(step)
        assert len(self.lives) < 3, f"{step.who} came at {step.at:g} s"
        assert step.verb != "crashes", f"{step.who} has crashed"


TWO_BUGS = """\
seed=1
n1 joins at 1 s
n2 joins at 2.5 s
n2 leaves at 7 s
n3 joins at 9 s
n4 joins at 10.25 s
n5 crashes at 11 s"""


def test_a_story_is_shortened_to_the_failure_that_it_had_and_without_needless_pauses() -> None:
    """Of its kind there is a shorter one: n5 crashes, which is an AssertionError, too."""
    shortened = shorten(Story.parse(TWO_BUGS), TwoBugs)
    assert str(shortened).splitlines() == [
        "seed=1",
        "n1 joins at 0 s",
        "n3 joins at 0 s",
        "n4 joins at 0 s",
    ]


def test_pauses_that_a_failure_needs_stay() -> None:
    class Patient(BrokerWorld):
        def perform(self, step: Step) -> None:
            super().perform(step)
            life = self.lives.get("n1")
            assert life is None or not life.has_joined, "n1 has joined"

    story = Story.parse("seed=1; n1 joins at 4 s; time passes at 60 s")
    assert str(shorten(story, Patient)).splitlines()[1:] == [
        "n1 joins at 0 s",
        "time passes at 1 s",
    ]


class TwoBugsMachine(BrokerMachine):
    open_world = TwoBugs


def test_what_is_said_of_a_failure_is_what_the_shortened_story_ends_with() -> None:
    run = fuzz(TwoBugsMachine, seed=1, max_steps=8, max_shrink_seconds=1e-9)
    assert run.fails_again
    assert run.story is not None
    with pytest.raises(AssertionError) as caught:
        replay(run.story, TwoBugs)
    assert str(run.failure) == str(caught.value)


def test_interrupted_while_a_story_is_shortened_it_has_the_shortest_so_far() -> None:
    def interrupt(run: FuzzRun) -> None:
        if run.fails_again:
            raise KeyboardInterrupt

    run = fuzz(TwoBugsMachine, seed=1, max_steps=8, max_shrink_seconds=1e-9, on_progress=interrupt)
    assert run.is_interrupted
    assert run.story is not None
    with pytest.raises(AssertionError, match=re.escape(str(run.failure))):
        replay(run.story, TwoBugs)


@pytest.mark.usefixtures("planted")
def test_interrupted_while_it_shrinks_it_has_the_shortest_story_so_far() -> None:
    def interrupt(run: FuzzRun) -> None:
        if run.has_failed and run.count_stories >= 40:
            raise KeyboardInterrupt

    run = fuzz(TreeMachine, seed=1, max_examples=200, max_steps=8, on_progress=interrupt)
    assert run.is_interrupted
    assert run.failure is not None
    assert run.story is not None
    with pytest.raises(type(run.failure)) as caught:
        replay(str(run.story))
    assert "places taken" in describe(caught.value)


def test_interrupted_before_anything_failed_it_says_how_far_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tell(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TreeMachine, "tell", tell)
    assert run_fuzz("--seed", 1) == 130
    said = capsys.readouterr().out
    assert re.fullmatch(r"seed 1: 1 stories, \d steps\ninterrupted; no failure so far\n", said)


def test_the_machine_may_be_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_machine.py").write_text(
        """\
from hypothesis.stateful import invariant
from trio_overlay.testing.tree import TreeMachine

class Lonely(TreeMachine):
    max_nodes = 2

    @invariant()
    def nothing_happens(self):
        assert not hasattr(self, "story") or not self.story.steps, "something happened"
"""
    )
    saved = tmp_path / "saved.txt"
    arguments = ("--steps", 3, "--seed", 1, "--save", saved)
    assert run_fuzz("--overlay", "own_machine:Lonely", *arguments) == 1
    said = capsys.readouterr().out
    assert "AssertionError: something happened\n" in said
    # `replay` knows the world, not what the machine alone holds.
    assert "it does not fail when replayed" in said
    assert Story.parse(saved.read_text()).steps


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ("--overlay", "ring"),
            "an overlay is tree, neighbours, sampling, broker, relay, or MODULE:CLASS",
        ),
        (("--overlay", "no_such:Thing"), "there is no no_such:Thing"),
        (("--overlay", "pathlib:Nothing"), "there is no pathlib:Nothing"),
        (("--overlay", "pathlib:Path"), "pathlib:Path is no class of machines"),
        (("--replay", "no-such-file"), "no-such-file is no story"),
        (("--replay", "README.md"), "README.md is no story: line 1: a step is like"),
        (("--replay", "empty.txt"), "empty.txt is no story: nothing happens"),
        (("--replay", "seed.txt"), "seed.txt is no story: line 1: seed is a whole number, not"),
        (("--replay", "degree.txt"), "degree.txt is no story: line 2: max_degre is no setting"),
        (
            ("--replay", "calls.txt"),
            "calls.txt is no story of this overlay: nobody knows how to do this: n1 calls n2",
        ),
    ],
)
def test_what_cannot_be_is_2_and_one_line(
    arguments: tuple[str, ...],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "README.md").write_text("Once upon a time\n")
    (tmp_path / "empty.txt").write_text("seed=1\n")
    (tmp_path / "seed.txt").write_text("seed=one\nn1 joins at 0 s\n")
    (tmp_path / "degree.txt").write_text("# a story\nmax_degre=1\nn1 joins at 0 s\n")
    (tmp_path / "calls.txt").write_text("n1 joins at 0 s\nn1 calls n2 at 1 s\n")
    monkeypatch.chdir(tmp_path)
    assert run_fuzz(*arguments) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


def test_without_hypothesis_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    assert run_fuzz() == 2
    assert "pip install 'trio-overlay[testing]'" in capsys.readouterr().err
