"""`trio-overlay demo`: a server, a root and nodes joined by real WebRTC, and the tree drawn."""

from __future__ import annotations

import argparse
import contextlib
import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import trio
from rich.console import Console, Group
from rich.text import Text

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.cli.arguments import at_least_one
from trio_overlay.cli.drawing import Twig, draw_trees
from trio_overlay.cli.running import run_until_stopped
from trio_overlay.cli.terminal import count_progress
from trio_overlay.errors import OverlayError
from trio_overlay.nodes.tree import TreeNode, open_tree_node
from trio_overlay.nodes.tree_channel import TreeChannel
from trio_overlay.protocol.json import JSON
from trio_overlay.signaling.server import serve_signaling

DESCRIPTION = """\
Start a bootstrap server on a free port, a root, and nodes that all join at once, each a WebRTC
peer of its own. Then every node pings its parent, and the tree that has come about is drawn."""

PONG_TIMEOUT = 30.0


@dataclass
class Member:
    """One node of the demo, and what it knows of itself, all of it told by its parent."""

    name: str
    path: list[str] = field(default_factory=list)
    """The names from the root down to this node; empty until its parent's pong came."""
    failure: str = ""
    has_path: trio.Event = field(default_factory=trio.Event)
    is_settled: trio.Event = field(default_factory=trio.Event)
    """Set when it has had its pong, or will not get one."""

    @property
    def depth(self) -> int:
        return len(self.path) - 1

    def place(self, path: list[str]) -> None:
        self.path = path
        self.has_path.set()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.set_defaults(run=lambda options: _exit_code(run_until_stopped(lambda: run(options))))
    parser.add_argument(
        "--nodes", type=at_least_one, default=20, metavar="N", help="how many join the root (20)"
    )
    parser.add_argument(
        "--max-degree", type=at_least_one, default=4, metavar="N", help="children of a node (4)"
    )


async def run(arguments: argparse.Namespace, console: Console | None = None) -> int:
    """The demo; 0 if every node joined and had its pong, else 1."""
    console = console or Console(highlight=False)
    members = [Member(f"n{number}") for number in range(1, arguments.nodes + 1)]
    console.print(f"a root and {len(members)} nodes, at most {arguments.max_degree} children each")
    started_at = trio.current_time()
    await run_members(members, arguments.max_degree, console)
    seconds = trio.current_time() - started_at
    joined = [member for member in members if not member.failure]
    if joined:
        console.print(draw_tree(joined, console.width))
    console.print(_figures(members, joined, seconds))
    for member in members:
        if member.failure:
            console.print(f"{member.name} did not join: {member.failure}", style="red")
    return 0 if len(joined) == len(members) else 1


async def run_members(members: list[Member], max_degree: int, console: Console) -> None:
    """Bring up the server, the root and all *members*, and end when the last has settled."""
    secret = secrets.token_urlsafe(16)
    async with open_background_nursery() as nursery:
        server = await nursery.start(_serve, secret)
        async with (
            open_tree_node(server.urls[0], max_degree=max_degree) as root,
            open_background_nursery() as crowd,
        ):
            await root.become_root(secret)
            origin = Member("root")
            origin.place([origin.name])
            crowd.start_soon(_converse, root, origin)
            for member in members:
                crowd.start_soon(_live, member, server.urls[0], max_degree)
            with count_progress(console) as progress:
                bar = progress.add_task("joined", total=len(members))
                for member in members:
                    await member.is_settled.wait()
                    progress.advance(bar)


def _exit_code(code: int | None) -> int:
    return 130 if code is None else code  # as for a program that SIGINT ended


def draw_tree(members: Iterable[Member], width: int) -> Group:
    """The tree under the root, siblings in the order of their names' numbers.

    Where *width* columns are too few for so deep a tree, it is a line for each node instead, which
    says whose child it is.
    """
    in_order = sorted(members, key=lambda member: (member.depth, int(member.name[1:])))
    labels = {
        member.name: Text.assemble((member.name, "bold"), (f"  depth {member.depth}", "dim"))
        for member in in_order
    }
    twigs = [Twig("root", None, Text("root", style="bold"))]
    twigs += [Twig(each.name, each.path[-2], labels[each.name]) for each in in_order]
    return draw_trees(twigs, width) or Group(
        *(labels[each.name].append(f"  below {each.path[-2]}", "dim") for each in in_order)
    )


async def _live(member: Member, address: str, max_degree: int) -> None:
    """One node: join, ask the parent, answer the children until the demo is over."""
    try:
        async with open_tree_node(address, max_degree=max_degree) as node:
            parent = await node.join()
            async with open_background_nursery() as nursery:
                nursery.start_soon(_converse, node, member)
                await parent.send("ping")
                with trio.move_on_after(PONG_TIMEOUT):
                    await member.has_path.wait()
                if not member.path:
                    member.failure = f"no pong within {PONG_TIMEOUT:g} s"
                member.is_settled.set()
                await trio.sleep_forever()
    except (OverlayError, trio.BrokenResourceError) as error:
        member.failure = str(error) or type(error).__name__
        member.is_settled.set()


async def _converse(node: TreeNode, member: Member) -> None:
    """Take the parent's pong, and answer each child's ping as soon as we know our own path."""
    async with open_background_nursery() as nursery:
        async for message in node.messages:
            match message.data:
                case "ping" if not message.is_parent:
                    nursery.start_soon(_answer, message.channel, member)
                case {"pong": [*path]} if message.is_parent:
                    member.place([*map(str, path), member.name])


async def _answer(child: TreeChannel, member: Member) -> None:
    await member.has_path.wait()
    pong: JSON = {"pong": member.path}
    # If it is gone meanwhile, it reports for itself.
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await child.send(pong)


async def _serve(secret: str, *, task_status: trio.TaskStatus[object]) -> None:
    await serve_signaling(secret, host="127.0.0.1", port=0, task_status=task_status)


def _figures(members: list[Member], joined: list[Member], seconds: float) -> str:
    depths = Counter(member.depth for member in joined)
    distribution = ", ".join(f"{depth}: {depths[depth]}" for depth in sorted(depths))
    return (
        f"{len(joined)} of {len(members)} joined in {seconds:.1f} s; "
        f"nodes at depth {distribution or 'none'}"
    )
