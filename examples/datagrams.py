"""Programs written for a UDP socket, on a UDP socket and on one over relays: an echo, and DNS.

`serve_echo`, `ask_echo`, `serve_dns` and `ask_dns` do not know what socket they have. The DNS
messages are those of dnspython (pip install dnspython).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import dns.flags
import dns.message
import dns.rrset
import trio

from trio_overlay import open_relay_socket

NAMES = {"overlay.example.": "192.0.2.7"}


async def serve_echo(socket: Any) -> None:
    """Send everything back."""
    while True:
        data, address = await socket.recvfrom(65_535)
        await socket.sendto(data, address)


async def ask_echo(socket: Any, address: Any, data: bytes) -> bytes:
    """What comes back; asks again each second, for datagrams get lost."""
    while True:
        await socket.sendto(data, address)
        with trio.move_on_after(1):
            answer, _ = await socket.recvfrom(65_535)
            return bytes(answer)


async def serve_dns(socket: Any) -> None:
    """Answer questions for the addresses of NAMES."""
    while True:
        data, address = await socket.recvfrom(65_535)
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.AA
        name = query.question[0].name.to_text()
        if name in NAMES:
            answer.answer.append(dns.rrset.from_text(name, 60, "IN", "A", NAMES[name]))
        await socket.sendto(answer.to_wire(), address)


async def ask_dns(socket: Any, address: Any, name: str) -> str:
    """The address of *name*."""
    query = dns.message.make_query(name, "A")
    answer = dns.message.from_wire(await ask_echo(socket, address, query.to_wire()))
    assert query.is_response(answer)
    return str(answer.answer[0][0])


@asynccontextmanager
async def open_udp_sockets() -> AsyncIterator[list[Any]]:
    """Three sockets of this machine."""
    sockets = [trio.socket.socket(type=trio.socket.SOCK_DGRAM) for _ in range(3)]
    for socket in sockets:
        await socket.bind(("127.0.0.1", 0))
    try:
        yield sockets
    finally:
        for socket in sockets:
            socket.close()


@asynccontextmanager
async def open_relay_sockets() -> AsyncIterator[list[Any]]:
    """Three sockets on relays, of which the second and third have dialled the first."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(open_relay_socket(port=0, webrtc=False))
        sockets = [first]
        for _ in range(2):
            opening = open_relay_socket(bootstrap=[first.peer.url], webrtc=False)
            sockets.append(await stack.enter_async_context(opening))
        for socket in sockets:
            await socket.bind(0)
        yield sockets


async def main() -> None:
    for kind, open_sockets in (("UDP", open_udp_sockets), ("relays", open_relay_sockets)):
        async with open_sockets() as (client, echo, names), trio.open_nursery() as nursery:
            nursery.start_soon(serve_echo, echo)
            nursery.start_soon(serve_dns, names)
            answer = await ask_echo(client, echo.getsockname(), b"hello")
            address = await ask_dns(client, names.getsockname(), "overlay.example.")
            print(f"over {kind}: the echo is {answer.decode()}, the address is {address}")
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
