"""Cancel everywhere: run a scenario again and again, each time cancelled one checkpoint later."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Protocol

import trio

from trio_overlay.testing.determinism import line_of, run_virtual

Scenario = Callable[["Trial"], Awaitable[None]]
"""Sets up what it needs, does something inside ``with trial.under_test():``, checks the rest."""


class Runner(Protocol):
    """What runs a scenario: `run_virtual`, or something like ``trio.run``."""

    def __call__(
        self,
        async_fn: Callable[[], Awaitable[None]],
        /,
        *,
        instruments: tuple[trio.abc.Instrument, ...],
    ) -> None: ...


def cancel_at_every_checkpoint(
    scenario: Scenario,
    *,
    first: int = 1,
    stride: int = 1,
    max_checkpoints: int = 10_000,
    cleanup_timeout: float = 10.0,
    run: Runner = run_virtual,
) -> int:
    """How many checkpoints the block under test of *scenario* has; at each it was cancelled once.

    The scenario runs from the beginning for each of them: cancelled at checkpoint *first*, then
    *stride* later, until a run ends before it is cancelled. A checkpoint is counted each time a
    task waits, or lets others run, inside the block: the task that entered it, and those in
    nurseries opened there. Under `run_virtual` a run goes the same way as the one before it up to
    the checkpoint where it is cancelled; with another *run* (real sockets, say) about so.

    After the block the scenario checks what it knows of: that `VirtualNetwork.assert_quiet`,
    that others still work, that `Trial.list_tasks_left` is empty, that places are free again. It
    may let virtual time pass before, for farewells to arrive. What is checked here: the
    block ends within *cleanup_timeout* of the cancellation, raises nothing but `trio.Cancelled`,
    and no file descriptor is left open at the end of the run (on systems that have ``/proc``).

    What a run raises leaves with a note that says where the run was cancelled; *first* set to
    that number begins there.

    AssertionError: a check failed, or a run was cancelled *max_checkpoints* times.
    """
    count = first
    while count <= max_checkpoints:
        trial = Trial(count, cleanup_timeout)
        descriptors = _list_descriptors()
        try:
            run(partial(scenario, trial), instruments=(trial,))
            trial.check_that_it_was_run()
            new = sorted(_list_descriptors() - descriptors)
            assert not new, f"file descriptors left open: {', '.join(new)}"
        except BaseException as error:
            error.add_note(f"cancel_at_every_checkpoint: {trial}")
            raise
        if not trial.is_cancelled:
            return trial.count_checkpoints
        count += stride
    raise AssertionError(f"more than {max_checkpoints} checkpoints: does it ever end?")


class Trial(trio.abc.Instrument):
    """One run of a scenario; made by `cancel_at_every_checkpoint`."""

    def __init__(self, cancel_at: int, cleanup_timeout: float) -> None:
        self.cancel_at = cancel_at
        """The number of the checkpoint at which the block is cancelled, counted from 1."""
        self.count_checkpoints = 0
        """Those passed in the block up to now."""
        self.where: str | None = None
        """The task and line that were waiting when the block was cancelled."""
        self._cleanup_timeout = cleanup_timeout
        self._scope: trio.CancelScope | None = None
        self._task: trio.lowlevel.Task | None = None
        self._older_nurseries: frozenset[trio.Nursery] = frozenset()
        self._is_inside = False
        self._cancelled_at = 0.0
        # In the order they came, so that what is listed reads the same each time.
        self._newer_tasks: dict[trio.lowlevel.Task, None] = {}

    def __str__(self) -> str:
        if self.is_cancelled:
            return f"cancelled at checkpoint {self.cancel_at}, {self.where}"
        return f"not cancelled; {self.count_checkpoints} checkpoints were passed"

    @property
    def is_cancelled(self) -> bool:
        """Whether the block was cancelled in this run; it may have come to its end all the same."""
        return self._scope is not None and self._scope.cancel_called

    @contextmanager
    def under_test(self) -> Iterator[None]:
        """The block to cancel; once in each run. Catches its own cancellation.

        AssertionError: after it was cancelled the block took too long to end.
        """
        assert self._scope is None, "a scenario has one block under test"
        self._task = trio.lowlevel.current_task()
        self._older_nurseries = frozenset(self._task.child_nurseries)
        self._newer_tasks.clear()
        with trio.CancelScope() as self._scope:
            self._is_inside = True
            try:
                yield
            finally:
                self._is_inside = False
        if self.is_cancelled:
            took = trio.current_time() - self._cancelled_at
            assert took <= self._cleanup_timeout, f"it took {took:g} s to be cancelled"

    def list_tasks_left(self) -> list[str]:
        """The tasks begun since the block was entered, anywhere in the run, that still live."""
        return [f"{task.name} of {_parent_of(task)}" for task in self._newer_tasks]

    def check_that_it_was_run(self) -> None:
        """The scenario came to its block.

        AssertionError: it did not, and so has tested nothing.
        """
        assert self._scope is not None, "the scenario never entered trial.under_test()"

    # --- what Trio calls ------------------------------------------------------------------

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """Note a task that may be left."""
        self._newer_tasks[task] = None

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """It was not."""
        self._newer_tasks.pop(task, None)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count, and cancel when it is time: *task* waits at the checkpoint just now.

        Before the step would be too late for this checkpoint: what it waited for has come.
        """
        if not self._is_inside or not self._is_under_test(task):
            return
        self.count_checkpoints += 1
        if self.count_checkpoints == self.cancel_at:
            assert self._scope is not None
            self.where = f"where {task.name} waits at {line_of(task)}"
            self._cancelled_at = trio.current_time()
            self._scope.cancel()

    def _is_under_test(self, task: trio.lowlevel.Task) -> bool:
        # A task can move (`nursery.start`), so this is asked anew each time. It has ended when
        # it is in no nursery any more; the end of a task is no checkpoint.
        while task is not self._task:
            nursery = task.parent_nursery
            if nursery is None or task not in nursery.child_tasks:
                return False
            if nursery.parent_task is self._task and nursery in self._older_nurseries:
                return False
            task = nursery.parent_task
        return True


def _parent_of(task: trio.lowlevel.Task) -> str:
    nursery = task.parent_nursery
    return "nobody" if nursery is None else nursery.parent_task.name


def _list_descriptors() -> set[str]:
    """The open file descriptors of this process, each with what it leads to."""
    found: set[str] = set()
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # the one that was opened to list them
                found.add(f"{name} -> {os.readlink(f'/proc/self/fd/{name}')}")
    return found
