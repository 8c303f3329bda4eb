"""One of several server processes, started by workers.py: ``python -m trio_overlay.cli.worker N``.

Its configuration comes as a line of JSON on stdin, which then stays open for as long as the parent
lives: a worker whose parent is gone ends.
"""

from __future__ import annotations

import json
import os
import sys

import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.cli.output import run_command
from trio_overlay.cli.running import run_until_stopped, set_up_logging
from trio_overlay.cli.server import start_server
from trio_overlay.cli.workers import READY
from trio_overlay.signaling.config import ServerConfiguration


def main() -> int:
    """Run the worker whose number is this process's argument; the exit code."""
    line = sys.stdin.buffer.readline()
    if not line:
        return 1
    configuration = ServerConfiguration(**json.loads(line))
    set_up_logging(configuration.log_level, f"worker {sys.argv[1]}")
    run_until_stopped(lambda: work(configuration))
    return 0


async def work(configuration: ServerConfiguration) -> None:
    """Serve until the parent is gone."""
    async with open_background_nursery() as nursery:
        await start_server(nursery, configuration, reuse_port=True)
        sys.stdout.write(READY)
        sys.stdout.flush()
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as parent:
            await parent.receive_some()


if __name__ == "__main__":
    sys.exit(run_command(main))
