"""The examples of neighbours run: three in one process, and two whose lines are pasted by hand."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio

pytestmark = pytest.mark.webrtc

EXAMPLES = Path(__file__).parent.parent / "examples"
PATIENCE = 180.0


def test_peer_in_the_middle_introduces_the_other_two() -> None:
    command = [sys.executable, str(EXAMPLES / "neighbours.py")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "ann-O says {'hello': 'bob'}\n"


class ByHand:
    """One of the two programs, and the hand that carries its lines."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._rest = b""

    async def read_line(self) -> str:
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            chunk = await self._process.stdout.receive_some()
            assert chunk, "it has ended"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    async def type_line(self, line: str) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(line.encode() + b"\n")

    async def end_input(self) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.aclose()


async def test_offer_that_is_printed_and_pasted_connects_two_programs() -> None:
    command = [sys.executable, str(EXAMPLES / "neighbours_by_hand.py")]
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            programs = []
            for role in ("offer", "answer"):
                run = functools.partial(
                    trio.run_process,
                    [*command, role],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    capture_stderr=True,
                )
                programs.append(ByHand(await nursery.start(run)))
            offering, answering = programs
            offer = await offering.read_line()
            assert json.loads(offer)["type"] == "MRequest"
            await answering.type_line(offer)
            answer = await answering.read_line()
            assert json.loads(answer)["type"] == "MResponse"
            await offering.type_line(answer)
            assert await offering.read_line() == "connected to answer-I"
            assert await answering.read_line() == "connected to offer-O"
            await answering.type_line("hello")
            assert await offering.read_line() == "answer-I says hello"
            await offering.type_line("and hello to you")
            assert await answering.read_line() == "offer-O says and hello to you"
            await offering.end_input()  # both programs end, and well: the nursery waits for that
