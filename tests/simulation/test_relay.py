"""Very many relay peers, and what must hold of their network."""

from __future__ import annotations

import math
from dataclasses import replace

from trio_overlay.protocol.relay_routing import MAX_NONCES, MAX_ROUTES
from trio_overlay.simulation.relay import RelayReport, RelaySetting, RelayWorld

SMALL = RelaySetting(nodes=80, arrival=20, messages=300, seconds=20, timeout=10)


def run(setting: RelaySetting) -> RelayReport:
    world = RelayWorld(setting)
    world.run()
    return world.report()


def test_in_a_quiet_network_every_message_arrives_in_few_hops_and_few_copies() -> None:
    reports = {
        policy: run(replace(SMALL, policy=policy)) for policy in ("default", "one-copy", "original")
    }
    for policy in ("default", "one-copy"):
        report = reports[policy]
        assert report.delivery == 1.0
        assert report.mean_hops <= math.log2(report.nodes) / 2
        assert report.last_transmission < 5
        assert report.max_remembered < MAX_NONCES + MAX_ROUTES
        assert report.unconnected == 0
    assert reports["one-copy"].duplicates == 0
    assert reports["one-copy"].copies < reports["default"].copies < 0.8 * reports["original"].copies


def test_under_churn_receipts_and_retries_deliver() -> None:
    churning = replace(SMALL, replaced_per_minute=1 / 3, receipts=True, timeout=20, seconds=30)
    report = run(churning)
    assert report.void < 30
    assert report.delivery == 1.0
    assert report.confirmed >= 0.99 * (report.sent - report.void)


def test_messages_pass_a_chain_of_ten() -> None:
    report = run(RelaySetting(nodes=10, arrival=20, messages=50, seconds=20, is_chain=True))
    assert report.delivery == 1.0
    assert report.max_hops == 9
    assert report.max_neighbours == 2


def test_the_same_setting_gives_the_same_report() -> None:
    setting = replace(SMALL, nodes=20, messages=50, replaced_per_minute=0.3)
    assert run(setting) == run(setting)
    assert run(setting) != run(replace(setting, seed=1))
