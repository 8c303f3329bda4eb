"""Envelopes and bodies on the wire."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.test_buckets import ids
from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.relay import (
    MAX_HOPS,
    Envelope,
    HandshakeAnswer,
    NotJSON,
    Unknown,
    User,
    decode_body,
    decode_envelope,
    decode_first_frame,
    decode_id,
    encode_body,
    encode_envelope,
    encode_first_frame,
    encode_id,
    is_peer_id,
)
from trio_overlay.testing.strategies import (
    hostile_relay_texts,
    relay_bodies,
    relay_envelopes,
)

TRACE = Path(__file__).parent.parent / "data" / "peer-relay.jsonl"

values = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
"""Smaller than those of test_json.py: here they only have to stay what they are."""
almost_ids = ids | st.builds(encode_id, ids) | st.text(max_size=45) | values
almost_bodies = st.fixed_dictionaries(
    {"type": st.sampled_from(["user", "findPeers", "foundPeers", "handshake-offer",
                              "handshake-answer", "signal", "receipt", "ping"]) | values},
    optional={
        "data": values | ids | st.lists(almost_ids) | st.dictionaries(st.text(), values),
        "extensions": values,
        "receipt": values,
    },
)  # fmt: skip
almost_envelopes = st.fixed_dictionaries(
    {},
    optional={
        "to": almost_ids,
        "from": almost_ids,
        "path": st.lists(almost_ids, max_size=3) | values,
        "nonce": st.text(max_size=45) | values,
        "data": almost_bodies | values,
    },
)


@settings(max_examples=50)
@given(relay_envelopes)
def test_an_envelope_comes_back(envelope: Envelope) -> None:
    again = decode_envelope(encode_envelope(envelope))
    assert (again.to, again.sender, again.path) == (envelope.to, envelope.sender, envelope.path)
    assert (again.nonce, again.more) == (envelope.nonce, envelope.more)
    assert repr(again.body) == repr(envelope.body)
    assert encode_envelope(again) == encode_envelope(envelope)


@settings(max_examples=50)
@given(relay_bodies)
def test_a_body_comes_back(body: Any) -> None:
    assert repr(decode_body(json.loads(json.dumps(encode_body(body))))) == repr(body)


@given(almost_envelopes.map(json.dumps) | hostile_relay_texts)
def test_any_input_is_an_envelope_that_can_be_passed_on_or_malformed(frame: str | bytes) -> None:
    with contextlib.suppress(MalformedFrame):
        envelope = decode_envelope(frame)
        assert 1 <= len(envelope.path) <= MAX_HOPS + 1
        assert all(map(is_peer_id, [envelope.to, envelope.sender, *envelope.path]))
        again = json.loads(encode_envelope(envelope.passed("0" * 40)))
        assert again["data"] == json.loads(frame)["data"]
        assert again["path"][-1] == "0" * 40


def test_every_recorded_frame_decodes_and_encodes_equal() -> None:
    first: set[tuple[str, int]] = set()
    count = count_buffers = 0
    for line in TRACE.read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        if row.get("kind") != "text":
            continue
        said = json.loads(row["data"])
        if "type" in said:
            peer = decode_first_frame(row["data"])
            assert json.loads(encode_first_frame(peer)) == said
            first.add((peer, 0))
            continue
        envelope = decode_envelope(row["data"])
        assert not isinstance(envelope.body, Unknown)
        assert json.loads(encode_envelope(envelope)) == said
        assert encode_body(envelope.body) == said["data"]
        count += 1
        count_buffers += bool(envelope.buffers)
    assert len(first) >= 4
    assert count > 200
    assert count_buffers > 10  # what was relayed


def test_both_forms_of_an_id_are_the_same() -> None:
    text = "00ff" * 10
    assert decode_id(text) == decode_id(text.upper()) == decode_id(encode_id(text)) == text
    assert encode_id(text) == {"type": "Buffer", "data": [0, 255] * 10}
    assert encode_first_frame(text).startswith('{"type":"Buffer","data":[0,255,')


@pytest.mark.parametrize(
    "value",
    [
        None, "", "00ff", "0" * 39, "0" * 41, "g" * 40, "0" * 39 + "\n", 7, [0] * 20,
        {"type": "Buffer"},
        {"type": "Buffer", "data": [0] * 19},
        {"type": "Buffer", "data": [0] * 21},
        {"type": "Buffer", "data": [256] * 20},
        {"type": "Buffer", "data": [True] * 20},
        {"type": "Buffer", "data": "0" * 20},
        {"data": [0] * 20},
    ],
)  # fmt: skip
def test_what_is_no_id_is_malformed(value: Any) -> None:
    with pytest.raises(MalformedFrame):
        decode_id(value)


def test_an_envelope_is_the_originals_to_the_letter() -> None:
    me, you = "11" * 20, "22" * 20
    envelope = Envelope(you, me, (), "659404778164299", User("ECHO 1")).passed(me)
    assert encode_envelope(envelope) == (
        f'{{"to":"{you}","from":"{me}","path":["{me}"],"nonce":"659404778164299",'
        '"data":{"type":"user","data":"ECHO 1"}}'
    )
    assert encode_body(HandshakeAnswer(None, True)) == {
        "type": "handshake-answer",
        "data": {"ws": None, "wrtc": True},
    }


def test_what_an_original_would_die_of_is_not_passed_on() -> None:
    me = "11" * 20
    good = {"to": me, "from": me, "path": [me], "nonce": "1", "data": {"type": "user", "data": 1}}
    decode_envelope(json.dumps(good))
    changes: list[dict[str, Any]] = [
        {"data": None},
        {"data": {}},
        {"data": {"type": "findPeers", "data": 5}},
        {"data": {"type": "foundPeers", "data": None}},
        {"data": {"type": "handshake-answer"}},
        {"data": {"type": "signal", "data": None}},
        {"to": None},
        {"from": "abc"},
        {"path": "x"},
        {"path": []},
        {"path": [me] * 5000},
        {"nonce": 7},
        {"nonce": "1" * 5000},
    ]
    for change in changes:
        with pytest.raises(MalformedFrame) as caught:
            decode_envelope(json.dumps(good | change))
        assert not isinstance(caught.value, NotJSON)  # whoever sent it may have had it from others
    for nonsense in ("", "[]", "7", "{", b"\xff"):
        with pytest.raises(NotJSON):
            decode_envelope(nonsense)


def test_unknown_bodies_and_keys_stay_as_they_are() -> None:
    me = "11" * 20
    text = (
        f'{{"to":"{me}","from":"{me}","path":["{me}"],"nonce":"1",'
        '"data":{"type":"later","z":1,"a":2},"proof":{"b":1}}'
    )
    assert encode_envelope(decode_envelope(text)) == text
