"""How a command ends, and that it does when its stdout is full, or has lost its reader.

A command writes to stdout wherever it likes, in any task. What fails there is caught here, once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from trio_overlay.errors import OverlayError, UsageError


def run_command(run: Callable[[], int]) -> int:
    """The exit code of *run*, or the reason why there is none as a line on stderr.

    0 when it did what it should, or was asked to stop; 1 when it failed; 2 when it was asked for
    what cannot be. Of a reader of stdout that has gone there is no word.
    """
    try:
        with watched_output():
            return run()
    except OutputFailed as error:
        if not error.is_broken_pipe:
            sys.stderr.write(f"trio-overlay: {error}\n")
        return 1
    except OverlayError as error:
        sys.stderr.write(f"trio-overlay: {error}\n")
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return 130  # before or after the time in which a command listens to signals


class OutputFailed(Exception):
    """What was said on stdout is lost; the `__cause__` is an `OSError`."""

    @property
    def is_broken_pipe(self) -> bool:
        """Whether whoever read it has gone, as ``head`` does: it has had what it wanted."""
        return isinstance(self.__cause__, BrokenPipeError)


@contextmanager
def watched_output() -> Iterator[None]:
    """Around a command, to the end of which all that it says on stdout has been written.

    A stdout that was closed from the beginning takes everything, and drops it.

    OutputFailed: it could not be written. It is raised where the command writes, which may be in
    any task, and leaves as itself here, whatever group it comes in.
    """
    with contextlib.ExitStack() as stack:
        stream = sys.stdout
        if stream is None:
            stream = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        watched = _Watched(stream)
        stack.enter_context(contextlib.redirect_stdout(cast("TextIO", watched)))
        try:
            try:
                yield
            finally:
                watched.flush()
        except BaseException:
            if watched.failure is None:
                raise
            _lead_nowhere(stream)
            raise watched.failure from watched.failure.__cause__


class _Watched:
    """*stream*, but for what its `OSError` are."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OutputFailed | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._translating():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._translating():
            self._stream.flush()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = OutputFailed(f"stdout cannot be written: {error.strerror or error}")
            raise self.failure from error


def _lead_nowhere(stream: TextIO) -> None:
    """Have the interpreter not fail in the same way when it ends, and writes what is left."""
    with contextlib.suppress(OSError):  # a stream that stands in for stdout may have no number
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
