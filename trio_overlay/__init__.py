"""WebRTC overlay networks on Trio: peers find each other, connect, and stay connected.

The map of the house; a room may use what stands above it, and never what stands below:

===============  ===============================================================================
`errors`         every exception a caller may catch, one tree, split by who is to blame
`protocol`       what is said and what is decided: pure, no I/O and no clock
`channels`       what carries frames: memory, WebSocket, WebRTC; and the way to asyncio
`signaling`      where peers meet: the server, its client, the roads that signals travel
`nodes`          what an application holds: tree nodes, neighbours, samples, peers by id, relays
`simulation`     many nodes in one process, without sockets
`testing`        what you import in your own tests: a virtual network, strategies, machines
`cli`            the command line
===============  ===============================================================================

Importing this package imports neither aiortc nor av: they come with the first peer connection.
"""

from trio_overlay.channels.channel import Channel, Frame
from trio_overlay.channels.internet import IceServer, Internet
from trio_overlay.channels.network import Network, PeerConnection, UpgradeHandler, UpgradeRequest
from trio_overlay.channels.stream import as_object_stream
from trio_overlay.errors import (
    ClusterUnavailable,
    ConfigurationError,
    ConnectionFailed,
    DeliveryFailed,
    IdTaken,
    JoinRefused,
    JoinTimeout,
    MalformedFrame,
    MessageTooLarge,
    NotSupported,
    OutcomeError,
    OverlayError,
    PeerNotFound,
    PeerRefused,
    ProtocolError,
    SendTimeout,
    ServerLost,
    ServerRefused,
    ServerUnreachable,
    SnapshotFailed,
    UsageError,
)
from trio_overlay.nodes.datagram import RelayAddress, RelaySocket, open_relay_socket
from trio_overlay.nodes.heartbeat import Heartbeat
from trio_overlay.nodes.neighbours import (
    ArcClose,
    ArcFail,
    ArcOpen,
    NeighbourEvent,
    Neighbours,
    Received,
    Views,
    open_neighbours,
)
from trio_overlay.nodes.peer import (
    BrokerLost,
    Peer,
    PeerConnected,
    PeerDisconnected,
    PeerError,
    PeerEvent,
    Registered,
    open_peer,
)
from trio_overlay.nodes.peer_connection import Connection, PeerMessage
from trio_overlay.nodes.relay import (
    PeerJoined,
    PeerLeft,
    Relay,
    RelayEvent,
    RelayMessage,
    open_relay,
)
from trio_overlay.nodes.relay_identity import Identity
from trio_overlay.nodes.sampling import Sampling, SamplingState, StateChange, open_sampling
from trio_overlay.nodes.streams import Stream
from trio_overlay.nodes.tree import TreeNode, open_tree_node
from trio_overlay.nodes.tree_cast_links import CastLimits
from trio_overlay.nodes.tree_casts import CastMessage
from trio_overlay.nodes.tree_channel import Message, TreeChannel
from trio_overlay.nodes.tree_events import (
    ChildClose,
    ChildConnect,
    ChildError,
    Event,
    ParentClose,
    ParentConnect,
    ParentError,
    PathChange,
)
from trio_overlay.nodes.tree_gathers import Gathered
from trio_overlay.nodes.tree_snapshots import NodeSnapshot, TreeSnapshot, ask_tree_snapshot
from trio_overlay.protocol.branch import hash_place
from trio_overlay.protocol.broker_registrations import BrokerLimits
from trio_overlay.protocol.version import __version__
from trio_overlay.signaling.bootstrap import Bootstrap, Listener, Request, open_bootstrap
from trio_overlay.signaling.bootstrap import Connection as BootstrapConnection
from trio_overlay.signaling.registry import LocalPeers, Registry
from trio_overlay.signaling.server import ListeningServer, SignalingServer, serve_signaling

__all__ = [
    "ArcClose",
    "ArcFail",
    "ArcOpen",
    "Bootstrap",
    "BootstrapConnection",
    "BrokerLimits",
    "BrokerLost",
    "CastLimits",
    "CastMessage",
    "Channel",
    "ChildClose",
    "ChildConnect",
    "ChildError",
    "ClusterUnavailable",
    "ConfigurationError",
    "Connection",
    "ConnectionFailed",
    "DeliveryFailed",
    "Event",
    "Frame",
    "Gathered",
    "Heartbeat",
    "IceServer",
    "IdTaken",
    "Identity",
    "Internet",
    "JoinRefused",
    "JoinTimeout",
    "Listener",
    "ListeningServer",
    "LocalPeers",
    "MalformedFrame",
    "Message",
    "MessageTooLarge",
    "NeighbourEvent",
    "Neighbours",
    "Network",
    "NodeSnapshot",
    "NotSupported",
    "OutcomeError",
    "OverlayError",
    "ParentClose",
    "ParentConnect",
    "ParentError",
    "PathChange",
    "Peer",
    "PeerConnected",
    "PeerConnection",
    "PeerDisconnected",
    "PeerError",
    "PeerEvent",
    "PeerJoined",
    "PeerLeft",
    "PeerMessage",
    "PeerNotFound",
    "PeerRefused",
    "ProtocolError",
    "Received",
    "Registered",
    "Registry",
    "Relay",
    "RelayAddress",
    "RelayEvent",
    "RelayMessage",
    "RelaySocket",
    "Request",
    "Sampling",
    "SamplingState",
    "SendTimeout",
    "ServerLost",
    "ServerRefused",
    "ServerUnreachable",
    "SignalingServer",
    "SnapshotFailed",
    "StateChange",
    "Stream",
    "TreeChannel",
    "TreeNode",
    "TreeSnapshot",
    "UpgradeHandler",
    "UpgradeRequest",
    "UsageError",
    "Views",
    "__version__",
    "as_object_stream",
    "ask_tree_snapshot",
    "hash_place",
    "open_bootstrap",
    "open_neighbours",
    "open_peer",
    "open_relay",
    "open_relay_socket",
    "open_sampling",
    "open_tree_node",
    "serve_signaling",
]
