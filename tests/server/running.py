"""A server in a process of its own, with the embedded model, and clients of it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
from serving.client import free_port

SMALL = {"sampling": {"num_inference_steps": 3}, "guidance": {"s2_scale": 0.5}}
PROMPT = "a large red circle moving left on a gray background"


class Running:
    """A started server."""

    def __init__(self, folder: Path, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.folder, self.process, self.log = folder, process, log
        self.url = f"http://127.0.0.1:{port}"

    def client(self, **options: Any) -> openai.OpenAI:
        """Return an openai client of it."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, **options)

    def until_ready(self, seconds: float = 120.0) -> "Running":
        """Wait until it answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text(encoding="utf-8")
            try:
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"the server did not start: {self.log.read_text(encoding='utf-8')}")

    def stop(self) -> int:
        """End it with SIGTERM; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def running(folder: Path, *options: str, port: int | None = None, **environment: str) -> Iterator[Running]:
    """Start a server; kill it at the end if it still runs."""
    port = port or free_port()
    log = folder.parent / f"{folder.name}-{port}.log"
    command = [sys.executable, "-m", "s2video", "serve", "--folder", str(folder), "--port", str(port), *options]
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **environment})
    try:
        yield Running(folder, port, process, log)
    finally:
        process.kill()
        process.wait()


def wait_for(client: openai.OpenAI, name: str, *states: str, seconds: float = 120.0) -> Any:
    """Poll a video until it has one of these states."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        video = client.videos.retrieve(name)
        if video.status in states:
            return video
        time.sleep(0.1)
    raise AssertionError(f"{name} is {video.status}, expected {states}")
