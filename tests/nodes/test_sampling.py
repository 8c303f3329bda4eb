"""Peers that sample their network: joining, exchanging, leaving, losing each other."""

from __future__ import annotations

import random
from collections.abc import Awaitable
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock

from tests.nodes.neighbourhoods import by_callbacks
from tests.nodes.samplings import INTERVAL, SETTLING, Samplings, open_town
from trio_overlay.errors import ConnectionFailed, PeerNotFound, UsageError
from trio_overlay.nodes.neighbours import Neighbours, open_neighbours
from trio_overlay.nodes.sampling import FindContact, SamplingState, StateChange, open_sampling
from trio_overlay.protocol.sampling_frames import PROTOCOL_ID
from trio_overlay.testing.determinism import virtual_test

LONG = 1000.0
"""An interval in which nobody but newcomers begins an exchange."""


async def test_two_peers_have_an_arc_each(autojump_clock: MockClock) -> None:
    async with open_town("a", "b", interval=LONG) as town:
        assert town["a"].state is SamplingState.DISCONNECTED
        await town.join("b", "a")
        assert town["b"].view == {"a": 1}
        await trio.sleep(SETTLING)
        assert town["a"].view == {"b": 1}
        town.check_quiet()
        changes = [town["a"].events.receive_nowait() for _ in range(len(town["a"].events))]
        assert changes == [
            StateChange(SamplingState.PARTIALLY_CONNECTED),
            StateChange(SamplingState.CONNECTED),
        ]


async def test_newcomer_gets_an_arc_from_each_that_its_contact_knows(
    autojump_clock: MockClock,
) -> None:
    async with open_town("contact", "a", "b", "c", "new", interval=LONG) as town:
        for name in "abc":
            await by_callbacks(town["contact"].neighbours, town[name].neighbours)
        await town.join("new", "contact")
        await trio.sleep(2)
        assert [town[name].view for name in "abc"] == [{"new": 1}] * 3
        assert town["contact"].view == {"a": 1, "b": 1, "c": 1}
        assert town["new"].view == {"contact": 1}
        town.check_quiet()


async def test_newcomer_exchanges_soon_and_not_only_after_an_interval(
    autojump_clock: MockClock,
) -> None:
    async with open_town("contact", "a", "b", "c", "new", interval=LONG) as town:
        for name in "abc":
            await by_callbacks(town["contact"].neighbours, town[name].neighbours)
        await town.join("new", "contact")
        await trio.sleep(LONG / 10 + SETTLING)
        assert sum(town["new"].view.values()) == 2
        assert sum(town["contact"].view.values()) == 2
        town.check_quiet()
        assert town.is_connected()


@virtual_test
async def test_exchanges_mix_the_views_and_keep_all_arcs() -> None:
    async with open_town(interval=LONG) as town:
        await town.grow(10, interval=LONG)
        await trio.sleep(LONG / 10 + SETTLING)
        town.check_quiet()
        arcs, seen = town.count_arcs, {name: set(town[name].view) for name in town.nodes}
        for _ in range(3):
            await trio.sleep(LONG)
            assert town.count_arcs == arcs
            assert town.is_connected()
            town.check_quiet()
            for name, node in town.nodes.items():
                seen[name] |= set(node.view)
        # Views that stay as they are show no more than there are arcs; with 20 seeds each of the
        # town and of the scheduler it was at least 1.9 times as many.
        assert sum(len(peers) for peers in seen.values()) > 1.5 * arcs


@virtual_test
async def test_size_is_estimated() -> None:
    async with open_town() as town:
        await town.grow(8, every=10)
        await trio.sleep(6 * INTERVAL)
        estimates = sorted(node.estimate_size() for node in town.nodes.values())
        assert 4 < estimates[4] < 16


async def test_leaver_introduces_those_it_leaves_and_everybody_forgets_it(
    autojump_clock: MockClock,
) -> None:
    async with open_town("leaver", "a", "b", "c", interval=LONG) as town:
        leaver = town["leaver"]
        for name in "ab":
            await by_callbacks(leaver.neighbours, town[name].neighbours)
        await by_callbacks(town["c"].neighbours, leaver.neighbours)
        await leaver.leave()
        assert leaver.has_left
        assert leaver.view == {}
        assert leaver.neighbours.outview == leaver.neighbours.inview == {}
        await trio.sleep(1)
        assert town["c"].view in ({"a": 1}, {"b": 1}), "one of two arcs less a"
        await town.remove("leaver")
        await trio.sleep(1)
        town.check_quiet()
        with pytest.raises(UsageError):
            await leaver.join("a-I")
        with pytest.raises(UsageError):
            await leaver.leave()


async def test_who_leaves_its_context_is_missed_like_one_that_crashed(
    autojump_clock: MockClock,
) -> None:
    async with open_town(interval=LONG) as town:
        await town.grow(8, interval=LONG)
        await trio.sleep(LONG / 10 + SETTLING)
        await town.remove("p3")
        await trio.sleep(SETTLING)
        assert not any("p3" in node.view for node in town.nodes.values())
        town.check_quiet()


@virtual_test
async def test_crashed_peers_are_forgotten_and_the_rest_stay_one_network() -> None:
    async with open_town() as town:
        await town.grow(10, every=10)
        await trio.sleep(3 * INTERVAL)
        before = town.count_arcs / 10
        for name in ("p1", "p4", "p7"):
            town.crash(name)
        await trio.sleep(3 * INTERVAL)
        assert not any(set(node.view) - set(town.nodes) for node in town.nodes.values())
        assert town.is_connected()
        assert -0.5 < before - town.count_arcs / 7 < 1.5  # ln(10/7) is 0.36


async def test_arc_in_the_hands_of_one_that_dies_is_taken_back(autojump_clock: MockClock) -> None:
    async with open_town("a", "taker", "x", "y", interval=LONG) as town:
        a = town["a"]
        for name in ("taker", "x", "y"):
            await by_callbacks(a.neighbours, town[name].neighbours)
        await trio.sleep(LONG - 1 - trio.current_time())
        town.network.freeze("taker", noticed_after=5.0)
        await trio.sleep(3)
        assert sum(a.view.values()) == 1
        await trio.sleep(10)
        assert {"x", "y"} == set(a.view)
        assert a.neighbours.outview.keys() == {"x-I", "y-I"}
        town.network.thaw("taker")


def finding(town: Samplings, name: str, contacts: list[str]) -> FindContact:
    """Open an arc from *name* to the first of *contacts* that is there."""

    async def find_contact(neighbours: Neighbours) -> str:
        for contact in contacts:
            if contact in town.nodes:
                return await by_callbacks(neighbours, town[contact].neighbours)
        raise ConnectionFailed(f"{name} finds nobody")

    return find_contact


async def test_who_has_lost_everybody_finds_its_way_back(autojump_clock: MockClock) -> None:
    async with open_town("a", "b") as town:
        contacts: list[str] = []
        await town.add("lost", find_contact=finding(town, "lost", contacts))
        with pytest.raises(ConnectionFailed):
            await town["lost"].join()
        contacts += ["a", "b"]
        assert await town["lost"].join() == "a-I"
        await trio.sleep(SETTLING)
        town.crash("a")
        await trio.sleep(30 + SETTLING)
        assert set(town["lost"].view) == {"b"}
        assert town["lost"].state is SamplingState.CONNECTED
        assert town["b"].view == {"lost": 1}


async def test_who_has_lost_everybody_tries_until_somebody_is_there(
    autojump_clock: MockClock,
) -> None:
    async with open_town("a") as town:
        await town.add("lost", find_contact=finding(town, "lost", ["a", "late"]))
        await town["lost"].join()
        await trio.sleep(SETTLING)
        town.crash("a")
        await trio.sleep(300)
        assert town["lost"].state is SamplingState.DISCONNECTED
        await town.add("late")
        await trio.sleep(60)
        assert set(town["lost"].view) == {"late"}


async def test_who_lost_its_view_reaches_out_to_those_who_have_arcs_to_it(
    autojump_clock: MockClock,
) -> None:
    async with open_town("a", "x", "friend", interval=LONG) as town:
        await by_callbacks(town["a"].neighbours, town["x"].neighbours)
        await by_callbacks(town["friend"].neighbours, town["a"].neighbours)
        town.crash("x")
        await trio.sleep(40)
        assert town["a"].view == {"friend": 1}


async def test_sampled_peer_is_talked_to_in_a_protocol_of_the_application(
    autojump_clock: MockClock,
) -> None:
    async with open_town("a", "b") as town, AsyncExitStack() as stack:
        await town.join("b", "a")
        chats = [
            await stack.enter_async_context(town[name].neighbours.open_protocol("chat"))
            for name in "ab"
        ]
        (peer,) = town["a"].sample()
        assert peer == "b"
        await chats[0].send(f"{peer}-I", "hello")
        assert (await chats[1].messages.receive()).data == "hello"
        assert town["b"].sample(5) == ["a"]


async def test_sampling_of_a_peer_that_is_there_already_leaves_it_there(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_town("a") as town,
        open_neighbours("chat", peer="b", network=town.network.host("b")) as chat,
    ):
        async with (
            chat.open_protocol(PROTOCOL_ID) as neighbours,
            open_sampling(neighbours, rng=random.Random(1)) as sampling,
        ):
            await sampling.join(await by_callbacks(neighbours, town["a"].neighbours))
            await trio.sleep(SETTLING)
            assert town["a"].view == {"b": 1}
        assert chat.neighbours().inview == chat.neighbours().outview == {}
        await trio.sleep(SETTLING)
        assert town["a"].view == {}
        await town["a"].neighbours.send("b-I", "still connected")


async def test_sampling_ends_quietly_when_its_neighbours_leave(autojump_clock: MockClock) -> None:
    async with open_town("a", "b") as town:
        await town.join("b", "a")
        await town["b"].neighbours.aclose()
        await trio.sleep(3 * INTERVAL)
        assert town["b"].has_left
        assert town["b"].view == {}
        assert [change async for change in town["b"].events][-1].state is SamplingState.DISCONNECTED


@pytest.mark.parametrize(
    "options", [{"interval": 0}, {"interval": float("nan")}, {"a": 0}, {"b": -1}, {"max_arcs": 0}]
)
async def test_settings_that_cannot_be_are_refused(
    options: dict[str, float], autojump_clock: MockClock
) -> None:
    async with open_town() as town:
        host = town.network.host("x")
        with pytest.raises(ValueError, match="not"):
            async with open_sampling(network=host, **options):  # type: ignore[arg-type]
                pass


async def test_join_needs_somebody_to_join_by(autojump_clock: MockClock) -> None:
    async with open_town("a", "b") as town:
        joins: list[Awaitable[str]] = [town["a"].join(), town["a"].join("b-I")]
        for join in joins:
            with pytest.raises(UsageError):
                await join
        await by_callbacks(town["a"].neighbours, town["b"].neighbours)
        town.network.freeze("b", noticed_after=None)
        town.network.crash("b", noticed_after=0)
        await trio.sleep(1)
        with pytest.raises((UsageError, PeerNotFound)):
            await town["a"].join("b-I")
