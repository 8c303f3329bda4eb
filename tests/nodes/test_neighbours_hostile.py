"""What a neighbour may say and cannot harm anybody with, but itself."""

from __future__ import annotations

import logging

import pytest
import trio
from hypothesis import given, settings
from trio.testing import MockClock

from tests.nodes.neighbourhoods import SETTLING, Neighbourhoods, open_world, past
from trio_overlay.channels.channel import Frame
from trio_overlay.errors import ConnectionFailed, MalformedFrame
from trio_overlay.nodes import neighbour_attempts
from trio_overlay.nodes.neighbours import ArcClose, ArcFail
from trio_overlay.protocol import arcs
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.neighbours import (
    EXTENSIONS,
    ArcEnd,
    ArcMessage,
    ArcRequest,
    ArcResponse,
    ConnectTo,
    Direct,
    Disconnect,
    Forward,
    encode_arc_message,
)
from trio_overlay.testing.determinism import run_virtual
from trio_overlay.testing.strategies import hostile_neighbour_texts, hostile_payloads

OFFER = {"type": "offer", "sdp": "virtual offer 1000000 of x with 0 candidates"}
"""One that can be answered, and leads to nothing."""
ANSWER = {"type": "answer", "sdp": "v=0"}


def request(tid: str, peer: str, offer: JSON = OFFER, pid: str = "test") -> ArcRequest:
    return ArcRequest(tid, peer, pid, offer, extensions=EXTENSIONS)


def forward(from_: str, to: str, message: ArcMessage, *, has_arrived: bool = False) -> Forward:
    return Forward(from_, to, encode_arc_message(message), has_arrived)


async def check_unharmed(world: Neighbourhoods, *names: str) -> None:
    """Each of *names* still takes part: it gets an arc from a newcomer, and a message."""
    async with world.open("newcomer") as node:
        for name in names:
            await world.link("newcomer", name)
            await node.send(f"{name}-I", "hello")
            while (await world[name].messages.receive()).peer != node.outview_id:
                pass


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "[]",
        '{"type":"MSend"}',
        '{"type":"MSend","peer":"x-O","pid":"test","payload":{"type":"MConnectTo"}}',
        '{"type":"MSend","peer":"b-O","pid":"test","payload":"forged"}',
        '{"type":"MSend","peer":"c-O","pid":"test","payload":{"type":"MDirect"}}',
        b"\xff",
        "[" * 5_000,
    ],
)
async def test_neighbour_that_breaks_the_protocol_is_left(
    frame: Frame, autojump_clock: MockClock
) -> None:
    """One that gives another's name for its own, too."""
    async with open_world("b") as world, world.stranger("x", "b") as stranger:
        await stranger.channel.send(frame)
        assert await stranger.is_left()
        closed = past(world["b"].events)[-1]
        assert isinstance(closed, ArcClose)
        assert "broke the protocol" in closed.reason
        await check_unharmed(world, "b")


async def test_media_frames_are_ignored_politely(autojump_clock: MockClock) -> None:
    async with open_world("b") as world, world.stranger("x", "b") as stranger:
        past(world["b"].events)
        await stranger.channel.send(
            '{"peer":"x-O","pid":null,"payload":{"type":"MRequest","offer":{"type":"offer"},'
            '"offerType":"renegociate"},"type":"MInternalSend"}'
        )
        await stranger.say("still here")
        assert (await world["b"].messages.receive()).data == "still here"
        assert past(world["b"].events) == []


@pytest.mark.parametrize(
    "payload",
    [
        ConnectTo("c-I", "x-O"),  # for us to open an arc from somebody else
        ConnectTo("b-I", "b-O"),  # for us to open one to ourselves
        request("t", "c-O"),  # for somebody else, directly
        request("t", "b-O"),
        request("t", "x-O", pid="other"),
        request("t", "x-O", {"type": "candidate", "candidate": {}}),
        request("arc of x", "x-O"),  # a repetition of what has its arc
        request("arc of x", "x-O", None),
        ArcResponse("t", "x-I", "test", None),  # of no attempt
        ArcResponse("t", "x-I", "test", ANSWER),
        ArcEnd("t", "x-O", "test", "why not"),
        ArcEnd("arc of c", "c-O", "test", "why not"),  # of somebody else's arc
        Disconnect("t"),
        Disconnect("arc of c"),
        forward("x-O", "c-O", ArcResponse("t", "x-I", "test", ANSWER)),  # of no attempt
        forward("c-O", "x-O", request("t", "c-O")),  # for somebody else
        forward("x-O", "c-O", request("t", "c-O")),  # for somebody else, further in
        forward("x-O", "b-I", request("t", "x-O")),  # over the bridge to the bridge
        forward("x-O", "x-I", request("t", "x-O")),  # to itself
        Forward("x-O", "c-O", {"type": "anything else"}, has_arrived=False),
        Forward("x-O", "c-O", {"type": ["MRequest"]}, has_arrived=False),
        forward("c-O", "d-I", request("t", "c-O"), has_arrived=True),  # not for us
        forward("c-O", "b-I", request("t", "d-O"), has_arrived=True),  # forged on its way
        forward("b-O", "b-I", request("t", "b-O"), has_arrived=True),  # from ourselves
        forward("c-O", "b-I", ArcResponse("t", "c-I", "test", ANSWER), has_arrived=True),
        Forward("c-O", "b-I", {"type": "MConnectTo"}, has_arrived=True),
    ],
    ids=lambda payload: type(payload).__name__,
)
async def test_what_nobody_may_say_begins_nothing(
    payload: object, autojump_clock: MockClock
) -> None:
    async with (
        open_world("b") as world,
        world.stranger("x", "b") as stranger,
        world.stranger("c", "b") as other,
    ):
        b = world["b"]
        await trio.sleep(SETTLING)
        past(b.events)
        before = (dict(b.inview), dict(b.outview), world.network.count_peers.copy())
        await stranger.say(payload)
        await trio.sleep(SETTLING)
        assert (b.inview, b.outview, world.network.count_peers) == before
        assert len(b._attempts) == len(b._answers) == len(b._bridging) == 0
        await other.hear_nothing()
        assert past(b.events) == []
        await stranger.say("still here")
        assert (await b.messages.receive()).data == "still here"


async def test_bridge_tells_one_of_ours_why_it_does_not_pass_something_on(
    autojump_clock: MockClock,
) -> None:
    async with open_world("b") as world, world.stranger("x", "b") as stranger:
        await stranger.say(forward("x-O", "nobody-I", request("t", "x-O")))
        said = await stranger.hear()
        assert isinstance(said, Forward)
        assert said.message["type"] == "MArcEnd"
        assert "nobody-I is no neighbour" in said.message["reason"]


async def test_flood_of_attempts_over_a_bridge_is_bounded_and_hurts_no_other(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_world("b", max_attempts=5) as world,
        world.stranger("x", "b") as flooder,
        world.stranger("c", "b") as target,
        world.stranger("d", "b") as other,
    ):
        for number in range(50):
            await flooder.say(forward("x-O", "c-O", request(f"t{number}", "x-O")))
        for _ in range(5):
            assert isinstance(await target.hear(), Forward)
        await target.hear_nothing()
        assert len(world["b"]._bridging) == 5
        await other.say(forward("d-O", "x-O", request("other", "d-O")))  # not asked too much
        while True:
            heard = await flooder.hear()
            assert isinstance(heard, Forward)
            if heard.message["tid"] == "other":
                break
        await trio.sleep(15)
        assert len(world["b"]._bridging) == 0
        await flooder.say(forward("x-O", "c-O", request("later", "x-O")))
        assert isinstance(await target.hear(), Forward)


async def test_flood_of_requests_for_arcs_is_bounded_and_hurts_no_other(
    autojump_clock: MockClock,
) -> None:
    async with open_world("b", max_attempts=5) as world, world.stranger("x", "b") as flooder:
        for number in range(50):
            message = request(f"t{number}", f"y{number}-O")
            await flooder.say(forward(f"y{number}-O", "b-I", message, has_arrived=True))
        await trio.sleep(1)
        assert len(world["b"]._answers) == 5
        await check_unharmed(world, "b")
        await trio.sleep(11)
        assert len(world["b"]._answers) == 0
        assert world.network.count_peers["b"] < 10


async def test_flood_of_arcs_on_a_connection_is_bounded_and_hurts_no_other(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that it opens, and those that it has us open."""
    for module in (arcs, neighbour_attempts):
        monkeypatch.setattr(module, "MAX_ARCS_EACH", 50)
    async with open_world("b", "x") as world, world.stranger("y", "b") as flooder:
        b, x = world["b"], world["x"]
        refused = 0
        for number in range(80):
            await flooder.say(request(f"t{number}", "y-O", None))
            match await flooder.hear():
                case ArcEnd(reason=reason):
                    assert reason is not None
                    assert "too many arcs" in reason
                    refused += 1
        assert refused == 31  # the connection came with one
        assert b.inview == {"y-O": 50}
        await world.link("b", "x")
        await trio.sleep(SETTLING)
        monkeypatch.setattr(x._hood.acceptor, "take", lambda *_: arcs.AddArc())  # without end
        for _ in range(80):
            await x.connect(from_="b-O")
            await trio.sleep(0.5)
        assert (b.outview, x.inview) == ({"x-I": 50}, {"b-O": 50})
        await flooder.say(Disconnect("t7"))
        await flooder.say(request("later", "y-O", None))
        assert isinstance(await flooder.hear(), ArcResponse)
        await check_unharmed(world, "b")


async def test_flood_of_wishes_is_bounded(autojump_clock: MockClock) -> None:
    async with open_world("b", max_attempts=5) as world, world.stranger("x", "b") as flooder:
        for number in range(50):
            await flooder.say(ConnectTo("b-I", f"y{number}-I"))
            await flooder.say(Direct())
        await trio.sleep(1)
        assert len(world["b"]._attempts) == 5
        await check_unharmed(world, "b")
        await trio.sleep(11)
        assert len(world["b"]._attempts) == 0
        assert world["b"].outview == {}


async def test_repeated_messages_are_as_good_as_one(autojump_clock: MockClock) -> None:
    """Each message of two attempts comes three times, on a road that does that."""
    async with open_world("a", "b") as world:
        a, b = world["a"], world["b"]

        async def there(message: JSON) -> None:
            for _ in range(3):
                await trio.sleep(0.01)
                b.accept(back, message)

        async def back(message: JSON) -> None:
            for _ in range(3):
                await trio.sleep(0.01)
                a.finalize(message)

        for count in (1, 2):
            await a.initiate(there)
            await trio.sleep(SETTLING)
            assert (a.outview, b.inview) == ({"b-I": count}, {"a-O": count})
        assert world.network.count_open_peers == 2


async def test_offer_where_an_answer_belongs_fails_the_attempt(autojump_clock: MockClock) -> None:
    async with open_world("a") as world:
        a = world["a"]

        async def there(message: JSON) -> None:
            response = ArcResponse(message["tid"], "b-I", "test", OFFER)
            a.finalize(encode_arc_message(response))
            await trio.lowlevel.checkpoint()

        with pytest.raises(ConnectionFailed, match="an offer of b-I where an answer belongs"):
            await a.initiate(there)
        assert [type(event) for event in past(a.events)] == [ArcFail]


async def test_answer_with_another_tid_or_of_another_protocol_is_ignored(
    autojump_clock: MockClock,
) -> None:
    async with open_world("a", "b") as world:
        a, b = world["a"], world["b"]

        async def there(message: JSON) -> None:
            b.accept(back, message)
            await trio.lowlevel.checkpoint()

        async def back(message: JSON) -> None:
            a.finalize({**message, "tid": "another"})
            a.finalize({**message, "pid": "another"})
            a.finalize({**message, "offer": {"type": "answer"}})
            a.finalize(message)
            a.finalize({**message, "peer": "c-I", "offer": None})
            await trio.lowlevel.checkpoint()

        assert await a.initiate(there) == "b-I"
        assert a.outview == {"b-I": 1}


async def test_peer_that_is_asked_by_itself_has_no_arc(autojump_clock: MockClock) -> None:
    async with open_world("a") as world:
        a = world["a"]

        async def there(message: JSON) -> None:
            a.accept(there, message)
            await trio.lowlevel.checkpoint()

        with pytest.raises(ConnectionFailed, match="no arc within 10 s"):
            await a.initiate(there)
        assert a.inview == a.outview == {}


@pytest.mark.parametrize("message", [None, "offer", {}, {"type": "MRequest"}, {"type": "MDirect"}])
async def test_messages_that_an_application_brings_are_checked(
    message: JSON, autojump_clock: MockClock
) -> None:
    async with open_world("a") as world:

        async def carry(_: JSON) -> None:
            await trio.lowlevel.checkpoint()

        with pytest.raises(MalformedFrame):
            world["a"].accept(carry, message)
        with pytest.raises(MalformedFrame):
            world["a"].finalize(message)
        response = encode_arc_message(ArcResponse("t", "b-I", "test", ANSWER))
        with pytest.raises(MalformedFrame):
            world["a"].accept(carry, response)
        with pytest.raises(MalformedFrame):
            world["a"].finalize(encode_arc_message(request("t", "b-O")))


async def test_neighbour_that_does_not_wait_loses_its_connection(
    autojump_clock: MockClock,
) -> None:
    """It has sent a mebibyte more than was read; others lose nothing."""
    async with (
        open_world("b") as world,
        world.stranger("x", "b", extensions=frozenset()) as flooder,
    ):
        b = world["b"]
        await flooder.say("first")
        assert (await b.messages.receive()).data == "first"  # from now on nothing is dropped
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            for _ in range(30):
                await flooder.say("x" * 100_000)
        assert (
            "read too slowly"
            in [event.reason for event in past(b.events) if isinstance(event, ArcClose)][-1]
        )


@settings(max_examples=60)
@given(hostile_neighbour_texts, hostile_payloads)
def test_no_frame_harms_anybody_but_who_sent_it(frame: Frame, payload: JSON) -> None:
    async def live() -> None:
        async with (
            open_world("b") as world,
            world.stranger("x", "b") as stranger,
            world.stranger("y", "b", extensions=frozenset()) as other,
        ):
            await stranger.channel.send(frame)
            await other.say(payload)
            await trio.sleep(SETTLING)
            await check_unharmed(world, "b")

    logging.getLogger("trio_overlay").setLevel(logging.ERROR)
    try:
        run_virtual(live)
    finally:
        logging.getLogger("trio_overlay").setLevel(logging.NOTSET)
