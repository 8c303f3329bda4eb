"""`trio-overlay root` and `trio-overlay node`: one node of a tree, in a terminal.

As the originals' programs: a root pings each child; a node answers its parent with its own name
and pings its children; and whatever comes is printed, a line a message.
"""

from __future__ import annotations

import argparse
import contextlib

import trio
from rich.console import Console

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.cli.arguments import at_least_one
from trio_overlay.cli.running import run_until_stopped
from trio_overlay.cli.terminal import plain_console
from trio_overlay.nodes.tree import TreeNode, open_tree_node
from trio_overlay.nodes.tree_channel import TreeChannel
from trio_overlay.nodes.tree_events import ChildClose, ChildConnect, ParentClose, ParentConnect
from trio_overlay.protocol.json import JSON, encode_json

ROOT_DESCRIPTION = """\
Be the root of a tree: take those who join through the bootstrap server, send each child a ping,
and print what comes. While there is another root, stand by, and take over when it is gone. Runs
until it is interrupted, then leaves."""

NODE_DESCRIPTION = """\
Join a tree: answer what the parent sends with a name, send each child a ping, and print what comes.
Finds another parent when it loses one. Runs until it is interrupted, then leaves."""


def add_root_arguments(root: argparse.ArgumentParser) -> None:
    root.description = ROOT_DESCRIPTION
    root.set_defaults(run=lambda options: run_until_stopped(lambda: run_root(options)) or 0)
    root.add_argument("--secret", required=True, help="the secret of the server")
    root.add_argument(
        "--takeover", action="store_true", help="replace the root there is, rather than stand by"
    )
    _add_shared_arguments(root)


def add_node_arguments(node: argparse.ArgumentParser) -> None:
    node.description = NODE_DESCRIPTION
    node.set_defaults(run=lambda options: run_until_stopped(lambda: run_node(options)) or 0)
    node.add_argument("--origin", required=True, metavar="NAME", help="what to answer the parent")
    _add_shared_arguments(node)


def _add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", required=True, metavar="H:P", help="the bootstrap server, host:port or a URL"
    )
    parser.add_argument(
        "--max-degree", type=at_least_one, default=10, metavar="N", help="children to take (10)"
    )


async def run_root(arguments: argparse.Namespace, console: Console | None = None) -> int:
    """Be the root until cancelled."""
    console = console or plain_console()
    async with open_tree_node(arguments.host, max_degree=arguments.max_degree) as node:
        await node.become_root(arguments.secret, takeover=arguments.takeover)
        try:
            await _live(node, console, arguments.host, name=None)
        finally:
            await _leave(node)
    return 0


async def run_node(arguments: argparse.Namespace, console: Console | None = None) -> int:
    """Be a node until cancelled."""
    console = console or plain_console()
    async with open_tree_node(arguments.host, max_degree=arguments.max_degree) as node:
        await node.join()
        try:
            await _live(node, console, arguments.host, name=arguments.origin)
        finally:
            await _leave(node)
    return 0


async def _leave(node: TreeNode) -> None:
    """Hand the children over before the end; it takes `TreeNode.leave_timeout` at most."""
    with trio.CancelScope(shield=True):
        await node.aclose()


async def _live(node: TreeNode, console: Console, host: str, name: str | None) -> None:
    """Ping new children, print what comes, answer the parent with *name*; until cancelled.

    Without a *name* it is the root of *host*, or stands by for it.
    """
    was_root = False
    async with open_background_nursery() as nursery:
        nursery.start_soon(_print_messages, node, console, name)
        if node.stands_by:
            console.print(f"{host} has another root: standing by")
        while True:
            if node.is_root and not was_root:
                console.print(f"root of {host}")
            was_root = node.is_root
            match await node.events.receive():
                case ChildConnect(child):
                    console.print(f"child {child.id} connected")
                    nursery.start_soon(_send, child, "ping")
                case ChildClose(child, reason):
                    console.print(f"child {child.id} left: {reason}")
                case ParentConnect(parent) if name is None:
                    console.print(f"standing by below {parent.id}")
                case ParentConnect(parent):
                    console.print(f"{name} joined below {parent.id}")
                case ParentClose(parent, reason):
                    console.print(f"the parent {parent.id} is gone: {reason}")


async def _print_messages(node: TreeNode, console: Console, answer: JSON) -> None:
    async for message in node.messages:
        sender = "parent" if message.is_parent else f"child {message.channel.id}"
        console.print(f"{sender}: {encode_json(message.data)}")
        if message.is_parent and answer is not None:
            await _send(message.channel, answer)


async def _send(neighbour: TreeChannel, data: JSON) -> None:
    # A neighbour that is gone meanwhile is reported by its own event.
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await neighbour.send(data)
