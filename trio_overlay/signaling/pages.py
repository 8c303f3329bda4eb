"""What the server's port answers to a browser: a page, static files, and how it is doing.

Pure but for the reading of files, which happens in a worker thread.
"""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final
from urllib.parse import unquote

import trio

from trio_overlay.errors import ConfigurationError
from trio_overlay.protocol.json import encode_json

FRONT_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>trio-overlay signaling server</title>
<style>
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: auto; padding: 2rem 1rem }
</style>
<h1>trio-overlay signaling server</h1>
<p>This server introduces peers of an overlay network to each other; their own connections are
WebRTC, from one to the other.</p>
<p>Newcomers open a WebSocket at <code>/join</code>. How the server is doing:
<a href="/healthz">/healthz</a>.</p>
</html>
"""

_TYPES: Final = {
    # Said here because a system's own table of types may be empty, or wrong.
    ".css": "text/css",
    ".gif": "image/gif",
    ".htm": "text/html",
    ".html": "text/html",
    ".ico": "image/vnd.microsoft.icon",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".json": "application/json",
    ".map": "application/json",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".wasm": "application/wasm",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
    ".xml": "application/xml",
}
_TEXTUAL: Final = {"application/json", "application/xml", "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Page:
    """An answer to a GET; the caller closes `file`."""

    status: int
    content_type: str
    size: int
    body: bytes = b""
    file: BinaryIO | None = None
    """Where there is one, the body is its first `size` bytes."""


class Pages:
    """Everything that is not a WebSocket.

    *public* is a directory of static files, or None; an ``index.html`` in it wins over our own
    page. *status* gives what ``/healthz`` says.

    ConfigurationError: *public* is no directory that can be read.
    """

    def __init__(
        self, status: Callable[[], dict[str, Any]], public: str | os.PathLike[str] | None = None
    ) -> None:
        self._status = status
        self._public: Path | None = None
        if public is not None:
            try:
                self._public = Path(public).resolve(strict=True)
                os.scandir(self._public).close()
            except (OSError, RuntimeError, ValueError) as error:
                raise ConfigurationError(
                    f"public: {os.fspath(public)!r} is no directory that can be read: {error}"
                ) from error

    async def get(self, path: str) -> Page:
        """The answer to a GET of *path*, still percent-encoded, without the query."""
        if path == "/healthz":
            return text_page(200, encode_json(self._status()) + "\n", "application/json")
        if self._public is not None:
            page = await trio.to_thread.run_sync(_open_static, self._public, path)
            if page is not None:
                return page
        if path in ("/", "/index.html"):
            return text_page(200, FRONT_PAGE, "text/html")
        return text_page(404, "nothing is here\n")


def text_page(status: int, text: str, content_type: str = "text/plain") -> Page:
    body = text.encode("utf-8")
    return Page(status, _with_charset(content_type), len(body), body)


def content_type_of(name: str) -> str:
    """The media type of a file by its *name*, with a charset where it is text."""
    suffix = PurePosixPath(name).suffix.lower()
    kind = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    return _with_charset(kind)


def _open_static(public: Path, path: str) -> Page | None:
    """The file under *public* that *path* names; None when there is none to be seen.

    What is outside *public*, by ``..``, by an absolute path or by a symbolic link, is not there;
    nor is what begins with a dot (``.git``, ``.env``).
    """
    try:
        names = [name for name in unquote(path, errors="strict").split("/") if name]
    except UnicodeDecodeError:
        return None
    if any(name.startswith(".") or "\\" in name or "\0" in name or ":" in name for name in names):
        return None
    try:
        wanted = public.joinpath(*names).resolve(strict=True)
        if wanted.is_dir():
            wanted = (wanted / "index.html").resolve(strict=True)
        if not wanted.is_relative_to(public) or not wanted.is_file():
            return None  # a FIFO would keep us waiting for ever
        if path.endswith("/") and wanted.name != "index.html":
            return None
        file = wanted.open("rb")
    except (OSError, RuntimeError):  # RuntimeError: a loop of links, up to Python 3.12
        return None
    size = os.fstat(file.fileno()).st_size
    return Page(200, content_type_of(wanted.name), size, file=file)


def _with_charset(content_type: str) -> str:
    if content_type.startswith("text/") or content_type in _TEXTUAL:
        return f"{content_type}; charset=utf-8"
    return content_type
