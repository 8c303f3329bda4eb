"""What two peers that sample the network say to each other, as spray-wrtc does.

These are the payloads of messages between neighbours. spray-wrtc 2.0 (npm) says ``MExchange`` with
its ``inview``, a bare ``MJoin``, and ``MLeave``, and throws on anything else; 3.0 (its repository)
says ``MExchange`` with its ``id``, gives a ``jobId`` to an ``MJoin`` and answers it. Both ignore
keys they do not know, so ours have all of them; whoever gave a ``jobId`` understands the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.json import JSON

PROTOCOL_ID = "spray-wrtc"
"""The `pid` of the sampling among the protocols that share the connections of two neighbours."""

MAX_NAME = 200
"""Characters of an id; the originals' have 38."""
MAX_ARCS_SAID = 1_000_000
"""No view is larger, whoever says so."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """The sender gives us half of its view, and is to get half of ours."""

    inview: str | None = None
    """The sender's end for arcs that come in, as 2.0 says; not to be trusted."""
    id: str | None = None
    """The same, as 3.0 says."""
    arcs: int | None = None
    """How many arcs the sender had before; ours only."""


@dataclass(frozen=True, slots=True)
class Join:
    """The sender is new, and we are its contact."""

    job: str | None = None
    """What the answer is to be called; None from 2.0, which takes none."""


@dataclass(frozen=True, slots=True)
class JoinBack:
    """The contact has told its neighbours of the newcomer."""

    job: str
    is_alone: bool = False
    """The contact knows nobody else, and the newcomer must ask for the arcs of a network of two."""
    arcs: int = 0
    """How many arcs to the newcomer are on their way; always 0 from 3.0."""


@dataclass(frozen=True, slots=True)
class Response:
    """3.0 says so of a job that is done; it means nothing."""

    job: str


@dataclass(frozen=True, slots=True)
class Leave:
    """The sender leaves: nobody needs arcs to it any more, and none is to be replaced."""


SamplingFrame: TypeAlias = Exchange | Join | JoinBack | Response | Leave


def decode_sampling(payload: JSON) -> SamplingFrame:
    """What a neighbour said.

    MalformedFrame: nothing that belongs to this protocol.
    """
    kind = payload.get("type") if isinstance(payload, dict) else None
    match kind:
        case "MExchange":
            return Exchange(
                _optional_name(payload, "inview"),
                _optional_name(payload, "id"),
                _count(payload, "arcs") if "arcs" in payload else None,
            )
        case "MJoin":
            return Join(_optional_name(payload, "jobId"))
        case "MJoinBack":
            is_alone = payload.get("topology")
            if not isinstance(is_alone, bool):
                raise MalformedFrame("the topology of an MJoinBack is true or false")
            return JoinBack(_name(payload, "jobId"), is_alone, _count(payload, "arcs"))
        case "response":
            return Response(_name(payload, "jobId"))
        case "MLeave":
            return Leave()
    raise MalformedFrame(f"nothing that peers which sample say has the type {kind!r:.40}")


def encode_sampling(frame: SamplingFrame) -> JSON:
    """The payload that says *frame*."""
    match frame:
        case Exchange(inview, id, arcs):
            fields = {"inview": inview, "id": id, "arcs": arcs}
            known = {key: value for key, value in fields.items() if value is not None}
            return {**known, "type": "MExchange"}
        case Join(None):
            return {"type": "MJoin"}
        case Join(job):
            return {"jobId": job, "type": "MJoin"}
        case JoinBack(job, is_alone, arcs):
            return {"type": "MJoinBack", "jobId": job, "topology": is_alone, "arcs": arcs}
        case Response(job):
            return {"type": "response", "jobId": job}
        case Leave():
            return {"type": "MLeave"}


def _optional_name(payload: dict[str, JSON], key: str) -> str | None:
    return None if payload.get(key) is None else _name(payload, key)


def _name(payload: dict[str, JSON], key: str) -> str:
    name = payload.get(key)
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise MalformedFrame(
            f"the {key} of a {payload['type']} is a string of 1 to {MAX_NAME} characters"
        )
    return name


def _count(payload: dict[str, JSON], key: str) -> int:
    count = payload.get(key)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MAX_ARCS_SAID:
        raise MalformedFrame(
            f"the {key} of a {payload['type']} are a whole number from 0 to {MAX_ARCS_SAID:,}"
        )
    return count
