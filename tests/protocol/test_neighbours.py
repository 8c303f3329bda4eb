"""What neighbours that signal for each other say: recorded frames, our own, hostile ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.neighbours import (
    EXTENSIONS,
    Application,
    ArcEnd,
    ArcRequest,
    ArcResponse,
    Beat,
    ConnectTo,
    Credit,
    Direct,
    Disconnect,
    Forward,
    InternalSend,
    Payload,
    Send,
    Side,
    decode_arc_message,
    decode_neighbour,
    decode_payload,
    encode_arc_message,
    encode_neighbour,
    encode_payload,
    is_reserved,
    peer_of,
)

DATA = Path(__file__).parents[1] / "data" / "n2n-overlay-wrtc.jsonl"
RECORDED = [row["data"] for row in map(json.loads, DATA.read_text().splitlines()) if "data" in row]
RECORDED_PAYLOADS = [json.loads(frame)["payload"] for frame in RECORDED]
OFFER = {"type": "offer", "sdp": "v=0"}


def test_there_are_recorded_frames_of_all_kinds() -> None:
    kinds = {type(decode_payload(payload)) for payload in RECORDED_PAYLOADS}
    assert kinds == {Application, ArcRequest, ArcResponse, ConnectTo, Forward}
    forwards = [p for p in map(decode_payload, RECORDED_PAYLOADS) if isinstance(p, Forward)]
    assert {forward.has_arrived for forward in forwards} == {True, False}


@pytest.mark.parametrize("frame", RECORDED)
def test_recorded_frame_decodes_and_encodes_equal(frame: str) -> None:
    send = decode_neighbour(frame)
    assert isinstance(send, Send)
    payload = decode_payload(send.payload)
    again = Send(send.peer, send.pid, encode_payload(payload))
    assert json.loads(encode_neighbour(again)) == json.loads(frame)
    if isinstance(payload, Forward):
        message = decode_arc_message(payload.message)
        assert encode_arc_message(message) == payload.message


def test_our_frames_have_the_keys_of_the_originals_in_their_order() -> None:
    ours = encode_neighbour(Send("1-O", "pid", encode_payload(ConnectTo("2-I", "3-I"))))
    assert ours in RECORDED
    keys = list(encode_arc_message(ArcRequest("t", "2-O", "p", OFFER)))
    assert keys == ["tid", "peer", "pid", "offer", "type", "offerType"]


@pytest.mark.parametrize(
    "payload",
    [
        ArcRequest("t", "a-O", "p", None, extensions=EXTENSIONS),
        ArcResponse("t", "a-I", "p", OFFER, "renegociate"),
        ArcEnd("t", "a-I", "p", "no room"),
        ArcEnd("t", "a-I", "p", None),
        Direct(),
        Disconnect("t"),
        Credit(4096),
        Beat(asks=True),
        Application({"type": "MSomethingElse", "tid": 7}),
        Application({"type": ["MDirect"]}),
        Application(None),
    ],
    ids=lambda payload: type(payload).__name__,
)
def test_payload_survives_the_wire(payload: Payload) -> None:
    assert decode_payload(encode_payload(payload)) == payload


@pytest.mark.parametrize(
    "payload", [Disconnect("t"), Credit(7), Beat(False), ArcEnd("t", "a", "p", None)]
)
def test_extensions_of_who_named_none_are_messages_of_the_application(payload: Payload) -> None:
    value = encode_payload(payload)
    assert decode_payload(value, frozenset()) == Application(value)
    assert is_reserved(value)


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "null",
        "[]",
        '"MSend"',
        "{}",
        '{"type":["MSend"]}',
        '{"type":"MSend"}',
        '{"type":"MSend","peer":"","pid":"p"}',
        '{"type":"MSend","peer":"a","pid":7}',
        '{"type":"MSend","peer":"' + "x" * 257 + '","pid":"p"}',
        b"\xff",
    ],
)
def test_what_is_no_frame_is_refused(frame: str | bytes) -> None:
    with pytest.raises(MalformedFrame):
        decode_neighbour(frame)


@pytest.mark.parametrize(
    "payload",
    [
        {"type": "MConnectTo", "from": "a"},
        {"type": "MConnectTo", "from": "a", "to": {}},
        {"type": "MForwardTo", "from": "a", "to": "b"},
        {"type": "MForwarded", "from": "a", "to": "b", "message": "MRequest"},
        {"type": "MRequest", "tid": "t", "peer": "a", "pid": "p", "offer": "offer"},
        {"type": "MRequest", "tid": "t", "peer": "a", "pid": "p", "offer": OFFER, "offerType": 1},
        {"type": "MResponse", "tid": None, "peer": "a", "pid": "p", "offer": None},
        {"type": "MResponse", "tid": "t", "peer": "a", "pid": "p", "extensions": "arcs"},
        {"type": "MArcEnd", "tid": "t", "peer": "a", "pid": "p", "reason": 7},
        {"type": "MDisconnect"},
        {"type": "MCredit", "size": True},
        {"type": "MCredit", "size": 0},
        {"type": "MBeat"},
        {"type": "MBeat", "asks": 1},
    ],
    ids=str,
)
def test_payload_without_what_belongs_to_its_type_is_refused(payload: JSON) -> None:
    with pytest.raises(MalformedFrame):
        decode_payload(payload)


def test_media_frames_are_read_and_keep_all_they_have() -> None:
    frame = '{"peer":"a-O","pid":null,"payload":{"offer":{}},"type":"MInternalSend","more":1}'
    decoded = decode_neighbour(frame)
    assert isinstance(decoded, InternalSend)
    assert json.loads(encode_neighbour(decoded)) == json.loads(frame)


def test_ends_belong_to_peers() -> None:
    assert Side.IN.end_of("p") == "p-I"
    assert [peer_of(end) for end in ("p-I", "p-O", "p-I-O", "p")] == ["p", "p", "p-I", "p"]
    assert Side.IN.opposite is Side.OUT
    assert Side.OUT.opposite is Side.IN


def test_unknown_keys_of_what_is_passed_on_are_kept() -> None:
    message = {"type": "MRequest", "tid": "t", "future": [1]}
    value = {"type": "MForwardTo", "from": "a", "to": "b", "message": message}
    forward = decode_payload(value)
    assert isinstance(forward, Forward)
    assert forward.message == message
