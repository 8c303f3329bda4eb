"""Two ends of a data channel, or one and a stranger, in every order frames can cross in."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_overlay.errors import MalformedFrame
from trio_overlay.protocol.credit import (
    MAX_REASON_SIZE,
    WINDOW,
    Credit,
    Frame,
    cost,
    protocol_field,
)

NONCE = "0123456789abcdef" * 2

LARGEST = cost(bytes(WINDOW // 2))

frames = st.one_of(
    st.text(max_size=8),
    st.binary(max_size=8),
    # What a stranger to the protocol could mistake for control.
    st.sampled_from(["c999999999999", "x", "d", b"d", "c", b"c12"]),
    st.integers(WINDOW // 3, WINDOW // 2).map(bytes),
)


class End:
    """A `Credit` with what its channel would hold, and a wire to the other end."""

    def __init__(self, credit: Credit) -> None:
        self.credit = credit
        self.wire: deque[Frame] = deque()
        self.sent: list[Frame] = []
        self.arrived: deque[Frame] = deque()
        self.received: list[Frame] = []
        self.farewell: str | None = None
        self.unheld = 0  # cost of all that was sent while the other end was not known

    def send(self, frame: Frame) -> None:
        if not self.credit.is_mutual:
            self.unheld += cost(frame)
        self.wire.append(self.credit.outgoing(frame))
        self.sent.append(frame)

    def take(self, raw: Frame) -> None:
        meaning = self.credit.incoming(raw)
        if meaning.reply is not None:
            self.wire.append(meaning.reply)
        if meaning.farewell is not None:
            self.farewell = meaning.farewell
        if meaning.data is not None:
            self.arrived.append(meaning.data)

    def consume(self) -> None:
        frame = self.arrived.popleft()
        self.received.append(frame)
        if (more := self.credit.consumed(frame)) is not None:
            self.wire.append(more)


def pair() -> tuple[End, End]:
    acceptor = Credit.acceptor(protocol_field(NONCE))
    assert acceptor is not None
    ends = End(Credit.initiator(NONCE)), End(acceptor)
    ends[1].wire.append(acceptor.greeting)
    return ends


class TwoOfOurs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ends = pair()

    @rule(i=st.sampled_from([0, 1]), frame=frames)
    def send(self, i: int, frame: Frame) -> None:
        if self.ends[i].credit.may_send:
            self.ends[i].send(frame)

    @rule(i=st.sampled_from([0, 1]))
    def deliver(self, i: int) -> None:
        if self.ends[i].wire:
            self.ends[1 - i].take(self.ends[i].wire.popleft())

    @rule(i=st.sampled_from([0, 1]))
    def consume(self, i: int) -> None:
        if self.ends[i].arrived:
            self.ends[i].consume()

    @invariant()
    def frames_arrive_as_sent_and_in_order(self) -> None:
        for sender, reader in (self.ends, self.ends[::-1]):
            arrived = [*reader.received, *reader.arrived]
            assert arrived == sender.sent[: len(arrived)]

    @invariant()
    def a_slow_reader_has_a_window_and_one_frame_in_its_queue(self) -> None:
        for sender, reader in (self.ends, self.ends[::-1]):
            unread = sum(map(cost, sender.sent)) - sum(map(cost, reader.received))
            # What an initiator sent before it knew whom it had went unheld.
            assert unread < max(WINDOW + LARGEST, sender.unheld + 1)

    @precondition(lambda self: any(end.wire or end.arrived for end in self.ends))
    @rule()
    def with_everything_delivered_and_read_both_may_send(self) -> None:
        while any(end.wire or end.arrived for end in self.ends):
            for i, end in enumerate(self.ends):
                while end.wire:
                    self.ends[1 - i].take(end.wire.popleft())
                while end.arrived:
                    end.consume()
        for sender, reader in (self.ends, self.ends[::-1]):
            assert sender.credit.may_send
            assert sender.credit.is_mutual
            assert reader.received == sender.sent


test_two_of_ours = TwoOfOurs.TestCase


def test_writer_stops_at_the_window_until_the_reader_reads() -> None:
    initiator, acceptor = pair()
    initiator.take(acceptor.wire.popleft())
    count = 0
    while initiator.credit.may_send:
        initiator.send(bytes(10_000))
        count += 1
        assert count < WINDOW / 10_000
    assert WINDOW / 10_128 <= count < WINDOW / 10_128 + 1
    while initiator.wire:
        acceptor.take(initiator.wire.popleft())
    assert not acceptor.wire
    while not acceptor.wire:
        acceptor.consume()
    initiator.take(acceptor.wire.popleft())
    assert initiator.credit.may_send


@given(st.lists(frames))
def test_foreign_acceptor_gets_and_gives_plain_frames_for_ever(data: list[Frame]) -> None:
    initiator = Credit.initiator(NONCE)
    for frame in data:
        assert initiator.outgoing(frame) == frame
        assert initiator.incoming(frame).data == frame
        assert initiator.incoming(frame).reply is None
        assert initiator.consumed(frame) is None
    assert initiator.may_send
    assert initiator.farewell("done") is None


def test_nonce_that_comes_later_than_first_is_data() -> None:
    initiator = Credit.initiator(NONCE)
    assert initiator.incoming("hello").data == "hello"
    assert initiator.incoming(NONCE).data == NONCE
    assert not initiator.is_mutual


@pytest.mark.parametrize(
    "protocol",
    ["", "chat", "trio-overlay-1", "trio-overlay-1 xyz", f"trio-overlay-2 {NONCE}", NONCE * 2],
)
def test_initiator_that_does_not_name_itself_is_foreign(protocol: str) -> None:
    assert Credit.acceptor(protocol) is None


def test_farewell_carries_its_reason_and_a_long_one_is_cut() -> None:
    initiator, acceptor = pair()
    initiator.take(acceptor.wire.popleft())
    raw = acceptor.credit.farewell("bored " * 1000)
    assert raw is not None
    initiator.take(raw)
    assert initiator.farewell == ("bored " * 1000)[:MAX_REASON_SIZE]


@given(st.one_of(st.text(), st.binary()))
def test_any_prefixed_frame_is_understood_ignored_or_refused(raw: Frame) -> None:
    credit = Credit.initiator(NONCE)
    credit.incoming(NONCE)
    try:
        credit.incoming(raw)
    except MalformedFrame:
        assert raw in ("", b"") or (isinstance(raw, str) and raw[0] == "c")


@pytest.mark.parametrize("raw", ["c", "c-1", "c 1", "c1.5", "c" + "9" * 19, "c\u0661", "", b""])
def test_broken_control_frames_are_refused(raw: Frame) -> None:
    credit = Credit.initiator(NONCE)
    credit.incoming(NONCE)
    with pytest.raises(MalformedFrame):
        credit.incoming(raw)


def test_later_versions_may_say_more() -> None:
    credit = Credit.initiator(NONCE)
    credit.incoming(NONCE)
    for raw in ("h", "?", b"\0", b"c5"):
        meaning = credit.incoming(raw)
        assert meaning.data is meaning.reply is meaning.farewell is None
