"""The two ends of a connection through a bootstrap server, each ours or the original's."""

from __future__ import annotations

import abc
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias

import trio

from tests.interop.node import (
    PATIENCE,
    NodeProcess,
    open_node_process,
    open_original_server,
)
from trio_overlay.channels.channel import Channel, Frame
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.signaling.bootstrap import Request, open_bootstrap
from trio_overlay.signaling.server import ListeningServer, serve_signaling

SECRET = "secret"


class End(abc.ABC):
    """One end of an open connection."""

    identifier: str | None
    """Of a joiner: the id it had on the server. Of a root: that of the joiner."""

    @abc.abstractmethod
    async def send(self, frame: Frame) -> None: ...

    @abc.abstractmethod
    async def receive(self) -> Frame: ...

    @abc.abstractmethod
    async def close(self) -> None: ...

    @abc.abstractmethod
    async def wait_until_closed(self) -> None:
        """Returns when the other end has closed; fails on anything else that comes."""


class OriginalEnd(End):
    """A peer of client.js."""

    def __init__(self, node: NodeProcess, name: str, identifier: str | None) -> None:
        self.node = node
        self.name = name
        self.identifier = identifier

    async def send(self, frame: Frame) -> None:
        if isinstance(frame, str):
            await self.node.send("send", peer=self.name, data=frame)
        else:
            text = base64.b64encode(frame).decode()
            await self.node.send("send", peer=self.name, base64=text)

    async def receive(self) -> Frame:
        event = await self.node.wait_for("data", peer=self.name)
        return event["data"] if "data" in event else base64.b64decode(event["base64"])

    async def close(self) -> None:
        await self.node.send("destroy", peer=self.name)

    async def wait_until_closed(self) -> None:
        await self.node.wait_for("close", peer=self.name)


class OurEnd(End):
    """A channel of ours."""

    def __init__(self, channel: Channel, identifier: str | None) -> None:
        self.channel = channel
        self.identifier = identifier

    async def send(self, frame: Frame) -> None:
        await self.channel.send(frame)

    async def receive(self) -> Frame:
        with trio.fail_after(PATIENCE):
            return await self.channel.receive()

    async def close(self) -> None:
        await self.channel.aclose()

    async def wait_until_closed(self) -> None:
        with trio.fail_after(PATIENCE):
            try:
                raise AssertionError(f"came instead of the end: {await self.channel.receive()!r}")
            except trio.EndOfChannel:
                return


@asynccontextmanager
async def open_server(whose: str) -> AsyncIterator[str]:
    """The "original" bootstrap server, or "ours"; its ``host:port``."""
    if whose == "original":
        async with open_original_server() as host:
            yield host
        return
    async with open_background_nursery() as nursery:
        serve = partial(serve_signaling, SECRET, port=0)
        listening: ListeningServer = await nursery.start(serve)
        yield f"127.0.0.1:{listening.port}"


NextApplicant: TypeAlias = Callable[[], Awaitable[End]]
"""Of a root: waits for the next applicant, and gives the open connection to it."""


@asynccontextmanager
async def open_our_root(host: str) -> AsyncIterator[NextApplicant]:
    """A root that answers everybody, as the original in the README of webrtc-bootstrap."""
    answered, applicants = trio.open_memory_channel[End](100)
    async with (
        open_bootstrap(host) as bootstrap,
        bootstrap.root(SECRET) as requests,
        open_background_nursery() as nursery,
    ):

        async def answer(request: Request) -> None:
            async with bootstrap.answer(request) as connection:
                answered.send_nowait(OurEnd(connection, request.origin))
                await trio.sleep_forever()

        async def answer_all() -> None:
            async for request in requests:
                nursery.start_soon(answer, request)

        async def next_applicant() -> End:
            with trio.fail_after(PATIENCE):
                return await applicants.receive()

        nursery.start_soon(answer_all)
        yield next_applicant


@asynccontextmanager
async def open_our_joiner(host: str) -> AsyncIterator[End]:
    async with open_bootstrap(host) as bootstrap, bootstrap.connect(timeout=PATIENCE) as connection:
        yield OurEnd(connection, connection.identifier)


@asynccontextmanager
async def open_original_root(host: str, *variant: str) -> AsyncIterator[NextApplicant]:
    async with open_node_process("client.js", host, *variant) as node:
        await node.send("root", secret=SECRET)
        await node.wait_for("root")

        async def next_applicant() -> End:
            origin = (await node.wait_for("connect"))["peer"]
            return OriginalEnd(node, origin, origin)

        yield next_applicant


@asynccontextmanager
async def open_original_joiner(host: str, *variant: str) -> AsyncIterator[End]:
    async with open_node_process("client.js", host, *variant) as node:
        await node.send("connect", peer="joiner")
        await node.wait_for("connect", peer="joiner")
        yield OriginalEnd(node, "joiner", None)
