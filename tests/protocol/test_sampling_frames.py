"""The words of peers that sample, as spray-wrtc 2.0 and 3.0 say them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.json import JSON, decode_json, encode_json
from trio_overlay.protocol.sampling_frames import (
    Exchange,
    Join,
    JoinBack,
    Leave,
    Response,
    SamplingFrame,
    decode_sampling,
    encode_sampling,
)
from trio_overlay.testing.strategies import hostile_sampling_words, sampling_words

GOLDEN: list[tuple[JSON, SamplingFrame]] = [
    # spray-wrtc 2.0.11
    ({"inview": "1b9d-I", "type": "MExchange"}, Exchange(inview="1b9d-I")),
    ({"type": "MJoin"}, Join()),
    ({"type": "MLeave"}, Leave()),
    # spray-wrtc 3.0.0
    ({"id": "1b9d", "type": "MExchange"}, Exchange(id="1b9d")),
    ({"jobId": "mhvXdrZT4jP5T8vBxuvm75", "type": "MJoin"}, Join("mhvXdrZT4jP5T8vBxuvm75")),
    (
        {"type": "MJoinBack", "jobId": "mhv", "topology": True, "arcs": 0},
        JoinBack("mhv", is_alone=True),
    ),
    ({"type": "response", "jobId": "mhv"}, Response("mhv")),
    # ours
    (
        {"inview": "b-I", "id": "b", "arcs": 7, "type": "MExchange"},
        Exchange(inview="b-I", id="b", arcs=7),
    ),
    (
        {"type": "MJoinBack", "jobId": "mhv", "topology": False, "arcs": 3},
        JoinBack("mhv", arcs=3),
    ),
]


@pytest.mark.parametrize(("payload", "frame"), GOLDEN)
def test_words_decode_and_encode_equal(payload: JSON, frame: SamplingFrame) -> None:
    assert decode_sampling(payload) == frame
    assert encode_sampling(frame) == payload


@pytest.mark.parametrize(
    "payload",
    [
        None,
        7,
        "MJoin",
        [],
        {},
        {"type": ["MJoin"]},
        {"type": "MMeow"},
        {"type": "MExchange", "inview": 7},
        {"type": "MExchange", "id": "x" * 201},
        {"type": "MExchange", "id": ""},
        {"type": "MExchange", "arcs": -1},
        {"type": "MExchange", "arcs": True},
        {"type": "MExchange", "arcs": None},
        {"type": "MExchange", "arcs": 10**400},
        {"type": "MJoin", "jobId": {}},
        {"type": "MJoinBack", "jobId": "x", "arcs": 0},
        {"type": "MJoinBack", "topology": True, "arcs": 0},
        {"type": "MJoinBack", "jobId": "x", "topology": 1, "arcs": 0},
        {"type": "response"},
    ],
)
def test_what_is_no_word_is_refused(payload: JSON) -> None:
    with pytest.raises(MalformedFrame):
        decode_sampling(payload)


@given(st.one_of(sampling_words.map(encode_sampling), hostile_sampling_words))
def test_whatever_is_said_is_understood_or_refused(payload: JSON) -> None:
    try:
        frame = decode_sampling(payload)
    except MalformedFrame:
        return
    assert decode_sampling(decode_json(encode_json(encode_sampling(frame)))) == frame
