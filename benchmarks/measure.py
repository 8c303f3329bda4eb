"""What one run of a benchmark gave, and how it is printed beside others."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figures:
    """One run: so many nodes that were to join, in one process."""

    name: str
    nodes: int
    joined: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of the whole process, from the first join to the last."""
    peak_memory: int = 0
    """Bytes, of the whole process."""
    remark: str = ""

    @property
    def failed(self) -> int:
        return self.nodes - self.joined

    @property
    def joins_per_second(self) -> float:
        return self.joined / self.seconds if self.seconds else 0.0

    @property
    def cpu_ms_per_join(self) -> float:
        return self.cpu_seconds * 1000 / self.joined if self.joined else 0.0


def print_beside(ours: Figures, others: list[Figures]) -> None:
    """A table of all runs, and *ours* in proportion to each that joined everybody."""
    table = Table(show_edge=False)
    table.add_column("")
    for heading in ("joined", "failed", "seconds", "joins/s", "CPU ms/join", "peak MiB"):
        table.add_column(heading, justify="right")
    for run in [ours, *others]:
        if run.remark:
            table.add_row(run.name, *[str(run.joined), str(run.failed), *["-"] * 4])
            continue
        table.add_row(
            run.name,
            str(run.joined),
            str(run.failed),
            f"{run.seconds:.2f}",
            f"{run.joins_per_second:.1f}",
            f"{run.cpu_ms_per_join:.1f}",
            f"{run.peak_memory / 2**20:.0f}",
        )
    console = Console()
    console.print(table)
    for run in [ours, *others]:
        if run.remark:
            console.print(f"{run.name}: {run.remark}", highlight=False)
    for other in others:
        if other.joined and not other.failed:
            ratios = (
                f"joins/s {ours.joins_per_second / other.joins_per_second:.2f}",
                f"CPU {ours.cpu_ms_per_join / other.cpu_ms_per_join:.2f}",
                f"memory {ours.peak_memory / other.peak_memory:.2f}",
            )
            console.print(f"ours / {other.name}: {', '.join(ratios)}", highlight=False)
