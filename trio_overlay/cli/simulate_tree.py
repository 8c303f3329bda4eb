"""`trio-overlay simulate tree`: a tree of very many nodes, in virtual time, and what came of it."""

from __future__ import annotations

import argparse
import gc
import random
import time
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trio_overlay.cli.arguments import at_least_one, positive, share
from trio_overlay.cli.reporting import (
    check_files,
    list_figures,
    peak_memory,
    setting_of,
    throttled,
    write_report,
)
from trio_overlay.cli.terminal import count_progress
from trio_overlay.protocol.branch import MAX_REQUESTS
from trio_overlay.simulation.collector import no_collector
from trio_overlay.simulation.filling import FillingTreeWorld
from trio_overlay.simulation.links import Links, parse_latency
from trio_overlay.simulation.placements import PLACEMENTS
from trio_overlay.simulation.reports import Distribution, Load, TreeReport, report_on
from trio_overlay.simulation.scenarios import SCENARIOS, Dials
from trio_overlay.simulation.tree_plots import plot_report
from trio_overlay.simulation.world import TreeWorld

DESCRIPTION = """\
Simulate a tree: real decisions, virtual time, no network. The same seed gives the same JSON, byte
for byte."""

EPILOG = """\
Scenarios: none, one after another; flash-crowd, all at the same moment; poisson, at random moments;
diurnal, a day with its sessions; massacre, half crash at 120 s; partition, half are cut off from
120 s to 240 s. Latencies: constant:SECONDS, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA, geographic.
"""

EXACT = "exact"
MAX_TAKEN_APART = 50_000
"""Nodes of a world that is freed in good order when it is over."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.set_defaults(run=run_tree)
    add = parser.add_argument
    dials = Dials()
    add("--nodes", type=at_least_one, default=1000, metavar="N", help="how many join the root")
    add("--scenario", choices=SCENARIOS, default="flash-crowd", help="who comes, goes and fails")
    add("--seed", type=int, default=0, metavar="S", help="decides all chance")
    add("--max-degree", type=at_least_one, default=10, metavar="D", help="children of a node")
    add(
        "--placement",
        choices=(EXACT, *PLACEMENTS),
        default="hash",
        help="where full nodes pass requests; exact is what real nodes do by default",
    )
    add("--no-pull", action="store_true", help="exact: the root pulls no leaves up")
    add("--latency", default="uniform:0.005:0.05", metavar="MODEL", help="seconds a frame takes")
    add("--bandwidth", type=positive, metavar="B", help="bytes a second of a node's uplink")
    add("--server-bandwidth", type=positive, metavar="B", help="bytes a second of the server's")
    add("--handshake-failure", type=share, default=0.0, metavar="P", help="share that fails")
    add("--request-timeout", type=positive, default=30.0, metavar="S", help="seconds of a join")
    add("--attempts", type=at_least_one, default=1, metavar="N", help="how often a node tries")
    add("--no-rejoin", action="store_true", help="orphans stay orphans")
    add("--limits", action="store_true", help="nodes keep as few requests as real ones")
    add("--interval", type=positive, default=dials.interval, metavar="S", help="none: seconds")
    add("--rate", type=positive, default=dials.rate, metavar="R", help="poisson: joins a second")
    add("--session", type=positive, default=dials.session, metavar="S", help="diurnal: mean length")
    add("--share", type=share, default=dials.share, metavar="P", help="massacre, partition: of all")
    add("--cut", type=positive, default=dials.cut_duration, metavar="S", help="partition: seconds")
    add("--json", type=Path, metavar="FILE", help="write the report there")
    add("--plot", type=Path, metavar="FILE", help="draw it there: .svg, .png or .pdf")


def run_tree(arguments: argparse.Namespace, console: Console | None = None) -> int:
    """Simulate, and say what came of it; 0."""
    console = console or Console(highlight=False)
    check_files(arguments)
    started_at = time.perf_counter()
    with no_collector(), count_progress(console, auto_refresh=False) as progress:
        world = make_world(arguments)
        bar = progress.add_task("joined", total=arguments.nodes)
        world.run(
            throttled(lambda: progress.update(bar, completed=world.count_connected, refresh=True))
        )
        report = report_on(world)
        if world.count_nodes > MAX_TAKEN_APART:
            # The process ends soon, and without this it would first go through a world of ten
            # million objects, and then take it apart, one by one, for several seconds.
            gc.freeze()
    seconds = time.perf_counter() - started_at
    console.print(tabulate(report, _title(arguments), seconds))
    if arguments.json is not None:
        write_report(arguments.json, report.to_json(setting_of(arguments)))
    if arguments.plot is not None:
        plot_report(report, _title(arguments), arguments.plot)
    return 0


def make_world(arguments: argparse.Namespace) -> TreeWorld:
    """The world that *arguments* describe.

    UsageError: the latency is none.
    """
    seed: int = arguments.seed
    count: int = arguments.nodes
    dials = Dials(
        interval=arguments.interval,
        rate=arguments.rate,
        session=arguments.session,
        share=arguments.share,
        cut_duration=arguments.cut,
    )
    links = Links(
        parse_latency(arguments.latency, count + 1, seed),
        bandwidth=arguments.bandwidth,
        server_bandwidth=arguments.server_bandwidth,
        handshake_failure=arguments.handshake_failure,
    )
    make = (
        partial(FillingTreeWorld, pulls=not arguments.no_pull)
        if arguments.placement == EXACT
        else partial(
            TreeWorld,
            place_rule=PLACEMENTS[arguments.placement](random.Random(f"{seed}/places")),
        )
    )
    return make(
        SCENARIOS[arguments.scenario](count, random.Random(f"{seed}/plan"), dials),
        links,
        seed=seed,
        max_degree=arguments.max_degree,
        request_timeout=arguments.request_timeout,
        attempts=arguments.attempts,
        rejoins=not arguments.no_rejoin,
        has_limits=arguments.limits,
    )


def tabulate(report: TreeReport, title: str, seconds: float) -> Table:
    """The figures that people ask for; *seconds* is what it took."""
    depths = report.depths
    was_over = report.root_peak_requests > MAX_REQUESTS
    warning = f"; more than the {MAX_REQUESTS:,} of a real node: see --limits" if was_over else ""
    figures = {
        "joined": f"{report.joined:,} of {report.nodes - 1:,}, "
        f"{report.failed_attempts:,} attempts failed",
        "in the tree at the end": f"{report.attached:,} with the root; "
        f"{report.unattached:,} alive outside, {report.closed:,} closed",
        "depth": f"mean {depths.mean:.2f} (perfect {depths.perfect_mean:.2f}), "
        f"height {depths.height} (perfect {depths.perfect_height})",
        "balance": f"{depths.balance:.4f} at or above depth {depths.perfect_height}",
        "nodes at each depth": ", ".join(f"{count:,}" for count in depths.nodes),
        "join time": _describe(report.join_time),
        "messages a join": f"{report.messages_per_join:.1f}; {report.lost:,} lost, "
        f"{report.dropped:,} requests dropped",
        "orphans": f"{report.orphans:,} at the end, {report.peak_orphans:,} at most, "
        f"a parent was lost {report.orphaned:,} times",
        "orphan time": _describe(report.orphan_time) + ("" if report.orphans == 0 else ", so far"),
        "load of the root": f"{_describe_load(report.root)}; "
        f"at most {report.root_peak_requests:,} requests kept{warning}",
        "load of the server": _describe_load(report.server),
        "events": f"{report.events:,} in {report.seconds:,.0f} virtual seconds",
        "events a second": f"{report.events / seconds:,.0f}",
        "took": f"{seconds:.1f} s, peak memory {peak_memory() / 2**20:,.0f} MiB",
    }
    return list_figures(title, figures)


def _title(arguments: argparse.Namespace) -> str:
    return (
        f"{arguments.scenario}, {arguments.nodes:,} nodes of degree {arguments.max_degree}, "
        f"placement {arguments.placement}, seed {arguments.seed}"
    )


def _describe(times: Distribution) -> str:
    if not times.count:
        return "none"
    shares = ", ".join(f"{share} % {times.quantiles[share]:.2f}" for share in (90, 99))
    return f"median {times.median:.2f} s, {shares}, max {times.quantiles[100]:.2f}"


def _describe_load(load: Load) -> str:
    return f"{load.messages:,} messages, {load.bytes / 1e6:,.1f} MB, at most {load.peak:,} a second"
