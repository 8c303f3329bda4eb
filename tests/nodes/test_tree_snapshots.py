"""A picture of the whole tree for one who is no node of it, asked of the root over the server."""

from __future__ import annotations

import contextlib
import logging
from contextlib import AsyncExitStack
from dataclasses import asdict

import pytest
import trio
import trio.testing

from tests.nodes.test_tree import enter_root, until
from tests.nodes.test_tree_casts import enter_tree
from tests.nodes.test_tree_roots import enter_standby
from tests.world import AUTHORITY, SECRET, World, open_world
from trio_overlay.channels.network import UpgradeRequest
from trio_overlay.errors import ServerRefused, ServerUnreachable, SnapshotFailed, UsageError
from trio_overlay.nodes.tree_snapshots import NodeSnapshot, TreeSnapshot, ask_tree_snapshot
from trio_overlay.protocol.bootstrap import ROOT_PATH_SUFFIX, Heartbeat, decode_bootstrap
from trio_overlay.protocol.switchboard_askers import MAX_ASKERS
from trio_overlay.signaling.snapshots import Picture
from trio_overlay.testing import virtual_test
from trio_overlay.testing.network import VirtualNetwork


async def ask(
    world: World, *, name: str = "asker", secret: str = SECRET, timeout: float = 10.0
) -> TreeSnapshot:
    async with world.client(name) as client:
        return await ask_tree_snapshot(client, secret, timeout=timeout)


def count_askers(world: World) -> int:
    return world.server._bootstrap.switchboard.count_askers


@virtual_test
async def test_who_knows_the_secret_sees_the_tree_and_changes_nothing_of_it() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 9)
        before = {name: (node.path, node.children_count) for name, node in nodes.items()}
        tree = await ask(world)
        assert tree.count_missing == 0
        assert tree.nodes.keys() == {node.id for node in nodes.values()}
        for node in nodes.values():
            seen = tree.nodes[node.id]
            assert seen.depth == len(node.path) - 1
            assert (seen.degree, seen.max_degree) == (node.children_count, 2)
        assert [node.depth for node in tree.nodes.values()] == [0, 1, 1, *[2] * 4, *[3] * 3]
        await trio.sleep(1)
        assert {n: (node.path, node.children_count) for n, node in nodes.items()} == before
        assert nodes["root"].is_root
        assert world.server.status()["roots"] == 1
        assert count_askers(world) == 0
        assert world.network.count_open()["asker"] == 0


@virtual_test
async def test_the_active_root_answers_and_the_next_when_it_is_gone() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        first = await enter_root(world, stack, max_degree=2)
        second = await enter_standby(world, stack)
        await until(lambda: second.path == (first.id, second.id))
        assert list((await ask(world)).nodes) == [first.id, second.id]
        first.close()
        await until(lambda: second.is_root)
        assert list((await ask(world)).nodes) == [second.id]


@virtual_test
async def test_after_a_restart_of_the_server_the_root_is_asked_again() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 2)
        world.stop_server()
        with pytest.raises(ServerUnreachable):
            await ask(world)
        await world.start_server()
        await until(lambda: world.server.status()["roots"], 10)
        assert len((await ask(world)).nodes) == len(nodes)


@virtual_test
async def test_a_wrong_secret_is_refused_and_no_secret_is_ever_written() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        await enter_root(world, stack)
        records: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
        logging.root.addHandler(handler)
        logging.root.setLevel(logging.DEBUG)
        try:
            with pytest.raises(ServerRefused) as caught:
                await ask(world, secret="guess me")
            await ask(world)
        finally:
            logging.root.removeHandler(handler)
            logging.root.setLevel(logging.WARNING)
        assert any("wrong secret" in text for text in records)
        assert any("asks for a picture" in text for text in records)
        for text in (*records, str(caught.value)):
            assert SECRET not in text
            assert "guess" not in text


@virtual_test
async def test_what_is_wrong_is_said_at_once() -> None:
    async with open_world() as world:
        began = trio.current_time()
        with pytest.raises(SnapshotFailed, match="no root is connected"):
            await ask(world)
        for timeout in (0, -1, 61, float("nan")):
            with pytest.raises(UsageError, match="timeout"):
                await ask(world, timeout=timeout)
        with pytest.raises(UsageError, match="secret"):
            await ask(world, secret="")
        assert trio.current_time() - began < 1


@virtual_test
async def test_a_root_of_the_old_protocol_hears_nothing_of_it() -> None:
    async with open_world() as world:
        network = world.network.host("old")
        async with network.dial(f"ws://{AUTHORITY}/{SECRET}{ROOT_PATH_SUFFIX}") as old:
            with pytest.raises(SnapshotFailed, match="old protocol"):
                await ask(world)
            with trio.move_on_after(40):
                while True:
                    assert decode_bootstrap(await old.receive()) == Heartbeat()


@virtual_test
async def test_a_root_that_passes_requests_on_and_has_no_picture_says_so() -> None:
    async with open_world() as world, world.client("bare") as client:
        async with client.root(SECRET):
            with pytest.raises(SnapshotFailed, match="cannot be asked"):
                await ask(world)

        async def fail(_: float) -> Picture:
            raise SnapshotFailed("not today")

        async with client.register(SECRET, describe=fail):
            with pytest.raises(SnapshotFailed, match="not today"):
                await ask(world)


@virtual_test
async def test_a_frozen_root_costs_the_asker_its_time_and_no_more() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        await enter_tree(world, stack, 2)
        world.network.freeze("root")
        began = trio.current_time()
        with pytest.raises(SnapshotFailed, match="within 2 s"):
            await ask(world, timeout=2)
        assert trio.current_time() - began == pytest.approx(2, abs=0.1)
        await until(lambda: count_askers(world) == 0, 2)
        world.network.thaw("root")


@virtual_test
async def test_a_node_that_does_not_answer_is_missing_and_the_others_are_there() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 6)
        world.network.freeze("n6")
        tree = await ask(world, timeout=2)  # before it is taken for dead
        assert tree.count_missing == 1
        assert tree.nodes.keys() == {node.id for name, node in nodes.items() if name != "n6"}
        world.network.thaw("n6")


@virtual_test
async def test_an_asker_that_goes_away_leaves_nothing_at_the_root() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 6)
        await trio.sleep(60)  # all that began with the joins is over
        world.network.freeze("n6")  # so that the root has something to wait for
        before = trio.lowlevel.current_statistics().tasks_living
        with trio.move_on_after(0.5):
            await ask(world, timeout=60)
        await trio.sleep(0.1)
        assert count_askers(world) == 0
        assert not nodes["root"]._gathers._open
        world.network.thaw("n6")
        await trio.sleep(20)
        assert trio.lowlevel.current_statistics().tasks_living == before


@virtual_test
async def test_so_many_may_ask_at_a_time_and_the_next_is_told() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = await enter_tree(world, stack, 2)
        world.network.freeze("n2")
        trees: list[TreeSnapshot] = []

        async def ask_slowly(number: int) -> None:
            trees.append(await ask(world, name=f"asker{number}", timeout=2))

        async with trio.open_nursery() as nursery:
            for number in range(MAX_ASKERS):
                nursery.start_soon(ask_slowly, number)
            await until(lambda: count_askers(world) == MAX_ASKERS)
            with pytest.raises(SnapshotFailed, match="others are asking"):
                await ask(world)
        assert len(trees) == MAX_ASKERS
        assert all(tree.count_missing == 1 for tree in trees)
        world.network.thaw("n2")
        await until(lambda: nodes["n2"].path)


@virtual_test
async def test_a_picture_of_twenty_thousand_nodes_passes_the_limits_of_frames() -> None:
    snapshots = [
        NodeSnapshot(f"{number:016x}", f"{number:016x}", 3, 10, 10, 7, 0.0123, 456.789, "1.2.3")
        for number in range(20_000)
    ]

    async def describe(_: float) -> Picture:
        return Picture([*map(asdict, snapshots), {"no": "node"}], 5)

    async with (
        open_world() as world,
        world.client("root") as client,
        client.register(SECRET, describe=describe),
    ):
        tree = await ask(world)
    assert list(tree.nodes.values()) == snapshots
    assert tree.count_missing == 6


@pytest.mark.parametrize("says", ["nothing", "nonsense", "goodbye", "not found"])
async def test_what_is_no_server_of_ours_is_an_outcome(
    says: str, autojump_clock: trio.testing.MockClock
) -> None:
    async def serve(request: UpgradeRequest) -> None:
        if says == "not found":  # as a server of ours from before there were askers
            await request.reject(404, "nothing is here")
            return
        channel = await request.accept()
        if says == "nonsense":
            with contextlib.suppress(trio.BrokenResourceError):
                while True:
                    await channel.send("nonsense")
                    await trio.sleep(0.1)
        if says != "goodbye":
            await trio.sleep(5)

    expected = {"goodbye": ServerUnreachable, "not found": ServerRefused}
    async with VirtualNetwork() as network:
        network.listen("server", serve)
        began = trio.current_time()
        with pytest.raises(expected.get(says, SnapshotFailed)):
            await ask_tree_snapshot("server", "any", timeout=2, network=network.host("asker"))
        assert trio.current_time() - began < 2.1
