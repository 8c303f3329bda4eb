"""The JavaScript originals by themselves: what the other tests here stand on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.interop.node import (
    PATIENCE,
    VARIANTS,
    NodeCrashed,
    NodeFailed,
    NodeProcess,
    open_node_process,
    open_original_server,
    require_originals,
    runs_originals,
)
from trio_overlay.protocol.branch import Branch, hash_place

pytestmark = runs_originals


@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
async def test_client_and_root_talk_both_ways(variant: tuple[str, ...]) -> None:
    async with open_original_server() as host, open_node_process("client.js", host, *variant) as js:
        await js.send("root", secret="secret")
        await js.wait_for("root")
        await js.send("connect", peer="joiner")
        origin = (await js.wait_for("request"))["origin"]
        await js.wait_for("connect", peer="joiner")
        await js.wait_for("connect", peer=origin)
        await js.send("send", peer="joiner", data="ping ✓")
        await js.wait_for("data", peer=origin, data="ping ✓")
        await js.send("send", peer=origin, base64="AP//")
        await js.wait_for("data", peer="joiner", base64="AP//")
        await js.send("destroy", peer="joiner")
        await js.wait_for("close", peer=origin)


async def test_tree_delegates_to_the_child_of_a_full_root() -> None:
    async with open_original_server() as host, open_node_process("tree.js", host) as js:
        await js.send("root", node="root", secret="secret", maxDegree=1)
        await js.wait_for("root")
        await js.send("join", node="middle", maxDegree=1)
        await js.wait_for("parent-connect", node="middle")
        await js.wait_for("child-connect", node="root")
        await js.send("join", node="leaf", maxDegree=1)
        await js.wait_for("parent-connect", node="leaf")
        leaf = (await js.wait_for("child-connect", node="middle"))["id"]
        await js.send("send", node="middle", to=leaf, data={"n": [1, None]})
        await js.wait_for("data", node="leaf", source="parent", data={"n": [1, None]})
        await js.send("state", node="middle")
        state = await js.wait_for("state", node="middle")
        assert state["children"] == [leaf]
        assert state["parent"]


async def connect_pair(js: NodeProcess) -> str:
    await js.send("root", node="root", secret="secret", maxDegree=1)
    await js.wait_for("root")
    await js.send("join", node="child", maxDegree=1)
    await js.wait_for("parent-connect", node="child")
    child = (await js.wait_for("child-connect", node="root"))["id"]
    assert isinstance(child, str)
    return child


async def test_a_tree_node_that_throws_on_an_unknown_frame_fails_the_test() -> None:
    async with open_original_server() as host:
        with pytest.raises(NodeFailed, match="Invalid message type"):
            async with open_node_process("tree.js", host) as js:
                child = await connect_pair(js)
                await js.send("raw", node="root", to=child, frame='{"type":"HEARTBEAT"}')
                await trio.sleep_forever()  # the death of the process must end this


async def test_a_death_that_nobody_waits_for_fails_the_test_all_the_same() -> None:
    with pytest.raises(NodeFailed, match="unknown command"):
        async with open_node_process("server.js") as server:
            await server.wait_for("listening")
            await server.send("nonsense")


async def test_a_killed_process_is_no_failure() -> None:
    async with open_node_process("server.js") as server:
        await server.wait_for("listening")
        server.kill()
        with pytest.raises(AssertionError, match=r"no .*never"):
            await server.wait_for("never")


async def test_an_event_that_does_not_come_is_told_with_those_that_did() -> None:
    async with open_node_process("server.js") as server:
        with trio.fail_after(PATIENCE):
            while not server.unread:  # noqa: ASYNC110 - what it says has no event
                await trio.sleep(0.05)
        with pytest.raises(AssertionError, match=r"no .*nothing.*listening"):
            await server.wait_for("nothing", timeout=0.1)


async def test_a_crash_of_native_code_is_told_from_a_failure() -> None:
    with pytest.raises(NodeCrashed):
        async with open_node_process("server.js") as server:
            await server.wait_for("listening")
            os.kill(server.pid, signal.SIGSEGV)
            await trio.sleep_forever()


DELEGATING = """
const Node = require('webrtc-tree-overlay')
const origins = JSON.parse(require('fs').readFileSync(0, 'utf8'))
const node = { id: '123456', maxDegree: 1000, _log () {} }
const places = origins.map(origin => Node.prototype._delegateIndex.call(node, { origin }))
console.log(JSON.stringify(places))
"""


def test_any_origin_is_delegated_to_the_same_place_as_by_the_original() -> None:
    rng = random.Random(5)
    alphabet = "0019afAFgxxX+-_ \t\v\x1c\x85\xa0\u0661\u180e\u2028\ufeff\U0001d7ce"
    origins = ["".join(rng.choices(alphabet, k=rng.randrange(9))) for _ in range(20_000)]
    ran = subprocess.run(
        [require_originals(), "-e", DELEGATING],
        cwd=Path(__file__).parent,
        input=json.dumps(origins),
        capture_output=True,
        text=True,
        check=True,
    )
    branch: Branch[str] = Branch(123_456, 1000)
    assert json.loads(ran.stdout) == [hash_place(branch, origin) for origin in origins]


CRASHING = """
import os, signal, trio
from tests.interop.node import open_node_process, runs_originals

pytestmark = runs_originals
began = 0

async def test_it():
    global began
    began += 1
    async with trio.open_nursery(), open_node_process("server.js") as server:
        await server.wait_for("listening")
        if began <= {crashes}:
            os.kill(server.pid, signal.SIGSEGV)
            await trio.sleep_forever()
        {then}
"""


@pytest.mark.parametrize(
    ("crashes", "then", "outcome"),
    [
        (2, "pass", "1 passed, 2 rerun"),
        (3, "pass", "1 failed, 2 rerun"),
        (0, "assert 0", "1 failed"),
    ],
    ids=["crashes twice", "crashes always", "fails"],
)
def test_a_test_is_run_again_after_a_crash_and_after_nothing_else(
    tmp_path: Path, crashes: int, then: str, outcome: str
) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(CRASHING.format(crashes=crashes, then=then))
    project = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(test)]
    done = subprocess.run(
        [*command, "-c", str(project / "pyproject.toml")],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1].startswith(f"{outcome} in "), done.stdout
