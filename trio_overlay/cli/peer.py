"""``trio-overlay peer``: a peer found by its id, in a terminal."""

from __future__ import annotations

import argparse
import codecs
import os
import sys
from collections.abc import AsyncIterator

import trio
from rich.console import Console

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.cli.running import run_until_stopped
from trio_overlay.cli.terminal import plain_console
from trio_overlay.errors import OverlayError
from trio_overlay.nodes.peer import (
    BrokerLost,
    Peer,
    PeerConnected,
    PeerDisconnected,
    PeerError,
    Registered,
    open_peer,
)
from trio_overlay.protocol.json import encode_json
from trio_overlay.protocol.peer import Message

DESCRIPTION = """\
Register at a broker by an id, print what other peers say, and say what is typed: a line
"@other text" goes to the peer other, and a line without @ to the one spoken to last. Runs until the
input ends, or until it is interrupted."""

MAX_LINES_WAITING = 100
"""Lines for one peer that is not connected yet; further input waits."""

Lines = AsyncIterator[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("id", metavar="ID", help="what others call this peer")
    parser.add_argument(
        "--broker", required=True, metavar="URL", help="the broker, host:port or a URL"
    )
    parser.set_defaults(run=lambda options: run_until_stopped(lambda: run_peer(options)) or 0)


async def run_peer(
    arguments: argparse.Namespace, console: Console | None = None, lines: Lines | None = None
) -> int:
    """Chat until *lines* (by default stdin's) end, and all was said."""
    console = console or plain_console()
    async with (
        open_peer(arguments.id, arguments.broker) as peer,
        open_background_nursery() as nursery,
    ):
        nursery.start_soon(_print_events, peer, console)
        nursery.start_soon(_print_messages, peer, console)
        await _say_lines(peer, console, lines or read_lines())
    return 0


async def read_lines() -> Lines:
    """The lines of stdin, without their ends.

    Cancelled, it abandons a thread that waits for input; not in `sys.stdin`, whose lock the
    interpreter would then want in vain when it ends.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    while chunk := await trio.to_thread.run_sync(
        os.read, sys.stdin.fileno(), 2**16, abandon_on_cancel=True
    ):
        *lines, text = (text + decoder.decode(chunk)).split("\n")
        for line in lines:
            yield line.rstrip("\r")
    if text:
        yield text


async def _say_lines(peer: Peer, console: Console, lines: Lines) -> None:
    """Say each line to whom it is for; to one peer in order, and nobody waits for another."""
    whom: str | None = None
    async with trio.open_nursery() as nursery:
        ways: dict[str, trio.MemorySendChannel[str]] = {}
        try:
            async for line in lines:
                if line.startswith("@"):
                    whom, _, line = line[1:].partition(" ")
                if not line.strip():
                    continue
                if not whom:
                    console.print("to say something to a peer: @ID TEXT")
                    continue
                if whom not in ways:
                    ways[whom], waiting = trio.open_memory_channel[str](MAX_LINES_WAITING)
                    nursery.start_soon(_say_all, peer, console, whom, waiting)
                await ways[whom].send(line)
        finally:
            for way in ways.values():
                way.close()


async def _say_all(
    peer: Peer, console: Console, whom: str, waiting: trio.MemoryReceiveChannel[str]
) -> None:
    async for line in waiting:
        try:
            await peer.send(whom, line)
        except (OverlayError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            console.print(f"not said to {whom}: {error}")


async def _print_messages(peer: Peer, console: Console) -> None:
    async for message in peer.messages:
        console.print(f"{message.sender}: {in_print(message.data)}")


async def _print_events(peer: Peer, console: Console) -> None:
    async for event in peer.events:
        match event:
            case Registered(identifier):
                console.print(f"registered as {identifier}")
            case BrokerLost(reason):
                console.print(f"the broker is gone: {in_print(reason)}")
            case PeerConnected(connection):
                console.print(f"{connection.id} connected")
            case PeerDisconnected(connection, reason):
                console.print(f"{connection.id} is gone: {in_print(reason)}")
            case PeerError(error, identifier):
                console.print(f"{identifier or 'the broker'}: {in_print(str(error))}")


def in_print(message: Message) -> str:
    """*message* as one line that does nothing to a terminal."""
    if isinstance(message, bytes):
        return f"{len(message)} bytes"
    text = message if isinstance(message, str) else encode_json(message)
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
