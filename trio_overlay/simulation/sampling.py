"""A network of very many peers that sample it: real decisions, virtual time, no sockets.

What a peer decides is decided by its `Spray`, as in a real one. What happens around it, arcs that
open, frames on their way, losses that are noticed, are events on an agenda. An arc opens and closes
at both of its ends at the same moment.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final, assert_never

from trio_overlay.protocol.sampling import Action, Close, Connect, HandOver, Spray, Tell
from trio_overlay.simulation.agenda import Agenda
from trio_overlay.simulation.links import SERVER, Links

ATTEMPT_TIMEOUT: Final = 10.0
"""Seconds after which an arc that doesn't open has failed; as neighborhood-wrtc's."""
LEAVE_TIME: Final = 5.0
"""Seconds that a leaving peer stays to introduce its neighbours to each other."""
FIRST_EXCHANGE: Final = 0.1
"""Share of an interval in which a newcomer begins its first exchange, at random. A view of one arc
is a bad one to welcome the next newcomer with."""
LEAVING_ROUNDS: Final = 10
"""Rounds in which those leave who do: all at once would introduce leavers to leavers."""


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """Who comes, goes and crashes, and when."""

    count: int
    """How many peers come, the first of whom is alone."""
    rate: float = 100.0
    """Arrivals a second; intervals between them are exponential. The contact is any peer that has
    joined, all with the same probability."""
    growth: float = 0.01
    """Arrivals a second for each peer that is there, at most: all views go by those of the first
    few peers, so these must have met before the crowd comes."""
    interval: float = 60.0
    """Seconds between two exchanges that a peer begins: a round."""
    rounds: int = 30
    """From the last arrival to the failure, and from there to the end; only the former if there is
    no failure."""
    crash: float = 0.0
    """The share of all peers that crash at one moment."""
    leave: float = 0.0
    """The share of all peers that leave in good order, in the rounds after it."""
    rejoins: bool = True
    """Whether peers that are left with no arc at all, to or from anybody, join again."""

    @property
    def has_failure(self) -> bool:
        return self.crash > 0 or self.leave > 0


def _ignore(moment: float) -> None:
    """Look away."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What a world calls with the moment, so that somebody can look at it."""

    on_round: Callable[[float], None] = _ignore
    """At the end of each round."""
    before_failure: Callable[[float], None] = _ignore
    """When the network has settled, whether or not there is a failure."""
    after_failure: Callable[[float], None] = _ignore
    """When nobody has noticed yet."""


class SamplingWorld:
    """The peers of one network; `run` lets them live through *plan*."""

    def __init__(
        self, plan: SamplingPlan, links: Links, *, seed: int = 0, a: float = 1.0, b: float = 0.0
    ) -> None:
        self.plan = plan
        self.count_exchanges = 0
        self.count_connections = 0
        """WebRTC connections made, those of first arcs among them."""
        self.count_arcs = 0
        """Arcs opened, most of them over new connections."""
        self.count_failed = 0
        self.count_rejoined = 0
        self.agenda = Agenda(0.1)
        self._links = links
        self._latency = links.latency
        self._rng = random.Random(f"{seed}/world")
        self._spray_of: Callable[[int], Spray] = lambda node: Spray(
            str(node),
            self.inviews[node],
            random.Random(f"{seed}/spray/{node}"),
            a=a,
            b=b,
        )
        self.sprays: list[Spray] = []
        self.inviews: list[Counter[str]] = []
        self.outviews: list[Counter[str]] = []
        """The arcs each peer has open; those it is handing over are not in its view any more."""
        self.is_alive: list[bool] = []
        self.joined: list[int] = []
        """Whom newcomers may have for a contact: the first, and all who have joined since."""

    @property
    def now(self) -> float:
        return self.agenda.now

    def run(self, watch: Watch = Watch(), on_bucket: Callable[[], None] | None = None) -> None:
        """Live through the plan, once; *on_bucket* is called now and then."""
        plan, put = self.plan, self.agenda.put
        at = 0.0
        for node in range(plan.count):
            put(at, self._arrive, node, 0)
            at += self._rng.expovariate(min(plan.rate, plan.growth * (node + 1)))
        fails_at = at + plan.rounds * plan.interval
        put(fails_at, partial(self._fail, watch), 0, 0)
        ends_at = fails_at + plan.rounds * plan.interval * plan.has_failure
        for number in range(1, int(ends_at / plan.interval) + 1):
            put(number * plan.interval, lambda moment, _, __: watch.on_round(moment), 0, 0)
        # One bucket more: what is due in the last one never happens.
        self.agenda.run(ends_at + 1.0, on_bucket)

    def alive(self) -> list[int]:
        """The numbers of those who are alive, and not leaving."""
        return [
            node
            for node, (alive, spray) in enumerate(zip(self.is_alive, self.sprays, strict=True))
            if alive and not spray.has_left
        ]

    def graph(self) -> list[list[int]]:
        """The open arcs among those alive, who are counted from 0 here, in their order."""
        alive = self.alive()
        index_of = {str(node): index for index, node in enumerate(alive)}
        return [
            [
                index_of[peer]
                for peer, arcs in self.outviews[node].items()
                if peer in index_of
                for _ in range(arcs)
            ]
            for node in alive
        ]

    # --- events ---------------------------------------------------------------------------

    def _arrive(self, moment: float, node: int, _: int) -> None:
        self.inviews.append(Counter())
        self.outviews.append(Counter())
        self.sprays.append(self._spray_of(node))
        self.is_alive.append(True)
        first = self._rng.random() * FIRST_EXCHANGE * self.plan.interval
        if self.joined:
            first += self._seek_contact(moment, node, self._rng.choice(self.joined))
        else:
            self.joined.append(node)
        self.agenda.put(moment + first, self._exchange, node, 0)

    def _seek_contact(self, moment: float, node: int, contact: int) -> float:
        """Let *node* join by *contact*; the seconds until their arc is open."""
        # The first arc comes up through a server: an offer and an answer.
        way = 2 * (self._latency(node, SERVER) + self._latency(SERVER, contact))
        way += self._links.flights_to_connect * self._latency(node, contact)
        self.agenda.put(moment + way, self._join, node, contact)
        return way

    def _join(self, moment: float, node: int, contact: int) -> None:
        if not self.is_alive[node] or not self.is_alive[contact]:
            return
        self.count_connections += 1
        self.joined.append(node)
        self._open(moment, node, contact)
        self._act(moment, node, self.sprays[node].join(str(contact), f"job {node}"))

    def _exchange(self, moment: float, node: int, _: int) -> None:
        spray = self.sprays[node]
        if not self.is_alive[node] or spray.has_left:
            return
        self.agenda.put(moment + self.plan.interval, self._exchange, node, 0)
        partner = spray.choose_partner()
        if partner is None:
            if self.plan.rejoins and not self.inviews[node] and len(self.joined) > 1:
                self._rejoin(moment, node)
            self._act(moment, node, spray.reach_out())
            return
        self.count_exchanges += 1
        self._act(moment, node, [Tell(partner, spray.greeting()), *spray.exchange(partner)])

    def _rejoin(self, moment: float, node: int) -> None:
        others = [other for other in self.alive() if other != node]
        if others:
            self.count_rejoined += 1
            self._seek_contact(moment, node, self._rng.choice(others))

    def _notice(self, moment: float, node: int, dead: int) -> None:
        """The peer *node* takes *dead* for what it is."""
        if not self.is_alive[node]:
            return
        peer = str(dead)
        self.inviews[node].pop(peer, None)
        self.outviews[node].pop(peer, None)
        self._act(moment, node, self.sprays[node].lost(peer))

    def _fail(self, watch: Watch, moment: float, _: int, __: int) -> None:
        watch.before_failure(moment)
        plan, rng = self.plan, self._rng
        if not plan.has_failure:
            return
        alive = self.alive()
        for node in sorted(rng.sample(alive, round(plan.crash * len(alive)))):
            self._die(moment, node, self._links.noticed_after)
        alive = self.alive()
        for node in sorted(rng.sample(alive, round(plan.leave * len(alive)))):
            at = moment + rng.random() * LEAVING_ROUNDS * plan.interval
            self.agenda.put(at, self._leave, node, 0)
        watch.after_failure(moment)

    def _leave(self, moment: float, node: int, _: int) -> None:
        actions = self.sprays[node].leave()
        self._act(moment, node, (action for action in actions if not isinstance(action, Close)))
        self.agenda.put(moment + LEAVE_TIME, self._close_all, node, 0)

    def _close_all(self, moment: float, node: int, _: int) -> None:
        self._die(moment, node, 0.0)

    def _die(self, moment: float, node: int, noticed_after: float) -> None:
        self.is_alive[node] = False
        for peer in dict.fromkeys((*self.outviews[node], *self.inviews[node])):
            neighbour = int(peer)
            at = moment + noticed_after + self._latency(node, neighbour)
            self.agenda.put(at, self._notice, neighbour, node)

    # --- what peers do --------------------------------------------------------------------

    def _act(self, moment: float, node: int, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Connect(source, target):
                    self._begin(moment, node, int(source), int(target), None)
                case HandOver(peer, taker):
                    to = node if peer == taker else int(peer)
                    self._begin(moment, node, int(taker), to, int(peer))
                case Close(peer):
                    self._close(node, int(peer))
                case Tell(peer, _):
                    at = moment + self._latency(node, int(peer))
                    self.agenda.put(at, partial(self._hear, action), int(peer), node)
                case _:
                    assert_never(action)

    def _hear(self, tell: Tell, moment: float, node: int, sender: int) -> None:
        if self.is_alive[node]:
            self._act(moment, node, self.sprays[node].receive(str(sender), tell.frame))

    def _begin(
        self, moment: float, bridge: int, source: int, target: int, handed: int | None
    ) -> None:
        """*bridge*, who may be one of the two, wants an arc from *source* to *target*.

        If *handed* is a peer, the bridge's arc to it is closed afterwards.
        """
        way = 0.0 if bridge == source else self._latency(bridge, source)
        offer = sum(
            self._latency(one, other)
            for one, other in ((source, bridge), (bridge, target))
            if one != other
        )
        way += 2 * offer
        if not self._are_connected(source, target):
            way += self._links.flights_to_connect * self._latency(source, target)
        self.agenda.put(moment + way, partial(self._end, bridge, handed), source, target)

    def _end(
        self, bridge: int, handed: int | None, moment: float, source: int, target: int
    ) -> None:
        """The attempt is decided: an arc from *source* to *target*, or none."""
        alive = self.is_alive
        is_new = not self._are_connected(source, target)
        fails = is_new and self._rng.random() < self._links.handshake_failure
        if alive[source] and alive[target] and alive[bridge] and not fails:
            self.count_connections += is_new
            self._open(moment, source, target)
        elif alive[source]:
            at = moment + ATTEMPT_TIMEOUT
            self.agenda.put(at, self._note_failure, source, target)
        elif handed is not None and alive[bridge] and self.outviews[bridge][str(handed)]:
            # Who was to take it is gone: it stays.
            self._act(moment, bridge, self.sprays[bridge].opened(str(handed)))
            return
        if handed is not None and alive[bridge]:
            self._close(bridge, handed)

    def _note_failure(self, moment: float, node: int, target: int) -> None:
        if self.is_alive[node]:
            self.count_failed += 1
            self._act(moment, node, self.sprays[node].failed(str(target)))

    def _open(self, moment: float, source: int, target: int) -> None:
        self.count_arcs += 1
        self.outviews[source][str(target)] += 1
        self.inviews[target][str(source)] += 1
        self._act(moment, source, self.sprays[source].opened(str(target)))

    def _close(self, source: int, target: int) -> None:
        _take_one(self.outviews[source], str(target))
        _take_one(self.inviews[target], str(source))

    def _are_connected(self, one: int, other: int) -> bool:
        return str(other) in self.outviews[one] or str(one) in self.outviews[other]


def _take_one(counts: Counter[str], key: str) -> None:
    """One less of *key*; what has none has no key either."""
    if counts[key] > 1:
        counts[key] -= 1
    else:
        del counts[key]
