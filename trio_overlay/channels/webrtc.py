"""Peer connections and their channels over WebRTC, on aiortc.

Everything that waits for aiortc is an asyncio task, `_Driver`; the Trio side only looks at what
aiortc's events have left for it, and parks when that is nothing. Whatever needs more than aiortc's
public interface is in `aiortc_internals.py`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from enum import Enum, auto
from typing import Final, NoReturn

import trio
from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.exceptions import InvalidStateError
from aiortc.sdp import candidate_from_sdp

from trio_overlay.channels import aiortc_internals
from trio_overlay.channels.bridge import Bridge, BridgeChoice, open_bridge
from trio_overlay.channels.channel import Channel, Frame
from trio_overlay.channels.internet import IceServer
from trio_overlay.channels.network import PeerConnection
from trio_overlay.channels.sdp import Description, read_description, usable_candidate
from trio_overlay.errors import ConnectionFailed, MalformedFrame, MessageTooLarge
from trio_overlay.protocol.credit import PREFIX_SIZE, Credit, cost, protocol_field, size_of
from trio_overlay.protocol.signals import Answer, Candidate, Irrelevant, Offer, Signal

MAX_FRAME_SIZE: Final = 262_144
"""The largest frame; simple-peer breaks at one byte more."""

MAX_SIGNALS: Final = 256
"""How many signals a peer connection takes; an honest end sends one or two dozen."""

MAX_CANDIDATES: Final = 48
"""How many of them aiortc is given: each costs checks, sent to wherever the stranger said."""

LINGER: Final = 2.0
"""Seconds a closing channel waits for more of its last frames to arrive."""

MAX_LINGER: Final = 10.0
"""Seconds it waits in all: over a slow network a full buffer takes its time, but the other end may
also be one that confirms a byte now and then to hold us up."""

GREETING_TIMEOUT: Final = 0.2
"""Seconds that an initiator which closes before it has heard anything waits for the acceptor to say
that it is one of ours, and would understand a reason. It says so as soon as the channel is open."""

ABANDON: Final = 1.0
"""Seconds that aiortc has to close a connection before its sockets are shut under it."""

_SEND_BUFFER: Final = 512 * 1024
"""A frame is taken when less than this waits in aiortc for the network."""

_RECEIVE_BUFFER: Final = 4 * 2**20
"""What waits for our reader at most, in cost. Our own peers never come near it."""

_MAX_MESSAGE_SIZE: Final = re.compile(r"(?m)^a=max-message-size:\d+")

_logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_webrtc_peer(
    *, initiator: bool, ice_servers: Sequence[IceServer] = (), bridge: BridgeChoice = "auto"
) -> AsyncIterator[WebRTCPeer]:
    """One end of a WebRTC connection, as `Network.open_peer` says.

    Leaving the block closes the channel, politely unless cancelled, and then everything else;
    that takes at most `LINGER` and a second or two with a remote that no longer answers, and
    `MAX_LINGER` with one that is slow.
    """
    async with open_bridge(bridge) as the_bridge:
        peer = WebRTCPeer(the_bridge, initiator=initiator, ice_servers=ice_servers)
        try:
            yield peer
        finally:
            try:
                if peer.channel is not None:
                    await peer.channel.aclose()
            finally:
                with trio.CancelScope(shield=True):
                    await peer.shut()


class WebRTCPeer(PeerConnection):
    """A peer connection on aiortc; `open_webrtc_peer` makes and ends it."""

    def __init__(
        self, bridge: Bridge, *, initiator: bool, ice_servers: Sequence[IceServer]
    ) -> None:
        self.channel: WebRTCChannel | None = None  # once it is open
        self._bridge = bridge
        self._is_initiator = initiator
        self._changed = trio.lowlevel.ParkingLot()
        self._signals_taken = 0
        self._to_say: deque[Signal] = deque()
        self._has_said_all = False
        self._failure: tuple[str, BaseException | None] | None = None
        self._driver = _Driver(self, bridge, initiator=initiator, ice_servers=ice_servers)

    async def next_signal(self) -> Signal:
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self._to_say:
                return self._to_say.popleft()
            if self._failure is not None:
                self._raise_failure()
            if self._has_said_all or self.channel is not None:
                raise trio.EndOfChannel
            await self._changed.park()

    def signal_nowait(self, signal: Signal) -> None:
        if self.channel is not None or self._failure is not None:
            return
        self._signals_taken += 1
        if self._signals_taken > MAX_SIGNALS:
            self.fail(f"the other end sent more than {MAX_SIGNALS} signals")
            return
        match signal:
            case Offer() if self._is_initiator:
                self.fail("the other end sent an offer where an answer belongs")
            case Answer() if not self._is_initiator:
                self.fail("the other end sent an answer where an offer belongs")
            case Offer(sdp) | Answer(sdp):
                try:
                    self._driver.describe_remote(read_description(sdp))
                except MalformedFrame as error:
                    self.fail(f"the other end's description cannot be used: {error}", error)
            case Candidate(line):
                if (usable := usable_candidate(line)) is not None:
                    self._driver.add_candidate(usable)
            case Irrelevant():
                pass

    async def connected(self) -> Channel:
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self.channel is not None:
                return self.channel
            if self._failure is not None:
                self._raise_failure()
            await self._changed.park()

    # --- for the driver and open_webrtc_peer ---

    def say(self, signal: Signal) -> None:
        self._to_say.append(signal)
        # aiortc gathers its candidates before it describes itself: there is nothing to trickle.
        self._has_said_all = True
        self._changed.unpark_all()

    def opened(self, channel: WebRTCChannel) -> None:
        if self.channel is None and self._failure is None:
            self.channel = channel
            self._changed.unpark_all()

    def fail(self, message: str, cause: BaseException | None = None) -> None:
        if self.channel is None and self._failure is None:
            self._failure = (message, cause)
            self._to_say.clear()
            self._changed.unpark_all()

    async def shut(self) -> None:
        self.fail("this end was closed")
        await self._bridge.run(self._driver.shut)

    def _raise_failure(self) -> NoReturn:
        assert self._failure is not None
        message, cause = self._failure
        raise ConnectionFailed(message) from cause


class _End(Enum):
    """Why a channel is over."""

    LOCAL = auto()  # closed here
    REMOTE = auto()  # closed by the other end, in an orderly way
    BROKEN = auto()


class WebRTCChannel(Channel):
    """An open data channel.

    Between our own peers a slow reader holds the writer up, and reasons for closing are told. A
    foreign writer cannot be held up: when `_RECEIVE_BUFFER` is full the channel breaks. Foreign
    readers drop empty frames (simple-peer does); our own take them.
    """

    def __init__(
        self, bridge: Bridge, driver: _Driver, data_channel: RTCDataChannel, credit: Credit | None
    ) -> None:
        self.max_frame_size = self._remote_limit = MAX_FRAME_SIZE
        self._bridge = bridge
        self._driver = driver
        self._data_channel = data_channel
        self._credit = credit  # None: the other end is foreign
        self._arrived: deque[Frame] = deque()
        self._arrived_cost = 0
        self._handed_over = 0  # bytes that went to asyncio and not yet to aiortc
        self._end: _End | None = None
        self._reason: str | None = None
        self._is_receiving = False
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()
        self._is_settled = trio.Event()  # something has arrived, or nothing will
        self._is_gone = trio.Event()  # both directions of the data channel are closed
        data_channel.bufferedAmountLowThreshold = _SEND_BUFFER // 2
        data_channel.on("message", self._message_arrived)
        data_channel.on("bufferedamountlow", self._writable.unpark_all)
        data_channel.on("close", self._data_channel_closed)

    @property
    def close_reason(self) -> str | None:
        return self._reason

    async def send(self, value: Frame) -> None:
        size = self._checked_size(value)
        await trio.lowlevel.checkpoint_if_cancelled()
        has_waited = False
        while self._end is None and not self._has_room():
            await self._writable.park()
            has_waited = True
        end = self._end
        if end is None:
            # From here on the frame goes whole, so there must be no more chance to be cancelled.
            self._hand_over_data(value, size)
        if not has_waited:
            # Who has the last frame that it waited for may hang up before we run again. That is
            # no failure of this frame.
            await trio.lowlevel.cancel_shielded_checkpoint()
        self._raise_after(end)

    def send_nowait(self, value: Frame) -> None:
        size = self._checked_size(value)
        self._raise_after(self._end)
        if len(self._writable) or not self._has_room():
            raise trio.WouldBlock
        self._hand_over_data(value, size)

    async def receive(self) -> Frame:
        if self._is_receiving:
            raise trio.BusyResourceError("another task is receiving from this channel")
        await trio.lowlevel.checkpoint_if_cancelled()
        has_waited = False
        self._is_receiving = True
        try:
            while self._end is not _End.LOCAL and not self._arrived and self._end is None:
                await self._readable.park()
                has_waited = True
        finally:
            self._is_receiving = False
        frame: Frame | None = None
        if self._arrived and self._end is not _End.LOCAL:
            frame = self._arrived.popleft()
            self._arrived_cost -= cost(frame)
            if self._credit is not None and (more := self._credit.consumed(frame)) is not None:
                self._hand_over(more, 0)
        if not has_waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        if frame is not None:
            return frame
        match self._end:
            case _End.LOCAL:
                raise trio.ClosedResourceError(self._reason)
            case _End.REMOTE:
                raise trio.EndOfChannel(self._reason)
            case _:
                raise trio.BrokenResourceError(self._reason)

    async def aclose(self, reason: str = "") -> None:
        if self._end is None or self._end is _End.REMOTE:
            was_open = self._end is None
            self._ended(_End.LOCAL, reason or "closed by this end")
            if was_open:
                try:
                    if self._credit is not None and not self._credit.is_settled:
                        with trio.move_on_after(GREETING_TIMEOUT):
                            await self._is_settled.wait()
                finally:
                    self._bridge.post(self._say_farewell, reason)
        elif self._end is _End.BROKEN:
            self._end = _End.LOCAL  # what is called on it now is the caller's mistake
        with trio.move_on_after(MAX_LINGER):
            await self._linger()
        self._bridge.post(self._driver.shut_soon)
        await trio.lowlevel.checkpoint()

    # --- Trio's side ---

    async def _linger(self) -> None:
        """Wait until all has arrived, or no more of it does."""
        before = -1
        while not self._is_gone.is_set() and (confirmed := self._driver.confirmed()) != before:
            before = confirmed
            with trio.move_on_after(LINGER):
                await self._is_gone.wait()

    def _checked_size(self, value: Frame) -> int:
        if not isinstance(value, str | bytes):
            raise TypeError(f"a frame is str or bytes, not {type(value).__name__}")
        if len(value) > self.max_frame_size or (size := size_of(value)) > self.max_frame_size:
            raise MessageTooLarge(
                f"a frame of {len(value)} {'characters' if isinstance(value, str) else 'bytes'}; "
                f"the other end takes {self.max_frame_size} bytes"
            )
        return size

    def _raise_after(self, end: _End | None) -> None:
        """Nothing can be sent after the *end*, if that is one."""
        if end is _End.LOCAL:
            raise trio.ClosedResourceError(self._reason)
        if end is not None:
            raise trio.BrokenResourceError(self._reason)

    def _has_room(self) -> bool:
        if self._credit is not None and not self._credit.may_send:
            return False
        return self._handed_over + self._data_channel.bufferedAmount < _SEND_BUFFER

    def _hand_over_data(self, value: Frame, size: int) -> None:
        self._hand_over(value if self._credit is None else self._credit.outgoing(value), size)

    def _hand_over(self, raw: Frame, size: int) -> None:
        self._handed_over += size
        self._bridge.post(self._send_now, raw, size)

    def _ended(self, end: _End, reason: str) -> None:
        if self._end is None:
            self._reason = reason
        if self._end is None or end is _End.LOCAL:
            self._end = end
        if end is _End.LOCAL:
            self._arrived.clear()
        self._readable.unpark_all()
        self._writable.unpark_all()

    # --- called in asyncio ---

    def greet(self) -> None:
        """Say that we are one of ours, to an initiator that is."""
        assert self._credit is not None
        self._send_now(self._credit.greeting, 0)

    def obey(self, remote_limit: int) -> None:
        """Send nothing larger than what the remote's description says it takes."""
        self._remote_limit = remote_limit
        self._limit_frames()

    def _limit_frames(self) -> None:
        # Our own peers announce a byte more than MAX_FRAME_SIZE, so with them the prefix costs
        # nothing. Were there one that announces less, its limit would shrink when it is known.
        is_prefixed = self._credit is not None and self._credit.is_mutual
        self.max_frame_size = max(
            0, min(MAX_FRAME_SIZE, self._remote_limit - (PREFIX_SIZE if is_prefixed else 0))
        )

    def lost(self, reason: str) -> None:
        self._ended(_End.BROKEN, reason)
        self._is_settled.set()
        self._is_gone.set()

    def _send_now(self, raw: Frame, size: int) -> None:
        self._handed_over -= size
        try:
            self._data_channel.send(raw)
        except InvalidStateError:
            # The remote has begun to close; "close" comes next and tells everybody.
            _logger.debug("a frame came too late for a channel that is closing")

    def _message_arrived(self, raw: Frame) -> None:
        if size_of(raw) > MAX_FRAME_SIZE + PREFIX_SIZE:
            self._break(f"the other end sent a frame of {size_of(raw)} bytes")
            return
        if self._credit is None:
            self._data_arrived(raw)
            return
        try:
            meaning = self._credit.incoming(raw)
        except MalformedFrame as error:
            self._break(f"the other end broke the protocol of the channel: {error}")
            return
        if meaning.reply is not None:
            # Behind the plain frames that are on their way to aiortc, or it would overtake them.
            self._hand_over(meaning.reply, 0)
            self._limit_frames()
        if meaning.farewell is not None:
            self._ended(_End.REMOTE, meaning.farewell or "closed by the other end")
        if meaning.data is not None:
            self._data_arrived(meaning.data)
        else:
            self._writable.unpark_all()
        self._is_settled.set()

    def _data_arrived(self, frame: Frame) -> None:
        if self._end is not None:
            return
        self._arrived.append(frame)
        self._arrived_cost += cost(frame)
        if self._arrived_cost > _RECEIVE_BUFFER:
            self._break(
                f"reader too slow: {len(self._arrived)} frames with {self._arrived_cost} bytes "
                "waited to be received"
            )
        self._readable.unpark()

    def _data_channel_closed(self) -> None:
        if self._driver.is_cut_off():
            self.lost("the other end no longer answers")
        else:
            self._ended(_End.REMOTE, "closed by the other end")
            self._is_settled.set()
            self._is_gone.set()

    def _say_farewell(self, reason: str) -> None:
        if self._credit is not None and (farewell := self._credit.farewell(reason)) is not None:
            self._send_now(farewell, 0)
        # aiortc sends what is queued first, and the remote confirms when it has it all.
        self._data_channel.close()

    def _break(self, reason: str) -> None:
        if self._end is not None:
            return
        self._ended(_End.BROKEN, reason)
        self._say_farewell(reason)
        # The other end may not care, and go on sending.
        self._bridge.loop.call_later(LINGER, self._driver.shut_soon)


class _Driver:
    """Asyncio's half of a peer connection: one task that owns an aiortc peer connection.

    The task is never cancelled: aiortc and aioice lose sockets when they are cancelled while they
    gather candidates. It is told to stop, and everything it may wait for is ended.
    """

    def __init__(
        self,
        peer: WebRTCPeer,
        bridge: Bridge,
        *,
        initiator: bool,
        ice_servers: Sequence[IceServer],
    ) -> None:
        self._peer = peer
        self._bridge = bridge
        self._is_initiator = initiator
        self._ice_servers = ice_servers
        self._remote: Description | None = None
        self._candidates: deque[str] = deque()
        self._candidates_taken = 0
        self._something_new = asyncio.Event()
        self._is_stopping = False
        self._channel: WebRTCChannel | None = None
        self._aiortc: RTCPeerConnection | None = None
        self._shutting: asyncio.Task[None] | None = None
        self._task = bridge.begin(self._drive)

    # --- called from Trio ---

    def describe_remote(self, description: Description) -> None:
        """Take in the remote description; the first one counts."""
        if self._remote is None:
            self._remote = description
            for candidate in description.candidates:
                self.add_candidate(candidate)
            self._bridge.post(self._something_new.set)

    def add_candidate(self, candidate: str) -> None:
        if self._candidates_taken < MAX_CANDIDATES:
            self._candidates_taken += 1
            self._candidates.append(candidate)
            self._bridge.post(self._something_new.set)

    # --- asyncio ---

    async def shut(self) -> None:
        """Close the connection and all that belongs to it; safe to call again."""
        self.shut_soon()
        assert self._shutting is not None
        await asyncio.shield(self._shutting)

    def shut_soon(self) -> None:
        if self._shutting is None:
            self._shutting = self._bridge.loop.create_task(self._shut())

    def confirmed(self) -> int:
        """A number that changes when the other end confirms that something has arrived."""
        assert self._aiortc is not None
        return aiortc_internals.last_confirmed(self._aiortc)

    def is_cut_off(self) -> bool:
        """Whether ICE has given the other end up: it is dead, or the network to it is.

        A remote that hangs up closes SCTP or DTLS first. aiortc tells the two apart only by an
        event that comes too late, after it has closed everything itself.
        """
        assert self._aiortc is not None
        assert self._aiortc.sctp is not None
        return not self._aiortc.sctp.transport.transport.iceGatherer.getLocalCandidates()

    async def _drive(self) -> None:
        if self._is_stopping:
            return
        try:
            await self._connect()
        except asyncio.CancelledError:
            # It comes out of aioice when `stop_gathering` cancels what aioice waits for.
            if not self._is_stopping:
                raise
        except Exception as exc:
            _logger.debug("a peer connection failed", exc_info=exc)
            self._peer.fail(f"the connection could not be set up: {exc!r}", exc)

    async def _connect(self) -> None:
        aiortc = self._aiortc = RTCPeerConnection(
            # Without a list, aiortc asks a public STUN server.
            RTCConfiguration(iceServers=[_to_aiortc(server) for server in self._ice_servers])
        )
        aiortc.on("connectionstatechange", self._state_changed)
        aiortc.on("datachannel", self._data_channel_arrived)
        if self._is_initiator:
            nonce = secrets.token_hex(16)
            self._adopt(
                aiortc.createDataChannel(secrets.token_hex(20), protocol=protocol_field(nonce)),
                Credit.initiator(nonce),
            )
            await self._describe_ourselves(aiortc)
        while self._remote is None:
            if self._is_stopping:
                return
            await self._news()
        await self._set_remote(aiortc, self._remote)
        if not self._is_initiator:
            await self._describe_ourselves(aiortc)
        while not self._is_stopping and self._peer.channel is None:
            while self._candidates:
                candidate = candidate_from_sdp(self._candidates.popleft())
                candidate.sdpMLineIndex = 0  # there is only one section
                await aiortc.addIceCandidate(candidate)
            await self._news()

    async def _news(self) -> None:
        await self._something_new.wait()
        self._something_new.clear()

    async def _describe_ourselves(self, aiortc: RTCPeerConnection) -> None:
        await aiortc.setLocalDescription()
        if self._is_stopping:
            return
        sdp = aiortc.localDescription.sdp
        if "\na=candidate:" not in sdp:
            self._peer.fail("this machine has no network address but the loopback")
            return
        # Room for the prefix of a frame as large as simple-peer takes; aiortc does not mind.
        sdp = _MAX_MESSAGE_SIZE.sub(f"a=max-message-size:{MAX_FRAME_SIZE + PREFIX_SIZE}", sdp)
        self._peer.say(Offer(sdp) if self._is_initiator else Answer(sdp))

    async def _set_remote(self, aiortc: RTCPeerConnection, remote: Description) -> None:
        # With the candidates we know in it, for then aiortc begins to check them at once, and
        # not when its next timer is due.
        candidates = [f"a=candidate:{candidate}" for candidate in self._candidates]
        self._candidates.clear()
        if remote.has_all_candidates and candidates:
            # Lets aiortc report that none of them works, instead of waiting for more. When all
            # of them were of no use to us, the remote can still reach us.
            candidates.append("a=end-of-candidates")
        sdp = remote.sdp + "".join(f"{line}\r\n" for line in candidates)
        if self._channel is not None:
            self._channel.obey(remote.max_message_size)
        await aiortc.setRemoteDescription(
            RTCSessionDescription(sdp=sdp, type="answer" if self._is_initiator else "offer")
        )

    def _adopt(self, data_channel: RTCDataChannel, credit: Credit | None) -> WebRTCChannel:
        # From the first moment, because frames may come before "open" does.
        channel = self._channel = WebRTCChannel(self._bridge, self, data_channel, credit)
        data_channel.on("open", self._data_channel_opened)
        return channel

    # --- aiortc's events ---

    def _data_channel_opened(self) -> None:
        assert self._channel is not None
        self._peer.opened(self._channel)
        self._something_new.set()

    def _data_channel_arrived(self, data_channel: RTCDataChannel) -> None:
        if self._channel is not None:
            data_channel.close()  # one is all there is in simple-peer
            return
        if not _is_ordered_and_reliable(data_channel):
            self._peer.fail("the other end offers a data channel that may lose or reorder frames")
            return
        assert self._remote is not None
        credit = Credit.acceptor(data_channel.protocol)
        channel = self._adopt(data_channel, credit)
        channel.obey(self._remote.max_message_size)
        if credit is not None:
            channel.greet()
        self._data_channel_opened()

    def _state_changed(self) -> None:
        assert self._aiortc is not None
        state = self._aiortc.connectionState
        if state == "failed":
            self._peer.fail("no way to the other end was found, or it is not who it said it was")
            if self._channel is not None:
                self._channel.lost("the other end no longer answers")
        elif state == "closed":
            self._peer.fail("the other end hung up while connecting")

    # --- the end ---

    async def _shut(self) -> None:
        self._is_stopping = True
        self._something_new.set()
        while not self._task.done():
            # Again and again, for trio-asyncio forgets a cancellation that meets a thread at work
            # (one that looks up the name of a STUN server).
            if self._aiortc is not None:
                aiortc_internals.stop_gathering(self._aiortc)
            await asyncio.wait({self._task}, timeout=0.05)
        if self._aiortc is None:
            return
        closing = asyncio.ensure_future(_close(self._aiortc))
        _, unfinished = await asyncio.wait({closing}, timeout=ABANDON)
        if unfinished:
            aiortc_internals.abort_sockets(self._aiortc)
            _, unfinished = await asyncio.wait({closing}, timeout=ABANDON)
        if unfinished:
            _logger.warning("aiortc does not finish closing a connection; its sockets are closed")
            closing.cancel()
        elif not closing.cancelled() and (exc := closing.exception()) is not None:
            _logger.warning("aiortc failed while closing a connection: %r", exc, exc_info=exc)
            aiortc_internals.abort_sockets(self._aiortc)
        if self._channel is not None:
            self._channel.lost("the connection was closed")


async def _close(aiortc: RTCPeerConnection) -> None:
    is_connecting = aiortc_internals.is_connecting(aiortc)
    await aiortc.close()
    if is_connecting:
        await aiortc_internals.finish_connecting(aiortc)


def _to_aiortc(server: IceServer) -> RTCIceServer:
    urls = [server.urls] if isinstance(server.urls, str) else list(server.urls)
    return RTCIceServer(urls=urls, username=server.username, credential=server.credential)


def _is_ordered_and_reliable(data_channel: RTCDataChannel) -> bool:
    return (
        data_channel.ordered
        and data_channel.maxRetransmits is None
        and data_channel.maxPacketLifeTime is None
    )
