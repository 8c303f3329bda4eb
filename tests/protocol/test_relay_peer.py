"""What relay peers decide, alone and in networks without time between them."""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_overlay.protocol.buckets import random_peer_id
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.relay import (
    EXTENSIONS,
    MAX_HOPS,
    Body,
    Envelope,
    FindPeers,
    FoundPeers,
    HandshakeAnswer,
    HandshakeOffer,
    PeerId,
    PeerSignal,
    Ping,
    Pong,
    Receipt,
    User,
)
from trio_overlay.protocol.relay_actions import (
    Action,
    Close,
    Connect,
    Deliver,
    Failed,
    Received,
    Send,
    Signalled,
)
from trio_overlay.protocol.relay_peer import (
    CONNECT_TIMEOUT,
    MAX_ANSWERING,
    MAX_WAITING,
    OFFER_TIMEOUT,
    VISIT_TIMEOUT,
    WAITING_AGE,
    RelayPeer,
)
from trio_overlay.protocol.relay_routing import MAX_NONCES, NONCE_AGE, ORIGINAL, Policy

QUIET = Policy(max_attempts=0)
"""For tests in which nobody connects unasked."""


def peer_at(number: int) -> PeerId:
    """The peer whose id has only its first byte set."""
    return f"{number:02x}" + "0" * 38


class Net:
    """Peers by their ids, and the envelopes between them, which arrive in the order they left."""

    def __init__(self) -> None:
        self.peers: dict[PeerId, RelayPeer] = {}
        self.now = 0.0
        self.delivered: list[tuple[PeerId, Deliver]] = []
        self.received: list[tuple[PeerId, str]] = []
        self.others: list[tuple[PeerId, Action]] = []
        self.moved: Counter[str] = Counter()
        self._under_way: deque[tuple[PeerId, Send]] = deque()

    def add(self, peer_id: PeerId, policy: Policy = QUIET) -> RelayPeer:
        rng = random.Random(peer_id)
        peer = self.peers[peer_id] = RelayPeer(peer_id, rng, policy=policy, url=f"ws://{peer_id}")
        return peer

    def link(self, one: PeerId, other: PeerId) -> None:
        for peer, partner in ((one, other), (other, one)):
            admission, actions = self.peers[peer].admit(partner, self.now)
            assert admission == "neighbour"
            self.do(peer, actions)

    def do(self, peer: PeerId, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._under_way.append((peer, action))
                case Deliver():
                    self.delivered.append((peer, action))
                case Received(receipt):
                    self.received.append((peer, receipt))
                case Connect(other):
                    if other not in self.peers[peer]:
                        self.link(peer, other)
                case _:
                    self.others.append((peer, action))

    def settle(self, max_moves: int = 100_000) -> None:
        """Let everything arrive that is under way, and what comes of it."""
        while self._under_way:
            max_moves -= 1
            assert max_moves, "it never ends"
            sender, send = self._under_way.popleft()
            self.moved[type(send.envelope.body).__name__] += 1
            peer = self.peers[send.neighbour]
            self.do(peer.id, peer.take(send.envelope, sender, self.now))

    def pass_time(self, seconds: float) -> None:
        ends_at = self.now + seconds
        while self.now < ends_at:
            self.now += 1.0
            for peer in list(self.peers.values()):
                self.do(peer.id, peer.tick(self.now))
            self.settle()

    def send(self, sender: PeerId, to: PeerId, data: JSON) -> None:
        self.do(sender, self.peers[sender].send(to, data, self.now))
        self.settle()


def sends(actions: Iterable[Action], kind: type[Body] | None = None) -> list[Send]:
    return [
        action
        for action in actions
        if isinstance(action, Send) and (kind is None or isinstance(action.envelope.body, kind))
    ]


def lone_peer(policy: Policy = QUIET, **options: object) -> tuple[RelayPeer, PeerId]:
    """A peer with one neighbour, both silent until now."""
    peer = RelayPeer(peer_at(0), random.Random(1), policy=policy, **options)  # type: ignore[arg-type]
    neighbour = peer_at(0xFF)
    peer.admit(neighbour, 0.0)
    return peer, neighbour


def said(sender: PeerId, to: PeerId, body: Body, nonce: str = "n", *path: PeerId) -> Envelope:
    return Envelope(to, sender, path or (sender,), nonce, body)


# --- networks -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [QUIET, replace(ORIGINAL, max_attempts=0)])
def test_messages_pass_a_chain_of_ten_both_ways(policy: Policy) -> None:
    """As in the original's test that is commented out."""
    rng = random.Random(10)
    net = Net()
    chain = [random_peer_id(rng) for _ in range(10)]
    for peer in chain:
        net.add(peer, policy)
    for one, other in itertools.pairwise(chain):
        net.link(one, other)
    net.settle()
    for sender, target in ((0, 9), (9, 0), (4, 9), (4, 0), (2, 7)):
        net.send(chain[sender], chain[target], [sender, target])
        peer, message = net.delivered.pop()
        assert (peer, message.data, message.sender) == (
            chain[target],
            [sender, target],
            chain[sender],
        )
        assert message.hops == abs(sender - target)
        assert not net.delivered


def test_a_star_of_two_hubs_delivers_to_those_who_can_only_dial() -> None:
    """The nearest neighbour of the target is a leaf of the wrong hub; nothing goes through it."""
    net = Net()
    hubs = peer_at(0x10), peer_at(0xF0)
    for peer in hubs:
        net.add(peer)
    net.link(*hubs)
    leaves = [peer_at(number) for number in range(0x21, 0x31)]
    for index, leaf in enumerate(leaves):
        net.add(leaf)
        net.link(leaf, hubs[index % 2])
    net.settle()
    for sender in leaves[:4]:
        for target in leaves:
            if target != sender:
                net.send(sender, target, target)
    assert [peer for peer, _ in net.delivered] == [m.data for _, m in net.delivered]
    assert len(net.delivered) == 4 * (len(leaves) - 1)


@settings(max_examples=8)
@given(st.integers(0, 10_000), st.integers(2, 20))
def test_every_message_arrives_once_among_peers_that_met_at_one(seed: int, count: int) -> None:
    rng = random.Random(seed)
    net = Net()
    everybody = [random_peer_id(rng) for _ in range(count)]
    for number, peer in enumerate(everybody):
        net.add(peer, Policy())
        if number:
            net.link(peer, everybody[0])
            net.settle()
    net.pass_time(15)
    for number in range(20):
        sender, target = rng.sample(everybody, 2)
        net.send(sender, target, number)
        peer, message = net.delivered.pop()
        assert (peer, message.sender, message.data) == (target, sender, number)
        assert not net.delivered
    # Nobody is without a neighbour in a bucket in which there is somebody.
    for one in net.peers.values():
        indices = {one.neighbours.index_of(other) for other in everybody if other != one.id}
        assert indices == set(one.neighbours.indices)


def net_that_grew(everybody: list[PeerId], policy: Policy) -> Net:
    """One after the other has come, by somebody who was there."""
    net = Net()
    for number, peer in enumerate(everybody):
        net.add(peer, policy)
        if number:
            net.link(peer, everybody[number // 2])
            net.settle()
    return net


def test_connections_are_spread_over_the_buckets_and_the_originals_are_not() -> None:
    rng = random.Random(3)
    everybody = [random_peer_id(rng) for _ in range(50)]
    depths = {}
    for name, policy in {"ours": Policy(), "original": ORIGINAL}.items():
        net = net_that_grew(everybody, policy)
        net.pass_time(30)
        lacking = 0
        for one in net.peers.values():
            there = {one.neighbours.index_of(other) for other in everybody if other != one.id}
            lacking += len(there - set(one.neighbours.indices))
        depths[name] = lacking
    assert depths["ours"] == 0
    assert depths["original"] > 0


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(3, 12))
def test_a_message_to_nobody_ends(seed: int, count: int) -> None:
    """Whatever the connections: each peer passes a nonce on once, so there is an end."""
    rng = random.Random(seed)
    net = Net()
    everybody = [random_peer_id(rng) for _ in range(count)]
    for peer in everybody:
        net.add(peer, rng.choice([QUIET, replace(ORIGINAL, max_attempts=0)]))
    for one in everybody:
        for other in everybody:
            if one < other and rng.random() < 0.4:
                net.link(one, other)
    net.settle()
    net.moved.clear()
    net.send(everybody[0], random_peer_id(rng), "nobody")
    assert net.moved["User"] <= 3 * count
    assert not net.delivered


def test_fewer_copies_than_the_original_arrive_as_well() -> None:
    rng = random.Random(4)
    everybody = [random_peer_id(rng) for _ in range(40)]
    moved = {}
    few = Policy(near=3, spread=1)  # or nobody would be farther than two hops
    for name, policy in {"ours": few, "original": replace(few, relay_copies=2)}.items():
        net = net_that_grew(everybody, policy)
        net.pass_time(15)
        net.moved.clear()
        for number in range(100):
            sender, target = random.Random(number).sample(everybody, 2)
            net.send(sender, target, number)
        assert [message.data for _, message in net.delivered] == list(range(100))
        moved[name] = net.moved["User"]
    assert moved["ours"] < 0.8 * moved["original"]


# --- envelopes ----------------------------------------------------------------------------


def test_a_reused_nonce_is_neither_delivered_nor_passed_on_again() -> None:
    peer, neighbour = lone_peer()
    first = said(neighbour, peer.id, User(1))
    assert peer.take(first, neighbour, 1.0) == [Deliver(neighbour, 1, False, 1)]
    assert peer.take(replace(first, body=User(2)), neighbour, 2.0) == []
    assert peer.count_duplicates == 1


def test_seen_nonces_are_bounded_in_number_and_age() -> None:
    peer, neighbour = lone_peer()
    for number in range(MAX_NONCES + 5000):
        peer.take(said(neighbour, peer.id, User(1), str(number)), neighbour, number / 500)
    assert peer.router.count_remembered <= MAX_NONCES + 1
    now = MAX_NONCES / 500 + NONCE_AGE + 11
    peer.tick(now)
    assert peer.router.count_remembered <= 1  # what it asked just now


@pytest.mark.parametrize(
    ("sender", "path"),
    [
        (peer_at(1), [peer_at(1), peer_at(2)]),  # not passed on by who sent it
        (peer_at(1), [peer_at(0xFF)]),  # not begun by its sender
        (peer_at(0), [peer_at(0), peer_at(0xFF)]),  # ours, and we know of nothing
        (peer_at(1), [peer_at(1), peer_at(0), peer_at(0xFF)]),  # it was here, but we know nothing
    ],
)
def test_a_forged_path_is_refused(sender: PeerId, path: list[PeerId]) -> None:
    peer, neighbour = lone_peer()
    envelope = Envelope(peer.id, sender, tuple(path), "n", User(1))
    assert peer.take(envelope, neighbour, 1.0) == []
    assert peer.count_refused == 1


def test_an_envelope_of_an_original_that_waited_has_its_sender_twice() -> None:
    peer, neighbour = lone_peer()
    envelope = said(neighbour, peer.id, User(1), "n", neighbour, neighbour)
    assert isinstance(peer.take(envelope, neighbour, 1.0)[0], Deliver)


def test_a_path_of_twenty_arrives_and_goes_no_further() -> None:
    peer, neighbour = lone_peer()
    peer.admit(peer_at(0x40), 0.0)
    path = (*(f"{number:040x}" for number in range(1, MAX_HOPS)), neighbour)
    arrived = Envelope(peer.id, path[0], path, "1", User(1))
    assert isinstance(peer.take(arrived, neighbour, 1.0)[0], Deliver)
    for number, to in enumerate((peer_at(0x40), peer_at(0x41))):
        passing = Envelope(to, path[0], path, f"p{number}", User(1))
        assert peer.take(passing, neighbour, 1.0) == []
        shorter = Envelope(to, path[1], path[1:], f"s{number}", User(1))
        assert [send.neighbour for send in sends(peer.take(shorter, neighbour, 1.0))] == [
            peer_at(0x40)
        ]


def test_what_is_sent_before_there_is_a_neighbour_waits_for_it_bounded() -> None:
    peer = RelayPeer(peer_at(0), random.Random(1), policy=QUIET)
    for number in range(MAX_WAITING + 7):
        assert peer.send(peer_at(1), number, 1.0) == []
    _, actions = peer.admit(peer_at(0xFF), 2.0)
    bodies = [send.envelope.body for send in sends(actions, User)]
    assert bodies == [User(number) for number in range(7, MAX_WAITING + 7)]
    assert all(send.envelope.path == (peer.id,) for send in sends(actions))
    assert not sends(peer.admit(peer_at(0xFE), 3.0)[1], User)  # once


def test_what_has_waited_too_long_is_dropped() -> None:
    peer = RelayPeer(peer_at(0), random.Random(1), policy=QUIET)
    peer.send(peer_at(1), "old", 1.0)
    peer.send(peer_at(1), "new", 10.0)
    _, actions = peer.admit(peer_at(0xFF), 2.0 + WAITING_AGE)
    assert [send.envelope.body for send in sends(actions, User)] == [User("new")]


def test_a_message_to_oneself_arrives() -> None:
    peer = RelayPeer(peer_at(0), random.Random(1))
    receipt = peer.expect(peer.id)
    assert peer.send(peer.id, 1, 0.0, receipt=receipt) == [
        Deliver(peer.id, 1, True, 0),
        Received(receipt),
    ]


def test_answers_go_back_the_way_their_question_came() -> None:
    peer, neighbour = lone_peer()
    peer.admit(peer_at(0x41), 0.0)
    far = peer_at(0x40)
    peer.take(said(far, peer.id, User(1), "n", far, neighbour), neighbour, 1.0)
    first = sends(peer.send(far, "answer", 2.0))
    assert first[0].neighbour == neighbour
    # Later it may be wrong.
    later = sends(peer.send(far, "answer", 100.0))
    assert neighbour in [send.neighbour for send in later]


def test_a_message_sent_again_begins_by_other_neighbours() -> None:
    peer = RelayPeer(peer_at(0), random.Random(1), policy=QUIET)
    for number in range(0x80, 0x88):
        peer.admit(peer_at(number), 0.0)
        question = said(peer_at(1), peer_at(2), User(1), str(number), peer_at(1), peer_at(number))
        peer.take(question, peer_at(number), 0.0)  # it relays
    to = peer_at(0xC0)
    used = [
        [send.neighbour for send in sends(peer.send(to, 1, 60.0, attempt=attempt))]
        for attempt in range(3)
    ]
    assert len({hop for hops in used for hop in hops}) == 6


def test_one_copy_goes_on_to_a_nearer_neighbour_and_two_where_there_is_none() -> None:
    peer = RelayPeer(peer_at(0x0F), random.Random(1), policy=QUIET)
    source = peer_at(0xFF)
    for number in (0xFF, 0x80, 0x90):
        peer.admit(peer_at(number), 0.0)
        passing = said(peer_at(1), peer_at(2), User(1), str(number), peer_at(1), peer_at(number))
        peer.take(passing, peer_at(number), 0.0)
    nearer = peer.take(said(source, peer_at(0x81), User(1), "a"), source, 60.0)
    assert [send.neighbour for send in sends(nearer)] == [peer_at(0x80)]
    stuck = peer.take(said(source, peer_at(0x0E), User(1), "b"), source, 60.0)
    assert [send.neighbour for send in sends(stuck)] == [peer_at(0x80), peer_at(0x90)]


# --- receipts -----------------------------------------------------------------------------


def test_a_message_sent_again_is_delivered_once_and_confirmed_each_time() -> None:
    net = Net()
    one, other = peer_at(1), peer_at(2)
    net.add(one)
    net.add(other)
    net.link(one, other)
    net.settle()
    receipt = net.peers[one].expect(other)
    for attempt in range(3):
        net.do(one, net.peers[one].send(other, 7, net.now, receipt=receipt, attempt=attempt))
        net.settle()
    assert [message.data for _, message in net.delivered] == [7]
    assert net.received == [(one, receipt)] * 3
    net.peers[one].expect_no_more(receipt)
    net.do(one, net.peers[one].send(other, 7, net.now, receipt=receipt))
    net.settle()
    assert len(net.received) == 3


def test_a_receipt_of_another_counts_for_nothing() -> None:
    peer, neighbour = lone_peer()
    receipt = peer.expect(peer_at(7))
    assert peer.take(said(neighbour, peer.id, Receipt(receipt)), neighbour, 1.0) == []
    genuine = said(peer_at(7), peer.id, Receipt(receipt), "m", peer_at(7), neighbour)
    assert peer.take(genuine, neighbour, 1.0) == [Received(receipt)]


# --- peers come and go --------------------------------------------------------------------


def test_a_new_neighbour_is_asked_who_is_near_us() -> None:
    peer = RelayPeer(peer_at(0), random.Random(1))
    admission, actions = peer.admit(peer_at(5), 0.0)
    assert admission == "neighbour"
    assert [(send.neighbour, send.envelope.body) for send in sends(actions)] == [
        (peer_at(5), FindPeers(peer.id, EXTENSIONS))
    ]


def test_answers_to_questions_never_asked_count_for_nothing() -> None:
    peer, neighbour = lone_peer(Policy())
    stranger = peer_at(9)
    answers: list[Body] = [
        FoundPeers(tuple(peer_at(number) for number in range(1, 21))),
        HandshakeAnswer("ws://victim", True),
        PeerSignal({"type": "offer", "sdp": ""}),
        Receipt("0" * 32),
        Pong(),
    ]
    for number, body in enumerate(answers):
        envelope = said(stranger, peer.id, body, str(number), stranger, neighbour)
        assert peer.take(envelope, neighbour, 1.0) == []
    assert list(peer.known) == [neighbour]
    # The neighbour was asked once, when it came.
    found = FoundPeers((peer_at(3),))
    offers = peer.take(said(neighbour, peer.id, found, "a"), neighbour, 1.0)
    assert [send.envelope.to for send in sends(offers, HandshakeOffer)] == [peer_at(3)]
    assert peer.take(said(neighbour, peer.id, FoundPeers((peer_at(4),)), "b"), neighbour, 1.0) == []
    assert peer_at(4) not in peer.known


def test_a_flood_of_questions_is_answered_within_an_allowance() -> None:
    peer, neighbour = lone_peer()
    answers = 0
    for number in range(10_000):
        victim = f"{number + 1:040x}"
        question = said(victim, peer.id, FindPeers(victim), str(number), victim, neighbour)
        answers += len(sends(peer.take(question, neighbour, 1.0)))
    assert 0 < answers <= 200
    assert peer.count_refused > 9_000


def test_others_are_told_only_of_those_that_are_alive() -> None:
    peer, neighbour = lone_peer()
    peer.admit(peer_at(0x77), 0.0)
    hearsay = FoundPeers((peer_at(3), peer_at(4)))
    peer.take(said(neighbour, peer.id, hearsay, "a"), neighbour, 1.0)
    assert peer_at(3) in peer.known
    question = said(neighbour, peer.id, FindPeers(peer_at(3)), "b")
    (answer,) = sends(peer.take(question, neighbour, 2.0), FoundPeers)
    assert isinstance(answer.envelope.body, FoundPeers)
    assert answer.envelope.body.peers == (peer_at(0x77),)


def test_no_more_connections_are_tried_at_a_time_than_allowed() -> None:
    peer, neighbour = lone_peer(Policy(max_attempts=3))
    found = FoundPeers(tuple(peer_at(number) for number in range(1, 21)))
    offers = sends(peer.take(said(neighbour, peer.id, found, "a"), neighbour, 1.0))
    assert len(offers) == len(peer.attempts) == 3
    failed = [a for a in peer.tick(1.0 + OFFER_TIMEOUT) if isinstance(a, Failed)]
    assert len(failed) == 3
    assert len(peer.attempts) == 3  # others
    assert not {each.peer for each in failed} & peer.attempts.keys()


def test_known_peers_expire_and_the_oldest_is_probed() -> None:
    peer, neighbour = lone_peer()
    peer.take(said(neighbour, peer.id, FoundPeers((peer_at(3),)), "a"), neighbour, 1.0)
    assert peer_at(3) in peer.known
    probed = False
    now = 1.0
    while now < 200 and peer_at(3) in peer.known:
        now += 1.0
        peer.take(said(neighbour, peer.id, Pong(), str(now)), neighbour, now)
        actions = peer.tick(now)
        probed |= any(send.envelope.to == peer_at(3) for send in sends(actions, FindPeers))
    assert probed
    assert peer_at(3) not in peer.known


def test_a_silent_neighbour_is_asked_and_then_given_up() -> None:
    peer, neighbour = lone_peer()
    peer.take(said(neighbour, peer.id, FindPeers(neighbour, EXTENSIONS), "a"), neighbour, 1.0)
    policy = peer.policy
    assert not sends(peer.tick(1.0 + policy.heartbeat_interval - 0.1), Ping)
    asked = sends(peer.tick(1.0 + policy.heartbeat_interval), Ping)
    assert [send.neighbour for send in asked] == [neighbour]
    assert not sends(peer.tick(2.0 + policy.heartbeat_interval), Ping)  # once is enough
    assert Close(neighbour, "no sign of life", True) in peer.tick(1.0 + policy.heartbeat_timeout)
    peer.lose(neighbour, 14.0)
    assert neighbour not in peer
    assert neighbour not in peer.known


def test_an_original_is_asked_what_it_can_answer_and_less_often() -> None:
    peer, neighbour = lone_peer()
    policy = peer.policy
    peer.take(said(neighbour, peer.id, Pong(), "a"), neighbour, 1.0)
    assert not sends(peer.tick(2.5 * policy.heartbeat_interval))[1:]
    asked = sends(peer.tick(1.0 + 3 * policy.heartbeat_interval), FindPeers)
    assert neighbour in [send.neighbour for send in asked]
    peer.take(said(neighbour, peer.id, FoundPeers(()), "b"), neighbour, 18.0)
    assert not [a for a in peer.tick(40.0) if isinstance(a, Close)]


def test_a_full_bucket_keeps_who_has_been_there_longest_and_newcomers_visit() -> None:
    peer = RelayPeer(peer_at(0), random.Random(1), policy=Policy(bucket_size=2, max_visitors=1))
    first = [peer_at(0x80), peer_at(0x81)]
    for each in first:
        assert peer.admit(each, 0.0)[0] == "neighbour"
    visitor = peer_at(0x82)
    admission, actions = peer.admit(visitor, 1.0)
    assert admission == "visitor"
    assert sends(actions)
    assert peer.admit(peer_at(0x83), 1.0) == ("refused", [])
    assert list(peer.neighbours) == first
    # It may ask, others are told of it, and it gets what is meant for it; nothing goes through it.
    question = said(visitor, peer.id, FindPeers(visitor), "a")
    (answer,) = sends(peer.take(question, visitor, 2.0), FoundPeers)
    assert answer.neighbour == visitor
    question = said(first[0], peer.id, FindPeers(visitor), "b")
    (answer,) = sends(peer.take(question, first[0], 2.0), FoundPeers)
    assert isinstance(answer.envelope.body, FoundPeers)
    assert visitor in answer.envelope.body.peers
    assert [s.neighbour for s in sends(peer.send(visitor, 1, 2.0))] == [visitor]
    near = f"{0x82:02x}" + "0" * 37 + "1"
    assert visitor not in [s.neighbour for s in sends(peer.send(near, 1, 2.0))]
    closed = [a.neighbour for a in peer.tick(1.0 + VISIT_TIMEOUT) if isinstance(a, Close)]
    assert closed == [visitor]


def test_the_lower_of_two_ends_refuses_the_newer_connection() -> None:
    low, high = peer_at(1), peer_at(2)
    for own, other, expected in ((low, high, "refused"), (high, low, "spare")):
        peer = RelayPeer(own, random.Random(1), policy=QUIET)
        assert peer.admit(other, 0.0)[0] == "neighbour"
        admission, actions = peer.admit(other, 1.0)
        assert admission == expected
        assert sends(actions)  # the older is asked whether it is alive
        assert peer.admit(own, 1.0) == ("refused", [])


# --- handshakes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "url", "expected"),
    [
        (True, True, "ws://u", Connect(peer_at(5), True, "ws://u")),
        (True, True, None, Connect(peer_at(5), True, None)),
        (False, True, "ws://u", Connect(peer_at(5), False, "ws://u")),
        (True, False, "ws://u", Connect(peer_at(5), False, "ws://u")),
        (False, True, None, None),
        (True, False, None, None),
    ],
)
def test_peers_connect_by_what_both_can(
    ours: bool, theirs: bool, url: str | None, expected: Connect | None
) -> None:
    peer, neighbour = lone_peer(webrtc=ours)
    peer.connect(peer_at(5), 1.0)
    answer = said(peer_at(5), peer.id, HandshakeAnswer(url, theirs), "a", peer_at(5), neighbour)
    (action,) = peer.take(answer, neighbour, 2.0)
    if expected is None:
        assert isinstance(action, Failed)
        assert not peer.attempts
    else:
        assert action == expected
        assert peer.take(replace(answer, nonce="b"), neighbour, 2.0) == []  # once
        peer.attempt_failed(peer_at(5), 3.0)
        assert not peer.attempts


def test_an_offer_is_answered_by_what_we_have_and_signals_are_taken_then() -> None:
    peer, neighbour = lone_peer(webrtc=True, url="ws://here")
    asker = peer_at(5)
    signal = said(asker, peer.id, PeerSignal({"a": 1}), "s0", asker, neighbour)
    assert peer.take(signal, neighbour, 1.0) == []
    offer = said(asker, peer.id, HandshakeOffer(), "o", asker, neighbour)
    (answer,) = sends(peer.take(offer, neighbour, 1.0))
    assert answer.envelope.body == HandshakeAnswer("ws://here", True, EXTENSIONS)
    assert peer.take(replace(signal, nonce="s1"), neighbour, 1.0) == [Signalled(asker, {"a": 1})]
    failed = [each for each in peer.tick(1.0 + CONNECT_TIMEOUT) if isinstance(each, Failed)]
    assert [each.peer for each in failed] == [asker]
    assert peer.take(replace(signal, nonce="s2"), neighbour, 50.0) == []


def test_of_two_crossing_offers_the_one_of_the_lower_id_stands() -> None:
    for own, other, answers in ((1, 2, False), (2, 1, True)):
        peer = RelayPeer(peer_at(own), random.Random(1), policy=QUIET)
        neighbour = peer_at(0xFF)
        peer.admit(neighbour, 0.0)
        peer.connect(peer_at(other), 1.0)
        offer = said(peer_at(other), peer.id, HandshakeOffer(), "o", peer_at(other), neighbour)
        assert bool(sends(peer.take(offer, neighbour, 1.0))) == answers


def test_a_flood_of_offers_takes_no_more_places_than_there_are() -> None:
    peer, neighbour = lone_peer(webrtc=True)
    for number in range(1000):
        asker = f"{number + 1:040x}"
        offer = said(asker, peer.id, HandshakeOffer(), str(number), asker, neighbour)
        peer.take(offer, neighbour, float(number))
    assert len(peer.attempts) <= MAX_ANSWERING
    assert peer.count_remembered < 3000


def test_who_was_let_go_is_left_alone_for_a_while() -> None:
    peer, neighbour = lone_peer(Policy())
    peer.admit(peer_at(3), 0.0)
    assert peer.disconnect(peer_at(3), 1.0) == [Close(peer_at(3), "disconnected")]
    peer.lose(peer_at(3), 1.0, is_dead=False)
    found = FoundPeers((peer_at(3), peer_at(4)))
    offers = sends(peer.take(said(neighbour, peer.id, found, "a"), neighbour, 2.0))
    assert [send.envelope.to for send in offers] == [peer_at(4)]
    assert sends(peer.connect(peer_at(3), 3.0), HandshakeOffer)  # unless the application asks


# --- proofs -------------------------------------------------------------------------------


def signs(envelope: Envelope) -> Envelope:
    return envelope.with_more("proof", envelope.sender)


def is_signed(envelope: Envelope) -> bool:
    return envelope.more.get("proof") == envelope.sender


def test_a_proved_message_is_told_from_others_and_others_may_be_refused() -> None:
    for accepts in (True, False):
        peer, neighbour = lone_peer(is_proved=is_signed, accepts_unproved=accepts)
        plain = said(neighbour, peer.id, User(1), "a")
        delivered = peer.take(plain, neighbour, 1.0)
        assert delivered == ([Deliver(neighbour, 1, False, 1)] if accepts else [])
        # A forged copy does not keep the true one out.
        assert peer.take(signs(plain), neighbour, 1.0) == (
            [] if accepts else [Deliver(neighbour, 1, True, 1)]
        )
        proved = signs(said(neighbour, peer.id, User(2), "b"))
        assert peer.take(proved, neighbour, 1.0) == [Deliver(neighbour, 2, True, 1)]
        assert peer.take(proved, neighbour, 2.0) == []


def test_a_replayed_proof_is_known_though_strangers_filled_the_other_table() -> None:
    peer, neighbour = lone_peer(is_proved=is_signed)
    proved = signs(said(neighbour, peer.id, User(2), "b"))
    assert peer.take(proved, neighbour, 0.0)
    for number in range(MAX_NONCES + 1):
        peer.take(said(neighbour, peer.id, User(1), str(number)), neighbour, number / 500)
    assert peer.take(proved, neighbour, 60.0) == []


def test_what_leaves_here_is_signed_with_an_extra_key_and_stays_so_on_the_way() -> None:
    net = Net()
    one, middle, other = peer_at(1), peer_at(2), peer_at(3)
    for each in (one, middle, other):
        net.add(each)
    net.peers[one]._prove = signs
    net.peers[other]._is_proved = is_signed
    net.link(one, middle)
    net.link(middle, other)
    net.settle()
    net.send(one, other, "hello")
    assert net.delivered == [(other, Deliver(one, "hello", True, 2))]
