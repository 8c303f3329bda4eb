"""What leads over a peer from one of its neighbours to another: the table of whoever bridges.

Two overlays have neighbours that connect over one they share: the arcs of neighbours.py, and the
roads of the tree. What a bridge keeps in mind is the same for both, and is here: which attempts
pass, between which two, who has begun each, how many at a time, and until when. What is said, and
whither an attempt goes, is each overlay's own, as their wires are: between arcs an attempt has
one name everywhere and its sender says for whom it is; on a road each link has a name of its own,
and the bridge decides where the road goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

NeighbourT = TypeVar("NeighbourT", bound=Hashable)

End: TypeAlias = tuple[NeighbourT, str]
"""A neighbour, and what the attempt is called there."""


@dataclass(frozen=True, slots=True)
class _Crossing(Generic[NeighbourT]):
    opened: End[NeighbourT]
    goes_on: End[NeighbourT]
    expires_at: float


class Crossings(Generic[NeighbourT]):
    """The attempts that lead over us: where each goes on, in both directions.

    At most *max_opened* at a time that one neighbour has begun, *max_accepted* that go on to
    one, and *max_in_all*; None is no bound. Nobody has one to itself. An end is in one crossing
    only: who does not have that name on that link finds nothing by it.

    Each is kept until it is closed, one of its neighbours is lost, or its time is over, which
    `expire` is told of: call it before anything else is asked.
    """

    def __init__(
        self,
        *,
        max_opened: int,
        max_accepted: int | None = None,
        max_in_all: int | None = None,
    ) -> None:
        self._max_opened = max_opened
        self._max_accepted = max_accepted
        self._max_in_all = max_in_all
        self._by_end: dict[End[NeighbourT], _Crossing[NeighbourT]] = {}
        """Each crossing twice, in the order in which they were opened."""
        self._opened: Counter[NeighbourT] = Counter()
        self._accepted: Counter[NeighbourT] = Counter()

    def __len__(self) -> int:
        return len(self._by_end) // 2

    def __iter__(self) -> Iterator[tuple[End[NeighbourT], End[NeighbourT]]]:
        """The two ends of each, that of who opened it first; oldest first."""
        for end, crossing in self._by_end.items():
            if end == crossing.opened:
                yield crossing.opened, crossing.goes_on

    def __contains__(self, end: object) -> bool:
        return end in self._by_end

    def open(self, one: End[NeighbourT], other: End[NeighbourT], expires_at: float) -> bool:
        """What *one* has opened goes on at *other*; False if there are too many, or one exists.

        It is kept until *expires_at*, which is never less than that of one opened before.
        """
        opener, acceptor = one[0], other[0]
        if (
            opener == acceptor
            or one in self._by_end
            or other in self._by_end
            or self._opened[opener] >= self._max_opened
            or (self._max_accepted is not None and self._accepted[acceptor] >= self._max_accepted)
            or (self._max_in_all is not None and len(self) >= self._max_in_all)
        ):
            return False
        self._by_end[one] = self._by_end[other] = _Crossing(one, other, expires_at)
        self._opened[opener] += 1
        self._accepted[acceptor] += 1
        return True

    def across(self, end: End[NeighbourT]) -> End[NeighbourT] | None:
        """The other end of what has this one; None if nothing has."""
        crossing = self._by_end.get(end)
        if crossing is None:
            return None
        return crossing.goes_on if end == crossing.opened else crossing.opened

    def has_opened(self, end: End[NeighbourT]) -> bool:
        """Whether what has this *end* was opened there, and goes on at the other."""
        crossing = self._by_end.get(end)
        return crossing is not None and crossing.opened == end

    def close(self, end: End[NeighbourT]) -> End[NeighbourT] | None:
        """What has this *end* leads over us no more; its other end, who need know."""
        other = self.across(end)
        if other is not None:
            crossing = self._by_end.pop(end)
            del self._by_end[other]
            for counts, (neighbour, _) in (
                (self._opened, crossing.opened),
                (self._accepted, crossing.goes_on),
            ):
                counts[neighbour] -= 1
                if not counts[neighbour]:
                    del counts[neighbour]
        return other

    def lose(self, neighbour: NeighbourT) -> list[End[NeighbourT]]:
        """The *neighbour* is gone, and all that led over it; the other ends, who need know."""
        ends = [end for end in self._by_end if end[0] == neighbour]
        return [other for end in ends if (other := self.close(end)) is not None]

    def expire(self, now: float) -> None:
        """It is *now*: forget those whose time is over. Nobody need know: theirs is over, too."""
        while self._by_end:
            end, oldest = next(iter(self._by_end.items()))
            if oldest.expires_at > now:
                return
            self.close(end)

    def clear(self) -> None:
        """Nothing leads over us any more."""
        for table in (self._by_end, self._opened, self._accepted):
            table.clear()
