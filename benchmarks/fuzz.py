"""Steps a second of a story of 30 nodes: ``python -m benchmarks.fuzz [STEPS]``.

A step is one rule and one virtual second, with everything checked that must hold at any time. Nodes
are real: each step somebody joins, leaves, crashes, is cut off or is back, and about thirty are
alive at any time; when the root is gone, who comes next is the root. CPU seconds of this process,
one core; the best of three rounds counts, for a machine that does something else as well only makes
rounds slower. The target: 300.
"""

from __future__ import annotations

import random
import sys
import time

from trio_overlay.testing.determinism import SteppedRun
from trio_overlay.testing.story import Step
from trio_overlay.testing.tree_world import TreeWorld

NODES = 30
ROUNDS = 3


def main(arguments: list[str]) -> None:
    steps = int(arguments[0]) if arguments else 500
    rates = [measure(steps, seed) for seed in range(ROUNDS)]
    rounds = ", ".join(f"{rate:.0f}" for rate in rates)
    print(f"steps a second: {max(rates):.0f} (rounds: {rounds})")


def measure(steps: int, seed: int) -> float:
    """Steps a second in one story of so many, after thirty have joined."""
    teller = Teller(seed)
    world = TreeWorld({"seed": str(seed), "max_degree": "3"})
    with SteppedRun(lambda: world, seed=seed) as run:

        def tell(step: Step) -> None:
            run.call(lambda world: world.play(step))

        for _ in range(NODES):
            tell(teller.join())
        started_at = time.process_time()
        for _ in range(steps):
            tell(teller.next(world))
        took = time.process_time() - started_at
        run.call(lambda world: world.finish())
    return steps / took


class Teller:
    """Tells what comes next: about as many come as go."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._age = 0
        self._count = 0
        self._lost: list[tuple[str, str]] = []

    def join(self, verb: str = "joins") -> Step:
        """Somebody new."""
        self._count += 1
        return self._step(f"n{self._count}", verb)

    def next(self, world: TreeWorld) -> Step:
        """One rule, a second after the last."""
        names = list(world.lives)
        if len(names) < NODES:
            return self.join("becomes_root" if not world.has_root else "joins")
        if self._lost:
            one, two = self._lost.pop()
            return self._step(one, "regains", two)
        one, two = self._rng.sample(names, 2)
        verb = self._rng.choice(("leaves", "crashes", "loses", "passes"))
        if verb == "loses":
            self._lost.append((one, two))
            return self._step(one, verb, two)
        return self._step(one, verb)

    def _step(self, who: str, verb: str, whom: str | None = None) -> Step:
        self._age += 1
        return Step(self._age, who, verb, whom)


if __name__ == "__main__":
    main(sys.argv[1:])
