"""How fast nodes join a tree: ours, and the JavaScript stack in the same run.

    python -m benchmarks.join --nodes 100 --against-js

Each stack is measured in a process of its own that holds the server, the root and all the nodes,
each a real WebRTC peer. The CPU is that process's, from the first join to the last; the memory its
peak. The JavaScript stack is measured twice: all at once as ours is, for which it may lack
sockets, and a few at a time, which it always can.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from typing import get_args

import trio

from benchmarks import javascript
from benchmarks.measure import Figures, print_beside
from trio_overlay.channels.bridge import BridgeChoice
from trio_overlay.channels.internet import Internet
from trio_overlay.errors import OverlayError
from trio_overlay.nodes.tree import open_tree_node
from trio_overlay.signaling.server import ListeningServer, serve_signaling

SECRET = "secret"  # noqa: S105 - of a server that lives for seconds
JS_AT_ONCE = 10


def main() -> int:
    options = parse(sys.argv[1:])
    if options.measure:
        print(json.dumps(asdict(trio.run(join_all, options))))
        return 0
    command = [sys.executable, "-m", "benchmarks.join", "--measure", *sys.argv[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    ours = Figures(**json.loads(done.stdout))
    others = []
    if options.against_js:
        for at_once in dict.fromkeys((options.nodes, min(options.nodes, JS_AT_ONCE))):
            try:
                run = javascript.join(
                    options.nodes,
                    at_once=at_once,
                    max_degree=options.max_degree,
                    timeout=options.timeout,
                )
            except javascript.NotInstalled as error:
                print(f"the JavaScript stack cannot be measured: {error}", file=sys.stderr)
                return 1
            others.append(run)
    print_beside(ours, others)
    return 1 if ours.failed else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.join", description=__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--at-once", type=int, help="joins under way at a time (default: all)")
    parser.add_argument("--max-degree", type=int, default=10)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for all of it")
    parser.add_argument("--bridge", choices=get_args(BridgeChoice), default="auto")
    parser.add_argument(
        "--against-js", action="store_true", help="measure the JavaScript stack too"
    )
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.nodes < 1 or options.max_degree < 1 or (options.at_once or 1) < 1:
        parser.error("--nodes, --at-once and --max-degree are at least 1")
    return options


async def join_all(options: argparse.Namespace) -> Figures:
    """Measure ours, in this process."""
    # As in join.js, what must be loaded is loaded before the clock starts.
    importlib.import_module("trio_overlay.channels.webrtc")
    network = Internet(bridge=options.bridge)
    at_once = trio.CapacityLimiter(options.at_once or options.nodes)
    joined = 0
    seconds = cpu_seconds = 0.0
    all_done = trio.Event()
    count_done = 0

    async def live(host: str) -> None:
        nonlocal joined, count_done, seconds, cpu_seconds
        node_context = open_tree_node(
            host, max_degree=options.max_degree, request_timeout=options.timeout, network=network
        )
        async with node_context as node:
            try:
                async with at_once:
                    await node.join()
                joined += 1
                seconds = time.perf_counter() - started_at
                cpu_seconds = time.process_time() - cpu_before
            except OverlayError as error:
                print(f"a join failed: {error}", file=sys.stderr)
            count_done += 1
            if count_done == options.nodes:
                all_done.set()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listening: ListeningServer = await nursery.start(partial(serve_signaling, SECRET, port=0))
        host = f"127.0.0.1:{listening.port}"
        root_context = open_tree_node(host, max_degree=options.max_degree, network=network)
        async with root_context as root:
            await root.become_root(SECRET)
            started_at = time.perf_counter()
            cpu_before = time.process_time()
            async with trio.open_nursery() as nodes:
                for _ in range(options.nodes):
                    nodes.start_soon(live, host)
                with trio.move_on_after(options.timeout):
                    await all_done.wait()
                nodes.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    return Figures(
        f"ours, {options.at_once or options.nodes} at once",
        options.nodes,
        joined=joined,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


if __name__ == "__main__":
    sys.exit(main())
