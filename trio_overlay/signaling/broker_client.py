"""The broker's client: one connection to a broker, and what can be asked over it.

Speaks linkup's JSON-RPC, so that brokers of linkup do as well. Coming back after the broker was
away is the peer's business, in nodes/peer.py.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.channels.network import Network
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import (
    IdTaken,
    MalformedFrame,
    MessageTooLarge,
    OutcomeError,
    ServerRefused,
    ServerUnreachable,
)
from trio_overlay.protocol.broker import (
    ID_TAKEN,
    UNAVAILABLE,
    Call,
    Exists,
    Failure,
    PeerSignal,
    Ping,
    Register,
    Request,
    Response,
    Unregister,
    decode_answer,
    encode_peer_signal,
    encode_request,
    peer_signal,
)
from trio_overlay.protocol.json import JSON
from trio_overlay.signaling.bootstrap import server_url

ANSWER_TIMEOUT: Final = 15.0
"""Seconds for a broker to answer; it may have to ask other servers."""
PING_INTERVAL: Final = 30.0
"""Seconds between two pings, well within the lease; linkup's peers ping every 45 s."""

logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_broker(
    url: str, *, network: Network, rng: random.Random, on_signal: Callable[[PeerSignal], None]
) -> AsyncIterator[BrokerClient]:
    """A connection to the broker at *url*, which may be just ``host:port``; not yet registered.

    *on_signal* is called with each signal that comes, and must not wait. The connection is pinged;
    when the broker is gone, or silent, `BrokerClient.lost` is set.

    ServerUnreachable, ServerRefused: as their names say.
    UsageError: *url* is no URL of a server.
    """
    async with (
        network.dial(broker_address(url)) as channel,
        open_background_nursery() as nursery,
    ):
        client = BrokerClient(channel, rng)
        nursery.start_soon(client._read, on_signal)
        nursery.start_soon(client._ping)
        yield client


class BrokerClient:
    """One connection to a broker; made by `open_broker`."""

    def __init__(self, channel: Channel, rng: random.Random) -> None:
        self.lost = trio.Event()
        self.lost_reason = ""
        """Why the connection is lost, once it is."""
        self._channel = channel
        self._rng = rng
        self._open_calls: dict[str, _OpenCall] = {}

    async def register(self, identifier: str, *, secret: str | None = None) -> None:
        """Be found by *identifier*, and by no other.

        At brokers of ours, who registers it again with the same *secret* (16 to 128 visible ASCII
        characters), here or at another server of the cluster, gets it at once; and the connection
        that had it is closed.

        IdTaken: another peer is, or this one already.
        ServerRefused: the broker does not take this id, or cannot ask its cluster now.
        ServerUnreachable: the broker is gone, or does not answer.
        """
        await self._call(Register(identifier, secret))

    async def unregister(self) -> None:
        """Be found no more. Errors as in `exists`."""
        await self._call(Unregister())

    async def exists(self, identifier: str) -> bool:
        """Whether a peer is registered by *identifier*.

        ServerRefused: the broker cannot tell.
        ServerUnreachable: it is gone, or does not answer.
        """
        return await self._call(Exists(identifier)) is True

    async def send_signal(self, sender: str, recipient: str, signal: JSON) -> None:
        """Have the broker pass *signal* on; nobody says whether it arrived.

        ServerUnreachable: the broker is gone.
        """
        await self._send(encode_peer_signal(peer_signal(sender, recipient, signal)))

    async def _call(self, call: Call) -> JSON:
        key = f"{self._rng.getrandbits(128):032x}"
        self._open_calls[key] = waiting = _OpenCall()
        try:
            with trio.move_on_after(ANSWER_TIMEOUT):
                await self._send(encode_request(Request(call, key)))
                await waiting.ended.wait()
            if waiting.answer is None:
                name = type(call).__name__.lower()
                raise ServerUnreachable(
                    self.lost_reason or f"no answer to {name} within {ANSWER_TIMEOUT:g} s"
                )
            if waiting.answer.failure is not None:
                raise _in_words(waiting.answer.failure)
            return waiting.answer.result
        finally:
            del self._open_calls[key]

    async def _send(self, text: str) -> None:
        try:
            await self._channel.send(text)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ServerUnreachable(
                self.lost_reason or f"the broker is gone: {self._channel.close_reason}"
            ) from error
        except MessageTooLarge as error:
            raise ServerRefused(f"the broker takes no such frame: {error}") from error

    async def _read(self, on_signal: Callable[[PeerSignal], None]) -> None:
        while True:
            try:
                said = decode_answer(await self._channel.receive())
            except MalformedFrame as error:
                logger.info("a frame of the broker is passed over: %s", error)
                continue
            except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
                self._lose(f"the broker hung up: {self._channel.close_reason}")
                return
            if isinstance(said, PeerSignal):
                on_signal(said)
                continue
            waiting = self._open_calls.get(said.key) if isinstance(said.key, str) else None
            if waiting is not None:
                waiting.answer = said
                waiting.ended.set()

    async def _ping(self) -> None:
        """Renew the lease, and see whether the broker is alive."""
        while True:
            await trio.sleep(PING_INTERVAL)
            try:
                await self._call(Ping())
            except ServerRefused:
                pass  # an answer, whatever it says
            except ServerUnreachable as error:
                self._lose(str(error))
                return

    def _lose(self, reason: str) -> None:
        if not self.lost.is_set():
            self.lost_reason = reason
            self.lost.set()
            for waiting in self._open_calls.values():
                waiting.ended.set()


class _OpenCall:
    def __init__(self) -> None:
        self.ended = trio.Event()
        self.answer: Response | None = None


def broker_address(url: str) -> str:
    """*url* with scheme and path, as it can be dialled.

    UsageError: it is no URL of a server.
    """
    url = server_url(url)
    return url if urlsplit(url).path else f"{url}/"


def _in_words(failure: Failure) -> OutcomeError:
    # Of a broker of linkup's we know the words and not the code.
    if failure.code == ID_TAKEN or "taken" in failure.message.lower():
        return IdTaken(failure.message)
    if failure.code == UNAVAILABLE:
        return ServerRefused(f"the broker cannot tell now: {failure.message}")
    return ServerRefused(f"the broker refused: {failure.message}")
