"""Joining, leaving and serving may be cancelled at any checkpoint over real sockets, too.

On loopback, with real WebRTC. There are under a hundred checkpoints, so each of them is cancelled.
File descriptors are counted by `cancel_at_every_checkpoint`.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.nodes.tree import TreeNode, open_tree_node
from trio_overlay.signaling.server import serve_signaling
from trio_overlay.testing.cancellation import Scenario, Trial, cancel_at_every_checkpoint

SECRET = "secret"
PATIENCE = 120


def run(
    async_fn: Callable[[], Awaitable[None]], /, *, instruments: tuple[trio.abc.Instrument, ...]
) -> None:
    trio.run(async_fn, instruments=instruments)


@asynccontextmanager
async def open_server(port: int = 0) -> AsyncIterator[str]:
    async with open_background_nursery() as nursery:
        start = functools.partial(serve_signaling, SECRET, host="127.0.0.1", port=port)
        yield (await nursery.start(start)).urls[0]


@asynccontextmanager
async def open_root() -> AsyncIterator[tuple[str, TreeNode]]:
    with trio.fail_after(PATIENCE):
        async with open_server() as url, open_tree_node(url) as root:
            await root.become_root(SECRET)
            yield url, root


async def wait_until_alone(root: TreeNode) -> None:
    """Until *root* has nobody below it, nor on the way in; the events of others are not waited for.

    Polled, since what is awaited is that nothing is left, and that has no event.
    """
    while root.children_count or root._branch.applicants or root._branch.requests:  # noqa: ASYNC110
        await trio.sleep(0.01)


async def wait_until_no_task_is_left(trial: Trial) -> None:
    """Until all have ended that were begun for the block under test, at whichever end."""
    while trial.list_tasks_left():  # noqa: ASYNC110 - as above
        await trio.sleep(0.01)


async def joining(trial: Trial) -> None:
    async with open_root() as (url, root):
        with trial.under_test():
            async with open_tree_node(url) as node:
                await node.join()
        await wait_until_alone(root)
        await wait_until_no_task_is_left(trial)
        async with open_tree_node(url) as node:  # others are unharmed
            await node.join()


async def leaving(trial: Trial) -> None:
    async with open_root() as (url, root), open_tree_node(url) as node:
        await node.join()
        with trial.under_test():
            await node.aclose()
        await wait_until_alone(root)
        await wait_until_no_task_is_left(trial)


async def serving(trial: Trial) -> None:
    with trio.fail_after(PATIENCE):
        with trial.under_test():
            async with open_server() as url, open_tree_node(url) as root:
                await root.become_root(SECRET)
        await wait_until_no_task_is_left(trial)


@pytest.mark.webrtc
@pytest.mark.parametrize(("scenario", "least"), [(joining, 40), (leaving, 1), (serving, 10)])
def test_nothing_is_left_wherever_it_is_cancelled(scenario: Scenario, least: int) -> None:
    # What is imported and opened once for the whole process is not left over from a cancellation.
    run(lambda: scenario(Trial(10**6, PATIENCE)), instruments=())
    assert cancel_at_every_checkpoint(scenario, run=run) >= least
