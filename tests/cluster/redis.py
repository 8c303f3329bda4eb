"""A real Redis for one test: on a free port, in a directory of its own, and it keeps nothing."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from tests.conftest import require_or_skip
from tests.ports import free_port

PATIENCE = 60
_READY = b"eady to accept connections"


class RedisServer:
    """A process that is killed, started anew and stopped for a while as the test wants."""

    def __init__(self, folder: str, port: int) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}"
        self.unix_url = f"unix://{folder}/socket"
        self._folder = Path(folder)
        self._process: trio.Process | None = None

    async def start(self) -> None:
        """Come up, with nothing in it, on the same port as before."""
        program = require_or_skip("redis-server")
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        words += ["--unixsocket", str(self._folder / "socket"), "--save", "", "--appendonly", "no"]
        self._process = await trio.lowlevel.open_process(
            [program, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self._process.stdout is not None
        said = b""
        with trio.fail_after(PATIENCE):
            while _READY not in said:
                chunk = await self._process.stdout.receive_some()
                if not chunk:
                    raise OSError(f"redis-server has ended: {said.decode(errors='replace')}")
                said += chunk

    async def kill(self) -> None:
        """Die, without a word. If it has died: nothing."""
        if self._process is None:
            return
        process, self._process = self._process, None
        assert process.stdout is not None
        with trio.CancelScope(shield=True):
            async with process.stdout:
                process.kill()
                await process.wait()

    def pause(self) -> None:
        """Stand still."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def open_redis() -> AsyncIterator[RedisServer]:
    """A Redis that serves; skipped, or failed with CI=true, where there is none to start."""
    with TemporaryDirectory(prefix="redis-") as folder:
        server = RedisServer(folder, free_port())
        for _ in range(5):
            try:
                await server.start()
                break
            except OSError:  # somebody else was quicker to take the port
                await server.kill()
                server = RedisServer(folder, free_port())
        else:
            await server.start()
        try:
            yield server
        finally:
            await server.kill()


async def ask(server: RedisServer, *words: str) -> bytes:
    """What *server* answers to one command, as it stands on the wire."""
    request = f"*{len(words)}\r\n" + "".join(f"${len(w)}\r\n{w}\r\n" for w in words)
    with trio.fail_after(PATIENCE):
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(request.encode())
            return await stream.receive_some()


async def season(server: RedisServer) -> None:
    """Make it one that a cluster has used before, so that ids are granted at once."""
    info = (await ask(server, "INFO", "server")).decode()
    run_id = info.partition("run_id:")[2].split()[0]
    assert await ask(server, "SET", "trio-overlay:run", run_id) == b"+OK\r\n"
