"""The way to asyncio and back: one suite for every bridge, then what only one of them has."""

from __future__ import annotations

import asyncio
import gc
import os
import selectors
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import FunctionType
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from trio_overlay.channels.bridge import Bridge, BridgeChoice, CancelledInAsyncio, open_bridge
from trio_overlay.channels.stepped import SteppedLoop
from trio_overlay.errors import ConfigurationError

BRIDGES: list[BridgeChoice] = (
    ["stepped"] if sys.version_info >= (3, 14) else ["stepped", "trio-asyncio"]
)
"""trio-asyncio cannot be imported on CPython 3.14 and newer."""

each_bridge = pytest.mark.parametrize("choice", BRIDGES)


def held_at_first() -> tuple[int, int]:
    """As `held`, without the files of garbage: those would be closed at any moment from now on.

    An earlier test may have dropped the pipes of a process in a cycle; Trio closes them when they
    are collected, and says nothing.
    """
    gc.collect()
    return held()


def held() -> tuple[int, int]:
    """How many Trio tasks there are, and how many open files."""
    return trio.lowlevel.current_statistics().tasks_living, len(os.listdir("/proc/self/fd"))


async def say(something: str) -> str:
    await asyncio.sleep(0.001)
    return something


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files")


@each_bridge
async def test_results_and_errors_cross(choice: BridgeChoice) -> None:
    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0.001)
        return a + b

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("on asyncio's side")

    async with open_bridge(choice) as bridge:
        assert await bridge.run(add, 1, 2) == 3
        with pytest.raises(ValueError, match="on asyncio's side"):
            await bridge.run(fail)


@each_bridge
async def test_cancelled_caller_waits_for_the_coroutine_to_clean_up(choice: BridgeChoice) -> None:
    story: list[str] = []

    async def work() -> None:
        try:
            story.append("working")
            scope.cancel()
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.001)
            story.append("cleaned up")

    async with open_bridge(choice) as bridge:
        with trio.CancelScope() as scope:
            await bridge.run(work)
        assert scope.cancelled_caught
        assert story == ["working", "cleaned up"]


@each_bridge
async def test_coroutine_that_finishes_all_the_same_has_its_result(choice: BridgeChoice) -> None:
    async def stubborn() -> str:
        scope.cancel()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "done anyway"
        raise AssertionError

    async with open_bridge(choice) as bridge:
        with trio.CancelScope() as scope:
            assert await bridge.run(stubborn) == "done anyway"


@each_bridge
async def test_cancel_that_nobody_asked_for_is_an_error_of_ours(choice: BridgeChoice) -> None:
    async def cancel_myself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async with open_bridge(choice) as bridge:
        with pytest.raises(CancelledInAsyncio, match="cancel_myself"):
            await bridge.run(cancel_myself)


@each_bridge
async def test_asyncio_hands_events_over_directly(choice: BridgeChoice) -> None:
    event = trio.Event()
    order: list[int] = []
    async with open_bridge(choice) as bridge:
        for number in range(10):
            bridge.post(order.append, number)
        bridge.post(event.set)
        await event.wait()
        assert order == list(range(10))


@each_bridge
async def test_sockets_timers_and_threads_of_asyncio_work(choice: BridgeChoice) -> None:
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.DatagramTransport", transport)

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(data, addr)

    class Ask(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def datagram_received(self, data: bytes, _: tuple[str, int]) -> None:
            self.answer.set_result(data)

    async def ask() -> tuple[bytes, bool]:
        loop = asyncio.get_running_loop()
        at = ("127.0.0.1", 0)
        echo, _ = await loop.create_datagram_endpoint(Echo, local_addr=at)
        mine, protocol = await loop.create_datagram_endpoint(
            Ask, remote_addr=echo.get_extra_info("sockname")
        )
        mine.sendto(b"x" * 40_000)
        answer = await protocol.answer
        thread = await loop.run_in_executor(None, threading.get_ident)
        echo.close()
        mine.close()
        return answer, thread != threading.get_ident()

    async with open_bridge(choice) as bridge:
        assert await bridge.run(ask) == (b"x" * 40_000, True)


@each_bridge
async def test_who_reads_a_socket_may_start_tasks(choice: BridgeChoice) -> None:
    class Starter(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def datagram_received(self, *_: object) -> None:
            try:
                asyncio.get_running_loop()
            except RuntimeError as error:
                self.answer.set_exception(error)
                return
            self.task = asyncio.create_task(self.answer_later())

        async def answer_later(self) -> None:
            self.answer.set_result("answered")

    async def ask() -> str:
        loop = asyncio.get_running_loop()
        reader, protocol = await loop.create_datagram_endpoint(Starter, local_addr=("127.0.0.1", 0))
        reader.sendto(b"to myself", reader.get_extra_info("sockname"))
        try:
            return await protocol.answer
        finally:
            reader.close()

    async with open_bridge(choice) as bridge:
        assert await bridge.run(ask) == "answered"
        task = bridge.begin(ask)
        answered = trio.Event()
        task.add_done_callback(lambda _: answered.set())
        await answered.wait()
        assert task.result() == "answered"


@each_bridge
async def test_busy_asyncio_does_not_starve_trio(choice: BridgeChoice) -> None:
    is_enough = False

    async def spin() -> None:
        while not is_enough:  # noqa: ASYNC110 - being a nuisance is the point
            await asyncio.sleep(0)

    async with open_bridge(choice) as bridge, trio.open_nursery() as nursery:
        nursery.start_soon(bridge.run, spin)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        await trio.sleep(0.001)
        is_enough = True


@needs_proc
@each_bridge
async def test_nothing_is_left_when_the_last_user_leaves(choice: BridgeChoice) -> None:
    ended: list[str] = []

    async def linger() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.001)
            ended.append("lingerer")

    async with open_bridge(choice):  # imports what there is to import
        pass
    before = held_at_first()
    async with open_bridge(choice) as bridge:
        for _ in range(3):
            bridge.post(lambda loop=bridge.loop: loop.create_task(linger()))
        await bridge.run(asyncio.sleep, 0)
        loop = bridge.loop
    assert held() == before
    assert ended == ["lingerer"] * 3
    assert loop.is_closed()


@needs_proc
@pytest.mark.skipif(sys.platform == "win32", reason="no pipes that Trio reads")
async def test_files_that_others_have_dropped_are_not_missed_when_they_are_closed() -> None:
    before = held_at_first()
    dropped: list[object] = [trio.lowlevel.FdStream(end) for end in os.pipe()]
    dropped.append(dropped)
    del dropped
    assert held()[1] == before[1] + 2
    assert held_at_first() == before
    gc.collect()
    assert held() == before


@each_bridge
async def test_users_share_a_loop_and_the_first_may_leave_first(choice: BridgeChoice) -> None:
    first_has_left = trio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def second(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with open_bridge(choice) as bridge:
            loops.append(bridge.loop)
            task_status.started()
            await first_has_left.wait()
            await bridge.run(asyncio.sleep, 0.001)

    async with trio.open_nursery() as nursery:
        async with open_bridge(choice) as bridge:
            loops.append(bridge.loop)
            await nursery.start(second)
        first_has_left.set()
    assert loops[0] is loops[1]
    assert loops[0].is_closed()


@each_bridge
async def test_loop_that_is_hardly_open_can_be_closed(choice: BridgeChoice) -> None:
    # Trio starts tasks in an order of chance: each time another may not have begun yet.
    for _ in range(50):
        async with open_bridge(choice):
            pass


@each_bridge
async def test_user_that_is_cancelled_while_the_loop_opens_leaves_nothing(
    choice: BridgeChoice,
) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_bridge(choice):
            pytest.fail("opened though cancelled")
    assert trio.lowlevel.current_statistics().tasks_living == before


@each_bridge
async def test_cleaning_up_under_cancellation_still_has_the_loop(choice: BridgeChoice) -> None:
    result = None
    with trio.CancelScope() as scope:
        async with open_bridge(choice) as bridge:
            try:
                scope.cancel()
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    result = await bridge.run(say, "cleaned up")
    assert result == "cleaned up"


@each_bridge
@pytest.mark.parametrize(
    ("kind", "level"),
    [(AssertionError, "WARNING"), (ConnectionError, "DEBUG")],
    ids=["a stranger's fault", "nobody's fault"],
)
async def test_failing_background_task_of_aiortc_does_not_end_the_program(
    choice: BridgeChoice, kind: type[Exception], level: str, caplog: pytest.LogCaptureFixture
) -> None:
    # What a task looks like that a stranger made fail: an error with a frame of aiortc in it.
    def fail(kind: type[Exception]) -> None:
        raise kind("twice")

    fail_in_aiortc = FunctionType(
        fail.__code__, {"__name__": "aiortc.x", "__builtins__": __builtins__}
    )

    async def background() -> None:
        fail_in_aiortc(kind)

    async def start() -> None:
        task = asyncio.ensure_future(background())
        await asyncio.wait({task})

    caplog.set_level("DEBUG", "trio_overlay")
    async with open_bridge(choice) as bridge:
        await bridge.run(start)
        gc.collect()  # asyncio tells of a failure when the task is collected, and there is a cycle
        assert await bridge.run(say, "still here") == "still here"
    assert [each.levelname for each in caplog.records if "twice" in each.message] == [level]


async def test_unknown_bridge_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="'thread'"):
        async with open_bridge("thread"):  # type: ignore[arg-type]
            pass


# --- stepped ---


async def test_stepped_loop_keeps_trios_time(autojump_clock: MockClock) -> None:
    async with open_bridge("stepped") as bridge:
        started_at = trio.current_time()
        await bridge.run(asyncio.sleep, 3600)
        assert 3600 <= trio.current_time() - started_at < 3600.001


async def test_timer_set_while_a_later_one_is_waited_for_is_not_missed(
    autojump_clock: MockClock,
) -> None:
    async with open_bridge("stepped") as bridge, trio.open_nursery() as nursery:
        nursery.start_soon(bridge.run, asyncio.sleep, 100)
        await trio.sleep(1)
        started_at = trio.current_time()
        await bridge.run(asyncio.sleep, 5)
        assert trio.current_time() - started_at < 5.001


async def test_stepped_loop_is_woken_from_other_threads() -> None:
    woken = trio.Event()
    async with open_bridge("stepped") as bridge:
        loop = bridge.loop
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(woken.set))
        thread.start()
        await woken.wait()
        thread.join()


async def test_stepped_loop_reads_packets_into_small_buffers() -> None:
    async def open_one() -> int:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        transport.close()
        return int(transport.max_size)  # type: ignore[attr-defined]

    async with open_bridge("stepped") as bridge:
        assert await bridge.run(open_one) == 64 * 1024


def test_stepped_loop_runs_while_trio_is_asyncios_guest() -> None:
    # In an interpreter of its own, where trio-asyncio has not replaced asyncio's loop.
    run_python("""
import asyncio, trio
from trio_overlay.channels.bridge import open_bridge

async def main():
    async with open_bridge("stepped") as bridge:
        return await bridge.run(asyncio.sleep, 0.001, "guest")

async def host():
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    trio.lowlevel.start_guest_run(
        main,
        run_sync_soon_threadsafe=loop.call_soon_threadsafe,
        done_callback=lambda outcome: ended.set_result(outcome.unwrap()),
    )
    assert await ended == "guest"
    assert asyncio.get_running_loop() is loop

asyncio.run(host())
""")


async def test_many_sockets_ready_at_once_are_all_served() -> None:
    async def read_all(count: int) -> int:
        loop = asyncio.get_running_loop()
        ends = [socket.socketpair() for _ in range(count)]
        for a, b in ends:
            a.setblocking(False)
            b.sendall(b"x")
        got = [await loop.sock_recv(a, 10) for a, _ in ends]
        for pair in ends:
            for end in pair:
                end.close()
        return len(b"".join(got))

    async with open_bridge("stepped") as bridge:
        assert await bridge.run(read_all, 100) == 100


# --- trio-asyncio, and the choice ---


@pytest.mark.skipif("trio-asyncio" not in BRIDGES, reason="trio-asyncio cannot be imported here")
@pytest.mark.parametrize("choice", ["auto", "trio-asyncio"])
async def test_programs_own_trio_asyncio_loop_is_used_and_stays(choice: BridgeChoice) -> None:
    trio_asyncio = pytest.importorskip("trio_asyncio")

    async with trio_asyncio.open_loop() as loop:
        before = trio.lowlevel.current_statistics().tasks_living
        async with open_bridge(choice) as bridge:
            assert bridge.loop is loop
            assert await bridge.run(say, "theirs") == "theirs"
        assert not loop.is_closed()
        assert trio.lowlevel.current_statistics().tasks_living == before
        async with open_bridge("stepped") as bridge:
            assert bridge.loop is not loop
            assert await bridge.run(say, "ours") == "ours"


async def test_stepped_is_the_bridge_that_needs_no_thought() -> None:
    async with open_bridge() as bridge:
        assert isinstance(bridge, Bridge)
        assert isinstance(bridge.loop, SteppedLoop)


@pytest.mark.skipif("trio-asyncio" not in BRIDGES, reason="trio-asyncio cannot be imported here")
async def test_without_a_selector_to_wait_on_the_bridge_is_trio_asyncio(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selectors, "DefaultSelector", selectors.SelectSelector)  # as on Windows
    async with open_bridge() as bridge:
        assert not isinstance(bridge.loop, SteppedLoop)
        assert await bridge.run(say, "hello") == "hello"
    with pytest.raises(ConfigurationError, match="does not run on this system"):
        async with open_bridge("stepped"):
            pass


def test_nothing_but_its_own_bridge_needs_trio_asyncio() -> None:
    printed = run_python("""
import sys
sys.modules["trio_asyncio"] = None  # any import of it fails
import asyncio, trio
from trio_overlay.channels.bridge import open_bridge
from trio_overlay.errors import ConfigurationError

async def main():
    policy = type(asyncio.get_event_loop_policy()).__module__
    for choice in ("auto", "stepped"):
        async with open_bridge(choice) as bridge:
            assert await bridge.run(asyncio.sleep, 0.001, choice) == choice
    try:
        async with open_bridge("trio-asyncio"):
            pass
    except ConfigurationError as error:
        print(error)
    assert type(asyncio.get_event_loop_policy()).__module__ == policy

trio.run(main)
""")
    assert '"stepped" does without' in printed


def run_python(program: str) -> str:
    """What *program* prints in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
