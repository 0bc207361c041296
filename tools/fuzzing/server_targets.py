"""Requests to the server of `s2video serve`: bodies in JSON and as forms, and methods, paths and headers.

They go into the ASGI application, behind the parser of HTTP. A refusal must be one error in OpenAI's form, and leave no
job and no file.
"""

import asyncio
import atexit
import base64
import io
import json
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from fuzzing.mutations import dumped, mutate_bytes, mutate_json
from fuzzing.trial import Finding, Target
from s2video.config.named import EMBEDDED_CONFIG
from s2video.errors import InputError
from s2video.models.checkpoint import open_checkpoint
from s2video.models.recipes import load_model_config
from s2video.server.app import Server, build_app
from s2video.server.guards import Rules
from s2video.server.queue import IMAGES, JobQueue
from s2video.server.video_request import VIDEOS, Limits, Models

_MOST = 1000  # characters of a message
_BOUNDARY = "fuzz"
_HOST = {"host": "127.0.0.1:8000"}


class _Asked:
    """A server without replicas, and its answers.

    Attributes:
        waiting: id of a job that is never drawn.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.queue = JobQueue(folder)
        self.queue.create()
        models = Models({"shapes": load_model_config(EMBEDDED_CONFIG, {}).config}, {}, open_checkpoint)
        limits = Limits(pixels=4096, frames=33)
        self._app = build_app(Server(self.queue, models, limits), Rules(most=2**20))
        self._runner = asyncio.Runner()
        self.waiting = ""
        made = self.ask("POST", "/v1/videos", b'{"prompt": "x"}', {"content-type": "application/json"})
        self.waiting = json.loads(made[2])["id"]

    def ask(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], query: bytes = b""
    ) -> tuple[int, str, bytes]:
        """Return the status, the content type and the body of an answer."""
        return self._runner.run(self._answer(method, path, body, {**_HOST, **headers}, query))

    async def _answer(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], query: bytes
    ) -> tuple[int, str, bytes]:
        scope = {
            **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": ""},
            **{"method": method, "path": path, "raw_path": path.encode("utf-8", "replace"), "query_string": query},
            **{"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000)},
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
        }
        parts = [{"type": "http.request", "body": body, "more_body": False}]
        start: dict[str, Any] = {}
        content = io.BytesIO()

        async def receive() -> dict[str, Any]:
            return parts.pop() if parts else {"type": "http.disconnect"}

        async def send(message: Mapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                content.write(message.get("body", b""))

        await self._app(scope, receive, send)
        kinds = [value for name, value in start["headers"] if name.lower() == b"content-type"]
        return start["status"], kinds[0].decode() if kinds else "", content.getvalue()

    def check(self, answer: tuple[int, str, bytes]) -> Any:
        """Return what was accepted, after it was removed. Raises InputError for a refusal in the right form."""
        status, kind, body = answer
        if status < 400:
            content = json.loads(body) if kind.startswith("application/json") else body
            if isinstance(content, dict) and content.get("object") == "video" and content["id"] != self.waiting:
                self.queue.remove(content["id"])
        left = [path.name for folder in (IMAGES, VIDEOS) for path in (self.folder / folder).glob("*")]
        if left or self.queue.count()["waiting"] > 1:
            raise Finding(f"{status} left {left or 'a job'} behind")
        if status < 400:
            return content
        if status >= 500:
            raise Finding(f"status {status}: {body[:500]!r}")
        raise InputError(self._message_of(body))

    def _message_of(self, body: bytes) -> str:
        error = json.loads(body)["error"]
        message = str(error["message"])
        if error.keys() != {"message", "type", "param", "code"} or not message or len(message) > _MOST:
            raise Finding(f"an error of another form: {body[:500]!r}")
        if str(self.folder) in message or "\n" in message.strip():
            raise Finding(f"a message that names a folder, or of several lines: {message[:500]!r}")
        return message


@cache
def _server() -> _Asked:
    folder = tempfile.TemporaryDirectory(prefix="s2video-fuzz-server-")
    atexit.register(folder.cleanup)
    return _Asked(Path(folder.name))


def _video(kind: str) -> Callable[[bytes, Path], Any]:
    def run(data: bytes, folder: Path) -> Any:
        server = _server()
        return server.check(server.ask("POST", "/v1/videos", data, {"content-type": kind}))

    return run


def any_request(data: bytes, folder: Path) -> Any:
    """Take method, path, query, headers and body from JSON."""
    server = _server()
    try:
        asked = json.loads(data)
    except ValueError:
        raise InputError("no JSON") from None
    asked = asked if isinstance(asked, dict) else {"path": asked}
    headers = asked.get("headers") if isinstance(asked.get("headers"), dict) else {}
    words = {name: str(asked.get(name, "")).encode("latin-1", "replace") for name in ("method", "query", "body")}
    safe = {
        str(name).lower().encode("latin-1", "replace").decode("latin-1"): str(value)
        .encode("latin-1", "replace")
        .decode("latin-1")
        for name, value in headers.items()
    }
    path = "/" + str(asked.get("path", "")).lstrip("/").replace("ID", server.waiting)
    method = words["method"].decode("latin-1").upper() or "GET"
    if method == "DELETE" and path.endswith(server.waiting):
        path += "x"  # it is needed once more
    answer = server.ask(method, path, words["body"], safe, words["query"])
    return server.check(answer) if method != "HEAD" else answer


def _form(**fields: str) -> bytes:
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}' for name, value in fields.items()]
    return "".join(f"--{_BOUNDARY}\r\n{part}\r\n" for part in parts).encode()


def _end_of_form(image: bytes | None = None) -> bytes:
    head = 'Content-Disposition: form-data; name="input_reference"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n'
    file = b"" if image is None else f"--{_BOUNDARY}\r\n{head}".encode() + image + b"\r\n"
    return file + f"--{_BOUNDARY}--\r\n".encode()


def _picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(content, "PNG")
    return content.getvalue()


def server_targets() -> list[Target]:
    picture = _picture()
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    bodies = [
        {"prompt": "a red circle", "size": "32x32", "seconds": "1", "seed": 7, "model": "shapes"},
        {
            **{
                "prompt": "a",
                "negative_prompt": "b",
                "codec": "prores",
                "fps": 24,
                "crf": 18,
                "timecode": "01:00:00:00",
            },
            "guidance": {"s2_scale": 0.25, "window": [0.1, 0.9], "never_drop": [0], "num_draws": 2},
            "sampling": {"num_inference_steps": 4, "num_frames": 9, "flow_shift": 3.0},
        },
        {"prompt": "x", "input_reference": url, "lora": "style:0.8"},
        {"prompt": "x", "input_reference": {"image_url": url}},
    ]
    form = _form(prompt="a red circle", size="32x32", seconds="1", **{"guidance[s2_scale]": "0.5", "seed": "3"})
    requests: list[dict[str, Any]] = [
        {"method": "GET", "path": "/v1/videos", "query": "limit=2&order=asc&after=ID", "headers": {"origin": "null"}},
        {"method": "GET", "path": "/v1/videos/ID", "headers": {"host": "[::1]:8000", "cookie": "s2video=x"}},
        {"method": "DELETE", "path": "/v1/videos/ID", "headers": {"origin": "http://127.0.0.1:8000"}},
        {"method": "GET", "path": "/v1/videos/ID/content", "query": "variant=thumbnail&codec=prores"},
        {"method": "GET", "path": "/v1/videos/ID/events"},
        {"method": "POST", "path": "/v1/videos/estimate", "body": '{"prompt": "x"}'}
        | {"headers": {"content-type": "application/json", "content-length": "15", "idempotency-key": "k"}},
        *({"method": "GET", "path": path} for path in ("/", "/history", "/metrics", "/v1/models", "/ready")),
    ]
    return [
        Target("server JSON", tuple(map(dumped, bodies)), _video("application/json"), mutate_json, 12),
        Target("server JSON bytes", tuple(map(dumped, bodies)), _video("application/json"), mutate_bytes, 8),
        Target(
            "server form",
            (form + _end_of_form(), form + _end_of_form(picture)),
            _video(f"multipart/form-data; boundary={_BOUNDARY}"),
            mutate_bytes,
            12,
        ),
        Target(
            "server short form",
            (b"prompt=a+red+circle&guidance%5Bs2_scale%5D=0.5&seconds=1",),
            _video("application/x-www-form-urlencoded"),
            mutate_bytes,
            12,
        ),
        Target("server request", tuple(map(dumped, requests)), any_request, mutate_json, 6),
    ]
