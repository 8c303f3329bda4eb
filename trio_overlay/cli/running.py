"""What commands that run until they are told to stop have in common."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from trio_overlay.channels.scopes import open_background_nursery

logger = logging.getLogger(__name__)


T = TypeVar("T")


def run_until_stopped(main: Callable[[], Awaitable[T]]) -> T | None:
    """Run *main* in Trio until it returns, or until SIGINT or SIGTERM cancels it; then None.

    What *main* raises leaves as itself.
    """
    return trio.run(_until_stopped, main)


def set_up_logging(level: str, process: str = "") -> None:
    """Log to stderr, from *level* (a name as in ``--log-level``) on.

    Where several processes log to one place, *process* names this one in each line.
    """
    who = f"{process} " if process else ""
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format=f"%(asctime)s %(levelname)s {who}%(name)s: %(message)s",
    )


async def _until_stopped(main: Callable[[], Awaitable[T]]) -> T | None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_background_nursery() as nursery:
            with trio.CancelScope() as scope:

                async def stop_on_signal() -> None:
                    async for number in signals:
                        logger.info("stopping: %s", signal.Signals(number).name)
                        scope.cancel()

                nursery.start_soon(stop_on_signal)
                return await main()
    return None
