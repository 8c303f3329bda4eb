"""The frames of a simulated tree: their kinds, and how large they are."""

from __future__ import annotations

from typing import Final

KINDS: Final = (
    "dial",
    "hello",
    "offer",
    "request",
    "answer",
    "done",
    "withdrawn",
    "descent",
    "beat",
    "report",
    "pull",
    "climb",
    "return",
)
"""The frames that are counted. A request is the offer on its way from the server to the root and
at each hop; an answer goes to the server and from there to the joiner; a withdrawal is counted at
every hop, by the server's sockets or the tree's channels. Of the beats only those are counted that
make an applicant a child: the others go to and fro once a second on every link, come what may.
A climb is the request of a leaf that was pulled on its way up to the root, at each hop; a return is
what comes back to it, or is taken back, the same way. (See filling.py for these and for reports.)
"""

(
    DIAL, HELLO, OFFER, REQUEST, ANSWER, DONE, WITHDRAWN, DESCENT, BEAT, REPORT, PULL, CLIMB, RETURN
) = range(len(KINDS))  # fmt: skip

FRAME_SIZES: Final = (600, 90, 1200, 1250, 1250, 20, 110, 180, 40, 90, 40, 1250, 1250)
"""Bytes of each kind: about what aiortc's descriptions with four candidates take."""
