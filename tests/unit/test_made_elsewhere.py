"""Videos that other programs made, image sequences, and what `status`, `--dry-run`, logs and JSON answers say."""

import json
import logging
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sidecar_helpers import made_video
from video_helpers import BLUE, GREEN, RED, solid

from s2video.batch.fates import Fate, outlook
from s2video.batch.run_file import load_batch
from s2video.batch.store import Entry, Store
from s2video.cli import state as state_commands
from s2video.cli.main import main
from s2video.errors import InputError
from s2video.media.formats import VideoSpec
from s2video.media.video import probe_video, read_video, write_video
from s2video.review.inspect import describe
from s2video.review.page import mask_picture
from s2video.review.sequences import open_source, other_videos
from s2video.system.progress import Progress
from s2video.system.terminal import say, say_error


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video with a sidecar, one without, two sequences, and a damaged file."""
    made = tmp_path_factory.mktemp("elsewhere")
    made_video(made / "ours.mp4")
    (made / "more").mkdir()
    write_video([solid(GREEN, num_frames=5)], made / "more" / "theirs.mp4", VideoSpec(Fraction(12)), metadata={})
    png, exr = VideoSpec(Fraction(8), codec="png"), VideoSpec(Fraction(8), codec="exr")
    for name, colour, spec in (("red.png", RED, png), ("blue.exr", BLUE, exr)):
        write_video([solid(colour, num_frames=4)], made / "sequences" / name, spec, metadata={})
    (made / "broken.mp4").write_bytes(b"junk")
    (made / ".hidden.mp4").write_bytes(b"junk")
    return made


def test_other_videos_are_found(folder: Path) -> None:
    found = list(other_videos(folder, [folder / "ours.mp4"]))
    assert found == [folder / "broken.mp4", folder / "more" / "theirs.mp4"]


def test_a_page_shows_videos_without_a_sidecar(folder: Path, tmp_path: Path) -> None:
    assert main(["page", str(folder), "-o", str(tmp_path / "index.html")]) == 0
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "theirs.mp4" in text and "no sidecar" in text and "64x64 px" in text and "12" in text
    assert text.count("<video") == 2
    assert re.search(r'class="failure"><h3>broken\.mp4', text)
    theirs = text[text.index("<h3>theirs.mp4") :]
    assert "no S²-Guidance" not in theirs  # it is not known


def test_a_sheet_shows_them_too(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sheet", str(folder), "-o", str(tmp_path / "s.png")]) == 2
    assert re.search(r"s2video: error: .*broken\.mp4", capsys.readouterr().err)
    assert main(["sheet", str(folder / "more"), "--columns", "2", "-o", str(tmp_path / "s.png")]) == 0
    with Image.open(tmp_path / "s.png") as sheet:
        pixel = np.asarray(sheet.convert("RGB"))[-30, 30]
    assert pixel[1] > 100 > pixel[0]
    assert main(["sheet", str(folder / "sequences" / "red"), "-o", str(tmp_path / "r.png")]) == 0


@pytest.mark.parametrize("value", ["0", "-1", "1000000000"])
def test_columns_have_a_bound(value: str, tmp_path: Path) -> None:
    assert main(["sheet", str(tmp_path), "--columns", value, "-o", str(tmp_path / "s.png")]) == 2


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "x"])
def test_embedding_has_a_bound(value: str, folder: Path, tmp_path: Path) -> None:
    assert main(["page", str(folder), "--embed-below", value, "-o", str(tmp_path / "p.html")]) == 2


def test_sequences_are_compared(folder: Path, tmp_path: Path) -> None:
    sequences = [str(folder / "sequences" / name) for name in ("red", "blue")]
    assert main(["compare", *sequences, "-o", str(tmp_path / "both.mp4")]) == 0
    info = probe_video(tmp_path / "both.mp4")
    assert info.num_frames == 4 and info.fps == 24  # no sidecar tells another rate
    frames = read_video(tmp_path / "both.mp4").float()
    height, width = frames.shape[1:3]
    for x, colour in ((width // 4, RED), (3 * width // 4, BLUE)):
        found = frames[:, height // 2 + 40, x].mean(0)
        assert torch.allclose(found, 255 * torch.tensor(colour).float(), atol=14), (x, found)  # EXR is linear light


def test_the_rate_of_a_sequence_is_that_of_its_sidecar(tmp_path: Path) -> None:
    made_video(tmp_path / "clip.png")
    assert open_source(tmp_path / "clip").info.fps == 8


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "expected a folder with frames"), (["a.png"], "numbered frames"), (["a.1.png", "a.3.png"], "frame 2 next")],
)
def test_folders_that_are_no_sequence(names: list[str], message: str, tmp_path: Path) -> None:
    for name in names:
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    with pytest.raises(InputError, match=message):
        open_source(tmp_path)


def test_page_and_inspect_draw_masks_the_same_way(tmp_path: Path) -> None:
    """Block 0 is at the top, and step 0 at the left."""
    video = made_video(tmp_path / "clip.mp4", drop_count=1)
    lines = describe(video.sidecar, video.path).splitlines()
    grid = [line.split()[-1] for line in lines if line.strip().startswith("block ")]
    picture = mask_picture(video.sidecar)
    assert picture is not None and picture.marks
    assert {(step, row) for row, line in enumerate(grid) for step, mark in enumerate(line) if mark != "·"} == set(
        picture.marks
    )
    assert main(["page", str(tmp_path)]) == 0
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    step, block = picture.marks[0]
    assert f"M{step}.1 {block}.1h" in text and "blocks downwards" in text


def store_with(folder: Path, *states: str) -> Store:
    store = Store(folder)
    store.create()
    entries = [Entry(f"{number}.mp4", "here", "m", "{}", "k", 1.0) for number in range(len(states))]
    store.put(entries, frozenset())
    with store._transaction() as connection:
        for number, state in enumerate(states):
            connection.execute("UPDATE jobs SET state = ? WHERE position = ?", (state, number))
    return store


@pytest.mark.parametrize(
    ("states", "code"),
    [(("done", "done"), 0), (("done", "failed"), 1), (("done", "waiting"), 3), (("failed", "waiting"), 1)],
)
def test_the_exit_code_of_status(states: tuple[str, ...], code: int, tmp_path: Path) -> None:
    store_with(tmp_path, *states)
    assert main(["status", str(tmp_path)]) == 0
    assert main(["status", str(tmp_path), "--exit-code"]) == code


def test_status_watches_until_all_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_with(tmp_path, "waiting", "waiting")
    looks = iter(["done", "nothing", "done"])

    def later(seconds: float) -> None:
        if next(looks) == "done":
            drawn = store.draw("r1")
            assert drawn is not None
            store.finish(drawn.name, "r1", {})

    monkeypatch.setattr(state_commands.time, "sleep", later)
    assert main(["status", str(tmp_path), "--watch"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if " of 2 done" in line]
    assert re.findall(r"(\d) of 2 done", "\n".join(said)) == ["0", "1", "2"]


@pytest.mark.parametrize("command", [["status"], ["inspect"]])
def test_errors_in_json(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, str(tmp_path / "gone"), "--json"]) == 2
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert answer["error"]["exit_code"] == 2 and "gone" in answer["error"]["message"]
    assert said.err.count("\n") == 1


def test_a_dry_run_says_what_would_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {
        "model": {"path": "shapes-wan", "device": "cpu"},
        "folder": str(tmp_path / "out"),
        "shots": [f"a large {colour} circle moving left on a gray background" for colour in ("red", "blue", "green")],
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert main(["batch", str(tmp_path / "run.yaml"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("  make  ") == 3 and "3 videos, 3 to make; " in said
    jobs = load_batch(tmp_path / "run.yaml").jobs
    store = Store(tmp_path / "out")
    store.create()
    store.put([Entry(job.name, job.where, "m", job.config.model_dump_json(), "k", 1.0) for job in jobs], frozenset())
    with store._transaction() as connection:
        connection.execute("UPDATE jobs SET state = 'failed' WHERE position = 0")
    assert main(["batch", str(tmp_path / "run.yaml"), "--dry-run"]) == 0
    again = capsys.readouterr().out
    assert "videos, " in again and "to make" in again


def test_outlooks() -> None:
    assert outlook(Fate(), None) == "make"
    assert outlook(Fate(), "waiting") == "make"
    assert outlook(Fate(), "running") == "continue"
    assert outlook(Fate(), "done") == "done"
    assert outlook(Fate(), "failed") == "failed"
    assert outlook(Fate(again="--force"), "done") == "make again"
    assert outlook(Fate(is_kept=True), "done") == "kept"


def test_the_logger(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.INFO, logger="s2video"):
        say("a note")
        say_error("a problem")
    assert [(r.name, r.levelname, r.message) for r in caplog.records] == [
        ("s2video", "INFO", "a note"),
        ("s2video", "ERROR", "error: a problem"),
    ]
    assert capsys.readouterr().err == "s2video: a note\ns2video: error: a problem\n"


def test_lines_of_progress_have_the_time_and_the_shot(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("denoising shot_010", "plain") as progress:
        progress(1, 2)
    assert re.match(r"\d\d:\d\d:\d\d denoising shot_010: step 1/2, .* s left\n", capsys.readouterr().err)
