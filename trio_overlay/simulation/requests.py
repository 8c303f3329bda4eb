"""The requests that simulated nodes have passed on, and how they end."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable

from trio_overlay.protocol.branch import Branch


class Requests:
    """All requests that nodes have given to a child, or keep for one, oldest first.

    After *settle_delay* they are settled, after *timeout* forgotten, as in a real node, where each
    has a task for it. Here they are a third of all that happens, and nobody sees it but the node
    itself, and it only when it fills a place or is told of a withdrawal: so `sweep` does it in a
    row, from time to time, and before each of those.
    """

    def __init__(self, settle_delay: float, timeout: float) -> None:
        self._settle_delay = min(settle_delay, timeout)
        self._timeout = timeout
        # In rows of those that came to one branch at one moment, as they do in a storm.
        self._moments = array("d")
        self._branches: list[Branch[int]] = []
        self._rows: list[list[str]] = []
        self._first_unsettled = 0
        self._first = 0

    def put(self, now: float, branch: Branch[int], origins: list[str]) -> None:
        """At *branch* the requests of *origins* begin; *now* is never before an earlier one.

        The list is kept.
        """
        if self._branches and self._branches[-1] is branch and self._moments[-1] == now:
            self._rows[-1] += origins
        else:
            self._moments.append(now)
            self._branches.append(branch)
            self._rows.append(origins)

    def sweep(self, now: float) -> int:
        """Settle and forget what is due by *now*; how many that were.

        A branch whose node is gone by then is swept as well, and it does not matter.
        """
        count_settled, self._first_unsettled = self._sweep_rows(
            Branch.settle_all, self._first_unsettled, now - self._settle_delay
        )
        count_forgotten, end = self._sweep_rows(Branch.forget_all, self._first, now - self._timeout)
        self._first = end
        if 2 * end > len(self._moments):
            del self._moments[:end], self._branches[:end], self._rows[:end]
            self._first = 0
            self._first_unsettled -= end
        return count_settled + count_forgotten

    def _sweep_rows(
        self, do: Callable[[Branch[int], list[str]], None], start: int, until: float
    ) -> tuple[int, int]:
        """*do* it to the rows from *start* to the last of *until*; how many, and where they end."""
        end = bisect_right(self._moments, until, start)
        if end == start:
            return 0, end  # as nearly always
        for row in range(start, end):
            do(self._branches[row], self._rows[row])
        return sum(map(len, self._rows[start:end])), end
