"""`trio-overlay status`: the tree as it is now, drawn, or as JSON."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from rich.console import Console, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from trio_overlay.cli.arguments import positive
from trio_overlay.cli.drawing import Twig, draw_trees
from trio_overlay.cli.running import run_until_stopped
from trio_overlay.nodes.tree_snapshots import NodeSnapshot, TreeSnapshot, ask_tree_snapshot
from trio_overlay.protocol.json import encode_json

DESCRIPTION = """\
Ask the root of a running tree, over its bootstrap server, for a picture of the whole tree, and draw
it: of each node its id, its children of how many it takes, the round trip to its parent, and for
how long it has been up. Exit code 1 if there is none to be had; the reason is on stderr."""

ID_LENGTH = 6
"""Digits of an id that are shown, if that is enough to tell all apart."""
UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.set_defaults(run=lambda options: _exit_code(run_until_stopped(lambda: run(options))))
    add = parser.add_argument
    add("--host", required=True, metavar="H:P", help="the bootstrap server, host:port or a URL")
    add("--secret", required=True, help="the secret of the server")
    add("--json", action="store_true", help="one object with all that is known, on one line")
    add(
        "--timeout",
        type=positive,
        default=10.0,
        metavar="S",
        help="seconds to wait for the answer, up to 60 (10)",
    )


async def run(arguments: argparse.Namespace, console: Console | None = None) -> int:
    """Ask and draw. OverlayError: there is no picture."""
    console = console or Console(highlight=False)
    tree = await ask_tree_snapshot(arguments.host, arguments.secret, timeout=arguments.timeout)
    if arguments.json:
        nodes = [asdict(node) for node in tree.nodes.values()]
        sys.stdout.write(encode_json({"nodes": nodes, "missing": tree.count_missing}) + "\n")
    else:
        console.print(draw(tree, console.width))
        console.print(Text(describe(tree)))
    return 0


def _exit_code(code: int | None) -> int:
    return 130 if code is None else code  # as for a program that SIGINT ended


# --- the drawing --------------------------------------------------------------------------


def draw(tree: TreeSnapshot, width: int) -> RenderableType:
    """The nodes of *tree*, those that came first first among siblings.

    Where *width* columns are too few for so deep a tree, it is a table with a line for each. A
    parent that has not answered stands in for itself, on top of what it has below it.
    """
    names = _shorten({*tree.nodes, *_silent_parents(tree)})
    show_version = len(_versions(tree)) > 1
    twigs = list(_hang(tree, names, show_version))
    return draw_trees(twigs, width) or _tabulate(tree, names, show_version)


def describe(tree: TreeSnapshot) -> str:
    """The figures of the whole."""
    nodes = tree.nodes.values()
    depths = Counter(node.depth for node in nodes if node.depth is not None)
    distribution = ", ".join(f"{depth}: {depths[depth]}" for depth in sorted(depths))
    parts = [f"{_count(len(nodes))}, at depth {distribution or 'none'}"]
    if tree.count_missing:
        parts.append(f"{tree.count_missing} did not answer")
    count_cut_off = sum(node.depth is None for node in nodes)
    if count_cut_off:
        parts.append(f"{count_cut_off} cut off")
    trips = [node.round_trip_time for node in nodes if node.round_trip_time is not None]
    if trips:
        middle, most = statistics.median(trips), max(trips)
        parts.append(f"round trips {_milliseconds(middle)} (median) to {_milliseconds(most)}")
    versions = _versions(tree)
    if len(versions) == 1:
        parts += [f"version {version}" for version in versions]
    else:
        parts += [f"version {each}: {_count(versions[each])}" for each in sorted(versions)]
    return "; ".join(parts)


def _hang(tree: TreeSnapshot, names: dict[str, str], show_version: bool) -> Iterator[Twig]:
    """All nodes, parents before children.

    They were not all seen at one moment: two that have changed places meanwhile may each say that
    it is below the other. Then one of them stands on top as well.
    """
    below: defaultdict[str | None, list[NodeSnapshot]] = defaultdict(list)
    for node in sorted(tree.nodes.values(), key=lambda node: -node.age):
        below[node.parent].append(node)
    silent = _silent_parents(tree)
    for name in silent:
        yield Twig(name, None, Text.assemble((names[name], "bold"), ("  no answer", "yellow")))
    left = dict(tree.nodes)
    for top in (*below[None], *(node for name in silent for node in below[name]), *left.values()):
        pending = [top]
        for node in pending:
            if left.pop(node.id, None) is None:
                continue
            hangs_from = None if node is top and node.parent in tree.nodes else node.parent
            yield Twig(node.id, hangs_from, _label(node, names, show_version))
            pending += below[node.id]


def _label(node: NodeSnapshot, names: dict[str, str], show_version: bool) -> Text:
    label = Text.assemble((names[node.id], "bold"), f"  {node.degree}/{node.max_degree}")
    if node.depth is None:
        label.append("  cut off", "yellow")
    if node.round_trip_time is not None:
        label.append(f"  {_milliseconds(node.round_trip_time)}")
    label.append(f"  up {_duration(node.age)}", "dim")
    if show_version:
        label.append(f"  {node.version}", "dim")
    return label


def _tabulate(tree: TreeSnapshot, names: dict[str, str], show_version: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    for title in ("at", "id", "below", "has", "trip", "up"):
        justify: JustifyMethod = "left" if title in ("id", "below") else "right"
        table.add_column(title, justify=justify, overflow="fold")
    if show_version:
        table.add_column("version")
    for node in tree.nodes.values():
        trip = node.round_trip_time
        table.add_row(
            "-" if node.depth is None else str(node.depth),
            Text(names[node.id], "bold"),
            "" if node.parent is None else Text(names[node.parent]),
            f"{node.degree}/{node.max_degree}",
            "" if trip is None else _milliseconds(trip),
            Text(_duration(node.age), "dim"),
            *([Text(node.version)] if show_version else []),
        )
    return table


def _silent_parents(tree: TreeSnapshot) -> list[str]:
    """Those that others are below, and that have not answered."""
    parents = dict.fromkeys(node.parent for node in tree.nodes.values())
    return [parent for parent in parents if parent is not None and parent not in tree.nodes]


def _versions(tree: TreeSnapshot) -> Counter[str]:
    return Counter(node.version for node in tree.nodes.values())


def _shorten(ids: Iterable[str]) -> dict[str, str]:
    """Each of *ids* by its first digits, as many as it takes to tell all apart."""
    ids = set(ids)
    length = ID_LENGTH
    while len({each[:length] for each in ids}) < len(ids):
        length += 1
    return {each: each[:length] for each in ids}


def _count(nodes: int) -> str:
    return f"{nodes} node" if nodes == 1 else f"{nodes} nodes"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _duration(seconds: float) -> str:
    for unit, name in UNITS:
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{seconds:.0f} s"
