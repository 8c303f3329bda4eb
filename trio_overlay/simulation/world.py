"""A tree of very many nodes in virtual time, without tasks: pure objects, and what moves frames.

What a node decides is decided by its `Branch`, as in a real one; here is what nodes/tree.py,
signaling/bootstrap.py and the network do around it: carry frames, let time pass, notice losses.
The bootstrap server is a post office: it gives ids, passes frames on, and tells of withdrawals.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from math import isnan
from operator import attrgetter
from typing import Final

from trio_overlay.nodes.tree import REPLACE_TIMEOUT
from trio_overlay.nodes.tree_way_up import CONFIRM_TIMEOUT, MAX_REJOIN_DELAY, MIN_REJOIN_DELAY
from trio_overlay.protocol.branch import (
    ADMIT,
    MAX_REQUESTS,
    WAIT,
    Admit,
    Branch,
    Delegate,
    Drop,
    HandOver,
    Placement,
    PlaceRule,
    Verdict,
    Wait,
    hash_place,
    make_node_id,
)
from trio_overlay.protocol.identifiers import random_identifiers
from trio_overlay.protocol.switchboard import DEFAULT_GRACE_TIMEOUT
from trio_overlay.simulation.agenda import Act, Agenda
from trio_overlay.simulation.collector import no_collector
from trio_overlay.simulation.frames import (
    ANSWER,
    BEAT,
    DESCENT,
    DIAL,
    DONE,
    FRAME_SIZES,
    HELLO,
    OFFER,
    REQUEST,
    WITHDRAWN,
)
from trio_overlay.simulation.links import Links
from trio_overlay.simulation.requests import Requests
from trio_overlay.simulation.scenarios import Plan
from trio_overlay.simulation.traffic import ROOT, Traffic, parts

NOBODY: Final = -1
FROM_SERVER: Final = -1
"""In the place of a link: the frame comes from the server."""

# What a joiner knows of its own attempt: linked is who has an open channel, connected who has its
# parent's word that it stands in the tree.
ASKING, ANSWERED, LINKED, CONNECTED, OVER = range(5)

# How far who answers is: admitted means no more than that; from the server's hello on it is heard
# there, until it sees the channel open.
ADMITTED, HEARD, OPEN = range(3)

NUMBER_INTERVAL: Final = 0.9
"""Seconds from one of the root's numbers to the next, as in nodes/tree.py. Numbers are not events
here: a node is taken to have the one that was issued last."""


class TreeWorld:
    """A world that lives through *plan* once, in `run`; what came of it stands in its attributes.

    *place_rule* is that of all nodes. A node whose join came to nothing tries again, a second
    later, until it has tried *attempts* times. One that has lost its parent looks for another, for
    as long as it takes, unless *rejoins* is false.

    With *has_limits* nodes keep as many requests as real ones do, and drop what is more. Without,
    they keep all, and `peak_requests` says how many those of the root were.
    """

    def __init__(
        self,
        plan: Plan,
        links: Links,
        *,
        seed: int = 0,
        max_degree: int = 10,
        place_rule: PlaceRule | None = None,
        request_timeout: float = 30.0,
        attempts: int = 1,
        rejoins: bool = True,
        has_limits: bool = False,
        identifiers: Iterator[str] | None = None,
    ) -> None:
        count = plan.count_nodes
        self.plan = plan
        self.links = links
        self.max_degree = max_degree
        self.place_rule: PlaceRule | None = place_rule or hash_place
        self.attempts = attempts
        self.rejoins = rejoins
        self.has_limits = has_limits
        self.agenda = Agenda(min(_bucket_width(plan), request_timeout / 2))
        self.traffic = Traffic(self.agenda, links, plan)
        self._count_arrived = self.traffic.count_arrived
        self._count_lost = self.traffic.count_lost
        self._rng = random.Random(f"{seed}/world")
        self._node_id_rng = random.Random(f"{seed}/node ids")
        self._identifiers = identifiers or random_identifiers(random.Random(f"{seed}/server"))

        # --- of each node ---
        self._branches: list[Branch[int] | None] = [None] * count
        """Made when the first frame reaches a node: nine of ten are leaves to the end, and have
        nothing to decide. Until then it would be as `Branch` makes it."""
        self.is_alive = bytearray(b"\1") * count
        self.up = array("i", [NOBODY]) * count
        """The attempt whose channel to the parent is open, as far as the node knows."""
        self.is_placed = bytearray(count)
        """Whether it has its parent's word that there is a way to the root."""
        self.is_placed[ROOT] = True
        self.joining = array("i", [NOBODY]) * count
        """The attempt that is under way."""
        self.tries = bytearray(count)
        self.joined_after = array("d", [math.nan]) * count
        """Seconds from the arrival to the first parent; NaN as long as there is none."""
        self.orphaned_at = array("d", [math.nan]) * count
        """Since when it has been without its parent; NaN while it has one or never had."""

        # --- of each attempt to join, which is a link once it is connected ---
        self._count_attempts = 0
        self.node_of = array("i")
        self.acceptor_of = array("i")
        """Who answers, or has answered; NOBODY again after that has failed."""
        self._partner_of = array("i")  # who answers, as far as the joiner knows
        self._answerer_of = array("i")  # whose answer the server was the last to pass on
        self._has_left = bytearray()  # whether the server has seen the joiner go
        self._states = bytearray()
        self._answer_states = bytearray()  # how far who answers is
        self._origins: list[str] = []
        self._delays: list[float] = []  # between joiner and acceptor
        self._attempt_of: dict[str, int] = {}
        self._make_room(count)

        # --- what is observed ---
        self.count_dropped = 0
        """Requests that a branch had a reason not to take."""
        self.count_failed = 0
        """Attempts that came to nothing."""
        self.count_connected = 0
        self.count_closed = 0
        """Nodes that have left or crashed."""
        self.peak_requests = 0
        """Of the root."""
        self.count_orphans = 0
        """Nodes that are alive and without the parent that they had."""
        self.count_orphaned = 0
        """How often a node has lost its parent."""
        self.orphans: dict[int, int] = {0: 0}
        """`count_orphans` at the end of each second in which it changed."""
        self.orphan_times = array("d")
        """Seconds from the loss of a parent to a new one, of those who found one."""

        self._max_requests = MAX_REQUESTS if has_limits else 2**62
        self._kept_size = FRAME_SIZES[REQUEST] if has_limits else 0

        # A bound method is an object; made once, millions of events can share it.
        self._on_start = self._start
        self._on_dial = self._serve_joiner
        self._on_hello = self._send_offer
        self._on_offer = self._pass_to_root
        self._on_request = self._take_request
        self._on_requests = self._take_requests
        self._on_acceptor_dial = self._serve_acceptor
        self._on_acceptor_hello = self._send_answer
        self._on_answer = self._pass_answer
        self._on_answered = self._take_answer
        self._on_connect = self._connect
        self._on_acceptor_connected = self._acceptor_connects
        self._on_joiner_connected = self._joiner_connects
        self._on_done = self._take_done
        self._on_descent = self._take_descent
        self._on_beat = self._take_beat

        self._requests = Requests(REPLACE_TIMEOUT, request_timeout)
        self.agenda.sweep_with(self._requests.sweep)
        timeouts, matter = self.agenda.timeouts, self._are_not_connected
        self._confirm_deadlines = timeouts(CONFIRM_TIMEOUT, self._end_link, matter)
        self._answer_deadlines = timeouts(request_timeout, self._end_answer, matter)
        self._deadlines = timeouts(request_timeout, self._end_attempt, matter)
        self._begin(plan)

    def run(self, on_progress: Callable[[], None] | None = None) -> None:
        """Live through the plan; *on_progress* is called now and then."""
        with no_collector():
            self.agenda.run(self.plan.ends_at, on_progress)

    # --- the tree, for reports ------------------------------------------------------------

    @property
    def count_nodes(self) -> int:
        return self.plan.count_nodes

    @property
    def now(self) -> float:
        return self.agenda.now

    def branch(self, node: int) -> Branch[int]:
        """The branch of *node*."""
        return self._branches[node] or self._make_branch(node)

    def origin_of(self, node: int) -> str | None:
        """What the server called *node* when it joined the parent it has; None for the root."""
        return self._origins[self.up[node]] if self.up[node] != NOBODY else None

    def children_of(self, node: int) -> list[int]:
        """Who has *node* for a parent and is its child: both ends say so."""
        branch = self._branches[node]
        if branch is None:
            return []
        node_of, up = self.node_of, self.up
        links = [self._attempt_of[origin] for origin in branch.children]
        return [node_of[link] for link in links if up[node_of[link]] == link]

    def depths(self) -> dict[int, int]:
        """The depth of everybody who is in the root's tree; the root's is 0."""
        depths = {ROOT: 0}
        level = [ROOT]
        depth = 0
        while level:
            depth += 1
            inner = [node for node in level if self._branches[node] is not None]
            level = [child for node in inner for child in self.children_of(node)]
            count = len(depths) + len(level)
            depths.update(dict.fromkeys(level, depth))
            assert len(depths) == count, "a cycle"
        return depths

    # --- the plan -------------------------------------------------------------------------

    def _begin(self, plan: Plan) -> None:
        put = self.agenda.put
        arrivals = plan.arrivals
        for at, nodes in groupby(range(1, plan.count_nodes), lambda node: arrivals[node - 1]):
            first, *others = nodes
            if others:
                self.agenda.put_row(at, self._start_all, 0, (first, *others))
            else:
                put(at, self._on_start, first, 0)
        for index, at in enumerate(plan.departures or ()):
            if at < plan.ends_at:
                put(at, self._leave, index + 1, 0)
        for crash in plan.crashes:
            for node in crash.nodes:
                put(crash.at, self._crash, node, 0)
        if plan.partition is not None:
            put(plan.partition.at, self._cut, 0, 0)

    # --- the joiner -----------------------------------------------------------------------

    # A crowd that comes at one moment begins in rows: those who are as far from the server have all
    # frames to it and from it at the same moments, until the root has their requests.

    def _start(self, now: float, node: int, _: int) -> None:
        """*node* begins to join: it dials the server."""
        if self._can_join(node):
            attempt = self._make_attempt(now, node)
            self.traffic.to_server(now, node, DIAL, self._on_dial, attempt, 0)

    def _start_all(self, now: float, _: int, nodes: Sequence[int]) -> None:
        if not self.traffic.is_plain:
            for node in nodes:
                self._start(now, node, 0)
            return
        joiners = [node for node in nodes if self._can_join(node)]
        attempts = [self._make_attempt(now, node) for node in joiners]
        self.traffic.all_to_server(now, joiners, DIAL, self._serve_joiners, attempts)

    def _can_join(self, node: int) -> bool:
        return bool(
            self.is_alive[node] and self.joining[node] == NOBODY and self.up[node] == NOBODY
        )

    def _make_attempt(self, now: float, node: int) -> int:
        attempt = self._count_attempts
        if attempt == len(self.node_of):
            self._make_room(1 + attempt // 8)
        self._count_attempts += 1
        self.node_of[attempt] = node
        self.joining[node] = attempt
        self.tries[node] = min(255, self.tries[node] + 1)
        self._deadlines.put(now, attempt, 0)
        return attempt

    def _make_room(self, count: int) -> None:
        """Let there be *count* more attempts, that nobody makes as yet."""
        nobody = array("i", [NOBODY]) * count
        for numbers in (self.node_of, self.acceptor_of, self._partner_of, self._answerer_of):
            numbers.extend(nobody)
        for states in (self._states, self._answer_states, self._has_left):
            states.extend(bytes(count))
        self._origins += [""] * count
        self._delays += [0.0] * count

    def _serve_joiner(self, now: float, attempt: int, _: int) -> None:
        """The server gives the joiner its id, with a hello."""
        if self._name(attempt):
            self.traffic.from_server(now, self.node_of[attempt], HELLO, self._on_hello, attempt, 0)

    def _serve_joiners(self, now: float, _: int, attempts: Sequence[int]) -> None:
        served = [attempt for attempt in attempts if self._name(attempt)]
        nodes = [self.node_of[attempt] for attempt in served]
        self.traffic.all_from_server(now, nodes, HELLO, self._send_offers, served)

    def _name(self, attempt: int) -> bool:
        """Give the joiner an id, if it is still there."""
        if self._states[attempt] != ASKING:
            self._count_lost[DIAL] += 1  # given up, or its process is gone, before it was through
            return False
        self._count_arrived[DIAL] += 1
        origin = next(self._identifiers)
        self._origins[attempt] = origin
        self._attempt_of[origin] = attempt
        return True

    def _send_offer(self, now: float, attempt: int, _: int) -> None:
        """The joiner has the server's hello: it sends its offer."""
        if self._can_offer(attempt):
            self.traffic.to_server(now, self.node_of[attempt], OFFER, self._on_offer, attempt, 0)

    def _send_offers(self, now: float, _: int, attempts: Sequence[int]) -> None:
        offering = [attempt for attempt in attempts if self._can_offer(attempt)]
        nodes = [self.node_of[attempt] for attempt in offering]
        self.traffic.all_to_server(now, nodes, OFFER, self._pass_all_to_root, offering)

    def _can_offer(self, attempt: int) -> bool:
        """Whether the joiner is still there to take the server's hello."""
        if self._states[attempt] != ASKING:
            self._count_lost[HELLO] += 1
            return False
        self._count_arrived[HELLO] += 1
        return True

    def _pass_to_root(self, now: float, attempt: int, _: int) -> None:
        """The server passes the offer on to the root."""
        self._count_arrived[OFFER] += 1
        self.traffic.from_server(now, ROOT, REQUEST, self._on_request, FROM_SERVER, attempt)

    def _pass_all_to_root(self, now: float, _: int, attempts: Sequence[int]) -> None:
        self._count_arrived[OFFER] += len(attempts)
        to_root = [ROOT] * len(attempts)
        self.traffic.all_from_server(now, to_root, REQUEST, self._take_offers, attempts)

    def _take_offers(self, now: float, _: int, attempts: Sequence[int]) -> None:
        self._take_requests(now, FROM_SERVER, attempts)

    def _take_answer(self, now: float, node: int, attempt: int) -> None:
        """The answer of *node* has reached the joiner; the first one counts."""
        if self._states[attempt] != ASKING:
            self._count_lost[ANSWER] += 1
            return
        self._count_arrived[ANSWER] += 1
        self._states[attempt] = ANSWERED
        self._partner_of[attempt] = node
        links = self.links
        if links.handshake_failure and self._rng.random() < links.handshake_failure:
            return  # both wait until their time is over
        delay = self._delays[attempt] = links.latency(self.node_of[attempt], node)
        moment = now + links.flights_to_connect * delay
        self.agenda.put(moment, self._on_connect, node, attempt)

    def _connect(self, now: float, node: int, attempt: int) -> None:
        """Joiner and *node* have reached each other: one sees it now, the other a flight later."""
        if self._states[attempt] != ANSWERED or self.acceptor_of[attempt] != node:
            return  # one has given up; the other finds out, or has been told
        cut = self.plan.partition
        joiner = self.node_of[attempt]
        if cut is not None and cut.at <= now < cut.heals_at and parts(cut.group_of, joiner, node):
            self.agenda.put(cut.heals_at, self._on_connect, node, attempt)
            return
        later = now + self._delays[attempt]
        # The later one is put in first: a descent that the earlier sends at once comes after it.
        if self._rng.random() < self.links.joiner_sees_first:
            self.agenda.put(later, self._on_acceptor_connected, node, attempt)
            self._joiner_connects(now, node, attempt)
        else:
            self.agenda.put(later, self._on_joiner_connected, node, attempt)
            self._acceptor_connects(now, node, attempt)

    def _joiner_connects(self, now: float, node: int, attempt: int) -> None:
        """The joiner has *node* for a parent."""
        joiner = self.node_of[attempt]
        if self._states[attempt] != ANSWERED:
            # It has given up or died within this flight. The other end is a child nevertheless,
            # or will be within the next, and is lost again.
            gone = 2 * self._delays[attempt] if self.is_alive[joiner] else self.links.noticed_after
            self.agenda.put(now + gone, self._lose_child, attempt, 0)
            return
        self._states[attempt] = LINKED
        self._confirm_deadlines.put(now, attempt, 0)
        self._say_done(now, joiner, attempt)
        if self.acceptor_of[attempt] != node or not self.is_alive[node]:
            # It has given up or died within this flight, when there was no link yet to lose.
            self.agenda.put(now + self.links.noticed_after, self._lose_parent, attempt, 0)

    def _take_descent(self, now: float, link: int, is_placed: int) -> None:
        """The upper end of *link* says whether it has a way to the root.

        The first time that it has, it is taken for the parent.
        """
        node = self.node_of[link]
        if self.up[node] == link:
            self._count_arrived[DESCENT] += 1
            self._place(now, node, is_placed)
        elif self._states[link] == LINKED:
            self._count_arrived[DESCENT] += 1
            if is_placed:
                self._confirm(now, link, 0)
        else:
            self._count_lost[DESCENT] += 1

    def _confirm(self, now: float, link: int, _: int) -> None:
        """The joiner takes the upper end of *link* for its parent."""
        if self._states[link] != LINKED:
            return
        node = self.node_of[link]
        orphaned_at = self.orphaned_at[node]
        if not isnan(orphaned_at):
            # It must be shown a number that is newer than the one it had: see protocol/ancestry.py.
            proved_at = (int(orphaned_at / NUMBER_INTERVAL) + 1) * NUMBER_INTERVAL
            if now < proved_at:
                self.agenda.put(proved_at, self._confirm, link, 0)
                return
            self.orphan_times.append(now - orphaned_at)
            self._end_orphanhood(now, node)
        self._states[link] = CONNECTED
        self.joining[node] = NOBODY
        self.tries[node] = 0
        self.up[node] = link
        self.count_connected += 1
        if isnan(self.joined_after[node]):
            self.joined_after[node] = now - self.plan.arrivals[node - 1]
        self.traffic.in_tree(
            now, self._delays[link], node, self.acceptor_of[link], BEAT, self._on_beat, link, 0
        )
        self._place(now, node, True)

    def _place(self, now: float, node: int, is_placed: int) -> None:
        """*node* has a way to the root now, or has none any more; all below it are told."""
        if self.is_placed[node] == is_placed:
            return
        self.is_placed[node] = is_placed
        branch = self._branches[node]
        if branch is None:
            return
        linked = [self._attempt_of[origin] for origin in branch.children]
        if is_placed:
            branch.open()
        else:
            for origin in branch.requests:
                self._withdraw(now, node, branch, self._attempt_of[origin])
            branch.close()
            for origin in branch.applicants:
                self._fail_applicant(now, node, self._attempt_of[origin])
        for link in linked:
            self._down(now, node, DESCENT, self._on_descent, link, is_placed)

    def _end_link(self, now: float, attempt: int, _: int) -> None:
        """The channel of *attempt* is of no use to the joiner: nobody said that it has a parent."""
        if self._states[attempt] != LINKED:
            return
        self._fail_attempt(attempt)
        self.agenda.put(now + self._delays[attempt], self._lose_child, attempt, 0)
        self._try_again(now, self.node_of[attempt])

    def _are_not_connected(self, attempts: Sequence[int]) -> list[bool]:
        """Whether the time of each of *attempts* can be over for anybody.

        One that is connected stays so, and who answers it has seen the channel open.
        """
        states = self._states
        return [states[attempt] != CONNECTED for attempt in attempts]

    def _end_attempt(self, now: float, attempt: int, _: int) -> None:
        """The joiner's time is over."""
        if self._states[attempt] < LINKED:
            self._give_up(now, attempt)

    def _give_up(self, now: float, attempt: int) -> None:
        """The joiner gives up, and says so to the server; it may try again."""
        self._fail_attempt(attempt)
        node = self.node_of[attempt]
        self._say_given_up(now, node, attempt)
        self._try_again(now, node)

    def _say_given_up(self, now: float, node: int, attempt: int) -> None:
        self.traffic.to_server(now, node, WITHDRAWN, self._pass_withdrawal, attempt, 0)

    def _try_again(self, now: float, node: int) -> None:
        """*node* has no parent, because it lost its own or its join came to nothing."""
        if not isnan(self.orphaned_at[node]):
            if self.rejoins:
                tries = self.tries[node]
                ceiling = min(MAX_REJOIN_DELAY, MIN_REJOIN_DELAY * 2.0 ** min(tries, 10))
                delay = self._rng.uniform(0 if tries == 0 else ceiling / 2, ceiling)
                self.agenda.put(now + delay, self._on_start, node, 0)
        elif self.tries[node] < self.attempts:
            self.agenda.put(now + 1.0, self._on_start, node, 0)

    def _fail_attempt(self, attempt: int) -> None:
        self._states[attempt] = OVER
        self.joining[self.node_of[attempt]] = NOBODY
        self.count_failed += 1

    # --- requests on their way ------------------------------------------------------------

    def _take_request(self, now: float, link: int, attempt: int) -> None:
        """A request comes to the root, or to the child's end of *link*."""
        self._take_requests(now, link, (attempt,))

    def _take_requests(self, now: float, link: int, attempts: Sequence[int]) -> None:
        """As `_take_request`, of several at a time: a storm comes in bursts."""
        if link == FROM_SERVER:
            node = ROOT
        else:
            node = self.node_of[link]
            if self.up[node] != link:  # only the word of the parent it has counts
                self._count_lost[REQUEST] += len(attempts)
                return
        self._count_arrived[REQUEST] += len(attempts)
        branch = self._branches[node] or self._make_branch(node)
        origins, size, traffic = self._origins, self._kept_size, self.traffic
        kept = []
        for attempt in attempts:
            origin = origins[attempt]
            verdict = branch.take(origin, attempt, is_offer=True, size=size)
            if verdict is WAIT:
                kept.append(origin)
            elif type(verdict) is Delegate:
                kept.append(origin)
                child = self._attempt_of[verdict.child]
                if traffic.is_plain and node != ROOT:
                    # Where no storm is, a fifth of all events take this way: `_down`, written out.
                    traffic.count_in_tree[REQUEST] += 1
                    self.agenda.put(now + self._delays[child], self._on_request, child, attempt)
                else:
                    self._down(now, node, REQUEST, self._on_request, child, attempt)
            elif verdict is ADMIT:
                self._admit(now, node, attempt)
            else:
                self._carry_out(now, node, attempt, verdict)
        if kept:
            self._requests.put(now, branch, kept)
        if node == ROOT:
            self._note_requests(now, branch, len(attempts))

    def _note_requests(self, now: float, root: Branch[int], count: int) -> None:
        """*count* requests have come to the *root*."""
        self.peak_requests = max(self.peak_requests, root.count_requests)
        self.traffic.count_root(now, REQUEST, count)

    def _pass_down(self, now: float, node: int, link: int, attempts: Sequence[int]) -> None:
        """*node* passes on requests to the child on *link*."""
        traffic = self.traffic
        if len(attempts) > 1 and traffic.is_plain:
            if node == ROOT:
                traffic.count_root(now, REQUEST, len(attempts))
            traffic.count_in_tree[REQUEST] += len(attempts)
            self.agenda.put_row(now + self._delays[link], self._on_requests, link, attempts)
        else:
            for attempt in attempts:
                self._down(now, node, REQUEST, self._on_request, link, attempt)

    def _carry_out(self, now: float, node: int, attempt: int, verdict: Verdict) -> None:
        match verdict:
            case Delegate(child):
                self._pass_down(now, node, self._attempt_of[child], (attempt,))
            case Admit():
                self._admit(now, node, attempt)
            case Drop():
                self.count_dropped += 1
            case HandOver() | Wait():
                pass  # a request is one frame here: there are no later ones to hand over

    def _admit(self, now: float, node: int, attempt: int) -> None:
        if self._states[attempt] != ASKING:
            # It was placed again, though somebody has answered it: see `Branch.lose`.
            for kind in (DIAL, HELLO, ANSWER, WITHDRAWN):
                self.traffic.count_elsewhere[kind] += 1
                self._count_arrived[kind] += 1
            moment = now + self.traffic.server_delays[node]
            self.agenda.put(moment, self._serve_late_acceptor, node, attempt)
            return
        self.acceptor_of[attempt] = node
        self._answer_states[attempt] = ADMITTED
        self._answer_deadlines.put(now, attempt, node)
        self._serve_applicant(now, node, attempt)

    def _carry_out_all(self, now: float, node: int, placements: Iterable[Placement[int]]) -> None:
        for way, requests in groupby(placements, attrgetter("way")):
            # A child has come, and in a storm thousands have waited for it. Each has one frame.
            attempts = [request.first for request in requests]
            if type(way) is Delegate:
                self._pass_down(now, node, self._attempt_of[way.child], attempts)
            else:
                for attempt in attempts:
                    self._carry_out(now, node, attempt, way)

    def _sweep(self, now: float) -> None:
        self.agenda.count_events += self._requests.sweep(now)

    def _pass_withdrawal(self, now: float, attempt: int, _: int) -> None:
        """The server tells the root, and whoever sent the applicant an answer."""
        self._count_arrived[WITHDRAWN] += 1
        self._has_left[attempt] = True
        if not self._origins[attempt]:
            return  # its dial never got through
        self.traffic.from_server(now, ROOT, WITHDRAWN, self._take_withdrawal, FROM_SERVER, attempt)
        node = self._answerer_of[attempt]
        if node != NOBODY and self.acceptor_of[attempt] == node:
            self.traffic.from_server(now, node, WITHDRAWN, self._lose_applicant, node, attempt)

    def _take_withdrawal(self, now: float, link: int, attempt: int) -> None:
        """As `_take_request`, for a request that is taken back."""
        node = ROOT if link == FROM_SERVER else self.node_of[link]
        if link != FROM_SERVER and self.up[node] != link:
            self._count_lost[WITHDRAWN] += 1
            return
        self._count_arrived[WITHDRAWN] += 1
        if node == ROOT:
            self.traffic.count_root(now, WITHDRAWN)
        branch = self._branches[node]
        if branch is not None:
            self._withdraw(now, node, branch, attempt)

    def _withdraw(self, now: float, node: int, branch: Branch[int], attempt: int) -> None:
        self._sweep(now)
        match branch.withdraw(self._origins[attempt]):
            case HandOver():
                self._fail_applicant(now, node, attempt)
            case Delegate(child):
                link = self._attempt_of[child]
                self._down(now, node, WITHDRAWN, self._take_withdrawal, link, attempt)

    # --- who answers ----------------------------------------------------------------------

    def _serve_applicant(self, now: float, node: int, attempt: int) -> None:
        """*node* has admitted an applicant: it dials the server to answer it."""
        self.traffic.to_server(now, node, DIAL, self._on_acceptor_dial, node, attempt)

    def _serve_acceptor(self, now: float, node: int, attempt: int) -> None:
        """The server gives the acceptor, a prospect as any other, an id, which nobody needs."""
        if self.acceptor_of[attempt] != node:
            self._count_lost[DIAL] += 1
            return
        self._count_arrived[DIAL] += 1
        next(self._identifiers)
        self.traffic.from_server(now, node, HELLO, self._on_acceptor_hello, node, attempt)

    def _send_answer(self, now: float, node: int, attempt: int) -> None:
        if self.acceptor_of[attempt] != node:
            self._count_lost[HELLO] += 1
            return
        self._count_arrived[HELLO] += 1
        self._answer_states[attempt] = HEARD
        self.traffic.to_server(now, node, ANSWER, self._on_answer, node, attempt)

    def _pass_answer(self, now: float, node: int, attempt: int) -> None:
        """The server passes the answer on, or says that the joiner is gone.

        The second happens when a child is lost: requests that it had served are placed again.
        """
        self._count_arrived[ANSWER] += 1
        if self._has_left[attempt]:
            self.traffic.from_server(now, node, WITHDRAWN, self._lose_applicant, node, attempt)
            return
        self._answerer_of[attempt] = node
        self.traffic.from_server(
            now, self.node_of[attempt], ANSWER, self._on_answered, node, attempt
        )

    def _acceptor_connects(self, now: float, node: int, attempt: int) -> None:
        """*node* sees the channel open: it tells the joiner where it stands."""
        if self.acceptor_of[attempt] != node:
            return
        self._answer_states[attempt] = OPEN
        self._say_done(now, node, attempt)
        self._down(now, node, DESCENT, self._on_descent, attempt, self.is_placed[node])

    def _take_beat(self, now: float, link: int, _: int) -> None:
        """The joiner has taken the upper end of *link* for its parent, and is its child now."""
        node = self.acceptor_of[link]
        branch = self._branches[node] if node != NOBODY else None
        origin = self._origins[link]
        if branch is None or not branch.is_applicant(origin):
            self._count_lost[BEAT] += 1
            return
        self._count_arrived[BEAT] += 1
        self._carry_out_all(now, node, branch.connect(origin))

    def _end_answer(self, now: float, attempt: int, node: int) -> None:
        """The acceptor's time is over; if the channel is open, there is nothing to end."""
        branch = self._branches[node]
        if (
            self.acceptor_of[attempt] == node
            and self._answer_states[attempt] != OPEN
            and branch is not None
            and branch.is_applicant(self._origins[attempt])
        ):
            self._fail_applicant(now, node, attempt)

    def _lose_applicant(self, now: float, node: int, attempt: int) -> None:
        """The server has told *node* that its applicant has given up."""
        self._count_arrived[WITHDRAWN] += 1
        branch = self._branches[node]
        if branch is not None and branch.is_applicant(self._origins[attempt]):
            self._fail_applicant(now, node, attempt)

    def _serve_late_acceptor(self, now: float, node: int, attempt: int) -> None:
        """As `_serve_acceptor`, for one whose answer comes to nothing."""
        next(self._identifiers)
        moment = now + 3 * self.traffic.server_delays[node]
        self.agenda.put(moment, self._lose_late_applicant, node, attempt)

    def _lose_late_applicant(self, now: float, node: int, attempt: int) -> None:
        """*node* has answered, and been told that the joiner is with somebody else, or gone."""
        branch = self._branches[node]
        if branch is not None and branch.is_applicant(self._origins[attempt]):
            self._fail_applicant(now, node, attempt)

    def _fail_applicant(self, now: float, node: int, attempt: int) -> None:
        """*node* answers no more: it tells the server so, and gives the place to who waits."""
        self._sweep(now)
        if self.acceptor_of[attempt] == node:  # else it is a late one
            self.acceptor_of[attempt] = NOBODY
            if self._answer_states[attempt] == HEARD:
                self._say_refused(now, node, attempt)
            elif self._answer_states[attempt] == OPEN:
                self.agenda.put(now + self._delays[attempt], self._lose_parent, attempt, 0)
        branch = self._branches[node]
        assert branch is not None
        self._carry_out_all(now, node, branch.fail(self._origins[attempt]))

    def _say_refused(self, now: float, node: int, attempt: int) -> None:
        self.traffic.to_server(now, node, WITHDRAWN, self._tell_joiner, node, attempt)

    def _tell_joiner(self, now: float, node: int, attempt: int) -> None:
        """The server tells the joiner that *node*, which answered, has given up."""
        self._count_arrived[WITHDRAWN] += 1
        if self._answerer_of[attempt] == node and not self._has_left[attempt]:
            joiner = self.node_of[attempt]
            self.traffic.from_server(now, joiner, WITHDRAWN, self._refuse_joiner, node, attempt)

    def _refuse_joiner(self, now: float, node: int, attempt: int) -> None:
        self._count_arrived[WITHDRAWN] += 1
        if self._states[attempt] == ANSWERED and self._partner_of[attempt] == node:
            self._give_up(now, attempt)

    def _say_done(self, now: float, node: int, attempt: int) -> None:
        """*node*, of the two, tells the server that the channel is open."""
        self.traffic.to_server(now, node, DONE, self._on_done, node, attempt)

    def _take_done(self, _: float, node: int, attempt: int) -> None:
        """*node*, of the two, has said that the channel is open, and hangs up."""
        self._count_arrived[DONE] += 1
        if node == self.node_of[attempt]:
            self._has_left[attempt] = True

    # --- who leaves, crashes, is cut off ----------------------------------------------------

    def _leave(self, now: float, node: int, _: int) -> None:
        """*node* closes: its neighbours see it a flight later."""
        self._end_node(now, node, noticed_after=None, grace=0.0)

    def _crash(self, now: float, node: int, _: int) -> None:
        """*node* dies: neighbours notice the silence, the server that the socket is closed."""
        self._end_node(now, node, self.links.noticed_after, DEFAULT_GRACE_TIMEOUT)

    def _end_node(self, now: float, node: int, noticed_after: float | None, grace: float) -> None:
        """*node* is no more; *noticed_after* None is as long as a frame takes."""
        if not self.is_alive[node]:
            return
        self.is_alive[node] = False
        self.count_closed += 1
        if not isnan(self.orphaned_at[node]):
            self._end_orphanhood(now, node)
        put = self.agenda.put
        attempt = self.joining[node]
        # It may have two links, one of them to who was to be its next parent.
        links = [self.up[node]] if self.up[node] != NOBODY else []
        if attempt != NOBODY and self._states[attempt] < LINKED:
            self.traffic.to_server(now + grace, node, WITHDRAWN, self._pass_withdrawal, attempt, 0)
        elif attempt != NOBODY:
            links.append(attempt)
        for link in links:
            delay = self._delays[link] if noticed_after is None else noticed_after
            put(now + delay, self._lose_child, link, 0)
        if attempt != NOBODY:
            self._fail_attempt(attempt)
        self.up[node] = NOBODY
        self.is_placed[node] = False
        branch, self._branches[node] = self._branches[node], None
        if branch is None:
            return
        for origin in (*branch.applicants, *branch.children):
            link = self._attempt_of[origin]
            if self.acceptor_of[link] != node:
                continue  # a late applicant
            child = self.node_of[link]
            if self.up[child] == link:
                self._begin_orphanhood(now, child)
            if self._answer_states[link] == HEARD:
                self.traffic.to_server(now + grace, node, WITHDRAWN, self._tell_joiner, node, link)
            elif self._answer_states[link] == OPEN:
                delay = self._delays[link] if noticed_after is None else noticed_after
                put(now + delay, self._lose_parent, link, 0)
            if branch.is_applicant(origin):
                self.acceptor_of[link] = NOBODY

    def _lose_child(self, now: float, link: int, _: int) -> None:
        """The parent's end of *link* is gone."""
        node = self.acceptor_of[link]
        branch = self._branches[node] if node != NOBODY else None
        origin = self._origins[link]
        if branch is None:
            return
        if origin in branch.children:
            self._sweep(now)
            self._carry_out_all(now, node, branch.lose(origin))
        elif branch.is_applicant(origin):
            self._fail_applicant(now, node, link)

    def _lose_parent(self, now: float, link: int, _: int) -> None:
        """The child's end of *link* is gone: it takes nobody any more, and keeps its children."""
        node = self.node_of[link]
        if self.up[node] != link:
            self._end_link(now, link, 0)
            return
        self.up[node] = NOBODY
        self._begin_orphanhood(now, node)
        self._place(now, node, False)
        self._try_again(now, node)

    def _cut(self, now: float, _: int, __: int) -> None:
        """The partition begins: channels across it break, unless it is healed before that."""
        cut = self.plan.partition
        assert cut is not None
        if cut.at + self.links.noticed_after >= cut.heals_at:
            return
        for node, link in enumerate(self.up):
            if link != NOBODY and parts(cut.group_of, node, self.acceptor_of[link]):
                self._begin_orphanhood(now, node)
                self.agenda.put(now + self.links.noticed_after, self._lose_parent, link, 0)
                self.agenda.put(now + self.links.noticed_after, self._lose_child, link, 0)

    def _begin_orphanhood(self, now: float, node: int) -> None:
        if isnan(self.orphaned_at[node]):
            self.orphaned_at[node] = now
            self.count_orphans += 1
            self.count_orphaned += 1
            self.orphans[int(now)] = self.count_orphans

    def _end_orphanhood(self, now: float, node: int) -> None:
        self.orphaned_at[node] = math.nan
        self.count_orphans -= 1
        self.orphans[int(now)] = self.count_orphans

    # --- smaller things ---------------------------------------------------------------------

    def _down(
        self,
        now: float,
        node: int,
        kind: int,
        act: Act,
        link: int,
        attempt: int,
    ) -> None:
        """Let *act* happen when a frame of *node* has reached the child's end of *link*."""
        if node == ROOT:
            self.traffic.count_root(now, kind)
        self.traffic.in_tree(
            now, self._delays[link], node, self.node_of[link], kind, act, link, attempt
        )

    def _make_branch(self, node: int) -> Branch[int]:
        ids = self.plan.node_ids
        node_id = make_node_id(self._node_id_rng) if ids is None else ids[node]
        branch: Branch[int] = Branch(
            node_id, self.max_degree, self.place_rule, max_requests=self._max_requests
        )
        if not self.is_placed[node]:
            branch.close()
        self._branches[node] = branch
        return branch


def _bucket_width(plan: Plan) -> float:
    """Some fifty events a bucket where arrivals are far apart, 4 ms where they are dense.

    That is shorter than most ways, so that seldom anything is put into the bucket that happens.
    """
    if not plan.arrivals:
        return 0.004
    duration = max(plan.arrivals) - min(plan.arrivals)
    return max(0.004, min(1.0, 2 * duration / len(plan.arrivals)))
