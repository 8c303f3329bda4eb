"""What a node decides about messages that go further than a neighbour: what is kept, what is new,
what is sent again, and which way to whom.

Broadcasts to all travel up to the root, which writes them into a *log*, one after the other, and
down from there: every node hears them in the same order. The log's last mebibyte is kept at each
node (`Log`), so who changes its parent goes on where it was. A sender keeps what has not come back
to it (`Outbox`), and sends it again; whoever has heard it before takes no notice (`Inbox`).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from trio_overlay.protocol.cast_frames import MAX_IDS, Routes
from trio_overlay.protocol.json import JSON

Verdict: TypeAlias = Literal["new", "old", "early"]
MAX_SENDERS = 10_000
MAX_ROUTES = 100_000


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A message of ours that nobody has confirmed yet."""

    sequence: int
    after: int
    """The sequence of the unsettled one before it; 0 if there is none."""
    data: JSON


class Outbox:
    """What a node has sent to one target, or to all, and is not known to have arrived."""

    __slots__ = ("_items", "size")

    def __init__(self) -> None:
        self._items: OrderedDict[int, tuple[JSON, int]] = OrderedDict()
        self.size = 0
        """Bytes, as `put` was told."""

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._items

    def __iter__(self) -> Iterator[Unsettled]:
        """All that is unsettled, in order, as it has to be sent now."""
        after = 0
        for sequence, (data, _) in list(self._items.items()):
            yield Unsettled(sequence, after, data)
            after = sequence

    def put(self, sequence: int, data: JSON, size: int) -> Unsettled:
        """One more, with a *sequence* greater than all before it."""
        after = next(reversed(self._items), 0)
        assert sequence > after
        self._items[sequence] = (data, size)
        self.size += size
        return Unsettled(sequence, after, data)

    def settle(self, sequence: int) -> bool:
        """All up to *sequence* have arrived; whether any of them was unsettled."""
        settled = [known for known in self._items if known <= sequence]
        for known in settled:
            self.give_up(known)
        return bool(settled)

    def give_up(self, sequence: int) -> None:
        """Do not send this one again: it has arrived, or nobody waits for it any more."""
        _, size = self._items.pop(sequence, (None, 0))
        self.size -= size


class Inbox:
    """What was heard last of each sender, so that nothing is heard twice or out of order.

    Of *max_senders*; those not heard of for longest are forgotten, and could be heard again if
    what they said then were still on the way.
    """

    __slots__ = ("_last", "_max_senders")

    def __init__(self, max_senders: int = MAX_SENDERS) -> None:
        self._last: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._max_senders = max_senders

    def __len__(self) -> int:
        return len(self._last)

    def judge(self, kind: str, origin: str, sequence: int, after: int = 0) -> Verdict:
        """Whether this is new; old, if heard before; early, if what comes *after* was not heard.

        What is new counts as heard from now on.
        """
        key = (kind, origin)
        last = self._last.get(key, 0)
        if sequence <= last:
            return "old"
        if after > last:
            return "early"
        self._last[key] = sequence
        self._last.move_to_end(key)
        while len(self._last) > self._max_senders:
            self._last.popitem(last=False)
        return "new"


@dataclass(frozen=True, slots=True)
class Kept:
    """A broadcast in a node's memory."""

    log: str | None
    """Whose order its index belongs to; None for one that is for a subtree only."""
    index: int
    text: str
    """The whole frame."""
    data: JSON
    size: int

    @property
    def past_text(self) -> str:
        """The frame that it is for who has asked for the past."""
        return '{"type":"PAST"' + self.text.removeprefix('{"type":"ENTRY"')


class Log:
    """The broadcasts that a node has taken, in its order; the last *max_size* bytes of them.

    Each has a *position*, the node's own count of them: children are sent what stands from theirs
    on.
    """

    def __init__(self, max_size: int) -> None:
        self.start = 0
        """The position of the oldest one kept; below 0 if there was a refill."""
        self.end = 0
        """The position that the next one will have."""
        self.middle = 0
        """Who is to be sent one from before it next is behind by half of what may be kept."""
        self.log: str | None = None
        self.index = 0
        """Where in the order of which root this node is; what was heard twice moves it, too."""
        self.floor = 0
        """Where it has begun: what came before it was not to hear, and has not kept."""
        self._has_dropped = False
        """Whether any of this log was pushed out since it began."""
        self._max_size = max_size
        self._size = 0
        self._size_from_middle = 0
        self._kept: deque[Kept] = deque()

    @property
    def size(self) -> int:
        return self._size

    def __getitem__(self, position: int) -> Kept:
        if not self.start <= position < self.end:
            raise IndexError(position)
        return self._kept[position - self.start]

    def begin(self, log: str, index: int) -> None:
        """From here on *log* is heard; what it had up to *index* came before our time."""
        self.log = log
        self.floor = self.index = index
        self._has_dropped = False

    def hear(self, log: str, index: int) -> int:
        """The *index*-th of *log* is heard; how many of it were passed over."""
        if log != self.log:
            self.begin(log, index - 1)
        passed_over = max(0, index - self.index - 1)
        self.index = max(self.index, index)
        return passed_over

    def append(self, kept: Kept) -> int:
        """Keep it; its position. The oldest go when there is no room for it beside them."""
        self._kept.append(kept)
        self._size += kept.size
        self.end += 1
        self._size_from_middle += kept.size
        while self._size_from_middle > self._max_size // 2 and self.middle < self.end - 1:
            self._size_from_middle -= self[self.middle].size
            self.middle += 1
        while self._size > self._max_size and len(self._kept) > 1:
            dropped = self._kept.popleft()
            self._has_dropped |= dropped.log == self.log
            self._size -= dropped.size
            self.start += 1
        return self.end - 1

    def lacks(self, log: str, index: int) -> int | None:
        """The index after which this node would need more of its log, from before its own time.

        It needs that to tell all to a child that has heard *log* up to *index*. None if it knows
        enough, or if no more can be had: others have not kept for longer what pushed it out here.
        """
        if log != self.log:
            if any(kept.log == log for kept in self._kept):
                return None
            index = 0
        return index if index < self.floor and not self._has_dropped else None

    def between(self, log: str, index: int, upto: int) -> list[Kept]:
        """What is kept of *log* after *index*, up to *upto*."""
        return [kept for kept in self._kept if kept.log == log and index < kept.index <= upto]

    def refill(self, index: int, past: Iterable[Kept]) -> None:
        """This is all that could be had of our log from *index* to the floor; in order.

        What there is no room for is dropped, the oldest first.
        """
        for kept in reversed(list(past)):
            if self._size + kept.size > self._max_size:
                self._has_dropped = True
                break
            self._kept.appendleft(kept)
            self._size += kept.size
            self.start -= 1
        self.floor = min(self.floor, index)

    def find(self, log: str | None, index: int) -> int:
        """The position from which on a child that has heard up to *index* of *log* is told.

        From the end, if it has heard of nothing. From the first that is kept of that log, if it
        has heard of none of those; from the start of all, if there are none: it came from
        elsewhere, and knows what it has heard before.
        """
        if log is None or (log == self.log and index >= self.index):
            return self.end
        first = self.start
        for back, kept in enumerate(reversed(self._kept)):
            if kept.log == log:
                if kept.index <= index:
                    return self.end - back
                first = self.end - back - 1
        return first


class RoutingTable:
    """Which child a node's descendants are below: bounded, and each child has an equal share.

    A child that has more below it than its share, or that says itself that it does not know all,
    is *incomplete*: who is found nowhere else may be below it.
    """

    def __init__(self, own_id: str, max_ids_of_child: int = MAX_ROUTES) -> None:
        self._own_id = own_id
        self._max_ids = max_ids_of_child
        self._child_of: dict[str, str] = {}
        # By child, in order, as all here that is passed on: of sets another process has another.
        self._below: dict[str, dict[str, None]] = {}
        self._overflowing: set[str] = set()
        self._saying_so: set[str] = set()
        self._added: dict[str, None] = {}  # what the parent has to be told; in order
        self._removed: dict[str, None] = {}
        self._said_complete = True

    def __len__(self) -> int:
        return len(self._child_of)

    def child_towards(self, node_id: str) -> str | None:
        """The child below which *node_id* is, as far as we know."""
        return self._child_of.get(node_id)

    def count_below(self, child: str) -> int:
        """How many nodes the subtree of *child* has, itself included, as far as we know."""
        return max(1, len(self._below.get(child, ())))

    @property
    def incomplete(self) -> tuple[str, ...]:
        """The children below which there may be nodes that we do not know, oldest first."""
        return tuple(
            child for child in self._below if child in self._overflowing or child in self._saying_so
        )

    def learn(self, child: str, routes: Routes) -> None:
        """*child* tells what has changed below it."""
        below = self._below.setdefault(child, {})
        for node_id in routes.removed:
            if node_id in below:
                del below[node_id]
                self._forget(child, node_id)
        for node_id in routes.added:
            if node_id in below or node_id == self._own_id:
                continue
            if len(below) >= self._max_ids:
                self._overflowing.add(child)
                break
            below[node_id] = None
            self._child_of[node_id] = child
            self._note(node_id, self._added, self._removed)
        if routes.is_complete:
            self._saying_so.discard(child)
        else:
            self._saying_so.add(child)

    def lose(self, child: str) -> None:
        """*child* is gone, with all that is below it."""
        self._overflowing.discard(child)
        self._saying_so.discard(child)
        for node_id in self._below.pop(child, ()):
            self._forget(child, node_id)

    def meet_parent(self) -> None:
        """There is a new parent, which knows nothing of what is below us."""
        self._added = dict.fromkeys((self._own_id, *self._child_of))
        self._removed = {}
        self._said_complete = True

    @property
    def has_news(self) -> bool:
        return bool(self._added or self._removed or self._said_complete == bool(self.incomplete))

    def take_news(self) -> list[Routes]:
        """What the parent has to be told; it counts as told."""
        added, removed = list(self._added), list(self._removed)
        self._added, self._removed = {}, {}
        is_complete = not self.incomplete
        news = [
            Routes(
                tuple(added[start : start + MAX_IDS]),
                tuple(removed[start : start + MAX_IDS]),
                is_complete,
            )
            for start in range(0, max(len(added), len(removed)), MAX_IDS)
        ]
        if not news and is_complete != self._said_complete:
            news.append(Routes((), (), is_complete))
        self._said_complete = is_complete
        return news

    def _forget(self, child: str, node_id: str) -> None:
        if self._child_of.get(node_id) != child:
            return
        # Who moves is for a while below two children, and the one it has left may be the last to
        # say that it was there.
        for other, below in self._below.items():
            if node_id in below:
                self._child_of[node_id] = other
                return
        del self._child_of[node_id]
        self._note(node_id, self._removed, self._added)

    def _note(self, node_id: str, told: dict[str, None], other: dict[str, None]) -> None:
        # Told even where the parent should know it: in the meantime it may have heard of this id
        # from another branch. To be told twice does no harm.
        other.pop(node_id, None)
        told[node_id] = None
