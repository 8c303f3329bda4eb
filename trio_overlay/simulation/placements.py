"""Rules by which full nodes pass requests on, by name: what simulations can compare."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import MappingProxyType
from typing import Final

from trio_overlay.protocol.branch import PlaceRule, hash_place, place_in_turn, random_place

PLACEMENTS: Final = MappingProxyType[str, Callable[[random.Random], PlaceRule]](
    {
        "hash": lambda _: hash_place,
        "random": random_place,
        "in-turn": lambda _: place_in_turn,
    }
)
"""Each makes the rule of one world, given that world's chance."""
