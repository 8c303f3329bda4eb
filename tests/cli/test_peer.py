"""``trio-overlay peer``: the chat, with real WebRTC between two processes."""

from __future__ import annotations

import codecs
import io
import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from rich.console import Console

from tests.cli.test_tree import PATIENCE, Program, open_server
from tests.processes import open_process
from trio_overlay import open_peer
from trio_overlay.cli import main
from trio_overlay.cli.peer import Lines, in_print, run_peer


@asynccontextmanager
async def running(url: str, name: str) -> AsyncIterator[tuple[Program, trio.abc.SendStream]]:
    command = [sys.executable, "-u", "-m", "trio_overlay", "peer", name, "--broker", url]
    async with open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdin is not None
        yield Program(process), process.stdin


@pytest.mark.webrtc
async def test_two_people_chat_and_leave_each_in_their_own_way() -> None:
    async with open_server() as server:
        url = server.urls[0]
        async with running(url, "bob") as (bob, _), running(url, "ada") as (ada, keyboard):
            await ada.wait_for("registered as ada\n")
            await bob.wait_for("registered as bob\n")
            await keyboard.send_all("@bob hello, Bøb\n\nand again\n@eve hi\n".encode())
            await bob.wait_for("ada connected\n")
            await bob.wait_for("ada: hello, Bøb\nada: and again\n")
            await ada.wait_for("not said to eve: no peer is registered by the id 'eve'\n")
            await keyboard.send_all(b"@bob the last words")
            await keyboard.aclose()
            await bob.wait_for("ada: the last words\n")
            await bob.wait_for("ada is gone: ")
            assert await ada.stop(0) == 0  # it has ended by itself, with its input
            assert await bob.stop(signal.SIGTERM) == 0


TAKE_THE_TERMINAL = """\
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "trio_overlay", *sys.argv[1:]])
"""


@asynccontextmanager
async def in_a_terminal(url: str, name: str) -> AsyncIterator[tuple[trio.Process, Screen]]:
    """``trio-overlay peer`` as somebody has it who types: its input echoes, and has keys."""
    import pty  # not on Windows

    controller, terminal = pty.openpty()
    command = [sys.executable, "-c", TAKE_THE_TERMINAL, "peer", name, "--broker", url]
    ends = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    async with trio.lowlevel.FdStream(controller) as stream, AsyncExitStack() as stack:
        try:
            process = await stack.enter_async_context(
                open_process(command, **ends, start_new_session=True)
            )
        finally:
            os.close(terminal)
        yield process, Screen(stream)


class Screen:
    """The other side of a terminal: what stands there, and the keyboard."""

    def __init__(self, stream: trio.lowlevel.FdStream) -> None:
        self.shown = ""
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8")().decode  # as chunks come

    async def wait_for(self, text: str) -> None:
        with trio.fail_after(PATIENCE):
            while text not in self.shown:
                self.shown += self._decode(await self._stream.receive_some())

    async def type(self, keys: str) -> None:
        await self._stream.send_all(keys.encode())


@pytest.mark.webrtc
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("last_key", ["\x03", "\x04"], ids=["ctrl-c", "ctrl-d"])
async def test_in_a_terminal_lines_can_be_edited_and_ctrl_c_and_ctrl_d_end_it(
    last_key: str,
) -> None:
    async with open_server() as server:
        url = server.urls[0]
        async with open_peer("ada", url) as ada, in_a_terminal(url, "bob") as (process, screen):
            await screen.wait_for("registered as bob\r\n")
            await screen.type("@ada hellp\x7fo\n")  # with a slip, taken back
            with trio.fail_after(PATIENCE):
                message = await ada.messages.receive()
            assert (message.sender, message.data) == ("bob", "hello")
            await message.connection.send("\x1b[31mred")
            await screen.wait_for("ada: \ufffd[31mred\r\n")
            await screen.type("half a line" if last_key == "\x03" else "")
            await screen.type(last_key)
            with trio.fail_after(PATIENCE):
                assert await process.wait() == 0
            assert "Traceback" not in screen.shown


class Page(io.StringIO):
    """What a console writes to, and a test waits for."""

    def __init__(self) -> None:
        super().__init__()
        self._grown = trio.Event()

    def write(self, text: str) -> int:
        self._grown.set()
        return super().write(text)

    async def wait_for(self, text: str) -> None:
        while text not in self.getvalue():
            self._grown = trio.Event()
            await self._grown.wait()


@pytest.mark.webrtc
async def test_whatever_a_peer_sends_is_one_line_that_does_nothing_to_a_terminal() -> None:
    written = Page()
    console = Console(file=written, width=200, highlight=False)
    has_come = trio.Event()

    async def lines() -> Lines:
        yield "to nobody"
        yield "@ada hello"
        await has_come.wait()

    async with open_server() as server:
        arguments = Namespace(id="bob", broker=server.urls[0])
        async with open_peer("ada", server.urls[0]) as ada, trio.open_nursery() as nursery:
            nursery.start_soon(run_peer, arguments, console, lines())
            hello = await ada.messages.receive()
            assert (hello.sender, hello.data) == ("bob", "hello")
            connection = hello.connection
            for message in ("\x1b[2J\n", {"a": 1}, b"\x00\x01", "[red]x"):
                await connection.send(message)
            await connection.aclose()
            with trio.fail_after(PATIENCE):
                await written.wait_for("ada is gone")
            has_come.set()
    said = written.getvalue()
    assert "to say something to a peer: @ID TEXT\n" in said
    for line in ("ada: \ufffd[2J\ufffd\n", 'ada: {"a":1}\n', "ada: 2 bytes\n"):
        assert line in said


def test_print_is_print() -> None:
    assert in_print("a\tb\x00") == "a\ufffdb\ufffd"
    assert in_print(None) == "null"


def test_what_goes_wrong_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["peer", "ada", "--broker", "127.0.0.1:1"]) == 1
    assert main(["peer", "a\nb", "--broker", "127.0.0.1:1"]) == 2
    assert main(["peer", "ada", "--broker", "host:notaport"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 3
    assert said.startswith("trio-overlay: ")
