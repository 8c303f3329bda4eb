"""Peers with arcs: opened by callbacks, over a bridge, on a connection that there is; removed."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.nodes.neighbourhoods import SETTLING, open_world, past
from trio_overlay.channels.channel import Channel
from trio_overlay.channels.memory import memory_channel_pair
from trio_overlay.errors import (
    ConnectionFailed,
    MessageTooLarge,
    NotSupported,
    PeerNotFound,
    UsageError,
)
from trio_overlay.nodes.heartbeat import Heartbeat
from trio_overlay.nodes.neighbour_ways import Carry
from trio_overlay.nodes.neighbours import ArcClose, ArcFail, ArcOpen
from trio_overlay.protocol.broker import PeerSignal
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.neighbours import (
    EXTENSIONS,
    ArcEnd,
    ArcRequest,
    ArcResponse,
    Send,
    encode_neighbour,
    encode_payload,
)
from trio_overlay.signaling.bootstrap import Request, open_bootstrap
from trio_overlay.signaling.broker_client import BrokerClient, open_broker
from trio_overlay.testing.signaling import AUTHORITY, SECRET, open_signaling


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


async def test_unfinished_attempt_fails_at_its_timeout_and_leaves_nothing(
    autojump_clock: MockClock,
) -> None:
    async with open_world("a") as world:

        async def nowhere(message: JSON) -> None:
            await trio.lowlevel.checkpoint()

        started_at = trio.current_time()
        with pytest.raises(ConnectionFailed, match="no arc within 10 s"):
            await world["a"].initiate(nowhere)
        assert trio.current_time() - started_at == pytest.approx(10, abs=0.5)
        assert world.network.count_open_peers == 0
        assert past(world["a"].events) == [ArcFail(None, True, "no arc within 10 s")]


async def test_answered_attempt_that_goes_no_further_fails_at_its_timeout(
    autojump_clock: MockClock,
) -> None:
    async with open_world("a", "b") as world:

        async def there(message: JSON) -> None:
            world["b"].accept(nowhere, message)
            await trio.lowlevel.checkpoint()

        async def nowhere(message: JSON) -> None:
            await trio.lowlevel.checkpoint()

        with pytest.raises(ConnectionFailed):
            await world["a"].initiate(there)
        await trio.sleep(1)
        assert past(world["b"].events) == [ArcFail("a-O", False, "no arc within 10 s")]
        assert world.network.count_open_peers == 0


async def test_bridged_attempt_to_who_has_left_fails_at_once(autojump_clock: MockClock) -> None:
    async with open_world("bridge", "a") as world:
        await world.link("bridge", "a")
        async with world.open("b"):
            await world.link("bridge", "b")
            await world["bridge"].connect("a-I", "b-I")
        await trio.sleep(SETTLING)
        assert len(world["a"]._attempts) == 0
        assert isinstance(past(world["a"].events)[-1], ArcFail)
        with pytest.raises(PeerNotFound):
            await world["bridge"].connect("a-I", "b-I")
        assert world["a"].outview == {}


async def test_what_the_application_raises_in_carrying_comes_out_of_its_call(
    autojump_clock: MockClock,
) -> None:
    async with open_world("a", "b") as world:

        async def broken(message: JSON) -> None:
            raise RuntimeError("the mail is on strike")

        async def there(message: JSON) -> None:
            world["b"].accept(broken, message)
            await trio.lowlevel.checkpoint()

        with pytest.raises(RuntimeError, match="on strike"):
            await world["a"].initiate(broken)
        with pytest.raises(ConnectionFailed):  # the end that accepts has no call to raise it
            await world["a"].initiate(there)
        assert [type(event) for event in past(world["b"].events)] == [ArcFail]
        await world.link("a", "b")


async def test_message_waits_for_a_connection_as_often_as_is_wanted(
    autojump_clock: MockClock,
) -> None:
    async with open_world("a", "b") as world, trio.open_nursery() as nursery:
        a, b = world["a"], world["b"]
        started_at = trio.current_time()
        with pytest.raises(PeerNotFound, match="b-I"):
            await a.send("b-I", "hello", retries=2)
        assert trio.current_time() - started_at == pytest.approx(2)
        nursery.start_soon(a.send, "b-I", "hello")
        await trio.sleep(3)
        await world.link("b", "a")  # the other way round does as well
        assert (await b.messages.receive()).data == "hello"
        assert trio.current_time() - started_at < 7


async def test_message_goes_by_whichever_end_of_a_peer_is_connected(
    autojump_clock: MockClock,
) -> None:
    async with open_world("a", "b") as world:
        await world.link("a", "b")
        for end in ("b-I", "b-O"):
            await world["a"].send(end, end)
            assert (await world["b"].messages.receive()).data == end


@pytest.mark.parametrize("data", [{"type": "MDirect"}, {"type": "MArcEnd"}, object(), float("nan")])
async def test_message_that_is_none_or_the_protocols_own_is_refused(
    data: object, autojump_clock: MockClock
) -> None:
    async with open_world("a", "b") as world:
        await world.link("a", "b")
        with pytest.raises((TypeError, ValueError)):
            await world["a"].send("b-I", data)
        with pytest.raises(MessageTooLarge):
            await world["a"].send("b-I", "x" * 300_000)
        await world["a"].send("b-I", {"type": "mine"})
        assert (await world["b"].messages.receive()).data == {"type": "mine"}


async def test_neighbour_waits_until_its_messages_are_read_and_bridging_does_not(
    autojump_clock: MockClock,
) -> None:
    async with open_world("slow", "b", "c") as world, trio.open_nursery() as nursery:
        slow, b = world["slow"], world["b"]
        await world.link("slow", "b")
        await world.link("slow", "c")
        sent = 0

        async def send_all() -> None:
            nonlocal sent
            for number in range(100):
                await b.send("slow-O", [number, "x" * 20_000])
                sent += 1

        await b.send("slow-O", "first")
        assert (await slow.messages.receive()).data == "first"  # from now on nothing is dropped
        nursery.start_soon(send_all)
        await trio.sleep(30)
        assert 10 < sent < 20
        await slow.connect("b-I", "c-I")
        await trio.sleep(SETTLING)
        assert b.outview == {"c-I": 1}
        numbers = [(await slow.messages.receive()).data[0] for _ in range(100)]
        assert numbers == list(range(100))
        assert slow.messages.count_dropped == 0


async def test_peer_that_reads_nothing_keeps_the_newest_and_nobody_waits(
    autojump_clock: MockClock,
) -> None:
    async with open_world("deaf", "b") as world:
        await world.link("deaf", "b")
        with trio.fail_after(30):
            for number in range(100):
                await world["b"].send("deaf-O", [number, "x" * 20_000])
        await trio.sleep(SETTLING)
        assert (await world["deaf"].messages.receive()).data[0] > 90


async def test_protocols_share_connections_and_have_arcs_of_their_own(
    autojump_clock: MockClock,
) -> None:
    async with open_world("a", "b") as world:
        a, b = world["a"], world["b"]
        async with a.open_protocol("other") as other_a, b.open_protocol("other") as other_b:
            await world.link("a", "b")
            assert await other_a.connect(to="b-I") == "b-I"
            await trio.sleep(SETTLING)
            assert world.network.count_open_peers == 2
            assert a.outview == other_a.outview == {"b-I": 1}
            assert a.neighbours().outview == {"b-I": {"test": 1, "other": 1}}
            assert b.neighbours().inview == {"a-O": {"test": 1, "other": 1}}
            await other_b.send("a-O", "of the other")
            await b.send("a-O", "of the first")
            assert (await a.messages.receive()).data == "of the first"
            assert (await other_a.messages.receive()).data == "of the other"
            assert past(other_b.events) == [ArcOpen("a-O", False)]
            a.disconnect()
            await trio.sleep(70)
            assert other_b.inview == {"a-O": 1}
            with pytest.raises(ValueError, match="open here already"):
                async with a.open_protocol("other"):
                    pass
        await trio.sleep(SETTLING)
        assert b.neighbours().inview == {}
        with pytest.raises(UsageError):
            await other_a.connect(to="b-I")
        await a.connect(to="b-I")


async def test_protocol_that_is_closed_gives_up_what_it_tries(autojump_clock: MockClock) -> None:
    async with open_world("a", "b") as world:

        async def nowhere(message: JSON) -> None:
            await trio.lowlevel.checkpoint()

        async def try_it() -> None:
            with pytest.raises(ConnectionFailed, match="left"):
                await other.initiate(nowhere)

        async with trio.open_nursery() as nursery, world["a"].open_protocol("other") as other:
            nursery.start_soon(try_it)
            await trio.sleep(1)
        await trio.sleep(1)
        assert world.network.count_open_peers == 0


async def test_peers_have_no_arcs_to_themselves(autojump_clock: MockClock) -> None:
    async with open_world("a", "b") as world:
        a = world["a"]
        await world.link("a", "b")
        for from_, to in ((None, None), ("a-I", "a-O"), (None, "a-I"), ("b-I", "b-O")):
            with pytest.raises(UsageError, match="itself"):
                await a.connect(from_, to)
        assert await a.connect("a-O", "b-I") == "b-I"  # its own name is as None
        for pair in (("c-I", "b-I"), ("b-I", "c-I"), (None, "c-I"), ("c-I", None)):
            with pytest.raises(PeerNotFound):
                await a.connect(*pair)


async def test_leaving_is_noticed_at_once_and_everything_says_so_afterwards(
    autojump_clock: MockClock,
) -> None:
    async with open_world("a", "b") as world:
        a, b = world["a"], world["b"]
        await world.link("a", "b")
        await world.link("a", "b")
        past(b.events)
        await a.aclose()
        await trio.sleep(1)
        assert b.inview == {}
        assert [type(event) for event in past(b.events)] == [ArcClose, ArcClose]
        assert a.outview == {}
        with pytest.raises(UsageError, match="left"):
            await a.connect(to="b-I")
        with pytest.raises(UsageError, match="left"):
            await a.send("b-I", "hello")
        with pytest.raises(UsageError, match="left"):
            await a.initiate(trio.sleep)
        with pytest.raises(trio.EndOfChannel):
            await a.messages.receive()


@pytest.mark.parametrize(
    "options",
    [
        {"attempt_timeout": 0},
        {"keep_timeout": -1},
        {"max_attempts": 0},
        {"heartbeat": Heartbeat(0, 1)},
        {"heartbeat": Heartbeat(2, 2)},
        {"pid": ""},
    ],
    ids=str,
)
async def test_options_are_checked(options: dict[str, Any], autojump_clock: MockClock) -> None:
    async with open_world() as world:
        with pytest.raises(ValueError, match=r"is|has"):
            await world.add("a", **options)
        with pytest.raises(ValueError, match="peer"):
            await world.add("x" * 255)


# --- no half of an arc --------------------------------------------------------------------


async def test_arc_that_only_the_accepting_end_has_is_disowned(autojump_clock: MockClock) -> None:
    """Its request was given up, and it had not heard so when it counted the arc."""
    async with open_world("a", "b") as world:
        a, b = world["a"], world["b"]
        await world.link("a", "b")
        await trio.sleep(1)
        (link,) = b._hood.links.values()
        b._hood.add_arc(link, "ghost", "test")
        assert b.inview == {"a-O": 2}
        link.post("test", ArcResponse("ghost", "b-I", "test", None, extensions=EXTENSIONS))
        await trio.sleep(1)
        assert (a.outview, b.inview) == ({"b-I": 1}, {"a-O": 1})


async def test_arc_whose_attempt_was_given_up_is_taken_back(autojump_clock: MockClock) -> None:
    async with open_world("b") as world, world.stranger("x", "b") as stranger:
        await stranger.say(ArcRequest("t", "x-O", "test", None, extensions=EXTENSIONS))
        assert isinstance(await stranger.hear(), ArcResponse)
        assert world["b"].inview == {"x-O": 2}
        await stranger.say(ArcEnd("t", "x-O", "test", "cancelled"))
        await trio.sleep(1)
        assert world["b"].inview == {"x-O": 1}


async def test_call_that_is_cancelled_just_as_its_arc_opens_leaves_none(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world("a", "b") as world:
        a, b = world["a"], world["b"]
        await world.link("a", "b")
        await trio.sleep(1)
        with trio.CancelScope() as scope:
            monkeypatch.setattr(a, "note_arc", lambda _: scope.cancel())
            await a.connect(to="b-I")
        assert scope.cancelled_caught
        await trio.sleep(1)
        assert (a.outview, b.inview) == ({"b-I": 1}, {"a-O": 1})


@pytest.mark.parametrize("how", ["leaves", "crashes"])
async def test_initiator_that_is_gone_holds_no_place_at_the_bridge_or_the_other_end(
    how: str, autojump_clock: MockClock
) -> None:
    """One that leaves says so; one that crashes is noticed by the bridge, and times out beyond."""
    async with open_world("bridge", "b") as world:
        bridge, b = world["bridge"], world["b"]
        await world.link("bridge", "b")
        with trio.CancelScope() as scope:
            async with world.open("a"):
                await world.link("bridge", "a")
                await bridge.connect("a-I", "b-I")
                while not len(b._answers):  # noqa: ASYNC110 - it is there for less than a second
                    await trio.sleep(0.001)
                assert len(bridge._bridging) == 1
                if how == "crashes":
                    world.network.crash("a", noticed_after=0.5)
                scope.cancel()
        await trio.sleep(1)
        assert len(bridge._bridging) == 0
        assert len(b._answers) == (0 if how == "leaves" else 1)
        await trio.sleep(10)
        assert len(b._answers) == 0
        assert "a-O" not in b.inview


# --- the first arc over a channel ---------------------------------------------------------


async def test_first_arc_comes_up_through_the_bootstrap_server_which_is_not_needed_after(
    autojump_clock: MockClock,
) -> None:
    async with open_world("root", "a", "b") as world, open_signaling(world.network) as signaling:
        root = world["root"]
        async with (
            open_bootstrap(AUTHORITY, network=world.network.host("root")) as client,
            client.root(SECRET) as requests,
            trio.open_nursery() as nursery,
        ):

            async def answer(request: Request) -> None:
                await root.attach(client.answer(request), is_outgoing=False)

            async def answer_all() -> None:
                async for request in requests:
                    nursery.start_soon(answer, request)

            nursery.start_soon(answer_all)
            for name in "ab":
                host = world.network.host(name)
                async with open_bootstrap(AUTHORITY, network=host) as joiner:
                    assert await world[name].attach(joiner.connect()) == "root-I"
            await trio.sleep(SETTLING)
            nursery.cancel_scope.cancel()
        signaling.crash()
        assert root.inview == {"a-O": 1, "b-O": 1}
        await root.connect("a-O", "b-O")
        await trio.sleep(SETTLING)
        assert world["a"].outview == {"root-I": 1, "b-I": 1}
        await world["b"].send("a-O", "no server")
        assert (await world["a"].messages.receive()).data == "no server"
        world["a"].disconnect("root-I")
        await trio.sleep(62)
        assert world.network.count_open()["a"] == 1  # the channel was closed, as any


async def test_first_arc_comes_up_through_a_broker_which_carries_the_messages(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_world("a", "b") as world,
        open_signaling(world.network) as signaling,
        AsyncExitStack() as stack,
    ):
        a, b = world["a"], world["b"]
        brokers: dict[str, BrokerClient] = {}

        def way(source: str, target: str) -> Carry:
            return partial(brokers[source].send_signal, source, target)

        def take(signal: PeerSignal) -> None:
            message = signal.params["signal"]
            if message["type"] == "MRequest":
                b.accept(way("b", "a"), message)
            else:
                a.finalize(message)

        for name in "ab":
            network, rng = world.network.host(name), random.Random(name)
            opening = open_broker(AUTHORITY, network=network, rng=rng, on_signal=take)
            brokers[name] = await stack.enter_async_context(opening)
            await brokers[name].register(name)
        assert await a.initiate(way("a", "b")) == "b-I"
        signaling.crash()
        await trio.sleep(1)
        await b.send("a-O", "no broker")
        assert (await a.messages.receive()).data == "no broker"


ANSWER_TO_ANOTHER = encode_neighbour(
    Send("b-I", "test", encode_payload(ArcResponse("t", "b-I", "test", None)))
)


class Lent:
    """An end of a pair of channels, for `attach` to enter."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    async def __aenter__(self) -> Channel:
        await trio.lowlevel.checkpoint()
        return self.channel

    async def __aexit__(self, *_: object) -> None:
        await self.channel.aclose()


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ("hello", "nobody speaks of arcs"),
        ('{"type":"MSend","peer":"b-I","pid":"test","payload":"hello"}', "nobody speaks of arcs"),
        (ANSWER_TO_ANOTHER, "does not answer"),
        (None, "has ended"),
    ],
)
async def test_channel_to_who_speaks_of_no_arcs_is_none(
    frame: str | None, reason: str, autojump_clock: MockClock
) -> None:
    async with open_world("a") as world:
        ours, theirs = memory_channel_pair()
        if frame is None:
            await theirs.aclose()
        else:
            await theirs.send(frame)
        with pytest.raises(ConnectionFailed, match=reason):
            await world["a"].attach(Lent(ours))
        assert not ours.is_open
        assert world["a"].outview == {}


async def test_channel_needs_the_same_protocol_and_another_peer_at_its_other_end(
    autojump_clock: MockClock,
) -> None:
    async with open_world("a", "b") as world:
        await world.add("c", pid="another")
        for one, other in (("a", "c"), ("a", "a")):
            ends = memory_channel_pair()
            failures = 0
            async with trio.open_nursery() as nursery:

                async def attach(name: str, end: Channel, *, is_outgoing: bool) -> None:
                    nonlocal failures
                    with pytest.raises(ConnectionFailed, match=r"protocol|itself"):
                        await world[name].attach(Lent(end), is_outgoing=is_outgoing)
                    failures += 1

                nursery.start_soon(partial(attach, one, ends[0], is_outgoing=True))
                nursery.start_soon(partial(attach, other, ends[1], is_outgoing=False))
            assert failures == 2
        ours, _ = memory_channel_pair()
        with pytest.raises(ConnectionFailed, match="nobody spoke"):
            await world["a"].attach(Lent(ours), is_outgoing=False)


# --- what the originals do, and we cope with ----------------------------------------------


async def test_old_neighbour_is_told_nothing_beyond_the_old_protocol(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_world("b") as world,
        world.stranger("old", "b", extensions=frozenset()) as old,
    ):
        b = world["b"]
        await old.say("hello")
        await b.messages.receive()
        with pytest.raises(NotSupported, match="None"):
            await b.send("old-O", None)
        assert b.disconnect("old-O") == 1
        async with b.open_protocol("other") as other:
            with pytest.raises(PeerNotFound):
                await other.send("old-O", "hello", retries=0)
        await old.hear_nothing()


async def test_each_signal_of_an_old_neighbours_request_is_not_one_arc_more(
    autojump_clock: MockClock,
) -> None:
    """The original's acceptor counts each; ours counts the attempt, and answers it once."""
    async with (
        open_world("b") as world,
        world.stranger("old", "b", extensions=frozenset()) as old,
    ):
        candidate = {"type": "candidate", "candidate": {"candidate": "candidate:1"}}
        for offer in ({"type": "offer", "sdp": "v=0"}, candidate, candidate):
            await old.say(ArcRequest("t", "old-O", "test", offer))
        response = await old.hear()
        assert isinstance(response, ArcResponse)
        assert (response.tid, response.peer, response.offer) == ("t", "b-I", None)
        await old.hear_nothing()
        assert world["b"].inview == {"old-O": 2}


async def test_arcs_of_a_doubled_connection_that_an_old_neighbour_closes_move_to_the_other(
    autojump_clock: MockClock,
) -> None:
    """Two attempts at the same time make two connections; the original closes the newer then."""
    async with open_world("b") as world, trio.open_nursery() as nursery:
        b = world["b"]
        leaving = {tid: trio.Event() for tid in ("first", "second")}

        async def live(tid: str) -> None:
            async with world.stranger("old", "b", extensions=frozenset(), tid=tid):
                await leaving[tid].wait()

        for tid in leaving:
            nursery.start_soon(live, tid)
        await trio.sleep(SETTLING)
        assert b.inview == {"old-O": 2}
        assert world.network.count_open()["b"] == 2
        past(b.events)
        leaving["second"].set()
        await trio.sleep(1)
        assert b.inview == {"old-O": 2}
        assert world.network.count_open()["b"] == 1
        assert past(b.events) == []
        leaving["first"].set()
        await trio.sleep(1)
        assert b.inview == {}
        assert [type(event) for event in past(b.events)] == [ArcClose, ArcClose]
