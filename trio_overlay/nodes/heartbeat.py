"""How neighbours of all overlays are watched: by signs of life, for as long as they give any."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How often to give a sign of life, or ask for one, and how long to wait for it; in seconds."""

    interval: float = 1.0
    timeout: float = 2.8
