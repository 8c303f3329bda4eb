"""What one node of the tree knows of its own branch, and where it puts those who want to join.

A `Branch` holds the node's *places* (at most `max_degree` children), its *applicants* (those it
is answering itself) and the *requests* it gave to a child, or keeps for one. Every method takes
one event, changes the state in one step, and returns what is to be done.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from trio_overlay.protocol.filling import OLD_PROTOCOL_VIEW, Filling, ParentBelief, View

FrameT = TypeVar("FrameT")
"""A frame of a request; a branch only keeps frames, and never looks into them."""

MAX_REQUESTS = 10_000
MAX_FRAMES = 64
"""Frames kept of one request; a handshake has about five, and what goes over is not passed on."""
MAX_HELD_BYTES = 32 << 20
"""Bytes of frames kept for all requests together."""

# ECMAScript's white space is not Python's: the byte order mark is, \x1c to \x1f and \x85 are not.
_LEADING_HEX = re.compile(
    "[\t-\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff]*"
    "([+-]?)(?:0[xX])?([0-9a-fA-F]+)"
)


@dataclass(frozen=True, slots=True)
class Admit:
    """Answer this origin: it has a place, as an applicant, until it connects or fails."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Give the frame to the applicant of this origin."""


@dataclass(frozen=True, slots=True)
class Delegate:
    """Pass the frame on to *child*."""

    child: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing now: the frame is kept until the place it is meant for has a child."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Nothing at all, and *reason* says why."""

    reason: str


Verdict: TypeAlias = Admit | HandOver | Delegate | Wait | Drop

ADMIT = Admit()
HAND_OVER = HandOver()
WAIT = Wait()
NO_OFFER = Drop("a frame without an offer, from an origin that nobody knows")
IS_CHILD = Drop("this origin is connected already")
CUT_OFF = Drop("this node has no way to the root")
TOO_MANY = Drop("too many requests are under way")


class Placement(Generic[FrameT]):
    """A request that was delegated, or is kept for a place, and where it goes."""

    # A storm leaves thousands of these at a node, one frame each: so the first frame has a slot of
    # its own, and most need no tuple.
    __slots__ = ("brought", "first", "later", "origin", "size", "way")

    def __init__(self, origin: str, frame: FrameT, size: int, brought: Sequence[int]) -> None:
        self.origin = origin
        self.way: Delegate | Admit | int = 0
        """The child it was given to, a place here, or the number of that whose child it awaits."""
        self.brought = brought
        self.first = frame
        """The frame that came first; there is none any more when it is settled."""
        self.later: tuple[FrameT, ...] | None = ()
        """The others, in the order they came; None when it is settled."""
        self.size = size
        """Bytes of all frames that are kept."""

    @property
    def verdict(self) -> Verdict:
        """What is to be done with it."""
        return WAIT if isinstance(self.way, int) else self.way

    @property
    def frames(self) -> tuple[FrameT, ...]:
        """All that are kept, in the order they came; none any more once it is settled."""
        return () if self.later is None else (self.first, *self.later)


class Branch(Generic[FrameT]):
    """One node's part of the tree: its places, its applicants and the requests on the way down.

    An origin is one of these or none: a child, an applicant, a request. Children and applicants
    together are never more than *max_degree*, and each holds a place. When all are held, a request
    goes to the child at one of them, or waits for its applicant: by default where the shallowest
    free place below is (filling.py), else where *place_rule* says, which is asked once for each
    request. At most *max_requests* are kept at a time.

    ValueError: *max_degree* is less than 1.
    """

    __slots__ = (
        "_filling",
        "_held",
        "_holders",
        "_place_rule",
        "_places",
        "_requests",
        "_waiting",
        "belief",
        "count_delegated",
        "is_open",
        "is_surprising",
        "max_degree",
        "max_requests",
        "node_id",
    )

    def __init__(
        self,
        node_id: int,
        max_degree: int,
        place_rule: PlaceRule | None = None,
        *,
        max_requests: int = MAX_REQUESTS,
    ) -> None:
        if max_degree < 1:
            raise ValueError(f"max_degree is at least 1, not {max_degree}")
        self.node_id = node_id
        self.max_degree = max_degree
        self.max_requests = max_requests
        self.is_open = True
        """Whether the node has a way to the root; one that has none takes nobody."""
        self.count_delegated = 0
        """How many requests were delegated or made to wait, from the beginning."""
        self.belief: ParentBelief | None = None
        """What the parent believes of the free places here; None without a parent that asks."""
        self.is_surprising = False
        """Whether something has happened that the parent cannot know of; see `report`."""
        self._place_rule = place_rule
        self._filling = Filling() if place_rule is None else None
        # Most nodes of a tree are leaves: these stay empty there, and cost nothing.
        # Who holds the place: an applicant, by its origin, or a child, by the verdict of all
        # requests that it is given; a storm has thousands of them.
        self._places: list[str | Delegate | None] = []
        self._holders: dict[str, int] = {}  # the place of each of these, in order of arrival
        self._requests: dict[str, Placement[FrameT]] = {}
        # By place, those requests whose child is not there yet, oldest first: in a storm they would
        # else be looked for among thousands.
        self._waiting: dict[int, dict[str, Placement[FrameT]]] = {}
        self._held = 0

    @property
    def children(self) -> tuple[str, ...]:
        """The origins of the children, in the order of their places."""
        return tuple([each.child for each in self._places if type(each) is Delegate])

    @property
    def applicants(self) -> tuple[str, ...]:
        """The origins of those being answered, oldest first."""
        places = self._places
        return tuple([each for each, place in self._holders.items() if places[place] == each])

    @property
    def count_taken(self) -> int:
        """How many places children and applicants have."""
        return len(self._holders)

    @property
    def requests(self) -> tuple[str, ...]:
        """The origins of the delegated and the waiting requests, oldest first."""
        return tuple(self._requests)

    def is_applicant(self, origin: str) -> bool:
        """Whether *origin* is being answered."""
        place = self._holders.get(origin)
        return place is not None and isinstance(self._places[place], str)

    def is_child(self, origin: str) -> bool:
        """Whether *origin* is one of the `children`."""
        place = self._holders.get(origin)
        return place is not None and isinstance(self._places[place], Delegate)

    def knows(self, origin: str | None) -> bool:
        """Whether *origin* is being answered, or its request is delegated or waiting."""
        return origin is not None and (self.is_applicant(origin) or origin in self._requests)

    def child_of(self, origin: str) -> str | None:
        """The child that the request of *origin* was given to."""
        request = self._requests.get(origin)
        if request is None or not isinstance(request.way, Delegate):
            return None
        return request.way.child

    @property
    def count_requests(self) -> int:
        """How many requests are delegated or waiting."""
        return len(self._requests)

    @property
    def has_room(self) -> bool:
        """Whether one more applicant can be admitted."""
        return self.is_open and len(self._holders) < self.max_degree

    @property
    def view(self) -> View:
        """The free places here and below, by level; none while the branch is closed."""
        return self.potential_view if self.is_open else [0]

    @property
    def potential_view(self) -> View:
        """The free places that there are here and below, once the branch is open.

        With a place rule nobody counts those below.
        """
        own_free = self.max_degree - len(self._holders)
        return [own_free] if self._filling is None else self._filling.view(own_free)

    @property
    def views(self) -> dict[str, View]:
        """The free places below each child, by level, as it is believed; none with a rule."""
        if self._filling is None:
            return {}
        return {
            holder.child: self._filling.view_of(place)
            for place, holder in enumerate(self._places)
            if isinstance(holder, Delegate)
        }

    def meet_parent(self, brought: Sequence[int]) -> None:
        """There is a parent that believes *brought* of the places here; with a rule, none cares."""
        self.belief = ParentBelief(brought) if self._filling is not None else None

    def take(
        self,
        origin: str,
        frame: FrameT,
        *,
        is_offer: bool,
        size: int = 0,
        brought: Sequence[int] = OLD_PROTOCOL_VIEW,
        is_from_parent: bool = True,
    ) -> Verdict:
        """Decide about one frame of *origin*; all frames of an origin go one way.

        *size* is the frame's, in bytes, for the bound on what is kept. *brought* are the free
        places that the applicant brings along, by level. A request that *is* not *from* the
        *parent* is nothing that the parent can know of.
        """
        place = self._holders.get(origin)
        request = self._requests.get(origin)
        if is_offer and is_from_parent and (place is not None or request is not None):
            # It was here before, by another way, and the parent counts it all the same.
            self.is_surprising = True
            if self.belief is not None:
                self.belief.see(brought)
        if place is not None:
            return HAND_OVER if isinstance(self._places[place], str) else IS_CHILD
        if request is not None:
            return self._take_later(request, frame, size)
        if not is_offer:
            return NO_OFFER
        if not is_from_parent:
            self.is_surprising = True
        elif self.belief is not None:
            self.belief.see(brought)
        if not self.is_open:
            self.is_surprising = True
            return CUT_OFF
        if len(self._holders) < self.max_degree:
            self._admit(origin, brought)
            return ADMIT
        if len(self._requests) >= self.max_requests or self._held + size > MAX_HELD_BYTES:
            self.is_surprising = True
            return TOO_MANY
        request = self._requests[origin] = Placement(origin, frame, size, brought)
        self._held += size
        self.count_delegated += 1
        return self._direct(request)

    def connect(self, origin: str) -> list[Placement[FrameT]]:
        """The applicant *origin* is a child now; the requests that waited for it.

        KeyError: *origin* is no applicant.
        """
        place = self._place_of_applicant(origin)
        verdict = self._places[place] = Delegate(origin)
        flushed = list(self._waiting.pop(place, {}).values())
        for request in flushed:
            request.way = verdict
        return flushed

    def fail(self, origin: str) -> list[Placement[FrameT]]:
        """The applicant *origin* will not connect; where those who waited go instead.

        KeyError: *origin* is no applicant.
        """
        place = self._place_of_applicant(origin)
        del self._holders[origin]
        return self._vacate(place, list(self._waiting.pop(place, {}).values()))

    def lose(self, child: str) -> list[Placement[FrameT]]:
        """The *child* is gone; where the requests that it was given lately go instead.

        KeyError: *child* is no child.
        """
        if not self.is_child(child):
            raise KeyError(child)
        place = self._holders.pop(child)
        verdict = self._places[place]
        lost = [request for request in self._requests.values() if request.way is verdict]
        for request in lost:
            if request.later is None:
                self.forget(request.origin)
        return self._vacate(place, [request for request in lost if request.later is not None])

    def hear(self, child: str, view: Sequence[int], seen: int) -> None:
        """The *child* reports its view, as it is after *seen* requests; see filling.py.

        One that is no child, or not yet, is not heard.
        """
        if self._filling is not None and self.is_child(child):
            self._filling.correct(self._holders[child], view, seen)
            self.is_surprising = True

    def report(self) -> tuple[tuple[int, ...], int] | None:
        """What the parent must be told of the free places here: a view, and the requests seen.

        None if it knows. Whoever asks need not ask again before `is_surprising` or
        `ParentBelief.is_behind` says so.
        """
        self.is_surprising = False
        if self.belief is None:
            return None
        view = self.view
        return self.belief.report(view) if self.belief.is_wrong(view) else None

    def settle(self, origin: str) -> None:
        """The request of *origin* has been with a child for so long that it must be answered.

        It is not placed again if that child is lost: the applicant would take a second place,
        which it does not want. Its later frames, if any come, still go the same way.
        """
        self.settle_all((origin,))

    def settle_all(self, origins: Iterable[str]) -> None:
        """`settle` each of the *origins*."""
        find = self._requests.get
        freed = 0
        for origin in origins:
            request = find(origin)
            if request is not None and type(request.way) is not int and request.later is not None:
                freed += request.size
                request.size = 0
                request.later = None
                del request.first
        self._held -= freed

    def withdraw(self, origin: str) -> Verdict:
        """The request of *origin* is taken back: whom to tell.

        HandOver: its applicant, which then fails. Delegate: that child. Drop: nobody; the
        request is gone, or there was none, or it is a child by now, which will leave by itself.
        """
        if self.is_applicant(origin):
            return HAND_OVER
        request = self.forget(origin)
        if request is not None:
            self.is_surprising = True
        if request is None or isinstance(request.way, int):
            return Drop("no one else knows of this request")
        return request.way

    def forget(self, origin: str) -> Placement[FrameT] | None:
        """The request of *origin* is past its time: keep nothing of it."""
        request = self._requests.get(origin)
        self.forget_all((origin,))
        return request

    def forget_all(self, origins: Iterable[str]) -> None:
        """`forget` the request of each of the *origins*."""
        pop = self._requests.pop
        for origin in origins:
            request = pop(origin, None)
            if request is not None:
                self._held -= request.size
                if isinstance(request.way, int):
                    del self._waiting[request.way][origin]
                    if self._filling is not None:
                        self._filling.take_back(request.way, request.brought)

    def close(self) -> None:
        """The way to the root is lost: take nobody, and keep no request for anybody."""
        self.forget_all(self.requests)
        self.is_open = False
        self.is_surprising = True

    def retire(self) -> None:
        """Take nobody any more, but go on with those who are on the way in."""
        self.is_open = False
        self.is_surprising = True

    def open(self) -> None:
        """The way to the root is there (again): take requests."""
        self.is_open = True
        self.is_surprising = True

    def _take_later(self, request: Placement[FrameT], frame: FrameT, size: int) -> Verdict:
        """A frame after the first goes where that went."""
        if request.later is None:
            return request.verdict  # settled: it is not kept
        if len(request.later) + 1 >= MAX_FRAMES or self._held + size > MAX_HELD_BYTES:
            return TOO_MANY
        request.later += (frame,)
        request.size += size
        self._held += size
        return request.verdict

    def _place_of_applicant(self, origin: str) -> int:
        """KeyError: *origin* is no applicant."""
        place = self._holders[origin]
        if not isinstance(self._places[place], str):
            raise KeyError(origin)
        return place

    def _admit(self, origin: str, brought: Sequence[int]) -> None:
        place = self._free_place()
        self._places[place] = origin
        self._holders[origin] = place
        if self._filling is not None:
            self._filling.admit(place, brought)

    def _direct(self, request: Placement[FrameT]) -> Delegate | Wait:
        """Decide which way *request* goes; all places are held."""
        place_rule = self._place_rule
        if place_rule is not None:
            place = place_rule(self, request.origin)
        else:
            assert self._filling is not None
            place = self._filling.choose()
            self._filling.delegate(place, request.brought)
        holder = self._places[place]
        if isinstance(holder, Delegate):
            request.way = holder
            return holder
        request.way = place
        waiting = self._waiting.get(place)
        if waiting is None:
            waiting = self._waiting[place] = {}
        waiting[request.origin] = request
        return WAIT

    def _free_place(self) -> int:
        if len(self._holders) < len(self._places):
            return self._places.index(None)
        self._places.append(None)
        assert len(self._places) <= self.max_degree
        return len(self._places) - 1

    def _vacate(self, place: int, astray: Sequence[Placement[FrameT]]) -> list[Placement[FrameT]]:
        """Nobody holds *place* any more: give those who were to go there another way.

        The oldest is admitted to the place, and if there is none, one that waits for somebody
        else. The original keeps them for a place whose applicant has failed, and they wait for
        ever.
        """
        self._places[place] = None
        if self._filling is not None:
            self._filling.vacate(place)
        self.is_surprising = True
        if not self.is_open:
            # Only a node that is leaving has requests then, and its parent places them again.
            for request in astray:
                del self._requests[request.origin]
                self._held -= request.size
            return []
        placements = []
        for request in astray or self._one_that_waits():
            if self.has_room:
                del self._requests[request.origin]
                self._held -= request.size
                self._admit(request.origin, request.brought)
                request.way = ADMIT
                placements.append(request)
            elif isinstance(self._direct(request), Delegate):
                placements.append(request)
        return placements

    def _one_that_waits(self) -> Sequence[Placement[FrameT]]:
        """Somebody who waits for an applicant, and does so no more; nobody, if nobody does."""
        for place, waiting in self._waiting.items():
            for origin, request in waiting.items():
                del waiting[origin]
                if self._filling is not None:
                    self._filling.take_back(place, request.brought)
                return (request,)
        return ()


PlaceRule: TypeAlias = Callable[[Branch[Any], str], int]
"""Which place's child gets the request of an origin, 0 to `max_degree` - 1, at a full branch.

It may look at all that the branch shows, and changes nothing there. What it says of an origin
holds until its request ends: the rule need not say the same again.
"""


def hash_place(branch: Branch[Any], origin: str) -> int:
    """The original's rule, webrtc-tree-overlay's.

    The first six hex digits of the origin are hashed, mixed with the node's own number so that no
    two levels choose alike. The same for all frames of an origin, whether or not there is a child.
    """
    start = origin[:6]
    if start.isalnum() and start.isascii():
        # As every id that a server gives: this is asked at every hop. A leading 0x is passed over
        # here as it is there.
        try:
            return jenkins_hash(int(start, 16) ^ branch.node_id) % branch.max_degree
        except ValueError:
            pass
    return jenkins_hash(_leading_hex(start) ^ branch.node_id) % branch.max_degree


def place_in_turn(branch: Branch[Any], origin: str) -> int:  # noqa: ARG001 - a PlaceRule has both
    """One place after another, so that a node's children get as many requests each."""
    return branch.count_delegated % branch.max_degree


def random_place(rng: random.Random) -> PlaceRule:
    """A rule by which every place is as likely, whatever the origin."""
    return lambda branch, _: int(rng.random() * branch.max_degree)


def make_node_id(rng: random.Random) -> int:
    """A node's number of up to six digits, distributed as the original's are."""
    return int(str(jenkins_hash(rng.getrandbits(32)))[:6])


def jenkins_hash(value: int) -> int:
    """Robert Jenkins' 32-bit integer hash, cut to 31 bits at every step as the original does.

    Shifting and adding is written as multiplying, and what cannot reach the bits that are looked
    at next is not cut off: this is a third of what a hop costs in a simulation.
    """
    value = (value * 0x1001 + 0x7ED55D16) & 0x7FFFFFFF
    value ^= 0x4761C23C ^ (value >> 19)
    value = value * 0x21 + 0x165667B1
    value = (value + 0xD3A2646C) ^ (value << 9)
    value = (value * 9 + 0xFD7046C5) & 0x7FFFFFFF
    return value ^ 0x355A4F09 ^ (value >> 16)


def _leading_hex(text: str) -> int:
    """What JavaScript's parseInt makes of *text* as a hex number; 0 where it makes NaN of it."""
    found = _LEADING_HEX.match(text)
    return int(found[1] + found[2], 16) if found else 0
