"""``trio-overlay server``: the signaling server."""

from __future__ import annotations

import argparse
import sys
from functools import partial

import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.cli.running import run_until_stopped, set_up_logging
from trio_overlay.cli.workers import serve_with_workers
from trio_overlay.protocol.broker_registrations import DEFAULT_LEASE, BrokerLimits
from trio_overlay.signaling.broker import BROKER_PATHS
from trio_overlay.signaling.config import (
    DEFAULT_PORT,
    LOG_LEVELS,
    ServerConfiguration,
    load_configuration,
)
from trio_overlay.signaling.server import ListeningServer, serve_signaling

_EPILOG = """\
CONFIG is a JSON file, or a TOML file when its name ends in .toml, with the keys secret, host, port,
timeout, public, seed, redis, workers, log_level, broker_path (one or a list) and broker_timeout. Of
the environment, SECRET and PORT count. Options win over the file, the file over the environment.
There is no option for the secret: others could see it in the list of processes. For the same
reason, a Redis with a password belongs in the file.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Run the signaling server until SIGINT or SIGTERM."
    parser.epilog = _EPILOG
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="a configuration file")
    parser.add_argument("--host", help="the address to listen on (default: all of this machine)")
    parser.add_argument(
        "--port", type=int, help=f"the port to listen on, 0 for any (default: {DEFAULT_PORT})"
    )
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="how long a joiner may stay (default: 30)"
    )
    parser.add_argument("--public", metavar="DIR", help="a directory of static files to serve")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="repeatable ids, as the original's; for tests only"
    )
    parser.add_argument(
        "--redis",
        metavar="URL",
        help="act as one with all servers that share this Redis (extra 'cluster')",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes on this port; over 1 they need --redis"
    )
    parser.add_argument(
        "--broker-path",
        action="append",
        metavar="PATH",
        help="where the broker is, too, beside / and /broker; may be given several times",
    )
    parser.add_argument(
        "--broker-timeout",
        type=float,
        metavar="SECONDS",
        help=f"how long a peer that has fallen silent keeps its id (default: {DEFAULT_LEASE:g}; "
        "peers are heard every 45 s)",
    )
    parser.add_argument("--log-level", choices=LOG_LEVELS, help="(default: info)")
    parser.set_defaults(run=run_server)


def run_server(arguments: argparse.Namespace) -> int:
    names = (
        *("host", "port", "timeout", "public", "seed", "redis", "workers", "log_level"),
        *("broker_path", "broker_timeout"),
    )
    configuration = load_configuration(
        arguments.config, options={name: getattr(arguments, name) for name in names}
    )
    set_up_logging(configuration.log_level)
    if configuration.workers > 1:
        return run_until_stopped(lambda: serve_with_workers(configuration)) or 0
    run_until_stopped(lambda: serve(configuration))
    return 0


async def serve(configuration: ServerConfiguration) -> None:
    """The server that *configuration* describes; says on stdout where it listens."""
    async with open_background_nursery() as nursery:
        listening = await start_server(nursery, configuration)
        sys.stdout.write(f"listening on {' '.join(listening.urls)}\n")
        sys.stdout.flush()
        await trio.sleep_forever()


async def start_server(
    nursery: trio.Nursery, configuration: ServerConfiguration, *, reuse_port: bool = False
) -> ListeningServer:
    """The server that *configuration* describes, started in *nursery*; its workers are ignored."""
    listening: ListeningServer = await nursery.start(
        partial(
            serve_signaling,
            configuration.secret,
            host=configuration.host,
            port=configuration.port,
            timeout=configuration.timeout,
            public=configuration.public,
            seed=configuration.seed,
            redis=configuration.redis,
            reuse_port=reuse_port,
            broker_paths=(*BROKER_PATHS, *configuration.broker_path),
            broker_limits=BrokerLimits(lease=configuration.broker_timeout),
        )
    )
    return listening
