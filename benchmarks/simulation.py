"""How long a simulated tree takes, and how much memory: ``python -m benchmarks.simulation``.

Each size runs in a process of its own, so that the peak is that size's; give other sizes as
arguments, and options of ``trio-overlay simulate tree`` after ``--``. What counts is the whole
command, from the interpreter's start to the printed table. The target: 1,000,000 nodes in 90 s
and 2 GB on one core, 100,000 in 8 s.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = ("1000", "10000", "100000", "1000000")


def main(arguments: list[str]) -> None:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    sizes, options = arguments[:split], arguments[split + 1 :]
    print(f"{'nodes':>9} {'events':>11} {'wall s':>7} {'CPU s':>7} {'events/s':>9} {'peak MiB':>9}"
          f" {'joined':>9} {'balance':>8} {'depth':>6}")  # fmt: skip
    for size in sizes or SIZES:
        print(measure(size, options), flush=True)


def measure(size: str, options: list[str]) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [sys.executable, "-m", "trio_overlay", "simulate", "tree", "--nodes", size]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started_at = time.perf_counter()
        subprocess.run(
            [*command, *options, "--json", str(path)], check=True, stdout=subprocess.DEVNULL
        )
        wall = time.perf_counter() - started_at
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        report = json.loads(path.read_text())["report"]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # The largest child so far: sizes that grow give each its own.
    peak = after.ru_maxrss / 1024
    return (
        f"{int(size):>9,} {report['events']:>11,} {wall:>7.1f} {cpu:>7.1f} "
        f"{report['events'] / wall:>9,.0f} {peak:>9,.0f} {report['joined']:>9,} "
        f"{report['depths']['balance']:>8.4f} {report['depths']['mean']:>6.2f}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
