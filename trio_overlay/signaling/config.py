"""How the server is to run, gathered from a file, the environment and what the caller says.

What was said closest to this one start wins: options of the command line, then the file named
there, then the environment, which was there before and may be meant for many programs, then the
defaults. The original agrees as far as it goes: its file wins over ``SECRET``.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from trio_overlay.errors import ConfigurationError
from trio_overlay.protocol.broker_registrations import DEFAULT_LEASE
from trio_overlay.protocol.switchboard import DEFAULT_TIMEOUT

DEFAULT_PORT: Final = 5000
LOG_LEVELS: Final = ("debug", "info", "warning", "error")

_HIDDEN: Final = ("secret", "redis")
_MAX_FILE_SIZE: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfiguration:
    """All that can be said about a server. The names are the keys of a configuration file."""

    secret: str = ""
    """What roots must know. Not shown: `repr` leaves it out."""
    host: str | None = None
    """A name or address of this machine; None for all of its addresses."""
    port: int = DEFAULT_PORT
    timeout: float = DEFAULT_TIMEOUT
    """Seconds a prospect may stay."""
    public: str | None = None
    """A directory of static files; in a file, relative to that file's own directory."""
    seed: int | None = None
    """Makes ids repeatable, for tests only."""
    redis: str | None = None
    """The URL of a Redis; with all servers that share it, this one acts as one.

    Not shown: it may hold a password."""
    workers: int = 1
    """How many processes serve, on one port."""
    log_level: str = "info"
    broker_path: tuple[str, ...] = ()
    """Where the broker is, beside ``/`` and ``/broker``."""
    broker_timeout: float = DEFAULT_LEASE
    """Seconds that a peer keeps its id when nothing is heard of it: its connection is broken, and
    nobody was told. Peers of ours say something every 30 s, linkup's every 45 s."""

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{each.name}={getattr(self, each.name)!r}"
            for each in fields(self)
            if each.name not in _HIDDEN
        )
        return f"ServerConfiguration(secret=..., {shown})"


def load_configuration(
    path: str | os.PathLike[str] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> ServerConfiguration:
    """What *options*, the file at *path* and *environment* say, in that order of precedence.

    The file is TOML when its name ends in ``.toml``, else JSON. Of the environment (by default
    this process's) ``SECRET`` and ``PORT`` count, when not empty. In *options* None stands
    for what was not said.

    ConfigurationError: something is missing, unreadable or wrong; the message names the file, the
        line and the key, or the variable, or the option. It never holds the secret.
    """
    environment = os.environ if environment is None else environment
    configuration = ServerConfiguration()
    if environment.get("SECRET"):
        configuration = replace(configuration, secret=environment["SECRET"])
    if environment.get("PORT"):
        try:
            port = int(environment["PORT"])
        except ValueError:
            raise ConfigurationError(
                f"environment: PORT is a number from 0 to 65535, not {environment['PORT']!r}"
            ) from None
        configuration = replace(configuration, port=_checked("port", port, "environment: PORT"))
    if path is not None:
        configuration = replace(configuration, **_read_file(Path(path)))
    for key, value in (options or {}).items():
        if value is not None:
            option = f"--{key.replace('_', '-')}"
            configuration = replace(configuration, **{key: _checked(key, value, option)})
    if not configuration.secret:
        where = f"key 'secret' in {os.fspath(path)}, or " if path is not None else ""
        raise ConfigurationError(
            f"no secret: roots must know one. Set {where}the environment variable SECRET, or "
            'name a configuration file: {"secret": "..."}'
        )
    if configuration.workers > 1 and configuration.redis is None:
        raise ConfigurationError(
            "workers: more than one share what they know through a Redis: give redis, too"
        )
    return configuration


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_SIZE + 1)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from error
    if len(content) > _MAX_FILE_SIZE:
        raise ConfigurationError(f"{path}: is no configuration: it is over {_MAX_FILE_SIZE} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}, line {line}: is not UTF-8") from error
    is_toml = path.suffix.lower() == ".toml"
    values = _parse_toml(path, text) if is_toml else _parse_json(path, text)
    for key, value in values.items():
        where = f"{path}, line {_line_of(key, text, is_toml=is_toml)}, key {key!r}"
        values[key] = _checked(key, value, where)
        if key == "public" and value is not None:
            values[key] = str(path.parent / value)
    return values


def _parse_json(path: Path, text: str) -> dict[str, Any]:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        for key in values:
            if sum(key == other for other, _ in pairs) > 1:
                raise ConfigurationError(f"{path}: key {key!r} is there twice")
        return values

    try:
        values = json.loads(text, object_pairs_hook=refuse_duplicates)
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"{path}, line {error.lineno}, column {error.colno}: is not JSON: {error.msg}"
        ) from None  # the cause holds the whole text, with the secret in it
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}, line 1: is not an object with keys and values")
    return values


def _parse_toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        # Its message ends in "(at line 3, column 7)" and quotes single characters at most.
        line = re.search(r"at line (\d+)", str(error))
        where = f"{path}, line {line[1]}" if line else f"{path}"
        raise ConfigurationError(f"{where}: is not TOML: {error}") from None


def _line_of(key: str, text: str, *, is_toml: bool) -> int:
    """On which line of *text* the top-level *key* stands, as well as can be told."""
    quoted = re.escape(json.dumps(key))
    name = rf"""(?:{re.escape(key)}|{quoted}|'{re.escape(key)}')\s*[=.]|\[+\s*{re.escape(key)}\b"""
    pattern = rf"^\s*(?:{name})" if is_toml else rf"{quoted}\s*:"
    found = re.search(pattern, text, re.MULTILINE)
    return text.count("\n", 0, found.end()) + 1 if found else 1


def _checked(key: str, value: Any, where: str) -> Any:
    """*value*, which *key* may have.

    ConfigurationError: it may not; the message begins with *where*.
    """
    match key:
        case "secret":
            needed, good = "a string that is not empty", isinstance(value, str) and value != ""
        case "host" | "public" | "redis":
            needed = "a string that is not empty"
            good = value is None or (isinstance(value, str) and value != "")
        case "port":
            needed = "a number from 0 to 65535"
            good = _is_integer(value) and 0 <= value <= 65535
        case "timeout" | "broker_timeout":
            needed = "seconds above zero"
            good = (_is_integer(value) or isinstance(value, float)) and 0 < value < float("inf")
        case "workers":
            needed, good = "a whole number from 1 up", _is_integer(value) and value >= 1
        case "seed":
            # JavaScript's numbers are exact up to here.
            needed, good = (
                "a whole number",
                value is None or (_is_integer(value) and abs(value) < 2**53),
            )
        case "log_level":
            needed, good = f"one of {', '.join(LOG_LEVELS)}", value in LOG_LEVELS
        case "broker_path":
            needed = "a path that begins with a slash, or a list of such,"
            value = tuple(value) if isinstance(value, list | tuple) else (value,)
            good = all(isinstance(path, str) and path.startswith("/") for path in value)
        case _:
            known = ", ".join(each.name for each in fields(ServerConfiguration))
            raise ConfigurationError(f"{where}: there is no such key; there are {known}")
    if not good:
        said = "" if key in _HIDDEN else f", not {value!r:.100}"
        raise ConfigurationError(f"{where}: {needed} is needed{said}")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
