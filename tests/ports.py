"""Ports for programs that cannot be told to take any that is free."""

from __future__ import annotations

import random
import socket
from contextlib import closing

_PORTS = range(20_000, 32_000)
"""Below those that Linux (from 32768) and others (from 49152) hand out themselves: so that nobody
who asks for any port, or just dials, gets one before the program does, or while it is restarted."""


def free_port() -> int:
    """A port that nobody uses on 127.0.0.1, by TCP or by UDP."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with closing(socket.socket(type=kind)) as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port
