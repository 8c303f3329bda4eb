"""``trio-overlay relay`` as processes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.cli.test_tree import Program
from tests.processes import open_process
from trio_overlay.cli import main
from trio_overlay.cli.relay import load_identity
from trio_overlay.errors import UsageError
from trio_overlay.nodes.relay import open_relay

COMMAND = [sys.executable, "-u", "-m", "trio_overlay", "relay"]
PATIENCE = 120


@asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[Program]:
    async with open_process(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        yield Program(process)


async def test_a_relay_prints_peers_and_messages_and_ends_when_told() -> None:
    with trio.fail_after(PATIENCE):
        async with running("0", "--no-webrtc", "--id", "ab" * 20) as program:
            await program.wait_for("relay " + "ab" * 20 + " at ws://127.0.0.1:")
            port = (await program.read_line()).strip()
            async with open_relay(bootstrap=[f"ws://127.0.0.1:{port}"], webrtc=False) as relay:
                await program.wait_for(f"PEER {relay.id} by websocket")
                await relay.send("ab" * 20, {"say": "[bold]hi"}, wait_for_receipt=True)
                await program.wait_for(f'{relay.id}: {{"say":"[bold]hi"}}')
            await program.wait_for(f"peer {relay.id} left")
            assert await program.stop(signal.SIGTERM) == 0


async def test_one_message_is_sent_and_confirmed(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE):
        async with open_relay(port=0, webrtc=False, accepts_unproved=False) as relay:
            send = ["0", str(relay.url), "--no-webrtc", "--send", relay.id, "hello"]
            key = str(tmp_path / "key")
            result = await trio.run_process(
                [*COMMAND, *send, "--identity", key], capture_stdout=True
            )
            assert f"delivered to {relay.id}\n" in result.stdout.decode()
            message = await relay.messages.receive()
            assert (message.data, message.is_proved) == ("hello", True)
            assert message.sender == load_identity(Path(key)).id
            result = await trio.run_process(
                [*COMMAND, *send, "--timeout", "1"], capture_stdout=True, capture_stderr=True,
                check=False,
            )  # fmt: skip
            assert result.returncode == 1
            assert "no receipt" in result.stderr.decode()


def test_an_identity_is_kept_in_a_file_of_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "key"
    identity = load_identity(path)
    assert load_identity(path).id == identity.id
    assert path.stat().st_mode & 0o077 == 0
    for nonsense in ("", "zz", "00" * 31, "ü"):
        path.write_text(nonsense, encoding="utf-8")
        with pytest.raises(UsageError):
            load_identity(path)
    with pytest.raises(UsageError, match="cannot be used"):
        load_identity(tmp_path / "missing" / "key")


@pytest.mark.parametrize(
    "arguments", [["70000"], ["0", "http://x"], ["0", "--id", "12"], ["0", "--announce", "x"]]
)
def test_what_cannot_be_is_said_in_a_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["relay", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_simulate_relay_gives_the_same_json_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for name in ("one", "two"):
        path = tmp_path / name
        arguments = [
            "--nodes",
            "20",
            "--messages",
            "40",
            "--seconds",
            "20",
            "--timeout",
            "20",
            "--churn",
            "0.3",
            "--receipts",
        ]
        assert main(["simulate", "relay", *arguments, "--json", str(path)]) == 0
        texts.append(path.read_text(encoding="utf-8"))
    assert texts[0] == texts[1]
    said = json.loads(texts[0])
    assert said["report"]["delivery"] == 1.0
    assert said["setting"]["nodes"] == 20
    assert re.search(r"delivered .*100\.00 %", capsys.readouterr().out)
    assert main(["simulate", "relay", "--nodes", "1"]) == 2
