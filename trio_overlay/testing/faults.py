"""What can be wrong with a virtual network: rules, each a selector and an action.

A rule says *which ways* (from which hosts to which) and *what happens there*. Of several rules
with the same kind of action the latest wins; a way is cut as long as any rule cuts it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal, TypeAlias

Carrier: TypeAlias = Literal["peer", "socket"]
"""What a way carries: channels between peers, or a client's socket to a server."""


@dataclass(frozen=True, slots=True)
class Selector:
    """The ways from some hosts to others; its text is ``"n1,n2 -> n*"`` or ``"n1 <-> *"``.

    Hosts are given by name or by a shell pattern. A server's host has the server's authority
    for its name. ``<->`` means both directions.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    is_mutual: bool = False

    @classmethod
    def parse(cls, text: str) -> Selector:
        """The selector that *text* stands for; the reverse of `str`.

        ValueError: *text* is none.
        """
        is_mutual = "<->" in text
        sources, arrow, targets = text.partition("<->" if is_mutual else "->")
        names = tuple(name.strip() for name in sources.split(","))
        others = tuple(name.strip() for name in targets.split(","))
        if not arrow or not all(names) or not all(others) or "->" in targets:
            raise ValueError(f'a selector is like "n1,n2 -> n3" or "n1 <-> *", not {text!r}')
        return cls(names, others, is_mutual)

    def __str__(self) -> str:
        arrow = "<->" if self.is_mutual else "->"
        return f"{','.join(self.sources)} {arrow} {','.join(self.targets)}"

    def matches(self, source: str, target: str) -> bool:
        """Whether the way from *source* to *target* is among these."""
        return self._matches(source, target) or (self.is_mutual and self._matches(target, source))

    def pick(self, names: Iterable[str]) -> tuple[list[str], list[str]]:
        """Who of *names* is a source here, and who a target."""
        names = list(names)
        return list(filter(_fits(self.sources), names)), list(filter(_fits(self.targets), names))

    def _matches(self, source: str, target: str) -> bool:
        return _fits(self.sources)(source) and _fits(self.targets)(target)


@dataclass(frozen=True, slots=True)
class Latency:
    """A way takes between `low` and `high` seconds; drawn once for each way."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Cut:
    """Nothing gets through; what is sent waits, and goes on when the way is healed.

    A channel that is cut in either direction breaks at both ends after `noticed_after` seconds,
    as a WebRTC connection does that hears no more from the other end; None means never.
    """

    noticed_after: float | None = 30.0


@dataclass(frozen=True, slots=True)
class LoseSignals:
    """Each signal that a peer connection is given may be lost, with this probability."""

    probability: float = 1.0


@dataclass(frozen=True, slots=True)
class DelaySignals:
    """Each signal that a peer connection is given may be late, with this probability.

    By up to `seconds`, so that others that were said after it come before it.
    """

    probability: float = 1.0
    seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class FailHandshakes:
    """Each handshake may come to nothing, with this probability: all is said, none connects."""

    probability: float = 1.0


@dataclass(frozen=True, slots=True)
class SlowReader:
    """The target takes only so many frames a second from each channel; senders feel it."""

    frames_per_second: float


Action: TypeAlias = Latency | Cut | LoseSignals | DelaySignals | FailHandshakes | SlowReader


@dataclass(frozen=True, eq=False, slots=True)
class Rule:
    """One fault, in force until it is lifted. Two rules that read alike are two rules."""

    selector: Selector
    action: Action
    carrier: Carrier | None = None
    """What it is for; None means both."""

    def __str__(self) -> str:
        carrier = "" if self.carrier is None else f" ({self.carrier})"
        return f"{self.selector}{carrier}: {self.action}"


@dataclass(frozen=True, slots=True)
class Conditions:
    """What holds for one way at one time, all rules taken together."""

    latency: Latency
    is_cut: bool = False
    noticed_after: float | None = None
    signal_loss: float = 0.0
    signal_delay: DelaySignals | None = None
    handshake_failure: float = 0.0
    frames_per_second: float | None = None


def conditions_of(
    source: str, target: str, carrier: Carrier, rules: Iterable[Rule], latency: Latency
) -> Conditions:
    """What *rules*, oldest first, make of the way from *source* to *target*.

    *latency* is that of a way of which no rule speaks.
    """
    cuts: list[Cut] = []
    loss = failure = 0.0
    delay: DelaySignals | None = None
    pace: float | None = None
    for rule in rules:
        if rule.carrier not in (None, carrier) or not rule.selector.matches(source, target):
            continue
        match rule.action:
            case Latency() as found:
                latency = found
            case Cut() as cut:
                cuts.append(cut)
            case LoseSignals(probability):
                loss = probability
            case DelaySignals() as delay:
                pass
            case FailHandshakes(probability):
                failure = probability
            case SlowReader(frames_per_second):
                pace = frames_per_second
    # The most attentive of several cuts decides when a channel breaks.
    noticed = [cut.noticed_after for cut in cuts if cut.noticed_after is not None]
    return Conditions(latency, bool(cuts), min(noticed, default=None), loss, delay, failure, pace)


@lru_cache(maxsize=1024)
def _fits(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a name fits one of *patterns*."""
    # A name fits itself, whatever of it could be read as a pattern: "[::1]:5000".
    names = frozenset(patterns)
    shapes = [pattern for pattern in patterns if any(special in pattern for special in "*?[")]
    if not shapes:
        return names.__contains__
    return lambda name: name in names or any(fnmatchcase(name, shape) for shape in shapes)
