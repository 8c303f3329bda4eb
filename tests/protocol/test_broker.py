"""What is said between a broker and its peers."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.test_json import values
from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.broker import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    MAX_BATCH_LENGTH,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    BadRequest,
    Batch,
    Failure,
    Find,
    Generation,
    PeerSignal,
    Ping,
    Register,
    Request,
    Response,
    check_identifier,
    check_secret,
    decode_answer,
    decode_request,
    digest_of,
    encode_peer_signal,
    encode_request,
    encode_response,
    encode_responses,
    peer_signal,
)
from trio_overlay.testing.strategies import (
    broker_requests,
    broker_responses,
    generations,
    hostile_broker_texts,
    peer_signals,
)

DATA = Path(__file__).parent.parent / "data"
OFFER = {"type": "offer", "sdp": "v=0"}

keys = st.text() | st.integers() | st.none()
objects = st.dictionaries(st.text(), values)
almost_frames = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | values,
        "id": keys | values,
        "method": st.sampled_from(["ping", "exists", "register", "signal"]) | values,
        "params": st.fixed_dictionaries({}, optional={"id": values, "from": values, "to": values}),
        "message": st.fixed_dictionaries(
            {}, optional={"type": st.just("signal") | values, "signal": values}
        )
        | values,
        "result": values,
        "error": objects | values,
    },
)


def recorded() -> list[str]:
    """Every frame of the recording that went between a peer and the broker."""
    lines = (DATA / "linkup.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["data"] for row in rows if row["ch"] == "ws" and "data" in row]


def encode_again(text: str) -> str:
    value = json.loads(text)
    if "result" in value or "error" in value:
        answer = decode_answer(text)
        assert isinstance(answer, Response)
        return encode_response(answer)
    request = decode_request(text)
    if isinstance(request, PeerSignal):
        assert decode_answer(text) == request
        return encode_peer_signal(request)
    assert isinstance(request, Request)
    return encode_request(request)


def test_every_recorded_frame_of_linkup_is_understood_and_encoded_equal() -> None:
    texts = recorded()
    assert len(texts) > 40
    for text in texts:
        assert json.loads(encode_again(text)) == json.loads(text)


@given(broker_requests)
def test_requests_survive_the_way(request: Request) -> None:
    assert decode_request(encode_request(request)) == request


@given(broker_responses)
def test_answers_survive_the_way(response: Response) -> None:
    assert decode_answer(encode_response(response)) == response


@given(peer_signals, generations)
def test_signals_survive_the_way(signal: PeerSignal, generation: Generation) -> None:
    text = encode_peer_signal(signal, generation)
    assert decode_request(text) == decode_answer(text) == signal


def test_the_older_generation_looks_as_linkup_0_3_has_it() -> None:
    old = Generation.MESSAGES
    assert json.loads(encode_request(Request(Find("ada"), "7", old))) == {
        "id": "7",
        "message": {"type": "find", "id": "ada"},
    }
    assert json.loads(encode_response(Response("7", "ada", None, old))) == {
        "id": "7",
        "message": "ada",
        "error": None,
    }
    taken = json.loads(encode_response(Response("7", None, Failure(-1, "taken"), old)))
    assert taken == {"id": "7", "message": None, "error": "taken"}
    assert json.loads(encode_peer_signal(peer_signal("ada", "bob", OFFER), old)) == {
        "message": {
            "type": "signal",
            "from": "ada",
            "to": "bob",
            "signal": '{"type":"offer","sdp":"v=0"}',
        }
    }


def test_a_signal_keeps_unknown_keys() -> None:
    frame = {
        "jsonrpc": "2.0",
        "method": "signal",
        "params": {"from": "ada", "to": "bob", "signal": OFFER, "mood": 3},
        "trace": "abc",
    }
    signal = decode_request(json.dumps(frame))
    assert isinstance(signal, PeerSignal)
    assert json.loads(encode_peer_signal(signal)) == frame
    old = json.loads(encode_peer_signal(signal, Generation.MESSAGES))
    assert old["message"]["mood"] == 3


def test_a_secret_is_neither_shown_nor_told_by_its_digest() -> None:
    secret = "0123456789abcdef"
    assert encode_request(Request(Register("ada"), 1)) == (
        '{"jsonrpc":"2.0","id":1,"method":"register","params":{"id":"ada"}}'
    )
    text = encode_request(Request(Register("ada", secret), 1))
    assert f'"params":{{"id":"ada","resume":"{secret}"}}' in text
    asked = decode_request(text)
    assert asked == Request(Register("ada", secret), 1)
    assert secret not in repr(asked)
    assert digest_of(secret) == "9f9f5111f7b27a781f1f1ddde5ebc2dd"
    for bad in (secret[1:], "x" * 129, secret + " ", secret + "\x7f", secret + "\xe9", None, 5):
        with pytest.raises(MalformedFrame):
            check_secret(bad)


@pytest.mark.parametrize(
    ("text", "code", "key"),
    [
        ("{", PARSE_ERROR, None),
        ("[" * 10_000, PARSE_ERROR, None),
        ("null", INVALID_REQUEST, None),
        ("[]", INVALID_REQUEST, None),
        ("{}", INVALID_REQUEST, None),
        ('{"id": 1}', INVALID_REQUEST, 1),
        ('{"id": [], "method": "ping"}', INVALID_REQUEST, None),
        ('{"id": true, "method": "ping"}', INVALID_REQUEST, None),
        ('{"jsonrpc": "1.0", "id": 1, "method": "ping"}', INVALID_REQUEST, 1),
        ('{"id": 1, "method": 5}', INVALID_REQUEST, 1),
        ('{"id": 1, "method": "ping", "params": 5}', INVALID_REQUEST, 1),
        ('{"id": 1, "method": "ping", "params": ["a"]}', INVALID_PARAMS, 1),
        ('{"id": 1, "method": "exists", "params": {}}', INVALID_PARAMS, 1),
        ('{"id": 1, "method": "register", "params": {"id": ""}}', INVALID_PARAMS, 1),
        ('{"id": 1, "method": "register", "params": {"id": 5}}', INVALID_PARAMS, 1),
        ('{"id": 1, "method": "register", "params": {"id": "a", "resume": 5}}', INVALID_PARAMS, 1),
        ('{"id": 1, "method": "register", "params": {"id": "a", "resume": ""}}', INVALID_PARAMS, 1),
        ('{"id": 1, "method": "toString"}', METHOD_NOT_FOUND, 1),
        ('{"id": 1, "method": "signal", "params": {"from": "a"}}', INVALID_PARAMS, 1),
        ('{"id": "x", "message": 5}', INVALID_REQUEST, "x"),
        ('{"id": "x", "message": {"type": "constructor"}}', METHOD_NOT_FOUND, "x"),
        ('{"id": "x", "message": {"type": "register"}}', INVALID_PARAMS, "x"),
    ],
)
def test_every_bad_request_has_an_error_of_the_specification(
    text: str, code: int, key: Any
) -> None:
    bad = decode_request(text)
    assert isinstance(bad, BadRequest)
    assert bad.answer is not None
    assert bad.answer.failure is not None
    assert (bad.answer.failure.code, bad.answer.key) == (code, key)


def test_an_unknown_method_is_named_in_the_error() -> None:
    bad = decode_request('{"jsonrpc":"2.0","id":1,"method":"dance","params":{}}')
    assert isinstance(bad, BadRequest)
    assert bad.answer is not None
    assert json.loads(encode_response(bad.answer))["error"] == {
        "code": METHOD_NOT_FOUND,
        "message": "unknown method",
        "data": {"method": "dance"},
    }


@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc": "2.0", "method": "dance"}',
        '{"jsonrpc": "2.0", "method": "signal", "params": {"from": "a", "to": "b", "signal": 1}}',
        '{"message": {"type": "signal", "from": "a", "to": "b", "signal": "no json"}}',
    ],
)
def test_a_bad_notification_is_not_answered(text: str) -> None:
    bad = decode_request(text)
    assert isinstance(bad, BadRequest)
    assert bad.answer is None


def test_a_batch_is_read_one_by_one_and_has_a_limit() -> None:
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    batch = decode_request(json.dumps([ping, 5]))
    assert isinstance(batch, Batch)
    assert batch.requests[0] == Request(Ping(), 1)
    assert isinstance(batch.requests[1], BadRequest)
    answers = json.loads(encode_responses([Response(1, "pong"), Response(2, "pong")]))
    assert [answer["id"] for answer in answers] == [1, 2]
    assert isinstance(decode_request(json.dumps([ping] * MAX_BATCH_LENGTH)), Batch)
    assert isinstance(decode_request(json.dumps([ping] * (MAX_BATCH_LENGTH + 1))), BadRequest)


@pytest.mark.parametrize("good", ["a", "ada lovelace", "Ægir", "x" * 128, "constructor", "🙂"])
def test_an_id_is_printable_text(good: str) -> None:
    assert check_identifier(good) == good


@pytest.mark.parametrize(
    "bad", ["", " a", "a ", "a\nb", "\x00", "a\u202eb", "\ud800", "x" * 129, None, 5, ["a"]]
)
def test_what_is_no_id_is_refused(bad: Any) -> None:
    with pytest.raises(MalformedFrame):
        check_identifier(bad)


@given((almost_frames | st.lists(almost_frames)).map(json.dumps) | hostile_broker_texts)
def test_whatever_a_stranger_says_is_understood_or_a_bad_request(text: str | bytes) -> None:
    decode_request(text)
    with contextlib.suppress(MalformedFrame):
        decode_answer(text)
