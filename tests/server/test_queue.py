"""The server's queue by itself: images of requests, damaged files, and what clients read."""

from pathlib import Path

import pytest

from s2video.batch.store import Entry
from s2video.errors import InputError
from s2video.server.queue import IMAGES, JobQueue, Request, new_id, without_folders


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
    assert queue.draw("replica-1", None) is not None
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
