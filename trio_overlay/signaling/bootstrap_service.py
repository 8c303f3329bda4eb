"""The bootstrap server's tasks: they carry out what the switchboard decides.

One connection has a reader, a writer with a bounded queue and, for a root, a heartbeat. Knows
channels and requests for them, no sockets: in memory and under a virtual clock it is the same.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator

import trio

from trio_overlay.channels.channel import Frame
from trio_overlay.channels.network import UpgradeRequest
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.channels.timeline import Appointment, Timeline
from trio_overlay.errors import ClusterUnavailable, ProtocolError
from trio_overlay.protocol.bootstrap import (
    ANNOUNCEMENT,
    ROOT_HEARTBEAT_INTERVAL,
    ROOT_SILENCE_TIMEOUT,
    Heartbeat,
    Refused,
    Registration,
    SnapshotPart,
    decode_bootstrap,
    encode_bootstrap,
)
from trio_overlay.protocol.cluster import LinkupMessage, ServerMessage
from trio_overlay.protocol.switchboard import (
    DEFAULT_GRACE_TIMEOUT,
    DEFAULT_HOLD_TIMEOUT,
    DEFAULT_TIMEOUT,
    Switchboard,
)
from trio_overlay.protocol.switchboard_clients import (
    Action,
    Announce,
    Client,
    Close,
    Forward,
    Root,
    Send,
)
from trio_overlay.signaling import limits
from trio_overlay.signaling.cluster import Cluster, ClusterMember
from trio_overlay.signaling.connection import ClientConnection
from trio_overlay.signaling.shared_store import Entry, Session

HEARTBEAT_INTERVAL = 15.0
"""Seconds between two signs of life for a root of the old protocol, as in the original."""

_OF_ROOTS = (Heartbeat, SnapshotPart, Refused)
"""What a root has to say to the server."""

logger = logging.getLogger(__name__)


class BootstrapService(ClusterMember):
    """Serves prospects, roots and askers; `run` must be running meanwhile.

    With a *cluster* it is one of several servers that act as one; then *identifiers* end in that
    server's tag.
    """

    def __init__(
        self,
        identifiers: Iterator[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        hold_timeout: float = DEFAULT_HOLD_TIMEOUT,
        grace_timeout: float = DEFAULT_GRACE_TIMEOUT,
        heartbeat_interval: float = HEARTBEAT_INTERVAL,
        cluster: Cluster | None = None,
    ) -> None:
        self.switchboard = Switchboard(
            identifiers,
            timeout=timeout,
            hold_timeout=hold_timeout,
            grace_timeout=grace_timeout,
            tag=cluster.tag if cluster is not None else "",
            silence_timeout=cluster.lease if cluster is not None else math.inf,
        )
        self._cluster = cluster
        self._heartbeat_interval = heartbeat_interval
        self._connections: dict[Client, ClientConnection] = {}
        self._timeline = Timeline()
        self._next_tick: Appointment | None = None
        """When time passes for the switchboard."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let time pass for the switchboard; runs until cancelled."""
        if self._cluster is not None:
            self._cluster.attach(self)
        try:
            self._tick()
            task_status.started()
            await self._timeline.run()
        finally:
            if self._cluster is not None:
                self._cluster.detach(self)

    async def serve_prospect(self, request: UpgradeRequest) -> None:
        """One client of ``/join``, from its request to its end."""
        channel = await request.accept()
        client, actions = self.switchboard.enter_prospect(
            trio.current_time(), is_announced=_is_announced(request)
        )
        logger.debug("%s is prospect %s", request.remote, client.identifier)
        connection = ClientConnection(
            channel,
            f"prospect {client.identifier} ({request.remote})",
            limits.MAX_QUEUED_BYTES,
            frames=limits.prospect_frames(),
            bytes_=limits.prospect_bytes(),
        )
        await self._serve(client, connection, actions, heartbeat_interval=None)

    async def serve_root(self, request: UpgradeRequest) -> None:
        """One registration as root, from its request to its end; the secret has been checked."""
        channel = await request.accept()
        client, actions = self.switchboard.enter_root(
            trio.current_time(),
            is_announced=_is_announced(request),
            registration=(registration := Registration.decode(request.query)),
        )
        logger.info("%s is now a root, one of %d", request.remote, self.switchboard.count_roots)
        connection = ClientConnection(
            channel,
            f"the root at {request.remote}",
            limits.MAX_QUEUED_BYTES_OF_ROOT,
        )
        try:
            if registration is None:
                interval, timeout = self._heartbeat_interval, math.inf
            else:
                interval, timeout = ROOT_HEARTBEAT_INTERVAL, ROOT_SILENCE_TIMEOUT
            await self._serve(
                client, connection, actions, heartbeat_interval=interval, silence_timeout=timeout
            )
        finally:
            logger.info(
                "the root at %s is gone (%s), %d left",
                request.remote,
                channel.close_reason or "closed by this end",
                self.switchboard.count_roots,
            )

    async def serve_asker(self, request: UpgradeRequest) -> None:
        """One question for a picture of the tree, to its end; the secret has been checked."""
        channel = await request.accept()
        client, actions = self.switchboard.enter_asker(trio.current_time())
        logger.info("%s asks for a picture of the tree", request.remote)
        connection = ClientConnection(
            channel,
            f"the asker at {request.remote}",
            limits.MAX_QUEUED_BYTES_OF_ASKER,
            frames=limits.prospect_frames(),
            bytes_=limits.prospect_bytes(),
        )
        await self._serve(client, connection, actions, heartbeat_interval=None)

    async def _serve(
        self,
        client: Client,
        connection: ClientConnection,
        actions: Iterable[Action],
        heartbeat_interval: float | None,
        silence_timeout: float = math.inf,
    ) -> None:
        # From entering the switchboard to here and from here to leaving it there is no await: who
        # is in the one is in the other.
        self._connections[client] = connection
        self._act(actions)
        is_cancelled = True
        heartbeats = _Heartbeats(self._timeline, connection, heartbeat_interval)
        try:
            with connection.life:
                async with open_background_nursery() as nursery:
                    connection.write_in(nursery)
                    await self._read(client, connection, silence_timeout)
            is_cancelled = False
        finally:
            heartbeats.end()
            del self._connections[client]
            actions = self.switchboard.leave(trio.current_time(), client)
            if is_cancelled:
                # The server itself ends, and makes nobody the root in place of who is still there.
                actions = [action for action in actions if not isinstance(action, Send | Close)]
            self._act(actions)

    async def _read(
        self, client: Client, connection: ClientConnection, silence_timeout: float
    ) -> None:
        """Take in what *client* says, until its connection has ended, or is silent for too long."""
        patience = trio.CancelScope(deadline=trio.current_time() + silence_timeout)
        is_last_chance = False

        def take(text: Frame) -> None:
            nonlocal is_last_chance
            is_last_chance = False
            now = trio.current_time()
            patience.deadline = now + silence_timeout
            try:
                connection.check_allowance(now, len(text))
                frame = decode_bootstrap(text)
                actions = self.switchboard.receive(now, client, frame)
            except ProtocolError as error:
                logger.info("%s is closed: %s", connection.name, error)
                connection.close_nowait(str(error))
                patience.cancel()
                return
            if isinstance(client, Root) and not isinstance(frame, _OF_ROOTS):
                logger.debug("%s said what a root has no business to say", connection.name)
            self._act(actions)

        try:
            while True:
                with patience:
                    await connection.channel.deliver_to(take)
                now = trio.current_time()
                late = now - patience.deadline
                if is_last_chance or late <= 0:
                    break
                # This server was held up itself, and may not have read what has come meanwhile.
                is_last_chance = True
                patience = trio.CancelScope(deadline=now + late)
        except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
            return
        if connection.is_closing:
            await connection.closed.wait()
        else:
            logger.warning("%s is silent for %g s: it is closed", connection.name, silence_timeout)

    def _act(self, actions: Iterable[Action]) -> None:
        """Do what the switchboard decided; never waits."""
        for action in actions:
            match action:
                case Send(to, text):
                    connection = self._connections.get(to)
                    if connection is not None:
                        connection.send_nowait(text)
                case Close(client, reason):
                    connection = self._connections.get(client)
                    if connection is not None:
                        connection.close_nowait(reason)
                case Forward():
                    self._forward(action)
                case Announce(message):
                    self._announce(message)
        self._plan_tick()

    def _plan_tick(self) -> None:
        tick_at = self.switchboard.next_tick_at
        if self._next_tick is None or tick_at < self._next_tick.at:
            if self._next_tick is not None:
                self._next_tick.cancel()
            self._next_tick = None
            if tick_at < math.inf:
                self._next_tick = self._timeline.at(tick_at, self._tick)

    def _tick(self) -> None:
        """Let time pass for the switchboard."""
        self._next_tick = None
        self._act(self.switchboard.tick(trio.current_time()))

    # --- the cluster ----------------------------------------------------------------------

    def connected_nowait(self, session: Session, entry: Entry) -> None:  # noqa: ARG002
        self._act(self.switchboard.connect(trio.current_time(), entry.time))

    def refresh_nowait(self, session: Session) -> None:  # noqa: ARG002
        self._announce(self.switchboard.presence)

    def disconnected_nowait(self) -> None:
        self.switchboard.disconnect()

    def hear_nowait(self, tag: str, message: ServerMessage) -> None:
        self._act(self.switchboard.hear(trio.current_time(), tag, message))

    def hear_linkup_nowait(self, message: LinkupMessage) -> None:
        pass  # the broker's

    def _forward(self, forward: Forward) -> None:
        assert self._cluster is not None, "alone, there is nobody to forward to"

        def conclude(count: int | None) -> None:
            if count is None:
                self._not_delivered(forward, "the other servers are lost", is_certain=False)
            elif count == 0:
                self._not_delivered(forward, "its server is gone", is_certain=True)

        try:
            self._cluster.say_nowait(forward.message, forward.server, conclude)
        except ClusterUnavailable as error:
            self._not_delivered(forward, str(error), is_certain=False)

    def _not_delivered(self, forward: Forward, reason: str, *, is_certain: bool) -> None:
        now = trio.current_time()
        self._act(self.switchboard.undelivered(now, forward, reason, is_certain=is_certain))

    def _announce(self, message: ServerMessage) -> None:
        assert self._cluster is not None, "alone, there is nobody to tell"
        try:
            self._cluster.say_nowait(message)
        except ClusterUnavailable as error:
            # It is said again with the next refreshment, or in the next session.
            logger.debug("the other servers are not told: %s", error)


class _Heartbeats:
    """Signs of life for one client; none without an *interval*."""

    def __init__(
        self, timeline: Timeline, connection: ClientConnection, interval: float | None
    ) -> None:
        self._timeline = timeline
        self._connection = connection
        self._interval = interval
        self._next: Appointment | None = None
        self._plan()

    def end(self) -> None:
        """Give no more of them."""
        if self._next is not None:
            self._next.cancel()

    def _plan(self) -> None:
        if self._interval is not None:
            self._next = self._timeline.after(self._interval, self._give)

    def _give(self) -> None:
        self._connection.send_nowait(encode_bootstrap(Heartbeat()))
        self._plan()


def _is_announced(request: UpgradeRequest) -> bool:
    return ANNOUNCEMENT in request.query.split("&")
