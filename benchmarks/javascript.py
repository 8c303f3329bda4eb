"""The JavaScript stack, measured: runs the Node scripts beside this file.

They use the packages of tests/interop (``npm ci --ignore-scripts`` there).
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

from benchmarks.measure import Figures

HERE = Path(__file__).parent


class NotInstalled(Exception):
    """Node or the packages are missing; the message says what to do."""


def join(nodes: int, *, at_once: int, max_degree: int, timeout: float) -> Figures:
    """The original's server, a root and *nodes* that join, *at_once* of them at a time.

    All in one process of its own. One that dies, as it does when its native stack runs out of
    sockets, joined nobody; `Figures.remark` has its last words.

    NotInstalled: as its name says.
    """
    node = shutil.which("node") or shutil.which("nodejs")
    if node is None:
        raise NotInstalled("Node is not installed")
    if not (HERE.parent / "tests" / "interop" / "node_modules").exists():
        raise NotInstalled("run npm ci --ignore-scripts in tests/interop")
    arguments = [str(nodes), str(at_once), str(max_degree), str(round(timeout * 1000))]
    command = [node, str(HERE / "join.js"), *arguments]
    name = f"JavaScript, {at_once} at once"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=timeout + 60
        )
    except subprocess.TimeoutExpired:
        return Figures(name, nodes, remark="it hung")
    if done.returncode != -signal.SIGKILL or not done.stdout.strip():  # so it ends when all is well
        said = [line for line in done.stderr.splitlines() if "rror" in line or "open files" in line]
        remark = f"it died ({done.returncode}): {said[-1].strip() if said else 'no word'}"
        return Figures(name, nodes, remark=remark)
    figures = json.loads(done.stdout.splitlines()[-1])
    return Figures(
        name,
        nodes,
        joined=figures["joined"],
        seconds=figures["seconds"],
        cpu_seconds=figures["cpu_ms"] / 1000,
        peak_memory=figures["peak_kib"] * 1024,
    )
