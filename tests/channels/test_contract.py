"""What `Channel` promises, asked of every kind of channel there is."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
import trio
import trio.testing

from tests.channels.makers import MAKERS, Maker, Pair
from trio_overlay.channels.channel import Channel, Frame
from trio_overlay.channels.stream import as_object_stream
from trio_overlay.errors import MessageTooLarge

MAX_BUFFERED = 8_000_000
PATIENCE = 300  # seconds, for a busy machine; nothing here waits for time to pass

pytestmark = pytest.mark.parametrize(
    "maker", [pytest.param(maker, id=maker.name, marks=maker.marks) for maker in MAKERS]
)


@asynccontextmanager
async def opened(maker: Maker) -> AsyncIterator[Pair]:
    """A pair of *maker*; afterwards no task that it brought is left."""
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.fail_after(PATIENCE):
        async with maker.open() as pair:
            yield pair
    assert trio.lowlevel.current_statistics().tasks_living == before


async def received_until_end(channel: Channel) -> list[Frame]:
    return [frame async for frame in channel]


async def until_quiet(figure: Callable[[], int]) -> None:
    """Let other tasks and the kernel work until *figure* has stopped to change.

    Taken for quiet too early on a busy machine, a test sees an easier case, and passes.
    """
    quiet = 0
    while quiet < 300:
        before = figure()
        await trio.lowlevel.checkpoint()
        quiet = quiet + 1 if figure() == before else 0


def frame_number(number: int, size: int) -> bytes:
    """A frame that shows when a part of it is missing, or of another."""
    return (number.to_bytes(4, "big") * (size // 4 + 1))[: max(size, 4)]


async def test_frames_arrive_whole_in_order_and_of_their_kind(maker: Maker) -> None:
    frames: list[Frame] = ["text", b"binary", "\0", b"\0\xff", "ünïcödé \U0001f333", b"12"]
    frames += [frame_number(n, size) for n, size in enumerate([1, 125, 126, 65535, 65536, 200_000])]
    if maker.carries_empty_frames:
        frames += ["", b"", "after the empty ones"]
    async with opened(maker) as pair:
        for sender, receiver in [(pair.a, pair.b), (pair.b, pair.a)]:
            async with trio.open_nursery() as nursery:

                async def send_all(sender: Channel = sender) -> None:
                    for frame in frames:
                        await sender.send(frame)

                nursery.start_soon(send_all)
                got = [await receiver.receive() for _ in frames]
            assert got == frames
            assert [type(frame) for frame in got] == [type(frame) for frame in frames]


async def test_the_largest_frame_passes_and_one_byte_more_is_refused(maker: Maker) -> None:
    async with opened(maker) as pair:
        size = pair.a.max_frame_size
        with pytest.raises(MessageTooLarge, match=f"{size}"):
            await pair.a.send(b"x" * (size + 1))
        with pytest.raises(MessageTooLarge):
            await pair.a.send("ö" * (size // 2 + 1))  # bytes are counted, not characters
        for frame in (b"x" * size, "ö" * (size // 2), "still open"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.a.send, frame)
                assert await pair.b.receive() == frame
        assert pair.a.close_reason is None
        assert pair.b.close_reason is None


async def test_a_sender_waits_for_a_slow_reader(maker: Maker) -> None:
    frame = b"x" * 50_000
    sent = received = peak = 0

    async with opened(maker) as pair, trio.open_nursery() as nursery:

        async def write() -> None:
            nonlocal sent
            while sent < maker.bulk_size:
                await pair.a.send(frame)
                sent += len(frame)

        nursery.start_soon(write)
        await until_quiet(lambda: sent)
        while received < maker.bulk_size:
            peak = max(peak, sent - received)
            assert peak < MAX_BUFFERED
            received += len(await pair.b.receive())
            for _ in range(10):  # slow: the writer could do much more in this time
                await trio.lowlevel.checkpoint()
    assert peak > 0


@pytest.mark.parametrize("closer_is_a", [True, False])
async def test_a_close_is_seen_at_both_ends(maker: Maker, closer_is_a: bool) -> None:
    async with opened(maker) as pair:
        closer, other = (pair.a, pair.b) if closer_is_a else (pair.b, pair.a)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closer.aclose, "enough for today")
            with pytest.raises(trio.EndOfChannel):
                await other.receive()
        with pytest.raises(trio.EndOfChannel):
            await other.receive()
        with pytest.raises(trio.BrokenResourceError):
            await other.send("too late")
        with pytest.raises(trio.ClosedResourceError):
            await closer.receive()
        with pytest.raises(trio.ClosedResourceError):
            await closer.send("too late")
        assert closer.close_reason == "enough for today"
        if maker.carries_reasons:
            assert other.close_reason == "enough for today"
        assert other.close_reason


async def test_there_is_a_close_reason_even_when_none_was_given(maker: Maker) -> None:
    async with opened(maker) as pair:
        assert [pair.a.close_reason, pair.b.close_reason] == [None, None]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.a.aclose)
            with pytest.raises(trio.EndOfChannel):
                await pair.b.receive()
        assert pair.a.close_reason
        assert pair.b.close_reason


async def test_frames_sent_before_the_close_still_arrive(maker: Maker) -> None:
    frames = [frame_number(n, 3_000) for n in range(20)]
    async with opened(maker) as pair, trio.open_nursery() as nursery:

        async def write_and_close() -> None:
            for frame in frames:
                await pair.a.send(frame)
            await pair.a.aclose()

        nursery.start_soon(write_and_close)
        assert await received_until_end(pair.b) == frames


async def test_what_has_arrived_is_received_after_the_other_end_closed(maker: Maker) -> None:
    async with opened(maker) as pair, trio.open_nursery() as nursery:
        await pair.a.send("last words")
        nursery.start_soon(pair.a.aclose)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert await received_until_end(pair.b) == ["last words"]


async def test_closing_twice_or_from_several_tasks_does_no_harm(maker: Maker) -> None:
    async with opened(maker) as pair:
        async with trio.open_nursery() as nursery:
            for channel in (pair.a, pair.b, pair.a, pair.a):
                nursery.start_soon(channel.aclose, "once")
        await pair.a.aclose("twice")
        await pair.b.aclose("twice")
        assert pair.a.close_reason == "once"


async def test_closing_wakes_who_waits_at_the_same_end(maker: Maker) -> None:
    woken: list[str] = []
    sent = 0

    async with opened(maker) as pair, trio.open_nursery() as nursery:

        async def wait_for_a_frame() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await pair.a.receive()
            woken.append("receiver")

        async def wait_for_room() -> None:
            nonlocal sent
            with pytest.raises(trio.ClosedResourceError):
                while True:
                    await pair.a.send(bytes(50_000))
                    sent += 1
            woken.append("sender")

        nursery.start_soon(wait_for_a_frame)
        nursery.start_soon(wait_for_room)
        nursery.start_soon(wait_for_room)
        await until_quiet(lambda: sent)
        assert not woken
        await pair.a.aclose()
    assert sorted(woken) == ["receiver", "sender", "sender"]


async def test_a_cancelled_receive_loses_no_frame(maker: Maker) -> None:
    async with opened(maker) as pair:
        got: list[Frame] = []

        async def receive_one() -> None:
            got.append(await pair.b.receive())

        # The frame and the cancellation race, each time with another lead.
        for number in range(60):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive_one)
                    await pair.a.send(frame_number(number, 8))
                    for _ in range(number % 20):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            if len(got) <= number:
                await receive_one()
        assert got == [frame_number(number, 8) for number in range(60)]


async def test_what_is_delivered_to_a_function_is_whole_in_order_and_as_received(
    maker: Maker,
) -> None:
    frames: list[Frame] = [f"text {number}" for number in range(300)]
    frames += [frame_number(number, 10_000) for number in range(20)]
    got: list[Frame] = []
    async with opened(maker) as pair, trio.open_nursery() as nursery:

        async def send_all() -> None:
            for frame in frames:
                await pair.a.send(frame)
            await pair.a.aclose()

        nursery.start_soon(send_all)
        with pytest.raises(trio.EndOfChannel):
            await pair.b.deliver_to(got.append)
    assert got == frames


async def test_what_the_function_raises_comes_out_and_no_frame_is_lost(maker: Maker) -> None:
    got: list[Frame] = []

    def take(frame: Frame) -> None:
        got.append(frame)
        if len(got) == 2:
            raise KeyError(frame)

    async with opened(maker) as pair, trio.open_nursery() as nursery:

        async def send_some() -> None:
            for number in range(4):
                await pair.a.send(str(number))

        nursery.start_soon(send_some)
        with pytest.raises(KeyError, match="1"):
            await pair.b.deliver_to(take)
        assert [await pair.b.receive(), await pair.b.receive()] == ["2", "3"]
    assert got == ["0", "1"]


async def test_who_delivers_to_a_function_can_be_cancelled_and_is_the_only_receiver(
    maker: Maker,
) -> None:
    got: list[Frame] = []
    async with opened(maker) as pair:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.b.deliver_to, got.append)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await pair.b.receive()
            nursery.cancel_scope.cancel()
        await pair.a.send("later")
        assert await pair.b.receive() == "later"
    assert got == []


async def test_a_cancelled_send_tears_no_frame(maker: Maker) -> None:
    size = 40_000
    numbers = itertools.count()
    returned: list[int] = []
    begun: list[int] = []

    async with opened(maker) as pair:

        async def send_many() -> None:
            while True:
                number = next(numbers)
                begun.append(number)
                await pair.a.send(frame_number(number, size))
                returned.append(number)

        got: list[Frame] = []
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                got.extend(await received_until_end(pair.b))

            # Cancelled while it waits for the reader, and at other moments.
            for patience in (0, 1, 3, 7, 20, 300):
                async with trio.open_nursery() as senders:
                    senders.start_soon(send_many)
                    senders.start_soon(send_many)
                    if patience == 300:
                        await until_quiet(lambda: len(returned))
                    for _ in range(patience):
                        await trio.lowlevel.checkpoint()
                    senders.cancel_scope.cancel()
            nursery.start_soon(read)
            try:
                await pair.a.send("the channel is whole, or closed")
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                got.append("the channel is whole, or closed")
            await pair.a.aclose()
    assert got.pop() == "the channel is whole, or closed"
    sizes = {len(frame) for frame in got}
    assert sizes <= {size}
    seen = [int.from_bytes(frame[:4], "big") for frame in got if isinstance(frame, bytes)]
    assert got == [frame_number(number, size) for number in seen]
    assert set(returned) <= set(seen) <= set(begun)
    assert len(set(seen)) == len(seen)


async def test_several_tasks_may_send_at_once(maker: Maker) -> None:
    count_senders, count_frames = 5, 40

    async with opened(maker) as pair:

        async def send_many(sender: int) -> None:
            for number in range(count_frames):
                size = 4 + 997 * number % 20_000
                await pair.a.send(frame_number(sender * 1000 + number, size))

        got: list[int] = []
        async with trio.open_nursery() as nursery:
            for sender in range(count_senders):
                nursery.start_soon(send_many, sender)
            for _ in range(count_senders * count_frames):
                frame = await pair.b.receive()
                assert isinstance(frame, bytes)
                number = int.from_bytes(frame[:4], "big")
                assert frame == frame_number(number, len(frame))
                got.append(number)
        for sender in range(count_senders):
            own = [number for number in got if number // 1000 == sender]
            assert own == [sender * 1000 + number for number in range(count_frames)]


async def test_a_second_receiver_is_refused(maker: Maker) -> None:
    async with opened(maker) as pair, trio.open_nursery() as nursery:
        got: list[Frame] = []

        async def receive_one() -> None:
            got.append(await pair.a.receive())

        nursery.start_soon(receive_one)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await pair.a.receive()
        await pair.b.send("to the first")
        while not got:
            await trio.lowlevel.checkpoint()
        assert got == ["to the first"]


async def test_a_remote_that_dies_breaks_the_channel(maker: Maker) -> None:
    async with opened(maker) as pair:
        await pair.b.send("arrived before")
        assert await pair.a.receive() == "arrived before"
        async with trio.open_nursery() as nursery:

            async def wait_for_a_frame() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    await pair.a.receive()

            async def wait_for_room() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    while True:
                        await pair.a.send(bytes(50_000))

            nursery.start_soon(wait_for_a_frame)
            nursery.start_soon(wait_for_room)
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            await pair.kill_b()
        assert pair.a.close_reason
        with pytest.raises(trio.BrokenResourceError):
            await pair.a.receive()
        with pytest.raises(trio.BrokenResourceError):
            await pair.a.send("to nobody")
        await pair.a.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await pair.a.receive()


async def test_a_cancelled_close_closes_all_the_same(maker: Maker) -> None:
    async with opened(maker) as pair:
        with trio.CancelScope() as scope:
            scope.cancel()
            await pair.a.aclose("no time for courtesies")
        with pytest.raises(trio.ClosedResourceError):
            await pair.a.send("too late")
        with pytest.raises((trio.EndOfChannel, trio.BrokenResourceError)):
            await pair.b.receive()


async def test_as_an_object_stream_it_raises_the_errors_of_anyio(maker: Maker) -> None:
    async with opened(maker) as pair:
        stream, other = as_object_stream(pair.a), as_object_stream(pair.b)
        await stream.send("hello")
        assert await other.receive() == "hello"
        with pytest.raises(NotImplementedError):
            await stream.send_eof()
        with pytest.raises(MessageTooLarge):
            await stream.send(bytes(pair.a.max_frame_size + 1))
        async with trio.open_nursery() as nursery:

            async def receive_one() -> None:
                with pytest.raises(anyio.EndOfStream):
                    await other.receive()

            nursery.start_soon(receive_one)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await other.receive()
            await stream.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send("too late")
        with pytest.raises(anyio.BrokenResourceError):
            await other.send("too late")


async def test_what_is_sent_without_waiting_comes_in_order_or_not_at_all(maker: Maker) -> None:
    async with opened(maker) as pair:
        sent: list[Frame] = ["first"]
        would_block = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.a.send, "first")
            assert await pair.b.receive() == "first"
        for number in range(MAX_BUFFERED // 50_000):
            frame = frame_number(number, 50_000)
            try:
                pair.a.send_nowait(frame)
            except trio.WouldBlock:
                would_block += 1
            else:
                sent.append(frame)
        assert would_block > 0
        assert (len(sent) > 1) == maker.sends_at_once
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.a.send, "last")
            assert [await pair.b.receive() for _ in sent[1:]] == sent[1:]
            assert await pair.b.receive() == "last"


async def test_what_is_sent_soon_comes_in_order_and_waits_for_a_slow_reader(maker: Maker) -> None:
    count = min(maker.bulk_size, 2 * MAX_BUFFERED) // 50_000
    sent = 0
    async with opened(maker) as pair, trio.open_nursery() as nursery:

        async def write() -> None:
            nonlocal sent
            for number in range(count):
                await pair.a.send_soon(frame_number(number, 50_000))
                sent += 50_000

        nursery.start_soon(write)
        await until_quiet(lambda: sent)
        assert 0 < sent < MAX_BUFFERED
        for number in range(count):
            assert await pair.b.receive() == frame_number(number, 50_000)
        assert sent == count * 50_000


async def test_what_cannot_be_sent_without_waiting_fails_as_in_send(maker: Maker) -> None:
    def error(kind: type[Exception]) -> type[Exception]:
        return kind if maker.sends_at_once else trio.WouldBlock

    async with opened(maker) as pair:
        with pytest.raises(error(MessageTooLarge)):
            pair.a.send_nowait(bytes(pair.a.max_frame_size + 1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.a.aclose)
            with pytest.raises(trio.EndOfChannel):
                await pair.b.receive()
        with pytest.raises(error(trio.ClosedResourceError)):
            pair.a.send_nowait("too late")
        with pytest.raises(error(trio.BrokenResourceError)):
            pair.b.send_nowait("too late")
