"""Peers that stay registered whatever happens to their servers, and say letters to each other.

For servers in memory under a virtual clock and for real ones: all they need is a `Network`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from trio_overlay.channels.network import Network
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


class Wanderer:
    """One peer: it wants an id, and asks for it wherever it can, until it is cancelled."""

    def __init__(self, crowd: Crowd, wanted: str) -> None:
        self.wanted = wanted
        self.identifier = ""
        """What it is registered by, as far as it knows."""
        self.is_refused = False
        """Whether it was told last that another has the id that it wants."""
        self.broker: BrokerClient | None = None
        self.count_registrations = 0
        self._asked = ""
        self._crowd = crowd
        self._life = trio.CancelScope()
        self._visit = trio.CancelScope()
        self._is_kicked = trio.Event()

    def __repr__(self) -> str:
        return f"<Wanderer {self.identifier or 'without id'}, wants {self.wanted}>"

    @property
    def is_registered(self) -> bool:
        return self.identifier != ""

    def move(self) -> None:
        """Hang up, and dial again."""
        self._visit.cancel()

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
                while True:
                    try:
                        async with open_broker(
                            crowd.url, network=crowd.network, rng=crowd.rng, on_signal=self._hear
                        ) as broker:
                            with trio.CancelScope() as self._visit:
                                await self._stay(broker)
                    except OutcomeError:
                        pass  # the server is gone, or just going
                    finally:
                        self._leave()
                    await self._pause()
        finally:
            crowd.wanderers.remove(self)

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

    async def _stay(self, broker: BrokerClient) -> None:
        """Be registered by what is wanted, for as long as the broker is there."""
        self.broker = broker
        while not broker.lost.is_set():
            self._is_kicked = trio.Event()
            if self.identifier != self.wanted:
                self._asked = self.wanted
                try:
                    await broker.register(self._asked)
                except IdTaken:
                    self.is_refused = True
                except ServerRefused:
                    pass  # the other servers cannot be asked, or not yet
                else:
                    self.identifier, self.is_refused = self._asked, False
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

    def _leave(self) -> None:
        self.broker = None
        self.identifier = self._asked = ""
        self.is_refused = False

    async def _pause(self) -> None:
        await trio.sleep(self._crowd.retry_delay * self._crowd.rng.uniform(0.5, 1.5))

    def _hear(self, signal: PeerSignal) -> None:
        # The answer to a registration is heard a moment before it is known here.
        assert signal.recipient in (self.identifier, self._asked), (
            f"{self} heard what was for {signal.recipient}"
        )
        said = signal.signal
        assert isinstance(said, dict)
        number = said["letter"]
        assert isinstance(number, int)
        letter = self._crowd.letters[number]
        assert (signal.sender, signal.recipient) == (letter.sender, letter.recipient)
        assert letter.heard_by is None, f"{letter} is heard twice"
        letter.heard_by = self


def watch_holders(
    server: SignalingServer, on_taken: Callable[[str], None], on_left: Callable[[str], None]
) -> None:
    """Call *on_taken* just after, and *on_left* just before the broker changes who holds an id.

    So whoever notes times takes an id to be held for a little less long than it is.
    """
    server._broker.registrations._holders = _Watched(on_taken, on_left)


class _Watched(dict[str, Member]):
    def __init__(self, on_taken: Callable[[str], None], on_left: Callable[[str], None]) -> None:
        super().__init__()
        self._on_taken = on_taken
        self._on_left = on_left

    def __setitem__(self, identifier: str, member: Member) -> None:
        super().__setitem__(identifier, member)
        self._on_taken(identifier)

    def __delitem__(self, identifier: str) -> None:
        self._on_left(identifier)
        super().__delitem__(identifier)

    def pop(self, identifier: str, default: Any = None) -> Any:
        if identifier in self:
            self._on_left(identifier)
        return super().pop(identifier, default)
