"""The root of a tree: answer whatever the children say."""

import contextlib

import trio

from trio_overlay import open_tree_node


async def main() -> None:
    async with open_tree_node("127.0.0.1:5000") as node:
        await node.become_root("swordfish")
        async for message in node.messages:
            print(message.channel.id, "says", message.data)
            with contextlib.suppress(trio.BrokenResourceError):  # it may have left
                await message.channel.send("pong")


if __name__ == "__main__":
    trio.run(main)
