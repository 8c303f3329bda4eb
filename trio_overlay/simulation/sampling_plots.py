"""Pictures of the report on peers that sample their network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from trio_overlay.simulation.plots import new_figure, save
from trio_overlay.simulation.sampling_reports import SamplingReport

_FOUND, _CHANCE = "#1f77b4", "#888888"


def plot_sampling(report: SamplingReport, title: str, path: Path, *, a: float, b: float) -> None:
    """Draw *report*, of views of a·ln(n)+b arcs, into *path*; its suffix says in which format.

    The same report gives the same SVG. UsageError: see `save`.
    """
    figure = new_figure(title, width=11, height=8)
    (views, degrees), (losses, estimates) = figure.subplots(2, 2)
    _draw_views(views, report, a, b)
    _draw_in_degrees(degrees, report)
    _draw_losses(losses, report)
    _draw_estimates(estimates, report)
    save(figure, path)


def _draw_views(axes: Any, report: SamplingReport, a: float, b: float) -> None:
    axes.set_title("Arcs of a peer, while the network grows, settles and shrinks")
    minutes = [one.moment / 60 for one in report.rounds]
    expected = [a * math.log(one.alive) + b for one in report.rounds]
    axes.plot(minutes, [one.mean_view for one in report.rounds], color=_FOUND, label="mean")
    label = "ln(n) of those alive" if (a, b) == (1, 0) else "a·ln(n)+b of those alive"
    axes.plot(minutes, expected, "--", color=_CHANCE, label=label)
    axes.set_xlabel("virtual minutes")
    axes.set_ylabel("arcs in the view")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")
    axes.grid(visible=True, alpha=0.3)


def _draw_in_degrees(axes: Any, report: SamplingReport) -> None:
    settled = report.settled
    axes.set_title(
        f"Arcs that lead to a peer; clustering {settled.sampled.clustering:.4f} "
        f"(random {settled.random.clustering:.4f})"
    )
    for shape, color, style, label in (
        (settled.sampled, _FOUND, "-o", "settled"),
        (settled.random, _CHANCE, "--", "random graph"),
    ):
        shares = [count / settled.alive for count in shape.in_degrees]
        axes.plot(range(len(shares)), shares, style, color=color, label=label, markersize=3)
    axes.set_xlabel("arcs")
    axes.set_ylabel("share of the peers")
    axes.legend(loc="upper right")
    axes.grid(visible=True, alpha=0.3)


def _draw_losses(axes: Any, report: SamplingReport) -> None:
    breaks_at = report.breaks_at
    where = f"first breaks at {breaks_at:.0%}" if breaks_at is not None else "never breaks"
    axes.set_title(f"Right after a loss, not healed yet: {where}")
    lost = [loss.share for loss in report.losses]
    axes.plot(
        lost, [loss.mean for loss in report.losses], "-o", color=_FOUND, label="mean", markersize=3
    )
    axes.plot(lost, [loss.least for loss in report.losses], ":", color=_FOUND, label="worst")
    chance = [loss.random_mean for loss in report.losses]
    axes.plot(lost, chance, "--", color=_CHANCE, label="random graph")
    axes.set_xlabel("share of the peers lost at once")
    axes.set_ylabel("survivors in the largest part")
    axes.set_ylim(0, 1.05)
    axes.legend(loc="lower left")
    axes.grid(visible=True, alpha=0.3)


def _draw_estimates(axes: Any, report: SamplingReport) -> None:
    axes.set_title("Estimates of the size")
    minutes = [one.moment / 60 for one in report.rounds]
    estimates = [one.estimates for one in report.rounds]
    axes.fill_between(
        minutes,
        [one.low for one in estimates],
        [one.high for one in estimates],
        color=_FOUND,
        alpha=0.2,
        linewidth=0,
        label="90 % of the peers",
    )
    axes.plot(minutes, [one.median for one in estimates], color=_FOUND, label="median")
    axes.plot(minutes, [one.alive for one in report.rounds], "--", color=_CHANCE, label="alive")
    axes.set_yscale("log")
    # What newcomers think is out of all proportion.
    axes.set_ylim(1, 20 * max(one.alive for one in report.rounds))
    axes.set_xlabel("virtual minutes")
    axes.set_ylabel("peers")
    axes.legend(loc="lower right")
    axes.grid(visible=True, alpha=0.3)
