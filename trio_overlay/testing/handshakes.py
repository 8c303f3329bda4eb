"""Peer connections of a virtual network: signals without SDP, channels without sockets."""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.channels.memory import MemoryChannel
from trio_overlay.channels.network import PeerConnection
from trio_overlay.channels.timeline import Appointment
from trio_overlay.errors import ConnectionFailed
from trio_overlay.protocol.signals import Answer, Candidate, Irrelevant, Offer, Signal
from trio_overlay.testing.cables import Cable

if TYPE_CHECKING:
    from trio_overlay.testing.network import VirtualHost, VirtualNetwork

MAX_SIGNALS = 200
"""More than that from the other end is no handshake."""
GATHERING_DELAY = 0.02
"""About so long a virtual end takes to find out each of its addresses."""

_OFFER = re.compile(r"virtual offer (\d+) of (\S+) with (\d+) candidates")
_ANSWER = re.compile(r"virtual answer (\d+) of (\S+) to (\d+) with (\d+) candidates")
_CANDIDATE = re.compile(r"candidate:virtual (\d+) of (\S+), number (\d+)")


class VirtualPeer(PeerConnection):
    """One end; made by `VirtualHost.open_peer`.

    Its descriptions are words that only this network understands. Ends are connected when each
    has taken in the other's description and at least one of its candidates, in the description
    or after it: stricter than ICE, so that a candidate that went astray is found.
    """

    def __init__(
        self, network: VirtualNetwork, host: VirtualHost, number: int, is_initiator: bool
    ) -> None:
        self.network = network
        self.host = host
        self.number = number
        self.is_initiator = is_initiator
        self.channel: MemoryChannel | None = None
        self.failure: str | None = None
        self.remote: int | None = None
        """The number of the other end, once its description is here."""
        self.is_connecting = False
        """Whether the two ends know enough of each other; it still takes a while."""
        self.cable: Cable | None = None
        self.rng = random.Random(
            f"{network.seed}/{host.name}/peer {network.count_peers[host.name]}"
        )
        self._trickles = self.rng.random() < network.trickle
        self._unsent: deque[Signal] = deque()
        self._has_said_all = False
        self._count_signals = 0
        self._candidates_of: set[int] = set()
        self._changed = trio.lowlevel.ParkingLot()
        self._listener: Callable[[Signal], object] | None = None
        """Who is told what this end says, and what came of that if it failed."""
        self._error: BaseException | None = None
        self._appointments: list[Appointment] = []
        if is_initiator:
            self._describe()

    def __str__(self) -> str:
        state = "connected" if self.channel is not None else self.failure or "connecting"
        return f"{self.host.name}: peer connection #{self.number}, {state}"

    @property
    def is_over(self) -> bool:
        """Whether this end cannot be connected any more."""
        return self.failure is not None

    async def next_signal(self) -> Signal:
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._unsent and not self._has_said_all:
            await self._changed.park()
        if self.failure is not None:
            raise ConnectionFailed(self.failure)
        if not self._unsent:
            raise trio.EndOfChannel
        return self._unsent.popleft()

    def signal_nowait(self, signal: Signal) -> None:
        if self.channel is not None or self.failure is not None or self.host.is_crashed:
            return
        self._count_signals += 1
        source, here = _sayer_of(signal), self.host.name
        if self._count_signals > MAX_SIGNALS:
            self.fail(f"more than {MAX_SIGNALS} signals")
        elif source is None:
            self._hear(signal)
        elif self.network.loses_signal(source, here):
            self.network.note(f"{here} loses {signal}")
        elif delay := self.network.draw_signal_delay(source, here):
            self.network.note(f"{here} has to wait for {signal}")
            self._later(delay, partial(self._hear, signal))
        else:
            self._hear(signal)

    async def connected(self) -> Channel:
        await trio.lowlevel.checkpoint_if_cancelled()
        while self.channel is None:
            if self.failure is not None:
                raise ConnectionFailed(self.failure)
            await self._changed.park()
        return self.channel

    async def connect(self, say: Callable[[Signal], object]) -> Channel:
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._unsent:
            say(self._unsent.popleft())
        self._listener = say
        try:
            return await self.connected()
        finally:
            self._listener = None
            error, self._error = self._error, None
            if error is not None:
                raise error

    def knows_a_way_to(self, other: VirtualPeer) -> bool:
        """Whether *other*'s description and one of its candidates are here."""
        return self.remote == other.number and other.number in self._candidates_of

    def fail(self, reason: str) -> None:
        """This end cannot be connected any more."""
        if self.channel is None and self.failure is None:
            self.failure = reason
            self._settle()

    def succeed(self, channel: MemoryChannel) -> None:
        """This end has seen its *channel* open."""
        if self.failure is None:
            self.channel = channel
            self._settle()

    def end(self) -> None:
        """The context of this end is being left."""
        self.fail("this peer connection was closed")
        self._settle()

    def _settle(self) -> None:
        self._has_said_all = True
        for appointment in self._appointments:
            appointment.cancel()
        self._appointments.clear()
        self._changed.unpark_all()

    def _hear(self, signal: Signal) -> None:
        self._take_in(signal)
        self.network.connect_if_ready(self)

    def _take_in(self, signal: Signal) -> None:
        match signal:
            case Offer(sdp):
                found = _OFFER.fullmatch(sdp)
                if self.is_initiator:
                    self.fail("an offer where an answer belongs")
                elif found is None:
                    self.fail("a broken description")
                elif self._accept_description(int(found[1]), int(found[3])):
                    self._describe()
            case Answer(sdp):
                found = _ANSWER.fullmatch(sdp)
                if not self.is_initiator:
                    self.fail("an answer where an offer belongs")
                elif found is None:
                    self.fail("a broken description")
                elif int(found[3]) != self.number:
                    self.fail("the answer to somebody else's offer")
                else:
                    self._accept_description(int(found[1]), int(found[4]))
            case Candidate(candidate):
                found = _CANDIDATE.fullmatch(candidate)
                if found is not None:  # others cannot be used and are passed over
                    self._candidates_of.add(int(found[1]))
            case Irrelevant():
                pass

    def _accept_description(self, number: int, count_candidates: int) -> bool:
        if self.remote is not None:
            return False  # the first one counts, as in the protocol of the originals
        self.remote = number
        if count_candidates:
            self._candidates_of.add(number)
        timeout = self.network.ice_timeout
        self._later(timeout, lambda: self.fail(f"the other end was not reached in {timeout:g} s"))
        return True

    def _describe(self) -> None:
        count = self.rng.randint(1, 3)
        ready_in = 0.0
        embedded = 0
        if not self._trickles:
            ready_in = sum(self._gathering_delay() for _ in range(count))
            embedded = count
        words = f"of {self.host.name} with {embedded} candidates"
        description: Signal
        if self.is_initiator:
            description = Offer(f"virtual offer {self.number} {words}")
        else:
            words = f"of {self.host.name} to {self.remote} with {embedded} candidates"
            description = Answer(f"virtual answer {self.number} {words}")
        signals: list[tuple[float, Signal]] = [(ready_in, description)]
        if self._trickles:
            for index in range(count):
                ready_in += self._gathering_delay()
                text = f"candidate:virtual {self.number} of {self.host.name}, number {index}"
                signals.append((ready_in, Candidate(text, "0", 0)))
            if self.rng.random() < 0.5:  # simple-peer 9 may say that these were all
                signals.append((ready_in, Candidate("", "0", 0)))
        last = len(signals) - 1
        for position, (delay, signal) in enumerate(signals):
            say = partial(self._say, signal, is_last=position == last)
            if delay == 0.0:
                say()
            else:
                self._later(delay, say)

    def _say(self, signal: Signal, *, is_last: bool) -> None:
        self._has_said_all = is_last
        if self._listener is None:
            self._unsent.append(signal)
            self._changed.unpark_all()
            return
        try:
            self._listener(signal)
        except BaseException as error:  # noqa: BLE001 - it leaves `connect`
            self._error = error
            self.fail("nobody takes its signals")

    def _later(self, delay: float, action: Callable[[], None]) -> None:
        self._appointments.append(self.network.timeline.after(delay, action))

    def _gathering_delay(self) -> float:
        return GATHERING_DELAY * (0.5 + self.rng.random())


def _sayer_of(signal: Signal) -> str | None:
    """The host that said it; None if that cannot be told, and then it is neither lost nor late."""
    match signal:
        case Offer(sdp):
            found = _OFFER.fullmatch(sdp)
        case Answer(sdp):
            found = _ANSWER.fullmatch(sdp)
        case Candidate(candidate):
            found = _CANDIDATE.fullmatch(candidate)
        case Irrelevant():
            return None
    return None if found is None else found[2]
