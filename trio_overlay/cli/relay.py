"""`trio-overlay relay`: one relay peer, in a terminal, as peer-relay's server.js is one."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.cli.arguments import positive
from trio_overlay.cli.running import run_until_stopped
from trio_overlay.cli.terminal import plain_console
from trio_overlay.errors import UsageError
from trio_overlay.nodes.relay import PeerJoined, Relay, open_relay
from trio_overlay.nodes.relay_identity import Identity
from trio_overlay.protocol.json import encode_json

DESCRIPTION = """\
Relay messages between peers: listen on PORT, dial the BOOTSTRAP URLs, and print the peers that come
and go, and the messages for this one. Runs until it is interrupted.

With --send, send one message, wait for its receipt, and end; exit code 1 if none came. Peers of
the original give no receipts: for them, --stay."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(run=lambda options: run_until_stopped(lambda: run_relay(options)) or 0)
    add = parser.add_argument
    add("port", type=int, metavar="PORT", help="the port to listen on, 0 for any")
    add("bootstrap", nargs="*", metavar="BOOTSTRAP_URL", help="peers to begin with, ws://HOST:PORT")
    add("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    add("--announce", metavar="URL", help="where others are to dial (default: ws://HOST:PORT)")
    add("--id", metavar="ID", help="40 hex digits (default: at random)")
    add(
        "--identity",
        type=Path,
        metavar="FILE",
        help="a key to sign with, made if the file is not there; the id is its hash",
    )
    add("--only-proved", action="store_true", help="take signed messages only")
    add("--no-webrtc", action="store_true", help="make no peer connections")
    add(
        "--allow-private",
        action="store_true",
        help="dial URLs on this machine and in this network that other peers announce",
    )
    add("--send", nargs=2, metavar=("ID", "TEXT"), help="send TEXT to ID, and end")
    add("--timeout", type=positive, default=30.0, metavar="S", help="for its receipt (default: 30)")
    add("--stay", action="store_true", help="with --send: ask for no receipt, and go on")


async def run_relay(arguments: argparse.Namespace, console: Console | None = None) -> int:
    """Be a relay peer until cancelled, or until its message has arrived."""
    console = console or plain_console()
    if not 0 <= arguments.port <= 65535:
        raise UsageError(f"a port is a number from 0 to 65535, not {arguments.port}")
    identity = None if arguments.identity is None else load_identity(arguments.identity)
    async with open_relay(
        host=arguments.host,
        port=arguments.port,
        announce_url=arguments.announce,
        bootstrap=arguments.bootstrap,
        webrtc=not arguments.no_webrtc,
        id=arguments.id,
        identity=identity,
        accepts_unproved=not arguments.only_proved,
        allow_private_addresses=arguments.allow_private,
    ) as relay:
        console.print(f"relay {relay.id} at {relay.url}")
        if arguments.send is not None and not arguments.stay:
            receiver, text = arguments.send
            await relay.send(receiver, text, wait_for_receipt=True, timeout=arguments.timeout)
            console.print(f"delivered to {receiver}")
            return 0
        async with open_background_nursery() as nursery:
            nursery.start_soon(_print_messages, relay, console)
            if arguments.send is not None:
                await relay.send(*arguments.send)
            async for event in relay.events:
                match event:
                    case PeerJoined(peer):
                        console.print(f"PEER {peer} by {_transport(relay, peer)}")
                    case _:
                        console.print(f"peer {event.id} left: {event.reason}")
    return 0


def load_identity(path: Path) -> Identity:
    """The identity whose secret is in the file at *path*; a new one, written there, if none is.

    UsageError: the file cannot be read or written, or holds no secret.
    """
    try:
        if path.exists():
            return Identity(bytes.fromhex(path.read_text(encoding="ascii").strip()))
        identity = Identity()
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(f"{identity.secret.hex()}\n", encoding="ascii")
    except ValueError:  # not hex, not ASCII: nothing of what is in the file is shown
        raise UsageError(f"{path} is no identity: 64 hex digits are") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be used: {error}") from error
    return identity


async def _print_messages(relay: Relay, console: Console) -> None:
    async for message in relay.messages:
        mark = " (proved)" if message.is_proved else ""
        console.print(f"{message.sender}{mark}: {encode_json(message.data)}")


def _transport(relay: Relay, peer: str) -> str:
    link = relay.peers.get(peer)
    return "a connection that is gone" if link is None else link.transport
