"""What the bootstrap server decides: who is here, whose frame goes to whom, and who is told what.

No socket, no task and no clock: a method takes one event and the time, changes the state in one
step and returns what is to be sent and closed, in order. `signaling/bootstrap_service.py` does it.

Old peers see webrtc-bootstrap 4.4.1 exactly (WIRE.md, section 2), less its defects; clients that
announced themselves get control frames as well (protocol/bootstrap.py).

In a cluster, roots and prospects may be connected to other servers. Those roots are known here, as
their servers name them (switchboard_roots.py); where a prospect is, its id tells. Those who only
want a picture of the tree are in switchboard_askers.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.bootstrap import (
    WITHDRAW,
    AskSnapshot,
    BootstrapFrame,
    Done,
    Heartbeat,
    Hello,
    Refused,
    Registration,
    Role,
    SignalFrame,
    SnapshotPart,
    Withdrawn,
    decode_bootstrap,
    encode_bootstrap,
)
from trio_overlay.protocol.cluster import (
    AskRoot,
    Farewell,
    Gone,
    Greeting,
    Moved,
    NoRoot,
    PassedOn,
    Presence,
    ServerMessage,
    ToAsker,
    ToProspect,
    ToRoot,
    tag_of,
)
from trio_overlay.protocol.signals import is_offer
from trio_overlay.protocol.switchboard_askers import Askers
from trio_overlay.protocol.switchboard_clients import (
    Action,
    Announce,
    Asker,
    Client,
    Close,
    Forward,
    Prospect,
    Root,
    Send,
    send,
)
from trio_overlay.protocol.switchboard_roots import Roots

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
class _Held:
    """The frames of one prospect that wait for a root, or for an answerer.

    They are kept as text: decoded, they can take twenty times the memory.
    """

    sender: Prospect
    expires_at: float
    frames: list[tuple[bool, str, Root | None]] = field(default_factory=list)
    """Whether it begins a request, the text, and to which root it went."""
    size: int = 0


class Switchboard:
    """The state of one bootstrap server.

    *identifiers* gives the ids of prospects: `random_identifiers` or `seeded_identifiers`, or, for
    the server *tag* of a cluster, `tagged_identifiers`; then a server silent for *silence_timeout*
    is gone. At most *max_held_bytes* of text wait for a root, at most *max_held_bytes_each* of one
    prospect. Times are seconds on any clock that does not go back; every `now` is on the same.
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
        tag: str = "",
        silence_timeout: float = math.inf,
    ) -> None:
        self.tag = tag
        self.timeout = timeout
        self.hold_timeout = hold_timeout
        self.grace_timeout = grace_timeout
        self._identifiers = identifiers
        self._max_held_bytes = max_held_bytes
        self._max_held_bytes_each = max_held_bytes_each
        self._silence_timeout = silence_timeout
        self._roots = Roots(tag, self._follow)
        self._askers = Askers(self._roots)
        self._servers: dict[str, float] = {}
        """The other servers and when each was last heard, the one silent for longest first."""
        self._prospects: dict[str, Prospect] = {}
        """Those connected."""
        self._expiring: dict[str, Prospect] = {}
        """Those connected and not yet told that their time is up, the next to expire first."""
        self._departed: dict[str, Prospect] = {}
        """Those gone within the last `grace_timeout`, the first to go first."""
        self._held: dict[str, _Held] = {}
        """By prospect, the first to expire first; empty whenever the root can be reached."""
        self._held_size = 0
        """The sum of the sizes in `_held`, `_open` and `_rests`."""
        self._open: dict[str, _Held] = {}
        """What went to a root and nobody has answered yet: another root will have to."""
        self._rests: dict[str, _Held] = {}
        """What old clients said after their offers, until somebody answers; as `_held`."""

    @property
    def is_connected(self) -> bool:
        """Whether other servers can be reached."""
        return self._roots.is_connected

    @property
    def root(self) -> Root | None:
        """Who gets the requests: the newest of those connected that do not stand by."""
        return self._roots.active

    @property
    def presence(self) -> Presence:
        """What the other servers must know, and be told again before they take us for gone."""
        return self._roots.presence

    @property
    def count_roots(self) -> int:
        """Of all servers."""
        return len(self._roots)

    @property
    def count_servers(self) -> int:
        """The other servers that are known."""
        return len(self._servers)

    @property
    def count_prospects(self) -> int:
        return len(self._prospects)

    @property
    def count_held(self) -> int:
        """Of how many prospects requests wait for a root."""
        return len(self._held)

    @property
    def count_askers(self) -> int:
        return len(self._askers)

    @property
    def next_tick_at(self) -> float:
        """When `tick` will next have something to do; infinity for never."""
        moments = [self._askers.next_tick_at]
        for expiring in self._expiring.values():
            moments.append(expiring.expires_at)
            break
        for departed in self._departed.values():
            moments.append(departed.leaves_at)
            break
        for held in self._held.values():
            moments.append(held.expires_at)
            break
        for rest in self._rests.values():
            moments.append(rest.expires_at)
            break
        if self.is_connected:
            for heard_at in self._servers.values():
                moments.append(heard_at + self._silence_timeout)
                break
        return min(moments)

    # --- events ---------------------------------------------------------------------------

    def enter_root(
        self, now: float, *, is_announced: bool, registration: Registration | None = None
    ) -> tuple[Root, list[Action]]:
        """A root registers. The secret has been checked.

        One without a *registration* is the active one as long as no newer one comes; so is one of
        ours that takes over, or was active after the one that is. Any other stands by.
        """
        root = self._roots.make(now, is_announced=is_announced, registration=registration)
        hello = [send(root, Hello(None, _EXTENSIONS))] if is_announced else []
        entered = self._roots.enter(now, root, registration)
        return root, [*hello, *entered, *self._flush(now)]

    def enter_prospect(self, now: float, *, is_announced: bool) -> tuple[Prospect, list[Action]]:
        """A client comes to ``/join``."""
        identifier = next(self._identifiers)
        prospect = Prospect(identifier, is_announced, now + self.timeout)
        self._prospects[identifier] = prospect
        self._expiring[identifier] = prospect
        if not is_announced:
            return prospect, []
        return prospect, [send(prospect, Hello(identifier, _EXTENSIONS))]

    def enter_asker(self, now: float) -> tuple[Asker, list[Action]]:
        """A client wants to ask for a picture of the tree. The secret has been checked."""
        return self._askers.enter(now, next(self._identifiers))

    def receive(self, now: float, client: Client, frame: BootstrapFrame) -> list[Action]:
        """*client* has said *frame*.

        MalformedFrame: it holds what cannot be passed on as JSON; nothing has changed.
        """
        if isinstance(client, Root):
            # Heartbeats, and answers. The original ignores all that a root says.
            return self._askers.take_answer(client, frame)
        if isinstance(client, Asker):
            return self._askers.ask(now, client, frame)
        match frame:
            case SignalFrame():
                return self._pass_on(now, client, frame)
            case Done() if client.is_announced:
                client.is_done = True
                return []
            case Withdrawn(reason=reason) if client.is_announced:
                return self._withdraw(client, reason or "it gave no reason")
            case Done() | Withdrawn() | Heartbeat() | Hello() | Refused() | Role():
                return []
            case AskSnapshot() | SnapshotPart():
                return []  # nobody asks here who has not shown the secret

    def leave(self, now: float, client: Client) -> list[Action]:
        """The connection of *client* is closed, by whichever end."""
        if isinstance(client, Root):
            if client not in self._roots:
                return []  # it has come back before its old connection was found to be gone
            left = self._roots.leave(client)
            return [*left, *self._flush(now)]
        if isinstance(client, Asker):
            return self._askers.leave(client)
        del self._prospects[client.identifier]
        self._expiring.pop(client.identifier, None)
        self._drop(client)
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
            actions += self._turn_away(held.sender, self._roots.why_none)
        for rest in list(self._rests.values()):
            if rest.expires_at > now:
                break
            actions += self._rest_to_root(now, rest.sender)
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
                actions.append(send(expiring, Refused(reason)))
            actions.append(Close(expiring, reason))
        actions += self._askers.tick(now)
        if self.is_connected:
            for server, heard_at in list(self._servers.items()):
                if heard_at + self._silence_timeout > now:
                    break
                actions += self._forget(now, server)
        return actions

    # --- the cluster ----------------------------------------------------------------------

    def connect(self, now: float, time: float) -> list[Action]:
        """The other servers can be reached; the clock of the cluster says *time*."""
        self._roots.connect(now, time)
        self._servers = dict.fromkeys(self._servers, now)
        return [Announce(Greeting()), *self._roots.announce(), *self._flush(now)]

    def disconnect(self) -> None:
        """The other servers cannot be reached.

        What is known of their roots stands: otherwise a server cut off would hand its joiners to
        a root that stands by, and there would be two overlays.
        """
        self._roots.is_connected = False

    def hear(self, now: float, server: str, message: ServerMessage) -> list[Action]:
        """*server*, another one, has said *message*."""
        self._servers.pop(server, None)
        self._servers[server] = now
        match message:
            case Greeting():
                return self._roots.announce()
            case Presence(entries):
                known = self._roots.know(server, entries)
                return [*known, *self._flush(now)]
            case Farewell():
                return self._forget(now, server)
            case ToRoot(number, origin, begins, text):
                return self._take_for_root(server, number, origin, begins, text)
            case NoRoot(origin):
                prospect = self._prospects.get(origin)
                if prospect is None:
                    return []
                return self._turn_away(prospect, "the root left at that moment; try again")
            case ToProspect(destination, origin, text):
                return self._take_for_prospect(server, destination, origin, text)
            case Gone(origin, to, reason):
                return self._take_withdrawal(origin, to, reason)
            case AskRoot():
                return self._askers.hear_question(server, message)
            case ToAsker():
                return self._askers.hear_answer(server, message)
            case PassedOn() | Moved():
                return []  # the broker's

    def undelivered(
        self, now: float, forward: Forward, reason: str, *, is_certain: bool
    ) -> list[Action]:
        """What was to be forwarded did not arrive, or, not *is_certain*, perhaps did not."""
        message = forward.message
        actions: list[Action] = []
        if is_certain and self.is_connected:
            actions += self._forget(now, forward.server)
        match message:
            case ToRoot(number, origin, begins, text):
                sender = self._prospects.get(origin)
                if sender is None:
                    return actions
                if not is_certain:
                    return [*actions, *self._turn_away(sender, reason)]
                if self._must_go_again(sender, begins, text, (forward.server, number)):
                    actions += self._to_root(now, sender, begins, text)
                return actions
            case ToProspect(destination, origin):
                sender = self._prospects.get(origin)
                if sender is None or not sender.is_announced:
                    return actions
                if is_certain:
                    return [*actions, _no_such(sender, destination)]
                return [*actions, send(sender, Refused(reason))]
            case AskRoot():
                # If it is certain, it has been told with the others that asked there.
                actions += self._askers.undelivered(message, reason)
        return actions

    def _forget(self, now: float, server: str) -> list[Action]:
        self._servers.pop(server, None)
        self._roots.forget(server)
        return self._flush(now)

    def _take_for_root(
        self, server: str, number: int, origin: str, begins: bool, text: str
    ) -> list[Action]:
        root = self._roots.own(number)
        if root is None and self.root is not None and self.root.server == self.tag:
            root = self.root
            if not (begins or root.is_announced):
                return []  # as in `_to_root`
        if root is None:
            return [Forward(server, NoRoot(origin))]
        return [Send(root, text)]

    def _take_for_prospect(
        self, server: str, destination: str, origin: str, text: str
    ) -> list[Action]:
        receiver = self._prospects.get(destination)
        if receiver is not None:
            return [Send(receiver, text), *self._note_heard(receiver, origin)]
        if self._may_be_missed(destination, origin):
            return []
        return [Forward(server, Gone(destination, origin, _NO_SUCH))]

    def _take_withdrawal(self, origin: str, to: str | int, reason: str) -> list[Action]:
        text = encode_bootstrap(Withdrawn(origin, reason))
        receiver: Client | None
        if isinstance(to, str):
            receiver = self._prospects.get(to)
        else:
            receiver = self._roots.own(to)
            if receiver is None and self.root is not None and self.root.server == self.tag:
                receiver = self.root
        if receiver is None or not receiver.is_announced:
            return []
        return [Send(receiver, text)]

    # --- decisions ------------------------------------------------------------------------

    def _pass_on(self, now: float, sender: Prospect, frame: SignalFrame) -> list[Action]:
        frame = frame.with_origin(sender.identifier)
        begins = frame.destination is None and is_offer(frame.signal)
        is_rest = frame.destination is None and not begins and _leaves_rest(sender)
        if is_rest and sender.answerer is not None:
            frame = frame.with_destination(sender.answerer)
        try:
            text = encode_bootstrap(frame)
        except (ValueError, RecursionError) as error:
            # What could be decoded cannot always be encoded: 1e999 is read as infinity, and the
            # deepest nesting allowed depends on the depth of the stack.
            raise MalformedFrame(f"not JSON that can be passed on: {error}") from None
        if len(text) > MAX_FRAME_SIZE:
            # Escapes make it longer than what was received.
            raise MalformedFrame(f"a frame is over {MAX_FRAME_SIZE} bytes when passed on")
        if frame.destination is not None:
            return self._to_prospect(sender, frame.destination, text)
        if is_rest:
            return self._keep_rest(now, sender, text)
        if begins:
            sender.has_begun, sender.answerer = True, None
            self._take_rest(sender)  # of an offer before this one
        return self._to_root(now, sender, begins, text)

    def _to_prospect(self, sender: Prospect, destination: str, text: str) -> list[Action]:
        receiver = self._prospects.get(destination)
        if receiver is not None:
            sender.partners[destination] = None
            return [Send(receiver, text), *self._note_heard(receiver, sender.identifier)]
        if self._may_be_missed(destination, sender.identifier):
            return []
        server = tag_of(destination) if self.tag else None
        if server is not None and server != self.tag:
            if self.is_connected:
                sender.partners[destination] = None
                return [Forward(server, ToProspect(destination, sender.identifier, text))]
            if sender.is_announced:
                return [send(sender, Refused("the other servers cannot be reached"))]
        elif sender.is_announced:
            return [_no_such(sender, destination)]
        return []

    def _note_heard(self, prospect: Prospect, origin: str) -> list[Action]:
        """*prospect* is spoken to by *origin*, which it answers from now on if it was the first."""
        self._forget_open(prospect)
        prospect.partners[origin] = None
        if not prospect.has_begun or prospect.answerer is not None:
            return []
        prospect.answerer = origin
        actions: list[Action] = []
        for text in self._take_rest(prospect):
            frame = decode_bootstrap(text)
            assert isinstance(frame, SignalFrame)
            text = encode_bootstrap(frame.with_destination(origin))
            if len(text) <= MAX_FRAME_SIZE:
                actions += self._to_prospect(prospect, origin, text)
        return actions

    # What an old client says after its offer, until the first word comes back, is for whoever will
    # answer. The original's server passes it to the root, too, and from there it takes the way
    # down the tree that the offer took; when it comes late, to a node of the original's whose
    # child the client is by now, that node gives it a second place, which nobody takes for 30 s.
    # So it waits here, and goes the short way. An answerer has no use for it before its answer.

    def _keep_rest(self, now: float, sender: Prospect, text: str) -> list[Action]:
        if sender.is_turned_away:
            return []
        rest = self._rests.get(sender.identifier) or _Held(sender, now + self.hold_timeout)
        if not self._has_room(rest, text):
            return [*self._rest_to_root(now, sender), *self._to_root(now, sender, False, text)]
        self._rests[sender.identifier] = rest
        self._put(rest, False, text)
        return []

    def _rest_to_root(self, now: float, sender: Prospect) -> list[Action]:
        """Nobody has answered *sender*: perhaps whoever will needs all of it before."""
        actions: list[Action] = []
        for text in self._take_rest(sender):
            actions += self._to_root(now, sender, False, text)
        return actions

    def _take_rest(self, prospect: Prospect) -> list[str]:
        rest = self._rests.pop(prospect.identifier, None)
        if rest is None:
            return []
        self._held_size -= rest.size
        return [text for _, text, _ in rest.frames]

    def _may_be_missed(self, departed_identifier: str, origin: str) -> bool:
        """Whether it is too early to tell *origin* that who it speaks to is gone.

        It may have gone because its channel is open, and the other's will be in a moment. If it
        has not said so by then, *origin* is told with the others. But one that is done, and with
        somebody else, will never answer.
        """
        departed = self._departed.get(departed_identifier)
        if departed is None or (departed.is_done and origin not in departed.partners):
            return False
        departed.partners[origin] = None
        return True

    def _to_root(self, now: float, sender: Prospect, begins: bool, text: str) -> list[Action]:
        if begins:
            sender.is_turned_away = False
        if sender.is_turned_away:
            return []
        root = self._root_for(sender)
        if root is None or not self._roots.is_reachable(root):
            return self._hold(now, sender, begins, text)
        if sender.root not in (None, root) and not (begins or root.is_announced):
            # The rest of a request whose beginning went to a root that is gone. A root of ours may
            # be the same one come back, and takes no harm; an old one would give it a place.
            return []
        sender.root = root
        self._keep_open(now, sender, begins, text)
        if root.server != self.tag:
            return [Forward(root.server, ToRoot(root.number, sender.identifier, begins, text))]
        return [Send(root, text)]

    def _root_for(self, sender: Prospect) -> Root | None:
        """Who got its first frame, as long as that root is here; else the active one."""
        return sender.root if sender.root in self._roots else self.root

    def _flush(self, now: float) -> list[Action]:
        """Something has changed about the roots: see who need not wait any more."""
        actions = [*self._roots.tell_roles(), *self._askers.check_roots()]
        for open_ in list(self._open.values()):
            sender = open_.sender
            if sender.root in self._roots:
                continue
            if self.root is not None and _is_same(self.root, sender.root):
                sender.root = self.root
                continue
            self._forget_open(sender)
            for begins, text, _ in open_.frames:
                actions += self._to_root(now, sender, begins, text)
        for held in list(self._held.values()):
            root = self._root_for(held.sender)
            if root is None or not self._roots.is_reachable(root):
                continue
            self._let_go(held.sender)
            for begins, text, _ in held.frames:
                actions += self._to_root(now, held.sender, begins, text)
        return actions

    def _follow(self, former: Root, root: Root) -> None:
        """What went to *former* is with *root*, which is the same one come back."""
        for prospect in self._prospects.values():
            if prospect.root is former:
                prospect.root = root

    def _hold(self, now: float, sender: Prospect, begins: bool, text: str) -> list[Action]:
        held = self._held.get(sender.identifier) or _Held(sender, now + self.hold_timeout)
        if not self._has_room(held, text):
            return self._turn_away(sender, f"{self._roots.why_none}, and too much waits for one")
        self._held[sender.identifier] = held
        self._put(held, begins, text)
        return []

    def _has_room(self, held: _Held, text: str) -> bool:
        return (
            self._held_size + len(text) <= self._max_held_bytes
            and held.size + len(text) <= self._max_held_bytes_each
        )

    def _put(self, held: _Held, begins: bool, text: str, root: Root | None = None) -> None:
        held.frames.append((begins, text, root))
        held.size += len(text)
        self._held_size += len(text)

    def _keep_open(self, now: float, sender: Prospect, begins: bool, text: str) -> None:
        """Keep what goes to a root, for the next one, until somebody answers."""
        if sender.partners:
            return
        kept = self._open.get(sender.identifier) or _Held(sender, now)
        if not (begins or kept.frames) or not self._has_room(kept, text):
            return
        self._open[sender.identifier] = kept
        self._put(kept, begins, text, sender.root)

    def _must_go_again(
        self, sender: Prospect, begins: bool, text: str, former: tuple[str, int]
    ) -> bool:
        """Whether a frame that did not reach the root *former*, by its server and number, is due.

        It is not if it waits for a root, or if `_flush` has sent it to the next one.
        """
        held, kept = self._held.get(sender.identifier), self._open.get(sender.identifier)
        if held is not None and (begins, text, None) in held.frames:
            return False
        if kept is None:
            return True
        for frame in kept.frames:
            *said, root = frame
            if said == [begins, text] and root is not None:
                if (root.server, root.number) != former:
                    return False
                kept.frames.remove(frame)
                kept.size -= len(text)
                self._held_size -= len(text)
                return True
        return True

    def _forget_open(self, prospect: Prospect) -> None:
        kept = self._open.pop(prospect.identifier, None)
        if kept is not None:
            self._held_size -= kept.size

    def _let_go(self, prospect: Prospect) -> None:
        self._forget_open(prospect)
        held = self._held.pop(prospect.identifier, None)
        if held is not None:
            self._held_size -= held.size

    def _drop(self, prospect: Prospect) -> None:
        """Nothing that is kept of it will be of use to anybody."""
        self._let_go(prospect)
        self._take_rest(prospect)

    def _turn_away(self, prospect: Prospect, reason: str) -> list[Action]:
        self._drop(prospect)
        prospect.is_turned_away = True
        return [send(prospect, Refused(reason))] if prospect.is_announced else []

    def _withdraw(self, prospect: Prospect, reason: str) -> list[Action]:
        """Tell all who understand it and may have kept a place that *prospect* has given up."""
        if prospect.is_done or prospect.is_withdrawn:
            return []
        prospect.is_withdrawn = True
        self._drop(prospect)
        text = encode_bootstrap(Withdrawn(prospect.identifier, reason))
        actions: list[Action] = []
        if prospect.root is not None:
            # A root of ours that lost its connection and came back is another `Root`, and knows it.
            actions += self._roots.tell_gone(prospect, self._root_for(prospect), reason)
        for identifier in prospect.partners:
            partner = self._prospects.get(identifier)
            server = tag_of(identifier) if self.tag else None
            if partner is not None:
                if partner.is_announced and partner is not prospect:
                    actions.append(Send(partner, text))
            elif server not in (None, self.tag) and self.is_connected:
                assert server is not None
                actions.append(Forward(server, Gone(prospect.identifier, identifier, reason)))
        return actions


_NO_SUCH: Final = "no such prospect is connected to this server"


def _leaves_rest(sender: Prospect) -> bool:
    """Whether what *sender* says to the root besides offers is for who answers its offer."""
    return sender.has_begun and not sender.is_announced  # clients of ours say all in their offers


def _is_same(root: Root, former: Root | None) -> bool:
    """Whether *root* is the same one come back as *former*, which has the first frames already."""
    return former is not None and root.token is not None and root.token == former.token


def _no_such(to: Prospect, destination: str) -> Send:
    return send(to, Withdrawn(destination, _NO_SUCH))
