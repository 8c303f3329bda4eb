"""Messages to an id: two peers that know only a third, and one of them writes to the other."""

import trio

from trio_overlay import open_relay


async def main() -> None:
    async with (
        open_relay(port=0) as hub,
        open_relay(bootstrap=[str(hub.url)]) as ada,
        open_relay(bootstrap=[str(hub.url)]) as bob,
    ):
        await ada.send(bob.id, "are you there?", wait_for_receipt=True)
        message = await bob.messages.receive()
        print("ada" if message.sender == ada.id else message.sender, "says", message.data)


if __name__ == "__main__":
    trio.run(main)
