"""Links that nobody has confirmed, and those for the day on which a parent is gone: no messages."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio

from tests.nodes.test_tree import enter_child, enter_root, past_events, until
from tests.nodes.test_tree_hostile import FalseRoot, say
from tests.world import World, open_world
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.nodes.tree import TreeNode
from trio_overlay.nodes.tree_channel import TreeChannel
from trio_overlay.nodes.tree_events import ChildConnect, ParentConnect
from trio_overlay.protocol.ancestry import Descent
from trio_overlay.protocol.cast_frames import CastFrame, Entry, Letter
from trio_overlay.protocol.signals import Offer, encode_signal
from trio_overlay.protocol.tree import EXTENSIONS, Beat, ConnectionSignal, Data, Descend
from trio_overlay.testing import run_virtual, virtual_test

LETTER_OF = "a stranger"


def frames_for(node: TreeNode) -> list[Data | ConnectionSignal | CastFrame]:
    """What only a neighbour may say: a message, an offer of a channel, a broadcast, a letter."""
    return [
        Data("too early"),
        ConnectionSignal("road", encode_signal(Offer("v=0"))),
        Entry("log", 1, LETTER_OF, 1, "too early"),
        Entry(None, 0, LETTER_OF, 2, "too early"),
        Letter(LETTER_OF, node.id, 3, 0, "too early"),
    ]


async def assert_nothing_was_taken(world: World, node: TreeNode, links: list[TreeChannel]) -> None:
    opened = world.network.count_open_peers
    await trio.sleep(1)
    assert len(node.messages) == len(node.casts) == 0
    assert all(link.is_open and not len(link.incoming) and not link._accepting for link in links)
    assert world.network.count_open_peers == opened


@virtual_test
async def test_what_an_applicant_says_before_it_is_a_child_is_ignored() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        client = await stack.enter_async_context(world.client("a"))
        link = await stack.enter_async_context(client.connect(extensions=EXTENSIONS))
        await until(lambda: root._links)
        (here,) = root._links.values()
        for frame in frames_for(root):
            await say(link, frame)
        await assert_nothing_was_taken(world, root, [here])
        await say(link, Beat())
        await say(link, Data("now"))
        await until(lambda: root.children_count == 1)
        assert (await root.messages.receive()).data == "now"


@virtual_test
async def test_what_a_parent_says_before_it_has_confirmed_its_child_is_ignored() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        false_root = FalseRoot(world, stack)
        await false_root.open()
        node = await stack.enter_async_context(world.node("a"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.join)
            link = await false_root.answer_next()
            for frame in frames_for(node):
                await say(link, frame)
            await assert_nothing_was_taken(world, node, list(node._way_up._ways))
            assert node.parent is None
            await say(link, Descend(Descent((1, 1), ("somebody",))))
            await say(link, Data("now"))
        assert (await node.messages.receive()).data == "now"


@virtual_test
async def test_a_standby_connection_carries_no_messages_in_either_direction() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        nodes = {"root": await enter_root(world, stack, max_degree=1)}
        for name in ("a", "b"):
            nodes[name] = await enter_child(world, stack, name, max_degree=1)
        await until(lambda: nodes["b"]._standby.is_there and nodes["root"]._standby._held, 10)
        own = nodes["b"]._standby._own
        (held,) = nodes["root"]._standby._held
        assert own is not None
        for link, other in ((own, "root"), (held, "b")):
            for frame in frames_for(nodes[other]):
                link.post(frame)
        for name in nodes:
            await assert_nothing_was_taken(world, nodes[name], [own, held])


async def greet_parents(node: TreeNode) -> None:
    async for event in node.events:
        if isinstance(event, ParentConnect):
            await event.channel.send("hello")


async def greet_a_root(count: int) -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        nursery = await stack.enter_async_context(open_background_nursery())
        for number in range(count):
            node = await stack.enter_async_context(world.node(f"n{number}"))
            nursery.start_soon(greet_parents, node)
            await node.join()
            message = await root.messages.receive()
            assert message.data == "hello"
            assert message.channel in root.children.values()
            assert past_events(root) == [ChildConnect(message.channel)]


@pytest.mark.parametrize("seed", range(3))
def test_the_first_message_of_a_child_comes_when_it_is_one(seed: int) -> None:
    """The application writes as soon as it hears of its parent; what the node has to say to that
    parent goes first."""
    run_virtual(greet_a_root, 5, seed=seed)


@virtual_test
async def test_a_message_waits_until_the_parent_was_told_that_it_is_one() -> None:
    async with open_world() as world, AsyncExitStack() as stack:
        root = await enter_root(world, stack)
        node = await enter_child(world, stack, "a")
        link = node.parent
        assert link is not None
        await trio.sleep(0.5)  # between two signs of life
        link._may_send = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.send, "hello")
            await trio.sleep(0.1)
            assert len(root.messages) == 0
            link.post(Beat())
        assert (await root.messages.receive()).data == "hello"
