"""WebRTC overlay networks on Trio: peers find each other, connect, and stay connected.

The map of the house; a room may use what stands above it, and never what stands below:

===============  ===============================================================================
`errors`         every exception a caller may catch, one tree, split by who is to blame
`protocol`       what is said and what is decided: pure, no I/O and no clock
`channels`       what carries frames: memory, WebSocket, WebRTC; and the way to asyncio
`signaling`      where peers meet: the server, its client, the roads that signals travel
`nodes`          what an application holds: tree nodes, neighbours
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
    ConfigurationError,
    ConnectionFailed,
    JoinRefused,
    JoinTimeout,
    MalformedFrame,
    MessageTooLarge,
    NotSupported,
    OutcomeError,
    OverlayError,
    PeerNotFound,
    ProtocolError,
    ServerRefused,
    ServerUnreachable,
    UsageError,
)
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
from trio_overlay.nodes.streams import Stream
from trio_overlay.nodes.tree import (
    ChildClose,
    ChildConnect,
    ChildError,
    Event,
    ParentClose,
    ParentConnect,
    ParentError,
    TreeNode,
    open_tree_node,
)
from trio_overlay.nodes.tree_channel import Message, TreeChannel
from trio_overlay.signaling.bootstrap import (
    Bootstrap,
    Connection,
    Listener,
    Request,
    open_bootstrap,
)
from trio_overlay.signaling.server import ListeningServer, SignalingServer, serve_signaling

__version__ = "0.1.0"

__all__ = [
    "ArcClose",
    "ArcFail",
    "ArcOpen",
    "Bootstrap",
    "Channel",
    "ChildClose",
    "ChildConnect",
    "ChildError",
    "ConfigurationError",
    "Connection",
    "ConnectionFailed",
    "Event",
    "Frame",
    "IceServer",
    "Internet",
    "JoinRefused",
    "JoinTimeout",
    "Listener",
    "ListeningServer",
    "MalformedFrame",
    "Message",
    "MessageTooLarge",
    "NeighbourEvent",
    "Neighbours",
    "Network",
    "NotSupported",
    "OutcomeError",
    "OverlayError",
    "ParentClose",
    "ParentConnect",
    "ParentError",
    "PeerConnection",
    "PeerNotFound",
    "ProtocolError",
    "Received",
    "Request",
    "ServerRefused",
    "ServerUnreachable",
    "SignalingServer",
    "Stream",
    "TreeChannel",
    "TreeNode",
    "UpgradeHandler",
    "UpgradeRequest",
    "UsageError",
    "Views",
    "as_object_stream",
    "open_bootstrap",
    "open_neighbours",
    "open_tree_node",
    "serve_signaling",
]
