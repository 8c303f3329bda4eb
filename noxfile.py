"""The checks of this project. Plain ``nox`` runs all of them; ``nox -s lint`` only one.

What a session needs is installed once, and again when pyproject.toml or the interpreter changed.
Interpreters that are missing are skipped, but with ``CI=true`` those in `REQUIRED` must be there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13"]
REQUIRED = {"3.11", "3.13"}
IS_CI = os.environ.get("CI", "").lower() in ("1", "true")

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.stop_on_first_error = False
nox.options.error_on_missing_interpreters = IS_CI


def runs(python: str) -> bool:
    """Whether an interpreter called *python* is on the PATH and is one.

    pyenv's shims stand on the PATH for every version it has, and fail for those not selected.
    """
    path = shutil.which(python)
    if path is None:
        return False
    return subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0


def reach_pyenv() -> None:
    """Put the interpreters on the PATH that only pyenv knows, newest patch release first."""
    missing = [version for version in PYTHONS if not runs(f"python{version}")]
    pyenv = shutil.which("pyenv")
    if not missing or pyenv is None:
        return
    answer = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=False)
    versions = Path(answer.stdout.strip()) / "versions"
    for version in missing:
        found = [
            folder / "bin"
            for folder in versions.glob(f"{version}.*")
            if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)
            and (folder / "bin" / f"python{version}").exists()
        ]
        if found:
            newest = max(found, key=lambda folder: int(folder.parent.name.rpartition(".")[2]))
            os.environ["PATH"] = f"{newest}{os.pathsep}{os.environ['PATH']}"


reach_pyenv()
TESTED = [
    version
    for version in PYTHONS
    # nox itself complains of, or skips, the interpreters that are named and missing
    if not IS_CI or version in REQUIRED or runs(f"python{version}")
]


def install(session: nox.Session, *groups: str) -> None:
    """This package, editable, and what the dependency *groups* name; nothing if that is done."""
    project = Path("pyproject.toml").read_bytes()
    wanted = hashlib.sha256(project + repr(groups).encode()).hexdigest()
    stamp = Path(session.virtualenv.location) / "installed-for"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    needed = nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), *groups)
    session.install("--quiet", "-e", ".", *needed)
    stamp.write_text(wanted)


@nox.session(python="3.11")
def lint(session: nox.Session) -> None:
    """Style, layout and types."""
    install(session, "lint", "test")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session(python=TESTED)
def tests(session: nox.Session) -> None:
    """Every test, on all cores; what stands after ``--`` goes to pytest (``-n 0``: on one core)."""
    install(session, "test")
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *session.posargs)
