"""The ready Hypothesis state machine for relays.

Take it as it is, in a test module::

    from trio_overlay.testing.relay import RelayMachine

    TestRelays = RelayMachine.TestCase

or extend it as `TreeMachine` is extended in docs/testing.md, and `RelayWorld` with what your
nodes do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from trio_overlay.testing.machine import (
    StoryMachine,
    pauses,
    picks,
    second_thoughts,
    short_pauses,
)
from trio_overlay.testing.relay_world import HUB, RelayWorld


class RelayMachine(StoryMachine[RelayWorld]):
    """Tells stories of relays that come, talk, connect, let go, and fail, their hub among them.

    What holds after each step is `RelayWorld.check`: no message comes twice, none is confirmed
    that has not come, tables are bounded. Once all is quiet everybody is connected to everybody, by
    one connection that both ends know of.
    """

    max_nodes = 7
    open_world: Callable[[Mapping[str, str]], RelayWorld] = RelayWorld

    @initialize(seed=st.integers(0, 999), count=st.integers(0, 5))
    def begin(self, seed: int, count: int) -> None:
        """Once upon a time there was a hub, and some who had dialled it."""
        self.begin_story({"seed": seed}, newcomers=count, pause=3.0)

    @property
    def residents(self) -> list[str]:
        return [HUB]

    @precondition(lambda self: self.names)
    @rule(
        pause=short_pauses,
        pick=picks,
        other=picks,
        verb=st.sampled_from(["tells", "assures", "assures", "connects", "lets_go"]),
        count=st.integers(1, 3),
        given_up_after=second_thoughts,
    )
    def talk(
        self,
        pause: float,
        pick: int,
        other: int,
        verb: str,
        count: int,
        given_up_after: float | None,
    ) -> None:
        """Somebody does something that another may hear of."""
        who = self.names[pick % len(self.names)]
        everybody = [HUB, *self.names]
        for index in range(count):
            whom = everybody[(other + index) % len(everybody)]
            self.tell(who, verb, whom, pause=0.0 if index else pause)
        self.tell_second_thoughts(who, given_up_after)

    @precondition(lambda self: self.has_faults)
    @rule(pause=pauses)
    def crash_or_restart_server(self, pause: float) -> None:
        """The hub is gone, or another one there in its place."""
        self.tell(HUB, "crashes" if self.world.hub_is_running else "restarts", pause=pause)
