"""``trio-overlay server`` as a process: how it starts, what it says, how it ends."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.ports import free_port
from tests.processes import open_process
from trio_overlay.channels.websocket import open_websocket_channel
from trio_overlay.cli import main
from trio_overlay.errors import ServerRefused

REPOSITORY = Path(__file__).parent.parent.parent
SECRET = "hush-hush"
PATIENCE = 120


class Running:
    """A server process that has said where it listens."""

    def __init__(self, process: trio.Process, url: str) -> None:
        self.process = process
        self.url = url
        self.log = ""

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal; its exit code, when all that it logged is in `log`."""
        self.process.send_signal(number)
        assert self.process.stderr is not None
        while chunk := await self.process.stderr.receive_some():
            self.log += chunk.decode()
        return await self.process.wait()


@asynccontextmanager
async def running(
    *arguments: str, program: str = "server", environment: Mapping[str, str] | None = None
) -> AsyncIterator[Running]:
    clean = {name: value for name, value in os.environ.items() if name not in ("SECRET", "PORT")}
    command = [sys.executable, "-m", "trio_overlay", program, *arguments, "--host", "127.0.0.1"]
    with trio.fail_after(PATIENCE):
        async with open_process(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**clean, **(environment or {})},
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            said = ""
            while not said.endswith("\n"):
                chunk = await process.stdout.receive_some()
                assert chunk, (await process.stderr.receive_some()).decode()
                said += chunk.decode()
            assert said.startswith("listening on ws://127.0.0.1:")
            yield Running(process, said.split()[2])


async def assert_serves(url: str, secret: str) -> None:
    async with open_websocket_channel(f"{url}/{secret}/webrtc-bootstrap-root") as root:
        assert root.close_reason is None
    with pytest.raises(ServerRefused):
        async with open_websocket_channel(f"{url}/not-{secret}/webrtc-bootstrap-root"):
            pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_asked_to_stop_it_tells_its_clients_and_ends_with_0(number: int) -> None:
    async with (
        running("--port", "0", environment={"SECRET": SECRET}) as server,
        open_websocket_channel(f"{server.url}/{SECRET}/webrtc-bootstrap-root") as root,
    ):
        async with trio.open_nursery() as nursery:

            async def be_told() -> None:
                with pytest.raises(trio.EndOfChannel):
                    await root.receive()

            nursery.start_soon(be_told)
            assert await server.stop(number) == 0
        assert root.close_reason == "the server is stopping"
        assert "Traceback" not in server.log


async def test_the_secret_is_in_no_line_of_the_log_at_any_level() -> None:
    environment = {"SECRET": SECRET}
    async with running("--port", "0", "--log-level", "debug", environment=environment) as server:
        await assert_serves(server.url, SECRET)
        with pytest.raises(ServerRefused):
            async with open_websocket_channel(f"{server.url}/{SECRET}/webrtc-bootstrap-rot"):
                pass
        assert await server.stop() == 0
        assert "is now a root" in server.log
        assert "wrong secret" in server.log
        assert SECRET not in server.log


async def test_a_file_and_its_options_are_obeyed(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "hello.txt").write_text("hello")
    config = tmp_path / "config.toml"
    config.write_text(f'secret = "{SECRET}"\nport = 1\npublic = "www"\nseed = 1\n')
    options = ["--port", "0", "--broker-path", "/peers", "--broker-path", "/find"]
    options += ["--broker-timeout", "2.5"]
    async with running(str(config), *options) as server:
        await assert_serves(server.url, SECRET)
        async with open_websocket_channel(f"{server.url}/join?trio-overlay=1") as prospect:
            hello = json.loads(await prospect.receive())
        assert hello["id"] == "143c5677bb8026ada7ad6dbd4a44e705"
        for path in ("", "/", "/broker", "/peers", "/find"):
            async with open_websocket_channel(f"{server.url}{path}") as peer:
                await peer.send('{"id":1,"method":"ping"}')
                assert json.loads(await peer.receive())["result"] == "pong"
        async with open_websocket_channel(server.url) as peer:
            with trio.fail_after(PATIENCE), pytest.raises(trio.EndOfChannel):
                await peer.receive()
            assert peer.close_reason == "nothing was heard for 2.5 s"
        host, port = server.url.removeprefix("ws://").split(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(b"GET /hello.txt HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while chunk := await stream.receive_some():
                answer += chunk
        assert answer.endswith(b"\r\n\r\nhello")


# --- what ships for those who deploy ------------------------------------------------------


async def test_the_procfile_and_app_json_start_a_server_as_they_say() -> None:
    app = json.loads((REPOSITORY / "app.json").read_text())
    [line] = (REPOSITORY / "Procfile").read_text().splitlines()
    kind, _, command = line.partition(": ")
    program, subcommand, *arguments = shlex.split(command)
    assert (kind, program) == ("web", "trio-overlay")
    assert app["formation"][kind]["quantity"] == 1  # of several, each would have its own prospects
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["."]  # what is installed there
    assert app["name"]
    assert app["description"]
    assert [name for name, each in app["env"].items() if each["generator"] == "secret"] == list(
        app["env"]
    )
    # A platform sets what app.json names, and the port.
    environment = {name: f"generated-for-{name}" for name in app["env"]}
    environment["PORT"] = str(free_port())
    async with running(*arguments, program=subcommand, environment=environment) as server:
        assert server.url.endswith(":" + environment["PORT"])
        await assert_serves(server.url, "generated-for-SECRET")
        assert await server.stop() == 0


async def test_the_example_configuration_starts_a_server() -> None:
    path = REPOSITORY / "config.example.json"
    example = json.loads(path.read_text())
    async with running(str(path), "--port", "0") as server:
        await assert_serves(server.url, example["secret"].replace(" ", "%20"))
        assert await server.stop() == 0


# --- what cannot be -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no secret"),
        (["nowhere.json"], "nowhere.json: cannot be read"),
        (["--port", "65536"], "--port"),
        (["--timeout", "-1"], "--timeout"),
    ],
)
def test_a_wrong_configuration_is_named_on_one_line_and_ends_with_2(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.delenv("SECRET", raising=False)
    monkeypatch.delenv("PORT", raising=False)
    assert main(["server", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("trio-overlay: ")
    assert message in said.err
    assert said.err.count("\n") == 1


def test_malformed_configuration_is_named_with_its_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text('{\n  "secret": "x",\n  "port": "http"\n}')
    assert main(["server", str(path)]) == 2
    assert f"{path}, line 3, key 'port'" in capsys.readouterr().err


def test_a_port_in_use_ends_with_2_and_a_hint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["server", "--host", "127.0.0.1", "--port", port]) == 2
    assert "in use by another program" in capsys.readouterr().err
