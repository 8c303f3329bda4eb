"""Any interleaving of joins, leaves, crashes and cancelled joins keeps the tree's promises.

`HYPOTHESIS_PROFILE=long` looks much longer; `ci` tells the same stories every time.
"""

from __future__ import annotations

from tests.profiles import how_long
from trio_overlay.testing.tree import TreeMachine

BOUNDED = 12
"""Stories in an ordinary run: about ten seconds for both tests."""


class Troubled(TreeMachine):
    """Stories of nodes that are crashed, cut off and frozen, too."""


class Peaceful(TreeMachine):
    """Without cuts and silence more nodes are alive at a time, and promises are stricter."""

    has_faults = False


TestTree = Troubled.TestCase
TestTree.settings = how_long(BOUNDED, 30)
TestPeacefulTree = Peaceful.TestCase
TestPeacefulTree.settings = how_long(BOUNDED, 30)
