"""Ids held for a time: when a claim counts, when it must be renewed, and when it is over.

A *claim* is one server's hold on one id, with a token of its own. The store that all servers
share forgets it a lease after it last heard of it. The holder counts from the moment when it
*asked*, which was earlier, and stops a margin before the lease ends: so it has stopped before
anybody else can be given the id, as long as the two clocks, over one lease, do not differ by
more than the margin (after Gray and Cheriton 1989, *Leases*).

Pure: the caller brings the time, and does what is decided in the same step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Final

DEFAULT_LEASE: Final = 10.0
"""Seconds. The same for all servers of a cluster."""

MARGIN: Final = 0.1
"""This part of a lease the holder gives away."""

RENEWALS: Final = 3
"""So many times in a lease it is renewed."""


@dataclass(eq=False, slots=True)
class Claim:
    """One hold on an id, from asking for it to its end."""

    identifier: str
    token: str
    """By which the store tells it from every other claim of the same id."""
    digest: str = ""
    """Of the secret with which its peer may move it to another server; empty for none."""
    expires_at: float = -math.inf
    """When the holder stops."""
    is_granted: bool = False
    is_over: bool = False


class Leases:
    """The claims of one server. At most one for an id."""

    def __init__(self, lease: float = DEFAULT_LEASE) -> None:
        self.lease = lease
        self._claims: dict[str, Claim] = {}
        """By id, those asked for and those granted."""
        self._expiring: list[tuple[float, int, Claim]] = []
        """A heap with an entry for each time that a claim was granted or renewed; the older
        entries of a claim, and those of one that is over, mean nothing."""
        self._entries = count()
        self._debts: dict[str, tuple[str, float]] = {}
        """Tokens that are over, and that the store may keep: the id, and until when."""

    @property
    def renewal_interval(self) -> float:
        return self.lease / RENEWALS

    @property
    def next_lapse_at(self) -> float:
        """When `lapse` will have something to do; infinity for never."""
        while self._expiring:
            expires_at, _, claim = self._expiring[0]
            if not claim.is_over and claim.expires_at == expires_at:
                return expires_at
            heappop(self._expiring)
        return math.inf

    @property
    def count(self) -> int:
        """How many ids are granted."""
        return sum(claim.is_granted for claim in self._claims.values())

    def get(self, identifier: str) -> Claim | None:
        """The claim of *identifier*, asked for or granted."""
        return self._claims.get(identifier)

    def ask(self, identifier: str, token: str, digest: str = "") -> Claim:
        """A new claim, not yet granted; no other of this id may be under way."""
        assert identifier not in self._claims, f"{identifier!r} is claimed already"
        claim = self._claims[identifier] = Claim(identifier, token, digest)
        return claim

    def grant(self, claim: Claim, asked_at: float, now: float) -> bool:
        """The store has granted or renewed *claim*, asked at *asked_at*; whether it still counts.

        It does not if it is over, or if the answer took so long that it would be.
        """
        expires_at = asked_at + self.lease * (1 - MARGIN)
        if claim.is_over or now >= expires_at:
            return False
        claim.is_granted = True
        if expires_at > claim.expires_at:
            claim.expires_at = expires_at
            heappush(self._expiring, (expires_at, next(self._entries), claim))
        return True

    def end(self, claim: Claim, now: float) -> None:
        """*claim* is given up or refused; the store may keep it for a lease from *now*."""
        if claim.is_over:
            return
        claim.is_over = True
        del self._claims[claim.identifier]
        self._debts[claim.token] = (claim.identifier, now + self.lease)

    def lapse(self, now: float) -> list[Claim]:
        """Those whose time is up: they are over, and who holds them must stop in this step."""
        lapsed = []
        while self.next_lapse_at <= now:
            claim = self._expiring[0][2]
            self.end(claim, now)
            lapsed.append(claim)
        return lapsed

    def to_renew(self) -> list[Claim]:
        """All that are granted."""
        return [claim for claim in self._claims.values() if claim.is_granted]

    def debts(self, now: float) -> list[tuple[str, str]]:
        """Id and token of what the store may keep and nobody holds: to be released in time."""
        for token, (_, until) in list(self._debts.items()):
            if until <= now:
                del self._debts[token]
        return [(identifier, token) for token, (identifier, _) in self._debts.items()]

    def settle(self, tokens: Iterable[str]) -> None:
        """The store does not keep these any more."""
        for token in tokens:
            self._debts.pop(token, None)
