"""How a root answers those who ask its server for a picture of the whole tree.

How one asks is in bootstrap.py. What a node says of itself, and how the root comes to know it, is
the business of nodes/; here nodes are JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.errors import OutcomeError
from trio_overlay.protocol.bootstrap import (
    AskSnapshot,
    BootstrapFrame,
    Refused,
    Withdrawn,
    encode_bootstrap,
    snapshot_parts,
)
from trio_overlay.protocol.json import JSON

MAX_QUESTIONS: Final = 16
"""Questions that a root works on at a time, whatever its server thinks."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Picture:
    """The nodes of a tree, each as its program describes it."""

    nodes: Sequence[JSON]
    count_missing: int
    """How many more are known to be there."""


Describe: TypeAlias = Callable[[float], Awaitable[Picture]]
"""Gives the picture that a root has of its tree after so many seconds. OutcomeError: none."""


class Answering:
    """One registration's answers, over its *socket*; they end with its *nursery*."""

    def __init__(self, socket: Channel, describe: Describe, nursery: trio.Nursery) -> None:
        self._socket = socket
        self._describe = describe
        self._nursery = nursery
        self._scopes: dict[str, trio.CancelScope] = {}
        """By the ids of the askers."""
        self._count_refusals = 0

    def take(self, frame: AskSnapshot | Withdrawn) -> None:
        """The server has said *frame*."""
        origin = frame.origin
        if origin is None:
            return
        if isinstance(frame, Withdrawn):
            if origin in self._scopes:
                self._scopes[origin].cancel()
        elif len(self._scopes) >= MAX_QUESTIONS:
            # A server that asks faster than it reads gets no more answers than that.
            if self._count_refusals < MAX_QUESTIONS:
                self._count_refusals += 1
                self._nursery.start_soon(self._refuse, origin)
        elif origin not in self._scopes:
            self._scopes[origin] = trio.CancelScope()
            self._nursery.start_soon(self._answer, origin, frame.timeout)

    async def _refuse(self, origin: str) -> None:
        await self._say(Refused(f"the root works on {MAX_QUESTIONS} such questions", origin))
        self._count_refusals -= 1

    async def _answer(self, origin: str, timeout: float) -> None:
        with self._scopes[origin]:
            try:
                picture = await self._describe(timeout)
            except OutcomeError as error:
                await self._say(Refused(str(error), origin))
            else:
                for part in snapshot_parts(origin, picture.nodes, picture.count_missing):
                    await self._say(part)
        del self._scopes[origin]

    async def _say(self, frame: BootstrapFrame) -> None:
        try:
            await self._socket.send(encode_bootstrap(frame))
        except trio.BrokenResourceError:
            logger.debug("the server is gone before it had an answer")
