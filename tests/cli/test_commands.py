"""The list of commands: all are there, each explains itself, and none loads what others need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trio_overlay.cli import COMMANDS, main
from trio_overlay.cli.arguments import Command
from trio_overlay.cli.simulate import OVERLAYS

GIVEN = [(command.name,) for command in COMMANDS] + [("simulate", o.name) for o in OVERLAYS]

WEBRTC = {"aiortc", "aioice", "av", "trio_asyncio"}
LABORATORY = {"hypothesis", "pytest", "trio.testing", "trio_overlay.testing"}
SIMULATION = {"matplotlib", "trio_overlay.simulation"}
TERMINAL = {"rich"}


@pytest.mark.parametrize("given", GIVEN, ids=" ".join)
def test_every_command_explains_itself(
    given: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*given, "--help") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: trio-overlay {' '.join(given)} ")
    assert "options:" in said


@pytest.mark.parametrize(
    ("given", "listed"), [((), COMMANDS), (("simulate",), OVERLAYS)], ids=["all", "simulate"]
)
def test_a_list_names_every_command_with_what_it_is_for(
    given: tuple[str, ...], listed: tuple[Command, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*given, "--help") == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    for command in listed:
        assert [command.name, command.help] in lines


@pytest.mark.parametrize("given", [(), ("simulate",), ("serve",), ("server", "--prot", "1")])
def test_what_is_no_command_is_refused_with_the_usage(
    given: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*given) == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: trio-overlay")
    assert "error:" in said


@pytest.mark.parametrize(
    ("given", "unwanted"),
    [
        ("--help", WEBRTC | LABORATORY | SIMULATION | TERMINAL),
        ("server --help", WEBRTC | LABORATORY | SIMULATION | TERMINAL),
        ("node --help", WEBRTC | LABORATORY | SIMULATION),
        ("status --help", WEBRTC | LABORATORY | SIMULATION),
        ("simulate tree --nodes 3", WEBRTC | LABORATORY | {"matplotlib"}),
    ],
)
def test_a_command_imports_nothing_of_the_others(given: str, unwanted: set[str]) -> None:
    assert imported_by(*given.split()) & unwanted == set()


def test_the_check_sees_what_a_command_imports() -> None:
    assert imported_by("fuzz", "--help") & LABORATORY >= {"trio.testing", "trio_overlay.testing"}


def exit_code(*arguments: str) -> object:
    """What `argparse` ends the program with."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


def imported_by(*arguments: str) -> set[str]:
    """The modules that a fresh interpreter has after the command that *arguments* give."""
    program = (
        "import contextlib, sys\n"
        "from trio_overlay.cli import main\n"
        "with contextlib.suppress(SystemExit): main(sys.argv[1:])\n"
        "print('|', *sys.modules)"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("|")[2].split())
