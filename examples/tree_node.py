"""A node of a tree: say something to the parent, and hear what it answers."""

import trio

from trio_overlay import open_tree_node


async def main() -> None:
    async with open_tree_node("127.0.0.1:5000") as node:
        parent = await node.join()
        await parent.send("ping")
        print("the parent says", await parent.receive())


if __name__ == "__main__":
    trio.run(main)
