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
