"""`trio-overlay simulate sampling`: very many peers that sample their network, in virtual time."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trio_overlay.cli.arguments import at_least_one, positive, share
from trio_overlay.cli.reporting import (
    check_files,
    peak_memory,
    setting_of,
    throttled,
    write_report,
)
from trio_overlay.cli.terminal import count_progress
from trio_overlay.errors import UsageError
from trio_overlay.simulation.collector import no_collector
from trio_overlay.simulation.links import Links, parse_latency
from trio_overlay.simulation.sampling import SamplingPlan, SamplingWorld
from trio_overlay.simulation.sampling_plots import plot_sampling
from trio_overlay.simulation.sampling_reports import Estimates, Observer, SamplingReport, Snapshot

DESCRIPTION = """\
Simulate peers that sample their network (Spray): they join one by one, exchange, and then some of
them crash or leave. Real decisions, virtual time, no network. The same seed gives the same JSON,
byte for byte."""

EPILOG = """\
Latencies: constant:SECONDS, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA, geographic."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.set_defaults(run=run_sampling)
    add = parser.add_argument
    plan = SamplingPlan(1000)
    add("--nodes", type=at_least_one, default=1000, metavar="N", help="how many peers join")
    add("--seed", type=int, default=0, metavar="S", help="decides all chance")
    add("--crash", type=share, default=0.0, metavar="P", help="share that crashes at once")
    add("--leave", type=share, default=0.0, metavar="P", help="share that leaves in good order")
    add("--rounds", type=at_least_one, default=plan.rounds, help="before a failure, and after it")
    add("--interval", type=positive, default=plan.interval, metavar="S", help="seconds of a round")
    add("--rate", type=positive, default=plan.rate, metavar="R", help="arrivals a second, at most")
    add(
        "--growth",
        type=positive,
        default=plan.growth,
        metavar="R",
        help="arrivals a second for each peer there is, at most",
    )
    add("--a", type=float, default=1.0, help="views have a·ln(n)+b arcs")
    add("--b", type=float, default=0.0, help="views have a·ln(n)+b arcs")
    add("--latency", default="uniform:0.005:0.05", metavar="MODEL", help="seconds a frame takes")
    add("--handshake-failure", type=share, default=0.0, metavar="P", help="share that fails")
    add("--no-rejoin", action="store_true", help="who has no arc left does not join again")
    add(
        "--trials", type=at_least_one, default=10, metavar="N", help="of each loss, to see it break"
    )
    add("--json", type=Path, metavar="FILE", help="write the report there")
    add("--plot", type=Path, metavar="FILE", help="draw it there: .svg, .png or .pdf")


def run_sampling(arguments: argparse.Namespace, console: Console | None = None) -> int:
    """Simulate, and say what came of it; 0."""
    console = console or Console(highlight=False)
    check_files(arguments)
    started_at = time.perf_counter()
    a, b = arguments.a, arguments.b
    with no_collector(), count_progress(console, auto_refresh=False) as progress:
        world = make_world(arguments)
        observer = Observer(world, seed=arguments.seed, a=a, b=b, trials=arguments.trials)
        bar = progress.add_task("joined", total=arguments.nodes)
        world.run(
            observer.watch,
            throttled(lambda: progress.update(bar, completed=len(world.sprays), refresh=True)),
        )
        report = observer.report()
    seconds = time.perf_counter() - started_at
    console.print(tabulate(report, _title(arguments), seconds))
    if arguments.json is not None:
        write_report(arguments.json, report.to_json(setting_of(arguments)))
    if arguments.plot is not None:
        plot_sampling(report, _title(arguments), arguments.plot, a=a, b=b)
    return 0


def make_world(arguments: argparse.Namespace) -> SamplingWorld:
    """The world that *arguments* describe.

    UsageError: fewer than two peers, shares that leave fewer, a or b, or the latency, are none.
    """
    count: int = arguments.nodes
    survivors = count - round(arguments.crash * count)
    if count < 2 or survivors - round(arguments.leave * survivors) < 2:
        raise UsageError("a network has two peers or more, to the end")
    if not (1 <= arguments.a < float("inf") and 0 <= arguments.b < float("inf")):
        raise UsageError("a is a number from 1 up, and b from 0 up")
    plan = SamplingPlan(
        count,
        rate=arguments.rate,
        growth=arguments.growth,
        interval=arguments.interval,
        rounds=arguments.rounds,
        crash=arguments.crash,
        leave=arguments.leave,
        rejoins=not arguments.no_rejoin,
    )
    links = Links(
        parse_latency(arguments.latency, count + 1, arguments.seed),
        handshake_failure=arguments.handshake_failure,
    )
    return SamplingWorld(plan, links, seed=arguments.seed, a=arguments.a, b=arguments.b)


def tabulate(report: SamplingReport, title: str, seconds: float) -> Table:
    """The figures that people ask for; *seconds* is what it took."""
    moments = {"settled": report.settled}
    if report.after_failure is not None and report.healed is not None:
        moments |= {"right after": report.after_failure, "healed": report.healed}
    table = Table(title=title, title_justify="left")
    table.add_column(style="bold")
    for name in moments:
        table.add_column(name)
    snapshots = list(moments.values())
    for name, values in {
        "peers alive": [f"{one.alive:,}" for one in snapshots],
        "mean view": [
            f"{one.mean_view:.2f} (a·ln(n)+b: {one.expected_view:.2f})" for one in snapshots
        ],
        "views": [_describe_views(one) for one in snapshots],
        "clustering": [
            f"{one.sampled.clustering:.4f} (random {one.random.clustering:.4f})"
            for one in snapshots
        ],
        "variance of in-degrees": [
            f"{one.sampled.in_degree_variance:.2f} (random {one.random.in_degree_variance:.2f})"
            for one in snapshots
        ],
        "mean distance": [
            f"{one.sampled.mean_distance:.2f} (random {one.random.mean_distance:.2f})"
            for one in snapshots
        ],
        "largest part": [
            f"{one.sampled.largest:.2%} (random {one.random.largest:.2%})" for one in snapshots
        ],
        "isolated": [f"{one.isolated:,}" for one in snapshots],
        "estimates of the size": [_describe_estimates(one.estimates) for one in snapshots],
        "first breaks at a loss of": [_describe_breaking(report)],
        "exchanges": [f"{report.exchanges:,}"],
        "arcs opened": [f"{report.arcs:,}, {report.failed:,} failed"],
        "connections made": [f"{report.connections:,}"],
        "joined again": [f"{report.rejoined:,}"],
        "took": [f"{seconds:.1f} s, peak memory {peak_memory() / 2**20:,.0f} MiB"],
    }.items():
        table.add_row(name, *values)
    return table


def _title(arguments: argparse.Namespace) -> str:
    failure = "".join(
        f", {amount:.0%} {what}"
        for amount, what in ((arguments.crash, "crash"), (arguments.leave, "leave"))
        if amount
    )
    return (
        f"{arguments.nodes:,} peers, a = {arguments.a:g}, b = {arguments.b:g}{failure}, "
        f"seed {arguments.seed}"
    )


def _describe_views(snapshot: Snapshot) -> str:
    least = next(arcs for arcs, count in enumerate(snapshot.views) if count)
    return f"{least} to {len(snapshot.views) - 1} arcs"


def _describe_estimates(estimates: Estimates) -> str:
    return f"{estimates.median:,.0f}, 90 % from {estimates.low:,.0f} to {estimates.high:,.0f}"


def _describe_breaking(report: SamplingReport) -> str:
    here, there = _describe_loss(report.breaks_at), _describe_loss(report.random_breaks_at)
    return f"{here} (random {there}), {report.trials} trials each"


def _describe_loss(share: float | None) -> str:
    return "none" if share is None else f"{share:.0%}"
