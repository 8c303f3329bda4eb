"""What a hostile neighbour, or a stranger behind it, can cause a relay to do: nothing to others."""

from __future__ import annotations

import json

import pytest
import trio
from trio.testing import MockClock

from tests.nodes.relays import QUIET, Relays, open_relays, past_events, say, until
from trio_overlay.channels.channel import Channel
from trio_overlay.errors import ConnectionFailed
from trio_overlay.nodes.relay import Relay, open_relay
from trio_overlay.nodes.relay_sessions import MAX_SESSIONS
from trio_overlay.nodes.relay_urls import MAX_DIALS_AT_ONCE, UrlGuard, is_public
from trio_overlay.protocol.json import JSON, encode_json
from trio_overlay.protocol.relay import (
    Body,
    FindPeers,
    FoundPeers,
    HandshakeAnswer,
    HandshakeOffer,
    PeerSignal,
    Receipt,
    User,
    decode_envelope,
    encode_body,
    encode_first_frame,
)

BAD = "ee" * 20


async def meet(relays: Relays) -> tuple[Relay, Relay, Channel]:
    """Two honest neighbours, and one at a raw channel to the first of them."""
    one, other = await relays.chain("one", "other")
    bad = await relays.stranger("one", BAD)
    await until(lambda: BAD in one.peers)
    return one, other, bad


async def check_that_they_talk(one: Relay, other: Relay) -> None:
    for sender, target in ((one, other), (other, one)):
        await sender.send(target.id, "still there?", wait_for_receipt=True)
        while (await target.messages.receive()).data != "still there?":
            pass


def envelope(to: str, **changes: object) -> str:
    good = {"to": to, "from": BAD, "path": [BAD], "nonce": "1", "data": {"type": "user", "data": 1}}
    return json.dumps(good | changes)


NO_VALUES: list[JSON] = [None, 7, {}, [None], [[BAD]], "1" * 10_000]
NO_BODIES: list[JSON] = [
    None, 7, [], {}, {"type": None}, {"type": "findPeers"}, {"type": "foundPeers", "data": 7},
    {"type": "signal"}, {"type": "handshake-answer", "data": None},
]  # fmt: skip
FRAMES: dict[str, list[str | bytes]] = {
    "not JSON": ["}", b"\xff\xfe", "", "[" * 5000],
    "no envelope": ["null", "[]", "7", '"text"', "{}"],
    "a path of thousands": [envelope("", path=[BAD] * 5000)],
    "a path of other things": [envelope("", path=value) for value in NO_VALUES],
    "ids of the wrong length": [envelope("ff"), envelope("f" * 41), envelope("", **{"from": "f"})],
    "nonces that are none": [envelope("", nonce=value) for value in NO_VALUES],
    "bodies that are none": [envelope("", data=value) for value in NO_BODIES],
    "depth": [envelope("", data={"type": "user", "data": json.loads("[" * 900 + "]" * 900)})],
}  # fmt: skip


@pytest.mark.parametrize("kind", FRAMES)
async def test_bad_frames_harm_nobody_else(kind: str, autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        one, other, bad = await meet(relays)
        for each in FRAMES[kind]:
            frame = each
            try:
                text = (
                    frame.replace('"to": ""', f'"to": "{one.id}"')
                    if isinstance(frame, str)
                    else frame
                )
                await bad.send(text)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                assert kind in ("not JSON", "no envelope", "depth")  # those cost the connection
                break
        await check_that_they_talk(one, other)
        if kind not in ("not JSON", "no envelope", "depth"):
            assert BAD in one.peers  # it may have had them from others
            assert one.peers[BAD].count_malformed == len(FRAMES[kind])


@pytest.mark.parametrize(
    "frame", ["}", "null", '"ab"', "[1]", '{"type":"Buffer","data":[1]}', b"\xff"]
)
async def test_who_begins_with_no_id_is_closed(
    frame: str | bytes, autojump_clock: MockClock
) -> None:
    async with open_relays() as relays:
        one, other = await relays.chain("one", "other")
        async with relays.network.host("stranger").dial("ws://one") as channel:
            await channel.send(frame)
            await channel.receive()
            with pytest.raises((trio.EndOfChannel, trio.BrokenResourceError)):
                await channel.receive()
        await check_that_they_talk(one, other)


async def test_who_never_says_its_id_is_closed(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        await relays.open("one", listens=True)
        async with relays.network.host("stranger").dial("ws://one") as channel:
            await channel.receive()
            with trio.fail_after(11), pytest.raises(trio.EndOfChannel):
                await channel.receive()


async def test_who_claims_our_own_id_is_no_neighbour(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        one, other = await relays.chain("one", "other")
        await relays.stranger("one", one.id)
        await trio.sleep(1)
        assert list(one.peers) == [other.id]


async def test_floods_are_bounded_in_memory_and_answers(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        one, other, bad = await meet(relays)
        heard = 0

        async def listen() -> None:
            nonlocal heard
            while True:
                await bad.receive()
                heard += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            for number in range(1500):
                victim = f"{number:040x}"
                bodies: list[Body] = [
                    FindPeers(victim),
                    FoundPeers((victim,)),
                    HandshakeOffer(),
                    Receipt("r"),
                    HandshakeAnswer(f"ws://victim{number}", True),
                    PeerSignal({"type": "offer"}),
                    User(number),
                ]
                for index, body in enumerate(bodies):
                    await say(bad, BAD, one.id, body, f"{number}/{index}")
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
        assert heard < 1000
        assert one._mind.count_remembered < 25_000
        assert len(one.messages) <= 1000
        assert len(one._sessions) <= MAX_SESSIONS
        assert relays.network.count_dials["one"] <= 1
        await check_that_they_talk(one, other)


async def test_answers_of_those_never_asked_make_us_dial_nobody(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        one, _, bad = await meet(relays)
        dials = relays.network.count_dials["one"]
        await say(bad, BAD, one.id, HandshakeAnswer("ws://victim", False), "a")
        await say(bad, BAD, one.id, PeerSignal({"type": "offer", "sdp": "v=0"}), "b")
        await trio.sleep(5)
        assert relays.network.count_dials["one"] == dials
        assert not one._sessions


async def test_nonsense_for_signals_ends_with_the_attempt(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        one, other, bad = await meet(relays)
        asker = "dd" * 20
        for number, (body, sender) in enumerate(
            [(HandshakeOffer(), asker)]
            + [
                (PeerSignal(signal), asker)
                for signal in ({}, {"type": "offer", "sdp": "nonsense"}, {"candidate": 7})
            ]
        ):
            value = {"to": one.id, "from": sender, "path": [sender, BAD], "nonce": str(number)}
            await bad.send(encode_json(value | {"data": encode_body(body)}))
        await until(lambda: relays.network.count_peers["one"])
        await trio.sleep(60)
        assert not one._sessions
        assert not one._mind.attempts
        await check_that_they_talk(one, other)


async def test_another_peer_at_an_announced_url_is_no_neighbour(autojump_clock: MockClock) -> None:
    """Or who announces somebody else's URL could have us take that one for itself."""
    async with open_relays() as relays:
        one, other, bad = await meet(relays)
        third = await relays.open("third", listens=True, policy=QUIET)

        async def answer() -> None:
            while True:
                asked = decode_envelope(await bad.receive())
                if isinstance(asked.body, HandshakeOffer):
                    asked_by = asked.sender
                    answer = HandshakeAnswer("ws://third", False)
                    value = {"to": asked_by, "from": "dd" * 20, "path": ["dd" * 20, BAD]}
                    await bad.send(encode_json(value | {"nonce": "x", "data": encode_body(answer)}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with pytest.raises(ConnectionFailed, match="another peer than dddd"):
                await one.connect("dd" * 20)
            nursery.cancel_scope.cancel()
        assert third.id not in one.peers
        await check_that_they_talk(one, other)


async def test_a_neighbour_that_sends_and_never_reads_stops_nobody(
    autojump_clock: MockClock,
) -> None:
    async with open_relays() as relays:
        one, other, bad = await meet(relays)
        for number in range(500):
            await say(bad, BAD, other.id, User("x" * 5000), str(number))
            await say(bad, BAD, one.id, FindPeers(BAD), f"q{number}")
        await check_that_they_talk(one, other)


async def test_who_hangs_up_in_the_middle_leaves_nothing(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        one, other = await relays.chain("one", "other")
        for frames in range(3):
            async with relays.network.host("stranger").dial("ws://one") as channel:
                for frame in ([encode_first_frame(BAD), envelope(one.id, nonce=str(frames))])[
                    :frames
                ]:
                    await channel.send(frame)
        await until(lambda: BAD not in one.peers)
        await check_that_they_talk(one, other)
        names = [event.name for event in past_events(one) if event.id == BAD]
        assert names == ["peer-joined", "peer-left"] * (len(names) // 2)


# --- where announced URLs may lead --------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "127.0.0.1", "127.1", "0.0.0.0",  # noqa: S104
        "10.1.2.3", "172.16.0.1", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "[::1]", "[::]", "[fe80::1]", "[fc00::1]", "224.0.0.1",
        "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
        "2130706433", "0x7f000001", "255.255.255.255", "192.0.2.1",
    ],
)  # fmt: skip
async def test_addresses_that_are_not_public_are_not_dialled(host: str) -> None:
    guard = UrlGuard(allows_private=False)
    with pytest.raises(ConnectionFailed, match=r"not public|unknown"):
        await guard.check(f"ws://{host}:8080/")


async def test_public_addresses_are_dialled_as_what_they_are() -> None:
    guard = UrlGuard(allows_private=False)
    assert await guard.check("ws://8.8.8.8:81/path?q#f") == "ws://8.8.8.8:81/path?q"
    assert await guard.check("wss://[2001:4860:4860::8888]/") == "wss://[2001:4860:4860::8888]/"
    assert await guard.check("ws://[2001:4860:4860::8888]/x") == "ws://[2001:4860:4860::8888]:80/x"


class OneName(trio.abc.HostnameResolver):
    """A name server that says what the test says."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def getaddrinfo(self, *_: object, **__: object) -> list[tuple[object, ...]]:  # type: ignore[override]
        await trio.lowlevel.checkpoint()
        return [(2, 1, 6, "", (address, 80)) for address in self._addresses]

    async def getnameinfo(self, *_: object) -> tuple[str, str]:
        raise NotImplementedError


async def test_a_name_is_dialled_by_the_address_that_was_looked_at() -> None:
    guard = UrlGuard(allows_private=False)
    trio.socket.set_custom_hostname_resolver(OneName("8.8.8.8"))
    assert await guard.check("ws://relay.example/x") == "ws://8.8.8.8:80/x"
    assert await guard.check("wss://relay.example/x") == "wss://relay.example/x"
    trio.socket.set_custom_hostname_resolver(OneName("8.8.8.8", "127.0.0.1"))
    with pytest.raises(ConnectionFailed, match="not public"):
        await guard.check("ws://relay.example/x")
    trio.socket.set_custom_hostname_resolver(OneName())
    with pytest.raises(ConnectionFailed, match="unknown"):
        await guard.check("ws://relay.example/x")


@pytest.mark.parametrize(
    "url", ["http://8.8.8.8", "ws:", "8.8.8.8", "ws://u:p@8.8.8.8", "ws://[8", "ws://8.8.8.8:x"]
)
async def test_what_is_no_url_is_not_dialled(url: str) -> None:
    for allows_private in (False, True):
        with pytest.raises(ConnectionFailed, match="no URL"):
            await UrlGuard(allows_private=allows_private).check(url)


async def test_announced_urls_are_dialled_so_often_and_no_more(autojump_clock: MockClock) -> None:
    guard = UrlGuard(allows_private=True)
    for _ in range(3):
        await guard.check("ws://victim:80/")
    with pytest.raises(ConnectionFailed, match="too many"):
        await guard.check("ws://victim/another/path")
    dialled = 0
    for number in range(2000):
        try:
            await guard.check(f"ws://victim{number}")
            dialled += 1
        except ConnectionFailed:
            pass
    assert dialled <= MAX_DIALS_AT_ONCE
    assert len(guard._by_authority) <= 1000
    await trio.sleep(120)
    await guard.check("ws://victim:80/")


async def test_a_relay_follows_no_announced_url_to_this_machine_unless_allowed() -> None:
    assert not is_public("nonsense")
    with trio.fail_after(120):
        async with (
            open_relay(port=0, webrtc=False, policy=QUIET) as hub,
            open_relay(port=0, webrtc=False, policy=QUIET, bootstrap=[str(hub.url)]) as target,
            open_relay(webrtc=False, policy=QUIET, bootstrap=[str(hub.url)]) as careful,
            open_relay(
                webrtc=False, policy=QUIET, bootstrap=[str(hub.url)], allow_private_addresses=True
            ) as careless,
        ):
            for relay in (target, careful, careless):
                await relay.events.receive()
            with pytest.raises(ConnectionFailed, match="not public"):
                await careful.connect(target.id)
            await careless.connect(target.id)
            assert target.id in careless.peers
