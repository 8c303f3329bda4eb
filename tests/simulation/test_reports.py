"""Reports and their pictures."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from trio_overlay.errors import UsageError
from trio_overlay.simulation.links import Links, uniform
from trio_overlay.simulation.reports import (
    Depths,
    TreeReport,
    distribution,
    perfect_tree,
    report_on,
)
from trio_overlay.simulation.scenarios import SCENARIOS, Dials
from trio_overlay.simulation.tree_plots import plot_report
from trio_overlay.simulation.world import TreeWorld


@pytest.fixture(scope="module")
def report() -> TreeReport:
    plan = SCENARIOS["massacre"](200, random.Random(1), Dials())
    world = TreeWorld(plan, Links(uniform(0.005, 0.05, 1)), max_degree=3)
    world.run()
    return report_on(world)


def test_a_perfect_tree_is_filled_from_the_top() -> None:
    assert perfect_tree(1, 10) == (1,)
    assert perfect_tree(11, 10) == (1, 10)
    assert perfect_tree(12, 10) == (1, 10, 1)
    assert perfect_tree(4, 1) == (1, 1, 1, 1)


def test_balance_is_the_share_at_or_above_the_depth_of_a_perfect_tree() -> None:
    assert Depths((1, 2, 4), perfect_tree(7, 2)).balance == 1.0
    # Nine nodes of degree 2 fill down to depth 3; here one is at depth 4.
    uneven = Depths((1, 2, 3, 2, 1), perfect_tree(9, 2))
    assert uneven.balance == 8 / 9
    assert (uneven.height, uneven.perfect_height) == (4, 3)
    assert uneven.mean == (2 + 6 + 6 + 4) / 9


def test_quantiles_are_durations_that_there_were() -> None:
    times = distribution([3.0, 1.0, 2.0])
    assert times.count == 3
    assert times.mean == times.median == 2.0
    assert (times.quantiles[0], times.quantiles[90], times.quantiles[100]) == (1.0, 3.0, 3.0)
    assert distribution([]).quantiles == (0.0,) * 101


def test_the_json_says_what_it_is_a_report_of_and_adds_up(report: TreeReport) -> None:
    found = json.loads(report.to_json({"seed": 1}))
    assert found["setting"] == {"seed": 1}
    body = found["report"]
    assert sum(body["depths"]["nodes"]) == sum(body["depths"]["perfect"]) == body["attached"]
    assert body["nodes"] == body["attached"] + body["unattached"] + body["closed"]
    assert body["closed"] == 90
    messages = body["messages"]
    by_server = sum(messages[kind] for kind in ("dial", "hello", "offer", "answer", "done"))
    # And each offer again, on its way to the root.
    assert 0 <= body["server"]["messages"] - by_server - messages["offer"] <= messages["withdrawn"]
    assert len(body["server"]["series"]) <= 500


def test_a_plot_shows_depths_join_times_and_loads(report: TreeReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg", "c.png"):
        plot_report(report, "a massacre", tmp_path / name)
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    for words in ("a massacre", "Join time", "Depth", "Load"):
        assert f">{words}" in drawn
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match=r"no plot can be a \.docx"):
        plot_report(report, "", tmp_path / "d.docx")


def test_without_matplotlib_the_extra_is_named(
    report: TreeReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"trio-overlay\[plot\]"):
        plot_report(report, "", tmp_path / "a.svg")
