"""Send wrong keys as fast as this machine can, from many addresses: what `serve.py --only flood` runs beside itself.

    python benchmarks/_flood.py PORT SECONDS RATE

Each connection comes from an address of its own below 127.0.0.0/8, asks a few times at once, and makes place for the
next. Prints JSON: what was sent and answered, by status, and the number of addresses.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
import uuid
from collections import Counter

CONNECTIONS, AT_ONCE = 48, 12
"""Twelve requests of an address: two more than are answered with 401."""
_HEAD = b"POST /api/edgeface/v1/identify HTTP/1.1\r\nhost: a\r\nx-api-key: %b\r\ncontent-length: 0\r\n\r\n"


class Flood:
    """What is sent at a rate, and what comes back."""

    def __init__(self, port: int, seconds: float, rate: float) -> None:
        self._port, self._until, self._rate = port, time.monotonic() + seconds, rate
        self._began, self.sent, self.addresses = time.monotonic(), 0, 0
        self.answers = Counter[int]()

    async def run(self) -> None:
        """Keep all connections busy until the time is over."""
        await asyncio.gather(*(self._ask(random.Random(number)) for number in range(CONNECTIONS)))

    async def _ask(self, dice: random.Random) -> None:
        while (now := time.monotonic()) < self._until:
            if (due := self._began + self.sent / self._rate) > now:
                await asyncio.sleep(due - now)
            self.sent += AT_ONCE
            source = f"127.{dice.randrange(1, 255)}.{dice.randrange(256)}.{dice.randrange(1, 255)}"
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(source, 0))
            except OSError:
                self.answers[0] += AT_ONCE
                continue
            self.addresses += 1
            for _ in range(AT_ONCE):
                key = uuid.UUID(int=dice.getrandbits(128))
                writer.write(_HEAD % str(key).encode())
            await self._read(reader)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Count the statuses of what was asked at once; 0 for what was not answered."""
        left = AT_ONCE
        try:
            while left:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                self.answers[int(head[9:12])] += 1
                left -= 1
        except (OSError, EOFError, asyncio.TimeoutError):
            self.answers[0] += left


async def _main(port: int, seconds: float, rate: float) -> None:
    flood = Flood(port, seconds, rate)
    await flood.run()
    took = time.monotonic() - flood._began
    answered = {str(status): count for status, count in sorted(flood.answers.items())}
    print(json.dumps({"sent": flood.sent, "seconds": took, "answers": answered, "addresses": flood.addresses}))


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
