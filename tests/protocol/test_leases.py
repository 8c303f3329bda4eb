"""When a claim counts, and when it is over."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_overlay.protocol.leases import MARGIN, Leases

LEASE = 10.0
HELD_FOR = LEASE * (1 - MARGIN)


def test_a_lease_counts_from_the_asking_and_ends_a_margin_early() -> None:
    leases = Leases(LEASE)
    claim = leases.ask("x", "t")
    assert leases.next_lapse_at == math.inf
    assert leases.grant(claim, asked_at=100, now=104)
    assert leases.next_lapse_at == 100 + HELD_FOR
    assert leases.lapse(100 + HELD_FOR - 0.001) == []
    assert leases.lapse(100 + HELD_FOR) == [claim]
    assert claim.is_over
    assert leases.get("x") is None
    assert leases.next_lapse_at == math.inf


def test_an_answer_that_comes_too_late_grants_nothing() -> None:
    leases = Leases(LEASE)
    claim = leases.ask("x", "t")
    assert not leases.grant(claim, asked_at=100, now=100 + HELD_FOR)
    assert not claim.is_granted


def test_a_renewal_moves_the_end_and_an_old_one_does_not_move_it_back() -> None:
    leases = Leases(LEASE)
    claim = leases.ask("x", "t")
    assert leases.grant(claim, asked_at=100, now=100)
    assert leases.grant(claim, asked_at=103, now=103)
    assert leases.grant(claim, asked_at=101, now=104)
    assert leases.lapse(101 + HELD_FOR) == []
    assert leases.lapse(103 + HELD_FOR) == [claim]
    assert not leases.grant(claim, asked_at=112, now=112)


def test_what_ended_is_owed_to_the_store_for_a_lease_or_until_settled() -> None:
    leases = Leases(LEASE)
    for name in ("a", "b", "c"):
        leases.ask(name, f"token of {name}")
    for name, now in (("a", 0), ("b", 5), ("c", 6)):
        claim = leases.get(name)
        assert claim is not None
        leases.end(claim, now)
        leases.end(claim, now + 100)  # once is enough
    assert leases.debts(9) == [(name, f"token of {name}") for name in ("a", "b", "c")]
    leases.settle(["token of b", "unknown"])
    assert leases.debts(10) == [("c", "token of c")]
    assert leases.debts(16) == []


def test_an_id_is_claimed_once_at_a_time() -> None:
    leases = Leases(LEASE)
    leases.ask("x", "1")
    with pytest.raises(AssertionError):
        leases.ask("x", "2")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "grant", "end", "pass"]),
            st.sampled_from("xyz"),
            st.floats(0, 8),
        ),
        max_size=40,
    )
)
def test_nothing_is_held_past_its_end_in_whatever_order_answers_come(
    steps: list[tuple[str, str, float]],
) -> None:
    leases, now = Leases(LEASE), 0.0
    asked: list[tuple[str, float]] = []
    for verb, name, seconds in steps:
        claim = leases.get(name)
        match verb:
            case "ask" if claim is None:
                leases.ask(name, f"{name} {now} {len(asked)}")
                asked.append((name, now))
            case "ask":
                asked.append((name, now))
            case "grant" if asked and claim is not None:
                _, asked_at = asked.pop(int(seconds) % len(asked))
                leases.grant(claim, asked_at, now)
            case "end" if claim is not None:
                leases.end(claim, now)
            case "pass":
                now += seconds
                leases.lapse(now)
        held = leases.to_renew()
        assert all(each.is_granted and not each.is_over for each in held)
        assert all(each.expires_at > now for each in held)
        assert leases.next_lapse_at == min((each.expires_at for each in held), default=math.inf)
        assert leases.count == len(held)
