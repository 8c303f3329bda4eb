"""The bridges to asyncio side by side, in one run on one machine.

    python -m benchmarks.bridges [--pairs N]

Both peers of a pair are in this process, over the machine's own network address; each figure is
the median of three runs that take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import TypeAlias

import trio

from trio_overlay.channels.bridge import BridgeChoice
from trio_overlay.channels.channel import Channel
from trio_overlay.channels.internet import Internet
from trio_overlay.channels.network import PeerConnection

ROUNDS = 3
BULK = 20_000_000
MESSAGES = 3_000
ROUND_TRIPS = 500

Figures: TypeAlias = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description="The bridges to asyncio side by side.")
    parser.add_argument("--pairs", type=int, default=100, help="connected at once (100)")
    pairs = parser.parse_args().pairs
    bridges: list[BridgeChoice] = ["stepped"]
    if sys.version_info < (3, 14):
        bridges.append("trio-asyncio")
    runs: dict[str, list[Figures]] = {bridge: [] for bridge in bridges}
    trio.run(connect_many, "stepped", 1)  # imports what there is to import
    for _ in range(ROUNDS):
        for bridge in bridges:
            runs[bridge].append(trio.run(measure, bridge, pairs))
    print(f"{'':28}" + "".join(f"{bridge:>14}" for bridge in bridges))
    for figure in runs["stepped"][0]:
        medians = [statistics.median(run[figure] for run in runs[bridge]) for bridge in bridges]
        print(f"{figure:28}" + "".join(f"{median:14.1f}" for median in medians))


async def measure(bridge: BridgeChoice, pairs: int) -> Figures:
    figures: Figures = {}
    started_at = time.process_time()
    await connect_many(bridge, pairs)
    figures["ms of CPU for a pair"] = (time.process_time() - started_at) / pairs * 1e3
    internet = Internet(bridge=bridge)
    async with internet.open_peer(initiator=True) as a, internet.open_peer(initiator=False) as b:
        one, other = await connect(a, b)
        count = BULK // 65_536
        seconds = await transfer(one, other, bytes(65_536), count)
        figures["MB a second"] = count * 65_536 / seconds / 1e6
        seconds = await transfer(one, other, bytes(64), MESSAGES)
        figures["64-byte messages a second"] = MESSAGES / seconds
        started = time.perf_counter()
        for _ in range(ROUND_TRIPS):
            await one.send("there")
            await other.receive()
            await other.send("and back")
            await one.receive()
        figures["µs a round trip"] = (time.perf_counter() - started) / ROUND_TRIPS * 1e6
    return figures


async def connect_many(bridge: BridgeChoice, pairs: int) -> None:
    """Have *pairs* pairs connected at the same time, and let them go."""
    internet = Internet(bridge=bridge)
    connected = 0
    all_connected = trio.Event()

    async def be_one() -> None:
        nonlocal connected
        async with (
            internet.open_peer(initiator=True) as a,
            internet.open_peer(initiator=False) as b,
        ):
            await connect(a, b)
            connected += 1
            if connected == pairs:
                all_connected.set()
            await all_connected.wait()

    async with trio.open_nursery() as nursery:
        for _ in range(pairs):
            nursery.start_soon(be_one)


async def connect(a: PeerConnection, b: PeerConnection) -> tuple[Channel, Channel]:
    b.signal_nowait(await a.next_signal())
    a.signal_nowait(await b.next_signal())
    return await a.connected(), await b.connected()


async def transfer(sender: Channel, reader: Channel, frame: bytes, count: int) -> float:
    """Seconds that *count* frames take."""

    async def send() -> None:
        for _ in range(count):
            await sender.send(frame)

    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        for _ in range(count):
            await reader.receive()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
