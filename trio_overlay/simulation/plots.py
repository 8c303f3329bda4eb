"""Pictures, by matplotlib, which is imported only when one is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trio_overlay.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require_matplotlib() -> None:
    """Nothing, if plots can be drawn.

    UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "plots need matplotlib: install the extra, pip install 'trio-overlay[plot]'"
        ) from error


def require_plots(path: Path) -> None:
    """Nothing, if a plot can be drawn to *path*, by its suffix.

    UsageError: matplotlib is not installed, or does not know the format.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    _kind_of(path, Figure())


def new_figure(title: str, *, width: float = 9, height: float = 9) -> Figure:
    """A figure of *width* by *height* inches to draw on.

    UsageError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    # Without pyplot there is no window, no backend and no state of the program that changes.
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write *figure* to *path*; its suffix (.svg, .png, .pdf) says in which format.

    The same figure gives the same SVG. UsageError: matplotlib does not know the format, or the
    file cannot be written.
    """
    import matplotlib

    kind = _kind_of(path, figure)
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "trio-overlay", "svg.fonttype": "none"}):
        try:
            figure.savefig(path, format=kind, metadata=metadata)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error}") from error


def _kind_of(path: Path, figure: Figure) -> str:
    kind = path.suffix.removeprefix(".") or "svg"
    if kind not in figure.canvas.get_supported_filetypes():
        raise UsageError(f"no plot can be a .{kind}: .svg, .png and .pdf can")
    return kind
