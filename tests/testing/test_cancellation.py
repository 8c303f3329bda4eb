"""A planted leak is found, whichever checkpoint it hides behind; what is clean passes."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio

from trio_overlay.nodes.tree import TreeNode, open_tree_node
from trio_overlay.signaling.server import SignalingServer
from trio_overlay.testing.cancellation import Trial, cancel_at_every_checkpoint
from trio_overlay.testing.network import VirtualNetwork


def test_each_checkpoint_is_cancelled_once_and_then_the_scenario_ends() -> None:
    cancelled_at: list[tuple[int, float]] = []

    async def scenario(trial: Trial) -> None:
        await trio.sleep(5)
        with trial.under_test():
            await trio.sleep(1)
            await trio.sleep(1)
        cancelled_at.append((trial.count_checkpoints, trio.current_time()))

    assert cancel_at_every_checkpoint(scenario) == 2
    # The first two were cancelled where they waited, the last was not.
    assert cancelled_at == [(1, 5.0), (2, 6.0), (2, 7.0)]


def test_only_tasks_of_the_block_are_counted() -> None:
    async def tick() -> None:
        for _ in range(1000):
            await trio.sleep(0.1)

    async def count(trial: Trial, *, others: bool) -> None:
        async with trio.open_nursery() as nursery:
            if others:
                nursery.start_soon(tick)
            with trial.under_test():
                await trio.sleep(1)
                async with trio.open_nursery() as own:
                    own.start_soon(trio.sleep, 1)
                    own.start_soon(trio.sleep, 1)
            nursery.cancel_scope.cancel()

    alone = cancel_at_every_checkpoint(lambda trial: count(trial, others=False))
    assert cancel_at_every_checkpoint(lambda trial: count(trial, others=True)) == alone
    assert 4 <= alone <= 6


async def leak_a_task(nursery: trio.Nursery) -> None:
    await trio.sleep(1)
    try:
        await trio.sleep(1)
    except trio.Cancelled:
        nursery.start_soon(trio.sleep_forever)
        raise


async def leak_a_descriptor(_: trio.Nursery) -> None:
    await trio.sleep(1)
    read, write = os.pipe()
    try:
        await trio.sleep(1)
        os.close(read)
    finally:
        os.close(write)


async def raise_something_else(_: trio.Nursery) -> None:
    await trio.sleep(1)
    try:
        await trio.sleep(1)
    except trio.Cancelled:
        raise ConnectionError("told you") from None


async def linger(_: trio.Nursery) -> None:
    await trio.sleep(1)
    try:
        await trio.sleep(1)
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(60)


PLANTED: list[tuple[Callable[[trio.Nursery], Awaitable[None]], str]] = [
    (leak_a_task, "sleep_forever of "),
    (leak_a_descriptor, "file descriptors left open: .*pipe"),
    (raise_something_else, "told you"),
    (linger, "it took 60 s to be cancelled"),
]


@pytest.mark.parametrize(("planted", "complaint"), PLANTED)
def test_what_is_planted_behind_the_second_checkpoint_is_found_there(
    planted: Callable[[trio.Nursery], Awaitable[None]], complaint: str
) -> None:
    async def scenario(trial: Trial) -> None:
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            try:
                with trial.under_test():
                    await planted(nursery)
                assert not trial.list_tasks_left(), trial.list_tasks_left()
            except Exception as error:  # noqa: BLE001 - out of the nursery's group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    with pytest.raises((AssertionError, ConnectionError), match=complaint) as caught:
        cancel_at_every_checkpoint(scenario)
    [note] = caught.value.__notes__
    assert "cancelled at checkpoint 2, where " in note
    assert "test_cancellation.py:" in note


def test_a_scenario_without_a_block_has_tested_nothing() -> None:
    async def scenario(_: Trial) -> None:
        await trio.sleep(1)

    with pytest.raises(AssertionError, match="never entered"):
        cancel_at_every_checkpoint(scenario)


def test_what_never_ends_is_noticed() -> None:
    async def scenario(trial: Trial) -> None:
        with trial.under_test():
            while True:
                await trio.lowlevel.checkpoint()

    with pytest.raises(AssertionError, match="more than 50 checkpoints"):
        cancel_at_every_checkpoint(scenario, max_checkpoints=50)


def test_a_join_can_be_cancelled_anywhere_and_nothing_of_it_is_left() -> None:
    endings: list[str] = []

    async def scenario(trial: Trial) -> None:
        server = SignalingServer("secret", rng=random.Random(1))
        async with VirtualNetwork(1) as network, trio.open_nursery() as nursery:
            await nursery.start(server.run)
            network.listen("server:5000", server.handle_upgrade)

            def open_node(name: str) -> AbstractAsyncContextManager[TreeNode]:
                rng = random.Random(name)
                return open_tree_node("server:5000", network=network.host(name), rng=rng)

            async with open_node("root") as root:
                await root.become_root("secret")
                ours = (network.count_open_sockets, network.count_open_peers)
                with trial.under_test():
                    async with open_node("n1") as node:
                        await trio.lowlevel.checkpoint()
                        await node.join()
                        endings.append("joined")
                await trio.sleep(5)  # what was said in farewell arrives
                assert (network.count_open_sockets, network.count_open_peers) == ours
                assert root.children_count == 0
                assert trial.list_tasks_left() == []
                with trio.fail_after(5):  # others are unharmed
                    async with open_node("n2") as node:
                        await node.join()
            nursery.cancel_scope.cancel()
        network.assert_quiet()

    count = cancel_at_every_checkpoint(scenario)
    assert count > 20
    assert endings
