"""Signals: what two WebRTC ends tell each other before they are connected.

The format is simple-peer's, both of version 6 and of version 9. Whoever only passes signals on
leaves them as the JSON they came in; whoever is meant decodes them here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.json import JSON


@dataclass(frozen=True, slots=True)
class Offer:
    """The initiator's description of its end, with candidates in it or without."""

    sdp: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The other end's description."""

    sdp: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """One more address at which the sender can perhaps be reached (ICE, RFC 8445).

    An empty `candidate` says that no more will come (simple-peer 9 may say so).
    """

    candidate: str
    sdp_mid: str | None = None
    sdp_m_line_index: int | None = None


@dataclass(frozen=True, slots=True)
class Irrelevant:
    """A signal with no meaning for a data channel: renegotiation, transceivers. Ignore it."""


Signal: TypeAlias = Offer | Answer | Candidate | Irrelevant


def decode_signal(value: JSON) -> Signal:
    """The signal that the JSON *value* stands for.

    MalformedFrame: it is none that simple-peer 6 or 9 sends.
    """
    if not isinstance(value, dict):
        raise MalformedFrame(f"a signal is an object, not {_kind(value)}")
    kind = value.get("type")
    if kind in ("offer", "answer"):
        sdp = value.get("sdp")
        if not isinstance(sdp, str):
            raise MalformedFrame(f"the sdp of an {kind} is a string, not {_kind(sdp)}")
        return Offer(sdp) if kind == "offer" else Answer(sdp)
    if "candidate" in value:  # version 6 gives it no type, version 9 gives it "candidate"
        return _decode_candidate(value["candidate"])
    if "renegotiate" in value or "transceiverRequest" in value or kind == "transceiverRequest":
        return Irrelevant()
    raise MalformedFrame("a signal is an offer, an answer or a candidate")


def encode_signal(signal: Signal) -> JSON:
    """*signal* as a JSON value that simple-peer 6 and 9 both understand."""
    match signal:
        case Offer(sdp):
            return {"type": "offer", "sdp": sdp}
        case Answer(sdp):
            return {"type": "answer", "sdp": sdp}
        case Candidate(candidate, mid, index):
            inner: dict[str, JSON] = {"candidate": candidate}
            if index is not None:
                inner["sdpMLineIndex"] = index
            if mid is not None:
                inner["sdpMid"] = mid
            # Version 6 looks only for the key "candidate"; version 9 also at the type.
            return {"type": "candidate", "candidate": inner}
        case Irrelevant():
            return {"renegotiate": True}


def is_offer(value: JSON) -> bool:
    """Whether the undecoded signal *value* is one that can begin a connection."""
    return (
        isinstance(value, dict)
        and value.get("type") == "offer"
        and isinstance(value.get("sdp"), str)
    )


def _decode_candidate(value: JSON) -> Signal:
    if value is None:
        return Candidate("")
    if not isinstance(value, dict):
        raise MalformedFrame(f"a candidate is an object, not {_kind(value)}")
    candidate = value.get("candidate", "")
    mid = value.get("sdpMid")
    index = value.get("sdpMLineIndex")
    if not isinstance(candidate, str):
        raise MalformedFrame(f"a candidate's line is a string, not {_kind(candidate)}")
    if mid is not None and not isinstance(mid, str):
        raise MalformedFrame(f"sdpMid is a string, not {_kind(mid)}")
    if index is not None and (isinstance(index, bool) or not isinstance(index, int)):
        raise MalformedFrame(f"sdpMLineIndex is a number, not {_kind(index)}")
    return Candidate(candidate, mid, index)


def _kind(value: JSON) -> str:
    return "null" if value is None else type(value).__name__
