"""How a root stays registered at its server: over one socket after another."""

from __future__ import annotations

import logging
import math
import random
from contextlib import suppress
from dataclasses import replace
from typing import TypeAlias

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.channels.network import Network
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.channels.timeline import Appointment, Timeline
from trio_overlay.errors import OutcomeError, ServerLost
from trio_overlay.protocol.bootstrap import (
    ROOT_HEARTBEAT_INTERVAL,
    AskSnapshot,
    BootstrapFrame,
    Heartbeat,
    Hello,
    Registration,
    Role,
    SignalFrame,
    Withdrawn,
    encode_bootstrap,
)
from trio_overlay.signaling.bootstrap_socket import deliver_frames
from trio_overlay.signaling.snapshots import Answering, Describe

SILENCE_TIMEOUT = 45.0
"""A root's server that says nothing for three of its heartbeats is taken for dead."""
OUR_SILENCE_TIMEOUT = 5.0
"""The same for a server of ours, whose heartbeats come every second."""
ROLE_TIMEOUT = 0.5
"""Seconds that a root waits for the first word of its server. One of ours says what it is to do
right behind the answer to the dial; an old one says nothing, and the newest root is active."""
MIN_RECONNECT_DELAY, MAX_RECONNECT_DELAY = 0.2, 5.0
"""Seconds: a server that has restarted holds requests for a root as long as that."""

RootFrame: TypeAlias = SignalFrame | Withdrawn | Role
"""What a root is told by its server, and has to act on."""

_HEARTBEAT = encode_bootstrap(Heartbeat())

logger = logging.getLogger(__name__)


class Registered:
    """A root that registers, and does so again whenever its server is gone.

    *path* is that which only those know who know the secret of the *server*. What it says goes to
    *backlog*.
    """

    def __init__(
        self,
        network: Network,
        server: str,
        path: str,
        registration: Registration,
        describe: Describe | None,
        backlog: trio.MemorySendChannel[RootFrame],
        rng: random.Random,
    ) -> None:
        self._network = network
        self._server = server
        self._path = path
        self._registration = registration
        self._describe = describe
        self._backlog = backlog
        self._rng = rng

    async def stay(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Started when registered first; for ever.

        ServerUnreachable, ServerRefused: that failed.
        """
        registered = is_missed = False
        failures = 0
        while True:
            try:
                address = f"{self._server}{self._path}?{self._registration.encode()}"
                async with self._network.dial(address) as socket:
                    if not registered:
                        task_status.started()
                        registered = True
                    logger.info("registered as root at %s", self._server)
                    is_missed, failures = False, 0
                    served = _Served(socket, self._describe, self._backlog)
                    await served.run()
                    # It took over, if it was to: from now on it is one of several.
                    term = max(self._registration.term, served.term)
                    self._registration = replace(self._registration, term=term, takes_over=False)
            except OutcomeError as error:
                if not registered:
                    raise
                # A warning once for as long as it is gone, not at each of many tries.
                level = logging.DEBUG if is_missed else logging.WARNING
                logger.log(level, "the root is without its server at %s: %s", self._server, error)
                is_missed = True
            await trio.sleep(reconnect_delay(failures, self._rng))
            failures += 1


def reconnect_delay(failures: int, rng: random.Random) -> float:
    """Seconds before the next try: doubling, with full jitter, never all roots at once."""
    ceiling = min(MAX_RECONNECT_DELAY, MIN_RECONNECT_DELAY * 2.0 ** min(failures, 20))
    return rng.uniform(ceiling / 2, ceiling)


class _Served:
    """One registration over one *socket*."""

    def __init__(
        self,
        socket: Channel,
        describe: Describe | None,
        backlog: trio.MemorySendChannel[RootFrame],
    ) -> None:
        self.term = 0
        """That in which this root was active; 0 if it was not, or the server knows no terms."""
        self._socket = socket
        self._describe = describe
        self._backlog = backlog
        self._answering: Answering | None = None
        self._has_role = False
        self._timeline = Timeline()
        self._nursery: trio.Nursery
        self._reading = trio.CancelScope()
        self._is_beating = False
        self._heard_at = trio.current_time()
        self._patience = ROLE_TIMEOUT
        """Seconds of silence after which the server has no roles to give, or is gone."""
        self._next_look: Appointment | None = None
        self._is_last_chance = False
        """Whether that look is the last, if nothing is heard until then."""

    async def run(self) -> None:
        """Take in what the server says, until it is gone or silent for too long."""
        async with open_background_nursery() as self._nursery:
            if self._describe is not None:
                self._answering = Answering(self._socket, self._describe, self._nursery)
            self._nursery.start_soon(self._timeline.run)
            self._timeline.after(ROOT_HEARTBEAT_INTERVAL, self._beat)
            self._look()
            with self._reading:
                try:
                    await deliver_frames(self._socket, self._take)
                except ServerLost as error:
                    logger.info("the server hung up on its root: %s", error)

    def _take(self, frame: BootstrapFrame) -> None:
        self._heard_at = trio.current_time()
        self._is_last_chance = False
        match frame:
            case Hello():
                self._patience = OUR_SILENCE_TIMEOUT
                return
            case Role():
                self._has_role = True
                if frame.is_active:
                    self.term = frame.term
            case Heartbeat():
                self._patience = min(self._patience, SILENCE_TIMEOUT)
        if not self._has_role:
            self._have_old_server()
        if self._next_look is None:
            self._look()
        if isinstance(frame, AskSnapshot | Withdrawn) and self._answering is not None:
            self._answering.take(frame)
        if isinstance(frame, Role | SignalFrame) or (
            isinstance(frame, Withdrawn) and frame.origin is not None
        ):
            self._feed(frame)

    def _have_old_server(self) -> None:
        """It says nothing of roles, and nothing at all while there is nothing to say."""
        self._has_role = True
        self._patience = math.inf
        self._feed(Role(is_active=True, term=0, count_others=0))

    def _feed(self, frame: RootFrame) -> None:
        try:
            self._backlog.send_nowait(frame)
        except trio.WouldBlock:
            logger.warning("nobody takes the root's requests: one is dropped")

    def _look(self) -> None:
        """See whether the server is silent for too long, and again when it may be."""
        look, self._next_look = self._next_look, None
        now = trio.current_time()
        if now >= self._heard_at + self._patience:
            if look is not None and now > look.at and not self._is_last_chance:
                # This program was held up, and may not have read what has come meanwhile.
                self._is_last_chance = True
                self._next_look = self._timeline.after(now - look.at, self._look)
                return
            if self._has_role:
                logger.warning("the server has been silent for %g s", self._patience)
                self._reading.cancel()
                return
            self._have_old_server()
        if self._patience < math.inf:
            self._next_look = self._timeline.at(self._heard_at + self._patience, self._look)

    def _beat(self) -> None:
        """Give a sign of life, and the next one later."""
        self._timeline.after(ROOT_HEARTBEAT_INTERVAL, self._beat)
        try:
            self._socket.send_nowait(_HEARTBEAT)
        except trio.WouldBlock:
            if not self._is_beating:
                self._is_beating = True
                self._nursery.start_soon(self._beat_slowly)
        except trio.BrokenResourceError:
            pass  # the reader meets the same, and decides

    async def _beat_slowly(self) -> None:
        with suppress(trio.BrokenResourceError):
            await self._socket.send(_HEARTBEAT)
        self._is_beating = False
