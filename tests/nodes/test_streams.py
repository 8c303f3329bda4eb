"""Streams neither block who puts in nor grow."""

import pytest
import trio

from trio_overlay.nodes.streams import Stream


async def test_items_come_out_in_order_and_the_end_comes_last() -> None:
    stream: Stream[int] = Stream()
    stream.put(1)
    stream.put(2)
    stream.close()
    assert [item async for item in stream] == [1, 2]
    with pytest.raises(trio.EndOfChannel):
        await stream.receive()


async def test_unread_stream_keeps_the_newest_and_counts_the_rest() -> None:
    stream: Stream[int] = Stream(max_items=3)
    for number in range(10):
        stream.put(number)
    assert stream.count_dropped == 7
    stream.close()
    assert [item async for item in stream] == [7, 8, 9]


async def test_unread_stream_is_bounded_in_bytes_and_keeps_at_least_one() -> None:
    stream: Stream[str] = Stream(max_bytes=100)
    for item in ("a", "b", "c"):
        stream.put(item, 60)
    assert len(stream) == 1
    stream.put("huge", 1000)
    assert stream.receive_nowait() == "huge"


async def test_stream_that_is_read_keeps_everything_when_told_to() -> None:
    stream: Stream[int] = Stream(max_items=1, keeps_what_is_read=True)
    with pytest.raises(trio.WouldBlock):
        stream.receive_nowait()
    for number in range(5):
        stream.put(number)
    assert [stream.receive_nowait() for _ in range(5)] == [0, 1, 2, 3, 4]
    assert stream.count_dropped == 0


async def test_what_leaves_is_reported_read_or_dropped() -> None:
    left: list[tuple[str, int]] = []
    stream: Stream[str] = Stream(max_items=1, on_leave=lambda item, size: left.append((item, size)))
    stream.put("dropped", 1)
    stream.put("read", 2)
    await stream.receive()
    stream.close()
    stream.put("late", 3)
    assert left == [("dropped", 1), ("read", 2), ("late", 3)]


async def test_cancelled_reader_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    stream: Stream[int] = Stream()
    with trio.move_on_after(1):
        await stream.receive()
    stream.put(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.receive()
    assert await stream.receive() == 1


async def test_waiting_readers_are_woken_one_an_item_and_all_by_the_close(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream: Stream[int] = Stream()
    got: list[int | str] = []

    async def read() -> None:
        try:
            got.append(await stream.receive())
        except trio.EndOfChannel:
            got.append("end")

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        stream.put(1)
        await trio.testing.wait_all_tasks_blocked()
        assert got == [1]
        stream.close()
    assert got == [1, "end", "end"]
