"""STUN and TURN, against coturn on loopback."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.conftest import require_or_skip
from tests.ports import free_port
from trio_overlay.channels.internet import IceServer, Internet
from trio_overlay.channels.network import PeerConnection
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import ConfigurationError
from trio_overlay.protocol.signals import Answer, Offer, Signal

pytestmark = pytest.mark.webrtc

USER, PASSWORD = "alice", "open sesame"


@asynccontextmanager
async def open_coturn() -> AsyncIterator[int]:
    """coturn on 127.0.0.1, for one user; its port. It relays to this machine only."""
    program = require_or_skip("turnserver")
    port = free_port()
    command = [
        program, "-n", "--no-cli", "--no-tls", "--no-dtls", "--log-file=stdout", "--simple-log",
        "--lt-cred-mech", f"--user={USER}:{PASSWORD}", "--realm=test", "--allow-loopback-peers",
        "--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1", f"--listening-port={port}",
        "--pidfile=/dev/null", "--userdb=/dev/null",
    ]  # fmt: skip
    start = functools.partial(
        trio.run_process, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    async with open_background_nursery() as nursery:
        await nursery.start(start)  # terminated with the nursery; failing, it ends the test
        with trio.fail_after(60):
            while not await answers_stun(port):
                await trio.lowlevel.checkpoint()
        yield port


async def answers_stun(port: int) -> bool:
    request = bytes.fromhex("0001 0000 2112a442") + bytes(12)  # a binding request (RFC 8489)
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as probe:
        with trio.move_on_after(0.2):
            try:
                await probe.connect(("127.0.0.1", port))
                await probe.send(request)
                return (await probe.recv(1500))[:2] == b"\x01\x01"
            except ConnectionRefusedError:
                await trio.sleep(0.05)
    return False


def only_relayed(signal: Signal) -> Signal:
    """*signal* without the candidates that do not go through the TURN server."""
    if not isinstance(signal, Offer | Answer):
        return signal
    lines = signal.sdp.splitlines(keepends=True)
    kept = [line for line in lines if "a=candidate" not in line or " typ relay" in line]
    return type(signal)("".join(kept))


async def carry(source: PeerConnection, target: PeerConnection, seen: list[Signal]) -> None:
    try:
        while True:
            seen.append(only_relayed(await source.next_signal()))
            target.signal_nowait(seen[-1])
    except trio.EndOfChannel:
        pass


async def test_data_goes_through_a_turn_server_with_credentials() -> None:
    async with open_coturn() as port:
        turn = IceServer(f"turn:127.0.0.1:{port}", username=USER, credential=PASSWORD)
        network = Internet(ice_servers=[turn])
        with trio.fail_after(60):
            async with (
                network.open_peer(initiator=True) as caller,
                network.open_peer(initiator=False) as callee,
                trio.open_nursery() as nursery,
            ):
                signals: list[Signal] = []
                nursery.start_soon(carry, caller, callee, signals)
                nursery.start_soon(carry, callee, caller, signals)
                one, other = await caller.connected(), await callee.connected()
                # Nothing but the relayed addresses were told to either.
                for signal in signals:
                    assert isinstance(signal, Offer | Answer)
                    kinds = set(re.findall(r"a=candidate.* typ (\w+)", signal.sdp))
                    assert kinds == {"relay"}
                await one.send("through the relay")
                assert await other.receive() == "through the relay"
                await other.send(b"x" * 100_000)
                assert await one.receive() == b"x" * 100_000
                nursery.cancel_scope.cancel()


async def test_wrong_turn_credentials_only_cost_the_relay() -> None:
    async with open_coturn() as port:
        turn = IceServer(f"turn:127.0.0.1:{port}", username=USER, credential="wrong")
        network = Internet(ice_servers=[turn])
        with trio.fail_after(60):
            async with network.open_peer(initiator=True) as caller:
                signal = await caller.next_signal()
                assert isinstance(signal, Offer)
                assert " typ host" in signal.sdp
                assert " typ relay" not in signal.sdp


async def test_stun_server_is_asked() -> None:
    async with open_coturn() as port:
        network = Internet(ice_servers=[IceServer(f"stun:127.0.0.1:{port}")])
        with trio.fail_after(60):
            async with network.open_peer(initiator=True) as caller:
                signal = await caller.next_signal()
                assert isinstance(signal, Offer)
                assert " typ srflx" in signal.sdp


@pytest.mark.parametrize("url", ["", "http://x", "stun:", "turn:host:port", "stun:a b"])
def test_url_that_is_no_ice_server_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError):
        IceServer(url)
