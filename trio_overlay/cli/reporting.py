"""What the commands that simulate share: files, progress, and what the run itself took."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.table import Table

from trio_overlay.errors import UsageError
from trio_overlay.protocol.json import JSON
from trio_overlay.simulation.plots import require_plots

PROGRESS_INTERVAL = 0.1


def setting_of(arguments: argparse.Namespace) -> dict[str, JSON]:
    """What was simulated, for the JSON; not where it was written."""
    left_out = {"run", "json", "plot"}
    return {name: value for name, value in vars(arguments).items() if name not in left_out}


def check_files(arguments: argparse.Namespace) -> None:
    """Nothing, if what ``--json`` and ``--plot`` ask for can be had: known before a long run.

    UsageError: it cannot.
    """
    plot: Path | None = getattr(arguments, "plot", None)
    if plot is not None:
        require_plots(plot)
    for path in (arguments.json, plot):
        if path is not None:
            _check_writable(path)


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path} cannot be written: it is a directory")
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no directory {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{path} cannot be written: that is not allowed")


def write_report(path: Path, text: str) -> None:
    """Write *text* to *path*.

    UsageError: it cannot be written there.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from error


def list_figures(title: str, figures: Mapping[str, str]) -> Table:
    """The *figures* for a terminal, one a line, each with its name."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    for name, value in figures.items():
        table.add_row(name, value)
    return table


def peak_memory() -> int:
    """The most bytes that this process has had in memory; 0 where nobody says so."""
    if sys.platform == "win32":
        return 0
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def throttled(update: Callable[[], object]) -> Callable[[], None]:
    """Call *update* only so often; the buckets of an agenda are short."""
    due_at = 0.0

    def on_bucket() -> None:
        nonlocal due_at
        now = time.monotonic()
        if now >= due_at:
            due_at = now + PROGRESS_INTERVAL
            update()

    return on_bucket
