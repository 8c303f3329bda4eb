"""Descriptions and candidates of strangers."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_overlay.channels.sdp import (
    DEFAULT_MAX_MESSAGE_SIZE,
    MAX_DESCRIPTION_SIZE,
    read_description,
    usable_candidate,
)
from trio_overlay.errors import MalformedFrame

HEAD = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n"
SECTION = "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\n"
NEEDED = (
    "a=ice-ufrag:abcd\r\n",
    "a=ice-pwd:abcdefghijklmnopqrstuv\r\n",
    "a=fingerprint:sha-256 AB:CD\r\n",
    "a=setup:actpass\r\n",
    "a=sctp-port:5000\r\n",
)
GOOD = HEAD + SECTION + "".join(NEEDED)
USABLE = "1 1 udp 2130706431 192.0.2.7 50000 typ host"


def test_candidates_are_taken_out_and_the_rest_is_kept() -> None:
    described = read_description(
        GOOD
        + f"a=candidate:{USABLE} generation 0\r\na=candidate:1 1 udp 1 abc.local 5 typ host\r\n"
        + "a=end-of-candidates\r\na=max-message-size:1000\r\n"
    )
    assert described.candidates == (USABLE,)
    assert described.has_all_candidates
    assert described.max_message_size == 1000
    assert described.sdp == GOOD + "a=max-message-size:1000\r\n"


def test_size_that_is_not_said_is_small_and_zero_is_any() -> None:
    assert read_description(GOOD).max_message_size == DEFAULT_MAX_MESSAGE_SIZE
    assert read_description(GOOD + "a=max-message-size:0\r\n").max_message_size > 2**30


def test_older_browsers_sections_are_understood() -> None:
    section = "m=application 9 DTLS/SCTP 5000\r\na=sctpmap:5000 webrtc-datachannel 1024\r\n"
    assert read_description(HEAD + section + "".join(NEEDED[:4])).candidates == ()


@pytest.mark.parametrize("missing", range(len(NEEDED)))
def test_description_without_what_a_connection_needs_is_malformed(missing: int) -> None:
    kept = (line for i, line in enumerate(NEEDED) if i != missing)
    with pytest.raises(MalformedFrame):
        read_description(HEAD + SECTION + "".join(kept))


@pytest.mark.parametrize(
    "sdp",
    [
        "",
        HEAD,
        "hello",
        GOOD + SECTION,
        GOOD + "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n",
        GOOD.replace("m=application", "m=video"),
        GOOD.replace("5000", "0"),
        GOOD.replace("5000", "99999"),
        GOOD + "a=max-message-size:-1\r\n",
        GOOD + "a=max-message-size:many\r\n",
        GOOD + "a=x\r\n" * MAX_DESCRIPTION_SIZE,
    ],
)
def test_unusable_descriptions_are_malformed(sdp: str) -> None:
    with pytest.raises(MalformedFrame):
        read_description(sdp)


@given(st.lists(st.sampled_from([*GOOD.splitlines(), "a=", "a=candidate", "m=", "a=candidate:"])))
def test_any_lines_are_read_or_malformed(lines: list[str]) -> None:
    with suppress(MalformedFrame):
        read_description("\r\n".join(lines))


@pytest.mark.parametrize(
    "line",
    [
        USABLE,
        f"candidate:{USABLE}",
        f"a=candidate:{USABLE}",
        USABLE.replace("udp", "UDP"),
        USABLE.replace("192.0.2.7", "2001:db8::7"),
        f"{USABLE} generation 0 ufrag abcd network-cost 999",
        "2 1 udp 1 198.51.100.1 9 typ srflx raddr 0.0.0.0 rport 0",
    ],
)
def test_usable_candidates_are_cut_to_what_is_used(line: str) -> None:
    used = usable_candidate(line)
    assert used is not None
    assert len(used.split()) == 8


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        USABLE.replace("udp", "tcp"),
        USABLE.replace("192.0.2.7", "1f4712db-ea17-4bcf-a596-105139dfd8bf.local"),
        USABLE.replace("192.0.2.7", "fe80::1%eth0"),
        USABLE.replace("192.0.2.7", "example.org"),
        USABLE.replace("192.0.2.7", "192.0.2.777"),
        USABLE.replace("50000", "0"),
        USABLE.replace("50000", "65536"),
        USABLE.replace("50000", "-1"),
        USABLE.replace("2130706431", "9" * 30),
        USABLE.replace("1 1 udp", "1 2 udp"),
        USABLE.replace("host", "prflx"),
        USABLE.replace("typ host", "host typ"),
        USABLE + " x" * 600,
    ],
)
def test_other_candidates_are_passed_over(line: str) -> None:
    assert usable_candidate(line) is None


@given(st.text())
def test_any_text_is_a_candidate_or_none(line: str) -> None:
    usable_candidate(line)
