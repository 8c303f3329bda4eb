"""Who wants a picture of the tree, and which root, at this server or another, is to give it."""

from __future__ import annotations

import math
from typing import Final

from trio_overlay.protocol.bootstrap import (
    SNAPSHOT,
    AskSnapshot,
    BootstrapFrame,
    Refused,
    SnapshotPart,
    encode_bootstrap,
)
from trio_overlay.protocol.cluster import AskRoot, ToAsker, tag_of
from trio_overlay.protocol.switchboard_clients import (
    Action,
    Asker,
    Close,
    Forward,
    Root,
    Send,
    send,
)
from trio_overlay.protocol.switchboard_roots import Roots

MAX_ASKERS: Final = 8
"""Who wants a picture of the tree at one time; each may have megabytes to read."""

ASKER_GRACE: Final = 10.0
"""Seconds for an asker to say what it wants, and, over the time it gave the root, to read on."""

_CANNOT_BE_ASKED: Final = (
    "the root speaks the old protocol, or is of an older version: it cannot be asked"
)


class Askers:
    """Those connected to this server, up to `MAX_ASKERS`; they ask one of *roots*."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._askers: dict[str, Asker] = {}

    def __len__(self) -> int:
        return len(self._askers)

    @property
    def next_tick_at(self) -> float:
        """When `tick` will next have something to do; infinity for never."""
        return min((asker.expires_at for asker in self._askers.values()), default=math.inf)

    # --- at this server -------------------------------------------------------------------

    def enter(self, now: float, identifier: str) -> tuple[Asker, list[Action]]:
        """Somebody comes who wants to ask. The secret has been checked."""
        asker = Asker(identifier, now + ASKER_GRACE)
        if len(self._askers) >= MAX_ASKERS:
            return asker, _turn_down(asker, f"{MAX_ASKERS} others are asking; try again")
        self._askers[identifier] = asker
        return asker, []

    def leave(self, asker: Asker) -> list[Action]:
        """The connection of *asker* is closed."""
        self._askers.pop(asker.identifier, None)
        return self._roots.tell_gone(asker, asker.root, "it has gone")

    def ask(self, now: float, asker: Asker, frame: BootstrapFrame) -> list[Action]:
        """*asker* has said *frame*."""
        if asker.has_asked or not isinstance(frame, AskSnapshot):
            return []
        asker.has_asked = True
        asker.expires_at = now + frame.timeout + ASKER_GRACE
        root = self._roots.active
        if root is None or not self._roots.is_reachable(root):
            return _turn_down(asker, self._roots.why_none)
        text = encode_bootstrap(AskSnapshot(frame.timeout, asker.identifier))
        if root.server != self._roots.tag:
            # Its server knows what it understands, and says so.
            asker.root = root
            return [Forward(root.server, AskRoot(root.number, asker.identifier, text))]
        if SNAPSHOT not in root.extensions:
            return _turn_down(asker, _CANNOT_BE_ASKED)
        asker.root = root
        return [Send(root, text)]

    def tick(self, now: float) -> list[Action]:
        """Time has passed; call this when `next_tick_at` has come."""
        actions: list[Action] = []
        for asker in list(self._askers.values()):
            if asker.expires_at <= now:
                actions += self._expire(asker)
        return actions

    def check_roots(self) -> list[Action]:
        """The roots may be others: turn down those whose root is gone."""
        actions: list[Action] = []
        for asker in self._askers.values():
            if asker.root is not None and asker.root not in self._roots:
                actions += _turn_down(asker, "the root was lost before it had answered; try again")
        return actions

    def take_answer(self, root: Root, frame: BootstrapFrame) -> list[Action]:
        """*root*, one of this server's, has said *frame*, which may be for an asker anywhere."""
        match frame:
            case SnapshotPart(str() as destination, is_last=ends):
                pass
            case Refused(destination=str() as destination):
                ends = True
            case _:
                return []
        text = encode_bootstrap(frame)
        asker = self._askers.get(destination)
        if asker is not None:
            return _answer(asker, text, ends=ends) if asker.root is root else []
        tag = self._roots.tag
        server = tag_of(destination) if tag else None
        if server in (None, tag) or not self._roots.is_connected:
            return []
        assert server is not None
        return [Forward(server, ToAsker(destination, ends, text))]

    def _expire(self, asker: Asker) -> list[Action]:
        del self._askers[asker.identifier]
        reason = "the time is over" if asker.has_asked else "nothing was asked"
        if asker.has_asked and asker.root is None:
            return [Close(asker, reason)]  # it has had its answer
        return [*self._roots.tell_gone(asker, asker.root, reason), *_turn_down(asker, reason)]

    # --- at other servers -----------------------------------------------------------------

    def hear_question(self, server: str, question: AskRoot) -> list[Action]:
        """An asker of *server* asks a root of this one."""
        root = self._roots.own(question.root)
        if root is not None and SNAPSHOT in root.extensions:
            return [Send(root, question.text)]
        reason = "the root left at that moment; try again" if root is None else _CANNOT_BE_ASKED
        refused = encode_bootstrap(Refused(reason, question.origin))
        return [Forward(server, ToAsker(question.origin, True, refused))]

    def hear_answer(self, server: str, answer: ToAsker) -> list[Action]:
        """A root of *server*, or that server itself, has answered an asker of this one."""
        asker = self._askers.get(answer.destination)
        if asker is None or asker.root is None or asker.root.server != server:
            return []
        return _answer(asker, answer.text, ends=answer.ends)

    def undelivered(self, question: AskRoot, reason: str) -> list[Action]:
        """*question* did not arrive, or perhaps not. Who was told so already is not told again."""
        asker = self._askers.get(question.origin)
        if asker is None or asker.root is None:
            return []
        return _turn_down(asker, reason)


def _answer(asker: Asker, text: str, *, ends: bool) -> list[Action]:
    if ends:
        asker.root = None
    return [Send(asker, text)]


def _turn_down(asker: Asker, reason: str) -> list[Action]:
    """Tell *asker* why it gets no picture, or not all of it."""
    asker.root = None
    return [send(asker, Refused(reason)), Close(asker, reason)]
