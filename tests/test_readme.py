"""What the README shows is what the programs do."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from trio_overlay import ListeningServer, serve_signaling

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
NAMES = ["tree_root.py", "tree_node.py", "peers.py", "relays.py"]
"""The examples that the programs are, in the same order."""


def program(text: str, server: ListeningServer) -> list[str]:
    """The command that runs *text* as printed, but for the server's address."""
    assert "127.0.0.1:5000" in text
    return [sys.executable, "-c", text.replace("127.0.0.1:5000", server.urls[0])]


@asynccontextmanager
async def open_server(secret: str) -> AsyncIterator[ListeningServer]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(functools.partial(serve_signaling, secret, port=0))
        nursery.cancel_scope.cancel()


def test_programs_are_the_examples_and_short() -> None:
    for text, name in zip(PROGRAMS, NAMES, strict=True):
        assert (PROJECT / "examples" / name).read_text(encoding="utf-8").endswith(text)
        assert len(text.splitlines()) < 20


@pytest.mark.webrtc
async def test_root_and_node_run_as_printed() -> None:
    with trio.fail_after(180):
        async with open_server("swordfish") as server, trio.open_nursery() as nursery:
            root, node = (program(text, server) for text in PROGRAMS[:2])
            nursery.start_soon(trio.run_process, root)
            # The node's request waits for the root, should that come later.
            result = await trio.run_process(node, capture_stdout=True)
            assert result.stdout == b"the parent says pong\n"
            nursery.cancel_scope.cancel()


@pytest.mark.webrtc
async def test_peers_meet_as_printed() -> None:
    with trio.fail_after(180):
        async with open_server("swordfish") as server:
            command = program(PROGRAMS[NAMES.index("peers.py")], server)
            result = await trio.run_process(command, capture_stdout=True)
    assert result.stdout.decode() == "ada says {'question': 'are you there?'}\nbob answers b'yes'\n"


@pytest.mark.webrtc
async def test_relays_talk_as_printed() -> None:
    with trio.fail_after(180):
        command = [sys.executable, "-c", PROGRAMS[NAMES.index("relays.py")]]
        result = await trio.run_process(command, capture_stdout=True)
    assert result.stdout == b"ada says are you there?\n"


@pytest.mark.webrtc
def test_demo_prints_what_the_readme_shows() -> None:
    command = [sys.executable, "-m", "trio_overlay", "demo"]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=180,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    shown = README.split("$ trio-overlay demo\n")[1].split("```")[0].splitlines()
    assert lines[0] == shown[0]
    assert len(lines) == len(shown) == 23
    nodes = re.compile(r"(n\d+)  depth (\d)$")
    for drawn in (lines, shown):
        found = [nodes.search(line) for line in drawn[2:-1]]
        assert {match[1] for match in found if match} == {f"n{number}" for number in range(1, 21)}
        assert drawn[1] == "root"
        assert re.fullmatch(r"20 of 20 joined in \d+\.\d s; nodes at depth 1: 4, 2: .*", drawn[-1])
    assert "\x1b" not in result.stdout  # no colour when piped


@pytest.mark.webrtc
@pytest.mark.parametrize(("name", "expected"), [("heavy_traffic.py", r"21 MB in \d+\.\d s\n")])
def test_example_runs(name: str, expected: str) -> None:
    command = [sys.executable, str(PROJECT / "examples" / name)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(expected, result.stdout)


async def test_embedded_server_serves_a_handler_of_its_own() -> None:
    from trio_overlay import Internet

    command = [sys.executable, "-u", str(PROJECT / "examples" / "embedded_server.py")]
    with trio.fail_after(180):
        async with trio.open_nursery() as nursery:
            process = await nursery.start(
                functools.partial(trio.run_process, command, stdout=subprocess.PIPE)
            )
            line = b""
            while not line.endswith(b"\n"):  # unbuffered, it comes a word at a time
                line += await process.stdout.receive_some()
            url = line.decode().split()[-1]
            async with Internet().dial(url) as channel:
                await channel.send("hello")
                assert await channel.receive() == "hello"
            nursery.cancel_scope.cancel()
