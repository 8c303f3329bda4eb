"""`trio-overlay simulate tree`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trio_overlay.cli import main


def simulate(*arguments: object) -> int:
    return main(["simulate", "tree", "--nodes", "50", *map(str, arguments)])


@pytest.mark.parametrize(
    "scenario", ["flash-crowd", "poisson", "diurnal", "massacre", "partition", "none"]
)
def test_every_scenario_prints_its_figures(
    scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate("--scenario", scenario, "--max-degree", 3) == 0
    said = capsys.readouterr().out
    for words in (
        "joined", "depth", "balance", "join time", "messages a join", "orphan time",
        "load of the root", "load of the server", "events", "events a second", "peak memory",
    ):  # fmt: skip
        assert words in said


def test_one_seed_writes_one_json_byte_for_byte(tmp_path: Path) -> None:
    options = ("--scenario", "massacre", "--placement", "random", "--no-rejoin")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert simulate(*options, "--seed", seed, "--json", tmp_path / name) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()
    found = json.loads((tmp_path / "a").read_text())
    assert found["setting"]["placement"] == "random"
    assert found["report"]["nodes"] == 51


def test_the_hash_of_strings_that_python_salts_decides_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trio_overlay", "simulate", "tree", "--nodes", "200"]
    for salt in ("1", "2"):
        subprocess.run(
            [*command, "--scenario", "diurnal", "--json", str(tmp_path / salt)],
            env={"PYTHONHASHSEED": salt},
            check=True,
            stdout=subprocess.DEVNULL,
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_plot_is_drawn_where_it_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert simulate("--plot", tmp_path / "tree.svg") == 0
    assert "<svg" in (tmp_path / "tree.svg").read_text()


def test_a_plot_without_matplotlib_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert simulate("--plot", tmp_path / "tree.svg") == 2
    said = capsys.readouterr()
    assert "trio-overlay[plot]" in said.err
    assert said.out == ""


@pytest.mark.parametrize("overlay", ["tree", "sampling", "relay"])
@pytest.mark.parametrize("path", ["no/such/folder.json", "."])
def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(
    overlay: str,
    path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A million nodes took their time, and then there was no report and no table."""
    monkeypatch.chdir(tmp_path)
    million = ["simulate", overlay, "--nodes", "1000000", "--json", path]
    assert main(million) == 2
    said = capsys.readouterr()
    assert f"{path} cannot be written: " in said.err
    assert said.out == ""


def test_a_plot_of_no_known_kind_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    assert simulate("--nodes", 10**6, "--plot", tmp_path / "tree.docx") == 2
    assert "no plot can be a .docx: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ("--latency", "moon"),
        ("--json", "/nowhere/at/all.json"),
        ("--plot", "/nowhere/at/all.svg"),
        ("--share", "2"),
        ("--rate", "0"),
        ("--bandwidth", "nan"),
        ("--scenario", "picnic"),
        ("--placement", "nowhere"),
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


def test_a_storm_that_a_real_root_would_not_take_is_pointed_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["simulate", "tree", "--nodes", "10100"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "more than the 10,000 of a real node" in said


def test_matplotlib_is_not_imported_unless_asked_for() -> None:
    code = "import sys, trio_overlay.cli; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
