"""The signaling server on a virtual network: real but for its sockets, and it can crash."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.signaling.server import SignalingServer
from trio_overlay.testing.network import VirtualNetwork

SECRET = "virtual"  # noqa: S105 - it keeps nobody out
AUTHORITY = "server:5000"


class SignalingHost:
    """A host whose program is the signaling server; made by `open_signaling`."""

    def __init__(self, network: VirtualNetwork, authority: str, secret: str) -> None:
        self.authority = authority
        """Its address, for nodes and clients; for rules and faults the name of its host."""
        self.secret = secret
        self.server: SignalingServer
        """The one that runs, or ran last."""
        self._network = network
        # One for all servers here: none gives an id that another gave before.
        self._rng = random.Random(f"{network.seed} {authority}")
        self._is_wanted = trio.Event()
        self._scope = trio.CancelScope()
        self._is_wanted.set()

    def __str__(self) -> str:
        return self.authority

    @property
    def is_running(self) -> bool:
        """Whether it serves, or is just about to."""
        return self._is_wanted.is_set()

    def stop(self) -> None:
        """End the server as SIGTERM does: clients see their sockets closed. Again: nothing."""
        if self.is_running:
            self._is_wanted = trio.Event()
            self._scope.cancel()

    def crash(self, *, noticed_after: float | None = 30.0, is_power_cut: bool = False) -> None:
        """End the server without a word: see `VirtualNetwork.crash`. Again: nothing."""
        if self.is_running:
            self._network.crash(
                self.authority, noticed_after=noticed_after, is_power_cut=is_power_cut
            )
            self.stop()

    def restart(self) -> None:
        """Start another server, which knows nothing of the one before; it serves in a moment.

        While one runs: nothing.
        """
        self._is_wanted.set()

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        has_started = False
        while True:
            await self._is_wanted.wait()
            self.server = SignalingServer(self.secret, rng=self._rng)
            with trio.CancelScope() as self._scope:
                async with open_background_nursery() as nursery:
                    await nursery.start(self.server.run)
                    listening = self._network.listen(self.authority, self.server.handle_upgrade)
                    try:
                        if not has_started:
                            has_started = True
                            task_status.started()
                        if self.is_running:  # not stopped while it was about to
                            await trio.sleep_forever()
                    finally:
                        listening.close()


@asynccontextmanager
async def open_signaling(
    network: VirtualNetwork, *, authority: str = AUTHORITY, secret: str = SECRET
) -> AsyncIterator[SignalingHost]:
    """A signaling server that serves at *authority* on *network*, for as long as the block.

    UsageError: somebody listens there.
    """
    host = SignalingHost(network, authority.lower(), secret)
    async with open_background_nursery() as nursery:
        await nursery.start(host._run)
        yield host
