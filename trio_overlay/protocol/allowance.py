"""How much somebody may do in a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Allowance:
    """So much at once, and then so much a second (a token bucket).

    The caller brings the time.
    """

    capacity: float
    per_second: float
    _level: float = 0.0
    _at: float | None = None

    def take(self, now: float, amount: float) -> bool:
        """Whether *amount* was left, and is now taken. Refused, nothing is taken."""
        if self._at is not None:
            self._level = max(0.0, self._level - (now - self._at) * self.per_second)
        self._at = now
        if self._level + amount > self.capacity:
            return False
        self._level += amount
        return True
