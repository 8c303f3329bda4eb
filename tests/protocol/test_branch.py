"""The decisions of one tree node, without any network."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from trio_overlay.protocol.branch import (
    ADMIT,
    CUT_OFF,
    HAND_OVER,
    IS_CHILD,
    NO_OFFER,
    WAIT,
    Branch,
    Delegate,
    Drop,
    Placement,
    hash_place,
    jenkins_hash,
    make_node_id,
)

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "vectors.json").read_text())


@pytest.mark.parametrize(("value", "expected"), VECTORS["hash"])
def test_hash_equals_the_originals(value: int, expected: int) -> None:
    assert jenkins_hash(value) == expected


@pytest.mark.parametrize("vector", VECTORS["delegate"])
def test_delegation_equals_the_originals(vector: dict[str, Any]) -> None:
    branch: Branch[str] = Branch(int(vector["nodeId"]), vector["maxDegree"])
    assert hash_place(branch, vector["origin6"]) == vector["index"]


def test_node_ids_have_at_most_six_digits_and_differ() -> None:
    ids = {make_node_id(random.Random(seed)) for seed in range(100)}
    assert len(ids) > 95
    assert all(0 <= node_id <= 999_999 for node_id in ids)


def test_an_origin_that_is_no_hex_number_still_has_a_place() -> None:
    branch: Branch[str] = Branch(123, 10)
    assert 0 <= hash_place(branch, "xyz") < 10
    assert hash_place(branch, "12xyz") == hash_place(branch, "12")


@pytest.mark.parametrize(
    ("origin", "number"),
    [
        ("0x12", 18),
        ("0X1f-a", 31),
        ("0x12zz", 18),
        ("0x0x12", 0),
        ("00x12", 0),
        ("0xg", 0),
        ("-12", -18),
        ("-0x12", -18),
        ("+12", 18),
        ("--1", 0),
        ("1_2", 1),
        ("\t\v\f 12", 18),
        ("\xa0a1", 161),
        ("\u2028b", 11),
        ("\ufeff9z", 9),
        ("\x1c12", 0),
        ("\x8512", 0),
        ("\u0661", 0),
    ],
)
def test_an_origin_is_read_as_by_parse_int(origin: str, number: int) -> None:
    branch: Branch[str] = Branch(1000, 1 << 31)  # a place for each hash
    assert hash_place(branch, origin) == jenkins_hash(number ^ 1000)


def offer(branch: Branch[str], origin: str, frame: str = "offer") -> object:
    return branch.take(origin, frame, is_offer=True)


def placed(placements: list[Placement[str]]) -> list[tuple[str, object, tuple[str, ...]]]:
    return [(each.origin, each.verdict, each.frames) for each in placements]


def full_branch(max_degree: int = 2) -> Branch[str]:
    branch: Branch[str] = Branch(1, max_degree)
    for number in range(max_degree):
        origin = f"c{number}"
        assert offer(branch, origin) == ADMIT
        assert branch.connect(origin) == []
    return branch


def test_node_with_room_admits_and_hands_over_later_frames() -> None:
    branch: Branch[str] = Branch(1, 2)
    assert offer(branch, "a") == ADMIT
    assert branch.take("a", "candidate", is_offer=False) == HAND_OVER
    assert branch.applicants == ("a",)


def test_frame_without_an_offer_from_an_unknown_origin_takes_no_place() -> None:
    branch: Branch[str] = Branch(1, 1)
    assert branch.take("a", "candidate", is_offer=False) == NO_OFFER
    assert branch.applicants == branch.requests == ()
    assert offer(branch, "b") == ADMIT


def test_full_node_delegates_all_frames_of_an_origin_to_one_child() -> None:
    branch = full_branch()
    verdict = offer(branch, "abcdef")
    assert isinstance(verdict, Delegate)
    assert verdict.child in branch.children
    for _ in range(5):
        assert branch.take("abcdef", "candidate", is_offer=False) == verdict


def test_request_for_a_place_without_a_child_waits_for_it() -> None:
    branch: Branch[str] = Branch(1, 1)
    assert offer(branch, "a") == ADMIT
    assert offer(branch, "b") == WAIT
    assert branch.take("b", "candidate", is_offer=False) == WAIT
    assert placed(branch.connect("a")) == [("b", Delegate("a"), ("offer", "candidate"))]


def test_request_that_waited_is_admitted_when_the_applicant_fails() -> None:
    branch: Branch[str] = Branch(1, 1)
    offer(branch, "a")
    offer(branch, "b")
    offer(branch, "c")
    assert placed(branch.fail("a")) == [("b", ADMIT, ("offer",))]
    assert placed(branch.fail("b")) == [("c", ADMIT, ("offer",))]


def test_requests_of_a_lost_child_are_placed_again() -> None:
    branch = full_branch(1)
    assert offer(branch, "a") == Delegate("c0")
    assert offer(branch, "b") == Delegate("c0")
    assert placed(branch.lose("c0")) == [("a", ADMIT, ("offer",))]
    assert placed(branch.connect("a")) == [("b", Delegate("a"), ("offer",))]


def test_settled_request_goes_its_way_and_is_not_placed_again() -> None:
    branch = full_branch(1)
    assert offer(branch, "a") == Delegate("c0")
    branch.settle("a")
    assert branch.take("a", "candidate", is_offer=False) == Delegate("c0")
    assert branch.lose("c0") == []
    assert branch.requests == ()


def test_request_that_waits_is_dropped_when_the_applicant_fails_at_a_leaver() -> None:
    """It was an error that ended the node: the request was struck off a list that was gone."""
    branch: Branch[str] = Branch(1, 1)
    offer(branch, "a")
    offer(branch, "b")
    branch.retire()
    assert branch.fail("a") == []
    assert branch.requests == ()


def test_request_that_waits_is_not_settled() -> None:
    branch: Branch[str] = Branch(1, 1)
    offer(branch, "a")
    offer(branch, "b")
    branch.settle("b")
    assert placed(branch.fail("a")) == [("b", ADMIT, ("offer",))]


def test_withdrawing_tells_whoever_has_the_request() -> None:
    branch = full_branch(1)
    offer(branch, "a")
    assert branch.withdraw("a") == Delegate("c0")
    assert branch.requests == ()
    assert isinstance(branch.withdraw("a"), Drop)
    branch.lose("c0")
    offer(branch, "b")
    assert branch.withdraw("b") == HAND_OVER
    offer(branch, "c")
    assert isinstance(branch.withdraw("c"), Drop)
    assert branch.requests == ()


def test_connected_origin_takes_no_second_place() -> None:
    branch = full_branch(2)
    assert offer(branch, "c0") == IS_CHILD
    assert isinstance(branch.withdraw("c0"), Drop)
    assert branch.children == ("c0", "c1")


def test_closed_branch_takes_nobody_until_it_is_open_again() -> None:
    branch: Branch[str] = Branch(1, 2)
    branch.close()
    assert offer(branch, "a") == CUT_OFF
    branch.open()
    assert offer(branch, "a") == ADMIT


def test_what_is_kept_for_strangers_is_bounded() -> None:
    branch = full_branch(1)
    for _ in range(1000):
        branch.take("a", "frame", is_offer=True, size=1 << 20)
    for number in range(20_000):
        branch.take(f"{number:x}", "frame", is_offer=True)
    assert len(branch.requests) <= 10_000
    assert sum(request.size for request in branch._requests.values()) <= 32 << 20
    assert max(len(request.frames) for request in branch._requests.values()) <= 64


def test_requests_go_where_the_shallowest_free_place_is() -> None:
    branch = full_branch(2)
    branch.hear("c0", [0, 3], 0)
    branch.hear("c1", [1, 0], 0)
    assert offer(branch, "a") == Delegate("c1")
    assert offer(branch, "b") == Delegate("c0")
    branch.hear("c1", [2], 1)
    assert offer(branch, "c") == Delegate("c1")


def test_whoever_waits_for_an_applicant_that_fails_is_counted_elsewhere() -> None:
    branch: Branch[str] = Branch(1, 2)
    for origin in "ab":
        branch.take(origin, "offer", is_offer=True, brought=(1,))
    branch.connect("a")
    for origin in "cdef":
        branch.take(origin, "offer", is_offer=True, brought=(1,))
    assert branch.view[:4] == [0, 0, 0, 2]
    placements = branch.fail("b")
    assert [placement.verdict for placement in placements] == [ADMIT]
    branch.connect(placements[0].origin)
    # Five below two places: two of them one level down, one two levels down.
    assert sum(branch.view) == 2
    assert branch.view[0] == 0


def test_parent_is_told_only_what_it_cannot_know() -> None:
    branch: Branch[str] = Branch(1, 2)
    branch.meet_parent([2])
    for origin in "abcdef":
        offer(branch, origin)
        assert branch.report() is None
    assert branch.fail("a") != []
    view, seen = branch.report() or ((), 0)
    assert seen == 6
    assert view == tuple(branch.view)
    assert branch.report() is None


def test_max_degree_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Branch(1, 0)


ORIGINS = st.sampled_from([f"{n:02x}" for n in range(0, 256, 16)])


class BranchMachine(RuleBasedStateMachine):
    """Any order of events keeps the invariants, and the kept size is what the frames add up to."""

    branch: Branch[int]

    @initialize(max_degree=st.integers(1, 3))
    def begin(self, max_degree: int) -> None:
        self.branch = Branch(7, max_degree)

    @rule(origins=st.lists(ORIGINS, min_size=2, max_size=6, unique=True))
    def several_offer_at_once(self, origins: list[str]) -> None:
        for origin in origins:
            self.take(origin, is_offer=True, size=1)

    @rule(origin=ORIGINS, is_offer=st.booleans(), size=st.integers(0, 100))
    def take(self, origin: str, is_offer: bool, size: int) -> None:
        room = self.branch.has_room
        known = origin in (*self.branch.children, *self.branch.applicants, *self.branch.requests)
        verdict = self.branch.take(origin, size, is_offer=is_offer, size=size)
        assert (verdict == ADMIT) == (room and is_offer and not known)
        if isinstance(verdict, Delegate):
            assert verdict.child in self.branch.children

    @rule(data=st.data(), works=st.booleans())
    def applicant_ends(self, data: st.DataObject, works: bool) -> None:
        if self.branch.applicants:
            origin = data.draw(st.sampled_from(self.branch.applicants))
            if works:
                for placement in self.branch.connect(origin):
                    assert placement.verdict == Delegate(origin)
            else:
                self.check_placements(self.branch.fail(origin))

    @rule(data=st.data())
    def child_is_lost(self, data: st.DataObject) -> None:
        if self.branch.children:
            child = data.draw(st.sampled_from(self.branch.children))
            self.check_placements(self.branch.lose(child))
            assert child not in self.branch.children

    def check_placements(self, placements: list[Placement[int]]) -> None:
        for placement in placements:
            match placement.verdict:
                case Delegate(child):
                    assert child in self.branch.children
                    assert placement.origin in self.branch.requests
                case verdict:
                    assert verdict == ADMIT
                    assert placement.origin in self.branch.applicants

    @rule(data=st.data(), view=st.lists(st.integers(0, 3), max_size=4), seen=st.integers(-1, 9))
    def child_reports(self, data: st.DataObject, view: list[int], seen: int) -> None:
        if self.branch.children:
            self.branch.hear(data.draw(st.sampled_from(self.branch.children)), view, seen)

    @rule(origin=ORIGINS)
    def withdraw(self, origin: str) -> None:
        self.branch.withdraw(origin)
        assert origin not in self.branch.requests

    @rule(origin=ORIGINS)
    def settle(self, origin: str) -> None:
        self.branch.settle(origin)

    @rule(origin=ORIGINS)
    def forget(self, origin: str) -> None:
        self.branch.forget(origin)

    @rule(data=st.data(), ends=st.lists(st.booleans(), max_size=3))
    def retire(self, data: st.DataObject, ends: list[bool]) -> None:
        """What a leaver lives through: nobody comes any more, and who is on the way in goes on."""
        self.branch.retire()
        for works in ends:
            self.applicant_ends(data, works)

    @rule()
    def close_and_open(self) -> None:
        self.branch.close()
        assert self.branch.requests == ()
        self.branch.open()

    @invariant()
    def degree_is_never_over_the_limit(self) -> None:
        branch = self.branch
        assert len(branch.children) + len(branch.applicants) <= branch.max_degree

    @invariant()
    def an_origin_is_one_thing(self) -> None:
        branch = self.branch
        everyone = [*branch.children, *branch.applicants, *branch.requests]
        assert len(everyone) == len(set(everyone))

    @invariant()
    def nobody_waits_while_there_is_room(self) -> None:
        waiting = [r for r in self.branch._requests.values() if r.verdict is WAIT]
        assert not (waiting and self.branch.has_room)

    @invariant()
    def the_view_counts_the_places_here(self) -> None:
        branch = self.branch
        taken = len(branch.children) + len(branch.applicants)
        assert branch.view[0] == (branch.max_degree - taken if branch.is_open else 0)
        assert min(branch.potential_view) >= 0

    @invariant()
    def size_is_accounted_for(self) -> None:
        sizes = [request.size for request in self.branch._requests.values()]
        assert self.branch._held == sum(sizes)
        for request in self.branch._requests.values():
            assert request.size == sum(request.frames)


TestBranchMachine = BranchMachine.TestCase


@given(st.text(max_size=40), st.integers(0, 999_999), st.integers(1, 50))
def test_every_origin_has_a_place(origin: str, node_id: int, max_degree: int) -> None:
    branch: Branch[str] = Branch(node_id, max_degree)
    assert 0 <= hash_place(branch, origin) < max_degree


def test_a_request_that_was_here_before_is_seen_when_the_parent_brings_it() -> None:
    branch: Branch[str] = Branch(1, 1)
    branch.take("a", "offer", is_offer=True, brought=[1])
    branch.connect("a")
    branch.take("b", "offer", is_offer=True, brought=[1])
    branch.meet_parent(branch.view)
    branch.take("b", "offer", is_offer=True, brought=[1])
    assert branch.is_surprising
    report = branch.report()
    assert report is not None
    assert report[1] == 1
