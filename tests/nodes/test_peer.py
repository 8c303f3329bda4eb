"""Peers that find each other by id, on the virtual network."""

from __future__ import annotations

import math
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
import trio
import trio.testing

from tests.world import AUTHORITY, World, open_world
from trio_overlay.channels.channel import Channel
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import (
    ConnectionFailed,
    IdTaken,
    MessageTooLarge,
    NotSupported,
    PeerNotFound,
    PeerRefused,
    SendTimeout,
    ServerUnreachable,
    UsageError,
)
from trio_overlay.nodes.peer import (
    MAX_ANSWERS,
    BrokerLost,
    Peer,
    PeerConnected,
    PeerDisconnected,
    PeerError,
    Registered,
    open_peer,
)
from trio_overlay.nodes.peer_attempt import HANDSHAKE_TIMEOUT
from trio_overlay.nodes.peer_connection import Connection
from trio_overlay.protocol.broker_registrations import DEFAULT_LEASE
from trio_overlay.protocol.json import decode_json, encode_json
from trio_overlay.protocol.signals import decode_signal, encode_signal
from trio_overlay.testing.determinism import virtual_test


async def next_of(peer: Peer, kind: type[Any]) -> Any:
    """The next event of this kind."""
    with trio.fail_after(120):
        while not isinstance(event := await peer.events.receive(), kind):
            pass
    return event


async def both(one: Peer, other: Peer) -> list[Connection]:
    """What each gets when both connect to each other at once."""
    got: dict[str, Connection] = {}

    async def connect(peer: Peer, whom: str) -> None:
        got[peer.id] = await peer.connect(whom)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect, one, other.id)
        nursery.start_soon(connect, other, one.id)
    return [got[one.id], got[other.id]]


@virtual_test
async def test_two_peers_find_each_other_by_id_and_exchange_any_json_and_bytes() -> None:
    async with open_world() as world, world.peer("ada") as ada, world.peer("bob") as bob:
        to_bob = await ada.connect("bob")
        with trio.fail_after(5):
            to_ada = await bob.incoming.receive()
        assert (to_bob.id, to_ada.id) == ("bob", "ada")
        assert list(ada.connections) == ["bob"]
        messages = [None, "text", 5, {"a": [1, "x"]}, b"\x00\xff", ""]
        for message in messages:
            await to_bob.send(message)
        for message in messages:
            came = await bob.messages.receive()
            assert (came.sender, came.data, came.connection) == ("ada", message, to_ada)
        await to_ada.send("back")
        assert await to_bob.receive() == "back"
        assert await ada.exists("bob")
        assert not await ada.exists("toString")


@virtual_test
async def test_an_answer_that_comes_before_the_first_receive_is_not_lost() -> None:
    """It once went to the peer's stream, for nobody had read from the connection yet."""
    async with open_world() as world, world.peer("ada") as ada, world.peer("bob") as bob:
        await ada.send("bob", "are you there?")
        await (await bob.messages.receive()).connection.send("yes")
        await trio.sleep(1)
        with trio.fail_after(5):
            assert await ada.connections["bob"].receive() == "yes"
        assert len(ada.messages) == 0


@virtual_test
async def test_send_connects_when_needed_and_connect_reuses_the_connection() -> None:
    async with open_world() as world, world.peer("ada") as ada, world.peer("bob") as bob:
        await ada.send("bob", "hello")
        assert (await bob.messages.receive()).data == "hello"
        connection = ada.connections["bob"]
        assert await ada.connect("bob") is connection
        await bob.send("ada", "hi")
        assert (await ada.messages.receive()).data == "hi"
        assert len(bob.connections) == 1
        assert world.network.count_open_peers == 2


@virtual_test
async def test_who_gives_up_takes_the_attempt_from_nobody_else() -> None:
    async with open_world() as world, world.peer("ada") as ada, world.peer("bob"):
        for others in (0, 1):
            got: list[Connection] = []

            async def connect(got: list[Connection]) -> None:
                got.append(await ada.connect("bob"))

            async with trio.open_nursery() as nursery:
                for _ in range(others):
                    nursery.start_soon(connect, got)
                with trio.move_on_after(0.01) as impatient:
                    await ada.connect("bob")
                assert impatient.cancelled_caught
                await connect(got)
            assert len(got) == 1 + others
            assert len(set(got)) == 1
            await ada.disconnect("bob")


@pytest.mark.parametrize("names", [("ada", "bob"), ("bob", "ada")])
@pytest.mark.parametrize("head_start", [0, 0.005, 0.02, 0.03, 0.05])
def test_peers_that_connect_to_each_other_at_once_get_one_connection(
    names: tuple[str, str], head_start: float
) -> None:
    @virtual_test
    async def scenario() -> None:
        async with (
            open_world() as world,
            world.peer(names[0], accept=lambda _: head_start > 0) as one,
            world.peer(names[1]) as other,
        ):
            got: dict[str, Connection] = {}

            async def connect(peer: Peer, whom: str, after: float) -> None:
                await trio.sleep(after)
                got[peer.id] = await peer.connect(whom)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect, one, other.id, 0)
                nursery.start_soon(connect, other, one.id, head_start)
            await trio.sleep(5)
            assert one.connections == {other.id: got[one.id]}
            assert other.connections == {one.id: got[other.id]}
            assert world.network.count_open_peers == 2
            await got[one.id].send("ping")
            assert await got[other.id].receive() == "ping"
            assert got[one.id].is_initiator != got[other.id].is_initiator

    scenario()


@virtual_test
async def test_each_registration_and_loss_is_an_event_and_connections_outlive_the_broker() -> None:
    async with open_world() as world, world.peer("ada") as ada, world.peer("bob") as bob:
        connection = await ada.connect("bob")
        assert (await next_of(ada, Registered)).id == "ada"
        world.stop_server()
        assert (await next_of(ada, BrokerLost)).reason
        await next_of(bob, BrokerLost)
        assert not ada.is_registered
        with pytest.raises(ServerUnreachable):
            await ada.exists("bob")
        with pytest.raises(ServerUnreachable):
            await ada.connect("eve", timeout=2)
        await connection.send("still here")
        assert (await bob.messages.receive()).data == "still here"
        await trio.sleep(60)
        await world.start_server()
        await next_of(ada, Registered)
        await next_of(bob, Registered)
        assert await ada.exists("bob")
        assert connection.is_open


@virtual_test
async def test_a_peer_gets_its_id_back_from_its_own_half_open_connection() -> None:
    async with open_world() as world, world.peer("ada") as ada, world.peer("bob") as bob:
        await next_of(ada, Registered)
        world.network.freeze("ada")
        await next_of(ada, BrokerLost)  # by its own ping: nobody tells it
        assert await bob.exists("ada"), "the broker does not know"
        world.network.thaw("ada")
        back_at = trio.current_time()
        await next_of(ada, Registered)
        assert trio.current_time() - back_at < 30  # a dial, made while it was frozen
        with suppress(trio.WouldBlock):
            while event := ada.events.receive_nowait():
                assert not isinstance(event, PeerError)
        await bob.send("ada", "welcome back")
        assert (await ada.messages.receive()).data == "welcome back"


@virtual_test
async def test_what_fails_in_the_background_is_an_event() -> None:
    async with open_world() as world, world.peer("ada") as ada, AsyncExitStack() as stack:
        world.stop_server()
        event = await next_of(ada, PeerError)
        assert event.id is None  # it is the broker's
        assert isinstance(event.error, ServerUnreachable)
        await world.start_server()
        thief = await linkup_peer(world, stack, "thief")
        await thief.say("register", id="ada")
        assert (await thief.hear())["result"] == "ada"
        while not isinstance(event.error, IdTaken):
            event = await next_of(ada, PeerError)
            assert event.id is None
        assert not ada.is_registered
        await thief.say("unregister")
        await next_of(ada, Registered)
        # And what fails of an attempt that another peer began.
        offer = {"type": "offer", "sdp": "nonsense"}
        await thief.say("register", id="thief")
        await thief.say("signal", to="ada", signal=offer, **{"from": "thief"})
        event = await next_of(ada, PeerError)
        assert event.id == "thief"
        assert isinstance(event.error, ConnectionFailed)


@virtual_test
async def test_a_connect_waits_for_the_broker_and_for_the_other_peer_to_be_back() -> None:
    async with open_world() as world, world.peer("ada") as ada, world.peer("bob"):
        world.stop_server()
        await next_of(ada, BrokerLost)
        async with open_background_nursery() as nursery:
            nursery.start_soon(ada.connect, "bob")
            await trio.sleep(10)
            await world.start_server()
            assert (await ada.connect("bob")).is_open


@virtual_test
async def test_what_a_peer_asks_for_in_vain_is_named() -> None:
    async with open_world() as world, world.peer("ada") as ada:
        with pytest.raises(PeerNotFound, match="bob"):
            await ada.connect("bob")
        with pytest.raises(IdTaken, match="ada"):
            async with world.peer("ada"):
                pass
        for wrong in ("ada", "", "a\nb"):
            with pytest.raises(UsageError):
                await ada.connect(wrong)
        with pytest.raises(UsageError):
            async with open_peer("", AUTHORITY):
                pass
        with pytest.raises(ServerUnreachable):
            async with open_peer("eve", "nowhere:1", network=world.network.host("eve")):
                pass
        assert not ada.connections
        assert world.network.count_open_peers == 0


@virtual_test
async def test_a_peer_that_is_not_accepted_is_told_at_once() -> None:
    asked = []

    async def accept(other: str) -> bool:
        asked.append(other)
        await trio.sleep(1)
        return other == "friend"

    async with open_world() as world, world.peer("bob", accept=accept) as bob:
        async with world.peer("eve") as eve:
            began = trio.current_time()
            with pytest.raises(PeerRefused):
                await eve.connect("bob")
            assert trio.current_time() < began + 2
        async with world.peer("friend") as friend:
            assert (await friend.connect("bob")).is_open
        assert asked == ["eve", "friend"]
        await trio.sleep(3)
        assert not bob.connections


@virtual_test
async def test_what_accept_raises_leaves_the_context_of_the_peer() -> None:
    def accept(_: str) -> bool:
        raise LookupError("a bug of the application")

    async with open_world() as world, world.peer("eve") as eve:
        with pytest.raises(LookupError):
            async with world.peer("bob", accept=accept):
                with pytest.raises(ConnectionFailed):
                    await eve.connect("bob")
                await trio.sleep_forever()


@virtual_test
async def test_a_cancelled_connect_leaves_nothing_at_the_other_peer() -> None:
    async with open_world(latency=0.1) as world, world.peer("ada") as ada, world.peer("bob") as bob:
        for moment in range(1, 15):
            with trio.move_on_after(moment * 0.05):
                await ada.connect("bob")
                break
            await trio.sleep(1)
            assert world.network.count_open_peers == 0, f"cancelled after {moment * 0.05:g} s"
        assert moment > 5
        assert (await ada.connect("bob")).is_open
        assert list(bob.connections) == ["ada"]


@virtual_test
async def test_a_connection_ends_with_its_reason_at_both_ends() -> None:
    async with open_world() as world, world.peer("ada") as ada, world.peer("bob") as bob:
        connection = await ada.connect("bob")
        assert (await next_of(bob, PeerConnected)).connection.id == "ada"
        at_bob = bob.connections["ada"]
        await connection.send("last")
        await ada.disconnect("bob")
        assert connection.close_reason == "closed by the application"
        with pytest.raises(trio.ClosedResourceError):
            await connection.send("more")
        gone = await next_of(bob, PeerDisconnected)
        assert (gone.connection, gone.reason) == (at_bob, at_bob.close_reason)
        assert gone.reason
        assert (await bob.messages.receive()).data == "last"
        with pytest.raises(trio.BrokenResourceError):
            await at_bob.send("more")
        assert [message async for message in at_bob] == []
        assert not ada.connections
        assert not bob.connections
        await ada.disconnect("bob")
        assert (await ada.connect("bob")).is_open


@virtual_test
async def test_closing_a_peer_closes_its_connections_and_frees_its_id() -> None:
    async with open_world() as world, world.peer("ada") as ada, world.peer("bob") as bob:
        connection = await ada.connect("bob")
        await bob.aclose()
        await bob.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await bob.connect("ada")
        await trio.sleep(1)
        assert not connection.is_open
        assert not await ada.exists("bob")
        assert [event async for event in bob.events]


@virtual_test
async def test_a_program_that_was_started_again_has_its_id_at_once_by_its_own_secret() -> None:
    secret = "not-for-anybody-else"
    async with open_world() as world:
        async with world.peer("bob", secret=secret):
            world.network.crash("bob", noticed_after=600, is_power_cut=True)
        world.network.restart("bob")
        with pytest.raises(IdTaken):
            async with world.peer("bob"):
                pass
        async with world.peer("bob", secret=secret) as bob:
            assert bob.is_registered
        with pytest.raises(UsageError, match="secret is 16 to 128 visible"):
            async with world.peer("bob", secret="too short"):
                pass


@virtual_test
async def test_a_peer_that_began_anew_takes_the_place_of_its_former_connection() -> None:
    async with open_world() as world, world.peer("ada") as ada:
        async with world.peer("bob"):
            former = await ada.connect("bob")
            world.network.crash("bob", noticed_after=600, is_power_cut=True)
        world.network.restart("bob")
        with pytest.raises(IdTaken):
            async with world.peer("bob"):
                pass
        await trio.sleep(DEFAULT_LEASE)  # of the broken connection
        assert former.is_open
        async with world.peer("bob") as bob:
            await bob.send("ada", "here I am again")
            assert (await ada.messages.receive()).data == "here I am again"
            assert former.close_reason == "a new connection took its place"
            assert list(ada.connections) == ["bob"]


@virtual_test
async def test_a_sender_waits_for_a_slow_reader_up_to_its_time_limit() -> None:
    async with open_world() as world, world.peer("ada") as ada, world.peer("bob") as bob:
        connection = await ada.connect("bob")
        at_bob = await bob.incoming.receive()
        await connection.send("first")
        assert await at_bob.receive() == "first"  # from now on what comes is kept
        count = 0
        with pytest.raises(SendTimeout):
            while True:
                await connection.send([count, "x" * 60_000], timeout=5)
                count += 1
        assert 4 < count < 100
        for number in range(count):
            got = await at_bob.receive()
            assert isinstance(got, list)
            assert got[0] == number
        await connection.send("through")
        assert await at_bob.receive() == "through"


@virtual_test
async def test_messages_that_nobody_reads_block_nobody() -> None:
    async with open_world() as world, world.peer("ada") as ada, world.peer("bob") as bob:
        for number in range(100):
            await ada.send("bob", [number, "x" * 10_000])
        await trio.sleep(5)
        assert bob.messages.count_dropped > 50
        numbers = [bob.messages.receive_nowait().data[0] for _ in range(len(bob.messages))]
        assert numbers == list(range(100 - len(numbers), 100))


@virtual_test
async def test_a_message_over_the_limit_is_refused_and_the_connection_stays() -> None:
    async with open_world() as world, world.peer("ada") as ada, world.peer("bob") as bob:
        connection = await ada.connect("bob")
        with pytest.raises(MessageTooLarge):
            await connection.send("x" * (connection._channel.max_frame_size + 1))
        with pytest.raises(TypeError):
            await connection.send({1, 2})
        await connection.send("ok")
        assert (await bob.messages.receive()).data == "ok"


# --- peers of linkup's, and worse ones ----------------------------------------------------


class Stranger:
    """Whoever speaks to the broker by hand, as linkup's peer does; never reads ahead."""

    def __init__(self, socket: Channel) -> None:
        self.socket = socket

    async def say(self, method: str, **params: Any) -> None:
        frame: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
        if method != "signal":
            frame["id"] = method
        await self.socket.send(encode_json(frame))

    async def hear(self) -> Any:
        with trio.fail_after(60):
            return decode_json(await self.socket.receive())


async def linkup_peer(world: World, stack: AsyncExitStack, name: str) -> Stranger:
    network = world.network.host(name)
    socket = await stack.enter_async_context(network.dial(f"ws://{AUTHORITY}/"))
    stranger = Stranger(socket)
    await stranger.say("register", id=name)
    assert (await stranger.hear())["result"] == name
    return stranger


@virtual_test
async def test_a_peer_of_linkups_is_answered_in_its_own_words_and_gets_no_bytes() -> None:
    async with open_world() as world, world.peer("ada") as ada, AsyncExitStack() as stack:
        linkup = await linkup_peer(world, stack, "js")
        end = await stack.enter_async_context(world.network.host("js").open_peer(initiator=True))
        nursery = await stack.enter_async_context(open_background_nursery())

        async def carry_out() -> None:
            with suppress(trio.EndOfChannel):
                while True:
                    signal = encode_signal(await end.next_signal())
                    await linkup.say("signal", to="ada", signal=signal, **{"from": "js"})

        async def carry_in() -> None:
            while True:
                frame = await linkup.hear()
                assert frame.keys() == {"jsonrpc", "method", "params"}
                assert frame["params"].keys() == {"from", "to", "signal"}
                assert not frame["params"]["signal"].keys() & {"attempt", "extensions"}
                end.signal_nowait(decode_signal(frame["params"]["signal"]))

        nursery.start_soon(carry_out)
        nursery.start_soon(carry_in)
        channel = await end.connected()
        await channel.send('{"hello":1}')
        came = await ada.messages.receive()
        assert (came.sender, came.data) == ("js", {"hello": 1})
        await came.connection.send("hi")
        assert await channel.receive() == '"hi"'
        with pytest.raises(NotSupported):
            await came.connection.send(b"bytes")
        await channel.send("no json")
        with pytest.raises((trio.EndOfChannel, trio.BrokenResourceError)):
            await channel.receive()
        await trio.sleep(1)
        assert "protocol" in (came.connection.close_reason or "")


@virtual_test
async def test_strangers_signals_cost_a_peer_nothing_but_an_event() -> None:
    strange: list[Any] = [
        {},
        {"type": "answer", "sdp": "v=0"},
        {"type": "answer", "sdp": "v=0", "attempt": "x", "extensions": ["farewell", 5]},
        {"type": "refused", "attempt": 5, "reason": {}},
        {"type": "given-up"},
        {"candidate": {"candidate": "x"}},
        {"type": "offer", "sdp": "nonsense"},
        {"type": "offer", "sdp": "nonsense", "attempt": [], "extensions": {}},
    ]
    async with (
        open_world() as world,
        world.peer("ada") as ada,
        world.peer("bob"),
        AsyncExitStack() as stack,
    ):
        eve = await linkup_peer(world, stack, "eve")
        for signal in strange * 3:
            await eve.say("signal", to="ada", signal=signal, **{"from": "eve"})
        assert (await ada.connect("bob")).is_open
        assert (await next_of(ada, PeerError)).id == "eve"
        await trio.sleep(HANDSHAKE_TIMEOUT + 5)
        assert list(ada.connections) == ["bob"]
        assert world.network.count_open_peers == 2


@virtual_test
async def test_a_silent_peer_costs_a_connect_its_time_and_no_more() -> None:
    async with open_world() as world, world.peer("ada") as ada, AsyncExitStack() as stack:
        await linkup_peer(world, stack, "silent")
        for timeout in (3, math.inf):
            began = trio.current_time()
            with pytest.raises(ConnectionFailed, match="silent"):
                await ada.send("silent", "anybody there?", timeout=timeout)
            assert trio.current_time() - began <= min(timeout, HANDSHAKE_TIMEOUT) + 1


@virtual_test
async def test_a_crowd_of_offers_is_answered_up_to_a_limit_and_the_rest_refused() -> None:
    async def hesitate(_: str) -> bool:
        await trio.sleep(5)
        return False

    async with (
        open_world() as world,
        world.peer("ada", accept=hesitate),
        AsyncExitStack() as stack,
    ):
        assert MAX_ANSWERS < 100
        crowd = [await linkup_peer(world, stack, f"c{number}") for number in range(MAX_ANSWERS + 1)]
        offer = {"type": "offer", "sdp": "v=0", "attempt": "1", "extensions": ["farewell"]}
        for number, stranger in enumerate(crowd):
            await stranger.say("signal", to="ada", signal=offer, **{"from": f"c{number}"})
        answer = await crowd[-1].hear()
        assert answer["params"]["signal"]["type"] == "refused"
