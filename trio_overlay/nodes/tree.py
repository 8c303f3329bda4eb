"""A node of the tree: at most so many children, and whoever else wants in is passed on to them.

It does what webrtc-tree-overlay's node does, and speaks with it. What it decides is decided in
protocol/branch.py; here is what lives in time: the applicants, the channels to the children, the
requests on their way down. The way to the parent is in tree_way_up.py.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import trio

from trio_overlay.channels.internet import IceServer, Internet
from trio_overlay.channels.network import Network
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.channels.timeline import Appointment, Timeline
from trio_overlay.errors import (
    JoinRefused,
    OutcomeError,
    UsageError,
)
from trio_overlay.nodes.heartbeat import Heartbeat
from trio_overlay.nodes.streams import Stream
from trio_overlay.nodes.tree_cast_links import CastLimits
from trio_overlay.nodes.tree_channel import WINDOW, Message, TreeChannel
from trio_overlay.nodes.tree_events import ChildClose, ChildConnect, ChildError, Event, PathChange
from trio_overlay.nodes.tree_leaving import Leave
from trio_overlay.nodes.tree_messages import TreeMessages
from trio_overlay.nodes.tree_pulling import Pulls
from trio_overlay.nodes.tree_roads import Roads
from trio_overlay.nodes.tree_roots import Rootship
from trio_overlay.nodes.tree_standby import Standby
from trio_overlay.nodes.tree_way_up import WayUp
from trio_overlay.protocol.ancestry import Ancestry, Descent
from trio_overlay.protocol.bootstrap import WITHDRAW, SignalFrame
from trio_overlay.protocol.branch import (
    Admit,
    Branch,
    Delegate,
    Drop,
    HandOver,
    Placement,
    PlaceRule,
    Verdict,
    Wait,
    make_node_id,
)
from trio_overlay.protocol.signals import is_offer
from trio_overlay.protocol.tree import (
    EXTENSIONS,
    HEAL,
    Beat,
    Descend,
    JoinRequest,
    Leaving,
    PullUp,
    Report,
    RoadEnd,
    RoadRequest,
    RoadSignal,
    StandBy,
    TreeOnly,
    Withdraw,
    brought_view,
    encode_tree,
    frozen_number,
)
from trio_overlay.signaling.bootstrap import Bootstrap, Connection, Request, open_bootstrap

logger = logging.getLogger(__name__)

DEFAULT_MAX_DEGREE = 10
DEFAULT_REQUEST_TIMEOUT = 30.0
REPORT_INTERVAL = 0.15
REPLACE_TIMEOUT = 5.0
"""Seconds after which a delegated request is not placed again if the child it went to is lost: it
has been answered by then, or its applicant asks again."""
MAX_REASON = 200
"""Characters of a reason that are passed on."""
LEAVE_TIMEOUT = 5.0


@asynccontextmanager
async def open_tree_node(
    bootstrap: Bootstrap | str,
    *,
    max_degree: int = DEFAULT_MAX_DEGREE,
    request_timeout: float = DEFAULT_REQUEST_TIMEOUT,
    leave_timeout: float = LEAVE_TIMEOUT,
    rejoins: bool = True,
    standby: bool = True,
    heartbeat: Heartbeat = Heartbeat(),  # noqa: B008 - it is frozen
    cast_limits: CastLimits = CastLimits(),  # noqa: B008 - it is frozen
    ice_servers: Iterable[IceServer] = (),
    network: Network | None = None,
    place_rule: PlaceRule | None = None,
    rng: random.Random | None = None,
) -> AsyncIterator[TreeNode]:
    """A node, not yet in any tree: call `TreeNode.join` or `TreeNode.become_root`.

    *bootstrap* is a client, or the address of a server (``ws://host:port``, or ``host:port``).
    Peer connections are made on *network*, else over the internet with *ice_servers* if any are
    given, else as the bootstrap client makes its own.

    A node that loses its parent finds another, with all that is below it, unless *rejoins* is
    false. It asks first over a connection that it has for this to its grandparent or to a sibling,
    one for each node, unless *standby* is false. *heartbeat* says when a neighbour is taken for
    dead, and must be alike in the whole tree. *cast_limits* says how slowly a child may read what
    is broadcast.

    A full node passes requests on to where the shallowest free place below it is; *place_rule*
    gives another rule, such as the original's, `hash_place`.

    Leaving the context leaves the tree and closes everything that was opened, at once, but for
    what was sent and still arrives over a slow network: that gets up to ten seconds. Its children
    then find other parents by themselves. `TreeNode.aclose` hands them over before, and takes up
    to *leave_timeout* seconds for it.

    ValueError: *max_degree* is less than 1, or *request_timeout* not above 0.
    UsageError: *bootstrap* is no address of a server.
    """
    if max_degree < 1:
        raise ValueError(f"max_degree is at least 1, not {max_degree}")
    if not request_timeout > 0:
        raise ValueError(f"request_timeout is above 0 seconds, not {request_timeout}")
    rng = rng or random.Random()
    ice_servers = tuple(ice_servers)
    async with AsyncExitStack() as stack:
        if network is None and ice_servers:
            network = Internet(ice_servers=ice_servers)
        if isinstance(bootstrap, str):
            client = open_bootstrap(bootstrap, network=network, rng=rng)
            bootstrap = await stack.enter_async_context(client)
        nursery = await stack.enter_async_context(open_background_nursery())
        node = TreeNode(
            bootstrap,
            network or bootstrap.network,
            rng,
            max_degree=max_degree,
            request_timeout=request_timeout,
            leave_timeout=leave_timeout,
            rejoins=rejoins,
            standby=standby,
            heartbeat=heartbeat,
            cast_limits=cast_limits,
            place_rule=place_rule,
        )
        await nursery.start(node._live)
        yield node


class TreeNode(TreeMessages):
    """A node of the tree; made by `open_tree_node`."""

    def __init__(
        self,
        bootstrap: Bootstrap,
        network: Network,
        rng: random.Random,
        *,
        max_degree: int,
        request_timeout: float,
        leave_timeout: float,
        rejoins: bool,
        standby: bool,
        heartbeat: Heartbeat,
        cast_limits: CastLimits,
        place_rule: PlaceRule | None,
    ) -> None:
        number = make_node_id(rng)  # first, so that seeds mean what they mean to the simulator
        self.id = f"{rng.getrandbits(64):016x}"
        """16 hex digits at random: what this node is called in paths."""
        self.request_timeout = request_timeout
        self.leave_timeout = leave_timeout
        self.events: Stream[Event] = Stream()
        """What happens to the neighbours, from the beginning; unread, the newest thousand."""
        self.messages: Stream[Message] = Stream(
            # Below the window, so that nobody ever waits for a node that reads nothing.
            max_bytes=WINDOW // 2,
            keeps_what_is_read=True,
            on_leave=lambda message, size: message.channel.release(size),
        )
        """What neighbours send; unread, only the newest, up to 128 KiB.

        Once somebody reads, nothing is dropped: neighbours wait until their messages are read.
        """
        self._timeline = Timeline()
        """What this node does at its time; nothing of it waits, and all ends with the node."""
        self._open_messages(cast_limits, max_degree, self._timeline, rng)
        self._bootstrap = bootstrap
        self._network = network
        self._rng = rng
        self._nursery: trio.Nursery
        self._left = trio.Event()
        self._entering = trio.CancelScope()
        """Around a `join` or `become_root` under way; there is one at a time."""
        self._heartbeat = heartbeat
        self._branch: Branch[SignalFrame] = Branch(number, max_degree, place_rule)
        self._branch.close()
        self._ancestry = Ancestry(self.id)
        self._way_up = WayUp(self, rejoins)
        self._is_about_to_report = False
        self._is_child = False
        """Whether the node has a parent, or looks for one."""
        self._is_root = False
        self._links: dict[str, TreeChannel] = {}
        """The links to children, and to applicants that have not taken our word yet."""
        self._children: dict[str, TreeChannel] = {}
        self._applicants: dict[str, Request] = {}
        self._requests: dict[str, tuple[Appointment, ...]] = {}
        """Of each request that a child has or will have, what is done at its time."""
        self._roads = Roads(self)
        self._leaving = Leave(self)
        self._rootship = Rootship(self)
        self._pulls = Pulls(self)
        self._standby = Standby(self, standby and rejoins)

    def __repr__(self) -> str:
        role = (
            "root"
            if self.is_root
            else "standing by"
            if self.stands_by
            else "joined"
            if self.parent
            else "alone"
        )
        return f"<TreeNode {self.id}, {role}, {self.children_count} of {self.max_degree} children>"

    @property
    def parent(self) -> TreeChannel | None:
        """The channel to the parent; None for a root, and for who has not joined or lost it."""
        return self._way_up.parent

    @property
    def children(self) -> Mapping[str, TreeChannel]:
        """The channels to the children by their ids, in the order they came; a live view.

        For a moment they can be more than `max_degree`: a leaver has given back its place.
        """
        return MappingProxyType(self._children)

    @property
    def children_count(self) -> int:
        """Of the children, those that are not about to leave: never more than `max_degree`."""
        return len(self._children) - len(self._leaving.leavers)

    @property
    def path(self) -> tuple[str, ...]:
        """The ids from the root down to this node; empty if it is cut off, or has not joined.

        Above a node of the old protocol there is only a question mark.
        """
        return self._ancestry.path

    @property
    def max_degree(self) -> int:
        """The largest number of children, those being answered counted."""
        return self._branch.max_degree

    @property
    def is_root(self) -> bool:
        """Whether this node is the active root; it stays so while the server is away."""
        return self._rootship.is_active

    @property
    def stands_by(self) -> bool:
        """Whether this node is registered as root, and another one is active."""
        return self._is_root and not self._rootship.is_active

    async def join(self) -> TreeChannel:
        """Become somebody's child; the channel to the parent.

        From then on the node finds another parent whenever it loses one, unless it was opened
        not to. A server that hangs up in the middle of it is asked again.

        Cancelled, the request is taken back at every node it was passed on to.

        JoinTimeout: no parent within *request_timeout* seconds.
        JoinRefused: the server, or the node that was to answer, turned us down.
        ServerUnreachable, ServerRefused, ConnectionFailed: as their names say.
        UsageError: this node is a root, is joining, has a parent, or has left.
        """
        await trio.lowlevel.checkpoint()
        self._check_free()
        self._is_child = True
        try:
            parent: TreeChannel = await self._enter(self._way_up.live)
        except BaseException:
            self._give_up()
            raise
        return parent

    async def become_root(self, secret: str, *, takeover: bool = False) -> None:
        """Take the requests of all who join; returns when the server has registered us.

        If the server has a root already, this node *stands by*: it joins the tree below, and takes
        over when the other is gone, with all that it has below itself by then. With *takeover* it
        replaces the other at once, which then joins below it, with its whole tree. That the server
        is one of ours goes before: with one of the old protocol the newest root is active.

        From then on the node dials the server again whenever it is gone.

        ServerRefused: the secret is wrong. ServerUnreachable: as its name says.
        UsageError: this node is a root, is joining, has a parent, or has left; or the secret is
        empty.
        """
        await trio.lowlevel.checkpoint()
        self._check_free()
        self._is_root = True
        try:
            await self._enter(self._rootship.live, secret, takeover)
        except BaseException:
            self._give_up()
            raise

    def close(self) -> None:
        """Leave the tree at once: close all channels, and turn down everybody on the way in.

        The end of `open_tree_node`'s context does it too. Afterwards the node can only be read.
        """
        self._branch.close()
        self._nursery.cancel_scope.cancel()

    async def aclose(self) -> None:
        """Leave the tree when all children have other parents, and all that was broadcast here has
        come to the root, or has no way to it; or after `leave_timeout` seconds.

        The children ask this node's parent, over this node, and keep it until they have their new
        parent; children of the old protocol are closed at the end. A root's ask the root that
        stands by, if there is one. Cancelled, or after `close`, it leaves at once. In any case the
        node is closed afterwards.
        """
        try:
            if not self._nursery.cancel_scope.cancel_called:
                with trio.move_on_after(self.leave_timeout):
                    await self._leaving.hand_over()
                    await self._casts.outboxes.settle(lambda: self._is_root or self._is_child)
        finally:
            self.close()
            with trio.CancelScope(shield=True):
                await self._left.wait()

    async def _live(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Own everything that lives in time, until the node leaves."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._timeline.run)
                self._start_messages(self._nursery)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._entering.cancel()
        finally:
            self.events.close()
            self.messages.close()
            self._casts.close()
            self._left.set()

    async def _enter(self, live: Callable[..., Awaitable[object]], *args: object) -> Any:
        """Start to live in the tree; what *live* says when it has begun.

        Until then it is the caller's, and the end of the node's nursery would wait for it.
        """
        with trio.CancelScope() as self._entering:
            return await self._nursery.start(live, *args)
        await trio.lowlevel.checkpoint_if_cancelled()
        raise UsageError("this node has left")

    def _give_up(self) -> None:
        """This node is in no tree any more, and looks for no way into one."""
        self._is_root = self._is_child = False
        self._casts.outboxes.note_no_way()

    def _check_free(self) -> None:
        if self._left.is_set() or self._nursery.cancel_scope.cancel_called:
            raise UsageError("this node has left")
        if self._is_root or self._is_child:
            raise UsageError("this node is a root, is joining, or has a parent")

    # --- where this node stands -------------------------------------------------------------

    def _after_change(self, before: Descent, *, is_news: bool = True) -> None:
        """What follows when this node's own *descent* is no longer what it was *before*.

        Of a new path the application is told, unless it *is* no *news*: the parent has changed.
        """
        now = self._ancestry.descent
        if now == before:
            self._tell_casts()
            return
        if now.path and not before.path:
            if not self._leaving.has_begun:
                self._branch.open()
                self._standby.note_place()
        elif before.path and not now.path:
            self._cut_off()
        self._note_surprise()
        if is_news and now.path != before.path:
            self.events.put(PathChange(now.path))
        frame = Beat(now.number) if now.path == before.path else Descend(now)
        below = [link for link in self._links.values() if HEAL in link.extensions]
        text = encode_tree(frame) if below else ""
        for link in below:
            link.post(frame, text)
        self._tell_casts()

    def _tell_casts(self) -> None:
        """Messages have another way now, or the same as before."""
        self._casts.stand(self.parent, self._ancestry.path, is_top=self._ancestry.issues)

    def _note_surprise(self) -> None:
        """If our parent may have to be told of the free places here, see to it soon."""
        belief = self._branch.belief
        if (
            not self._is_about_to_report
            and belief is not None
            and (self._branch.is_surprising or belief.is_behind)
        ):
            self._is_about_to_report = True
            self._timeline.after(REPORT_INTERVAL, self._report)

    def _report(self) -> None:
        """Tell the parent what it cannot know of the free places here; seldom, and all at once."""
        self._is_about_to_report = False
        report = self._branch.report()
        if report is not None and self.parent is not None:
            self.parent.post(Report(*report))

    def _cut_off(self) -> None:
        """There is no way to the root: turn down everybody who is on the way in."""
        reason = "the node that was to answer is cut off from the root"
        for origin in self._branch.requests:
            self._take_withdrawal(origin, reason)
        self._branch.close()
        for origin, request in self._applicants.items():
            request.withdraw(reason)
            if origin in self._links:
                self._links[origin].end(reason)

    # --- those who want in ----------------------------------------------------------------

    def _take_frame(self, neighbour: TreeChannel, frame: TreeOnly) -> None:
        """A frame about the tree came from *neighbour*; only what is above may speak of places."""
        is_above = self._way_up.leads_over(neighbour)
        match frame:
            case Descend() | Beat() if is_above:
                self._way_up.take(neighbour, frame)
            case Report(view, seen) if not is_above:
                self._branch.hear(neighbour.id, view, seen)
                self._note_surprise()
            case Beat(None) if neighbour.id in self._applicants:
                self._take_child(neighbour.id)
            case JoinRequest(request) if is_above:
                # From a parent left lately only the rest of what it began to pass on.
                if neighbour is self.parent or self._branch.knows(request.origin):
                    self._roads.note_request(neighbour, request)
                    self._take_request(request, is_from_parent=neighbour is self.parent)
            case Withdraw(origin, reason) if is_above:
                self._take_withdrawal(origin, reason)
            case RoadRequest() | RoadSignal() | RoadEnd():
                if not is_above and neighbour.id not in self._children:
                    return  # an applicant has nothing to ask for
                self._roads.take(neighbour, frame)
            case Leaving():
                self._leaving.take(neighbour, frame)
            case PullUp(pull) if neighbour is self.parent:
                self._pulls.take(neighbour, pull)
            case StandBy() if neighbour is self.parent:
                self._standby.be_introduced(neighbour)
            case Beat():
                pass
            case _:
                logger.info("%s sends what only a parent may: it is ignored", neighbour)

    def _take_request(self, frame: SignalFrame, *, is_from_parent: bool = True) -> None:
        assert frame.origin is not None
        before = self._ancestry.descent
        self._ancestry.hear_of(frozen_number(frame))
        self._after_change(before)
        offers = is_offer(frame.signal)
        verdict = self._branch.take(
            frame.origin,
            frame,
            is_offer=offers,
            size=frame.size,
            brought=brought_view(frame) if offers else (),
            is_from_parent=is_from_parent,
        )
        self._carry_out(frame.origin, verdict, (frame,))
        self._note_surprise()

    def _take_withdrawal(self, origin: str, reason: str) -> None:
        match self._branch.withdraw(origin):
            case HandOver():
                self._applicants[origin].withdraw(reason)
            case Delegate(child):
                if WITHDRAW in self._children[child].extensions:
                    self._children[child].post(Withdraw(origin, reason[:MAX_REASON]))
        self._end_request(origin)
        self._roads.end_request(origin, reason)
        self._note_surprise()

    def _forget_request(self, origin: str) -> None:
        """The request of *origin*, which was passed on, has come to its end, good or bad."""
        self._branch.forget(origin)
        self._end_request(origin)

    def _carry_out(self, origin: str, verdict: Verdict, frames: tuple[SignalFrame, ...]) -> None:
        match verdict:
            case Admit():
                self._end_request(origin)
                request = self._applicants[origin] = Request(origin, frames[0].extensions)
                for frame in frames:
                    request.deliver(frame)
                self._nursery.start_soon(self._live_with_applicant, request)
            case HandOver():
                for frame in frames:
                    self._applicants[origin].deliver(frame)
            case Delegate(child) if not self._roads.may_go_to(origin, self._children[child]):
                self._take_withdrawal(origin, "the way to a free place leads over old nodes")
            case Delegate(child):
                self._begin_request(origin)
                for frame in frames:
                    self._children[child].post(JoinRequest(frame))
            case Wait():
                self._begin_request(origin)
            case Drop(reason):
                logger.debug("a frame of %s is dropped: %s", origin, reason)
                self._roads.end_request(origin, reason)

    def _carry_out_all(self, placements: Iterable[Placement[SignalFrame]]) -> None:
        for placement in placements:
            self._carry_out(placement.origin, placement.verdict, placement.frames)
        self._note_surprise()

    # --- delegated requests ---------------------------------------------------------------

    def _begin_request(self, origin: str) -> None:
        """Own the request of *origin*, which a child has or will have, if that is not so yet."""
        if origin not in self._requests:
            self._requests[origin] = (
                self._timeline.after(REPLACE_TIMEOUT, partial(self._branch.settle, origin)),
                self._timeline.after(self.request_timeout, partial(self._expire_request, origin)),
            )

    def _end_request(self, origin: str) -> None:
        for appointment in self._requests.pop(origin, ()):
            appointment.cancel()

    def _expire_request(self, origin: str) -> None:
        """Its time is over: whoever was to connect has, or will not."""
        self._forget_request(origin)
        self._roads.end_request(origin, "its time is over")

    # --- children -------------------------------------------------------------------------

    async def _live_with_applicant(self, request: Request) -> None:
        """One origin from its first frame to its end: an applicant, and a child if it connects."""
        origin = request.origin
        try:
            answer = self._roads.answer(request) or self._bootstrap.answer(
                request,
                timeout=self.request_timeout,
                extensions=EXTENSIONS,
                network=self._network,
            )
            async with answer as connection:
                if request.withdrawn is not None:
                    raise JoinRefused(request.withdrawn)
                await self._live_with_link(origin, connection)
        except OutcomeError as error:
            logger.info("the applicant %s did not connect: %s", origin, error)
        finally:
            # Once its link has ended, the origin may have applied again, and be another applicant.
            if self._applicants.get(origin) is request:
                del self._applicants[origin]
                self._roads.end_request(origin, "it did not connect")
                self._carry_out_all(self._branch.fail(origin))

    async def _live_with_link(self, origin: str, connection: Connection) -> None:
        link = self._links[origin] = self._channel_to(connection, is_parent=False)
        too_late = self._timeline.after(self.request_timeout, partial(self._note_not_taken, link))
        try:
            if HEAL in link.extensions:
                link.post(Descend(self._ancestry.descent))
            else:
                self._take_child(origin)
            await link.run()
        finally:
            too_late.cancel()
            del self._links[origin]
            self._roads.lose(link)
            if origin in self._children:
                self._lose_child(link)

    def _note_not_taken(self, link: TreeChannel) -> None:
        if link.id in self._applicants:
            link.end("it did not take this node for its parent in time")

    def _take_child(self, origin: str) -> None:
        """The applicant *origin* has taken us for its parent."""
        placements = self._branch.connect(origin)
        del self._applicants[origin]
        child = self._children[origin] = self._links[origin]
        child.carry_messages()
        self.events.put(ChildConnect(child))
        self._roads.end_request(origin, "connected", is_connected=True)
        self._casts.take_child(child)
        self._carry_out_all(placements)
        self._leaving.note_child(child)
        self._standby.note_family()

    def _lose_child(self, child: TreeChannel) -> None:
        del self._children[child.id]
        is_leaver = child in self._leaving.leavers
        self._leaving.note_child_gone(child)
        self._standby.note_family()
        self._casts.lose_child(child)
        placements = [] if is_leaver else self._branch.lose(child.id)
        if child.failure is not None:
            self.events.put(ChildError(child, child.failure))
        self.events.put(ChildClose(child, child.close_reason or ""))
        self._carry_out_all(placements)

    def _channel_to(
        self,
        connection: Connection,
        *,
        is_parent: bool,
        on_frame: Callable[[TreeChannel, TreeOnly], None] | None = None,
        heartbeat: Heartbeat | None = None,
    ) -> TreeChannel:
        return TreeChannel(
            connection.channel,
            connection.partner or "",
            is_parent=is_parent,
            extensions=connection.extensions,
            network=self._network,
            rng=self._rng,
            heartbeat=heartbeat or self._heartbeat,
            timeline=self._timeline,
            messages=self.messages,
            on_frame=on_frame or self._take_frame,
            on_cast=self._casts.take,
        )
