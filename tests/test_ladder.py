"""The import ladder of the house, read from the sources with `ast`.

    errors <- protocol <- channels <- signaling <- nodes <- cli

Each may import what stands to its left, and its own; left of them all is `web`, files for
browsers. `simulation` and `testing` may import all but `cli`, and only `cli` imports them. No
topology imports another: what two share lives below both. `protocol` is pure: no trio, no I/O, no
clock, no chance but a `Random` passed in.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = "trio_overlay"
SOURCES = Path(__file__).parent.parent / PACKAGE

LADDER = ["web", "errors", "protocol", "channels", "signaling", "nodes", "cli"]
BESIDE = {"simulation", "testing"}
"""They stand beside the ladder, below cli and above everything else."""

TOPOLOGIES = {
    "tree": "tree",
    "branch": "tree",
    "cast": "tree",
    "casting": "tree",
    "filling": "tree",
    "pulling": "tree",
    "ancestry": "tree",
    "broker": "peers by id",
    "peer": "peers by id",
    "neighbours": "neighbours",
    "neighbourhood": "neighbours",
    "neighbour": "neighbours",
    "arcs": "neighbours",
    "sampling": "neighbours",  # spray stands on neighbours
    "buckets": "relay",
    "relay": "relay",
    "datagram": "relay",  # datagrams travel in the relay's messages
}
"""Whose a module of `protocol` or `nodes` is, by its name's first word; the others are shared."""

PURE = {
    "__future__", "abc", "base64", "binascii", "bisect", "collections", "contextlib", "copy",
    "dataclasses", "enum", "functools", "hashlib", "heapq", "hmac", "itertools", "json", "math",
    "operator", "random", "re", "string", "struct", "types", "typing", "typing_extensions",
    "unicodedata", "urllib.parse",
}  # fmt: skip
"""All that `protocol` may import from outside the package. Of `random` it may use only `Random`."""

IMPURE_CALLS = {"open", "print", "input", "breakpoint", "exec", "eval", "__import__"}


def test_every_import_of_the_package_goes_down_the_ladder() -> None:
    modules = {
        module_name(path.relative_to(SOURCES.parent)): path.read_text(encoding="utf-8")
        for path in SOURCES.rglob("*.py")
    }
    assert "trio_overlay.errors" in modules
    assert "trio_overlay.protocol.signals" in modules
    assert violations(modules) == []


ALLOWED = {
    "a step down": ("nodes.tree", "from trio_overlay.errors import JoinTimeout"),
    "its own": ("channels.webrtc", "from trio_overlay.channels.bridge import Bridge"),
    "relative": ("nodes.tree", "from ..channels import network"),
    "signals below the network": (
        "channels.network",
        "from trio_overlay.protocol.signals import Signal",
    ),
    "its topology": ("nodes.sampling", "import trio_overlay.nodes.neighbours"),
    "its topology, a step down": ("nodes.peer", "from trio_overlay.protocol import broker"),
    "what is shared": ("protocol.tree", "from trio_overlay.protocol.bootstrap import SignalFrame"),
    "all, from beside": ("testing.network", "import trio_overlay\nfrom trio_overlay import nodes"),
    "cli takes all": ("cli", "from trio_overlay.simulation import world"),
    "main": ("__main__", "from trio_overlay.cli import main"),
    "public names": ("__init__", "from trio_overlay.nodes.tree import open_tree_node"),
    "pure": ("protocol.json", "import json\nfrom collections.abc import Iterable"),
    "a Random passed in": ("protocol.relay", "from random import Random\nimport random as r"),
    "Random by its module": ("protocol.relay", "import random\nrng = random.Random(1)"),
    "outside, above the protocol": ("channels.webrtc", "import aiortc, time"),
    "a method called open": ("protocol.relay", "table.open()"),
}

PLANTED = {
    "a step up": ("errors", "from trio_overlay.protocol import json"),
    "a long step up": ("protocol.tree", "import trio_overlay.nodes.tree"),
    "up, in a function": (
        "channels.memory",
        "def f() -> None:\n    from trio_overlay.signaling import server",
    ),
    "up, for types only": (
        "signaling.server",
        "if TYPE_CHECKING:\n    from trio_overlay.nodes.tree import TreeNode",
    ),
    "up, relative": ("channels.memory", "from ..nodes import tree"),
    "up, relative from a package": ("channels.__init__", "from ..nodes import tree"),
    "up, by the package's name": ("signaling.server", "from trio_overlay import nodes"),
    "the public names, from within": ("signaling.server", "from trio_overlay import open_peer"),
    "the whole package, from within": ("signaling.server", "import trio_overlay"),
    "cli, from beside": ("testing.network", "from trio_overlay.cli import main"),
    "cli, by the public names": ("__init__", "from trio_overlay.cli import main"),
    "testing, from the ladder": ("nodes.tree", "from trio_overlay.testing import network"),
    "simulation, by the public names": ("__init__", "import trio_overlay.simulation.world"),
    "sideways": ("nodes.tree", "from trio_overlay.nodes.relay import open_relay"),
    "sideways, from the package": ("nodes.tree", "from . import datagram"),
    "sideways, a step down": ("nodes.tree", "from trio_overlay.protocol.neighbours import Arc"),
    "sideways, in the protocol": ("protocol.sampling", "from trio_overlay.protocol import tree"),
    "sideways, a file of several": ("nodes.tree_links", "import trio_overlay.nodes.peer"),
    "a topology, from what is shared": (
        "protocol.signals",
        "from trio_overlay.protocol.tree import Delegate",
    ),
    "off the ladder": ("helpers.things", ""),
    "an import from off the ladder": ("nodes.tree", "import trio_overlay.helpers"),
    "trio in the protocol": ("protocol.tree", "import trio"),
    "a submodule of trio": ("protocol.tree", "from trio.abc import Channel"),
    "a socket": ("protocol.tree", "import socket"),
    "a file": ("protocol.tree", "from pathlib import Path"),
    "the system": ("protocol.tree", "import os.path"),
    "the clock": ("protocol.tree", "import time"),
    "another clock": ("protocol.tree", "from datetime import datetime"),
    "chance": ("protocol.tree", "from random import choice"),
    "all of chance": ("protocol.tree", "from random import *"),
    "chance by its module": ("protocol.tree", "import random\nrandom.shuffle(xs)"),
    "chance under another name": ("protocol.tree", "import random as r\nr.random()"),
    "uuids": ("protocol.tree", "from uuid import uuid4"),
    "secrets": ("protocol.tree", "import secrets"),
    "opening a file": ("protocol.tree", "open('table.json')"),
    "printing": ("protocol.tree", "def f() -> None:\n    print('here')"),
    "requests are no parse": ("protocol.tree", "import urllib.request"),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_goes_down_the_ladder_is_allowed(case: str) -> None:
    module, source = ALLOWED[case]
    assert violations({f"{PACKAGE}.{module}": source}) == []


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_violation_is_found(case: str) -> None:
    module, source = PLANTED[case]
    found = violations({f"{PACKAGE}.{module}": source})
    assert len(found) == 1, found


# --- the reading of it ----------------------------------------------------------------------


def module_name(path: Path) -> str:
    """The dotted name of the file at *path*, which is relative to the package's parent."""
    return ".".join(path.with_suffix("").parts)


def violations(modules: Mapping[str, str]) -> list[str]:
    """What is wrong with *modules* (source by dotted name of the file), one line each, in order.

    A name that is imported from a package counts as a module of it: from the syntax alone,
    nobody can tell.
    """
    found = []
    for file, source in sorted(modules.items()):
        name = file.removesuffix(".__init__")
        if rank(name) is None:
            found.append(f"{name} has no place on the ladder")
            continue
        tree = ast.parse(source, filename=file)
        outside = []
        for imported, line in imports(tree, file):
            if imported.split(".")[0] == PACKAGE:
                problem = inside_problem(name, imported)
                if problem:
                    found.append(f"{name}:{line} imports {imported}: {problem}")
            else:
                outside.append((imported, line))
        if name.split(".")[1:2] == ["protocol"]:
            found += [f"{name}:{line} {problem}" for line, problem in impurities(tree, outside)]
    return found


def inside_problem(importer: str, imported: str) -> str | None:
    """Why *importer* may not import *imported*, both of this package; None if it may."""
    own, other = rank(importer), rank(imported)
    assert own is not None
    if other is None:
        return "that has no place on the ladder"
    own_part, other_part = part(importer), part(imported)
    if own_part == other_part == "":
        return None
    if other_part in BESIDE:
        if own_part not in BESIDE and own_part != "cli":
            return "only cli may"
        return None
    if other > own or (other_part == "" and own_part not in BESIDE and own_part != "cli"):
        return "that is up the ladder"
    own_topology, other_topology = topology(importer), topology(imported)
    if other_topology and own_topology and own_topology != other_topology:
        return f"sideways, from {own_topology} to {other_topology}"
    if other_topology and not own_topology and own_part == other_part:
        return f"what is shared may not need {other_topology}"
    return None


def part(module: str) -> str:
    """The rung of *module*: its part of the package; empty for the package's own names."""
    name = [*module.split("."), ""][1]
    return "cli" if name == "__main__" else name


def rank(module: str) -> int | None:
    """How high *module* stands; None if nobody gave it a place."""
    name = part(module)
    if name in BESIDE or name == "":
        return LADDER.index("nodes")  # what they may import ends below cli
    return LADDER.index(name) if name in LADDER else None


def topology(module: str) -> str | None:
    if part(module) not in ("protocol", "nodes"):
        return None
    name = [*module.split("."), "", ""][2]
    return TOPOLOGIES.get(name.split("_")[0])


def imports(tree: ast.AST, file: str) -> Iterator[tuple[str, int]]:
    """The modules that *tree*, of *file*, imports anywhere in it, with the line of each."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                for alias in names:
                    yield alias.name, node.lineno
            case ast.ImportFrom(module, names, level):
                if level:
                    base = file.split(".")[:-level]
                    module = ".".join([*base, module] if module else base)
                assert module is not None
                if module == PACKAGE or module.startswith(f"{PACKAGE}."):
                    for alias in names:
                        yield inside_target(module, alias.name), node.lineno
                else:
                    yield module, node.lineno


def inside_target(module: str, name: str) -> str:
    """The module meant by ``from module import name``."""
    if module == PACKAGE and name not in {*LADDER, *BESIDE}:
        return PACKAGE  # one of the public names
    return f"{module}.{name}"


def impurities(tree: ast.AST, outside: list[tuple[str, int]]) -> Iterator[tuple[int, str]]:
    """What makes a module of the protocol impure, with its line."""
    for imported, line in outside:
        if imported not in PURE and imported.split(".")[0] not in PURE:
            yield line, f"imports {imported}: the protocol may not"
    names_of_random = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                names_of_random |= {a.asname or a.name for a in names if a.name == "random"}
            case ast.ImportFrom("random", names):
                for alias in names:
                    if alias.name != "Random":
                        yield node.lineno, f"takes random.{alias.name}: only Random is allowed"
    for node in ast.walk(tree):
        match node:
            case ast.Call(ast.Name(name)) if name in IMPURE_CALLS:
                yield node.lineno, f"calls {name}()"
            case ast.Attribute(ast.Name(owner), attribute) if (
                owner in names_of_random and attribute != "Random"
            ):
                yield node.lineno, f"uses random.{attribute}: only Random is allowed"
