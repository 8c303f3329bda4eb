"""Real nodes that live through a story on a virtual network, whatever their overlay.

`VirtualWorld` has what all overlays share: a network, a bootstrap server, lives that come and go,
and faults. What a node is, and what must hold at any time, is a subclass's business.
"""

from __future__ import annotations

import abc
import heapq
import math
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import OutcomeError
from trio_overlay.testing.block import BlockContext
from trio_overlay.testing.faults import DelaySignals, LoseSignals, Rule
from trio_overlay.testing.history import History
from trio_overlay.testing.network import VirtualNetwork
from trio_overlay.testing.signaling import AUTHORITY, SignalingHost, open_signaling
from trio_overlay.testing.story import Step, UnknownStep, read_settings

SERVER = "server"
"""What a story calls the signaling server, as in ``server crashes at 5 s``."""
JOIN_GRACE = 5.0
"""Seconds that a join may take over its timeout, to say farewell and close."""
SETTLE_TIMEOUT = 60.0
MAX_SIGNAL_DELAY = 3.0
"""Seconds by which signals are late, at the most, after ``signals get_late 30% at 5 s``."""

MAX_LATENESS = 2.0
"""Seconds in which what is said goes down every hop of a network of thirty nodes, if it can."""

FAULTS = frozenset(
    {"loses", "regains", "cannot_hear", "hears", "freezes", "thaws"}
    | {"get_lost", "get_late", "get_through"}
)
"""Verbs of what goes wrong with the network, and of how that ends."""

QUIET_DELAY = 5.0
"""Seconds in which all that was said in farewell has arrived and was acted upon."""
REST_TIMEOUT = 10.0
"""Seconds in which what nodes begin by themselves now and then has ended."""


@dataclass(eq=False)
class Life:
    """One node's, from its join to its end."""

    name: str
    born_at: float
    verb: str = "joins"
    """What a step of the story says that it did to begin."""
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


@dataclass(frozen=True, slots=True)
class _Harm:
    """What went wrong at a moment, or ceased to: between two groups of names, or with one."""

    at: float
    names: frozenset[str]
    others: frozenset[str] | None = None

    def befalls(self, names: Collection[str]) -> bool:
        return not self.names.isdisjoint(names) and (
            self.others is None or not self.others.isdisjoint(names)
        )


@dataclass(eq=False)
class _Actor:
    """What a node does for the sake of the story, beside living."""

    nursery: trio.Nursery
    tries: list[trio.CancelScope] = field(default_factory=list)
    """One around each thing that it tries to do."""


class VirtualWorld(BlockContext):
    """An async context manager: inside, steps of a story can be played.

    *settings* are those of a story, as text: ``seed`` (0), and for crashes ``noticed_after`` (5),
    the seconds after which peers give up a crashed one.

    Steps that all worlds know:

    =======================  ======================================================================
    n1 joins                 n1 begins to live, and joins
    n1 withdraws             it gives up joining
    n1 leaves, crashes       its life ends, as it should, or without a word; ``server crashes``, too
    n1 gives_up              what it tries to do is cancelled
    server restarts          another server is there, which knows nothing of the one before
    n1 freezes, thaws        n1, or the server, is silent, and is heard again
    n1,n2 loses n3,server    nothing gets from one of these groups, of one or more, to the other
    n1,n2 regains n3,server  what was cut like this is healed
    n1 cannot_hear n2        nothing gets from n2, or any of such a group, to n1
    n1 hears n2              it does again
    signals get_lost 30%     each signal is lost with this probability
    signals get_late 30%     each is late, and may be overtaken by others, with this probability
    signals get_through      all are there at once, again
    time passes              nothing happens
    =======================  ======================================================================

    A subclass extends `perform` by steps of its own. Whoever cannot do what a step says does
    nothing, so that a story whose middle was taken out still plays.

    BadSetting: there is no such setting, or not with that value.
    """

    defaults: ClassVar[Mapping[str, float]] = {"seed": 0, "noticed_after": 5.0}
    """All settings that there are, with their values where a story says nothing; those whose
    default is an `int` are whole numbers. A subclass has these, and its own."""

    def __init__(self, settings: Mapping[str, str], *, history: History | None = None) -> None:
        self.settings = {**self.defaults, **read_settings(settings, self.defaults)}
        self.seed = int(self.settings["seed"])
        self.noticed_after = self.settings["noticed_after"]
        self.network = VirtualNetwork(self.seed, history=history)
        self.signaling: SignalingHost
        self.lives: dict[str, Life] = {}
        """Those who have begun and not yet ended, by name, oldest first."""
        self.count_joined = 0
        """By ``joins``: not those that came in another way."""
        self.count_refused = 0
        self.endings: deque[float] = deque(maxlen=100)
        """When the last hundred lives ended."""
        self.begun_at = 0.0
        self._actors: dict[str, _Actor] = {}
        self._trouble_at = -math.inf
        self._harms: deque[_Harm] = deque(maxlen=1000)
        self._looks: list[float] = []  # a heap of moments
        self._cuts: dict[tuple[str, str], Rule] = {}
        self._deaf: dict[tuple[str, str], Rule] = {}
        self._signal_rules: dict[str, Rule] = {}
        self._baseline: dict[str, object] = {}
        self._nursery: trio.Nursery

    @asynccontextmanager
    async def _hold_open(self) -> AsyncIterator[None]:
        async with (
            self.network,
            open_background_nursery() as self._nursery,
            open_signaling(self.network) as self.signaling,
            AsyncExitStack() as stack,
        ):
            await self.open(stack)
            await trio.sleep(QUIET_DELAY)
            self._baseline = self.measure()
            self.begun_at = trio.current_time()
            yield

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

    def check_settled(self) -> None:
        """What must hold once the overlay has had `settle_timeout` seconds to heal.

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

    def is_at_rest(self) -> bool:
        """Whether nothing is under way that nodes begin by themselves now and then.

        If not, `finish` waits for it before it calls `check_quiet`, up to `REST_TIMEOUT`.
        """
        return True

    @property
    @abc.abstractmethod
    def join_timeout(self) -> float:
        """Seconds after which a join has ended, one way or the other."""

    @property
    def settle_timeout(self) -> float:
        """Seconds after the last fault in which the overlay must have healed."""
        return SETTLE_TIMEOUT

    async def recover(self) -> None:
        """Bring what is missing and no node can bring; called when all faults have ended."""
        await trio.lowlevel.checkpoint()

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

    def is_frozen(self, name: str) -> bool:
        """Whether *name*, a node or the server, is silent."""
        return _hosts_of(name) in self.network.frozen

    def list_cuts(self) -> list[tuple[str, str, str]]:
        """What is cut, those cut for longest first: who, the verb that heals it, and whom."""
        return [(who, "regains", whom) for who, whom in self._cuts] + [
            (who, "hears", whom) for who, whom in self._deaf
        ]

    @property
    def has_good_signals(self) -> bool:
        """Whether no signals are lost or late."""
        return not self._signal_rules

    @property
    def has_faults(self) -> bool:
        """Whether anything is cut or silent, signals are lost or late, or the server is away."""
        return bool(
            self._cuts
            or self._deaf
            or self._signal_rules
            or self.network.frozen
            or not self.signaling.is_running
        )

    # --- the story ------------------------------------------------------------------------

    @property
    def age(self) -> float:
        """Seconds since the story began."""
        return trio.current_time() - self.begun_at

    @property
    def calm_for(self) -> float:
        """Seconds since the last fault, crash or leave; 0 while any fault lasts."""
        return 0.0 if self.has_faults else trio.current_time() - self._trouble_at

    async def play(self, step: Step) -> None:
        """Wait for the moment of *step*, do it, and check.

        UnknownStep: nobody knows how to do that.
        """
        moment = self.begun_at + step.at
        while self._looks and self._looks[0] <= moment:
            await trio.sleep_until(heapq.heappop(self._looks))
            self.check()
        await trio.sleep_until(moment)
        self.network.note(f"story: {step}")
        self.perform(step)
        await trio.lowlevel.checkpoint()
        self.check()

    def perform(self, step: Step) -> None:
        """Do *step* now, without checking."""
        who, whom = step.who, step.whom
        life = self.lives.get(who)
        self._note_harm(step)
        if step.verb in (
            "crashes", "leaves", "restarts", "thaws", "regains", "hears", "get_through"
        ):  # fmt: skip
            self._trouble_at = trio.current_time()
        match step.verb:
            case "crashes" if who == SERVER:
                self.signaling.crash(noticed_after=self.noticed_after)
            case "restarts" if who == SERVER:
                self.signaling.restart()
            case "joins":
                self.begin(who, step.verb)
            case "leaves" | "withdraws" if life is not None and life.join_ended_at is None:
                life.joining.cancel()
            case "leaves" if life is not None:
                life.staying.cancel()
            case "crashes" if life is not None:
                self.network.crash(who, noticed_after=self.noticed_after)
                life.scope.cancel()
            case "gives_up":
                self.give_up(who)
            case "freezes":
                self.network.freeze(_hosts_of(who))
            case "thaws":
                self.network.thaw(_hosts_of(who))
            case "loses" if whom is not None and (who, whom) not in self._cuts:
                self._cuts[who, whom] = self._cut(f"{_hosts_of(who)} <-> {_hosts_of(whom)}")
            case "regains" if whom is not None and (who, whom) in self._cuts:
                self.network.lift(self._cuts.pop((who, whom)))
            case "cannot_hear" if whom is not None and (who, whom) not in self._deaf:
                self._deaf[who, whom] = self._cut(f"{_hosts_of(whom)} -> {_hosts_of(who)}")
            case "hears" if whom is not None and (who, whom) in self._deaf:
                self.network.lift(self._deaf.pop((who, whom)))
            case "get_lost" | "get_late" if (
                whom is not None and step.verb not in self._signal_rules
            ):
                probability = float(whom.removesuffix("%")) / 100
                fault = (
                    LoseSignals(probability)
                    if step.verb == "get_lost"
                    else DelaySignals(probability, MAX_SIGNAL_DELAY)
                )
                self._signal_rules[step.verb] = self.network.apply("* -> *", fault)
            case "get_through":
                self._let_signals_through()
            case (
                "passes" | "leaves" | "withdraws" | "crashes" | "restarts"
                | "loses" | "regains" | "cannot_hear" | "hears" | "get_lost" | "get_late"
            ):  # fmt: skip
                pass  # "time passes"; or it cannot be done, and is not
            case _:
                raise UnknownStep(step)

    def look_in(self, seconds: float) -> None:
        """`check` so many *seconds* from now, too, though the next step may be long after that."""
        heapq.heappush(self._looks, trio.current_time() + seconds)

    def could_hear_each_other(self, names: Collection[str], since: float) -> bool:
        """Whether these, nodes or residents, could hear each other all the time *since* then.

        None was silent, or left or crashed, and no two were cut off from each other. It knows of
        the last thousand things that went wrong, or were mended.
        """
        lasting = [_harm_between(who, whom, since) for who, whom in (*self._cuts, *self._deaf)]
        return (
            not any(harm.befalls(names) for harm in lasting)
            and not any(harm.at >= since and harm.befalls(names) for harm in self._harms)
            and not any(self.is_frozen(name) for name in names)
            and (SERVER not in names or self.signaling.is_running)
        )

    def _note_harm(self, step: Step) -> None:
        now = trio.current_time()
        match step.verb:
            case "loses" | "regains" | "cannot_hear" | "hears" if step.whom is not None:
                self._harms.append(_harm_between(step.who, step.whom, now))
            case "leaves" if (life := self.lives.get(step.who)) and life.join_ended_at is None:
                pass  # it only gives up
            case "leaves" | "crashes" | "restarts" | "freezes" | "thaws":
                self._harms.append(_Harm(now, frozenset(step.who.split(","))))

    def begin(self, name: str, verb: str) -> None:
        """A life called *name* begins, unless there is one, or its host has crashed."""
        if name not in self.lives and not self.network.host(name).is_crashed:
            self.lives[name] = life = Life(name, trio.current_time(), verb)
            self._nursery.start_soon(self._live, life)

    @contextmanager
    def joining(self, life: Life) -> Iterator[None]:
        """In this block *life* joins, until it gives up. Left without an error, it has joined."""
        try:
            with life.joining:
                yield
                life.has_joined = True
                self.count_joined += life.verb == "joins"
        finally:
            life.join_ended_at = trio.current_time()

    @asynccontextmanager
    async def acting(self, name: str) -> AsyncIterator[trio.Nursery]:
        """In this block the node *name* can `attempt` things; the nursery is its application's."""
        async with open_background_nursery() as nursery:
            self._actors[name] = _Actor(nursery)
            try:
                yield nursery
            finally:
                del self._actors[name]

    def attempt(self, name: str, action: Callable[[], Awaitable[object]]) -> None:
        """Let the node *name* try *action*, until `give_up`; an outcome is only noted.

        Nothing happens if it does not act.
        """
        actor = self._actors.get(name)
        if actor is None:
            return
        tries, scope = actor.tries, trio.CancelScope()
        tries.append(scope)  # before the task begins, so that it can be given up at once

        async def run() -> None:
            try:
                with scope:
                    await self.ignore_outcome(action)
            finally:
                tries.remove(scope)

        actor.nursery.start_soon(run)

    async def ignore_outcome(self, action: Callable[[], Awaitable[object]]) -> None:
        """Await *action*; if it comes to nothing, only note that."""
        try:
            await action()
        except OutcomeError as error:
            self.network.note(f"it came to nothing: {error}")

    def give_up(self, name: str) -> None:
        """Cancel what the node *name* tries."""
        for scope in self._list_tries(name):
            scope.cancel()
            self.look_in(MAX_LATENESS)

    def list_busy(self) -> list[str]:
        """Those who try something now, oldest first."""
        return [name for name in self._actors if self._list_tries(name)]

    def _list_tries(self, name: str) -> list[trio.CancelScope]:
        actor = self._actors.get(name)
        return [] if actor is None else actor.tries

    def _cut(self, selector: str) -> Rule:
        return self.network.cut(selector, noticed_after=self.noticed_after)

    def _let_signals_through(self) -> None:
        for rule in self._signal_rules.values():
            self.network.lift(rule)
        self._signal_rules.clear()

    def _end_all_faults(self) -> None:
        self._trouble_at = trio.current_time()
        self.network.heal()
        self._cuts.clear()
        self._deaf.clear()
        self._let_signals_through()
        for name in self.network.frozen:  # some whose program has ended, too
            self.network.thaw(name)
        self.signaling.restart()

    async def finish(self) -> None:
        """Heal, wait until all is quiet, check; let everybody leave, check that nothing is left.

        AssertionError: a check failed.
        """
        self._end_all_faults()
        await self.recover()
        settled_by = trio.current_time() + self.settle_timeout
        while not self.is_settled() and trio.current_time() < settled_by:
            await trio.sleep(1)
            self.check()
        self.check_settled()
        quiet_at = trio.current_time() + self.join_timeout + self.noticed_after
        while trio.current_time() < quiet_at + QUIET_DELAY:
            await trio.sleep(1)
            self.check()
        rests_by = trio.current_time() + REST_TIMEOUT
        while not self.is_at_rest() and trio.current_time() < rests_by:
            await trio.sleep(0.1)
            self.check()
        self.check_quiet()
        await self.empty()

    async def empty(self) -> None:
        """Let everybody leave.

        AssertionError: something is left.
        """
        await self.let_leave(list(self.lives), self._baseline)

    async def let_leave(self, names: Iterable[str], baseline: Mapping[str, object]) -> None:
        """Let these leave.

        AssertionError: what there is is not what there was when *baseline* was measured.
        """
        for name in names:
            self.lives[name].staying.cancel()
        await trio.sleep(self.leave_timeout + QUIET_DELAY)
        self.check()
        left = self.measure()
        assert left == baseline, (
            f"left over: {left}, where there was {baseline}:\n  "
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
        for name in sorted(self.network.holders - self.lives.keys() - self.residents):
            count = self.network.count_open()[name]
            raise AssertionError(f"{name} has ended and still holds {count} connections")

    @property
    def residents(self) -> frozenset[str]:
        """Hosts that are no lives of the story: the server, and what `open` brought."""
        return frozenset({AUTHORITY})


def _harm_between(who: str, whom: str, at: float) -> _Harm:
    return _Harm(at, frozenset(who.split(",")), frozenset(whom.split(",")))


def _hosts_of(names: str) -> str:
    """The hosts of a step's *names*, of one or more: the server's is called by its address."""
    return ",".join(AUTHORITY if name == SERVER else name for name in names.split(","))
