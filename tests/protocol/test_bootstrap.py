"""What is said on the bootstrap server's WebSockets."""

from __future__ import annotations

import contextlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.test_json import values
from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.bootstrap import (
    MAX_PART_SIZE,
    BootstrapFrame,
    Heartbeat,
    Refused,
    Registration,
    SignalFrame,
    decode_bootstrap,
    encode_bootstrap,
    signal_frame,
    snapshot_parts,
)
from trio_overlay.testing.strategies import bootstrap_frames, hostile_bootstrap_texts

DATA = Path(__file__).parent.parent / "data"

counts = st.integers(0, 2**48 - 1)
almost_frames = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(
            ["hello", "done", "withdrawn", "refused", "role", "ask-snapshot", "snapshot"]
        )
        | values,
        "origin": values,
        "destination": values,
        "signal": st.dictionaries(st.text(), values) | values,
        "rank": values,
        "extensions": st.lists(values) | values,
        "id": values,
        "reason": values,
        "timeout": values,
        "nodes": values,
        "missing": values,
        "last": values,
    },
)


@given(bootstrap_frames)
def test_frames_come_back_equal(frame: BootstrapFrame) -> None:
    text = encode_bootstrap(frame)
    assert decode_bootstrap(text) == frame
    assert decode_bootstrap(text.encode()) == frame  # binary is taken as the text it holds


@given(almost_frames.map(json.dumps) | hostile_bootstrap_texts)
def test_any_input_is_a_frame_or_malformed(given_text: str | bytes) -> None:
    with contextlib.suppress(MalformedFrame):
        frame = decode_bootstrap(given_text)
        assert decode_bootstrap(encode_bootstrap(frame)) == frame
        if isinstance(frame, SignalFrame):
            # What the properties return has the type they say, whatever the stranger put there.
            assert frame.origin is None or isinstance(frame.origin, str)
            assert frame.destination is None or isinstance(frame.destination, str)
            assert isinstance(frame.signal, dict)
            assert all(isinstance(name, str) for name in frame.extensions)


@pytest.mark.parametrize("text", ['"heartbeat"', "heartbeat", b"heartbeat", b'"heartbeat"'])
def test_heartbeats_come_with_quotes_and_without(text: str | bytes) -> None:
    # The original's server sends JSON, its client the bare word.
    assert decode_bootstrap(text) == Heartbeat()


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[]",
        "1",
        '"hearts"',
        "{}",
        '{"signal": null}',
        '{"signal": "offer"}',
        '{"signal": {}, "destination": 7}',
        '{"signal": {}, "origin": ["x"]}',
        '{"signal": {}, "extensions": "withdraw"}',
        '{"type": "goodbye"}',
        '{"type": "hello", "id": 7}',
        '{"type": "withdrawn", "reason": []}',
        '{"type": "refused", "reason": "no", "destination": 1}',
        '{"type": "ask-snapshot"}',
        '{"type": "ask-snapshot", "timeout": true}',
        '{"type": "ask-snapshot", "timeout": 0}',
        '{"type": "ask-snapshot", "timeout": 61}',
        '{"type": "ask-snapshot", "timeout": 1' + "0" * 1000 + "}",
        '{"type": "ask-snapshot", "timeout": 1, "origin": 1}',
        '{"type": "snapshot", "nodes": {}, "missing": 0}',
        '{"type": "snapshot", "nodes": [], "missing": -1}',
        "[" * 10_000,
        b"\xff",
    ],
    ids=lambda text: repr(text[:40]),
)
def test_what_is_no_frame_is_malformed(text: str | bytes) -> None:
    with pytest.raises(MalformedFrame):
        decode_bootstrap(text)


@pytest.mark.parametrize("nobody", ["null", '""', "0", "false"])
def test_whatever_is_falsy_means_nobody_in_particular(nobody: str) -> None:
    frame = decode_bootstrap(f'{{"origin":{nobody},"destination":{nobody},"signal":{{}}}}')
    assert isinstance(frame, SignalFrame)
    assert (frame.origin, frame.destination) == (None, None)


def test_keys_keep_their_order_and_unknown_ones_stay_when_the_origin_is_set() -> None:
    frame = decode_bootstrap('{"z":1,"origin":"liar","signal":{"b":1,"a":2},"destination":"d"}')
    assert isinstance(frame, SignalFrame)
    passed_on = encode_bootstrap(frame.with_origin("truth"))
    assert passed_on == '{"z":1,"origin":"truth","signal":{"b":1,"a":2},"destination":"d"}'


def test_a_frame_without_extensions_is_the_originals_to_the_letter() -> None:
    frame = signal_frame({"type": "offer", "sdp": "v=0"}, destination=None, rank=0)
    assert encode_bootstrap(frame) == (
        '{"origin":null,"destination":null,"signal":{"type":"offer","sdp":"v=0"},"rank":0}'
    )


@given(
    st.builds(
        Registration,
        st.from_regex(r"[0-9a-f]{1,64}", fullmatch=True),
        counts,
        st.booleans(),
        st.frozensets(st.sampled_from(["snapshot", "withdraw", "later"])),
    )
)
def test_a_registration_survives_the_query_of_an_url(registration: Registration) -> None:
    assert Registration.decode(registration.encode()) == registration


def test_what_a_root_says_to_joiners_is_what_it_was_before_askers_came() -> None:
    assert encode_bootstrap(Refused("no")) == '{"type":"refused","reason":"no"}'
    assert Registration("aa", 3, True).encode() == "trio-overlay=1&root=aa&term=3&takeover=1"


@given(st.lists(st.text("x", max_size=9000), max_size=30), counts)
def test_a_picture_comes_in_parts_that_pass_every_limit(nodes: list[str], missing: int) -> None:
    parts = list(snapshot_parts("asker", nodes, missing))
    assert [node for part in parts for node in part.nodes] == nodes
    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert [part.count_missing for part in parts] == [0] * (len(parts) - 1) + [missing]
    assert all(len(encode_bootstrap(part)) < MAX_PART_SIZE + 1000 for part in parts)
    for one, other in pairwise(parts):  # no more parts than it takes
        assert len(encode_bootstrap(one)) + len(encode_bootstrap(other)) > MAX_PART_SIZE


@pytest.mark.parametrize("name", ["webrtc-bootstrap.jsonl", "webrtc-tree-overlay.jsonl"])
def test_every_recorded_frame_decodes_and_encodes_equal(name: str) -> None:
    count = 0
    for line in (DATA / name).read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        if row["ch"] == "ws" and "data" in row:
            frame = decode_bootstrap(row["data"])
            assert isinstance(frame, SignalFrame | Heartbeat)
            assert json.loads(encode_bootstrap(frame)) == json.loads(row["data"])
            count += 1
    assert count > 5
