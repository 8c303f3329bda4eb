"""A simulated tree that fills exactly: children report free places, and the root pulls leaves up.

It is the world of world.py, whose nodes go by a rule, with what nodes/tree.py does beyond that when
it is given none: protocol/filling.py decides where requests go, protocol/pulling.py who is pulled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from trio_overlay.nodes.tree import REPORT_INTERVAL
from trio_overlay.nodes.tree_pulling import PULL_INTERVAL
from trio_overlay.protocol.branch import WAIT, Branch, Delegate, Placement
from trio_overlay.protocol.pulling import Pull, Pulling, share_out
from trio_overlay.simulation.agenda import Act
from trio_overlay.simulation.frames import ANSWER, CLIMB, PULL, REPORT, REQUEST, RETURN, WITHDRAWN
from trio_overlay.simulation.links import Links
from trio_overlay.simulation.scenarios import Plan
from trio_overlay.simulation.traffic import ROOT
from trio_overlay.simulation.world import (
    FROM_SERVER,
    HEARD,
    LINKED,
    NOBODY,
    NUMBER_INTERVAL,
    TreeWorld,
)


class FillingTreeWorld(TreeWorld):
    """A `TreeWorld` of nodes without a place rule; unless it *pulls*, the root pulls nobody."""

    def __init__(
        self,
        plan: Plan,
        links: Links,
        *,
        pulls: bool = True,
        seed: int = 0,
        max_degree: int = 10,
        request_timeout: float = 30.0,
        attempts: int = 1,
        rejoins: bool = True,
        has_limits: bool = False,
        identifiers: Iterator[str] | None = None,
    ) -> None:
        count = plan.count_nodes
        self._newcomer = (max_degree,)
        """What a node brings that has nobody below it."""
        self._brought: dict[int, tuple[int, ...]] = {}
        """By attempt, what it brings, if that is something else."""
        self._is_reporting = bytearray(count)
        self._reports: dict[int, tuple[tuple[int, ...], int]] = {}  # those on their way
        self._count_reports = 0
        self._pulled: dict[int, float] = {}
        """The attempts of leaves that were pulled, and when one has the number that proves it."""
        self._pulling = Pulling() if pulls else None
        self._has_round = False
        self.count_moved = 0
        """Leaves that were pulled up."""
        super().__init__(
            plan,
            links,
            seed=seed,
            max_degree=max_degree,
            request_timeout=request_timeout,
            attempts=attempts,
            rejoins=rejoins,
            has_limits=has_limits,
            identifiers=identifiers,
        )
        self.place_rule = None

    # --- reports ----------------------------------------------------------------------------

    def _note_surprise(self, now: float, node: int, branch: Branch[int]) -> None:
        """Let *node* report soon if its parent may have to be told of something."""
        if node == ROOT:
            self._expect_round(now)
        elif not self._is_reporting[node]:
            belief = branch.belief
            if belief is not None and (branch.is_surprising or belief.is_behind):
                self._is_reporting[node] = True
                self.agenda.put(now + REPORT_INTERVAL, self._report, node, 0)

    def _report(self, now: float, node: int, _: int) -> None:
        self._is_reporting[node] = False
        branch = self._branches[node]
        link = self.up[node]
        if branch is None or link == NOBODY:
            return
        report = branch.report()
        if report is not None:
            self._count_reports += 1
            self._reports[self._count_reports] = report
            self._up(now, node, REPORT, self._take_report, link, self._count_reports)

    def _take_report(self, now: float, link: int, number: int) -> None:
        """The parent hears what the child's end of *link* reports."""
        report = self._reports.pop(number)
        node = self.acceptor_of[link]
        branch = self._branches[node] if node != NOBODY else None
        if branch is None:
            self._count_lost[REPORT] += 1
            return
        self._count_arrived[REPORT] += 1
        if node == ROOT:
            self.traffic.count_root(now, REPORT)
        branch.hear(self._origins[link], *report)
        self._note_surprise(now, node, branch)

    def _up(
        self,
        now: float,
        node: int,
        kind: int,
        act: Act,
        link: int,
        other: int,
    ) -> None:
        """Let *act* happen when a frame of *node* has reached the parent's end of *link*."""
        self.traffic.in_tree(
            now, self._delays[link], node, self.acceptor_of[link], kind, act, link, other
        )

    # --- what the other world does, with free places counted ------------------------------------

    def _make_branch(self, node: int) -> Branch[int]:
        branch = super()._make_branch(node)
        if node != ROOT:
            branch.meet_parent(self._newcomer)
        return branch

    def _can_offer(self, attempt: int) -> bool:
        self._note_brought(attempt)
        return super()._can_offer(attempt)

    def _note_brought(self, attempt: int) -> None:
        branch = self._branches[self.node_of[attempt]]
        if branch is not None:
            self._brought[attempt] = tuple(branch.potential_view)

    def _take_requests(self, now: float, link: int, attempts: Sequence[int]) -> None:
        for attempt in attempts:
            self._take_one_request(now, link, attempt)

    def _take_one_request(self, now: float, link: int, attempt: int) -> None:
        if link == FROM_SERVER:
            node = ROOT
        else:
            node = self.node_of[link]
            if self.up[node] != link:
                self._count_lost[REQUEST] += 1
                return
        self._count_arrived[REQUEST] += 1
        branch = self._branches[node] or self._make_branch(node)
        origin = self._origins[attempt]
        verdict = branch.take(
            origin,
            attempt,
            is_offer=True,
            size=self._kept_size,
            brought=self._brought.get(attempt, self._newcomer),
        )
        if node == ROOT:
            self._note_requests(now, branch, 1)
        if verdict is WAIT or type(verdict) is Delegate:
            self._requests.put(now, branch, [origin])
        self._carry_out(now, node, attempt, verdict)
        self._note_surprise(now, node, branch)

    def _carry_out_all(self, now: float, node: int, placements: Iterable[Placement[int]]) -> None:
        super()._carry_out_all(now, node, placements)
        branch = self._branches[node]
        if branch is not None:
            self._note_surprise(now, node, branch)

    def _withdraw(self, now: float, node: int, branch: Branch[int], attempt: int) -> None:
        super()._withdraw(now, node, branch, attempt)
        self._note_surprise(now, node, branch)

    def _confirm(self, now: float, link: int, other: int) -> None:
        node = self.node_of[link]
        if link in self._pulled:
            self._confirm_pulled(now, link)
        else:
            super()._confirm(now, link, other)
        branch = self._branches[node]
        if self.up[node] == link and branch is not None:
            branch.meet_parent(self._brought.pop(link, self._newcomer))
            self._note_surprise(now, node, branch)

    def _place(self, now: float, node: int, is_placed: int) -> None:
        super()._place(now, node, is_placed)
        branch = self._branches[node]
        if branch is not None:
            self._note_surprise(now, node, branch)

    def _lose_parent(self, now: float, link: int, other: int) -> None:
        super()._lose_parent(now, link, other)
        node = self.node_of[link]
        branch = self._branches[node]
        if self.up[node] == NOBODY and branch is not None:
            branch.belief = None

    # --- pulling ------------------------------------------------------------------------------

    def _expect_round(self, now: float) -> None:
        if self._pulling is not None and not self._has_round:
            self._has_round = True
            self.agenda.put(now + PULL_INTERVAL, self._play_round, 0, 0)

    def _play_round(self, now: float, _: int, __: int) -> None:
        """The root looks whether there are leaves to be pulled up."""
        assert self._pulling is not None
        self._has_round = False
        branch = self.branch(ROOT)
        pull = self._pulling.next_round(branch.view, self.max_degree)
        if pull is not None and not self._pass_on_pull(now, ROOT, branch, 0, pull):
            self._pulling.note_nobody_asked()
            self._expect_round(now)
        if self._pulling.is_expecting and not self._pulling.is_barren:
            self._expect_round(now)

    def _pass_on_pull(
        self, now: float, node: int, branch: Branch[int], depth: int, pull: Pull
    ) -> bool:
        """Whether there was a child to ask for leaves below it."""
        shares = share_out(pull, depth, branch.views, self.max_degree)
        for child, share in shares.items():
            link = self._attempt_of[child]
            self._down(now, node, PULL, self._take_pull, link, pull.depth << 32 | share)
        return bool(shares)

    def _take_pull(self, now: float, link: int, depth_and_count: int) -> None:
        node = self.node_of[link]
        if self.up[node] != link or not self.is_placed[node]:
            self._count_lost[PULL] += 1
            return
        self._count_arrived[PULL] += 1
        depth, count = depth_and_count >> 32, depth_and_count & 0xFFFF_FFFF
        branch = self._branches[node]
        if branch is not None and branch.children:
            self._pass_on_pull(now, node, branch, self._depth_of(node), Pull(depth, count))
        elif (
            (branch is None or not branch.applicants)
            and self.joining[node] == NOBODY
            and self._depth_of(node) >= depth
        ):
            self._climb_from(now, node)

    def _climb_from(self, now: float, node: int) -> None:
        """The leaf *node* applies to the root, through its parents."""
        attempt = self._make_attempt(now, node)
        origin = self._origins[attempt] = next(self._identifiers)
        self._attempt_of[origin] = attempt
        self._pulled[attempt] = math.inf
        self._note_brought(attempt)
        self._up(now, node, CLIMB, self._take_climb, self.up[node], attempt)

    def _take_climb(self, now: float, link: int, attempt: int) -> None:
        node = self.acceptor_of[link]
        if node == ROOT:
            # The last leg of its way is counted as what it is to the root: a request.
            self.traffic.count_in_tree[CLIMB] -= 1
            self.traffic.count_in_tree[REQUEST] += 1
            assert self._pulling is not None
            self._pulling.note_application()
            self._take_request(now, FROM_SERVER, attempt)
        elif node == NOBODY or self.up[node] == NOBODY:
            self._count_lost[CLIMB] += 1
        else:
            self._count_arrived[CLIMB] += 1
            self._up(now, node, CLIMB, self._take_climb, self.up[node], attempt)

    def _say_done(self, now: float, node: int, attempt: int) -> None:
        if attempt not in self._pulled:
            super()._say_done(now, node, attempt)

    def _serve_applicant(self, now: float, node: int, attempt: int) -> None:
        if attempt in self._pulled:
            # It needs no server: what it says goes back the way the request came.
            self._answer_states[attempt] = HEARD
            joiner = self.node_of[attempt]
            self._return(ANSWER, now, node, joiner, self._on_answered, node, attempt)
        else:
            super()._serve_applicant(now, node, attempt)

    def _say_refused(self, now: float, node: int, attempt: int) -> None:
        if attempt in self._pulled:
            self._return(
                WITHDRAWN, now, node, self.node_of[attempt], self._refuse_joiner, node, attempt
            )
        else:
            super()._say_refused(now, node, attempt)

    def _say_given_up(self, now: float, node: int, attempt: int) -> None:
        if attempt in self._pulled:
            self._return(WITHDRAWN, now, node, ROOT, self._take_withdrawal, FROM_SERVER, attempt)
        else:
            super()._say_given_up(now, node, attempt)

    def _return(
        self,
        kind: int,
        now: float,
        source: int,
        target: int,
        act: Act,
        one: int,
        other: int,
    ) -> None:
        """Let *act* happen when a frame has gone from *source* up to the root and down again.

        Its last leg is counted as a frame of *kind*, which *act* counts as arrived.
        """
        delay = 0.0
        hops = 0
        for node in (source, target):
            while node != ROOT and self.up[node] != NOBODY:
                link = self.up[node]
                hops += 1
                delay += self._delays[link]
                node = self.acceptor_of[link]
            if node != ROOT:
                break  # somebody on the way has lost its parent, or is no more
        self.traffic.count_in_tree[RETURN] += hops
        if node == ROOT:
            self._count_arrived[RETURN] += hops - 1
            self.traffic.count_in_tree[RETURN] -= 1
            self.traffic.count_in_tree[kind] += 1
            self.agenda.put(now + delay, act, one, other)
        else:
            self._count_lost[RETURN] += hops

    def _confirm_pulled(self, now: float, link: int) -> None:
        """The leaf has a link to somebody who stands in the tree: it moves, if it gains by it."""
        if self._states[link] != LINKED:
            return
        node = self.node_of[link]
        old = self.up[node]
        if old == NOBODY:
            super()._confirm(now, link, 0)  # it has lost its parent meanwhile, and takes what comes
        elif self._pulled[link] == math.inf:
            # It keeps its number from here on, and waits for a greater one: see ancestry.py.
            self._pulled[link] = (int(now / NUMBER_INTERVAL) + 1) * NUMBER_INTERVAL
            self.agenda.put(self._pulled[link], self._confirm, link, 0)
        elif now < self._pulled[link]:
            pass
        elif self._depth_of(self.acceptor_of[link]) + 1 < self._depth_of(node):
            self.count_moved += 1
            self.up[node] = NOBODY
            self.agenda.put(now + self._delays[old], self._lose_child, old, 0)
            super()._confirm(now, link, 0)
        else:
            self._end_link(now, link, 0)

    def _depth_of(self, node: int) -> int:
        depth = 0
        while node != ROOT and self.up[node] != NOBODY:
            depth += 1
            node = self.acceptor_of[self.up[node]]
        return depth if node == ROOT else 1 << 16
