"""Pictures of the report on a tree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trio_overlay.simulation.plots import new_figure, save
from trio_overlay.simulation.reports import Depths, Distribution, Load, TreeReport

_FOUND, _PERFECT = "#1f77b4", "#b0b0b0"


def plot_report(report: TreeReport, title: str, path: Path) -> None:
    """Draw *report* into *path*; its suffix (.svg, .png, .pdf) says in which format.

    The same report gives the same SVG. UsageError: matplotlib is not installed, or does not know
    the format.
    """
    figure = new_figure(title)
    depths, joins, loads = figure.subplots(3, 1)
    _draw_depths(depths, report.depths)
    _draw_join_times(joins, report.join_time)
    _draw_loads(loads, report.server, report.root)
    save(figure, path)


def _draw_depths(axes: Any, depths: Depths) -> None:
    axes.set_title(
        f"Depth: {depths.balance:.1%} at or above depth {depths.perfect_height}, "
        "that of a perfect tree"
    )
    for offset, counts, color, label in (
        (-0.2, depths.nodes, _FOUND, "this tree"),
        (0.2, depths.perfect, _PERFECT, "filled perfectly"),
    ):
        places = [depth + offset for depth in range(len(counts))]
        bars = axes.bar(places, counts, 0.4, color=color, label=label)
        axes.bar_label(bars, labels=[f"{count:,}" for count in counts], fontsize=7)
    axes.set_xlabel("depth (the root's is 0)")
    axes.set_ylabel("nodes")
    axes.set_xticks(range(max(len(depths.nodes), len(depths.perfect))))
    axes.margins(y=0.12)
    axes.legend(loc="upper left")


def _draw_join_times(axes: Any, times: Distribution) -> None:
    axes.set_title("Join time")
    axes.plot(times.quantiles, range(101), color=_FOUND)
    axes.set_xlabel("seconds from the arrival to the first parent")
    axes.set_ylabel("% of those who joined")
    axes.set_ylim(0, 100)
    axes.set_xlim(left=0)
    for share in (50, 99):
        seconds = times.quantiles[share]
        axes.annotate(
            f"{share} %: {seconds:.2f} s",
            (seconds, share),
            xytext=(8, -12),
            textcoords="offset points",
        )
        axes.plot([seconds], [share], "o", color=_FOUND)
    axes.grid(visible=True, alpha=0.3)


def _draw_loads(axes: Any, server: Load, root: Load) -> None:
    axes.set_title("Load: messages in the busiest second")
    for load, label in ((server, "bootstrap server"), (root, "root: requests")):
        axes.plot(*_steps(load), drawstyle="steps-post", label=label)
    axes.set_xlabel("virtual seconds")
    axes.set_ylabel("messages a second")
    axes.set_ylim(bottom=0)
    axes.legend(loc="best")
    axes.grid(visible=True, alpha=0.3)


def _steps(load: Load) -> tuple[Sequence[int], Sequence[int]]:
    # To the end of the last bin, and down to nothing there: a run of one second is a box.
    ends = [index * load.bin_seconds for index in range(len(load.series) + 1)]
    return ends, [*load.series, 0]
