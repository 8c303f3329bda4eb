"""Channels for programs written against anyio."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import anyio
import anyio.abc
import trio

from trio_overlay.channels.channel import Channel, Frame


def as_object_stream(channel: Channel) -> anyio.abc.ObjectStream[Frame]:
    """*channel* as an `anyio.abc.ObjectStream`, with anyio's errors in place of Trio's.

    The two share one end: closing the stream closes the channel. The promises are the channel's;
    `MessageTooLarge` is raised as it is. `send_eof` raises NotImplementedError, for a channel
    cannot be closed one way only. For use under Trio, as all of this package.
    """
    return _ChannelStream(channel)


class _ChannelStream(anyio.abc.ObjectStream[Frame]):
    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def send(self, item: Frame) -> None:
        with _errors_of_anyio("sending to"):
            await self._channel.send(item)

    async def receive(self) -> Frame:
        with _errors_of_anyio("receiving from"):
            return await self._channel.receive()

    async def send_eof(self) -> NoReturn:
        raise NotImplementedError("a channel is closed both ways or not at all: use aclose")

    async def aclose(self) -> None:
        await self._channel.aclose()


@contextmanager
def _errors_of_anyio(doing: str) -> Iterator[None]:
    try:
        yield
    except trio.EndOfChannel as error:
        raise anyio.EndOfStream from error
    except trio.ClosedResourceError as error:
        raise anyio.ClosedResourceError from error
    except trio.BrokenResourceError as error:
        raise anyio.BrokenResourceError from error
    except trio.BusyResourceError as error:
        raise anyio.BusyResourceError(doing) from error
