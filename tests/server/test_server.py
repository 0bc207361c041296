"""`s2video serve`, asked by the official openai client and by others."""

import base64
import io
import json
import re
import socket
import sqlite3
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
import torch
import yaml
from PIL import Image
from running import PROMPT, SMALL, Running, running, wait_for
from safetensors.torch import load_file
from tiny_wan_i2v import KINDS, image

from s2video.cli.main import main
from s2video.media.video import probe_video, read_video

warnings.filterwarnings("ignore", category=DeprecationWarning, module="openai")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: Callable[[str], Path]) -> Iterator[Running]:
    """The embedded model, and a small one that needs an image; one of them is loaded at a time."""
    folder = tmp_path_factory.mktemp("serve") / "jobs"
    config = KINDS["wan-i2v"].config(checkpoint_of("wan-i2v")).model_dump(mode="json", include={"model", "sampling"})
    pictures = folder.with_name("pictures.yaml")
    pictures.write_text(yaml.safe_dump(config), encoding="utf-8")
    options = ["--max-pixels", "4096", "--max-frames", "33", "--max-steps", "200", "--max-queue", "6"]
    with running(folder, *options, "--model", "shapes", "--model", f"pictures={pictures}") as started:
        yield started.until_ready()


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return server.client()


@pytest.fixture(scope="module")
def video(client: openai.OpenAI) -> Any:
    """A finished video of 9 frames."""
    made = client.videos.create(prompt=PROMPT, size="32x32", seconds="1", extra_body={"seed": 7, **SMALL})
    return wait_for(client, made.id, "completed", "failed")


def test_create_and_poll_answers_with_what_was_asked(client: openai.OpenAI) -> None:
    video = client.videos.create_and_poll(
        prompt=PROMPT, size="32x32", seconds="1", poll_interval_ms=200, extra_body={"seed": 3, **SMALL}
    )
    assert (video.status, video.object, video.progress, video.error) == ("completed", "video", 100, None)
    assert (video.size, video.seconds, video.prompt, video.model) == ("32x32", "1.125", PROMPT, "shapes")
    assert video.completed_at >= video.created_at
    assert (video.seed, video.step, video.steps, video.s2_scale) == (3, 3, 3, 0.5)


def test_latents_are_those_of_the_command_line(server: Running, video: Any, tmp_path: Path) -> None:
    assert video.status == "completed"
    output = tmp_path / "x.mp4"
    arguments = ["--model", "shapes", "--prompt", PROMPT, "--seed", "7", "--output", str(output), "--keep-latents"]
    settings = {"width": 32, "height": 32, "num_frames": 9, "num_inference_steps": 3}
    for key, value in settings.items():
        arguments += ["--set", f"sampling.{key}={value}"]
    assert main(["generate", *arguments, "--set", "guidance.s2_scale=0.5", "--plain"]) == 0
    answer = httpx.get(f"{server.url}/v1/videos/{video.id}/latents")
    mine = tmp_path / "served.safetensors"
    mine.write_bytes(answer.content)
    served, ours = load_file(mine), load_file(tmp_path / "x.latents.safetensors")
    assert served.keys() == ours.keys() and all(torch.equal(served[key], ours[key]) for key in ours)
    sidecar = httpx.get(f"{server.url}/v1/videos/{video.id}/sidecar").json()
    assert sidecar["latents"] == json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))["latents"]


def test_content_in_every_variant_and_format(
    client: openai.OpenAI, server: Running, video: Any, tmp_path: Path
) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(client.videos.download_content(video.id).read())
    info = probe_video(path)
    assert (info.width, info.height, info.num_frames, info.fps) == (32, 32, 9, 8)
    for variant, kind, width in (("thumbnail", "WEBP", 320), ("spritesheet", "JPEG", 9 * 320)):
        image = Image.open(io.BytesIO(client.videos.download_content(video.id, variant=variant).read()))
        assert image.format == kind and image.width >= width
    url = f"{server.url}/v1/videos/{video.id}/content"
    movie = httpx.get(url, params={"codec": "prores"}, timeout=120)
    assert movie.headers["content-type"] == "video/quicktime"
    (tmp_path / "x.mov").write_bytes(movie.content)
    difference = read_video(tmp_path / "x.mov").float() - read_video(path).float()
    assert difference.abs().mean() < 8
    frames = httpx.get(url, params={"codec": "png"}, timeout=120)
    assert len(zipfile.ZipFile(io.BytesIO(frames.content)).namelist()) == 9
    assert httpx.get(url, params={"codec": "gif"}).json()["error"]["param"] == "codec"


def test_lists_over_pages(client: openai.OpenAI, server: Running, video: Any) -> None:
    made = [client.videos.create(prompt=f"{PROMPT} {i}", size="32x32", seconds="1", extra_body=SMALL) for i in range(3)]
    newest = [entry.id for entry in client.videos.list(limit=2)]  # the client follows the pages itself
    assert newest[:3] == [entry.id for entry in reversed(made)] and video.id in newest
    oldest = [entry.id for entry in client.videos.list(limit=1, order="asc")]
    assert oldest == list(reversed(newest))
    first = client.videos.list(limit=2)
    assert first.has_more and first.last_id == first.data[-1].id
    client.videos.delete(first.last_id)  # a page goes on behind a video that was deleted meanwhile
    second = httpx.get(f"{server.url}/v1/videos", params={"limit": 2, "after": first.last_id}).json()
    assert second["data"][0]["id"] == newest[2]
    for entry in made:
        if entry.id != first.last_id:
            wait_for(client, entry.id, "completed")


def test_deleting_one_that_runs_stops_it(client: openai.OpenAI, server: Running) -> None:
    long = client.videos.create(
        prompt=PROMPT, size="64x64", seconds="4", extra_body={"sampling": {"num_inference_steps": 200}}
    )
    after = client.videos.create(prompt=PROMPT, size="32x32", seconds="1", extra_body=SMALL)
    running_one = wait_for(client, long.id, "in_progress")
    while running_one.step == 0:
        time.sleep(0.05)
        running_one = client.videos.retrieve(long.id)
    assert (running_one.phase, running_one.steps, running_one.ahead) == ("denoising", 200, 0)
    deleted = client.videos.delete(long.id)
    assert deleted.deleted and deleted.object == "video.deleted"
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(long.id)
    assert wait_for(client, after.id, "completed").progress == 100  # with the same replica, which was not restarted
    assert list((server.folder / "videos").glob(f"{long.id}*")) == []
    assert "Traceback" not in server.log.read_text(encoding="utf-8")


def test_a_first_image(client: openai.OpenAI, server: Running, tmp_path: Path) -> None:
    """As a file and as a data URL: the same video. The image goes with the job that it belongs to."""
    picture = tmp_path / "first.png"
    image(1).save(picture)
    url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    ask = {"prompt": PROMPT, "model": "pictures", "size": "64x48"}
    extra = {"seed": 4, "sampling": {"num_frames": 5, "num_inference_steps": 2}}
    with pytest.raises(openai.BadRequestError, match="expected an image"):
        client.videos.create(**ask, extra_body=extra)
    body = {**ask, **extra, "input_reference": {"image_url": url}}  # which this version of the client cannot send
    sent = httpx.post(f"{server.url}/v1/videos", json=body).json()
    made = [client.videos.create(**ask, input_reference=picture, extra_body=extra).id, sent["id"]]
    assert len(list((server.folder / "images").iterdir())) == 2
    records = []
    for name in made:
        assert wait_for(client, name, "completed", "failed").status == "completed"
        records.append(httpx.get(f"{server.url}/v1/videos/{name}/sidecar").json())
        client.videos.delete(name)
    assert records[0]["latents"] == records[1]["latents"] and len(records[0]["images"]) == 1
    assert list((server.folder / "images").iterdir()) == []


def test_a_failing_job_is_answered_with_200_and_its_error(client: openai.OpenAI, server: Running, video: Any) -> None:
    """The video's place is taken while it waits, which cannot be known when it is queued."""
    blocker = client.videos.create(
        prompt=PROMPT, size="64x64", seconds="4", extra_body={"sampling": {"num_inference_steps": 200}}
    )
    wait_for(client, blocker.id, "in_progress")
    made = client.videos.create(prompt=PROMPT, size="32x32", seconds="1", extra_body=SMALL)
    (server.folder / "videos" / f"{made.id}.mp4").mkdir()
    client.videos.delete(blocker.id)
    failed = wait_for(client, made.id, "failed", "completed")
    assert failed.status == "failed" and failed.error.code == "video_generation_failed" and failed.error.message
    assert httpx.get(f"{server.url}/v1/videos/{made.id}/content").status_code == 404
    client.videos.delete(made.id)


def test_the_same_idempotency_key_gives_the_same_job(client: openai.OpenAI, video: Any) -> None:
    ask = {"prompt": PROMPT, "size": "32x32", "seconds": "1", "extra_body": SMALL}
    headers = {"Idempotency-Key": "shot-7"}
    first = client.videos.create(**ask, extra_headers=headers)
    assert client.videos.create(**ask, extra_headers=headers).id == first.id
    with pytest.raises(openai.UnprocessableEntityError, match="expected a new key"):
        client.videos.create(**{**ask, "seconds": "2"}, extra_headers=headers)
    assert client.videos.create(**ask).id != first.id
    wait_for(client, first.id, "completed")


def test_a_full_queue_says_when_to_come_back(client: openai.OpenAI, server: Running, video: Any) -> None:
    names = []
    with pytest.raises(openai.RateLimitError) as refused:
        for _ in range(9):
            names.append(client.videos.create(prompt=PROMPT, size="64x64", seconds="4", extra_body=SMALL).id)
    assert refused.value.response.headers["retry-after"] == "30" and 6 <= len(names) <= 8
    places = [client.videos.retrieve(name).ahead for name in names[-3:]]
    assert places == sorted(places) and places[-1] > places[0]
    for name in names:
        client.videos.delete(name)
    assert list(client.videos.list(limit=1, extra_query={"order": "asc"}))


def test_progress_as_events(client: openai.OpenAI, server: Running, video: Any) -> None:
    made = client.videos.create(
        prompt=PROMPT, size="64x64", seconds="2", extra_body={"sampling": {"num_inference_steps": 40}}
    )
    states, progress = [], []
    with httpx.stream("GET", f"{server.url}/v1/videos/{made.id}/events", timeout=120) as stream:
        for line in stream.iter_lines():
            if line.startswith("event: "):
                states.append(line.removeprefix("event: "))
            elif line.startswith("data: "):
                progress.append(json.loads(line.removeprefix("data: "))["progress"])
    assert states[-1] == "completed" and progress == sorted(progress) and len(set(progress)) > 2


def test_the_program_of_the_documentation(
    server: Running, video: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n# needs a running server\n(.*?)```", document, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    here = program.replace("http://127.0.0.1:8000", server.url).replace(
        '"num_inference_steps": 30', '"num_inference_steps": 3'
    )
    assert server.url in here and ": 3}" in here
    exec(compile(here, "docs/serving.md", "exec"), {})
    assert probe_video(tmp_path / "circle.mp4").num_frames == 17


class TestAround:
    def test_models_health_and_metrics(self, server: Running, client: openai.OpenAI, video: Any) -> None:
        model, pictures = client.models.list()
        assert pictures.id == "pictures"
        assert (model.id, model.size, model.frames, model.fps) == ("shapes", "64x64", 17, "8")
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
        text = httpx.get(f"{server.url}/metrics").text
        assert 's2video_jobs{state="done"}' in text and "s2video_steps " in text

    def test_json_bodies_and_a_start_image(self, server: Running, video: Any) -> None:
        """The embedded model takes no image, so one that is right is refused for that reason, and no other."""
        picture = io.BytesIO()
        Image.new("RGB", (40, 40), "red").save(picture, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
        body = {"prompt": PROMPT, "input_reference": {"image_url": url}}
        answer = httpx.post(f"{server.url}/v1/videos", json=body).json()["error"]
        assert answer["param"] == "input_reference" and "expected none for this model" in answer["message"]
        files = {"input_reference": ("x.png", picture.getvalue(), "image/png")}
        answer = httpx.post(f"{server.url}/v1/videos", data={"prompt": PROMPT}, files=files).json()["error"]
        assert "expected none for this model" in answer["message"]

    def test_nothing_in_answers_names_a_path(self, server: Running, video: Any) -> None:
        texts = [httpx.get(f"{server.url}/v1/{path}").text for path in ("videos", "models", f"videos/{video.id}")]
        assert all(str(server.folder) not in text for text in texts)


BAD = [
    ({}, 400, "prompt"),
    ({"prompt": " "}, 400, "prompt"),
    ({"prompt": 5}, 400, "prompt"),
    ({"prompt": "x" * 10_001}, 400, "prompt"),
    ({"prompt": "x\x00y"}, 400, None),
    ({"prompt": "x", "model": "sora-2"}, 400, "model"),
    ({"prompt": "x", "model": ["shapes"]}, 400, "model"),
    ({"prompt": "x", "size": "huge"}, 400, "size"),
    ({"prompt": "x", "size": "65x64"}, 400, "size"),
    ({"prompt": "x", "size": "640x640"}, 400, "size"),
    ({"prompt": "x", "size": "9999999999999999999999x1"}, 400, "size"),
    ({"prompt": "x", "seconds": "soon"}, 400, "seconds"),
    ({"prompt": "x", "seconds": -1}, 400, "seconds"),
    ({"prompt": "x", "seconds": "1e308"}, 400, "seconds"),
    ({"prompt": "x", "seconds": 60}, 400, "seconds"),
    ({"prompt": "x", "seconds": 1, "sampling": {"num_frames": 9}}, 400, "seconds"),
    ({"prompt": "x", "seed": -1}, 400, "seed"),
    ({"prompt": "x", "seed": 2**64}, 400, "seed"),
    ({"prompt": "x", "sampling": {"num_inference_steps": 10**9}}, 400, "sampling[num_inference_steps]"),
    ({"prompt": "x", "sampling": "fast"}, 400, "sampling"),
    ({"prompt": "x", "guidance": {"s2_scale": -1}}, 400, "guidance[s2_scale]"),
    ({"prompt": "x", "guidance": {"never_drop": ["y"] * 300}}, 400, "guidance[never_drop]"),
    ({"prompt": "x", "a\nb[": 1}, 400, "a\nb["),
    ({"prompt": "x", "guidance": {"s3_scale": 1}}, 400, "guidance[s3_scale]"),
    ({"prompt": "x", "guidance": {"num_draws": 10**6}}, 400, "guidance[num_draws]"),
    ({"prompt": "x", "output": {"ffmpeg": "/bin/sh"}}, 400, "output"),
    ({"prompt": "x", "ffmpeg": "/bin/sh"}, 400, "ffmpeg"),
    ({"prompt": "x", "image": "/etc/passwd"}, 400, "image"),
    ({"prompt": "x", "lora": "../../weights"}, 400, "lora"),
    ({"prompt": "x", "lora": "style," * 1000}, 400, "lora"),
    ({"prompt": "x", "codec": "gif"}, 400, "codec"),
    ({"prompt": "x", "timecode": "99:99:99:99"}, 400, "timecode"),
    ({"prompt": "x", "input_reference": "http://169.254.169.254/latest"}, 400, "input_reference"),
    ({"prompt": "x", "input_reference": "data:image/png;base64,AAAA"}, 400, "input_reference"),
    ({"prompt": "x", "input_reference": "data:image/png;base64,@"}, 400, "input_reference"),
]


@pytest.mark.parametrize(("body", "status", "param"), BAD, ids=[json.dumps(body)[:60] for body, *_ in BAD])
def test_bad_requests_are_answered_in_openais_form(server: Running, body: Any, status: int, param: str | None) -> None:
    answer = httpx.post(f"{server.url}/v1/videos", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert len(error["message"]) < 1000 and "\n" not in error["message"] and "request:" not in error["message"]
    assert str(server.folder) not in error["message"]
    if param is not None:
        assert error["param"] == param


class TestWire:
    def test_other_bodies(self, server: Running) -> None:
        url = f"{server.url}/v1/videos"
        assert httpx.post(url, content=b"{", headers={"content-type": "application/json"}).status_code == 400
        assert httpx.post(url, json=[]).status_code == 400
        nested = b'{"guidance": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
        assert httpx.post(url, content=nested, headers={"content-type": "application/json"}).status_code == 400
        assert httpx.post(url, content=b"x", headers={"content-type": "text/plain"}).status_code == 415
        assert httpx.post(url, content=b"x" * (33 * 2**20)).status_code == 413
        assert httpx.post(url, data={f"f{i}": "x" for i in range(300)}).status_code == 400
        assert httpx.post(url, data={"guidance[s2_scale": "1", "prompt": "x"}).json()["error"]["param"]
        files = {"input_reference": ("../../x.png", b"no image", "image/png")}
        assert "expected an image" in httpx.post(url, data={"prompt": "x"}, files=files).text
        assert httpx.put(url).status_code == 405 and httpx.put(url).json()["error"]["code"] == "method_not_allowed"
        assert "'/v2/videos'" in httpx.get(f"{server.url}/v2/videos").json()["error"]["message"]
        assert httpx.get(url, params={"after": "video_1"}).json()["error"]["param"] == "after"
        assert httpx.get(url, params={"limit": "x"}).json()["error"]["param"] == "limit"
        assert httpx.head(f"{server.url}/health").status_code == httpx.head(f"{server.url}/ready").status_code == 200

    def test_a_body_without_length_is_bounded_too(self, server: Running) -> None:
        def endless() -> Iterator[bytes]:
            for _ in range(40):
                yield b"x" * 2**20

        answer = httpx.post(f"{server.url}/v1/videos", content=endless(), headers={"content-type": "application/json"})
        assert answer.status_code == 413

    def test_ids_are_no_paths(self, server: Running) -> None:
        for name in ("..%2F..%2Fetc%2Fpasswd", "video_", "x" * 5000, "%00", "video_1' OR '1'='1"):
            for path in (f"/v1/videos/{name}", f"/v1/videos/{name}/content"):
                answer = httpx.get(f"{server.url}{path}")
                assert answer.status_code == 404 and "error" in answer.json()
            assert httpx.delete(f"{server.url}/v1/videos/{name}").status_code == 404

    def test_pages_of_others_and_other_names_are_refused(self, server: Running) -> None:
        body = {"prompt": "x"}
        for headers in (
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": "http://["},
            {"host": "evil.example"},
            {"host": "["},
        ):
            answer = httpx.post(f"{server.url}/v1/videos", data=body, headers=headers)
            assert answer.status_code == 403 and answer.json()["error"]["code"] in ("wrong_origin", "wrong_host")
        assert httpx.get(f"{server.url}/v1/videos", headers={"host": "evil.example"}).status_code == 403
        own = httpx.delete(f"{server.url}/v1/videos/none", headers={"origin": server.url})
        assert own.status_code == 404  # not refused

    def test_slow_and_broken_clients_leave_the_server_alive(self, server: Running) -> None:
        port = int(server.url.rpartition(":")[2])
        open_ones = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        for number, one in enumerate(open_ones):
            one.sendall(
                b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx"
                if number % 2
                else b"G\r\n"
            )
        assert httpx.get(f"{server.url}/health").status_code == 200
        for one in open_ones:
            one.close()
        assert httpx.get(f"{server.url}/health").status_code == 200

    def test_nothing_is_left_behind(self, server: Running, client: openai.OpenAI) -> None:
        """Of all that was refused above, no row and no file."""
        with sqlite3.connect(server.folder / "batch.sqlite") as connection:
            rows = connection.execute("SELECT job FROM requests").fetchall()
        names = {Path(name).stem for (name,) in rows}
        assert {path.name.partition(".")[0] for path in (server.folder / "videos").iterdir()} <= names
        assert list((server.folder / "images").iterdir()) == []


class TestStart:
    def test_beyond_this_machine_it_needs_a_key(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["serve", "--folder", str(tmp_path / "jobs"), "--host", "0.0.0.0"]) == 2
        assert "S2VIDEO_API_KEY" in capfd.readouterr().err

    def test_a_key_that_no_header_can_hold(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for key in ("schlüssel", "secret ", "a\nb", "\udcff"):
            monkeypatch.setenv("S2VIDEO_API_KEY", key)
            assert main(["serve", "--folder", str(tmp_path / "jobs")]) == 2
            error = capfd.readouterr().err
            assert "expected printable ASCII" in error and key not in error

    def test_bad_arguments(self, server: Running, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        for arguments, message in (
            (["--model", "a=shapes", "--model", "a=shapes"], "a twice"),
            (["--model", "=shapes"], "expected MODEL or NAME=MODEL"),
            (["--model", "a="], "expected MODEL or NAME=MODEL"),
            (["--loaded", "0"], "--loaded: expected a number >= 1"),
            (["--model", "nothing-like-this"], "expected a name from s2video models"),
            (["--lora", "style=/no/file"], "expected NAME=FILE"),
            (["--port", "70000"], "expected 1 to 65535"),
            (["--folder", str(server.folder)], "another process serves this folder"),
            (["--port", server.url.rpartition(":")[2]], "expected a free address"),
        ):
            assert main(["serve", "--folder", str(tmp_path / "jobs"), *arguments]) == 2, arguments
            assert message in capfd.readouterr().err

    def test_a_key_is_asked_for(self, tmp_path: Path) -> None:
        with running(tmp_path / "jobs", "--allow-host", "Farm.LAN", S2VIDEO_API_KEY="secret") as started:
            started.until_ready()
            assert httpx.get(f"{started.url}/health", headers={"host": "farm.lan"}).status_code == 200
            assert httpx.get(f"{started.url}/v1/videos").status_code == 401
            wrong = httpx.get(f"{started.url}/v1/videos", headers={"authorization": "Bearer wrong"})
            assert wrong.json()["error"]["code"] == "invalid_api_key"
            right = httpx.get(f"{started.url}/v1/videos", headers={"authorization": "Bearer secret"})
            assert right.json()["data"] == []
