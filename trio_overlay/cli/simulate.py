"""`trio-overlay simulate OVERLAY`: what becomes of very many nodes, in virtual time.

Each overlay is a module with a function `add_overlay`, which adds its parser and sets its default
``run``.
"""

from __future__ import annotations

from trio_overlay.cli import simulate_relay, simulate_sampling, simulate_tree
from trio_overlay.cli.arguments import Commands

OVERLAYS = (simulate_tree, simulate_sampling, simulate_relay)


def add_commands(commands: Commands) -> None:
    parser = commands.add_parser("simulate", help="what becomes of very many nodes")
    overlays = parser.add_subparsers(title="overlays", metavar="OVERLAY", required=True)
    for overlay in OVERLAYS:
        overlay.add_overlay(overlays)
