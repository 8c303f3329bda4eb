"""The virtual network does what real ones do, and what its rules say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_overlay.channels.channel import Channel
from trio_overlay.channels.network import PeerConnection, UpgradeRequest
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import ConnectionFailed, ServerRefused, ServerUnreachable, UsageError
from trio_overlay.protocol.signals import (
    Answer,
    Candidate,
    Offer,
    Signal,
    decode_signal,
    encode_signal,
)
from trio_overlay.testing.determinism import virtual_test
from trio_overlay.testing.faults import (
    DelaySignals,
    FailHandshakes,
    Latency,
    LoseSignals,
    Selector,
    SlowReader,
)
from trio_overlay.testing.history import History
from trio_overlay.testing.network import VirtualNetwork

FIXED = Latency(0.1, 0.1)


async def echo(request: UpgradeRequest) -> None:
    channel = await request.accept()
    await channel.send(f"{request.remote} {request.path} {request.query}")
    with suppress(trio.BrokenResourceError):
        async for frame in channel:
            await channel.send(frame)


@asynccontextmanager
async def two_peers(
    network: VirtualNetwork, one: str = "n1", other: str = "n2"
) -> AsyncIterator[tuple[PeerConnection, PeerConnection]]:
    """The ends of a peer connection, whose signals are carried until the block ends."""
    async with (
        network.host(one).open_peer(initiator=True) as caller,
        network.host(other).open_peer(initiator=False) as callee,
        open_background_nursery() as nursery,
    ):
        nursery.start_soon(carry, caller, callee)
        nursery.start_soon(carry, callee, caller)
        yield caller, callee


async def carry(source: PeerConnection, target: PeerConnection) -> None:
    with suppress(trio.EndOfChannel, ConnectionFailed):
        while True:
            signal = await source.next_signal()
            target.signal_nowait(decode_signal(encode_signal(signal)))


@asynccontextmanager
async def connected(
    network: VirtualNetwork, one: str = "n1", other: str = "n2"
) -> AsyncIterator[tuple[Channel, Channel]]:
    async with two_peers(network, one, other) as (caller, callee):
        with trio.fail_after(10):
            ends = await caller.connected(), await callee.connected()
        yield ends


@virtual_test
async def test_signals_can_be_said_to_functions_until_both_are_connected() -> None:
    for seed in range(20):  # trickling and not
        async with VirtualNetwork(seed) as network:
            channels: list[Channel] = []

            async def connect(peer: PeerConnection, other: PeerConnection) -> None:
                channels.append(await peer.connect(other.signal_nowait))  # noqa: B023

            async with (
                network.host("n1").open_peer(initiator=True) as caller,
                network.host("n2").open_peer(initiator=False) as callee,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(connect, caller, callee)
                nursery.start_soon(connect, callee, caller)
            assert len(channels) == 2
            network.assert_quiet()


@virtual_test
async def test_what_a_function_raises_that_signals_are_said_to_comes_out() -> None:
    def refuse(signal: Signal) -> None:
        raise KeyError(type(signal).__name__)

    for seed in range(10):
        async with VirtualNetwork(seed) as network:
            async with network.host("n1").open_peer(initiator=True) as peer:
                with pytest.raises(KeyError, match="Offer"):
                    await peer.connect(refuse)
            network.assert_quiet()


@virtual_test
async def test_a_rule_holds_for_who_was_heard_of_before_it_and_after_and_who_is_no_host() -> None:
    history = History()
    said = [Candidate(f"candidate:virtual 7 of {host}, number 0", "0", 0) for host in ("g1", "g2")]
    async with (
        VirtualNetwork(history=history) as network,
        network.host("n1").open_peer(initiator=True) as peer,
    ):
        peer.signal_nowait(said[0])  # before any rule
        rules = [network.apply("g* -> n1", LoseSignals()), network.apply("g1 <-> *", Latency(1, 1))]
        for signal in said:
            peer.signal_nowait(signal)
        for rule in rules:
            network.lift(rule)
        for signal in said:
            peer.signal_nowait(signal)
    losses = [line.partition(" ")[2] for line in history if "n1 loses" in line]
    assert losses == [f"n1 loses {signal}" for signal in said]


# --- dialling -----------------------------------------------------------------------------


@virtual_test
async def test_a_dial_reaches_the_server_with_path_and_query_apart() -> None:
    async with VirtualNetwork() as network:
        network.listen("server:5000", echo)
        async with network.host("n1").dial("ws://SERVER:5000/a%20b/c?x=1&y") as channel:
            assert await channel.receive() == "n1 /a%20b/c x=1&y"
            await channel.send("hello")
            assert await channel.receive() == "hello"
            assert channel.max_frame_size == 2**20
        async with network.host("n1").dial("ws://server:5000") as channel:
            assert await channel.receive() == "n1 / "
        assert network.count_dials == {"n1": 2}


@virtual_test
async def test_latency_is_that_of_the_way_in_each_direction() -> None:
    async with VirtualNetwork(latency=FIXED) as network:
        network.listen("server", echo)
        async with network.host("n1").dial("ws://server/") as channel:
            assert 0.2 <= trio.current_time() <= 0.22
            await channel.receive()
            begun_at = trio.current_time()
            for number in range(10):
                await channel.send(str(number))
            assert [await channel.receive() for _ in range(10)] == list("0123456789")
            assert 0.2 <= trio.current_time() - begun_at <= 0.22


@virtual_test
async def test_where_nobody_listens_is_unreachable() -> None:
    async with VirtualNetwork() as network:
        with pytest.raises(ServerUnreachable):
            async with network.host("n1").dial("ws://nobody:1/"):
                pass
        with pytest.raises(UsageError):
            async with network.host("n1").dial("http://server/"):
                pass
        network.assert_quiet()


@virtual_test
async def test_a_server_can_refuse_or_hang_up_and_closes_when_its_handler_returns() -> None:
    async def handle(request: UpgradeRequest) -> None:
        if request.path == "/refuse":
            await request.reject(404, "not here")
        elif request.path == "/accept":
            await (await request.accept()).send("goodbye")

    async with VirtualNetwork() as network:
        network.listen("server", handle)
        with pytest.raises(ServerRefused, match="404 not here"):
            async with network.host("n1").dial("ws://server/refuse"):
                pass
        with pytest.raises(ServerUnreachable, match="hung up"):
            async with network.host("n1").dial("ws://server/neither"):
                pass
        async with network.host("n1").dial("ws://server/accept") as channel:
            assert await channel.receive() == "goodbye"
            with pytest.raises(trio.EndOfChannel):
                await channel.receive()
        network.assert_quiet()


@virtual_test
async def test_a_silent_server_is_given_up_and_its_handler_sees_the_client_go() -> None:
    handled: list[str] = []

    async def handle(request: UpgradeRequest) -> None:
        await trio.sleep(60)
        channel = await request.accept()
        with pytest.raises((trio.EndOfChannel, trio.BrokenResourceError)):
            await channel.receive()
        handled.append("gone")

    async with VirtualNetwork() as network:
        network.listen("server", handle)
        with pytest.raises(ServerUnreachable, match="20 s"):
            async with network.host("n1").dial("ws://server/"):
                pass
        with pytest.raises(AssertionError, match=r"server: .* the server's handler"):
            network.assert_quiet()
        await trio.sleep(61)
        assert handled == ["gone"]
        network.assert_quiet()


@virtual_test
async def test_a_cancelled_dial_leaves_nothing_wherever_it_is_cancelled() -> None:
    for tenths in range(6):
        async with VirtualNetwork(latency=FIXED) as network:
            network.listen("server", echo)
            with trio.move_on_after(tenths * 0.07):
                async with network.host("n1").dial("ws://server/"):
                    await trio.sleep(0.1)
            await trio.sleep(1)
            network.assert_quiet()


@virtual_test
async def test_a_closed_server_listens_no_more_and_its_clients_are_cut_off() -> None:
    async with VirtualNetwork() as network:
        server = network.listen("server", echo)
        with pytest.raises(UsageError, match="listens"):
            network.listen("server", echo)
        async with network.host("n1").dial("ws://server/") as channel:
            await channel.receive()
            server.close()
            with pytest.raises(trio.EndOfChannel):
                await channel.receive()
        with pytest.raises(ServerUnreachable):
            async with network.host("n1").dial("ws://server/"):
                pass
        network.listen("server", echo)


@virtual_test
async def test_what_a_handler_raises_leaves_the_network() -> None:
    async def handle(request: UpgradeRequest) -> None:
        raise KeyError("a bug in the server")

    with pytest.raises(KeyError, match="a bug in the server"):
        async with VirtualNetwork() as network:
            network.listen("server", handle)
            async with network.host("n1").dial("ws://server/"):
                pass


# --- peer connections ---------------------------------------------------------------------


@pytest.mark.parametrize("trickle", [0.0, 1.0])
@virtual_test
async def test_peers_connect_and_speak_both_ways(trickle: float) -> None:
    async with VirtualNetwork(trickle=trickle) as network:
        async with connected(network) as (one, other):
            assert trio.current_time() > 0
            await one.send("there")
            await other.send(b"back")
            assert (await other.receive(), await one.receive()) == ("there", b"back")
            assert network.count_open_peers == 2
        network.assert_quiet()
        assert network.count_peers == {"n1": 1, "n2": 1}


async def signals_of(network: VirtualNetwork) -> list[Signal]:
    signals: list[Signal] = []
    async with network.host("n1").open_peer(initiator=True) as peer:
        with suppress(trio.EndOfChannel):
            while True:
                signals.append(await peer.next_signal())
    return signals


@virtual_test
async def test_a_peer_that_trickles_says_its_candidates_after_an_offer_without() -> None:
    async with VirtualNetwork(trickle=1.0) as network:
        offer, *candidates = await signals_of(network)
        assert isinstance(offer, Offer)
        assert "with 0 candidates" in offer.sdp
        assert candidates
        assert all(isinstance(candidate, Candidate) for candidate in candidates)
    async with VirtualNetwork(trickle=0.0) as network:
        [offer] = await signals_of(network)
        assert isinstance(offer, Offer)
        assert "with 0 candidates" not in offer.sdp


@virtual_test
async def test_candidates_that_go_astray_keep_peers_apart() -> None:
    async with (
        VirtualNetwork(trickle=1.0, ice_timeout=15) as network,
        network.host("n1").open_peer(initiator=True) as caller,
        network.host("n2").open_peer(initiator=False) as callee,
    ):
        callee.signal_nowait(await caller.next_signal())
        caller.signal_nowait(await callee.next_signal())
        with pytest.raises(ConnectionFailed, match="not reached in 15 s"):
            await caller.connected()
        assert trio.current_time() >= 15


@pytest.mark.parametrize(
    ("initiator", "signal", "reason"),
    [
        (True, Offer("virtual offer 9 of n9 with 1 candidates"), "an offer where an answer"),
        (True, Answer("v=0 and so on"), "broken description"),
        (True, Answer("virtual answer 9 of n9 to 77 with 1 candidates"), "somebody else's"),
        (False, Offer(""), "broken description"),
        (False, Answer("virtual answer 9 of n9 to 1 with 1 candidates"), "an answer where"),
    ],
)
@virtual_test
async def test_impossible_signals_fail_the_connection(
    initiator: bool, signal: Signal, reason: str
) -> None:
    async with (
        VirtualNetwork() as network,
        network.host("n1").open_peer(initiator=initiator) as peer,
    ):
        peer.signal_nowait(Candidate("candidate:1 1 udp 1 10.0.0.1 9 typ host"))
        peer.signal_nowait(signal)
        with pytest.raises(ConnectionFailed, match=reason):
            await peer.connected()
        with pytest.raises(ConnectionFailed, match=reason):
            await peer.next_signal()


@virtual_test
async def test_a_flood_of_signals_fails_the_connection() -> None:
    async with VirtualNetwork() as network, network.host("n1").open_peer(initiator=False) as peer:
        for _ in range(1000):
            peer.signal_nowait(Candidate("candidate:1 1 udp 1 10.0.0.1 9 typ host"))
        with pytest.raises(ConnectionFailed, match="signals"):
            await peer.connected()


@virtual_test
async def test_cancelled_next_signal_loses_none() -> None:
    async with (
        VirtualNetwork(trickle=1.0) as network,
        network.host("n1").open_peer(initiator=True) as peer,
    ):
        with trio.CancelScope() as scope:
            scope.cancel()
            await peer.next_signal()
        assert isinstance(await peer.next_signal(), Offer)


@virtual_test
async def test_leaving_a_peer_connection_closes_its_channel_at_the_other_end() -> None:
    async with VirtualNetwork(trickle=0.0) as network:
        async with network.host("n2").open_peer(initiator=False) as callee:
            async with network.host("n1").open_peer(initiator=True) as caller:
                callee.signal_nowait(await caller.next_signal())
                caller.signal_nowait(await callee.next_signal())
                mine = await caller.connected()
                theirs = await callee.connected()
                await mine.send("last words")
            assert await theirs.receive() == "last words"
            with pytest.raises(trio.EndOfChannel):
                await theirs.receive()
            with pytest.raises(AssertionError, match="n2: peer connection #1, connected"):
                network.assert_quiet()
        network.assert_quiet()


# --- rules --------------------------------------------------------------------------------


def test_selectors_read_as_they_are_written() -> None:
    for text in ("n1 -> n2", "n1,n2 <-> *", "n* -> server:5000"):
        assert str(Selector.parse(text)) == text
    for text in ("", "n1", "n1 ->", "-> n1", "n1 -> n2 -> n3", "n1, <-> n2"):
        with pytest.raises(ValueError, match="a selector is like"):
            Selector.parse(text)
    one_way, both = Selector.parse("n1 -> n*"), Selector.parse("n1 <-> n*")
    assert (one_way.matches("n1", "n2"), one_way.matches("n2", "n1")) == (True, False)
    assert (both.matches("n1", "n2"), both.matches("n2", "n1")) == (True, True)
    assert not both.matches("n2", "n3")
    assert Selector.parse("[::1]:5000 -> *").matches("[::1]:5000", "n1")


@virtual_test
async def test_a_cut_holds_frames_until_it_is_healed() -> None:
    async with VirtualNetwork(latency=FIXED) as network, connected(network) as (one, other):
        network.cut("n1 <-> n2")
        for number in range(3):
            await one.send(str(number))
        with trio.move_on_after(20):
            await other.receive()
            raise AssertionError("a cut lets nothing through")
        network.heal()
        healed_at = trio.current_time()
        assert [await other.receive() for _ in range(3)] == ["0", "1", "2"]
        assert 0.1 <= trio.current_time() - healed_at <= 0.11


@virtual_test
async def test_a_frame_under_way_when_the_way_is_cut_does_not_arrive() -> None:
    async with VirtualNetwork(latency=FIXED) as network, connected(network) as (one, other):
        await one.send("under way")
        network.cut("n1 -> n2", noticed_after=None)
        with trio.move_on_after(100):
            await other.receive()
            raise AssertionError("a cut lets nothing through")
        network.heal()
        assert await other.receive() == "under way"


@virtual_test
async def test_a_cut_is_noticed_at_both_ends_even_if_it_is_one_way() -> None:
    async with VirtualNetwork() as network, connected(network) as (one, other):
        cut_at = trio.current_time()
        network.cut("n1 -> n2", noticed_after=12)
        await other.send("this way is free")
        assert await one.receive() == "this way is free"
        for end in (one, other):
            with pytest.raises(trio.BrokenResourceError, match="nothing was heard for 12 s"):
                await end.receive()
            assert trio.current_time() == cut_at + 12


@virtual_test
async def test_a_cut_that_is_healed_in_time_is_forgotten() -> None:
    async with VirtualNetwork() as network, connected(network) as (one, other):
        for _ in range(5):
            network.cut("n1 <-> n2", noticed_after=12)
            await trio.sleep(10)
            network.heal()
        await trio.sleep(30)
        await one.send("still here")
        assert await other.receive() == "still here"


@virtual_test
async def test_a_partition_parts_its_groups_and_no_one_else() -> None:
    async with VirtualNetwork() as network:
        network.partition(["n1", "n2"], ["n3"])
        async with connected(network, "n1", "n2"), connected(network, "n0", "n3"):
            pass
        with pytest.raises(trio.TooSlowError):
            async with connected(network, "n2", "n3"):
                pass


@virtual_test
async def test_a_handshake_across_a_cut_connects_when_it_is_healed() -> None:
    async with VirtualNetwork() as network, two_peers(network) as (caller, _):
        network.cut("n1 <-> n2")
        with trio.move_on_after(30):
            await caller.connected()
            raise AssertionError("nothing connects across a cut")
        network.heal()
        await caller.connected()
        assert trio.current_time() == pytest.approx(30, abs=0.1)


@virtual_test
async def test_a_dial_across_a_cut_waits_and_is_given_up() -> None:
    async with VirtualNetwork(latency=FIXED) as network:
        network.listen("server", echo)
        network.cut("n1 -> server")
        with pytest.raises(ServerUnreachable, match="20 s"):
            async with network.host("n1").dial("ws://server/"):
                pass
        async with network.host("n2").dial("ws://server/"):
            pass


@virtual_test
async def test_a_frozen_host_is_silent_and_keeps_its_channels() -> None:
    async with VirtualNetwork() as network, connected(network) as (one, other):
        network.freeze("n1")
        network.heal()  # is not for those who are frozen
        await one.send("out")
        await other.send("in")
        with trio.move_on_after(1000):
            await other.receive()
            raise AssertionError("a frozen host says nothing")
        with trio.move_on_after(1000):
            await one.receive()
            raise AssertionError("a frozen host hears nothing")
        network.thaw("n1")
        assert (await other.receive(), await one.receive()) == ("out", "in")


@pytest.mark.parametrize("noticed_after", [30.0, 3.0])
@virtual_test
async def test_a_crash_is_noticed_after_a_while(noticed_after: float) -> None:
    async with VirtualNetwork(latency=FIXED) as network, connected(network) as (one, other):
        await one.send("lost")
        network.crash("n1", noticed_after=noticed_after)
        crashed_at = trio.current_time()
        with pytest.raises(trio.BrokenResourceError, match="this host has crashed"):
            await one.send("no more")
        await one.aclose("a dead host says no farewell")
        with pytest.raises(trio.BrokenResourceError, match="nothing is heard from n1"):
            await other.receive()
        assert trio.current_time() == crashed_at + noticed_after


@virtual_test
async def test_a_crash_may_never_be_noticed() -> None:
    async with VirtualNetwork() as network, connected(network) as (_, other):
        network.crash("n1", noticed_after=None)
        with trio.move_on_after(10_000):
            await other.receive()
            raise AssertionError("nothing can be heard")
        assert other.close_reason is None


@virtual_test
async def test_the_kernel_closes_the_sockets_of_a_crashed_process_unless_it_lost_power() -> None:
    for is_power_cut, expected in ((False, 0.1), (True, 30.0)):
        async with VirtualNetwork(latency=FIXED) as network:
            network.listen("server", echo)
            with trio.fail_after(40):
                async with network.host("n1").dial("ws://server/") as channel:
                    await channel.receive()
                    network.crash("server", is_power_cut=is_power_cut)
                    crashed_at = trio.current_time()
                    with pytest.raises(trio.BrokenResourceError):
                        await channel.receive()
                    assert trio.current_time() - crashed_at == pytest.approx(expected, rel=0.1)
            network.assert_quiet()


@virtual_test
async def test_a_crashed_host_reaches_nobody_and_a_restarted_one_does() -> None:
    async with VirtualNetwork() as network:
        network.listen("server", echo)
        host = network.host("n1")
        async with host.open_peer(initiator=True) as peer:
            network.crash("n1")
            with pytest.raises(ConnectionFailed, match="crashed"):
                await peer.connected()
        with pytest.raises(ServerUnreachable, match="crashed"):
            async with host.dial("ws://server/"):
                pass
        async with network.restart("n1").dial("ws://server/") as channel:
            assert await channel.receive()
        network.crash("server")
        with pytest.raises(ServerUnreachable):
            async with network.host("n1").dial("ws://server/"):
                pass
        network.listen("server", echo)
        async with network.host("n1").dial("ws://server/") as channel:
            assert await channel.receive()


@virtual_test
async def test_signals_can_be_lost_and_handshakes_fail_by_rule() -> None:
    for rule in (LoseSignals(1.0), FailHandshakes(1.0)):
        async with VirtualNetwork() as network:
            applied = network.apply("n1 -> n2", rule)
            with pytest.raises(trio.TooSlowError):
                async with connected(network):
                    pass
            async with connected(network, "n1", "n3"):
                pass
            network.lift(applied)
            async with connected(network):
                pass


@virtual_test
async def test_signals_are_lost_as_often_as_the_rule_says() -> None:
    async with VirtualNetwork() as network:
        network.apply("n1 -> n2", LoseSignals(0.25))
        lost = sum(network.loses_signal("n1", "n2") for _ in range(4000))
        assert 900 < lost < 1100
        assert not network.loses_signal("n2", "n1")


@virtual_test
async def test_late_signals_are_overtaken_by_later_ones_and_connect_in_the_end() -> None:
    history = History()
    async with VirtualNetwork(trickle=1.0, history=history) as network:
        rule = network.apply("n1 -> n2", DelaySignals(0.5, seconds=5.0))
        begun_at = trio.current_time()
        for _ in range(20):
            async with connected(network):
                pass
        assert 10 < trio.current_time() - begun_at < 100
        waits = [line for line in str(history).splitlines() if "has to wait" in line]
        assert 20 < len(waits) < 60
        assert any("offer" in line for line in waits)
        assert any("candidate" in line for line in waits)
        network.lift(rule)
        begun_at = trio.current_time()
        async with connected(network):
            pass
        assert trio.current_time() - begun_at < 1


@virtual_test
async def test_a_slow_reader_makes_the_sender_wait() -> None:
    async with VirtualNetwork() as network, connected(network) as (one, other):
        network.apply("* -> n2", SlowReader(frames_per_second=10))

        async def read() -> None:
            async for _ in other:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            begun_at = trio.current_time()
            for _ in range(1000):
                await one.send("x")
            assert 70 < trio.current_time() - begun_at < 80  # 256 of them fit into the buffer
            nursery.cancel_scope.cancel()


@virtual_test
async def test_rules_can_be_for_one_carrier_only_and_the_latest_latency_wins() -> None:
    async with VirtualNetwork(latency=FIXED) as network:
        network.apply("* <-> *", Latency(1, 1))
        network.apply("n1 <-> *", Latency(5, 5), carrier="socket")
        assert network.conditions("n1", "n2", "peer").latency == Latency(1, 1)
        assert network.conditions("n2", "n1", "socket").latency == Latency(5, 5)
        assert network.conditions("n2", "n3", "socket").latency == Latency(1, 1)


@virtual_test
async def test_chance_on_one_way_does_not_depend_on_what_happens_on_another() -> None:
    async def moments(*, with_others: bool) -> list[float]:
        found: list[float] = []
        async with VirtualNetwork(3) as network:
            network.listen("server", echo)
            async with network.host("n1").dial("ws://server/") as channel:
                if with_others:
                    async with network.host("n2").dial("ws://server/") as other:
                        await other.receive()
                for _ in range(5):
                    begun_at = trio.current_time()
                    await channel.receive()
                    await channel.send("x")
                    found.append(round(trio.current_time() - begun_at, 9))
        return found[1:]

    assert (await moments(with_others=False))[1:] == (await moments(with_others=True))[1:]


@virtual_test
async def test_the_history_tells_what_happened() -> None:
    history = History()
    async with VirtualNetwork(history=history, latency=FIXED) as network:
        network.listen("server", echo)
        async with network.host("n1").dial("ws://server/a") as channel:
            await channel.send("x" * 600)
            await wait_all_tasks_blocked()
        network.crash("n1")
    text = str(history)
    for what in ("n1 dials server", "n1 on socket #1 n1-server: 600 long, ", "n1 crashes"):
        assert what in text
    assert len(list(history)) == history.count_lines
    assert next(iter(history)).startswith("0.000000 ")


@virtual_test
async def test_hosts_have_names_that_rules_can_use() -> None:
    async with VirtualNetwork() as network:
        for name in ("", "two words", "a,b", "n*"):
            with pytest.raises(ValueError, match="no name for a host"):
                network.host(name)
        assert network.host("n1") is network.host("n1")
