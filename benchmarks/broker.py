"""How much a broker does: registrations and signals a second, and the memory of idle connections.

    python -m benchmarks.broker --peers 500
    python -m benchmarks.broker --redis redis://127.0.0.1:6379 --workers 1 2 --rounds 3

The broker is ``trio-overlay server``, in processes of its own, with all its limits in force; the
peers are plain WebSocket connections in this process. Kinds of brokers take turns, so that what
else the machine does meets all of them; figures are medians of the rounds.

The peers need about as much CPU as the broker does, so rates are of both together, unless each
process has a core. CPU is of the workers alone, and of Redis, by their own clocks. From that of the
busiest worker follows what the broker does when each worker has a core to itself, and peers and
Redis have others: it is computed, not measured, and holds as long as Redis is not busier.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import coredis
import trio
from rich.console import Console
from rich.table import Table

from trio_overlay.channels.channel import Channel
from trio_overlay.channels.websocket import open_websocket_channel
from trio_overlay.protocol.broker import (
    UNAVAILABLE,
    Register,
    Request,
    Response,
    decode_answer,
    encode_peer_signal,
    encode_request,
    peer_signal,
)
from trio_overlay.protocol.json import JSON
from trio_overlay.signaling.limits import raise_descriptor_limit

REGISTRATIONS = 10
"""Of each peer, one id after the other; 20 at once are within the broker's limits."""
SIGNALS = 200
"""Of each peer to another, as many as twenty handshakes take."""
SIGNALS_UNREAD = 20
"""Those of one peer on their way at a time."""
READY_INTERVAL = 2.0
OFFER: JSON = {"type": "offer", "sdp": "v=0\r\n" + "a=candidate\r\n" * 40}
"""About as large as the offer of a data channel."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many of something, one after the other on each connection and all connections at once."""

    name: str
    count: int
    seconds: float
    cpu: tuple[float, ...]
    """Seconds of each worker."""
    redis_cpu: float
    """Seconds of Redis."""


def main() -> int:
    options = parse(sys.argv[1:])
    raise_descriptor_limit()
    trio.run(measure, options)
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.broker", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--peers", type=int, default=500, metavar="N", help="connections (500)")
    add("--redis", metavar="URL", help="a Redis, to measure brokers that share it as well")
    add("--workers", type=int, nargs="+", default=[1, 2], metavar="N", help="of those (1 and 2)")
    add("--rounds", type=int, default=1, metavar="N", help="measure each so often (1)")
    return parser.parse_args(arguments)


@dataclass(frozen=True, slots=True)
class Kind:
    """A broker of so many processes, which share a Redis, or a single one without."""

    workers: int
    redis: str | None

    def __str__(self) -> str:
        return "1, alone" if self.redis is None else f"{self.workers}, with Redis"

    @property
    def arguments(self) -> list[str]:
        if self.redis is None:
            return []
        return ["--workers", str(self.workers), "--redis", self.redis]


@dataclass(frozen=True, slots=True)
class Figures:
    """What one round with one broker came to."""

    rates: list[Rate]
    memory: float
    """Bytes of the broker's for each idle connection."""


async def measure(options: argparse.Namespace) -> None:
    """Let each kind of broker in turn show what it does, and print it."""
    kinds = [Kind(1, None)]
    if options.redis is not None:
        kinds += [Kind(workers, options.redis) for workers in options.workers]
    found: dict[Kind, list[Figures]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind in kinds:
            found[kind].append(await measure_one(kind, options.peers // 2 * 2))
    report(options.peers // 2 * 2, found)


async def measure_one(kind: Kind, count: int) -> Figures:
    """Have *count* peers connect, register and signal."""
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(open_broker_process(kind))
        before = broker.memory()
        measured = await Stretch.begin("connections", broker)
        dials = [open_websocket_channel(broker.url) for _ in range(count)]
        peers: list[Channel] = [await stack.enter_async_context(each) for each in dials]
        rates = [await measured.end(count)]
        memory = (broker.memory() - before) / count
        async with trio.open_nursery() as nursery:
            for number, peer in enumerate(peers):
                nursery.start_soon(wait_until_ready, number, peer)
        rates.append(await rate("registrations", broker, peers, register_often, REGISTRATIONS))
        rates.append(await rate("signals", broker, peers, exchange_signals, SIGNALS))
    return Figures(rates, memory)


class BrokerProcess:
    """A running ``trio-overlay server``, with the workers it has started."""

    def __init__(self, process: trio.Process, url: str, redis: str | None) -> None:
        self.url = url
        self._process = process
        self._redis = redis

    def cpu(self) -> list[float]:
        """Seconds of each worker, up to now."""
        found = []
        for pid in self._workers():
            # utime and stime; the name before them may hold anything but the last bracket
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
        return found

    async def redis_cpu(self) -> float:
        """Seconds of its Redis, up to now; 0 without one."""
        if self._redis is None:
            return 0.0
        async with coredis.Redis.from_url(self._redis) as redis:
            said: Any = await redis.info("cpu")
        return float(said["used_cpu_user"]) + float(said["used_cpu_sys"])

    def memory(self) -> int:
        """Bytes that all workers hold."""
        sizes = [Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in self._workers()]
        return sum(map(int, sizes)) * os.sysconf("SC_PAGE_SIZE")

    def _workers(self) -> list[int]:
        """Their pids: of the children, or, if there are none, of the one process."""
        own = self._process.pid
        # A child is its thread's, and processes are started in threads that may be gone.
        children = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended meanwhile
                pid, _, rest = path.read_text().partition(" ")
                if rest.rpartition(")")[2].split()[1] == str(own):
                    children.append(int(pid))
        return children or [own]


class Stretch:
    """What is measured between `begin` and `end`."""

    def __init__(
        self, name: str, broker: BrokerProcess, cpu: list[float], redis_cpu: float
    ) -> None:
        self._name = name
        self._broker = broker
        self._cpu = cpu
        self._redis_cpu = redis_cpu
        self._began = time.perf_counter()

    @classmethod
    async def begin(cls, name: str, broker: BrokerProcess) -> Stretch:
        redis_cpu = await broker.redis_cpu()
        return cls(name, broker, broker.cpu(), redis_cpu)

    async def end(self, count: int) -> Rate:
        """So many were done."""
        seconds, cpu = time.perf_counter() - self._began, self._broker.cpu()
        each = tuple(after - before for before, after in zip(self._cpu, cpu, strict=True))
        redis_cpu = await self._broker.redis_cpu() - self._redis_cpu
        return Rate(self._name, count, seconds, each, redis_cpu)


@asynccontextmanager
async def open_broker_process(kind: Kind) -> AsyncIterator[BrokerProcess]:
    command = [sys.executable, "-m", "trio_overlay", "server", "--host", "127.0.0.1", "--port", "0"]
    command += ["--log-level", "error", *kind.arguments]
    process = await trio.lowlevel.open_process(
        command, stdout=subprocess.PIPE, env={**os.environ, "SECRET": "benchmark"}
    )
    try:
        assert process.stdout is not None
        said = b""
        while not said.endswith(b"\n"):
            chunk = await process.stdout.receive_some()
            if not chunk:
                raise SystemExit("the broker did not start")
            said += chunk
        yield BrokerProcess(process, said.decode().split()[-1], kind.redis)
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            await process.wait()


async def rate(
    name: str,
    broker: BrokerProcess,
    peers: list[Channel],
    act: Callable[[int, list[Channel]], Awaitable[None]],
    count: int,
) -> Rate:
    """Have each of *peers* do its *count* of something."""
    measured = await Stretch.begin(name, broker)
    async with trio.open_nursery() as nursery:
        for number in range(len(peers)):
            nursery.start_soon(act, number, peers)
    return await measured.end(count * len(peers))


async def wait_until_ready(number: int, channel: Channel) -> None:
    """Return when this peer can register: a Redis that is new grants nothing for one lease."""
    while True:
        await channel.send(encode_request(Request(Register(f"ready {number}"), 0)))
        answer = decode_answer(await channel.receive())
        assert isinstance(answer, Response)
        if answer.failure is None or answer.failure.code != UNAVAILABLE:
            return
        await trio.sleep(READY_INTERVAL)


async def register_often(number: int, peers: list[Channel]) -> None:
    """Move from one id to the next; keep the last."""
    channel = peers[number]
    for turn in reversed(range(REGISTRATIONS)):
        identifier = f"p{number}" if turn == 0 else f"p{number} {turn}"
        await channel.send(encode_request(Request(Register(identifier), turn)))
        answer = decode_answer(await channel.receive())
        assert isinstance(answer, Response)
        assert answer.failure is None, answer


async def exchange_signals(number: int, peers: list[Channel]) -> None:
    """Say so many signals to the peer beside this one, and hear as many."""
    channel, other = peers[number], number ^ 1
    text = encode_peer_signal(peer_signal(f"p{number}", f"p{other}", OFFER))
    for start in range(0, SIGNALS, SIGNALS_UNREAD):
        count = min(SIGNALS_UNREAD, SIGNALS - start)
        for _ in range(count):
            await channel.send(text)
        for _ in range(count):
            await channel.receive()


ROWS: Mapping[str, Callable[[Rate], float]] = {
    "{} a second": lambda rate: rate.count / rate.seconds,
    "{}, CPU, \u00b5s": lambda rate: sum(rate.cpu) / rate.count * 1e6,
    "{}, busiest worker, %": lambda rate: max(rate.cpu) / sum(rate.cpu) * 100,
    "{} a second, a core each": lambda rate: rate.count / max(rate.cpu),
    "{}, Redis's CPU, \u00b5s": lambda rate: rate.redis_cpu / rate.count * 1e6,
}


def cell(value: float, first: float) -> str:
    """A figure, and, in brackets, the part of the *first* that it is."""
    return f"{value:,.0f} ({value / first:.2f})" if first else f"{value:,.0f}"


def report(peers: int, found: dict[Kind, list[Figures]]) -> None:
    """A column for each kind; in brackets the part of what the first does."""
    rounds = len(next(iter(found.values())))
    table = Table(show_edge=False)
    table.add_column(f"{peers} peers, medians of {rounds}")
    for kind in found:
        table.add_column(str(kind), justify="right")
    rows: dict[str, list[float]] = {}
    for figures in found.values():
        for index, each in enumerate(figures[0].rates):
            rates = [every.rates[index] for every in figures]
            for name, value in ROWS.items():
                row = rows.setdefault(name.format(each.name), [])
                row.append(median(value(one) for one in rates))
        memory = median(every.memory for every in figures) / 1024
        rows.setdefault("memory of an idle connection, KiB", []).append(memory)
    for name, values in rows.items():
        table.add_row(name, *(cell(each, values[0]) for each in values))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
