"""Every part that a node can play may be cancelled at any checkpoint, and nothing is left of it.

After each cancellation, on the virtual network: no task, no connection, no place, nothing in
the server's tables; and others still join.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from trio_overlay.channels.network import UpgradeRequest
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import OutcomeError
from trio_overlay.nodes.peer import Peer, open_peer
from trio_overlay.nodes.peer_attempt import HANDSHAKE_TIMEOUT
from trio_overlay.nodes.tree import TreeNode, open_tree_node
from trio_overlay.protocol.bootstrap import JOIN_PATH, SignalFrame
from trio_overlay.signaling.server import SignalingServer
from trio_overlay.testing.cancellation import Scenario, Trial, cancel_at_every_checkpoint
from trio_overlay.testing.determinism import virtual_test
from trio_overlay.testing.network import VirtualNetwork

SECRET = "secret"
AUTHORITY = "server:5000"
REQUEST_TIMEOUT = 10.0
SETTLING = 3.0
"""Seconds in which farewells have arrived everywhere."""


class World:
    """A server, and nodes that have one place each: the second child goes through a hop."""

    def __init__(self, network: VirtualNetwork, server: SignalingServer) -> None:
        self.network = network
        self.server = server
        self.nodes: dict[str, TreeNode] = {}
        self.endings: dict[str, trio.Event] = {}
        self.kept: list[object] = []
        """What is left behind on purpose, so that nobody collects it."""

    @asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[TreeNode]:
        async with open_tree_node(
            AUTHORITY,
            max_degree=1,
            request_timeout=REQUEST_TIMEOUT,
            network=self.network.host(name),
            rng=random.Random(name),
        ) as node:
            self.nodes[name] = node
            try:
                yield node
            finally:
                del self.nodes[name]

    @asynccontextmanager
    async def open_peer(self, name: str) -> AsyncIterator[Peer]:
        network, rng = self.network.host(name), random.Random(name)
        async with open_peer(name, AUTHORITY, network=network, rng=rng) as peer:
            yield peer

    async def try_to_join(self, name: str) -> None:
        """Live as a node until cancelled; its ending is set when its join is over, well or not."""
        async with self.open(name) as node:
            with suppress(OutcomeError):
                await node.join()
            self.endings[name].set()
            await trio.sleep_forever()

    def places(self) -> object:
        """What must be as before at once, when somebody is gone."""
        taken = {
            name: (node.children_count, node._branch.applicants)
            for name, node in self.nodes.items()
        }
        return taken, dict(self.network.count_open()), self.server.status()

    def requests(self) -> object:
        """What must be as before when the time of a request is over."""
        return {
            name: (
                node._branch.requests,
                len(node._requests),
                len(node._roads),
                len(node._timeline.list_pending()),
            )
            for name, node in self.nodes.items()
        }


@asynccontextmanager
async def open_world() -> AsyncIterator[World]:
    server = SignalingServer(SECRET, rng=random.Random(1))
    async with VirtualNetwork(1) as network:
        async with open_background_nursery() as nursery:
            await nursery.start(server.run)
            network.listen(AUTHORITY, server.handle_upgrade)
            yield World(network, server)
        await trio.sleep(1)
    network.assert_quiet()


@asynccontextmanager
async def unchanged(world: World, *, soon: bool = True) -> AsyncIterator[None]:
    """After the block all is as before, and somebody else can join.

    Not *soon* means only when the time of a request is over: see
    `test_a_node_that_leaves_does_not_leave_places_taken`.
    """
    await trio.sleep(REQUEST_TIMEOUT + SETTLING)
    places, requests = world.places(), world.requests()
    yield
    await trio.sleep(SETTLING)
    if soon:
        assert world.places() == places
    else:
        await trio.sleep(REQUEST_TIMEOUT)
    with trio.fail_after(REQUEST_TIMEOUT):
        async with world.open("latecomer") as node:
            await node.join()
    await trio.sleep(REQUEST_TIMEOUT + SETTLING)
    assert (world.places(), world.requests()) == (places, requests)


async def joining(trial: Trial) -> None:
    async with open_world() as world, world.open("root") as root:
        await root.become_root(SECRET)
        async with unchanged(world):
            with trial.under_test():
                async with world.open("n1") as node:
                    await node.join()
        assert trial.list_tasks_left() == []


async def joining_through_a_hop(trial: Trial) -> None:
    async with open_world() as world, world.open("root") as root, world.open("hop") as hop:
        await root.become_root(SECRET)
        await hop.join()
        async with unchanged(world):
            with trial.under_test():
                async with world.open("n1") as node:
                    await node.join()
        assert trial.list_tasks_left() == []


async def being_a_parent(trial: Trial) -> None:
    await with_others_below(trial, "child")


async def being_a_hop(trial: Trial) -> None:
    await with_others_below(trial, "child", "grandchild")


async def with_others_below(trial: Trial, *names: str) -> None:
    """A node is cancelled while *names*, one after the other, join below it."""
    async with open_world() as world, world.open("root") as root:
        await root.become_root(SECRET)
        async with unchanged(world, soon=False), open_background_nursery() as nursery:
            with trial.under_test():
                async with world.open("n1") as node:
                    await node.join()
                    for name in names:
                        ended = world.endings[name] = trio.Event()
                        nursery.start_soon(world.try_to_join, name)
                        await ended.wait()
            with trio.fail_after(REQUEST_TIMEOUT + SETTLING):  # others are unharmed
                for ended in world.endings.values():
                    await ended.wait()
        assert trial.list_tasks_left() == []


async def becoming_root(trial: Trial) -> None:
    async with open_world() as world:
        before = world.places()
        with trial.under_test():
            async with world.open("former") as former:
                await former.become_root(SECRET)
        await trio.sleep(SETTLING)
        assert trial.list_tasks_left() == []
        assert world.places() == before
        async with world.open("root") as root:
            await root.become_root(SECRET)
            async with unchanged(world):
                pass


async def leaving(trial: Trial) -> None:
    async with open_world() as world, world.open("root") as root:
        await root.become_root(SECRET)
        async with unchanged(world), world.open("n1") as node:
            await node.join()
            with trial.under_test():
                await node.aclose()
        assert trial.list_tasks_left() == []


async def serving(trial: Trial) -> None:
    """The server is shut down: it has a root, somebody idle, and one whose handshake goes on."""
    server: SignalingServer | None = None
    endings: dict[str, str] = {}
    is_registered, is_idle = trio.Event(), trio.Event()
    async with VirtualNetwork(1) as network, open_background_nursery() as clients:

        async def be_root() -> None:
            host, rng = network.host("root"), random.Random("root")
            async with open_tree_node(AUTHORITY, network=host, rng=rng) as node:
                while not node.is_root:
                    with suppress(OutcomeError):
                        await node.become_root(SECRET)
                is_registered.set()
                await trio.sleep_forever()

        async def be_idle() -> None:
            url = f"ws://{AUTHORITY}{JOIN_PATH}"
            try:
                async with network.host("idle").dial(url) as channel:
                    is_idle.set()
                    while True:
                        await channel.receive()
            except (trio.EndOfChannel, trio.BrokenResourceError):
                endings["idle"] = "closed"
            except OutcomeError:
                endings["idle"] = "turned away"
                is_idle.set()

        async def try_to_join(name: str) -> None:
            host, rng = network.host(name), random.Random(name)
            async with open_tree_node(AUTHORITY, network=host, rng=rng) as node:
                try:
                    await node.join()
                    endings[name] = "joined"
                except OutcomeError:
                    endings[name] = "refused"
                ended[name].set()
                await trio.sleep_forever()

        ended = {name: trio.Event() for name in ("n1", "latecomer")}
        clients.start_soon(be_root)
        with trial.under_test():
            async with serve(network) as server:
                await is_registered.wait()
                clients.start_soon(be_idle)
                await is_idle.wait()
                clients.start_soon(try_to_join, "n1")
                await ended["n1"].wait()
        await trio.sleep(SETTLING)
        assert AUTHORITY not in network.count_open(), network.list_open()
        if server is not None:
            figures = server.status()
            assert (figures["roots"], figures["prospects"], figures["held"]) == (0, 0, 0)
        assert not network.count_dials["idle"] or "idle" in endings
        assert trial.is_cancelled or endings == {"idle": "closed", "n1": "joined"}
        async with serve(network):
            with trio.fail_after(60):  # the root finds the next server by itself
                await is_registered.wait()
                clients.start_soon(try_to_join, "latecomer")
                await ended["latecomer"].wait()
        assert endings["latecomer"] == "joined"
        clients.cancel_scope.cancel()
    assert trial.list_tasks_left() == []
    network.assert_quiet()


async def registering(trial: Trial) -> None:
    async with open_world() as world, world.open_peer("ada") as ada:
        async with unchanged_peers(world, ada):
            with trial.under_test():
                async with world.open_peer("bob"):
                    await trio.sleep(1)
        assert trial.list_tasks_left() == []


async def connecting_by_id(trial: Trial) -> None:
    async with open_world() as world, world.open_peer("ada") as ada, world.open_peer("bob") as bob:
        async with unchanged_peers(world, ada, bob):
            with trial.under_test():
                connection = await bob.connect("ada")
                await connection.send("hello")
                await bob.send("ada", "and again")
            await bob.disconnect("ada")
        assert trial.list_tasks_left() == []


async def being_a_peer(trial: Trial) -> None:
    """One registers, connects, and is connected to by two others at once, itself in the middle."""
    async with open_world() as world, world.open_peer("ada") as ada, world.open_peer("eve") as eve:

        async def call_in_vain(peer: Peer) -> None:
            with suppress(OutcomeError, trio.BrokenResourceError):
                await peer.send("bob", "hello")

        async with unchanged_peers(world, ada, eve), open_background_nursery() as nursery:
            with trial.under_test():
                async with world.open_peer("bob") as bob:
                    nursery.start_soon(call_in_vain, ada)
                    nursery.start_soon(call_in_vain, eve)
                    await bob.send("ada", "hello")
                    await bob.messages.receive()
                    await bob.messages.receive()
                    await bob.aclose()
            await trio.sleep(HANDSHAKE_TIMEOUT + SETTLING)
        assert trial.list_tasks_left() == []


@asynccontextmanager
async def unchanged_peers(world: World, *peers: Peer) -> AsyncIterator[None]:
    """After the block all is as before, and *peers* can be connected to."""
    await trio.sleep(SETTLING)
    before = dict(world.network.count_open()), world.server.status()
    yield
    await trio.sleep(SETTLING)
    # Who was offered a connection by one that is gone, and never said that it is one of ours, may
    # wait for it until its time is over.
    await trio.sleep(HANDSHAKE_TIMEOUT)
    assert [peer._attempts for peer in peers] == [{} for _ in peers]
    assert [dict(peer.connections) for peer in peers] == [{} for _ in peers]
    assert (dict(world.network.count_open()), world.server.status()) == before
    async with world.open_peer("latecomer") as latecomer:
        for peer in peers:
            with trio.fail_after(5):
                await latecomer.send(peer.id, "hello")
    await trio.sleep(SETTLING)


@asynccontextmanager
async def serve(network: VirtualNetwork) -> AsyncIterator[SignalingServer]:
    """A server whose tasks, those of its clients included, belong to whoever opens it."""
    server = SignalingServer(SECRET, rng=random.Random(1))
    async with open_background_nursery() as nursery:

        async def handle(request: UpgradeRequest) -> None:
            done = trio.Event()

            async def handle_here() -> None:
                try:
                    await server.handle_upgrade(request)
                finally:
                    done.set()

            nursery.start_soon(handle_here)
            await done.wait()

        await nursery.start(server.run)
        listening = network.listen(AUTHORITY, handle)
        try:
            yield server
        finally:
            listening.close()


@pytest.mark.parametrize(
    ("scenario", "least"),
    [
        (joining, 20),
        (joining_through_a_hop, 20),
        (being_a_parent, 30),
        (being_a_hop, 30),
        (becoming_root, 5),
        (leaving, 1),
        (serving, 20),
        (registering, 5),
        (connecting_by_id, 4),
        (being_a_peer, 20),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_nothing_is_left_wherever_it_is_cancelled(scenario: Scenario, least: int) -> None:
    assert cancel_at_every_checkpoint(scenario) >= least


OFFER = SignalFrame({}, 0)


def keep_a_task(_: World) -> None:
    trio.lowlevel.spawn_system_task(trio.sleep_forever)


def keep_a_connection(world: World) -> None:
    """Without a task: it has been opened, and nobody closes it."""
    opening = world.network.host("n1").open_peer(initiator=True)
    world.kept.append(opening)
    world.network._nursery.start_soon(opening.__aenter__)


def keep_a_place(world: World) -> None:
    branch = world.nodes["hop"]._branch  # whose place is not free yet
    world.network.timeline.after(1, lambda: branch.take("who is gone", OFFER, is_offer=True))


def keep_a_request(world: World) -> None:
    world.nodes["root"]._branch.take("who is gone", OFFER, is_offer=True)


def keep_an_entry_of_the_servers(world: World) -> None:
    world.server._bootstrap.switchboard.enter_prospect(trio.current_time(), is_announced=True)


def keep_a_timer(world: World) -> None:
    world.nodes["hop"]._timeline.after(3_600, lambda: None)


def keep_a_descriptor(world: World) -> None:
    world.kept.append(os.open(os.devnull, os.O_RDONLY))


def raise_something_else(_: World) -> None:
    raise ConnectionError("told you")


def harm_somebody_else(world: World) -> None:
    world.nodes["hop"].close()


@pytest.mark.parametrize(
    ("plant", "complaint"),
    [
        (keep_a_task, r"sleep_forever of "),
        (keep_a_connection, r"'n1': 1"),
        (keep_a_place, r"'hop': \(0, \('who is gone',\)\)"),
        (keep_a_request, r"'root': \(\('who is gone',\), "),
        (keep_an_entry_of_the_servers, r"'prospects': 1"),
        (keep_a_timer, r"'hop': \(\(\), 0, 0, 3\)} != .* 'hop': \(\(\), 0, 0, 2\)}"),
        (keep_a_descriptor, r"file descriptors left open: \d+ -> /dev/null"),
        (raise_something_else, r"told you"),
        (harm_somebody_else, r"{'root': \(0, \(\)\), "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_whatever_is_left_is_found(plant: Callable[[World], None], complaint: str) -> None:
    """Of each kind, once: who joins leaves it behind when it is cancelled."""
    kept: list[object] = []

    async def scenario(trial: Trial) -> None:
        async with open_world() as world, world.open("root") as root, world.open("hop") as hop:
            world.kept = kept
            await root.become_root(SECRET)
            await hop.join()
            async with unchanged(world):
                with trial.under_test():
                    try:
                        async with world.open("n1") as node:
                            await node.join()
                    finally:
                        if trial.is_cancelled:
                            plant(world)
            assert trial.list_tasks_left() == []

    with pytest.raises((AssertionError, ConnectionError, ExceptionGroup)) as caught:
        cancel_at_every_checkpoint(scenario, first=20, stride=1000)
    for descriptor in kept:
        if isinstance(descriptor, int):
            os.close(descriptor)
    assert any("cancelled at checkpoint 20, where " in note for note in caught.value.__notes__)
    assert any(re.search(complaint, str(leaf)) for leaf in leaves(caught.value))


def leaves(error: BaseException) -> list[BaseException]:
    """*error*, or what is in it if it is a group."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]


@virtual_test
async def test_a_node_that_leaves_does_not_leave_places_taken() -> None:
    """Its parent places again what it had delegated to it, those long connected as well."""
    async with open_world() as world, world.open("root") as root:
        await root.become_root(SECRET)
        async with open_background_nursery() as nursery:
            async with world.open("n1") as node:
                await node.join()
                world.endings["child"] = trio.Event()
                nursery.start_soon(world.try_to_join, "child")
                await world.endings["child"].wait()
                await trio.sleep(1)
                assert node.children_count == 1
            await trio.sleep(SETTLING)
            assert root._branch.applicants == ()


@virtual_test
async def test_a_join_cancelled_before_it_begins_is_cancelled() -> None:
    async with open_world() as world:
        with trio.CancelScope() as scope:
            async with open_tree_node(AUTHORITY, network=world.network.host("n1")) as node:
                scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.sleep(1)  # the node's own tasks are cancelled, and it has left
                await node.join()
        assert scope.cancelled_caught
