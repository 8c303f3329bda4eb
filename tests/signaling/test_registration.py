"""A root at its server: what it is told, what it says, and when it takes the server for dead."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from trio_overlay.channels.channel import Channel
from trio_overlay.channels.memory import MemoryChannel, memory_channel_pair
from trio_overlay.channels.network import Network, PeerConnection
from trio_overlay.protocol.bootstrap import (
    ROOT_HEARTBEAT_INTERVAL,
    AskSnapshot,
    BootstrapFrame,
    Heartbeat,
    Hello,
    Refused,
    Registration,
    Role,
    Withdrawn,
    decode_bootstrap,
    encode_bootstrap,
)
from trio_overlay.signaling.registration import (
    MIN_RECONNECT_DELAY,
    OUR_SILENCE_TIMEOUT,
    ROLE_TIMEOUT,
    SILENCE_TIMEOUT,
    Registered,
    RootFrame,
)
from trio_overlay.signaling.snapshots import MAX_QUESTIONS, Describe, Picture

ROOM = 4
"""Frames that a root may have said and its server not read, before it has to wait."""


class Dialled(Network):
    """A network with one server, whose ends of the sockets the test has."""

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.dialled_at: list[float] = []
        self._accepted, self.accept = trio.open_memory_channel[MemoryChannel](10)

    def open_peer(self, *, initiator: bool) -> AbstractAsyncContextManager[PeerConnection]:
        raise NotImplementedError

    @asynccontextmanager
    async def dial(self, url: str) -> AsyncIterator[Channel]:
        await trio.lowlevel.checkpoint()
        ours, server = memory_channel_pair(max_buffered_frames=ROOM)
        self.urls.append(url)
        self.dialled_at.append(trio.current_time())
        self._accepted.send_nowait(server)
        try:
            yield ours
        finally:
            ours.close_nowait()


class Root:
    """A root that registers in the background, and the server's end of its first socket."""

    def __init__(
        self, network: Dialled, server: MemoryChannel, told: trio.MemoryReceiveChannel[RootFrame]
    ) -> None:
        self.network = network
        self.server = server
        self._told = told

    def told(self) -> list[RootFrame]:
        """What its backlog has got since the last look."""
        frames = []
        while True:
            try:
                frames.append(self._told.receive_nowait())
            except trio.WouldBlock:
                return frames

    async def hear(self, frame: BootstrapFrame) -> None:
        await self.server.send(encode_bootstrap(frame))


@asynccontextmanager
async def open_root(describe: Describe | None = None) -> AsyncIterator[Root]:
    network = Dialled()
    backlog, told = trio.open_memory_channel[RootFrame](100)
    registered = Registered(
        network, "ws://server", "/s/root", Registration("t"), describe, backlog, random.Random(1)
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(registered.stay)
        yield Root(network, await network.accept.receive(), told)
        nursery.cancel_scope.cancel()


async def take_all(server: MemoryChannel, said: list[BootstrapFrame]) -> None:
    with suppress(trio.EndOfChannel):
        while True:
            said.append(decode_bootstrap(await server.receive()))


def refused(said: list[BootstrapFrame]) -> list[str | None]:
    """The askers that were."""
    return [frame.destination for frame in said if isinstance(frame, Refused)]


async def test_server_of_ours_that_is_silent_is_left_for_a_new_socket(
    autojump_clock: MockClock,
) -> None:
    async with open_root() as root:
        await root.hear(Hello(""))
        await root.hear(Role(is_active=True, term=7, count_others=1))
        await trio.sleep(OUR_SILENCE_TIMEOUT - 0.1)
        assert root.told() == [Role(is_active=True, term=7, count_others=1)]
        await root.hear(Heartbeat())
        heard_at = trio.current_time()
        again = await root.network.accept.receive()
        assert again is not root.server
        waited = root.network.dialled_at[1] - heard_at - OUR_SILENCE_TIMEOUT
        assert MIN_RECONNECT_DELAY / 2 <= waited <= MIN_RECONNECT_DELAY
        assert ["term=7" in url for url in root.network.urls] == [False, True]


async def test_old_server_makes_the_root_active_and_may_be_silent_until_its_first_heartbeat(
    autojump_clock: MockClock,
) -> None:
    async with open_root() as root, trio.open_nursery() as nursery:
        nursery.start_soon(take_all, root.server, [])
        await trio.sleep(ROLE_TIMEOUT + 0.1)
        assert root.told() == [Role(is_active=True, term=0, count_others=0)]
        await trio.sleep(10 * SILENCE_TIMEOUT)
        await root.hear(Heartbeat())
        await trio.sleep(SILENCE_TIMEOUT - 0.1)
        assert len(root.network.urls) == 1
        await trio.sleep(0.1 + MIN_RECONNECT_DELAY)
        assert len(root.network.urls) == 2
        assert root.told() == []


async def test_signs_of_life_do_not_pile_up_while_the_server_does_not_read(
    autojump_clock: MockClock,
) -> None:
    async with open_root() as root:
        await trio.sleep(100 * ROOT_HEARTBEAT_INTERVAL)
        said: list[BootstrapFrame] = []
        with trio.move_on_after(ROOT_HEARTBEAT_INTERVAL / 2):
            await take_all(root.server, said)
        assert said == [Heartbeat()] * (ROOM + 1)  # one waits
        with trio.move_on_after(10 * ROOT_HEARTBEAT_INTERVAL):
            await take_all(root.server, said)
        assert ROOM + 10 <= len(said) <= ROOM + 11


async def test_questions_beyond_sixteen_are_refused_and_so_are_no_more_than_sixteen_at_a_time(
    autojump_clock: MockClock,
) -> None:
    async def describe(timeout: float) -> Picture:
        await trio.sleep_forever()
        raise AssertionError

    async with open_root(describe) as root:
        for number in range(4 * MAX_QUESTIONS):
            await root.hear(AskSnapshot(50.0, f"asker{number}"))
        said: list[BootstrapFrame] = []
        with trio.move_on_after(ROOT_HEARTBEAT_INTERVAL / 2):
            await take_all(root.server, said)
        assert refused(said)[0] == f"asker{MAX_QUESTIONS}"
        assert MAX_QUESTIONS <= len(said) == len(refused(said)) <= MAX_QUESTIONS + ROOM
        # One that is taken back makes room for another.
        await root.hear(Withdrawn("asker0"))
        await trio.lowlevel.checkpoint()
        await root.hear(AskSnapshot(50.0, "late"))
        await root.hear(AskSnapshot(50.0, "too late"))
        said.clear()
        with trio.move_on_after(ROOT_HEARTBEAT_INTERVAL / 2):
            await take_all(root.server, said)
        assert refused(said) == ["too late"]


@pytest.mark.parametrize("reason", ["it is stopping", ""])
async def test_root_whose_server_hangs_up_registers_again(
    autojump_clock: MockClock, reason: str
) -> None:
    async with open_root() as root:
        await root.server.aclose(reason)
        with trio.fail_after(1):
            await root.network.accept.receive()
