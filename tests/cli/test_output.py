"""A command whose stdout is full, or has lost its reader, ends with 1 and without a traceback."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict

import pytest
import trio

from trio_overlay.cli import main
from trio_overlay.cli.output import OutputFailed, watched_output
from trio_overlay.protocol.json import encode_json
from trio_overlay.signaling.config import ServerConfiguration

SIMULATE = ("simulate", "tree", "--nodes", "3")
GIVEN = [
    pytest.param(("demo", "--nodes", "1"), marks=pytest.mark.webrtc, id="demo"),
    pytest.param(SIMULATE, id="simulate"),
    pytest.param(("server", "--help"), id="help"),
]


@contextmanager
def full_disk() -> Iterator[int]:
    """A file that has no room: its descriptor."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    number = os.open("/dev/full", os.O_WRONLY)
    yield number
    os.close(number)


@contextmanager
def broken_pipe() -> Iterator[int]:
    """A pipe that nobody reads any more: its descriptor."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize(
    ("unwritable", "said"),
    [
        (full_disk, "trio-overlay: stdout cannot be written: No space left on device\n"),
        (broken_pipe, ""),
    ],
    ids=["full", "pipe"],
)
def test_a_stdout_that_cannot_be_written_is_1_and_a_line_unless_its_reader_has_gone(
    unwritable: Callable[[], AbstractContextManager[int]],
    said: str,
    given: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with unwritable() as number, open(number, "w", closefd=False) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(given) == 1
    assert capfd.readouterr().err == said


@pytest.mark.parametrize(
    ("unwritable", "count_lines"), [(full_disk, 1), (broken_pipe, 0)], ids=["full", "pipe"]
)
def test_the_interpreter_has_nothing_to_add_when_it_ends(
    unwritable: Callable[[], AbstractContextManager[int]], count_lines: int
) -> None:
    command = [sys.executable, "-m", "trio_overlay", *SIMULATE]
    # Buffered, as it is by default: something is left to be written at the end.
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    with unwritable() as stdout:
        done = subprocess.run(
            command, stdout=stdout, stderr=subprocess.PIPE, env=environment, check=False
        )
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == count_lines


@pytest.mark.skipif(sys.platform == "win32", reason="no SO_REUSEPORT")
@pytest.mark.parametrize(
    ("unwritable", "said"),
    [
        (full_disk, b"trio-overlay: stdout cannot be written: No space left on device\n"),
        (broken_pipe, b""),
    ],
    ids=["full", "pipe"],
)
def test_a_worker_whose_parent_does_not_hear_that_it_is_ready_ends_like_a_command(
    unwritable: Callable[[], AbstractContextManager[int]], said: bytes
) -> None:
    configuration = ServerConfiguration(
        host="127.0.0.1", port=0, secret="swordfish", log_level="error"
    )
    with unwritable() as stdout:
        worker = subprocess.Popen(
            [sys.executable, "-m", "trio_overlay.cli.worker", "0"],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )
        with worker:
            assert worker.stdin is not None
            assert worker.stderr is not None
            worker.stdin.write(f"{encode_json(asdict(configuration))}\n".encode())
            worker.stdin.flush()  # and stays open: it ends for no other reason
            assert worker.stderr.read() == said
            assert worker.wait() == 1


def test_a_stdout_that_was_never_there_is_as_good(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(SIMULATE) == 0
    assert capfd.readouterr() == ("", "")


class Unwritable(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.EIO, f"no luck with {text}")


def test_it_leaves_as_itself_when_several_tasks_meet_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Unwritable())

    async def say() -> None:
        sys.stdout.write("something")

    async def say_in_two_tasks() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say)
            nursery.start_soon(say)

    with pytest.raises(OutputFailed, match="no luck with something") as caught, watched_output():
        trio.run(say_in_two_tasks)
    assert isinstance(caught.value.__cause__, OSError)
    assert isinstance(sys.stdout, Unwritable)


def test_other_errors_are_none_of_its_business(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(OSError, match="elsewhere"), watched_output():
        sys.stdout.write("said before")
        raise OSError(errno.EIO, "elsewhere")
    assert stdout.getvalue() == "said before"
