"""pytest fixtures for async tests, as pytest-trio and anyio's plugin run them.

Into a ``conftest.py``: ``pytest_plugins = ["trio_overlay.testing.fixtures"]``. Who has neither
plugin makes a plain test of an async function with `virtual_test`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import trio
from trio.testing import MockClock

from trio_overlay.testing.determinism import deterministic_trio
from trio_overlay.testing.network import VirtualNetwork
from trio_overlay.testing.signaling import SignalingHost, open_signaling


@pytest.fixture
def virtual_clock() -> Iterator[trio.abc.Clock]:
    """A clock that jumps over all waiting; and tasks are scheduled the same way each time.

    With pytest-trio, tests that take it as an argument themselves run under it. With anyio's
    plugin, those do for which the fixture ``anyio_backend`` gives
    ``("trio", {"clock": virtual_clock})``.
    """
    with deterministic_trio():
        yield MockClock(autojump_threshold=0)


@pytest.fixture
async def virtual_network(virtual_clock: trio.abc.Clock) -> AsyncIterator[VirtualNetwork]:
    """A `VirtualNetwork` for this test."""
    if trio.lowlevel.current_clock() is not virtual_clock:
        pytest.fail(
            "this test runs in real time: have it take virtual_clock as an argument, or, with "
            "anyio's plugin, have anyio_backend give ('trio', {'clock': virtual_clock})",
            pytrace=False,
        )
    async with VirtualNetwork() as network:
        yield network


@pytest.fixture
async def signaling(virtual_network: VirtualNetwork) -> AsyncIterator[SignalingHost]:
    """The signaling server on the test's `virtual_network`."""
    async with open_signaling(virtual_network) as host:
        yield host
