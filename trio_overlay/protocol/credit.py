"""Credit: how two of our own peers keep a slow reader from drowning on a WebRTC data channel.

A receiver of WebRTC data cannot pause the sender, so the sender is told how much it may send. It
takes two who know this protocol, and to anybody else the channel must look like simple-peer's:

1. The initiator puts ``trio-overlay-1 NONCE`` into the data channel's `protocol`, where nobody
   else looks; the nonce is 32 random hex digits.
2. An acceptor of ours sends that nonce as its first frame. Everything it sends after it is
   *prefixed*.
3. The initiator sends whatever it likes, plain, until it sees the nonce as the very first frame
   that arrives. Then it sends the nonce too, and all it sends after it is prefixed. A first frame
   that is anything else says that the other end is foreign, and the channel stays plain for ever.

No application knows the nonce, so none can send it by chance or for mischief. A prefixed frame
is data or control, and tells by its first character: text ``d...`` and binary ``d...`` are data;
``c123`` says that data up to a total cost of 123 may be sent; ``x...`` that the sender is about
to close, and why. Others are ignored, so that later versions can say more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from trio_overlay.errors import MalformedFrame

Frame: TypeAlias = str | bytes

WINDOW: Final = 2**20
"""How much data, in cost, may be on the way to a reader of ours that has not asked for more.

Both ends start with it, and the plain frames from before the switch count. It bounds what a
connection can carry to one window a round trip: more than aiortc manages up to 80 ms.
"""

PREFIX_SIZE: Final = 1
"""How many bytes a frame grows when it is prefixed."""

MAX_REASON_SIZE: Final = 1024
"""The longest reason for closing, in characters; longer ones are cut."""

_FRAME_COST: Final = 128
_PROTOCOL: Final = re.compile(r"trio-overlay-1 ([0-9a-f]{32})")
_LIMIT: Final = re.compile(r"[0-9]{1,18}")


def size_of(frame: Frame) -> int:
    """The bytes *frame* takes on the wire; text goes as UTF-8.

    UnicodeEncodeError: text with lone surrogates, which UTF-8 cannot say.
    """
    if isinstance(frame, bytes) or frame.isascii():
        return len(frame)
    return len(frame.encode())


def cost(frame: Frame) -> int:
    """What *frame* counts for; both ends must come to the same, in whatever language.

    Its size, and what an empty one takes in memory: else nothing would bound empty frames.
    """
    return size_of(frame) + _FRAME_COST


def protocol_field(nonce: str) -> str:
    """What an initiator of ours puts into the `protocol` of its data channel."""
    return f"trio-overlay-1 {nonce}"


@dataclass(frozen=True, slots=True)
class Received:
    """What a frame that arrived means."""

    data: Frame | None = None
    """For the application."""
    reply: Frame | None = None
    """To be sent at once, before anything else."""
    farewell: str | None = None
    """The other end is about to close, for this reason."""


class Credit:
    """What one end of a data channel knows about the other, and about who may send how much.

    Control frames cost nothing and never wait. Data may be sent while `may_send`; the frame that
    crosses the limit still goes, so a reader has at most a window and one frame in its queue.
    """

    def __init__(self, nonce: str, *, is_initiator: bool) -> None:
        self._nonce = nonce
        self._is_initiator = is_initiator
        # An acceptor is made only when the other end has named itself, and has greeted it.
        self._sends_prefixed = not is_initiator
        self._receives_prefixed = False
        self._has_received = False
        self._sent = 0
        self._limit = WINDOW
        self._consumed = 0
        self._granted = WINDOW

    @classmethod
    def initiator(cls, nonce: str) -> Credit:
        """The end that opened the channel with `protocol_field(nonce)`."""
        return cls(nonce, is_initiator=True)

    @classmethod
    def acceptor(cls, protocol: str) -> Credit | None:
        """The end that was given a channel with this *protocol*; None for a foreign initiator.

        It sends `greeting` before anything else.
        """
        match = _PROTOCOL.fullmatch(protocol)
        return None if match is None else cls(match[1], is_initiator=False)

    @property
    def greeting(self) -> Frame:
        """The first frame of an acceptor."""
        return self._nonce

    @property
    def is_mutual(self) -> bool:
        """Whether the other end is known to be one of ours."""
        return self._sends_prefixed

    @property
    def is_settled(self) -> bool:
        """Whether it is known if the other end is one of ours; an initiator has to wait for it."""
        return self._sends_prefixed or self._has_received

    @property
    def may_send(self) -> bool:
        """Whether the other end has room for another frame, as far as we can know."""
        return not self._sends_prefixed or self._sent < self._limit

    def outgoing(self, data: Frame) -> Frame:
        """The frame to send for *data*, which is counted as sent."""
        self._sent += cost(data)
        if not self._sends_prefixed:
            return data
        return "d" + data if isinstance(data, str) else b"d" + data

    def farewell(self, reason: str) -> Frame | None:
        """The frame that says why this end closes; None if the other end would not understand."""
        return "x" + reason[:MAX_REASON_SIZE] if self._sends_prefixed else None

    def incoming(self, frame: Frame) -> Received:
        """What *frame* means; call it with every frame, in order.

        MalformedFrame: the other end is one of ours and this is none of its frames.
        """
        if self._receives_prefixed:
            return self._prefixed(frame)
        is_first, self._has_received = not self._has_received, True
        if frame != self._nonce or (self._is_initiator and not is_first):
            return Received(data=frame)
        self._receives_prefixed = True
        if self._is_initiator:
            self._sends_prefixed = True
            return Received(reply=self._nonce)
        return Received()

    def consumed(self, data: Frame) -> Frame | None:
        """Count *data* as taken by the application; a frame to send at once, now and then."""
        self._consumed += cost(data)
        if not self._sends_prefixed or self._consumed + WINDOW - self._granted < WINDOW // 4:
            return None
        self._granted = self._consumed + WINDOW
        return f"c{self._granted}"

    def _prefixed(self, frame: Frame) -> Received:
        if not frame:
            raise MalformedFrame("an empty frame where every frame has a prefix")
        if isinstance(frame, bytes):
            return Received(data=frame[1:]) if frame[:1] == b"d" else Received()
        match frame[0]:
            case "d":
                return Received(data=frame[1:])
            case "c":
                if _LIMIT.fullmatch(frame, 1) is None:
                    raise MalformedFrame(f"credit is a number, not {frame[1:20]!r}")
                self._limit = max(self._limit, int(frame[1:]))
                return Received()
            case "x":
                return Received(farewell=frame[1 : 1 + MAX_REASON_SIZE])
            case _:
                return Received()
