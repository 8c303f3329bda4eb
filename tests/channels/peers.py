"""Peer connections for tests: two of ours, or one of ours and one as strangers have."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aioice.ice
import pytest
import trio
from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription

from trio_overlay.channels.bridge import Bridge, BridgeChoice, open_bridge
from trio_overlay.channels.internet import Internet
from trio_overlay.channels.network import PeerConnection
from trio_overlay.channels.webrtc import WebRTCChannel
from trio_overlay.protocol.signals import Answer, Offer, Signal


async def carry(source: PeerConnection, destination: PeerConnection) -> None:
    """Be the road for the signals of one direction."""
    try:
        while True:
            destination.signal_nowait(await source.next_signal())
    except trio.EndOfChannel:
        return


async def connect(a: PeerConnection, b: PeerConnection) -> tuple[WebRTCChannel, WebRTCChannel]:
    """The channels of both ends, *a* being the initiator."""
    await carry(a, b)
    await carry(b, a)
    channels = await a.connected(), await b.connected()
    assert isinstance(channels[0], WebRTCChannel)
    assert isinstance(channels[1], WebRTCChannel)
    return channels[0], channels[1]


@asynccontextmanager
async def open_pair(
    bridge: BridgeChoice = "auto",
) -> AsyncIterator[tuple[WebRTCChannel, WebRTCChannel]]:
    """Two connected ends of ours, the initiator first."""
    internet = Internet(bridge=bridge)
    async with internet.open_peer(initiator=True) as a, internet.open_peer(initiator=False) as b:
        yield await connect(a, b)


class Stranger:
    """The other end of a connection as simple-peer has it: aiortc, without anything of ours."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.received: list[str | bytes] = []
        self.opened_channels: list[RTCDataChannel] = []
        self.has_closed = trio.Event()
        self.is_open = trio.Event()
        self.says_first: Sequence[str | bytes] = ()  # sent in the moment the channel opens
        self.something_received = trio.Event()
        self.sends_before_open = False
        self.connection: RTCPeerConnection
        self.channel: RTCDataChannel

    async def offer(self, protocol: str = "", **options: object) -> Offer:
        return await self.bridge.run(self._offer, protocol, options)

    async def answer(self, offer: Signal) -> Answer:
        assert isinstance(offer, Offer)
        return await self.bridge.run(self._answer, offer.sdp)

    async def take_answer(self, answer: Signal) -> None:
        assert isinstance(answer, Answer)
        await self.bridge.run(
            self.connection.setRemoteDescription, RTCSessionDescription(answer.sdp, "answer")
        )

    def send(self, *frames: str | bytes) -> None:
        for frame in frames:
            self.bridge.post(self.channel.send, frame)

    async def received_something(self) -> None:
        while not self.received:
            self.something_received = trio.Event()
            await self.something_received.wait()

    async def close(self) -> None:
        await self.bridge.run(self._close)

    async def _open(self) -> None:
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.connection.on("datachannel", self._arrived)

    async def _offer(self, protocol: str, options: dict[str, object]) -> Offer:
        self._adopt(
            self.connection.createDataChannel("0" * 40, protocol=protocol, **options)  # type: ignore[arg-type]
        )
        await self.connection.setLocalDescription()
        return Offer(self.connection.localDescription.sdp)

    async def _answer(self, sdp: str) -> Answer:
        await self.connection.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
        await self.connection.setLocalDescription()
        return Answer(self.connection.localDescription.sdp)

    async def _close(self) -> None:
        if hasattr(self, "channel"):
            self.channel.close()
            for _ in range(100):
                if self.channel.readyState == "closed":
                    break
                await asyncio.sleep(0.01)
        await self.connection.close()

    def _arrived(self, channel: RTCDataChannel) -> None:
        self._adopt(channel)
        self._opened()

    def _adopt(self, channel: RTCDataChannel) -> None:
        self.opened_channels.append(channel)
        self.channel = channel
        channel.on("open", self._opened)
        channel.on("message", self._message)
        channel.on("close", self.has_closed.set)

    def _opened(self) -> None:
        for frame in self.says_first:
            self.channel.send(frame)
        self.is_open.set()

    def _message(self, frame: str | bytes) -> None:
        self.received.append(frame)
        self.something_received.set()


@asynccontextmanager
async def open_stranger(bridge: BridgeChoice = "stepped") -> AsyncIterator[Stranger]:
    async with open_bridge(bridge) as the_bridge:
        stranger = Stranger(the_bridge)
        await the_bridge.run(stranger._open)
        try:
            yield stranger
        finally:
            with trio.CancelScope(shield=True):
                await the_bridge.run(stranger.connection.close)


@asynccontextmanager
async def open_pair_with_stranger(
    *, we_initiate: bool, bridge: BridgeChoice = "stepped", says_first: Sequence[str | bytes] = ()
) -> AsyncIterator[tuple[WebRTCChannel, Stranger]]:
    """One connected end of ours and one of a stranger."""
    async with (
        open_stranger(bridge) as stranger,
        Internet(bridge=bridge).open_peer(initiator=we_initiate) as peer,
    ):
        stranger.says_first = list(says_first)
        if we_initiate:
            peer.signal_nowait(await stranger.answer(await peer.next_signal()))
        else:
            peer.signal_nowait(await stranger.offer())
            await stranger.take_answer(await peer.next_signal())
        channel = await peer.connected()
        assert isinstance(channel, WebRTCChannel)
        yield channel, stranger


def ask_for_life(patches: pytest.MonkeyPatch) -> None:
    """Have each end ask the other all the time whether it is there.

    On a busy machine the answers may be late: nothing comes of it, until `expect_life`.
    """
    patches.setattr(aioice.ice, "CONSENT_INTERVAL", 0.05)
    patches.setattr(aioice.ice, "CONSENT_FAILURES", sys.maxsize)


def expect_life(patches: pytest.MonkeyPatch) -> None:
    """From now on an end that does not answer is dead."""
    patches.setattr(aioice.ice, "CONSENT_FAILURES", 1)


def silence(channel: WebRTCChannel) -> None:
    """Have nothing leave or reach the end of *channel* any more, as if its process were gone."""
    connection = channel._driver._aiortc
    assert connection is not None
    assert connection.sctp is not None
    for protocol in connection.sctp.transport.transport.iceGatherer._connection._protocols:
        for name, nothing in (
            ("send_data", _say_nothing),
            ("send_stun", _do_nothing),
            ("datagram_received", _do_nothing),
        ):
            setattr(protocol, name, nothing)


async def _say_nothing(*_: object) -> None:
    pass


def _do_nothing(*_: object) -> None:
    pass
