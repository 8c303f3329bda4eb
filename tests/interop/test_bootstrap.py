"""Our bootstrap client and server with the original's."""

from __future__ import annotations

import pytest
import trio

from tests.interop.ends import (
    SECRET,
    End,
    open_original_joiner,
    open_original_root,
    open_our_joiner,
    open_our_root,
    open_server,
)
from tests.interop.node import (
    PATIENCE,
    VARIANTS,
    open_node_process,
    open_original_server,
    runs_originals,
)
from trio_overlay.channels.channel import Frame
from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import JoinTimeout
from trio_overlay.signaling.bootstrap import Bootstrap, open_bootstrap

pytestmark = [*runs_originals, pytest.mark.webrtc]

on_every_server = pytest.mark.parametrize("whose", ["original", "ours"])
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)


async def talk(joiner: End, applicant: End) -> None:
    """Frames of each kind and of every size that matters, both ways, whole and in order."""
    frames: list[Frame] = ["ping", "ünïcödé ✓", b"\xff\x00\xfe", "x" * 60_000, b"\xff" * 200_000]
    for sender, receiver in ((joiner, applicant), (applicant, joiner)):
        for frame in frames:
            await sender.send(frame)
        for frame in frames:
            assert await receiver.receive() == frame


@on_every_server
@every_variant
async def test_our_joiner_and_the_original_root(whose: str, variant: tuple[str, ...]) -> None:
    async with (
        open_server(whose) as host,
        open_original_root(host, *variant) as next_applicant,
        open_our_joiner(host) as joiner,
    ):
        applicant = await next_applicant()
        assert joiner.identifier == applicant.identifier
        await talk(joiner, applicant)
        await applicant.close()
        await joiner.wait_until_closed()


@on_every_server
@every_variant
async def test_the_original_joiner_and_our_root(whose: str, variant: tuple[str, ...]) -> None:
    async with (
        open_server(whose) as host,
        open_our_root(host) as next_applicant,
        open_original_joiner(host, *variant) as joiner,
    ):
        applicant = await next_applicant()
        await talk(joiner, applicant)
        await joiner.close()
        await applicant.wait_until_closed()


@every_variant
async def test_the_originals_among_themselves_on_our_server(variant: tuple[str, ...]) -> None:
    async with (
        open_server("ours") as host,
        open_original_root(host, *variant) as next_applicant,
        open_original_joiner(host, *variant) as joiner,
    ):
        await talk(joiner, await next_applicant())


async def test_our_joiner_and_our_root_on_the_original_server() -> None:
    async with (
        open_original_server() as host,
        open_our_root(host) as next_applicant,
        open_our_joiner(host) as joiner,
    ):
        applicant = await next_applicant()
        assert joiner.identifier == applicant.identifier
        await talk(joiner, applicant)
        await joiner.close()
        await applicant.wait_until_closed()


async def test_a_joiner_without_a_root_on_the_original_server_ends_without_a_hello(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trio_overlay.signaling.bootstrap.HELLO_TIMEOUT", 3600)
    async with open_original_server() as host, open_bootstrap(host) as bootstrap:
        with trio.fail_after(PATIENCE), pytest.raises(JoinTimeout):
            async with bootstrap.connect(timeout=1):
                raise AssertionError


@on_every_server
async def test_the_original_root_outlives_joiners_that_withdraw(whose: str) -> None:
    # Not later than this: simple-peer 6 throws when its peer goes just as the channel opens.
    async with (
        open_server(whose) as host,
        open_node_process("client.js", host) as node,
        open_bootstrap(host) as bootstrap,
    ):
        await node.send("root", secret=SECRET)
        await node.wait_for("root")
        for _ in range(3):
            async with open_background_nursery() as nursery:
                nursery.start_soon(join_and_stay, bootstrap)
                await node.wait_for("request")
        async with bootstrap.connect(timeout=PATIENCE) as joiner:
            await joiner.send("ping")
            await node.wait_for("data", data="ping", peer=joiner.identifier)


async def join_and_stay(bootstrap: Bootstrap) -> None:
    async with bootstrap.connect():
        await trio.sleep_forever()
