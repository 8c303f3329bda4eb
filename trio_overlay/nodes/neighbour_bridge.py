"""Attempts at arcs between two neighbours of ours, whose messages we pass on."""

from __future__ import annotations

import logging

import trio

from trio_overlay.errors import MalformedFrame
from trio_overlay.nodes.neighbour_link import Link
from trio_overlay.nodes.neighbourhood import Neighbourhood
from trio_overlay.protocol.arcs import Bridge, Drop, Pass, Refuse
from trio_overlay.protocol.crossings import Crossings
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
    """The attempts that one protocol bridges, each in mind for its time and no longer.

    What may pass is decided in protocol/arcs.py; what is kept in mind is a table like that of the
    tree's roads (protocol/crossings.py). Unlike there nobody is told when a neighbour is lost: the
    originals have no word for it, and what both ends have said before may be enough.
    """

    def __init__(self, hood: Neighbourhood, pid: str) -> None:
        self._hood = hood
        self._pid = pid
        self._bridge = Bridge(hood.peer, hood.max_attempts)

    def __len__(self) -> int:
        return len(self.crossings)

    @property
    def crossings(self) -> Crossings[str]:
        """Who opens and who accepts, each with the tid of the attempt; now."""
        self._bridge.crossings.expire(trio.current_time())
        return self._bridge.crossings

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
        now = trio.current_time()
        self._bridge.crossings.expire(now)
        verdict = self._bridge.take(
            link.peer,
            forward.from_,
            forward.to,
            message,
            lambda peer: self._hood.find_link(peer, self._pid) is not None,
            expires_at=now + self._hood.attempt_timeout + GRACE,
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

    def note_link_end(self, link: Link) -> None:
        """Nothing passes to or from a neighbour that we are not connected to."""
        if self._hood.find_link(link.end, self._pid) is None:
            self._bridge.crossings.lose(link.peer)

    def leave(self) -> None:
        """Forget all of them."""
        self._bridge.crossings.clear()
