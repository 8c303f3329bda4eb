"""The JavaScript originals as processes: commands go in, events come out, as lines of JSON.

The drivers are the ``*.js`` files beside this one; each opens with its commands and events. One
that dies of what its original threw fails the test at once, with what it wrote to stderr. One whose
native WebRTC stack crashes says nothing about anybody's code: that test is run again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.conftest import require_or_skip, unavailable

HERE = Path(__file__).parent
MAX_LINE = 16 * 1024 * 1024
PATIENCE = 60.0
"""Seconds for anything that comes in a moment, on a machine with other things to do."""
EXIT_TIMEOUT = 60.0

VARIANTS: list[tuple[str, ...]] = [
    (),
    ("--no-trickle",),
    ("--simple-peer", "9"),
    ("--simple-peer", "9", "--no-trickle"),
]
"""Arguments of client.js and tree.js: the ways in which an original may come up a connection."""

Event = dict[str, Any]
"""One line of a driver: its name under ``ev``, and its fields."""


class NodeFailed(AssertionError):
    """The process ended with an error; the message has its stderr."""


class NodeCrashed(NodeFailed):
    """A signal ended it that native code got for its own mistake.

    wrtc 0.10.0 makes at least this one: ``RTCDataChannel::Send`` looks whether its channel is
    there, and uses it, while the thread that hears that the remote end left takes it away.
    """


def is_of_a_crash(error: BaseException | None) -> bool:
    """Whether *error* is a `NodeCrashed`, or a group with one."""
    if isinstance(error, BaseExceptionGroup):
        return any(is_of_a_crash(inner) for inner in error.exceptions)
    return isinstance(error, NodeCrashed)


runs_originals = [pytest.mark.interop, pytest.mark.flaky(reruns=2, condition=is_of_a_crash)]
"""The marks of all tests with drivers. Three crashes in a row do fail one: we may cause them."""


class NodeProcess:
    """A driver that runs; made by `open_node_process`."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._sending = trio.StrictFIFOLock()
        self._changed = trio.Event()
        self._has_ended = False
        self._may_be_killed = False
        self.unread: list[Event] = []
        """Events that nobody has taken yet, oldest first."""
        self.stderr = ""

    @property
    def pid(self) -> int:
        return self._process.pid

    async def send(self, command: str, **fields: object) -> None:
        """Give the driver a *command*."""
        assert self._process.stdin is not None
        line = json.dumps({"cmd": command, **fields}) + "\n"
        async with self._sending:
            await self._process.stdin.send_all(line.encode())

    async def wait_for(self, event: str, *, timeout: float = PATIENCE, **fields: object) -> Event:
        """The first untaken *event* with these *fields*, come already or still to come.

        It is taken out; events passed over on the way stay.

        AssertionError: none within *timeout* seconds; the message has what came instead.
        """
        wanted: Mapping[str, object] = {"ev": event, **fields}
        with trio.move_on_after(timeout):
            while True:
                for index, candidate in enumerate(self.unread):
                    if wanted.items() <= candidate.items():
                        return self.unread.pop(index)
                if self._has_ended:
                    break
                await self._changed.wait()
        raise AssertionError(
            f"no {json.dumps(wanted)}; untaken: {json.dumps(self.unread)[:5000]}\n{self.stderr}"
        )

    def kill(self) -> None:
        """End it as a crash would: no farewell, and no failure of the test either."""
        self._may_be_killed = True
        self._process.kill()

    async def end(self) -> bool:
        """Close its stdin, at which it kills itself; whether it did within `EXIT_TIMEOUT`."""
        self._may_be_killed = True
        assert self._process.stdin is not None
        with trio.move_on_after(EXIT_TIMEOUT, shield=True):
            await self._process.stdin.aclose()
            await self._process.wait()
        return self._process.returncode is not None

    @property
    def failed(self) -> bool:
        good = (0, -signal.SIGKILL) if self._may_be_killed else (0,)
        return self._process.returncode not in good

    @property
    def crashed(self) -> bool:
        return self._process.returncode in (-signal.SIGSEGV, -signal.SIGABRT)

    async def _read_events(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        async with self._process.stdout as stdout:
            async for chunk in stdout:
                *lines, rest = (rest + chunk).split(b"\n")
                assert len(rest) < MAX_LINE
                self.unread += [json.loads(line) for line in lines]
                self._notify()
        self._has_ended = True
        self._notify()

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        async with self._process.stderr as stderr:
            async for chunk in stderr:
                self.stderr += chunk.decode(errors="replace")

    async def _wait_for_death(self, cancel_scope: trio.CancelScope) -> None:
        """Cancel the test when the process dies before it was asked to end."""
        await self._process.wait()
        if self.failed:
            cancel_scope.cancel()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@asynccontextmanager
async def open_node_process(script: str, *arguments: str) -> AsyncIterator[NodeProcess]:
    """A driver running under Node. Leaving the context ends it.

    NodeFailed: it died (NodeCrashed: in native code), or would not end; raised in place of what it
    did to the body.
    """
    command = [require_originals(), str(HERE / script), *arguments]
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "NODE_OPTIONS": "", "DEBUG": os.environ.get("INTEROP_DEBUG", "")},
    )
    node = NodeProcess(process)
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node._read_events)
            nursery.start_soon(node._read_stderr)
            nursery.start_soon(node._wait_for_death, nursery.cancel_scope)
            try:
                yield node
            except BaseException as error:  # noqa: BLE001
                # Kept out of the nursery, which would wrap it in a group; raised again below.
                failure = error
            ended = await node.end()
            process.kill()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
    if node.failed or not ended:
        outcome = f"ended with {process.returncode}" if ended else "did not end when asked to"
        kind = NodeCrashed if node.crashed else NodeFailed
        raise kind(f"node {script} {outcome}\n{node.stderr[-5000:]}") from failure
    if failure is not None:
        failure.add_note(f"node {script} had untaken {json.dumps(node.unread)[:5000]}")
        if node.stderr:
            failure.add_note(f"and wrote to stderr\n{node.stderr[-5000:]}")
        raise failure


@asynccontextmanager
async def open_original_server(*arguments: str) -> AsyncIterator[str]:
    """webrtc-bootstrap's server, whose secret is "secret"; its ``host:port``."""
    async with open_node_process("server.js", *arguments) as server:
        listening = await server.wait_for("listening")
        yield f"127.0.0.1:{listening['port']}"


def require_originals() -> str:
    """The path of Node, with the originals installed; without them the test is skipped or fails."""
    node = require_or_skip("node", "nodejs")
    if not (HERE / "node_modules" / "webrtc-bootstrap").exists():
        unavailable("the originals are not installed (npm ci --ignore-scripts in tests/interop)")
    return node
