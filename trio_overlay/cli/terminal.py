"""How commands write to a terminal, and to what is none."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def plain_console() -> Console:
    """Where lines go whole, whatever is in them: what strangers send is no markup."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def count_progress(console: Console, *, auto_refresh: bool = True) -> Progress:
    """A bar that counts up to a total, as wide as there is room; nothing where no terminal is."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        auto_refresh=auto_refresh,
    )
