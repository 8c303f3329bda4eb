"""A dedicated connection between two neighbours, for heavy traffic, beside the tree's channel."""

import functools

import trio

from trio_overlay import ChildConnect, TreeChannel, open_tree_node, serve_signaling

CHUNK = bytes(64 * 1024)
CHUNKS = 320


async def main() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(functools.partial(serve_signaling, "swordfish", port=0))
        async with open_tree_node(server.urls[0]) as root, open_tree_node(server.urls[0]) as node:
            await root.become_root("swordfish")
            parent = await node.join()
            nursery.start_soon(upload, parent)
            event = await root.events.receive()
            assert isinstance(event, ChildConnect)
            heavy = await event.channel.incoming.receive()
            started_at = trio.current_time()
            size = sum([len(frame) async for frame in heavy])
            seconds = trio.current_time() - started_at
            print(f"{size / 1e6:.0f} MB in {seconds:.1f} s")
        nursery.cancel_scope.cancel()


async def upload(parent: TreeChannel) -> None:
    async with parent.open_channel() as heavy:
        for _ in range(CHUNKS):
            await heavy.send(CHUNK)


if __name__ == "__main__":
    trio.run(main)
