"""What the application of a tree node says to nodes that are no neighbours, and asks of them.

`TreeNode` has all this; it stands apart because it knows nothing of how a node joins and heals.
"""

from __future__ import annotations

import abc
import random
from collections.abc import Mapping
from dataclasses import asdict

import trio

from trio_overlay.channels.timeline import Timeline
from trio_overlay.nodes.streams import Stream
from trio_overlay.nodes.tree_cast_links import CastLimits
from trio_overlay.nodes.tree_casts import CastMessage, Casts
from trio_overlay.nodes.tree_channel import TreeChannel
from trio_overlay.nodes.tree_gathers import Answer, Combine, Gathered, Gathers
from trio_overlay.nodes.tree_snapshots import NodeSnapshot, TreeSnapshot
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.version import __version__

SNAPSHOT_TOPIC = "trio-overlay.snapshot"
MEASURE_TIMEOUT = 1.0


class TreeMessages(abc.ABC):
    """The part of a `TreeNode` that reaches further than its neighbours."""

    id: str

    @property
    @abc.abstractmethod
    def path(self) -> tuple[str, ...]: ...

    @property
    @abc.abstractmethod
    def children(self) -> Mapping[str, TreeChannel]: ...

    @property
    @abc.abstractmethod
    def max_degree(self) -> int: ...

    def _open_messages(
        self, limits: CastLimits, max_degree: int, timeline: Timeline, rng: random.Random
    ) -> None:
        self._casts = Casts(self.id, limits, max_degree, timeline)
        self._gathers = Gathers(self._casts, rng)
        self._gathers.set_answer(SNAPSHOT_TOPIC, self._answer_snapshot, None)
        self._opened_at = trio.current_time()

    def _start_messages(self, nursery: trio.Nursery) -> None:
        self._casts.start(nursery)
        self._gathers.start(nursery)

    @property
    def casts(self) -> Stream[CastMessage]:
        """What came by `broadcast` and `send_to`, from whichever node; unread, up to 64 KiB of it.

        Once somebody reads, nothing is dropped, and who does not read on delays all that are
        below this node, until its parent leaves it: see `CastLimits`.
        """
        return self._casts.stream

    @property
    def count_missed(self) -> int:
        """Broadcasts to all that did not reach this node, although it was in the tree.

        They were older than what a new parent had kept when this node found it.
        """
        return self._casts.count_missed

    async def broadcast(self, data: JSON, *, to_subtree: bool = False) -> None:
        """Send *data* to all nodes of the tree but this one, or to those below it.

        Waits while there are 128 KiB of which the root has not said that it got them (of those to
        the subtree, while even the fastest child is so much behind). A node that is cut off, or
        has not joined, keeps them for when it has. Returning means that they will be sent, and
        sent again until the root has them; not that they have arrived.

        All nodes hear broadcasts to all in the same order, that of the root; each at most once.
        Each exactly once, unless it is too slow, this node or the root fails meanwhile, or a
        mebibyte more has been broadcast before it found a new parent. Those to the subtree come in
        order and at most once; a node that fails, leaves or changes its parent in that moment may
        miss some, with what is below it. Between the two kinds, and `send_to`, there is no order.

        Neighbours of the old protocol get *data* as an ordinary message, and pass nothing on.

        TypeError, ValueError: *data* is no JSON value.
        MessageTooLarge: over 60,000 bytes as JSON; nothing was sent.
        trio.ClosedResourceError: this node has left, or leaves meanwhile.
        """
        with self._casts.calling():
            await self._casts.broadcast(data, to_subtree=to_subtree)

    async def send_to(self, node_id: str, data: JSON, *, timeout: float = 30.0) -> None:
        """Send *data* to the node *node_id*, wherever in the tree; it finds it in its `casts`.

        Returning means that it is there, and waits to be read. It is sent again until that
        is known, and taken once, in the order of the calls. After an error, or if cancelled, it
        may arrive or not.

        PeerNotFound: for six seconds the root has known nobody of that id.
        DeliveryFailed: it was not confirmed within *timeout* seconds; its reader may be too slow.
        UsageError: *node_id* is this node's own.
        TypeError, ValueError: *data* is no JSON value.
        MessageTooLarge: over 60,000 bytes as JSON; nothing was sent.
        trio.ClosedResourceError: this node has left, or leaves meanwhile.
        """
        with self._casts.calling():
            await self._casts.send_to(node_id, data, timeout)

    def answer_gathers(self, topic: str, answer: Answer, combine: Combine | None = None) -> None:
        """Take part in `gather`: *answer* is awaited with each question on *topic*.

        *combine* makes one answer of two, in any order and grouping. Without it all answers are
        passed up one by one. What either raises is logged, and counts as no answer.

        ValueError: *topic* is empty, over 128 characters, or not printable ASCII.
        UsageError: this node has an answer to that topic.
        """
        self._gathers.set_answer(topic, answer, combine)

    async def gather(
        self,
        topic: str,
        question: JSON = None,
        *,
        timeout: float = 10.0,
        of_all: bool = False,
    ) -> Gathered:
        """Ask this node and all below it (*of_all*: all of the tree) on *topic*.

        Each answers by what it has given to `answer_gathers`, and what it has by then is combined
        on the way up. Each node answers at most once. It takes up to *timeout* seconds; who is
        late by then counts as missing. Each hop takes up to a quarter of a second off, so that
        what the others have said is here in time.

        DeliveryFailed: the question is to all, and no answer came in time.
        TypeError, ValueError: *question* is no JSON value, or *timeout* not above 0.
        MessageTooLarge: it has over 60,000 bytes as JSON.
        trio.ClosedResourceError: this node has left, or leaves meanwhile.
        """
        with self._casts.calling():
            return await self._gathers.gather(topic, question, timeout, of_all=of_all)

    def snapshot(self) -> NodeSnapshot:
        """This node as it is now; the round-trip time is measured every half minute."""
        path = self.path
        above = self._casts.above
        return NodeSnapshot(
            id=self.id,
            parent=path[-2] if len(path) > 1 else None,
            depth=len(path) - 1 if path else None,
            degree=len(self.children),
            max_degree=self.max_degree,
            descendants=sum(map(self._casts.routes.count_below, self.children)),
            round_trip_time=None if above is None else above.round_trip_time,
            age=trio.current_time() - self._opened_at,
            version=__version__,
        )

    async def snapshot_tree(self, *, timeout: float = 10.0) -> TreeSnapshot:
        """All nodes of the tree, each as it sees itself; a root asks them, others ask the root.

        Only nodes of this package answer, and only those to which the way leads over such.

        DeliveryFailed: there was no answer within *timeout* seconds.
        """
        gathered = await self.gather(SNAPSHOT_TOPIC, timeout=timeout, of_all=True)
        return TreeSnapshot.from_json(gathered.value, gathered.count_missing)

    async def _answer_snapshot(self, _: JSON) -> JSON:
        await self._casts.measure_round_trip(MEASURE_TIMEOUT)
        return asdict(self.snapshot())
