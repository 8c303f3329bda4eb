"""Three peers: the one in the middle introduces the other two, and is not needed after that."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from trio_overlay import ArcOpen, Neighbours, open_neighbours


def way(one: Neighbours, other: Neighbours) -> Callable[[Any], Awaitable[None]]:
    """Carries JSON messages there and back: here by a call, elsewhere by mail, chat or a server."""

    async def there(message: Any) -> None:
        other.accept(back, message)

    async def back(message: Any) -> None:
        one.finalize(message)

    return there


async def main() -> None:
    async with (
        open_neighbours("demo", peer="ann") as ann,
        open_neighbours("demo", peer="bob") as bob,
        open_neighbours("demo", peer="middle") as middle,
    ):
        await middle.initiate(way(middle, ann))
        await middle.initiate(way(middle, bob))
        await middle.connect("ann-I", "bob-I")
        async for event in ann.events:
            if event == ArcOpen("bob-I", is_outgoing=True):
                break
        await middle.aclose()
        await ann.send("bob-I", {"hello": "bob"})
        message = await bob.messages.receive()
        print(message.peer, "says", message.data)


if __name__ == "__main__":
    trio.run(main)
