"""What the state machines of peers with arcs share: how a story begins, and who is there before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from trio_overlay.testing.arcs_world import CALM_HEARTBEAT, GATE, ArcsWorld
from trio_overlay.testing.machine import StoryMachine
from trio_overlay.testing.world import SERVER

ArcsWorldT = TypeVar("ArcsWorldT", bound=ArcsWorld)
TIME_TO_OPEN = 3.0
"""Seconds in which the arcs are open of those who come at the beginning of a story."""


class ArcsMachine(StoryMachine[ArcsWorldT]):
    """Tells stories of a gate, and those who come by it."""

    max_nodes = 8

    def begin_arcs(self, settings: Mapping[str, object], count: int) -> None:
        """Once upon a time there was a gate, and *count* who knew each other by it.

        *settings* are those of the world; without faults nothing is lost, and all are calm.
        """
        calm = {} if self.has_faults else {"loss": 0, "heartbeat": CALM_HEARTBEAT}
        self.begin_story({**settings, **calm}, newcomers=count, pause=TIME_TO_OPEN)

    @property
    def residents(self) -> list[str]:
        return [GATE, SERVER]
