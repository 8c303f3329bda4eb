"""One relay peer's mind: its neighbours, whom else it knows, whom it wants, what it answers.

Nothing here waits. Each method takes what happened and the moment, changes the state, and returns
what is to be done, in order. Strangers decide what comes in here, so every table is bounded, and
answers count only where there was a question.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from trio_overlay.protocol.allowance import Allowance
from trio_overlay.protocol.buckets import Buckets
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.relay import (
    ALIVE,
    EXTENSIONS,
    MAX_FOUND,
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
    Unknown,
    User,
    Withdrawn,
)
from trio_overlay.protocol.relay_actions import (
    Action,
    Admission,
    Close,
    Connect,
    Deliver,
    Failed,
    Received,
    Send,
    Signalled,
)
from trio_overlay.protocol.relay_routing import Fading, Neighbour, Policy, Router

MAX_WAITING: Final = 100
WAITING_AGE: Final = 60.0
"""Seconds for which what was sent waits for a first neighbour."""
MAX_QUESTIONS: Final = 500
QUESTION_AGE: Final = 20.0
OFFER_TIMEOUT: Final = 10.0
"""Seconds from an offer to its answer."""
CONNECT_TIMEOUT: Final = 40.0
"""Seconds from the answer to the connection, at either end."""
VISIT_TIMEOUT: Final = 20.0
NO_ROOM: Final = "there is no more room for this id here"
"""What a visitor is told when its time is over."""
KNOWN_AGE: Final = 300.0
"""Seconds after which a peer that was not heard of again is known no longer."""
PROBE_AGE: Final = 120.0
"""Seconds after which a peer that we know is asked whether it is alive."""
TELL_AGE: Final = 60.0
"""Others are told of peers that were heard within so many seconds, and of neighbours."""
MAX_ANSWERING: Final = 64
MAX_FAILED: Final = 500
FAILED_AGE: Final = 30.0
"""Seconds for which a peer that could not be connected is left alone."""
MAX_DELIVERED: Final = 10_000
DELIVERED_AGE: Final = 300.0
"""Seconds for which a message with a receipt is known again: the longest that one is sent anew."""
FRAMES_AT_ONCE, FRAMES_PER_SECOND = 4_000, 1_000
"""What one neighbour may have us look at; what goes over is dropped."""
ANSWERS_AT_ONCE, ANSWERS_PER_SECOND = 100, 20
"""Answers of ours to what came by one neighbour: they are larger than the questions."""


# --- what is known ------------------------------------------------------------------------


@dataclass(slots=True)
class _Known:
    """A peer that we are perhaps not connected to."""

    told_at: float
    heard_at: float = float("-inf")
    """When it last gave a sign of life itself: as our neighbour, or by an answer to a question."""

    @property
    def newest(self) -> float:
        return max(self.told_at, self.heard_at)


@dataclass(slots=True)
class _Link:
    """What one neighbour may have us do."""

    frames: Allowance
    answers: Allowance


@dataclass(frozen=True, slots=True)
class _Attempt:
    until: float
    is_ours: bool
    """Whether we asked; otherwise we answered, and the other end connects."""
    is_answered: bool
    is_wanted: bool = False
    """Whether the application asked for it."""


class RelayPeer:
    """The peer with the id *own_id*.

    *url* is where others may dial us, and *webrtc* whether we can make peer connections. *prove*
    makes a proof of an envelope that leaves here, *is_proved* checks one that arrives; with
    *accepts_unproved* false, messages and receipts without a good one are dropped.
    """

    def __init__(
        self,
        own_id: PeerId,
        rng: random.Random,
        *,
        policy: Policy = Policy(),  # noqa: B008 - it is frozen
        url: str | None = None,
        webrtc: bool = False,
        prove: Callable[[Envelope], Envelope] | None = None,
        is_proved: Callable[[Envelope], bool] | None = None,
        accepts_unproved: bool = True,
    ) -> None:
        self.id = own_id
        self.url = url
        self.policy = policy
        self.neighbours: Buckets[Neighbour] = Buckets(own_id, policy.bucket_size)
        self.visitors: dict[PeerId, tuple[float, Neighbour]] = {}
        """Neighbours for whom no bucket has room: until when, and what is known of them."""
        self.known: Buckets[_Known] = Buckets(own_id, policy.bucket_size)
        self.router = Router(self.neighbours, policy)
        self.count_duplicates = 0
        """Envelopes that had been here before."""
        self.count_refused = 0
        """Envelopes whose path or proof was no good, and those over a neighbour's allowance."""
        self.count_stuck = 0
        """Envelopes that had nowhere to go."""
        self._rng = rng
        self._webrtc = webrtc
        self._prove = prove
        self._is_proved = is_proved
        self._accepts_unproved = accepts_unproved
        self._links: dict[PeerId, _Link] = {}
        self._attempts: dict[PeerId, _Attempt] = {}
        self._failed: Fading[PeerId, None] = Fading(MAX_FAILED, FAILED_AGE)
        self._questions: Fading[PeerId, int] = Fading(MAX_QUESTIONS, QUESTION_AGE)
        """Whom we have asked for peers, and how many answers are to come."""
        self._delivered: Fading[tuple[PeerId, str], None] = Fading(MAX_DELIVERED, DELIVERED_AGE)
        self._proved_nonces: Fading[tuple[PeerId, str], None] = Fading(MAX_DELIVERED, DELIVERED_AGE)
        self._expected: dict[str, PeerId] = {}
        self._waiting: deque[tuple[float, Envelope, int]] = deque(maxlen=MAX_WAITING)
        self._refresh_at = float("-inf")
        self._turn = 0

    def __contains__(self, peer: PeerId) -> bool:
        """Whether *peer* is connected to us."""
        return peer in self._links

    @property
    def attempts(self) -> Mapping[PeerId, object]:
        """Whom a connection is under way to, or from."""
        return self._attempts

    @property
    def count_remembered(self) -> int:
        """Entries in all tables that strangers can make grow; bounded."""
        return (
            self.router.count_remembered + len(self.known) + len(self._attempts)
            + len(self._failed) + len(self._questions) + len(self._delivered)
            + len(self._proved_nonces) + len(self._waiting) + len(self.visitors)
        )  # fmt: skip

    # --- what our own side wants ----------------------------------------------------------

    def send(
        self, to: PeerId, data: JSON, now: float, *, receipt: str | None = None, attempt: int = 0
    ) -> list[Action]:
        """Send *data* towards *to*; with no neighbour yet, it waits for one.

        With a *receipt* that `expect` gave, the answer is `Received`; *attempt* counts how often
        it was sent before.
        """
        body = User(data, receipt)
        if to == self.id:
            actions: list[Action] = [Deliver(self.id, data, is_proved=True, hops=0)]
            if receipt is not None and self._expected.get(receipt) == to:
                actions.append(Received(receipt))
            return actions
        return self._launch(to, body, now, attempt)

    def expect(self, to: PeerId) -> str:
        """What to ask of *to* as a receipt; until `expect_no_more`."""
        receipt = f"{self._rng.getrandbits(128):032x}"
        self._expected[receipt] = to
        return receipt

    def expect_no_more(self, receipt: str) -> None:
        """Its receipt is no longer waited for."""
        self._expected.pop(receipt, None)

    def connect(self, peer: PeerId, now: float) -> list[Action]:
        """Ask *peer* how to connect to it; it comes to `Connect` or to `Failed`."""
        if peer == self.id or peer in self._links:
            return []
        self._failed.remove(peer)
        attempt = self._attempts.get(peer)
        if attempt is not None:
            self._attempts[peer] = replace(attempt, is_wanted=True)
            return []
        return self._offer(peer, now, is_wanted=True)

    def withdraw(self, peer: PeerId, now: float) -> list[Action]:
        """Give up the attempt to connect to *peer*, and tell it, if it might be waiting for us."""
        attempt = self._attempts.get(peer)
        self.attempt_failed(peer, now)
        return self._launch(peer, Withdrawn(), now) if attempt and attempt.is_ours else []

    def disconnect(self, peer: PeerId, now: float) -> list[Action]:
        """Let go of *peer*, and leave it alone for a while."""
        self._attempts.pop(peer, None)
        self._failed.put(peer, None, now)
        return [Close(peer, "disconnected")] if peer in self._links else []

    def signal(self, peer: PeerId, signal: JSON, now: float) -> list[Action]:
        """Send *signal* towards *peer*, for a connection that is coming up."""
        return self._launch(peer, PeerSignal(signal), now)

    def attempt_failed(self, peer: PeerId, now: float) -> None:
        """What `Connect` or `Signalled` began for *peer* came to nothing."""
        if self._attempts.pop(peer, None) is not None:
            self._failed.put(peer, None, now)
            if peer not in self._links:
                self.known.remove(peer)

    # --- connections ----------------------------------------------------------------------

    def admit(self, peer: PeerId, now: float) -> tuple[Admission, list[Action]]:
        """There is a connection to *peer*: what becomes of it.

        A neighbour, or, if its bucket is full, a visitor for a while. A spare one is read from
        like the other to the same peer, and takes its place when that ends; the other end is to
        close it (of two to one id, the end with the lower id closes the newer).
        """
        self._attempts.pop(peer, None)
        if peer == self.id:
            return "refused", []
        if peer in self._links:
            # Perhaps the older is dead, and the peer knows: it gets one chance to say it is not.
            actions = self._ask_for_life(peer, self._neighbour(peer), now)
            return ("refused" if self.id < peer else "spare"), actions
        neighbour = Neighbour(heard_at=now)
        if self.neighbours.add(peer, neighbour):
            admission: Admission = "neighbour"
        elif len(self.visitors) < self.policy.max_visitors:
            admission = "visitor"
            self.visitors[peer] = (now + VISIT_TIMEOUT, neighbour)
        else:
            return "refused", []
        self._links[peer] = _Link(
            Allowance(FRAMES_AT_ONCE, FRAMES_PER_SECOND),
            Allowance(ANSWERS_AT_ONCE, ANSWERS_PER_SECOND),
        )
        self._failed.remove(peer)
        self._know(peer, now, is_heard=True)
        actions = self._ask(peer, self.id, now)
        if admission == "neighbour":
            waiting, self._waiting = self._waiting, deque(maxlen=MAX_WAITING)
            for until, envelope, attempt in waiting:
                if now < until:
                    actions += self._route(envelope, now, attempt)
        return admission, actions

    def renew(self, peer: PeerId, now: float) -> None:
        """A spare connection has taken the place of the one to *peer*."""
        neighbour = self._neighbour(peer)
        neighbour.heard_at, neighbour.asked_at = now, float("-inf")

    def lose(self, peer: PeerId, now: float, *, is_dead: bool = True) -> list[Action]:
        """The connection to *peer* is gone; *is_dead* unless it said goodbye in good health."""
        if self._links.pop(peer, None) is None:
            return []
        self.neighbours.remove(peer)
        self.visitors.pop(peer, None)
        if is_dead:
            self.known.remove(peer)
            self._failed.put(peer, None, now)
        return self.populate(now)

    # --- what comes in --------------------------------------------------------------------

    def take(self, envelope: Envelope, by: PeerId, now: float) -> list[Action]:
        """*envelope* came from the neighbour *by*."""
        link = self._links.get(by)
        if link is None:
            return []
        neighbour = self._neighbour(by)
        neighbour.heard_at = now
        path, sender = envelope.path, envelope.sender
        if not link.frames.take(now, 1) or (
            # Who passes an envelope on is its path's last, and who sent it its first.
            path[-1] != by or path[0] != sender or self.id in path
        ):
            self.count_refused += 1
            return []
        is_proved = False
        if envelope.to == self.id and self._is_proved is not None:
            # Before the nonce counts as seen: a forged copy must not keep out the true one.
            is_proved = self._is_proved(envelope)
            if not is_proved and not self._accepts_unproved and _must_be_proved(envelope.body):
                self.count_refused += 1
                return []
            if is_proved and self._is_replayed(envelope, now):
                self.count_duplicates += 1
                return []
        if not self.router.is_new(envelope.nonce, now):
            self.count_duplicates += 1
            return []
        self.router.learn(envelope, now)
        if by != sender:
            neighbour.relays = True
        if envelope.to != self.id:
            return self._route(envelope, now)
        return self._consume(envelope, link, is_proved, now)

    def _is_replayed(self, envelope: Envelope, now: float) -> bool:
        # Nonces of strangers push each other out of the router's table; these only of the proved.
        key = envelope.sender, envelope.nonce
        if key in self._proved_nonces:
            return True
        self._proved_nonces.put(key, None, now)
        return False

    def _consume(
        self, envelope: Envelope, link: _Link, is_proved: bool, now: float
    ) -> list[Action]:
        """An envelope for us."""
        sender = envelope.sender
        match envelope.body:
            case User(data, receipt):
                deliver: list[Action] = [Deliver(sender, data, is_proved, len(envelope.path))]
                if receipt is None:
                    return deliver
                answer = self._launch(sender, Receipt(receipt), now)
                if (sender, receipt) in self._delivered:
                    return answer
                self._delivered.put((sender, receipt), None, now)
                return deliver + answer
            case FindPeers(target, extensions):
                self._hear_extensions(sender, extensions)
                if not link.answers.take(now, 1):
                    self.count_refused += 1
                    return []
                return self._launch(
                    sender, FoundPeers(self._found(target, sender, now), EXTENSIONS), now
                )
            case FoundPeers(peers, extensions):
                self._hear_extensions(sender, extensions)
                return self._learn(sender, peers, now)
            case HandshakeOffer():
                return self._answer_offer(sender, link, now)
            case HandshakeAnswer() as answer:
                return self._take_answer(sender, answer, now)
            case PeerSignal(signal):
                attempt = self._attempts.get(sender)
                if attempt is None or not attempt.is_answered or not self._webrtc:
                    return []
                return [Signalled(sender, signal)]
            case Withdrawn():
                attempt = self._attempts.get(sender)
                if attempt is None or attempt.is_ours:
                    return []
                del self._attempts[sender]
                return [Failed(sender, "it has given up")]
            case Receipt(receipt):
                if self._expected.get(receipt) != sender:
                    return []
                return [Received(receipt)]
            case Ping():
                return self._launch(sender, Pong(), now) if link.answers.take(now, 1) else []
            case Pong() | Unknown():
                return []

    # --- peers we know --------------------------------------------------------------------

    def _found(self, target: PeerId, asker: PeerId, now: float) -> tuple[PeerId, ...]:
        """Those nearest to *target* that are alive: neighbours, and others heard not long ago.

        Whom we were only told of is not passed on, or the dead would be known for ever.
        """
        found = dict.fromkeys(self.neighbours.closest(target, MAX_FOUND))
        found.update(dict.fromkeys(self.visitors))
        if len(found) < MAX_FOUND:
            for peer in self.known.closest(target, MAX_FOUND):
                if now - self.known[peer].heard_at < TELL_AGE:
                    found[peer] = None
        found.pop(asker, None)
        aim = int(target, 16)
        return tuple(sorted(found, key=lambda peer: int(peer, 16) ^ aim)[:MAX_FOUND])

    def _learn(self, teller: PeerId, peers: tuple[PeerId, ...], now: float) -> list[Action]:
        """*teller* answered; what was never asked counts for nothing."""
        if teller not in self._questions:
            return []
        count = self._questions.remove(teller)
        if count is not None and count > 1:
            self._questions.put(teller, count - 1, now)
        self._know(teller, now, is_heard=True)
        neighbour = self.neighbours.get(teller)
        if neighbour is not None and any(peer not in (self.id, teller) for peer in peers):
            neighbour.relays = True
        for peer in peers:
            self._know(peer, now, is_heard=False)
        return self.populate(now)

    def _know(self, peer: PeerId, now: float, *, is_heard: bool) -> None:
        known = self.known.get(peer)
        if known is None:
            if peer == self.id or peer in self._failed:
                return
            if self.known.is_full_for(peer):
                # Who has shown to be alive keeps its place before one we were only told of.
                bucket = self.known.bucket(self.known.index_of(peer))
                oldest = min(bucket, key=lambda each: self.known[each].newest)
                entry = self.known[oldest]
                is_stale = now - entry.newest > PROBE_AGE or entry.heard_at == float("-inf")
                if not is_stale or oldest in self._links:
                    return
                self.known.remove(oldest)
            known = _Known(told_at=now)
            self.known.add(peer, known)
        if is_heard:
            known.heard_at = now

    def populate(self, now: float) -> list[Action]:
        """Offers to those we want to be connected to: the nearest, and some of each bucket."""
        room = self.policy.max_attempts - sum(
            attempt.is_ours and not attempt.is_wanted for attempt in self._attempts.values()
        )
        actions: list[Action] = []
        if room > 0 and self._links:
            for peer in self._wanted()[:room]:
                actions += self._offer(peer, now)
        return actions

    def _wanted(self) -> list[PeerId]:
        policy = self.policy

        def is_free(peer: PeerId) -> bool:
            return (
                peer not in self._links and peer not in self._attempts and peer not in self._failed
            )

        if not policy.spread and len(self._links) + len(self._attempts) >= policy.near:
            return []  # as the original: fifteen in all
        # Neighbours are known, too.
        wanted = [peer for peer in self.known.closest(self.id, policy.near) if is_free(peer)]
        if policy.spread:
            coming: dict[int, int] = {}
            for peer in self._attempts:
                index = self.known.index_of(peer)
                coming[index] = coming.get(index, 0) + 1
            for index in self.known.indices:
                lack = policy.spread - self.neighbours.count(index) - coming.get(index, 0)
                if lack > 0:
                    free = [peer for peer in self.known.bucket(index) if is_free(peer)]
                    wanted += self._rng.sample(free, min(lack, len(free)))
        return list(dict.fromkeys(wanted))

    # --- handshakes -----------------------------------------------------------------------

    def _offer(self, peer: PeerId, now: float, *, is_wanted: bool = False) -> list[Action]:
        self._attempts[peer] = _Attempt(now + OFFER_TIMEOUT, True, False, is_wanted)
        return self._launch(peer, HandshakeOffer(EXTENSIONS), now)

    def _answer_offer(self, sender: PeerId, link: _Link, now: float) -> list[Action]:
        if not link.answers.take(now, 1):
            self.count_refused += 1
            return []
        if sender in self._links:
            # It does not think so. If it is right, our end is soon found to be dead.
            return self._ask_for_life(sender, self._neighbour(sender), now)
        attempt = self._attempts.get(sender)
        if attempt is not None and attempt.is_ours and self.id < sender:
            return []  # two offers crossed: the one with the lower sender stands
        has_room = self._count_answering() < MAX_ANSWERING and not self.neighbours.is_full_for(
            sender
        )
        if not has_room:
            return self._launch(sender, HandshakeAnswer(None, False, EXTENSIONS), now)
        is_wanted = attempt is not None and attempt.is_wanted
        self._attempts[sender] = _Attempt(now + CONNECT_TIMEOUT, False, True, is_wanted)
        return self._launch(sender, HandshakeAnswer(self.url, self._webrtc, EXTENSIONS), now)

    def _count_answering(self) -> int:
        return sum(not attempt.is_ours for attempt in self._attempts.values())

    def _take_answer(self, sender: PeerId, answer: HandshakeAnswer, now: float) -> list[Action]:
        attempt = self._attempts.get(sender)
        if attempt is None or not attempt.is_ours or attempt.is_answered:
            return []
        webrtc = answer.webrtc and self._webrtc
        if not webrtc and answer.url is None:
            del self._attempts[sender]
            # Not dead, so still known; but what it said holds for a while.
            self._failed.put(sender, None, now)
            return [Failed(sender, "it takes no connection by any transport that we have")]
        self._attempts[sender] = _Attempt(now + CONNECT_TIMEOUT, True, True, attempt.is_wanted)
        return [Connect(sender, webrtc, answer.url)]

    # --- time -----------------------------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """What is due; call it once a second or so."""
        actions = self._check_links(now)
        for peer, attempt in list(self._attempts.items()):
            if now >= attempt.until:
                self.attempt_failed(peer, now)
                what = "did not connect" if attempt.is_answered else "did not answer"
                actions.append(Failed(peer, f"it {what} in time"))
        while self._waiting and now >= self._waiting[0][0]:
            self._waiting.popleft()
        for fading in (self._failed, self._delivered, self._proved_nonces):
            fading.fade(now)
        for peer, _ in self._questions.pop_old(now):
            if peer not in self._links:
                self.known.remove(peer)  # it was asked and said nothing
        self.router.forget_old(now)
        if now >= self._refresh_at and self._links:
            self._refresh_at = now + self.policy.refresh_interval * self._rng.uniform(0.8, 1.2)
            actions += self._refresh(now)
        return actions + self.populate(now)

    def _check_links(self, now: float) -> list[Action]:
        actions: list[Action] = []
        # A simulation that has other means to notice the dead says that there are no heartbeats.
        for peer in self._links if self.policy.heartbeat_interval < math.inf else ():
            neighbour = self._neighbour(peer)
            factor = 1.0 if neighbour.is_ours else 3.0
            silence = now - neighbour.heard_at
            if silence >= factor * self.policy.heartbeat_timeout or (
                neighbour.heard_at < neighbour.asked_at
                and now - neighbour.asked_at >= self.policy.heartbeat_timeout
            ):
                actions.append(Close(peer, "no sign of life", is_dead=True))
            elif silence >= factor * self.policy.heartbeat_interval:
                actions += self._ask_for_life(peer, neighbour, now)
        for peer, (until, _) in self.visitors.items():
            if now >= until:
                actions.append(Close(peer, NO_ROOM))
        return actions

    def _ask_for_life(self, peer: PeerId, neighbour: Neighbour, now: float) -> list[Action]:
        """A question to *neighbour*, if none is open; an original understands only findPeers."""
        if neighbour.asked_at > neighbour.heard_at:
            return []
        neighbour.asked_at = now
        if neighbour.is_ours:
            return self._launch(peer, Ping(), now)
        return self._ask(peer, self.id, now)

    def _refresh(self, now: float) -> list[Action]:
        """Let those be forgotten who are; ask one for life, and one for peers that we lack."""
        actions: list[Action] = []
        oldest: tuple[float, PeerId] | None = None
        for peer in list(self.known):
            known = self.known[peer]
            if peer in self._links:
                known.heard_at = now
            elif now - known.newest >= KNOWN_AGE:
                self.known.remove(peer)
            elif oldest is None or known.newest < oldest[0]:
                oldest = known.newest, peer
        if oldest is not None and now - oldest[0] >= PROBE_AGE and oldest[1] not in self._questions:
            actions += self._ask(oldest[1], self.id, now)
        self._turn += 1
        depth = self.neighbours.depth
        lacking = [i for i in range(depth) if self.neighbours.count(i) < self.policy.spread]
        if lacking and self._turn % 2:
            index = self._rng.choice(lacking)
            target = self.neighbours.random_id(index, self._rng)
        else:
            target = self.id
        # Of those nearest to what we want to know of, some other each time.
        nearest = self.neighbours.closest(target, 4)
        if nearest:
            actions += self._ask(nearest[self._turn // 2 % len(nearest)], target, now)
        return actions

    def _ask(self, peer: PeerId, target: PeerId, now: float) -> list[Action]:
        self._questions.put(peer, (self._questions.remove(peer) or 0) + 1, now)
        return self._launch(peer, FindPeers(target, EXTENSIONS), now)

    def _neighbour(self, peer: PeerId) -> Neighbour:
        neighbour = self.neighbours.get(peer)
        return self.visitors[peer][1] if neighbour is None else neighbour

    def _hear_extensions(self, sender: PeerId, extensions: frozenset[str]) -> None:
        if ALIVE in extensions and sender in self._links:
            self._neighbour(sender).is_ours = True

    # --- envelopes on their way -----------------------------------------------------------

    def _launch(self, to: PeerId, body: Body, now: float, attempt: int = 0) -> list[Action]:
        nonce = str(self._rng.randrange(10**15))
        envelope = Envelope(to, self.id, (), nonce, body)
        if self._prove is not None:
            envelope = self._prove(envelope)
        self.router.is_new(nonce, now)
        if not self.neighbours and to not in self._links:
            # More than there is room for push out the oldest.
            self._waiting.append((now + WAITING_AGE, envelope, attempt))
            return []
        return self._route(envelope, now, attempt)

    def _route(self, envelope: Envelope, now: float, attempt: int = 0) -> list[Action]:
        if envelope.to in self._links:
            if len(envelope.path) >= self.policy.max_hops:
                return []
            hops = [envelope.to]
        else:
            hops = self.router.hops(envelope, now, attempt)
        if not hops:
            self.count_stuck += 1
            return []
        passed = envelope.passed(self.id)
        return [Send(hop, passed) for hop in hops]


def _must_be_proved(body: Body) -> bool:
    return isinstance(body, User | Receipt)
