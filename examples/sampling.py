"""Six peers that sample their network: each knows a few others, now these and now those."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from trio_overlay import Neighbours, Sampling, open_sampling

INTERVAL = 0.5
"""Seconds between exchanges; two minutes is the default."""


def way(one: Neighbours, other: Neighbours) -> Callable[[Any], Awaitable[None]]:
    """Carries JSON messages there and back: here by a call, elsewhere by mail, chat or a server."""

    async def there(message: Any) -> None:
        other.accept(back, message)

    async def back(message: Any) -> None:
        one.finalize(message)

    return there


async def live(name: str, contact: Sampling | None, *, task_status: Any) -> None:
    """A peer that joins by *contact*, if it is not the first, and again if it loses everybody."""

    async def find_contact(neighbours: Neighbours) -> str:
        assert contact is not None
        return await neighbours.initiate(way(neighbours, contact.neighbours))

    async with open_sampling(
        peer=name, interval=INTERVAL, find_contact=find_contact if contact else None
    ) as node:
        if contact is not None:
            await node.join()
        task_status.started(node)
        await trio.sleep_forever()


async def main() -> None:
    async with trio.open_nursery() as nursery:
        first = await nursery.start(live, "ann", None)
        for name in ("bob", "cid", "dan", "eve", "fay"):
            await nursery.start(live, name, first)
        known: set[str] = set()
        while len(known) < 5:  # it never knows all at once, but gets to know each of them
            await first.wait_for_change()
            known |= set(first.view)
        print("ann has met", ", ".join(sorted(known)))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
