"""How patient neighbours of any overlay are with each other when nothing is heard."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How often to see to signs of life, and how long to wait for one; in seconds.

    Whatever is heard is one. In the tree they are given unasked, as what they carry flows all the
    time; neighbours with arcs are asked for one after a silence, and need not know each other's
    intervals.
    """

    interval: float = 1.0
    timeout: float = 2.8
