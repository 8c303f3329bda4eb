"""What a node knows of the way up to the root, and the rule that keeps the tree free of cycles.

The root issues *numbers* that only grow. They flow down the tree, from parent to child, and in no
other direction. A node keeps the largest it has heard. The rule (as the sequence numbers of DSDV,
Perkins and Bhagwat 1994, and of AODV, RFC 3561, keep routes free of loops):

    an applicant freezes its number; it takes a parent only if the parent's is greater.

*Why there is never a cycle of confirmed links.* Let n(v) be the number of node v. It never shrinks.
(1) Along a confirmed link n(child) <= n(parent): true when the link is confirmed, because the child
takes over the parent's number then, and afterwards the child's grows only by what the parent
sends it, which the parent has. (2) A node is confirmed under a new parent only with a number
that the parent *sent*, and that is greater than its own n at that moment. Suppose that the
confirmation of v under p closed a cycle: then p is below v, so by (1) along the chain
n(p) <= n(v) at that moment. But p had sent a number greater than n(v), and n(p) never shrinks:
n(p) > n(v), a contradiction. What arrives late does no harm: an old number is too small, and a path
counts only on the link it came over.

A node that *moves* keeps its old parent until the new one has confirmed it, and leaves the old
one in that same step (`follow`). The proof above is of this case, too: at no moment has a node two
confirmed parents, and (2) speaks of the moment of the step. It would hold if n went on growing by
what the old parent sends; but then a new parent further from the root would never be ahead, so a
node that moves keeps its number as it is (`holds`), which (1) allows.

Numbers are pairs (epoch, count), compared in that order. A root that hears of a greater epoch than
its own begins a new one: that keeps trees alive that change their root; the proof needs no epochs,
nor that there is one root.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Number: TypeAlias = tuple[int, int]
"""Epoch and count; NEVER is smaller than all that roots issue."""

MAX_NUMBER = 1 << 48
"""Epochs and counts are below it."""
MAX_EPOCH_STEP = 1000
"""How many epochs an applicant can make the root go on at a time: it may be lying. Honest ones are
ahead of the root by the number of roots that came and went without it, which is far less; one that
is further ahead is taken at a later try."""

NEVER: Number = (0, 0)
UNKNOWN = "?"
"""Stands in a path for all that nodes of the old protocol do not tell."""
MAX_PATH = 1000
"""The longest path that is believed; a tree that deep is a mistake or a lie."""


@dataclass(frozen=True, slots=True)
class Descent:
    """What a parent tells its child: where the child's own way up leads, and the newest number."""

    number: Number
    path: tuple[str, ...]
    """The ids from the root down to the parent; empty says that the parent is cut off itself."""


class Ancestry:
    """One node's way up. It is *placed* if it is a root, or confirmed by its current parent.

    Only a placed node takes children and passes messages on; everything below a node that is
    not placed is told so, and is not placed either.
    """

    __slots__ = ("_has_parent", "_identifier", "holds", "issues", "number", "path")

    def __init__(self, identifier: str) -> None:
        self._identifier = identifier
        self._has_parent = False  # one that confirmed us, and says where it stands
        self.holds = False
        """Whether the number is kept as it is although there is a parent: somebody else is about
        to confirm us. Seconds, no more: below us numbers stand still meanwhile."""
        self.issues = False
        """Whether this node issues numbers: it is a root, or stands below the old protocol."""
        self.number = NEVER
        """The largest heard, or issued; frozen while there is no parent."""
        self.path: tuple[str, ...] = ()
        """The ids from the root down to this node, itself included; empty if not placed."""

    @property
    def is_placed(self) -> bool:
        return bool(self.path)

    @property
    def descent(self) -> Descent:
        """What the children are to be told."""
        return Descent(self.number, self.path)

    def become_root(self) -> None:
        """Be the root, with an epoch greater than any this node has heard of."""
        self._issue_from((self._identifier,))

    def meet_old_parent(self) -> None:
        """A link is up to a parent of the old protocol, which will never say where it stands.

        It is believed, and for the rule this node is the root of what is below it. So a cycle
        that goes through nodes of the old protocol is not ruled out (the README says so).
        """
        self._issue_from((UNKNOWN, self._identifier))

    def _issue_from(self, path: tuple[str, ...]) -> None:
        self._has_parent = self.holds = False
        self.issues = True
        # What a false parent said is no reason to issue what nobody can read.
        self.number = (min(self.number[0] + 1, MAX_NUMBER - 1), 1)
        self.path = path

    def issue(self) -> None:
        """Issue the next number, unless we are about to be confirmed below somebody else."""
        assert self.issues
        if not self.holds:
            epoch, count = self.number
            self.number = (epoch, count + 1)

    def hear_of(self, number: Number) -> None:
        """If we issue numbers: one of ours must be greater than *number*, which somebody froze.

        But nobody can take us to where there are no greater numbers, and so end the whole tree:
        see `MAX_EPOCH_STEP`.
        """
        if self.issues and number >= self.number:
            epoch = min(max(number[0], self.number[0]) + 1, self.number[0] + MAX_EPOCH_STEP)
            if epoch < MAX_NUMBER:
                self.number = (epoch, 1)

    def may_take(self, frozen: Number) -> bool:
        """Whether an applicant that has frozen this number may be taken as a child now."""
        return self.is_placed and self.number > frozen

    def follow(self, descent: Descent) -> bool:
        """Who is to be the parent tells us of its way up, over its link; whether it is the parent.

        It is, from this step on, if that confirms us; whoever was it before is left in the same
        step, and what it says is not to be given to `take` any more. Else nothing changes, and a
        later word may.
        """
        if not descent.path or self.is_above(descent) or descent.number <= self.number:
            return False
        self._has_parent = True
        self.issues = self.holds = False
        self._stand_below(descent)
        return True

    def is_above(self, descent: Descent) -> bool:
        """Whether who said this names us among its own ancestors, or far too many: leave it."""
        return self._identifier in descent.path or len(descent.path) >= MAX_PATH

    def lose_parent(self) -> None:
        """The link to the parent is gone, or left, or we are the root no more.

        The number is frozen from here on.
        """
        self._has_parent = False
        self.issues = False
        self.path = ()

    def take(self, descent: Descent) -> bool:
        """The parent tells us of its way up, over the current link; False if we must leave it.

        A parent that is cut off keeps its children: it will find a way up, or be left when it is
        lost. One that has us among its own ancestors must be left at once.
        """
        if not self._has_parent:
            return True  # said before we left; it means nothing any more
        if self.is_above(descent):
            self.path = ()
            return False
        if not descent.path:
            self.path = ()
        elif self.path:
            # Confirmed before: the number can only be the same or greater.
            if descent.number >= self.number:
                self._stand_below(descent)
        elif descent.number > self.number:  # one too old proves nothing; a newer one will come
            self._stand_below(descent)
        return True

    def _stand_below(self, descent: Descent) -> None:
        if not (self.path and self.holds):
            self.number = descent.number
        self.path = (*descent.path, self._identifier)
