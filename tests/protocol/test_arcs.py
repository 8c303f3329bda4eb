"""What a peer decides about arcs: its own, those it is asked to accept, those it bridges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_overlay.protocol.arcs import (
    MAX_ARCS_EACH,
    MAX_REMEMBERED,
    Acceptor,
    AddArc,
    ArcTable,
    Begin,
    Bridge,
    Drop,
    Fail,
    HandOver,
    Initiator,
    Pass,
    Refuse,
    TakeArc,
    TakeSignal,
    Withdraw,
)
from trio_overlay.protocol.neighbours import (
    RENEGOTIATION,
    ArcEnd,
    ArcMessage,
    ArcRequest,
    ArcResponse,
    Side,
)

OFFER = {"type": "offer", "sdp": "v=0"}
ANSWER = {"type": "answer", "sdp": "v=0"}
CANDIDATE = {"type": "candidate", "candidate": {"candidate": "candidate:1"}}


# --- the table ----------------------------------------------------------------------------


def test_arcs_are_counted_by_end_and_protocol() -> None:
    table = ArcTable()
    table.add_link(1, Side.OUT, "b-I")
    table.add_link(2, Side.IN, "b-O")
    table.add_link(3, Side.OUT, "b-I")
    for link, tid, pid in ((1, "t1", "p"), (1, "t2", "q"), (2, "t3", "p"), (3, "t4", "p")):
        assert table.open(link, tid, pid)
    assert not table.open(1, "t1", "p")
    assert table.view("p", Side.OUT) == {"b-I": 2}
    assert table.view("p", Side.IN) == {"b-O": 1}
    assert table.view("r", Side.OUT) == {}
    assert table.neighbours(Side.OUT) == {"b-I": {"p": 2, "q": 1}}
    assert list(table.find("p", "b-I")) == [(3, "t4"), (1, "t1")]
    assert list(table.find("p")) == [(3, "t4"), (2, "t3"), (1, "t1")]
    assert table.close(1, "t1") == "p"
    assert table.close(1, "t1") is None
    assert table.remove_link(1) == {"t2": "q"}
    assert table.neighbours(Side.OUT) == {"b-I": {"p": 1}}


# --- our attempts -------------------------------------------------------------------------


def initiator(target: str | None = "b-I") -> Initiator:
    return Initiator("a", "t", "p", target)


def response(peer: str = "b-I", offer: object = ANSWER, **more: str) -> ArcResponse:
    return ArcResponse("t", peer, more.pop("pid", "p"), offer, **more)  # type: ignore[arg-type]


def test_first_to_answer_is_the_other_end_and_nobody_else() -> None:
    attempt = initiator(None)
    assert attempt.take(response("b-I", CANDIDATE)) == TakeSignal()
    assert attempt.end == "b-I"
    assert isinstance(attempt.take(response("c-I")), Drop)
    assert attempt.take(response("b-I")) == TakeSignal()


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (response("b-O"), TakeSignal),  # that peer, whatever it calls its end
        (response("c-I"), Drop),
        (response(pid="q"), Drop),
        (response(offer_type=RENEGOTIATION), Drop),
        (response(offer=None), TakeArc),
        (response(offer=OFFER), Fail),
        (ArcRequest("t", "b-I", "p", ANSWER), Drop),
        (ArcEnd("t", "b-I", "p", "no room"), Fail),
        (ArcEnd("t", "b-I", "p", None), Drop),
        (ArcEnd("t", "c-I", "p", "no room"), Drop),
    ],
    ids=str,
)
def test_what_is_said_to_an_attempt(message: ArcMessage, kind: type) -> None:
    assert isinstance(initiator().take(message), kind)


def test_peer_that_answers_itself_has_no_arc() -> None:
    assert isinstance(initiator(None).take(response("a-I")), Fail)


# --- what we are asked to accept ----------------------------------------------------------


def request(tid: str = "t", peer: str = "a-O", offer: object = OFFER) -> ArcRequest:
    return ArcRequest(tid, peer, "p", offer)


def test_attempt_is_answered_once_and_its_signals_are_handed_over() -> None:
    acceptor = Acceptor("b", 2, 3)
    assert acceptor.take(request(), "bridge", None) == Begin()
    assert acceptor.take(request(), "bridge", None) == HandOver()
    assert acceptor.take(request(offer=CANDIDATE), "x", 1) == HandOver()
    assert isinstance(acceptor.take(request(peer="c-O"), "bridge", None), Drop)
    acceptor.end("t")
    assert isinstance(acceptor.take(request(), "bridge", None), Drop)
    assert isinstance(acceptor.take(request(), "bridge", 1), Drop)
    assert acceptor.answering == ()


def test_arc_more_is_counted_once_however_many_signals_its_request_has() -> None:
    acceptor = Acceptor("b", 2, 3)
    assert acceptor.take(request(), None, 1) == AddArc()
    for offer in (OFFER, CANDIDATE, None):
        assert isinstance(acceptor.take(request(offer=offer), None, 1), Drop)


@pytest.mark.parametrize(
    ("message", "arcs", "kind"),
    [
        (request(peer="b-O"), None, Refuse),
        (request(peer="b-O", offer=None), 1, Refuse),
        (request(offer=None), None, Refuse),
        (request(offer=CANDIDATE), None, Drop),
        (request(offer=ANSWER), None, Drop),
        (request(offer={"type": "offer", "sdp": 7}), None, Drop),
        (request(offer=CANDIDATE), 1, Drop),
        (request(offer=None), MAX_ARCS_EACH, Refuse),
        (request(), MAX_ARCS_EACH, Refuse),
        (ArcRequest("t", "a-O", "p", OFFER, RENEGOTIATION), None, Drop),
        (ArcEnd("t", "a-O", "p", "cancelled"), None, Drop),
    ],
    ids=str,
)
def test_what_begins_no_answer(message: ArcRequest, arcs: int | None, kind: type) -> None:
    acceptor = Acceptor("b", 2, 3)
    assert isinstance(acceptor.take(message, None, arcs), kind)
    assert acceptor.answering == ()


def test_withdrawn_attempt_ends_its_answer_and_only_its_own() -> None:
    acceptor = Acceptor("b", 2, 3)
    acceptor.take(request(), None, None)
    assert isinstance(acceptor.take(ArcEnd("t", "c-O", "p", "no"), None, None), Drop)
    assert isinstance(acceptor.take(ArcEnd("t", "a-O", "p", None), None, None), Drop)
    end = ArcEnd("t", "a-O", "p", "cancelled")
    assert acceptor.take(end, None, None) == Withdraw("cancelled")


def test_attempt_that_its_own_end_has_overtaken_does_not_begin() -> None:
    acceptor = Acceptor("b", 2, 3)
    acceptor.take(ArcEnd("t", "a-O", "p", "cancelled"), None, None)
    assert isinstance(acceptor.take(request(), None, None), Drop)


def test_answers_are_bounded_for_each_source_and_in_all() -> None:
    acceptor = Acceptor("b", 2, 3)
    verdicts = [
        acceptor.take(request(f"t{number}"), source, None)
        for number, source in enumerate(["x", "x", "x", "y", None])
    ]
    assert [type(verdict) for verdict in verdicts] == [Begin, Begin, Refuse, Begin, Refuse]
    acceptor.end("t0")
    assert acceptor.take(request("t9"), "x", None) == Begin()


def test_what_is_remembered_is_bounded() -> None:
    acceptor = Acceptor("b", 2, 3)
    for number in range(2 * MAX_REMEMBERED):
        acceptor.take(request(f"t{number}"), None, 1)
    assert len(acceptor._over) == MAX_REMEMBERED


# --- what we bridge -----------------------------------------------------------------------


def everybody(_: str) -> bool:
    return True


def begun(bridge: Bridge, tid: str = "t", source: str = "a", target: str = "b") -> object:
    message = ArcRequest(tid, f"{source}-O", "p", OFFER)
    return bridge.take(source, f"{source}-I", f"{target}-I", message, everybody, 10)


def test_messages_of_an_attempt_pass_both_ways_and_its_end_is_the_last() -> None:
    bridge = Bridge("m", 2)
    assert begun(bridge) == Pass("b")
    candidate = ArcRequest("t", "a-O", "p", CANDIDATE)
    assert bridge.take("a", "a-I", "b-I", candidate, everybody, 10) == Pass("b")
    answer = ArcResponse("t", "b-I", "p", ANSWER)
    assert bridge.take("b", "b-I", "a-I", answer, everybody, 10) == Pass("a")
    assert list(bridge.crossings) == [(("a", "t"), ("b", "t"))]
    end = ArcEnd("t", "a-O", "p", "cancelled")
    assert bridge.take("a", "a-I", "b-I", end, everybody, 10) == Pass("b")
    assert list(bridge.crossings) == []
    assert isinstance(bridge.take("b", "b-I", "a-I", answer, everybody, 10), Drop)


def test_good_end_frees_the_bridge_and_concerns_nobody_else() -> None:
    bridge = Bridge("m", 2)
    begun(bridge)
    end = ArcEnd("t", "a-O", "p", None)
    assert isinstance(bridge.take("a", "a-I", "b-I", end, everybody, 10), Drop)
    assert list(bridge.crossings) == []


@pytest.mark.parametrize(
    ("sender", "from_", "to", "message"),
    [
        ("c", "a-I", "b-I", ArcRequest("u", "a-O", "p", OFFER)),  # speaks for another
        ("a", "a-I", "b-I", ArcRequest("u", "c-O", "p", OFFER)),  # for another, further in
        ("a", "a-I", "m-I", ArcRequest("u", "a-O", "p", OFFER)),  # to the bridge itself
        ("a", "a-I", "a-I", ArcRequest("u", "a-O", "p", OFFER)),  # to itself
        ("a", "a-I", "b-I", ArcRequest("u", "a-O", "p", CANDIDATE)),  # without an offer
        ("a", "a-I", "b-I", ArcRequest("u", "a-O", "p", None)),
        ("b", "b-I", "a-I", ArcResponse("u", "b-I", "p", ANSWER)),  # of no attempt
        ("c", "c-I", "a-I", ArcResponse("t", "c-I", "p", ANSWER)),  # of somebody else's
        ("a", "a-I", "b-I", ArcResponse("t", "a-I", "p", ANSWER)),  # the wrong way round
        ("a", "a-I", "c-I", ArcRequest("t", "a-O", "p", CANDIDATE)),  # to somebody else
        ("c", "c-I", "b-I", ArcRequest("t", "c-O", "p", OFFER)),  # a tid that is taken
        ("c", "c-I", "b-I", ArcEnd("t", "c-O", "p", "cancelled")),
    ],
    ids=str,
)
def test_what_does_not_pass(sender: str, from_: str, to: str, message: ArcMessage) -> None:
    bridge = Bridge("m", 2)
    begun(bridge)
    assert isinstance(bridge.take(sender, from_, to, message, everybody, 10), Drop)
    assert list(bridge.crossings) == [(("a", "t"), ("b", "t"))]


def test_nothing_passes_to_who_is_not_connected() -> None:
    bridge = Bridge("m", 2)
    message = ArcRequest("t", "a-O", "p", OFFER)
    assert isinstance(bridge.take("a", "a-I", "b-I", message, lambda _: False, 10), Refuse)
    assert list(bridge.crossings) == []
    begun(bridge)
    assert isinstance(bridge.take("a", "a-I", "b-I", message, lambda _: False, 10), Refuse)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd"), st.booleans())))
def test_nobody_begins_or_is_asked_for_too_many(steps: list[tuple[str, str, bool]]) -> None:
    bridge = Bridge("m", 2)
    for number, (source, target, forgets) in enumerate(steps):
        begun(bridge, f"t{number}", source, target)
        if forgets and bridge.crossings:
            bridge.crossings.close(next(iter(bridge.crossings))[0])
        ends = [(opens, accepts) for (opens, _), (accepts, _) in bridge.crossings]
        assert all(source != target for source, target in ends)
        for name in "abcd":
            assert sum(opens == name for opens, _ in ends) <= 2
            assert sum(accepts == name for _, accepts in ends) <= 2
