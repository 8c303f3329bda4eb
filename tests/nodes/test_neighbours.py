"""Peers with arcs: opened by callbacks, over a bridge, on a connection that there is; removed."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.nodes.neighbourhoods import SETTLING, open_world, past
from trio_overlay.errors import PeerNotFound
from trio_overlay.nodes.neighbours import ArcClose, ArcOpen


async def test_first_arc_comes_up_by_callbacks_and_carries_messages_both_ways(
    autojump_clock: MockClock,
) -> None:
    async with open_world("a", "b") as world:
        a, b = world["a"], world["b"]
        await world.link("a", "b")
        await trio.sleep(SETTLING)
        assert a.outview == {"b-I": 1}
        assert b.inview == {"a-O": 1}
        assert a.inview == b.outview == {}
        await a.send("b-I", {"hello": [1, None, "ü"]})
        received = await b.messages.receive()
        assert (received.peer, received.data) == ("a-O", {"hello": [1, None, "ü"]})
        await b.send(received.peer, "hello yourself")
        assert (await a.messages.receive()).data == "hello yourself"
        assert past(a.events) == [ArcOpen("b-I", True)]
        assert past(b.events) == [ArcOpen("a-O", False)]


async def test_peer_bridges_an_arc_between_two_neighbours(autojump_clock: MockClock) -> None:
    async with open_world("bridge", "b", "c") as world:
        await world.link("bridge", "b")
        await world.link("bridge", "c")
        await world["bridge"].connect("b-I", "c-I")
        await trio.sleep(SETTLING)
        assert world["b"].outview == {"c-I": 1}
        assert world["c"].inview == {"bridge-O": 1, "b-O": 1}
        await world["b"].send("c-I", "direct")
        assert (await world["c"].messages.receive()).peer == "b-O"
        assert len(world["bridge"]._bridging) == 0


async def test_arc_more_to_a_neighbour_needs_no_connection_more(autojump_clock: MockClock) -> None:
    async with open_world("a", "b") as world:
        a, b = world["a"], world["b"]
        await world.link("a", "b")
        before = world.network.count_peers.copy()
        assert await a.connect(to="b-I") == "b-I"
        await b.connect(from_="a-O")
        await trio.sleep(SETTLING)
        assert a.outview == {"b-I": 3}
        assert b.inview == {"a-O": 3}
        assert world.network.count_peers == before
        for left in (2, 1, 0):
            assert a.disconnect("b-I") == 1
            await trio.sleep(SETTLING)
            assert sum(a.outview.values()) == sum(b.inview.values()) == left
        assert a.disconnect("b-I") == 0


async def test_arc_back_makes_a_connection_of_its_own(autojump_clock: MockClock) -> None:
    async with open_world("a", "b") as world:
        a, b = world["a"], world["b"]
        await world.link("a", "b")
        assert await b.connect(to="a-O") == "a-I"
        await trio.sleep(SETTLING)
        assert b.outview == {"a-I": 1}
        assert a.inview == {"b-O": 1}
        assert a.unique_neighbours() == ["b"]


async def test_connection_without_arcs_is_kept_for_its_time_and_revived(
    autojump_clock: MockClock,
) -> None:
    async with open_world("a", "b") as world:
        a, b = world["a"], world["b"]
        await world.link("a", "b")
        a.disconnect("b-I")
        await trio.sleep(59)
        assert world.network.count_open_peers == 2
        await a.connect(to="b-I")
        await trio.sleep(100)
        assert (a.outview, b.inview) == ({"b-I": 1}, {"a-O": 1})
        b.disconnect("a-O")
        await trio.sleep(SETTLING)
        assert past(a.events)[-1] == ArcClose("b-I", True, "removed by the neighbour")
        await trio.sleep(61)
        assert world.network.count_open_peers == 0
        with pytest.raises(PeerNotFound):
            await a.send("b-I", "too late", retries=0)
