"""Switchboards of several servers: any joiner and any answerer may be at different ones."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.protocol.test_switchboard import CANDIDATE, OFFER, frame
from trio_overlay.protocol.bootstrap import (
    BootstrapFrame,
    Done,
    Hello,
    Refused,
    Registration,
    Role,
    SignalFrame,
    Withdrawn,
    decode_bootstrap,
)
from trio_overlay.protocol.cluster import (
    ServerMessage,
    decode_server_message,
    encode_server_message,
    tag_of,
    tagged_identifiers,
)
from trio_overlay.protocol.switchboard import Switchboard
from trio_overlay.protocol.switchboard_clients import (
    Action,
    Announce,
    Client,
    Close,
    Forward,
    Prospect,
    Root,
    Send,
)

SILENCE = 10.0
TAGS = {name: name * 8 for name in "abc"}

Sent = list[tuple[Client, BootstrapFrame]]


class Town:
    """Switchboards with one clock, and the messages between them, which `deliver` brings."""

    def __init__(self, *names: str) -> None:
        self.now = 1000.0
        self.boards: dict[str, Switchboard] = {}
        self.on_their_way: deque[tuple[str, str | None, Forward | None, ServerMessage]] = deque()
        self.sent: Sent = []
        self.closed: list[Client] = []
        self._rng = random.Random(1)
        for name in names:
            self.open(name)

    def open(self, name: str) -> Switchboard:
        tag = TAGS[name]
        board = Switchboard(
            tagged_identifiers(self._rng, tag), tag=tag, silence_timeout=SILENCE, grace_timeout=3
        )
        self.boards[tag] = board
        self.connect(name)
        return board

    def __getitem__(self, name: str) -> Switchboard:
        return self.boards[TAGS[name]]

    def connect(self, name: str) -> None:
        # Each server's clock shows something else; that of the cluster is one.
        self.act(self[name], self[name].connect(self.now, self.now + 5e8))
        self.deliver()

    def disconnect(self, name: str) -> None:
        self[name].disconnect()

    def kill(self, name: str) -> None:
        del self.boards[TAGS[name]]

    def act(self, board: Switchboard, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Send(to, text):
                    self.sent.append((to, decode_bootstrap(text)))
                case Close(client, _):
                    self.closed.append(client)
                case Forward(server, message):
                    assert server != board.tag
                    self.on_their_way.append((board.tag, server, action, message))
                case Announce(message):
                    self.on_their_way.append((board.tag, None, None, message))

    def deliver(self) -> None:
        while self.on_their_way:
            self.deliver_one()

    def deliver_one(self) -> None:
        sender, receiver, forward, message = self.on_their_way.popleft()
        assert decode_server_message(encode_server_message(sender, message)) == (sender, message)
        board = self.boards.get(sender)
        if board is None or not board.is_connected:
            if board is not None and forward is not None:
                self.act(board, board.undelivered(self.now, forward, "lost", is_certain=False))
            return
        connected = [each for each in self.boards.values() if each.is_connected]
        if receiver is None:
            for each in connected:
                if each is not board:
                    self.act(each, each.hear(self.now, sender, message))
        elif self.boards.get(receiver) in connected:
            self.act(self.boards[receiver], self.boards[receiver].hear(self.now, sender, message))
        else:
            assert forward is not None
            self.act(board, board.undelivered(self.now, forward, "gone", is_certain=True))

    # --- what happens ---------------------------------------------------------------------

    def root(
        self, name: str, *, announced: bool = True, registration: Registration | None = None
    ) -> Root:
        root, actions = self[name].enter_root(
            self.now, is_announced=announced, registration=registration
        )
        self.act(self[name], actions)
        self.deliver()
        self.sent = [each for each in self.sent if not isinstance(each[1], Hello)]
        return root

    def prospect(self, name: str, *, announced: bool = True) -> Prospect:
        prospect, _ = self[name].enter_prospect(self.now, is_announced=announced)
        assert tag_of(prospect.identifier) == TAGS[name]
        return prospect

    def says(self, client: Client, said: BootstrapFrame) -> Sent:
        board = self._board_of(client)
        self.act(board, board.receive(self.now, client, said))
        return self.take()

    def leaves(self, client: Client) -> Sent:
        board = self._board_of(client)
        self.act(board, board.leave(self.now, client))
        return self.take()

    def wait(self, seconds: float, *, with_news: bool = True) -> Sent:
        """Let time pass; servers renew what they say of themselves, if *with_news*."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 1)
            for board in list(self.boards.values()):
                if with_news and board.is_connected:
                    self.act(board, [Announce(board.presence)])
                if board.next_tick_at <= self.now:
                    self.act(board, board.tick(self.now))
                    assert board.next_tick_at > self.now
            self.deliver()
        return self.take()

    def take(self) -> Sent:
        self.deliver()
        taken, self.sent = self.sent, []
        return taken

    def _board_of(self, client: Client) -> Switchboard:
        tag = client.server if isinstance(client, Root) else tag_of(client.identifier)
        assert tag is not None
        return self.boards[tag]


def test_a_joiner_a_root_and_an_answerer_may_be_at_three_servers() -> None:
    town = Town("a", "b", "c")
    root = town.root("b")
    joiner, answerer = town.prospect("a"), town.prospect("c")
    said = frame(more="kept")
    assert town.says(joiner, said) == [(root, said.with_origin(joiner.identifier))]
    answer = frame({"type": "answer"}, joiner.identifier)
    assert town.says(answerer, answer) == [(joiner, answer.with_origin(answerer.identifier))]
    candidate = frame(CANDIDATE, answerer.identifier)
    assert town.says(joiner, candidate) == [(answerer, candidate.with_origin(joiner.identifier))]
    assert town.says(joiner, Done()) == []
    assert town.leaves(joiner) == []
    assert town.says(answerer, Done()) == []
    assert town.leaves(answerer) == []
    assert town.wait(20) == []


def test_what_an_old_client_says_after_its_offer_goes_to_an_answerer_at_another_server() -> None:
    town = Town("a", "b", "c")
    town.root("b")
    joiner, answerer = town.prospect("a", announced=False), town.prospect("c")
    town.says(joiner, frame())
    candidate = frame(CANDIDATE).with_origin(joiner.identifier)
    assert town.says(joiner, candidate) == []
    passed_on = candidate.with_destination(answerer.identifier)
    answer = frame({"type": "answer"}, joiner.identifier).with_origin(answerer.identifier)
    assert town.says(answerer, answer) == [(joiner, answer), (answerer, passed_on)]
    assert town.says(joiner, candidate) == [(answerer, passed_on)]


def test_the_newest_root_of_all_servers_is_the_active_one_and_the_others_stand_by() -> None:
    town = Town("a", "b", "c")
    roots = []
    for name in ("b", "c", "a"):
        roots.append(town.root(name))
        town.now += 0.01
    for _ in range(3):
        active = roots.pop()
        for name in ("a", "b", "c"):
            assert town.says(town.prospect(name), frame())[0][0] is active
        town.leaves(active)
    assert town.says(town.prospect("a"), frame()) == []


def test_a_server_that_comes_later_learns_of_the_roots() -> None:
    town = Town("a")
    root = town.root("a")
    town.open("b")
    assert town.says(town.prospect("b"), frame())[0][0] is root


def test_all_frames_of_a_joiner_go_to_the_root_that_got_its_first() -> None:
    town = Town("a", "b", "c")
    first = town.root("b", announced=False)
    joiner = town.prospect("a")
    assert town.says(joiner, frame())[0][0] is first
    town.now += 1
    second = town.root("c", announced=False)
    assert town.says(joiner, frame(CANDIDATE))[0][0] is first
    # Nobody has answered: the next root hears all of it, from the beginning.
    assert [to for to, _ in town.leaves(first)] == [second, second]
    assert town.says(joiner, frame(CANDIDATE))[0][0] is second


def test_a_request_is_held_until_a_root_comes_to_any_server() -> None:
    town = Town("a", "b")
    joiner = town.prospect("a")
    assert town.says(joiner, frame()) == []
    assert town.says(joiner, frame(CANDIDATE)) == []
    assert town["a"].count_held == 1
    root = town.root("b")
    got = town.take()
    assert [to for to, _ in got] == [root, root]
    assert [each.signal for _, each in got if isinstance(each, SignalFrame)] == [OFFER, CANDIDATE]
    assert town["a"].count_held == 0


def test_a_withdrawal_reaches_the_root_and_the_partners_at_other_servers() -> None:
    town = Town("a", "b", "c")
    root = town.root("b")
    joiner, answerer = town.prospect("a"), town.prospect("c")
    old = town.prospect("c", announced=False)
    town.says(joiner, frame())
    for each in (answerer, old):
        town.says(each, frame({"type": "answer"}, joiner.identifier))
    gone = Withdrawn(joiner.identifier, "cancelled")
    told = town.says(joiner, Withdrawn(reason="cancelled"))
    assert sorted(told, key=repr) == sorted([(root, gone), (answerer, gone)], key=repr)


def test_a_close_without_a_word_is_a_withdrawal_everywhere_after_the_grace() -> None:
    town = Town("a", "b", "c")
    root = town.root("b")
    joiner, answerer = town.prospect("a"), town.prospect("c")
    town.says(joiner, frame())
    town.says(answerer, frame({"type": "answer"}, joiner.identifier))
    assert town.leaves(joiner) == []
    assert town.wait(2) == []
    assert {to for to, _ in town.wait(2)} == {root, answerer}


def test_an_unknown_destination_at_another_server_is_told_to_those_who_understand() -> None:
    town = Town("a", "b")
    unknown_there, no_server = "f" * 24 + TAGS["b"], "f" * 32
    for nobody in (unknown_there, no_server, "f" * 24 + TAGS["a"]):
        [(_, gone)] = town.says(town.prospect("a"), frame(destination=nobody))
        assert isinstance(gone, Withdrawn)
        assert gone.origin == nobody
        assert town.says(town.prospect("a", announced=False), frame(destination=nobody)) == []


def test_a_late_candidate_to_one_who_just_left_another_server_is_no_alarm() -> None:
    town = Town("a", "b")
    joiner, answerer = town.prospect("a"), town.prospect("b")
    town.says(answerer, frame({"type": "answer"}, joiner.identifier))
    town.says(answerer, Done())
    town.leaves(answerer)
    assert town.says(joiner, frame(CANDIDATE, answerer.identifier)) == []
    assert town.wait(10) == []


def test_a_root_that_came_back_at_another_server_is_told_of_withdrawals_from_before() -> None:
    town = Town("a", "b", "c")
    root = town.root("b")
    joiner = town.prospect("a")
    town.says(joiner, frame())
    town.leaves(root)
    again = town.root("c")
    assert town.says(joiner, Withdrawn(reason="cancelled"))[0][0] is again


def roles(sent: Sent) -> list[tuple[Root, bool]]:
    return [
        (to, said.is_active) for to, said in sent if isinstance(said, Role) and isinstance(to, Root)
    ]


def test_a_root_that_returns_at_another_server_is_the_one_that_was_active() -> None:
    town = Town("a", "b", "c")
    root = town.root("a", registration=Registration("R"))
    town.now += 1
    standby = town.root("b", registration=Registration("S"))
    assert roles(town.take())[:2] == [(root, True), (standby, False)]
    joiner = town.prospect("c")
    assert town.says(joiner, frame())[0][0] is root
    town.kill("a")
    town.now += 0.5
    # Nobody knows yet that its server is dead.
    again = town.root("c", registration=Registration("R", root.term))
    assert (again, True) in roles(town.take())
    assert (standby, True) not in roles(town.take())
    assert [town[name].count_roots for name in "bc"] == [2, 2]
    assert town.says(joiner, frame(CANDIDATE))[0][0] is again
    for name in "bc":
        assert [to for to, _ in town.says(town.prospect(name), frame())] == [again]
    assert town.wait(2 * SILENCE) == []
    assert [town[name].count_roots for name in "bc"] == [2, 2]


def test_a_root_that_returns_elsewhere_ends_its_former_connection() -> None:
    town = Town("a", "b")
    former = town.root("a", registration=Registration("R"))
    town.now += 1
    again = town.root("b", registration=Registration("R", former.term))
    assert town.closed == [former]
    assert roles(town.take())[-1] == (again, True)
    assert town.leaves(former) == []
    town.wait(SILENCE)
    for name in "ab":
        assert town[name].count_roots == 1
        assert town.says(town.prospect(name), frame())[0][0] is again


def test_a_server_that_was_cut_off_does_not_bring_back_a_root_that_has_gone_elsewhere() -> None:
    town = Town("a", "b", "c")
    former = town.root("a", registration=Registration("R"))
    town.disconnect("a")
    town.now += 1
    again = town.root("b", registration=Registration("R", former.term))
    town.take()
    assert town.says(town.prospect("c"), frame())[0][0] is again
    town.connect("a")
    assert town.closed == [former]
    for name in "abc":
        assert town.says(town.prospect(name), frame())[0][0] is again


def test_who_took_over_stays_the_active_one_when_the_former_returns_anywhere() -> None:
    town = Town("a", "b", "c")
    root = town.root("a", registration=Registration("R"))
    town.now += 1
    standby = town.root("b", registration=Registration("S"))
    town.take()
    town.kill("a")
    assert (standby, True) in roles(town.wait(SILENCE + 1))
    again = town.root("c", registration=Registration("R", root.term))
    assert (again, False) in roles(town.take())
    assert town.says(town.prospect("c"), frame())[0][0] is standby


def test_when_all_servers_restart_the_root_of_before_is_the_root_wherever_it_comes_to() -> None:
    town = Town("a", "b")
    standby = town.root("a", registration=Registration("S", 3))
    town.now += 1
    root = town.root("b", registration=Registration("R", 7))
    assert {(root, True), (standby, False)} <= set(roles(town.take()))
    assert town.says(town.prospect("a"), frame())[0][0] is root


# --- servers go ---------------------------------------------------------------------------


def test_a_request_to_the_root_of_a_dead_server_goes_to_the_one_that_stands_by() -> None:
    town = Town("a", "b", "c")
    standby = town.root("c")
    town.now += 1
    town.root("b")
    town.kill("b")
    joiner = town.prospect("a")
    assert [to for to, _ in town.says(joiner, frame())] == [standby]
    assert town["a"].count_roots == 1


def test_what_did_not_reach_the_root_of_a_dead_server_reaches_the_next_once_and_in_order() -> None:
    town = Town("a", "b", "c")
    root = town.root("b", registration=Registration("R"))
    joiner = town.prospect("a")
    town.kill("b")
    board = town["a"]
    for said in (frame(), frame(CANDIDATE)):  # both are on their way
        town.act(board, board.receive(town.now, joiner, said))
    town.take()
    assert board.count_held == 1
    again = town.root("c", registration=Registration("R", root.term))
    got = [said.signal for to, said in town.take() if isinstance(said, SignalFrame)]
    assert got == [OFFER, CANDIDATE]
    town.leaves(again)
    kept = (*board._held.values(), *board._open.values())
    assert board._held_size == sum(each.size for each in kept) > 0


def test_what_did_not_reach_a_root_reaches_it_where_it_has_returned_meanwhile() -> None:
    town = Town("a", "b", "c")
    root = town.root("b", registration=Registration("R"))
    joiner = town.prospect("a")
    town.kill("b")
    board = town["a"]
    town.act(board, board.receive(town.now, joiner, frame()))
    on_its_way = town.on_their_way.popleft()
    town.now += 1
    again = town.root("c", registration=Registration("R", root.term))
    town.take()
    town.on_their_way.append(on_its_way)
    assert [to for to, _ in town.take()] == [again]


def test_a_silent_server_is_gone_after_a_while_with_its_roots() -> None:
    town = Town("a", "b")
    town.root("b")
    town.kill("b")
    town.wait(SILENCE - 1)
    assert town["a"].count_roots == 1
    town.wait(2)
    assert (town["a"].count_roots, town["a"].count_servers) == (0, 0)


def test_a_frame_that_meets_a_root_just_gone_is_told_or_goes_to_the_next() -> None:
    town = Town("a", "b")
    root = town.root("b")
    joiner = town.prospect("a")
    board = town["a"]
    town.act(board, board.receive(town.now, joiner, frame()))  # on its way
    town.act(town["b"], town["b"].leave(town.now, root))
    [(to, refused)] = town.take()
    assert to is joiner
    assert isinstance(refused, Refused)
    first = town.root("b")
    town.now += 1
    second = town.root("b")
    town.act(board, board.receive(town.now, joiner, frame()))
    town.act(town["b"], town["b"].leave(town.now, second))
    assert town.take()[0][0] is first


# --- without the others -------------------------------------------------------------------


def test_cut_off_the_own_root_serves_and_another_servers_is_out_of_reach() -> None:
    town = Town("a", "b")
    root = town.root("a")
    town.disconnect("a")
    town.disconnect("b")
    here, there = town.prospect("a"), town.prospect("b")
    assert town.says(here, frame())[0][0] is root
    assert town.says(there, frame()) == []
    [(to, refused)] = town.wait(6)
    assert to is there
    assert isinstance(refused, Refused)
    assert "another server" in refused.reason
    assert town.wait(SILENCE * 3) is not None
    assert town["b"].count_roots == 1  # nobody else is made root meanwhile
    town.connect("a")
    town.connect("b")
    assert town.says(town.prospect("b"), frame())[0][0] is root


def test_cut_off_a_frame_for_another_server_is_refused_and_one_held_is_sent_in_time() -> None:
    town = Town("a", "b")
    root, answerer = town.root("b"), town.prospect("b")
    town.disconnect("a")
    joiner = town.prospect("a")
    [(to, refused)] = town.says(joiner, frame(CANDIDATE, answerer.identifier))
    assert to is joiner
    assert isinstance(refused, Refused)
    assert town.says(joiner, frame()) == []
    town.wait(3)
    town.connect("a")
    assert [to for to, _ in town.take()] == [root]


def test_a_root_that_came_before_the_cluster_was_known_has_its_place_in_the_order() -> None:
    town = Town("a")
    board = Switchboard(tagged_identifiers(random.Random(2), TAGS["b"]), tag=TAGS["b"])
    town.boards[TAGS["b"]] = board
    early, _ = board.enter_root(town.now, is_announced=True)
    town.now += 5
    late = town.root("a")
    town.connect("b")
    assert town["b"].root is not early
    assert town.says(town.prospect("b"), frame())[0][0] is late


# --- any history --------------------------------------------------------------------------


class AnyTown(RuleBasedStateMachine):
    """Whatever happens at three servers, and what is true all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.town = Town("a", "b", "c")
        self.prospects: list[Prospect] = []
        self.roots: list[Root] = []
        self.done: set[str] = set()
        self.killed = 0
        self.terms: dict[str, int] = {}
        """Of roots of ours, by their tokens: the last that each was told."""

    def check(self, sent: Sent) -> None:
        former = [each for each in self.town.closed if isinstance(each, Root)]
        for root in former:
            self.town.closed.remove(root)
            assert root.token in {each.token for each in self.roots if each is not root} - {None}
            sent = sent + self.town.leaves(root)
        self.speak(sent)
        self.roots = [root for root in self.roots if root not in former]

    def speak(self, sent: Sent) -> None:
        for client, said in sent:
            if isinstance(said, Role) and isinstance(client, Root) and said.is_active:
                assert client.token is not None
                self.terms[client.token] = said.term
            assert client in self.prospects or client in self.roots, "somebody gone is spoken to"
            if not isinstance(said, SignalFrame):
                assert client.is_announced
            if isinstance(said, Withdrawn) and "no such" not in said.reason:
                assert said.origin not in self.done
            if isinstance(said, SignalFrame) and isinstance(client, Prospect):
                assert said.destination == client.identifier
            if isinstance(said, SignalFrame) and isinstance(client, Root):
                assert said.destination is None

    def names(self) -> list[str]:
        return [tag[0] for tag in self.town.boards]

    @rule(name=st.sampled_from("abc"), announced=st.booleans())
    def root_comes(self, name: str, announced: bool) -> None:
        if name in self.names():
            self.roots.append(self.town.root(name, announced=announced))
            self.check(self.town.take())

    @rule(name=st.sampled_from("abc"), token=st.sampled_from("RST"))
    def root_of_ours_comes_or_returns(self, name: str, token: str) -> None:
        """Perhaps before its former connection is known to be gone."""
        if name in self.names():
            self.town.now += 0.1
            self.terms.setdefault(token, 0)
            registration = Registration(token, self.terms[token])
            self.roots.append(self.town.root(name, registration=registration))
            self.check(self.town.take())

    @precondition(lambda self: self.roots)
    @rule(data=st.data())
    def root_goes(self, data: st.DataObject) -> None:
        root = data.draw(st.sampled_from(self.roots))
        self.roots.remove(root)
        self.check(self.town.leaves(root))

    @rule(name=st.sampled_from("abc"), announced=st.booleans())
    def prospect_comes(self, name: str, announced: bool) -> None:
        if name in self.names():
            self.prospects.append(self.town.prospect(name, announced=announced))

    @precondition(lambda self: self.prospects)
    @rule(data=st.data(), begins=st.booleans())
    def prospect_speaks(self, data: st.DataObject, begins: bool) -> None:
        speaker = data.draw(st.sampled_from(self.prospects))
        others = st.sampled_from([each.identifier for each in self.prospects])
        destination = data.draw(st.none() | others)
        said = frame(OFFER if begins else CANDIDATE, destination)
        self.check(self.town.says(speaker, said))

    @precondition(lambda self: self.prospects)
    @rule(data=st.data(), farewell=st.sampled_from(["done", "withdrawn", ""]))
    def prospect_goes(self, data: st.DataObject, farewell: str) -> None:
        leaving = data.draw(st.sampled_from(self.prospects))
        if leaving.is_announced and farewell:
            said = Done() if farewell == "done" else Withdrawn(reason="cancelled")
            if farewell == "done":
                self.done.add(leaving.identifier)
            self.check(self.town.says(leaving, said))
        self.prospects.remove(leaving)
        self.check(self.town.leaves(leaving))

    @rule(name=st.sampled_from("abc"))
    def server_loses_or_finds_the_others(self, name: str) -> None:
        if name in self.names():
            if self.town[name].is_connected:
                self.town.disconnect(name)
            else:
                self.town.connect(name)
            self.check(self.town.take())

    @precondition(lambda self: len(self.names()) > 1)
    @rule(name=st.sampled_from("abc"))
    def server_dies(self, name: str) -> None:
        if name in self.names():
            self.prospects = [p for p in self.prospects if tag_of(p.identifier) != TAGS[name]]
            self.roots = [root for root in self.roots if root.server != TAGS[name]]
            self.town.kill(name)

    @rule(seconds=st.sampled_from([1, 4, 12]))
    def time_passes(self, seconds: float) -> None:
        self.check(self.town.wait(seconds))
        for client in self.town.closed:
            if client in self.prospects:
                assert isinstance(client, Prospect)
                self.prospects.remove(client)
                board = self.town.boards[tag_of(client.identifier) or ""]
                self.town.act(board, board.leave(self.town.now, client))
        self.town.closed.clear()

    @invariant()
    def what_is_held_is_bounded(self) -> None:
        for board in self.town.boards.values():
            kept = (*board._held.values(), *board._open.values(), *board._rests.values())
            assert board._held_size == sum(each.size for each in kept)
            own = [root for root in board._roots if root.server == board.tag]
            assert all(root in self.roots for root in own)
            if board.root is not None and board._roots.is_reachable(board.root):
                # Only those wait whose own root is another, and out of reach.
                for held in board._held.values():
                    assert held.sender.root in board._roots
                    assert held.sender.root is not board.root

    def teardown(self) -> None:
        for name in self.names():
            if not self.town[name].is_connected:
                self.town.connect(name)
        self.check(self.town.wait(SILENCE + 1))
        # Everybody knows the same roots, in the same order.
        orders = {
            tuple((root.server, root.number) for root in board._roots)
            for board in self.town.boards.values()
        }
        assert len(orders) <= 1
        assert sum(map(len, orders)) == len(self.roots)
        tokens = [root.token for root in self.roots if root.token is not None]
        assert len(tokens) == len(set(tokens))
        for prospect in self.prospects:
            board = self.town.boards[tag_of(prospect.identifier) or ""]
            self.town.act(board, board.leave(self.town.now, prospect))
        self.prospects.clear()
        self.town.wait(100)
        for board in self.town.boards.values():
            assert not board._departed
            assert not board._expiring
            assert not board._held
            assert not board._rests


TestAnyTown = AnyTown.TestCase
TestAnyTown.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("is_certain", [True, False])
def test_what_was_not_delivered_for_somebody_gone_is_dropped(is_certain: bool) -> None:
    town = Town("a", "b")
    town.root("b")
    joiner, answerer = town.prospect("a"), town.prospect("b")
    board = town["a"]
    forwards = [
        action
        for said in (frame(), frame(OFFER, answerer.identifier))
        for action in board.receive(town.now, joiner, said)
        if isinstance(action, Forward)
    ]
    assert len(forwards) == 2
    board.leave(town.now, joiner)
    for forward in forwards:
        assert board.undelivered(town.now, forward, "gone", is_certain=is_certain) == []
