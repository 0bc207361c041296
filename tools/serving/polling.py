"""Clients that poll one video, as many as there may be: every client has a connection of its own, which it keeps.

    python tools/serving/polling.py HOST PORT /v1/videos/ID CLIENTS EVERY_SECONDS

Polls until its standard input ends. Then it prints the number of answers, how many of them were not 200, and the
median and the largest seconds of an answer, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from contextlib import suppress


class Polls:
    """The clients.

    Attributes:
        seconds: of each answer.
        failed: number of answers that were not 200, and of connections that broke.
    """

    def __init__(self, host: str, port: int, path: str, every: float) -> None:
        self.seconds: list[float] = []
        self.failed = 0
        self._address, self._every = (host, port), every
        self._request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()

    async def client(self) -> None:
        """Poll without end, from a random moment on."""
        await asyncio.sleep(random.uniform(0, self._every))
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection(*self._address)
                try:
                    await self._poll(reader, writer)
                finally:
                    writer.close()
            self.failed += 1
            await asyncio.sleep(self._every)

    async def _poll(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            start = time.monotonic()
            writer.write(self._request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
            self.seconds.append(time.monotonic() - start)
            self.failed += not head.startswith(b"http/1.1 200")
            await asyncio.sleep(max(0.0, self._every - (time.monotonic() - start)))


async def poll(host: str, port: int, path: str, clients: int, every: float) -> Polls:
    """Poll until standard input ends."""
    polls = Polls(host, port, path, every)
    tasks = [asyncio.create_task(polls.client()) for _ in range(clients)]
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return polls


if __name__ == "__main__":
    _host, _port, _path, _clients, _every = sys.argv[1:]
    done = asyncio.run(poll(_host, int(_port), _path, int(_clients), float(_every)))
    median, most = (statistics.median(done.seconds), max(done.seconds)) if done.seconds else (0.0, 0.0)
    print(json.dumps({"answers": len(done.seconds), "failed": done.failed, "median": median, "most": most}))
