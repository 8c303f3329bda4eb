"""Where a server's configuration comes from, and how wrong ones are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trio_overlay.errors import ConfigurationError
from trio_overlay.signaling.config import ServerConfiguration, load_configuration

SECRET = "hush-hush"


def written(tmp_path: Path, text: str | bytes, name: str = "config.json") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_in_json_or_toml_says_the_same(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "secret": SECRET,
        "host": "127.0.0.1",
        "port": 80,
        "timeout": 1.5,
        "public": "www",
        "seed": 7,
        "log_level": "debug",
        "broker_path": ["/peers"],
        "broker_timeout": 60,
    }
    toml = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
    expected = ServerConfiguration(
        **{**values, "public": str(tmp_path / "www"), "broker_path": ("/peers",)}
    )
    for path in (
        written(tmp_path, json.dumps(values)),
        written(tmp_path, "\ufeff" + json.dumps(values), "bom.json"),
        written(tmp_path, toml, "config.toml"),
    ):
        assert load_configuration(path, environment={}) == expected


def test_one_further_path_of_the_broker_needs_no_list(tmp_path: Path) -> None:
    path = written(tmp_path, '{"secret": "x", "broker_path": "/peers"}')
    assert load_configuration(path, environment={}).broker_path == ("/peers",)


def test_options_win_over_the_file_and_the_file_over_the_environment(tmp_path: Path) -> None:
    path = written(tmp_path, '{"secret": "of the file", "port": 2, "timeout": 2}')
    environment = {"SECRET": "of the environment", "PORT": "1"}
    options = {"timeout": 3.0, "port": None}
    found = load_configuration(path, environment=environment, options=options)
    assert (found.secret, found.port, found.timeout) == ("of the file", 2, 3.0)
    found = load_configuration(environment=environment)
    assert (found.secret, found.port, found.timeout) == ("of the environment", 1, 30)
    found = load_configuration(environment={"SECRET": "x", "PORT": ""}, options={"port": 0})
    assert found.port == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", '{\n "port": "5000"\n}', "c.json, line 2, key 'port': .*0 to 65535"),
        ("c.json", '{\n\n "port": 70000}', "line 3, key 'port'"),
        ("c.json", '{"port": true}', "key 'port'"),
        ("c.json", '{"secret": ""}', "key 'secret'"),
        ("c.json", '{"secret": 12345678}', "key 'secret'"),
        ("c.json", '{"timeout": 0}', "key 'timeout'"),
        ("c.json", '{"timeout": 1e999}', "key 'timeout'"),
        ("c.json", '{"seed": 1.5}', "key 'seed'"),
        ("c.json", '{"seed": 9007199254740993}', "key 'seed'"),
        ("c.json", '{"host": 7}', "key 'host'"),
        ("c.json", '{"broker_path": ["peers"]}', "key 'broker_path': a path that begins"),
        ("c.json", '{"broker_path": ["/peers", 5]}', "key 'broker_path'"),
        ("c.json", '{"broker_timeout": 0}', "key 'broker_timeout': seconds above zero"),
        ("c.json", '{"log_level": "loud"}', "key 'log_level': one of debug"),
        ("c.json", '{"secret": "x",\n "secrte": "x"}', "line 2, key 'secrte': there is no such"),
        ("c.json", '{"port": 1,\n "port": 2}', "key 'port' is there twice"),
        ("c.json", '{"secret": "x"\n"port": 1}', "c.json, line 2, column 1: is not JSON"),
        ("c.json", "[]", "is not an object"),
        ("c.json", "", "line 1"),
        ("c.json", "[" * 100_000, "is not JSON"),
        ("c.json", b'{\n"secret": "\xff"}', "line 2: is not UTF-8"),
        ("c.json", " " * (2**20 + 1), "is over"),
        ("c.toml", 'secret = "x"\nport = "5000"', "c.toml, line 2, key 'port'"),
        ("c.toml", 'secret = "x"\nport 5000', "c.toml, line 2: is not TOML"),
        ("c.toml", 'secret = "x"\n\n[server]\nport = 1', "line 3, key 'server': there is no such"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_key(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    path = written(tmp_path, text, name)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_configuration(path, environment={"SECRET": SECRET})
    assert str(path) in str(caught.value)
    assert "12345678" not in str(caught.value)


@pytest.mark.parametrize("path", ["nowhere.json", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_configuration(tmp_path / path, environment={"SECRET": SECRET})


def test_a_secret_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="SECRET"):
        load_configuration(environment={"SECRET": ""})
    path = written(tmp_path, "{}")
    with pytest.raises(ConfigurationError, match=r"'secret' in .*config\.json"):
        load_configuration(path, environment={})


@pytest.mark.parametrize("port", ["http", "65536", "-1", "1.0"])
def test_a_wrong_variable_is_named(port: str) -> None:
    with pytest.raises(ConfigurationError, match="PORT"):
        load_configuration(environment={"SECRET": SECRET, "PORT": port})


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(ConfigurationError, match="--log-level"):
        load_configuration(environment={"SECRET": SECRET}, options={"log_level": "loud"})


def test_the_secret_is_not_shown() -> None:
    configuration = load_configuration(environment={"SECRET": SECRET})
    assert configuration.secret == SECRET
    assert SECRET not in repr(configuration)
    assert SECRET not in str(configuration)
