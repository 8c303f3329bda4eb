"""What neighbours in the tree say: the recorded frames, our own, and hostile ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.bootstrap import SignalFrame, decode_bootstrap
from trio_overlay.protocol.tree import (
    ConnectionRefused,
    ConnectionSignal,
    Credit,
    Data,
    JoinRequest,
    TreeFrame,
    Withdraw,
    decode_tree,
    encode_tree,
)
from trio_overlay.testing.strategies import hostile_tree_texts, json_values

RECORDED = [
    row["data"]
    for row in map(
        json.loads,
        (Path(__file__).parents[1] / "data" / "webrtc-tree-overlay.jsonl").read_text().splitlines(),
    )
    if row["ch"] == "dc" and "data" in row
]


def test_there_are_recorded_frames() -> None:
    kinds = {type(decode_tree(frame)) for frame in RECORDED}
    assert kinds == {Data, JoinRequest}


@pytest.mark.parametrize("frame", RECORDED)
def test_recorded_frame_decodes_and_encodes_equal(frame: str) -> None:
    assert json.loads(encode_tree(decode_tree(frame))) == json.loads(frame)


@pytest.mark.parametrize(
    "frame",
    [
        Withdraw("abc", "cancelled"),
        Credit(4096),
        ConnectionSignal("c1", {"type": "offer", "sdp": "v=0"}),
        ConnectionRefused("c1", "no room"),
    ],
)
def test_frames_of_our_own_come_back_as_they_were(frame: TreeFrame) -> None:
    assert decode_tree(encode_tree(frame)) == frame


@given(json_values())
def test_any_json_value_travels_as_data(value: Any) -> None:
    assert decode_tree(encode_tree(Data(value))) == Data(value)


def test_data_that_was_undefined_in_javascript_is_null() -> None:
    assert decode_tree('{"type":"DATA"}') == Data(None)


def test_bootstrap_frame_becomes_a_join_request_with_all_its_keys() -> None:
    frame = decode_bootstrap('{"origin":"ab","destination":null,"signal":{"x":1},"rank":0,"new":2}')
    assert isinstance(frame, SignalFrame)
    assert json.loads(encode_tree(JoinRequest(frame))) == {
        "origin": "ab",
        "destination": None,
        "signal": {"x": 1},
        "rank": 0,
        "new": 2,
        "type": "JOIN-REQUEST",
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"heartbeat"',
        "{}",
        '{"type":"data"}',
        '{"type":["DATA"]}',
        '{"type":"JOIN-REQUEST"}',
        '{"type":"JOIN-REQUEST","signal":{}}',
        '{"type":"JOIN-REQUEST","origin":5,"signal":{}}',
        '{"type":"JOIN-REQUEST","origin":"a","signal":"offer"}',
        '{"type":"WITHDRAW","origin":"a"}',
        '{"type":"CREDIT","size":-1}',
        '{"type":"CREDIT","size":true}',
        '{"type":"CREDIT","size":1.5}',
        '{"type":"BEAT","number":[1]}',
        '{"type":"BEAT","number":[-1,0]}',
        '{"type":"DESCENT","number":[1,1]}',
        '{"type":"DESCENT","number":[1,281474976710656],"path":[]}',
        '{"type":"DESCENT","number":[1,1],"path":["' + "x" * 65 + '"]}',
        '{"type":"DESCENT","number":[1,1],"path":["\\u00e9"]}',
        '{"type":"CONNECTION-SIGNAL","connection":"","signal":{}}',
        '{"type":"CONNECTION-SIGNAL","connection":"' + "x" * 65 + '","signal":{}}',
        '{"type":"CONNECTION-SIGNAL","connection":"c","signal":[]}',
        "[" * 10_000 + "]" * 10_000,
        '{"type":"DATA","data":' + "[" * 200 + "]" * 200 + "}",
        '{"type":"DATA","data":' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_what_is_no_frame_is_malformed(text: str) -> None:
    with pytest.raises(MalformedFrame):
        decode_tree(text)


@given(hostile_tree_texts)
def test_any_input_is_a_frame_or_malformed(text: str | bytes) -> None:
    try:
        frame = decode_tree(text)
    except MalformedFrame:
        return
    encode_tree(frame)
    if isinstance(frame, JoinRequest):
        assert isinstance(frame.frame.origin, str)
        assert isinstance(frame.frame.destination, str | None)
        assert all(isinstance(name, str) for name in frame.frame.extensions)
