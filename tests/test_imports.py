"""What importing the package costs: a server needs no WebRTC, and must not pay for it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

import trio_overlay
from trio_overlay import errors

HEAVY = {"aiortc", "aioice", "av", "trio_asyncio", "hypothesis", "rich", "coredis"}
"""WebRTC; the bridge that changes the program's event loop policy; what only some commands need."""


@pytest.mark.parametrize("module", ["trio_overlay", "trio_overlay.signaling.server"])
def test_importing_a_server_imports_no_webrtc(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.fail(f"{module} is gone: where is the server now?")
    assert imported_by(module) & HEAVY == set()


def test_the_check_sees_what_is_imported() -> None:
    assert imported_by("trio_overlay, trio_asyncio") & HEAVY == {"trio_asyncio"}


def test_every_error_is_a_public_name() -> None:
    names = {name for name, each in vars(errors).items() if isinstance(each, type)}
    assert names <= set(trio_overlay.__all__)
    assert sorted(trio_overlay.__all__) == sorted(set(trio_overlay.__all__))


def imported_by(modules: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after ``import`` *modules*."""
    program = f"import sys\nimport {modules}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in done.stdout.split()}
