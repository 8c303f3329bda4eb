"""A tree of very many nodes in virtual time, without tasks: pure objects, and what moves frames.

What a node decides is decided by its `Branch`, as in a real one; here is what nodes/tree.py,
signaling/bootstrap.py and the network do around it: carry frames, let time pass, notice losses.
The bootstrap server is a post office: it gives ids, passes frames on, and tells of withdrawals.
"""

from __future__ import annotations

import gc
import math
import random
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeAlias

from trio_overlay.nodes.tree import REPLACE_TIMEOUT
from trio_overlay.nodes.tree_way_up import CONFIRM_TIMEOUT, MAX_REJOIN_DELAY, MIN_REJOIN_DELAY
from trio_overlay.protocol.branch import (
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
from trio_overlay.simulation.links import SERVER, Links
from trio_overlay.simulation.scenarios import Plan

ROOT: Final = 0
NOBODY: Final = -1
FROM_SERVER: Final = -1
"""In the place of a link: the frame comes from the server."""

KINDS: Final = (
    "dial",
    "hello",
    "offer",
    "request",
    "answer",
    "done",
    "withdrawn",
    "descent",
    "beat",
    "report",
    "pull",
    "climb",
    "return",
)
"""The frames that are counted. A request is the offer on its way from the server to the root and
at each hop; an answer goes to the server and from there to the joiner; a withdrawal is counted at
every hop, by the server's sockets or the tree's channels. Of the beats only those are counted that
make an applicant a child: the others go to and fro once a second on every link, come what may.
A climb is the request of a leaf that was pulled on its way up to the root, at each hop; a return is
what comes back to it, or is taken back, the same way. (See filling.py for these and for reports.)
"""

(
    DIAL, HELLO, OFFER, REQUEST, ANSWER, DONE, WITHDRAWN, DESCENT, BEAT, REPORT, PULL, CLIMB, RETURN
) = range(len(KINDS))  # fmt: skip

FRAME_SIZES: Final = (600, 90, 1200, 1250, 1250, 20, 110, 180, 40, 90, 40, 1250, 1250)
"""Bytes of each kind: about what aiortc's descriptions with four candidates take."""

# What a joiner knows of its own attempt: linked is who has an open channel, connected who has its
# parent's word that it stands in the tree.
ASKING, ANSWERED, LINKED, CONNECTED, OVER = range(5)

NUMBER_INTERVAL: Final = 0.9
"""Seconds from one of the root's numbers to the next, as in nodes/tree.py. Numbers are not events
here: a node is taken to have the one that was issued last."""

Send: TypeAlias = Callable[[float, int, int, Act, int, int], None]
"""Called with now, node, kind, act, one, other: a frame goes to the server, or comes from it."""


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
        self._put = self.agenda.put
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
        self._server_delays = [links.latency(SERVER, node) for node in range(count)]

        # --- of each attempt to join, which is a link once it is connected ---
        self.node_of = array("i")
        self.acceptor_of = array("i")
        """Who answers, or has answered; NOBODY again after that has failed."""
        self._partner_of = array("i")  # who answers, as far as the joiner knows
        self._answerer_of = array("i")  # whose answer the server was the last to pass on
        self._has_left = bytearray()  # whether the server has seen the joiner go
        self._states = bytearray()
        self._has_dialled = (
            bytearray()
        )  # whether who answers has the server's hello, and no channel
        self._is_linked = bytearray()  # whether who answers has seen the channel open
        self._origins: list[str] = []
        self._delays: list[float] = []  # between joiner and acceptor
        self._attempt_of: dict[str, int] = {}

        # --- what is observed ---
        self.count_by_server = [0] * len(KINDS)
        """Frames sent to the server and by it, of each of `KINDS`."""
        self.count_in_tree = [0] * len(KINDS)
        """Frames sent from parent to child, and beats from child to parent."""
        self.count_arrived = [0] * len(KINDS)
        self.count_lost = [0] * len(KINDS)
        """Frames to those who are dead, gone, or cut off for good."""
        self.count_dropped = 0
        """Requests that a branch had a reason not to take."""
        self.count_failed = 0
        """Attempts that came to nothing."""
        self.count_connected = 0
        self.count_closed = 0
        """Nodes that have left or crashed."""
        self.peak_requests = 0
        """Of the root."""
        self.server_load = array("L")
        """Frames to and from the server, by the second."""
        self.root_load = array("L")
        """Requests and withdrawals to and from the root, by the second."""
        self.root_bytes = 0
        self.count_orphans = 0
        """Nodes that are alive and without the parent that they had."""
        self.count_orphaned = 0
        """How often a node has lost its parent."""
        self.orphans: dict[int, int] = {0: 0}
        """`count_orphans` at the end of each second in which it changed."""
        self.orphan_times = array("d")
        """Seconds from the loss of a parent to a new one, of those who found one."""

        uplinks = array("d", bytes(8 * (count + 1)))
        self._uplinks_free_at = uplinks  # the server's is the last: its number is -1
        has_bandwidth = links.bandwidth is not None or links.server_bandwidth is not None
        self._is_plain = not has_bandwidth and plan.partition is None
        self._max_requests = MAX_REQUESTS if has_limits else 2**62
        self._kept_size = FRAME_SIZES[REQUEST] if has_limits else 0

        self._to_server: Final = self._make_to_server()
        self._from_server: Final = self._make_from_server()

        # A bound method is an object; made once, millions of events can share it.
        self._on_start = self._start
        self._on_dial = self._serve_joiner
        self._on_hello = self._send_offer
        self._on_offer = self._pass_to_root
        self._on_request = self._take_request
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

        self._requests = _Requests(REPLACE_TIMEOUT, request_timeout)
        self._begin_request = self._requests.put
        self.agenda.sweep_with(self._requests.sweep)
        self._confirm_deadlines = self.agenda.timeouts(CONFIRM_TIMEOUT, self._end_link)
        self._answer_deadlines = self.agenda.timeouts(request_timeout, self._end_answer)
        self._deadlines = self.agenda.timeouts(request_timeout, self._end_attempt)
        self._begin(plan)

    def run(self, on_progress: Callable[[], None] | None = None) -> None:
        """Live through the plan; *on_progress* is called now and then."""
        with no_collector():
            self.agenda.run(self.plan.ends_at, on_progress)

    # --- the tree, for reports ------------------------------------------------------------

    @property
    def count_sent(self) -> list[int]:
        """Frames sent, of each of `KINDS`."""
        return [sum(both) for both in zip(self.count_by_server, self.count_in_tree, strict=True)]

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
        links = [self._attempt_of[origin] for origin in branch.children]
        return [self.node_of[link] for link in links if self.up[self.node_of[link]] == link]

    def depths(self) -> dict[int, int]:
        """The depth of everybody who is in the root's tree; the root's is 0."""
        depths = {ROOT: 0}
        level = [ROOT]
        depth = 0
        while level:
            depth += 1
            inner = [node for node in level if self._branches[node] is not None]
            level = [child for node in inner for child in self.children_of(node)]
            for child in level:
                assert child not in depths, "a cycle"
                depths[child] = depth
        return depths

    # --- the plan -------------------------------------------------------------------------

    def _begin(self, plan: Plan) -> None:
        put = self.agenda.put
        for index, at in enumerate(plan.arrivals):
            put(at, self._on_start, index + 1, 0)
        for index, at in enumerate(plan.departures or ()):
            if at < plan.ends_at:
                put(at, self._leave, index + 1, 0)
        for crash in plan.crashes:
            for node in crash.nodes:
                put(crash.at, self._crash, node, 0)
        if plan.partition is not None:
            put(plan.partition.at, self._cut, 0, 0)

    # --- the joiner -----------------------------------------------------------------------

    def _start(self, now: float, node: int, _: int) -> None:
        """*node* begins to join: it dials the server."""
        if not self.is_alive[node] or self.joining[node] != NOBODY or self.up[node] != NOBODY:
            return
        attempt = self._make_attempt(node)
        self._deadlines.put(now, attempt, 0)
        self._to_server(now, node, DIAL, self._on_dial, attempt, 0)

    def _make_attempt(self, node: int) -> int:
        attempt = len(self.node_of)
        self.node_of.append(node)
        self.acceptor_of.append(NOBODY)
        self._partner_of.append(NOBODY)
        self._answerer_of.append(NOBODY)
        self._has_left.append(False)
        self._states.append(ASKING)
        self._has_dialled.append(False)
        self._is_linked.append(False)
        self._origins.append("")
        self._delays.append(0.0)
        self.joining[node] = attempt
        self.tries[node] = min(255, self.tries[node] + 1)
        return attempt

    def _serve_joiner(self, now: float, attempt: int, _: int) -> None:
        """The server gives the joiner its id, with a hello."""
        if self._states[attempt] != ASKING:
            self.count_lost[DIAL] += 1  # given up, or its process is gone, before it was through
            return
        self.count_arrived[DIAL] += 1
        origin = next(self._identifiers)
        self._origins[attempt] = origin
        self._attempt_of[origin] = attempt
        self._from_server(now, self.node_of[attempt], HELLO, self._on_hello, attempt, 0)

    def _send_offer(self, now: float, attempt: int, _: int) -> None:
        """The joiner has the server's hello: it sends its offer."""
        if self._states[attempt] != ASKING:
            self.count_lost[HELLO] += 1
            return
        self.count_arrived[HELLO] += 1
        self._to_server(now, self.node_of[attempt], OFFER, self._on_offer, attempt, 0)

    def _pass_to_root(self, now: float, attempt: int, _: int) -> None:
        """The server passes the offer on to the root."""
        self.count_arrived[OFFER] += 1
        self._from_server(now, ROOT, REQUEST, self._on_request, FROM_SERVER, attempt)

    def _take_answer(self, now: float, node: int, attempt: int) -> None:
        """The answer of *node* has reached the joiner; the first one counts."""
        if self._states[attempt] != ASKING:
            self.count_lost[ANSWER] += 1
            return
        self.count_arrived[ANSWER] += 1
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
        if cut is not None and cut.at <= now < cut.heals_at and _parts(cut.group_of, joiner, node):
            self.agenda.put(cut.heals_at, self._on_connect, node, attempt)
            return
        later = now + self._delays[attempt]
        # The later one is put in first: a descent that the earlier sends at once comes after it.
        if self._rng.random() < self.links.joiner_sees_first:
            self._put(later, self._on_acceptor_connected, node, attempt)
            self._joiner_connects(now, node, attempt)
        else:
            self._put(later, self._on_joiner_connected, node, attempt)
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
        self._to_server(now, joiner, DONE, self._on_done, joiner, attempt)
        if self.acceptor_of[attempt] != node or not self.is_alive[node]:
            # It has given up or died within this flight, when there was no link yet to lose.
            self.agenda.put(now + self.links.noticed_after, self._lose_parent, attempt, 0)

    def _take_descent(self, now: float, link: int, is_placed: int) -> None:
        """The upper end of *link* says whether it has a way to the root.

        The first time that it has, it is taken for the parent.
        """
        node = self.node_of[link]
        if self.up[node] == link:
            self.count_arrived[DESCENT] += 1
            self._place(now, node, is_placed)
        elif self._states[link] == LINKED:
            self.count_arrived[DESCENT] += 1
            if is_placed:
                self._confirm(now, link, 0)
        else:
            self.count_lost[DESCENT] += 1

    def _confirm(self, now: float, link: int, _: int) -> None:
        """The joiner takes the upper end of *link* for its parent."""
        if self._states[link] != LINKED:
            return
        node = self.node_of[link]
        orphaned_at = self.orphaned_at[node]
        if not math.isnan(orphaned_at):
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
        if math.isnan(self.joined_after[node]):
            self.joined_after[node] = now - self.plan.arrivals[node - 1]
        self.count_in_tree[BEAT] += 1
        at = now + self._delays[link]
        if not self._is_plain:
            at = self._delay_further(now, at, node, self.acceptor_of[link], BEAT)
        if at < math.inf:
            self._put(at, self._on_beat, link, 0)
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
        self._to_server(now, node, WITHDRAWN, self._pass_withdrawal, attempt, 0)

    def _try_again(self, now: float, node: int) -> None:
        """*node* has no parent, because it lost its own or its join came to nothing."""
        if not math.isnan(self.orphaned_at[node]):
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
        if link == FROM_SERVER:
            node = ROOT
        else:
            node = self.node_of[link]
            if self.up[node] != link:  # only the word of the parent it has counts
                self.count_lost[REQUEST] += 1
                return
        self.count_arrived[REQUEST] += 1
        branch = self._branches[node] or self._make_branch(node)
        origin = self._origins[attempt]
        verdict = branch.take(origin, attempt, is_offer=True, size=self._kept_size)
        if node == ROOT:
            self.peak_requests = max(self.peak_requests, branch.count_requests)
            self._count_root(now, REQUEST)
        if type(verdict) is Delegate:
            # A quarter of all events take this way: `_down` is written out.
            self._begin_request(now, branch, origin)
            link = self._attempt_of[verdict.child]
            self.count_in_tree[REQUEST] += 1
            at = now + self._delays[link]
            if node == ROOT:
                self._count_root(now, REQUEST)
            if not self._is_plain:
                at = self._delay_further(now, at, node, self.node_of[link], REQUEST)
                if at == math.inf:
                    return
            self._put(at, self._on_request, link, attempt)
        elif verdict is WAIT:
            self._begin_request(now, branch, origin)
        else:
            self._carry_out(now, node, attempt, verdict)

    def _carry_out(self, now: float, node: int, attempt: int, verdict: Verdict) -> None:
        match verdict:
            case Delegate(child):
                link = self._attempt_of[child]
                self._down(now, node, REQUEST, self._on_request, link, attempt)
            case Admit() if self._states[attempt] != ASKING:
                # It was placed again, though somebody has answered it: see `Branch.lose`.
                for kind in (DIAL, HELLO, ANSWER, WITHDRAWN):
                    self.count_by_server[kind] += 1
                    self.count_arrived[kind] += 1
                moment = now + self._server_delays[node]
                self.agenda.put(moment, self._serve_late_acceptor, node, attempt)
            case Admit():
                self.acceptor_of[attempt] = node
                self._has_dialled[attempt] = self._is_linked[attempt] = False
                self._answer_deadlines.put(now, node, attempt)
                self._serve_applicant(now, node, attempt)
            case Drop():
                self.count_dropped += 1
            case HandOver() | Wait():
                pass  # a request is one frame here: there are no later ones to hand over

    def _carry_out_all(self, now: float, node: int, placements: Iterable[Placement[int]]) -> None:
        for placement in placements:
            verdict = placement.verdict
            if type(verdict) is Delegate:
                # A child has come, and in a storm thousands have waited for it.
                link = self._attempt_of[verdict.child]
                if self._is_plain and node != ROOT:
                    at = now + self._delays[link]
                    for attempt in placement.frames:
                        self.count_in_tree[REQUEST] += 1
                        self._put(at, self._on_request, link, attempt)
                    continue
                for attempt in placement.frames:
                    self._down(now, node, REQUEST, self._on_request, link, attempt)
            else:
                for attempt in placement.frames:
                    self._carry_out(now, node, attempt, verdict)

    def _sweep(self, now: float) -> None:
        self.agenda.count_events += self._requests.sweep(now)

    def _pass_withdrawal(self, now: float, attempt: int, _: int) -> None:
        """The server tells the root, and whoever sent the applicant an answer."""
        self.count_arrived[WITHDRAWN] += 1
        self._has_left[attempt] = True
        if not self._origins[attempt]:
            return  # its dial never got through
        self._from_server(now, ROOT, WITHDRAWN, self._take_withdrawal, FROM_SERVER, attempt)
        node = self._answerer_of[attempt]
        if node != NOBODY and self.acceptor_of[attempt] == node:
            self._from_server(now, node, WITHDRAWN, self._lose_applicant, node, attempt)

    def _take_withdrawal(self, now: float, link: int, attempt: int) -> None:
        """As `_take_request`, for a request that is taken back."""
        node = ROOT if link == FROM_SERVER else self.node_of[link]
        if link != FROM_SERVER and self.up[node] != link:
            self.count_lost[WITHDRAWN] += 1
            return
        self.count_arrived[WITHDRAWN] += 1
        if node == ROOT:
            self._count_root(now, WITHDRAWN)
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
        self._to_server(now, node, DIAL, self._on_acceptor_dial, node, attempt)

    def _serve_acceptor(self, now: float, node: int, attempt: int) -> None:
        """The server gives the acceptor, a prospect as any other, an id, which nobody needs."""
        if self.acceptor_of[attempt] != node:
            self.count_lost[DIAL] += 1
            return
        self.count_arrived[DIAL] += 1
        next(self._identifiers)
        self._from_server(now, node, HELLO, self._on_acceptor_hello, node, attempt)

    def _send_answer(self, now: float, node: int, attempt: int) -> None:
        if self.acceptor_of[attempt] != node:
            self.count_lost[HELLO] += 1
            return
        self.count_arrived[HELLO] += 1
        self._has_dialled[attempt] = True
        self._to_server(now, node, ANSWER, self._on_answer, node, attempt)

    def _pass_answer(self, now: float, node: int, attempt: int) -> None:
        """The server passes the answer on, or says that the joiner is gone.

        The second happens when a child is lost: requests that it had served are placed again.
        """
        self.count_arrived[ANSWER] += 1
        if self._has_left[attempt]:
            self._from_server(now, node, WITHDRAWN, self._lose_applicant, node, attempt)
            return
        self._answerer_of[attempt] = node
        self._from_server(now, self.node_of[attempt], ANSWER, self._on_answered, node, attempt)

    def _acceptor_connects(self, now: float, node: int, attempt: int) -> None:
        """*node* sees the channel open: it tells the joiner where it stands."""
        if self.acceptor_of[attempt] != node:
            return
        self._has_dialled[attempt] = False
        self._is_linked[attempt] = True
        self._to_server(now, node, DONE, self._on_done, node, attempt)
        self._down(now, node, DESCENT, self._on_descent, attempt, self.is_placed[node])

    def _take_beat(self, now: float, link: int, _: int) -> None:
        """The joiner has taken the upper end of *link* for its parent, and is its child now."""
        node = self.acceptor_of[link]
        branch = self._branches[node] if node != NOBODY else None
        if branch is None or not branch.is_applicant(self._origins[link]):
            self.count_lost[BEAT] += 1
            return
        self.count_arrived[BEAT] += 1
        self._carry_out_all(now, node, branch.connect(self._origins[link]))

    def _end_answer(self, now: float, node: int, attempt: int) -> None:
        """The acceptor's time is over; if the channel is open, there is nothing to end."""
        branch = self._branches[node]
        if (
            self.acceptor_of[attempt] == node
            and not self._is_linked[attempt]
            and branch is not None
            and branch.is_applicant(self._origins[attempt])
        ):
            self._fail_applicant(now, node, attempt)

    def _lose_applicant(self, now: float, node: int, attempt: int) -> None:
        """The server has told *node* that its applicant has given up."""
        self.count_arrived[WITHDRAWN] += 1
        branch = self._branches[node]
        if branch is not None and branch.is_applicant(self._origins[attempt]):
            self._fail_applicant(now, node, attempt)

    def _serve_late_acceptor(self, now: float, node: int, attempt: int) -> None:
        """As `_serve_acceptor`, for one whose answer comes to nothing."""
        next(self._identifiers)
        moment = now + 3 * self._server_delays[node]
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
            if self._has_dialled[attempt]:
                self._say_refused(now, node, attempt)
            elif self._is_linked[attempt]:
                self.agenda.put(now + self._delays[attempt], self._lose_parent, attempt, 0)
        branch = self._branches[node]
        assert branch is not None
        self._carry_out_all(now, node, branch.fail(self._origins[attempt]))

    def _say_refused(self, now: float, node: int, attempt: int) -> None:
        self._to_server(now, node, WITHDRAWN, self._tell_joiner, node, attempt)

    def _tell_joiner(self, now: float, node: int, attempt: int) -> None:
        """The server tells the joiner that *node*, which answered, has given up."""
        self.count_arrived[WITHDRAWN] += 1
        if self._answerer_of[attempt] == node and not self._has_left[attempt]:
            joiner = self.node_of[attempt]
            self._from_server(now, joiner, WITHDRAWN, self._refuse_joiner, node, attempt)

    def _refuse_joiner(self, now: float, node: int, attempt: int) -> None:
        self.count_arrived[WITHDRAWN] += 1
        if self._states[attempt] == ANSWERED and self._partner_of[attempt] == node:
            self._give_up(now, attempt)

    def _take_done(self, _: float, node: int, attempt: int) -> None:
        """*node*, of the two, has said that the channel is open, and hangs up."""
        self.count_arrived[DONE] += 1
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
        if not math.isnan(self.orphaned_at[node]):
            self._end_orphanhood(now, node)
        put = self.agenda.put
        attempt = self.joining[node]
        # It may have two links, one of them to who was to be its next parent.
        links = [self.up[node]] if self.up[node] != NOBODY else []
        if attempt != NOBODY and self._states[attempt] < LINKED:
            self._to_server(now + grace, node, WITHDRAWN, self._pass_withdrawal, attempt, 0)
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
            if self._has_dialled[link]:
                self._to_server(now + grace, node, WITHDRAWN, self._tell_joiner, node, link)
            elif self._is_linked[link]:
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
            if link != NOBODY and _parts(cut.group_of, node, self.acceptor_of[link]):
                self._begin_orphanhood(now, node)
                self.agenda.put(now + self.links.noticed_after, self._lose_parent, link, 0)
                self.agenda.put(now + self.links.noticed_after, self._lose_child, link, 0)

    def _begin_orphanhood(self, now: float, node: int) -> None:
        if math.isnan(self.orphaned_at[node]):
            self.orphaned_at[node] = now
            self.count_orphans += 1
            self.count_orphaned += 1
            self.orphans[int(now)] = self.count_orphans

    def _end_orphanhood(self, now: float, node: int) -> None:
        self.orphaned_at[node] = math.nan
        self.count_orphans -= 1
        self.orphans[int(now)] = self.count_orphans

    # --- frames on their way --------------------------------------------------------------

    def _make_to_server(self) -> Send:
        """The function `_to_server`, which has what it needs at hand: it is among the busiest.

        It lets *act* happen when a frame of *node* has reached the server.
        """
        counts, delays, load, put = (
            self.count_by_server,
            self._server_delays,
            self.server_load,
            self._put,
        )
        is_plain, delay_further = self._is_plain, self._delay_further

        def to_server(now: float, node: int, kind: int, act: Act, one: int, other: int) -> None:
            counts[kind] += 1
            at = now + delays[node]
            if not is_plain:
                at = delay_further(now, at, node, SERVER, kind)
                if at == math.inf:
                    return
            try:
                load[int(at)] += 1
            except IndexError:
                _count_anew(load, int(at))
            put(at, act, one, other)

        return to_server

    def _make_from_server(self) -> Send:
        """As `_make_to_server`: *act* happens when a frame of the server has reached *node*."""
        counts, delays, load, put = (
            self.count_by_server,
            self._server_delays,
            self.server_load,
            self._put,
        )
        is_plain, delay_further = self._is_plain, self._delay_further

        def from_server(now: float, node: int, kind: int, act: Act, one: int, other: int) -> None:
            counts[kind] += 1
            try:
                load[int(now)] += 1
            except IndexError:
                _count_anew(load, int(now))
            at = now + delays[node]
            if not is_plain:
                at = delay_further(now, at, SERVER, node, kind)
                if at == math.inf:
                    return
            put(at, act, one, other)

        return from_server

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
        self.count_in_tree[kind] += 1
        if node == ROOT:
            self._count_root(now, kind)
        at = now + self._delays[link]
        if not self._is_plain:
            at = self._delay_further(now, at, node, self.node_of[link], kind)
            if at == math.inf:
                return
        self._put(at, act, link, attempt)

    def _delay_further(self, now: float, at: float, source: int, target: int, kind: int) -> float:
        """When a frame that is sent *now*, and would be there *at*, will be; infinity for never."""
        links = self.links
        bandwidth = links.server_bandwidth if source == SERVER else links.bandwidth
        if bandwidth is not None:
            sent_at = max(now, self._uplinks_free_at[source]) + FRAME_SIZES[kind] / bandwidth
            self._uplinks_free_at[source] = sent_at
            at += sent_at - now
        cut = self.plan.partition
        if (
            cut is None
            or not cut.at <= at < cut.heals_at
            or not _parts(cut.group_of, source, target)
        ):
            return at
        if cut.at + links.noticed_after < cut.heals_at:
            self.count_lost[kind] += 1
            return math.inf
        return cut.heals_at + (at - now)

    def _count_root(self, now: float, kind: int) -> None:
        self.root_bytes += FRAME_SIZES[kind]
        try:
            self.root_load[int(now)] += 1
        except IndexError:
            _count_anew(self.root_load, int(now))

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


class _Requests:
    """All requests that nodes have given to a child, or keep for one, oldest first.

    After *settle_delay* they are settled, after *timeout* forgotten, as in a real node, where each
    has a task for it. Here they are a third of all that happens, and nobody sees it but the node
    itself, and it only when it fills a place or is told of a withdrawal: so `sweep` does it in a
    row, from time to time, and before each of those.
    """

    def __init__(self, settle_delay: float, timeout: float) -> None:
        self._settle_delay = min(settle_delay, timeout)
        self._timeout = timeout
        self._moments = array("d")
        self._branches: list[Branch[int]] = []
        self._origins: list[str] = []
        self._first_unsettled = 0
        self._first = 0
        self.put: Final = self._make_put()
        """``put(now, branch, origin)``: at *branch* the request of *origin* begins."""

    def _make_put(self) -> Callable[[float, Branch[int], str], None]:
        add_moment, add_branch = self._moments.append, self._branches.append
        add_origin = self._origins.append

        def put(now: float, branch: Branch[int], origin: str) -> None:
            add_moment(now)
            add_branch(branch)
            add_origin(origin)

        return put

    def sweep(self, now: float) -> int:
        """Settle and forget what is due by *now*; how many that were.

        A branch whose node is gone by then is swept as well, and it does not matter.
        """
        settled = self._first_unsettled
        until = bisect_right(self._moments, now - self._settle_delay, settled)
        if until > settled:
            self._first_unsettled = until
            span = slice(settled, until)
            for branch, origin in zip(self._branches[span], self._origins[span], strict=True):
                branch.settle(origin)
        first = self._first
        end = bisect_right(self._moments, now - self._timeout, first)
        if end > first:
            self._first = end
            span = slice(first, end)
            for branch, origin in zip(self._branches[span], self._origins[span], strict=True):
                branch.forget(origin)
            if 2 * end > len(self._moments):
                del self._moments[:end], self._branches[:end], self._origins[:end]
                self._first = 0
                self._first_unsettled -= end
        return until - settled + end - first


@contextmanager
def no_collector() -> Iterator[None]:
    """No cycles are looked for in this block.

    Nothing here makes any while it runs: branches, requests and events hold strings and numbers,
    and numbers take the place of references to nodes. So reference counting frees all there is to
    free, and the collector would only walk ten million live objects again and again. What else
    is left by the block, by a callback say, is collected afterwards.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _parts(group_of: Sequence[int], one: int, other: int) -> bool:
    """Whether *one* and *other* are in different groups."""
    return (0 if one == SERVER else group_of[one]) != (0 if other == SERVER else group_of[other])


def _count_anew(load: array[int], second: int) -> None:
    load.extend(bytes(second + 1 - len(load)))
    load[second] += 1


def _bucket_width(plan: Plan) -> float:
    """Some fifty events a bucket where arrivals are far apart, 4 ms where they are dense.

    That is shorter than most ways, so that seldom anything is put into the bucket that happens.
    """
    if not plan.arrivals:
        return 0.004
    duration = max(plan.arrivals) - min(plan.arrivals)
    return max(0.004, min(1.0, 2 * duration / len(plan.arrivals)))
