"""That the names `aiortc_internals` relies on are still there, and mean what they meant."""

from __future__ import annotations

import inspect

import aioice.ice
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection

from trio_overlay.channels.aiortc_internals import _ice_connections, last_confirmed
from trio_overlay.channels.bridge import open_bridge

pytestmark = pytest.mark.webrtc


async def test_the_names_are_there() -> None:
    async def look() -> None:
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        try:
            connection.createDataChannel("")
            [ice] = _ice_connections(connection)
            assert isinstance(ice, aioice.Connection)
            assert last_confirmed(connection) > 0
            await connection.setLocalDescription()
            assert ice._protocols
            for protocol in ice._protocols:
                assert protocol.receiver is ice
                assert callable(protocol.transport.abort)
            assert {"stun_server", "turn_server"} <= set(vars(ice))
        finally:
            await connection.close()

    async with open_bridge("stepped") as bridge:
        await bridge.run(look)


def test_the_functions_that_ask_servers_are_called_as_they_were() -> None:
    assert "protocol" in inspect.signature(aioice.ice.server_reflexive_candidate).parameters
    assert "protocol_factory" in inspect.signature(aioice.ice.relayed_candidate).parameters
    source = inspect.getsource(aioice.Connection.get_component_candidates)
    assert "protocol_factory=lambda: StunProtocol(self)" in source
