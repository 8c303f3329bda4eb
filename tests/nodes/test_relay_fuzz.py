"""Relays that come, talk and fail in any order end up connected, and no message comes twice.

`HYPOTHESIS_PROFILE=long` looks much longer; `ci` tells the same stories every time.
"""

from __future__ import annotations

import pytest

from tests.profiles import how_long
from trio_overlay.protocol.relay_peer import RelayPeer
from trio_overlay.testing.relay import RelayMachine
from trio_overlay.testing.relay_world import RelayWorld
from trio_overlay.testing.tree_world import replay

BOUNDED = 12
"""Stories in an ordinary run: a few seconds for each test."""


class Troubled(RelayMachine):
    """Stories of relays that are crashed, cut off and frozen, too, and of hubs that crash."""


class Peaceful(RelayMachine):
    """Without cuts and silence more is said, and more of it at the same time."""

    has_faults = False


TestRelays = Troubled.TestCase
TestRelays.settings = how_long(BOUNDED, 15, long_steps=40)
TestPeacefulRelays = Peaceful.TestCase
TestPeacefulRelays.settings = how_long(BOUNDED, 15, long_steps=40)

TALK = """
seed=5
n1 joins at 0 s
n2 joins at 0.1 s
n3 joins at 0.2 s
n1 assures n2 at 3 s
n2 freezes at 3.001 s
n3 tells n1 at 3.1 s
n2 thaws at 5.5 s
hub crashes at 8 s
n1 connects n3 at 8.1 s
n3 lets_go n1 at 9 s
n2 assures n3 at 10 s
n2 gives_up at 10.01 s
hub restarts at 20 s
n1 assures n3 at 21 s
"""


def test_a_story_is_lived_through() -> None:
    world = replay(TALK, RelayWorld)
    assert isinstance(world, RelayWorld)
    assert world.count_joined == 3
    assert world.count_confirmed == 2


def test_a_message_that_comes_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent again because its receipt was late, it would, if nobody remembered it."""

    class Forgetful(dict[object, None]):
        def put(self, *_: object) -> None:
            pass

        def fade(self, _: float) -> None:
            pass

    def initialize(self: RelayPeer, *arguments: object, **options: object) -> None:
        original(self, *arguments, **options)  # type: ignore[arg-type]
        self._delivered = Forgetful()  # type: ignore[assignment]

    original = RelayPeer.__init__
    monkeypatch.setattr(RelayPeer, "__init__", initialize)
    with pytest.raises(Exception, match=r"twice|sub-exception"):
        replay(TALK, RelayWorld)
