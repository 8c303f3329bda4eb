"""``trio-overlay root`` and ``node`` as processes, and ``demo`` when a node does not join."""

from __future__ import annotations

import codecs
import functools
import io
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from rich.console import Console

from tests.processes import open_process
from trio_overlay import JoinTimeout, ListeningServer, serve_signaling
from trio_overlay.cli import demo, main, tree
from trio_overlay.nodes.tree import TreeNode

SECRET = "swordfish"
PATIENCE = 120


@asynccontextmanager
async def open_server() -> AsyncIterator[ListeningServer]:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            yield await nursery.start(
                functools.partial(serve_signaling, SECRET, host="127.0.0.1", port=0)
            )
            nursery.cancel_scope.cancel()


class Program:
    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._said = ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode  # as chunks come

    async def wait_for(self, text: str) -> None:
        """Read on until it has said *text*; what came before counts for nothing any more."""
        while text not in self._said:
            assert self._process.stdout is not None
            chunk = await self._process.stdout.receive_some()
            assert chunk, f"it ended, and never said {text!r}; at last it said {self._said!r}"
            self._said += self._decode(chunk)
        self._said = self._said.partition(text)[2]

    async def read_line(self) -> str:
        """The rest of the line up to which it was waited for."""
        said = self._said
        while "\n" not in said:
            assert self._process.stdout is not None
            said += self._decode(await self._process.stdout.receive_some())
        line, _, self._said = said.partition("\n")
        return line

    async def stop(self, number: int) -> int:
        self._process.send_signal(number)
        return await self._process.wait()


class Lines(io.StringIO):
    """What is printed here can be waited for, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self._send, self._receive = trio.open_memory_channel[str](1000)

    def write(self, text: str) -> int:
        for line in text.splitlines():
            self._send.send_nowait(line)
        return len(text)

    async def next(self) -> str:
        return await self._receive.receive()


@asynccontextmanager
async def running(server: ListeningServer, *arguments: str) -> AsyncIterator[Program]:
    host = server.urls[0].removeprefix("ws://")
    command = [sys.executable, "-u", "-m", "trio_overlay", *arguments, "--host", host]
    async with open_process(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        yield Program(process)


@pytest.mark.webrtc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_root_and_nodes_ping_answer_and_leave_cleanly(number: int) -> None:
    async with (
        open_server() as server,
        running(server, "root", "--secret", SECRET, "--max-degree", "1") as root,
    ):
        await root.wait_for("root of 127.0.0.1")
        async with running(server, "node", "--origin", "upper", "--max-degree", "1") as upper:
            await upper.wait_for("upper joined below ")
            await root.wait_for('"upper"')  # its answer to the root's ping
            await upper.wait_for('parent: "ping"')
            async with running(server, "node", "--origin", "lower") as lower:
                await lower.wait_for("lower joined below ")
                await upper.wait_for('"lower"')
                assert await upper.stop(number) == 0
                # It does not end with its parent, but finds another.
                await lower.wait_for("is gone: ")
                await lower.wait_for("lower joined below ")
                await root.wait_for('"lower"')
                assert await root.stop(number) == 0
                await lower.wait_for("is gone: ")
                assert await lower.stop(number) == 0


@pytest.mark.webrtc
async def test_a_second_root_says_that_it_stands_by_and_when_it_takes_over() -> None:
    async with open_server() as server, trio.open_nursery() as nursery:
        arguments = Namespace(host=server.urls[0], secret=SECRET, max_degree=2, takeover=False)
        first, second = Lines(), Lines()
        scope = trio.CancelScope()

        async def be_root(lines: Lines) -> None:
            await tree.run_root(arguments, Console(file=lines, width=200))

        async def be_root_for_a_while() -> None:
            with scope:
                await be_root(first)

        nursery.start_soon(be_root_for_a_while)
        assert await first.next() == f"root of {server.urls[0]}"
        nursery.start_soon(be_root, second)
        assert await second.next() == f"{server.urls[0]} has another root: standing by"
        assert (await second.next()).startswith("standing by below ")
        scope.cancel()
        said = [await second.next()]
        while said[-1] != f"root of {server.urls[0]}":
            said.append(await second.next())
        # The server may be quicker to say who the root is than the former one to take its leave.
        reasons = ("is gone: the node left", "is gone: this node is the root")
        assert any(line.endswith(reasons) for line in said), said
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("secret", "port", "message"), [("wrong", None, "refused"), (SECRET, 1, "cannot be reached")]
)
async def test_what_goes_wrong_is_one_line_and_1(
    secret: str, port: int | None, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with open_server() as server:
        host = f"127.0.0.1:{port or server.port}"
        command = [sys.executable, "-m", "trio_overlay", "root", "--host", host]
        done = await trio.run_process([*command, "--secret", secret], check=False)
    said = capfd.readouterr().err
    assert done.returncode == 1
    assert said.startswith("trio-overlay: ")
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", [["root", "--secret", "x"], ["node", "--origin", "x"]])
def test_what_is_no_server_is_a_mistake_of_the_caller(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--host", "host:notaport"]) == 2
    assert "no URL of a server" in capsys.readouterr().err


@pytest.mark.webrtc
async def test_demo_fits_its_terminal_and_says_who_did_not_join(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    join = TreeNode.join
    count_joins = 0

    async def join_unless_third(node: TreeNode) -> object:
        nonlocal count_joins
        count_joins += 1
        if count_joins == 3:
            raise JoinTimeout("the time is over")
        return await join(node)

    monkeypatch.setattr(TreeNode, "join", join_unless_third)
    written = io.StringIO()
    console = Console(file=written, width=40, highlight=False)
    with trio.fail_after(PATIENCE):
        assert await demo.run(Namespace(nodes=5, max_degree=2), console) == 1
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    assert "4 of 5 joined in" in written.getvalue()
    assert lines[-1].endswith(" did not join: the time is over")


@pytest.mark.parametrize("width", [30, 80, 200])
def test_a_tree_too_deep_for_the_terminal_loses_nobody(width: int) -> None:
    names = [f"n{number}" for number in range(1, 21)]
    members = [demo.Member(name) for name in names]
    for depth, member in enumerate(members, 1):
        member.place(["root", *names[:depth]])
    written = io.StringIO()
    Console(file=written, width=width).print(demo.draw_tree(members, width))
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    shown = [line.lstrip(" └─") for line in lines if line.strip() != "root"]
    if width < 200:
        above = ["root", *names]
        expected = [f"{n}  depth {i}  below {above[i - 1]}" for i, n in enumerate(names, 1)]
    else:
        expected = [f"{name}  depth {depth}" for depth, name in enumerate(names, 1)]
    assert [line.rstrip() for line in shown] == expected
