"""The process of the server: HTTP in a thread, replicas under supervision in the main thread.

SIGTERM ends both: replicas save the resume point of what they are making, and the next start continues from it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..batch.supervisor import ReplicaPlan, supervise
from ..errors import InputError, S2VideoError
from ..system.locks import held_lock
from ..system.terminal import say
from .app import Server, build_app
from .guards import Rules
from .http import Http

_MOST_STARTS = 5  # in a row of replicas that all die before they draw a job


@dataclass(frozen=True)
class Address:
    """Where the server listens."""

    host: str = "127.0.0.1"
    port: int = 8000

    @property
    def url(self) -> str:
        """The address as one types it."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def serve(
    server: Server, rules: Rules, address: Address, plan: ReplicaPlan, *, loaded: int = 1, plain: bool
) -> int | None:
    """Serve until a signal arrives; return its number.

    Args:
        loaded: models that a replica keeps loaded.
        plain: print the progress of steps.

    Raises:
        InputError: another server has the folder, or the address cannot be used.
        S2VideoError: replicas die before they make anything.
    """
    queue, state = server.queue, threading.Event()
    queue.create()
    with held_lock(queue.lock_path) as is_ours:
        if not is_ours:
            raise InputError(f"{queue.folder}: another process serves this folder or makes its batch; choose another")
        queue.begin()
        queue.drop_images()
        app = build_app(replace(server, is_ready=state.is_set), rules)
        http = Http(app, address.host, address.port, address.url)
        http.start()
        try:
            say(f"serving {', '.join(server.models.configs)} at {address.url}, jobs in {queue.folder}")
            state.set()
            progress = "plain" if plain else "none"
            options = ["--overlap", "auto", "--progress", progress, "--loaded", str(loaded)]
            return _supervise(server, plan, ["replica", str(server.folder), "--serve", *options], http)
        finally:
            state.clear()
            http.stop()


def _supervise(server: Server, plan: ReplicaPlan, arguments: Sequence[str], http: Http) -> int | None:
    """Run replicas whenever jobs wait, until a signal arrives."""
    deaths = 0
    while http.is_alive():
        ended = server.queue.count()
        try:
            number = supervise(server.queue, plan, arguments, stays=True)
        except S2VideoError:
            now = server.queue.count()
            deaths = 0 if now["done"] + now["failed"] > ended["done"] + ended["failed"] else deaths + 1
            if deaths >= _MOST_STARTS:
                raise
            time.sleep(2.0**deaths)
            continue
        return number
    raise S2VideoError("the HTTP server ended; see the messages above")
