"""Several server processes on one port: their parent starts them, again when they die, ends them.

What the workers know of each other they know through Redis; the parent serves nobody. It keeps
the port by sockets that do not listen, so the system deals connections to the living workers only.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Final

import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.protocol.json import encode_json
from trio_overlay.signaling.config import ServerConfiguration
from trio_overlay.signaling.listening import address_of, format_address, reserve_port

READY: Final = "ready\n"
"""What a worker says on its stdout when it listens."""

MIN_RESTART_DELAY, MAX_RESTART_DELAY = 0.5, 30.0
STEADY_AFTER: Final = 60.0
"""Seconds after which a worker's death is no longer counted with those before."""

_COMMAND: Final = [sys.executable, "-m", "trio_overlay.cli.worker"]

logger = logging.getLogger(__name__)


async def serve_with_workers(configuration: ServerConfiguration) -> int:
    """Have workers serve as *configuration* says, until cancelled; says on stdout where, once.

    Cancelled, it has them end as on SIGTERM, and waits for that. When one of the first cannot
    start, none is left, and what it ended with is returned; it has said why on stderr.
    """
    reserved = await reserve_port(configuration.host, configuration.port)
    try:
        addresses = [address_of(each) for each in reserved]
        configuration = replace(configuration, port=addresses[0][1])
        failures: list[int] = []
        with trio.CancelScope() as scope:

            def give_up(code: int) -> None:
                failures.append(code if code > 0 else 1)
                scope.cancel()

            async with open_background_nursery() as nursery:
                async with trio.open_nursery() as starting:
                    for number in range(configuration.workers):
                        worker = _Worker(number, configuration, give_up)
                        starting.start_soon(nursery.start, worker.keep_running)
                urls = [f"ws://{format_address(*address)}" for address in addresses]
                sys.stdout.write(f"listening on {' '.join(urls)}\n")
                sys.stdout.flush()
                await trio.sleep_forever()
        return failures[0]
    finally:
        for each in reserved:
            each.close()


class _Worker:
    """One place in the row of workers, and whoever fills it now."""

    def __init__(
        self, number: int, configuration: ServerConfiguration, give_up: Callable[[int], None]
    ) -> None:
        self._number = number
        self._configuration = configuration
        self._give_up = give_up

    async def keep_running(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Started when the first process listens; then, whenever one dies, another is started."""
        was_ready = False

        def note_ready() -> None:
            nonlocal was_ready
            if not was_ready:
                was_ready = True
                task_status.started()

        failures = 0
        while True:
            began_at = trio.current_time()
            code = await self._run_once(note_ready)
            if not was_ready:
                self._give_up(code)
            if trio.current_time() - began_at >= STEADY_AFTER:
                failures = 0
            delay = min(MAX_RESTART_DELAY, MIN_RESTART_DELAY * 2 ** min(failures, 10))
            failures += 1
            logger.warning(
                "worker %d ended with %d; another starts in %.1f s", self._number, code, delay
            )
            await trio.sleep(delay)

    async def _run_once(self, note_ready: Callable[[], None]) -> int:
        """One process, from its start to its end; its exit code."""
        async with trio.open_nursery() as nursery:
            # Cancelled, this sends SIGTERM, and SIGKILL when that has no effect within 5 s.
            process: trio.Process = await nursery.start(
                partial(
                    trio.run_process,
                    [*_COMMAND, str(self._number)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    check=False,
                )
            )
            assert process.stdin is not None
            assert process.stdout is not None
            # Not in its arguments, which others could see: the secret is in it.
            text = encode_json(asdict(self._configuration))
            async with process.stdin, process.stdout:
                try:
                    await process.stdin.send_all(f"{text}\n".encode())
                    said = b""
                    while chunk := await process.stdout.receive_some():
                        said += chunk
                        if said == READY.encode():
                            note_ready()
                except trio.BrokenResourceError:
                    pass  # it has died
                # Its stdin stays open as long as we live, which is how it knows.
                await process.wait()
        assert process.returncode is not None
        return process.returncode
