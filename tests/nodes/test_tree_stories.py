"""Stories that have failed once, as short as they could be made; each says what was wrong.

They were told by `TreeMachine` (``trio-overlay fuzz --overlay tree``), and the world checks in each
all that it checks in any.
"""

from __future__ import annotations

from trio_overlay.testing.tree_world import replay


def test_root_that_is_replaced_and_is_back_at_once_issues_each_number_once() -> None:
    """A replaced root goes on until it has a place below the new one. When it was made the root
    again before, a second task issued numbers beside the first, and with each change one more."""
    replay(
        """
        seed=0 max_degree=1
        n1 takes_over at 0 s
        n1 crashes at 0.3 s
        """
    )


def test_pulls_that_reached_nobody_do_not_delay_those_that_would() -> None:
    """The root counted the leaves below an applicant, which no pull can reach. When n9 had taken
    over and the former root came below it with n4 and n5, again and again in vain, each such round
    doubled the pause before the next, up to half a minute."""
    replay(
        """
        seed=0 max_degree=2
        n4 joins at 0 s
        n5 joins at 0 s
        n9 becomes_root at 1 s
        n1,server loses n3,n4,n5,n6,n8,n9,root at 1 s
        n1,server regains n3,n4,n5,n6,n8,n9,root at 3.7 s
        signals get_lost 100% at 3.7 s
        server crashes at 4.8 s
        server restarts at 5.3 s
        time passes at 47.3 s
        """
    )


def test_a_request_that_comes_by_another_way_once_more_is_counted() -> None:
    """A node that has moved may get a request of its new parent that it had of the former. It did
    not count that one as seen, and the parent took a place below it for taken for ever."""
    replay(
        """
        seed=215 max_degree=2
        n1 joins at 0 s
        n2 joins at 0 s
        n3 joins at 0 s
        n4 joins at 0 s
        n5 joins at 0 s
        n4 leaves at 1 s
        n6 joins at 1 s
        n7 joins at 1 s
        n8 joins at 1 s
        n9 joins at 1 s
        n10 joins at 1 s
        n11 joins at 1 s
        n12 joins at 1.9 s
        n13 joins at 1.9 s
        n14 joins at 2.4 s
        n15 joins at 2.4 s
        n16 joins at 2.4 s
        n3 leaves at 3.4 s
        n10 leaves at 5.4 s
        n5 leaves at 6.1 s
        """
    )


def test_nobody_waits_to_be_introduced_by_a_parent_that_is_gone() -> None:
    """A node whose standby connection had ended waited up to 15 s until it would ask its parent for
    another one, and did so although the parent was gone."""
    replay(
        """
        seed=0 max_degree=1
        n1 takes_over at 0 s
        server crashes at 0.1 s
        n2 becomes_root at 0.1 s
        """
    )


def test_applicant_that_fails_at_a_leaver_does_not_end_it() -> None:
    """Somebody waited for that applicant, and was struck off a list that was gone: a KeyError."""
    replay(
        """
        seed=999 max_degree=2
        n1 joins at 0.2 s
        n2 joins at 0.2 s
        n3 joins at 0.2 s
        n4 joins at 0.2 s
        n5 joins at 0.4 s
        n6 joins at 0.4 s
        n7 joins at 0.4 s
        n8 joins at 0.4 s
        n9 joins at 0.4 s
        n10 joins at 0.4 s
        n1 withdraws at 0.85 s
        n11 joins at 1.55 s
        n12 joins at 1.55 s
        n3 leaves at 4.55 s
        n13 joins at 5.95 s
        n14 joins at 5.95 s
        n15 joins at 7.35 s
        n16 joins at 9.25 s
        n17 joins at 9.25 s
        n14 leaves at 10.45 s
        n10 leaves at 12.05 s
        n2 leaves at 13.05 s
        n7 leaves at 14.25 s
        n5 leaves at 16.25 s
        """
    )


def test_whoever_brings_no_places_that_can_be_counted_brings_none() -> None:
    """What a node brings is counted down to the 24th level. Below a longer chain there was nothing,
    and who said so was taken for a node of the old protocol, that brings ten."""
    joins = "\n".join(f"n{number} joins at {3 * number} s" for number in range(1, 28))
    replay(f"max_degree=1\n{joins}\nn2 leaves at 101 s")
