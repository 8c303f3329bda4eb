"""What the strategies call valid is valid, what they call hostile is survived."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from trio_overlay.errors import MalformedFrame, OutcomeError
from trio_overlay.protocol.bootstrap import BootstrapFrame, decode_bootstrap, encode_bootstrap
from trio_overlay.protocol.json import JSON, decode_json
from trio_overlay.protocol.neighbours import (
    NeighbourFrame,
    Payload,
    decode_neighbour,
    decode_payload,
    encode_neighbour,
    encode_payload,
)
from trio_overlay.protocol.signals import Signal, decode_signal, encode_signal
from trio_overlay.protocol.tree import TreeFrame, decode_tree, encode_tree
from trio_overlay.testing import strategies
from trio_overlay.testing.determinism import run_virtual
from trio_overlay.testing.faults import Rule
from trio_overlay.testing.story import Step
from trio_overlay.testing.tree_world import TreeWorld
from trio_overlay.testing.world import VirtualWorld


@given(strategies.json_values())
def test_json_values_survive_json(value: JSON) -> None:
    assert json.loads(json.dumps(value)) == value


@given(strategies.signals)
def test_signals_are_valid(signal: Signal) -> None:
    assert decode_signal(encode_signal(signal)) == signal


@given(strategies.bootstrap_frames)
def test_bootstrap_frames_are_valid(frame: BootstrapFrame) -> None:
    text = encode_bootstrap(frame)
    assert encode_bootstrap(decode_bootstrap(text)) == text


@given(strategies.tree_frames)
def test_tree_frames_are_valid(frame: TreeFrame) -> None:
    text = encode_tree(frame)
    assert json.loads(encode_tree(decode_tree(text))) == json.loads(text)


@given(strategies.neighbour_frames, strategies.payloads)
def test_frames_of_neighbours_are_valid(frame: NeighbourFrame, payload: Payload) -> None:
    assert decode_neighbour(encode_neighbour(frame)) == frame
    assert decode_payload(encode_payload(payload)) == payload


def survive(decode: Callable[[JSON], object], value: JSON) -> None:
    with suppress(MalformedFrame):
        decode(value)


@given(
    strategies.hostile_signals,
    strategies.hostile_bootstrap_texts,
    strategies.hostile_tree_texts,
    strategies.hostile_texts(),
    strategies.hostile_neighbour_texts,
    strategies.hostile_payloads,
)
def test_what_is_hostile_is_survived(
    signal: JSON,
    bootstrap: str | bytes,
    tree: str | bytes,
    text: str | bytes,
    neighbour: str | bytes,
    payload: JSON,
) -> None:
    survive(decode_signal, signal)
    survive(decode_bootstrap, bootstrap)
    survive(decode_tree, tree)
    survive(decode_json, text)
    survive(decode_neighbour, neighbour)
    survive(decode_payload, payload)


def is_refused(decode: Callable[[JSON], object], value: JSON) -> bool:
    try:
        decode(value)
    except MalformedFrame:
        return True
    return False


@pytest.mark.parametrize(
    ("strategy", "decode"),
    [
        (strategies.hostile_signals, decode_signal),
        (strategies.hostile_bootstrap_texts, decode_bootstrap),
        (strategies.hostile_tree_texts, decode_tree),
        (strategies.hostile_neighbour_texts, decode_neighbour),
        (strategies.hostile_payloads, decode_payload),
    ],
)
def test_hostile_frames_are_of_both_kinds(
    strategy: st.SearchStrategy[JSON], decode: Callable[[JSON], object]
) -> None:
    bounded = settings(max_examples=500, derandomize=True, database=None, phases=[Phase.generate])
    find(strategy, lambda value: is_refused(decode, value), settings=bounded)
    find(strategy, lambda value: not is_refused(decode, value), settings=bounded)


NAMES = ["root", "server:5000", "n1", "n2", "n3"]


@settings(max_examples=25)
@given(strategies.fault_plans(NAMES, duration=20.0), st.integers(0, 99))
def test_a_tree_lives_through_any_plan_of_faults(
    plan: list[tuple[float, float, Rule]], seed: int
) -> None:
    assert plan == sorted(plan, key=lambda entry: entry[:2])
    assert all(0 <= begins_at <= ends_at <= 20 for begins_at, ends_at, _ in plan)

    async def live() -> VirtualWorld:
        async with TreeWorld({"seed": str(seed), "max_degree": "1"}) as world:
            world.network.follow(plan)
            for number in range(1, 4):
                await world.play(Step(world.age + number, f"n{number}", "joins"))
            await world.play(Step(60, "time", "passes"))
            assert world.network.rules == ()
            await world.finish()
            return world

    try:
        world = run_virtual(live, seed=seed)
    except OutcomeError as error:
        raise AssertionError("a fault came out of the world") from error
    assert world.count_joined + world.count_refused >= 3


def test_only_what_needs_hypothesis_imports_it() -> None:
    program = (
        "import sys; sys.modules['hypothesis'] = None; import trio_overlay.testing; "
        "import trio_overlay.testing.tree_world"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
