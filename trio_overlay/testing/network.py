"""A network in one process under a virtual clock: hosts, servers, peer connections, faults.

Nodes, clients and servers run on it unmodified; they see a `Network` each and `UpgradeRequest`s.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import count, product
from urllib.parse import urlsplit

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.channels.memory import DEFAULT_MAX_FRAME_SIZE, MemoryChannel
from trio_overlay.channels.network import (
    ListeningNetwork,
    PeerConnection,
    UpgradeHandler,
    UpgradeRequest,
)
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.channels.timeline import Timeline
from trio_overlay.errors import ConfigurationError, ServerRefused, ServerUnreachable, UsageError
from trio_overlay.testing.block import BlockContext
from trio_overlay.testing.cables import Cable, Way, Wire
from trio_overlay.testing.faults import (
    Action,
    Carrier,
    Conditions,
    Cut,
    Latency,
    Rule,
    Selector,
    conditions_of,
)
from trio_overlay.testing.handshakes import VirtualPeer
from trio_overlay.testing.history import History

MAX_SOCKET_FRAME_SIZE = 2**20
ROUND_TRIPS_TO_CONNECT = 3
"""What ICE, DTLS and SCTP take together, in flights of one end to the other, at the least."""


class VirtualNetwork(BlockContext):
    """Everything that hosts in this process share; use it as an async context manager.

    *seed* decides all chance here: latencies, jitter, which signals are lost. What happens on
    one way does not change what chance brings on another, so a smaller story stays alike.
    *latency* holds where no rule says otherwise. *trickle* is the probability that a peer
    connection tells its candidates one by one after its description. A peer connection fails
    when the other end is not reached *ice_timeout* seconds after its description was; a dial
    fails after *connect_timeout*.

    With a *history*, all that is dialled, opened, sent and closed is recorded there.

    Servers' handlers run in a nursery of this network. What they raise leaves the ``async with``
    block: unlike a real server, this one is here to find bugs.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        latency: Latency = Latency(0.005, 0.05),  # noqa: B008 - it is frozen
        trickle: float = 0.5,
        ice_timeout: float = 60.0,
        connect_timeout: float = 20.0,
        history: History | None = None,
    ) -> None:
        self.seed = seed
        self.latency = latency
        self.trickle = trickle
        self.ice_timeout = ice_timeout
        self.connect_timeout = connect_timeout
        self.history = history
        self.timeline = Timeline()
        self.count_dials: Counter[str] = Counter()
        """How often each host has dialled."""
        self.count_peers: Counter[str] = Counter()
        """How many peer connections each host has opened."""
        self._hosts: dict[str, VirtualHost] = {}
        self._servers: dict[str, VirtualServer] = {}
        self._rules: list[Rule] = []
        self._frozen: dict[str, Rule] = {}
        self._ways: dict[tuple[str, str], Way] = {}
        self._ends: dict[str, None] = {}
        """Whatever ways begin or end at."""
        self._numbers = count(1)
        # Each of these is in its table for as long as somebody's block or task is open.
        self._cables: dict[int, Cable] = {}
        self._peers: dict[int, VirtualPeer] = {}
        self._calls: dict[int, _Call] = {}
        # Handshakes that would connect but for a cut.
        self._waiting: dict[tuple[int, int], tuple[VirtualPeer, VirtualPeer]] = {}
        self._nursery: trio.Nursery

    @asynccontextmanager
    async def _hold_open(self) -> AsyncIterator[None]:
        async with open_background_nursery() as self._nursery:
            self._nursery.start_soon(self.timeline.run)
            yield

    # --- who is there ---------------------------------------------------------------------

    def host(self, name: str) -> VirtualHost:
        """The host called *name*, made at the first call: a `Network` for one node.

        A host that has crashed is given all the same; `restart` makes a new one.

        ValueError: *name* has white space, commas or wildcards in it.
        """
        if not name or any(character.isspace() or character in ",*?" for character in name):
            raise ValueError(f"no name for a host: {name!r}")
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = VirtualHost(self, name)
        return host

    def listen(self, authority: str, handler: UpgradeHandler) -> VirtualServer:
        """Let *handler* serve whoever dials *authority* (``host`` or ``host:port``).

        Each client is served in a task of its own, cancelled when the server is closed or
        its host crashes. For rules and faults the server's host is called *authority*.

        UsageError: somebody listens there.
        """
        authority = authority.lower()
        if authority in self._servers:
            raise UsageError(f"somebody listens at {authority}")
        host = self.host(authority)
        if host.is_crashed:
            host = self.restart(authority)
        server = self._servers[authority] = VirtualServer(self, host, handler)
        self.note(f"{authority} listens")
        return server

    # --- what goes wrong ------------------------------------------------------------------

    def apply(
        self, selector: Selector | str, action: Action, *, carrier: Carrier | None = None
    ) -> Rule:
        """Put a rule in force until `lift`; *selector* may be its text, as ``"n1 <-> n2"``.

        ValueError: the text is no selector.
        """
        if isinstance(selector, str):
            selector = Selector.parse(selector)
        rule = Rule(selector, action, carrier)
        self._put_in_force(rule)
        return rule

    def lift(self, rule: Rule) -> None:
        """Take *rule* out of force; nothing happens if it is not in force."""
        if rule in self._rules:
            self._rules.remove(rule)
            self.note(f"no more rule: {rule}")
            self._refresh(rule)

    def follow(self, plan: Iterable[tuple[float, float, Rule]]) -> None:
        """Put each rule of *plan* in force when its time comes, and lift it again.

        Moments are seconds from now: when it begins, and when it ends.
        """
        for begins_at, ends_at, rule in plan:
            self.timeline.after(begins_at, partial(self._put_in_force, rule))
            self.timeline.after(ends_at, partial(self.lift, rule))

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All that are in force, oldest first."""
        return tuple(self._rules)

    def cut(self, selector: Selector | str, *, noticed_after: float | None = 30.0) -> Rule:
        """Cut the ways of *selector*; ``->`` makes one-way links. See `Cut`."""
        return self.apply(selector, Cut(noticed_after))

    def partition(
        self, *groups: Iterable[str], noticed_after: float | None = 30.0
    ) -> tuple[Rule, ...]:
        """Cut every way from one of *groups* (of names or patterns) to another."""
        sides = [tuple(group) for group in groups]
        return tuple(
            self.cut(Selector(side, other, True), noticed_after=noticed_after)
            for index, side in enumerate(sides)
            for other in sides[index + 1 :]
        )

    def heal(self) -> None:
        """Lift every cut; frozen hosts stay frozen."""
        frozen = set(self._frozen.values())
        for rule in self.rules:
            if isinstance(rule.action, Cut) and rule not in frozen:
                self.lift(rule)

    def freeze(self, name: str, *, noticed_after: float | None = None) -> None:
        """Let *name* fall silent: nothing leaves it, nothing reaches it, its tasks run on.

        Its channels stay open, unless *noticed_after* says after how many seconds they break.
        What was sent meanwhile, by it and to it, arrives after `thaw`.
        """
        if name not in self._frozen:
            self._frozen[name] = self.cut(
                Selector((name,), ("*",), True), noticed_after=noticed_after
            )

    @property
    def frozen(self) -> tuple[str, ...]:
        """The hosts that are frozen, those frozen for longest first."""
        return tuple(self._frozen)

    def thaw(self, name: str) -> None:
        """Undo `freeze`."""
        rule = self._frozen.pop(name, None)
        if rule is not None:
            self.lift(rule)

    def crash(
        self, name: str, *, noticed_after: float | None = 30.0, is_power_cut: bool = False
    ) -> None:
        """The process on host *name* dies without a word; cancel its tasks yourself.

        Its own channel ends break at once. Peers notice after *noticed_after* seconds, None
        meaning never: the 30 s are those after which aiortc gives up a silent peer. Sockets are
        closed at once, as the kernel does for a dead process; with *is_power_cut* nobody does it,
        and they too break after *noticed_after*. What was under way is lost. A crashed server's
        handlers are cancelled. The host can dial and connect no more; see `restart`.
        """
        host = self.host(name)
        if host.is_crashed:
            return
        self.note(f"{name} crashes")
        host.is_crashed = True
        for peer in list(self._peers.values()):
            if peer.host is host:
                peer.fail("this host has crashed")
        for cable in list(self._cables.values()):
            for index in (0, 1):
                if cable.hosts[index] is host:
                    delay = noticed_after
                    if cable.carrier == "socket" and not is_power_cut:
                        delay = self._draw_delay(name, cable.names[1 - index], "socket")
                    cable.crash_end(index, delay)
        for call in list(self._calls.values()):
            if host in call.cable.hosts:
                call.fail(ServerUnreachable(f"{call.cable.names[1]} hung up"))
        for authority, server in list(self._servers.items()):
            if server.host is host:
                del self._servers[authority]
                server.cancel()

    def restart(self, name: str) -> VirtualHost:
        """A fresh host called *name*, in place of one that has crashed."""
        self._hosts.pop(name, None)
        return self.host(name)

    # --- what is still open ---------------------------------------------------------------

    @property
    def count_open_peers(self) -> int:
        """Peer connections whose block is open, connected or not."""
        return len(self._peers)

    @property
    def count_open_sockets(self) -> int:
        """Dials whose block is open or whose handler still runs."""
        return len(self._calls)

    @property
    def holders(self) -> set[str]:
        """The hosts that hold some peer connection or socket."""
        owners = {peer.host.name for peer in self._peers.values()}
        return owners.union(*(call.list_owners() for call in self._calls.values()))

    def count_open(self) -> Counter[str]:
        """How many peer connections and sockets each host holds, of those that hold any."""
        counts = Counter(peer.host.name for peer in self._peers.values())
        for call in self._calls.values():
            counts.update(call.list_owners())
        return counts

    def list_open(self) -> list[str]:
        """What is still open and whose it is, a line each."""
        peers = [str(peer) for peer in self._peers.values()]
        calls = [line for call in self._calls.values() for line in call.list_open()]
        return peers + calls

    def assert_quiet(self) -> None:
        """Nobody holds a connection any more, on any host: no dial, no peer, no handler.

        AssertionError: somebody does; the message lists what, and whose it is.
        """
        still_open = self.list_open()
        if still_open:
            raise AssertionError("still open:\n  " + "\n  ".join(still_open))

    def note(self, what: str) -> None:
        """Record *what* in the history, if there is one."""
        if self.history is not None:
            self.history.record(what)

    # --- for hosts and peers --------------------------------------------------------------

    @asynccontextmanager
    async def _dial(self, caller: VirtualHost, url: str) -> AsyncIterator[Channel]:
        self.count_dials[caller.name] += 1
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise UsageError(f"no URL of a WebSocket: {url!r}")
        authority = parts.netloc.rpartition("@")[2].lower()
        self.note(f"{caller.name} dials {authority}")
        await trio.lowlevel.checkpoint()
        if caller.is_crashed:
            raise ServerUnreachable("this host has crashed")
        cable = self._lay_cable(caller, self.host(authority), "socket")
        call = self._calls[cable.number] = _Call(self, cable, parts.path or "/", parts.query)
        try:
            yield await call.wait(self.connect_timeout)
        finally:
            call.leave(0)
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _begin_peer(self, host: VirtualHost, initiator: bool) -> VirtualPeer:
        number = next(self._numbers)
        peer = self._peers[number] = VirtualPeer(self, host, number, initiator)
        self.note(f"{host.name} opens peer #{number} to {'offer' if initiator else 'answer'}")
        if host.is_crashed:
            peer.fail("this host has crashed")
        return peer

    def _end_peer(self, peer: VirtualPeer) -> None:
        peer.end()
        del self._peers[peer.number]
        if peer.cable is not None:
            self._let_go(peer.cable, 0 if peer.is_initiator else 1)
        self.note(f"{peer.host.name} closes peer #{peer.number}")

    def connect_if_ready(self, peer: VirtualPeer) -> None:
        """Connect *peer* to its other end, in a while, if the two know enough of each other."""
        other = self._peers.get(peer.remote) if peer.remote is not None else None
        if (
            other is None
            or peer.is_connecting
            or not (peer.knows_a_way_to(other) and other.knows_a_way_to(peer))
        ):
            return
        caller, callee = (peer, other) if peer.is_initiator else (other, peer)
        caller.is_connecting = callee.is_connecting = True
        there, back = caller.host.name, callee.host.name
        if self._way(there, back).draw(self.conditions(there, back, "peer").handshake_failure):
            self.note(f"the handshake of #{caller.number} and #{callee.number} comes to nothing")
            return
        flights = [self._draw_delay(there, back, "peer") for _ in range(ROUND_TRIPS_TO_CONNECT)]
        flights += [self._draw_delay(back, there, "peer") for _ in range(ROUND_TRIPS_TO_CONNECT)]
        self.timeline.after(sum(flights), lambda: self._connect(caller, callee))

    def loses_signal(self, source: str, target: str) -> bool:
        """Whether a signal from *source* to *target* gets lost; draws anew at each call."""
        return self._way(source, target).draw(self.conditions(source, target, "peer").signal_loss)

    def draw_signal_delay(self, source: str, target: str) -> float:
        """Seconds that a signal from *source* to *target* is late; draws anew at each call."""
        delay = self.conditions(source, target, "peer").signal_delay
        if delay is None:
            return 0.0
        return self._way(source, target).draw_lateness(delay.probability, delay.seconds)

    def conditions(self, source: str, target: str, carrier: Carrier) -> Conditions:
        """What the rules make of the way from *source* to *target*."""
        return self._way(source, target).conditions[carrier]

    def _connect(self, caller: VirtualPeer, callee: VirtualPeer) -> None:
        pair = (caller.number, callee.number)
        self._waiting.pop(pair, None)
        if caller.is_over or callee.is_over:
            return  # the one that is left finds out by its own timeout
        if self._is_cut(caller.host.name, callee.host.name, "peer"):
            self._waiting[pair] = (caller, callee)
            return
        cable = self._lay_cable(caller.host, callee.host, "peer")
        ends = cable.open_ends(DEFAULT_MAX_FRAME_SIZE)
        caller.cable = callee.cable = cable
        self.note(f"#{caller.number} and #{callee.number} are connected by {cable}")
        # One of the two sees the channel open before the other does, and what it sends at once
        # may be there before the other has seen its own.
        caller_is_first = caller.rng.random() < 0.5
        first, second = (caller, callee) if caller_is_first else (callee, caller)
        first_end, second_end = ends if caller_is_first else ends[::-1]
        first.succeed(first_end)
        cable.wires[0 if caller_is_first else 1].carry(lambda: second.succeed(second_end))

    def _lay_cable(self, first: VirtualHost, second: VirtualHost, carrier: Carrier) -> Cable:
        cable = Cable(
            next(self._numbers),
            (first, second),
            carrier,
            (
                self._wire(first.name, second.name, carrier),
                self._wire(second.name, first.name, carrier),
            ),
            self.timeline,
            self.history,
        )
        self._cables[cable.number] = cable
        self._refresh_cable(cable)
        return cable

    def _wire(self, source: str, target: str, carrier: Carrier) -> Wire:
        return Wire(self._way(source, target), self.timeline, carrier)

    def _way(self, source: str, target: str) -> Way:
        way = self._ways.get((source, target))
        if way is None:
            rng = random.Random(f"{self.seed}/{source}/{target}")
            way = self._ways[source, target] = Way(source, target, rng, self._find_conditions)
            self._ends.update({source: None, target: None})
        return way

    def _find_conditions(self, source: str, target: str, carrier: Carrier) -> Conditions:
        return conditions_of(source, target, carrier, self._rules, self.latency)

    def _draw_delay(self, source: str, target: str, carrier: Carrier) -> float:
        return self._way(source, target).draw_delay(
            self.conditions(source, target, carrier).latency
        )

    def _is_cut(self, one: str, other: str, carrier: Carrier) -> bool:
        return (
            self.conditions(one, other, carrier).is_cut
            or self.conditions(other, one, carrier).is_cut
        )

    def _let_go(self, cable: Cable, index: int) -> None:
        """The owner of one end of *cable* holds it no longer."""
        if cable.let_go(index):
            self._cables.pop(cable.number, None)

    def _put_in_force(self, rule: Rule) -> None:
        self._rules.append(rule)
        self.note(f"rule: {rule}")
        self._refresh(rule)

    def _refresh(self, rule: Rule) -> None:
        """*rule* is in force now, or no longer."""
        touched = self._find_ways(rule.selector)
        for ends in touched:
            self._ways[ends].forget_conditions()
        for cable in list(self._cables.values()):
            if cable.names in touched or cable.names[::-1] in touched:
                self._refresh_cable(cable)
        for caller, callee in list(self._waiting.values()):
            self._connect(caller, callee)

    def _find_ways(self, selector: Selector) -> set[tuple[str, str]]:
        """The ends of all ways that *selector* means, of those that anything has gone."""
        sources, targets = selector.pick(self._ends)
        if len(sources) * len(targets) > len(self._ways):
            return {ends for ends in self._ways if selector.matches(*ends)}
        found = {ends for ends in product(sources, targets) if ends in self._ways}
        if selector.is_mutual:
            found |= {ends for ends in product(targets, sources) if ends in self._ways}
        return found

    def _refresh_cable(self, cable: Cable) -> None:
        one, other = cable.names
        both = [
            self.conditions(one, other, cable.carrier),
            self.conditions(other, one, cable.carrier),
        ]
        noticed = [found.noticed_after for found in both if found.noticed_after is not None]
        cable.refresh(any(found.is_cut for found in both), min(noticed, default=None))


class VirtualHost(ListeningNetwork):
    """What one node, client or server of a virtual network stands on; made by `host`."""

    def __init__(self, network: VirtualNetwork, name: str) -> None:
        self.network = network
        self.name = name
        self.is_crashed = False

    def __repr__(self) -> str:
        return f"<VirtualHost {self.name}>"

    def open_peer(self, *, initiator: bool) -> AbstractAsyncContextManager[PeerConnection]:
        return _PeerContext(self, initiator)

    def dial(self, url: str) -> AbstractAsyncContextManager[Channel]:
        return self.network._dial(self, url)

    @asynccontextmanager
    async def open_listener(self, handler: UpgradeHandler) -> AsyncIterator[str]:
        await trio.lowlevel.checkpoint()
        if self.is_crashed or self.name != self.name.lower():
            raise ConfigurationError(f"nobody can listen at {self.name}")
        try:
            server = self.network.listen(self.name, handler)
        except UsageError as error:
            raise ConfigurationError(str(error)) from error
        try:
            yield f"ws://{self.name}"
        finally:
            await server.aclose()


class _PeerContext(AbstractAsyncContextManager[PeerConnection]):
    """One end of a peer connection, from the beginning of its block to the end."""

    def __init__(self, host: VirtualHost, initiator: bool) -> None:
        self._host = host
        self._is_initiator = initiator

    async def __aenter__(self) -> PeerConnection:
        network = self._host.network
        network.count_peers[self._host.name] += 1
        await trio.lowlevel.checkpoint()
        self._peer = network._begin_peer(self._host, self._is_initiator)
        return self._peer

    async def __aexit__(self, *_: object) -> None:
        self._host.network._end_peer(self._peer)
        await trio.lowlevel.cancel_shielded_checkpoint()


class VirtualServer:
    """Somebody who listens; made by `VirtualNetwork.listen`."""

    def __init__(self, network: VirtualNetwork, host: VirtualHost, handler: UpgradeHandler) -> None:
        self.host = host
        self._network = network
        self._handler = handler
        self._scopes: dict[int, trio.CancelScope] = {}
        self._handler_ended = trio.lowlevel.ParkingLot()

    def close(self) -> None:
        """Stop listening and cancel every handler; clients see their channels close."""
        if self._network._servers.get(self.host.name) is self:
            del self._network._servers[self.host.name]
            self._network.note(f"{self.host.name} listens no more")
        self.cancel()

    async def aclose(self) -> None:
        """`close`, and wait until every handler has ended; that cannot be cancelled."""
        self.close()
        with trio.CancelScope(shield=True):
            while self._scopes:
                await self._handler_ended.park()

    def cancel(self) -> None:
        """Cancel every handler."""
        for scope in self._scopes.values():
            scope.cancel()

    def serve(self, call: _Call) -> None:
        """Start the handler for one client."""
        # The scope stands before the task does: a server may close in between.
        scope = self._scopes[call.cable.number] = trio.CancelScope()
        self._network._nursery.start_soon(self._serve, call, scope)

    async def _serve(self, call: _Call, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await self._handler(call)
        finally:
            del self._scopes[call.cable.number]
            call.leave(1)
            self._handler_ended.unpark_all()


class _Call(UpgradeRequest):
    """A dial from its first packet to its end; the server sees the UpgradeRequest in it."""

    def __init__(self, network: VirtualNetwork, cable: Cable, path: str, query: str) -> None:
        self.cable = cable
        self.path = path
        self.query = query
        self.remote = cable.names[0]
        self._network = network
        self._answered = trio.Event()
        self._failure: ServerUnreachable | ServerRefused | None = None
        self._has_decided = False
        # The caller's block; the handler's task, from the moment the request has arrived.
        self._is_held = [True, False]
        cable.wires[0].carry(self._arrive)

    def list_open(self) -> list[str]:
        """A line for each side that still holds this call."""
        caller, server = self.cable.names
        lines = (
            f"{caller}: {self.cable}, the client's block",
            f"{server}: {self.cable}, the server's handler",
        )
        return [line for line, is_held in zip(lines, self._is_held, strict=True) if is_held]

    def list_owners(self) -> list[str]:
        """The hosts that still hold this call."""
        return [name for name, held in zip(self.cable.names, self._is_held, strict=True) if held]

    async def wait(self, timeout: float) -> MemoryChannel:
        """The caller's side: the open channel."""
        with trio.move_on_after(timeout):
            await self._answered.wait()
        if self._failure is not None:
            raise self._failure
        if self.cable.ends is None or not self._answered.is_set():
            raise ServerUnreachable(f"{self.cable.names[1]} did not answer in {timeout:g} s")
        return self.cable.ends[0]

    async def accept(self) -> Channel:
        """The server's side: see `UpgradeRequest`."""
        await trio.lowlevel.checkpoint()
        self._decide()
        ends = self.cable.open_ends(MAX_SOCKET_FRAME_SIZE)
        if self._is_held[0]:
            self.cable.wires[1].carry(self._answered.set)
        else:
            ends[0].close_nowait("the client is gone")
        return ends[1]

    async def reject(self, status: int, reason: str) -> None:
        """The server's side: see `UpgradeRequest`."""
        await trio.lowlevel.checkpoint()
        self._decide()
        words = f"{self.cable.names[1]} refused: {status} {reason}"
        self.cable.wires[1].carry(lambda: self.fail(ServerRefused(words)))

    def fail(self, failure: ServerUnreachable | ServerRefused) -> None:
        """Tell the caller, unless it has been told something before."""
        if not self._answered.is_set():
            self._failure = failure
            self._answered.set()

    def leave(self, index: int) -> None:
        """The caller's block, or the handler's task, is over."""
        self._is_held[index] = False
        if index == 1 and not self._has_decided:
            self._hang_up()
        self._network._let_go(self.cable, index)
        if not any(self._is_held):
            self._network._let_go(self.cable, 1 - index)
            self._network._calls.pop(self.cable.number, None)

    def _decide(self) -> None:
        if self._has_decided:
            raise UsageError("this request was accepted or rejected before")
        self._has_decided = True

    def _arrive(self) -> None:
        if not self._is_held[0]:
            return
        server = self._network._servers.get(self.cable.names[1])
        if server is None or server.host.is_crashed:
            self._hang_up()
            return
        self._is_held[1] = True
        server.serve(self)

    def _hang_up(self) -> None:
        words = f"{self.cable.names[1]} hung up without an answer"
        self.cable.wires[1].carry(lambda: self.fail(ServerUnreachable(words)))
