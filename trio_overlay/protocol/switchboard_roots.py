"""Which roots there are, at this server of a cluster and at the others, and which is active.

They are told here what they are, and that somebody has given up; what else they get is the
switchboard's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Final

from trio_overlay.protocol.bootstrap import Registration, Role, Withdrawn
from trio_overlay.protocol.cluster import Gone, Presence, RootEntry
from trio_overlay.protocol.switchboard_clients import (
    Action,
    Announce,
    Asker,
    Close,
    Forward,
    Prospect,
    Root,
    send,
)

RETURN_TIMEOUT: Final = 10.0
"""Seconds within which all roots are back at a server that has restarted: they dial every 5 s."""


class Roots:
    """Those connected, to the server *tag* or elsewhere, oldest first; the last is the active one.

    *on_return* is called with a root that has come back on another connection: as it was, and as it
    is.
    """

    def __init__(self, tag: str, on_return: Callable[[Root, Root], object]) -> None:
        self.tag = tag
        self.is_connected = False
        """Whether other servers can be reached."""
        self._on_return = on_return
        self._roots: list[Root] = []
        self._numbers = count()
        self._clock_offset: float | None = None
        """What the clock of the cluster says when `now` is 0; None before it was known."""
        self._term = 0
        self._active: Root | None = None

    def __iter__(self) -> Iterator[Root]:
        return iter(self._roots)

    def __len__(self) -> int:
        return len(self._roots)

    def __contains__(self, root: object) -> bool:
        return root in self._roots

    @property
    def active(self) -> Root | None:
        """The newest of those that do not stand by."""
        return self._roots[-1] if self._roots else None

    @property
    def presence(self) -> Presence:
        """What the other servers must know, and be told again before they take us for gone."""
        return Presence(
            tuple(
                RootEntry(
                    root.number,
                    root.registered_at,
                    root.is_announced,
                    root.came_at,
                    root.token,
                    root.term,
                )
                for root in self._roots
                if root.server == self.tag
            )
        )

    @property
    def why_none(self) -> str:
        """Why the active one gets nothing from here."""
        if self.active is None:
            return "no root is connected to this server"
        return "the root is connected to another server, which cannot be reached from this one"

    def is_reachable(self, root: Root) -> bool:
        return root.server == self.tag or self.is_connected

    def own(self, number: int) -> Root | None:
        """This server's with that number, if it is still here."""
        for root in self._roots:
            if root.server == self.tag and root.number == number:
                return root
        return None

    # --- who comes and goes ---------------------------------------------------------------

    def make(
        self, now: float, *, is_announced: bool, registration: Registration | None = None
    ) -> Root:
        """Another root of this server's, which has not entered yet."""
        number, came_at = next(self._numbers), now + (self._clock_offset or 0.0)
        root = Root(is_announced, self.tag, number, registered_at=came_at, came_at=came_at)
        if registration is not None:
            root.token = registration.token
            root.term = root.brought_term = registration.term
            root.extensions = registration.extensions
        return root

    def enter(self, now: float, root: Root, registration: Registration | None) -> list[Action]:
        """*root* takes its place among the others."""
        actions = self._rank(now, root, registration) if registration is not None else []
        self._roots.append(root)
        self._roots.sort(key=_order)
        return [*actions, *self.announce()]

    def leave(self, root: Root) -> list[Action]:
        """The connection of *root*, one of these, is closed."""
        self._roots.remove(root)
        return self.announce()

    def connect(self, now: float, time: float) -> None:
        """The other servers can be reached; the clock of the cluster says *time*."""
        if self._clock_offset is None:
            for root in self._roots:  # who came before this server knew of a cluster
                root.registered_at += time - now
                root.came_at += time - now
        self._clock_offset = time - now
        self.is_connected = True

    def know(self, server: str, entries: tuple[RootEntry, ...]) -> list[Action]:
        """*server*, another one, has said which roots are connected to it."""
        known = {root.number: root for root in self._roots if root.server == server}
        actions: list[Action] = []
        for entry in entries:
            root = known.pop(entry.number, None)
            if root is None:
                root = Root(entry.is_announced, server, entry.number, entry.registered_at)
                root.came_at, root.token = entry.came_at, entry.token
                former = self._called(entry.token)
                if former is not None:
                    if _came(root) < _came(former):
                        continue  # its server does not know yet that it has gone elsewhere
                    actions += self._replace(former, root)
                self._roots.append(root)
            root.term = entry.term
            self._term = max(self._term, root.term)
        self._roots = [root for root in self._roots if root not in known.values()]
        self._roots.sort(key=_order)
        return actions

    def forget(self, server: str) -> None:
        """*server*, another one, is gone."""
        self._roots = [root for root in self._roots if root.server != server]

    # --- what is said ---------------------------------------------------------------------

    def announce(self) -> list[Action]:
        """Tell the other servers which roots are here."""
        return [Announce(self.presence)] if self.is_connected else []

    def tell_roles(self) -> list[Action]:
        """The roots may be others, or in another order: tell those of ours which one is active."""
        active = self.active
        actions: list[Action] = []
        if active is not self._active:
            self._active = active
            if active is not None and active.server == self.tag:
                self._term = active.term = max(self._term + 1, active.term)
                actions += self.announce()  # by its term it is known if it comes back elsewhere
        for root in self._roots:
            if root.token is not None and root.server == self.tag and active is not None:
                role = Role(root is active, active.term, len(self._roots) - 1)
                if role != root.told:
                    root.told = role
                    actions.append(send(root, role))
        return actions

    def tell_gone(self, who: Prospect | Asker, root: Root | None, reason: str) -> list[Action]:
        """Tell *root*, if there is one that understands it, that *who* has given up."""
        if root is None or not root.is_announced:
            return []
        if root.server == self.tag:
            return [send(root, Withdrawn(who.identifier, reason))]
        if not self.is_connected:
            return []
        return [Forward(root.server, Gone(who.identifier, root.number, reason))]

    # --- which is the active one ----------------------------------------------------------

    def _rank(self, now: float, root: Root, registration: Registration) -> list[Action]:
        """Decide where *root*, which is about to enter, stands among the others."""
        former = self._called(root.token)
        if former is not None:
            root.registered_at, root.term = former.registered_at, max(former.term, root.term)
            return self._replace(former, root)
        active = self.active
        if active is not None and not (
            registration.takes_over or self._was_active_later(now, root, active)
        ):
            root.registered_at = min(each.registered_at for each in self._roots) - 1.0
        return []

    def _called(self, token: str | None) -> Root | None:
        for root in self._roots:
            if token is not None and root.token == token:
                return root
        return None

    def _replace(self, former: Root, root: Root) -> list[Action]:
        """*former* has come back as *root*, at this server or another."""
        self._roots.remove(former)
        if self._active is former:
            self._active = root
        self._on_return(former, root)
        if former.server != self.tag:
            return []
        return [Close(former, "you have come back on another connection"), *self.announce()]

    def _was_active_later(self, now: float, root: Root, active: Root) -> bool:
        """Whether *root* was active before this server began, and the *active* one was not then."""
        if active.token is None:
            return False
        if root.term > active.term:
            return True
        if active.server != self.tag:
            return False
        # After a restart, whoever came first was given the term that others may have had before.
        has_just_come = now + (self._clock_offset or 0.0) - active.registered_at < RETURN_TIMEOUT
        return has_just_come and root.term == active.term > active.brought_term


def _order(root: Root) -> tuple[float, str, int]:
    return root.registered_at, root.server, root.number


def _came(root: Root) -> tuple[float, str, int]:
    return root.came_at, root.server, root.number
