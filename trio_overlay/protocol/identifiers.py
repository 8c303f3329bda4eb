"""The ids that a bootstrap server gives to prospects."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator


def random_identifiers(rng: random.Random) -> Iterator[str]:
    """Ids of 32 hex digits. Whoever can guess one can speak to its prospect: mind the *rng*."""
    while True:
        yield rng.getrandbits(128).to_bytes(16, "big").hex()


def seeded_identifiers(seed: int) -> Iterator[str]:
    """The ids that webrtc-bootstrap's server gives with this seed, in the same order."""
    while True:
        seed = _jenkins(seed)
        yield hashlib.md5(str(seed).encode(), usedforsecurity=False).hexdigest()


def _jenkins(seed: int) -> int:
    """The next number of the original's generator, after Robert Jenkins' 32-bit integer hash."""
    seed = _int32(seed + 0x7ED55D16 + _int32(seed << 12))
    seed = _int32(seed ^ 0xC761C23C ^ (seed % 2**32 >> 19))
    seed = _int32(seed + 0x165667B1 + _int32(seed << 5))
    seed = _int32((seed + 0xD3A2646C) ^ _int32(seed << 9))
    seed = _int32(seed + 0xFD7046C5 + _int32(seed << 3))
    return _int32(seed ^ 0xB55A4F09 ^ (seed % 2**32 >> 16))


def _int32(number: int) -> int:
    """*number* as JavaScript's bitwise operators see it: 32 bits with a sign."""
    return (number + 2**31) % 2**32 - 2**31
