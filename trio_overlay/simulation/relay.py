"""Very many relay peers in virtual time: the real ones' decisions, without sockets and JSON.

Each peer is a `RelayPeer`, as under `open_relay`; here is what lies between them. A connection
comes up some flights after the handshake's answer and carries envelopes in order; a peer that
crashes is noticed by its neighbours as heartbeats would notice it, without the heartbeats.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Final

from trio_overlay.protocol.buckets import random_peer_id
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.relay import Envelope, PeerId, User
from trio_overlay.protocol.relay import Receipt as ReceiptBody
from trio_overlay.protocol.relay_actions import (
    Action,
    Close,
    Connect,
    Deliver,
    Received,
    Send,
)
from trio_overlay.protocol.relay_peer import (
    RelayPeer,
)
from trio_overlay.protocol.relay_routing import ORIGINAL, Policy
from trio_overlay.simulation.agenda import Agenda
from trio_overlay.simulation.links import Latency, uniform

TICK_INTERVAL: Final = 5.0
FLIGHTS_TO_CONNECT: Final = 4
FIRST_RETRY: Final = 1.0
"""As in nodes/relay.py: seconds to the first copy sent again; each next waits twice as long."""
SETTLING: Final = 60.0
"""Seconds from the last arrival to the first message."""
REDIAL_INTERVAL: Final = 2.0

POLICIES: Final[Mapping[str, Policy]] = {
    "default": Policy(),
    "one-copy": Policy(copies=1),
    "two-at-each-hop": Policy(copies=2, relay_copies=2),
    "original": ORIGINAL,
}
"""``two-at-each-hop`` passes on as the original does, over connections as ours are."""


@dataclass(frozen=True, slots=True)
class RelaySetting:
    """What is simulated."""

    nodes: int = 1000
    seed: int = 0
    policy: str = "default"
    """One of `POLICIES`."""
    arrival: float = 60.0
    """Seconds in which all join, each through one that is there, by chance."""
    messages: int = 1000
    """How many are sent, each from one by chance to another."""
    seconds: float = 60.0
    """In which they are sent."""
    replaced_per_minute: float = 0.0
    """The share of all peers that crash in a minute, from the first message on; as many join."""
    receipts: bool = False
    """Whether they are sent with receipts, and again until one comes."""
    timeout: float = 30.0
    """Seconds for which a receipt is waited for."""
    is_chain: bool = False
    """Whether each is connected to the next only, and nobody connects to more."""


@dataclass(slots=True)
class _Message:
    sender: int
    target: int
    at: float
    delivered_at: float = math.nan
    received_at: float = math.nan
    hops: int = 0
    attempts: int = 0
    receipt: str | None = None
    is_void: bool = False
    """Whether its sender or its target crashed before its time was over."""


@dataclass(frozen=True, slots=True)
class RelayReport:
    """What came of a simulated world; the same setting gives the same."""

    nodes: int
    """Alive at the end."""
    sent: int
    void: int
    """Messages whose sender or target crashed before they arrived, within their time."""
    delivered: int
    """Of the others."""
    confirmed: int
    """Those whose sender got a receipt."""
    delivery: float
    """The share of those not void that arrived."""
    mean_hops: float
    max_hops: int
    half_log2: float
    """log2(nodes) / 2."""
    copies: float
    """Transmissions of messages, by those that arrived."""
    duplicates: float
    """Of these, the share that came to a peer which had seen the same envelope."""
    mean_seconds: float
    """From a message's sending to its arrival, the copies sent again included."""
    mean_neighbours: float
    max_neighbours: int
    unconnected: int
    """Peers alive without a neighbour."""
    max_remembered: int
    """Entries in the tables of one peer, the largest that was seen."""
    transmissions: Mapping[str, int] = field(default_factory=dict)
    """Envelopes handed to a neighbour, by what is in them."""
    last_transmission: float = 0.0
    """Seconds from the last message sent to the last time any copy of a message moved."""

    def to_json(self, setting: Mapping[str, JSON]) -> str:
        """The report as JSON text, with *setting* before it."""
        return json.dumps({"setting": dict(setting), "report": asdict(self)}, indent=1) + "\n"


class RelayWorld:
    """A world of relay peers; `run` it, then read `report`."""

    def __init__(self, setting: RelaySetting, latency: Latency | None = None) -> None:
        self.setting = setting
        self.agenda = Agenda()
        self.peers: dict[int, RelayPeer] = {}
        """Those alive, by number, oldest first."""
        self.messages: list[_Message] = []
        self.count_moved: Counter[str] = Counter()
        self.count_duplicates = 0
        self.max_remembered = 0
        self.last_moved_at = 0.0
        self._latency = latency or uniform(0.01, 0.1, setting.seed)
        self._rng = random.Random(f"{setting.seed}/relay")
        # A heartbeat notices for the peers; nothing need be sent.
        self._policy = replace(
            POLICIES[setting.policy], heartbeat_interval=math.inf, heartbeat_timeout=math.inf
        )
        if setting.is_chain:
            self._policy = replace(self._policy, near=1, spread=0, max_attempts=0)
        self._real = POLICIES[setting.policy]
        self._alive: list[int] = []
        self._place: dict[int, int] = {}
        self._numbers: dict[PeerId, int] = {}
        self._ids: list[PeerId] = []
        """Of all that ever joined, by number."""
        self._count = 0
        self._links: dict[int, set[int]] = {}
        self._flights: dict[int, tuple[PeerId, Envelope]] = {}
        self._count_flights = 0
        self._due: dict[tuple[int, int], float] = {}
        self._by_receipt: dict[str, int] = {}
        self._by_number: dict[tuple[PeerId, JSON], int] = {}

    # --- the run --------------------------------------------------------------------------

    @property
    def ends_at(self) -> float:
        """Virtual seconds that `run` takes."""
        setting = self.setting
        return setting.arrival + SETTLING + setting.seconds + setting.timeout + TICK_INTERVAL

    def run(self, on_bucket: Callable[[], None] | None = None) -> None:
        """Let all join, then send the messages, and wait until their time is over."""
        setting, put = self.setting, self.agenda.put
        for index in range(setting.nodes):
            put(setting.arrival * index / setting.nodes, self._join, index, 0)
        first_at = setting.arrival + SETTLING
        for index in range(setting.messages):
            put(first_at + setting.seconds * index / setting.messages, self._send, index, 0)
        if setting.replaced_per_minute:
            count = round(setting.nodes * setting.replaced_per_minute * setting.seconds / 60)
            for index in range(count):
                at = first_at + setting.seconds * index / count
                put(at, self._crash, index, 0)
                put(at, self._join, setting.nodes + index, 0)
        self.agenda.run(self.ends_at, on_bucket)

    def report(self) -> RelayReport:
        """What came of it."""
        counted = [message for message in self.messages if not message.is_void]
        arrived = [message for message in counted if not math.isnan(message.delivered_at)]
        moved = self.count_moved["User"]
        sizes = [len(links) for links in self._links.values()]
        hops = [message.hops for message in arrived]
        ends_at = self.messages[-1].at if self.messages else 0.0
        return RelayReport(
            nodes=len(self.peers),
            sent=len(self.messages),
            void=len(self.messages) - len(counted),
            delivered=len(arrived),
            confirmed=sum(not math.isnan(message.received_at) for message in counted),
            delivery=len(arrived) / max(1, len(counted)),
            mean_hops=fmean(hops) if hops else 0.0,
            max_hops=max(hops, default=0),
            half_log2=math.log2(max(1, len(self.peers))) / 2,
            copies=moved / max(1, len(arrived)),
            duplicates=self.count_duplicates / max(1, moved),
            mean_seconds=fmean(m.delivered_at - m.at for m in arrived) if arrived else 0.0,
            mean_neighbours=fmean(sizes) if sizes else 0.0,
            max_neighbours=max(sizes, default=0),
            unconnected=sum(not size for size in sizes),
            max_remembered=self.max_remembered,
            transmissions=dict(sorted(self.count_moved.items())),
            last_transmission=max(0.0, self.last_moved_at - ends_at),
        )

    # --- peers come and go ----------------------------------------------------------------

    def _join(self, now: float, _: int, __: int) -> None:
        number = len(self._ids)
        rng = random.Random(f"{self.setting.seed}/{number}")
        peer = RelayPeer(random_peer_id(rng), rng, policy=self._policy, url="ws://simulated")
        entry = number - 1 if self.setting.is_chain else self._pick()
        self.peers[number] = peer
        self._numbers[peer.id] = number
        self._ids.append(peer.id)
        self._links[number] = set()
        self._place[number] = len(self._alive)
        self._alive.append(number)
        if entry is not None and entry >= 0:
            self._dial(now, number, entry)
        self.agenda.put(now + TICK_INTERVAL * self._rng.random(), self._tick, number, 0)

    def _pick(self) -> int | None:
        return self._rng.choice(self._alive) if self._alive else None

    def _crash(self, now: float, _: int, __: int) -> None:
        """Somebody falls silent; its neighbours notice when it has not answered in time."""
        number = self._pick()
        if number is None or len(self._alive) < 3:
            return
        last = self._alive.pop()
        place = self._place.pop(number)
        if last != number:
            self._alive[place] = last
            self._place[last] = place
        del self.peers[number]
        for message in self.messages[-20_000:]:
            if number in (message.sender, message.target) and self._is_under_way(message, now):
                message.is_void = True
        policy = self._real
        for other in sorted(self._links.pop(number)):
            silence = self._rng.uniform(
                policy.heartbeat_timeout - policy.heartbeat_interval, policy.heartbeat_timeout
            )
            self.agenda.put(now + silence, self._notice, other, number)

    def _is_under_way(self, message: _Message, now: float) -> bool:
        return now < message.at + self.setting.timeout and math.isnan(message.delivered_at)

    def _notice(self, now: float, number: int, gone: int) -> None:
        if gone in self._links.get(number, ()):
            self._links[number].discard(gone)
            self._do(now, number, self.peers[number].lose(self._id(gone), now))

    def _id(self, number: int) -> PeerId:
        return self._ids[number]

    def _tick(self, now: float, number: int, _: int) -> None:
        peer = self.peers.get(number)
        if peer is None:
            return
        if not self._links[number] and len(self._alive) > 1 and not self.setting.is_chain:
            entry = self._pick()
            if entry is not None and entry != number:
                self._dial(now, number, entry)
        self._do(now, number, peer.tick(now))
        self.max_remembered = max(self.max_remembered, peer.count_remembered)
        self.agenda.put(now + TICK_INTERVAL, self._tick, number, 0)

    # --- connections ----------------------------------------------------------------------

    def _dial(self, now: float, number: int, other: int) -> None:
        flights = FLIGHTS_TO_CONNECT * self._latency(number, other)
        self.agenda.put(now + flights, self._connected, number, other)

    def _connected(self, now: float, number: int, other: int) -> None:
        """The connection is up at both ends, or at none."""
        caller, callee = self.peers.get(number), self.peers.get(other)
        if caller is None:
            return
        if callee is None or other in self._links[number]:
            if callee is None:
                caller.attempt_failed(self._id(other), now)
            return
        there, actions = callee.admit(caller.id, now)
        if there == "refused":
            caller.attempt_failed(callee.id, now)
            return
        here, own = caller.admit(callee.id, now)
        if here == "refused":
            self._do(now, other, callee.lose(caller.id, now, is_dead=False))
            return
        self._links[number].add(other)
        self._links[other].add(number)
        self._do(now, other, actions)
        self._do(now, number, own)

    def _hang_up(self, now: float, number: int, other: int) -> None:
        """The end *other* has closed; *number* sees it."""
        if other in self._links.get(number, ()):
            self._links[number].discard(other)
            actions = self.peers[number].lose(self._id(other), now, is_dead=False)
            self._do(now, number, actions)

    # --- what is to be done ---------------------------------------------------------------

    def _do(self, now: float, number: int, actions: list[Action]) -> None:
        peer = self.peers[number]
        for action in actions:
            match action:
                case Send(neighbour, envelope):
                    self._move(now, number, self._numbers[neighbour], envelope)
                case Deliver(_, data, _, hops):
                    message = self.messages[data]
                    if math.isnan(message.delivered_at):
                        message.delivered_at, message.hops = now, hops
                case Received(receipt):
                    index = self._by_receipt.pop(receipt, None)
                    if index is not None:
                        self.messages[index].received_at = now
                        peer.expect_no_more(receipt)
                case Connect(other, _, _):
                    self._dial(now, number, self._numbers[other])
                case Close(other, _, is_dead):
                    gone = self._numbers[other]
                    if gone in self._links[number]:
                        self._links[number].discard(gone)
                        self._do(now, number, peer.lose(other, now, is_dead=is_dead))
                        at = now + self._latency(number, gone)
                        self.agenda.put(at, self._hang_up, gone, number)

    def _move(self, now: float, number: int, other: int, envelope: Envelope) -> None:
        kind = type(envelope.body).__name__
        self.count_moved[kind] += 1
        if isinstance(envelope.body, User | ReceiptBody):
            self.last_moved_at = now
        self._count_flights += 1
        self._flights[self._count_flights] = (self.peers[number].id, envelope)
        self.agenda.put(
            now + self._latency(number, other), self._arrive, other, self._count_flights
        )

    def _arrive(self, now: float, number: int, flight: int) -> None:
        by, envelope = self._flights.pop(flight)
        peer = self.peers.get(number)
        if peer is None:
            return
        before = peer.count_duplicates
        actions = peer.take(envelope, by, now)
        if peer.count_duplicates > before and isinstance(envelope.body, User):
            self.count_duplicates += 1
        self._do(now, number, actions)

    # --- messages -------------------------------------------------------------------------

    def _send(self, now: float, _: int, __: int) -> None:
        sender, target = self._rng.sample(self._alive, 2)
        message = _Message(sender, target, now)
        self.messages.append(message)
        if self.setting.receipts:
            message.receipt = self.peers[sender].expect(self._id(target))
            self._by_receipt[message.receipt] = len(self.messages) - 1
        self._send_copy(now, len(self.messages) - 1, 0)

    def _send_copy(self, now: float, index: int, attempt: int) -> None:
        message = self.messages[index]
        peer = self.peers.get(message.sender)
        is_late = now >= message.at + self.setting.timeout
        if peer is None or is_late or not math.isnan(message.received_at):
            return
        message.attempts += 1
        actions = peer.send(
            self._id(message.target), index, now, receipt=message.receipt, attempt=attempt
        )
        self._do(now, message.sender, actions)
        if message.receipt is not None:
            self.agenda.put(now + FIRST_RETRY * 2**attempt, self._send_copy, index, attempt + 1)
