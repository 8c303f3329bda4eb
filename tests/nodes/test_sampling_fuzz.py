"""Peers that join, exchange, leave and fail in any order: both ends of each arc have it in their
books, nobody is left alone, and while nothing goes wrong all are one network.

`HYPOTHESIS_PROFILE=long` looks much longer; `ci` tells the same stories every time.
"""

from __future__ import annotations

from tests.profiles import how_long
from trio_overlay.testing.sampling import SamplingMachine

BOUNDED = 4
"""Stories in an ordinary run: a few seconds for each test."""


class Troubled(SamplingMachine):
    """Stories of peers that are crashed, cut off and frozen, too, and of lost messages."""


class Peaceful(SamplingMachine):
    """Without cuts and silence more comes up, and more of it at the same time."""

    has_faults = False


class Harmless(Peaceful):
    """Nobody leaves or gives up: `SamplingWorld` then checks that all are one network."""

    max_nodes = 6
    # No rules here.
    leave = crash = withdraw = join_and_withdraw = think_better = None  # type: ignore[assignment]


TestSampling = Troubled.TestCase
TestSampling.settings = how_long(BOUNDED, 12)
TestPeacefulSampling = Peaceful.TestCase
TestPeacefulSampling.settings = how_long(BOUNDED, 12)
TestHarmlessSampling = Harmless.TestCase
TestHarmlessSampling.settings = how_long(BOUNDED, 12)
