"""What the memory channel promises beyond the contract that all channels share."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_overlay.channels.channel import Frame
from trio_overlay.channels.memory import MemoryChannel, frame_size, memory_channel_pair
from trio_overlay.errors import MessageTooLarge
from trio_overlay.simulation.collector import no_collector


async def received(channel: MemoryChannel) -> list[str | bytes]:
    return [frame async for frame in channel]


async def test_frames_arrive_whole_in_order_and_as_the_kind_they_were() -> None:
    a, b = memory_channel_pair()
    for frame in ("one", b"two", "", b"", "dr\u00f6i"):
        await a.send(frame)
    await a.aclose("enough")
    assert await received(b) == ["one", b"two", "", b"", "dr\u00f6i"]
    assert (a.close_reason, b.close_reason) == ("enough", "enough")


@pytest.mark.parametrize(("max_bytes", "max_frames", "fitting"), [(1000, 3, 3), (25, 100, 2)])
async def test_a_sender_waits_when_frames_or_bytes_are_unread(
    max_bytes: int, max_frames: int, fitting: int
) -> None:
    a, b = memory_channel_pair(max_buffered_bytes=max_bytes, max_buffered_frames=max_frames)
    sent = 0

    async def write() -> None:
        nonlocal sent
        for _ in range(10):
            await a.send(b"x" * 10)
            sent += 1
        await a.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await wait_all_tasks_blocked()
        assert sent == fitting
        await b.receive()
        await wait_all_tasks_blocked()
        assert sent == fitting + 1
        assert len(await received(b)) == 9


async def test_a_frame_larger_than_the_buffer_still_goes_when_all_is_read() -> None:
    a, b = memory_channel_pair(max_buffered_bytes=10)
    with trio.fail_after(60):
        await a.send(b"x" * 100)
    assert await b.receive() == b"x" * 100


async def test_a_cancelled_send_has_sent_nothing() -> None:
    a, b = memory_channel_pair(max_buffered_frames=1)
    await a.send("first")
    with trio.CancelScope() as scope:
        scope.cancel()
        await a.send("cancelled at the checkpoint")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send, "cancelled while waiting")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await a.aclose()
    assert await received(b) == ["first"]


async def test_a_send_cancelled_after_its_frame_went_returns() -> None:
    a, b = memory_channel_pair(max_buffered_frames=1)
    await a.send("first")
    ended = []

    async def write() -> None:
        await a.send("second")
        ended.append("returned")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await wait_all_tasks_blocked()
        assert await b.receive() == "first"  # puts the second on its way
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
    await a.aclose()
    assert await received(b) == ["second"]
    assert ended == ["returned"]


async def test_cancelling_a_large_send_lets_the_small_one_behind_it_go() -> None:
    a, _ = memory_channel_pair(max_buffered_bytes=10)
    await a.send(b"12345678")
    async with trio.open_nursery() as nursery:
        large = trio.CancelScope()

        async def write_large() -> None:
            with large:
                await a.send(b"123456789")

        nursery.start_soon(write_large)
        await wait_all_tasks_blocked()
        nursery.start_soon(a.send, b"1")
        await wait_all_tasks_blocked()
        assert a.unread_frames == 1
        large.cancel()
    assert a.unread_frames == 2


async def test_a_cancelled_receive_loses_no_frame() -> None:
    a, b = memory_channel_pair()
    await a.send("kept")
    with trio.CancelScope() as scope:
        scope.cancel()
        await b.receive()
    assert scope.cancelled_caught
    assert await b.receive() == "kept"


async def test_several_senders_are_served_in_the_order_they_came() -> None:
    a, b = memory_channel_pair(max_buffered_frames=1)
    await a.send("0")
    async with trio.open_nursery() as nursery:
        for number in range(1, 6):
            nursery.start_soon(a.send, str(number))
            await wait_all_tasks_blocked()
        assert [await b.receive() for _ in range(6)] == list("012345")


async def test_too_large_a_frame_is_refused_and_the_channel_stays_open() -> None:
    a, b = memory_channel_pair(max_frame_size=10)
    for frame in (b"x" * 11, "\u00e4" * 6):
        with pytest.raises(MessageTooLarge, match=r"of 1[12] bytes; this channel takes up to 10"):
            await a.send(frame)
    await a.send(b"x" * 10)
    assert await b.receive() == b"x" * 10
    assert a.close_reason is None


async def test_only_one_task_receives() -> None:
    _, b = memory_channel_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(received, b)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await b.receive()
        nursery.cancel_scope.cancel()


async def ending(call: Callable[[], Awaitable[object]], endings: list[str]) -> None:
    try:
        await call()
    except (trio.ClosedResourceError, trio.BrokenResourceError, trio.EndOfChannel) as error:
        endings.append(type(error).__name__)
    else:
        endings.append("returned")


async def test_closing_an_end_wakes_its_own_tasks_with_closed() -> None:
    a, _ = memory_channel_pair(max_buffered_frames=1)
    await a.send("fills the buffer")
    endings: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ending, lambda: a.send("waits"), endings)
        nursery.start_soon(ending, a.receive, endings)
        await wait_all_tasks_blocked()
        await a.aclose("good night")
    assert endings == ["ClosedResourceError"] * 2


async def test_closing_an_end_breaks_the_others_sends_and_ends_its_receives() -> None:
    a, b = memory_channel_pair(max_buffered_frames=1)
    await b.send("fills the buffer")
    sent: list[str] = []
    read: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ending, lambda: b.send("waits"), sent)
        nursery.start_soon(ending, b.receive, read)
        await wait_all_tasks_blocked()
        await a.aclose("good night")
    assert (sent, read) == (["BrokenResourceError"], ["EndOfChannel"])
    assert b.close_reason == "good night"


async def test_a_cancelled_close_closes_all_the_same() -> None:
    a, b = memory_channel_pair()
    with trio.CancelScope() as scope:
        scope.cancel()
        await a.aclose("in a hurry")
    assert scope.cancelled_caught
    assert a.is_closed_here
    with pytest.raises(trio.EndOfChannel):
        await b.receive()
    await a.aclose("again")
    assert (a.close_reason, b.close_reason) == ("in a hurry", "in a hurry")


async def test_killed_it_breaks_at_both_ends_after_what_had_arrived() -> None:
    a, b = memory_channel_pair()
    await a.send("arrived")
    a.kill("unplugged")
    assert await b.receive() == "arrived"
    for end in (a, b):
        with pytest.raises(trio.BrokenResourceError, match="unplugged"):
            await end.receive()
        with pytest.raises(trio.BrokenResourceError, match="unplugged"):
            await end.send("too late")
        assert end.close_reason == "unplugged"
        await end.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await end.receive()


async def test_one_end_can_break_while_the_other_notices_nothing() -> None:
    a, b = memory_channel_pair()
    a.break_nowait("this host has crashed")
    assert not a.is_open
    assert b.is_open
    await b.send("into the void")
    a.close_nowait()
    assert b.is_open


async def test_a_wire_decides_when_frames_and_the_close_arrive() -> None:
    arrivals: list[Callable[[], None]] = []
    carried: list[Frame | None] = []

    def hold(arrival: Callable[[], None], frame: Frame | None) -> None:
        arrivals.append(arrival)
        carried.append(frame)

    a, b = memory_channel_pair(wires=(hold, lambda arrival, _: arrival()))
    await a.send("one")
    await a.send("two")
    await a.aclose()
    assert (carried, b.is_open) == (["one", "two", None], True)
    arrivals.pop(0)()
    assert await b.receive() == "one"
    with trio.move_on_after(0):
        await b.receive()
        raise AssertionError("the second frame is still on the wire")
    for arrival in arrivals:
        arrival()
    assert await received(b) == ["two"]


async def test_a_frame_from_a_wire_is_given_to_a_function_in_the_moment_it_arrives() -> None:
    arrivals: list[Callable[[], None]] = []

    def hold(arrival: Callable[[], None], frame: Frame | None) -> None:
        arrivals.append(arrival)

    a, b = memory_channel_pair(wires=(hold, hold))
    got: list[Frame] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.deliver_to, got.append)
        await wait_all_tasks_blocked()
        await a.send("one")
        await a.send("two")
        assert (got, a.unread_frames) == ([], 2)
        arrivals.pop(0)()
        assert (got, a.unread_frames) == (["one"], 1)
        nursery.cancel_scope.cancel()
        # From here on nobody takes it, although the task has not run yet.
        arrivals.pop(0)()
    assert got == ["one"]
    assert await b.receive() == "two"


async def test_without_a_wire_two_functions_that_answer_each_other_do_not_nest() -> None:
    a, b = memory_channel_pair()
    depth = deepest = count = 0

    def answer(channel: MemoryChannel) -> Callable[[Frame], None]:
        def take(frame: Frame) -> None:
            nonlocal depth, deepest, count
            depth += 1
            deepest, count = max(deepest, depth), count + 1
            if count < 1_000:
                channel.send_nowait(frame)
            else:
                nursery.cancel_scope.cancel()
            depth -= 1

        return take

    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.deliver_to, answer(a))
        nursery.start_soon(b.deliver_to, answer(b))
        await a.send("there and back")
    assert (count, deepest) == (1_000, 1)


async def test_a_failure_of_the_function_comes_out_even_if_it_cancelled_its_own_task() -> None:
    a, b = memory_channel_pair(wires=(lambda arrival, _: arrivals.append(arrival),) * 2)
    arrivals: list[Callable[[], None]] = []
    scope = trio.CancelScope()

    def take(frame: Frame) -> None:
        scope.cancel()
        raise KeyError(frame)

    async def read() -> None:
        with scope, pytest.raises(KeyError, match="the frame"):
            await b.deliver_to(take)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        await a.send("the frame")
        arrivals.pop()()


async def test_what_is_on_the_wire_counts_as_unread() -> None:
    def lose(arrival: Callable[[], None], frame: Frame | None) -> None:
        pass

    a, _ = memory_channel_pair(max_buffered_frames=2, wires=(lose, lose))
    await a.send("1")
    await a.send("2")
    with trio.move_on_after(0) as scope:
        await a.send("3")
    assert scope.cancelled_caught
    assert a.unread_frames == 2


def test_frames_are_counted_in_bytes_of_utf8_and_nothing_else_is_a_frame() -> None:
    assert [frame_size(f) for f in ("abc", "\u00e4", "\U0001f600", "\ud800", b"1234")] == [
        3, 2, 4, 3, 4,
    ]  # fmt: skip
    with pytest.raises(TypeError, match="bytearray"):
        frame_size(bytearray(b"no"))  # type: ignore[arg-type]


@pytest.mark.parametrize("is_first", [True, False])
async def test_ends_that_are_both_closed_are_freed_at_once(is_first: bool) -> None:
    with no_collector():
        ends = memory_channel_pair()
        references = [weakref.ref(end) for end in ends]
        for end in ends if is_first else reversed(ends):
            await end.aclose()
        del ends, end
        assert [reference() for reference in references] == [None, None]
