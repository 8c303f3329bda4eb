"""`trio-overlay simulate OVERLAY`: what becomes of very many nodes, in virtual time."""

from __future__ import annotations

import argparse

from trio_overlay.cli.arguments import Command, add_commands

OVERLAYS = (
    Command("tree", "the tree", "simulate_tree:add_arguments"),
    Command("sampling", "random peer sampling", "simulate_sampling:add_arguments"),
    Command("relay", "messages relayed to ids", "simulate_relay:add_arguments"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_commands(parser, "overlays", "OVERLAY", OVERLAYS)
