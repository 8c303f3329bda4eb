"""The stepped loop's own promises; those it shares with the other bridge are in test_bridge.py."""

from __future__ import annotations

import trio

from trio_overlay.channels.stepped import open_stepped_loop


async def test_a_loop_that_is_kicked_while_it_closes_closes() -> None:
    async def kick_until_closed() -> None:
        while not loop.is_closed():
            loop.kick()
            await trio.lowlevel.checkpoint()

    for _ in range(100):  # Trio shuffles its tasks, and not every order of them had the fault
        async with trio.open_nursery() as nursery:
            async with open_stepped_loop() as loop:
                nursery.start_soon(kick_until_closed)
            assert loop.is_closed()
