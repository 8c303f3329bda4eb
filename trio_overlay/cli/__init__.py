"""The command line: ``trio-overlay COMMAND``, or ``python -m trio_overlay COMMAND``.

What a command takes and does is in a module of this package, which is imported when the command
is given, and not before: so the server never loads WebRTC, and no command waits for another's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from trio_overlay.cli.arguments import Command, add_commands
from trio_overlay.cli.output import run_command
from trio_overlay.protocol.version import __version__

COMMANDS = (
    Command("server", "the server where peers meet", "server:add_arguments"),
    Command("root", "the root of a tree", "tree:add_root_arguments"),
    Command("node", "a node of a tree", "tree:add_node_arguments"),
    Command("status", "the tree as it is now", "status:add_arguments"),
    Command("peer", "a peer found by its id: a chat", "peer:add_arguments"),
    Command("relay", "a peer that relays messages to ids", "relay:add_arguments"),
    Command("demo", "see it work", "demo:add_arguments"),
    Command("simulate", "what becomes of very many nodes", "simulate:add_arguments"),
    Command("fuzz", "look for bugs under churn", "fuzz:add_arguments"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that *arguments* (by default this process's) name; as `run_command`."""

    def run() -> int:
        options = build_parser().parse_args(arguments)
        code: int = options.run(options)
        return code

    return run_command(run)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trio-overlay", description="WebRTC overlay networks on Trio."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    add_commands(parser, "commands", "COMMAND", COMMANDS)
    return parser
