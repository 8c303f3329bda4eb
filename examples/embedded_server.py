"""A signaling server inside a program of your own, with a WebSocket handler beside its own."""

import functools

import trio

from trio_overlay import UpgradeRequest, serve_signaling


async def echo(request: UpgradeRequest) -> None:
    channel = await request.accept()
    async for frame in channel:
        await channel.send(frame)


async def main() -> None:
    async with trio.open_nursery() as nursery:
        start = functools.partial(serve_signaling, "swordfish", port=0, handlers={"/echo": echo})
        server = await nursery.start(start)
        print("echo at", server.urls[0] + "/echo")


if __name__ == "__main__":
    trio.run(main)
