"""Bugs to plant, for tests of what looks for bugs."""

from __future__ import annotations

import pytest

from trio_overlay.protocol.branch import Branch, PlaceRule

_init = Branch.__init__


def _take_one_too_many(
    branch: Branch[object], node_id: int, max_degree: int, place_rule: PlaceRule | None = None
) -> None:
    _init(branch, node_id, max_degree + 1, place_rule)


def plant_a_place_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node takes a child more than it may.

    Any story in which more nodes join at once than the root may take meets it, so whatever tells
    stories at random does soon: it does not hang on which stories a version of Hypothesis tells.
    """
    monkeypatch.setattr(Branch, "__init__", _take_one_too_many)
