"""Any interleaving of registrations, calls, crashes and cuts keeps the promises of peers by id.

`HYPOTHESIS_PROFILE=long` looks much longer; `ci` tells the same stories every time.
"""

from __future__ import annotations

import pytest

from tests.profiles import how_long
from trio_overlay.nodes.peer import Peer
from trio_overlay.protocol.broker_registrations import Registrations
from trio_overlay.testing.broker import BrokerMachine
from trio_overlay.testing.broker_world import BrokerWorld
from trio_overlay.testing.tree_world import replay

BOUNDED = 15
"""Stories in an ordinary run: about ten seconds for both tests."""


class Troubled(BrokerMachine):
    """Stories of peers that are crashed, cut off and frozen, and of a broker that restarts."""


class Peaceful(BrokerMachine):
    """Without cuts and silence more calls come through, and promises are stricter."""

    has_faults = False


TestPeers = Troubled.TestCase
TestPeers.settings = how_long(BOUNDED, 30)
TestPeacefulPeers = Peaceful.TestCase
TestPeacefulPeers.settings = how_long(BOUNDED, 30)

STORY = """\
seed=7
n1 joins at 0 s
n2 joins at 0 s
n3 takes n1 at 1 s
n1 calls n2 at 2 s
n2 calls n1 at 2 s
n2 hangs_up n1 at 5 s
server crashes at 6 s
n1 calls n2 at 6.5 s
server restarts at 7 s
n2 crashes at 60 s
n2 joins at 61 s
n1 calls n2 at 62 s
time passes at 80 s
"""


def test_a_story_of_peers_replays() -> None:
    world = replay(STORY, BrokerWorld)
    assert isinstance(world, BrokerWorld)
    assert (world.count_joined, world.count_refused) == (2, 1)
    # The last went into a connection whose other end has crashed, which nobody knows yet.
    assert (world.count_calls, world.count_heard) == (4, 3)


def test_a_broker_that_keeps_what_was_left_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registrations, "leave", lambda *_: ())
    with pytest.raises(AssertionError, match="1 ids are held, where 0"):
        replay("n1 joins at 0 s; n1 leaves at 2 s", BrokerWorld)


def test_a_peer_that_answers_nobody_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peer, "_take_offer", lambda *_: None)
    with pytest.raises(AssertionError, match="n1 cannot call n2"):
        replay("n1 joins at 0 s; n2 joins at 0 s; n1 calls n2 at 2 s", BrokerWorld)


def test_a_peer_that_gives_up_and_does_not_say_so_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    story = "n1 joins at 0 s; n2 joins at 0 s; n1 calls n2 at 2 s; n1 gives_up at 2.25 s"
    replay(f"{story}; time passes at 60 s", BrokerWorld)

    async def say_nothing(*_: object) -> None:
        pass

    monkeypatch.setattr(Peer, "_end_attempt", say_nothing)
    with pytest.raises(AssertionError, match="n2 answers n1, which has given up 2 s ago"):
        replay(f"{story}; time passes at 60 s", BrokerWorld)
