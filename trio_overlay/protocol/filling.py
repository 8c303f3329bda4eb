"""Where the free places of a tree are, as parents know it of their children.

A *view* counts free places by level: ``view[0]`` are the places a node has for children of its
own, ``view[1]`` those of its children together, and so on. Whoever joins takes the shallowest free
place, and brings a view of its own with it: a newcomer that takes ten children brings ``[10]``, an
orphan that of its whole subtree. So a parent can tell, without being told, what a child's view is
after each request it has delegated to it; and the child, which sees the same requests in the same
order, knows what its parent believes. It reports only when that is wrong.

The idea of counting requests still on the way, and the places that they bring, is this project's;
without it a storm of joins overshoots, because all see the same hole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

MAX_LEVELS = 24
"""Levels that a view tells apart; deeper places are not counted. With ten children each there are
more peers within twelve levels than on earth; with two, sixteen million within 24."""

OLD_PROTOCOL_VIEW = (10,)
"""What a newcomer of the old protocol is taken to bring: the original's default degree."""

MAX_UNREPORTED = 64
"""Requests seen after which a child reports in any case, so that its parent can forget them."""

NO_LEVEL = MAX_LEVELS + 1
"""Stands for the level of a place that nobody holds."""

View = list[int]


def shallowest(view: Sequence[int]) -> int | None:
    """The level of the shallowest free place; None if there is none."""
    for level, count in enumerate(view):
        if count > 0:
            return level
    return None


def occupy(view: View, brought: Sequence[int]) -> int | None:
    """Take the shallowest free place of *view* for somebody who brings *brought*; its level.

    None if there is no free place: then nothing is taken.
    """
    level = shallowest(view)
    if level is None:
        return None
    view[level] -= 1
    add(view, brought, level + 1)
    return level


def add(view: View, brought: Sequence[int], level: int) -> None:
    """Let the places of *brought* be in *view*, from *level* down; what is too deep is left out."""
    needed = min(level + len(brought), MAX_LEVELS)
    if len(view) < needed:
        view.extend([0] * (needed - len(view)))
    for index in range(level, needed):
        view[index] += brought[index - level]


def same(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two views count the same places; levels without any at the end don't matter."""
    if len(one) > len(other):
        one, other = other, one
    return list(one) == list(other[: len(one)]) and not any(other[len(one) :])


class ChildView:
    """What a parent believes of one child: the child's view, after all that was sent to it."""

    __slots__ = ("_base", "_on_the_way", "_seen", "view")

    def __init__(self, brought: Sequence[int]) -> None:
        self.view: View = list(brought)
        self._base = brought  # what it said last, to which those on the way are added
        self._on_the_way: deque[Sequence[int]] = deque()
        self._seen = 0  # requests that the child has confirmed, counted since it connected

    def delegate(self, brought: Sequence[int]) -> None:
        """A request of somebody who brings *brought* is for this child."""
        occupy(self.view, brought)
        self._on_the_way.append(brought)

    def take_back(self, brought: Sequence[int]) -> None:
        """Such a request was never sent to it after all."""
        self._on_the_way.remove(brought)
        self._add_those_on_the_way()

    def correct(self, view: Sequence[int], seen: int) -> None:
        """The child reports its *view*, as it is after the first *seen* requests.

        A count that cannot be is taken for the nearest that can: a child that lies misleads
        those who join below it, and nobody else.
        """
        for _ in range(min(seen - self._seen, len(self._on_the_way))):
            self._on_the_way.popleft()
            self._seen += 1
        self._base = [max(0, count) for count in view[:MAX_LEVELS]]
        self._add_those_on_the_way()

    def _add_those_on_the_way(self) -> None:
        self.view = list(self._base)
        for brought in self._on_the_way:
            occupy(self.view, brought)


class Filling:
    """The views of all that hold a place at one node, and whose turn it is to get a request.

    A request goes to the shallowest free place there is below; among children that have one
    equally shallow, to each in turn.
    """

    __slots__ = ("_children", "_levels", "_turn")

    def __init__(self) -> None:
        self._children: list[ChildView | None] = []  # by place
        self._levels: list[int] = []  # by place, the level of its shallowest free place
        self._turn = 0

    def admit(self, place: int, brought: Sequence[int]) -> None:
        """Somebody who brings *brought* has taken *place*."""
        while len(self._children) <= place:
            self._children.append(None)
            self._levels.append(NO_LEVEL)
        self._children[place] = ChildView(brought)
        self._note_level(place)

    def vacate(self, place: int) -> None:
        """Whoever held *place* is gone, with all that was below it."""
        self._children[place] = None
        self._levels[place] = NO_LEVEL

    def choose(self) -> int:
        """The place whose child the next request is to be given to.

        ValueError: nobody holds a place.
        """
        levels = self._levels
        shallowest_level = min(levels)
        count = len(levels)
        for step in range(count):
            place = (self._turn + step) % count
            if levels[place] == shallowest_level and self._children[place] is not None:
                self._turn = place + 1
                return place
        raise ValueError("nobody holds a place")

    def delegate(self, place: int, brought: Sequence[int]) -> None:
        """A request of somebody who brings *brought* was given to who holds *place*."""
        child = self._children[place]
        assert child is not None
        child.delegate(brought)
        self._note_level(place)

    def take_back(self, place: int, brought: Sequence[int]) -> None:
        """See `ChildView.take_back`."""
        child = self._children[place]
        assert child is not None
        child.take_back(brought)
        self._note_level(place)

    def correct(self, place: int, view: Sequence[int], seen: int) -> None:
        """Who holds *place* reports; see `ChildView.correct`."""
        child = self._children[place]
        assert child is not None
        child.correct(view, seen)
        self._note_level(place)

    def view_of(self, place: int) -> View:
        """What is believed of who holds *place*; it is not to be changed."""
        child = self._children[place]
        assert child is not None
        return child.view

    def view(self, own_free: int) -> View:
        """The node's own view, when it has *own_free* places free itself."""
        total = [own_free]
        for child in self._children:
            if child is not None:
                add(total, child.view, 1)
        return total

    def _note_level(self, place: int) -> None:
        child = self._children[place]
        assert child is not None
        level = shallowest(child.view)
        # Whoever has no free place that can be counted is still better than nobody.
        self._levels[place] = MAX_LEVELS if level is None else level


class ParentBelief:
    """What a node's parent believes of it, as the node can tell; and whether it must be told."""

    __slots__ = ("_believed", "_reported", "_seen")

    def __init__(self, brought: Sequence[int]) -> None:
        self._believed: View = list(brought)
        self._seen = 0
        self._reported = 0

    def see(self, brought: Sequence[int]) -> None:
        """A request of somebody who brings *brought* came from the parent."""
        occupy(self._believed, brought)
        self._seen += 1

    @property
    def is_behind(self) -> bool:
        """Whether the parent has to be told how many of its requests have come."""
        return self._seen - self._reported >= MAX_UNREPORTED

    def is_wrong(self, view: Sequence[int]) -> bool:
        """Whether the parent would be surprised by our *view*, or has to be told how far we are."""
        return self.is_behind or not same(self._believed, view)

    def report(self, view: Sequence[int]) -> tuple[tuple[int, ...], int]:
        """Tell the parent: our *view* without zeros at the end, and the requests seen."""
        self._believed = list(view)
        self._reported = self._seen
        end = len(self._believed)
        while end and not self._believed[end - 1]:
            end -= 1
        return tuple(self._believed[:end]), self._seen
