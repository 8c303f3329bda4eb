"""What the bootstrap server decides: who is here, whose frame goes to whom, and who is told what.

No socket, no task and no clock: a method takes one event and the time, changes the state in one
step and returns what is to be sent and closed, in order. `signaling/bootstrap_service.py` does it.

Old peers see webrtc-bootstrap 4.4.1 exactly (WIRE.md, section 2), less its defects; clients that
announced themselves get control frames as well (protocol/bootstrap.py).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.bootstrap import (
    WITHDRAW,
    BootstrapFrame,
    Done,
    Heartbeat,
    Hello,
    Refused,
    SignalFrame,
    Withdrawn,
    encode_bootstrap,
)
from trio_overlay.protocol.signals import is_offer

DEFAULT_TIMEOUT: Final = 30.0
"""Seconds a prospect may stay, as in the original."""

DEFAULT_HOLD_TIMEOUT: Final = 5.0
"""Seconds a request waits for a root to come: enough for a root to dial again after a restart."""

DEFAULT_GRACE_TIMEOUT: Final = 3.0
"""Seconds between a close without a word and its being taken for a withdrawal.

Old clients close without a word when all is well, too: in this time their channel has opened."""

MAX_FRAME_SIZE: Final = 2**20
"""What is longer than this is passed on to nobody."""

_EXTENSIONS: Final = frozenset({WITHDRAW})


@dataclass(eq=False, slots=True)
class Root:
    """One registration as root, from its coming to its going."""

    is_announced: bool


@dataclass(eq=False, slots=True)
class Prospect:
    """One client of the path ``/join``, from its coming until nobody need be told it is gone."""

    identifier: str
    is_announced: bool
    expires_at: float
    root: Root | None = None
    """Who got its first frame: all others without a destination go there as well."""
    partners: dict[str, None] = field(default_factory=dict)
    """The prospects it exchanged frames with, in that order; some may have left."""
    is_turned_away: bool = False
    """Its request was given up: what belongs to it is of no use to a root that comes later."""
    is_done: bool = False
    """Its channel is open, so it said: its leaving means nothing bad."""
    is_withdrawn: bool = False
    """It has given up, and who need know has been told."""
    leaves_at: float = math.inf
    """When its leaving without a word counts as a withdrawal."""


Client: TypeAlias = Root | Prospect


@dataclass(frozen=True, slots=True)
class Send:
    """Give *to* the frame *text*."""

    to: Client
    text: str


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection of *client*, after what was sent to it."""

    client: Client
    reason: str


Action: TypeAlias = Send | Close


@dataclass(eq=False, slots=True)
class _Held:
    """The frames of one prospect that wait for a root.

    They are kept as text: decoded, they can take twenty times the memory.
    """

    sender: Prospect
    expires_at: float
    frames: list[tuple[bool, str]] = field(default_factory=list)
    """Whether it begins a request, and the text."""
    size: int = 0


class Switchboard:
    """The state of one bootstrap server.

    *identifiers* gives the ids of prospects: `random_identifiers` or `seeded_identifiers`. At
    most *max_held_bytes* of text wait for a root, at most *max_held_bytes_each* of one prospect.
    Times are seconds on any clock that does not go back; every `now` is on the same.
    """

    def __init__(
        self,
        identifiers: Iterator[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        hold_timeout: float = DEFAULT_HOLD_TIMEOUT,
        grace_timeout: float = DEFAULT_GRACE_TIMEOUT,
        max_held_bytes: int = 2**24,
        max_held_bytes_each: int = 2**20,
    ) -> None:
        self.timeout = timeout
        self.hold_timeout = hold_timeout
        self.grace_timeout = grace_timeout
        self._identifiers = identifiers
        self._max_held_bytes = max_held_bytes
        self._max_held_bytes_each = max_held_bytes_each
        self._roots: list[Root] = []
        """Those connected, oldest first."""
        self._prospects: dict[str, Prospect] = {}
        """Those connected."""
        self._expiring: dict[str, Prospect] = {}
        """Those connected and not yet told that their time is up, the next to expire first."""
        self._departed: dict[str, Prospect] = {}
        """Those gone within the last `grace_timeout`, the first to go first."""
        self._held: dict[str, _Held] = {}
        """By prospect, the first to expire first; empty whenever there is a root."""
        self._held_size = 0
        """The sum of the sizes in `_held`."""

    @property
    def root(self) -> Root | None:
        """Who gets the requests: the newest of those connected."""
        return self._roots[-1] if self._roots else None

    @property
    def count_roots(self) -> int:
        return len(self._roots)

    @property
    def count_prospects(self) -> int:
        return len(self._prospects)

    @property
    def count_held(self) -> int:
        """Of how many prospects requests wait for a root."""
        return len(self._held)

    @property
    def next_tick_at(self) -> float:
        """When `tick` will next have something to do; infinity for never."""
        moments = [math.inf]
        for expiring in self._expiring.values():
            moments.append(expiring.expires_at)
            break
        for departed in self._departed.values():
            moments.append(departed.leaves_at)
            break
        for held in self._held.values():
            moments.append(held.expires_at)
            break
        return min(moments)

    # --- events ---------------------------------------------------------------------------

    def enter_root(self, now: float, *, is_announced: bool) -> tuple[Root, list[Action]]:
        """A root registers, and is the active one as long as no newer one comes.

        The secret has been checked.
        """
        root = Root(is_announced)
        actions: list[Action] = []
        if is_announced:
            actions.append(_send(root, Hello(None, _EXTENSIONS)))
        self._roots.append(root)
        for held in list(self._held.values()):
            self._let_go(held.sender)
            for begins, text in held.frames:
                actions += self._to_root(now, held.sender, begins, text)
        return root, actions

    def enter_prospect(self, now: float, *, is_announced: bool) -> tuple[Prospect, list[Action]]:
        """A client comes to ``/join``."""
        identifier = next(self._identifiers)
        prospect = Prospect(identifier, is_announced, now + self.timeout)
        self._prospects[identifier] = prospect
        self._expiring[identifier] = prospect
        if not is_announced:
            return prospect, []
        return prospect, [_send(prospect, Hello(identifier, _EXTENSIONS))]

    def receive(self, now: float, client: Client, frame: BootstrapFrame) -> list[Action]:
        """*client* has said *frame*.

        MalformedFrame: it holds what cannot be passed on as JSON; nothing has changed.
        """
        if isinstance(client, Root):
            return []  # a root only says heartbeats; the original ignores anything else as well
        match frame:
            case SignalFrame():
                return self._pass_on(now, client, frame)
            case Done() if client.is_announced:
                client.is_done = True
                return []
            case Withdrawn(reason=reason) if client.is_announced:
                return self._withdraw(client, reason or "it gave no reason")
            case Done() | Withdrawn() | Heartbeat() | Hello() | Refused():
                return []

    def leave(self, now: float, client: Client) -> list[Action]:
        """The connection of *client* is closed, by whichever end."""
        if isinstance(client, Root):
            self._roots.remove(client)
            return []
        del self._prospects[client.identifier]
        self._expiring.pop(client.identifier, None)
        self._let_go(client)
        if not client.is_withdrawn:
            client.leaves_at = now + self.grace_timeout
            self._departed[client.identifier] = client
        return []

    def tick(self, now: float) -> list[Action]:
        """Time has passed; call this when `next_tick_at` has come."""
        actions: list[Action] = []
        for held in list(self._held.values()):
            if held.expires_at > now:
                break
            actions += self._turn_away(held.sender, "no root is connected to this server")
        for departed in list(self._departed.values()):
            if departed.leaves_at > now:
                break
            del self._departed[departed.identifier]
            actions += self._withdraw(departed, "its connection to the server has ended")
        for expiring in list(self._expiring.values()):
            if expiring.expires_at > now:
                break
            del self._expiring[expiring.identifier]
            reason = f"the server's timeout of {self.timeout:g} s has passed"
            if expiring.is_announced:
                actions.append(_send(expiring, Refused(reason)))
            actions.append(Close(expiring, reason))
        return actions

    # --- decisions ------------------------------------------------------------------------

    def _pass_on(self, now: float, sender: Prospect, frame: SignalFrame) -> list[Action]:
        frame = frame.with_origin(sender.identifier)
        try:
            text = encode_bootstrap(frame)
        except (ValueError, RecursionError) as error:
            # What could be decoded cannot always be encoded: 1e999 is read as infinity, and the
            # deepest nesting allowed depends on the depth of the stack.
            raise MalformedFrame(f"not JSON that can be passed on: {error}") from None
        if len(text) > MAX_FRAME_SIZE:
            # Escapes make it longer than what was received.
            raise MalformedFrame(f"a frame is over {MAX_FRAME_SIZE} bytes when passed on")
        if frame.destination is None:
            return self._to_root(now, sender, is_offer(frame.signal), text)
        receiver = self._prospects.get(frame.destination)
        if receiver is not None:
            sender.partners[receiver.identifier] = None
            receiver.partners[sender.identifier] = None
            return [Send(receiver, text)]
        departed = self._departed.get(frame.destination)
        if departed is not None and not (
            departed.is_done and sender.identifier not in departed.partners
        ):
            # It may have gone because its channel is open, and ours will be in a moment. If it has
            # not said so by then, we are told with the others. But one that is done, and with
            # somebody else, will never answer.
            departed.partners[sender.identifier] = None
            return []
        if sender.is_announced:
            gone = Withdrawn(frame.destination, "no such prospect is connected to this server")
            return [_send(sender, gone)]
        return []

    def _to_root(self, now: float, sender: Prospect, begins: bool, text: str) -> list[Action]:
        if begins:
            sender.is_turned_away = False
        if sender.is_turned_away:
            return []
        if sender.root in self._roots:
            return [Send(sender.root, text)] if sender.root is not None else []
        root = self.root
        if root is None:
            return self._hold(now, sender, begins, text)
        if sender.root is not None and not (begins or root.is_announced):
            # The rest of a request whose beginning went to a root that is gone. A root of ours may
            # be the same one come back, and takes no harm; an old one would give it a place.
            return []
        sender.root = root
        return [Send(root, text)]

    def _hold(self, now: float, sender: Prospect, begins: bool, text: str) -> list[Action]:
        held = self._held.get(sender.identifier) or _Held(sender, now + self.hold_timeout)
        if (
            self._held_size + len(text) > self._max_held_bytes
            or held.size + len(text) > self._max_held_bytes_each
        ):
            return self._turn_away(
                sender, "no root is connected to this server, and too much waits for one"
            )
        self._held[sender.identifier] = held
        held.frames.append((begins, text))
        held.size += len(text)
        self._held_size += len(text)
        return []

    def _let_go(self, prospect: Prospect) -> None:
        held = self._held.pop(prospect.identifier, None)
        if held is not None:
            self._held_size -= held.size

    def _turn_away(self, prospect: Prospect, reason: str) -> list[Action]:
        self._let_go(prospect)
        prospect.is_turned_away = True
        return [_send(prospect, Refused(reason))] if prospect.is_announced else []

    def _withdraw(self, prospect: Prospect, reason: str) -> list[Action]:
        """Tell all who understand it and may have kept a place that *prospect* has given up."""
        if prospect.is_done or prospect.is_withdrawn:
            return []
        prospect.is_withdrawn = True
        self._let_go(prospect)
        text = encode_bootstrap(Withdrawn(prospect.identifier, reason))
        actions: list[Action] = []
        # A root of ours that lost its connection and came back is another `Root`, and knows it.
        root = prospect.root if prospect.root in self._roots else self.root
        if prospect.root is not None and root is not None and root.is_announced:
            actions.append(Send(root, text))
        for identifier in prospect.partners:
            partner = self._prospects.get(identifier)
            if partner is not None and partner.is_announced and partner is not prospect:
                actions.append(Send(partner, text))
        return actions


def _send(to: Client, frame: BootstrapFrame) -> Send:
    return Send(to, encode_bootstrap(frame))


# --- identifiers --------------------------------------------------------------------------


def random_identifiers(rng: random.Random) -> Iterator[str]:
    """Ids of 32 hex digits. Whoever can guess one can speak to its prospect: mind the *rng*."""
    while True:
        yield f"{rng.getrandbits(128):032x}"


def seeded_identifiers(seed: int) -> Iterator[str]:
    """The ids that webrtc-bootstrap's server gives with this seed, in the same order."""
    while True:
        seed = _jenkins(seed)
        yield hashlib.md5(str(seed).encode(), usedforsecurity=False).hexdigest()


def _jenkins(seed: int) -> int:
    """The next number of the original's generator, after Robert Jenkins' 32-bit integer hash."""
    seed = _int32(seed + 0x7ED55D16 + _int32(seed << 12))
    seed = _int32(seed ^ 0xC761C23C ^ (seed % 2**32 >> 19))
    seed = _int32(seed + 0x165667B1 + _int32(seed << 5))
    seed = _int32((seed + 0xD3A2646C) ^ _int32(seed << 9))
    seed = _int32(seed + 0xFD7046C5 + _int32(seed << 3))
    return _int32(seed ^ 0xB55A4F09 ^ (seed % 2**32 >> 16))


def _int32(number: int) -> int:
    """*number* as JavaScript's bitwise operators see it: 32 bits with a sign."""
    return (number + 2**31) % 2**32 - 2**31
