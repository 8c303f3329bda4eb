"""What tree nodes make of broken descriptions, over real sockets with real WebRTC."""

from __future__ import annotations

import functools
import json
import logging

import pytest
import trio

from trio_overlay.channels.websocket import open_websocket_channel
from trio_overlay.nodes.tree import open_tree_node
from trio_overlay.signaling.server import serve_signaling

SECRET = "secret"
SECTION = "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n"
BROKEN = {
    "empty": "",
    "no description": "\0" * 100,
    "a lone surrogate": "\ud800",
    "ten thousand lines": "v=0\r\n" * 10_000,
    "no section": "v=0\r\n",
    "no keys": f"v=0\r\n{SECTION}",
    "a fingerprint of another length": (
        f"v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n{SECTION}c=IN IP4 0.0.0.0\r\n"
        "a=ice-ufrag:x\r\na=ice-pwd:y\r\na=fingerprint:sha-256 00\r\na=setup:actpass\r\n"
        "a=mid:0\r\na=sctp-port:5000\r\n"
    ),
}


@pytest.mark.webrtc
async def test_broken_descriptions_cost_no_place_and_a_line_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "trio_overlay.nodes.tree")
    with trio.fail_after(180):
        async with trio.open_nursery() as nursery:
            serve = functools.partial(serve_signaling, SECRET, host="127.0.0.1", port=0)
            url = (await nursery.start(serve)).urls[0]
            async with open_tree_node(url, max_degree=1) as root:
                await root.become_root(SECRET)
                for sdp in BROKEN.values():
                    async with open_websocket_channel(f"{url}/join") as stranger:
                        offer = {"type": "offer", "sdp": sdp}
                        await stranger.send(json.dumps({"destination": None, "signal": offer}))
                async with open_tree_node(url) as child:
                    parent = await child.join()
                    await parent.send("there is room")
                    assert (await root.messages.receive()).data == "there is room"
                # The last stranger's handshake ends when it is found to be gone.
                while root._branch.applicants:  # noqa: ASYNC110 - it has no event
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    failures = [each for each in caplog.messages if "did not connect" in each]
    assert len(failures) == len(BROKEN)
