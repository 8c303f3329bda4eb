"""What happened, line by line: two runs with the same seed must read the same."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator

import trio


class History:
    """Lines of what happened, each with its moment; the last *max_lines* are kept.

    Record nothing that differs between two runs of the same thing: no object ids, nothing in
    the order of a set, no uuid that does not come from a seeded source.
    """

    def __init__(self, max_lines: int = 100_000) -> None:
        self.count_lines = 0
        """All that were recorded, kept or not."""
        self._lines: deque[str] = deque(maxlen=max_lines)
        self._digest = hashlib.sha256()

    def record(self, what: str) -> None:
        """Note *what* under the time of now."""
        self.count_lines += 1
        line = f"{trio.current_time():.6f} {what}"
        self._lines.append(line)
        self._digest.update(line.encode("utf-8", "surrogatepass") + b"\n")

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __str__(self) -> str:
        return "\n".join(self._lines)

    @property
    def digest(self) -> str:
        """A hash of every line that was ever recorded, in hex."""
        return self._digest.hexdigest()
