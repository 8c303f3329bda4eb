"""The server's way to one client: what waits, who writes it, and how it is closed."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_overlay.channels.memory import MemoryChannel, memory_channel_pair
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.signaling.connection import CLOSE_TIMEOUT, ClientConnection


def connection_and_client(max_queued: int = 1000) -> tuple[ClientConnection, MemoryChannel]:
    """A connection whose client has room for two frames that it has not read."""
    ours, client = memory_channel_pair(max_buffered_frames=2)
    return ClientConnection(ours, "the client", max_queued), client


async def test_what_has_no_room_waits_in_order_and_is_said_before_the_close() -> None:
    connection, client = connection_and_client()
    async with open_background_nursery() as nursery:
        for number in range(3):  # before anybody writes: the third waits
            connection.send_nowait(str(number))
        connection.write_in(nursery)
        connection.send_nowait("3")
        connection.close_nowait("enough")
        connection.send_nowait("too late")
        await wait_all_tasks_blocked()
        assert not connection.closed.is_set()
        assert [frame async for frame in client] == ["0", "1", "2", "3"]
        assert client.close_reason == "enough"
        await connection.closed.wait()


async def test_task_that_writes_ends_when_all_is_said_and_another_begins_later() -> None:
    connection, client = connection_and_client()
    async with trio.open_nursery() as nursery:
        connection.write_in(nursery)
        for _ in range(2):
            for number in range(4):
                connection.send_nowait(str(number))
            assert len(nursery.child_tasks) == 1
            assert [await client.receive() for _ in range(4)] == ["0", "1", "2", "3"]
            await wait_all_tasks_blocked()
            assert not nursery.child_tasks


async def test_client_that_does_not_read_is_closed() -> None:
    connection, client = connection_and_client(max_queued=10)
    async with open_background_nursery() as nursery:
        connection.write_in(nursery)
        for _ in range(6):
            connection.send_nowait("12345")
        assert connection.is_closing
        assert len([frame async for frame in client]) <= 3
        assert client.close_reason == "you do not read what you are sent"


async def test_last_words_have_a_time_limit(autojump_clock: MockClock) -> None:
    connection, _ = connection_and_client()
    with connection.life:
        async with open_background_nursery() as nursery:
            connection.write_in(nursery)
            for _ in range(3):
                connection.send_nowait("unread")
            connection.close_nowait("enough")
            await trio.sleep_forever()
    assert trio.current_time() == CLOSE_TIMEOUT


async def test_nothing_is_begun_while_the_tasks_of_a_client_end() -> None:
    connection, _ = connection_and_client()

    async def serve() -> None:
        async with open_background_nursery() as nursery:
            connection.write_in(nursery)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        for _ in range(3):
            await trio.lowlevel.cancel_shielded_checkpoint()
            connection.send_nowait("12345")
            connection.send_nowait("12345")
        connection.close_nowait("enough")


async def test_what_is_closed_while_its_server_ends_is_closed_by_the_server() -> None:
    connection, client = connection_and_client()

    async def serve() -> None:
        try:
            async with open_background_nursery() as background:
                connection.write_in(background)
                await trio.sleep_forever()
        finally:
            await connection.channel.aclose("the server is stopping")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        connection.close_nowait("its id is lost")
    assert client.close_reason == "the server is stopping"
