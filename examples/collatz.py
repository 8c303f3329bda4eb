"""Volunteer computing: which number below N takes the most steps to 1 by Collatz' rule?

The root has the work, in chunks, and lends them to its children, who lend them on to theirs, as
Pando does on Genet (Lavoie, Hendren, Desprez, Correia: Genet, a Quickly Scalable Fat-Tree Overlay
for Personal Volunteer Computing using WebRTC, 2019). Volunteers come, leave and crash meanwhile;
no chunk is lost, and none counted twice.

    python examples/collatz.py                   server, root and volunteers in one program
    python examples/collatz.py --join HOST:PORT  one volunteer more
"""

import argparse
import contextlib
import functools
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

import trio

from trio_overlay import (
    ChildClose,
    Message,
    OutcomeError,
    TreeChannel,
    TreeNode,
    open_tree_node,
    serve_signaling,
)

SPARE = 2
"""Chunks that a node wants for itself: one to work on, one for when that is done."""

Chunk: TypeAlias = tuple[int, int]
"""The first number, and the one after the last."""
Result: TypeAlias = tuple[int, int]
"""The most steps that a number of the chunk takes, and the first such number."""
Work: TypeAlias = Callable[[Chunk], Awaitable[Result]]


class Volunteer:
    """What one node does: works on chunks, and lends others to its children.

    Whoever has lent a chunk answers for it to the one it has it from: if the borrower is gone, it
    lends the chunk again. So none is lost, as long as there is the root, which nobody lent its
    chunks to. A result may come twice, of a borrower that was given up too early: the root counts
    the first.

    Nobody is sent more than it has asked for. So what waits anywhere is bounded, and nothing here
    waits for a slow neighbour.
    """

    def __init__(self, node: TreeNode, work: Work) -> None:
        self.node = node
        self.count_worked_on = 0
        self._work = work
        self._chunks: deque[Chunk] = deque()
        """At hand: to be worked on, or lent."""
        self._came = trio.Event()
        self._lent: dict[TreeChannel, list[Chunk]] = {}
        """To each child, until it brings the results."""
        self._wanted: dict[TreeChannel, int] = {}
        """How many more each child can take."""
        self._lender: TreeChannel | None = None
        """The parent, or the last one: what we have is from it."""
        self._asked = 0
        """How many chunks it owes us."""
        self._results: deque[tuple[Chunk, Result]] = deque()
        """On their way up."""

    async def run(self) -> None:
        """Take part until cancelled, or until the node has left."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work_on_chunks)
            nursery.start_soon(self._watch)
            async for message in self.node.messages:
                self._take(message)
                await self._share()
            nursery.cancel_scope.cancel()

    async def _work_on_chunks(self) -> None:
        while True:
            while not self._chunks:
                self._came = trio.Event()
                await self._came.wait()
            chunk = self._chunks.popleft()
            await self._share()
            result = await self._work(chunk)
            self.count_worked_on += 1
            self._conclude(chunk, result)
            await self._share()

    async def _watch(self) -> None:
        async for event in self.node.events:
            if isinstance(event, ChildClose):
                self._wanted.pop(event.channel, None)
                self._add(self._lent.pop(event.channel, []))
            await self._share()

    def _take(self, message: Message) -> None:
        match message.data:
            # A former parent has lent it to somebody else by now.
            case {"chunk": [first, last]} if message.channel is self.node.parent:
                self._asked -= 1
                self._add([(first, last)])
            # Of a former child nothing would tell us again that it is gone.
            case {"want": int(count)} if message.channel in self.node.children.values():
                self._wanted[message.channel] = self._wanted.get(message.channel, 0) + count
            case {"result": [[first, last], [steps, start]]} if not message.is_parent:
                chunk = (first, last)
                for chunks in (self._lent.get(message.channel, []), self._chunks):
                    if chunk in chunks:
                        chunks.remove(chunk)
                self._conclude(chunk, (steps, start))

    def _add(self, chunks: Iterable[Chunk]) -> None:
        self._chunks.extend(chunks)
        self._came.set()

    def _conclude(self, chunk: Chunk, result: Result) -> None:
        self._results.append((chunk, result))

    async def _share(self) -> None:
        """Send on what there is to send; after each change."""
        parent = self.node.parent
        if parent is not None and parent is not self._lender:
            # What the former parent lent us it lends again, and owes us no more.
            self._lender = parent
            self._asked = 0
            self._chunks.clear()
        while parent is not None and self._results:
            chunk, result = self._results.popleft()
            await send(parent, {"result": [chunk, result]})
        for child in list(self._wanted):
            while self._wanted.get(child) and self._chunks:
                chunk = self._chunks.popleft()
                self._wanted[child] -= 1
                self._lent.setdefault(child, []).append(chunk)
                await send(child, {"chunk": chunk})
        want = SPARE + sum(self._wanted.values()) - len(self._chunks) - self._asked
        if parent is not None and parent is self._lender and want > 0:
            self._asked += want
            await send(parent, {"want": want})


class Organizer(Volunteer):
    """The root: it has all *chunks* to begin with, and takes part."""

    def __init__(self, node: TreeNode, work: Work, chunks: Iterable[Chunk]) -> None:
        super().__init__(node, work)
        self._add(chunks)
        self.count_chunks = len(self._chunks)
        self.results: dict[Chunk, Result] = {}
        self.has_all = trio.Event()

    def _conclude(self, chunk: Chunk, result: Result) -> None:
        self.results.setdefault(chunk, result)
        if len(self.results) == self.count_chunks:
            self.has_all.set()


async def send(neighbour: TreeChannel, data: object) -> None:
    # If it is gone meanwhile, we are told; what it had is lent again.
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await neighbour.send(data)


def count_steps(number: int) -> int:
    count = 0
    while number != 1:
        number = 3 * number + 1 if number % 2 else number // 2
        count += 1
    return count


def find_longest(chunk: Chunk) -> Result:
    steps, start = max((count_steps(number), -number) for number in range(*chunk))
    return steps, -start


# --- the program --------------------------------------------------------------------------

LIFETIME = 2.0, 8.0
"""Seconds after which a volunteer of this program goes, from and to."""
one_core = trio.CapacityLimiter(1)
"""Threads of one Python share a core. Volunteers elsewhere have one of their own."""


async def work_in_thread(chunk: Chunk) -> Result:
    """What `find_longest` finds; the node lives on meanwhile."""
    return await trio.to_thread.run_sync(find_longest, chunk, limiter=one_core)


async def volunteer(address: str, lifetime: float = math.inf) -> None:
    """Come, take part, and go, as often without a goodbye as with one."""
    async with open_tree_node(address, max_degree=2) as node:
        await node.join()
        with trio.move_on_after(lifetime):
            await Volunteer(node, work_in_thread).run()
        if random.random() < 0.5:
            await node.aclose()


async def keep_volunteer(address: str, gone: list[str]) -> None:
    """One volunteer after the other; how each went stands in *gone*."""
    while True:
        try:
            await volunteer(address, random.uniform(*LIFETIME))
            gone.append("its time was over")
        except OutcomeError as error:
            gone.append(f"it did not get in: {error}")


async def show_progress(organizer: Organizer) -> None:
    while True:
        await trio.sleep(1)
        count_nodes = 1 + organizer.node.snapshot().descendants
        print(f"{len(organizer.results)} of {organizer.count_chunks} chunks, {count_nodes} nodes")


async def organize(chunks: list[Chunk], count_volunteers: int) -> dict[Chunk, Result]:
    """The results of all *chunks*, by a root, volunteers in this program, and others that join."""
    gone: list[str] = []
    async with trio.open_nursery() as nursery:
        server = await nursery.start(functools.partial(serve_signaling, "swordfish", port=0))
        async with open_tree_node(server.urls[0], max_degree=2) as node:
            await node.become_root("swordfish")
            print(f"take part: python examples/collatz.py --join {server.urls[0]}")
            organizer = Organizer(node, work_in_thread, chunks)
            started_at = trio.current_time()
            nursery.start_soon(organizer.run)
            nursery.start_soon(show_progress, organizer)
            for _ in range(count_volunteers):
                nursery.start_soon(keep_volunteer, server.urls[0], gone)
            await organizer.has_all.wait()
            seconds = trio.current_time() - started_at
        nursery.cancel_scope.cancel()
    count_numbers = sum(last - first for first, last in chunks)
    print(
        f"{len(chunks)} chunks in {seconds:.1f} s: {len(chunks) / seconds:.1f} chunks/s, "
        f"{count_numbers / seconds:.0f} numbers/s; {len(gone)} volunteers went meanwhile"
    )
    return organizer.results


def main() -> None:
    parser = argparse.ArgumentParser(description="Volunteer computing on a tree of WebRTC peers.")
    parser.add_argument("--join", metavar="H:P", help="take part in what runs elsewhere")
    parser.add_argument("--below", type=int, default=200_000, metavar="N", help="(200000)")
    parser.add_argument("--chunk", type=int, default=1_000, help="numbers in a chunk (1000)")
    parser.add_argument("--volunteers", type=int, default=8, help="in this program (8)")
    options = parser.parse_args()
    if options.join:
        trio.run(volunteer, options.join)
        return
    firsts = range(1, options.below, options.chunk)
    chunks = [(first, min(first + options.chunk, options.below)) for first in firsts]
    results = trio.run(organize, chunks, options.volunteers)
    steps, start = max(results.values(), key=lambda result: (result[0], -result[1]))
    print(f"of the numbers below {options.below}, {start} takes the most steps: {steps}")
    assert (steps, start) == find_longest((1, options.below))
    print("computed directly, it is the same")


if __name__ == "__main__":
    main()
