"""A client of `s2video serve` that outlives the server: what it cannot ask now it asks again later."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

_TIMEOUT = 60.0  # seconds for one answer


def free_port() -> int:
    """Return a port of this machine that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Client:
    """Speaks to one server, which may be away.

    Args:
        url: such as http://127.0.0.1:8000.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def create(self, fields: Mapping[str, Any], *, key: str | None = None) -> dict[str, Any] | None:
        """Queue a video; None if the server is away. Raises urllib.error.HTTPError if it refuses."""
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
        request = urllib.request.Request(f"{self.url}/v1/videos", json.dumps(dict(fields)).encode(), headers)
        answer = self._read(request)
        return None if answer is None else dict(json.loads(answer))

    def states(self) -> dict[str, str]:
        """Return the state of every video by its id; empty if the server is away."""
        states: dict[str, str] = {}
        after = ""
        while True:
            answer = self.get(f"/v1/videos?limit=100{after}")
            if answer is None:
                return {}
            page = json.loads(answer)
            states |= {video["id"]: video["status"] for video in page["data"]}
            if not page["has_more"]:
                return states
            after = f"&after={page['last_id']}"

    def get(self, path: str) -> bytes | None:
        """Return the body of an answer; None if the server is away. Raises urllib.error.HTTPError if it refuses."""
        return self._read(urllib.request.Request(f"{self.url}{path}"))

    def wait(self, seconds: float = 300.0) -> None:
        """Return when the server answers. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while self.get("/health") is None:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.url} does not answer")
            time.sleep(0.1)

    def _read(self, request: urllib.request.Request) -> bytes | None:
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError:
            raise
        except OSError:  # refused, or cut off in the middle
            return None
