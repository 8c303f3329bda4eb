"""`trio-overlay simulate relay`: very many relay peers in virtual time, and how messages fare."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trio_overlay.cli.arguments import at_least_one, positive, share
from trio_overlay.cli.reporting import (
    check_files,
    list_figures,
    peak_memory,
    throttled,
    write_report,
)
from trio_overlay.cli.terminal import count_progress
from trio_overlay.errors import UsageError
from trio_overlay.simulation.collector import no_collector
from trio_overlay.simulation.links import parse_latency
from trio_overlay.simulation.relay import POLICIES, RelayReport, RelaySetting, RelayWorld

DESCRIPTION = """\
Simulate peers that relay messages to ids: they join, find their neighbours, and send messages to
each other by chance, while some crash and others come. Real decisions, virtual time, no network.
The same seed gives the same JSON, byte for byte."""

EPILOG = """\
Policies: default, two copies that are passed on once each; one-copy; two-at-each-hop, over the
same connections; original, peer-relay's, two at each hop and connections to the fifteen nearest.
Latencies: constant:SECONDS, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA, geographic."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.set_defaults(run=run_relay)
    add = parser.add_argument
    setting = RelaySetting()
    add("--nodes", type=at_least_one, default=setting.nodes, metavar="N", help="how many peers")
    add("--seed", type=int, default=setting.seed, metavar="S", help="decides all chance")
    add("--policy", choices=POLICIES, default=setting.policy, help="how envelopes are passed on")
    add("--arrival", type=positive, metavar="S", help="seconds in which all join (default: N / 50)")
    add("--messages", type=at_least_one, default=setting.messages, metavar="M", help="how many")
    add("--seconds", type=positive, default=setting.seconds, metavar="S", help="to send them in")
    add("--churn", type=share, default=0.0, metavar="P", help="share of peers replaced a minute")
    add("--receipts", action="store_true", help="messages are sent again until a receipt comes")
    add("--timeout", type=positive, default=setting.timeout, metavar="S", help="for a receipt")
    add("--chain", action="store_true", help="each peer is connected to the next, and no others")
    add("--latency", default="uniform:0.01:0.1", metavar="MODEL", help="seconds a frame takes")
    add("--json", type=Path, metavar="FILE", help="write the report there")


def run_relay(arguments: argparse.Namespace, console: Console | None = None) -> int:
    """Simulate, and say what came of it; 0."""
    console = console or Console(highlight=False)
    check_files(arguments)
    setting = setting_of(arguments)
    count = 2 * setting.nodes + round(setting.nodes * setting.replaced_per_minute)
    latency = parse_latency(arguments.latency, count, setting.seed)
    started_at = time.process_time()
    with no_collector(), count_progress(console, auto_refresh=False) as progress:
        world = RelayWorld(setting, latency)
        bar = progress.add_task("virtual seconds", total=round(world.ends_at))
        world.run(
            throttled(lambda: progress.update(bar, completed=int(world.agenda.now), refresh=True))
        )
        report = world.report()
    seconds = time.process_time() - started_at
    console.print(tabulate(report, _title(setting), seconds))
    if arguments.json is not None:
        said = asdict(setting) | {"latency": arguments.latency}
        write_report(arguments.json, report.to_json(said))
    return 0


def setting_of(arguments: argparse.Namespace) -> RelaySetting:
    """What *arguments* describe.

    UsageError: there are fewer than two peers.
    """
    if arguments.nodes < 2:
        raise UsageError("a network has two peers or more")
    return RelaySetting(
        nodes=arguments.nodes,
        seed=arguments.seed,
        policy=arguments.policy,
        arrival=arguments.arrival or max(20.0, arguments.nodes / 50),
        messages=arguments.messages,
        seconds=arguments.seconds,
        replaced_per_minute=arguments.churn,
        receipts=arguments.receipts,
        timeout=arguments.timeout,
        is_chain=arguments.chain,
    )


def tabulate(report: RelayReport, title: str, seconds: float) -> Table:
    """The *report* for a terminal; it took *seconds* of this machine's time."""
    figures = {
        "delivered": f"{report.delivered:,} of {report.sent - report.void:,}, "
        f"{100 * report.delivery:.2f} %",
        "sender or receiver crashed": f"{report.void:,}",
        "receipts": f"{report.confirmed:,}",
        "hops": f"{report.mean_hops:.2f} on average, at most {report.max_hops}; "
        f"log2(n)/2 is {report.half_log2:.2f}",
        "transmissions": f"{report.copies:.2f} for each message that arrived, "
        f"{100 * report.duplicates:.1f} % of them to who had had it",
        "time": f"{report.mean_seconds:.3f} s on average",
        "last copy moved": f"{report.last_transmission:.1f} s after the last message was sent",
        "neighbours": f"{report.mean_neighbours:.1f} on average, at most "
        f"{report.max_neighbours}; {report.unconnected} peers without",
        "table entries": f"at most {report.max_remembered:,} at one peer",
        "all envelopes": ", ".join(f"{k} {n:,}" for k, n in report.transmissions.items()),
        "this run": f"{seconds:.0f} s of CPU, {peak_memory() / 1e6:,.0f} MB",
    }
    return list_figures(title, figures)


def _title(setting: RelaySetting) -> str:
    kind = "a chain of" if setting.is_chain else ""
    churn = (
        f"{setting.replaced_per_minute:.0%} replaced a minute"
        if setting.replaced_per_minute
        else "quiet"
    )
    parts = f"{kind} {setting.nodes:,} peers".strip(), setting.policy, churn, f"seed {setting.seed}"
    return ", ".join(parts)
