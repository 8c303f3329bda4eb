"""What a peer decides that samples the network: whom it has arcs to, and when they change.

Spray (Nédelec, Tanke, Frey, Molli, Mostéfaoui: "Spray: an Adaptive Random Peer Sampling Protocol",
2015; Nédelec, Tanke, Molli, Mostéfaoui, Frey: "An adaptive peer-sampling protocol for building
networks of browsers", World Wide Web 2018). Every peer has a *partial view*: the arcs it has opened
to others, several to one peer among them. A newcomer brings about a·ln(n)+b arcs into a network
of n, whoever leaves or crashes takes as many out, and exchanges even them out: so all views have
about a·ln(n)+b arcs, though nobody knows n.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from trio_overlay.protocol.sampling_frames import (
    Exchange,
    Join,
    JoinBack,
    Leave,
    Response,
    SamplingFrame,
)

DEFAULT_MAX_ARCS: Final = 256
"""With the default a and b, a view of 24 arcs belongs to a network as large as mankind. What is
above this bound was opened because somebody bade us, again and again."""

BALANCE: Final = 0.5 - 0.5772156649015329
"""What a view of a·ln(n)+b has too many, negative and in units of a: in a network of two each has
a+b arcs, and newcomers add a/3, a/4, a/5 … to the mean: it comes to a·(ln(n)+0.577-0.5)+b."""

MAX_OBSERVATIONS: Final = 16
"""Sizes of views that an estimate is the mean of, roughly: older ones fade away."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Let there be an arc from `source` to `target`, one of whom may be we ourselves.

    If we are neither, both are neighbours, and we pass on what they say to each other until they
    are connected.
    """

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """Our arc to `peer` becomes `taker`'s; our arc to `taker` itself becomes `taker`'s to us.

    Ours is out of the view already. It is best closed when the other is there, so that nobody is
    without a neighbour in between, but closed in any case.
    """

    peer: str
    taker: str


@dataclass(frozen=True, slots=True)
class Close:
    """Close one of our arcs to `peer`; it is out of the view already."""

    peer: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Say `frame` to a neighbour."""

    peer: str
    frame: SamplingFrame


Action: TypeAlias = Connect | HandOver | Close | Tell


class PartialView:
    """The arcs of one peer, each with its age: a multiset of the peers they lead to."""

    __slots__ = ("_arcs", "_now")

    def __init__(self) -> None:
        # Oldest first: what is opened is new. The moment is that of the opening, so that nothing
        # has to be touched when all grow older.
        self._arcs: list[tuple[str, int]] = []
        self._now = 0

    def __len__(self) -> int:
        """How many arcs there are."""
        return len(self._arcs)

    def __iter__(self) -> Iterator[str]:
        """The peer at the end of each arc, oldest arc first; some may come several times."""
        return (peer for peer, _ in self._arcs)

    def ages(self) -> list[tuple[str, int]]:
        """Each arc's peer and age in exchanges, oldest first."""
        return [(peer, self._now - since) for peer, since in self._arcs]

    def counts(self) -> Counter[str]:
        """How many arcs lead to each peer."""
        return Counter(self)

    def add(self, peer: str) -> None:
        """A new arc leads to *peer*."""
        self._arcs.append((peer, self._now))

    def grow_older(self) -> None:
        self._now += 1

    def oldest(self) -> str | None:
        """The peer that the oldest arc leads to; None without any arc."""
        return self._arcs[0][0] if self._arcs else None

    def take_oldest(self, peer: str) -> bool:
        """Remove the oldest arc to *peer*; whether there was one."""
        for index, (known, _) in enumerate(self._arcs):
            if known == peer:
                del self._arcs[index]
                return True
        return False

    def take_sample(self, count: int, rng: random.Random) -> list[str]:
        """Remove *count* arcs at random, and at most all; the peers they led to."""
        chosen = sorted(rng.sample(range(len(self._arcs)), min(count, len(self._arcs))))
        taken = [self._arcs[index][0] for index in chosen]
        for index in reversed(chosen):
            del self._arcs[index]
        return taken

    def take_all(self, peer: str) -> int:
        """Remove all arcs to *peer*; how many there were."""
        before = len(self._arcs)
        self._arcs = [arc for arc in self._arcs if arc[0] != peer]
        return before - len(self._arcs)

    def clear(self) -> list[str]:
        """Remove all arcs; the peers they led to."""
        peers = list(self)
        self._arcs.clear()
        return peers


class Spray:
    """One peer's partial view, and what it decides.

    Each method takes one thing that happened, changes the view at once and gives what is to be done
    about it. An arc is in the view from `opened` on. Whoever calls it keeps it posted of all arcs
    that open, fail to, or are lost.

    *me* is this peer's id, which never gets into its own view. *inview* says who has arcs to us,
    and how many; it is read whenever it matters, so it should be live. All peers of a network
    should have the same *a* and *b*.

    ValueError: *a* is less than 1, *b* negative, or *max_arcs* less than 1.
    """

    def __init__(
        self,
        me: str,
        inview: Mapping[str, int],
        rng: random.Random,
        *,
        a: float = 1.0,
        b: float = 0.0,
        max_arcs: int = DEFAULT_MAX_ARCS,
    ) -> None:
        if not (1 <= a < math.inf and 0 <= b < math.inf and max_arcs >= 1):
            raise ValueError(f"a, b, max_arcs are from 1, 0, 1 up: not {a}, {b}, {max_arcs}")
        self.me = me
        self.view = PartialView()
        self.has_left = False
        self.inview = inview
        self._rng = rng
        self._a = a
        self._b = b
        self._max_arcs = max_arcs
        self._job: str | None = None
        self._welcomed: set[str] = set()
        """Whose join was taken; each one's once, as long as it has an arc to us."""
        self._mean_arcs = 0.0
        self._count_observed = 0

    # --- what the peer wants --------------------------------------------------------------

    def join(self, contact: str, job: str) -> list[Action]:
        """The first arc, to *contact*, is open, and in the view: become part of its network.

        *job* is a fresh name, up to `MAX_NAME` characters.
        """
        self._job = job
        return [
            *(Connect(self.me, contact) for _ in range(self._round(self._a - 1))),
            Tell(contact, Join(job)),
        ]

    def choose_partner(self) -> str | None:
        """Time for an exchange: all arcs grow older; the peer at the end of the oldest.

        None if the view is empty: see `reach_out`. Otherwise say `greeting` to it, and then call
        `exchange`; or `lost`, if it cannot be reached.
        """
        self.view.grow_older()
        if self.view:
            self._observe(len(self.view))
        return self.view.oldest()

    def greeting(self) -> Exchange:
        """What to say to the partner before an exchange."""
        return Exchange(arcs=len(self.view))

    def exchange(self, partner: str) -> list[Action]:
        """Give half of the view away to *partner*, which has been told and gives us half of its.

        What it gives arrives by `opened`. The oldest arc to it is always among what we give: that
        is how arcs to the dead are found, and why their number doesn't grow. Nothing is given if
        the view has no arc to *partner* any more.
        """
        count = math.ceil(len(self.view) / 2)
        if not self.view.take_oldest(partner):
            return []
        given = [partner, *self.view.take_sample(count - 1, self._rng)]
        return [HandOver(peer, partner) for peer in given]

    def reach_out(self) -> list[Action]:
        """An arc to somebody who has one to us, if the view is empty.

        The paper leaves such a peer waiting until it gets an arc by somebody else's exchange; if
        nobody's comes, it is lost.
        """
        return self._reach_out(None)

    def leave(self) -> list[Action]:
        """Leave: close all arcs, after the network was mended.

        A network of n-1 has a·ln(n) + b + a arcs fewer. Ours and those that lead to us are twice
        a·ln(n) + b: those who have arcs to us get all but a of ours.
        """
        self.has_left = True
        given = self.view.clear()
        self._rng.shuffle(given)
        inview = list(self.inview)
        actions: list[Action] = []
        for peer in given[: self._round(max(0.0, len(given) - self._a))]:
            takers = [taker for taker in inview if taker != peer]
            if takers:
                actions.append(Connect(self._rng.choice(takers), peer))
        actions += (Tell(peer, Leave()) for peer in inview)
        actions += map(Close, given)
        return actions

    # --- what happens to it ---------------------------------------------------------------

    def opened(self, peer: str) -> list[Action]:
        """An arc of ours to *peer* is open, whoever wanted it."""
        if peer == self.me or self.has_left or len(self.view) >= self._max_arcs:
            return [Close(peer)]
        self.view.add(peer)
        return []

    def failed(self, peer: str | None) -> list[Action]:
        """An arc of ours to *peer* could not be opened: another one instead.

        `onArcDown` of the paper: the arc was somebody's, and is to be kept; so it always duplicates
        one that there is.
        """
        if self.has_left:
            return []
        known = self._somebody(peer)
        return [] if known is None else [Connect(self.me, known)]

    def lost(self, peer: str, arcs: int | None = None) -> list[Action]:
        """*peer* is gone, without a word: or only so many *arcs* of ours to it are.

        `onPeerDown` of the paper: each arc is replaced but with probability a by the size of the
        view, so that of all the arcs that led to the lost peer about a are not.
        """
        before = len(self.view)
        if arcs is None:
            gone = self.view.take_all(peer)
        else:
            gone = sum(self.view.take_oldest(peer) for _ in range(min(arcs, before)))
        if not gone:
            return []
        known = [
            self._somebody(peer) for _ in range(gone) if self._rng.random() >= self._a / before
        ]
        actions: list[Action] = [Connect(self.me, one) for one in known if one is not None]
        return actions or self._reach_out(peer if arcs is None else None)

    def receive(self, sender: str, frame: SamplingFrame) -> list[Action]:
        """The neighbour *sender* said *frame*. What it says of its own id is not believed."""
        if self.has_left:
            return []
        match frame:
            case Exchange(arcs=arcs):
                return self._take_exchange(sender, arcs)
            case Join(job):
                return self._welcome(sender, job)
            case JoinBack(job, is_alone, _):
                return self._finish_join(sender, job, is_alone)
            case Leave():
                closed: list[Action] = [Close(sender)] * self.view.take_all(sender)
                return closed + self.reach_out() if closed else []
            case Response():
                return []
            case _:
                assert_never(frame)

    # --- what it knows of the network -----------------------------------------------------

    def sample(self, count: int) -> list[str]:
        """Up to *count* different peers at random: from the view, and then from the inview.

        ValueError: *count* is negative.
        """
        if count < 0:
            raise ValueError(f"a sample has no {count} peers")
        peers = list(self.view.counts())
        chosen = self._rng.sample(peers, min(count, len(peers)))
        if len(chosen) < count:
            others = [peer for peer in self.inview if peer not in peers and peer != self.me]
            chosen += self._rng.sample(others, min(count - len(chosen), len(others)))
        return chosen

    def estimate_size(self) -> float:
        """About how many peers the network has, oneself included: e to the power of a view's size.

        Views are taken before exchanges, our own and those that partners of ours tell of, and
        averaged. The first few say little.
        """
        mean = self._mean_arcs if self._count_observed else len(self.view)
        if not mean:
            return 2.0 if self.inview else 1.0
        return max(2.0, math.exp(min(700.0, (mean - self._b) / self._a + BALANCE)))

    # --------------------------------------------------------------------------------------

    def _take_exchange(self, sender: str, arcs: int | None) -> list[Action]:
        if sender not in self.inview:
            return []  # nobody has us in its view without an arc
        if arcs is not None and 0 < arcs <= self._max_arcs:
            self._observe(arcs)
        given = self.view.take_sample(math.ceil(len(self.view) / 2), self._rng)
        return [HandOver(peer, sender) for peer in given]

    def _welcome(self, newcomer: str, job: str | None) -> list[Action]:
        self._welcomed &= self.inview.keys()
        if newcomer not in self.inview or newcomer in self._welcomed:
            return []
        self._welcomed.add(newcomer)
        # An arc of somebody to itself is none: ours takes its place.
        sources = [self.me if peer == newcomer else peer for peer in self.view]
        actions: list[Action] = [Connect(source, newcomer) for source in sources]
        if not sources:
            # The arcs of a network of two; half of them the newcomer's, so that it makes no
            # difference which of the two is the contact of the third.
            actions += [Connect(self.me, newcomer)] * self._round(self._a + self._b)
            actions += [Connect(newcomer, self.me)] * self._round(self._b)
        if job is not None:
            actions.append(Tell(newcomer, JoinBack(job, arcs=len(actions))))
        return actions

    def _finish_join(self, contact: str, job: str, is_alone: bool) -> list[Action]:
        if job != self._job:
            return []
        self._job = None
        count = self._round(self._a) + self._round(2 * self._b) if is_alone else 0
        return [Connect(contact, self.me)] * count

    def _reach_out(self, but: str | None) -> list[Action]:
        if self.view or self.has_left:
            return []
        known = self._somebody(but)
        return [] if known is None else [Connect(self.me, known)]

    def _somebody(self, but: str | None = None) -> str | None:
        """Whom a further arc may lead to: one of those that have the fewest, and who is not *but*.

        The paper takes any arc's end, spray-wrtc the rarest: that keeps more neighbours apart.
        """
        counts = self.view.counts()
        del counts[but or ""]
        if counts:
            fewest = min(counts.values())
            return self._rng.choice([peer for peer, n in counts.items() if n == fewest])
        inview = [peer for peer in self.inview if peer not in (but, self.me)]
        return self._rng.choice(inview) if inview else None

    def _round(self, number: float) -> int:
        """*number* as a whole number at random, so that its mean is right; 0 if it is below."""
        whole = math.floor(max(0.0, number))
        return whole + (self._rng.random() < number - whole)

    def _observe(self, arcs: int) -> None:
        self._count_observed = min(self._count_observed + 1, MAX_OBSERVATIONS)
        self._mean_arcs += (arcs - self._mean_arcs) / self._count_observed
