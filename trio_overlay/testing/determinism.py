"""Trio runs that go the same way each time: seeded scheduling, a clock that jumps.

Two ways to have one: `run_virtual` runs a function to its end; `SteppedRun` lets code that does
not wait (a Hypothesis state machine, a prompt) have a run go on a little at a time.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import warnings
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from functools import partial, wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

import trio
from trio.testing import MockClock

from trio_overlay.testing.clock import JumpingClock

P = ParamSpec("P")
T = TypeVar("T")
WorldT = TypeVar("WorldT")

NOTHING_WILL_HAPPEN = "all tasks wait for each other, and no deadline will come"

_GARBAGE_THRESHOLD = 50_000
"""So many objects more are made than freed before Python looks for garbage: with its usual 700, a
sixth of a story's time went into that. It comes to some megabytes."""

_IDLE_TICKS = 1_000
"""So many passes of Trio's loop are made before we look whether it will ever end."""

_MAX_STILL_LOOKS = 500
"""So many times we look, in a few seconds, and it is still the same moment: time stands still."""


class NothingWillHappen(AssertionError):
    """Every task waits for another, and no deadline will come: a deadlock."""


class TimeStandsStill(AssertionError):
    """Some tasks are always ready, so that virtual time never passes: a livelock.

    Half a million passes of Trio's loop were made at one moment.
    """


@contextmanager
def rare_garbage_collection() -> Iterator[None]:
    """Let Python look for reference cycles less often in this block, unless that is so already."""
    former = gc.get_threshold()
    if 0 < former[0] < _GARBAGE_THRESHOLD:
        gc.set_threshold(_GARBAGE_THRESHOLD, *former[1:])
    try:
        yield
    finally:
        gc.set_threshold(*former)


@contextmanager
def deterministic_trio(seed: int = 0) -> Iterator[None]:
    """Runs begun in this block schedule their tasks in an order that *seed* decides.

    Trio shuffles the tasks that are ready at the same time, so that nobody relies on an order,
    and has a switch for tests that need the same one again. Its names are private; a test of
    ours fails when Trio changes them.

    What remains is the program's own affair: no iteration over sets, no ``random`` without a
    seed, no wall clock, no threads. Under the virtual network all of this package keeps to that.
    """
    scheduler = _scheduler()
    former = scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    state = scheduler._r.getstate()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = former
        scheduler._r.setstate(state)


def run_virtual(
    async_fn: Callable[..., Awaitable[T]],
    *args: object,
    seed: int = 0,
    instruments: tuple[trio.abc.Instrument, ...] = (),
) -> T:
    """`trio.run` with seeded scheduling and a virtual clock that jumps over all waiting.

    Time begins at 0. Call it from a test that is not async itself. It gives what *async_fn*
    returns and raises what it raises.

    NothingWillHappen: all tasks wait, and no time that passes can change it. The run was cancelled.
    TimeStandsStill: some task never waits, so that no time passes. The run was cancelled.
    """
    watch = _Watch()

    async def run() -> T:
        with watch.scope:
            return await async_fn(*args)
        raise watch.complaint or AssertionError("cancelled by nobody")

    with deterministic_trio(seed):
        try:
            return trio.run(
                run, clock=MockClock(autojump_threshold=0), instruments=(*instruments, watch)
            )
        except BaseException as error:
            if watch.complaint is not None and error is not watch.complaint:
                raise watch.complaint from error
            raise


def virtual_test(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """The async *test* as a plain one, for pytest or ``@given``: `run_virtual` runs it, seed 0.

    It needs no plugin and gets along with those of Trio and anyio, which leave plain tests alone.
    """

    @wraps(test)
    def run_test(*args: P.args, **kwargs: P.kwargs) -> None:
        run_virtual(partial(test, *args, **kwargs))

    return run_test


class SteppedRun(Generic[WorldT]):
    """A Trio run that goes on only while `call` is waiting, under seeded scheduling.

    *open_world* is entered by the run's main task when the run starts, and left by `close`:
    everything that lives between two calls is in there. A context manager itself: leaving it
    closes. All is done in the calling thread, so nothing but the calls makes time pass.

    It is a guest run (`trio.lowlevel.start_guest_run`) whose host is a loop of ten lines. With a
    clock that jumps Trio never needs the thread that guest runs otherwise wait for I/O in.
    """

    def __init__(
        self, open_world: Callable[[], AbstractAsyncContextManager[WorldT]], *, seed: int = 0
    ) -> None:
        self._open_world = open_world
        self._seed = seed
        self._due: deque[Callable[[], object]] = deque()
        self._surroundings = ExitStack()
        self._is_running = False
        self._clock = JumpingClock()
        self._outcome: Any = None  # an `outcome.Outcome`, once the run is over
        self._wake: trio.Event
        self._scope: trio.CancelScope
        self._command: Callable[[WorldT], Awaitable[object]] | None = None
        self._result: object = None
        self._error: Exception | None = None
        self._has_result = False

    def __enter__(self) -> SteppedRun[WorldT]:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Begin the run and enter the world. What the world's entry raises comes out here."""
        self._surroundings.enter_context(deterministic_trio(self._seed))
        self._surroundings.enter_context(rare_garbage_collection())
        self._is_running = True
        trio.lowlevel.start_guest_run(
            self._main,
            clock=self._clock,
            run_sync_soon_threadsafe=self._due.append,
            done_callback=self._end,
        )
        self._go_on()

    def call(self, command: Callable[[WorldT], Awaitable[T]]) -> T:
        """Let the run go on until *command*, given the world, has returned.

        It gives what *command* returns and raises what it raises. When the run itself ends
        instead, because a task of the world failed, that failure comes out here.

        NothingWillHappen: all tasks wait, and no time that passes can change it.
        TimeStandsStill: some task never waits, so that no time passes.
        """
        if self._outcome is not None:
            raise RuntimeError("this run is over")
        self._command = command
        self._wake.set()
        try:
            self._go_on()
        except (NothingWillHappen, TimeStandsStill):
            self._scope.cancel()
            self._go_on()
            raise
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # it is what the command returned

    def advance(self, seconds: float) -> None:
        """Let *seconds* of virtual time pass."""

        async def wait(_: WorldT) -> None:
            await trio.sleep(seconds)

        self.call(wait)

    def close(self) -> None:
        """Leave the world and end the run; what that raises comes out here. Idempotent."""
        if not self._is_running:
            return
        try:
            if self._outcome is None:
                self._command = None
                self._wake.set()
                self._go_on()
        finally:
            self._is_running = False
            if self._outcome is None:
                self._abandon()
            self._surroundings.close()

    def _abandon(self) -> None:
        """Give up a run that cannot be ended, some shielded task being ready, or waiting, for ever.

        The thread is free for other runs again. What is said of torn tasks means nothing.
        """
        former, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Trio guest run got abandoned", RuntimeWarning)
                self._due.clear()  # the only references to it
                gc.collect()
        finally:
            sys.unraisablehook = former

    async def _main(self) -> None:
        async with self._open_world() as world:
            while True:
                self._wake = trio.Event()
                self._has_result = self._clock.is_stopped = True
                await self._wake.wait()
                if self._command is None:
                    return
                self._result = self._error = None
                try:
                    with trio.CancelScope() as self._scope:
                        self._result = await self._command(world)
                except Exception as error:  # noqa: BLE001 - `call` raises it, at its caller's
                    self._error = error

    def _end(self, outcome: Any) -> None:
        self._outcome = outcome
        self._has_result = True

    def _go_on(self) -> None:
        self._has_result = self._clock.is_stopped = False
        ticks = 0
        stillness = _Stillness()
        while not self._has_result:
            self._due.popleft()()
            ticks += 1
            if ticks % _IDLE_TICKS == 0 and not self._has_result:
                if _nothing_will_happen() and not self._clock.has_appointments:
                    raise NothingWillHappen(NOTHING_WILL_HAPPEN)
                stillness.look(self._clock.current_time())
        if self._outcome is not None:
            self._outcome.unwrap()


class _Watch(trio.abc.Instrument):
    """Cancels `scope` when a run would never end: with a clock that jumps, Trio spins."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.complaint: NothingWillHappen | TimeStandsStill | None = None
        """Why the scope was cancelled."""
        self._ticks = 0
        self._stillness = _Stillness()

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - Trio gives it
        """A pass of Trio's loop."""
        self._ticks += 1
        if self._ticks % _IDLE_TICKS or self.complaint is not None:
            return
        try:
            if _nothing_will_happen():
                raise NothingWillHappen(NOTHING_WILL_HAPPEN)
            self._stillness.look(trio.current_time())
        except (NothingWillHappen, TimeStandsStill) as complaint:
            self.complaint = complaint
            self.scope.cancel()


class _Stillness:
    """Whether virtual time passes at all; somebody looks every `_IDLE_TICKS` passes of the loop."""

    def __init__(self) -> None:
        self._moment = -math.inf
        self._looks = 0
        self._steps = _CountSteps()

    def look(self, now: float) -> None:
        """It is *now*, and was something else lately.

        TimeStandsStill: it was not. The message names the tasks that run instead.
        """
        if now != self._moment:
            self._moment, self._looks = now, 0
        self._looks += 1
        if self._looks == _MAX_STILL_LOOKS - 1:  # to see, until the next look, who that is
            self._steps.counts.clear()
            trio.lowlevel.add_instrument(self._steps)
        elif self._looks == _MAX_STILL_LOOKS:
            trio.lowlevel.remove_instrument(self._steps)
            names = [name for name, _ in self._steps.counts.most_common(3)]
            raise TimeStandsStill(
                f"time stands still at {now:g} s; always ready: {'; '.join(names)}"
            )


class _CountSteps(trio.abc.Instrument):
    """How many steps each task makes, by its name and where it is."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Trio runs *task* now."""
        self.counts[f"{task.name} at {line_of(task)}"] += 1


def line_of(task: trio.lowlevel.Task) -> str:
    """The innermost line of *task*, which waits there, that is not Trio's own."""
    lines = [
        f"{Path(frame.f_code.co_filename).name}:{number}"
        for frame, number in task.iter_await_frames()
        if f"{os.sep}trio{os.sep}" not in frame.f_code.co_filename
    ]
    return lines[-1] if lines else "its beginning"


def _nothing_will_happen() -> bool:
    statistics = trio.lowlevel.current_statistics()
    return not (
        statistics.tasks_runnable
        or statistics.run_sync_soon_queue_size
        or statistics.seconds_to_next_deadline < float("inf")
    )


def _scheduler() -> Any:
    import trio._core._run

    return trio._core._run
