"""What is kept, what is new, what is sent again, and which way to whom: pure decisions."""

from __future__ import annotations

import json
import random
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.cast_frames import CastFrame, Routes, decode_cast, encode_cast
from trio_overlay.protocol.casting import Inbox, Kept, Log, Outbox, RoutingTable, Unsettled
from trio_overlay.testing.strategies import cast_frames


@given(cast_frames)
def test_every_frame_comes_back_as_it_was(frame: CastFrame) -> None:
    assert decode_cast(json.loads(encode_cast(frame))) == frame


@pytest.mark.parametrize(
    "value",
    [
        {"type": "CAST", "origin": "", "sequence": 1, "after": 0},
        {"type": "CAST", "origin": "a", "sequence": -1, "after": 0},
        {"type": "CAST", "origin": "a", "sequence": 1, "after": True},
        {"type": "ENTRY", "log": "a\n", "index": 1, "origin": "a", "sequence": 1},
        {"type": "ENTRY", "log": "a", "index": 2**53, "origin": "a", "sequence": 1},
        {"type": "LETTER", "origin": "a", "target": "x" * 65, "sequence": 1, "after": 0},
        {"type": "ROUTES", "added": ["a"] * 1001, "removed": [], "complete": True},
        {"type": "ROUTES", "added": [], "removed": [1], "complete": True},
        {"type": "ROUTES", "added": [], "removed": [], "complete": 1},
        {"type": "ASK", "id": "a", "topic": "t", "timeout": "soon", "all": False},
        {"type": "ASK", "id": "a", "topic": "t" * 129, "timeout": 1, "all": False},
        {"type": "ANSWERS", "id": "a", "parts": {}, "count": 1, "missing": 0, "last": True},
    ],
)
def test_what_is_wrong_with_a_frame_is_said(value: dict[str, Any]) -> None:
    with pytest.raises(MalformedFrame):
        decode_cast(value)


def test_frames_of_others_are_left_to_others() -> None:
    assert decode_cast({"type": "DATA"}) is None


# --- sending again ----------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(1, 20))
def test_over_ways_that_lose_double_and_delay_all_comes_once_and_in_order(
    seed: int, count: int
) -> None:
    rng = random.Random(seed)
    outbox, inbox, heard = Outbox(), Inbox(), []
    under_way: list[Unsettled] = []
    receipts: list[int] = []
    sequence = sent = 0
    for step in range(100_000):
        if sent == count and not outbox:
            break
        is_reliable = step > 500  # faults stop some day
        choice = rng.random()
        if choice < 0.2 and sent < count:
            sequence += rng.randint(1, 3)  # letters to others have sequences, too
            sent += 1
            under_way.append(outbox.put(sequence, sequence, 10))
        elif choice < 0.4:
            under_way += outbox
        elif choice < 0.8 and under_way:
            index = rng.randrange(len(under_way))  # not in order
            message = under_way[index]
            if is_reliable or rng.random() < 0.7:
                del under_way[index]
            if is_reliable or rng.random() < 0.6:
                verdict = inbox.judge("to us", "them", message.sequence, message.after)
                if verdict == "new":
                    heard.append(message.data)
                if verdict != "early":
                    receipts.append(message.sequence)
        elif receipts:
            receipt = receipts.pop(rng.randrange(len(receipts)))
            if is_reliable or rng.random() < 0.7:
                outbox.settle(receipt)
    assert len(heard) == count
    assert heard == sorted(set(heard))
    assert outbox.size == 0


def test_what_is_given_up_does_not_hold_up_what_comes_after() -> None:
    outbox, inbox = Outbox(), Inbox()
    lost, second = outbox.put(1, "lost", 5), outbox.put(2, "second", 6)
    assert inbox.judge("k", "o", second.sequence, second.after) == "early"
    outbox.give_up(lost.sequence)
    (again,) = outbox
    assert inbox.judge("k", "o", again.sequence, again.after) == "new"
    assert inbox.judge("k", "o", lost.sequence, lost.after) == "old"
    assert (len(outbox), outbox.size) == (1, 6)


def test_a_new_root_that_has_heard_nothing_goes_on_where_the_last_one_was() -> None:
    outbox, first, second = Outbox(), Inbox(), Inbox()
    for sequence in (1, 2):
        message = outbox.put(sequence, "x", 1)
        assert first.judge("all", "o", message.sequence, message.after) == "new"
    outbox.settle(1)
    (again,) = outbox  # 2 was put in order by the first root, and has not come back
    assert second.judge("all", "o", again.sequence, again.after) == "new"


def test_an_inbox_forgets_who_was_not_heard_of_for_longest() -> None:
    inbox = Inbox(max_senders=2)
    for origin in ("a", "b", "a", "c"):
        inbox.judge("k", origin, 1 if origin != "a" else len(inbox) + 1)
    assert len(inbox) == 2
    assert inbox.judge("k", "a", 1) == "old"
    assert inbox.judge("k", "b", 1) == "new"


# --- the log ----------------------------------------------------------------------------------


def kept(log: str | None, index: int, size: int = 10) -> Kept:
    return Kept(log, index, f"{log} {index}", index, size)


def test_a_log_keeps_the_newest_and_never_more_than_its_size() -> None:
    log = Log(max_size=35)
    for index in range(1, 10):
        assert log.append(kept("r", index)) == index - 1
        assert log.size <= 35
    assert [log[position].index for position in range(log.start, log.end)] == [7, 8, 9]
    with pytest.raises(IndexError):
        log[log.start - 1]
    log.append(kept("r", 10, size=100))  # one always has room
    assert (log.start, log.end) == (9, 10)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 200))
def test_the_middle_of_a_log_is_where_half_of_what_may_be_kept_begins(
    sizes: list[int], max_size: int
) -> None:
    log = Log(max_size)
    for index, size in enumerate(sizes, 1):
        log.append(kept("r", index, size))
        behind = sum(sizes[log.middle : index])
        assert behind <= max_size // 2 or log.middle == index - 1
        if log.middle:  # one more would be too many
            assert behind + sizes[log.middle - 1] > max_size // 2


@given(
    st.lists(st.tuples(st.sampled_from(["r1", "r2", None]), st.integers(1, 3)), max_size=30),
    st.integers(20, 200),
    st.data(),
)
def test_a_child_is_told_all_it_has_not_heard_as_far_as_it_is_kept(
    steps: list[tuple[str | None, int]], max_size: int, data: st.DataObject
) -> None:
    """A child that heard some of what its new parent did, from somebody who heard the same."""
    log, indexes, everything = Log(max_size), {"r1": 0, "r2": 0}, []
    logs = sorted(name for name, _ in steps if name is not None)  # one root after the other
    for name, _ in steps:
        root = logs.pop(0) if name is not None else None
        if root is not None:
            indexes[root] += 1
            log.hear(root, indexes[root])
        entry = kept(root, indexes[root] if root else 0)
        everything.append(entry)
        log.append(entry)
    heard = data.draw(st.integers(0, len(everything)))
    mine = [entry for entry in everything[:heard] if entry.log is not None]
    if not mine:
        assert log.find(None, 0) == log.end
        return
    assert mine[-1].log is not None
    position = log.find(mine[-1].log, mine[-1].index)
    told = [log[place] for place in range(position, log.end)]
    still_kept = [log[place] for place in range(log.start, log.end)]
    for entry in everything[heard:]:
        if entry.log is not None and any(entry is one for one in still_kept):
            assert any(entry is one for one in told)
    assert not any(entry is mine[-1] for entry in told)


def test_who_has_heard_nothing_is_told_nothing_of_the_past() -> None:
    log = Log(100)
    log.begin("r", 0)
    log.hear("r", 1)
    log.append(kept("r", 1))
    assert log.find(None, 0) == log.end == 1
    assert log.find("r", 0) == 0
    assert log.find("of another tree", 7) == 0


def test_who_has_joined_a_new_root_is_not_told_of_the_one_before() -> None:
    log = Log(100)
    for index in (1, 2):
        log.append(kept("old", index))
    log.append(kept("new", 1))
    assert log.find("new", 0) == 2


def test_a_log_that_began_later_lacks_what_an_older_child_needs_until_it_is_refilled() -> None:
    log = Log(100)
    log.begin("r", 5)
    log.hear("r", 6)
    log.append(kept("r", 6))
    assert log.lacks("r", 5) is None
    assert log.lacks("r", 3) == 3
    assert log.lacks("from elsewhere", 9) == 0
    log.refill(3, [kept("r", 4), kept("r", 5)])
    assert log.lacks("r", 3) is None
    assert [log[at].index for at in range(log.find("r", 3), log.end)] == [4, 5, 6]
    assert [log[at].index for at in range(log.find("r", 4), log.end)] == [5, 6]
    assert [one.index for one in log.between("r", 3, 5)] == [4, 5]


def test_a_refill_takes_no_more_room_than_there_is_and_is_not_asked_for_twice() -> None:
    log = Log(35)
    log.begin("r", 5)
    log.append(kept("r", 6))
    log.refill(1, [kept("r", index) for index in (2, 3, 4, 5)])
    assert [log[at].index for at in range(log.start, log.end)] == [4, 5, 6]
    assert log.lacks("r", 0) is None
    log.append(kept("r", 7))
    assert [log[at].index for at in range(log.start, log.end)] == [5, 6, 7]


def test_what_was_pushed_out_here_is_not_asked_for_elsewhere() -> None:
    log = Log(25)
    log.begin("r", 1)
    for index in (2, 3, 4):
        log.hear("r", index)
        log.append(kept("r", index))
    assert log.lacks("r", 0) is None


# --- the ways ---------------------------------------------------------------------------------


class Forest:
    """Tables as in a tree whose nodes move and leave; what is said arrives later, in order."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.tables: dict[str, RoutingTable] = {"root": RoutingTable("root")}
        self.parents: dict[str, str] = {}
        self.under_way: dict[tuple[str, str], deque[Routes]] = {}

    def is_below(self, node: str, top: str) -> bool:
        while node in self.parents and node != top:
            node = self.parents[node]
        return node == top

    def attach(self, node: str, parent: str) -> None:
        self.parents[node] = parent
        self.under_way[node, parent] = deque()
        self.tables[node].meet_parent()

    def detach(self, node: str) -> None:
        """The parent learns of it now or, if it is slow, when the node is long elsewhere."""
        parent = self.parents.pop(node, None)
        if parent is not None and self.rng.random() < 0.5:
            self.notice(node, parent)

    def notice(self, node: str, parent: str) -> None:
        if self.under_way.pop((node, parent), None) is not None and parent in self.tables:
            self.tables[parent].lose(node)

    def join(self, node: str) -> None:
        parent = self.rng.choice(list(self.tables))
        self.tables[node] = RoutingTable(node)
        self.attach(node, parent)

    def move(self) -> None:
        node = self.rng.choice(list(self.tables))
        parents = [other for other in self.tables if not self.is_below(other, node)]
        if node != "root" and parents:
            parent = self.rng.choice(parents)
            if (node, parent) not in self.under_way:
                self.detach(node)
                self.attach(node, parent)

    def leave(self) -> None:
        node = self.rng.choice(list(self.tables))
        children = [child for child, parent in self.parents.items() if parent == node]
        if node != "root" and not children:
            self.detach(node)
            del self.tables[node]

    def speak(self) -> None:
        node = self.rng.choice(list(self.tables))
        if node in self.parents:
            self.under_way[node, self.parents[node]].extend(self.tables[node].take_news())

    def hear(self) -> None:
        ways = [way for way, frames in self.under_way.items() if frames]
        if ways:
            node, parent = self.rng.choice(ways)
            frame = self.under_way[node, parent].popleft()
            if parent in self.tables:
                self.tables[parent].learn(node, frame)

    def come_to_rest(self) -> None:
        for node, parent in list(self.under_way):
            if self.parents.get(node) != parent:
                self.notice(node, parent)
        while True:
            for node, parent in self.parents.items():
                self.under_way[node, parent].extend(self.tables[node].take_news())
            if not any(self.under_way.values()):
                return
            while any(self.under_way.values()):
                self.hear()


@settings(max_examples=500 if settings().max_examples <= 1000 else 20_000)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_when_all_is_said_everybody_knows_who_is_below_which_child(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    forest = Forest(rng)
    for number in range(steps):
        match rng.randrange(6):
            case 0:
                forest.join(f"n{number}")
            case 1:
                forest.move()
            case 2:
                forest.leave()
            case 3 | 4:
                forest.speak()
            case 5:
                forest.hear()
    forest.come_to_rest()
    for name, table in forest.tables.items():
        for other in forest.tables:
            way = table.child_towards(other)
            if other == name or not forest.is_below(other, name):
                assert way is None, f"{name} sees {other} below {way}"
            else:
                assert way is not None, f"{name} does not see {other}"
                assert forest.parents[way] == name
                assert forest.is_below(other, way)
        assert len(table) == sum(
            other != name and forest.is_below(other, name) for other in forest.tables
        )


def test_who_has_moved_is_not_lost_when_its_former_branch_speaks_late() -> None:
    """It was: the last to say that a node was there had it, and took it away with its own word."""
    table = RoutingTable("us")
    table.learn("new", Routes(("n",), (), True))
    table.learn("former", Routes(("n",), (), True))
    table.learn("former", Routes((), ("n",), True))
    assert table.child_towards("n") == "new"


def test_what_was_below_a_child_is_forgotten_in_the_order_in_which_it_came() -> None:
    """In that of a set, which is another in each process, stories had another history in each."""
    table = RoutingTable("us")
    table.meet_parent()
    ids = tuple(f"n{number}" for number in range(100))
    table.learn("child", Routes(ids, (), True))
    table.take_news()
    table.lose("child")
    (news,) = table.take_news()
    assert news.removed == ids


def test_a_child_with_more_below_it_than_its_share_is_incomplete_and_costs_no_other() -> None:
    table = RoutingTable("us", max_ids_of_child=3)
    table.meet_parent()
    table.learn("greedy", Routes(tuple(f"g{number}" for number in range(1000)), (), True))
    table.learn("modest", Routes(("m",), (), True))
    assert table.child_towards("m") == "modest"
    assert table.child_towards("g2") == "greedy"
    assert table.child_towards("g3") is None
    assert table.incomplete == ("greedy",)
    (news,) = table.take_news()
    assert not news.is_complete
    table.lose("greedy")
    (news,) = table.take_news()
    assert (set(news.removed), news.is_complete) == ({"g0", "g1", "g2"}, True)
    assert not table.has_news


def test_that_a_child_does_not_know_all_is_passed_on_and_taken_back() -> None:
    table = RoutingTable("us")
    table.meet_parent()
    table.take_news()
    table.learn("child", Routes((), (), False))
    assert table.take_news() == [Routes((), (), False)]
    table.learn("child", Routes((), (), True))
    assert table.take_news() == [Routes((), (), True)]


def test_many_ids_are_told_in_several_frames() -> None:
    table = RoutingTable("us")
    table.meet_parent()
    table.learn("child", Routes(tuple(f"n{number}" for number in range(1000)), (), True))
    table.learn("child", Routes(tuple(f"m{number}" for number in range(1000)), (), True))
    assert [len(news.added) for news in table.take_news()] == [1000, 1000, 1]
