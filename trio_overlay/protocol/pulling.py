"""How the tree mends holes that nobody fills: the root pulls leaves up to them.

Requests go to the shallowest free place that is known of. A place that becomes free higher up,
after requests have gone down, is filled by whoever joins next; if nobody does, the tree stays
deeper than it needs to be. So the root, which sees the free places of the whole tree by level,
now and then asks some of the deepest leaves to apply again, and those who get a place that is
strictly shallower leave their old one for it.

The idea is this project's. Views are as in filling.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trio_overlay.protocol.filling import shallowest

MIN_PULL = 32
"""Leaves that may be asked at a time in any case, if there are holes for so many."""
MAX_PULL = 250
"""Leaves asked at a time at most: each costs the root a few frames, and a road over it."""
MAX_PAUSE = 32
"""Rounds that a root lets pass after pulls that came to nothing."""


@dataclass(frozen=True, slots=True)
class Pull:
    """A wish of the root's, on its way down: some leaves are to apply again."""

    depth: int
    """Those who stand there or deeper are meant; the root's is 0."""
    count: int
    """How many, at most."""


class Pulling:
    """When the root pulls, and how many leaves."""

    __slots__ = ("_asked", "_came", "_pause", "_rounds_left")

    def __init__(self) -> None:
        self._asked = 0  # leaves, in the last round
        self._came = 0  # applications of leaves that were asked, since then
        self._pause = 0
        self._rounds_left = 0

    @property
    def is_barren(self) -> bool:
        """Whether the last pulls came to nothing, again and again."""
        return self._pause >= MAX_PAUSE

    @property
    def is_expecting(self) -> bool:
        """Whether leaves were asked lately, or are to be asked after a pause."""
        return self._asked > 0 or self._rounds_left > 0

    def note_application(self) -> None:
        """A leaf that was asked applies: its place is counted from here on."""
        self._came += 1

    def note_nobody_asked(self) -> None:
        """Nobody below could be told of the last round: that it came to nothing says nothing.

        The leaves may be below one who has just been given a place, and has not connected yet.
        """
        self._asked = 0

    def next_round(self, view: Sequence[int], max_degree: int) -> Pull | None:
        """What to send down now; to be asked once in a while, longer than an application takes.

        *view* is the root's, and *max_degree* what a leaf is taken to have. After a round in which
        nobody came there is a pause, longer each time: the holes may be such that nobody can be put
        into them, those below a node of the old protocol, whose places are only guessed.
        """
        if self._came:
            self._pause = 0
        elif self._asked:
            self._pause = min(MAX_PAUSE, 2 * self._pause or 1)
            self._rounds_left = self._pause
        # Those who were asked and have not come yet will take holes that are still in view.
        late = max(0, self._asked - self._came) if self._came else 0
        self._asked = self._came = 0
        if self._rounds_left:
            self._rounds_left -= 1
            return None
        deepest = deepest_level(view)
        hole = shallowest(view)
        # A node at depth d has its free places in level d, and a hole in level h is at depth h + 1.
        if hole is None or hole + 2 > deepest:
            return None
        # The deepest have the most to gain. If nobody of those comes, anybody who gains may.
        depth = hole + 2 if self._pause else deepest
        holes = sum(view[: depth - 1]) - late
        leaves = _count_leaves(view, depth, max_degree)
        self._asked = max(0, min(holes, leaves, max(MIN_PULL, holes // 4), MAX_PULL))
        return Pull(depth, self._asked) if self._asked else None


def share_out(
    pull: Pull, depth: int, views: Mapping[str, Sequence[int]], max_degree: int
) -> dict[str, int]:
    """How many leaves to ask of each child, at a node that stands at *depth* and is to *pull*.

    *views* are the children's. All who have leaves that are meant are asked for equally many, but
    nobody for more than it has, if leaves have *max_degree* free places each; where they have more
    or fewer, the next round will do.
    """
    level = max(0, pull.depth - depth - 1)
    leaves = {child: _count_leaves(view, level, max_degree) for child, view in views.items()}
    shares = {}
    count, left = pull.count, len(leaves)
    for child, most in sorted(leaves.items(), key=lambda item: item[1]):
        share = min(most, -(-count // left))
        count -= share
        left -= 1
        if share:
            shares[child] = share
    return shares


def _count_leaves(view: Sequence[int], level: int, max_degree: int) -> int:
    """About how many leaves a branch with this *view* has at *level* and below it.

    Who stands there and is no leaf has fewer free places, so there may be less of them.
    """
    if deepest_level(view) == 0:
        return int(level == 0 and any(view))
    return -(-sum(view[max(1, level) :]) // max_degree)


def deepest_level(view: Sequence[int]) -> int:
    """The level of the deepest free places, which is where the deepest leaves stand; 0 for none."""
    for level in range(len(view) - 1, 0, -1):
        if view[level] > 0:
            return level
    return 0
