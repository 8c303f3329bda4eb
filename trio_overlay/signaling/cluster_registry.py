"""The registry that brokers of a cluster share: among them, nobody holds an id that another does.

Brokers of linkup in the cluster are asked too, and answered, but promise nothing: see
docs/cluster.md for the hole that they leave.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import trio

from trio_overlay.errors import ClusterUnavailable, MalformedFrame
from trio_overlay.protocol.broker import PeerSignal, check_peer_signal
from trio_overlay.protocol.cluster import (
    LINKUP_CHANNEL,
    Inquiry,
    LinkupFind,
    LinkupFound,
    LinkupMessage,
    LinkupSignal,
    Moved,
    PassedOn,
    ServerMessage,
    encode_linkup,
    encode_server_message,
)
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.leases import Claim, Leases
from trio_overlay.signaling.cluster import Cluster, ClusterMember
from trio_overlay.signaling.registry import LocalPeers, Registry
from trio_overlay.signaling.shared_store import Entry, Session, Verdict

INQUIRY_TIMEOUT: Final = 1.0
"""Seconds for linkup's brokers to answer; one that does not has nobody, as far as we know."""

FAREWELL_TIMEOUT: Final = 1.0
BATCH: Final = 500
"""Claims renewed in one step of the store, in which it does nothing else."""

logger = logging.getLogger(__name__)


class ClusterRegistry(Registry, ClusterMember):
    """The ids of all brokers of *cluster*, as seen from one of them."""

    def __init__(self, cluster: Cluster) -> None:
        self.leases = Leases(cluster.lease)
        self._cluster = cluster
        self._peers: LocalPeers | None = None
        self._inquiries: dict[str, list[tuple[Inquiry, trio.Event]]] = {}
        self._lapse_at = math.inf
        self._rescheduled = trio.Event()

    # --- what the broker asks -------------------------------------------------------------

    async def run(
        self, peers: LocalPeers, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        self._peers = peers
        self._cluster.attach(self)
        try:
            task_status.started()
            while True:
                self._lapse()
                self._rescheduled = trio.Event()
                self._lapse_at = self.leases.next_lapse_at
                with trio.CancelScope(deadline=self._lapse_at):
                    await self._rescheduled.wait()
        finally:
            self._cluster.detach(self)
            await self._release_all()

    def catch_up_nowait(self) -> None:
        self._lapse()

    async def claim(self, identifier: str, digest: str = "") -> bool:
        session, tag = self._cluster.session, self._cluster.tag
        moved = encode_server_message(tag, Moved(identifier))
        token = f"{tag}:{self._cluster.rng.getrandbits(64):x}"
        claim = self.leases.ask(identifier, token, digest)
        is_kept = False
        try:
            asked_at = trio.current_time()
            outcome = await session.claim(identifier, token, digest, moved).wait()
            match outcome.verdict:
                case Verdict.TAKEN:
                    return False
                case Verdict.QUARANTINED:
                    raise ClusterUnavailable(
                        "the store of the cluster is new, or has lost its data: ids can be "
                        f"registered in {outcome.quarantine:.1f} s"
                    )
            if not self._grant(claim, asked_at):
                raise ClusterUnavailable("the store of the cluster took too long")
            if outcome.count_foreign and await self._inquire(identifier, outcome.count_subscribers):
                return False
            if claim.is_over:
                raise ClusterUnavailable("the id was lost before it was registered")
            is_kept = True
            return True
        finally:
            if not is_kept:
                self._end(claim)

    def release_nowait(self, identifier: str) -> None:
        claim = self.leases.get(identifier)
        if claim is not None:
            self._end(claim)

    async def locate(self, identifier: str) -> bool:
        where = await self._cluster.session.look_up(identifier).wait()
        if where.is_held or not where.count_foreign:
            return where.is_held
        return await self._inquire(identifier, where.count_subscribers)

    async def forward(self, signal: PeerSignal) -> None:
        params = dict(signal.params)
        message = encode_server_message(self._cluster.tag, PassedOn(params))
        linkup_message = encode_linkup(LinkupSignal(params))
        session = self._cluster.session
        await session.pass_on(signal.recipient, message, linkup_message).wait()

    # --- what the cluster says ------------------------------------------------------------

    def connected_nowait(self, session: Session, entry: Entry) -> None:
        if entry.quarantine:
            logger.warning(
                "the store of the cluster is new, or has lost its data: no new ids for %.1f s",
                entry.quarantine,
            )
        self._release(session, self.leases.debts(trio.current_time()))
        self._renew(session)

    def refresh_nowait(self, session: Session) -> None:
        self._renew(session)

    def disconnected_nowait(self) -> None:
        pass  # what is held is held until it lapses

    def hear_nowait(self, tag: str, message: ServerMessage) -> None:
        self._lapse()
        match message:
            case PassedOn(params, token):
                signal = self._checked(params, f"server {tag}")
                if signal is not None and self._claim_under(token, signal.recipient) is not None:
                    self._deliver(signal)
            case Moved(identifier, token):
                claim = self._claim_under(token, identifier)
                if claim is not None:
                    self.leases.end(claim, trio.current_time())
                    self._lose(claim, f"its peer has registered at server {tag}")

    def hear_linkup_nowait(self, message: LinkupMessage) -> None:
        self._lapse()
        match message:
            case LinkupFind(identifier):
                self._answer(identifier)
            case LinkupFound(identifier, found):
                for inquiry, is_over in self._inquiries_of(identifier):
                    inquiry.hear_answer(found=found)
                    if inquiry.is_over:
                        is_over.set()
            case LinkupSignal(params):
                signal = self._checked(params, "a broker of linkup")
                if signal is not None:
                    self._deliver(signal)

    def _answer(self, identifier: JSON) -> None:
        """Every subscriber says exactly once whether it has the peer."""
        claim = self.leases.get(identifier) if isinstance(identifier, str) else None
        found = claim is not None and claim.is_granted
        for inquiry, _ in self._inquiries_of(identifier):
            inquiry.hear_question(own_answer=found)
        try:
            self._cluster.session.publish(
                LINKUP_CHANNEL, encode_linkup(LinkupFound(identifier, found))
            )
        except ClusterUnavailable as error:
            logger.warning("a question of linkup's is not answered: %s", error)

    def _inquiries_of(self, identifier: JSON) -> Sequence[tuple[Inquiry, trio.Event]]:
        return self._inquiries.get(identifier, ()) if isinstance(identifier, str) else ()

    async def _inquire(self, identifier: str, count_subscribers: int) -> bool:
        """Whether some other subscriber of linkup's channel says that it has *identifier*."""
        inquiry, is_over = Inquiry(count_subscribers), trio.Event()
        waiting = self._inquiries.setdefault(identifier, [])
        waiting.append((inquiry, is_over))
        try:
            self._cluster.session.publish(LINKUP_CHANNEL, encode_linkup(LinkupFind(identifier)))
            with trio.move_on_after(INQUIRY_TIMEOUT) as scope:
                await is_over.wait()
            if scope.cancelled_caught:
                logger.warning("not all subscribers of %s answer", LINKUP_CHANNEL)
            return inquiry.is_found
        finally:
            waiting.remove((inquiry, is_over))
            if not waiting:
                del self._inquiries[identifier]

    def _checked(self, params: JSON, whose: str) -> PeerSignal | None:
        try:
            return check_peer_signal(params)
        except MalformedFrame as error:
            logger.warning("a signal of %s is passed over: %s", whose, error)
            return None

    def _claim_under(self, token: str, identifier: str) -> Claim | None:
        """What this server claims by *token*, if it still does."""
        claim = self.leases.get(identifier)
        return claim if claim is not None and claim.token == token else None

    def _deliver(self, signal: PeerSignal) -> None:
        if self._peers is not None:
            self._peers.deliver_nowait(signal)

    # --- leases ---------------------------------------------------------------------------

    def _grant(self, claim: Claim, asked_at: float) -> bool:
        is_granted = self.leases.grant(claim, asked_at, trio.current_time())
        if self.leases.next_lapse_at < self._lapse_at:
            self._rescheduled.set()
        return is_granted

    def _lapse(self) -> None:
        lapsed = self.leases.lapse(trio.current_time())
        if lapsed:
            logger.warning("%d ids are lost, as they could not be renewed", len(lapsed))
        for claim in lapsed:
            self._lose(claim, "the id could not be kept: the store of the cluster is away")

    def _renew(self, session: Session) -> None:
        claims = self.leases.to_renew()
        for batch in (claims[first : first + BATCH] for first in range(0, len(claims), BATCH)):
            self._renew_batch(session, batch)

    def _renew_batch(self, session: Session, batch: list[Claim]) -> None:
        asked_at = trio.current_time()

        def conclude(kept: list[bool] | None) -> None:
            if kept is None:
                return
            for claim, is_kept in zip(batch, kept, strict=True):
                if claim.is_over:
                    continue
                if is_kept:
                    self._grant(claim, asked_at)
                else:
                    self.leases.end(claim, trio.current_time())
                    # Its peer has moved it, or the store has come back with old data.
                    logger.warning(
                        "another server has the id %s, which was held here", claim.identifier
                    )
                    self._lose(claim, "another server has the id")

        try:
            answer = session.renew([(each.identifier, each.token, each.digest) for each in batch])
            self._cluster.when_answered(answer, conclude)
        except ClusterUnavailable as error:
            logger.warning("%d ids are not renewed: %s", len(batch), error)

    def _lose(self, claim: Claim, reason: str) -> None:
        if self._peers is not None:
            self._peers.lose_nowait(claim.identifier, reason)

    def _end(self, claim: Claim) -> None:
        if claim.is_over:
            return
        self.leases.end(claim, trio.current_time())
        if self._cluster.is_connected:
            self._release(self._cluster.session, [(claim.identifier, claim.token)])

    def _release(self, session: Session, claims: Sequence[tuple[str, str]]) -> None:
        """Tell the store; what it does not confirm stays a debt, for the next session."""

        def conclude(count: int | None) -> None:
            if count is not None:
                self.leases.settle(token for _, token in claims)

        if not claims:
            return
        try:
            self._cluster.when_answered(session.release(claims), conclude)
        except ClusterUnavailable as error:
            logger.debug("%d ids are not released: %s", len(claims), error)

    async def _release_all(self) -> None:
        for claim in self.leases.to_renew():
            # First here and then there: nobody may be given the id while a peer of ours has it.
            self.leases.end(claim, trio.current_time())
            self._lose(claim, "the server is stopping")
        debts = self.leases.debts(trio.current_time())
        if debts and self._cluster.is_connected:
            with trio.move_on_after(FAREWELL_TIMEOUT, shield=True):
                with suppress(ClusterUnavailable):  # free, then, at the end of their leases
                    await self._cluster.session.release(debts).wait()
