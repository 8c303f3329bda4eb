"""Two peers whose first arc is signalled by hand: what one prints is pasted into the other.

    python neighbours_by_hand.py offer       prints a line, and waits for one to be pasted
    python neighbours_by_hand.py answer      waits for that line, and prints the other

Then each says what is typed, until its end of input; nobody else has taken part.
"""

import io
import json
import sys
from typing import Any, TypeAlias

import trio

from trio_overlay import ArcFail, ConnectionFailed, Neighbours, open_neighbours

Lines: TypeAlias = trio.MemoryReceiveChannel[str]

PATIENCE = 60
"""Seconds for a line to be carried across: the answering side tries to connect for so long."""


async def read_lines(lines: trio.MemorySendChannel[str]) -> None:
    """Pass on what is typed or pasted, until the end of input."""
    # Unbuffered: a thread that still waits in a buffer's lock would disturb the program's end.
    with io.FileIO(0, closefd=False) as stdin, lines:
        while line := await trio.to_thread.run_sync(stdin.readline, abandon_on_cancel=True):
            await lines.send(line.decode().rstrip("\n"))


async def print_message(message: Any) -> None:
    print(json.dumps(message), flush=True)
    await trio.lowlevel.checkpoint()


async def offer(node: Neighbours, lines: Lines) -> str:
    """The peer that answers what is printed."""
    print("give the other side this line, and paste here the one it prints:", file=sys.stderr)

    async def read_responses() -> None:
        async for line in lines:
            node.finalize(json.loads(line))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_responses)
        end = await node.initiate(print_message, timeout=10 * PATIENCE)
        nursery.cancel_scope.cancel()
    return end


async def answer(node: Neighbours, lines: Lines) -> str:
    """The peer whose line is pasted."""
    print("paste the line of the other side, and give it the one that comes:", file=sys.stderr)
    node.accept(print_message, json.loads(await lines.receive()), timeout=PATIENCE)
    event = await node.events.receive()
    if isinstance(event, ArcFail):
        raise ConnectionFailed(event.reason)
    return event.peer


async def print_what_comes(node: Neighbours, cancel_scope: trio.CancelScope) -> None:
    async for message in node.messages:
        if message.data is None:
            break
        print(message.peer, "says", message.data, flush=True)
    cancel_scope.cancel()


async def main(role: str) -> None:
    typed, lines = trio.open_memory_channel[str](0)
    async with open_neighbours("by hand", peer=role) as node, trio.open_nursery() as nursery:
        nursery.start_soon(read_lines, typed)
        end = await (offer if role == "offer" else answer)(node, lines)
        print("connected to", end, flush=True)
        nursery.start_soon(print_what_comes, node, nursery.cancel_scope)
        async for line in lines:
            await node.send(end, line)
        await node.send(end, None)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
