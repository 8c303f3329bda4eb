"""Peers that sample over real sockets: a bootstrap server for the first arcs, WebRTC for all."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import OutcomeError
from trio_overlay.nodes.neighbours import Neighbours, open_neighbours
from trio_overlay.nodes.sampling import Sampling, open_sampling
from trio_overlay.protocol.sampling_frames import PROTOCOL_ID
from trio_overlay.signaling.bootstrap import Bootstrap, Request, open_bootstrap
from trio_overlay.signaling.server import serve_signaling

pytestmark = pytest.mark.webrtc

PATIENCE = 300
INTERVAL = 1.0
SECRET = "swordfish"


@asynccontextmanager
async def open_entrance(node: Neighbours, bootstrap: Bootstrap) -> AsyncIterator[None]:
    """In the block *node* is the root of the server, and has an arc from whoever comes."""

    async def admit(request: Request) -> None:
        with suppress(OutcomeError):  # who asked finds out, and tries again
            await node.attach(bootstrap.answer(request), is_outgoing=False)

    async with bootstrap.root(SECRET) as requests, open_background_nursery() as nursery:

        async def admit_all() -> None:
            async for request in requests:
                nursery.start_soon(admit, request)

        nursery.start_soon(admit_all)
        yield


async def until(condition: Callable[[], bool], *nodes: Sampling) -> None:
    """Wait until *condition* holds, which the views of *nodes* decide."""
    while not condition():
        async with open_background_nursery() as nursery:
            changed = trio.Event()

            async def watch(node: Sampling, changed: trio.Event = changed) -> None:
                await node.wait_for_change()
                changed.set()

            for node in nodes:
                nursery.start_soon(watch, node)
            with trio.move_on_after(INTERVAL):  # arcs in hand are none of the view's changes
                await changed.wait()


async def test_peers_join_by_a_server_exchange_leave_and_need_no_server() -> None:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        stack.enter_context(trio.fail_after(PATIENCE))
        nursery = await enter(open_background_nursery())
        start = functools.partial(serve_signaling, SECRET, host="127.0.0.1", port=0)
        serving = trio.CancelScope()

        async def serve(*, task_status: trio.TaskStatus[object]) -> None:
            with serving:
                await start(task_status=task_status)

        server = await nursery.start(serve)
        bootstrap = await enter(open_bootstrap(server.urls[0]))
        first = await enter(open_neighbours(PROTOCOL_ID, peer="first"))
        nodes = {"first": await enter(open_sampling(first, interval=INTERVAL))}
        await enter(open_entrance(first, bootstrap))

        async def find_contact(neighbours: Neighbours) -> str:
            return await neighbours.attach(bootstrap.connect())

        for name in ("second", "third", "fourth", "fifth"):
            opening = open_sampling(peer=name, interval=INTERVAL, find_contact=find_contact)
            nodes[name] = await enter(opening)
            assert await nodes[name].join() == "first-I"
        serving.cancel()

        everybody = nodes.values()
        await until(lambda: all(len(node.view) > 0 for node in everybody), *everybody)
        seen: set[str] = set()

        def second_has_met_all() -> bool:
            seen.update(nodes["second"].view)
            return seen == {"first", "third", "fourth", "fifth"}

        await until(second_has_met_all, nodes["second"])
        assert not any(name in node.view for name, node in nodes.items())

        # What applications say goes over the same connections, in a protocol of its own.
        chats = {
            name: await enter(node.neighbours.open_protocol("chat")) for name, node in nodes.items()
        }
        third = nodes["third"]
        await until(lambda: len(third.view) > 0, third)
        (peer,) = third.sample()
        await chats["third"].send(f"{peer}-I", {"hello": peer})
        received = await chats[peer].messages.receive()
        assert (received.peer, received.data) in (
            ("third-O", {"hello": peer}),
            ("third-I", {"hello": peer}),
        )

        leaver = nodes.pop("fourth")
        await leaver.leave()
        rest = nodes.values()
        await until(lambda: all(node.view and "fourth" not in node.view for node in rest), *rest)
        assert leaver.view == {}
