"""Telling stories until one fails: what ``trio-overlay fuzz`` does, for programs.

It needs Hypothesis (``trio-overlay[testing]``).
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis.errors import UnsatisfiedAssumption
from hypothesis.stateful import run_state_machine_as_test

from trio_overlay.testing.machine import StoryMachine
from trio_overlay.testing.story import Story
from trio_overlay.testing.tree_world import replay
from trio_overlay.testing.world import VirtualWorld

DEFAULT_EXAMPLES = 100
DEFAULT_STEPS = 30
SHORT_PAUSES = (0.0, 1.0, 5.0)
"""Seconds, tried in place of longer ones: a join is over after one of them, or after all."""


@dataclass(eq=False)
class FuzzRun:
    """What came of `fuzz`, and while it runs, how far it is."""

    count_stories: int = 0
    """Those that were begun, the many tried while shrinking included."""
    count_steps: int = 0
    has_failed: bool = False
    """Whether a story has failed; from then on it is being shrunk."""
    story: Story | None = None
    """The shortest that was found to fail; None if none did."""
    failure: Exception | None = None
    """What came out of it."""
    fails_again: bool = False
    """Whether the story fails when it is replayed, and the failure is the one that came then. It
    does not if only the machine checks, or does, what matters; nor if there was no time to try."""
    is_interrupted: bool = False
    """Whether Ctrl-C ended it; a story that had failed is then not as short as it could be."""


OpenWorld: TypeAlias = Callable[[Mapping[str, str]], VirtualWorld]
Place: TypeAlias = tuple[str, str, int | None]
"""The kind of an error, and the file and line that raised it."""


class _TimeIsUp(BaseException):
    """Out of Hypothesis, which takes no exception for a failure that is no `Exception`."""


def fuzz(
    machine: type[StoryMachine[Any]],
    *,
    seed: int,
    max_examples: int | None = DEFAULT_EXAMPLES,
    max_steps: int = DEFAULT_STEPS,
    max_seconds: float | None = None,
    max_shrink_seconds: float | None = None,
    on_progress: Callable[[FuzzRun], object] = lambda _: None,
) -> FuzzRun:
    """Have *machine* tell stories until one fails, and shrink that.

    At most *max_examples* of them (None for any number) of up to *max_steps* rules, and none
    begins later than *max_seconds* of real time from now. Shrinking takes the time it takes, up to
    Hypothesis's own limit of five minutes; or about *max_shrink_seconds*, and then steps that are
    not needed are still taken out. The same *machine*, *seed*, *max_examples* and *max_steps* tell
    the same stories, with the same version of Hypothesis; nothing is read from its database or
    written to it. *on_progress* is called with the run after each step. Ctrl-C ends it, and is not
    raised.
    """
    run = FuzzRun()
    shortest: tuple[Story | None, Exception] | None = None
    ends_at = _seconds_from_now(max_seconds)

    def note_failure(story: Story | None, error: Exception) -> None:
        nonlocal shortest, ends_at
        if not run.has_failed:
            run.has_failed = True
            ends_at = _seconds_from_now(max_shrink_seconds)
        if shortest is None or _length(story) <= _length(shortest[0]):
            shortest = story, error

    class Observed(machine):  # type: ignore[misc, valid-type]  # which one is known only now
        def __init__(self) -> None:
            super().__init__()
            run.count_stories += 1

        def tell(self, who: str, verb: str, whom: str | None = None, *, pause: float = 0.0) -> None:
            run.count_steps += 1
            on_progress(run)
            super().tell(who, verb, whom, pause=pause)

        def teardown(self) -> None:
            # The last story that Hypothesis lives through, if one failed, is the shrunk one.
            run.story = getattr(self, "story", None)
            error = sys.exc_info()[1]
            if isinstance(error, Exception) and not isinstance(error, UnsatisfiedAssumption):
                note_failure(run.story, error)
            try:
                super().teardown()
            except Exception as at_the_end:
                note_failure(run.story, at_the_end)
                if time.monotonic() < ends_at:
                    raise
            # Not between two stories: one that draws nothing is inconsistent to Hypothesis.
            if time.monotonic() >= ends_at and (error is None or run.has_failed):
                raise _TimeIsUp

    settings = hypothesis.settings(
        max_examples=max_examples or sys.maxsize,
        stateful_step_count=max_steps,
        deadline=None,
        database=None,
        derandomize=False,
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    try:
        try:
            run_state_machine_as_test(hypothesis.seed(seed)(Observed), settings=settings)
        except _TimeIsUp:
            run.story, run.failure = shortest or (None, None)
        except Exception as error:  # noqa: BLE001 - it is what we were looking for
            run.failure = error
        else:
            run.story = None
        if run.story is not None:
            _shorten_story_of(run, machine.open_world, on_progress)
    except BaseException as error:
        if not _is_interrupt(error):
            raise
        run.is_interrupted = True
        if run.failure is None:
            run.story, run.failure = shortest or (None, None)
    return run


def _shorten_story_of(
    run: FuzzRun, open_world: OpenWorld, on_progress: Callable[[FuzzRun], object]
) -> None:
    """Whatever ends this, *run* has the shortest story so far, and what comes of it."""

    def note_attempt(story: Story) -> None:
        run.count_stories += 1
        run.count_steps += len(story.steps)
        on_progress(run)

    assert run.story is not None
    for story, failure in _ever_shorter(run.story, open_world, note_attempt):
        run.story, run.failure, run.fails_again = story, failure, True


def shorten(story: Story, open_world: OpenWorld) -> Story:
    """*story* without the steps that its failure does not need, and without needless pauses.

    Runs of steps are taken out, half of them at first, then ever fewer, and in the end one at a
    time until all are needed, for as long as what is left fails in the same places of the program,
    or some of them. Then each step comes sooner after the one before, if that does as well.
    Hypothesis has shrunk what its rules were given; here there is less that hangs together.
    A story that does not fail when it is replayed stays as it is.
    """
    shortest = story
    for shortest, _ in _ever_shorter(story, open_world):  # noqa: B007 - the last of them
        pass
    return shortest


def _ever_shorter(
    story: Story, open_world: OpenWorld, on_attempt: Callable[[Story], object] = lambda _: None
) -> Iterator[tuple[Story, Exception]]:
    """*story*, if it fails when it is replayed, and each shorter one that was found; with what
    came of it.
    """
    wanted: frozenset[Place] | None = None

    def fails(attempt: Story) -> Exception | None:
        on_attempt(attempt)
        failure = _failure_of(attempt, open_world)
        if failure is None or wanted is None:
            return failure
        found = _places_of(failure)
        return failure if found and found <= wanted else None

    failure = fails(story)
    if failure is None:
        return
    wanted = _places_of(failure)
    yield story, failure
    size = max(1, len(story.steps) // 2)
    while size:
        count = len(story.steps)
        for start in range(count - size, -size, -size):
            steps = story.steps[: max(start, 0)] + story.steps[start + size :]
            shorter = Story(story.settings, steps)
            if failure := fails(shorter):
                story = shorter
                yield story, failure
        # What was taken out may have made needless what was not.
        if size > 1 or len(story.steps) == count:
            size //= 2
    for index in range(len(story.steps)):
        for hurried in _hurried(story, index):
            if failure := fails(hurried):
                story = hurried
                yield story, failure
                break


def _hurried(story: Story, index: int) -> Iterator[Story]:
    """*story* where the step at *index*, and with it all later ones, comes earlier; soonest first.

    Its pause is one of `SHORT_PAUSES`.
    """
    before = story.steps[index - 1].at if index else 0.0
    for pause in SHORT_PAUSES:
        earlier_by = story.steps[index].at - before - pause
        if earlier_by > 0:
            later = [
                replace(step, at=round(step.at - earlier_by, 3)) for step in story.steps[index:]
            ]
            yield Story(story.settings, [*story.steps[:index], *later])


def _failure_of(story: Story, open_world: OpenWorld) -> Exception | None:
    """What comes of *story* as the text of it is replayed; None if it does not fail."""
    try:
        replay(str(story), open_world)
    except Exception as error:  # noqa: BLE001 - it is what was asked for
        return error
    return None


def _places_of(error: BaseException) -> frozenset[Place]:
    """Where *error*, and each in it if it is a group, was raised: two failures there are alike.

    By its kind alone all that was asserted would be alike.
    """
    if isinstance(error, BaseExceptionGroup):
        return frozenset[Place]().union(*map(_places_of, error.exceptions))
    frames = traceback.extract_tb(error.__traceback__)
    where = (frames[-1].filename, frames[-1].lineno) if frames else ("", None)
    return frozenset([(type(error).__qualname__, *where)])


def _seconds_from_now(seconds: float | None) -> float:
    return float("inf") if seconds is None else time.monotonic() + seconds


def _length(story: Story | None) -> int:
    return 0 if story is None else len(story.steps)


def _is_interrupt(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):  # out of the nurseries of a story
        return error.subgroup(KeyboardInterrupt) is not None
    return isinstance(error, KeyboardInterrupt)
