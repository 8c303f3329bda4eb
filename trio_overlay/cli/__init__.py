"""The command line: ``trio-overlay COMMAND``, or ``python -m trio_overlay COMMAND``.

Each family of commands is a module of this package with a function `add_commands`, which adds its
parsers and sets their default ``run``: called with the parsed arguments, it gives the exit code.
A module imports what its commands need when they run, so that the server never loads WebRTC.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from trio_overlay import __version__
from trio_overlay.cli import demo, fuzz, peer, relay, server, simulate, tree
from trio_overlay.errors import OverlayError, UsageError

FAMILIES = (server, tree, peer, relay, demo, simulate, fuzz)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that *arguments* (by default this process's) name; the exit code.

    0 when it did what it should, or was asked to stop; 1 when it failed; 2 when it was asked for
    what cannot be. The reason is one line on stderr.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
    except OverlayError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return 130  # before or after the time in which a command listens to signals
    return code


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trio-overlay", description="WebRTC overlay networks on Trio."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for family in FAMILIES:
        family.add_commands(commands)
    return parser
