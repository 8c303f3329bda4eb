"""A story hears what its nodes hear, and the application hears the rest, in order."""

from __future__ import annotations

import pytest
import trio

from trio_overlay.nodes.streams import Stream
from trio_overlay.testing.determinism import virtual_test
from trio_overlay.testing.overhearing import Overheard


def overhear(left: list[int]) -> tuple[Overheard[int], list[int]]:
    """A stream in which odd numbers are the story's, and what the story has heard."""
    heard: list[int] = []
    stream: Stream[int] = Stream(
        max_items=3, keeps_what_is_read=True, on_leave=lambda item, _: left.append(item)
    )
    return Overheard(stream, heard.append, lambda number: number % 2 == 1), heard


def test_all_leave_in_the_order_in_which_they_came() -> None:
    left: list[int] = []
    stream, heard = overhear(left)
    for number in (1, 2, 3, 4, 5):
        stream.put(number)
    assert heard == [1, 2, 3, 4, 5]
    assert left == [1, 2, 3]  # three are kept of what nobody reads
    assert stream.receive_nowait() == 4
    assert left == [1, 2, 3, 4, 5]
    with pytest.raises(trio.WouldBlock):
        stream.receive_nowait()


@virtual_test
async def test_a_reader_that_waits_is_not_woken_for_what_is_the_storys() -> None:
    stream, _ = overhear([])
    read: list[int] = []

    async def read_all() -> None:
        read.extend([number async for number in stream])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all)
        for number in (1, 2, 3, 5, 6, 8):
            await trio.sleep(1)
            stream.put(number)
        stream.close()
        stream.put(7)
    assert read == [2, 6, 8]
