"""Real nodes that live through a story on a virtual network, whatever their overlay.

`VirtualWorld` has what all overlays share: a network, a bootstrap server, lives that come and go,
and faults. What a node is, and what must hold at any time, is a subclass's business.
"""

from __future__ import annotations

import abc
import math
from collections import deque
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import OutcomeError
from trio_overlay.testing.faults import Rule
from trio_overlay.testing.history import History
from trio_overlay.testing.network import VirtualNetwork
from trio_overlay.testing.signaling import AUTHORITY, SignalingHost, open_signaling
from trio_overlay.testing.story import Step

SERVER = "server"
"""What a story calls the signaling server, as in ``server crashes at 5 s``."""
JOIN_GRACE = 5.0
"""Seconds that a join may take over its timeout, to say farewell and close."""
SETTLE_TIMEOUT = 60.0

QUIET_DELAY = 5.0
"""Seconds in which all that was said in farewell has arrived and was acted upon."""


@dataclass(eq=False)
class Life:
    """One node's, from its join to its end."""

    name: str
    born_at: float
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Cancelled, the node is gone as if its program was interrupted."""
    joining: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Cancelled, the join is given up, and the node leaves."""
    staying: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Cancelled, the node leaves as its program wishes."""
    join_ended_at: float | None = None
    has_joined: bool = False
    failure: OutcomeError | None = None
    """Why the join failed, if it did."""


class VirtualWorld(abc.ABC):
    """An async context manager: inside, steps of a story can be played.

    *settings* are those of a story, as text: ``seed``, and for crashes ``noticed_after``, the
    seconds after which peers give up a crashed one.

    What steps can say is in `perform`; a subclass extends it by steps of its own. Whoever cannot
    do what a step says does nothing, so that a story whose middle was taken out still plays.
    """

    def __init__(self, settings: Mapping[str, str], *, history: History | None = None) -> None:
        self.settings = dict(settings)
        self.seed = int(settings.get("seed", "0"))
        self.noticed_after = float(settings.get("noticed_after", "5"))
        self.network = VirtualNetwork(self.seed, history=history)
        self.signaling: SignalingHost
        self.lives: dict[str, Life] = {}
        """Those who have begun and not yet ended, by name, oldest first."""
        self.count_joined = 0
        self.count_refused = 0
        self.endings: deque[float] = deque(maxlen=100)
        """When the last hundred lives ended."""
        self.begun_at = 0.0
        self._trouble_at = -math.inf
        self._cuts: dict[tuple[str, str], Rule] = {}
        self._baseline: dict[str, object] = {}
        self._stack = AsyncExitStack()
        self._nursery: trio.Nursery

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        try:
            await self._stack.enter_async_context(self.network)
            self._nursery = await self._stack.enter_async_context(open_background_nursery())
            self.signaling = await self._stack.enter_async_context(open_signaling(self.network))
            await self.open(self._stack)
            await trio.sleep(QUIET_DELAY)
        except BaseException as error:
            await self._stack.__aexit__(type(error), error, error.__traceback__)
            raise
        self._baseline = self.measure()
        self.begun_at = trio.current_time()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, trace)

    # --- what an overlay brings -----------------------------------------------------------

    @abc.abstractmethod
    async def open(self, stack: AsyncExitStack) -> None:
        """Enter into *stack* what is there before the story begins."""

    @abc.abstractmethod
    async def live(self, life: Life) -> None:
        """Be a node: open it, join inside `joining`, stay inside `staying`."""

    @abc.abstractmethod
    def check(self) -> None:
        """What must hold at any time.

        AssertionError: something does not.
        """

    @abc.abstractmethod
    def check_quiet(self) -> None:
        """What must hold once nothing has happened for a long time.

        AssertionError: something does not.
        """

    def is_settled(self) -> bool:
        """Whether the overlay has healed; if not, it is waited for, up to `settle_timeout`."""
        return True

    @property
    @abc.abstractmethod
    def join_timeout(self) -> float:
        """Seconds after which a join has ended, one way or the other."""

    @property
    def settle_timeout(self) -> float:
        """Seconds after the last fault in which the overlay must have healed."""
        return SETTLE_TIMEOUT

    @property
    def leave_timeout(self) -> float:
        """Seconds that it takes to leave, at most, if that is more than a moment."""
        return 0.0

    def measure(self) -> dict[str, object]:
        """What must be the same, when all have left, as it was before any came."""
        return {
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            "connections": dict(self.network.count_open()),
            "server": self.signaling.server.status(),
        }

    def is_cut(self, one: str, other: str) -> bool:
        """Whether the story has cut *one* from *other*, and not healed it."""
        return (one, other) in self._cuts

    # --- the story ------------------------------------------------------------------------

    @property
    def age(self) -> float:
        """Seconds since the story began."""
        return trio.current_time() - self.begun_at

    @property
    def calm_for(self) -> float:
        """Seconds since the last fault, crash or leave; 0 while any fault lasts."""
        if self._cuts or self.network.frozen or not self.signaling.is_running:
            return 0.0
        return trio.current_time() - self._trouble_at

    async def play(self, step: Step) -> None:
        """Wait for the moment of *step*, do it, and check.

        ValueError: nobody knows how to do that.
        """
        await trio.sleep_until(self.begun_at + step.at)
        self.network.note(f"story: {step}")
        self.perform(step)
        await trio.lowlevel.checkpoint()
        self.check()

    def perform(self, step: Step) -> None:
        """Do *step* now, without checking."""
        who, whom = step.who, step.whom
        life = self.lives.get(who)
        if step.verb in ("crashes", "leaves", "restarts", "thaws", "regains"):
            self._trouble_at = trio.current_time()
        match step.verb:
            case "crashes" if who == SERVER:
                self.signaling.crash(noticed_after=self.noticed_after)
            case "restarts" if who == SERVER:
                self.signaling.restart()
            case "joins" if life is None and not self.network.host(who).is_crashed:
                self.lives[who] = life = Life(who, trio.current_time())
                self._nursery.start_soon(self._live, life)
            case "leaves" | "withdraws" if life is not None and life.join_ended_at is None:
                life.joining.cancel()
            case "leaves" if life is not None:
                life.staying.cancel()
            case "crashes" if life is not None:
                self.network.crash(who, noticed_after=self.noticed_after)
                life.scope.cancel()
            case "freezes":
                self.network.freeze(who)
            case "thaws":
                self.network.thaw(who)
            case "loses" if whom is not None and (who, whom) not in self._cuts:
                self._cuts[who, whom] = self.network.cut(
                    f"{who} <-> {whom}", noticed_after=self.noticed_after
                )
            case "regains" if whom is not None and (who, whom) in self._cuts:
                self.network.lift(self._cuts.pop((who, whom)))
            case (
                "passes" | "joins" | "leaves" | "withdraws"
                | "crashes" | "restarts" | "loses" | "regains"
            ):  # fmt: skip
                pass  # "time passes"; or it cannot be done, and is not
            case _:
                raise ValueError(f"nobody knows how to do this: {step}")

    async def finish(self) -> None:
        """Heal, wait until all is quiet, check; let everybody leave, check that nothing is left.

        AssertionError: a check failed.
        """
        self._trouble_at = trio.current_time()
        self.network.heal()
        self._cuts.clear()
        for name in self.network.frozen:  # some whose program has ended, too
            self.network.thaw(name)
        self.signaling.restart()
        settled_by = trio.current_time() + self.settle_timeout
        while not self.is_settled() and trio.current_time() < settled_by:
            await trio.sleep(1)
            self.check()
        quiet_at = trio.current_time() + self.join_timeout + self.noticed_after
        while trio.current_time() < quiet_at + QUIET_DELAY:
            await trio.sleep(1)
            self.check()
        self.check_quiet()
        for life in self.lives.values():
            life.staying.cancel()
        await trio.sleep(self.leave_timeout + QUIET_DELAY)
        self.check()
        left = self.measure()
        assert left == self._baseline, (
            f"left over: {left}, where there was {self._baseline}:\n  "
            + "\n  ".join(self.network.list_open())
        )

    async def _live(self, life: Life) -> None:
        try:
            with life.scope:
                await self.live(life)
        except OutcomeError as error:
            life.failure = error
            self.count_refused += 1
        finally:
            del self.lives[life.name]
            self.endings.append(trio.current_time())

    # --- checks that all share ------------------------------------------------------------

    def check_lives(self) -> None:
        """Joins end in time, and who has ended holds nothing.

        AssertionError: not so.
        """
        now = trio.current_time()
        for life in self.lives.values():
            took = (life.join_ended_at or now) - life.born_at
            assert took <= self.join_timeout + JOIN_GRACE, f"{life.name} is joining for {took:g} s"
        for name, count in self.network.count_open().items():
            assert name in self.lives or name in self.residents, (
                f"{name} has ended and still holds {count} connections"
            )

    @property
    def residents(self) -> frozenset[str]:
        """Hosts that are no lives of the story: the server, and what `open` brought."""
        return frozenset({AUTHORITY})
