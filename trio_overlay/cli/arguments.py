"""What the parsers of all commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `add_commands` of each family of commands adds its parsers to."""


def at_least_one(text: str) -> int:
    """A whole number from 1 up."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 up, not {text!r}")
    return number


def positive(text: str) -> float:
    """A number above 0, and not infinite."""
    return _number(text, lambda number: 0 < number < float("inf"), "a number above 0")


def share(text: str) -> float:
    """A number from 0 to 1."""
    return _number(text, lambda number: 0 <= number <= 1, "a number from 0 to 1")


def _number(text: str, is_good: Callable[[float], bool], claim: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not is_good(number):
        raise argparse.ArgumentTypeError(f"{claim}, not {text!r}")
    return number
