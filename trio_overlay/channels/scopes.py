"""How this package owns background tasks: nurseries out of which one exception leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_background_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery for tasks that serve the body and end with it.

    When the body ends, its background tasks are cancelled and waited for. What the body raises
    leaves as itself and not in an ExceptionGroup; so does what one background task raises, after
    the body was cancelled. Only several failing at once leave as a group.
    """
    body_error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as raised:
                body_error = raised
                raise
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        _, failures = group.split(trio.Cancelled)
        if failures is None:
            raise  # nothing but Cancelled: whoever cancelled us takes it out of the group
        if body_error is not None and failures.exceptions == (body_error,):
            raise body_error from body_error.__cause__
        if len(failures.exceptions) == 1 and body_error not in failures.exceptions:
            error = failures.exceptions[0]
            raise error from error.__cause__
        raise
