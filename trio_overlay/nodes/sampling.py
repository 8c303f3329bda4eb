"""A peer that samples its network: it always knows a few others, and whoever they are, at random.

It does what spray-wrtc does, and speaks with it. What it decides is decided in
protocol/sampling.py; its arcs are those of a protocol of nodes/neighbours.py. Here is what lives in
time: exchanges, arcs that are being handed over, words on their way, and the way back in for who
has lost everybody.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, TypeAlias, assert_never

import trio

from trio_overlay.channels.internet import IceServer
from trio_overlay.channels.network import Network
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import MalformedFrame, OutcomeError, OverlayError, PeerNotFound, UsageError
from trio_overlay.nodes.heartbeat import Heartbeat
from trio_overlay.nodes.neighbours import (
    ATTEMPT_TIMEOUT,
    HEARTBEAT,
    ArcFail,
    Neighbours,
    Received,
    open_neighbours,
)
from trio_overlay.nodes.streams import Stream
from trio_overlay.protocol.neighbours import Side, peer_of
from trio_overlay.protocol.sampling import (
    DEFAULT_MAX_ARCS,
    Action,
    Close,
    Connect,
    HandOver,
    Spray,
    Tell,
)
from trio_overlay.protocol.sampling_frames import (
    PROTOCOL_ID,
    Exchange,
    Leave,
    SamplingFrame,
    decode_sampling,
    encode_sampling,
)

logger = logging.getLogger(__name__)

DEFAULT_INTERVAL = 120.0
"""spray-wrtc's."""
FIRST_EXCHANGE = 0.1
"""Share of an interval in which who has just joined begins its first exchange, at random: a view of
one arc is a bad one to welcome the next newcomer with."""
MIN_EXCHANGE_GAP = 0.25
"""Share of an interval that a neighbour has to wait until we exchange with it again."""
SEND_TIMEOUT = 5.0
"""Seconds after which a neighbour that takes no message is given up."""
FAILURE_DELAY = 1.0
"""Seconds until another arc is tried for one that failed: some fail as soon as they are begun."""
LEAVE_TIME = 2.0
MIN_REJOIN_DELAY, MAX_REJOIN_DELAY = 0.5, 30.0

FindContact: TypeAlias = Callable[[Neighbours], Awaitable[str]]
"""Opens a first arc by whatever road; gives the end of whoever is there, as `Neighbours.attach` and
`Neighbours.initiate` do. It raises an OutcomeError if that didn't work out this time."""


class SamplingState(Enum):
    """How well a peer is connected; the names are spray-wrtc's."""

    CONNECTED = "connected"
    """There are arcs in both views."""
    PARTIALLY_CONNECTED = "partially connected"
    """There are arcs in one of the views."""
    DISCONNECTED = "disconnected"
    """There is no arc."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """The peer is better, or worse, connected than before."""

    name: ClassVar[str] = "statechange"
    state: SamplingState


@asynccontextmanager
async def open_sampling(
    neighbours: Neighbours | None = None,
    *,
    find_contact: FindContact | None = None,
    interval: float = DEFAULT_INTERVAL,
    a: float = 1.0,
    b: float = 0.0,
    max_arcs: int = DEFAULT_MAX_ARCS,
    peer: str | None = None,
    ice_servers: Iterable[IceServer] = (),
    network: Network | None = None,
    heartbeat: Heartbeat | None = HEARTBEAT,
    rng: random.Random | None = None,
) -> AsyncIterator[Sampling]:
    """A peer that samples its network, and knows nobody yet: call `Sampling.join`, or be joined.

    *find_contact* opens its first arc: at `Sampling.join`, and again whenever the last arc is lost.
    Without it, such a peer stays alone until somebody opens an arc to it.

    Every *interval* seconds it begins an exchange. Views have a·ln(n)+b arcs in a network of n, if
    all peers have the same *a* and *b*; never more than *max_arcs*.

    *neighbours* is the protocol whose arcs these are; its events and messages are ours to read, and
    its pid is the network's. By default a peer is opened for it, with the original's pid; *peer*,
    *ice_servers*, *network* and *heartbeat* are as for `open_neighbours`.

    Leaving the context leaves the network at once, as a crash would, but noticed; `Sampling.leave`
    mends it before. Leave *neighbours*, too: it goes on to take arcs that were on their way, and
    others would think that somebody samples here.

    ValueError: *interval* is not above 0, *a* less than 1, *b* negative, *max_arcs* less than 1.
    """
    if not interval > 0:
        raise ValueError(f"interval is above 0 seconds, not {interval}")
    # By default the names of attempts cannot be guessed: `open_neighbours` says why.
    arcs_rng = random.Random(rng.getrandbits(64)) if rng is not None else None
    rng = rng or random.Random()
    async with AsyncExitStack() as stack:
        if neighbours is None:
            opening = open_neighbours(
                PROTOCOL_ID,
                peer=peer,
                ice_servers=ice_servers,
                network=network,
                heartbeat=heartbeat,
                rng=arcs_rng,
            )
            neighbours = await stack.enter_async_context(opening)
        node = Sampling(
            neighbours, rng, find_contact, interval=interval, a=a, b=b, max_arcs=max_arcs
        )
        nursery = await stack.enter_async_context(open_background_nursery())
        await nursery.start(node._live)
        try:
            yield node
        finally:
            node._close()


class Sampling:
    """A peer that samples its network; made by `open_sampling`."""

    def __init__(
        self,
        neighbours: Neighbours,
        rng: random.Random,
        find_contact: FindContact | None,
        *,
        interval: float,
        a: float,
        b: float,
        max_arcs: int,
    ) -> None:
        self.neighbours = neighbours
        """The arcs. What applications say to peers goes by a protocol of its own: see
        `Neighbours.open_protocol`."""
        self.interval = interval
        self.events: Stream[StateChange] = Stream()
        """When this peer is connected, and when not; unread, the newest thousand."""
        self._rng = rng
        self._find_contact = find_contact
        inview = _Inview(neighbours)
        self._spray = Spray(neighbours.peer, inview, rng, a=a, b=b, max_arcs=max_arcs)
        self._state = SamplingState.DISCONNECTED
        self._nursery: trio.Nursery
        self._pause = trio.CancelScope()
        """Around waiting for the next exchange."""
        self._lonely = trio.Event()
        """Set when a peer that had arcs has none any more."""
        self._last_view: Counter[str] = Counter()
        self._view_watchers = trio.lowlevel.ParkingLot()
        self._handed: dict[_Handed, None] = {}  # a set that keeps its order
        self._exchanged_at: dict[str, float] = {}
        """When each neighbour that we have an arc from had its last exchange."""

    def __repr__(self) -> str:
        return f"<Sampling {self.peer}, {self.state.value}, {len(self._spray.view)} arcs>"

    @property
    def peer(self) -> str:
        """What this peer is called."""
        return self.neighbours.peer

    @property
    def state(self) -> SamplingState:
        return self._state

    @property
    def view(self) -> Mapping[str, int]:
        """How many arcs of the partial view lead to each peer; as it is now.

        Arcs that are being handed over are not in it any more, though they are still open.
        """
        return self._spray.view.counts()

    @property
    def has_left(self) -> bool:
        return self._spray.has_left

    async def wait_for_change(self) -> None:
        """Wait until the view is another than now; for ever, once this peer has left."""
        await self._view_watchers.park()

    def sample(self, count: int = 1) -> list[str]:
        """Up to *count* different peers at random; fewer if we know fewer.

        Those of the view, which is mixed all the time, are as good as chosen from the whole
        network; when they are not enough, others who have arcs to us are added. ``peer + "-I"`` is
        a peer's end for `Neighbours.connect` and `Neighbours.send`.

        ValueError: *count* is negative.
        """
        return self._spray.sample(count)

    def estimate_size(self) -> float:
        """About how many peers the network has, this one included.

        From the sizes of views, which are logarithms: expect a factor of two in a network that has
        grown slowly, and more in one that came at once (docs/sampling.md). It needs some
        exchanges, and the same *a* and *b* everywhere.
        """
        return self._spray.estimate_size()

    async def join(self, contact: str | None = None) -> str:
        """Become part of a network; the contact's end.

        *contact* is an end in our outview; by default *find_contact* opens an arc to somebody.
        Returning means that the contact is told: arcs come from its neighbours after that.

        PeerNotFound: the contact is gone. What *find_contact* raises is raised here.
        UsageError: there is no arc to *contact*, no *find_contact*, or this peer has left.
        """
        await trio.lowlevel.checkpoint()
        if contact is None:
            if self._find_contact is None:
                raise UsageError("there is nobody to join by: no contact, and no find_contact")
            self._check_here()
            contact = await self._find_contact(self.neighbours)
        self._check_here()
        if not self.neighbours.outview.get(contact):
            raise UsageError(f"there is no arc to {contact}")
        self._catch_up()
        for action in self._spray.join(peer_of(contact), f"{self._rng.getrandbits(64):016x}"):
            if isinstance(action, Tell):
                await self._say(action.peer, action.frame)
            else:
                self._act([action])
        soon = trio.current_time() + self._rng.random() * FIRST_EXCHANGE * self.interval
        self._pause.deadline = min(self._pause.deadline, soon)
        return contact

    async def leave(self, seconds: float = LEAVE_TIME) -> None:
        """Leave the network in good order: introduce those who have arcs to us to those we have
        arcs to, stay so many *seconds* to pass on what they say, and close all arcs.

        Afterwards this peer takes part in nothing; the end of its context closes what is left.
        Cancelled, it leaves at once.

        UsageError: this peer has left.
        """
        await trio.lowlevel.checkpoint()
        self._check_here()
        self._catch_up()
        actions = self._spray.leave()
        try:
            self._act(action for action in actions if not isinstance(action, Close))
            await trio.sleep(seconds)
        finally:
            self.neighbours.disconnect()
            self._catch_up()

    def _check_here(self) -> None:
        if self._spray.has_left:
            raise UsageError("this peer has left")

    def _close(self) -> None:
        if not self._spray.has_left:
            self._spray.leave()
        self.neighbours.disconnect()
        self._note_state()
        self.events.close()

    # --- what lives in time ---------------------------------------------------------------

    async def _live(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._watch_arcs)
            self._nursery.start_soon(self._listen)
            self._nursery.start_soon(self._exchange_again_and_again)
            if self._find_contact is not None:
                self._nursery.start_soon(self._find_the_way_back, self._find_contact)
            task_status.started()

    async def _watch_arcs(self) -> None:
        async for event in self.neighbours.events:
            if isinstance(event, ArcFail) and event.is_outgoing:
                self._nursery.start_soon(self._replace, event.peer and peer_of(event.peer))
            self._catch_up()
        self._close()  # whose arcs these are has left

    async def _replace(self, peer: str | None) -> None:
        """Another arc for one to *peer* that failed."""
        await trio.sleep(FAILURE_DELAY * (0.5 + self._rng.random()))
        self._catch_up()
        self._act(self._spray.failed(peer))

    async def _listen(self) -> None:
        async for received in self.neighbours.messages:
            try:
                self._hear(received)
            except MalformedFrame as error:
                logger.info("%s says what does not belong here: %s", received.peer, error)

    def _hear(self, received: Received) -> None:
        frame, sender = decode_sampling(received.data), peer_of(received.peer)
        if isinstance(frame, Exchange) and not self._may_exchange(sender):
            logger.info("%s wants to exchange too often", sender)
            return
        self._catch_up()
        self._act(self._spray.receive(sender, frame))

    def _may_exchange(self, peer: str) -> bool:
        """Whether *peer* has waited long enough; who gives nothing shall not empty our view."""
        now, inview = trio.current_time(), self._spray.inview
        known = {one: at for one, at in self._exchanged_at.items() if one in inview}
        self._exchanged_at = known
        if peer not in inview or now - known.get(peer, -self.interval) < (
            MIN_EXCHANGE_GAP * self.interval
        ):
            return False
        known[peer] = now
        return True

    async def _exchange_again_and_again(self) -> None:
        while True:
            self._pause = trio.CancelScope(deadline=trio.current_time() + self.interval)
            with self._pause:
                await trio.sleep_forever()
            await self._exchange()

    async def _exchange(self) -> None:
        self._catch_up()
        if self._spray.has_left:
            return
        partner = self._spray.choose_partner()
        if partner is None:
            self._act(self._spray.reach_out())
            return
        greeting = self._spray.greeting()
        said = Exchange(self.neighbours.inview_id, self.peer, greeting.arcs)
        try:
            await self._say(partner, said)
        except OverlayError as error:
            logger.info("no exchange with %s: %s", partner, error)
            self._catch_up()
            arcs = self._spray.view.counts()[partner]
            actions = self._spray.lost(partner)
            for _ in range(arcs):
                self._close_arc(partner)
            self._act(actions)
            return
        self._catch_up()
        self._act(self._spray.exchange(partner))

    async def _find_the_way_back(self, find_contact: FindContact) -> None:
        failures = 0
        while True:
            await self._lonely.wait()
            delay = min(MIN_REJOIN_DELAY * 2**failures, MAX_REJOIN_DELAY)
            await trio.sleep(delay * (0.5 + self._rng.random()))
            if self._state is not SamplingState.DISCONNECTED or self._spray.has_left:
                self._lonely = trio.Event()
                failures = 0
                continue
            try:
                await self.join(await find_contact(self.neighbours))
            except (OutcomeError, UsageError) as error:
                failures += 1
                logger.info("%s found no way back: %s", self.peer, error)

    # --- arcs -----------------------------------------------------------------------------

    def _catch_up(self) -> None:
        """Let the view follow what has become of our arcs.

        By counting them, and not by events: these may be late, and some may be lost in a flood.
        """
        spray = self._spray
        actions: list[Action] = []
        outview: Counter[str] = Counter()
        for end, count in self.neighbours.outview.items():
            outview[peer_of(end)] += count
        for handed in list(self._handed):
            if not outview[handed.taker] and not spray.inview.get(handed.taker):
                handed.give_up()  # its taker is gone, so it is ours as before
                del self._handed[handed]
        in_hands = Counter(handed.peer for handed in self._handed)
        in_view = spray.view.counts()
        for peer in dict.fromkeys((*outview, *in_hands, *in_view)):
            surplus = outview[peer] - in_view[peer] - in_hands[peer]
            for _ in range(surplus):
                actions += spray.opened(peer)
            if surplus < 0:
                lacking = min(-surplus, in_view[peer])
                actions += spray.lost(peer, lacking if outview[peer] else None)
                for handed in [one for one in self._handed if one.peer == peer][
                    : -surplus - lacking
                ]:
                    handed.give_up()
                    del self._handed[handed]
        self._act(actions)
        self._note_state()

    def _note_state(self) -> None:
        has_out, has_in = bool(self.neighbours.outview), bool(self.neighbours.inview)
        state = (
            SamplingState.CONNECTED
            if has_out and has_in
            else SamplingState.PARTIALLY_CONNECTED
            if has_out or has_in
            else SamplingState.DISCONNECTED
        )
        if state is not self._state:
            self._state = state
            self.events.put(StateChange(state))
            if state is SamplingState.DISCONNECTED:
                self._lonely.set()

    def _act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Connect(source, target):
                    self._nursery.start_soon(self._connect, source, target)
                case HandOver(peer, taker):
                    handed = _Handed(peer, taker)
                    self._handed[handed] = None
                    self._nursery.start_soon(self._hand_over, handed)
                case Close(peer):
                    self._close_arc(peer)
                case Tell(peer, frame):
                    self._nursery.start_soon(self._say_or_not, peer, frame)
                case _:
                    assert_never(action)
        # All that changes the view comes by here, with what is to be done about it.
        view = self._spray.view.counts()
        if view != self._last_view:
            self._last_view = view
            self._view_watchers.unpark_all()

    async def _connect(self, source: str, target: str) -> None:
        try:
            if source == self.peer:
                # What becomes of it is in the events, as that of attempts that others ask for.
                await self.neighbours.connect(to=self._end_of(target))
            elif target == self.peer:
                await self.neighbours.connect(from_=self._end_of(source))
            else:
                await self.neighbours.connect(self._end_of(source), self._end_of(target))
        except (OutcomeError, UsageError) as error:
            logger.info("no arc from %s to %s: %s", source, target, error)
            if source == self.peer and isinstance(error, PeerNotFound):
                await self._replace(target)  # it did not even begin

    async def _hand_over(self, handed: _Handed) -> None:
        """Have the taker open an arc, and give it the time before ours is closed.

        Not whoever takes it, but only that it is gone, can be known for sure: the originals
        tell nobody how an attempt ended. An arc in hand costs nothing.
        """
        peer = self.peer if handed.peer == handed.taker else handed.peer
        with handed.scope:
            await self._connect(handed.taker, peer)
            await trio.sleep(min(ATTEMPT_TIMEOUT, self.interval / 2))
        if handed in self._handed:
            del self._handed[handed]
            self._close_arc(handed.peer)

    def _close_arc(self, peer: str) -> None:
        self.neighbours.disconnect(Side.IN.end_of(peer))

    def _end_of(self, peer: str) -> str:
        """The end of *peer* that we have an arc to or from; if there is none, of a connection."""
        out = Side.IN.end_of(peer)
        return out if self.neighbours.outview.get(out) else Side.OUT.end_of(peer)

    # --- words ----------------------------------------------------------------------------

    async def _say(self, peer: str, frame: SamplingFrame) -> None:
        """Say *frame* to a neighbour.

        PeerNotFound: it cannot be reached, or takes nothing.
        """
        # The original forgets the end that an MLeave comes from: it has to be that of its arcs.
        end = Side.OUT.end_of(peer) if isinstance(frame, Leave) else self._end_of(peer)
        with trio.move_on_after(SEND_TIMEOUT):
            await self.neighbours.send(end, encode_sampling(frame), retries=0)
            return
        raise PeerNotFound(f"{peer} takes no message")

    async def _say_or_not(self, peer: str, frame: SamplingFrame) -> None:
        try:
            await self._say(peer, frame)
        except OverlayError as error:
            logger.info("%s was not told: %s", peer, error)


class _Inview(Mapping[str, int]):
    """Who has arcs to us: by peers, not by their ends, and as it is now."""

    def __init__(self, neighbours: Neighbours) -> None:
        self._neighbours = neighbours

    def __getitem__(self, peer: str) -> int:
        return self._neighbours.inview[Side.OUT.end_of(peer)]

    def __iter__(self) -> Iterator[str]:
        return map(peer_of, self._neighbours.inview)

    def __len__(self) -> int:
        return len(self._neighbours.inview)


@dataclass(eq=False, slots=True)
class _Handed:
    """An arc of ours to `peer` that `taker` is to have instead."""

    peer: str
    taker: str
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def give_up(self) -> None:
        self.scope.cancel()
