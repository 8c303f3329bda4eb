"""Every exception a caller may catch, in one tree, split by who is to blame.

Channels raise Trio's own three (`trio.ClosedResourceError`, `trio.BrokenResourceError`,
`trio.EndOfChannel`); those are never wrapped in one of these.
"""

from __future__ import annotations


class OverlayError(Exception):
    """The root of everything this package raises on purpose."""


# --- you asked for what cannot be ---------------------------------------------------------


class UsageError(OverlayError):
    """You asked for something that cannot be; asking again the same way is no use."""


class ConfigurationError(UsageError):
    """A configuration file, option or environment variable is missing, unreadable or wrong.

    The message names the key, and the file and line where there is one.
    """


class MessageTooLarge(UsageError):
    """A message is over the limit of the channel or of the remote; nothing was sent."""


class NotSupported(UsageError):
    """The neighbour did not say that it understands what this call needs."""


# --- they broke the protocol --------------------------------------------------------------


class ProtocolError(OverlayError):
    """The other side said what the protocol does not allow."""


class MalformedFrame(ProtocolError):
    """A frame could not be decoded; the message says what is wrong with it."""


# --- outcomes a caller may handle ---------------------------------------------------------


class OutcomeError(OverlayError):
    """Nobody is to blame: it did not work out this time, and another time it may."""


class ServerUnreachable(OutcomeError):
    """The server could not be reached, hung up, or is no server of this kind."""


class ServerLost(ServerUnreachable):
    """The server was there, and hung up before it was done with us."""


class ServerRefused(OutcomeError):
    """The server was reached and said no: a wrong secret, an unknown path, no room."""


class ConnectionFailed(OutcomeError):
    """A connection between two peers did not come up."""


class JoinRefused(OutcomeError):
    """Somebody on the way turned the join down; the message has the reason given."""


class JoinTimeout(OutcomeError):
    """The time to join ran out before a parent's channel was open."""


class PeerNotFound(OutcomeError):
    """Nobody is known by that id."""


class IdTaken(OutcomeError):
    """Another peer is registered by that id."""


class SnapshotFailed(OutcomeError):
    """There is no picture of the tree: no root, none that can be asked, or no answer in time."""


class PeerRefused(OutcomeError):
    """The other peer does not accept a connection; the message has the reason given."""


class SendTimeout(OutcomeError):
    """The time to send a message ran out; it may or may not have arrived."""


class ClusterUnavailable(OutcomeError):
    """The servers that share one registry cannot be asked now, so some things cannot be told."""


class DeliveryFailed(OutcomeError):
    """No receipt came in time: the message may have arrived, or not."""
