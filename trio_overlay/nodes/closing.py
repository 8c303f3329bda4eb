"""How nodes close the channels to those they are connected to."""

from __future__ import annotations

import math
from typing import Final

import trio

from trio_overlay.channels.channel import Channel

CLOSE_TIMEOUT: Final = 2.0
"""Seconds that the end of a connection waits for its channel, while the node goes on."""
LAST_CLOSE_TIMEOUT: Final = 12.0
"""Seconds that a node which leaves waits for one: more than any channel of ours takes."""


async def close_channel(channel: Channel, reason: str) -> None:
    """Close *channel*, as the last thing that the task which has lived with it does.

    While the node goes on it does not wait long: what is kept for the other end is free soon, and
    what was sent goes on leaving until the context of the connection ends. Of a node that leaves,
    which this task knows by being cancelled, nothing goes on. There the channel's own limit counts:
    two seconds over WebRTC as elsewhere, but up to ten while frames still arrive. With datagrams of
    real WebRTC held to 100 kB/s, two seconds lost 576 of 800 kB that `send` had taken; ten, none.
    """
    is_leaving = trio.current_effective_deadline() == -math.inf
    with trio.move_on_after(LAST_CLOSE_TIMEOUT if is_leaving else CLOSE_TIMEOUT, shield=True):
        await channel.aclose(reason)
