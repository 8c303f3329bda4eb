"""`trio-overlay simulate sampling`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trio_overlay.cli import main


def simulate(*arguments: object) -> int:
    return main(["simulate", "sampling", "--nodes", "30", "--rounds", "3", *map(str, arguments)])


def test_figures_are_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert simulate("--crash", "0.5") == 0
    said = capsys.readouterr().out
    for words in (
        "30 peers, a = 1, b = 0, 50% crash, seed 0", "settled", "right after", "healed",
        "mean view", "clustering", "in-degrees", "largest part", "estimates of the size",
        "first breaks at a loss of", "random", "joined again", "peak memory",
    ):  # fmt: skip
        assert words in said


def test_without_a_failure_there_is_nothing_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate() == 0
    said = capsys.readouterr().out
    assert "settled" in said
    assert "healed" not in said


def test_one_seed_writes_one_json_byte_for_byte_whatever_the_salt(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trio_overlay", "simulate", "sampling", "--nodes", "30"]
    for salt in ("1", "2"):
        subprocess.run(
            [*command, "--rounds", "3", "--leave", "0.5", "--json", str(tmp_path / salt)],
            env={"PYTHONHASHSEED": salt},
            check=True,
            stdout=subprocess.DEVNULL,
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    found = json.loads((tmp_path / "1").read_text())
    assert found["setting"]["leave"] == 0.5
    assert found["report"]["settled"]["alive"] == 30
    assert "breaks_at" in found["report"]


def test_a_plot_is_drawn_where_it_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, failure in (("one.svg", ()), ("other.svg", ("--crash", "0.5"))):
        assert simulate("--plot", tmp_path / name, *failure) == 0
        assert "<svg" in (tmp_path / name).read_text()


@pytest.mark.parametrize(
    "options",
    [
        ("--nodes", "1"),
        ("--crash", "1"),
        ("--crash", "2"),
        ("--leave", "0.99"),
        ("--a", "0.5"),
        ("--a", "nan"),
        ("--b", "-1"),
        ("--latency", "moon"),
        ("--json", "/nowhere/at/all.json"),
    ],
)
def test_what_cannot_be_ends_with_2_and_a_reason(
    options: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = simulate(*options)
    except SystemExit as error:  # argparse leaves this way
        code = int(error.code or 0)
    assert code == 2
    assert capsys.readouterr().err
