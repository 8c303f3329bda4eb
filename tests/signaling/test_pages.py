"""Static files: what is served, and above all what is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_overlay.errors import ConfigurationError
from trio_overlay.signaling.pages import Pages, _open_static, content_type_of

OUTSIDE = b"not to be seen"


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outer = tmp_path_factory.mktemp("outer")
    public = outer / "public"
    (public / "sub").mkdir(parents=True)
    (public / "empty").mkdir()
    (public / ".git").mkdir()
    for name in ("index.html", "a.txt", "sub/index.html", "sub/b.txt", "grün.txt"):
        (public / name).write_text(name)
    (outer / "secret.txt").write_bytes(OUTSIDE)
    (outer / "public-not").mkdir()
    (outer / "public-not" / "c.txt").write_bytes(OUTSIDE)
    (public / ".git" / "config").write_bytes(OUTSIDE)
    (public / ".env").write_bytes(OUTSIDE)
    (public / "link.txt").symlink_to(outer / "secret.txt")
    (public / "linked").symlink_to(outer)
    (public / "inner-link.txt").symlink_to(public / "a.txt")
    (public / "loop").symlink_to(public / "loop")
    if hasattr(os, "mkfifo"):
        os.mkfifo(public / "fifo")
    return public.resolve()


def content(public: Path, path: str) -> bytes | None:
    page = _open_static(public, path)
    if page is None:
        return None
    assert page.file is not None
    with page.file:
        return page.file.read(page.size)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "index.html"),
        ("/index.html", "index.html"),
        ("/a.txt", "a.txt"),
        ("//a.txt", "a.txt"),
        ("/%61.txt", "a.txt"),
        ("/gr%C3%BCn.txt", "grün.txt"),
        ("/sub", "sub/index.html"),
        ("/sub/", "sub/index.html"),
        ("/sub/b.txt", "sub/b.txt"),
        ("/inner-link.txt", "a.txt"),
    ],
)
def test_files_are_found_by_their_path(public: Path, path: str, expected: str) -> None:
    assert content(public, path) == expected.encode()


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/sub/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/sub/%2e%2e%2f..%2fsecret.txt",
        "/..\\secret.txt",
        "/..%5csecret.txt",
        "/../public-not/c.txt",
        "/%252e%252e/secret.txt",
        "/link.txt",
        "/linked/secret.txt",
        "/.git/config",
        "/.env",
        "/%2eenv",
        "/empty",
        "/loop",
        "/fifo",
        "/a.txt/",
        "/a.txt/b",
        "/a.txt%00.html",
        "/C:/secret.txt",
        "/%ff",
        "/" + "x" * 5000,
        "/nowhere",
    ],
)
def test_everything_else_is_not_there(public: Path, path: str) -> None:
    assert content(public, path) is None


PARTS = [
    "..",
    ".",
    "/",
    "%2e",
    "%2f",
    "%5c",
    "\\",
    "%",
    "%00",
    ".git",
    "config",
    ".env",
    "secret.txt",
    "public-not",
    "c.txt",
    "a.txt",
    "sub",
    "linked",
    "link.txt",
]


@given(st.lists(st.sampled_from(PARTS)))
def test_no_path_leads_outside(public: Path, parts: list[str]) -> None:
    found = content(public, "/" + "".join(parts))
    assert found is None or found != OUTSIDE


def test_an_absolute_path_is_taken_within_the_directory(public: Path) -> None:
    assert content(public, str(public.parent / "secret.txt")) is None
    assert content(public, "/" + str(public / "a.txt")) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x.html", "text/html; charset=utf-8"),
        ("x.JS", "text/javascript; charset=utf-8"),
        ("x.mjs", "text/javascript; charset=utf-8"),
        ("x.css", "text/css; charset=utf-8"),
        ("x.json", "application/json; charset=utf-8"),
        ("x.svg", "image/svg+xml; charset=utf-8"),
        ("x.png", "image/png"),
        ("x.wasm", "application/wasm"),
        ("x", "application/octet-stream"),
        ("x.no-such-type", "application/octet-stream"),
    ],
)
def test_content_types_do_not_depend_on_the_machine(name: str, expected: str) -> None:
    assert content_type_of(name) == expected


async def test_without_a_directory_there_is_our_page_and_nothing_else() -> None:
    pages = Pages(lambda: {"fine": True})
    assert b"signaling" in (await pages.get("/")).body
    assert (await pages.get("/healthz")).body == b'{"fine":true}\n'
    assert (await pages.get("/a.txt")).status == 404


def test_a_directory_that_is_none_is_refused(public: Path) -> None:
    for wrong in (public / "nowhere", public / "a.txt", "a\0b"):
        with pytest.raises(ConfigurationError, match="public"):
            Pages(dict, wrong)
