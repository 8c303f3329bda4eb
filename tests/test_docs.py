"""What the pages in docs/ show is what happens.

Blocks are taken in order, in a folder of their own: a Python block whose first line is
``# name.py`` becomes that file, and in a console block what follows ``$`` is run. Its output must
be the one shown, but for seconds and for how many stories, steps and checkpoints there were; three
dots stand for anything.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COUNTED = re.compile(r"[\d,.]+( ?s\b| stories| steps| checkpoints)")
PROGRAMS = {
    "pytest": ["-m", "pytest", "-p", "no:cacheprovider"],
    "trio-overlay": ["-m", "trio_overlay"],
    "python": [],
}


def run(command: str, folder: Path) -> str:
    """What *command* prints, on stdout and then on stderr."""
    settings, words = {}, shlex.split(command)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        settings[name] = value
    clean = {name: value for name, value in os.environ.items() if name != "HYPOTHESIS_PROFILE"}
    # What pytest plugins are installed here is no part of a page, and they take half of the time.
    settings |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    result = subprocess.run(
        [sys.executable, *PROGRAMS[words[0]], *words[1:]],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        cwd=folder,
        env={**clean, **settings, "PYTHONIOENCODING": "utf-8", "COLUMNS": "80"},
        timeout=300,
    )
    return result.stdout + result.stderr


def is_as_shown(said: str, shown: str) -> bool:
    said, shown = (COUNTED.sub(r"#\1", text.strip()) for text in (said, shown))
    pattern = ".*".join(re.escape(part) for part in shown.split("..."))
    return re.fullmatch(pattern, said, re.DOTALL) is not None


def live_through(page: str, folder: Path) -> int:
    """Write and run all that *page* shows; how many commands."""
    count = 0
    for kind, content in BLOCK.findall(page):
        match kind:
            case "python":
                name = re.match(r"# (\w+\.py)\n", content)
                assert name is not None, f"a block that is no file:\n{content}"
                (folder / name[1]).write_text(content, encoding="utf-8")
            case "console":
                first, *parts = re.split(r"^\$ (.*)\n", content, flags=re.MULTILINE)
                assert first == ""
                for command, shown in zip(parts[::2], parts[1::2], strict=True):
                    said = run(command, folder)
                    assert is_as_shown(said, shown), f"$ {command}\n{said}"
                    count += 1
            case _:
                raise AssertionError(f"what is a block of {kind!r}?\n{content}")
    return count


def test_the_page_on_testing_is_what_happens(tmp_path: Path) -> None:
    page = (DOCS / "testing.md").read_text(encoding="utf-8")
    assert live_through(page, tmp_path) >= 8


@pytest.mark.webrtc
def test_the_page_on_neighbours_is_what_happens(tmp_path: Path) -> None:
    page = (DOCS / "neighbours.md").read_text(encoding="utf-8")
    assert live_through(page, tmp_path) == 1


@pytest.mark.webrtc
def test_the_page_on_sampling_is_what_happens(tmp_path: Path) -> None:
    page = (DOCS / "sampling.md").read_text(encoding="utf-8")
    assert live_through(page, tmp_path) == 1


@pytest.mark.webrtc
def test_the_page_on_relays_is_what_happens(tmp_path: Path) -> None:
    page = (DOCS / "relay.md").read_text(encoding="utf-8")
    assert live_through(page, tmp_path) == 2


def test_a_page_that_shows_something_else_is_found(tmp_path: Path) -> None:
    program = "```python\n# hello.py\nprint('hello 7 at 1.2 s')\n```\n"
    page = program + "```console\n$ python hello.py\n{}\n```\n"
    assert live_through(page.format("hello ... at 3.4 s"), tmp_path) == 1
    with pytest.raises(AssertionError, match="hello 7"):
        live_through(page.format("hello 8 at 1.2 s"), tmp_path)


def test_figures_of_the_page_on_sampling_are_those_of_the_command(tmp_path: Path) -> None:
    """Those of a hundred peers, which take seconds; the command and its seed are the same."""
    page = (DOCS / "sampling.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^    (trio-overlay .*)$", page, re.MULTILINE)
    command = command.partition(" --plot")[0].replace("10000", "100")
    run(command, tmp_path)
    report = json.loads((tmp_path / "100.json").read_text(encoding="utf-8"))["report"]
    settled = report["settled"]
    found, chance = settled["sampled"], settled["random"]
    assert (
        f"| 100 | {settled['mean_view']:.2f} | {settled['expected_view']:.2f} | "
        f"1 to {len(settled['views']) - 1} | "
        f"{found['clustering']:.4f} ({chance['clustering']:.4f}) | "
    ) in page
    for loss in report["losses"]:
        if loss["share"] in (0.3, 0.5, 0.7, 0.9):
            row = f"| {loss['share']:.0%} | {loss['mean']:.2%}, {loss['least']:.2%} |"
            assert row.replace("%", " %") in page
    here, there = report["breaks_at"], report["random_breaks_at"]
    assert f"{here:.0%} (random graph: {there:.0%}) with 100".replace("%", " %") in page
    assert (DOCS / "sampling-100.svg").exists()
