"""Hypothesis strategies: what peers of the protocols say, and what strangers might.

Those called `hostile_…` are texts and values that a decoder must refuse with `MalformedFrame`, or
take; never may anything else come out of it.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from trio_overlay.protocol import broker, neighbours, relay, sampling_frames
from trio_overlay.protocol.ancestry import Descent
from trio_overlay.protocol.bootstrap import (
    AskSnapshot,
    BootstrapFrame,
    Done,
    Heartbeat,
    Hello,
    Refused,
    Role,
    SnapshotPart,
    Withdrawn,
    encode_bootstrap,
    signal_frame,
)
from trio_overlay.protocol.cast_frames import (
    MAX_TOPIC,
    Answers,
    Ask,
    Cast,
    CastCredit,
    CastFrame,
    Entry,
    Hurry,
    Letter,
    Past,
    PastEnd,
    Ping,
    Pong,
    Receipt,
    Refill,
    Resume,
    Routes,
    Start,
    Unknown,
    is_id,
)
from trio_overlay.protocol.filling import MAX_LEVELS
from trio_overlay.protocol.json import JSON
from trio_overlay.protocol.neighbours import (
    EXTENSIONS,
    INIT,
    RENEGOTIATION,
    Application,
    ArcEnd,
    ArcMessage,
    ArcRequest,
    ArcResponse,
    ConnectTo,
    Direct,
    Disconnect,
    Forward,
    InternalSend,
    NeighbourFrame,
    Payload,
    Send,
    encode_arc_message,
    encode_neighbour,
    encode_payload,
    is_reserved,
)
from trio_overlay.protocol.pulling import Pull
from trio_overlay.protocol.signals import (
    Answer,
    Candidate,
    Irrelevant,
    Offer,
    Signal,
    encode_signal,
)
from trio_overlay.protocol.tree import (
    Beat,
    ConnectionRefused,
    ConnectionSignal,
    Credit,
    Data,
    Descend,
    JoinRequest,
    Leaving,
    PullUp,
    Report,
    RoadEnd,
    RoadRequest,
    RoadSignal,
    StandBy,
    TreeFrame,
    Wish,
    Withdraw,
    encode_tree,
)
from trio_overlay.testing.faults import (
    Action,
    Cut,
    DelaySignals,
    FailHandshakes,
    Latency,
    LoseSignals,
    Rule,
    Selector,
    SlowReader,
)

DEEPEST = 3_000
"""Nesting of hostile JSON, deeper than any decoder here goes."""

# --- JSON ---------------------------------------------------------------------------------


def texts(max_size: int | None = 40) -> st.SearchStrategy[str]:
    """Text as JSON can hold it: control characters and lone surrogates, too."""
    return st.text(st.characters(), max_size=max_size)


def json_values(max_leaves: int = 20) -> st.SearchStrategy[JSON]:
    """Any JSON value: what comes back equal from ``json.loads(json.dumps(value))``."""
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**64), 2**64),
        st.floats(allow_nan=False, allow_infinity=False),
        texts(),
    )
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts(10), inner, max_size=5),
        max_leaves=max_leaves,
    )


def hostile_texts() -> st.SearchStrategy[str | bytes]:
    """Frames that are no JSON, or JSON that wears a decoder out: huge numbers, deep nesting."""
    depths = st.integers(100, DEEPEST)
    return st.one_of(
        texts(),
        st.binary(max_size=40),
        st.sampled_from(["", " ", "NaN", "[Infinity]", "-Infinity", "{", '"\\ud800"', "\ufeff{}"]),
        st.integers(400, 6_000).map(lambda digits: "9" * digits),
        st.integers(1, 400).map(lambda exponent: f"1e{exponent}"),
        depths.map(lambda depth: "[" * depth + "]" * depth),
        depths.map(lambda depth: '{"signal":' * depth + "1" + "}" * depth),
        depths.map(lambda depth: "[" * depth),
        json_values().map(json.dumps),
        json_values().map(lambda value: json.dumps(value)[:-1]),
    )


@st.composite
def spoiled(draw: st.DrawFn, values: st.SearchStrategy[JSON]) -> JSON:
    """A value drawn from *values* with one thing in it wrong: a key gone, or another type."""
    value = draw(values)
    spots = list(_spots(value))
    if not spots:
        return draw(json_values(5))
    holder, key = draw(st.sampled_from(spots))
    if isinstance(holder, dict) and draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = draw(json_values(5))
    return value


def _spots(value: JSON) -> list[tuple[Any, Any]]:
    """Every place in *value* where another value could stand."""
    found: list[tuple[Any, Any]] = []
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items:
        found.append((value, key))
        found += _spots(inner)
    return found


# --- ids and signals ----------------------------------------------------------------------

identifiers: st.SearchStrategy[str] = st.integers(0, 2**128 - 1).map("{:032x}".format)
"""Ids as the bootstrap server gives them: 32 hex digits."""

hostile_identifiers: st.SearchStrategy[JSON] = st.one_of(
    identifiers.map(str.upper),
    identifiers.map(lambda identifier: identifier[:-1]),
    st.sampled_from(["", "0", "__proto__", "constructor", "toString", "null", "../../etc"]),
    texts(),
    json_values(3),
)
"""Ids that nobody was given, and what is no id at all."""

candidates: st.SearchStrategy[Candidate] = st.builds(
    Candidate,
    st.one_of(
        st.just(""),
        st.integers(1, 65535).map("candidate:1 1 udp 2122260223 192.0.2.7 {} typ host".format),
        st.integers(1, 65535).map("candidate:2 1 tcp 1518280447 192.0.2.7 {} typ host".format),
        identifiers.map("candidate:3 1 udp 2113937151 {}.local 9 typ host".format),
        st.just("candidate:4 1 udp 2122262783 2001:db8::7 4711 typ host"),
    ),
    st.none() | st.just("0"),
    st.none() | st.just(0),
)
"""ICE candidates: IPv4, IPv6, mDNS, TCP, and the empty one that says there are no more."""

signals: st.SearchStrategy[Signal] = st.one_of(
    st.builds(Offer, texts(200)),
    st.builds(Answer, texts(200)),
    candidates,
    st.just(Irrelevant()),
)
"""All kinds of signals; descriptions hold any text, for nobody on the way looks into it."""

hostile_signals: st.SearchStrategy[JSON] = st.one_of(
    spoiled(signals.map(encode_signal)), json_values(5)
)
"""Undecoded signals with something wrong in them, mostly."""


def _is_topic(text: str) -> bool:
    return is_id(text, MAX_TOPIC)


# --- frames -------------------------------------------------------------------------------

extension_names = st.lists(st.sampled_from(["withdraw", "credit", "connections"]) | texts(10))
"""What a peer says that it understands: ours, and words that nobody knows."""

signal_frames = st.builds(
    signal_frame,
    signals.map(encode_signal),
    destination=st.none() | identifiers,
    rank=st.integers(0, 100),
    extensions=extension_names,
)
"""What a client says to the bootstrap server."""

bootstrap_frames: st.SearchStrategy[BootstrapFrame] = st.one_of(
    signal_frames,
    st.builds(lambda frame, origin: frame.with_origin(origin), signal_frames, identifiers),
    st.just(Heartbeat()),
    st.builds(Hello, st.none() | identifiers, extension_names.map(frozenset)),
    st.just(Done()),
    st.builds(Withdrawn, st.none() | identifiers, texts()),
    st.builds(Refused, texts(), st.none() | identifiers),
    st.builds(Role, st.booleans(), st.integers(0, 2**48 - 1), st.integers(0, 9)),
    st.builds(AskSnapshot, st.floats(0.5, 60), st.none() | identifiers),
    st.builds(
        SnapshotPart, st.none() | identifiers, st.lists(json_values(3), max_size=3).map(tuple),
        st.integers(0, 9), st.booleans(),
    ),
)  # fmt: skip
"""All that is said on the bootstrap server's sockets."""

hostile_bootstrap_texts: st.SearchStrategy[str | bytes] = st.one_of(
    spoiled(bootstrap_frames.map(encode_bootstrap).map(json.loads)).map(json.dumps),
    hostile_texts(),
)
"""What a stranger might send to the bootstrap server, or the server to a client."""

connection_names = st.integers(0, 2**64 - 1).map("{:016x}".format)
"""Names of dedicated connections and of roads: 16 hex digits."""

node_ids = st.integers(0, 2**64 - 1).map("{:016x}".format)
"""What tree nodes are called in paths: 16 hex digits."""
counts = st.integers(0, 2**53 - 1)
"""Whole numbers from 0 up that JavaScript can tell apart."""
logs = st.builds("{}.{}".format, node_ids, st.integers(1, 9))
"""Names of a root's logs: its id, and how many it has begun."""

cast_frames: st.SearchStrategy[CastFrame] = st.one_of(
    st.builds(Cast, node_ids, counts, counts, json_values(3)),
    st.builds(Entry, st.none() | logs, counts, node_ids, counts, json_values(3)),
    st.builds(Resume, st.none() | logs, counts),
    st.builds(Start, logs, counts),
    st.builds(Refill, logs, counts, counts),
    st.builds(Past, st.builds(Entry, logs, counts, node_ids, counts, json_values(3))),
    st.builds(PastEnd, logs, counts),
    st.just(Hurry()),
    st.builds(Letter, node_ids, node_ids, counts, counts, json_values(3)),
    st.builds(Receipt, node_ids, node_ids, counts, st.booleans()),
    st.builds(Unknown, node_ids, node_ids),
    st.builds(
        Routes,
        st.lists(node_ids, max_size=5).map(tuple),
        st.lists(node_ids, max_size=5).map(tuple),
        st.booleans(),
    ),
    st.builds(CastCredit, counts),
    st.builds(
        Ask, node_ids, texts(20).filter(_is_topic), json_values(3), st.floats(0, 100), st.booleans()
    ),
    st.builds(
        Answers, node_ids, st.lists(json_values(3), max_size=3).map(tuple), counts, counts,
        st.booleans(),
    ),
    st.builds(Ping, counts),
    st.builds(Pong, counts),
)  # fmt: skip
"""What our tree nodes say to each other of what goes further than a neighbour."""

_numbers = st.tuples(st.integers(0, 2**48 - 1), st.integers(0, 2**48 - 1))
_levels = st.integers(0, 2**48 - 1)

tree_frames: st.SearchStrategy[TreeFrame] = st.one_of(
    cast_frames,
    st.builds(Data, json_values()),
    st.builds(
        lambda frame, origin: JoinRequest(frame.with_origin(origin)), signal_frames, identifiers
    ),
    st.builds(Withdraw, identifiers, texts()),
    st.builds(Credit, st.integers(1, 2**53)),
    st.builds(ConnectionSignal, connection_names, signals.map(encode_signal)),
    st.builds(ConnectionRefused, connection_names, texts()),
    st.builds(
        Descend, st.builds(Descent, _numbers, st.lists(node_ids, max_size=5).map(tuple))
    ),
    st.builds(Beat, st.none() | _numbers),
    st.builds(Report, st.lists(_levels, max_size=MAX_LEVELS).map(tuple), _levels),
    st.builds(
        lambda road, wish, frame, origin: RoadRequest(road, wish, frame.with_origin(origin)),
        connection_names, st.sampled_from(Wish), signal_frames, identifiers,
    ),
    st.builds(
        RoadSignal, connection_names, signals.map(encode_signal), extension_names.map(frozenset)
    ),
    st.builds(RoadEnd, connection_names, texts(), st.booleans()),
    st.builds(Leaving, st.booleans()),
    st.just(StandBy()),
    st.builds(PullUp, st.builds(Pull, _levels, _levels)),
)  # fmt: skip
"""What tree nodes say to each other: the original's frames, and those of our extensions."""

hostile_tree_texts: st.SearchStrategy[str | bytes] = st.one_of(
    spoiled(tree_frames.map(encode_tree).map(json.loads)).map(json.dumps), hostile_texts()
)
"""What a stranger might send to a tree node."""

ends = st.tuples(identifiers, st.sampled_from("IO")).map("-".join)
"""The two ends of neighbours."""

tids = st.uuids(version=4).map(str)
"""Names of attempts at an arc: UUIDs."""

_arc_signals = st.none() | signals.map(encode_signal)
_offer_types = st.sampled_from([INIT, INIT, INIT, RENEGOTIATION])
_arc_extensions = st.frozensets(st.sampled_from(sorted(EXTENSIONS)) | texts(10))

arc_messages: st.SearchStrategy[ArcMessage] = st.one_of(
    st.builds(
        ArcRequest, tids, ends, texts(5).filter(bool), _arc_signals, _offer_types, _arc_extensions
    ),
    st.builds(
        ArcResponse, tids, ends, texts(5).filter(bool), _arc_signals, _offer_types, _arc_extensions
    ),
    st.builds(ArcEnd, tids, ends, texts(5).filter(bool), st.none() | texts()),
)
"""What the two ends of an attempt at an arc say to each other."""

payloads: st.SearchStrategy[Payload] = st.one_of(
    arc_messages,
    st.builds(ConnectTo, ends, ends),
    st.builds(Forward, ends, ends, arc_messages.map(encode_arc_message), st.booleans()),
    st.just(Direct()),
    st.builds(Disconnect, tids),
    st.builds(neighbours.Credit, st.integers(1, 2**20)),
    st.builds(neighbours.Beat, st.booleans()),
    json_values(5).filter(lambda data: not is_reserved(data)).map(Application),
)
"""What neighbours put into their frames; values that are none of ours are the application's."""

neighbour_frames: st.SearchStrategy[NeighbourFrame] = st.one_of(
    st.builds(Send, ends, texts(5).filter(bool), payloads.map(encode_payload)),
    st.builds(
        lambda end, pid, payload: InternalSend(
            {"peer": end, "pid": pid, "payload": payload, "type": "MInternalSend"}
        ),
        ends,
        st.none() | texts(5),
        json_values(5),
    ),
)
"""What neighbours that signal for each other say: the originals' frames, and our extensions."""

hostile_payloads: st.SearchStrategy[JSON] = st.one_of(
    spoiled(payloads.map(encode_payload)), json_values(5)
)
"""The same, undecoded, mostly with something wrong in it."""

hostile_neighbour_texts: st.SearchStrategy[str | bytes] = st.one_of(
    spoiled(neighbour_frames.map(encode_neighbour).map(json.loads)).map(json.dumps),
    hostile_texts(),
)
"""What a stranger might send to a neighbour."""

_names = texts(20).filter(bool)

sampling_words: st.SearchStrategy[sampling_frames.SamplingFrame] = st.one_of(
    st.builds(
        sampling_frames.Exchange,
        st.none() | ends,
        st.none() | identifiers,
        st.none() | st.integers(0, 100),
    ),
    st.builds(sampling_frames.Join, st.none() | _names),
    st.builds(sampling_frames.JoinBack, _names, st.booleans(), st.integers(0, 100)),
    st.builds(sampling_frames.Response, _names),
    st.just(sampling_frames.Leave()),
)
"""What peers that sample their network say, in messages to neighbours: spray-wrtc's words, of
both generations, and with what ours say beside them."""

hostile_sampling_words: st.SearchStrategy[JSON] = st.one_of(
    spoiled(sampling_words.map(sampling_frames.encode_sampling)), json_values(5)
)
"""What a stranger might send instead, undecoded."""

# --- brokers ------------------------------------------------------------------------------

generations = st.sampled_from(broker.Generation)
"""Both generations of linkup's protocol."""

peer_names = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20
).filter(str.isprintable) | st.sampled_from(["ada", "constructor", "toString", "x" * 128])
"""Ids by which peers register at a broker."""

_secrets = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=16, max_size=128)

_keys = texts() | st.integers(-(2**64), 2**64) | st.none()

broker_calls: st.SearchStrategy[broker.Call] = st.one_of(
    st.just(broker.Ping()),
    st.just(broker.Unregister()),
    *(st.builds(call, peer_names) for call in (broker.Exists, broker.Find)),
    st.builds(broker.Register, peer_names, st.none() | _secrets),
)
"""What a peer may want of a broker."""

broker_requests: st.SearchStrategy[broker.Request] = st.one_of(
    st.builds(broker.Request, broker_calls, _keys, generations),
    st.builds(broker.Request, broker_calls, st.none(), generations, st.just(True)),
)
"""What a peer asks of a broker, in either generation of linkup; some want no answer."""

peer_signals: st.SearchStrategy[broker.PeerSignal] = st.builds(
    broker.peer_signal, peer_names, peer_names, signals.map(encode_signal)
)
"""Signals through a broker: to `encode_peer_signal` in the one generation or the other."""

broker_responses: st.SearchStrategy[broker.Response] = st.one_of(
    st.builds(broker.Response, _keys, json_values(5), st.none(), generations),
    st.builds(
        broker.Response,
        _keys,
        st.none(),
        st.builds(broker.Failure, st.integers(-32800, -32000), texts(), json_values(3)),
        st.just(broker.Generation.JSON_RPC),
    ),
)
"""What a broker answers; failures in the current generation, for the older has no codes."""

broker_texts: st.SearchStrategy[str] = st.one_of(
    broker_requests.map(broker.encode_request),
    st.builds(broker.encode_peer_signal, peer_signals, generations),
    broker_responses.map(broker.encode_response),
    st.lists(
        st.builds(broker.Request, broker_calls, _keys).map(broker.encode_request),
        min_size=1,
        max_size=3,
    ).map(lambda requests: f"[{','.join(requests)}]"),
)
"""All that is said between a broker and its peers, encoded, batches included."""

hostile_broker_texts: st.SearchStrategy[str | bytes] = st.one_of(
    spoiled(broker_texts.map(json.loads)).map(json.dumps), hostile_texts()
)
"""What a stranger might send to a broker, or a broker to a peer."""

# --- relays -------------------------------------------------------------------------------

relay_ids: st.SearchStrategy[relay.PeerId] = st.integers(0, 2**160 - 1).map("{:040x}".format)
"""Ids of relays: 160 bits as 40 hex digits."""

_nonces = st.text(min_size=1, max_size=40)
_alive = st.sampled_from([frozenset[str](), relay.EXTENSIONS])

relay_bodies: st.SearchStrategy[relay.Body] = st.one_of(
    st.builds(relay.User, json_values(5), st.none() | _nonces),
    st.builds(relay.FindPeers, relay_ids, _alive),
    st.builds(relay.FoundPeers, st.lists(relay_ids, max_size=3, unique=True).map(tuple), _alive),
    st.builds(relay.HandshakeOffer, _alive),
    st.builds(relay.HandshakeAnswer, st.none() | _nonces, st.booleans(), _alive),
    st.builds(relay.PeerSignal, signals.map(encode_signal)),
    st.builds(relay.Receipt, _nonces),
    st.just(relay.Ping()),
    st.just(relay.Pong()),
    st.just(relay.Withdrawn()),
    st.builds(
        relay.Unknown, st.builds(lambda data: {"type": "vote", "data": data}, json_values(3))
    ),
)
"""What one relay says to another: peer-relay's bodies, and those of our extensions."""

relay_envelopes: st.SearchStrategy[relay.Envelope] = st.builds(
    relay.Envelope,
    relay_ids,
    relay_ids,
    st.lists(relay_ids, min_size=1, max_size=4).map(tuple),
    _nonces,
    relay_bodies,
    st.dictionaries(st.text(min_size=6), json_values(3), max_size=2),
    buffers=st.sampled_from([frozenset(), frozenset({"to"}), frozenset({"to", "from"})]),
)
"""Bodies on their way, ids as text or, as a relay of the original writes them, as Node buffers."""

hostile_relay_texts: st.SearchStrategy[str | bytes] = st.one_of(
    spoiled(relay_envelopes.map(relay.value_of)).map(json.dumps),
    spoiled(relay_ids.map(relay.encode_id)).map(json.dumps),
    hostile_texts(),
)
"""Also what is no first frame: a spoiled id."""

# --- faults -------------------------------------------------------------------------------

probabilities = st.floats(0.0, 1.0, allow_nan=False)
"""From 0 to 1, both included."""


def selectors(names: list[str]) -> st.SearchStrategy[Selector]:
    """Ways between hosts of *names*, or from or to all."""
    sides = st.just(("*",)) | st.lists(
        st.sampled_from(names), min_size=1, max_size=3, unique=True
    ).map(tuple)
    return st.builds(Selector, sides, sides, st.booleans())


actions: st.SearchStrategy[Action] = st.one_of(
    st.tuples(st.floats(0.0, 0.5), st.floats(0.0, 0.5)).map(lambda pair: Latency(*sorted(pair))),
    st.builds(Cut, st.none() | st.floats(0.1, 60.0)),
    st.builds(LoseSignals, probabilities),
    st.builds(DelaySignals, probabilities, st.floats(0.0, 60.0)),
    st.builds(FailHandshakes, probabilities),
    st.builds(SlowReader, st.floats(0.1, 1_000.0)),
)
"""What can happen to a way."""


def fault_plans(
    names: list[str], *, duration: float = 60.0, max_size: int = 8
) -> st.SearchStrategy[list[tuple[float, float, Rule]]]:
    """Rules for the ways between hosts of *names*, each with the moments it begins and ends.

    Sorted by beginning; all have ended *duration* seconds from the start.
    `VirtualNetwork.follow` puts them in force.
    """
    moments = st.floats(0.0, duration, allow_nan=False)
    spans = st.tuples(moments, moments).map(sorted)
    rules = st.builds(Rule, selectors(names), actions, st.sampled_from([None, "peer", "socket"]))
    entries = st.tuples(spans, rules).map(lambda entry: (entry[0][0], entry[0][1], entry[1]))
    return st.lists(entries, max_size=max_size).map(
        lambda plan: sorted(plan, key=lambda entry: entry[:2])
    )
