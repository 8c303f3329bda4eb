"""What a node has sent further than to a neighbour: kept, and sent again, until it has arrived.

Which way it goes is tree_casts.py's business; what comes back says here what has arrived.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias, TypeVar

import trio

from trio_overlay.channels.timeline import Appointment, Timeline
from trio_overlay.errors import DeliveryFailed, PeerNotFound
from trio_overlay.nodes.tree_cast_links import CAST_WINDOW, CastLink, cost_of
from trio_overlay.protocol.cast_frames import Cast, Letter, encode_cast
from trio_overlay.protocol.casting import Outbox, Unsettled
from trio_overlay.protocol.json import JSON

RESEND_DELAY, MAX_RESEND_DELAY = 3.0, 30.0
UNKNOWN_GRACE = 6.0
"""Seconds for which nobody must know an id until it is given up: a rejoin takes up to five."""


FrameT = TypeVar("FrameT", Cast, Letter)
Way: TypeAlias = Callable[[FrameT, int, CastLink | None, Callable[[], None]], None]
"""Begins to pass a frame on: its size, whom it came from (here nobody), and what to call when it is
out of this node's hands."""


@dataclass(eq=False)
class _Box:
    """What was sent to one target, or to all, and is not settled."""

    outbox: Outbox = field(default_factory=Outbox)
    queued: set[int] = field(default_factory=set)
    """What of it still waits in this node for its way: no need to send it again."""
    waiting: dict[int, trio.Event] = field(default_factory=dict)
    sending: trio.StrictFIFOLock = field(default_factory=trio.StrictFIFOLock)
    has_room: trio.Event = field(default_factory=trio.Event)
    due_at: float = math.inf
    delay: float = RESEND_DELAY
    unknown_since: float | None = None
    failure: str | None = None
    users: int = 0

    async def wait_for_room(self) -> None:
        await trio.lowlevel.checkpoint()
        while self.outbox.size >= CAST_WINDOW:
            await self.has_room.wait()

    def note_room(self) -> None:
        self.has_room.set()
        self.has_room = trio.Event()


class Outboxes:
    """One node's: a box for all, and one for each node that it is writing to."""

    def __init__(
        self, node_id: str, timeline: Timeline, *, to_root: Way[Cast], to_target: Way[Letter]
    ) -> None:
        self._id = node_id
        self._timeline = timeline
        self._to_root = to_root
        self._to_target = to_target
        self._sequence = 0
        self._to_all = _Box()
        self._letters: dict[str, _Box] = {}
        self._next: Appointment | None = None
        """When something is sent again."""

    def __len__(self) -> int:
        """To how many nodes letters are under way."""
        return len(self._letters)

    @property
    def is_settled(self) -> bool:
        """Whether the root has all that was broadcast to all from here."""
        return not self._to_all.outbox

    def next_sequence(self) -> int:
        """The number of the next message, of whatever kind: greater than all before it."""
        self._sequence += 1
        return self._sequence

    # --- what the application asks for ----------------------------------------------------

    async def broadcast(self, data: JSON, size: int) -> None:
        """Send *data*, of *size* bytes, to all, when there is room for it."""
        box = self._to_all
        async with box.sending:
            await box.wait_for_room()
            unsettled = box.outbox.put(self.next_sequence(), data, size)
            self._send_to_all(unsettled)
            self._expect_answer(box)

    async def send_to(self, target: str, data: JSON, size: int, timeout: float) -> None:
        """Send *data*, of *size* bytes, to *target*, until it says that it is there.

        PeerNotFound, DeliveryFailed: as `TreeMessages.send_to`.
        """
        box = self._letters.setdefault(target, _Box())
        box.users += 1
        sequence = 0
        arrived = trio.Event()
        try:
            with trio.move_on_after(timeout):
                async with box.sending:
                    await box.wait_for_room()
                    sequence = self.next_sequence()
                    unsettled = box.outbox.put(sequence, data, size)
                    box.waiting[sequence] = arrived
                    self._send_letter(target, unsettled)
                    self._expect_answer(box)
                await arrived.wait()
            if arrived.is_set() and sequence not in box.outbox:
                return
            if box.failure is not None:
                raise PeerNotFound(box.failure)
            raise DeliveryFailed(f"{target} did not confirm a message within {timeout:g} s")
        finally:
            box.waiting.pop(sequence, None)
            box.outbox.give_up(sequence)
            box.note_room()
            box.users -= 1
            if not box.users:
                del self._letters[target]

    async def settle(self, has_way: Callable[[], bool]) -> None:
        """Wait until all that was broadcast to all from here has come to the root.

        Not if this node *has* no *way* there, and looks for none; `note_no_way` says when.
        """
        while not self.is_settled and has_way():
            await self._to_all.has_room.wait()

    def note_no_way(self) -> None:
        """The node is in no tree, and looks for no way into one."""
        self._to_all.note_room()  # whoever waits for it looks again

    # --- what comes back ------------------------------------------------------------------

    def settle_broadcasts(self, sequence: int) -> None:
        """The root has all that was sent to all, up to *sequence*."""
        self._settle(self._to_all, sequence)

    def settle_letters(self, target: str, sequence: int) -> None:
        """*target* has all that was sent to it, up to *sequence*."""
        if target in self._letters:
            self._settle(self._letters[target], sequence)

    def note_unknown(self, target: str) -> None:
        """The root knows nobody of the id *target*; that may change within `UNKNOWN_GRACE`."""
        box = self._letters.get(target)
        if box is None:
            return
        now = trio.current_time()
        if box.unknown_since is None:
            box.unknown_since = now
        if now - box.unknown_since >= UNKNOWN_GRACE:
            box.failure = f"no node of the tree has the id {target}"
            for arrived in box.waiting.values():
                arrived.set()
        else:
            box.due_at = min(box.due_at, now + RESEND_DELAY / 3)
            self._plan()

    def _settle(self, box: _Box, sequence: int) -> None:
        if box.outbox.settle(sequence):
            box.unknown_since = box.failure = None
            box.note_room()
            box.delay = RESEND_DELAY
            box.due_at = trio.current_time() + box.delay if box.outbox else math.inf
            for waiting, arrived in box.waiting.items():
                if waiting <= sequence:
                    arrived.set()

    # --- what is sent, and sent again -----------------------------------------------------

    def send_soon(self) -> None:
        """What was on the way may be lost: the way is another."""
        for box in self._boxes():
            if box.outbox:
                box.delay = RESEND_DELAY
                box.due_at = trio.current_time()
        self._plan()

    def _plan(self) -> None:
        """See to it that what is due is sent at its time."""
        if self._next is not None:
            self._next.cancel()
        due_at = min(box.due_at for box in self._boxes())
        self._next = None if due_at == math.inf else self._timeline.at(due_at, self._send_due)

    def _send_due(self) -> None:
        now = trio.current_time()
        if self._to_all.due_at <= now:
            self._send_again(self._to_all, self._send_to_all)
        for target, box in list(self._letters.items()):
            if box.due_at <= now:
                self._send_again(box, partial(self._send_letter, target))
        self._plan()

    def _boxes(self) -> list[_Box]:
        return [self._to_all, *self._letters.values()]

    def _expect_answer(self, box: _Box) -> None:
        if box.due_at == math.inf:
            box.delay = RESEND_DELAY
            box.due_at = trio.current_time() + box.delay
            self._plan()

    def _send_again(self, box: _Box, send: Callable[[Unsettled], None]) -> None:
        box.due_at = math.inf
        if not box.outbox:
            return
        box.due_at = trio.current_time() + box.delay
        if not box.queued:
            box.delay = min(2 * box.delay, MAX_RESEND_DELAY)
            for unsettled in box.outbox:
                send(unsettled)

    def _send_to_all(self, unsettled: Unsettled) -> None:
        frame = Cast(self._id, unsettled.sequence, unsettled.after, unsettled.data)
        self._send(self._to_all, self._to_root, frame)

    def _send_letter(self, target: str, unsettled: Unsettled) -> None:
        frame = Letter(self._id, target, unsettled.sequence, unsettled.after, unsettled.data)
        self._send(self._letters[target], self._to_target, frame)

    def _send(self, box: _Box, way: Way[FrameT], frame: FrameT) -> None:
        box.queued.add(frame.sequence)
        on_leave = partial(box.queued.discard, frame.sequence)
        way(frame, cost_of(encode_cast(frame)), None, on_leave)
