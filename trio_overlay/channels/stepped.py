"""Asyncio's own event loop, stepped by Trio tasks in the same thread.

The loop is given a selector that never waits. When there is nothing left to do, the selector notes
how long asyncio would have slept and stops the loop, so `run_forever` does all there is to do and
returns, and a Trio task does the sleeping: on the selector's file descriptor and until the next
timer. Nothing private to asyncio is used, except where Trio itself runs as asyncio's guest.
"""

from __future__ import annotations

import asyncio
import functools
import math
import selectors
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

_PASSES = 16
"""How many passes of asyncio's loop make a step, at most.

Under load there is always something ready; without a bound no Trio task would run again. At 16
the cost of leaving and entering the loop is lost in the noise.
"""

_DATAGRAM_SIZE = 64 * 1024
"""What asyncio's datagram transport allocates for each packet it reads.

No UDP packet is larger, and its own choice, 256 KiB, makes the C library give the memory back to
the system and fetch it again for every packet: bulk transfers are up to twice as fast so.
"""


def can_step() -> bool:
    """Whether this system has one file descriptor that tells of all sockets; Windows has none."""
    return hasattr(selectors.DefaultSelector, "fileno")


class _PollingSelector(selectors.BaseSelector):
    """A selector that looks and never waits; it stops the loop when there is nothing to do."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self.stop: Callable[[], None] = lambda: None
        self.entered: Callable[[], None] = lambda: None
        self.passes = 0
        self.idle = False  # the last step ended because nothing was ready
        self.timeout: float | None = None  # when idle: how long asyncio would have slept

    def begin(self) -> None:
        self.passes = 0
        self.idle = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.passes == 0:
            self.entered()
        ready = self._real.select(0)
        self.passes += 1
        if not ready and timeout != 0:
            self.idle = True
            self.timeout = timeout
            self.stop()
        elif self.passes >= _PASSES:
            self.stop()
        return ready

    def fileno(self) -> int:
        return self._real.fileno()  # type: ignore[attr-defined, no-any-return, unused-ignore]

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


@asynccontextmanager
async def open_stepped_loop() -> AsyncIterator[SteppedLoop]:
    """An asyncio loop that runs while the block does; what still runs in it then is cancelled.

    The steps go on, and the block must end, however often the caller is cancelled: whoever uses
    the loop needs it for cleaning up. A block that waits for long waits in a scope of its own.
    """
    with trio.CancelScope(shield=True):
        loop: SteppedLoop | None = None
        try:
            async with trio.open_nursery() as nursery:
                loop = SteppedLoop(nursery)
                nursery.start_soon(loop._step_when_ready)
                nursery.start_soon(loop._step_when_kicked)
                try:
                    yield loop
                finally:
                    await loop._end_tasks()
                    nursery.cancel_scope.cancel()
        finally:
            # Not before its steppers have ended: one that was kicked steps once more, cancelled
            # or not.
            if loop is not None:
                loop.close()


class SteppedLoop(asyncio.SelectorEventLoop):
    """Asyncio's loop with Trio's clock and Trio's threads; `open_stepped_loop` steps it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._polling = _PollingSelector()
        super().__init__(self._polling)
        self._polling.stop = self.stop
        self._polling.entered = self._enter
        self._nursery = nursery
        self._kicked = trio.lowlevel.ParkingLot()
        self._is_kicked = False
        self._is_stepping = False
        self._watch_scope: trio.CancelScope | None = None
        self._wake_at = -math.inf

    def kick(self) -> None:
        """Have the loop stepped soon; for those who gave it something to do from outside."""
        if not self._is_kicked and not self._is_stepping:
            self._is_kicked = True
            self._kicked.unpark()

    def time(self) -> float:
        return trio.current_time()

    async def create_datagram_endpoint(  # type: ignore[override]
        self, *args: Any, **kwargs: Any
    ) -> tuple[asyncio.DatagramTransport, asyncio.DatagramProtocol]:
        transport, protocol = await super().create_datagram_endpoint(*args, **kwargs)
        if hasattr(transport, "max_size"):
            transport.max_size = _DATAGRAM_SIZE
        return transport, protocol

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """As asyncio's, but in Trio's threads: there is no executor to wait for at the end."""
        if executor is not None:
            return super().run_in_executor(executor, func, *args)
        future = self.create_future()
        self._nursery.start_soon(self._run_in_thread, future, functools.partial(func, *args))
        return future

    # --- private ---

    def _enter(self) -> None:
        _tell_trio_asyncio(self)

    async def _run_in_thread(
        self, future: asyncio.Future[Any], function: Callable[[], Any]
    ) -> None:
        try:
            result = await trio.to_thread.run_sync(function, abandon_on_cancel=True)
        except Exception as exc:  # noqa: BLE001 - it belongs to whoever awaits the future
            if not future.done():
                future.set_exception(exc)
        else:
            if not future.done():
                future.set_result(result)
        self.kick()

    # Ctrl-C would otherwise strike in the middle of asyncio's loop, which is no user's code.
    @trio.lowlevel.enable_ki_protection
    def _step(self) -> bool:
        """Do all there is to do, within bounds; whether everything was done."""
        polling = self._polling
        polling.begin()
        self._is_stepping = True
        try:
            _run_inside_trio(self)
        finally:
            self._is_stepping = False
            _tell_trio_asyncio(None)
        if not polling.idle:
            return False
        timeout = polling.timeout
        self._wake_at = math.inf if timeout is None else trio.current_time() + timeout
        if self._watch_scope is not None and self._watch_scope.deadline != self._wake_at:
            self._watch_scope.deadline = self._wake_at
        return True

    async def _step_until_idle(self) -> None:
        while not self._step():
            await trio.lowlevel.checkpoint()

    async def _step_when_ready(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._wake_at) as self._watch_scope:
                await trio.lowlevel.wait_readable(self._polling.fileno())
            self._watch_scope = None
            await self._step_until_idle()

    async def _step_when_kicked(self) -> None:
        # A task of its own, because waking the other one takes a cancellation, which costs
        # three times as much as waking a task from a parking lot.
        while True:
            if not self._is_kicked:
                await self._kicked.park()
            self._is_kicked = False
            await self._step_until_idle()
            await trio.lowlevel.checkpoint()

    async def _end_tasks(self) -> None:
        """Cancel what still runs, as `asyncio.run` does, and see it end."""
        ended = trio.Event()

        async def end() -> None:
            while tasks := asyncio.all_tasks(self) - {asyncio.current_task(self)}:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                for task in tasks:
                    if not task.cancelled() and (exc := task.exception()) is not None:
                        self.call_exception_handler(
                            {
                                "message": "exception in a task that was told to end",
                                "exception": exc,
                                "task": task,
                            }
                        )
            await self.shutdown_asyncgens()

        self.create_task(end()).add_done_callback(lambda _: ended.set())
        self.kick()
        await ended.wait()


def _tell_trio_asyncio(loop: SteppedLoop | None) -> None:
    """Have *loop* be the running one for trio-asyncio too, if the program has imported that.

    Its import replaces `asyncio.get_running_loop` by a function that, in every Trio task, knows
    only what this variable says. It has to be set after `run_forever` has looked whether a loop is
    running already, hence in the selector.
    """
    trio_asyncio = sys.modules.get("trio_asyncio")
    if trio_asyncio is not None:
        trio_asyncio.current_loop.set(loop)


def _run_inside_trio(loop: SteppedLoop) -> None:
    """Run *loop* until it stops, whatever else in this thread calls itself asyncio's loop."""
    host = asyncio._get_running_loop()
    if host is None:
        loop.run_forever()
        return
    # Trio is a guest of asyncio's loop here (guest mode), and asyncio refuses to run one loop
    # inside another. It is safe to: the host waits for us as it waits for all of Trio. The two
    # names are private but exported for authors of loops.
    asyncio._set_running_loop(None)
    try:
        loop.run_forever()
    finally:
        asyncio._set_running_loop(host)
