"""What a broker decides: who holds which id, what is answered, and where a signal goes.

Pure. What only a registry shared with other servers can tell (is this id taken elsewhere?) leaves
as a question of the one member who waits for it, and comes back by `Registrations.answered`.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from trio_overlay.protocol.allowance import Allowance
from trio_overlay.protocol.broker import (
    ID_TAKEN,
    TOO_MANY,
    UNAVAILABLE,
    WRONG_SENDER,
    BadRequest,
    Batch,
    Exists,
    Failure,
    Find,
    Generation,
    PeerSignal,
    Ping,
    Register,
    Request,
    Response,
    Unregister,
    decode_request,
    digest_of,
    encode_peer_signal,
    encode_response,
    encode_responses,
)
from trio_overlay.protocol.json import JSON

DEFAULT_LEASE: Final = 100.0
"""Seconds that a silent connection keeps its id. A linkup peer pings every 45 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerLimits:
    """How much one connection may ask for: so much at once, then so much a second."""

    lease: float = DEFAULT_LEASE
    """Seconds of silence after which a connection is closed and its id is free."""
    registrations_at_once: float = 20
    registrations_per_second: float = 1
    """More are answered with an error."""
    signals_at_once: float = 1000
    signals_per_second: float = 50
    """More end the connection. A handshake takes about 10 of each side."""
    requests_at_once: float = 200
    requests_per_second: float = 20
    """More end the connection; registrations and what is no request count here, too."""
    bytes_at_once: float = 4 * 2**20
    bytes_per_second: float = 64 * 2**10
    """More end the connection. An offer with all its candidates is about 2 KiB."""


class Member:
    """One connection to the broker; made by `Registrations.enter`."""

    __slots__ = (
        "_answers",
        "_bytes",
        "_in_batch",
        "_messages",
        "_registrations",
        "_requests",
        "_signals",
        "_waiting",
        "digest",
        "generation",
        "identifier",
        "is_closed",
    )

    def __init__(self, limits: BrokerLimits) -> None:
        self.identifier: str | None = None
        """The id it holds."""
        self.digest = ""
        """Of the secret under which it holds it; empty for one that has none."""
        self.generation = Generation.JSON_RPC
        """What it spoke last, in which signals are passed on to it."""
        self.is_closed = False
        self._registrations = Allowance(
            limits.registrations_at_once, limits.registrations_per_second
        )
        self._signals = Allowance(limits.signals_at_once, limits.signals_per_second)
        self._requests = Allowance(limits.requests_at_once, limits.requests_per_second)
        self._bytes = Allowance(limits.bytes_at_once, limits.bytes_per_second)
        # A frame is worked off message by message, and a question waits for its outcome.
        self._messages: deque[Request | PeerSignal | BadRequest] = deque()
        self._answers: list[Response] = []
        self._in_batch = False
        self._waiting: tuple[Question, Request | None] | None = None


# --- what is to be done -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Say *text* to *member*."""

    member: Member
    text: str


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection of *member*, which holds nothing any more."""

    member: Member
    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """Tell the registry that this server does not hold *identifier* any more."""

    identifier: str


@dataclass(frozen=True, slots=True)
class Claim:
    """Ask the registry for *identifier*; the outcome is whether it is this server's now.

    One that another server holds under the same *digest* moves here.
    """

    identifier: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Locate:
    """Ask the registry whether another server holds *identifier*; the outcome is yes or no."""

    identifier: str


@dataclass(frozen=True, slots=True)
class Forward:
    """Let the registry pass *signal* on to the server of its recipient; no outcome."""

    signal: PeerSignal


Action: TypeAlias = Send | Close | Release
Question: TypeAlias = Claim | Locate | Forward
Decision: TypeAlias = tuple[Sequence[Action], Question | None]
"""What to do, in this order, and then what to ask for the member, whose next frame has to wait."""


class Registrations:
    """The ids of one server's members. The caller brings the time."""

    def __init__(self, limits: BrokerLimits | None = None) -> None:
        self.limits = limits or BrokerLimits()
        self._holders: dict[str, Member] = {}
        self._claimed: set[str] = set()
        """Ids for which the registry is being asked: nobody else here may ask for them."""
        self._heard_at: OrderedDict[Member, float] = OrderedDict()
        """The member silent for longest first."""

    @property
    def count_members(self) -> int:
        return len(self._heard_at)

    @property
    def count_registered(self) -> int:
        return len(self._holders)

    @property
    def next_tick_at(self) -> float:
        """When `tick` has something to do, if nobody says anything before."""
        for heard_at in self._heard_at.values():
            return heard_at + self.limits.lease
        return math.inf

    def holds(self, identifier: str) -> bool:
        """Whether a member of this server is registered by *identifier*."""
        return identifier in self._holders

    def enter(self, now: float) -> Member:
        """Somebody has connected."""
        member = Member(self.limits)
        self._heard_at[member] = now
        return member

    def leave(self, member: Member) -> Sequence[Action]:
        """*member*'s connection is gone: what it held is free. A question of its is void."""
        member.is_closed = True
        self._heard_at.pop(member, None)
        if member._waiting is not None and isinstance(member._waiting[0], Claim):
            self._claimed.discard(member._waiting[0].identifier)
        member._waiting = None
        member._messages.clear()
        return self._free(member)

    def receive(self, now: float, member: Member, text: str | bytes) -> Decision:
        """Take in a frame. Not while a question of this member's is open."""
        assert member._waiting is None, "a question of this member's is open"
        if member.is_closed:
            return (), None
        self._heard_at[member] = now
        self._heard_at.move_to_end(member)
        if not member._bytes.take(now, len(text)):
            return self._close(member, "too many bytes in a short time"), None
        message = decode_request(text)
        member._in_batch = isinstance(message, Batch)
        messages = message.requests if isinstance(message, Batch) else (message,)
        member._messages.extend(messages)
        return self._work_off(now, member)

    def answered(self, now: float, member: Member, outcome: bool | Failure) -> Decision:
        """The registry has answered the open question of *member*; *outcome* as it says.

        For a member that has left meanwhile (by `leave`, `tick` or `lose`), a claim that was
        granted is released.
        """
        waiting, member._waiting = member._waiting, None
        assert waiting is not None, "no question of this member's is open"
        question, request = waiting
        actions: list[Action] = []
        if isinstance(question, Claim):
            self._claimed.discard(question.identifier)
            if member.is_closed:
                return ((Release(question.identifier),) if outcome is True else ()), None
        if member.is_closed:
            return (), None
        if request is not None:
            answer, more = self._conclude(member, question, request, outcome)
            actions += more
            self._answer(member, request, answer)
        further, next_question = self._work_off(now, member)
        return [*actions, *further], next_question

    def deliver(self, signal: PeerSignal) -> Sequence[Action]:
        """*signal* came from another server; for nobody here, it is dropped."""
        holder = self._holders.get(signal.recipient)
        if holder is None:
            return ()
        return (Send(holder, encode_peer_signal(signal, holder.generation)),)

    def lose(self, identifier: str, reason: str) -> Sequence[Action]:
        """The registry could not keep *identifier* for us: whoever held it is closed."""
        holder = self._holders.pop(identifier, None)
        if holder is None:
            return ()
        holder.identifier = None
        return self._close(holder, reason)

    def tick(self, now: float) -> Sequence[Action]:
        """Close those who have been silent for a lease."""
        actions: list[Action] = []
        while self.next_tick_at <= now:
            member = next(iter(self._heard_at))
            actions += self._close(member, f"nothing was heard for {self.limits.lease:g} s")
        return actions

    # --- one message after the other ------------------------------------------------------

    def _work_off(self, now: float, member: Member) -> Decision:
        actions: list[Action] = []
        while member._messages:
            message = member._messages.popleft()
            if isinstance(message, PeerSignal):
                if not member._signals.take(now, 1):
                    return self._close(member, "too many signals in a short time"), None
                member.generation = message.generation
                more, question = self._take_signal(member, message)
                actions += more
            else:
                if not member._requests.take(now, 1):
                    return self._close(member, "too many requests in a short time"), None
                question = self._take_request(now, member, message, actions)
            if question is not None:
                return actions, question
        actions += self._flush(member)
        return actions, None

    def _take_signal(self, member: Member, signal: PeerSignal) -> Decision:
        if signal.sender != member.identifier:
            held = "is not registered" if member.identifier is None else "has another id"
            reason = f"the sender of this signal {held}"
            self._answer(member, signal.request, Failure(WRONG_SENDER, reason))
            return (), None
        self._answer(member, signal.request, None)
        if signal.recipient in self._holders:
            return self.deliver(signal), None
        member._waiting = (Forward(signal), None)
        return (), member._waiting[0]

    def _take_request(
        self, now: float, member: Member, message: Request | BadRequest, actions: list[Action]
    ) -> Question | None:
        if isinstance(message, BadRequest):
            if message.answer is not None:
                member._answers.append(message.answer)
            return None
        member.generation = message.generation
        call = message.call
        answer: JSON | Failure = None
        match call:
            case Ping():
                answer = "pong"
            case Unregister():
                actions += self._free(member)
            case Exists(identifier) | Find(identifier):
                if identifier not in self._holders:
                    member._waiting = (Locate(identifier), message)
                    return member._waiting[0]
                answer = identifier if isinstance(call, Find) else True
            case Register(identifier, secret):
                digest = "" if secret is None else digest_of(secret)
                if not member._registrations.take(now, 1):
                    answer = Failure(TOO_MANY, "too many registrations in a short time")
                elif self._is_former(member, identifier, digest):
                    actions += self._take_over(member, identifier)
                    answer = identifier
                elif identifier in self._holders or identifier in self._claimed:
                    answer = _taken(identifier)
                else:
                    self._claimed.add(identifier)
                    member._waiting = (Claim(identifier, digest), message)
                    return member._waiting[0]
            case _:
                assert_never(call)
        self._answer(member, message, answer)
        return None

    def _conclude(
        self, member: Member, question: Question, request: Request, outcome: bool | Failure
    ) -> tuple[JSON | Failure, Sequence[Action]]:
        """What *request* is answered, now that its *question* is."""
        if isinstance(outcome, Failure):
            return outcome, ()
        match question:
            case Claim(identifier, digest):
                if not outcome:
                    return _taken(identifier), ()
                return identifier, self._hold(member, identifier, digest)
            case Locate(identifier):
                if isinstance(request.call, Find):
                    return (identifier if outcome else None), ()
                return outcome, ()
            case Forward():
                return None, ()
            case _:
                assert_never(question)

    def _hold(self, member: Member, identifier: str, digest: str) -> Sequence[Action]:
        """Have *member* hold *identifier*, which is this server's and nobody's.

        One id a connection: the new one replaces the old.
        """
        freed = self._free(member)
        member.identifier, member.digest = identifier, digest
        self._holders[identifier] = member
        return freed

    def _is_former(self, member: Member, identifier: str, digest: str) -> bool:
        """Whether *identifier* is held here by another connection of the same peer's."""
        holder = self._holders.get(identifier)
        if holder is None or holder is member:
            return False
        return digest != "" and holder.digest == digest

    def _take_over(self, member: Member, identifier: str) -> Sequence[Action]:
        """Give *member* what a former connection of its peer holds; the registry need not know."""
        former = self._holders.pop(identifier)
        former.identifier = None
        closed = self._close(former, "its peer has registered anew")
        return [*closed, *self._hold(member, identifier, former.digest)]

    def _answer(self, member: Member, request: Request | None, answer: JSON | Failure) -> None:
        if request is None or request.is_notification:
            return
        failure = answer if isinstance(answer, Failure) else None
        result = None if failure is not None else answer
        member._answers.append(Response(request.key, result, failure, request.generation))

    def _flush(self, member: Member) -> Sequence[Action]:
        """What was gathered in answer to one frame, said in one."""
        answers, member._answers = member._answers, []
        if not answers:
            return ()
        if member._in_batch:
            return (Send(member, encode_responses(answers)),)
        return [Send(member, encode_response(each)) for each in answers]

    def _free(self, member: Member) -> Sequence[Action]:
        identifier, member.identifier = member.identifier, None
        if identifier is None:
            return ()
        del self._holders[identifier]
        return (Release(identifier),)

    def _close(self, member: Member, reason: str) -> Sequence[Action]:
        # An open question stays open, as whoever asks it is under way; see `answered`.
        member.is_closed = True
        self._heard_at.pop(member, None)
        member._messages.clear()
        return [*self._free(member), Close(member, reason)]


def unavailable(reason: str) -> Failure:
    """The outcome of a question that the registry cannot answer now."""
    return Failure(UNAVAILABLE, reason)


def _taken(identifier: str) -> Failure:
    return Failure(ID_TAKEN, f"the id {identifier!r} is already taken", {"id": identifier})
