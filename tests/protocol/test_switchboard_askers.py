"""Those who ask for a picture of the tree: who is asked, who is answered, and what is forgotten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.protocol.test_switchboard import House, sent
from tests.protocol.test_switchboard_cluster import SILENCE, TAGS, Sent, Town
from trio_overlay.protocol.bootstrap import (
    SNAPSHOT,
    AskSnapshot,
    Hello,
    Refused,
    Registration,
    Role,
    SnapshotPart,
    Withdrawn,
)
from trio_overlay.protocol.switchboard_askers import ASKER_GRACE, MAX_ASKERS
from trio_overlay.protocol.switchboard_clients import Action, Asker, Close, Forward, Root, Send

NODES = ({"id": "a"}, {"id": "b"})


def ours(token: str) -> Registration:
    return Registration(token, extensions=frozenset({SNAPSHOT}))


def part(asker: Asker, *, is_last: bool = True) -> SnapshotPart:
    return SnapshotPart(asker.identifier, NODES, 3 if is_last else 0, is_last)


def enter(house: House) -> Asker:
    asker, actions = house.switchboard.enter_asker(house.now)
    assert actions == []
    return asker


def reason(actions: Iterable[Action], asker: Asker) -> str:
    """Why *asker* was turned down and closed, and nobody else told anything."""
    (said, close) = actions
    assert isinstance(close, Close)
    assert close.client is asker
    [(to, refused)] = sent([said])
    assert to is asker
    assert isinstance(refused, Refused)
    return refused.reason


def ask(house: House, asker: Asker, timeout: float = 8.0) -> list[Action]:
    return house.switchboard.receive(house.now, asker, AskSnapshot(timeout))


def test_the_active_root_is_asked_and_the_asker_gets_its_answer() -> None:
    house = House()
    root, _ = house.root(registration=ours("a"))
    house.root(registration=ours("b"))  # stands by
    asker, other = enter(house), enter(house)
    assert sent(ask(house, asker, 8)) == [(root, AskSnapshot(8.0, asker.identifier))]
    assert sent(ask(house, other, 9)) == [(root, AskSnapshot(9.0, other.identifier))]
    for said in (part(asker, is_last=False), part(asker)):
        assert house.says(root, said) == [(asker, said)]
    assert house.says(root, part(asker)) == []  # it has had its last
    house.leaves(asker)  # and the root need not be told
    refused = Refused("no way", other.identifier)
    assert house.says(root, refused) == [(other, refused)]


def test_an_asker_is_no_root_and_no_prospect() -> None:
    house = House()
    root, _ = house.root(registration=ours("a"))
    asker = enter(house)
    assert house.switchboard.root is root
    assert (house.switchboard.count_roots, house.switchboard.count_prospects) == (1, 0)
    prospect = house.prospect()
    # Nobody but the root it asked can speak to it, or ask in its place.
    ask(house, asker)
    assert house.says(prospect, part(asker)) == house.says(prospect, AskSnapshot(1)) == []
    standby, _ = house.root(registration=ours("b"))
    assert house.says(standby, part(asker)) == []
    assert house.says(root, part(asker)) == [(asker, part(asker))]
    for said in (Hello("x"), AskSnapshot(1), Withdrawn()):
        assert house.says(asker, said) == []


def test_who_cannot_be_asked_is_never_sent_the_question() -> None:
    house = House()
    assert "no root" in reason(ask(house, asker := enter(house)), asker)
    house.root(announced=False)
    assert "old protocol" in reason(ask(house, asker := enter(house)), asker)
    house.root(registration=Registration("b", takes_over=True))  # of ours, before there were askers
    assert "older version" in reason(ask(house, asker := enter(house)), asker)


def test_the_root_is_told_when_the_asker_goes_or_its_time_is_over() -> None:
    house = House()
    root, _ = house.root(registration=ours("a"))
    gone, late = enter(house), enter(house)
    ask(house, gone)
    ask(house, late, 8)
    assert house.loses(gone) == [(root, Withdrawn(gone.identifier, "it has gone"))]
    told, *rest = house.wait(8 + ASKER_GRACE)
    assert sent([told]) == [(root, Withdrawn(late.identifier, "the time is over"))]
    assert reason(rest, late) == "the time is over"
    assert house.switchboard.count_askers == 0
    assert house.loses(late) == []
    assert house.switchboard.next_tick_at == float("inf")


def test_who_asks_nothing_or_does_not_go_is_closed() -> None:
    house = House()
    root, _ = house.root(registration=ours("a"))
    silent = enter(house)
    assert reason(house.wait(ASKER_GRACE), silent) == "nothing was asked"
    sticky = enter(house)
    ask(house, sticky)
    house.says(root, part(sticky))
    assert house.wait(100) == [Close(sticky, "the time is over")]


def test_only_so_many_ask_at_a_time() -> None:
    house = House()
    house.root(registration=ours("a"))
    askers = [enter(house) for _ in range(MAX_ASKERS)]
    asker, actions = house.switchboard.enter_asker(house.now)
    assert "others are asking" in reason(actions, asker)
    assert house.loses(asker) == []
    house.leaves(askers[0])
    enter(house)


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_root_that_is_lost_in_the_middle_is_no_answer(comes_back: bool) -> None:
    house = House()
    root, _ = house.root(registration=ours("a"))
    asker = enter(house)
    ask(house, asker)
    house.says(root, part(asker, is_last=False))
    if comes_back:  # on another connection, before the old one was found to be gone
        _, actions = house.switchboard.enter_root(
            house.now, is_announced=True, registration=ours("a")
        )
        actions = [
            each
            for each in actions
            if (each.to if isinstance(each, Send) else getattr(each, "client", None)) is asker
        ]
    else:
        actions = house.switchboard.leave(house.now, root)
    assert "lost before it had answered" in reason(actions, asker)


# --- several servers ------------------------------------------------------------------------------


class AskedTown(Town):
    """Servers, with roots that can be asked and askers."""

    def ours(self, name: str, token: str) -> Root:
        root, actions = self[name].enter_root(self.now, is_announced=True, registration=ours(token))
        self.act(self[name], actions)
        self.sent = [each for each in self.take() if not isinstance(each[1], Hello | Role)]
        return root

    def asker(self, name: str) -> Asker:
        asker, actions = self[name].enter_asker(self.now)
        self.act(self[name], actions)
        return asker

    def asks(self, asker: Asker, timeout: float = 8.0) -> Sent:
        return self.says(asker, AskSnapshot(timeout))


def test_a_question_at_one_server_reaches_the_root_at_another() -> None:
    town = AskedTown("a", "b", "c")
    root = town.ours("b", "b")
    asker, gone = town.asker("a"), town.asker("c")
    assert town.asks(asker) == [(root, AskSnapshot(8.0, asker.identifier))]
    for said in (part(asker, is_last=False), part(asker)):
        assert town.says(root, said) == [(asker, said)]
    assert town.says(root, part(asker)) == []
    assert town.leaves(asker) == []
    town.asks(gone)
    assert town.leaves(gone) == [(root, Withdrawn(gone.identifier, "it has gone"))]
    assert town.says(root, part(gone)) == []


def test_an_old_root_at_another_server_never_gets_the_question() -> None:
    town = AskedTown("a", "b")
    town.root("b", announced=False)
    asker = town.asker("a")
    [(to, refused)] = town.asks(asker)
    assert to is asker
    assert isinstance(refused, Refused)
    assert "old protocol" in refused.reason


@pytest.mark.parametrize("how", ["leaves", "leaves meanwhile", "dies", "is cut off", "is away"])
def test_a_root_that_is_lost_at_another_server_is_no_answer(how: str) -> None:
    town = AskedTown("a", "b")
    root = town.ours("b", "b")
    asker = town.asker("a")
    board = town["a"]
    match how:
        case "leaves":
            town.asks(asker)
            told = town.leaves(root)
        case "leaves meanwhile":
            town.act(board, board.receive(town.now, asker, AskSnapshot(8)))
            town["b"].leave(town.now, root)
            told = town.take()
        case "dies":
            town.kill("b")
            told = town.asks(asker)
        case "is cut off":
            town.act(board, board.receive(town.now, asker, AskSnapshot(8)))
            town.disconnect("a")
            told = town.take()
        case _:
            town.disconnect("a")
            told = town.asks(asker)
    [(to, refused)] = told
    assert to is asker
    assert isinstance(refused, Refused)
    assert refused.reason
    # Told by another server, it has to close by itself; it does.
    assert town.closed == ([] if how == "leaves meanwhile" else [asker])


def test_a_server_that_knows_no_askers_costs_them_their_time_and_no_more() -> None:
    town = AskedTown("a", "b")
    town.ours("b", "b")
    asker = town.asker("a")
    board = town["a"]
    (forward,) = board.receive(town.now, asker, AskSnapshot(8))
    assert isinstance(forward, Forward)  # and is passed over there
    told = town.wait(8 + ASKER_GRACE + 1)
    [refused] = [said for to, said in told if to is asker]
    assert isinstance(refused, Refused)
    assert board.count_askers == 0


class AnyAsking(RuleBasedStateMachine):
    """Whatever happens at three servers: each asker has one last word, and soon."""

    def __init__(self) -> None:
        super().__init__()
        self.town = AskedTown("a", "b", "c")
        self.roots: list[Root] = []
        self.open: dict[Asker, float] = {}
        """Those connected, and when they must have had their last word."""
        self.ended: Counter[Asker] = Counter()
        self.asked: dict[str, set[int]] = {}
        """Which roots, by the `id` of each, know of whose question."""
        self.count_tokens = 0

    def check(self, told: Sent) -> None:
        for client, said in told:
            match said:
                case AskSnapshot(_, str() as origin):
                    assert isinstance(client, Root)
                    assert SNAPSHOT in client.extensions
                    self.asked.setdefault(origin, set()).add(id(client))
                    assert len(self.asked[origin]) == 1, "two roots work on one question"
                case SnapshotPart(_, nodes, _, is_last):
                    assert isinstance(client, Asker)
                    assert client in self.open
                    assert nodes == NODES
                    assert not self.ended[client]
                    self.ended[client] += is_last
                case Refused():
                    assert isinstance(client, Asker)
                    self.ended[client] += 1
                    assert self.ended[client] == 1
                case _:
                    assert isinstance(client, Root)
        for client in self.town.closed:
            if isinstance(client, Asker) and self.open.pop(client, None) is not None:
                assert self.ended[client] == 1
                board = self.town._board_of(client)
                assert board.leave(self.town.now, client) == []
        self.town.closed.clear()

    @property
    def names(self) -> list[str]:
        return [tag[0] for tag in self.town.boards]

    @rule(name=st.sampled_from("abc"), kind=st.sampled_from(["old", "ours", "ours"]))
    def root_comes(self, name: str, kind: str) -> None:
        if name not in self.names:
            return
        self.count_tokens += 1
        if kind == "old":
            self.roots.append(self.town.root(name, announced=False))
        else:
            self.roots.append(self.town.ours(name, str(self.count_tokens)))
        self.check(self.town.take())

    @precondition(lambda self: self.roots)
    @rule(data=st.data())
    def root_goes(self, data: st.DataObject) -> None:
        root = data.draw(st.sampled_from(self.roots))
        self.roots.remove(root)
        self.check(self.town.leaves(root))

    @rule(name=st.sampled_from("abc"))
    def asker_comes(self, name: str) -> None:
        if name in self.names:
            asker = self.town.asker(name)
            self.open[asker] = self.town.now + ASKER_GRACE
            self.check(self.town.take())

    @precondition(lambda self: self.open)
    @rule(data=st.data(), timeout=st.sampled_from([1.0, 20.0]))
    def asker_asks(self, data: st.DataObject, timeout: float) -> None:
        asker = data.draw(st.sampled_from(list(self.open)))
        if not asker.has_asked:
            self.open[asker] = self.town.now + timeout + ASKER_GRACE
        self.check(self.town.asks(asker, timeout))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def asker_goes(self, data: st.DataObject) -> None:
        asker = data.draw(st.sampled_from(list(self.open)))
        del self.open[asker]
        self.check(self.town.leaves(asker))

    @precondition(lambda self: self.asked and self.roots)
    @rule(data=st.data(), is_last=st.booleans())
    def root_answers(self, data: st.DataObject, is_last: bool) -> None:
        origin = data.draw(st.sampled_from(sorted(self.asked)))
        for root in self.roots:
            if id(root) in self.asked[origin]:
                said = SnapshotPart(origin, NODES, 0, is_last)
                self.check(self.town.says(root, said))

    @rule(name=st.sampled_from("abc"))
    def server_loses_or_finds_the_others(self, name: str) -> None:
        if name in self.names:
            if self.town[name].is_connected:
                self.town.disconnect(name)
            else:
                self.town.connect(name)
            self.check(self.town.take())

    @precondition(lambda self: len(self.names) > 1)
    @rule(name=st.sampled_from("abc"))
    def server_dies(self, name: str) -> None:
        if name in self.names:
            tag = TAGS[name]
            self.open = {
                asker: due for asker, due in self.open.items() if asker.identifier[-8:] != tag
            }
            self.roots = [root for root in self.roots if root.server != tag]
            self.town.kill(name)

    @rule(seconds=st.sampled_from([1, 12]))
    def time_passes(self, seconds: float) -> None:
        self.check(self.town.wait(seconds))
        for asker, due_at in self.open.items():
            assert due_at > self.town.now - 1, f"{asker} still waits"

    @invariant()
    def askers_are_counted_and_bounded(self) -> None:
        assert sum(board.count_askers for board in self.town.boards.values()) == len(self.open)
        assert all(board.count_askers <= MAX_ASKERS for board in self.town.boards.values())

    def teardown(self) -> None:
        self.check(self.town.wait(SILENCE + 100))
        assert not self.open
        assert all(board.count_askers == 0 for board in self.town.boards.values())


TestAnyAsking = AnyAsking.TestCase
TestAnyAsking.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
