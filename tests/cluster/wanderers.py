"""Peers that stay registered whatever happens to their servers, and say letters to each other.

For servers in memory under a virtual clock and for real ones: all they need is a `Network`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from trio_overlay.channels.network import Network
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import IdTaken, OutcomeError, ServerRefused
from trio_overlay.protocol.broker import PeerSignal
from trio_overlay.protocol.broker_registrations import Member
from trio_overlay.protocol.json import JSON
from trio_overlay.signaling.broker_client import BrokerClient, open_broker
from trio_overlay.signaling.server import SignalingServer


@dataclass(eq=False)
class Letter:
    """A signal that one of the crowd has sent."""

    sender: str
    recipient: str
    heard_by: Wanderer | None = None


class Crowd:
    """All wanderers, and the letters between them. They dial *url* on *network*."""

    def __init__(
        self, network: Network, url: str, rng: random.Random, *, retry_delay: float = 1.1
    ) -> None:
        self.network = network
        self.url = url
        self.rng = rng
        self.retry_delay = retry_delay
        """Seconds between two attempts, on the average."""
        self.wanderers: list[Wanderer] = []
        self.letters: list[Letter] = []

    @property
    def registered(self) -> dict[str, Wanderer]:
        """Those who are, as far as they know, by their ids."""
        return {each.identifier: each for each in self.wanderers if each.is_registered}

    @property
    def wanted(self) -> set[str]:
        return {each.wanted for each in self.wanderers}

    @property
    def is_settled(self) -> bool:
        """Whether every id that somebody wants is held, and who has it not was told so."""
        return self.wanted <= self.registered.keys() and all(
            each.identifier == each.wanted or each.is_refused for each in self.wanderers
        )


@dataclass(eq=False)
class _Visit:
    """One connection to a broker."""

    staying: trio.CancelScope = field(default_factory=trio.CancelScope)
    lingers: float = 0.0
    """Seconds for which it is left open when the wanderer has gone on to the next."""
    is_left: trio.Event = field(default_factory=trio.Event)
    names: set[str] = field(default_factory=set)
    """By which it may be registered: the answer to a registration comes a moment before it is
    known here."""


class Wanderer:
    """One peer: it wants an id, and asks for it wherever it can, until it is cancelled.

    With a *secret*, it takes its id along when it dials again.
    """

    def __init__(self, crowd: Crowd, wanted: str, *, secret: str | None = None) -> None:
        self.wanted = wanted
        self.secret = secret
        self.identifier = ""
        """What it is registered by, as far as it knows."""
        self.is_refused = False
        """Whether it was told last that another has the id that it wants."""
        self.broker: BrokerClient | None = None
        self.count_registrations = 0
        self.registered_at = 0.0
        self._crowd = crowd
        self._life = trio.CancelScope()
        self._visit = _Visit()
        self._is_kicked = trio.Event()

    def __repr__(self) -> str:
        return f"<Wanderer {self.identifier or 'without id'}, wants {self.wanted}>"

    @property
    def is_registered(self) -> bool:
        return self.identifier != ""

    def move(self) -> None:
        """Hang up, and dial again."""
        self._visit.staying.cancel()

    def lose_touch(self, seconds: float) -> None:
        """Dial again, while the broker does not learn for so long that the connection is dead."""
        self._visit.lingers = seconds
        self._visit.staying.cancel()

    def want(self, identifier: str) -> None:
        """Ask for another id, on the same connection."""
        self.wanted = identifier
        self.is_refused = False
        self._is_kicked.set()

    def end(self) -> None:
        """Hang up for good."""
        self._life.cancel()

    async def run(self) -> None:
        crowd = self._crowd
        crowd.wanderers.append(self)
        try:
            with self._life:
                async with open_background_nursery() as nursery:
                    while True:
                        self._visit = _Visit()
                        nursery.start_soon(self._pay, self._visit)
                        await self._visit.is_left.wait()
                        await self._pause()
        finally:
            crowd.wanderers.remove(self)

    async def _pay(self, visit: _Visit) -> None:
        """One visit, from dialling to the end of its connection."""
        crowd, hear = self._crowd, partial(self._hear, visit)
        try:
            async with open_broker(
                crowd.url, network=crowd.network, rng=crowd.rng, on_signal=hear
            ) as broker:
                with visit.staying:
                    await self._stay(visit, broker)
                if visit.lingers:
                    self._leave(visit)
                    with trio.move_on_after(visit.lingers):
                        await broker.lost.wait()
        except OutcomeError:
            pass  # the server is gone, or just going
        finally:
            self._leave(visit)

    async def say(self, recipient: str) -> Letter | None:
        """Send a letter to *recipient*; None if there is no broker to take it."""
        broker, crowd = self.broker, self._crowd
        if broker is None or not self.is_registered:
            return None
        letter = Letter(self.identifier, recipient)
        crowd.letters.append(letter)
        signal: JSON = {"type": "offer", "sdp": "v=0", "letter": len(crowd.letters) - 1}
        try:
            await broker.send_signal(self.identifier, recipient, signal)
        except OutcomeError:
            return None
        return letter

    async def _stay(self, visit: _Visit, broker: BrokerClient) -> None:
        """Be registered by what is wanted, for as long as the broker is there."""
        self.broker = broker
        while not broker.lost.is_set():
            self._is_kicked = trio.Event()
            if self.identifier != self.wanted:
                asked = self.wanted
                visit.names.add(asked)
                try:
                    await broker.register(asked, secret=self.secret)
                except IdTaken:
                    self.is_refused = True
                    visit.names.discard(asked)
                except ServerRefused:
                    pass  # the other servers cannot be asked, or not yet
                else:
                    self.identifier, self.is_refused = asked, False
                    visit.names = {asked}
                    self.registered_at = trio.current_time()
                    self.count_registrations += 1
            if self.identifier == self.wanted:
                await self._until(broker, float("inf"))
            else:
                await self._until(broker, self._crowd.retry_delay)

    async def _until(self, broker: BrokerClient, seconds: float) -> None:
        """Wait so long, or until something has changed."""
        async with trio.open_nursery() as nursery:

            async def wait(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.cancel_scope.deadline = trio.current_time() + seconds
            nursery.start_soon(wait, broker.lost)
            nursery.start_soon(wait, self._is_kicked)

    def _leave(self, visit: _Visit) -> None:
        if not visit.is_left.is_set():
            visit.is_left.set()
            self.broker = None
            self.identifier = ""
            self.is_refused = False

    async def _pause(self) -> None:
        await trio.sleep(self._crowd.retry_delay * self._crowd.rng.uniform(0.5, 1.5))

    def _hear(self, visit: _Visit, signal: PeerSignal) -> None:
        assert signal.recipient in visit.names, f"{self} heard what was for {signal.recipient}"
        if visit.is_left.is_set():
            return
        said = signal.signal
        assert isinstance(said, dict)
        number = said["letter"]
        assert isinstance(number, int)
        letter = self._crowd.letters[number]
        assert (signal.sender, signal.recipient) == (letter.sender, letter.recipient)
        assert letter.heard_by is None, f"{letter} is heard twice"
        letter.heard_by = self


def watch_holders(
    server: SignalingServer,
    on_taken: Callable[[str, str], None],
    on_left: Callable[[str, str], None],
) -> None:
    """Call *on_taken* just after, and *on_left* just before the broker changes who holds an id.

    With the id and the digest of its holder, who is the same peer if that is the same and not
    empty. Whoever notes times takes an id to be held for a little less long than it is.
    """
    server._broker.registrations._holders = _Watched(on_taken, on_left)


class _Watched(dict[str, Member]):
    def __init__(
        self, on_taken: Callable[[str, str], None], on_left: Callable[[str, str], None]
    ) -> None:
        super().__init__()
        self._on_taken = on_taken
        self._on_left = on_left

    def __setitem__(self, identifier: str, member: Member) -> None:
        super().__setitem__(identifier, member)
        self._on_taken(identifier, member.digest)

    def __delitem__(self, identifier: str) -> None:
        self._on_left(identifier, self[identifier].digest)
        super().__delitem__(identifier)

    def pop(self, identifier: str, default: Any = None) -> Any:
        if identifier in self:
            self._on_left(identifier, self[identifier].digest)
        return super().pop(identifier, default)
