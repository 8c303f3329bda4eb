"""How this package owns background tasks: nurseries out of which one exception leaves."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType

import trio


def open_background_nursery() -> AbstractAsyncContextManager[trio.Nursery]:
    """A nursery for tasks that serve the body and end with it.

    When the body ends, its background tasks are cancelled and waited for. What the body raises
    leaves as itself and not in an ExceptionGroup; so does what one background task raises, after
    the body was cancelled. Only several failing at once leave as a group.
    """
    return _BackgroundNursery()


class _BackgroundNursery(AbstractAsyncContextManager[trio.Nursery]):
    # Not by `asynccontextmanager`, which costs as much as the nursery: each channel has one.

    async def __aenter__(self) -> trio.Nursery:
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        return self._nursery

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        body_error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        self._nursery.cancel_scope.cancel()
        try:
            return await self._manager.__aexit__(kind, body_error, trace)
        except BaseExceptionGroup as group:
            # Only this part: the other, kept here, would keep this frame and be kept by it.
            failures = group.split(trio.Cancelled)[1]
            if failures is None:
                raise  # nothing but Cancelled: whoever cancelled us takes it out of the group
            if body_error is not None and failures.exceptions == (body_error,):
                return False
            if len(failures.exceptions) == 1 and body_error not in failures.exceptions:
                error = failures.exceptions[0]
                raise error from error.__cause__
            raise
