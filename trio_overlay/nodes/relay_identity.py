"""Who a relay peer is: an Ed25519 key, whose hash is its id, and proofs made with it.

The proof of an envelope stands in an extra key, which peers that do not know it pass on and
ignore::

    "proof": {"key": 64 hex digits, "at": seconds since 1970, "signature": 128 hex digits}

It signs who sent what to whom, when, and under which nonce; not the path, which grows on the way.
This needs the library ``cryptography`` (``trio-overlay[identity]``).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from typing import Any

from trio_overlay.errors import UsageError
from trio_overlay.protocol.json import JSON, encode_json
from trio_overlay.protocol.relay import Envelope, PeerId, encode_body

MAX_AGE = 120.0
"""Seconds that the clocks of two peers, and the way between them, may make of a proof's moment.

Less than nonces of proved messages are remembered: who sends a proof a second time is found out.
"""
_CONTEXT = b"trio-overlay relay envelope 1\n"


class Identity:
    """A key, and the id that is its hash.

    Whoever has the key is the peer: keep it as you keep a password. Made of 32 secret bytes, or of
    new ones.

    UsageError: they are not 32, or ``cryptography`` is not installed.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        if secret is not None and len(secret) != 32:
            raise UsageError(f"the secret of an identity is 32 bytes, not {len(secret)}")
        self._key = (
            _ed25519().Ed25519PrivateKey.generate()
            if secret is None
            else _ed25519().Ed25519PrivateKey.from_private_bytes(secret)
        )
        self._public: bytes = self._key.public_key().public_bytes_raw()
        self.id: PeerId = id_of_key(self._public)

    def __repr__(self) -> str:
        return f"<Identity {self.id}>"

    @property
    def secret(self) -> bytes:
        """The 32 bytes from which the same identity is made again."""
        secret: bytes = self._key.private_bytes_raw()
        return secret

    def prove(self, envelope: Envelope, *, clock: Callable[[], float] = time.time) -> Envelope:
        """*envelope*, signed; its sender is this identity."""
        at = round(clock())
        signature = self._key.sign(_signed(envelope, at))
        proof = {"key": self._public.hex(), "at": at, "signature": signature.hex()}
        return envelope.with_more("proof", proof)


def id_of_key(public: bytes) -> PeerId:
    """The id of the peer with the Ed25519 key *public*: the first 160 bits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:40]


def is_proved(envelope: Envelope, *, clock: Callable[[], float] = time.time) -> bool:
    """Whether *envelope* was signed, not long ago, with the key that its sender is the hash of."""
    proof = envelope.more.get("proof")
    if not isinstance(proof, dict):
        return False
    at = proof.get("at")
    if isinstance(at, bool) or not isinstance(at, int | float) or abs(clock() - at) > MAX_AGE:
        return False
    try:
        public, signature = bytes.fromhex(proof["key"]), bytes.fromhex(proof["signature"])
        if id_of_key(public) != envelope.sender:
            return False
        key = _ed25519().Ed25519PublicKey.from_public_bytes(public)
        signed = _signed(envelope, at)
    except (ValueError, TypeError, KeyError):
        return False
    return _verifies(key, signature, signed)


def require_cryptography() -> None:
    """UsageError: it is not installed."""
    _ed25519()


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise UsageError(
            "identities need cryptography: install the extra, pip install 'trio-overlay[identity]'"
        ) from error
    return ed25519


def _verifies(key: Any, signature: bytes, signed: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def _signed(envelope: Envelope, at: float) -> bytes:
    body = encode_body(envelope.body) if envelope.raw is None else envelope.raw
    said = [envelope.to, envelope.sender, envelope.nonce, at, body]
    return _CONTEXT + encode_json(_canonical(said)).encode("ascii")


def _canonical(value: JSON) -> Any:
    """*value* as every relay on the way leaves it, whatever its language does to JSON.

    JavaScript has one kind of number, and writes 1.0 as 1 and 1e21 in its own way; and it puts
    keys that look like numbers first. So numbers are compared as doubles, and keys sorted.
    """
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise ValueError("a number that is larger than JavaScript's cannot be signed")
        return {"": (number + 0.0).hex()}  # -0.0 and 0.0 are one number to some
    if isinstance(value, list | tuple):
        return [_canonical(each) for each in value]
    if isinstance(value, dict):
        return [[str(key), _canonical(value[key])] for key in sorted(value)]
    raise TypeError(f"{type(value).__name__} is no JSON value")
