"""uvicorn in a thread, which gives a slow client half a minute for the head of a request, and no longer."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import InputError

GRACE = 5.0  # seconds for answers that are under way at the end
_HEAD_SECONDS = 30.0


class Http:
    """An HTTP server in a thread of its own.

    Args:
        app: the ASGI application.
        url: the address, for messages.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, url: str) -> None:
        config = uvicorn.Config(
            app,
            http=_Hurried,
            host=host,
            port=port,
            log_level="warning",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(GRACE),
            h11_max_incomplete_event_size=64 * 1024,
            limit_concurrency=1000,
            server_header=False,
        )
        self._host, self._port, self._url = host, port, url
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Start to listen. Raises InputError if that is impossible."""
        try:
            family = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)[0][0]
            self._socket = socket.create_server((self._host, self._port), family=family, backlog=1024)
        except OSError as error:
            raise InputError(
                f"{self._url}: expected a free address of this machine, got an error "
                f"({error.strerror or error}); choose another --host or --port"
            ) from None
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End, after the answers that are under way."""
        self._server.should_exit = True
        self._thread.join(2 * GRACE)

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])


class _Hurried(H11Protocol):
    """Closes a connection whose client does not send the whole head of a request in time.

    uvicorn itself closes connections that are idle between two requests; one that sends a byte now and then would stay,
    and a thousand of them would keep all other clients out.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        """Run a timer as long as a head has begun and is not whole; it is not reset by further bytes."""
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
