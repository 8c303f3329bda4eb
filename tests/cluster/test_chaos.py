"""Real servers behind one address, a real Redis, and a hand that kills them as a seed decides.

`CLUSTER_SEED` repeats what the hand did; when exactly things met is the machine's affair.
`HYPOTHESIS_PROFILE=long` goes on for minutes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TypeAlias

import pytest
import trio
from hypothesis import settings

from tests.cluster.redis import RedisServer, open_redis
from tests.cluster.server_process import SECRET
from tests.cluster.wanderers import Crowd, Letter, Wanderer
from trio_overlay.channels.channel import Channel
from trio_overlay.channels.internet import Internet
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.channels.websocket import open_websocket_channel
from trio_overlay.errors import OutcomeError
from trio_overlay.protocol.bootstrap import (
    BootstrapFrame,
    Done,
    Refused,
    SignalFrame,
    Withdrawn,
    decode_bootstrap,
    encode_bootstrap,
    signal_frame,
)
from trio_overlay.protocol.signals import is_offer
from trio_overlay.signaling.bootstrap import open_bootstrap

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Redis, and signals to kill by")

LEASE = 1.0
PATIENCE = 120
COUNT_SERVERS = 3
IDS = [f"p{number}" for number in range(6)]
COUNT_PEERS = 15
"""Most ids are wanted by several, so that whatever is free is taken at once."""
JOIN_PATIENCE = 5.0
JOIN = "/join?trio-overlay=1"


# --- the servers, and the address that they share -----------------------------------------


class Server:
    """A server process, from its start to its end, and what it writes about ids."""

    def __init__(self, process: trio.Process, port: int, journal: Path, passage: Passage) -> None:
        self.process = process
        self.port = port
        self.passage = passage
        """Its way to Redis."""
        self.journal = journal
        self.killed_at: int | None = None
        """In nanoseconds, by the clock of the journals."""

    @classmethod
    async def start(cls, journal: Path, passage: Passage) -> Server:
        url = f"redis://127.0.0.1:{passage.port}"
        words = ["-m", "tests.cluster.server_process", url, str(LEASE), str(journal)]
        process = await trio.lowlevel.open_process(
            [sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        said = b""
        try:
            while not said.endswith(b"\n"):
                chunk = await process.stdout.receive_some()
                assert chunk, "a server has not started"
                said += chunk
        except BaseException:
            process.kill()
            raise
        return cls(process, int(said), journal, passage)

    async def kill(self) -> None:
        assert self.process.poll() is None, "a server has ended by itself"
        self.killed_at = time.monotonic_ns()
        self.process.send_signal(signal.SIGKILL)
        await self._wait()

    async def stop(self) -> None:
        """Let it end in its own way."""
        assert self.process.stdin is not None
        await self.process.stdin.aclose()
        await self._wait()
        assert self.process.returncode == 0, "a server has failed"

    async def _wait(self) -> None:
        with trio.CancelScope(shield=True):
            await self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                assert stream is not None
                await stream.aclose()


class Passage:
    """A port of ours: a call to it goes on to one of *ports*, as chance has it, if any answers."""

    def __init__(self, rng: random.Random, ports: Callable[[], list[int]]) -> None:
        self.port = 0
        self._rng = rng
        self._ports = ports
        self._is_open = trio.Event()
        self._is_open.set()

    def block(self) -> None:
        """Let nothing through, and nobody know."""
        self._is_open = trio.Event()

    def unblock(self) -> None:
        self._is_open.set()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._pass_on, listeners)

    async def _pass_on(self, caller: trio.SocketStream) -> None:
        async with caller:
            ports = self._ports()
            for port in self._rng.sample(ports, len(ports)):
                try:
                    callee = await trio.open_tcp_stream("127.0.0.1", port)
                except OSError:
                    continue  # just killed
                async with callee, trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, caller, callee, nursery.cancel_scope)
                    nursery.start_soon(self._pump, callee, caller, nursery.cancel_scope)
                return

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        with suppress(trio.BrokenResourceError):
            while chunk := await source.receive_some():
                await self._is_open.wait()
                await sink.send_all(chunk)
        scope.cancel()


# --- the bootstrap side -------------------------------------------------------------------


async def say(channel: Channel, frame: BootstrapFrame) -> None:
    await channel.send(encode_bootstrap(frame))


@dataclass
class Joins:
    count_joined: int = 0
    count_failed: int = 0


async def be_root(url: str, *, task_status: trio.TaskStatus[None]) -> None:
    """Answer each request, by a socket to whichever server it is."""

    async def answer(request: SignalFrame) -> None:
        assert isinstance(request.signal, dict)
        said = {"type": "answer", "sdp": "v=0", "joiner": request.signal["joiner"]}
        with suppress(OutcomeError, trio.BrokenResourceError, trio.EndOfChannel):
            async with open_websocket_channel(url + JOIN) as socket:
                await say(socket, signal_frame(said, destination=request.origin, rank=0))
                await say(socket, Done())

    async with (
        trio.open_nursery() as nursery,
        open_bootstrap(url, rng=random.Random(1)) as bootstrap,
        bootstrap.register(SECRET) as frames,
    ):
        task_status.started()
        async for frame in frames:
            if isinstance(frame, SignalFrame) and is_offer(frame.signal):
                nursery.start_soon(answer, frame)


async def join(url: str, joiner: str) -> bool:
    """Whether the root has answered *joiner*, and nobody got somebody else's answer."""
    with trio.move_on_after(JOIN_PATIENCE), suppress(OutcomeError, trio.BrokenResourceError):
        async with open_websocket_channel(url + JOIN) as socket:
            said = {"type": "offer", "sdp": "v=0", "joiner": joiner}
            await say(socket, signal_frame(said, destination=None, rank=0))
            with suppress(trio.EndOfChannel):
                while True:
                    match decode_bootstrap(await socket.receive()):
                        case SignalFrame() as frame:
                            assert isinstance(frame.signal, dict)
                            assert frame.signal["joiner"] == joiner
                            await say(socket, Done())
                            return True
                        case Refused() | Withdrawn():
                            return False
    return False


async def keep_joining(url: str, joins: Joins) -> None:
    while True:
        if await join(url, f"joiner {joins.count_joined + joins.count_failed}"):
            joins.count_joined += 1
        else:
            joins.count_failed += 1
        await trio.sleep(0.1)


# --- who has held what, and when ----------------------------------------------------------


@dataclass
class Hold:
    identifier: str
    server: int
    taken_at: int
    left_at: int | None = None
    digest: str = "-"
    """By which its peer is known, at another server as well; ``-`` for none."""


@dataclass
class Stall:
    """A time in which the machine did not let a server run: what it then held, it cannot help."""

    server: int
    began_at: int
    ended_at: int


class Town:
    """The cluster: those of its servers that run, and all that ever did."""

    def __init__(
        self, redis: RedisServer, rng: random.Random, folder: Path, nursery: trio.Nursery
    ) -> None:
        self.redis = redis
        self.running: list[Server] = []
        self.gate = Passage(rng, lambda: [server.port for server in self.running])
        """The one address of all servers."""
        self._all: list[Server] = []
        self._rng = rng
        self._folder = folder
        self._nursery = nursery
        self._numbers = count()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.gate.port}"

    async def start_server(self) -> None:
        passage = Passage(self._rng, lambda: [self.redis.port])
        await self._nursery.start(passage.serve)
        server = await Server.start(self._folder / f"journal {next(self._numbers)}", passage)
        self._all.append(server)
        self.running.append(server)

    async def end_server(self, server: Server, *, is_killed: bool) -> None:
        self.running.remove(server)
        await (server.kill() if is_killed else server.stop())

    def journals(self) -> tuple[list[Hold], list[Stall]]:
        """All there were and are, by what servers have written."""
        holds, stalls = [], []
        for number, server in enumerate(self._all):
            open_holds: dict[str, Hold] = {}
            for line in server.journal.read_text().splitlines():
                at, sign, rest = line.split(" ", 2)
                if sign == "~":
                    stalls.append(Stall(number, int(rest), int(at)))
                    continue
                digest, identifier = rest.split(" ", 1)
                if sign == "+":
                    hold = Hold(identifier, number, int(at), digest=digest)
                    open_holds[identifier] = hold
                    holds.append(hold)
                else:
                    open_holds.pop(identifier).left_at = int(at)
            for hold in open_holds.values():
                hold.left_at = server.killed_at
        return holds, stalls


def overlaps(holds: Iterable[Hold], stalls: Collection[Stall] = ()) -> list[str]:
    """Where two peers have held one id at a time, and the first's server was there to see it."""
    found = []
    standing: dict[str, list[Hold]] = {}
    for hold in sorted(holds, key=lambda each: each.taken_at):
        others = [
            each
            for each in standing.get(hold.identifier, [])
            if each.left_at is None or each.left_at > hold.taken_at
        ]
        found += [
            f"{other} and {hold}"
            for other in others
            if (hold.digest == "-" or hold.digest != other.digest)
            and not any(
                stall.server == other.server and stall.began_at < hold.taken_at < stall.ended_at
                for stall in stalls
            )
        ]
        standing[hold.identifier] = [*others, hold]
    return found


@asynccontextmanager
async def open_town(rng: random.Random, folder: Path) -> AsyncIterator[Town]:
    async with open_redis() as redis, open_background_nursery() as nursery:
        town = Town(redis, rng, folder, nursery)
        await nursery.start(town.gate.serve)
        try:
            async with trio.open_nursery() as starting:
                for _ in range(COUNT_SERVERS):
                    starting.start_soon(town.start_server)
            yield town
        finally:
            for server in town.running:
                await server.kill()


# --- the hand -----------------------------------------------------------------------------


Deed: TypeAlias = tuple[float, str, float]
"""The moment, what happens, and for how long."""

TROUBLES_OF_REDIS = [
    # For so short a time that holders keep their ids, and for too long.
    ("Redis dies", 0.05),
    ("Redis dies", 0.4),
    ("Redis stands still", 0.4),
    ("Redis stands still", 1.2 * LEASE),
    ("a server is cut off from Redis", 1.5 * LEASE),
]


def plan(rng: random.Random, rounds: int) -> list[Deed]:
    """All troubles of Redis *rounds* times, one after the other, and as long those of servers."""
    deeds: list[Deed] = []
    now = 0.0
    for _ in range(rounds):
        for deed, lasts in rng.sample(TROUBLES_OF_REDIS, len(TROUBLES_OF_REDIS)):
            now += rng.uniform(0.3, 0.9)
            deeds.append((now, deed, lasts))
            now += lasts

    def add(what: list[str], interval: float) -> None:
        for _ in range(max(1, round(now / interval))):
            deed = rng.uniform(0, now), rng.choice(what), rng.uniform(0.0, 1.0)
            deeds.append(deed)

    add(["server dies", "server dies", "server stops"], 1.7)
    add(["somebody moves", "somebody loses touch"], 0.3)
    add(["somebody changes ids"], 1.0)
    return sorted(deeds)


async def carry_out(deeds: list[Deed], town: Town, crowd: Crowd, rng: random.Random) -> None:
    """Do all of it; when this returns, all that was broken is whole again."""
    began_at = trio.current_time()
    redis_lock = trio.Lock()

    async def trouble_redis(deed: str, lasts: float) -> None:
        async with redis_lock:  # on a slow machine one may not be over when the next begins
            match deed:
                case "Redis dies":
                    await town.redis.kill()
                    await trio.sleep(lasts)
                    await town.redis.start()
                case "Redis stands still":
                    town.redis.pause()
                    await trio.sleep(lasts)
                    town.redis.resume()
                case _:
                    passages = [server.passage for server in town.running[:1]]
                    for passage in passages:
                        passage.block()
                    await trio.sleep(lasts)
                    for passage in passages:
                        passage.unblock()

    async def replace_server(deed: str, lasts: float) -> None:
        if town.running:
            server = rng.choice(town.running)
            await town.end_server(server, is_killed=deed == "server dies")
            await trio.sleep(lasts)
            await town.start_server()

    async with trio.open_nursery() as nursery:
        for at, deed, lasts in deeds:
            await trio.sleep_until(began_at + at)
            match deed:
                case "server dies" | "server stops":
                    nursery.start_soon(replace_server, deed, lasts)
                case "somebody moves":
                    rng.choice(crowd.wanderers).move()
                case "somebody loses touch":
                    rng.choice(crowd.wanderers).lose_touch(lasts)
                case "somebody changes ids":
                    rng.choice(crowd.wanderers).want(rng.choice(IDS))
                case _:
                    nursery.start_soon(trouble_redis, deed, lasts)


async def keep_writing(crowd: Crowd, rng: random.Random) -> None:
    while True:
        await rng.choice(crowd.wanderers).say(rng.choice(IDS))
        await trio.sleep(0.02)


# --- the test -----------------------------------------------------------------------------


def seed_and_rounds() -> tuple[int, int]:
    profile = settings()
    seed = 1 if profile.derandomize else random.SystemRandom().randrange(10**6)
    return int(os.environ.get("CLUSTER_SEED", seed)), 30 if profile.max_examples > 1000 else 1


async def test_whoever_is_killed_no_id_is_held_twice_and_all_are_registered_again(
    tmp_path: Path,
) -> None:
    seed, rounds = seed_and_rounds()
    rng = random.Random(seed)
    deeds = plan(rng, rounds)
    print(f"CLUSTER_SEED={seed}", *deeds, sep="\n")  # noqa: T201 - pytest shows it on failure
    joins = Joins()
    async with open_town(rng, tmp_path) as town, open_background_nursery() as nursery:
        crowd = Crowd(Internet(), town.url, rng, retry_delay=0.2)
        for number in range(COUNT_PEERS):
            secret = f"the-secret-of-{number}-alone" if number % 3 else None
            nursery.start_soon(Wanderer(crowd, IDS[number % len(IDS)], secret=secret).run)
        with trio.fail_after(PATIENCE):
            await nursery.start(be_root, town.url)
            await until_settled(town, crowd)
        nursery.start_soon(keep_joining, town.url, joins)
        nursery.start_soon(keep_writing, crowd, rng)
        await carry_out(deeds, town, crowd, rng)
        with trio.fail_after(PATIENCE):
            await until_settled(town, crowd)
            await until_all_hear_each_other(crowd)
            for server in town.running:
                while not await join(f"ws://127.0.0.1:{server.port}", "latecomer"):
                    pass
        assert overlaps(*town.journals()) == []
        # It was no idle time: some got through to each other, and some had to begin anew.
        assert sum(letter.heard_by is not None for letter in crowd.letters) > 20
        assert sum(each.count_registrations for each in crowd.wanderers) > len(IDS)
        assert joins.count_joined > 0


async def until_settled(town: Town, crowd: Crowd) -> None:
    """Wait until each id that is wanted is held, once: so say servers and peers."""
    while True:
        held = [hold.identifier for hold in town.journals()[0] if hold.left_at is None]
        if crowd.is_settled and sorted(held) == sorted(crowd.registered):
            return
        await trio.sleep(0.1)


async def until_all_hear_each_other(crowd: Crowd) -> None:
    """Wait until a letter of each has come to each: to whom it was for, and to no other."""
    missing = {(one, other) for one in crowd.registered for other in crowd.registered}
    letters: list[Letter] = []
    while missing:
        for sender, recipient in missing:
            wanderer = crowd.registered.get(sender)
            letter = await wanderer.say(recipient) if wanderer is not None else None
            letters += [letter] if letter is not None else []
        await trio.sleep(0.1)
        missing -= {(each.sender, each.recipient) for each in letters if each.heard_by is not None}


def test_an_id_held_twice_would_be_seen() -> None:
    first, second = Hold("x", 0, 10, 30), Hold("x", 1, 20, 40)
    assert len(overlaps([second, first])) == 1
    assert len(overlaps([Hold("x", 0, 10), second])) == 1
    first.left_at = 20
    assert overlaps([first, second, Hold("y", 2, 15, 25)]) == []
    moved = [Hold("x", 0, 10, 30, "ada"), Hold("x", 1, 20, 25, "ada"), Hold("x", 2, 27, 40, "eve")]
    assert overlaps(moved[:2]) == []
    assert len(overlaps(moved)) == 1, "the server that was left holds it still"


def test_an_id_held_twice_by_a_server_that_stood_still_would_not_count() -> None:
    holds = [Hold("x", 0, 10, 30), Hold("x", 1, 20, 40)]
    assert overlaps(holds, [Stall(0, 5, 35)]) == []
    assert len(overlaps(holds, [Stall(1, 5, 35)])) == 1
    assert len(overlaps(holds, [Stall(0, 25, 35), Stall(0, 5, 15)])) == 1
