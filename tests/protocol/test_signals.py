"""Signals of simple-peer 6 and 9."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.test_json import values
from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.signals import (
    Answer,
    Candidate,
    Irrelevant,
    Offer,
    Signal,
    decode_signal,
    encode_signal,
    is_offer,
)

DATA = Path(__file__).parent.parent / "data"

signals = (
    st.builds(Offer, st.text())
    | st.builds(Answer, st.text())
    | st.builds(Candidate, st.text(), st.none() | st.text(), st.none() | st.integers())
    | st.just(Irrelevant())
)

almost_signals = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["offer", "answer", "candidate", "renegotiate", ""]) | values,
        "sdp": st.text() | values,
        "candidate": values
        | st.fixed_dictionaries(
            {}, optional={"candidate": values, "sdpMid": values, "sdpMLineIndex": values}
        ),
        "renegotiate": values,
        "transceiverRequest": values,
    },
)


@given(signals)
def test_signals_come_back_equal(signal: Signal) -> None:
    assert decode_signal(encode_signal(signal)) == signal


@given(values | almost_signals)
def test_any_value_is_a_signal_or_malformed(value: Any) -> None:
    with contextlib.suppress(MalformedFrame):
        signal = decode_signal(value)
        assert isinstance(signal, Offer) == is_offer(value)
        assert decode_signal(encode_signal(signal)) == signal


@pytest.mark.parametrize(
    ("value", "signal"),
    [
        ({"type": "offer", "sdp": "v=0"}, Offer("v=0")),
        ({"type": "answer", "sdp": "v=0"}, Answer("v=0")),
        # version 6, version 9, and version 9's end of candidates
        (
            {"candidate": {"candidate": "c", "sdpMLineIndex": 0, "sdpMid": "0"}},
            Candidate("c", "0", 0),
        ),
        (
            {"type": "candidate", "candidate": {"candidate": "c", "sdpMLineIndex": 0}},
            Candidate("c", None, 0),
        ),
        ({"type": "candidate", "candidate": {"candidate": "", "sdpMid": "0"}}, Candidate("", "0")),
        ({"renegotiate": True}, Irrelevant()),
        ({"type": "transceiverRequest", "transceiverRequest": {"kind": "audio"}}, Irrelevant()),
    ],
)
def test_both_generations_are_understood(value: Any, signal: Signal) -> None:
    assert decode_signal(value) == signal


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "offer",
        {},
        {"type": "offer"},
        {"type": "offer", "sdp": 1},
        {"type": "answer", "sdp": None},
        {"candidate": "not an object"},
        {"candidate": {"candidate": 1}},
        {"candidate": {"candidate": "", "sdpMid": 0}},
        {"candidate": {"candidate": "", "sdpMLineIndex": True}},
    ],
)
def test_what_is_no_signal_is_malformed(value: Any) -> None:
    with pytest.raises(MalformedFrame):
        decode_signal(value)


def recorded_signals() -> Iterator[Any]:
    for name in ("webrtc-bootstrap.jsonl", "webrtc-tree-overlay.jsonl"):
        for line in (DATA / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row.get("kind") != "text" or not row["data"].startswith("{"):
                continue  # what applications said on data channels
            frame = json.loads(row["data"])
            if "signal" in frame:
                yield frame["signal"]


def test_every_recorded_signal_is_understood_and_says_the_same_again() -> None:
    recorded = list(recorded_signals())
    assert len(recorded) > 50
    for value in recorded:
        signal = decode_signal(value)
        assert not isinstance(signal, Irrelevant)
        again = encode_signal(signal)
        assert again.items() >= value.items()  # version 9's type is added to candidates
