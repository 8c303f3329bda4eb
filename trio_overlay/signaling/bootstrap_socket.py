"""What a client hears from a bootstrap server over one socket, and says to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import trio

from trio_overlay.channels.channel import Channel, Frame
from trio_overlay.errors import MalformedFrame, ServerLost
from trio_overlay.protocol.bootstrap import BootstrapFrame, decode_bootstrap, encode_bootstrap

logger = logging.getLogger(__name__)


async def say(socket: Channel, frame: BootstrapFrame) -> None:
    """Send *frame*.

    ServerLost: the server hung up.
    """
    try:
        await socket.send(encode_bootstrap(frame))
    except trio.BrokenResourceError as error:
        raise ServerLost(f"the server hung up: {socket.close_reason}") from error


async def next_frame(socket: Channel) -> BootstrapFrame:
    """The server's next frame that can be understood.

    ServerLost: the server hung up.
    """
    while True:
        with _lost_server(socket):
            frame = _understood(await socket.receive())
        if frame is not None:
            return frame


async def deliver_frames(socket: Channel, take: Callable[[BootstrapFrame], object]) -> NoReturn:
    """Call *take* with each frame of the server that can be understood; see `Channel.deliver_to`.

    ServerLost: the server hung up.
    """

    def hear(text: Frame) -> None:
        frame = _understood(text)
        if frame is not None:
            take(frame)

    with _lost_server(socket):
        await socket.deliver_to(hear)
    raise AssertionError("a channel delivers for ever, or fails")


def _understood(text: Frame) -> BootstrapFrame | None:
    try:
        return decode_bootstrap(text)
    except MalformedFrame as error:
        logger.info("a frame of the server is passed over: %s", error)
        return None


@contextmanager
def _lost_server(socket: Channel) -> Iterator[None]:
    """The end of *socket* is a ServerLost."""
    try:
        yield
    except trio.EndOfChannel as error:
        reason = socket.close_reason
        raise ServerLost(f"the server closed the connection: {reason}") from error
    except trio.BrokenResourceError as error:
        reason = socket.close_reason
        raise ServerLost(f"the connection to the server broke: {reason}") from error
