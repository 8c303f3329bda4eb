"""Arcs over channels that come up by other means: a bootstrap server, a broker, a relay.

Whoever opens the arc speaks first: a request without a signal, as on a connection that there is.
"""

from __future__ import annotations

import trio

from trio_overlay.channels.channel import Channel
from trio_overlay.errors import ConnectionFailed, ProtocolError
from trio_overlay.nodes.neighbour_link import Link
from trio_overlay.nodes.neighbourhood import Neighbourhood
from trio_overlay.protocol.neighbours import (
    EXTENSIONS,
    ArcEnd,
    ArcMessage,
    ArcRequest,
    ArcResponse,
    Send,
    Side,
    decode_neighbour,
    decode_payload,
    encode_neighbour,
    encode_payload,
    peer_of,
)


async def introduce(hood: Neighbourhood, pid: str, channel: Channel, *, is_outgoing: bool) -> Link:
    """The connection that a fresh *channel* is from now on, with its first arc.

    ConnectionFailed: the other end does not agree, or is this peer itself.
    """
    own_end = (Side.OUT if is_outgoing else Side.IN).end_of(hood.peer)
    if is_outgoing:
        return await _open_on(hood, own_end, pid, channel)
    return await _accept_on(hood, own_end, pid, channel)


async def _open_on(hood: Neighbourhood, own_end: str, pid: str, channel: Channel) -> Link:
    tid = hood.make_tid()
    await _say(channel, own_end, ArcRequest(tid, own_end, pid, None, extensions=EXTENSIONS))
    answer = await _hear(channel)
    if isinstance(answer, ArcEnd):
        raise ConnectionFailed(f"{answer.peer} refused: {answer.reason}")
    if not isinstance(answer, ArcResponse) or (answer.tid, answer.offer) != (tid, None):
        raise ConnectionFailed("the other end of the channel does not answer what it was asked")
    if peer_of(answer.peer) == hood.peer:
        raise ConnectionFailed("a peer has no arc to itself")
    link = hood.add_link(channel, Side.OUT, answer.peer, answer.extensions)
    hood.add_arc(link, tid, pid)
    return link


async def _accept_on(hood: Neighbourhood, own_end: str, pid: str, channel: Channel) -> Link:
    request = await _hear(channel)
    if not isinstance(request, ArcRequest) or request.offer is not None:
        raise ConnectionFailed("the other end of the channel asks for no arc")
    refusal = None
    if request.pid != pid:
        refusal = f"it speaks of the protocol {request.pid:.80}, and this is {pid}"
    elif peer_of(request.peer) == hood.peer:
        refusal = "a peer has no arc to itself"
    if refusal is not None:
        await _say(channel, own_end, ArcEnd(request.tid, own_end, request.pid, refusal))
        raise ConnectionFailed(refusal)
    await _say(
        channel, own_end, ArcResponse(request.tid, own_end, pid, None, extensions=EXTENSIONS)
    )
    link = hood.add_link(channel, Side.IN, request.peer, request.extensions)
    hood.add_arc(link, request.tid, pid)
    return link


async def _say(channel: Channel, own_end: str, message: ArcMessage) -> None:
    try:
        frame = Send(own_end, message.pid, encode_payload(message))
        await channel.send(encode_neighbour(frame))
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise ConnectionFailed(f"the channel has ended: {channel.close_reason}") from error


async def _hear(channel: Channel) -> ArcMessage:
    try:
        frame = decode_neighbour(await channel.receive())
        payload = decode_payload(frame.payload) if isinstance(frame, Send) else None
    except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise ConnectionFailed(f"the channel has ended: {channel.close_reason}") from error
    except ProtocolError as error:
        raise ConnectionFailed(f"at the other end nobody speaks of arcs: {error}") from error
    if not isinstance(payload, ArcRequest | ArcResponse | ArcEnd):
        raise ConnectionFailed("at the other end nobody speaks of arcs")
    return payload
