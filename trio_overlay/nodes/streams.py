"""What a node tells its application, as streams that neither block the node nor grow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")

MAX_UNREAD_ITEMS = 1000
MAX_UNREAD_BYTES = 1 << 20


class Stream(Generic[T]):
    """An async iterator of what came, from the beginning; several readers share the items.

    Putting in never waits. What goes over *max_items* or *max_bytes* pushes the oldest out, and
    `count_dropped` grows; with *keeps_what_is_read* that stops when somebody begins to read, and
    then whoever puts in must see to the bound. *on_leave* is called with each item that leaves,
    read or dropped, and its size. Iteration ends after `close`, when everything kept was read.
    """

    def __init__(
        self,
        *,
        max_items: int = MAX_UNREAD_ITEMS,
        max_bytes: int = MAX_UNREAD_BYTES,
        keeps_what_is_read: bool = False,
        on_leave: Callable[[T, int], object] | None = None,
    ) -> None:
        self.count_dropped = 0
        """How many items were dropped unread."""
        self.is_read = False
        """Whether somebody has begun to read."""
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._keeps_what_is_read = keeps_what_is_read
        self._on_leave = on_leave
        self._items: deque[tuple[T, int]] = deque()
        self._size = 0
        self._is_closed = False
        self._readers: trio.lowlevel.ParkingLot | None = None
        """Those that wait; None until somebody does, as in most streams nobody ever does."""

    def __len__(self) -> int:
        return len(self._items)

    def __aiter__(self) -> Stream[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    async def receive(self) -> T:
        """The next item; waits for one. Cancelled, none is lost.

        trio.EndOfChannel: there will be none any more.
        """
        self._start_reading()
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._items:
            if self._is_closed:
                raise trio.EndOfChannel
            if self._readers is None:
                self._readers = trio.lowlevel.ParkingLot()
            await self._readers.park()
        item = self.receive_nowait()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return item

    def receive_nowait(self) -> T:
        """The next item, if there is one.

        trio.WouldBlock: there is none now.
        """
        self._start_reading()
        if not self._items:
            raise trio.WouldBlock
        return self._leave()

    def put(self, item: T, size: int = 0) -> None:
        """Add *item*, of *size* bytes; after `close` it is dropped."""
        if self._is_closed:
            if self._on_leave is not None:
                self._on_leave(item, size)
            return
        self._items.append((item, size))
        self._size += size
        if not (self.is_read and self._keeps_what_is_read):
            while len(self._items) > self._max_items or (
                self._size > self._max_bytes and len(self._items) > 1
            ):
                self._leave()
                self.count_dropped += 1
        if self._readers is not None:
            self._readers.unpark()

    def close(self) -> None:
        """Nothing more will come; what is kept can still be read."""
        self._is_closed = True
        if self._readers is not None:
            self._readers.unpark_all()

    def _start_reading(self) -> None:
        self.is_read = True

    def _move(self, wanted: Callable[[T], bool], stream: Stream[T]) -> None:
        """Move what is unread and *wanted* to *stream*, which may be closed; it has not left."""
        kept: deque[tuple[T, int]] = deque()
        for item, size in self._items:
            if wanted(item):
                stream._items.append((item, size))
                stream._size += size
                self._size -= size
            else:
                kept.append((item, size))
        self._items = kept

    def _leave(self) -> T:
        item, size = self._items.popleft()
        self._size -= size
        if self._on_leave is not None:
            self._on_leave(item, size)
        return item


class Substream(Stream[T]):
    """Those items of *trunk* that are *ours*, once somebody reads them here.

    Whoever has them puts them in here. Until somebody reads, they go on to the trunk; whoever
    begins to read gets first what nobody has read there yet, so it makes no difference whether an
    item comes before the reader or after. *on_leave* is the trunk's.
    """

    def __init__(self, trunk: Stream[T], ours: Callable[[T], bool]) -> None:
        super().__init__(keeps_what_is_read=True, on_leave=trunk._on_leave)
        self._trunk = trunk
        self._ours = ours

    @property
    def has_reader(self) -> bool:
        """Whether somebody has begun to read what is put in here, wherever it comes out."""
        return self.is_read or self._trunk.is_read

    def put(self, item: T, size: int = 0) -> None:
        if self.is_read:
            super().put(item, size)
        else:
            self._trunk.put(item, size)

    def _start_reading(self) -> None:
        if not self.is_read:
            self.is_read = True
            self._trunk._move(self._ours, self)
