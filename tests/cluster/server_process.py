"""One server of a cluster in a process of its own, with a lease as short as a test wants it.

    python -m tests.cluster.server_process REDIS_URL LEASE JOURNAL

It says on stdout at which port it listens, and ends when its stdin does. In the file JOURNAL it
writes a line whenever an id comes to be held here (``+``), or is about to be no more (``-``):
``NANOSECONDS + DIGEST ID``, by the clock that all processes of the machine share, and with ``-``
for the digest of a peer that has no secret. ``NANOSECONDS ~ SINCE``: from then until now the
machine has let this process stand still.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from functools import partial

import trio

from tests.cluster.wanderers import watch_holders
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.protocol.broker_registrations import BrokerLimits
from trio_overlay.protocol.leases import MARGIN
from trio_overlay.signaling.cluster import open_cluster
from trio_overlay.signaling.pages import Pages
from trio_overlay.signaling.redis_store import RedisStore
from trio_overlay.signaling.server import SignalingServer, serve_upgrades

SECRET = "hush-hush"
TICK = 0.01
PATIENT = BrokerLimits(registrations_at_once=1000, registrations_per_second=100)


async def serve(redis_url: str, lease: float, journal: int) -> None:
    def note(sign: str, what: str) -> None:
        os.write(journal, f"{time.monotonic_ns()} {sign} {what}\n".encode())

    def note_hold(sign: str, identifier: str, digest: str) -> None:
        note(sign, f"{digest or '-'} {identifier}")

    async with open_cluster(RedisStore(redis_url), lease=lease) as cluster:
        server = SignalingServer(
            SECRET, rng=random.SystemRandom(), cluster=cluster, broker_limits=PATIENT
        )
        watch_holders(server, partial(note_hold, "+"), partial(note_hold, "-"))
        async with open_background_nursery() as nursery:
            await nursery.start(server.run)
            nursery.start_soon(note_stalls, note, lease * MARGIN)
            pages = Pages(server.status, None)

            async def listen(*, task_status: trio.TaskStatus[object]) -> None:
                await serve_upgrades(
                    server.handle_upgrade, pages, host="127.0.0.1", port=0, task_status=task_status
                )

            addresses = await nursery.start(listen)
            sys.stdout.write(f"{addresses[0][1]}\n")
            sys.stdout.flush()
            async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as parent:
                await parent.receive_some()


async def note_stalls(note: Callable[[str, str], None], margin: float) -> None:
    """Note when this process did not run for so long that a lease may have ended meanwhile.

    Noted one tick later: by then it has done what it was late for.
    """
    since: int | None = None
    while True:
        began = time.monotonic_ns()
        await trio.sleep(TICK)
        if time.monotonic_ns() - began > margin / 2 * 1e9:
            since = since or began
        elif since is not None:
            note("~", str(since))
            since = None


if __name__ == "__main__":
    descriptor = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    trio.run(serve, sys.argv[1], float(sys.argv[2]), descriptor)
