"""The ready Hypothesis state machine for peers found by id: see `StoryMachine`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from trio_overlay.testing.broker_world import BrokerWorld
from trio_overlay.testing.machine import StoryMachine, pauses, picks, second_thoughts


class BrokerMachine(StoryMachine[BrokerWorld]):
    """Tells stories of peers that register at a broker and connect to each other by id.

    What holds after each step is `BrokerWorld.check`: nobody is connected to another than it
    believes, no message comes to another than it was for, registrations end in time, and who has
    ended holds nothing. When all is quiet every id is held by one of those who want it, both ends
    of each connection know of it, and of no attempt anything is left.
    """

    max_nodes = 12
    open_world: Callable[[Mapping[str, str]], BrokerWorld] = BrokerWorld

    @initialize(seed=st.integers(0, 999))
    def begin(self, seed: int) -> None:
        """Once upon a time there was a broker."""
        self.begin_story({"seed": seed})

    @precondition(lambda self: self.names and len(self.names) < self.max_nodes)
    @rule(pause=pauses, pick=picks)
    def take(self, pause: float, pick: int) -> None:
        """Somebody comes who wants the id of another."""
        wanted = self.names[pick % len(self.names)]
        self.tell_newcomer("takes", wanted, pause=pause)

    @precondition(lambda self: len(self.names) > 1)
    @rule(
        pause=pauses,
        pick=picks,
        other=picks,
        is_mutual=st.booleans(),
        given_up_after=second_thoughts,
    )
    def call_each_other(
        self, pause: float, pick: int, other: int, is_mutual: bool, given_up_after: float | None
    ) -> None:
        """One says something to another, or two do to each other at the same moment."""
        one, two = self.names[pick % len(self.names)], self.names[other % len(self.names)]
        self.tell(one, "calls", two, pause=pause)
        if is_mutual:
            self.tell(two, "calls", one)
        self.tell_second_thoughts(one, given_up_after)

    @precondition(lambda self: len(self.names) > 1)
    @rule(pause=pauses, pick=picks, other=picks)
    def hang_up(self, pause: float, pick: int, other: int) -> None:
        """One closes its connection to another, if there is one."""
        one, two = self.names[pick % len(self.names)], self.names[other % len(self.names)]
        self.tell(one, "hangs_up", two, pause=pause)
