"""What we take from the other end's session description, and from its candidates.

aiortc trusts what it is given: a description it cannot use makes it fail where nobody sees it, an
mDNS name stalls it for a second, a section for audio starts a media engine. So descriptions and
candidates of strangers pass through here first.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from trio_overlay.errors import MalformedFrame

MAX_DESCRIPTION_SIZE: Final = 65_536
"""Characters in a description; those of browsers have one or two thousand."""

DEFAULT_MAX_MESSAGE_SIZE: Final = 65_536
"""What a remote takes that does not say (RFC 8841, section 6)."""

_SECTION: Final = re.compile(r"m=application [0-9]{1,5} ((?:UDP/|TCP/)?DTLS/SCTP) ([!-~]+)")
_NUMBER: Final = re.compile(r"[0-9]{1,10}")
_TOKEN: Final = re.compile(r"[!-~]{1,256}")


@dataclass(frozen=True, slots=True)
class Description:
    """A remote description from which all candidates were taken out."""

    sdp: str
    candidates: tuple[str, ...]
    """Those that can be used, in the syntax of `usable_candidate`."""
    has_all_candidates: bool
    """It said that no more would come."""
    max_message_size: int
    """The largest message the remote takes, in bytes."""


def read_description(sdp: str) -> Description:
    """What an offer or answer says, if it is one for a data channel and nothing else.

    MalformedFrame: it is not, or lacks what a connection needs.
    """
    if len(sdp) > MAX_DESCRIPTION_SIZE:
        raise MalformedFrame(f"a description of {len(sdp)} characters")
    kept: list[str] = []
    candidates: list[str] = []
    has_all_candidates = False
    section: re.Match[str] | None = None
    attributes: dict[str, str] = {}
    for line in sdp.splitlines():
        if line.startswith("m="):
            if section is not None or (section := _SECTION.fullmatch(line)) is None:
                raise MalformedFrame(
                    f"a description has one section, for a data channel; this one has {line[:40]!r}"
                )
        elif line.startswith("a="):
            name, _, value = line[2:].partition(":")
            if name == "candidate":
                if (candidate := usable_candidate(value)) is not None:
                    candidates.append(candidate)
                continue
            if name == "end-of-candidates":
                has_all_candidates = True
                continue
            attributes[name] = value
        kept.append(line)
    if section is None:
        raise MalformedFrame("a description without a section for a data channel")
    for needed in ("ice-ufrag", "ice-pwd", "fingerprint", "setup"):
        if not attributes.get(needed):
            raise MalformedFrame(f"a description without {needed}")
    port = section[2] if section[1] == "DTLS/SCTP" else attributes.get("sctp-port", "")
    if not _is_number(port, 1, 65_535):
        raise MalformedFrame(f"an SCTP port is a number, not {port[:20]!r}")
    size = attributes.get("max-message-size", str(DEFAULT_MAX_MESSAGE_SIZE))
    if not _is_number(size, 0, 2**32):
        raise MalformedFrame(f"a max-message-size is a number, not {size[:20]!r}")
    return Description(
        sdp="\r\n".join(kept) + "\r\n",
        candidates=tuple(candidates),
        has_all_candidates=has_all_candidates,
        max_message_size=int(size) or 2**32,  # 0 says: any size
    )


def usable_candidate(line: str) -> str | None:
    """A candidate line (RFC 8839, section 5.1) without its ``candidate:``, if we can use it.

    None for what is malformed, for TCP, for parts of a connection we do not have, and for names
    (mDNS). Names are not looked up: a browser that hides its address behind one still has ours,
    sends its checks there, and is learned of by them (RFC 8445, section 7.3.1.3).
    """
    fields = line.strip().removeprefix("a=").removeprefix("candidate:").split()
    if len(fields) < 8 or len(line) > 512:
        return None
    foundation, component, transport, priority, address, port, typ, kind = fields[:8]
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return None
    is_usable = (
        _TOKEN.fullmatch(foundation) is not None
        and component == "1"
        and transport.lower() == "udp"
        and _is_number(priority, 0, 2**32 - 1)
        and "%" not in address  # a scope of the other machine means nothing here
        and _is_number(port, 1, 65_535)
        and typ == "typ"
        and kind in ("host", "srflx", "relay")
    )
    # What follows (the related address, the generation, extensions) is of no use to us.
    return f"{' '.join(fields[:8])}" if is_usable else None


def _is_number(text: str, least: int, most: int) -> bool:
    return _NUMBER.fullmatch(text) is not None and least <= int(text) <= most
