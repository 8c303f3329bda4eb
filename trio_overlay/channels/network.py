"""What a node stands on: a way to dial servers and a way to make peer connections.

`Internet` (in internet.py) is the real one; `trio_overlay.testing.VirtualNetwork` hands out
others that live in one process under a virtual clock. Nodes and clients know only this interface.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.protocol.signals import Signal


class PeerConnection(abc.ABC):
    """One end of a connection that is coming up: signals go out and in until there is a channel.

    The initiator's first signal is an `Offer`; the other end answers one. Whoever holds a peer
    connection carries the signals to the other end, by whatever road.
    """

    @abc.abstractmethod
    async def next_signal(self) -> Signal:
        """The next signal for the other end; waits for one.

        The answering end has none before it was given an offer. Cancelled, no signal is lost.

        trio.EndOfChannel: this end has said all it will say, or it is connected.
        ConnectionFailed: the connection cannot come up any more.
        """

    @abc.abstractmethod
    def signal_nowait(self, signal: Signal) -> None:
        """Take in a *signal* of the other end, at any time and in any order.

        Never waits and never raises for what the signal holds: candidates that cannot be used
        are passed over, what makes a connection impossible (a broken description, an
        offer where an answer belongs, more signals than anybody needs) comes out of
        `connected` and `next_signal` as `ConnectionFailed`. Once there is a channel, or after
        the end, signals are ignored.
        """

    @abc.abstractmethod
    async def connected(self) -> Channel:
        """The open channel; waits for it. There is no time limit: bring a cancel scope.

        The channel lives as long as the context that opened this peer connection.

        ConnectionFailed: it did not come up; the message says why.
        """

    async def connect(self, say: Callable[[Signal], object]) -> Channel:
        """Call *say* with each signal for the other end, until the channel is open; that channel.

        *say* never waits. It may be called in the moment in which there is something to be said,
        outside of any task; what it raises comes out here. Otherwise as `connected`.
        """
        with contextlib.suppress(trio.EndOfChannel):
            while True:
                say(await self.next_signal())
        return await self.connected()


class Network(abc.ABC):
    """Where connections come from. Everything opened here ends with its `async with`."""

    @abc.abstractmethod
    def open_peer(self, *, initiator: bool) -> AbstractAsyncContextManager[PeerConnection]:
        """One end of a new peer connection; leaving the context closes it and its channel."""

    @abc.abstractmethod
    def dial(self, url: str) -> AbstractAsyncContextManager[Channel]:
        """A WebSocket channel to the server at *url* (``ws://`` or ``wss://``).

        Frames over 1 MiB break the channel.

        ServerUnreachable: nobody listens there, or no WebSocket server does.
        ServerRefused: the server said no; the message has its status and reason.
        """


class UpgradeRequest(abc.ABC):
    """A client that wants a WebSocket at some path of a server, not yet accepted.

    `path` is as in the URL, still percent-encoded, without the query; `query` is what followed
    the ``?``, or empty; `remote` names the client for the log.
    """

    path: str
    query: str
    remote: str

    @abc.abstractmethod
    async def accept(self) -> Channel:
        """The open channel. It is closed when the handler that was given this request returns."""

    @abc.abstractmethod
    async def reject(self, status: int, reason: str) -> None:
        """Answer with the HTTP *status* (400 to 599) and *reason* as text, and hang up."""


UpgradeHandler: TypeAlias = Callable[[UpgradeRequest], Awaitable[None]]
"""Serves one client from its request to its end; runs in a task of its own."""


class ListeningNetwork(Network):
    """A network on which its node can be dialled without sockets of its own: a virtual one."""

    @abc.abstractmethod
    def open_listener(self, handler: UpgradeHandler) -> AbstractAsyncContextManager[str]:
        """Let *handler* serve whoever dials the URL that this gives; leaving it ends them all.

        ConfigurationError: somebody listens there, or nobody can.
        """
