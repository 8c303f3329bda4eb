"""Brokers that act as one, on a virtual store and under a virtual clock."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.cluster.world import LEASE, World, call, hear_json, open_world, signal
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.protocol.broker import ID_TAKEN, UNAVAILABLE, peer_signal
from trio_overlay.protocol.cluster import PassedOn, encode_server_message, server_channel
from trio_overlay.signaling.cluster_registry import INQUIRY_TIMEOUT
from trio_overlay.signaling.shared_store import Session

OFFER = {"type": "offer", "sdp": "v=0"}

Clock = trio.testing.MockClock


async def test_an_id_at_one_server_is_found_and_taken_at_the_others(autojump_clock: Clock) -> None:
    async with open_world("a", "b", "c") as world:
        a, b, c = world.servers
        anna = await a.registered("anna")
        for server in (b, c):
            peer = await server.dial()
            assert await call(peer, "exists", id="anna") is True
            assert await call(peer, "exists", id="nobody") is False
            assert await call(peer, "register", id="anna") == ID_TAKEN
            assert await call(peer, "register", id=server.name) == server.name
        assert await call(anna, "exists", id="b") is True
        assert await call(anna, "unregister") is None
        await b.registered("anna")


async def test_of_two_that_register_one_id_at_once_one_gets_it(autojump_clock: Clock) -> None:
    async with open_world("a", "b", "c") as world:
        outcomes: list[object] = []

        async def register(index: int) -> None:
            peer = await world.servers[index].dial()
            outcomes.append(await call(peer, "register", id="anna"))

        async with trio.open_nursery() as nursery:
            for index in range(3):
                nursery.start_soon(register, index)
        assert sorted(outcomes, key=str) == [ID_TAKEN, ID_TAKEN, "anna"]


async def test_signals_cross_servers_in_order(autojump_clock: Clock) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        anna, ben = await a.registered("anna"), await b.registered("ben")
        said = [await signal(anna, "anna", "ben", {**OFFER, "n": n}) for n in range(20)]
        assert [await hear_json(ben) for _ in said] == said
        await signal(anna, "somebody", "ben", OFFER)
        await signal(anna, "anna", "nobody", OFFER)
        assert await call(ben, "ping") == "pong"  # and nothing before


async def test_a_signal_for_a_former_holder_of_an_id_is_not_given_to_the_next(
    autojump_clock: Clock,
) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        anna = await b.registered("anna")
        holder = world.store.holder("anna")
        assert holder is not None
        for claim in (f"{holder}0", "", holder):
            params = dict(peer_signal("ben", "anna", {**OFFER, "claim": claim}).params)
            message = encode_server_message(a.cluster.tag, PassedOn(params, claim))
            a.cluster.session.publish(server_channel(b.cluster.tag), message)
        assert (await hear_json(anna))["params"]["signal"]["claim"] == holder


async def test_a_peer_that_moves_to_another_server_is_found_there(autojump_clock: Clock) -> None:
    async with open_world("a", "b", "c") as world:
        a, b, c = world.servers
        ben = await c.registered("ben")
        anna = await a.registered("anna")
        await anna.aclose()
        await trio.sleep(1)
        anna = await b.registered("anna")
        said = await signal(ben, "ben", "anna", OFFER)
        assert await hear_json(anna) == said


async def test_registering_another_id_frees_the_first_at_all_servers(autojump_clock: Clock) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        anna = await a.registered("anna")
        assert await call(anna, "register", id="hanna") == "hanna"
        await trio.sleep(1)
        await b.registered("anna")


async def test_ids_are_kept_for_as_long_as_their_peers_stay(autojump_clock: Clock) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        anna = await a.registered("anna")
        other = await b.dial()
        for _ in range(50):
            await trio.sleep(LEASE / 3.3)
            assert await call(anna, "ping") == "pong"
            assert await call(other, "register", id="anna") == ID_TAKEN


async def test_a_server_that_dies_frees_its_ids_within_the_lease(autojump_clock: Clock) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        await a.registered("anna")
        other = await b.dial()
        await trio.sleep(7.7)
        a.crash()
        assert await call(other, "register", id="anna") == ID_TAKEN
        await trio.sleep(LEASE)
        assert await call(other, "register", id="anna") == "anna"


async def test_a_server_that_ends_frees_its_ids_at_once(autojump_clock: Clock) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        for index in range(10):
            await a.registered(f"anna {index}")
        other = await b.dial()
        a.stop()
        await trio.sleep(1)
        for index in range(10):
            assert await call(other, "register", id=f"anna {index}") == f"anna {index}"


# --- peers that take their ids along ------------------------------------------------------

SECRET = "0123456789abcdef"


async def test_a_peer_with_its_secret_moves_at_once_from_a_server_that_has_died(
    autojump_clock: Clock,
) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        anna, ben = await a.dial(), await b.registered("ben")
        assert await call(anna, "register", id="anna", resume=SECRET) == "anna"
        a.crash()
        thief, anna = await b.dial(), await b.dial()
        for forged in ({}, {"resume": SECRET[::-1]}):
            assert await call(thief, "register", id="anna", **forged) == ID_TAKEN
        assert await call(anna, "register", id="anna", resume=SECRET) == "anna"
        said = await signal(ben, "ben", "anna", OFFER)
        assert await hear_json(anna) == said
        await anna.aclose()
        await trio.sleep(1)
        assert await call(thief, "exists", id="anna") is False
        # Nobody can know here that the first server is dead, and does not hold it for her still.
        assert await call(thief, "register", id="anna") == ID_TAKEN
        await trio.sleep(LEASE)
        assert await call(thief, "register", id="anna") == "anna"


async def test_the_server_that_a_peer_has_left_is_told_and_hangs_up(autojump_clock: Clock) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        former, anna, ben = await a.dial(), await b.dial(), await a.registered("ben")
        assert await call(former, "register", id="anna", resume=SECRET) == "anna"
        assert await call(anna, "register", id="anna", resume=SECRET) == "anna"
        with pytest.raises(trio.EndOfChannel):
            await hear_json(former)
        assert former.close_reason == f"its peer has registered at server {b.cluster.tag}"
        said = await signal(ben, "ben", "anna", OFFER)
        assert await hear_json(anna) == said
        for _ in range(10):
            await trio.sleep(LEASE / 3)
            assert await call(anna, "ping") == "pong"
        assert (a.held, b.held) == (["ben"], ["anna"])


async def test_a_server_that_cannot_be_told_holds_on_no_longer_than_its_lease_and_for_one_peer(
    autojump_clock: Clock,
) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        former, anna, thief = await a.dial(), await b.dial(), await b.dial()
        assert await call(former, "register", id="anna", resume=SECRET) == "anna"
        world.store.freeze(a.cluster.tag)
        cut_at = trio.current_time()
        assert await call(anna, "register", id="anna", resume=SECRET) == "anna"
        assert (a.held, b.held) == (["anna"], ["anna"])
        assert await call(anna, "unregister") is None
        while (answer := await call(thief, "register", id="anna")) != "anna":
            assert answer == ID_TAKEN
            await trio.sleep(1.1)
        assert a.held == []
        assert trio.current_time() - cut_at < LEASE + 1.2


async def test_nothing_moves_while_the_store_is_away_or_quarantined(autojump_clock: Clock) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        former, anna = await a.dial(), await b.dial()
        assert await call(former, "register", id="anna", resume=SECRET) == "anna"
        world.store.stop()
        assert await call(anna, "register", id="anna", resume=SECRET) == UNAVAILABLE
        world.store.start()
        await trio.sleep(3)
        assert await call(anna, "register", id="anna", resume=SECRET) == UNAVAILABLE
        # At her own server she needs nobody's leave.
        again = await a.dial()
        assert await call(again, "register", id="anna", resume=SECRET) == "anna"
        await trio.sleep(LEASE)
        assert await call(anna, "register", id="anna", resume=SECRET) == "anna"


async def test_what_a_store_with_old_data_believes_moves_nothing_that_is_anothers_by_now(
    autojump_clock: Clock,
) -> None:
    async with open_world("a", "b", "c") as world:
        a, b, c = world.servers
        anna, eve, anna_again = await a.dial(), await b.dial(), await c.dial()
        assert await call(anna, "register", id="x", resume=SECRET) == "x"
        world.store.save()
        assert await call(anna, "unregister") is None
        await trio.sleep(0.1)
        assert await call(eve, "register", id="x") == "x"
        world.store.freeze(b.cluster.tag)  # it does not hear that there is another store
        world.store.stop(saves=False)
        world.store.start(keeps_data=True)
        await trio.sleep(1)
        assert c.cluster.is_connected
        assert world.store.holder("x") is not None, "it believes that anna has it"
        while b.held:
            assert await call(anna_again, "register", id="x", resume=SECRET) == UNAVAILABLE
            await trio.sleep(1.1)
        await trio.sleep(LEASE)
        assert await call(anna_again, "register", id="x", resume=SECRET) == "x"


# --- the store is away --------------------------------------------------------------------


async def test_without_the_store_what_needs_no_other_server_goes_on(autojump_clock: Clock) -> None:
    async with open_world("a", "b") as world:
        a, _ = world.servers
        anna, hanna = await a.registered("anna"), await a.registered("hanna")
        world.store.stop()
        await trio.sleep(1)
        assert await call(anna, "ping") == "pong"
        assert await call(anna, "exists", id="hanna") is True
        said = await signal(anna, "anna", "hanna", OFFER)
        assert await hear_json(hanna) == said
        assert await call(anna, "exists", id="ben") == UNAVAILABLE
        newcomer = await a.dial()
        assert await call(newcomer, "register", id="anna") == ID_TAKEN
        assert await call(newcomer, "register", id="new") == UNAVAILABLE
        assert await call(hanna, "unregister") is None


async def test_a_holder_that_cannot_renew_stops_before_its_lease_ends(
    autojump_clock: Clock,
) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        anna = await a.registered("anna")
        world.store.freeze(a.cluster.tag)
        frozen_at = trio.current_time()
        with pytest.raises(trio.EndOfChannel):
            await hear_json(anna)
        assert "could not be kept" in (anna.close_reason or "")
        assert LEASE / 2 < trio.current_time() - frozen_at < LEASE
        assert world.store.holder("anna") is not None  # it still stands there, for a moment
        assert not a.holds("anna")
        other = await b.dial()
        assert await call(other, "register", id="anna") == ID_TAKEN
        await trio.sleep(LEASE)
        assert await call(other, "register", id="anna") == "anna"
        world.store.thaw(a.cluster.tag)  # what the first server sent long ago arrives
        await trio.sleep(2 * LEASE)
        assert (a.holds("anna"), b.holds("anna")) == (False, True)
        assert await call(other, "exists", id="anna") is True


async def test_a_short_absence_costs_nobody_an_id(autojump_clock: Clock) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        anna, ben = await a.registered("anna"), await b.registered("ben")
        for keeps_data in (False, True):
            world.store.stop()
            await trio.sleep(2)
            world.store.start(keeps_data=keeps_data)
            await trio.sleep(LEASE * 2)
            for peer in (anna, ben):
                assert await call(peer, "ping") == "pong"
            said = await signal(anna, "anna", "ben", OFFER)
            assert await hear_json(ben) == said
            other = await a.dial()
            assert await call(other, "register", id="ben") == ID_TAKEN


async def test_after_the_store_lost_its_data_nothing_new_is_granted_for_a_lease(
    autojump_clock: Clock,
) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        anna = await a.registered("anna")
        world.store.freeze(a.cluster.tag)  # so it cannot say that it has anna
        world.store.stop()
        world.store.start()
        started_at = trio.current_time()
        other = await b.dial()
        while (answer := await call(other, "register", id="anna")) != "anna":
            assert answer == UNAVAILABLE
            await trio.sleep(1.01)  # more often than once a second is too often
        assert trio.current_time() - started_at >= LEASE
        assert not a.holds("anna")
        assert anna.close_reason is not None


async def test_a_store_emptied_by_somebody_counts_as_one_that_lost_its_data(
    autojump_clock: Clock,
) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        anna = await a.registered("anna")
        world.store.empty()
        other = await b.dial()
        assert await call(other, "register", id="anna") == UNAVAILABLE
        await trio.sleep(LEASE / 2)
        assert await call(other, "register", id="new") == UNAVAILABLE
        await trio.sleep(LEASE)
        assert await call(other, "register", id="new") == "new"
        assert await call(other, "register", id="anna") == ID_TAKEN
        assert await call(anna, "ping") == "pong"


async def test_a_cluster_begins_with_a_quarantine_and_only_once(autojump_clock: Clock) -> None:
    async with open_world("a", is_seasoned=False) as world:
        peer = await world.servers[0].dial()
        assert await call(peer, "register", id="early") == UNAVAILABLE
        await trio.sleep(LEASE)
        assert await call(peer, "register", id="late") == "late"
        later = await world.start("b")
        await later.registered("at once")


async def test_a_server_started_without_a_store_finds_it_later(autojump_clock: Clock) -> None:
    async with open_world("a") as world:
        world.store.stop()
        b = await world.start("b")
        peer = await b.dial()
        assert await call(peer, "ping") == "pong"
        assert await call(peer, "register", id="ben") == UNAVAILABLE
        world.store.start()
        await trio.sleep(LEASE + 5)
        assert await call(peer, "register", id="ben") == "ben"


async def test_a_question_given_up_leaves_no_id_behind(autojump_clock: Clock) -> None:
    async with open_world("a", "b") as world:
        a, b = world.servers
        world.store.pause()
        peer = await a.dial()
        request = {"jsonrpc": "2.0", "id": 1, "method": "register", "params": {"id": "anna"}}
        await peer.send(json.dumps(request))
        await trio.sleep(1)
        await peer.aclose()  # it is gone before the store has answered
        world.store.resume()
        await trio.sleep(1)
        assert world.store.holder("anna") is None
        await b.registered("anna")


# --- brokers of linkup --------------------------------------------------------------------


class Linkup:
    """A broker of linkup, as far as its Redis channel goes: what it does, it is told to do."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.heard: list[dict[str, object]] = []
        self.ids: set[str] = set()
        self.answers = True

    def say(self, kind: str, data: object) -> None:
        self.session.publish("linkup", json.dumps({"type": kind, "data": data}))

    async def run(self) -> None:
        while True:
            channel, text = await self.session.receive()
            assert channel == "linkup"
            message = json.loads(text)
            self.heard.append(message)
            if message["type"] == "find" and self.answers:
                identifier = message["data"]["id"]
                self.say("found", {"id": identifier, "found": identifier in self.ids})

    def answers_to(self, identifier: object) -> list[object]:
        return [
            each["data"]["found"]  # type: ignore[index]
            for each in self.heard
            if each["type"] == "found" and each["data"]["id"] == identifier  # type: ignore[index]
        ]


@asynccontextmanager
async def open_linkup(world: World) -> AsyncIterator[Linkup]:
    async with world.store.connect_linkup() as session, open_background_nursery() as nursery:
        linkup = Linkup(session)
        nursery.start_soon(linkup.run)
        yield linkup


async def test_every_subscriber_answers_each_find_exactly_once(autojump_clock: Clock) -> None:
    async with open_world("a", "b") as world, open_linkup(world) as linkup:
        await world.servers[0].registered("anna")
        linkup.heard.clear()
        for identifier in ("anna", "nobody", 7, None):
            linkup.say("find", {"id": identifier})
            await trio.sleep(1)
        # Two servers of ours and linkup itself: as many as it counts subscribers.
        assert sorted(linkup.answers_to("anna"), key=str) == [False, False, True]
        for identifier in ("nobody", 7, None):
            assert linkup.answers_to(identifier).count(True) == 0
        assert linkup.answers_to("nobody") == [False] * 3
        assert len(linkup.answers_to(7)) == 3
        assert {each["type"] for each in linkup.heard} == {"find", "found"}


async def test_ids_of_a_linkup_broker_are_found_and_taken(autojump_clock: Clock) -> None:
    async with open_world("a", "b") as world, open_linkup(world) as linkup:
        linkup.ids.add("luis")
        peer = await world.servers[1].dial()
        assert await call(peer, "exists", id="luis") is True
        assert await call(peer, "exists", id="nobody") is False
        assert await call(peer, "register", id="luis") == ID_TAKEN
        await trio.sleep(1)
        assert world.store.holder("luis") is None
        assert await call(peer, "register", id="ben") == "ben"
        await trio.sleep(1)
        # While the id was asked for, it was taken already for everybody else.
        assert linkup.answers_to("ben").count(True) == 1
        linkup.heard.clear()
        said = await signal(peer, "ben", "luis", {**OFFER, "more": ["\u00e9", None]})
        await trio.sleep(1)
        assert linkup.heard == [{"type": "signal", "data": said["params"]}]
        linkup.say("signal", {"from": "luis", "to": "ben", "signal": OFFER})
        assert (await hear_json(peer))["params"] == {"from": "luis", "to": "ben", "signal": OFFER}


async def test_a_subscriber_that_does_not_answer_is_waited_for_only_so_long(
    autojump_clock: Clock,
) -> None:
    async with open_world("a") as world, open_linkup(world) as linkup:
        linkup.answers = False
        began = trio.current_time()
        peer = await world.servers[0].registered("anna")
        assert await call(peer, "exists", id="nobody") is False
        assert trio.current_time() - began < 2 * INQUIRY_TIMEOUT + 1


BAD_MESSAGES = [
    "nonsense",
    "null",
    "[]",
    '{"type":"signal"}',
    '{"type":"signal","data":{"from":"x","to":"anna"}}',
    '{"type":"signal","data":{"from":"x","to":"anna","signal":"offer"}}',
    '{"type":"find"}',
    '{"type":"found","data":[1]}',
    '{"type":"find","data":null}',
    '{"server":"aaaaaaaa"}',
    '{"server":7,"type":"greeting"}',
    '{"server":"aaaaaaaa","type":"presence","roots":[[-1,0,true]]}',
    '{"server":"aaaaaaaa","type":"to-root"}',
    '{"server":"aaaaaaaa","type":"signal","claim":"x","params":[]}',
    "[" * 10_000 + "]" * 10_000,
    '{"server":"aaaaaaaa","type":"\\ud800"}',
]


@pytest.mark.parametrize("channel", ["linkup", "trio-overlay:all"])
async def test_nonsense_on_the_channels_harms_nobody(autojump_clock: Clock, channel: str) -> None:
    async with open_world("a", "b") as world, world.store.connect_linkup() as session:
        a, b = world.servers
        anna, ben = await a.registered("anna"), await b.registered("ben")
        for message in BAD_MESSAGES:
            session.publish(channel, message)
        await trio.sleep(1)
        said = await signal(anna, "anna", "ben", OFFER)
        assert await hear_json(ben) == said
        assert await call(anna, "ping") == "pong"


async def test_a_process_that_slept_past_its_leases_loses_them_before_it_says_anything(
    autojump_clock: Clock,
) -> None:
    async with open_world("a", "b") as world:
        a, _ = world.servers
        anna, hanna = await a.registered("anna"), await a.registered("hanna")
        await signal(anna, "anna", "hanna", OFFER)  # not yet seen by the server's reader
        autojump_clock.jump(LEASE)  # as if the process had been stopped
        with pytest.raises(trio.EndOfChannel):
            await hear_json(hanna)
