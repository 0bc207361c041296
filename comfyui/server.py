"""A client of `s2video serve` with nothing but the standard library: makes one video and returns its file."""

import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

KEY_VARIABLE = "S2VIDEO_API_KEY"
_POLL = 1.0  # seconds
_TIMEOUT = 60.0  # seconds for one answer
_PATIENCE = 120.0  # seconds for which a server that has the job may be away, as when it is started again


class ServerError(RuntimeError):
    """The server refused the request, failed, or does not answer. ComfyUI shows the message at the node."""


class AwayError(ServerError):
    """The server does not answer."""


def make_video(
    url: str, fields: Mapping[str, Any], progress: Callable[[int], None], check: Callable[[], None]
) -> io.BytesIO:
    """Queue a video, wait for it and return its MP4 file.

    Args:
        url: of the server, such as http://127.0.0.1:8000.
        fields: of POST /v1/videos, see docs/serving.md.
        progress: takes per cent.
        check: called between two looks at the job; an exception of it stops the job, and is raised again.

    Raises:
        ServerError: no video was made; the message says why.
    """
    base = url.rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise ServerError(f"server: expected an address such as http://127.0.0.1:8000, got {url[:80]!r}")
    job = _job(f"{base}/v1/videos", method="POST", body=fields)
    place, away_since = f"{base}/v1/videos/{job['id']}", time.monotonic()
    try:
        while job["status"] in ("queued", "in_progress"):
            check()
            time.sleep(_POLL)
            try:
                job, away_since = _job(place), time.monotonic()
            except AwayError:
                if time.monotonic() - away_since > _PATIENCE:
                    raise
                continue
            progress(job["progress"])
    except BaseException:
        with suppress(ServerError):
            _ask(place, method="DELETE")  # no one waits for it any more
        raise
    if job["status"] != "completed":
        raise ServerError(f"{base}: {(job['error'] or {}).get('message', 'the video failed')}")
    return io.BytesIO(_ask(f"{place}/content?codec=h264"))


def _job(url: str, *, method: str = "GET", body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    answer = _ask(url, method=method, body=body)
    try:
        job = json.loads(answer)
        return {"error": None, **job} | {name: job[name] for name in ("id", "status", "progress")}
    except (ValueError, KeyError, TypeError):
        raise ServerError(f"{url}: expected the answer of s2video serve, got another one; check the address") from None


def _ask(url: str, *, method: str = "GET", body: Mapping[str, Any] | None = None) -> bytes:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(KEY_VARIABLE):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(dict(body)).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise ServerError(f"{url}: {_message(error)}") from None
    except ValueError:  # whose message can hold the key
        raise ServerError(
            f"{url[:80]!r}: expected an address such as http://127.0.0.1:8000, and printable ASCII in {KEY_VARIABLE}; "
            "correct them"
        ) from None
    except (OSError, http.client.HTTPException) as error:  # also one that is cut off in the middle
        reason = getattr(error, "reason", error)
        raise AwayError(f"{url}: the server does not answer ({reason}); start it with: s2video serve") from None


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"
