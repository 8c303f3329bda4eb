"""The bootstrap server's decisions: who gets what, and who is told what."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.bootstrap import (
    BootstrapFrame,
    Done,
    Heartbeat,
    Hello,
    Refused,
    Registration,
    Role,
    SignalFrame,
    Withdrawn,
    decode_bootstrap,
)
from trio_overlay.protocol.identifiers import random_identifiers, seeded_identifiers
from trio_overlay.protocol.signals import is_offer
from trio_overlay.protocol.switchboard import Switchboard
from trio_overlay.protocol.switchboard_clients import Action, Client, Close, Prospect, Root, Send
from trio_overlay.protocol.switchboard_roots import RETURN_TIMEOUT

DATA = Path(__file__).parent.parent / "data"
OFFER = {"type": "offer", "sdp": "v=0"}
CANDIDATE = {"candidate": {"candidate": "c", "sdpMid": "0", "sdpMLineIndex": 0}}

Sent = list[tuple[Client, BootstrapFrame]]


def sent(actions: Iterable[Action]) -> Sent:
    """What is said to whom; nobody is closed."""
    frames: Sent = []
    for action in actions:
        assert isinstance(action, Send)
        frames.append((action.to, decode_bootstrap(action.text)))
    return frames


def frame(signal: Any = None, destination: str | None = None, **more: Any) -> SignalFrame:
    fields = {"origin": None, "destination": destination, "signal": signal or OFFER, **more}
    return SignalFrame(fields)


class House:
    """A switchboard with a clock, and short ways to use it."""

    def __init__(self, **options: float) -> None:
        self.now = 1000.0
        self.switchboard = Switchboard(seeded_identifiers(1), **options)  # type: ignore[arg-type]

    def root(
        self, *, announced: bool = True, registration: Registration | None = None
    ) -> tuple[Root, Sent]:
        root, actions = self.switchboard.enter_root(
            self.now, is_announced=announced, registration=registration
        )
        return root, sent([action for action in actions if isinstance(action, Send)])

    def ours(self, token: str, term: int = 0, *, takes_over: bool = False) -> tuple[Root, Sent]:
        return self.root(registration=Registration(token, term, takes_over))

    def prospect(self, *, announced: bool = True) -> Prospect:
        prospect, actions = self.switchboard.enter_prospect(self.now, is_announced=announced)
        hello = [(prospect, Hello(prospect.identifier, frozenset({"withdraw"})))]
        assert sent(actions) == (hello if announced else [])
        return prospect

    def says(self, client: Client, said: BootstrapFrame) -> Sent:
        return sent(self.switchboard.receive(self.now, client, said))

    def leaves(self, client: Client) -> None:
        assert self.loses(client) == []

    def loses(self, root: Client) -> Sent:
        return sent(self.switchboard.leave(self.now, root))

    def wait(self, seconds: float) -> list[Action]:
        """Let time pass as the service does: a tick at each moment when one is due."""
        actions: list[Action] = []
        end = self.now + seconds
        while self.switchboard.next_tick_at <= end:
            self.now = self.switchboard.next_tick_at
            actions += self.switchboard.tick(self.now)
            assert self.switchboard.next_tick_at > self.now
        self.now = end
        return actions


# --- the original's behaviour -------------------------------------------------------------


def test_a_frame_without_destination_goes_to_the_root_with_the_senders_id() -> None:
    house = House()
    root, _ = house.root(announced=False)
    joiner = house.prospect(announced=False)
    said = SignalFrame({"z": 0, "origin": "somebody else", "signal": OFFER, "rank": 0})
    [(to, passed_on)] = house.says(joiner, said)
    assert to is root
    assert passed_on == SignalFrame({**said.fields, "origin": joiner.identifier})


def test_a_frame_with_a_destination_goes_to_that_prospect_alone() -> None:
    house = House()
    house.root()
    a, b, _ = house.prospect(), house.prospect(announced=False), house.prospect()
    said = frame(destination=b.identifier)
    assert house.says(a, said) == [(b, said.with_origin(a.identifier))]


def test_old_peers_are_told_nothing_that_the_original_would_not_say() -> None:
    house = House()
    root, told = house.root(announced=False)
    joiner, other = house.prospect(announced=False), house.prospect(announced=False)
    house.says(joiner, frame())
    house.says(joiner, frame(destination=other.identifier))
    assert told == []
    assert house.says(joiner, frame(destination="f" * 32)) == []
    house.leaves(joiner)
    house.leaves(root)
    house.says(other, frame())
    [closed] = house.wait(60)  # nobody says that it waited for a root, or for how long
    assert isinstance(closed, Close)
    assert closed.client is other


def test_the_timeout_closes_prospects_and_tells_those_who_understand() -> None:
    house = House(timeout=30)
    house.root()
    old, new = house.prospect(announced=False), house.prospect()
    assert house.wait(29.9) == []
    actions = house.wait(0.2)
    assert [action.client for action in actions if isinstance(action, Close)] == [old, new]
    [(to, refused)] = sent(action for action in actions if isinstance(action, Send))
    assert to is new
    assert isinstance(refused, Refused)
    assert "timeout of 30 s" in refused.reason
    assert house.wait(1000) == []  # once


def test_what_roots_and_prospects_say_out_of_turn_goes_nowhere() -> None:
    house = House()
    root, _ = house.root()
    prospect, old = house.prospect(), house.prospect(announced=False)
    for said in (Heartbeat(), frame(destination=prospect.identifier), Done(), Withdrawn()):
        assert house.says(root, said) == []
    for nonsense in (Heartbeat(), Hello("x"), Refused("no")):
        assert house.says(prospect, nonsense) == []
    house.says(old, frame())
    assert house.says(old, Withdrawn()) == []  # control frames are for those who announced


def test_what_cannot_be_passed_on_is_malformed_and_changes_nothing() -> None:
    house = House()
    root, _ = house.root()
    joiner = house.prospect()
    for bad in (float("inf"), "\xff" * 2**20):  # 1e999 decodes; escapes make text longer
        with pytest.raises(MalformedFrame):
            house.says(joiner, frame(extra=bad))
    assert house.says(joiner, frame())[0][0] is root


# --- roots --------------------------------------------------------------------------------


def test_the_newest_root_gets_the_requests_and_the_former_comes_back() -> None:
    house = House()
    first, told = house.root()
    assert told == [(first, Hello(None, frozenset({"withdraw"})))]
    second, _ = house.root()
    assert house.says(house.prospect(), frame())[0][0] is second
    # Nobody has answered what the second was asked: the first is asked, too.
    assert [to for to, _ in house.loses(second)] == [first]
    assert house.says(house.prospect(), frame())[0][0] is first


def test_all_frames_of_an_origin_go_to_the_root_that_took_its_first() -> None:
    house = House()
    first, _ = house.root()
    joiner = house.prospect()
    assert house.says(joiner, frame())[0][0] is first
    second, _ = house.root()
    assert house.says(joiner, frame(CANDIDATE))[0][0] is first
    assert house.says(house.prospect(), frame())[0][0] is second


@pytest.mark.parametrize("announced", [True, False])
def test_what_a_lost_root_has_not_seen_to_goes_to_the_next_whole(announced: bool) -> None:
    house = House()
    first, _ = house.root()
    joiner = house.prospect()
    house.says(joiner, frame())
    house.says(joiner, frame(CANDIDATE))
    house.leaves(first)
    second, told = house.root(announced=announced)
    passed_on = [said for to, said in told if isinstance(said, SignalFrame) and to is second]
    assert [is_offer(each.signal) for each in passed_on] == [True, False]
    assert [to for to, _ in house.says(joiner, frame(CANDIDATE))] == [second]


@pytest.mark.parametrize("announced", [True, False])
def test_the_rest_of_an_answered_request_takes_no_place_at_an_old_root(announced: bool) -> None:
    house = House()
    first, _ = house.root()
    joiner, child = house.prospect(), house.prospect()
    house.says(joiner, frame())
    house.says(child, frame(OFFER, joiner.identifier))
    house.leaves(first)
    second, told = house.root(announced=announced)
    assert not any(isinstance(said, SignalFrame) for _, said in told)
    rest = house.says(joiner, frame(CANDIDATE))
    assert [to for to, _ in rest] == ([second] if announced else [])
    assert house.says(joiner, frame(OFFER))[0][0] is second


def test_a_root_of_ours_stands_by_and_takes_over_in_the_order_they_came() -> None:
    house = House()
    first, told = house.ours("a")
    assert told[1:] == [(first, Role(is_active=True, term=1, count_others=0))]
    second, told = house.ours("b")
    assert (second, Role(False, 1, 1)) in told
    assert (first, Role(True, 1, 1)) in told
    third, _ = house.ours("c")
    joiner = house.prospect()
    assert house.says(joiner, frame())[0][0] is first
    told = house.loses(first)
    assert (second, Role(True, 2, 1)) in told
    assert (third, Role(False, 2, 1)) in told
    assert [to for to, said in told if isinstance(said, SignalFrame)] == [second]
    assert [to for to, _ in house.says(joiner, frame(CANDIDATE))] == [second]


def test_a_root_of_ours_replaces_another_if_it_is_told_to() -> None:
    house = House()
    first, _ = house.ours("a")
    second, told = house.ours("b", takes_over=True)
    assert (first, Role(False, 2, 1)) in told
    assert house.switchboard.root is second
    old, _ = house.root(announced=False)
    assert house.switchboard.root is old
    house.loses(old)
    assert house.switchboard.root is second


def test_a_root_that_comes_back_is_what_it_was_and_its_old_connection_is_closed() -> None:
    house = House()
    first, _ = house.ours("a")
    second, _ = house.ours("b")
    joiner = house.prospect()
    house.says(joiner, frame())
    again, actions = house.switchboard.enter_root(
        house.now, is_announced=True, registration=Registration("a", 1)
    )
    assert [each.client for each in actions if isinstance(each, Close)] == [first]
    assert house.switchboard.root is again
    assert house.switchboard.count_roots == 2
    # It has the first frame, and is not given it again.
    told = sent(each for each in actions if isinstance(each, Send))
    assert not any(isinstance(said, SignalFrame) for _, said in told)
    assert [to for to, _ in house.says(joiner, frame(CANDIDATE))] == [again]
    house.leaves(first)
    assert house.switchboard.root is again
    assert second in house.switchboard._roots


def test_of_those_who_come_back_to_a_restarted_server_the_last_that_was_active_is() -> None:
    house = House()
    stale, _ = house.ours("a", 1)
    assert house.switchboard.root is stale
    newer, _ = house.ours("b", 2)
    assert house.switchboard.root is newer
    house.ours("c", 1)
    house.ours("d")
    assert house.switchboard.root is newer


def test_who_is_first_at_a_restarted_server_gives_way_to_who_was_active_before() -> None:
    house = House()
    house.wait(100)
    standby, _ = house.ours("standby")
    assert house.switchboard.root is standby
    house.wait(RETURN_TIMEOUT - 1)
    house.ours("another")
    active, told = house.ours("active", 1)
    assert house.switchboard.root is active
    assert (active, Role(True, 2, 2)) in told
    assert (standby, Role(False, 2, 2)) in told


def test_who_was_active_at_a_server_since_its_restart_stays_so() -> None:
    house = House()
    standby, _ = house.ours("standby")
    house.wait(RETURN_TIMEOUT + 1)
    house.ours("active", 1)
    assert house.switchboard.root is standby


def test_requests_are_held_for_a_moment_and_given_in_order_to_a_root_that_comes() -> None:
    house = House(hold_timeout=5)
    a, b = house.prospect(), house.prospect()
    for number, who in enumerate([a, b, a, b, a]):
        assert house.says(who, frame(OFFER if number < 2 else CANDIDATE, rank=number)) == []
    assert house.wait(4.9) == []
    root, told = house.root()
    assert told[0] == (root, Hello(None, frozenset({"withdraw"})))
    assert {to for to, _ in told} == {root}
    passed_on = [said.fields for _, said in told if isinstance(said, SignalFrame)]
    for who, ranks in [(a, [0, 2, 4]), (b, [1, 3])]:
        own = [fields["rank"] for fields in passed_on if fields["origin"] == who.identifier]
        assert own == ranks
    assert len(passed_on) == 5
    assert house.wait(20) == []  # nobody is refused


def test_a_request_held_too_long_is_refused_whole() -> None:
    house = House(hold_timeout=5)
    old, new = house.prospect(announced=False), house.prospect()
    house.says(old, frame())
    house.says(new, frame())
    house.wait(1)
    house.says(new, frame(CANDIDATE))
    house.says(old, frame(CANDIDATE))
    [(to, refused)] = sent(house.wait(4))
    assert to is new
    assert isinstance(refused, Refused)
    house.says(old, frame(CANDIDATE))  # of a request that nobody holds any more
    _, told = house.root(announced=False)
    assert told == []
    assert len(house.says(old, frame(OFFER))) == 1  # another try is another request


@pytest.mark.parametrize("limit", ["max_held_bytes", "max_held_bytes_each"])
def test_what_is_held_is_bounded(limit: str) -> None:
    house = House(hold_timeout=5, **{limit: 1000})
    patient, greedy = house.prospect(), house.prospect()
    house.says(patient, frame())
    told: Sent = []
    for _ in range(20):
        told += house.says(greedy, frame())
    [(to, refused), *more] = told
    assert to is greedy
    assert isinstance(refused, Refused)
    assert all(to is greedy for to, _ in more)
    _, passed_on = house.root(announced=False)
    assert passed_on[0][1] == frame().with_origin(patient.identifier)


def test_who_leaves_takes_its_held_request_along() -> None:
    house = House()
    leaving, withdrawing, staying = house.prospect(), house.prospect(), house.prospect()
    for each in (leaving, withdrawing, staying):
        house.says(each, frame())
    house.leaves(leaving)
    assert house.says(withdrawing, Withdrawn(reason="cancelled")) == []
    _, told = house.root(announced=False)
    assert told == [(house.switchboard.root, frame().with_origin(staying.identifier))]


# --- what old clients say after their offers ----------------------------------------------


def candidate(number: int) -> SignalFrame:
    return frame(CANDIDATE, rank=number)


def test_what_an_old_client_says_after_its_offer_goes_to_who_answers() -> None:
    house = House()
    root, _ = house.root(announced=False)
    joiner, answerer, other = (house.prospect(announced=False) for _ in range(3))
    assert [to for to, _ in house.says(joiner, frame())] == [root]
    assert house.says(joiner, candidate(1)) == house.says(joiner, candidate(2)) == []
    answer = frame({"type": "answer"}, joiner.identifier)

    def passed_on(number: int) -> tuple[Client, BootstrapFrame]:
        said = candidate(number).with_origin(joiner.identifier)
        return answerer, said.with_destination(answerer.identifier)

    assert house.says(answerer, answer) == [
        (joiner, answer.with_origin(answerer.identifier)),
        passed_on(1),
        passed_on(2),
    ]
    house.says(other, frame(CANDIDATE, joiner.identifier))  # not the first
    # It has not heard of the answer yet.
    assert house.says(joiner, candidate(3)) == [passed_on(3)]
    house.leaves(answerer)
    assert house.says(joiner, candidate(4)) == []
    assert [to for to, _ in house.says(joiner, frame())] == [root]
    assert house.says(joiner, candidate(6)) == []  # of another offer


def test_what_an_old_client_says_goes_to_the_root_if_nobody_answers() -> None:
    house = House(hold_timeout=5)
    root, _ = house.root(announced=False)
    joiner = house.prospect(announced=False)
    [(to, _)] = house.says(joiner, candidate(0))  # no offer before it: as to the original's server
    assert to is root
    house.says(joiner, frame())
    house.says(joiner, candidate(1))
    house.wait(3)
    house.says(joiner, candidate(2))
    expected = [(root, candidate(rank).with_origin(joiner.identifier)) for rank in (1, 2)]
    assert sent(house.wait(2)) == expected
    house.says(joiner, candidate(3))
    house.leaves(joiner)
    told = sent(house.wait(20))
    assert not any(isinstance(said, SignalFrame) for _, said in told)


def test_what_old_clients_say_after_their_offers_is_kept_up_to_a_limit() -> None:
    house = House(max_held_bytes=2000)
    root, _ = house.root(announced=False)
    joiner = house.prospect(announced=False)
    house.says(joiner, frame())
    assert house.says(joiner, candidate(1)) == house.says(joiner, candidate(2)) == []
    told: Sent = []
    for number in range(3, 20):
        told += house.says(joiner, candidate(number))
        assert house.switchboard._held_size <= 2000
    # What there is no room for goes to the root, and what was before it, first.
    own = [(root, candidate(rank).with_origin(joiner.identifier)) for rank in range(1, 20)]
    assert told == own


def test_the_rest_of_a_request_waits_for_who_answers_when_another_root_has_to() -> None:
    house = House()
    first, _ = house.root()
    joiner, answerer = house.prospect(announced=False), house.prospect()
    house.says(joiner, frame())
    house.says(joiner, candidate(1))
    house.leaves(first)
    _, told = house.root(announced=False)
    assert [said for _, said in told] == [frame().with_origin(joiner.identifier)]
    told = house.says(answerer, frame({"type": "answer"}, joiner.identifier))
    assert [to for to, _ in told] == [joiner, answerer]


# --- withdrawals --------------------------------------------------------------------------


def test_a_withdrawal_is_told_to_the_root_and_to_those_it_exchanged_signals_with() -> None:
    house = House()
    first, _ = house.root()
    joiner, answerer, old, stranger, correspondent = (
        house.prospect(announced=number != 2) for number in range(5)
    )
    house.says(joiner, frame())
    house.root()  # newer; the request went to the first
    house.says(answerer, frame(destination=joiner.identifier))
    house.says(joiner, frame(destination=old.identifier))
    house.says(joiner, frame(destination=correspondent.identifier))
    told = house.says(joiner, Withdrawn(reason="cancelled"))
    gone = Withdrawn(joiner.identifier, "cancelled")
    assert told == [(first, gone), (answerer, gone), (correspondent, gone)]
    assert stranger not in [to for to, _ in told]
    assert house.says(joiner, Withdrawn(reason="again")) == []
    house.leaves(joiner)
    assert house.wait(10) == []  # told once
    # To it is now as to one who never was.
    assert house.says(stranger, frame(destination=joiner.identifier)) == [
        (stranger, Withdrawn(joiner.identifier, "no such prospect is connected to this server"))
    ]


def test_an_answerers_withdrawal_is_no_business_of_a_root_it_never_spoke_to() -> None:
    house = House()
    house.root()
    joiner, answerer = house.prospect(), house.prospect()
    house.says(joiner, frame())
    house.says(answerer, frame(destination=joiner.identifier))
    told = house.says(answerer, Withdrawn(reason="no"))
    assert told == [(joiner, Withdrawn(answerer.identifier, "no"))]


@pytest.mark.parametrize("announced", [True, False])
def test_a_close_without_a_word_is_a_withdrawal_after_the_grace(announced: bool) -> None:
    house = House(grace_timeout=3)
    root, _ = house.root()
    joiner, answerer = house.prospect(announced=announced), house.prospect()
    house.says(joiner, frame())
    house.says(answerer, frame(destination=joiner.identifier))
    house.leaves(joiner)
    assert house.wait(2.9) == []
    told = sent(house.wait(0.2))
    assert [to for to, _ in told] == [root, answerer]
    assert all(isinstance(said, Withdrawn) for _, said in told)
    assert [said.origin for _, said in told if isinstance(said, Withdrawn)] == [
        joiner.identifier
    ] * 2


def test_who_said_done_is_never_withdrawn() -> None:
    house = House()
    house.root()
    joiner, answerer = house.prospect(), house.prospect()
    house.says(joiner, frame())
    house.says(answerer, frame(destination=joiner.identifier))
    assert house.says(joiner, Done()) == []
    assert house.says(joiner, Withdrawn()) == []
    house.leaves(joiner)
    assert house.wait(20) == []


def test_a_late_candidate_to_one_who_just_left_is_no_alarm() -> None:
    # The answerer's channel opens first; it says done and closes while the joiner still trickles.
    house = House(grace_timeout=3)
    house.root()
    joiner, answerer, lost = house.prospect(), house.prospect(), house.prospect()
    house.says(answerer, frame(destination=joiner.identifier))
    house.says(answerer, Done())
    house.leaves(answerer)
    house.leaves(lost)
    assert house.says(joiner, frame(CANDIDATE, destination=answerer.identifier)) == []
    assert house.says(joiner, frame(CANDIDATE, destination=lost.identifier)) == []
    [(to, gone)] = sent(house.wait(4))
    assert to is joiner
    assert isinstance(gone, Withdrawn)
    assert gone.origin == lost.identifier


def test_who_answers_somebody_that_is_done_with_another_is_told_at_once() -> None:
    # A request that was placed again although it had been answered: it holds a place for nobody.
    house = House(grace_timeout=3)
    house.root()
    joiner, answerer, late = house.prospect(), house.prospect(), house.prospect()
    house.says(answerer, frame(destination=joiner.identifier))
    house.says(joiner, Done())
    house.leaves(joiner)
    [(to, gone)] = house.says(late, frame(destination=joiner.identifier))
    assert to is late
    assert isinstance(gone, Withdrawn)
    assert gone.origin == joiner.identifier


def test_an_unknown_destination_is_told_to_those_who_understand() -> None:
    house = House()
    nobody = "f" * 32
    told = house.says(house.prospect(), frame(destination=nobody))
    [(_, gone)] = told
    assert isinstance(gone, Withdrawn)
    assert gone.origin == nobody
    assert house.says(house.prospect(announced=False), frame(destination=nobody)) == []


def test_a_root_that_came_back_is_told_of_withdrawals_from_before() -> None:
    house = House()
    root, _ = house.root()
    joiner = house.prospect()
    house.says(joiner, frame())
    house.leaves(root)
    again, _ = house.root()
    assert house.says(joiner, Withdrawn(reason="cancelled"))[0][0] is again


# --- identifiers --------------------------------------------------------------------------


def test_seeded_identifiers_are_the_originals() -> None:
    vectors = json.loads((DATA / "vectors.json").read_text())["seeded"]
    assert vectors
    for seed, rows in vectors.items():
        expected = [row["id"] for row in rows]
        assert list(islice(seeded_identifiers(int(seed)), len(rows))) == expected


def test_random_identifiers_are_32_hex_digits_and_repeat_with_the_random() -> None:
    some = list(islice(random_identifiers(random.Random(1)), 50))
    assert some == list(islice(random_identifiers(random.Random(1)), 50))
    assert len(set(some)) == 50
    assert all(len(each) == 32 and int(each, 16) >= 0 for each in some)


# --- any history --------------------------------------------------------------------------


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens in whatever order, and what is true all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.house = House(max_held_bytes=2000)
        self.roots: list[Root] = []
        self.prospects: list[Prospect] = []
        self.farewells: dict[str, str] = {}
        self.first_root: dict[str, Root] = {}
        self.withdrawn: list[tuple[Client, str]] = []
        self.count_tokens = 0

    def check(self, actions: Iterable[Action]) -> None:
        for action in actions:
            assert isinstance(action, Send | Close)  # alone, there is nobody to forward to
            client = action.to if isinstance(action, Send) else action.client
            assert client in self.roots or client in self.prospects
            if isinstance(action, Close):
                continue
            said = decode_bootstrap(action.text)
            if not isinstance(said, SignalFrame):
                assert client.is_announced
            if isinstance(said, Withdrawn) and said.origin in self.farewells:
                assert self.farewells[said.origin] != "done"
            if isinstance(said, Withdrawn) and "no such" not in said.reason:
                key = (client, said.origin or "")
                assert key not in self.withdrawn
                self.withdrawn.append(key)
            if isinstance(said, SignalFrame) and isinstance(client, Root):
                assert said.origin is not None
                first = self.first_root.setdefault(said.origin, client)
                if first is not client:
                    assert first not in self.roots
                    self.first_root[said.origin] = client

    @rule(announced=st.booleans())
    def root_comes(self, announced: bool) -> None:
        root, actions = self.house.switchboard.enter_root(self.house.now, is_announced=announced)
        self.roots.append(root)
        self.check(actions)

    @rule(takes_over=st.booleans())
    def root_of_ours_comes(self, takes_over: bool) -> None:
        self.count_tokens += 1
        registration = Registration(str(self.count_tokens), takes_over=takes_over)
        root, actions = self.house.switchboard.enter_root(
            self.house.now, is_announced=True, registration=registration
        )
        self.roots.insert(len(self.roots) if takes_over else 0, root)
        self.check(actions)

    @precondition(lambda self: self.roots)
    @rule(data=st.data())
    def root_goes(self, data: st.DataObject) -> None:
        root = data.draw(st.sampled_from(self.roots))
        self.roots.remove(root)
        self.check(self.house.switchboard.leave(self.house.now, root))

    @rule(announced=st.booleans())
    def prospect_comes(self, announced: bool) -> None:
        prospect, actions = self.house.switchboard.enter_prospect(
            self.house.now, is_announced=announced
        )
        self.prospects.append(prospect)
        self.check(actions)

    @precondition(lambda self: self.prospects)
    @rule(data=st.data(), begins=st.booleans())
    def prospect_speaks(self, data: st.DataObject, begins: bool) -> None:
        speaker = data.draw(st.sampled_from(self.prospects))
        others = st.sampled_from([each.identifier for each in self.prospects])
        destination = data.draw(st.none() | others | st.just("f" * 32))
        said = frame(OFFER if begins else CANDIDATE, destination)
        self.check(self.house.switchboard.receive(self.house.now, speaker, said))

    @precondition(lambda self: self.prospects)
    @rule(data=st.data(), farewell=st.sampled_from(["done", "withdrawn", ""]))
    def prospect_goes(self, data: st.DataObject, farewell: str) -> None:
        leaving = data.draw(st.sampled_from(self.prospects))
        switchboard = self.house.switchboard
        if leaving.is_announced and farewell:
            said = Done() if farewell == "done" else Withdrawn(reason="cancelled")
            self.farewells[leaving.identifier] = farewell
            self.check(switchboard.receive(self.house.now, leaving, said))
        self.prospects.remove(leaving)
        self.check(switchboard.leave(self.house.now, leaving))

    @rule(seconds=st.sampled_from([0.5, 3, 10]))
    def time_passes(self, seconds: float) -> None:
        self.check(self.house.wait(seconds))

    @invariant()
    def counts_agree_and_nothing_is_held_beside_a_root(self) -> None:
        switchboard = self.house.switchboard
        assert switchboard.count_roots == len(self.roots)
        assert switchboard.count_prospects == len(self.prospects)
        assert switchboard.root is (self.roots[-1] if self.roots else None)
        assert not (self.roots and switchboard.count_held)
        assert 0 <= switchboard._held_size <= 2000
        kept = [
            *switchboard._held.values(),
            *switchboard._open.values(),
            *switchboard._rests.values(),
        ]
        assert switchboard._held_size == sum(each.size for each in kept)
        assert {each.sender for each in kept} <= set(self.prospects)

    def teardown(self) -> None:
        # After quiet nothing is left of those who are gone.
        for prospect in self.prospects:
            self.house.switchboard.leave(self.house.now, prospect)
        self.prospects.clear()
        self.house.wait(100)
        switchboard = self.house.switchboard
        assert not switchboard._departed
        assert not switchboard._expiring
        assert not switchboard._held
        assert not switchboard._rests
        assert switchboard.next_tick_at == float("inf")


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
