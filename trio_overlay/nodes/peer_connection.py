"""The connection to one other peer, as the application sees it."""

from __future__ import annotations

import logging
import weakref
from dataclasses import dataclass
from typing import Final

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.errors import MalformedFrame, NotSupported, SendTimeout
from trio_overlay.nodes.closing import close_channel
from trio_overlay.nodes.streams import Stream, Substream
from trio_overlay.protocol.peer import BYTES, Message, decode_message, encode_message

DEFAULT_SEND_TIMEOUT: Final = 30.0
MAX_UNREAD: Final = 256 << 10
"""Bytes of messages that wait for their reader before the other peer has to wait, too."""
MIN_COST: Final = 256
"""What a message counts for at least: a small one takes more memory than its bytes."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PeerMessage:
    """What another peer sent."""

    connection: Connection
    data: Message
    """A JSON value, or bytes."""

    @property
    def sender(self) -> str:
        """The id of who sent it."""
        return self.connection.id


class Connection:
    """The open connection to another peer: messages both ways; made by `Peer.connect`.

    Messages come out of the peer's `messages`, until somebody reads from this connection itself,
    by iterating it or by `receive`; from then on they come out here, beginning with those that
    nobody has read there yet. Once somebody reads, messages wait for their reader, and the other
    peer waits with them (a peer of linkup's, which cannot, loses the connection when it has sent
    too much); before, only the newest are kept.
    """

    def __init__(
        self,
        identifier: str,
        channel: Channel,
        *,
        attempt: str | None,
        is_initiator: bool,
        extensions: frozenset[str],
        messages: Stream[PeerMessage],
    ) -> None:
        self.id = identifier
        """The id of the other peer."""
        self.is_initiator = is_initiator
        """Whether this end opened the connection; of two who did at a time, one."""
        self.extensions = extensions
        """What the other peer understands beyond linkup; empty for linkup's own."""
        self.attempt = attempt
        self._channel = channel
        itself = weakref.ref(self)  # or Python would have to look for cycles to free it
        self._messages = Substream(messages, lambda message: message.connection is itself())
        self._unread = 0
        self._has_room = trio.Event()
        self._scope = trio.CancelScope()
        self._close_reason: str | None = None
        self._is_closed_here = False
        self._closed = trio.Event()

    def __repr__(self) -> str:
        state = "open" if self.is_open else f"closed: {self._close_reason}"
        return f"<Connection to {self.id}, {state}>"

    @property
    def is_open(self) -> bool:
        return self._close_reason is None

    @property
    def close_reason(self) -> str | None:
        """Why this connection ended; None while it is open."""
        return self._close_reason

    async def send(self, message: Message, *, timeout: float = DEFAULT_SEND_TIMEOUT) -> None:
        """Send *message*, a JSON value or bytes; wait while the peer reads more slowly than that.

        Delivered whole and in order, or not at all. Returning means handed to the transport, not
        received.

        SendTimeout: the peer has not made room within *timeout* seconds; nothing was sent.
        TypeError, ValueError: *message* is neither a JSON value nor bytes.
        NotSupported: it is bytes, and the other is a peer of linkup's.
        MessageTooLarge: it is over the limit of the other end; nothing was sent.
        trio.BrokenResourceError: the connection is gone; *message* may or may not have arrived.
        trio.ClosedResourceError: this end was closed.
        """
        frame = encode_message(message)
        if isinstance(frame, bytes) and BYTES not in self.extensions:
            raise NotSupported(f"the peer {self.id} takes JSON values, and no bytes")
        # Cancelled together with its peer, it is cancelled and not closed.
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        with trio.move_on_after(timeout) as limit:
            try:
                await self._channel.send(frame)
            except trio.ClosedResourceError:
                self._check_open()  # we closed it, but perhaps because the other end had
                raise
        if limit.cancelled_caught:
            raise SendTimeout(f"the peer {self.id} took nothing for {timeout:g} s")

    async def receive(self) -> Message:
        """The peer's next message; waits for one. Cancelled, none is lost.

        trio.EndOfChannel: the connection is closed, by whichever end, and all was read.
        """
        return (await self._messages.receive()).data

    def __aiter__(self) -> Connection:
        return self

    async def __anext__(self) -> Message:
        return (await self._messages.__anext__()).data

    async def aclose(self, reason: str = "closed by the application") -> None:
        """Close the connection; what was sent before still leaves, within a short time limit.

        Idempotent. Cancelled, it closes all the same.
        """
        self._is_closed_here = self._is_closed_here or self.is_open
        self.end(reason)
        await self._closed.wait()

    # What follows is for the peer.

    def end(self, reason: str) -> None:
        """Close, and let `run` return; the first *reason* given is the one that counts."""
        if self._close_reason is None:
            self._close_reason = reason
            self._scope.cancel()

    def release(self, size: int) -> None:
        """A message of *size* bytes left its stream."""
        self._unread -= size
        if self._unread < MAX_UNREAD:
            self._has_room.set()

    async def run(self) -> None:
        """Live until either end closes or this is cancelled; then close for good."""
        try:
            with self._scope:
                await self._read()
        finally:
            self._is_closed_here = self._is_closed_here or self.is_open
            self.end("the peer left")
            await close_channel(self._channel, self._close_reason or "")
            self._messages.close()
            self._closed.set()

    async def _read(self) -> None:
        while True:
            try:
                frame = await self._channel.receive()
                data = decode_message(frame)
            except trio.EndOfChannel:
                self.end(self._channel.close_reason or "closed by the other peer")
                return
            except trio.BrokenResourceError:
                self.end(self._channel.close_reason or "the connection was lost")
                return
            except MalformedFrame as error:
                logger.warning("the peer %s broke the protocol: %s", self.id, error)
                self.end(f"it broke the protocol: {error}")
                return
            size = max(len(frame), MIN_COST)
            self._unread += size
            self._messages.put(PeerMessage(self, data), size)
            while self._unread >= MAX_UNREAD and self._messages.has_reader:
                self._has_room = trio.Event()
                await self._has_room.wait()

    def _check_open(self) -> None:
        if self._close_reason is None:
            return
        if self._is_closed_here:
            raise trio.ClosedResourceError(self._close_reason)
        raise trio.BrokenResourceError(self._close_reason)
