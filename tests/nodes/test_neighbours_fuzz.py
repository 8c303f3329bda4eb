"""Any mix of connects, bridges, disconnects, crashes and lost messages leaves both ends of each
arc with the same arcs, and nothing else.

`HYPOTHESIS_PROFILE=long` looks much longer; `ci` tells the same stories every time.
"""

from __future__ import annotations

from tests.profiles import how_long
from trio_overlay.testing.neighbours import NeighboursMachine

BOUNDED = 15
"""Stories in an ordinary run: a few seconds for each test."""


class Troubled(NeighboursMachine):
    """Stories of nodes that are crashed, cut off and frozen, too, and of lost messages."""


class Peaceful(NeighboursMachine):
    """Without cuts and silence more comes up, and more of it at the same time."""

    has_faults = False


TestNeighbours = Troubled.TestCase
TestNeighbours.settings = how_long(BOUNDED, 30)
TestPeacefulNeighbours = Peaceful.TestCase
TestPeacefulNeighbours.settings = how_long(BOUNDED, 30)
