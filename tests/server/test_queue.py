"""The server's queue by itself: images of requests, damaged files, and what clients read."""

from dataclasses import replace
from pathlib import Path

import pytest

from s2video.batch.store import Entry
from s2video.config.run import RunConfig
from s2video.errors import InputError
from s2video.models.checkpoint import open_checkpoint
from s2video.planning.cards import CARDS
from s2video.server.jobs import Request, new_id, without_folders
from s2video.server.queue import IMAGES, JobQueue
from s2video.server.room import crowding
from s2video.server.video_request import Models


def _request(image: str | None) -> Request:
    name = new_id()
    entry = Entry(f"videos/{name}.mp4", "request", "", "{}", "", None)
    shown = {"image": image, "s2_scale": 0.25}
    return Request(name, "shapes", entry, shown, steps=3, digest="")


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    queue = JobQueue(tmp_path)
    queue.create()
    (tmp_path / IMAGES).mkdir()
    (tmp_path / "videos").mkdir()
    return queue


def test_an_image_stays_as_long_as_its_job(queue: JobQueue) -> None:
    used, lost = (queue.folder / IMAGES / name for name in ("a.1", "a.2"))
    used.touch()
    lost.touch()
    job = queue.submit(_request("a.1"), most=9)
    queue.submit(_request(None), most=9)
    queue.drop_images()  # as a start does: the second was left by a request that a kill interrupted
    assert used.exists() and not lost.exists()
    video = queue.folder / job.job
    video.touch()
    assert queue.remove(job.id) is not None
    assert not used.exists() and not video.exists() and queue.find(job.id) is None


def test_a_cancelled_job_takes_its_image_along_when_it_has_stopped(queue: JobQueue) -> None:
    image = queue.folder / IMAGES / "a.1"
    image.touch()
    job = queue.submit(_request("a.1"), most=9)
    assert queue.draw("replica-1") is not None
    queue.remove(job.id)
    assert image.exists() and queue.find(job.id) is None and not queue.step_done(job.job, 1, 3)
    queue.forget(job.job)
    assert not image.exists() and queue.count()["running"] == 0


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "batch.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(InputError, match=r"batch\.sqlite"):
        JobQueue(tmp_path).create()


def test_messages_for_clients_name_no_folders() -> None:
    assert without_folders("output /srv/jobs/videos/a.mp4: no") == "output a.mp4: no"
    assert without_folders("file '/srv/a b.safetensors'") == "file 'a b.safetensors'"
    assert without_folders("sampling/guidance 24000/1001 n/a") == "sampling/guidance 24000/1001 n/a"


def test_loaded_models_go_first_but_nobody_waits_for_ever(queue: JobQueue) -> None:
    """Jobs of a model that is not loaded are passed over by eight newer ones, and no more."""
    for models in ("a", "b", *"aaaaaaaaaaaa"):
        request = _request(None)
        queue.submit(replace(request, entry=replace(request.entry, models=models)), most=99)
    drawn = [queue.draw("replica-1", ["a"]) for _ in range(14)]
    assert "".join(job.models for job in drawn if job is not None) == "aaaaaaaaabaaaa"
    assert queue.draw("replica-1", ["a"]) is None


def test_models_that_do_not_fit_together_are_told() -> None:
    config = RunConfig.model_validate({"model": {"path": "shapes-wan"}})
    models = Models({name: config for name in "abc"}, {}, open_checkpoint)
    small = CARDS["H100"].model_copy(update={"memory_gb": 0.02})
    assert crowding(models, 2, world_size=1, card=CARDS["H100"]) is None
    assert crowding(models, 2, world_size=1, card=CARDS["cpu"]) is None
    assert "--loaded 2" in (crowding(models, 2, world_size=1, card=small) or "")
    assert crowding(Models({"a": config}, {}, open_checkpoint), 2, world_size=1, card=small) is None
