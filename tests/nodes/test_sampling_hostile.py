"""What a neighbour says that is no good one, or one of the originals, costs a peer nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from tests.nodes.neighbourhoods import by_callbacks
from tests.nodes.samplings import SETTLING, Samplings, by_peer, open_town
from trio_overlay.errors import ConnectionFailed
from trio_overlay.nodes.neighbours import Neighbours, open_neighbours
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.sampling_frames import PROTOCOL_ID

LONG = 1000.0


@asynccontextmanager
async def open_stranger(*names: str) -> AsyncIterator[tuple[Samplings, Neighbours]]:
    """*names*, the first of whom has an arc to each of the others; and a peer that says what we
    make it say, with an arc to that first one."""
    async with (
        open_town(*names, interval=LONG) as town,
        open_neighbours(PROTOCOL_ID, peer="x", network=town.network.host("x")) as stranger,
    ):
        first, *others = names
        for name in others:
            await by_callbacks(town[first].neighbours, town[name].neighbours)
        await by_callbacks(stranger, town[first].neighbours)
        yield town, stranger


async def words_to(stranger: Neighbours) -> list[JSON]:
    words = []
    while len(stranger.messages):
        words.append(stranger.messages.receive_nowait().data)
    await trio.lowlevel.checkpoint()
    return words


# --- the words of the originals -----------------------------------------------------------


async def test_newcomer_of_the_older_original_gets_arcs_and_no_word(
    autojump_clock: MockClock,
) -> None:
    async with open_stranger("a", "b", "c") as (_, original):
        await original.send("a-I", {"type": "MJoin"})
        await trio.sleep(SETTLING)
        assert original.inview == {"b-O": 1, "c-O": 1}
        assert await words_to(original) == []


async def test_newcomer_of_the_newer_original_is_told_when_arcs_are_on_their_way(
    autojump_clock: MockClock,
) -> None:
    async with open_stranger("a", "b", "c") as (_, original):
        await original.send("a-I", {"jobId": "42", "type": "MJoin"})
        await trio.sleep(SETTLING)
        assert await words_to(original) == [
            {"type": "MJoinBack", "jobId": "42", "topology": False, "arcs": 2}
        ]


async def test_originals_exchange_with_us(autojump_clock: MockClock) -> None:
    for said in ({"inview": "x-I", "type": "MExchange"}, {"id": "x", "type": "MExchange"}):
        async with open_stranger("a", "b", "c", "d") as (town, original):
            await original.send("a-I", said)
            await trio.sleep(SETTLING)
            assert sum(town["a"].view.values()) == 1
            assert sum(original.outview.values()) == 1 + 2  # its own, and half of ours
            town.check_quiet()


async def test_our_words_are_those_that_both_originals_understand(
    autojump_clock: MockClock,
) -> None:
    async with open_stranger("a") as (town, original):
        await original.send("a-I", {"type": "MJoin"})
        await trio.sleep(SETTLING)
        assert original.inview == {"a-O": 1}
        await trio.sleep(LONG)
        assert await words_to(original) == [
            {"inview": "a-I", "id": "a", "arcs": 1, "type": "MExchange"}
        ]
        assert original.outview == {"a-I": 2}, "we asked it for an arc instead of ours"
        assert town["a"].view == {}


async def test_original_that_leaves_is_forgotten(autojump_clock: MockClock) -> None:
    async with open_stranger("a", "b") as (town, original):
        await town["a"].neighbours.connect(to="x-O")
        await trio.sleep(1)
        assert town["a"].view == {"b": 1, "x": 1}
        await original.send("a-I", {"type": "MLeave"})
        await trio.sleep(1)
        assert town["a"].view == {"b": 1}
        assert original.inview == {}


# --- what no original says ----------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        None,
        "MExchange",
        [],
        {"type": "MExchange", "inview": 7},
        {"type": "MExchange", "arcs": -1},
        {"type": "MJoin", "jobId": ["x"]},
        {"type": "MJoinBack", "jobId": "guessed", "topology": True, "arcs": 10**6},
        {"type": "MMeow"},
    ],
)
async def test_what_does_not_belong_is_ignored(said: JSON, autojump_clock: MockClock) -> None:
    async with open_stranger("a", "b") as (town, stranger):
        await stranger.send("a-I", said)
        await trio.sleep(SETTLING)
        assert town["a"].view == {"b": 1}
        await stranger.send("a-I", {"type": "MJoin"})
        await trio.sleep(SETTLING)
        assert by_peer(stranger.inview) == {"b": 1}, "it is heard still"


async def test_flood_of_exchanges_empties_no_view(autojump_clock: MockClock) -> None:
    async with open_stranger("a", "b", "c", "d", "e") as (town, stranger):
        for _ in range(100):
            await stranger.send("a-I", {"type": "MExchange", "inview": "x-I"})
        await trio.sleep(SETTLING)
        assert sum(town["a"].view.values()) == 2
        await trio.sleep(LONG / 2)
        for _ in range(100):
            await stranger.send("a-I", {"type": "MExchange", "inview": "x-I"})
        await trio.sleep(SETTLING)
        assert sum(town["a"].view.values()) == 1


async def test_flood_of_joins_counts_once(autojump_clock: MockClock) -> None:
    async with open_stranger("a", "b", "c") as (_, stranger):
        for _ in range(100):
            await stranger.send("a-I", {"type": "MJoin"})
        await trio.sleep(SETTLING)
        assert stranger.inview == {"b-O": 1, "c-O": 1}


async def test_word_of_somebody_without_an_arc_changes_nothing(autojump_clock: MockClock) -> None:
    async with open_stranger("a", "b", "c") as (town, stranger):
        stranger.disconnect("a-I")
        await trio.sleep(1)
        for said in ({"type": "MExchange"}, {"type": "MJoin"}, {"type": "MLeave"}):
            await stranger.send("a-I", said)  # the connection is kept for a minute
        await trio.sleep(SETTLING)
        assert town["a"].view == {"b": 1, "c": 1}
        assert stranger.inview == {}


async def test_neighbour_that_takes_no_message_is_given_up(autojump_clock: MockClock) -> None:
    async with open_town("a", "silent", "b", interval=LONG) as town:
        a = town["a"]
        for name in ("silent", "b"):
            await by_callbacks(a.neighbours, town[name].neighbours)
        link = a.neighbours._hood.find_link("silent-I", PROTOCOL_ID)
        assert link is not None
        async with link._sending:  # as if its buffers were full
            await trio.sleep(LONG + SETTLING - trio.current_time())
        assert set(a.view) == {"b"}
        assert "silent-I" not in a.neighbours.outview


async def test_view_is_bounded_however_many_arcs_a_neighbour_bids_us_to_open(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_town("a", interval=LONG, max_arcs=5) as town,
        open_neighbours(PROTOCOL_ID, peer="x", network=town.network.host("x")) as stranger,
    ):
        await by_callbacks(stranger, town["a"].neighbours)
        for _ in range(20):
            await stranger.connect(from_="a-I")
            await trio.sleep(1)
        assert town["a"].view == {"x": 5}
        assert stranger.inview == {"a-O": 5}


async def test_neighbour_that_refuses_every_arc_is_not_asked_without_end(
    autojump_clock: MockClock,
) -> None:
    async with open_town("a", "b", "c", interval=LONG) as town:
        hood = town["a"].neighbours._hood
        for name in "bc":
            await by_callbacks(town[name].neighbours, town["a"].neighbours)
            town[name].neighbours._hood.acceptor.max_attempts = 0
        tids, make_tid = [], hood.make_tid

        def make_and_count() -> str:
            tids.append(make_tid())
            return tids[-1]

        hood.make_tid = make_and_count  # type: ignore[method-assign]
        with pytest.raises(ConnectionFailed, match="many"):
            await town["a"].neighbours.connect(to="b-O")
        await trio.sleep(60)
        assert 30 < len(tids) < 120
