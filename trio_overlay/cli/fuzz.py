"""``trio-overlay fuzz``: stories of nodes that come and go, until one shows a bug."""

from __future__ import annotations

import argparse
import importlib
import logging
import random
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from trio_overlay.cli.arguments import at_least_one, positive
from trio_overlay.errors import UsageError
from trio_overlay.testing.story import Story, UnknownStep
from trio_overlay.testing.tree_world import replay

if TYPE_CHECKING:
    from trio_overlay.testing.fuzz import FuzzRun
    from trio_overlay.testing.machine import StoryMachine

DESCRIPTION = """\
Let real nodes on a virtual network live through stories of joins, leaves, crashes, cuts and
silence, and check after each step what must always hold. A story that fails is shrunk, printed,
and written to a file that --replay lives through again. Exit code 1 if one failed."""

OVERLAYS = {
    "tree": "trio_overlay.testing.tree:TreeMachine",
    "neighbours": "trio_overlay.testing.neighbours:NeighboursMachine",
    "sampling": "trio_overlay.testing.sampling:SamplingMachine",
    "broker": "trio_overlay.testing.broker:BrokerMachine",
    "relay": "trio_overlay.testing.relay:RelayMachine",
}
"""The machines that come with this package."""

PROGRESS_INTERVAL = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.set_defaults(run=run_fuzz)
    add = parser.add_argument
    add(
        "--overlay",
        default="tree",
        metavar="NAME",
        help=f"{', '.join(OVERLAYS)}, or MODULE:CLASS, a machine of your own (default: tree)",
    )
    add(
        "--examples",
        type=at_least_one,
        metavar="N",
        help="how many stories (default: 100, or any number in the given --time)",
    )
    add("--steps", type=at_least_one, default=30, metavar="N", help="of a story (default: 30)")
    add("--seed", type=int, metavar="S", help="the same stories each time (default: a new one)")
    add(
        "--no-faults",
        action="store_true",
        help="the network and the server do as they should: nodes only come, go and crash",
    )
    add("--time", type=positive, metavar="SECONDS", help="begin no story after so long")
    add(
        "--shrink-time",
        type=positive,
        metavar="SECONDS",
        help="make a failing story shorter for so long (default: for up to 300)",
    )
    add(
        "--save",
        type=Path,
        metavar="FILE",
        help="where a failing story goes (default: OVERLAY-fuzz-story.txt)",
    )
    add("--replay", type=Path, metavar="FILE", help="live through that story, and no other")


def run_fuzz(arguments: argparse.Namespace, console: Console | None = None) -> int:
    """Look for a failure, or replay one; 1 if there is one, else 0."""
    # Lines are for pasting: not wrapped at the width of a terminal, nor coloured.
    console = console or Console(highlight=False, markup=False, soft_wrap=True)
    machine = load_machine(arguments.overlay)
    if arguments.replay is not None:
        return replay_story(machine, arguments.replay, console)
    return look_for_a_failure(machine, arguments, console)


def load_machine(name: str) -> type[StoryMachine[Any]]:
    """The state machine for the overlay called *name*.

    UsageError: there is none, or Hypothesis is not installed.
    """
    try:
        import hypothesis  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "fuzzing needs Hypothesis: install the extra, pip install 'trio-overlay[testing]'"
        ) from error
    from trio_overlay.testing.machine import StoryMachine

    module, colon, attribute = OVERLAYS.get(name, name).partition(":")
    if not colon:
        raise UsageError(f"an overlay is {', '.join(OVERLAYS)}, or MODULE:CLASS, not {name!r}")
    with _working_directory_on_path():
        try:
            machine = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"there is no {name}: {error}") from error
    if not isinstance(machine, type) or not issubclass(machine, StoryMachine):
        raise UsageError(f"{name} is no class of machines like {OVERLAYS['tree']}")
    return machine


def look_for_a_failure(
    machine: type[StoryMachine[Any]], arguments: argparse.Namespace, console: Console
) -> int:
    """Tell stories, and say what came of it."""
    from trio_overlay.testing.fuzz import DEFAULT_EXAMPLES, fuzz

    if arguments.no_faults:
        machine = type(machine.__name__, (machine,), {"has_faults": False})
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    max_examples = arguments.examples
    if max_examples is None and arguments.time is None:
        max_examples = DEFAULT_EXAMPLES
    with _silence(), _progress(console) as on_progress:
        run = fuzz(
            machine,
            seed=seed,
            max_examples=max_examples,
            max_steps=arguments.steps,
            max_seconds=arguments.time,
            max_shrink_seconds=arguments.shrink_time,
            on_progress=on_progress,
        )
    console.print(f"seed {seed}: {run.count_stories:,} stories, {run.count_steps:,} steps")
    if run.failure is None:
        console.print("interrupted; no failure so far" if run.is_interrupted else "no failure")
        return 130 if run.is_interrupted else 0
    if run.is_interrupted:
        console.print("interrupted: the story may be longer than it need be")
    console.print(f"\n{describe(run.failure)}\n")
    if run.story is None or not run.story.steps:
        traceback.print_exception(run.failure)
        return 1  # before there was anything to tell
    path = arguments.save or Path(f"{arguments.overlay.replace(':', '.')}-fuzz-story.txt")
    _write(path, f"{_as_comment(describe(run.failure))}\n{run.story}\n")
    console.print(str(run.story))
    command = ["trio-overlay", "fuzz", "--overlay", arguments.overlay, "--replay", str(path)]
    console.print(f"\nto replay it: {shlex.join(command)}")
    if not run.fails_again and not run.is_interrupted:
        console.print(
            "it does not fail when replayed: what only the machine checks or does is not in the "
            "story; let the world check and do it"
        )
    return 1


def replay_story(machine: type[StoryMachine[Any]], path: Path, console: Console) -> int:
    """Live through the story in the file at *path*, and say what came of it.

    UsageError: there is no story in it, or one of another overlay.
    """
    try:
        story = Story.parse(path.read_text(encoding="utf-8"))
        if not story.steps:
            raise ValueError("nothing happens")
        story.open_world(machine.open_world)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no story: {error}") from error
    try:
        world = replay(story, machine.open_world)
    except UnknownStep as error:
        raise UsageError(f"{path} is no story of this overlay: {error}") from error
    except Exception as error:  # noqa: BLE001 - it is what was asked for
        traceback.print_exception(error)
        console.print(describe(error))
        return 1
    console.print(f"no failure: {len(story.steps)} steps, {world.count_joined} have joined")
    return 0


def describe(failure: BaseException) -> str:
    """What *failure* says, without the groups around it."""
    if isinstance(failure, BaseExceptionGroup):
        return "\n".join(describe(each) for each in failure.exceptions)
    # Not `format_exception_only`: Hypothesis's notes hold its program, and ours is the story.
    return f"{type(failure).__name__}: {failure}"


def _as_comment(text: str) -> str:
    return "\n".join(f"# {line}" for line in text.splitlines())


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from error


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    """As ``python -m`` has it: what is named is the user's own, and need not be installed."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


@contextmanager
def _silence() -> Iterator[None]:
    """No warnings of nodes on stderr: of trouble there is plenty, and it is meant."""
    logger, handler = logging.getLogger("trio_overlay"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[FuzzRun], None]]:
    """Says how far a run is; nothing unless at a terminal."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        auto_refresh=False,
    ) as progress:
        task = progress.add_task("")
        due_at = 0.0

        def on_progress(run: FuzzRun) -> None:
            nonlocal due_at
            now = time.monotonic()
            if now >= due_at:
                due_at = now + PROGRESS_INTERVAL
                doing = "shrinking a failure" if run.has_failed else "no failure so far"
                words = f"{run.count_stories:,} stories, {run.count_steps:,} steps, {doing}"
                progress.update(task, description=words, refresh=True)

        yield on_progress
