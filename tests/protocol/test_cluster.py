"""What servers say to each other: every message and back, linkup's own, and nonsense."""

from __future__ import annotations

import json
import random
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.cluster import (
    AskRoot,
    Farewell,
    Gone,
    Greeting,
    Inquiry,
    LinkupFind,
    LinkupFound,
    LinkupMessage,
    LinkupSignal,
    Moved,
    NoRoot,
    PassedOn,
    Presence,
    RootEntry,
    ServerMessage,
    ToAsker,
    ToProspect,
    ToRoot,
    decode_linkup,
    decode_server_message,
    encode_linkup,
    encode_server_message,
    random_tag,
    tag_of,
    tagged_identifiers,
    with_claim,
)

TAG = "0a1b2c3d"
PARAMS = {"from": "a", "to": "b", "signal": {"type": "offer", "sdp": "v=0"}}
MESSAGES: list[ServerMessage] = [
    Greeting(),
    Presence(),
    Presence((RootEntry(0, 1.5, True, 1.5, "token", 3), RootEntry(7, 2.0, False, 0.5))),
    Farewell(),
    ToRoot(3, "f" * 32, True, '{"signal":{}}'),
    NoRoot("f" * 32),
    ToProspect("e" * 32, "f" * 32, "text"),
    Gone("f" * 32, "e" * 32, "it said so"),
    Gone("f" * 32, 3, ""),
    AskRoot(3, "f" * 32, '{"type":"ask-snapshot"}'),
    ToAsker("f" * 32, True, "text"),
    ToAsker("f" * 32, False, "text"),
    PassedOn(PARAMS, f"{TAG}:12"),
    Moved("ada", f"{TAG}:12"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=repr)
def test_a_message_of_ours_survives_the_way(message: ServerMessage) -> None:
    assert decode_server_message(encode_server_message(TAG, message)) == (TAG, message)


def test_the_claim_is_put_into_a_signal_on_the_way() -> None:
    text = with_claim(encode_server_message(TAG, PassedOn(PARAMS)), "deadbeef:9")
    assert decode_server_message(text.encode()) == (TAG, PassedOn(PARAMS, "deadbeef:9"))


LINKUP: list[tuple[LinkupMessage, dict[str, Any]]] = [
    (LinkupSignal(PARAMS), {"type": "signal", "data": PARAMS}),
    (LinkupFind("a"), {"type": "find", "data": {"id": "a"}}),
    (LinkupFind(None), {"type": "find", "data": {"id": None}}),
    (LinkupFound("a", True), {"type": "found", "data": {"id": "a", "found": True}}),
    (LinkupFound(7, False), {"type": "found", "data": {"id": 7, "found": False}}),
]


@pytest.mark.parametrize(("message", "value"), LINKUP, ids=repr)
def test_linkups_messages_are_linkups(message: LinkupMessage, value: dict[str, Any]) -> None:
    assert json.loads(encode_linkup(message)) == value
    assert decode_linkup(json.dumps(value)) == message


ODD: list[object] = [None, True, -1, 1e300, "", TAG, [], [[0, 0, 0]], {}, {"id": []}]
odd_values = st.sampled_from(ODD)
kinds = st.sampled_from(
    [
        "greeting",
        "presence",
        "to-root",
        "no-root",
        "to-prospect",
        "gone",
        "ask-root",
        "to-asker",
        "signal",
        "find",
        "found",
    ]
)
keys = st.sampled_from(
    ["server", "roots", "root", "origin", "to", "text", "claim", "params", "data", "destination"]
)


@given(
    st.text(max_size=9) | st.binary(max_size=9),
    st.dictionaries(keys, odd_values, max_size=5),
    kinds,
)
def test_nonsense_is_malformed_or_a_message(
    text: str | bytes, fields: dict[str, Any], kind: str
) -> None:
    for said in (text, json.dumps({**fields, "type": kind})):
        for decode in (decode_server_message, decode_linkup):
            try:
                decode(said)
            except MalformedFrame:
                continue


def test_ids_tell_their_server_and_begin_at_random() -> None:
    rng = random.Random(1)
    tag = random_tag(rng)
    some = list(islice(tagged_identifiers(rng, tag), 50))
    assert {tag_of(each) for each in some} == {tag}
    assert {len(each) for each in some} == {32}
    assert len({each[:6] for each in some}) == 50
    for other in ("", "f" * 31, "f" * 33, "g" * 32, "F" * 32, "f" * 31 + "\n"):
        assert tag_of(other) is None


# --- finding by linkup's messages ---------------------------------------------------------


def outcome(inquiry: Inquiry) -> str:
    if inquiry.is_over:
        return "yes" if inquiry.is_found else "no"
    return "open"


def test_an_inquiry_ends_with_the_first_yes_or_the_last_no() -> None:
    inquiry = Inquiry(3)
    inquiry.hear_question(own_answer=False)
    outcomes = []
    for _ in range(3):
        inquiry.hear_answer(found=False)
        outcomes.append(outcome(inquiry))
    assert outcomes == ["open", "open", "no"]
    inquiry = Inquiry(3)
    inquiry.hear_question(own_answer=False)
    inquiry.hear_answer(found=True)
    assert outcome(inquiry) == "yes"


def test_the_yes_of_the_asker_itself_tells_nothing() -> None:
    for other, expected in ((False, "no"), (True, "yes")):
        inquiry = Inquiry(2)
        inquiry.hear_question(own_answer=True)
        inquiry.hear_answer(found=True)
        assert outcome(inquiry) == "open"
        inquiry.hear_answer(found=other)
        assert outcome(inquiry) == expected


def test_the_question_of_another_brings_as_many_answers_again() -> None:
    inquiry = Inquiry(2)
    inquiry.hear_question(own_answer=True)
    inquiry.hear_question(own_answer=True)
    outcomes = []
    for found in (True, False, True, False):
        inquiry.hear_answer(found=found)
        outcomes.append(outcome(inquiry))
    assert outcomes == ["open", "open", "open", "no"]


def test_an_answer_to_an_earlier_question_is_not_the_end_of_a_later_one() -> None:
    inquiry = Inquiry(1)
    inquiry.hear_answer(found=False)
    assert outcome(inquiry) == "open"
