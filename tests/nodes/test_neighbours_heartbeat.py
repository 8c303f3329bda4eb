"""Who is gone without a word is missed: neighbours of ours are asked for signs of life."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from tests.nodes.neighbourhoods import open_world, past
from tests.nodes.samplings import SETTLING, open_town
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.nodes.heartbeat import Heartbeat
from trio_overlay.nodes.neighbours import ArcClose, ArcOpen, open_neighbours
from trio_overlay.protocol.neighbours import (
    ARCS,
    CREDIT,
    EXTENSIONS,
    Beat,
)
from trio_overlay.signaling.bootstrap import open_bootstrap
from trio_overlay.signaling.server import serve_signaling

HEARTBEAT = Heartbeat(interval=2.0, timeout=8.0)


async def test_neighbour_that_is_gone_without_a_word_is_missed(autojump_clock: MockClock) -> None:
    async with open_world("a", "b", "c", heartbeat=HEARTBEAT) as world:
        a = world["a"]
        for name in "bc":
            await world.link("a", name)
        await world.link("c", "a")
        await trio.sleep(100)
        assert past(a.events) == [ArcOpen("b-I", True), ArcOpen("c-I", True), ArcOpen("c-O", False)]
        world.network.crash("b", noticed_after=None)
        await trio.sleep(8.1)
        assert past(a.events) == [ArcClose("b-I", True, "no sign of life for 8 s")]
        world.network.freeze("c")
        await trio.sleep(8.1)
        assert {event.peer for event in past(a.events)} == {"c-I", "c-O"}
        assert a.unique_neighbours() == []
        assert world["c"].unique_neighbours() == [], "it has missed us, too"
        world.network.thaw("c")


async def test_neighbour_is_asked_once_in_a_silence_and_then_left(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_world("b", heartbeat=HEARTBEAT) as world,
        world.stranger("x", "b") as stranger,
    ):
        began_at = trio.current_time()
        assert await stranger.hear() == Beat(asks=True)
        assert trio.current_time() - began_at == pytest.approx(2, abs=0.2)
        await stranger.say(Beat(asks=False))
        assert await stranger.hear() == Beat(asks=True)
        with pytest.raises(trio.EndOfChannel):
            await stranger.hear()
        assert trio.current_time() - began_at == pytest.approx(10, abs=0.5)
        assert world["b"].inview == {}


async def test_who_was_held_up_itself_asks_again(autojump_clock: MockClock) -> None:
    """As a laptop that was closed for a minute: what came meanwhile has not been read yet."""
    async with (
        open_world("b", heartbeat=HEARTBEAT) as world,
        world.stranger("x", "b") as stranger,
    ):
        for _ in range(3):
            assert await stranger.hear() == Beat(asks=True)
            autojump_clock.jump(60)
        assert await stranger.hear() == Beat(asks=True)
        await stranger.say(Beat(asks=False))
        assert await stranger.hear() == Beat(asks=True)
        assert world["b"].inview == {"x-O": 1}


async def test_data_are_signs_of_life_and_who_talks_is_not_asked(autojump_clock: MockClock) -> None:
    async with (
        open_world("b", heartbeat=HEARTBEAT) as world,
        world.stranger("x", "b") as stranger,
    ):
        for number in range(30):
            await stranger.say(number)
            await trio.sleep(1)
        assert world["b"].inview == {"x-O": 1}
        await stranger.say(Beat(asks=True))
        assert await stranger.hear() == Beat(asks=False), "nothing was asked meanwhile"


@pytest.mark.parametrize("extensions", [frozenset[str](), frozenset({ARCS, CREDIT})])
async def test_who_does_not_understand_signs_of_life_is_not_asked_for_any(
    extensions: frozenset[str], autojump_clock: MockClock
) -> None:
    """One of the originals would die of the frame."""
    async with (
        open_world("b", heartbeat=HEARTBEAT) as world,
        world.stranger("x", "b", extensions=extensions) as stranger,
    ):
        with trio.move_on_after(100):
            raise AssertionError(await stranger.channel.receive())
        assert world["b"].inview == {"x-O": 1}
        await stranger.say({"type": "MBeat", "asks": True})  # a message of its own, to us
        assert (await world["b"].messages.receive()).data == {"type": "MBeat", "asks": True}
        await stranger.hear_nothing()


async def test_who_asks_for_no_signs_of_life_gives_them(autojump_clock: MockClock) -> None:
    async with (
        open_world("b", heartbeat=None) as world,
        world.stranger("x", "b", extensions=EXTENSIONS) as stranger,
    ):
        await stranger.hear_nothing()
        await trio.sleep(100)
        await stranger.say(Beat(asks=True))
        assert await stranger.hear() == Beat(asks=False)
        assert world["b"].inview == {"x-O": 1}


async def test_slow_reader_is_alive(autojump_clock: MockClock) -> None:
    """What waits to be read holds back no sign of life."""
    async with open_world("a", "b", heartbeat=HEARTBEAT) as world, trio.open_nursery() as nursery:
        a, b = world["a"], world["b"]
        await world.link("a", "b")
        await a.send("b-I", "first")
        await b.messages.receive()

        async def send_all() -> None:
            for _ in range(30):
                await a.send("b-I", "x" * 20_000)

        nursery.start_soon(send_all)
        await trio.sleep(60)
        assert (a.outview, b.inview) == ({"b-I": 1}, {"a-O": 1})
        for _ in range(30):
            await b.messages.receive()


async def test_who_samples_replaces_its_arcs_to_one_that_is_gone_without_a_word(
    autojump_clock: MockClock,
) -> None:
    async with open_town("a", "b", "c", interval=1000, heartbeat=HEARTBEAT) as town:
        await town.join("b", "a")
        await town.join("c", "a")
        await trio.sleep(SETTLING)
        town.network.freeze("c")
        await trio.sleep(8.1 + SETTLING)
        assert town["a"].view.keys() == {"b"}
        assert town["b"].view.keys() == {"a"}
        town.network.thaw("c")


PROGRAM = """
import sys, trio
from trio_overlay import open_bootstrap, open_neighbours

async def main():
    async with open_neighbours("test", peer="doomed") as node:
        async with open_bootstrap(sys.argv[1]) as client:
            await node.attach(client.connect())
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.webrtc
async def test_program_that_is_killed_is_missed_before_the_network_notices() -> None:
    with trio.fail_after(180):
        async with (
            open_background_nursery() as nursery,
            open_neighbours("test", peer="survivor", heartbeat=Heartbeat(0.5, 3)) as survivor,
        ):
            start = partial(serve_signaling, "secret", host="127.0.0.1", port=0)
            url = (await nursery.start(start)).urls[0]
            run = partial(trio.run_process, [sys.executable, "-c", PROGRAM, url], check=False)
            process: trio.Process = await nursery.start(
                partial(run, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
            )
            async with open_bootstrap(url) as client, client.root("secret") as requests:
                request = await anext(aiter(requests))
                assert (
                    await survivor.attach(client.answer(request), is_outgoing=False) == "doomed-O"
                )
            assert await survivor.events.receive() == ArcOpen("doomed-O", False)
            os.kill(process.pid, signal.SIGKILL)
            lost = await survivor.events.receive()
            assert lost == ArcClose("doomed-O", False, "no sign of life for 3 s")
