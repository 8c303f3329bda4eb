"""What one sees of a tree and its nodes, and how to see it without being one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trio_overlay.channels.network import Network
from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.cast_frames import is_id
from trio_overlay.protocol.json import JSON
from trio_overlay.signaling.bootstrap import Bootstrap, open_bootstrap


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """One node as it sees itself."""

    id: str
    parent: str | None
    """The id of the parent; None for a root, and for who is cut off. A question mark if the
    parent speaks the old protocol."""
    depth: int | None
    """0 for a root; None for who is cut off. Counted from the nearest node of the old protocol,
    if there is one above."""
    degree: int
    """How many children it has."""
    max_degree: int
    descendants: int
    """How many nodes are below it, as far as it knows."""
    round_trip_time: float | None
    """Seconds to its parent and back, behind what is on the way; None if not yet measured."""
    age: float
    """Seconds since it was opened."""
    version: str
    """Of this package."""

    @classmethod
    def from_json(cls, value: JSON) -> NodeSnapshot:
        """What `dataclasses.asdict` has made of one.

        MalformedFrame: *value* is nothing of the kind.
        """
        match value:
            case {
                "id": str(node_id),
                "parent": None | str() as parent,
                "depth": None | int() as depth,
                "degree": int(degree),
                "max_degree": int(max_degree),
                "descendants": int(descendants),
                "round_trip_time": None | int() | float() as round_trip_time,
                "age": int() | float() as age,
                "version": str(version),
            } if (
                is_id(node_id)
                and (parent is None or is_id(parent))
                and len(version) <= 64
                and version.isprintable()
            ):
                return cls(
                    node_id,
                    parent,
                    depth,
                    degree,
                    max_degree,
                    descendants,
                    round_trip_time,
                    age,
                    version,
                )
        raise MalformedFrame("no snapshot of a node")


@dataclass(frozen=True, slots=True)
class TreeSnapshot:
    """The whole tree, as its nodes saw themselves within some seconds."""

    nodes: Mapping[str, NodeSnapshot]
    """By id, parents before their children."""
    count_missing: int
    """How many more are known to be there and have not answered."""

    @classmethod
    def from_json(cls, values: Iterable[JSON], count_missing: int) -> TreeSnapshot:
        """That of nodes as `dataclasses.asdict` makes them; what is none counts as missing."""
        found: list[NodeSnapshot] = []
        for value in values:
            try:
                found.append(NodeSnapshot.from_json(value))
            except MalformedFrame:
                count_missing += 1
        found.sort(key=lambda node: (node.depth is None, node.depth or 0))
        return cls({node.id: node for node in found}, count_missing)


async def ask_tree_snapshot(
    bootstrap: Bootstrap | str,
    secret: str,
    *,
    timeout: float = 10.0,
    network: Network | None = None,
) -> TreeSnapshot:
    """The whole tree of the active root at a bootstrap server, asked of it over the server.

    *bootstrap* is a client, or the address of a server, to be dialled on *network* or the internet;
    *secret* is that of the roots. Nothing in the tree changes by it. A node that does not answer
    costs time, at most *timeout* seconds (60 are the limit), and counts as missing.

    SnapshotFailed: there is no root, it cannot be asked, or has not answered in time.
    ServerRefused: the secret is wrong, or the server does not know the question.
    ServerUnreachable: as its name says.
    UsageError: the secret is empty, *bootstrap* no address, or *timeout* not in its bounds.
    """
    if isinstance(bootstrap, str):
        async with open_bootstrap(bootstrap, network=network) as client:
            return await ask_tree_snapshot(client, secret, timeout=timeout)
    picture = await bootstrap.ask_snapshot(secret, timeout)
    return TreeSnapshot.from_json(picture.nodes, picture.count_missing)
