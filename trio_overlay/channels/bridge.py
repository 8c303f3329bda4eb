"""The one way to asyncio: a loop in Trio's thread, and how to call into it and back.

Everything that uses asyncio goes through a `Bridge`. A callback of asyncio runs in Trio's thread
too, in a Trio task, so the way back needs no bridge: it may set Trio's events and wake Trio's tasks
directly, as long as it does not wait.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import logging
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, NoReturn, TypeAlias, TypeVar, get_args

import trio

from trio_overlay.channels.stepped import SteppedLoop, can_step, open_stepped_loop
from trio_overlay.errors import ConfigurationError, OverlayError

BridgeChoice: TypeAlias = Literal["auto", "trio-asyncio", "stepped"]
"""``"auto"`` is the program's own trio-asyncio loop where one is open, else the stepped loop,
which measures better: half the CPU for a connection, twice the throughput. On Windows, where the
loop cannot be stepped yet, it is a trio-asyncio loop of ours."""

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class CancelledInAsyncio(OverlayError):
    """Asyncio code was cancelled though nobody on Trio's side had asked for it.

    Never leaves this package: who uses a bridge says in its own words what failed.
    """


@asynccontextmanager
async def open_bridge(choice: BridgeChoice = "auto") -> AsyncIterator[Bridge]:
    """A way into an asyncio loop.

    All who ask for the same kind of bridge within one `trio.run` share one loop. The first
    opens it; when the last leaves, its tasks are cancelled and it is closed before the block
    ends. A trio-asyncio loop that the program itself has open around the caller is used as it
    is, and stays.

    ConfigurationError: there is no such bridge, or not here: trio-asyncio cannot be imported, or
    the system is Windows and the bridge stepped.
    """
    if choice not in get_args(BridgeChoice):
        raise ConfigurationError(
            f"bridge is one of {', '.join(get_args(BridgeChoice))}, not {choice!r}"
        )
    surrounding = None if choice == "stepped" else _surrounding_loop()
    if surrounding is not None:
        _be_patient_with_strangers(surrounding)
        yield _bridge_to_trio_asyncio(surrounding)
        return
    kind = choice
    if choice == "auto":
        kind = "stepped" if can_step() else "trio-asyncio"
    elif choice == "stepped" and not can_step():
        raise ConfigurationError(
            'the bridge "stepped" does not run on this system; "trio-asyncio" does'
        )
    opener = _open_trio_asyncio() if kind == "trio-asyncio" else _open_stepped
    loops = _loops_of_this_run()
    shared = loops.get(kind)
    if shared is None:
        shared = loops[kind] = _SharedLoop()
        # A system task, since the loop lives as long as its last user, and the first to come may
        # be the first to go. It cannot outlive us: the last user waits for its end.
        trio.lowlevel.spawn_system_task(shared.serve, opener, name=f"asyncio loop ({kind})")
    shared.users += 1
    try:
        await shared.is_open.wait()
        assert shared.bridge is not None
        yield shared.bridge
    finally:
        shared.users -= 1
        if shared.users == 0:
            del loops[kind]
            shared.is_unused.set()
            with trio.CancelScope(shield=True):
                await shared.is_closed.wait()


class Bridge:
    """Calls from Trio into one asyncio loop. Any Trio task of the thread may use it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        kick: Callable[[], None],
        tell_loop: Callable[[], object] = lambda: None,
    ) -> None:
        self.loop = loop
        self._kick = kick
        self._tell_loop = tell_loop

    def post(self, function: Callable[..., object], *args: object) -> None:
        """Have *function* called in the loop, soon, in the order of the posts."""
        self.loop.call_soon(function, *args, context=self._context())
        self._kick()

    def begin(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> asyncio.Task[T]:
        """A task of the loop for the asyncio coroutine function; the caller looks after it."""
        task = self.loop.create_task(function(*args), context=self._context())
        self._kick()
        return task

    async def run(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """What the asyncio coroutine function returns or raises.

        Cancelled, the coroutine is cancelled, and waited for however long it takes to end; if
        it returns or fails nonetheless, so does this call.

        CancelledInAsyncio: it ended cancelled, and not by us.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        waiting = trio.lowlevel.current_task()
        raise_cancel: Callable[[], NoReturn] | None = None
        task = self.begin(function, *args)
        task.add_done_callback(lambda _: trio.lowlevel.reschedule(waiting))

        def abort(raise_it: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
            nonlocal raise_cancel
            raise_cancel = raise_it
            task.cancel()
            self._kick()
            return trio.lowlevel.Abort.FAILED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if not task.cancelled():
            return task.result()
        if raise_cancel is not None:
            raise_cancel()
        raise CancelledInAsyncio(f"{function.__qualname__} was cancelled in asyncio")

    def _context(self) -> contextvars.Context:
        """The caller's, in which the loop is known; all that is begun there inherits it."""
        context = contextvars.copy_context()
        context.run(self._tell_loop)
        return context


# --- the loops ------------------------------------------------------------------------------


class _SharedLoop:
    """One loop and how many use it."""

    def __init__(self) -> None:
        self.users = 0
        self.bridge: Bridge | None = None
        self.is_open = trio.Event()
        self.is_unused = trio.Event()
        self.is_closed = trio.Event()

    async def serve(self, opener: Callable[[], AbstractAsyncContextManager[Bridge]]) -> None:
        # Shielded, because the users need the loop to clean up, even when Trio is ending the run.
        try:
            with trio.CancelScope(shield=True):
                async with opener() as self.bridge:
                    _be_patient_with_strangers(self.bridge.loop)
                    self.is_open.set()
                    await self.is_unused.wait()
        finally:
            self.is_closed.set()  # also when the loop crashed: the last user waits, shielded


_loops: trio.lowlevel.RunVar[dict[str, _SharedLoop]] = trio.lowlevel.RunVar("trio_overlay loops")


def _loops_of_this_run() -> dict[str, _SharedLoop]:
    try:
        return _loops.get()
    except LookupError:
        loops: dict[str, _SharedLoop] = {}
        _loops.set(loops)
        return loops


@asynccontextmanager
async def _open_stepped() -> AsyncIterator[Bridge]:
    async with open_stepped_loop() as loop:
        yield Bridge(loop, loop.kick)


def _open_trio_asyncio() -> Callable[[], AbstractAsyncContextManager[Bridge]]:
    # Imported only here: the import changes the event loop policy of the whole program, and
    # fails on CPython 3.14 and newer (trio-asyncio's issue 160).
    try:
        trio_asyncio = importlib.import_module("trio_asyncio")
    except Exception as exc:
        raise ConfigurationError(
            f'the bridge "trio-asyncio" needs trio-asyncio, which cannot be imported ({exc}); '
            'the bridge "stepped" does without'
        ) from exc

    @asynccontextmanager
    async def opener() -> AsyncIterator[Bridge]:
        async with trio_asyncio.open_loop() as loop:
            yield _bridge_to_trio_asyncio(loop)

    return opener


def _surrounding_loop() -> asyncio.AbstractEventLoop | None:
    """The trio-asyncio loop that the program has open around the caller, if any."""
    trio_asyncio = sys.modules.get("trio_asyncio")
    if trio_asyncio is None:
        return None
    loop: asyncio.AbstractEventLoop | None = trio_asyncio.current_loop.get()
    return None if loop is None or isinstance(loop, SteppedLoop) or loop.is_closed() else loop


def _bridge_to_trio_asyncio(loop: asyncio.AbstractEventLoop) -> Bridge:
    """A bridge to a loop that sees by itself that it was given something to do.

    trio-asyncio calls who reads a socket in a Trio task that has the context in which that was
    begun, and there asyncio's running loop is what a variable says. Unless it is set where we
    begin something, a reader can start no task: aioice does, to check where a check came from.
    """
    current_loop = sys.modules["trio_asyncio"].current_loop
    return Bridge(loop, lambda: None, lambda: current_loop.set(loop))


# --- what nobody awaits ---------------------------------------------------------------------


def _be_patient_with_strangers(loop: asyncio.AbstractEventLoop) -> None:
    """Log the failures of aiortc's own background tasks in *loop*, rather than end the program.

    What a stranger sends can make such a task fail (a data channel opened twice does). Nobody
    awaits them, so the failure comes to the loop's exception handler, and trio-asyncio's
    raises it in the program's nursery. All else goes where it would have gone.
    """
    former = loop.get_exception_handler()
    if isinstance(former, _StrangersHandler):
        return
    loop.set_exception_handler(_StrangersHandler(former))


class _StrangersHandler:
    def __init__(
        self, former: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None
    ) -> None:
        self.former = former

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        exc = context.get("exception")
        if isinstance(exc, ConnectionError) and _is_from_aiortc(exc):
            _logger.debug("aiortc had more to send when a connection was closed: %r", exc)
        elif isinstance(exc, Exception) and _is_from_aiortc(exc):
            _logger.warning("a background task of aiortc failed: %r", exc, exc_info=exc)
        elif self.former is not None:
            self.former(loop, context)
        else:
            loop.default_exception_handler(context)


def _is_from_aiortc(exc: BaseException) -> bool:
    traceback = exc.__traceback__
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        if module.partition(".")[0] in ("aiortc", "aioice"):
            return True
        traceback = traceback.tb_next
    return False
