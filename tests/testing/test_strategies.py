"""What the strategies call valid is valid, what they call hostile is survived."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, get_args

import pytest
from hypothesis import Phase, find, given, seed, settings
from hypothesis import strategies as st

from trio_overlay.errors import MalformedFrame, OutcomeError
from trio_overlay.protocol import broker
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
from trio_overlay.protocol.relay import (
    Body,
    Envelope,
    decode_envelope,
    decode_first_frame,
    encode_envelope,
)
from trio_overlay.protocol.sampling_frames import SamplingFrame, decode_sampling, encode_sampling
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


@given(strategies.sampling_words)
def test_words_of_peers_that_sample_are_valid(word: SamplingFrame) -> None:
    assert decode_sampling(encode_sampling(word)) == word


@given(strategies.broker_texts)
def test_what_is_said_at_a_broker_is_valid(text: str) -> None:
    said = decode_broker(text)  # it raises nothing
    if isinstance(said, broker.Batch):
        assert not any(isinstance(each, broker.BadRequest) for each in said.requests)


@given(strategies.relay_envelopes)
def test_envelopes_of_relays_are_valid(envelope: Envelope) -> None:
    text = encode_envelope(envelope)
    assert encode_envelope(decode_envelope(text)) == text


@pytest.mark.parametrize(
    ("strategy", "kinds"),
    [
        (strategies.signals, get_args(Signal)),
        (strategies.bootstrap_frames, get_args(BootstrapFrame)),
        (strategies.tree_frames, get_args(TreeFrame)),
        (strategies.payloads, get_args(Payload)),
        (strategies.neighbour_frames, get_args(NeighbourFrame)),
        (strategies.sampling_words, get_args(SamplingFrame)),
        (strategies.broker_calls, get_args(broker.Call)),
        (strategies.relay_bodies, get_args(Body)),
    ],
    ids=["signals", "bootstrap", "tree", "payloads", "neighbours", "sampling", "broker", "relay"],
)
def test_frames_of_all_kinds_are_said(
    strategy: st.SearchStrategy[object], kinds: tuple[type, ...]
) -> None:
    said: set[type] = set()

    @settings(max_examples=100, database=None)
    @given(strategy)
    def listen(frame: object) -> None:
        said.add(type(frame))

    # Hypothesis explores, and in one run may leave a branch out for long.
    for number in range(30):
        seed(number)(listen)()
        if said == set(kinds):
            return
    assert said == set(kinds)


def decode_broker(text: Any) -> object:
    """Both ends' reading of it; MalformedFrame only if neither understands."""
    said = broker.decode_request(text)
    return broker.decode_answer(text) if isinstance(said, broker.BadRequest) else said


def decode_relay(text: Any) -> object:
    try:
        return decode_envelope(text)
    except MalformedFrame:
        return decode_first_frame(text)


HOSTILE: dict[str, tuple[st.SearchStrategy[JSON], Callable[[JSON], object]]] = {
    "signals": (strategies.hostile_signals, decode_signal),
    "bootstrap": (strategies.hostile_bootstrap_texts, decode_bootstrap),
    "tree": (strategies.hostile_tree_texts, decode_tree),
    "neighbours": (strategies.hostile_neighbour_texts, decode_neighbour),
    "payloads": (strategies.hostile_payloads, decode_payload),
    "sampling": (strategies.hostile_sampling_words, decode_sampling),
    "broker": (strategies.hostile_broker_texts, decode_broker),
    "relay": (strategies.hostile_relay_texts, decode_relay),
    "JSON": (strategies.hostile_texts(), decode_json),
}
all_hostile = pytest.mark.parametrize(("strategy", "decode"), HOSTILE.values(), ids=HOSTILE.keys())


@all_hostile
def test_what_is_hostile_is_survived(
    strategy: st.SearchStrategy[JSON], decode: Callable[[JSON], object]
) -> None:
    @given(strategy)
    def survive(value: JSON) -> None:
        with suppress(MalformedFrame):
            decode(value)

    survive()


def is_refused(decode: Callable[[JSON], object], value: JSON) -> bool:
    try:
        decode(value)
    except MalformedFrame:
        return True
    return False


@all_hostile
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
