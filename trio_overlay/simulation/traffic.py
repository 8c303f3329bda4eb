"""The frames of a simulated tree on their way: when they arrive, and what is counted of them."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from math import floor
from typing import Final

from trio_overlay.simulation.agenda import Act, Agenda, RowAct
from trio_overlay.simulation.frames import FRAME_SIZES, KINDS
from trio_overlay.simulation.links import SERVER, Links
from trio_overlay.simulation.scenarios import Plan

ROOT: Final = 0
"""The root's number; other nodes count from 1."""


class Traffic:
    """What the server and the nodes of *plan* send over *links*, as events on *agenda*.

    Each method takes the moment *now*, the *kind* of frame, and the event that happens when the
    frame is there: *act*, with *one* and *other*. A frame that a partition keeps is there when
    that heals, or never.
    """

    def __init__(self, agenda: Agenda, links: Links, plan: Plan) -> None:
        self.count_in_tree = [0] * len(KINDS)
        """Frames sent from parent to child, and from child to parent."""
        self.count_arrived = [0] * len(KINDS)
        """Those that whoever they were for has taken; to count them is up to the world."""
        self.count_lost = [0] * len(KINDS)
        """Frames to those who are dead, gone, or cut off for good."""
        self._at_server: list[list[int]] = []
        """Frames to and from the server, by the second and by their number in `KINDS`."""
        self.count_elsewhere = [0] * len(KINDS)
        """Those in no second, of each of `KINDS`: they never get there, or are no events."""
        self.root_load: list[int] = []
        """Requests and withdrawals to and from the root, by the second."""
        self.root_bytes = 0
        self.server_delays = [links.latency(SERVER, node) for node in range(plan.count_nodes)]
        """Seconds to the server, of each node."""
        has_bandwidth = links.bandwidth is not None or links.server_bandwidth is not None
        self.is_plain = not has_bandwidth and plan.partition is None
        """Whether a frame takes the latency of its way, and no more."""
        self._links = links
        self._partition = plan.partition
        # The server's is the last: its number is -1.
        self._uplinks_free_at = array("d", bytes(8 * (plan.count_nodes + 1)))
        self._agenda = agenda

    @property
    def count_by_server(self) -> list[int]:
        """Frames sent to the server and by it, of each of `KINDS`."""
        return [sum(counts) for counts in zip(self.count_elsewhere, *self._at_server, strict=True)]

    @property
    def server_load(self) -> list[int]:
        """Frames to and from the server, by the second."""
        return [sum(counts) for counts in self._at_server]

    @property
    def count_sent(self) -> list[int]:
        """Frames sent, of each of `KINDS`."""
        return [sum(both) for both in zip(self.count_by_server, self.count_in_tree, strict=True)]

    def to_server(self, now: float, node: int, kind: int, act: Act, one: int, other: int) -> None:
        """A frame of *node* goes to the server."""
        at = now + self.server_delays[node]
        if not self.is_plain:
            at = self._delay_further(now, at, node, SERVER, kind)
            if at == math.inf:
                self.count_elsewhere[kind] += 1
                return
        try:
            self._at_server[floor(at)][kind] += 1
        except IndexError:
            self._begin_second(floor(at))[kind] += 1
        self._agenda.put(at, act, one, other)

    def all_to_server(
        self, now: float, nodes: Sequence[int], kind: int, act: RowAct, others: Sequence[int]
    ) -> None:
        """As `to_server` of each of *nodes* with its one of *others*, when the traffic is plain.

        *act* happens to all together that get there at one moment; its first number is 0.
        """
        for at, row in self._rows(now, nodes, others).items():
            self._count_at_server(at, kind, len(row))
            self._agenda.put_row(at, act, 0, row)

    def from_server(self, now: float, node: int, kind: int, act: Act, one: int, other: int) -> None:
        """A frame of the server goes to *node*."""
        try:
            self._at_server[floor(now)][kind] += 1
        except IndexError:
            self._begin_second(floor(now))[kind] += 1
        at = now + self.server_delays[node]
        if not self.is_plain:
            at = self._delay_further(now, at, SERVER, node, kind)
            if at == math.inf:
                return
        self._agenda.put(at, act, one, other)

    def all_from_server(
        self, now: float, nodes: Sequence[int], kind: int, act: RowAct, others: Sequence[int]
    ) -> None:
        """As `all_to_server`, in the other direction."""
        self._count_at_server(now, kind, len(nodes))
        for at, row in self._rows(now, nodes, others).items():
            self._agenda.put_row(at, act, 0, row)

    def in_tree(
        self,
        now: float,
        delay: float,
        source: int,
        target: int,
        kind: int,
        act: Act,
        one: int,
        other: int,
    ) -> None:
        """A frame of *source* goes to its parent or child *target*, *delay* seconds away."""
        self.count_in_tree[kind] += 1
        at = now + delay
        if not self.is_plain:
            at = self._delay_further(now, at, source, target, kind)
            if at == math.inf:
                return
        self._agenda.put(at, act, one, other)

    def count_root(self, now: float, kind: int, count: int = 1) -> None:
        """So many frames of *kind* go to the root or come from it."""
        self.root_bytes += count * FRAME_SIZES[kind]
        try:
            self.root_load[floor(now)] += count
        except IndexError:
            _count_anew(self.root_load, floor(now), count)

    def _rows(
        self, now: float, nodes: Sequence[int], others: Sequence[int]
    ) -> dict[float, list[int]]:
        """Those of *others* whose nodes a frame reaches at one moment, by that moment."""
        rows: dict[float, list[int]] = {}
        delays = self.server_delays
        for node, other in zip(nodes, others, strict=True):
            at = now + delays[node]
            row = rows.get(at)
            if row is None:
                rows[at] = [other]
            else:
                row.append(other)
        return rows

    def _count_at_server(self, at: float, kind: int, count: int) -> None:
        if count:
            self._begin_second(floor(at))[kind] += count

    def _begin_second(self, second: int) -> list[int]:
        while len(self._at_server) <= second:
            self._at_server.append([0] * len(KINDS))
        return self._at_server[second]

    def _delay_further(self, now: float, at: float, source: int, target: int, kind: int) -> float:
        """When a frame that is sent *now*, and would be there *at*, will be; infinity for never."""
        links = self._links
        bandwidth = links.server_bandwidth if source == SERVER else links.bandwidth
        if bandwidth is not None:
            sent_at = max(now, self._uplinks_free_at[source]) + FRAME_SIZES[kind] / bandwidth
            self._uplinks_free_at[source] = sent_at
            at += sent_at - now
        cut = self._partition
        if (
            cut is None
            or not cut.at <= at < cut.heals_at
            or not parts(cut.group_of, source, target)
        ):
            return at
        if cut.at + links.noticed_after < cut.heals_at:
            self.count_lost[kind] += 1
            return math.inf
        return cut.heals_at + (at - now)


def parts(group_of: Sequence[int], one: int, other: int) -> bool:
    """Whether *one* and *other*, numbers of nodes or `SERVER`, are in different groups."""
    return (0 if one == SERVER else group_of[one]) != (0 if other == SERVER else group_of[other])


def _count_anew(load: list[int], second: int, count: int = 1) -> None:
    load += [0] * (second + 1 - len(load))
    load[second] += count
