"""``trio-overlay status``: as a process, and what it draws."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.cli.test_tree import PATIENCE, SECRET, open_server, running
from trio_overlay import Internet, ListeningServer, NodeSnapshot, TreeSnapshot
from trio_overlay.cli import main, status
from trio_overlay.errors import SnapshotFailed
from trio_overlay.nodes.tree import open_tree_node
from trio_overlay.protocol.bootstrap import ROOT_PATH_SUFFIX
from trio_overlay.signaling.bootstrap import open_bootstrap
from trio_overlay.signaling.snapshots import Picture


def snapshot(name: str, parent: str | None, depth: int | None, **more: object) -> NodeSnapshot:
    made = NodeSnapshot(name, parent, depth, 0, 10, 0, None if depth == 0 else 0.012, 200.0, "1.0")
    return replace(made, **more)  # type: ignore[arg-type]


def picture(*nodes: NodeSnapshot, missing: int = 0) -> TreeSnapshot:
    return TreeSnapshot.from_json(map(asdict, nodes), missing)


def drawn(tree: TreeSnapshot, width: int = 80) -> list[str]:
    written = io.StringIO()
    console = Console(file=written, width=width)
    console.print(status.draw(tree, width))
    return [line.rstrip() for line in written.getvalue().splitlines()]


async def ask(
    server: ListeningServer, *more: str, secret: str = SECRET
) -> subprocess.CompletedProcess[bytes]:
    host = server.urls[0].removeprefix("ws://")
    command = [sys.executable, "-m", "trio_overlay", "status", "--host", host, "--secret", secret]
    return await trio.run_process(
        [*command, "--timeout", "60", *more], check=False, capture_stdout=True, capture_stderr=True
    )


# --- the process ----------------------------------------------------------------------------------


@pytest.mark.webrtc
async def test_status_draws_a_tree_of_processes_and_says_it_as_json() -> None:
    async with (
        open_server() as server,
        running(server, "root", "--secret", SECRET, "--max-degree", "1") as root,
        AsyncExitStack() as stack,
    ):
        await root.wait_for("root of 127.0.0.1")
        for name in ("upper", "lower"):
            node = await stack.enter_async_context(
                running(server, "node", "--origin", name, "--max-degree", "1")
            )
            await node.wait_for(f"{name} joined below ")
        lines: list[str] = []
        while sum(" ms" in line for line in lines[1:3]) < 2:
            # A round trip of more than a second, as on a busy machine, is not waited for.
            done = await ask(server)
            assert done.returncode == 0, done.stderr
            lines = done.stdout.decode().splitlines()
            assert "\x1b" not in done.stdout.decode()  # no colour when piped
        assert lines[1].startswith("└── ")
        assert lines[2].startswith("    └── ")
        assert lines[3].startswith("3 nodes, at depth 0: 1, 1: 1, 2: 1; round trips ")
        said: dict[str, Any] = {"missing": None}
        while said["missing"] != 0:  # as is one that the machine lets stand still for seconds
            done = await ask(server, "--json")
            said = json.loads(done.stdout)
        assert [node["depth"] for node in said["nodes"]] == [0, 1, 2]
        assert [line.strip("└─ ").split()[0] for line in lines[:3]] == [
            node["id"][:6] for node in said["nodes"]
        ]
        assert server.server.status()["roots"] == 1  # and it was none of the two askers


async def test_a_tree_of_a_thousand_nodes_comes_whole_over_real_sockets() -> None:
    nodes = [snapshot(f"{0:016x}", None, 0)]
    nodes += [snapshot(f"{n:016x}", f"{(n - 1) // 10:016x}", n) for n in range(1, 1000)]

    async def describe(_: float) -> Picture:
        return Picture([asdict(node) for node in nodes], 0)

    async with (
        open_server() as server,
        open_bootstrap(server.urls[0]) as client,
        client.register(SECRET, describe=describe),
    ):
        done = await ask(server)
        assert done.returncode == 0
        lines = done.stdout.decode().splitlines()
        assert len([line for line in lines if " up 3 m" in line]) == 1000
        assert any(line.startswith("1000 nodes, at depth 0: 1") for line in lines)


async def test_what_goes_wrong_is_one_line_without_the_secret_and_1() -> None:
    async with open_server() as server, open_bootstrap(server.urls[0]) as client:
        wrong_secret = await ask(server, secret="Sesam")

        async def dawdle(_: float) -> Picture:
            await trio.sleep(PATIENCE)
            raise AssertionError

        async with client.register(SECRET, describe=dawdle):
            no_answer = await ask(server, "--timeout", "0.5")
        old_url = f"{server.urls[0]}/{SECRET}{ROOT_PATH_SUFFIX}"
        async with Internet().dial(old_url):
            old_root = await ask(server)
    for done, message in [
        (wrong_secret, "the secret is wrong"),
        (no_answer, "has not answered within 0.5 s"),
        (old_root, "old protocol"),
    ]:
        said = done.stderr.decode()
        assert done.returncode == 1, said
        assert done.stdout == b""
        assert said.startswith("trio-overlay: ")
        assert message in said
        assert said.count("\n") == 1
        assert SECRET not in said
        assert "Sesam" not in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--host", "127.0.0.1:1", "--timeout", "61"), "up to 60 s"),
        (("--host", "h:x"), "no URL of a server"),
        (("--host", "127.0.0.1:1", "--secret", ""), "cannot be empty"),
    ],
)
def test_what_cannot_be_asked_is_a_mistake_of_the_caller(
    more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--secret", SECRET, *more]) == 2
    assert message in capsys.readouterr().err


async def test_the_command_fits_its_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    async with open_server() as server, open_tree_node(server.urls[0]) as root:
        await root.become_root(SECRET)
        for width in (40, 20):
            written = io.StringIO()
            arguments = Namespace(host=server.urls[0], secret=SECRET, timeout=10.0, json=False)
            assert await status.run(arguments, Console(file=written, width=width)) == 0
            lines = written.getvalue().splitlines()
            assert max(map(len, lines)) <= width
            assert lines[0].split()[:2] == [root.id[:6], "0/10"]
        root.close()
        with pytest.raises(SnapshotFailed):
            await status.run(arguments)
    assert capsys.readouterr().out == ""


# --- the drawing ----------------------------------------------------------------------------------


def test_siblings_are_drawn_the_oldest_first_with_what_is_known_of_each() -> None:
    tree = picture(
        snapshot("a" * 8, None, 0, degree=2, max_degree=2, age=90_000.0),
        snapshot("b" * 8, "a" * 8, 1, age=50.0, round_trip_time=0.0123),
        snapshot("c" * 8, "a" * 8, 1, age=5000.0, degree=1, round_trip_time=1.5),
        snapshot("d" * 8, "c" * 8, 2, age=120.0, round_trip_time=None),
    )
    assert drawn(tree) == [
        "aaaaaa  2/2  up 1 d",
        "├── cccccc  1/10  1500 ms  up 1 h",
        "│   └── dddddd  0/10  up 2 m",
        "└── bbbbbb  0/10  12 ms  up 50 s",
    ]
    assert status.describe(tree) == (
        "4 nodes, at depth 0: 1, 1: 2, 2: 1; round trips 756 ms (median) to 1500 ms; version 1.0"
    )


def test_who_is_cut_off_or_has_a_silent_parent_or_another_version_is_seen() -> None:
    tree = picture(
        snapshot("a" * 8, None, 0),
        snapshot("below-silent", "silent-one", 2, version="2.0"),
        snapshot("cut-off-node", None, None, round_trip_time=None),
        missing=1,
    )
    assert sorted(drawn(tree)) == sorted(
        [
            "silent  no answer",
            "└── below-  0/10  12 ms  up 3 m  2.0",
            "aaaaaa  0/10  up 3 m  1.0",
            "cut-of  0/10  cut off  up 3 m  1.0",
        ]
    )
    assert status.describe(tree) == (
        "3 nodes, at depth 0: 1, 2: 1; 1 did not answer; 1 cut off; "
        "round trips 12 ms (median) to 12 ms; version 1.0: 2 nodes; version 2.0: 1 node"
    )


def test_two_that_each_say_they_are_below_the_other_are_both_drawn() -> None:
    tree = picture(
        snapshot("one", "two", 3), snapshot("two", "one", 3), snapshot("self", "self", 1)
    )
    assert drawn(tree) == [
        "self  0/10  12 ms  up 3 m",
        "one  0/10  12 ms  up 3 m",
        "└── two  0/10  12 ms  up 3 m",
    ]


def test_where_a_tree_is_too_deep_it_is_a_table() -> None:
    names = [f"{n:02d}{'x' * 14}" for n in range(13)]
    tree = picture(*(snapshot(n, names[i - 1] if i else None, i) for i, n in enumerate(names)))
    lines = drawn(tree, 40)
    assert lines[0].split() == ["at", "id", "below", "has", "trip", "up"]
    assert lines[1].split() == ["0", "00xxxx", "0/10", "3", "m"]
    assert lines[13].split() == ["12", "12xxxx", "11xxxx", "0/10", "12", "ms", "3", "m"]
    assert len(lines) == 14


def test_ids_are_as_long_as_it_takes_to_tell_them_apart() -> None:
    tree = picture(snapshot("aaaaaaaa1", None, 0), snapshot("aaaaaaaa2", "aaaaaaaa1", 1))
    assert [line.strip("└─ ").split()[0] for line in drawn(tree)] == ["aaaaaaaa1", "aaaaaaaa2"]


names = st.sampled_from([f"{letter}{'0' * 7}" for letter in "abcdefgh"])


@given(st.dictionaries(names, st.none() | names, min_size=1), st.sampled_from([40, 60, 200]))
def test_whatever_nodes_say_of_their_parents_each_is_drawn_once_and_fits(
    parents: dict[str, str | None], width: int
) -> None:
    """Seen at different moments, they can contradict each other in any way."""
    tree = picture(*(snapshot(n, p, 0 if p is None else 1) for n, p in parents.items()))
    lines = drawn(tree, width)
    assert max(map(len, lines)) <= width
    nodes = [line for line in lines if "0/10" in line]
    for name in parents:
        shown: Sequence[str] = [line for line in nodes if name[:6] in line.split("0/10")[0]]
        assert any(line.strip("│├└─ 01").startswith(name[:6]) for line in shown)
    assert len(nodes) == len(parents)
