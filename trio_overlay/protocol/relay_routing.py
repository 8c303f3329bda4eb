"""Which neighbours an envelope goes on to, and what a peer remembers of those that came by.

Kademlia's greedy way, on the wire of peer-relay: among neighbours that are spread over the buckets
there is nearly always one that shares more leading bits with the target than we do, so each
hop gets nearer and one copy is enough. Where there is none, we do as the original always does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from trio_overlay.protocol.buckets import Buckets
from trio_overlay.protocol.relay import MAX_HOPS, Envelope, PeerId

K = TypeVar("K")
V = TypeVar("V")

MAX_NONCES: Final = 20_000
NONCE_AGE: Final = 120.0
"""Seconds for which a nonce is remembered: far longer than twenty hops take."""
MAX_ROUTES: Final = 1_000
ROUTE_AGE: Final = 20.0
"""Seconds for which the way back to a sender is taken for a good one."""
DETOURS: Final = 6
"""Among so many neighbours a message that is sent again takes its turn."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers by which a relay peer decides."""

    copies: int = 2
    """Of an envelope of our own, to so many neighbours."""
    relay_copies: int = 1
    """Of one we pass on, if a neighbour is nearer to its target than we are; else two."""
    near: int = 8
    """Connections to the peers nearest to us; they find what is in the deepest buckets."""
    spread: int = 2
    """Connections that we see to in each other bucket."""
    max_hops: int = MAX_HOPS
    bucket_size: int = 20
    """Neighbours in one bucket, whoever connected; Kademlia's k."""
    max_visitors: int = 64
    """Neighbours beyond that, each for a while: newcomers must begin somewhere."""
    max_attempts: int = 8
    """Connections that we try at a time, unasked."""
    heartbeat_interval: float = 5.0
    """Seconds of silence after which a neighbour is asked for a sign of life."""
    heartbeat_timeout: float = 12.0
    """Seconds of silence after which it is dead. Both threefold for an original."""
    refresh_interval: float = 10.0
    """Seconds between two questions for peers in a bucket that lacks some."""


ORIGINAL: Final = Policy(copies=2, relay_copies=2, near=15, spread=0)
"""What peer-relay 0.0.2 does, to compare with: fifteen nearest, two copies at each hop."""


class Fading(Generic[K, V]):
    """What is remembered for *max_age* seconds, and of *max_count* keys only the newest."""

    def __init__(self, max_count: int, max_age: float) -> None:
        self._max_count = max_count
        self._max_age = max_age
        self._items: dict[K, tuple[float, V]] = {}  # in the order of their moments

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: K, now: float) -> V | None:
        """What was put under *key*, unless it is forgotten."""
        item = self._items.get(key)
        return item[1] if item is not None and now - item[0] < self._max_age else None

    def put(self, key: K, value: V, now: float) -> None:
        """Remember *value* from *now* on; *now* is never before that of an earlier call."""
        self._items.pop(key, None)
        self._items[key] = (now, value)
        self.fade(now)

    def remove(self, key: K) -> V | None:
        """Forget *key*; what was there."""
        item = self._items.pop(key, None)
        return None if item is None else item[1]

    def fade(self, now: float) -> None:
        """Forget what is too old or too much."""
        while self._items:
            key = next(iter(self._items))
            if len(self._items) <= self._max_count and now - self._items[key][0] < self._max_age:
                return
            del self._items[key]

    def pop_old(self, now: float) -> Iterator[tuple[K, V]]:
        """Take out what is too old, oldest first."""
        while self._items:
            key, (at, value) = next(iter(self._items.items()))
            if now - at < self._max_age:
                return
            del self._items[key]
            yield key, value

    def __contains__(self, key: K) -> bool:
        """Whether *key* is remembered: `fade` has not come by since it became too old."""
        return key in self._items


@dataclass(slots=True)
class Neighbour:
    """What we know of a peer that we are connected to."""

    heard_at: float
    asked_at: float = float("-inf")
    """When it was last asked for a sign of life."""
    is_ours: bool = False
    """Whether it said that it understands more than the original."""
    relays: bool = False
    """Whether it has other neighbours, as far as we know: there is no way through one without."""


class Router:
    """The way of envelopes through one peer; made for `RelayPeer`, which has the neighbours."""

    def __init__(self, neighbours: Buckets[Neighbour], policy: Policy) -> None:
        self.policy = policy
        self._neighbours = neighbours
        self._seen: Fading[str, None] = Fading(MAX_NONCES, NONCE_AGE)
        self._routes: Fading[PeerId, PeerId] = Fading(MAX_ROUTES, ROUTE_AGE)

    @property
    def count_remembered(self) -> int:
        """Entries in the tables that grow with the traffic."""
        return len(self._seen) + len(self._routes)

    def is_new(self, nonce: str, now: float) -> bool:
        """Whether *nonce* was not seen before; from now on it was."""
        is_new = nonce not in self._seen
        if is_new:
            self._seen.put(nonce, None, now)
        return is_new

    def forget_old(self, now: float) -> None:
        """Let fade what is too old, when nothing else comes to push it out."""
        self._seen.fade(now)
        self._routes.fade(now)

    def learn(self, envelope: Envelope, now: float) -> None:
        """Remember the way by which *envelope* came, for what goes back to its sender."""
        if envelope.path[-1] != envelope.sender:
            self._routes.put(envelope.sender, envelope.path[-1], now)

    def hops(self, envelope: Envelope, now: float, attempt: int = 0) -> list[PeerId]:
        """The neighbours to which *envelope* goes from here, which has not us in its path yet.

        Its target is no neighbour. None if it has gone far enough, or there is nobody who has not
        had it. *attempt* counts how often the same message was sent before, with other nonces:
        each time it begins by other neighbours.
        """
        if len(envelope.path) >= self.policy.max_hops:
            return []
        passed = frozenset(envelope.path)
        back = self._routes.get(envelope.to, now)
        if back is not None and (back in passed or back not in self._neighbours):
            back = None
        if not envelope.path:
            return self._first_hops(envelope.to, back, attempt)
        if self.policy.relay_copies == 1:
            if back is not None:
                return [back]
            best = next(self._candidates(envelope.to, passed), None)
            if best is not None and self._neighbours.is_nearer(best, envelope.to):
                return [best]
        hops = self._take(envelope.to, passed, 2)
        if back is not None and back not in hops:
            hops.insert(0, back)
        return hops

    def _first_hops(self, to: PeerId, back: PeerId | None, attempt: int) -> list[PeerId]:
        count = self.policy.copies
        if self.policy.relay_copies > 1:  # as the original: the way back is one copy more
            hops = self._take(to, frozenset(), count)
            return hops if back is None or back in hops else [back, *hops]
        ranked = self._take(to, frozenset(), max(count, DETOURS))
        if back is not None:
            ranked = list(dict.fromkeys([back, *ranked]))
        turn = attempt * count % len(ranked) if ranked else 0
        return (ranked[turn:] + ranked[:turn])[:count]

    def _take(self, to: PeerId, passed: frozenset[PeerId], count: int) -> list[PeerId]:
        candidates = self._candidates(to, passed)
        found = [peer for peer, _ in zip(candidates, range(count), strict=False)]
        if not found and self.policy.relay_copies == 1:  # those of whom we know no neighbours
            found = [p for p in self._neighbours.closest(to, count) if p not in passed]
        return found

    def _candidates(self, to: PeerId, passed: frozenset[PeerId]) -> Iterator[PeerId]:
        neighbours, is_choosy = self._neighbours, self.policy.relay_copies == 1
        for peer in neighbours.nearer(to):
            if peer not in passed and (neighbours[peer].relays or not is_choosy):
                yield peer
