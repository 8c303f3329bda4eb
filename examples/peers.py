"""Two peers that find each other by id: one answers, the other asks."""

import trio

from trio_overlay import open_peer

BROKER = "127.0.0.1:5000"


async def main() -> None:
    async with open_peer("ada", BROKER) as ada, open_peer("bob", BROKER) as bob:
        await ada.send("bob", {"question": "are you there?"})
        message = await bob.messages.receive()
        print(message.sender, "says", message.data)
        await message.connection.send(b"yes")
        print("bob answers", await ada.connections["bob"].receive())


if __name__ == "__main__":
    trio.run(main)
