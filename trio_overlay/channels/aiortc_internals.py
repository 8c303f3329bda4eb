"""Everything that needs more of aiortc and aioice than they promise, in one place.

Written against aiortc 1.16 and aioice 0.13. `tests/channels/test_aiortc_internals.py` fails
when a name is gone.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator

from aioice import Connection
from aiortc import RTCPeerConnection


def stop_gathering(peer_connection: RTCPeerConnection) -> None:
    """Have a `setLocalDescription` that gathers candidates end at once, without losing sockets.

    Cancelling it does neither: aioice forgets the sockets it has opened so far, and the
    tasks that ask the STUN and TURN servers go on for as long as those keep silent. So the
    servers are taken away, and the tasks that ask them are cancelled.
    """
    if peer_connection.iceGatheringState != "gathering":
        return  # and looking through all tasks of the loop takes its time
    for connection in _ice_connections(peer_connection):
        connection.stun_server = None
        connection.turn_server = None
        for task in asyncio.all_tasks():
            if _asks_a_server_for(task, connection):
                task.cancel()


def is_connecting(peer_connection: RTCPeerConnection) -> bool:
    """Whether aiortc may still be at work on bringing the connection up."""
    return peer_connection.sctp is not None and peer_connection.sctp.state != "connected"


async def finish_connecting(peer_connection: RTCPeerConnection) -> None:
    """For a connection closed while it was coming up: wait until aiortc has noticed.

    aioice sleeps 20 ms between checks, and when it wakes in a connection that was closed after the
    last check had succeeded, it starts to ask for consent, and does so for ever. Closing it once
    more ends that.
    """
    tasks = [task for task in asyncio.all_tasks() if _connects(task, peer_connection)]
    if tasks:
        await asyncio.wait(tasks)
    for connection in _ice_connections(peer_connection):
        await connection.close()


def last_confirmed(peer_connection: RTCPeerConnection) -> int:
    """The number up to which the remote has confirmed our packets of data; 0 without any."""
    sctp = peer_connection.sctp
    return 0 if sctp is None else sctp._last_sacked_tsn


def abort_sockets(peer_connection: RTCPeerConnection) -> None:
    """Close the sockets of a connection whose `close` does not return."""
    for connection in _ice_connections(peer_connection):
        for protocol in connection._protocols:
            # A relay's transport has no abort.
            getattr(protocol.transport, "abort", protocol.transport.close)()


def _ice_connections(peer_connection: RTCPeerConnection) -> Iterator[Connection]:
    if peer_connection.sctp is not None:
        yield peer_connection.sctp.transport.transport.iceGatherer._connection


def _connects(task: asyncio.Task[object], peer_connection: RTCPeerConnection) -> bool:
    coroutine = task.get_coro()
    return (
        inspect.iscoroutine(coroutine)
        and coroutine.__name__ == "__connect"
        and inspect.getcoroutinelocals(coroutine).get("self") is peer_connection
    )


def _asks_a_server_for(task: asyncio.Task[object], connection: Connection) -> bool:
    coroutine = task.get_coro()
    if not inspect.iscoroutine(coroutine):
        return False
    match coroutine.__name__:
        case "server_reflexive_candidate":
            protocol = inspect.getcoroutinelocals(coroutine).get("protocol")
            return getattr(protocol, "receiver", None) is connection
        case "relayed_candidate":
            factory = inspect.getcoroutinelocals(coroutine).get("protocol_factory")
            return (
                inspect.isfunction(factory)
                and inspect.getclosurevars(factory).nonlocals.get("self") is connection
            )
        case _:
            return False
