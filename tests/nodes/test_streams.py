"""Streams neither block who puts in nor grow."""

import pytest
import trio

from trio_overlay.nodes.streams import Stream, Substream


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


async def test_who_begins_to_read_a_substream_gets_what_nobody_has_read_yet() -> None:
    left: list[int] = []
    trunk: Stream[int] = Stream(max_items=4, on_leave=lambda item, _: left.append(item))
    even = Substream(trunk, lambda item: item % 2 == 0)
    for number in range(5):
        (trunk if number % 2 else even).put(number, 10)
    assert left == [0]  # dropped: nobody read, and it was too much
    assert trunk.receive_nowait() == 1
    assert not even.is_read
    assert [even.receive_nowait() for _ in range(2)] == [2, 4]
    for number in range(6, 16, 2):
        even.put(number)
    assert [even.receive_nowait() for _ in range(5)] == [6, 8, 10, 12, 14]
    assert trunk.receive_nowait() == 3
    assert left == [0, 1, 2, 4, 6, 8, 10, 12, 14, 3]
    assert len(trunk) == trunk._size == len(even) == even._size == 0


async def test_substream_that_was_closed_unread_still_has_what_came() -> None:
    trunk: Stream[str] = Stream()
    ours = Substream(trunk, lambda item: item == "ours")
    ours.put("ours")
    trunk.put("another's")
    ours.close()
    assert [item async for item in ours] == ["ours"]
    assert trunk.receive_nowait() == "another's"


def test_substream_knows_who_reads_it() -> None:
    trunk: Stream[int] = Stream()
    first, second = (Substream(trunk, lambda _: True) for _ in range(2))
    assert [first.has_reader, second.has_reader] == [False, False]
    with pytest.raises(trio.WouldBlock):
        first.receive_nowait()
    assert [first.has_reader, second.has_reader] == [True, False]
    with pytest.raises(trio.WouldBlock):
        trunk.receive_nowait()
    assert [first.has_reader, second.has_reader] == [True, True]
