"""How long a node waits for a channel that takes its time to close."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from trio_overlay.channels import webrtc, websocket
from trio_overlay.channels.channel import Channel, Frame
from trio_overlay.nodes import closing
from trio_overlay.nodes.closing import CLOSE_TIMEOUT, LAST_CLOSE_TIMEOUT, close_channel


class SlowToClose(Channel):
    """What was sent on it arrives for so many seconds more."""

    max_frame_size = 1000
    close_reason = None

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.said: str | None = None
        self.has_arrived = False

    async def send(self, value: Frame) -> None:
        raise NotImplementedError

    async def receive(self) -> Frame:
        await trio.sleep_forever()
        raise AssertionError

    async def aclose(self, reason: str = "") -> None:
        self.said = reason
        await trio.sleep(self._seconds)
        self.has_arrived = True


async def live_with(channel: Channel, scope: trio.CancelScope) -> None:
    try:
        with scope:
            await channel.receive()
    finally:
        await close_channel(channel, "enough")


@pytest.mark.parametrize(
    ("seconds", "is_leaving", "taken"),
    [
        (1.5, False, 1.5),
        (9.0, False, CLOSE_TIMEOUT),
        (9.0, True, 9.0),
        (60.0, True, LAST_CLOSE_TIMEOUT),
    ],
)
async def test_a_node_that_leaves_waits_for_what_it_has_sent_and_one_that_goes_on_does_not(
    seconds: float, is_leaving: bool, taken: float, autojump_clock: MockClock
) -> None:
    channel, end_of_connection = SlowToClose(seconds), trio.CancelScope()
    async with trio.open_nursery() as node:
        node.start_soon(live_with, channel, end_of_connection)
        await trio.testing.wait_all_tasks_blocked()
        (node.cancel_scope if is_leaving else end_of_connection).cancel()
    assert trio.current_time() == pytest.approx(taken)
    assert channel.said == "enough"
    assert channel.has_arrived is (taken == seconds)


def test_no_channel_of_ours_is_cut_short_by_a_node_that_leaves() -> None:
    longest = max(webrtc.GREETING_TIMEOUT + webrtc.MAX_LINGER, websocket.CLOSE_TIMEOUT)
    assert longest < closing.LAST_CLOSE_TIMEOUT
