"""The ready Hypothesis state machine for peers that sample their network.

Take it as it is, in a test module::

    from trio_overlay.testing.sampling import SamplingMachine

    TestSampling = SamplingMachine.TestCase

or extend it as `TreeMachine` is extended in docs/testing.md, and `SamplingWorld` with what your
nodes do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from trio_overlay.testing.arcs import ArcsMachine
from trio_overlay.testing.arcs_world import GATE
from trio_overlay.testing.machine import picks, short_pauses
from trio_overlay.testing.sampling_world import SamplingWorld


class SamplingMachine(ArcsMachine[SamplingWorld]):
    """Tells stories of peers that come by a gate or by each other, exchange, leave and crash.

    What holds after each step is `SamplingWorld.check`. Once all is quiet, both ends of each arc
    know of it, it is in the view of the one that opened it, and nobody is alone.
    """

    open_world: Callable[[Mapping[str, str]], SamplingWorld] = SamplingWorld

    @initialize(
        seed=st.integers(0, 999),
        loss=st.sampled_from([0, 0, 0.05, 0.3]),
        a=st.sampled_from([1, 1, 2]),
        b=st.integers(0, 2),
        count=st.integers(0, 5),
    )
    def begin(self, seed: int, loss: float, a: int, b: int, count: int) -> None:
        """Once upon a time there was a gate, and some who knew each other by it."""
        self.begin_arcs({"seed": seed, "loss": loss, "a": a, "b": b}, count)

    @precondition(lambda self: self.names)
    @rule(pause=short_pauses, pick=picks, other=picks)
    def meet(self, pause: float, pick: int, other: int) -> None:
        """Somebody finds another contact, and joins by it, too."""
        everybody = [GATE, *self.names]
        who, whom = self.names[pick % len(self.names)], everybody[other % len(everybody)]
        self.tell(who, "meets", whom, pause=pause)

    @rule(pause=short_pauses, pick=picks, count=st.integers(1, 4))
    def exchange(self, pause: float, pick: int, count: int) -> None:
        """Some begin an exchange, all at once."""
        everybody = [GATE, *self.names]
        for index in range(count):
            who = everybody[(pick + index) % len(everybody)]
            self.tell(who, "exchanges", pause=0.0 if index else pause)
