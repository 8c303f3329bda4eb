"""Buckets by distance."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_overlay.protocol.buckets import Buckets, random_peer_id
from trio_overlay.protocol.relay import PeerId, sorted_by_distance

ids = st.integers(0, 2**160 - 1).map(lambda number: f"{number:040x}")


@st.composite
def crowds(draw: st.DrawFn) -> tuple[PeerId, list[PeerId]]:
    """An id, and others of which many are near to it: by chance alone, none ever would be."""
    own = draw(ids)
    rng = random.Random(draw(st.integers(0, 999)))
    buckets: Buckets[None] = Buckets(own)
    near = draw(st.lists(st.integers(0, 159), max_size=40))
    others = [buckets.random_id(index, rng) for index in near]
    return own, list(dict.fromkeys(others + draw(st.lists(ids, max_size=10))))


@given(crowds(), st.data(), st.integers(1, 30))
def test_the_closest_are_those_of_least_distance(
    crowd: tuple[PeerId, list[PeerId]], data: st.DataObject, count: int
) -> None:
    own, others = crowd
    target = data.draw(ids | st.sampled_from([own, *others]))
    buckets: Buckets[int] = Buckets(own, 100)
    kept = [peer for peer in others if buckets.add(peer, 1)]
    expected = sorted_by_distance(kept, target)
    assert list(buckets.nearer(target)) == expected
    assert buckets.closest(target, count) == expected[:count]
    for peer in kept:
        is_nearer = sorted_by_distance([own, peer], target)[0] == peer
        assert buckets.is_nearer(peer, target) == (is_nearer and peer != own)


@given(crowds())
def test_a_bucket_holds_ids_with_as_many_leading_bits_like_ours(
    crowd: tuple[PeerId, list[PeerId]],
) -> None:
    own, others = crowd
    buckets: Buckets[None] = Buckets(own)
    for peer in others:
        if peer != own:
            shared = f"{int(own, 16) ^ int(peer, 16):0160b}".index("1")
            assert buckets.index_of(peer) == shared
    with pytest.raises(ValueError, match="our own id"):
        buckets.index_of(own)


@given(crowds(), st.integers(1, 3))
def test_a_full_bucket_keeps_those_that_came_first(
    crowd: tuple[PeerId, list[PeerId]], size: int
) -> None:
    own, others = crowd
    buckets: Buckets[str] = Buckets(own, size)
    for peer in others:
        is_full = peer != own and buckets.is_full_for(peer)
        assert buckets.add(peer, peer) == (peer != own and not is_full)
    for index in buckets.indices:
        belonging = [peer for peer in others if peer != own and buckets.index_of(peer) == index]
        assert buckets.bucket(index) == belonging[:size]
        assert buckets.count(index) <= size
    assert list(buckets) == [peer for peer in others if peer in buckets]
    assert len(buckets) == sum(map(buckets.count, buckets.indices))
    for peer in list(buckets):
        assert buckets[peer] == buckets.get(peer) == buckets.remove(peer) == peer
        assert peer not in buckets
        assert buckets.remove(peer) is None
    assert buckets.indices == []
    assert buckets.depth == 0


@given(ids, st.integers(0, 159), st.integers(0, 99))
def test_a_random_id_of_a_bucket_belongs_there(own: PeerId, index: int, seed: int) -> None:
    buckets: Buckets[None] = Buckets(own)
    peer = buckets.random_id(index, random.Random(seed))
    assert len(peer) == 40
    assert buckets.index_of(peer) == index


def test_closest_wants_a_count() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Buckets[None](random_peer_id(random.Random(1))).closest("0" * 40, 0)
