"""Relays: neighbours, messages, receipts, and what becomes of them when others fail."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from tests.nodes.relays import QUIET, open_relays, past_events, say, until
from trio_overlay.errors import (
    ConfigurationError,
    ConnectionFailed,
    DeliveryFailed,
    MessageTooLarge,
    UsageError,
)
from trio_overlay.nodes.relay import PeerJoined, PeerLeft, RelayMessage, open_relay
from trio_overlay.protocol.relay import Pong, User
from trio_overlay.protocol.relay_routing import Policy
from trio_overlay.testing.faults import FailHandshakes
from trio_overlay.testing.network import VirtualNetwork


async def test_peers_that_met_at_one_are_connected_to_all(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        hub = await relays.open("hub", listens=True)
        others = [await relays.open(f"n{n}", "hub", listens=n % 2 == 0) for n in range(7)]
        await until(lambda: all(len(each.peers) == 7 for each in (hub, *others)))
        transports = {link.transport for link in others[1].peers.values()}
        assert transports == {"websocket", "webrtc"}
        joined = past_events(hub)
        assert {event.id for event in joined} == {each.id for each in others}
        assert all(isinstance(event, PeerJoined) for event in joined)
        await others[0].send(others[6].id, {"any": ["JSON", None]})
        message = await others[6].messages.receive()
        assert message == RelayMessage(others[0].id, {"any": ["JSON", None]}, False, 1)


async def test_messages_pass_a_chain_of_ten_both_ways(autojump_clock: MockClock) -> None:
    """As in the original's test that is commented out."""
    async with open_relays() as relays:
        chain = await relays.chain(*(f"n{number}" for number in range(10)), webrtc=False)
        for sender, target in ((chain[0], chain[9]), (chain[9], chain[0])):
            await sender.send(target.id, "hello", wait_for_receipt=True)
            message = await target.messages.receive()
            assert (message.sender, message.data, message.hops) == (sender.id, "hello", 9)


async def test_two_connect_by_webrtc_signalled_through_a_chain(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        first, _, _, last = await relays.chain("a", "b", "c", "d")
        await first.connect(last.id)
        await until(lambda: first.id in last.peers)
        assert first.peers[last.id].transport == last.peers[first.id].transport == "webrtc"
        assert not first.peers[last.id].is_incoming
        assert last.peers[first.id].is_incoming
        await first.connect(last.id)  # at once
        await last.disconnect(first.id)
        assert first.id not in last.peers
        await until(lambda: last.id not in first.peers)
        reasons = [event.reason for event in past_events(first) if isinstance(event, PeerLeft)]
        assert reasons == ["disconnected"]


async def test_where_webrtc_fails_the_url_is_dialled(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        first, _, last = await relays.chain("a", "b", "c")
        relays.network.apply("* <-> *", FailHandshakes(1.0))
        await first.connect(last.id)
        assert first.peers[last.id].transport == "websocket"
        await until(lambda: first.id in last.peers)


async def test_a_cancelled_connect_is_taken_back_at_the_other_end(
    autojump_clock: MockClock,
) -> None:
    async with open_relays(latency=0.1) as relays:
        first, _, last = await relays.chain("a", "b", "c")
        with trio.move_on_after(1.05):  # there is an offer by then, and no channel
            await first.connect(last.id)
        assert last._sessions
        assert last._mind.attempts
        await trio.sleep(0.3)
        for relay in (first, last):
            assert not relay._sessions
            assert not relay._mind.attempts
        assert relays.network.count_open_peers == 0
        await first.connect(last.id)  # as if nothing had been


async def test_without_a_transport_in_common_connecting_fails(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        await relays.open("hub", listens=True)
        one = await relays.open("one", "hub", webrtc=False, policy=QUIET)
        other = await relays.open("other", "hub", webrtc=False, policy=QUIET)
        await until(lambda: one.peers and other.peers)
        with pytest.raises(ConnectionFailed, match="no connection by any transport"):
            await one.connect(other.id)
        with pytest.raises(ConnectionFailed, match="did not answer"):
            await one.connect("0" * 40)
        with pytest.raises(ConnectionFailed, match="within 3 s"):
            await one.connect("1" * 40, timeout=3)
        assert not one._connecting
        assert not one._sessions


async def test_two_that_connect_to_each_other_at_once_have_one_connection(
    autojump_clock: MockClock,
) -> None:
    async with open_relays() as relays:
        hub = await relays.open("hub", listens=True, policy=QUIET)
        one = await relays.open("one", "hub", policy=QUIET)
        other = await relays.open("other", "hub", policy=QUIET)
        await until(lambda: len(hub.peers) == 2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.connect, other.id)
            nursery.start_soon(other.connect, one.id)
        await until(lambda: other.id in one.peers and one.id in other.peers)
        await trio.sleep(20)
        assert relays.network.count_open_peers == 2
        assert not one._sessions
        assert not other._sessions
        await one.send(other.id, 1, wait_for_receipt=True)


async def test_of_two_connections_to_one_peer_one_is_kept_by_both(
    autojump_clock: MockClock,
) -> None:
    """The two dial each other, so that each has begun one before it hears of the other."""
    async with open_relays(latency=0.1) as relays:
        one = await relays.open("one", "other", listens=True, policy=QUIET)
        other = await relays.open("other", "one", listens=True, policy=QUIET)
        await until(lambda: one.peers and other.peers)
        await trio.sleep(30)
        assert list(one.peers) == [other.id]
        assert list(other.peers) == [one.id]
        assert not one._spares
        assert not other._spares
        await one.send(other.id, "there", wait_for_receipt=True)
        await other.send(one.id, "and back", wait_for_receipt=True)


async def test_a_spare_connection_takes_the_place_of_a_dead_one(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        one = await relays.open("one", listens=True, id="ff" * 20, policy=QUIET)
        await relays.stranger("one", "11" * 20)  # which never says anything
        await until(lambda: one.peers)
        alive = await relays.stranger("one", "11" * 20)
        await until(lambda: one._spares)
        await until(lambda: not one._spares)
        await trio.sleep(3)  # the silence of the dead one does not count against it
        assert list(one.peers) == ["11" * 20]
        assert [event.name for event in past_events(one)] == ["peer-joined"]
        await say(alive, "11" * 20, one.id, User("I am"))
        assert (await one.messages.receive()).data == "I am"


async def test_what_is_sent_before_there_is_a_neighbour_waits_for_it(
    autojump_clock: MockClock,
) -> None:
    async with open_relays() as relays:
        one = await relays.open("one", "hub")
        await one.send("ab" * 20, "early")
        await trio.sleep(5)
        hub = await relays.open("hub", listens=True, id=b"\xab" * 20)
        assert (await hub.messages.receive()).data == "early"
        assert hub.id == "ab" * 20


async def test_a_lost_bootstrap_server_is_dialled_again_ever_less_often(
    autojump_clock: MockClock,
) -> None:
    async with open_relays() as relays:
        one = await relays.open("one", "hub")
        await trio.sleep(600)
        dials = relays.network.count_dials["one"]
        assert 600 / 30 <= dials <= 600 / 15 + 10
        for _ in range(2):
            async with relays.opening("hub", listens=True) as hub:
                await until(lambda hub=hub: hub.id in one.peers, 60)  # type: ignore[misc]
                await trio.sleep(40)
            await until(lambda: not one.peers)
        left = [event for event in past_events(one) if isinstance(event, PeerLeft)]
        assert len(left) == 2


async def test_a_silent_neighbour_is_given_up(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        one, other = await relays.chain("one", "other")
        relays.network.freeze("other")
        began_at = trio.current_time()
        await until(lambda: not one.peers)
        policy = Policy()
        assert trio.current_time() - began_at <= policy.heartbeat_timeout + 1.5
        assert past_events(one)[-1] == PeerLeft(other.id, "no sign of life")
        relays.network.thaw("other")
        await until(lambda: one.peers, 60)  # it dials again


async def test_idle_neighbours_that_live_are_kept(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        one, other = await relays.chain("one", "other")
        original = await relays.stranger("one", "11" * 20)

        async def answer() -> None:
            """As an original: findPeers is all it knows."""
            for number in range(1000):
                await original.receive()
                await say(original, "11" * 20, one.id, Pong(), str(number))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            await trio.sleep(300)
            assert set(one.peers) == {other.id, "11" * 20}
            nursery.cancel_scope.cancel()
        assert [event.name for event in past_events(one)] == ["peer-joined"] * 2


# --- receipts -----------------------------------------------------------------------------


async def test_a_receipt_says_that_a_message_is_there(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        first, _, last = await relays.chain("a", "b", "c")
        began_at = trio.current_time()
        await first.send(last.id, 1, wait_for_receipt=True)
        assert trio.current_time() - began_at == pytest.approx(0.04, abs=0.005)
        assert len(last.messages) == 1
        assert not first._receipts


async def test_without_a_receipt_delivery_has_failed_at_the_deadline(
    autojump_clock: MockClock,
) -> None:
    async with open_relays() as relays:
        (one,) = await relays.chain("one")
        await relays.stranger("one", "11" * 20)
        await until(lambda: one.peers)
        began_at = trio.current_time()
        with pytest.raises(DeliveryFailed, match="no receipt of 1111"):
            await one.send("11" * 20, 1, wait_for_receipt=True, timeout=7)
        assert trio.current_time() - began_at == pytest.approx(7)
        assert not one._receipts
        assert not one._mind._expected


async def test_a_message_is_sent_again_until_it_arrives_and_arrives_once(
    autojump_clock: MockClock,
) -> None:
    async with open_relays() as relays:
        first, _, last = await relays.chain("a", "b", "c")
        relays.network.freeze("c")

        async def thaw() -> None:
            await trio.sleep(4)
            relays.network.thaw("c")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(thaw)
            await first.send(last.id, "once", wait_for_receipt=True)
        await trio.sleep(10)
        assert (await last.messages.receive()).data == "once"
        assert len(last.messages) == 0


async def test_another_way_is_taken_when_one_has_died(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        target = await relays.open("target", listens=True, policy=QUIET)
        for name in ("one", "two", "three"):
            await relays.open(name, "target", listens=True, policy=QUIET, webrtc=False)
        sender = await relays.open("sender", "one", "two", "three", policy=QUIET, webrtc=False)
        await until(lambda: len(sender.peers) == 3 and len(target.peers) == 3)
        relays.network.freeze("one")
        relays.network.freeze("two")
        await sender.send(target.id, 1, wait_for_receipt=True, timeout=5)


# --- limits and endings -------------------------------------------------------------------


async def test_a_sender_waits_for_a_neighbour_that_does_not_read(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        (one,) = await relays.chain("one")
        await relays.stranger("one", "11" * 20)
        await until(lambda: one.peers)
        count = 0
        with trio.move_on_after(8):
            while True:
                await one.send("11" * 20, "x" * 10_000)
                count += 1
        assert 100 < count < 130  # a mebibyte on the way, and little more
        assert one.peers["11" * 20].count_dropped == 0


async def test_what_is_passed_on_for_others_is_dropped_when_the_way_is_full(
    autojump_clock: MockClock,
) -> None:
    async with open_relays() as relays:
        (one,) = await relays.chain("one")
        await relays.stranger("one", "11" * 20)
        source = await relays.stranger("one", "22" * 20)
        await until(lambda: len(one.peers) == 2)
        for number in range(300):
            await say(source, "22" * 20, "11" * 20, User("x" * 10_000), str(number))
        link = one.peers["11" * 20]
        await until(lambda: link.count_dropped > 50)
        assert link._size <= 1 << 20


async def test_what_cannot_be_sent_is_refused(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        (one,) = await relays.chain("one")
        with pytest.raises(MessageTooLarge):
            await one.send("0" * 40, "x" * 262_144)
        with pytest.raises(TypeError):
            await one.send("0" * 40, {1, 2})
        for bad in ("", "0" * 39, "g" * 40, b"short"):
            with pytest.raises(UsageError, match="40 hex digits"):
                await one.send(bad, 1)
            with pytest.raises(UsageError, match="40 hex digits"):
                await one.connect(bad)
        with pytest.raises(UsageError, match="itself"):
            await one.connect(one.id)
        await one.send(one.id, "to myself", wait_for_receipt=True)
        assert (await one.messages.receive()).data == "to myself"


@pytest.mark.parametrize("url", ["http://x", "ws://", "x", "ws://h:0", "ws://h:99999", "ws://[h"])
async def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="URL of a relay"):
        async with open_relay(bootstrap=[url]):
            pass
    with pytest.raises(UsageError, match="URL of a relay"):
        async with open_relay(announce_url=url):
            pass


async def test_a_closed_relay_says_so_to_everybody(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        one, _ = await relays.chain("one", "other")
        failures = []

        async def expect_closed(function: object, *arguments: object, **options: object) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await function(*arguments, **options)  # type: ignore[operator]
            failures.append(function)

        async with trio.open_nursery() as nursery:

            async def wait_for_a_receipt() -> None:
                await expect_closed(one.send, "0" * 40, 1, wait_for_receipt=True)

            nursery.start_soon(wait_for_a_receipt)
            nursery.start_soon(expect_closed, one.connect, "0" * 40)
            await trio.sleep(2)
            await one.aclose()
            await one.wait_closed()
        assert one.is_closed
        await expect_closed(one.send, "0" * 40, 1)
        await expect_closed(one.connect, "0" * 40)
        assert len(failures) == 4
        assert [message async for message in one.messages] == []
        assert [event.name async for event in one.events] == ["peer-joined", "peer-left"]


async def test_a_host_that_listens_already_is_said_to(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        await relays.open("one", listens=True)
        with pytest.raises(ConfigurationError, match="somebody listens"):
            await relays.open("one", listens=True)


async def test_a_visitor_is_let_go_and_comes_back_later(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        policy = Policy(bucket_size=1, max_attempts=0)
        hub = await relays.open("hub", listens=True, policy=policy, id="00" * 20)
        first = await relays.open("first", "hub", policy=QUIET, id="f0" * 20, webrtc=False)
        await until(lambda: first.id in hub.peers)
        second = await relays.open("second", "hub", policy=QUIET, id="f1" * 20, webrtc=False)
        await until(lambda: second.id in hub.peers)
        await second.send(first.id, "through the hub", wait_for_receipt=True)
        await until(lambda: second.id not in hub.peers, 25)
        await until(lambda: not second.peers)
        await until(lambda: second.id in hub.peers)
        names = [event.name for event in past_events(second)]
        assert names == ["peer-joined", "peer-left", "peer-joined"]
        assert first.id in hub.peers


# --- on this machine ----------------------------------------------------------------------


async def test_relays_on_sockets_of_this_machine() -> None:
    with trio.fail_after(120):
        async with open_relay(port=0, webrtc=False, rng=random.Random(1)) as one:
            assert one.url is not None
            assert one.url.startswith("ws://127.0.0.1:")
            async with (
                open_relay(bootstrap=[one.url], webrtc=False, rng=random.Random(2)) as other,
                open_relay(bootstrap=[one.url + "/any?path"], rng=random.Random(3)) as third,
            ):
                await other.send(one.id, "hello", wait_for_receipt=True)
                assert (await one.messages.receive()).data == "hello"
                async for event in third.events:
                    assert event == PeerJoined(one.id)
                    break
            events = [await one.events.receive() for _ in range(4)]
            assert {event.name for event in events} == {"peer-joined", "peer-left"}


async def test_a_port_in_use_is_said_to_be() -> None:
    async with open_relay(port=0, webrtc=False) as one:
        assert one.url is not None
        port = int(one.url.rpartition(":")[2])
        with pytest.raises(ConfigurationError, match="in use"):
            async with open_relay(port=port, webrtc=False):
                pass


async def test_what_is_announced_is_what_the_program_says(autojump_clock: MockClock) -> None:
    async with VirtualNetwork(1) as network:
        host = network.host("host")
        async with open_relay(network=host, port=0, announce_url="wss://example.org/relay") as one:
            assert one.url == "wss://example.org/relay"
        async with open_relay(network=host) as one:
            assert one.url is None
        async with open_relay(network=host, port=0) as one:
            assert one.url == "ws://host"
