"""Python's collector of cycles, which has nothing to do in a simulation but costs much."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collector() -> Iterator[None]:
    """No cycles are looked for in this block.

    Nothing here makes any while it runs: branches, requests and events hold strings and numbers,
    and numbers take the place of references to nodes. So reference counting frees all there is to
    free, and the collector would only walk ten million live objects again and again. What else
    is left by the block, by a callback say, is collected afterwards.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
