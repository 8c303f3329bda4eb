"""How long state machines look for a failure, in the profiles that conftest.py has."""

from __future__ import annotations

from hypothesis import settings

LONG = 1_000
"""A profile of more examples than that is for the night."""


def how_long(stories: int, steps: int, *, long_steps: int = 60, one_in: int = 1) -> settings:
    """So many *stories* of so many *steps*; in a long profile of *long_steps*.

    And then as many as the profile has examples, or *one_in* so many of these.
    """
    profile = settings()
    if profile.max_examples <= LONG:
        return settings(stateful_step_count=steps, max_examples=stories)
    return settings(stateful_step_count=long_steps, max_examples=profile.max_examples // one_in)
