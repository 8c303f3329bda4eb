"""Buckets of peers by their distance, as Kademlia keeps them.

Petar Maymounkov and David Mazières: "Kademlia: A Peer-to-peer Information System Based on the XOR
Metric" (IPTPS 2002). The distance of two ids is their XOR; the bucket of an id is the number of
leading bits it shares with ours. Bucket 0 holds half of all ids there are, the next a quarter.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Generic, TypeVar

from trio_overlay.protocol.relay import ID_BITS, PeerId

T = TypeVar("T")

DEFAULT_BUCKET_SIZE = 20


class Buckets(Generic[T]):
    """Values by the ids of peers, at most *size* a bucket; our own id is never among them.

    In a bucket those that came first stand first. A full bucket takes nobody: in most networks
    those that have been there longest stay longest (Saroiu et al. 2002), so whoever owns these
    buckets decides when one of them is dead, and removes it.
    """

    def __init__(self, own_id: PeerId, size: int = DEFAULT_BUCKET_SIZE) -> None:
        self.own_id = own_id
        self.size = size
        self._own = int(own_id, 16)
        self._entries: dict[PeerId, T] = {}
        # The numbers beside the ids: what a hop costs is to compare them.
        self._buckets: dict[int, dict[PeerId, int]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[PeerId]:
        """All ids, oldest first."""
        return iter(self._entries)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._entries

    def __getitem__(self, peer: PeerId) -> T:
        return self._entries[peer]

    def get(self, peer: PeerId) -> T | None:
        return self._entries.get(peer)

    def index_of(self, peer: PeerId) -> int:
        """The bucket where *peer* belongs: how many leading bits it shares with our id; 0 to 159.

        ValueError: it is our own id.
        """
        distance = self._own ^ int(peer, 16)
        if not distance:
            raise ValueError("our own id is in no bucket")
        return ID_BITS - distance.bit_length()

    def add(self, peer: PeerId, value: T) -> bool:
        """Whether *peer* is in its bucket now, with *value*: not if that is full, nor ourselves."""
        number = int(peer, 16)
        if number == self._own:
            return False
        bucket = self._buckets.setdefault(ID_BITS - (self._own ^ number).bit_length(), {})
        if peer not in bucket and len(bucket) >= self.size:
            return False
        bucket[peer] = number
        self._entries[peer] = value
        return True

    def remove(self, peer: PeerId) -> T | None:
        """Take *peer* out; its value, or None if it is not here."""
        value = self._entries.pop(peer, None)
        if value is not None:
            index = self.index_of(peer)
            bucket = self._buckets[index]
            del bucket[peer]
            if not bucket:
                del self._buckets[index]
        return value

    def is_full_for(self, peer: PeerId) -> bool:
        """Whether there is no room for *peer*, which is not here."""
        return len(self._buckets.get(self.index_of(peer), ())) >= self.size

    def bucket(self, index: int) -> list[PeerId]:
        """The ids in the bucket *index*, oldest first."""
        return list(self._buckets.get(index, ()))

    def count(self, index: int) -> int:
        """How many the bucket *index* has."""
        return len(self._buckets.get(index, ()))

    @property
    def indices(self) -> list[int]:
        """The buckets that are not empty, the farthest (with half of all ids) first."""
        return sorted(self._buckets)

    @property
    def depth(self) -> int:
        """How many buckets there are up to the last that is not empty."""
        return max(self._buckets, default=-1) + 1

    def closest(self, target: PeerId, count: int) -> list[PeerId]:
        """Peers here nearest to *target*, nearest first.

        At most *count*, fewer if there are fewer. No two distances are equal.

        ValueError: *count* is less than 1.
        """
        if count < 1:
            raise ValueError(f"at least one, not {count}")
        aim = int(target, 16)
        found: list[tuple[int, PeerId]] = []
        for index in self._by_distance(aim):
            # Whole buckets at a time: each is all nearer than the next.
            found += sorted((number ^ aim, peer) for peer, number in self._buckets[index].items())
            if len(found) >= count:
                break
        return [peer for _, peer in found[:count]]

    def nearer(self, target: PeerId) -> Iterator[PeerId]:
        """All peers here, nearest to *target* first; sorted no further than they are taken."""
        aim = int(target, 16)
        for index in self._by_distance(aim):
            bucket = self._buckets[index]
            for peer, _ in sorted(bucket.items(), key=lambda item: item[1] ^ aim):
                yield peer

    def is_nearer(self, peer: PeerId, target: PeerId) -> bool:
        """Whether *peer* is nearer to *target* than we are."""
        aim = int(target, 16)
        return int(peer, 16) ^ aim < self._own ^ aim

    def _by_distance(self, aim: int) -> list[int]:
        """The buckets that are not empty, those nearest to the number *aim* first.

        Each is nearer than the next with all that is in it: the ids of bucket i agree with ours
        above bit i, and not in it. So where we differ from *aim* in that bit they are nearer to it
        than we are, the more the higher the bit stands; elsewhere they are farther from it.
        """
        difference = self._own ^ aim
        nearer: list[int] = []
        farther: list[int] = []
        for index in sorted(self._buckets):
            (nearer if difference >> (ID_BITS - 1 - index) & 1 else farther).append(index)
        return nearer + farther[::-1]

    def random_id(self, index: int, rng: random.Random) -> PeerId:
        """Some id that belongs into the bucket *index*."""
        below = ID_BITS - 1 - index  # how many bits may be anything
        number = (
            (self._own >> below ^ 1) << below | rng.getrandbits(below) if below else self._own ^ 1
        )
        return f"{number:040x}"


def random_peer_id(rng: random.Random) -> PeerId:
    """An id by chance."""
    return f"{rng.getrandbits(ID_BITS):040x}"
