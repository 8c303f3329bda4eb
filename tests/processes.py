"""Processes that tests start."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio


@asynccontextmanager
async def open_process(command: Sequence[str], **options: Any) -> AsyncIterator[trio.Process]:
    """As `trio.lowlevel.open_process`. At the end it is killed if it lives, and its pipes closed.

    Trio leaves that to the garbage collector, which may do it while another test counts files.
    """
    process = await trio.lowlevel.open_process(command, **options)
    async with AsyncExitStack() as pipes:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                await pipes.enter_async_context(pipe)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
