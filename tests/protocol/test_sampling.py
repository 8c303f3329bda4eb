"""What a peer that samples decides; alone, and in a town where all is done at once."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_overlay.protocol.sampling import (
    Action,
    Close,
    Connect,
    HandOver,
    PartialView,
    Spray,
    Tell,
)
from trio_overlay.protocol.sampling_frames import Exchange, Join, JoinBack, Leave, Response
from trio_overlay.simulation.graphs import largest_component

SEEDS = st.integers(0, 2**32)


def make_spray(*view: str, inview: Iterable[str] = (), seed: int = 1, **options: Any) -> Spray:
    spray = Spray("me", Counter(inview), random.Random(seed), **options)
    for peer in view:
        assert spray.opened(peer) == []
    return spray


class Town:
    """Peers whose arcs open and close, and whose words arrive, at once."""

    def __init__(self, seed: int, *, a: float = 1.0, b: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.sprays: dict[str, Spray] = {}
        self.inviews: dict[str, Counter[str]] = {}
        self.outviews: dict[str, Counter[str]] = {}
        self._a, self._b = a, b

    def add(self, contact: str | None = None) -> str:
        name = f"p{len(self.inviews)}"
        self.inviews[name], self.outviews[name] = Counter(), Counter()
        rng = random.Random(self.rng.random())
        self.sprays[name] = Spray(name, self.inviews[name], rng, a=self._a, b=self._b)
        if contact is not None:
            self.open(name, contact)
            self.do(name, self.sprays[name].join(contact, name))
        return name

    def grow(self, count: int) -> None:
        self.add()
        while len(self.sprays) < count:
            self.add(self.rng.choice(list(self.sprays)))

    def open(self, source: str, target: str) -> None:
        assert source != target, "nobody has an arc to itself"
        self.outviews[source][target] += 1
        self.inviews[target][source] += 1
        self.do(source, self.sprays[source].opened(target))

    def close(self, source: str, target: str) -> None:
        assert self.outviews[source][target] > 0
        self.outviews[source][target] -= 1
        self.inviews[target][source] -= 1
        for counts in (self.outviews[source], self.inviews[target]):
            counts += Counter()  # without zeros

    def do(self, name: str, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Connect(source, target):
                    self.open(source, target)
                case HandOver(peer, taker):
                    self.open(taker, name if peer == taker else peer)
                    self.close(name, peer)
                case Close(peer):
                    self.close(name, peer)
                case Tell(peer, frame) if peer in self.sprays:
                    self.do(peer, self.sprays[peer].receive(name, frame))
                case Tell():
                    pass

    def exchange(self, name: str) -> None:
        spray = self.sprays[name]
        partner = spray.choose_partner()
        if partner is None:
            self.do(name, spray.reach_out())
            return
        greeting = spray.greeting()
        # Both decide before either has got anything, as in the paper.
        given = spray.exchange(partner)
        taken = self.sprays[partner].receive(name, greeting)
        self.do(name, given)
        self.do(partner, taken)

    def crash(self, name: str) -> None:
        del self.sprays[name]
        for other, spray in self.sprays.items():
            self.inviews[other].pop(name, None)
            if self.outviews[other].pop(name, None):
                self.do(other, spray.lost(name))

    def check(self) -> None:
        for name, spray in self.sprays.items():
            assert name not in spray.view.counts()
            assert spray.view.counts() == self.outviews[name]

    @property
    def count_arcs(self) -> int:
        return sum(len(spray.view) for spray in self.sprays.values())

    def graph(self) -> list[list[int]]:
        numbers = {name: number for number, name in enumerate(self.sprays)}
        return [[numbers[peer] for peer in spray.view] for spray in self.sprays.values()]

    def is_connected(self) -> bool:
        return largest_component(self.graph()) == len(self.sprays)


# --- the view -----------------------------------------------------------------------------


def test_view_is_a_multiset_whose_arcs_grow_older_together() -> None:
    view = PartialView()
    view.add("a")
    view.grow_older()
    view.add("b")
    view.add("a")
    view.grow_older()
    assert view.ages() == [("a", 2), ("b", 1), ("a", 1)]
    assert view.counts() == {"a": 2, "b": 1}
    assert view.oldest() == "a"
    assert view.take_oldest("a")
    assert view.ages() == [("b", 1), ("a", 1)]
    assert not view.take_oldest("c")
    assert view.take_all("a") == 1
    assert list(view) == ["b"]


def test_sample_of_a_view_is_taken_out_of_it() -> None:
    view = PartialView()
    for peer in "abcaab":
        view.add(peer)
    before = view.counts()
    taken = view.take_sample(3, random.Random(1))
    assert len(taken) == 3
    assert view.counts() + Counter(taken) == before
    assert len(view.take_sample(9, random.Random(1))) == 3


# --- joining ------------------------------------------------------------------------------


def test_newcomer_tells_its_contact_and_brings_a_arcs() -> None:
    assert make_spray("c").join("c", "job") == [Tell("c", Join("job"))]
    three = make_spray("c", a=3.0).join("c", "job")
    assert three == [Connect("me", "c"), Connect("me", "c"), Tell("c", Join("job"))]
    counts = [len(make_spray(a=1.5, seed=seed).join("c", "job")) - 1 for seed in range(300)]
    assert set(counts) == {0, 1}
    assert 100 < sum(counts) < 200


def test_contact_has_the_end_of_each_arc_open_one_to_the_newcomer() -> None:
    spray = make_spray("a", "b", "a", inview=["new"])
    assert spray.receive("new", Join("job")) == [
        Connect("a", "new"),
        Connect("b", "new"),
        Connect("a", "new"),
        Tell("new", JoinBack("job", arcs=3)),
    ]


def test_contact_that_knows_nobody_opens_arcs_for_two() -> None:
    assert make_spray(inview=["new"]).receive("new", Join()) == [Connect("me", "new")]
    with_b = make_spray(inview=["new"], a=2.0, b=1.0).receive("new", Join())
    assert Counter(with_b) == {Connect("me", "new"): 3, Connect("new", "me"): 1}


def test_contact_with_an_arc_to_the_newcomer_opens_another_instead_of_one_to_itself() -> None:
    spray = make_spray("new", "a", inview=["new"])
    assert spray.receive("new", Join()) == [Connect("me", "new"), Connect("a", "new")]


def test_who_has_no_answer_to_a_join_gets_none() -> None:
    actions = make_spray("a", inview=["new"]).receive("new", Join(None))
    assert not any(isinstance(action, Tell) for action in actions)


def test_join_counts_once_as_long_as_its_arc_lasts() -> None:
    inview = Counter(["new"])
    spray = Spray("me", inview, random.Random(1))
    spray.opened("a")
    assert spray.receive("new", Join())
    assert spray.receive("new", Join()) == []
    inview.clear()
    assert spray.receive("new", Join()) == [], "who has no arc to us is no newcomer of ours"
    inview["other"] = 1
    assert spray.receive("other", Join())
    inview["new"] = 1
    assert spray.receive("new", Join()), "it has left, and comes again"


def test_contact_of_the_newer_original_that_is_alone_has_the_newcomer_ask_for_arcs() -> None:
    spray = make_spray("c")
    spray.join("c", "job")
    assert spray.receive("c", JoinBack("another", is_alone=True)) == []
    assert spray.receive("c", JoinBack("job", is_alone=True)) == [Connect("c", "me")]
    assert spray.receive("c", JoinBack("job", is_alone=True)) == [], "once"


# --- exchanging ---------------------------------------------------------------------------


def test_exchange_is_with_the_oldest_and_gives_half_of_the_view() -> None:
    spray = make_spray("old", "a", "b", "c", "d")
    assert spray.choose_partner() == "old"
    given = spray.exchange("old")
    assert len(given) == 3
    assert HandOver("old", "old") in given
    assert len(spray.view) == 2
    assert all(isinstance(action, HandOver) and action.taker == "old" for action in given)


def test_exchange_gives_nothing_when_the_partner_is_not_in_the_view_any_more() -> None:
    spray = make_spray("old", "a")
    partner = spray.choose_partner()
    assert partner == "old"
    spray.lost("old")
    assert spray.exchange(partner) == []
    assert list(spray.view) == ["a"]


def test_partner_gives_half_of_its_view() -> None:
    spray = make_spray("a", "b", "c", inview=["p"])
    given = spray.receive("p", Exchange(arcs=5))
    assert len(given) == 2
    assert all(isinstance(action, HandOver) and action.taker == "p" for action in given)
    assert len(spray.view) == 1


def test_exchange_with_somebody_who_has_no_arc_to_us_is_refused() -> None:
    spray = make_spray("a", "b", inview=["p"])
    assert spray.receive("stranger", Exchange(inview="p-I", id="p")) == []
    assert len(spray.view) == 2


@given(SEEDS, st.integers(2, 30), st.lists(st.integers(0, 1000), max_size=60))
def test_exchanges_keep_every_arc_and_the_town_in_one_piece(
    seed: int, count: int, turns: list[int]
) -> None:
    town = Town(seed)
    town.grow(count)
    town.check()
    assert town.is_connected()
    arcs = town.count_arcs
    for turn in turns:
        name = list(town.sprays)[turn % count]
        is_empty = not town.sprays[name].view
        town.exchange(name)
        arcs += is_empty  # it has reached out
        town.check()
        assert town.count_arcs == arcs
        assert town.is_connected()


def test_exchanges_even_the_views_out() -> None:
    town = Town(3)
    town.grow(100)
    sizes = [len(spray.view) for spray in town.sprays.values()]
    assert max(sizes) - min(sizes) > 5
    for _ in range(15):
        for name in town.sprays:
            town.exchange(name)
    sizes = [len(spray.view) for spray in town.sprays.values()]
    assert max(sizes) - min(sizes) <= 4


def test_views_have_the_logarithm_of_the_number_of_peers() -> None:
    means = []
    for seed in range(5):
        town = Town(seed)
        town.add()
        while len(town.sprays) < 400:
            town.add(town.rng.choice(list(town.sprays)))
            for name in town.rng.sample(list(town.sprays), min(3, len(town.sprays))):
                town.exchange(name)
        means.append(town.count_arcs / 400)
    assert sum(means) / 5 == pytest.approx(math.log(400) + 0.08, abs=0.5)


# --- losing -------------------------------------------------------------------------------


def test_arcs_to_a_lost_peer_are_replaced_but_for_one_in_the_size_of_the_view() -> None:
    replaced = 0
    for seed in range(1000):
        spray = make_spray("a", "b", "x", "c", seed=seed)
        actions = spray.lost("x")
        assert len(spray.view) == 3
        assert all(action in [Connect("me", peer) for peer in "abc"] for action in actions)
        replaced += len(actions)
    assert 700 < replaced < 800


def test_arc_is_replaced_by_one_to_somebody_rare() -> None:
    for seed in range(50):
        spray = make_spray("a", "a", "b", "x", "x", seed=seed)
        assert set(spray.lost("x")) <= {Connect("me", "b")}


def test_only_as_many_arcs_as_are_lost_are_removed() -> None:
    spray = make_spray("a", "x", "x", "x")
    spray.lost("x", 2)
    assert spray.view.counts() == {"a": 1, "x": 1}
    assert spray.lost("nobody") == []


def test_last_arc_lost_is_replaced_by_one_to_somebody_who_has_one_to_us() -> None:
    for seed in range(20):
        spray = make_spray("x", inview=["x", "y"], seed=seed)
        assert spray.lost("x") == [Connect("me", "y")]
    assert make_spray("x", inview=["x"]).lost("x") == []
    assert make_spray("x", inview=["x"]).lost("x", 1) == [Connect("me", "x")], "it lives"
    assert make_spray("x").lost("x") == []


def test_failed_arc_is_always_replaced() -> None:
    for seed in range(20):
        assert make_spray("a", "x", seed=seed).failed("x") == [Connect("me", "a")]
    assert make_spray(inview=["y"]).failed(None) == [Connect("me", "y")]
    assert make_spray().failed("x") == []


@settings(max_examples=10)
@given(SEEDS)
def test_crash_takes_out_as_many_arcs_as_the_peer_had_brought(seed: int) -> None:
    town = Town(seed)
    town.grow(60)
    for _ in range(5):
        for name in town.sprays:
            town.exchange(name)
    before = town.count_arcs
    own = len(town.sprays["p7"].view)
    town.crash("p7")
    town.check()
    # Its own, and about one of those that led to it.
    assert own <= before - town.count_arcs <= own + 8


def test_views_shrink_with_the_town() -> None:
    shrunk = []
    for seed in range(3):
        town = Town(seed)
        town.grow(200)
        for _ in range(6):
            for name in town.sprays:
                town.exchange(name)
        before = town.count_arcs / 200
        for name in town.rng.sample(list(town.sprays), 100):
            town.crash(name)
            for other in town.rng.sample(list(town.sprays), 5):
                town.exchange(other)
        shrunk.append(before - town.count_arcs / 100)
    assert sum(shrunk) / 3 == pytest.approx(math.log(2), abs=0.25)


# --- leaving ------------------------------------------------------------------------------


def test_leaver_introduces_its_neighbours_tells_them_and_closes_its_arcs() -> None:
    spray = make_spray("a", "b", "c", inview=["x", "y"])
    actions = spray.leave()
    introductions = [action for action in actions if isinstance(action, Connect)]
    assert len(introductions) == 2  # of three, less a
    assert all(one.source in "xy" and one.target in "abc" for one in introductions)
    assert [action for action in actions if isinstance(action, Tell)] == [
        Tell("x", Leave()),
        Tell("y", Leave()),
    ]
    assert {action.peer for action in actions if isinstance(action, Close)} == set("abc")
    assert not spray.view


def test_leaver_introduces_nobody_to_itself() -> None:
    for seed in range(20):
        spray = make_spray("a", "a", "a", inview=["a", "b"], seed=seed)
        assert set(spray.leave()) >= {Connect("b", "a")}
        lonely = make_spray("a", "a", inview=["a"], seed=seed)
        assert not any(isinstance(action, Connect) for action in lonely.leave())


def test_who_has_left_opens_and_answers_nothing() -> None:
    spray = make_spray("a", inview=["x"])
    spray.leave()
    assert spray.opened("b") == [Close("b")]
    assert spray.failed("a") == []
    assert spray.reach_out() == []
    assert spray.receive("x", Exchange()) == spray.receive("x", Join("job")) == []


def test_arcs_to_a_leaver_are_closed_and_not_replaced() -> None:
    spray = make_spray("a", "x", "b", "x")
    assert spray.receive("x", Leave()) == [Close("x"), Close("x")]
    assert list(spray.view) == ["a", "b"]
    assert spray.receive("x", Leave()) == []
    last = make_spray("x", inview=["y"])
    assert last.receive("x", Leave()) == [Close("x"), Connect("me", "y")]


# --- what others may do -------------------------------------------------------------------


def test_view_is_bounded_however_many_arcs_we_are_bidden_to_open() -> None:
    spray = make_spray(*"abc", max_arcs=3)
    assert spray.opened("d") == [Close("d")]
    assert len(spray.view) == 3


def test_arc_to_ourselves_is_closed() -> None:
    assert make_spray().opened("me") == [Close("me")]


def test_job_of_the_newer_original_means_nothing() -> None:
    assert make_spray("a").receive("a", Response("job")) == []


@pytest.mark.parametrize("options", [{"a": 0.5}, {"a": math.nan}, {"b": -1}, {"max_arcs": 0}])
def test_settings_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="from 1, 0, 1 up"):
        make_spray(**options)


# --- samples and estimates ----------------------------------------------------------------


def test_sample_is_of_different_peers_from_the_view_first() -> None:
    spray = make_spray("a", "b", "a", inview=["b", "c", "d"])
    for count in range(6):
        sample = spray.sample(count)
        assert len(sample) == len(set(sample)) == min(count, 4)
        assert set(sample[:2]) <= {"a", "b"}
    with pytest.raises(ValueError, match="-1"):
        spray.sample(-1)


def test_all_peers_of_the_view_are_equally_likely_in_a_sample() -> None:
    spray = make_spray("a", "b", "b", "b", "c")
    counts = Counter(spray.sample(1)[0] for _ in range(3000))
    assert all(800 < count < 1200 for count in counts.values())


def test_size_is_estimated_by_our_views_and_those_of_partners() -> None:
    spray = make_spray(*"abcdefg", inview=["p"])
    assert spray.estimate_size() == pytest.approx(math.exp(7 - 0.0772), rel=0.01)
    spray.choose_partner()
    spray.receive("p", Exchange(arcs=5))
    assert spray.estimate_size() == pytest.approx(math.exp(6 - 0.0772), rel=0.01)


def test_estimate_forgets_what_is_long_ago() -> None:
    spray = make_spray(inview=["p"])
    for _ in range(100):
        spray.receive("p", Exchange(arcs=10))
    for _ in range(60):
        spray.receive("p", Exchange(arcs=3))
    assert spray.estimate_size() == pytest.approx(math.exp(3), rel=0.3)


def test_estimate_takes_nobodys_word_for_what_cannot_be() -> None:
    spray = make_spray("a", "b", inview=["p"])
    spray.choose_partner()
    before = spray.estimate_size()
    for arcs in (0, 257, 10**6, None):
        spray.receive("p", Exchange(arcs=arcs))
    assert spray.estimate_size() == before


def test_estimate_of_one_who_is_alone_is_one() -> None:
    assert make_spray().estimate_size() == 1
    assert make_spray(inview=["a"]).estimate_size() == 2
    assert make_spray(*("a",) * 256).estimate_size() < math.inf
