"""Clients that are slow, in a server of this process whose patience is short; and clients that poll."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
import serve_polling
from running import free_port

from s2video.config.named import EMBEDDED_CONFIG
from s2video.models.checkpoint import open_checkpoint
from s2video.models.recipes import load_model_config
from s2video.server import app, guards
from s2video.server import http as module
from s2video.server.app import Server, build_app
from s2video.server.guards import Rules
from s2video.server.http import Http
from s2video.server.queue import IMAGES, JobQueue
from s2video.server.video_request import Limits, Models

HEAD = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, JobQueue]]:
    """A server without replicas: its port and its queue."""
    monkeypatch.setattr(guards, "_BODY_SECONDS", 1.0)
    monkeypatch.setattr(module, "_HEAD_SECONDS", 1.0)
    queue, port = JobQueue(tmp_path), free_port()
    queue.create()
    models = Models({"shapes": load_model_config(EMBEDDED_CONFIG, {}).config}, {}, open_checkpoint)
    http = Http(build_app(Server(queue, models, Limits()), Rules()), "127.0.0.1", port, "here")
    http.start()
    yield port, queue
    http.stop()


def test_a_head_that_comes_slowly_is_cut_off(started: tuple[int, JobQueue]) -> None:
    """Also on a connection that has had an answer, and although bytes come again and again."""
    port, _ = started
    fresh, used = (socket.create_connection(("127.0.0.1", port)) for _ in range(2))
    used.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    while b"ok" not in used.recv(65536):
        pass
    for connection in (fresh, used):
        connection.sendall(b"GET /health HTTP/1.1\r\n")
    end = time.monotonic() + 60
    for connection in (fresh, used):
        with pytest.raises(OSError):
            while time.monotonic() < end:
                connection.sendall(b"X: y\r\n")
                time.sleep(0.1)
        connection.close()
    assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200


def test_a_body_that_comes_slowly_is_refused(started: tuple[int, JobQueue]) -> None:
    port, queue = started
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(HEAD + b'\r\n{"prompt": "')
        said = connection.recv(65536)
        while b"}}" not in said:
            said += connection.recv(65536)
    assert said.startswith(b"HTTP/1.1 408")
    error = json.loads(said.partition(b"\r\n\r\n")[2])["error"]
    assert error["type"] == "invalid_request_error" and "did not arrive within" in error["message"]
    assert queue.count()["waiting"] == 0 and not (queue.folder / IMAGES).exists()


def test_a_client_that_leaves_in_the_middle_leaves_nothing(started: tuple[int, JobQueue]) -> None:
    port, queue = started
    for sent in (b"", b'\r\n{"prompt": "x", "seconds', b"\r\n"):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(HEAD + sent)
    assert httpx.get(f"http://127.0.0.1:{port}/v1/videos").json()["data"] == []
    assert queue.count()["waiting"] == 0 and not (queue.folder / IMAGES).exists()


def test_clients_poll_on_connections_that_stay(started: tuple[int, JobQueue]) -> None:
    """The clients of tools/serve_polling.py get answers, also about a job that is deleted meanwhile."""
    port, queue = started
    url = f"http://127.0.0.1:{port}/v1/videos"
    video = httpx.post(url, json={"prompt": "x"}).json()
    arguments = serve_polling._parser().parse_args(
        ["--work", "x", "--clients", "20", "--every", "0.2", "--seconds", "2"]
    )
    polls = serve_polling._poll(arguments, port, video["id"])
    assert polls["answers"] >= 20 and polls["failed"] == 0
    assert httpx.get(f"{url}/{video['id']}").json() == video
    queue.remove(video["id"])
    assert httpx.get(f"{url}/{video['id']}").status_code == 404


def test_a_format_of_a_video_that_is_deleted_meanwhile_does_not_stay(
    started: tuple[int, JobQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, queue = started
    url = f"http://127.0.0.1:{port}/v1/videos"
    video = httpx.post(url, json={"prompt": "x"}).json()
    record = queue.draw("replica-1")
    assert record is not None and queue.finish(record.name, "replica-1", {})

    def in_format(job: str, folder: Path, codec: str) -> Path:
        queue.remove(video["id"])  # as another client does while the format is decoded
        path = (folder / job).with_suffix(f".{codec}.mp4")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"video")
        return path

    monkeypatch.setattr(app, "in_format", in_format)
    assert httpx.get(f"{url}/{video['id']}/content?codec=h265").status_code == 404
    assert list((queue.folder / "videos").iterdir()) == []


def test_what_polling_costs_is_computed_from_steps_inside_turns(tmp_path: Path) -> None:
    file = tmp_path / "steps.txt"
    lines = [("a", step, 10.0 + step, 5.0 + step / 2) for step in range(1, 6)]  # 1 s and 0.5 CPU s each
    lines += [("b", step, 30.0 + 2 * step, 9.0 + step) for step in range(1, 6)]  # 2 s and 1 CPU s
    file.write_text("".join(f"{' '.join(map(str, line))}\n" for line in lines) + "b 6 4")  # the last is cut off
    steps = serve_polling.read_steps(file)
    assert [(step.at, step.wall, step.cpu) for step in steps[:1]] == [(12.0, 1.0, 0.5)] and len(steps) == 8
    polls = {"answers": 100, "failed": 0, "median": 0.01, "most": 0.1}
    turns = [serve_polling.Turn(False, 10.0, 15.5, 0.1, {}), serve_polling.Turn(True, 31.0, 42.0, 1.2, polls)]
    report = serve_polling.summary(turns, steps)
    assert report["alone"] == {"steps": 4, "wall": 1.0, "cpu": 0.5}
    assert report["polled"] == {"steps": 4, "wall": 2.0, "cpu": 1.0} and report["rise"] == {"wall": 1.0, "cpu": 1.0}
    assert report["polls"]["server_cpu_seconds_each"] == pytest.approx((1.2 - 2 * 0.1) / 100)
