"""Attempts at arcs between two neighbours of ours, whose messages we pass on."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import trio

from trio_overlay.errors import MalformedFrame
from trio_overlay.nodes.neighbour_link import Link
from trio_overlay.nodes.neighbourhood import Neighbourhood
from trio_overlay.protocol.arcs import Bridge, Drop, Pass, Refuse
from trio_overlay.protocol.neighbours import (
    ARCS,
    ArcEnd,
    Forward,
    decode_arc_message,
    encode_arc_message,
)

logger = logging.getLogger(__name__)

GRACE = 5.0
"""Seconds that a bridge keeps an attempt in mind longer than its ends do."""


class Bridging:
    """The attempts that one protocol bridges, each in mind for its time and no longer."""

    def __init__(self, hood: Neighbourhood, pid: str) -> None:
        self._hood = hood
        self._pid = pid
        self._bridge = Bridge(hood.peer, hood.max_attempts)
        self._scopes: dict[str, trio.CancelScope] = {}

    def __len__(self) -> int:
        return len(self._scopes)

    @property
    def attempts(self) -> Mapping[str, tuple[str, str]]:
        """Who opens and who accepts, by the tid of each attempt."""
        return self._bridge.attempts

    def take(self, link: Link, forward: Forward) -> None:
        """The neighbour on *link* wants a message passed on."""
        try:
            message = decode_arc_message(forward.message)
        except MalformedFrame as error:
            logger.info("%r wants something else passed on: %s", link, error)
            return
        if message.pid != self._pid:
            logger.info("%r wants the protocol %.80s passed on in another", link, message.pid)
            return
        verdict = self._bridge.take(
            link.peer,
            forward.from_,
            forward.to,
            message,
            lambda peer: self._hood.find_link(peer, self._pid) is not None,
        )
        match verdict:
            case Pass(peer):
                target = self._hood.find_link(forward.to, self._pid)
                assert target is not None, f"{peer} is connected"
                arrived = Forward(forward.from_, forward.to, forward.message, has_arrived=True)
                target.post(self._pid, arrived)
            case Refuse(reason):
                logger.info("%r wants what cannot be: %s", link, reason)
                if ARCS in link.extensions and not isinstance(message, ArcEnd):
                    end = ArcEnd(message.tid, forward.to, self._pid, reason)
                    said = encode_arc_message(end)
                    back = Forward(forward.to, forward.from_, said, has_arrived=True)
                    link.post(self._pid, back)
            case Drop(reason):
                logger.debug("what %r wants passed on is ignored: %s", link, reason)
        if message.tid not in self._bridge.attempts:
            self._forget(message.tid)
        elif message.tid not in self._scopes:
            scope = self._scopes[message.tid] = trio.CancelScope()
            self._hood.nursery.start_soon(self._live, message.tid, scope)

    def note_link_end(self, link: Link) -> None:
        """Nothing passes to or from a neighbour that we are not connected to."""
        if self._hood.find_link(link.end, self._pid) is None:
            for tid, ends in list(self._bridge.attempts.items()):
                if link.peer in ends:
                    self._forget(tid)

    def leave(self) -> None:
        """Forget all of them."""
        for tid in list(self._bridge.attempts):
            self._forget(tid)

    async def _live(self, tid: str, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep(self._hood.attempt_timeout + GRACE)
        if self._scopes.get(tid) is scope:
            self._forget(tid)

    def _forget(self, tid: str) -> None:
        self._bridge.forget(tid)
        scope = self._scopes.pop(tid, None)
        if scope is not None:
            scope.cancel()
