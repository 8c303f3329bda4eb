"""Registrations, moves, crashes and leases against a model that is too simple to be wrong.

One broker, and three that share a registry. The registry is a dict; what it is asked may be
answered at once or much later, with anything happening in between; it can lose an id, or be away.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.profiles import how_long
from trio_overlay.protocol.broker import ID_TAKEN, UNAVAILABLE, PeerSignal
from trio_overlay.protocol.broker_registrations import (
    BrokerLimits,
    Claim,
    Close,
    Decision,
    Forward,
    Locate,
    Member,
    Question,
    Registrations,
    Release,
    Send,
    unavailable,
)

LEASE = 100.0
picks = st.integers(0, 29)
identifiers = st.sampled_from(["ada", "bob", "eve", "toString"])
SECRETS = ("", "the-secret-of-one", "the-secret-of-another")
UNLIMITED = BrokerLimits(
    lease=LEASE, registrations_at_once=1e9, signals_at_once=1e9, requests_at_once=1e9
)


@dataclass(eq=False)
class Peer:
    """One connection, as the model and its client know it."""

    broker: int
    member: Member
    heard_at: float
    secret: str = ""
    """By which it takes an id over from another connection that has the same; empty for none."""
    holds: str | None = None
    """What the model says that it holds."""
    asked: str | None = None
    """The id of a registration that is not answered yet."""
    question: Question | None = None
    is_connected: bool = True
    heard: list[Any] = field(default_factory=list)


class BrokersMachine(RuleBasedStateMachine):
    count_brokers = 1

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.brokers = [Registrations(UNLIMITED) for _ in range(self.count_brokers)]
        self.registry: dict[str, tuple[int, str]] = {}
        """By id: at which broker it is held, and under which digest."""
        self.is_away = False
        self.peers: list[Peer] = []

    @initialize(
        count=st.integers(1, 6), names=st.lists(identifiers, min_size=1, max_size=3, unique=True)
    )
    def begin(self, count: int, names: list[str]) -> None:
        for pick in range(count):
            self.connect(pick, SECRETS[pick % len(SECRETS)])
        for pick, identifier in enumerate(names):
            self.register(pick, identifier, is_slow=False)

    # --- what happens ---------------------------------------------------------------------

    @rule(pick=picks, secret=st.sampled_from(SECRETS))
    def connect(self, pick: int, secret: str) -> None:
        if len(self.connected()) < 8:
            broker = pick % self.count_brokers
            member = self.brokers[broker].enter(self.now)
            self.peers.append(Peer(broker, member, self.now, secret))

    @precondition(lambda self: self.idle())
    @rule(pick=picks, identifier=identifiers, is_slow=st.booleans())
    def register(self, pick: int, identifier: str, is_slow: bool) -> None:
        """Somebody registers or moves to another id."""
        peer = self.pick(self.idle(), pick)
        peer.asked = identifier
        params = {"id": identifier, **({"resume": peer.secret} if peer.secret else {})}
        former = self.former(identifier, peer)
        if former is not None and former.broker == peer.broker:
            former.holds, former.is_connected = None, False
        self.say(peer, "register", params, key=["register", identifier])
        if not is_slow:
            self.answer(peer)

    @precondition(lambda self: self.waiting())
    @rule(pick=picks)
    def registry_answers(self, pick: int) -> None:
        self.answer(self.pick(self.waiting(), pick))

    @precondition(lambda self: self.idle())
    @rule(pick=picks)
    def unregister(self, pick: int) -> None:
        peer = self.pick(self.idle(), pick)
        self.say(peer, "unregister", {}, key="unregister")
        peer.holds = None
        assert peer.heard.pop()["result"] is None

    @precondition(lambda self: self.connected())
    @rule(pick=picks)
    def crash(self, pick: int) -> None:
        """A connection is gone, perhaps with a question of its open, which is cancelled then."""
        peer = self.pick(self.connected(), pick)
        peer.is_connected, peer.holds, peer.asked, peer.question = False, None, None, None
        self.carry_out(peer, (self.brokers[peer.broker].leave(peer.member), None))

    @precondition(lambda self: self.idle())
    @rule(pick=picks, identifier=identifiers)
    def exists(self, pick: int, identifier: str) -> None:
        peer = self.pick(self.idle(), pick)
        self.say(peer, "exists", {"id": identifier}, key="exists")
        self.answer(peer)
        answer = peer.heard.pop()
        if answer["error"] is None:
            assert answer["result"] is (identifier in self.holders())
        else:
            assert self.is_away
            assert answer["error"]["code"] == UNAVAILABLE

    @precondition(lambda self: self.idle())
    @rule(pick=picks, sender=identifiers, recipient=identifiers)
    def signal(self, pick: int, sender: str, recipient: str) -> None:
        """A signal comes to who holds its recipient's id, if its sender's id is the sender's."""
        peer = self.pick(self.idle(), pick)
        params = {"from": sender, "to": recipient, "signal": {"type": "offer", "sdp": "v=0"}}
        self.say(peer, "signal", params, key=None)
        self.answer(peer)
        holder = self.holders().get(recipient)
        is_near = holder is not None and holder.broker == peer.broker
        for each in self.peers:
            came, each.heard = each.heard, []
            if each is holder and sender == peer.holds and (is_near or not self.is_away):
                assert [frame["params"] for frame in came] == [params]
            else:
                assert came == []

    @rule(seconds=st.sampled_from([1, 30, 60, 99, 100, 101]))
    def wait(self, seconds: int) -> None:
        """Those who were silent for a lease hold nothing any more, to the second."""
        until = self.now + seconds
        while self.now < until:
            ticks = [broker.next_tick_at for broker in self.brokers]
            self.now = min(until, *ticks)
            for peer in self.connected():
                if peer.heard_at + LEASE <= self.now:
                    peer.holds, peer.is_connected = None, False
            for number, broker in enumerate(self.brokers):
                self.carry_out(Peer(number, Member(UNLIMITED), 0), (broker.tick(self.now), None))

    @precondition(lambda self: self.count_brokers > 1)
    @rule()
    def registry_goes_or_comes(self) -> None:
        self.is_away = not self.is_away

    @precondition(lambda self: self.registry)
    @rule(pick=picks)
    def registry_loses(self, pick: int) -> None:
        """An id could not be renewed in time."""
        identifier = sorted(self.registry)[pick % len(self.registry)]
        number, _ = self.registry.pop(identifier)
        for peer in self.connected():
            if peer.holds == identifier:
                peer.holds, peer.is_connected = None, False
        actions = self.brokers[number].lose(identifier, "not renewed")
        self.carry_out(Peer(number, Member(UNLIMITED), 0), (actions, None))

    # --- what must hold -------------------------------------------------------------------

    @invariant()
    def brokers_and_model_agree(self) -> None:
        for peer in self.peers:
            assert peer.member.identifier == peer.holds
            assert peer.member.is_closed is not peer.is_connected
        holders = self.holders()
        for number, broker in enumerate(self.brokers):
            here = {name for name, peer in holders.items() if peer.broker == number}
            assert set(broker._holders) == here
            assert broker.count_members == sum(p.broker == number for p in self.connected())
            asked = {peer.asked for peer in self.peers if peer.broker == number and peer.question}
            assert broker._claimed == asked - {None}

    @invariant()
    def the_registry_knows_every_holder_and_nobody_else(self) -> None:
        at = {name: broker for name, (broker, _) in self.registry.items()}
        assert at == {name: peer.broker for name, peer in self.holders().items()}

    # --- how it is done -------------------------------------------------------------------

    def connected(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.is_connected]

    def idle(self) -> list[Peer]:
        return [peer for peer in self.connected() if peer.question is None]

    def waiting(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.question is not None]

    def holders(self) -> dict[str, Peer]:
        holders = {}
        for peer in self.peers:
            if peer.holds is not None:
                assert peer.holds not in holders, f"two peers hold {peer.holds}"
                holders[peer.holds] = peer
        return holders

    def former(self, identifier: str, peer: Peer) -> Peer | None:
        """Who holds it, if that is another connection of the same peer's."""
        holder = self.holders().get(identifier)
        if holder is None or holder is peer or not peer.secret or holder.secret != peer.secret:
            return None
        return holder

    def pick(self, peers: list[Peer], pick: int) -> Peer:
        return peers[pick % len(peers)]

    def say(self, peer: Peer, method: str, params: Any, key: Any) -> None:
        frame = {"jsonrpc": "2.0", "method": method, "params": params}
        if key is not None:
            frame["id"] = json.dumps(key)
        peer.heard_at = self.now
        text = json.dumps(frame)
        self.carry_out(peer, self.brokers[peer.broker].receive(self.now, peer.member, text))

    def answer(self, peer: Peer) -> None:
        """The registry answers what *peer* waits for, if it waits."""
        question, peer.question = peer.question, None
        if question is not None:
            outcome = unavailable("away") if self.is_away else self.ask(peer, question)
            decision = self.brokers[peer.broker].answered(self.now, peer.member, outcome)
            self.carry_out(peer, decision)

    def ask(self, peer: Peer, question: Question) -> bool:
        match question:
            case Claim(identifier, digest):
                return self.claim(peer, identifier, digest)
            case Locate(identifier):
                return identifier in self.registry
            case Forward(signal):
                self.forward(signal)
                return True

    def claim(self, peer: Peer, identifier: str, digest: str) -> bool:
        """What is held elsewhere moves to the broker of *peer*, if it is the same peer's."""
        if identifier in self.registry:
            former = self.former(identifier, peer)
            broker, its_digest = self.registry[identifier]
            if digest == "" or digest != its_digest:
                assert former is None
                return False
            assert former is not None
            former.holds, former.is_connected = None, False
            actions = self.brokers[broker].lose(identifier, "moved")
            self.carry_out(Peer(broker, Member(UNLIMITED), 0), (actions, None))
        self.registry[identifier] = peer.broker, digest
        return True

    def forward(self, signal: PeerSignal) -> None:
        number, _ = self.registry.get(signal.recipient, (None, ""))
        if number is not None:
            actions = self.brokers[number].deliver(signal)
            self.carry_out(Peer(number, Member(UNLIMITED), 0), (actions, None))

    def carry_out(self, peer: Peer, decision: Decision) -> None:
        actions, peer.question = decision
        by_member = {each.member: each for each in self.peers}
        for action in actions:
            match action:
                case Release(identifier):
                    assert self.registry.pop(identifier)[0] == peer.broker
                case Send(member, text):
                    self.hear(by_member[member], json.loads(text))
                case Close(member, _):
                    assert not by_member[member].is_connected, "closed, and the model knows not why"

    def hear(self, peer: Peer, frame: Any) -> None:
        assert peer.is_connected
        if isinstance(frame.get("id"), str) and frame["id"].startswith("["):
            _, identifier = json.loads(frame["id"])
            assert identifier == peer.asked
            peer.asked = None
            others = {name for name, each in self.holders().items()}
            if frame["error"] is None:
                assert identifier not in others, "granted, and another holds it"
                peer.holds = identifier
            elif frame["error"]["code"] == UNAVAILABLE:
                assert self.is_away
            else:
                assert frame["error"]["code"] == ID_TAKEN
                claimed = {each.asked for each in self.peers if each is not peer}
                assert identifier in others | claimed, "refused, and it is free"
                if self.former(identifier, peer) is not None:
                    assert identifier in claimed, "refused, and it is the peer's own"
        else:
            peer.heard.append(frame)


class ThreeBrokersMachine(BrokersMachine):
    count_brokers = 3


TestOneBroker = BrokersMachine.TestCase
TestOneBroker.settings = how_long(60, 40, long_steps=80)
TestThreeBrokers = ThreeBrokersMachine.TestCase
TestThreeBrokers.settings = how_long(60, 40, long_steps=80)
