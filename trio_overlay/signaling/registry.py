"""The seam between a broker and the other servers of its cluster: who holds an id elsewhere.

A broker decides alone whatever concerns the peers connected to it. For everything else it asks a
`Registry`. `LocalRegistry`, for a server by itself, knows nobody; a shared one is in cluster.py.
"""

from __future__ import annotations

import abc

import trio

from trio_overlay.protocol.broker import PeerSignal


class LocalPeers(abc.ABC):
    """What a registry sees of the broker it serves. Nothing here waits."""

    @abc.abstractmethod
    def holds(self, identifier: str) -> bool:
        """Whether a peer of this server is registered by *identifier*.

        That is the answer to a *find* from outside. An id still being claimed is not held.
        """

    @abc.abstractmethod
    def deliver_nowait(self, signal: PeerSignal) -> None:
        """A signal came from another server; dropped if nobody here has the recipient's id.

        What came as JSON is made a signal by `protocol.broker.check_peer_signal`.
        """

    @abc.abstractmethod
    def lose_nowait(self, identifier: str, reason: str) -> None:
        """This server does not hold *identifier* any more: it could not be renewed, or has moved.

        In this step, its registration ends, and its connection begins to close with *reason*: our
        peers then dial again and register anew. There is no `Registry.release_nowait` for it.
        """


class Registry(abc.ABC):
    """Who holds which id, among all servers that share it.

    A granted claim is kept, renewed as often as that takes, until `release_nowait`; that is
    the registry's own business, in `run`. When it cannot be kept, `LocalPeers.lose_nowait` is
    called *before* any other peer can be granted the id.

    A peer that has a secret, of which only its digest is seen here, may take its id along to
    another server. The former one is told as soon as it can be reached. For as long as it may not
    know, the id is nobody's but that peer's: two servers may hold it then, for one peer.

    The broker asks one question at a time for each connection, and many for all of them; it never
    claims an id that it holds or is claiming already. It bounds each question by a few seconds:
    any call here may be cancelled at any time.
    """

    @abc.abstractmethod
    async def run(
        self, peers: LocalPeers, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve the broker with these *peers* until cancelled; started when questions may come.

        A registry that cannot reach what it shares keeps trying here, and raises nothing. When
        this ends, all that this server holds is released, in a short shielded time, or by the end
        of the leases.
        """

    @abc.abstractmethod
    def catch_up_nowait(self) -> None:
        """Lose what should have been lost by now, if this process was asleep meanwhile.

        The broker calls this before each decision; a registry whose claims have no end has nothing
        to do.
        """

    @abc.abstractmethod
    async def claim(self, identifier: str, digest: str = "") -> bool:
        """Ask for *identifier*: True, it is this server's now; False, another server has it.

        Under the same *digest*, if it is not empty, what another server has moves to this one.
        Cancelled or failed, it is not this server's, or is released behind the scenes.

        ClusterUnavailable: there is no telling now.
        """

    @abc.abstractmethod
    def release_nowait(self, identifier: str) -> None:
        """*identifier* is not needed any more. A later `claim` of it comes after this, always."""

    @abc.abstractmethod
    async def locate(self, identifier: str) -> bool:
        """Whether a peer of another server is registered by *identifier*.

        ClusterUnavailable: there is no telling now.
        """

    @abc.abstractmethod
    async def forward(self, signal: PeerSignal) -> None:
        """Pass *signal* on to the server of its recipient, in order; waits while that is slow.

        It is dropped when there is no such server, or none can be reached: no answer is due to
        a signal.

        ClusterUnavailable: it was dropped, as nobody can be reached.
        """


class LocalRegistry(Registry):
    """For a server by itself: an id that nobody here holds is free."""

    async def run(
        self,
        peers: LocalPeers,  # noqa: ARG002
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        task_status.started()
        await trio.sleep_forever()

    def catch_up_nowait(self) -> None:
        pass

    async def claim(self, identifier: str, digest: str = "") -> bool:  # noqa: ARG002
        return True

    def release_nowait(self, identifier: str) -> None:
        pass

    async def locate(self, identifier: str) -> bool:  # noqa: ARG002
        return False

    async def forward(self, signal: PeerSignal) -> None:
        pass
