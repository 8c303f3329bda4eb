"""How much of this process one stranger, and all of them together, may take."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from trio_overlay.protocol.allowance import Allowance

MAX_HEAD_SIZE: Final = 2**14
"""Bytes of an HTTP request's head; browsers with many cookies stay below it."""

HEAD_TIMEOUT: Final = 10.0
"""Seconds for an HTTP request's head to arrive, however slowly its bytes drip."""

RESPONSE_TIMEOUT: Final = 60.0
"""Seconds for a page or file to leave."""

MAX_QUEUED_BYTES: Final = 4 * 2**20
"""What waits for a prospect that reads more slowly than others write to it."""

MAX_QUEUED_BYTES_OF_ROOT: Final = 64 * 2**20

MAX_QUEUED_BYTES_OF_ASKER: Final = 32 * 2**20
"""A picture of 100,000 nodes is 20 MiB; a root's tree gathers no more than that."""

_SPARE_DESCRIPTORS: Final = 64
"""Left to everything in the process that is no connection: listeners, files, the program around."""

_MAX_DESCRIPTORS: Final = 2**20
"""A limit over this is as good as none, and slows down whoever closes all descriptors on fork."""


def prospect_frames() -> Allowance:
    """Frames of one prospect: a handshake takes about 30, a listener has many handshakes."""
    return Allowance(capacity=1000, per_second=50)


def prospect_bytes() -> Allowance:
    """Bytes of one prospect; an offer with all its candidates is about 2 KiB."""
    return Allowance(capacity=4 * 2**20, per_second=64 * 2**10)


def raise_descriptor_limit() -> None:
    """Let this process have as many file descriptors as it may: soft limit to the hard one."""
    try:
        import resource  # not on Windows, which has no such limit
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # some systems name a hard limit they do not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def max_connections_by_descriptors() -> int:
    """How many connections there is room for, beside what else may need a descriptor."""
    try:
        import resource
    except ImportError:
        return 10_000
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = _MAX_DESCRIPTORS
    return max(1, min(soft, _MAX_DESCRIPTORS) - _SPARE_DESCRIPTORS)


class ReserveDescriptor:
    """A descriptor kept for the moment when there is none left: to take a call and say so.

    Without it a client that cannot be accepted waits in the backlog until it gives up.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self.keep()

    def keep(self) -> None:
        """Have it again, if there is one to be had."""
        if self._descriptor is None:
            with suppress(OSError):
                self._descriptor = os.open(os.devnull, os.O_RDONLY)

    def release(self) -> bool:
        """Give it up; whether there was one."""
        if self._descriptor is None:
            return False
        os.close(self._descriptor)
        self._descriptor = None
        return True
