"""The fixtures in a project of somebody else's, with either plugin that runs async tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
import pytest

pytest_plugins = ["trio_overlay.testing.fixtures"]
"""

ANYIO = """
@pytest.fixture
def anyio_backend(virtual_clock):
    return "trio", {"clock": virtual_clock}
"""

TESTS = """
import pytest
import trio
from trio_overlay import open_tree_node
from trio_overlay.testing import virtual_test


@pytest.mark.PLUGIN
async def test_hello(virtual_clock, virtual_network, signaling):
    async with (
        open_tree_node(str(signaling), network=virtual_network.host("root")) as root,
        open_tree_node(str(signaling), network=virtual_network.host("n1")) as child,
    ):
        await root.become_root(signaling.secret)
        parent = await child.join()
        await parent.send("hello")
        assert (await root.messages.receive()).data == "hello"
        virtual_network.cut("root <-> n1")
        await trio.sleep(600)
        assert child.parent is None


@pytest.mark.PLUGIN
async def test_each_has_a_network_of_its_own(virtual_clock, virtual_network):
    began = trio.current_time()
    await trio.sleep(3600)
    assert trio.current_time() - began == pytest.approx(3600)
    assert virtual_network.count_dials.total() == 0


@pytest.mark.PLUGIN
async def test_that_fails(virtual_clock, virtual_network, signaling):
    assert str(signaling) == "nowhere"


@virtual_test
async def test_that_needs_no_plugin():
    await trio.sleep(3600)
"""


def run_project(folder: Path, conftest: str, tests: str, plugin: str) -> str:
    """What pytest says of a project with only this *plugin*."""
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_it.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-p", plugin, "-p", "no:cacheprovider", "-q"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("plugin", "mark", "conftest"),
    [("pytest_trio.plugin", "trio", CONFTEST), ("anyio.pytest_plugin", "anyio", CONFTEST + ANYIO)],
    ids=["pytest-trio", "anyio"],
)
def test_fixtures_work_with_either_plugin(
    plugin: str, mark: str, conftest: str, tmp_path: Path
) -> None:
    said = run_project(tmp_path, conftest, TESTS.replace("PLUGIN", mark), plugin)
    assert "1 failed, 3 passed" in said, said
    assert "FAILED test_it.py::test_that_fails" in said


def test_a_test_in_real_time_is_told_what_is_missing(tmp_path: Path) -> None:
    tests = "import pytest\n@pytest.mark.trio\nasync def test_it(virtual_network):\n    pass\n"
    said = run_project(tmp_path, CONFTEST, tests, "pytest_trio.plugin")
    assert "have it take virtual_clock as an argument" in said
