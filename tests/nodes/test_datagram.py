"""Datagrams over relays, as over UDP."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.nodes.relays import Relays, open_relays
from trio_overlay.errors import UsageError
from trio_overlay.nodes.datagram import (
    MAX_DATAGRAM_SIZE,
    RelayAddress,
    RelaySocket,
    decode_datagram,
    open_relay_socket,
)

EXAMPLES = Path(__file__).parents[2] / "examples"


async def open_socket(relays: Relays, name: str, *bootstrap: str, **options: Any) -> RelaySocket:
    relay = await relays.open(name, *bootstrap, **options)
    return await relays.stack.enter_async_context(open_relay_socket(relay=relay))


async def test_datagrams_go_between_ids_and_ports(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        one = await open_socket(relays, "one", listens=True)
        other = await open_socket(relays, "other", "one")
        await one.bind(53)
        assert one.getsockname() == RelayAddress(one.peer.id, 53, "peer-relay")
        assert other.getsockname().port == 0
        assert await other.sendto(b"\x00query\xff", (one.peer.id, 53)) == 7
        assert other.getsockname().port >= 49152  # bound by sending
        data, address = await one.recvfrom()
        assert (data, address) == (b"\x00query\xff", (other.peer.id, other.getsockname().port))
        await one.sendto(b"", 0, address)
        await one.sendto(bytearray(b"answer"), other.getsockname())
        assert await other.recvfrom() == (b"", (one.peer.id, 53))
        assert (await other.recvfrom(3))[0] == b"ans"


async def test_a_datagram_for_another_port_is_dropped(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        one = await open_socket(relays, "one", listens=True)
        other = await open_socket(relays, "other", "one")
        await one.bind(53)
        await other.sendto(b"wrong", (one.peer.id, 54))
        await other.sendto(b"right", (one.peer.id, 53))
        assert (await one.recvfrom())[0] == b"right"


async def test_localhost_reaches_the_sockets_of_this_process(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        one = await open_socket(relays, "one")
        other = await open_socket(relays, "other")  # they have not even met
        await one.bind(("", 7))
        for host in ("localhost", "127.0.0.1"):
            await other.sendto(b"hello", (host, 7))
            data, address = await one.recvfrom()
            assert address == (host, other.getsockname().port)
            await one.sendto(data + b" back", address)
            assert await other.recvfrom() == (b"hello back", (host, 7))
        assert await other.sendto(b"nobody", ("localhost", 8)) == 6


async def test_what_udp_refuses_is_refused(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        one = await open_socket(relays, "one")
        other = await open_socket(relays, "other")
        await one.bind(7)
        for socket, number in ((one, errno.EINVAL), (other, errno.EADDRINUSE)):
            with pytest.raises(OSError) as caught:  # noqa: PT011 - its number says which
                await socket.bind(7)
            assert caught.value.errno == number
        with pytest.raises(OverflowError):
            await other.bind(65_536)
        with pytest.raises(OSError) as caught:  # noqa: PT011
            await one.sendto(bytes(MAX_DATAGRAM_SIZE + 1), (other.peer.id, 1))
        assert caught.value.errno == errno.EMSGSIZE
        await one.sendto(b"\xff" * MAX_DATAGRAM_SIZE, (other.peer.id, 1))
        with pytest.raises(UsageError, match="40 hex digits"):
            await one.sendto(b"", ("192.0.2.1", 1))
        with pytest.raises(TypeError, match="an address"):
            await one.sendto(b"")


async def test_the_end_of_the_relay_is_the_end_of_the_socket(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        one = await open_socket(relays, "one")
        other = await open_socket(relays, "other")
        await one.bind(7)

        async def expect_closed() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await one.recvfrom()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed)
            await trio.sleep(1)
            await one.peer.aclose()
        for call in (
            lambda: one.recvfrom(),
            lambda: one.bind(8),
            lambda: one.sendto(b"", ("localhost", 7)),
        ):
            with pytest.raises(trio.ClosedResourceError):
                await call()
        await other.bind(7)  # it is free again
        other.close()
        assert not other.peer.is_closed  # it was there before the socket
        with pytest.raises(trio.ClosedResourceError):
            other.getsockname()


async def test_a_socket_of_its_own_relay_closes_it(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        network = relays.network.host("one")
        async with open_relay_socket(network=network, webrtc=False) as socket:
            peer = socket.peer
        assert peer.is_closed


async def test_what_nobody_reads_is_bounded(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        one = await open_socket(relays, "one")
        other = await open_socket(relays, "other")
        await one.bind(7)
        for number in range(3000):
            await other.sendto(b"%d" % number, ("localhost", 7))
        assert len(one._arrived) == 1000
        assert (await one.recvfrom())[0] == b"2000"


@pytest.mark.parametrize(
    "value",
    [
        None, 7, {}, {"buffer": None, "port": 1},
        {"buffer": {"data": [256]}, "port": 1},
        {"buffer": {"data": [None]}, "port": 1},
        {"buffer": {"data": "text"}, "port": 1},
        {"buffer": {"data": 10**9}, "port": 1},
        {"buffer": {"data": [1]}, "port": "1"},
        {"buffer": {"data": [1]}, "port": 65_536},
        {"buffer": {"data": [1]}, "port": True},
    ],
)  # fmt: skip
def test_what_is_no_datagram_is_none(value: Any) -> None:
    assert decode_datagram(value) is None


def test_a_datagram_of_the_original_has_no_destination() -> None:
    value = {"buffer": {"type": "Buffer", "data": [104, 105]}, "address": "00" * 20, "port": 9}
    assert decode_datagram(value) == (b"hi", 9, None)


def test_the_example_runs_on_both_kinds_of_sockets() -> None:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "datagrams.py")],
        capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"over {kind}: the echo is hello, the address is 192.0.2.7" for kind in ("UDP", "relays")
    ]
