"""What the parsers of all commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, NamedTuple


class Command(NamedTuple):
    """A command, before anything of it is imported."""

    name: str
    help: str
    """For the list of commands."""
    home: str
    """``module:function`` of this package: called with the command's parser, the function adds its
    arguments and sets its default ``run``, which takes the parsed ones and gives the exit code."""


def add_commands(
    parser: argparse.ArgumentParser, title: str, metavar: str, commands: Iterable[Command]
) -> None:
    """Have *parser* want one of *commands*; only the module of the one it gets is imported."""
    choices = parser.add_subparsers(
        title=title, metavar=metavar, required=True, parser_class=_LateParser
    )
    for command in commands:
        choices.add_parser(command.name, help=command.help, home=command.home)


class _LateParser(argparse.ArgumentParser):
    """A parser that asks for its arguments when it is used."""

    def __init__(self, *, home: str, **options: Any) -> None:
        super().__init__(**options)
        self._home = home

    def parse_known_args(  # type: ignore[override]  # typeshed has overloads for namespaces
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """What `argparse` calls on the parser of the command that was given, once."""
        module, _, function = self._home.partition(":")
        getattr(import_module(f"trio_overlay.cli.{module}"), function)(self)
        return super().parse_known_args(args, namespace)


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
