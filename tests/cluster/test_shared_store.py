"""One suite for both shared stores: the real one and the one in memory promise the same."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import TypeAlias

import pytest
import trio

from tests.cluster.redis import RedisServer, open_redis
from trio_overlay.errors import ClusterUnavailable, ConfigurationError
from trio_overlay.protocol.cluster import (
    COMMON_CHANNEL,
    LINKUP_CHANNEL,
    Farewell,
    Moved,
    PassedOn,
    decode_server_message,
    encode_server_message,
    server_channel,
)
from trio_overlay.signaling.cluster import open_cluster
from trio_overlay.signaling.redis_store import RedisStore, _RedisSession
from trio_overlay.signaling.shared_store import Answer, Session, SharedStore, T, Verdict
from trio_overlay.testing.store import VirtualStore

A, B = "aaaaaaaa", "bbbbbbbb"
LEASE = 60.0
"""So long that none ends before its test, however slow the machine is."""
PATIENCE = 60

Maker: TypeAlias = VirtualStore | RedisServer


@pytest.fixture(params=["virtual", "redis"])
async def maker(request: pytest.FixtureRequest) -> AsyncIterator[Maker]:
    if request.param == "virtual":
        async with VirtualStore() as store:
            yield store
    else:
        async with open_redis() as server:
            yield server


def store_of(maker: Maker) -> SharedStore:
    return maker if isinstance(maker, VirtualStore) else RedisStore(maker.url)


@asynccontextmanager
async def sessions(maker: Maker, *tags: str, lease: float = LEASE) -> AsyncIterator[list[Session]]:
    """A session for each of *tags*, after the quarantine that a new store begins with."""
    async with store_of(maker).connect("ssssssss", 0.01) as first:  # it is as long as its lease
        await trio.sleep((await said(first.enter())).quarantine + 0.05)
    async with AsyncExitStack() as stack:
        entered = [
            await stack.enter_async_context(store_of(maker).connect(tag, lease)) for tag in tags
        ]
        for session in entered:
            assert (await said(session.enter())).quarantine == 0
        yield entered


async def said(answer: Answer[T]) -> T:
    with trio.fail_after(PATIENCE):
        return await answer.wait()


async def heard(session: Session) -> tuple[str, bytes]:
    with trio.fail_after(PATIENCE):
        return await session.receive()


async def restart(maker: Maker) -> None:
    if isinstance(maker, VirtualStore):
        maker.stop()
        maker.start()
    else:
        await maker.kill()
        await maker.start()


# --- leases that end in a test ------------------------------------------------------------


class StoodStillError(Exception):
    """The machine did not let the test run for so long that a lease has ended meanwhile."""


@contextmanager
def during(lease: float) -> Iterator[None]:
    """The block is about a lease of so many seconds that begins in it, and not about its end.

    StoodStillError: what the block asserts is not so, and the lease may have ended all the same.
    """
    ends_at = trio.current_time() + lease - 0.05  # the clocks of two processes
    try:
        yield
    except AssertionError as error:
        if trio.current_time() > ends_at:
            raise StoodStillError from error
        raise


def of_a_lease(
    seconds: float,
) -> Callable[[Callable[[Maker, float], Awaitable[None]]], Callable[[Maker], Awaitable[None]]]:
    """Make a test of what is given the length of a lease: *seconds*, if that is enough.

    Where the machine stood still, that says nothing, and a longer lease will do.
    """

    def decorate(
        scenario: Callable[[Maker, float], Awaitable[None]],
    ) -> Callable[[Maker], Awaitable[None]]:
        async def test(maker: Maker) -> None:
            lease = seconds
            while True:
                try:
                    await scenario(maker, lease)
                    break
                except StoodStillError:
                    if lease > LEASE:
                        raise
                lease *= 3
                await restart(maker)

        test.__name__ = test.__qualname__ = scenario.__name__
        return test

    return decorate


async def test_a_lease_that_ended_while_the_machine_stood_still_is_tried_again_and_longer() -> None:
    leases = []

    @of_a_lease(0.1)
    async def scenario(maker: Maker, lease: float) -> None:
        leases.append(lease)
        async with sessions(maker, A, B, lease=lease) as (a, b):
            with during(lease):
                await said(a.claim("x", f"{A}:1"))
                await trio.sleep(0.2)
                assert (await said(b.claim("x", f"{B}:1"))).verdict is Verdict.TAKEN

    async with VirtualStore() as store:
        await scenario(store)
    assert leases[0] == 0.1
    assert leases[-1] >= 0.2


# --- what both have -----------------------------------------------------------------------


async def test_an_id_is_granted_to_one_claim_until_it_is_released(maker: Maker) -> None:
    async with sessions(maker, A, B) as (a, b):
        assert (await said(a.claim("x", f"{A}:1"))).verdict is Verdict.GRANTED
        assert (await said(b.claim("x", f"{B}:1"))).verdict is Verdict.TAKEN
        assert (await said(a.claim("x", f"{A}:2"))).verdict is Verdict.TAKEN
        assert (await said(a.claim("x", f"{A}:1"))).verdict is Verdict.GRANTED
        assert (await said(b.look_up("x"))).is_held
        assert await said(b.release([("x", f"{B}:1"), ("y", f"{B}:2")])) == 0
        assert (await said(b.look_up("x"))).is_held
        assert await said(a.release([("x", f"{A}:1")])) == 1
        assert not (await said(b.look_up("x"))).is_held
        assert (await said(b.claim("x", f"{B}:1"))).verdict is Verdict.GRANTED


@of_a_lease(2.0)
async def test_a_claim_ends_with_its_lease_unless_renewed(maker: Maker, lease: float) -> None:
    async with sessions(maker, A, B, lease=lease) as (a, b):
        for identifier in ("kept", "left"):
            await said(a.claim(identifier, f"{A}:1"))
        ends_at = trio.current_time() + lease
        while trio.current_time() <= ends_at:
            await trio.sleep(lease / 8)
            assert await said(a.renew([("kept", f"{A}:1", "")])) == [True]
        with during(lease):
            assert await said(a.renew([("kept", f"{A}:1", "")])) == [True]
            assert (await said(b.claim("left", f"{B}:1"))).verdict is Verdict.GRANTED
            assert (await said(b.claim("kept", f"{B}:1"))).verdict is Verdict.TAKEN
            claims = [(name, f"{A}:1", "") for name in ("left", "kept", "new")]
            assert await said(a.renew(claims)) == [False, True, True]


async def test_a_claim_moves_to_who_has_its_digest_and_its_server_is_told(maker: Maker) -> None:
    moved = encode_server_message(B, Moved("x"))
    async with sessions(maker, A, B) as (a, b):
        for identifier, digest in (("x", "ada's"), ("open", "")):
            assert (await said(a.claim(identifier, f"{A}:1", digest))).verdict is Verdict.GRANTED
        for digest in ("", "forged", "ada'"):
            assert (await said(b.claim("x", f"{B}:1", digest, moved))).verdict is Verdict.TAKEN
        assert (await said(b.claim("open", f"{B}:1", "", moved))).verdict is Verdict.TAKEN
        assert (await said(b.claim("x", f"{B}:2", "ada's", moved))).verdict is Verdict.GRANTED
        channel, text = await heard(a)
        assert channel == server_channel(A)
        assert decode_server_message(text) == (B, Moved("x", f"{A}:1"))
        assert await said(a.renew([("x", f"{A}:1", "ada's")])) == [False]
        assert await said(a.release([("x", f"{A}:1")])) == 0
        assert await said(b.renew([("x", f"{B}:2", "ada's")])) == [True]
        assert (await said(a.claim("x", f"{A}:2", "", moved))).verdict is Verdict.TAKEN


@of_a_lease(1.0)
async def test_what_has_moved_is_nobody_elses_until_its_former_lease_has_ended(
    maker: Maker, lease: float
) -> None:
    async with sessions(maker, A, B, lease=lease) as (a, b):
        with during(lease):
            await said(a.claim("x", f"{A}:1", "ada's"))
            held_until = trio.current_time() + lease  # and a little less
            await trio.sleep(lease / 3)
            assert (await said(b.claim("x", f"{B}:1", "ada's", "{}"))).verdict is Verdict.GRANTED
            assert await said(b.release([("x", f"{B}:1")])) == 1
            assert not (await said(b.look_up("x"))).is_held
            for digest in ("", "eve's"):
                outcome = await said(b.claim("x", f"{B}:2", digest, "{}"))
                assert outcome.verdict is Verdict.TAKEN
            assert await said(a.renew([("x", f"{A}:1", "ada's")])) == [False]
            assert (await said(b.claim("x", f"{B}:3", "ada's", "{}"))).verdict is Verdict.GRANTED
            assert await said(b.release([("x", f"{B}:3")])) == 1
        await trio.sleep_until(held_until + 0.1)
        assert (await said(b.claim("x", f"{B}:4", "eve's", "{}"))).verdict is Verdict.GRANTED


@of_a_lease(1.0)
async def test_nothing_moves_while_the_store_does_not_know_whether_its_data_are_old(
    maker: Maker, lease: float
) -> None:
    async with sessions(maker, A, lease=lease) as (a,):
        await said(a.claim("x", f"{A}:1", "ada's"))
        await restart(maker)
    async with store_of(maker).connect(A, lease) as a, store_of(maker).connect(B, lease) as b:
        with during(lease):
            quarantine = (await said(a.enter())).quarantine
            await said(b.enter())
            assert await said(a.renew([("x", f"{A}:1", "ada's")])) == [True]
            outcome = await said(b.claim("x", f"{B}:1", "ada's", "{}"))
            assert outcome.verdict is Verdict.QUARANTINED
            assert (await said(b.claim("x", f"{B}:1", "eve's", "{}"))).verdict is Verdict.TAKEN
        for _ in range(4):
            await trio.sleep(quarantine / 4)
            assert await said(a.renew([("x", f"{A}:1", "ada's")])) == [True]
        await trio.sleep(0.1)
        assert (await said(b.claim("x", f"{B}:2", "ada's", "{}"))).verdict is Verdict.GRANTED


async def test_questions_take_their_places_when_they_are_asked(maker: Maker) -> None:
    async with sessions(maker, A, B) as (a, b):
        first = a.claim("x", f"{A}:1")
        a.release([("x", f"{A}:1")])
        second = a.claim("x", f"{A}:2")
        assert (await said(second)).verdict is Verdict.GRANTED
        assert (await said(first)).verdict is Verdict.GRANTED
        for number in range(20):
            a.publish(COMMON_CHANNEL, str(number))
        assert [await heard(b) for _ in range(20)] == [
            (COMMON_CHANNEL, str(number).encode()) for number in range(20)
        ]


async def test_a_question_that_nobody_waits_for_is_asked_all_the_same(maker: Maker) -> None:
    async with sessions(maker, A) as (a,):
        with trio.move_on_after(0):
            await a.claim("x", f"{A}:1").wait()
        assert (await said(a.look_up("x"))).is_held


async def test_messages_reach_those_who_subscribed_and_are_counted(maker: Maker) -> None:
    async with sessions(maker, A, B) as (a, b):
        assert await said(a.publish(server_channel(B), "for b")) == 1
        assert await said(a.publish(server_channel("cccccccc"), "for nobody")) == 0
        assert await said(a.publish(LINKUP_CHANNEL, "for all \xe9")) == 2
        assert await heard(b) == (server_channel(B), b"for b")
        assert await heard(b) == (LINKUP_CHANNEL, "for all \xe9".encode())
        assert await heard(a) == (LINKUP_CHANNEL, "for all \xe9".encode())


async def test_a_signal_is_passed_on_to_the_holder_with_its_claim_in_it(maker: Maker) -> None:
    params = {"from": "y", "to": "x", "signal": {"type": "offer", "sdp": '"}\\'}}
    message = encode_server_message(A, PassedOn(params))
    async with sessions(maker, A, B) as (a, b):
        await said(b.claim("x", f"{B}:77"))
        assert await said(a.pass_on("x", message, "never")) == 1
        channel, text = await heard(b)
        assert channel == server_channel(B)
        assert decode_server_message(text) == (A, PassedOn(params, f"{B}:77"))
        assert await said(a.pass_on("nobody", message, "never")) == 0


@asynccontextmanager
async def linkup(maker: Maker) -> AsyncIterator[None]:
    """A subscriber of linkup's channel that is none of ours."""
    if isinstance(maker, VirtualStore):
        async with maker.connect_linkup():
            yield
        return
    async with await trio.open_tcp_stream("127.0.0.1", maker.port) as stream:
        await stream.send_all(b"SUBSCRIBE linkup\r\n")
        assert b"subscribe" in await stream.receive_some()
        yield


async def test_foreign_subscribers_are_counted_and_get_what_is_for_nobody_of_ours(
    maker: Maker,
) -> None:
    async with sessions(maker, A, B) as (a, b):
        where = await said(a.look_up("x"))
        assert (where.is_held, where.count_foreign, where.count_subscribers) == (False, 0, 2)
        async with linkup(maker):
            where = await said(a.look_up("x"))
            assert (where.count_foreign, where.count_subscribers) == (1, 3)
            outcome = await said(a.claim("x", f"{A}:1"))
            assert (outcome.count_foreign, outcome.count_subscribers) == (1, 3)
            assert await said(a.pass_on("theirs", "{}", "a signal")) == 1
            assert await heard(b) == (LINKUP_CHANNEL, b"a signal")


@of_a_lease(2.0)
async def test_a_store_that_lost_its_data_grants_nothing_new_for_one_lease(
    maker: Maker, lease: float
) -> None:
    async with sessions(maker, A, lease=lease) as (a,):
        await said(a.claim("x", f"{A}:1"))
        await restart(maker)
        with pytest.raises(ClusterUnavailable):
            await heard(a)
        with pytest.raises(ClusterUnavailable):
            await said(a.claim("y", f"{A}:2"))
    async with store_of(maker).connect(B, lease) as b, store_of(maker).connect(A, lease) as a:
        with during(lease):
            assert 0 < (await said(b.enter())).quarantine <= lease
            entered_at = trio.current_time()
            assert 0 < (await said(a.enter())).quarantine <= lease
            outcome = await said(b.claim("x", f"{B}:1"))
            assert outcome.verdict is Verdict.QUARANTINED
            assert 0 < outcome.quarantine <= lease
            assert await said(a.renew([("x", f"{A}:1", "")])) == [True]
        await trio.sleep_until(entered_at + lease + 0.1)
        assert (await said(b.claim("y", f"{B}:2"))).verdict is Verdict.GRANTED
    async with store_of(maker).connect("cccccccc", lease) as c:
        assert (await said(c.enter())).quarantine == 0  # not again for whoever comes later


async def test_a_store_that_was_emptied_is_noticed_and_quarantined(maker: Maker) -> None:
    async with sessions(maker, A) as (a,):
        if isinstance(maker, VirtualStore):
            maker.empty()
        else:
            async with await trio.open_tcp_stream("127.0.0.1", maker.port) as stream:
                await stream.send_all(b"FLUSHALL\r\n")
                assert await stream.receive_some() == b"+OK\r\n"
        with pytest.raises(ClusterUnavailable, match=r"lost its data|LOST"):
            await said(a.claim("x", f"{A}:1"))
    async with store_of(maker).connect(A, LEASE) as a:
        assert (await said(a.enter())).quarantine > 0


async def test_a_store_that_is_not_there_is_unavailable(maker: Maker) -> None:
    if isinstance(maker, VirtualStore):
        maker.stop()
    else:
        await maker.kill()
    with pytest.raises(ClusterUnavailable):
        async with store_of(maker).connect(A, LEASE):
            pass


async def test_what_the_body_raises_leaves_a_session_as_itself(maker: Maker) -> None:
    with pytest.raises(ZeroDivisionError):
        async with store_of(maker).connect(A, LEASE):
            raise ZeroDivisionError


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_server_that_ends_says_so_to_the_others(maker: Maker, is_cancelled: bool) -> None:
    async with sessions(maker, B) as (b,):
        with trio.CancelScope() as scope:
            async with open_cluster(store_of(maker), lease=LEASE) as cluster:
                with trio.fail_after(PATIENCE):
                    while not cluster.is_connected:  # noqa: ASYNC110 - it has no event
                        await trio.sleep(0.01)
                if is_cancelled:
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
        channel, text = await heard(b)
        assert channel == COMMON_CHANNEL
        assert decode_server_message(text) == (cluster.tag, Farewell())


# --- what only the real one has -----------------------------------------------------------


async def test_a_redis_that_stands_still_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_overlay.signaling.redis_store.ANSWER_TIMEOUT", 2)
    async with open_redis() as server, sessions(server, A) as (a,):
        server.pause()
        try:
            answer = a.look_up("x")
            with pytest.raises(ClusterUnavailable, match="timed out"):
                await said(answer)
            with pytest.raises(ClusterUnavailable):
                await heard(a)
            with pytest.raises(ClusterUnavailable):
                a.look_up("y")
        finally:
            server.resume()


async def test_what_is_asked_while_the_connection_closes_is_not_answered() -> None:
    async with open_redis() as server, sessions(server, A) as (a,):
        assert isinstance(a, _RedisSession)
        a._connection._write_buffer_in.close()  # a step of coredis's, before it says so
        with pytest.raises(ClusterUnavailable, match="gone"):
            a.look_up("x")


async def test_what_is_under_way_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_overlay.signaling.redis_store.MAX_UNDER_WAY", 10_000)
    async with open_redis() as server, sessions(server, A) as (a,):
        answer = a.publish(server_channel(A), "x" * 9_000)
        with pytest.raises(ClusterUnavailable, match="slower"):
            a.publish(server_channel(A), "x" * 9_000)
        assert await said(answer) == 1
        assert await said(a.publish(server_channel(A), "x" * 9_000)) == 1


async def test_a_redis_at_a_unix_socket_will_do() -> None:
    async with open_redis() as server, RedisStore(server.unix_url).connect(A, LEASE) as a:
        assert (await said(a.enter())).time > 1_700_000_000


async def test_a_redis_that_hangs_up_is_told_of_once_in_a_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_overlay.signaling.cluster.MAX_RECONNECT_DELAY", 0.01)
    count_calls, has_been_called_often = 0, trio.Event()

    async def hang_up(stream: trio.SocketStream) -> None:
        nonlocal count_calls
        await stream.aclose()
        count_calls += 1
        if count_calls == 10:
            has_been_called_often.set()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1"))
        url = f"redis://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        with caplog.at_level(logging.DEBUG), trio.fail_after(PATIENCE):
            async with open_cluster(RedisStore(url)):
                await has_been_called_often.wait()
            logging.getLogger("coredis").error("of the program's own Redis")
        nursery.cancel_scope.cancel()
    said = [record for record in caplog.records if record.levelno >= logging.INFO]
    (ours,) = [record for record in said if record.name.startswith("trio_overlay")]
    assert (ours.levelno, ours.exc_info) == (logging.WARNING, None)
    assert f"no Redis at {url}" in ours.getMessage()
    theirs = [record.getMessage() for record in caplog.records if record.name == "coredis"]
    assert theirs == ["of the program's own Redis"]
    assert any("coredis: Connection attempt failed" in each.getMessage() for each in caplog.records)


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "http://localhost", "redis://", "redis://h:port", "redis://h/x", "unix://"],
)
def test_what_is_no_url_of_a_redis_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="redis"):
        RedisStore(url)


def test_the_password_is_never_shown() -> None:
    assert str(RedisStore("redis://user:pass@host:1/2")) == "redis://host:1/2"
    with pytest.raises(ConfigurationError) as caught:
        RedisStore("redis://user:pass@host:port")
    assert "pass" not in str(caught.value)
