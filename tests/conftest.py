"""What all tests share: Hypothesis profiles, and the word on programs from outside."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

IS_CI = os.environ.get("CI", "").lower() in ("1", "true")

# A machine that is busy with something else is no reason for a test to fail: no deadlines.
settings.register_profile("default", deadline=None)
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,  # the same examples every time: a red run is the change's fault
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "long", deadline=None, max_examples=5_000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if IS_CI else "default"))


def unavailable(what: str) -> NoReturn:
    """Skip the test for want of *what*, or fail it: with ``CI=true`` nothing may be wanting."""
    if IS_CI:
        pytest.fail(f"{what}, and with CI=true that is no reason to skip a test", pytrace=False)
    pytest.skip(what)


def require_or_skip(*programs: str) -> str:
    """The path of the first of *programs* (names of one thing) that is on the PATH."""
    for program in programs:
        path = shutil.which(program)
        if path is not None:
            return path
    unavailable(f"{' or '.join(programs)} is not installed")
