"""Ids that are hashes of keys, and messages signed with them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from hypothesis import given
from trio.testing import MockClock

from tests.nodes.relays import open_relays, say, until
from tests.protocol.test_relay import values
from trio_overlay.errors import DeliveryFailed, UsageError
from trio_overlay.nodes import relay_identity
from trio_overlay.nodes.relay import open_relay
from trio_overlay.nodes.relay_identity import MAX_AGE, Identity, id_of_key, is_proved
from trio_overlay.protocol.relay import (
    Envelope,
    User,
    decode_envelope,
    encode_envelope,
    is_peer_id,
)

ALICE = Identity(b"a" * 32)
BOB = "bb" * 20
NOW = 1_800_000_000.0


def signed(data: Any, identity: Identity = ALICE) -> Envelope:
    return identity.prove(Envelope(BOB, identity.id, (), "7", User(data)), clock=lambda: NOW)


def proves(envelope: Envelope, at: float = NOW) -> bool:
    return is_proved(envelope, clock=lambda: at)


def as_javascript_writes_it(value: Any) -> Any:
    """What JSON.parse and JSON.stringify make of *value*: numbers are doubles, and whole ones have
    no point; keys that look like array indices come first."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: int(key) if re.fullmatch("[0-9]{1,9}", key) else 1e9)
        return {key: as_javascript_writes_it(value[key]) for key in keys}
    if isinstance(value, list):
        return [as_javascript_writes_it(each) for each in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
        return int(number) if number.is_integer() and abs(number) < 1e21 else number
    return value


def test_an_id_is_the_hash_of_a_key() -> None:
    assert is_peer_id(ALICE.id)
    assert Identity(ALICE.secret).id == ALICE.id
    assert Identity().id != Identity().id
    assert (
        id_of_key(bytes(32))
        == "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925"[:40]
    )
    with pytest.raises(UsageError, match="32 bytes"):
        Identity(b"short")


@given(values)
def test_a_proof_holds_whatever_relays_do_to_json(data: Any) -> None:
    try:
        envelope = signed(data).passed(ALICE.id)
    except ValueError:
        return  # a number larger than a double's; the last test is about those
    assert proves(envelope)
    text = json.dumps(as_javascript_writes_it(json.loads(encode_envelope(envelope))))
    assert proves(decode_envelope(text).passed("cc" * 20))


CHANGES: dict[str, Callable[[Envelope], Envelope]] = {
    "another receiver": lambda e: replace(e, to="cc" * 20),
    "another sender": lambda e: replace(e, sender="cc" * 20),
    "another nonce": lambda e: replace(e, nonce="8"),
    "other data": lambda e: replace(e, body=User({"pay": 20})),
    "a receipt asked for": lambda e: replace(e, body=User({"pay": 10}, "r")),
    "no proof": lambda e: replace(e, more={}),
    "nonsense": lambda e: e.with_more("proof", "yes"),
    "another moment": lambda e: e.with_more("proof", e.more["proof"] | {"at": NOW + 1}),
    "no moment": lambda e: e.with_more("proof", e.more["proof"] | {"at": None}),
    "a moment that is none": lambda e: e.with_more("proof", e.more["proof"] | {"at": True}),
    "another signature": lambda e: e.with_more("proof", e.more["proof"] | {"signature": "00" * 64}),
    "a signature of no length": lambda e: e.with_more("proof", e.more["proof"] | {"signature": ""}),
    "a signature that is none": lambda e: e.with_more("proof", e.more["proof"] | {"signature": 7}),
    "another's key": lambda e: e.with_more(
        "proof", e.more["proof"] | {"key": signed(1, Identity(b"b" * 32)).more["proof"]["key"]}
    ),
    "no key": lambda e: e.with_more("proof", {"at": NOW, "signature": "00" * 64}),
    "a key of no length": lambda e: e.with_more("proof", e.more["proof"] | {"key": ""}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_not_proved(change: str) -> None:
    envelope = signed({"pay": 10})
    assert proves(envelope)
    assert not proves(CHANGES[change](envelope))


def test_an_old_proof_is_none() -> None:
    for seconds in (-MAX_AGE, MAX_AGE):
        assert proves(signed(1), NOW + seconds)
        assert not proves(signed(1), NOW + 1.01 * seconds)


def test_a_number_that_no_javascript_has_cannot_be_signed() -> None:
    with pytest.raises(ValueError, match="cannot be signed"):
        signed(10**400)


async def test_messages_of_an_identity_are_proved_and_others_may_be_refused(
    autojump_clock: MockClock,
) -> None:
    async with open_relays() as relays:
        hub = await relays.open("hub", listens=True)
        alice = await relays.open("alice", "hub", identity=ALICE)
        mallory = await relays.open("mallory", "hub")
        strict = await relays.open(
            "strict", "hub", identity=Identity(b"s" * 32), accepts_unproved=False
        )
        assert alice.id == ALICE.id
        await until(lambda: len(hub.peers) == 3)
        await alice.send(strict.id, "from alice", wait_for_receipt=True)
        message = await strict.messages.receive()
        assert (message.sender, message.is_proved) == (ALICE.id, True)
        with pytest.raises(DeliveryFailed):
            await mallory.send(strict.id, "from nobody", wait_for_receipt=True, timeout=5)
        assert len(strict.messages) == 0
        await mallory.send(alice.id, "hello")
        assert not (await alice.messages.receive()).is_proved
        await strict.send(mallory.id, "hello")
        assert (await mallory.messages.receive()).is_proved


async def test_who_calls_itself_by_anothers_id_proves_nothing(autojump_clock: MockClock) -> None:
    async with open_relays() as relays:
        one = await relays.open("one", listens=True)
        liar = await relays.stranger("one", ALICE.id)
        await say(liar, ALICE.id, one.id, User("I am Alice"))
        message = await one.messages.receive()
        assert message.sender == ALICE.id
        assert not message.is_proved


async def test_an_identity_has_its_own_id() -> None:
    with pytest.raises(UsageError, match="identity's"):
        async with open_relay(identity=ALICE, id=BOB):
            pass
    async with open_relay(identity=ALICE, id=ALICE.id, webrtc=False) as relay:
        assert relay.id == ALICE.id


def test_without_cryptography_nothing_is_proved_and_identities_say_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    envelope = signed(1)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(UsageError, match=r"trio-overlay\[identity\]"):
        Identity()
    with pytest.raises(UsageError, match=r"trio-overlay\[identity\]"):
        relay_identity.require_cryptography()

    async def talk() -> None:
        async with open_relay(webrtc=False) as relay:
            assert not relay._mind._is_proved(envelope)  # type: ignore[misc]

    trio.run(talk)
