"""WebRTC channels: among our own peers, with strangers, and in all the ways they can fail."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable

import aioice.ice
import pytest
import trio
import trio.testing
from aiortc import RTCPeerConnection

from tests.channels.peers import (
    ask_for_life,
    carry,
    connect,
    expect_life,
    open_pair,
    open_pair_with_stranger,
    open_stranger,
    silence,
)
from tests.channels.test_bridge import (
    BRIDGES,
    each_bridge,
    held,
    held_at_first,
    needs_proc,
    run_python,
)
from trio_overlay.channels import webrtc
from trio_overlay.channels.bridge import BridgeChoice, open_bridge
from trio_overlay.channels.channel import Channel, Frame
from trio_overlay.channels.internet import IceServer, Internet
from trio_overlay.channels.network import PeerConnection
from trio_overlay.channels.webrtc import MAX_FRAME_SIZE, MAX_SIGNALS
from trio_overlay.errors import ConfigurationError, ConnectionFailed, MessageTooLarge
from trio_overlay.protocol.credit import WINDOW
from trio_overlay.protocol.signals import Answer, Candidate, Irrelevant, Offer, Signal

pytestmark = pytest.mark.webrtc

PATIENCE = 120  # seconds, for a busy machine; nothing here waits for time to pass


# --- coming up ---


@each_bridge
async def test_two_of_ours_connect_and_pass_frames(choice: BridgeChoice) -> None:
    frames: list[Frame] = ["text", b"binary", "", b"", "ü\U0001f333", b"x" * MAX_FRAME_SIZE]
    with trio.fail_after(PATIENCE):
        async with open_pair(choice) as channels:
            for sender, reader in (channels, channels[::-1]):
                for frame in frames:
                    await sender.send(frame)
                assert [await reader.receive() for _ in frames] == frames


@each_bridge
async def test_frames_sent_while_the_ends_get_to_know_each_other_arrive_in_order(
    choice: BridgeChoice,
) -> None:
    """The switch to prefixed frames comes behind the plain ones that were sent before it."""
    with trio.fail_after(PATIENCE):
        async with open_pair(choice) as channels:
            for sender, reader in (channels, channels[::-1]):
                frames: list[Frame] = ["", *(str(number) for number in range(100)), b""]
                for frame in frames:
                    await sender.send(frame)
                assert [await reader.receive() for _ in frames] == frames


async def test_a_peer_of_each_bridge_connect() -> None:
    with trio.fail_after(PATIENCE):
        async with (
            Internet(bridge=BRIDGES[0]).open_peer(initiator=True) as a,
            Internet(bridge=BRIDGES[-1]).open_peer(initiator=False) as b,
        ):
            one, other = await connect(a, b)
            await one.send("hello")
            assert await other.receive() == "hello"


async def test_hundred_pairs_at_once_all_connect() -> None:
    count = 100
    connected = 0
    all_connected = trio.Event()

    async def be_one() -> None:
        nonlocal connected
        async with open_pair() as (a, b):
            await a.send("up")
            assert await b.receive() == "up"
            connected += 1
            if connected == count:
                all_connected.set()
            await all_connected.wait()

    with trio.fail_after(2 * PATIENCE):
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(be_one)
    assert connected == count


async def test_each_end_says_one_signal_and_no_more() -> None:
    async with (
        Internet().open_peer(initiator=True) as a,
        Internet().open_peer(initiator=False) as b,
    ):
        offer = await a.next_signal()
        assert isinstance(offer, Offer)
        assert re.findall("(?m)^m=.*", offer.sdp)[0].startswith("m=application")
        assert "\na=candidate:" in offer.sdp
        with pytest.raises(trio.EndOfChannel):
            await a.next_signal()
        b.signal_nowait(offer)
        assert isinstance(await b.next_signal(), Answer)
        with pytest.raises(trio.EndOfChannel):
            await b.next_signal()


async def test_signals_can_be_said_to_functions_until_both_are_connected() -> None:
    channels: dict[str, Channel] = {}
    said: list[type[Signal]] = []
    async with (
        Internet().open_peer(initiator=True) as a,
        Internet().open_peer(initiator=False) as b,
    ):

        async def connect(name: str, peer: PeerConnection, other: PeerConnection) -> None:
            def say(signal: Signal) -> None:
                said.append(type(signal))
                other.signal_nowait(signal)

            channels[name] = await peer.connect(say)

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect, "a", a, b)
                nursery.start_soon(connect, "b", b, a)
        await channels["a"].send("hello")
        assert await channels["b"].receive() == "hello"
        assert said == [Offer, Answer]
        with pytest.raises(trio.EndOfChannel):
            await a.next_signal()


def without_candidates(description: str) -> tuple[str, list[str]]:
    """*description* as one who trickles says it, and the candidates to come."""
    lines = description.splitlines()
    candidates = [line[2:] for line in lines if line.startswith("a=candidate:")]
    kept = [line for line in lines if not line.startswith(("a=candidate:", "a=end-of-cand"))]
    return "\r\n".join(kept) + "\r\n", candidates


UNUSABLE: list[Signal] = [
    Candidate(""),
    Candidate("candidate:1 1 udp 2113937151 9b36eaac-bb2e-49bb-bb78-21c41c499900.local 5 typ host"),
    Candidate("candidate:1 1 tcp 1518280447 192.0.2.1 9 typ host tcptype active", "0", 0),
    Candidate("candidate:1 1 udp 1 no.such.host.invalid 9 typ host", "data", 7),
    Candidate("candidate:1 1 udp 1 2001:db8::1 9 typ host"),
    Candidate("candidate:nonsense"),
    Candidate("\x00\ud800 1 udp"),
    Irrelevant(),
]


@pytest.mark.parametrize("late", [False, True])
async def test_trickled_candidates_are_taken_in_before_and_after_the_description(
    late: bool,
) -> None:
    with trio.fail_after(PATIENCE):
        async with (
            Internet().open_peer(initiator=True) as a,
            Internet().open_peer(initiator=False) as b,
        ):
            await carry(a, b)
            answer = await b.next_signal()
            assert isinstance(answer, Answer)
            sdp, candidates = without_candidates(answer.sdp)
            assert candidates
            trickle: list[Signal] = [*UNUSABLE, *(Candidate(line, "0", 0) for line in candidates)]
            if late:
                a.signal_nowait(Answer(sdp))
                await trio.testing.wait_all_tasks_blocked()
            for candidate in trickle:
                a.signal_nowait(candidate)
            if not late:
                a.signal_nowait(Answer(sdp))
            await a.connected()


async def test_only_the_answers_candidates_need_to_be_usable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A browser hides all its addresses behind names, and is reached nonetheless."""
    monkeypatch.setattr(aioice.mdns, "create_mdns_protocol", None)  # nobody asks for names
    with trio.fail_after(PATIENCE):
        async with (
            Internet().open_peer(initiator=True) as a,
            Internet().open_peer(initiator=False) as b,
        ):
            offer = await a.next_signal()
            assert isinstance(offer, Offer)
            sdp, _ = without_candidates(offer.sdp)
            hidden = "a=candidate:1 1 udp 2113937151 9b36eaac.local 50000 typ host\r\n" * 4
            b.signal_nowait(Offer(sdp + hidden + "a=end-of-candidates\r\n"))
            await carry(b, a)
            await a.connected()
            await b.connected()


OFFER = (
    "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n"
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\n"
    "a=ice-ufrag:abcd\r\na=ice-pwd:abcdefghijklmnopqrstuv\r\na=setup:actpass\r\n"
    "a=fingerprint:sha-256 " + ":".join(["AB"] * 32) + "\r\na=sctp-port:5000\r\n"
)
AUDIO = "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:1\r\na=rtpmap:111 opus/48000/2\r\n"


@pytest.mark.parametrize(
    ("initiator", "signal", "message"),
    [
        (False, Offer(""), "without a section"),
        (False, Offer("m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n"), "ice-ufrag"),
        (False, Offer(OFFER + AUDIO), "m=audio"),
        (False, Offer(AUDIO), "m=audio"),
        (False, Offer(OFFER.replace("actpass", "sideways")), "could not be set up"),
        (False, Offer(OFFER.replace("c=IN IP4 0.0.0.0", "c=nonsense")), "could not be set up"),
        (False, Answer(OFFER), "an answer where an offer belongs"),
        (True, Offer(OFFER), "an offer where an answer belongs"),
        (True, Answer("\x00"), "cannot be used"),
        (True, Answer(OFFER), "could not be set up"),  # it has to choose a role
        (True, Answer(OFFER.replace("actpass", "active").replace("mid:0", "mid:7")), "set up"),
    ],
)
async def test_what_makes_a_connection_impossible_comes_out_as_connection_failed(
    initiator: bool, signal: Offer | Answer, message: str
) -> None:
    with trio.fail_after(PATIENCE):
        async with Internet().open_peer(initiator=initiator) as peer:
            if initiator:
                await peer.next_signal()
            peer.signal_nowait(signal)
            with pytest.raises(ConnectionFailed, match=message):
                await peer.connected()
            with pytest.raises(ConnectionFailed, match=message):
                await peer.next_signal()


async def test_more_signals_than_anybody_needs_end_the_connection() -> None:
    async with Internet().open_peer(initiator=False) as peer:
        for _ in range(MAX_SIGNALS):
            peer.signal_nowait(UNUSABLE[2])
        with trio.move_on_after(0):
            await peer.connected()
        peer.signal_nowait(UNUSABLE[2])
        with pytest.raises(ConnectionFailed, match="more than"):
            await peer.connected()


async def test_impostor_is_refused() -> None:
    """Whoever answers with another certificate than the description said is not who we want."""
    with trio.fail_after(PATIENCE):
        async with (
            Internet().open_peer(initiator=True) as a,
            Internet().open_peer(initiator=False) as b,
        ):
            await carry(a, b)
            answer = await b.next_signal()
            assert isinstance(answer, Answer)
            wrong = re.sub("(?m)^(a=fingerprint:[^ ]+) (..)", r"\1 00", answer.sdp)
            assert wrong != answer.sdp
            a.signal_nowait(Answer(wrong))
            with pytest.raises(ConnectionFailed):
                await a.connected()


async def test_data_channel_that_may_lose_frames_is_refused() -> None:
    with trio.fail_after(PATIENCE):
        async with open_stranger() as stranger, Internet().open_peer(initiator=False) as peer:
            peer.signal_nowait(await stranger.offer(ordered=False))
            await stranger.take_answer(await peer.next_signal())
            with pytest.raises(ConnectionFailed, match="lose or reorder"):
                await peer.connected()


# --- strangers ---


@each_bridge
async def test_strangers_acceptor_sees_an_ordinary_channel_of_simple_peer(
    choice: BridgeChoice,
) -> None:
    with trio.fail_after(PATIENCE):
        async with open_pair_with_stranger(
            we_initiate=True, bridge=choice, says_first=["early", b"bird"]
        ) as (channel, stranger):
            await channel.send("to a stranger")
            await channel.send(b"x" * channel.max_frame_size)
            assert [await channel.receive(), await channel.receive()] == ["early", b"bird"]
            await channel.send("the end")
            while stranger.received[-1:] != ["the end"]:
                await trio.lowlevel.checkpoint()
            assert stranger.received == ["to a stranger", b"x" * 262_144, "the end"]
            [opened] = stranger.opened_channels
            assert re.fullmatch("[0-9a-f]{40}", opened.label)
            assert opened.ordered
            assert not opened.negotiated
            await channel.aclose("told to nobody")
            await stranger.has_closed.wait()
            assert stranger.received[-1] == "the end"


@each_bridge
async def test_strangers_initiator_hears_nothing_but_our_frames(choice: BridgeChoice) -> None:
    with trio.fail_after(PATIENCE):
        async with open_pair_with_stranger(
            we_initiate=False, bridge=choice, says_first=["early", "bird"]
        ) as (channel, stranger):
            assert [await channel.receive(), await channel.receive()] == ["early", "bird"]
            await channel.send("to a stranger")
            await stranger.received_something()
            assert stranger.received == ["to a stranger"]
            stranger.send("d", "c9", "x", b"d1", "last")
            got = [await channel.receive() for _ in range(5)]
            assert got == ["d", "c9", "x", b"d1", "last"]
            await stranger.close()
            with pytest.raises(trio.EndOfChannel):
                await channel.receive()
            assert channel.close_reason == "closed by the other end"


async def test_reader_too_slow_for_a_stranger_loses_the_channel() -> None:
    with trio.fail_after(PATIENCE):
        async with open_pair_with_stranger(we_initiate=False) as (channel, stranger):
            stranger.send(*[bytes(50_000)] * 200)
            await stranger.has_closed.wait()
            assert channel.close_reason is not None
            assert channel.close_reason.startswith("reader too slow")
            got = 0
            with pytest.raises(trio.BrokenResourceError, match="reader too slow"):
                while True:
                    got += len(await channel.receive())
            assert 3_500_000 < got < 5_000_000


async def test_writer_waits_for_a_network_that_takes_nothing_more() -> None:
    frame = bytes(10_000)
    accepted = 0
    async with open_pair_with_stranger(we_initiate=True) as (channel, _):
        silence(channel)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def write() -> None:
                    nonlocal accepted
                    while accepted < 1000:
                        await channel.send(frame)
                        accepted += 1

                nursery.start_soon(write)
                before = -1
                while before != accepted:
                    before = accepted
                    await trio.testing.wait_all_tasks_blocked(0.1)
                scope.cancel()
        assert 400_000 < accepted * len(frame) < 700_000


async def test_remotes_own_limit_is_obeyed() -> None:
    with trio.fail_after(PATIENCE):
        async with open_stranger() as stranger, Internet().open_peer(initiator=True) as peer:
            answer = await stranger.answer(await peer.next_signal())
            peer.signal_nowait(Answer(answer.sdp.replace("size:262144", "size:1000")))
            channel = await peer.connected()
            assert channel.max_frame_size == 1000
            with pytest.raises(MessageTooLarge, match="1000"):
                await channel.send(bytes(1001))
            with pytest.raises(MessageTooLarge):
                await channel.send("ü" * 501)
            await channel.send("ü" * 500)
            await stranger.received_something()
            assert stranger.received == ["ü" * 500]


async def test_frame_larger_than_anybody_may_send_breaks_the_channel() -> None:
    with trio.fail_after(PATIENCE):
        async with open_stranger() as stranger, Internet().open_peer(initiator=False) as peer:
            peer.signal_nowait(await stranger.offer())
            answer = await peer.next_signal()
            assert isinstance(answer, Answer)
            await stranger.take_answer(Answer(re.sub("size:[0-9]+", "size:0", answer.sdp)))
            channel = await peer.connected()
            await stranger.is_open.wait()
            stranger.send(bytes(MAX_FRAME_SIZE + 2))
            with pytest.raises(trio.BrokenResourceError, match="262146 bytes"):
                await channel.receive()


# --- going down ---


@each_bridge
@pytest.mark.parametrize("closer", [0, 1])
async def test_close_and_its_reason_are_seen_at_both_ends(
    choice: BridgeChoice, closer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("GREETING_TIMEOUT", "LINGER"):  # on any machine
        monkeypatch.setattr(webrtc, limit, PATIENCE)
    with trio.fail_after(PATIENCE):
        async with open_pair(choice) as channels:
            ours, theirs = channels[closer], channels[1 - closer]
            await ours.send("last words")
            await ours.aclose("enough for today")
            assert await theirs.receive() == "last words"
            with pytest.raises(trio.EndOfChannel, match="enough for today"):
                await theirs.receive()
            assert ours.close_reason == theirs.close_reason == "enough for today"


async def test_leaving_the_block_closes_the_channel_for_the_other_end() -> None:
    with trio.fail_after(PATIENCE):
        async with Internet().open_peer(initiator=False) as b:
            async with Internet().open_peer(initiator=True) as a:
                ours, theirs = await connect(a, b)
            with pytest.raises(trio.ClosedResourceError):
                await ours.send("too late")
            with pytest.raises(trio.EndOfChannel):
                await theirs.receive()


async def test_frame_is_sent_though_its_reader_hangs_up_before_send_returns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with trio.fail_after(PATIENCE):
        async with open_pair() as (a, b):
            hand_over = a._hand_over

            def hand_over_to_a_quick_reader(raw: Frame, size: int) -> None:
                hand_over(raw, size)
                a._data_channel_closed()

            monkeypatch.setattr(a, "_hand_over", hand_over_to_a_quick_reader)
            await a.send("last words")
            assert await b.receive() == "last words"
            with pytest.raises(trio.BrokenResourceError):
                await a.send("to nobody")


@pytest.mark.parametrize("forever", [False, True])
async def test_closing_channel_waits_while_frames_arrive_but_not_for_ever(
    forever: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webrtc, "LINGER", 0.01)
    monkeypatch.setattr(webrtc, "MAX_LINGER", 0.1 if forever else PATIENCE)
    looks = 0

    def confirmed() -> int:
        nonlocal looks
        looks += 1
        return looks if forever else min(looks, 7)

    with trio.fail_after(PATIENCE):
        async with open_pair() as (a, b):
            silence(b)
            monkeypatch.setattr(a._driver, "confirmed", confirmed)
            await a.aclose()
            assert looks > 0 if forever else looks == 8


async def test_what_has_arrived_is_confirmed() -> None:
    with trio.fail_after(PATIENCE):
        async with open_pair() as (a, b):
            before = a._driver.confirmed()
            await a.send("frame")
            assert await b.receive() == "frame"
            while a._driver.confirmed() == before:  # noqa: ASYNC110 - aiortc has no event for it
                await trio.sleep(0.01)


async def test_dead_remote_breaks_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    ask_for_life(monkeypatch)
    with trio.fail_after(PATIENCE):
        async with open_pair() as (a, b):
            await a.send("alive")
            await b.receive()
            silence(b)
            expect_life(monkeypatch)
            with pytest.raises(trio.BrokenResourceError, match="no longer answers"):
                await a.receive()
            with pytest.raises(trio.BrokenResourceError):
                await a.send("anybody there?")


async def test_remote_that_hangs_up_without_closing_the_channel_is_noticed() -> None:
    with trio.fail_after(PATIENCE):
        async with open_pair_with_stranger(we_initiate=True) as (channel, stranger):
            await stranger.bridge.run(stranger.connection.close)
            with pytest.raises(trio.EndOfChannel):
                await channel.receive()


async def test_reader_in_its_own_time_holds_the_writer_up_and_loses_nothing() -> None:
    frame = bytes(10_000)
    accepted = 0

    async with open_pair() as (a, b), trio.open_nursery() as nursery:

        async def write() -> None:
            nonlocal accepted
            for _ in range(1000):
                await a.send(frame)
                accepted += 1

        nursery.start_soon(write)
        with trio.fail_after(PATIENCE):
            # A packet that the system has dropped is sent again a second later, or some.
            while accepted * len(frame) <= WINDOW - len(frame):
                await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert accepted * len(frame) < WINDOW + 2 * len(frame)
        for _ in range(1000):
            assert await b.receive() == frame


# --- nothing is left ---


class Leaks:
    """Counts what could be left behind: Trio tasks, open files, asyncio tasks."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.before = (*held_at_first(), len(asyncio.all_tasks(loop)))

    def count(self) -> tuple[int, int, int]:
        return (*held(), len(asyncio.all_tasks(self._loop)))

    async def check(self) -> None:
        # Tasks of aiortc that have been told to end take a few passes of the loop.
        with trio.move_on_after(PATIENCE):
            while self.count() != self.before:  # noqa: ASYNC110 - there is no event for it
                await trio.sleep(0.01)
        assert self.count() == self.before


async def leave_at_once(_: PeerConnection) -> None:
    pass


async def leave_with_an_offer(peer: PeerConnection) -> None:
    await peer.next_signal()


async def leave_while_connecting(peer: PeerConnection) -> None:
    async with Internet().open_peer(initiator=False) as other:
        other.signal_nowait(await peer.next_signal())
        peer.signal_nowait(await other.next_signal())
        await trio.testing.wait_all_tasks_blocked()


async def leave_connected(peer: PeerConnection) -> None:
    async with Internet().open_peer(initiator=False) as other:
        a, b = await connect(peer, other)
        await a.send("frame")
        await b.receive()


async def leave_failed(peer: PeerConnection) -> None:
    await peer.next_signal()
    peer.signal_nowait(Answer("nonsense"))
    with pytest.raises(ConnectionFailed):
        await peer.connected()


async def leave_while_nobody_answers(peer: PeerConnection) -> None:
    await peer.next_signal()
    peer.signal_nowait(Answer(OFFER.replace("actpass", "active")))
    peer.signal_nowait(Candidate("candidate:1 1 udp 2130706431 192.0.2.222 9 typ host", "0", 0))
    await trio.testing.wait_all_tasks_blocked()


@needs_proc
@each_bridge
@pytest.mark.parametrize("is_cancelled", [False, True])
@pytest.mark.parametrize(
    "moment",
    [
        leave_at_once,
        leave_with_an_offer,
        leave_while_connecting,
        leave_connected,
        leave_failed,
        leave_while_nobody_answers,
    ],
)
async def test_nothing_is_left_whenever_one_leaves(
    choice: BridgeChoice, moment: Callable[[PeerConnection], object], is_cancelled: bool
) -> None:
    with trio.fail_after(PATIENCE):
        async with open_bridge(choice) as bridge:
            leaks = Leaks(bridge.loop)
            with trio.CancelScope() as scope:
                async with Internet(bridge=choice).open_peer(initiator=True) as peer:
                    await moment(peer)  # type: ignore[misc]
                    if is_cancelled:
                        scope.cancel()
                        await trio.lowlevel.checkpoint()
            await leaks.check()


@needs_proc
@each_bridge
async def test_nothing_is_left_after_a_cancel_at_any_step(choice: BridgeChoice) -> None:
    """Cancel both ends after each number of schedule points until a run is through."""
    internet = Internet(bridge=choice)

    async def run() -> None:
        async with (
            internet.open_peer(initiator=True) as a,
            internet.open_peer(initiator=False) as b,
        ):
            one, other = await connect(a, b)
            await one.send("frame")
            await other.receive()

    with trio.fail_after(2 * PATIENCE):
        async with open_bridge(choice) as bridge:
            await run()
            leaks = Leaks(bridge.loop)
            steps = 0
            scope = trio.CancelScope()
            scope.cancel()
            while scope.cancel_called:
                async with trio.open_nursery() as nursery:
                    with trio.CancelScope() as scope:

                        async def cancel_soon(steps: int, scope: trio.CancelScope) -> None:
                            for _ in range(steps):
                                await trio.lowlevel.checkpoint()
                            scope.cancel()

                        nursery.start_soon(cancel_soon, steps, scope)
                        await run()
                    nursery.cancel_scope.cancel()
                await leaks.check()
                steps += 1 + steps // 4
        assert steps > 10


@needs_proc
@each_bridge
async def test_silent_stun_server_can_be_cancelled_and_leaves_nothing(
    choice: BridgeChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    # aioice itself waits for 5 seconds; a busy machine may take as long for all the rest.
    monkeypatch.setattr(aioice.Connection.get_component_candidates, "__defaults__", (30,))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.setblocking(False)
        asked = trio.Event()
        port = silent.getsockname()[1]
        internet = Internet(
            bridge=choice,
            ice_servers=[
                IceServer(f"stun:127.0.0.1:{port}"),
                IceServer(f"turn:127.0.0.1:{port}", "name", "word"),
            ],
        )
        async with open_bridge(choice) as bridge, trio.open_nursery() as nursery:
            leaks = Leaks(bridge.loop)
            started_at = trio.current_time()
            with trio.CancelScope() as scope:
                async with internet.open_peer(initiator=True) as peer:

                    async def cancel_when_asked() -> None:
                        await trio.lowlevel.wait_readable(silent)
                        asked.set()
                        scope.cancel()

                    nursery.start_soon(cancel_when_asked)
                    await peer.next_signal()
            assert asked.is_set()
            assert scope.cancelled_caught
            assert trio.current_time() - started_at < 25
            await leaks.check()


@needs_proc
async def test_connection_that_does_not_close_loses_its_sockets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hang(_: RTCPeerConnection) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(webrtc, "ABANDON", 0.01)
    async with open_bridge("stepped") as bridge:
        leaks = Leaks(bridge.loop)
        with trio.fail_after(PATIENCE):
            async with Internet(bridge="stepped").open_peer(initiator=True) as peer:
                await peer.next_signal()
                with monkeypatch.context() as patches:
                    patches.setattr(RTCPeerConnection, "close", hang)
                    async with Internet(bridge="stepped").open_peer(initiator=True) as stuck:
                        await stuck.next_signal()
        await leaks.check()


async def test_errors_of_the_body_leave_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_pair():
            raise ZeroDivisionError


# --- Internet ---


@pytest.mark.parametrize("urls", [(), "", "http://example.org", "stun:", "stun:host:port", ("x",)])
def test_ice_server_that_cannot_be_is_a_configuration_error(urls: str | tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError):
        IceServer(urls)


async def test_nobody_is_asked_for_our_address_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aioice.ice, "server_reflexive_candidate", None)  # would fail if asked
    async with Internet().open_peer(initiator=True) as peer:
        offer = await peer.next_signal()
        assert isinstance(offer, Offer)
        assert "typ srflx" not in offer.sdp


def test_importing_internet_imports_no_webrtc_and_connecting_no_trio_asyncio() -> None:
    run_python("""
import sys
sys.modules["trio_asyncio"] = None  # any import of it fails
import trio
from trio_overlay.channels.internet import Internet
assert not {"aiortc", "aioice", "av"} & set(sys.modules)

async def main():
    net = Internet()
    async with net.open_peer(initiator=True) as a, net.open_peer(initiator=False) as b:
        b.signal_nowait(await a.next_signal())
        a.signal_nowait(await b.next_signal())
        await (await a.connected()).send("connected")
        assert await (await b.connected()).receive() == "connected"

trio.run(main)
""")
