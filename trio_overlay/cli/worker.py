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
from trio_overlay.cli.running import run_until_stopped, set_up_logging
from trio_overlay.cli.server import start_server
from trio_overlay.cli.workers import READY
from trio_overlay.errors import OverlayError, UsageError
from trio_overlay.signaling.config import ServerConfiguration


def main() -> int:
    """Run the worker whose number is this process's argument; the exit code, as of the command."""
    line = sys.stdin.buffer.readline()
    if not line:
        return 1
    configuration = ServerConfiguration(**json.loads(line))
    set_up_logging(configuration.log_level, f"worker {sys.argv[1]}")
    try:
        run_until_stopped(lambda: work(configuration))
    except OverlayError as error:
        sys.stderr.write(f"trio-overlay: {error}\n")
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


async def work(configuration: ServerConfiguration) -> None:
    """Serve until the parent is gone."""
    async with open_background_nursery() as nursery:
        await start_server(nursery, configuration, reuse_port=True)
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as parent:
            await parent.receive_some()


if __name__ == "__main__":
    sys.exit(main())
