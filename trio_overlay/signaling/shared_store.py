"""What the servers of a cluster share: a small store that also passes messages between them.

`redis_store.py` has the real one; `trio_overlay.testing.VirtualStore` is one in memory that breaks
when you say. Who uses them knows only this interface.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from trio_overlay.errors import ClusterUnavailable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """What a server learns when it comes to the store."""

    time: float
    """Seconds by the store's clock, the same for all servers."""
    quarantine: float
    """Seconds for which the store grants no new claims, because it lost what it knew."""


class Verdict(enum.Enum):
    """What came of asking for an id."""

    GRANTED = enum.auto()
    TAKEN = enum.auto()
    QUARANTINED = enum.auto()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to a claim."""

    verdict: Verdict
    quarantine: float = 0.0
    """Seconds left of it, if that is the verdict."""
    count_foreign: int = 0
    """Brokers of another make that may hold the id all the same: see `Whereabouts`."""
    count_subscribers: int = 0


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Who may have an id."""

    is_held: bool
    """Whether a server of ours does."""
    count_foreign: int
    """Subscribers of linkup's channel that are no servers of ours; they know their ids alone."""
    count_subscribers: int
    """All subscribers of that channel."""


class Answer(Generic[T]):
    """What the store will say to something that it has been asked already."""

    def __init__(self) -> None:
        self._is_here = trio.Event()
        self._value: T
        self._failure: str | None = None

    async def wait(self) -> T:
        """The answer; waits for it, for as long as the session bears. Cancelled, the question
        stands: only nobody hears the answer.

        ClusterUnavailable: it will not come; the store may have done as asked, or not.
        """
        await self._is_here.wait()
        if self._failure is not None:
            raise ClusterUnavailable(self._failure)
        return self._value

    def resolve(self, value: T) -> None:
        """For the session: this is the answer."""
        self._value = value
        self._is_here.set()

    def fail(self, reason: str) -> None:
        """For the session: there will be none."""
        self._failure = reason
        self._is_here.set()


class Session(abc.ABC):
    """A connection to the store, of one server, until it breaks or is left.

    Each question is one atomic step at the store. Those of one session are taken in the order of
    the calls, none of which waits; so are the messages that its server publishes, for each
    who hears them. A message is lost if its receiver's session breaks.

    ClusterUnavailable: any call, when the session is broken, or too much is under way on it.
    """

    @abc.abstractmethod
    def enter(self) -> Answer[Entry]:
        """Be one of the servers from now on; the first question.

        If the store has lost what it knew, it grants no new claim for one lease from now.
        """

    @abc.abstractmethod
    def claim(
        self, identifier: str, token: str, digest: str = "", moved_message: str = ""
    ) -> Answer[Outcome]:
        """Ask for *identifier* under *token*, for one lease.

        One that is held under another token and the same *digest* (not empty) *moves*: it is
        granted, and *moved_message*, an encoded `Moved`, goes to the server that held it. That may
        not hear it, and hold on until its lease ends. So until then the id is *kept for* this
        digest, and granted under no other, even when it is released.
        """

    @abc.abstractmethod
    def renew(self, claims: Sequence[tuple[str, str, str]]) -> Answer[list[bool]]:
        """Keep *claims* (id, token and digest), which are held, for another lease: which are kept.

        One that the store has lost is put back, if nobody else has it and it is kept for nobody.
        """

    @abc.abstractmethod
    def release(self, claims: Sequence[tuple[str, str]]) -> Answer[int]:
        """Forget *claims* (id and token); how many there were."""

    @abc.abstractmethod
    def look_up(self, identifier: str) -> Answer[Whereabouts]:
        """Who may have *identifier*."""

    @abc.abstractmethod
    def pass_on(self, identifier: str, message: str, linkup_message: str) -> Answer[int]:
        """Publish *message*, an encoded `PassedOn`, to the server that holds *identifier*.

        If none of ours does, and there are others, *linkup_message* goes to linkup's channel.
        The answer is how many got one of them.
        """

    @abc.abstractmethod
    def publish(self, channel: str, message: str) -> Answer[int]:
        """Say *message* to the subscribers of *channel*, this server too; how many there are."""

    @abc.abstractmethod
    async def receive(self) -> tuple[str, bytes]:
        """The next message of one of this server's channels, and which.

        Cancelled, no further one can be received.
        """


class SharedStore(abc.ABC):
    """Where the store is."""

    @abc.abstractmethod
    def connect(self, tag: str, lease: float) -> AbstractAsyncContextManager[Session]:
        """A new session of the server *tag*, subscribed to linkup's channel, the common one and its
        own. Claims are for *lease* seconds, and all servers must say the same.

        Leaving it ends it; nothing of it is taken back.

        ClusterUnavailable: there is nobody, or not what is needed; the message says more.
        """

    @abc.abstractmethod
    def __str__(self) -> str:
        """Where, without a password, for the log."""
