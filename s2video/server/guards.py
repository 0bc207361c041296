"""What every request passes before it is looked at: its size, its Host and Origin, its key.

A page of another site can post forms to a server on this machine, and a name that first pointed elsewhere can be made
to point here. So a server without a key answers only to the names of this machine, and a request with an Origin has to
come from the page of this very server.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
COOKIE = "s2video"
# Load balancers know no key; the page asks for it.
_OPEN = ("/health", "/ready", "/")
_BODY_SECONDS = 60.0
_MOST_MESSAGE = 800  # characters; a client's own words can be part of it


@dataclass(frozen=True)
class Rules:
    """Who is answered.

    Attributes:
        hosts: names in the Host header that are answered, in lower case; empty means any.
        key: of the header "Authorization: Bearer KEY"; None for no key.
        most: bytes of a body.
    """

    hosts: Collection[str] = LOOPBACK
    key: str | None = None
    most: int = 32 * 2**20

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Return whether a request has the key, in its header or as the cookie of a page; names are in lower case."""
        if self.key is None:
            return True
        given = headers.get("authorization", "").removeprefix("Bearer ").strip()
        cookies = SimpleCookie()
        with suppress(CookieError):
            cookies.load(headers.get("cookie", ""))
        cookie = cookies[COOKIE].value if COOKIE in cookies else ""
        is_key = hmac.compare_digest(given.encode(), self.key.encode())
        return hmac.compare_digest(cookie.encode(), session_of(self.key).encode()) or is_key


def session_of(key: str) -> str:
    """Return the value of the cookie for a key, from which the key cannot be found."""
    return hmac.digest(key.encode(), b"s2video session", "sha256").hex()


def problem(status: int, message: str, *, code: str, param: str | None = None, **headers: str) -> Response:
    """Return an error in the form of OpenAI's API, its message in one line of bounded length."""
    line = " ".join(message.split())
    message = line if len(line) <= _MOST_MESSAGE else f"{line[: _MOST_MESSAGE - 1]}…"
    kind = "server_error" if status >= 500 else "invalid_request_error"
    content = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(content, status, {name.replace("_", "-"): value for name, value in headers.items()})


class Guards:
    """An ASGI application that refuses what breaks the rules, and passes the rest on."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._app(scope, _Bounded(receive, self._rules.most), send)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> Response | None:
        host = headers.get("host", "")
        if self._rules.hosts and _name_of(host) not in self._rules.hosts:
            return problem(403, f"the host {host[:80]!r} is not this server's; use localhost", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return problem(403, f"requests from pages of {origin[:80]!r} are not answered", code="wrong_origin")
        if scope["path"] not in _OPEN and not self._rules.knows(headers):
            return problem(
                401, "expected the header Authorization: Bearer KEY with this server's key", code="invalid_api_key"
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self._rules.most:
            return problem(413, f"expected a body of at most {self._rules.most} bytes", code="too_large")
        return None


class BodyError(Exception):
    """A body that is larger than is allowed, whatever its headers said, or comes too slowly. `status` says which."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Bounded:
    """Receives a body that must not pass a number of bytes and of seconds."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._left = receive, most
        self._until: float | None = None
        self._is_whole = False

    async def __call__(self) -> Message:
        if self._is_whole:  # what follows is that the client leaves
            return await self._receive()
        if self._until is None:  # an answer that takes long may ask for the first time at its end
            self._until = time.monotonic() + _BODY_SECONDS
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._until - time.monotonic()))
        except TimeoutError:
            raise BodyError(408, f"the body did not arrive within {_BODY_SECONDS:g} s") from None
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise BodyError(413, "the body is larger than this server takes")
        self._is_whole = not message.get("more_body", False)
        return message


def _name_of(host: str) -> str:
    """Return the name in a Host header, without port and brackets; empty if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
