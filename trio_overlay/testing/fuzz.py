"""Telling stories until one fails: what ``trio-overlay fuzz`` does, for programs.

It needs Hypothesis (``trio-overlay[testing]``).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
    is_interrupted: bool = False
    """Whether Ctrl-C ended it; a story that had failed is then not as short as it could be."""


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
        run_state_machine_as_test(hypothesis.seed(seed)(Observed), settings=settings)
    except _TimeIsUp:
        run.story, run.failure = shortest or (None, None)
    except Exception as error:  # noqa: BLE001 - it is what we were looking for
        run.failure = error
    except BaseException as error:
        if not _is_interrupt(error):
            raise
        run.is_interrupted = True
        run.story, run.failure = shortest or (None, None)
        return run
    else:
        run.story = None
    if run.story is not None:
        run.story = shorten(run.story, machine.open_world)
    return run


def shorten(story: Story, open_world: Callable[[Mapping[str, str]], VirtualWorld]) -> Story:
    """*story* without the steps that its failure does not need.

    Runs of steps are taken out, half of them at first, then ever fewer, and in the end one at a
    time until all are needed, for as long as what is left fails with the same kinds of errors.
    Hypothesis has shrunk what its rules were given; here there is less that hangs together.
    A story that does not fail when it is replayed stays as it is.
    """
    wanted = _failure_of(story, open_world)
    size = 0 if wanted is None else max(1, len(story.steps) // 2)
    while size:
        count = len(story.steps)
        for start in range(count - size, -size, -size):
            steps = story.steps[: max(start, 0)] + story.steps[start + size :]
            shorter = Story(story.settings, steps)
            if _failure_of(shorter, open_world) == wanted:
                story = shorter
        # What was taken out may have made needless what was not.
        if size > 1 or len(story.steps) == count:
            size //= 2
    return story


def _failure_of(
    story: Story, open_world: Callable[[Mapping[str, str]], VirtualWorld]
) -> frozenset[str] | None:
    """The kinds of errors with which *story* fails; None if it does not."""
    try:
        replay(str(story), open_world)
    except Exception as error:  # noqa: BLE001 - it is what was asked for
        return frozenset(_kinds_of(error))
    return None


def _kinds_of(error: BaseException) -> Iterator[str]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _kinds_of(each)
    else:
        yield type(error).__qualname__


def _seconds_from_now(seconds: float | None) -> float:
    return float("inf") if seconds is None else time.monotonic() + seconds


def _length(story: Story | None) -> int:
    return 0 if story is None else len(story.steps)


def _is_interrupt(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):  # out of the nurseries of a story
        return error.subgroup(KeyboardInterrupt) is not None
    return isinstance(error, KeyboardInterrupt)
