"""What roads have in common, without any connection."""

from __future__ import annotations

from trio_overlay.channels.channel import Channel
from trio_overlay.channels.network import PeerConnection
from trio_overlay.protocol.signals import Candidate, Signal
from trio_overlay.signaling.roads import MAX_SIGNALS, SignalInbox

SIGNALS = [Candidate(f"candidate:{number}") for number in range(2 * MAX_SIGNALS)]


class Listener(PeerConnection):
    """Only hears."""

    def __init__(self) -> None:
        self.heard: list[Signal] = []

    def signal_nowait(self, signal: Signal) -> None:
        self.heard.append(signal)

    async def next_signal(self) -> Signal:
        raise NotImplementedError

    async def connected(self) -> Channel:
        raise NotImplementedError


def test_an_inbox_hands_over_what_came_early_and_then_what_comes() -> None:
    inbox, peer = SignalInbox(), Listener()
    inbox.deliver(SIGNALS[0])
    inbox.deliver(SIGNALS[1])
    inbox.attach(peer)
    assert peer.heard == SIGNALS[:2]
    assert inbox.early == []
    inbox.deliver(SIGNALS[2])
    assert peer.heard == SIGNALS[:3]
    assert inbox.early == []


def test_an_inbox_keeps_so_many_early_signals_and_any_number_of_later_ones() -> None:
    inbox, peer = SignalInbox(), Listener()
    for signal in SIGNALS:
        inbox.deliver(signal)
    inbox.attach(peer)
    assert peer.heard == SIGNALS[:MAX_SIGNALS]
    for signal in SIGNALS:
        inbox.deliver(signal)
    assert peer.heard == SIGNALS[:MAX_SIGNALS] + SIGNALS
