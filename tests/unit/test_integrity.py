"""A video and its sidecar change together or not at all, and `inspect` says what has changed since."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage_helpers import FILE_DAMAGE, FOLDER_DAMAGE, replaced
from sidecar_helpers import made_video
from video_helpers import SPEC, noise

import s2video
from s2video.cli.main import main
from s2video.media import video as video_module
from s2video.media.video import Target, write_video
from s2video.media.video_queue import write_videos_meanwhile
from s2video.records.sidecar import save_latents
from s2video.system.files import Beside, sha256

ROOT = Path(s2video.__file__).parents[1]
LATENTS = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("words", [[], ["--json"]])
@pytest.mark.parametrize("damage", FILE_DAMAGE.values(), ids=FILE_DAMAGE.keys())
def test_inspect_ends_with_1_if_the_file_is_not_as_it_was(
    damage: Callable[[Path], Any], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = made_video(tmp_path / "clip.mp4").path
    assert main(["inspect", *words, str(video)]) == 0 and capsys.readouterr().err == ""
    damage(video)
    assert main(["inspect", *words, str(tmp_path / "clip.json")]) == 1
    out, err = capsys.readouterr()
    assert "red wall" in out and err.count("\n") == 1 and str(video) in err
    assert "missing" in err or "changed since it was written: expected" in err


@pytest.mark.parametrize("damage", FOLDER_DAMAGE.values(), ids=FOLDER_DAMAGE.keys())
def test_every_frame_of_a_sequence_counts(
    damage: Callable[[Path], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made_video(tmp_path / "clip.png").path
    assert main(["inspect", str(folder)]) == 0
    damage(folder)
    assert main(["inspect", str(folder)]) == 1
    assert "changed since it was written" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"junk", LATENTS + 1e-6, LATENTS[:, :3].contiguous(), LATENTS.bfloat16()])
def test_latents_next_to_the_video_count(content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_video(tmp_path / "clip.mp4", latents=LATENTS)
    path = tmp_path / "clip.latents.safetensors"
    save_latents(LATENTS, path, {})
    assert main(["inspect", str(path)]) == 0
    assert f"{path}: unchanged" in capsys.readouterr().out
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_latents(content, path, {})
    assert main(["inspect", str(path)]) == 1
    assert f"{path}: changed since it was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "edit",
    [
        lambda values: values.update(prompt="a blue wall"),
        lambda values: values["config"]["output"].update(crf=20),
        lambda values: values["timings"].update(load_seconds=0.25),
        lambda values: values.update(record_sha256="0" * 64),
    ],
)
def test_a_sidecar_that_was_edited_is_said(
    edit: Callable[[dict[str, Any]], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_video(tmp_path / "clip.mp4")
    path = tmp_path / "clip.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values))
    assert main(["inspect", str(path)]) == 0, "another layout of the same JSON is no change"
    edit(values)
    path.write_text(json.dumps(values))
    assert main(["inspect", str(path)]) in (1, 2)
    assert str(path) in capsys.readouterr().err


def test_an_older_sidecar_has_no_digest_of_itself(tmp_path: Path) -> None:
    made_video(tmp_path / "clip.mp4")
    path = tmp_path / "clip.json"
    values = json.loads(path.read_text())
    del values["record_sha256"]
    path.write_text(json.dumps(values))
    assert main(["inspect", str(path)]) == 0


def test_a_sidecar_of_another_format_is_not_this_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """X.mp4 and X.mov have the same sidecar X.json, which describes the one that was written last."""
    made_video(tmp_path / "clip.mp4", seed=1)
    made_video(tmp_path / "clip.png", seed=2)
    assert main(["inspect", str(tmp_path / "clip")]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "clip.mp4")]) == 1
    assert "clip.mp4: changed" in (err := capsys.readouterr().err) and "the sidecar is of clip)" in err


def test_a_renamed_pair_is_still_good(tmp_path: Path) -> None:
    made_video(tmp_path / "clip.mp4")
    (tmp_path / "clip.mp4").rename(tmp_path / "final.mp4")
    (tmp_path / "clip.json").rename(tmp_path / "final.json")
    assert main(["inspect", str(tmp_path / "final.mp4")]) == 0


def digest_of(made: Path) -> dict[str, str]:
    return {"sha256": sha256(made)}


def pair(video: Path, place: Path) -> str:
    """What stands under the final names: neither, or both, which then belong together."""
    sidecar = video.with_suffix(".json")
    if not place.exists() and not sidecar.exists():
        return "neither"
    return "pair" if json.loads(sidecar.read_text()) == digest_of(place) else "mixed"


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
@pytest.mark.parametrize("again", [False, True])
def test_an_interrupt_while_the_encoder_ends_leaves_a_pair_or_nothing(
    name: str, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C arrives after the last frame, while the main thread waits for the encoder."""
    path, spec = tmp_path / name, SPEC if name == "a.mp4" else video_module.VideoSpec(SPEC.fps, codec="png")
    place = path if name == "a.mp4" else tmp_path / "a"
    beside = Beside(path.with_suffix(".json"), digest_of)
    if again:
        write_video(noise(3), path, spec, metadata={}, beside=beside)
    checked = video_module._checked

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return checked(*arguments)

    monkeypatch.setattr(video_module, "_checked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_videos_meanwhile((frame for frame in noise(5)), [Target(path, spec, {}, beside)])
    assert pair(path, place) in ("neither", "pair")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
@pytest.mark.parametrize("again", [False, True])
def test_a_rename_that_fails_leaves_both_as_they_were(
    name: str, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, spec = tmp_path / name, SPEC if name == "a.mp4" else video_module.VideoSpec(SPEC.fps, codec="png")
    place = path if name == "a.mp4" else tmp_path / "a"
    beside = Beside(path.with_suffix(".json"), digest_of)
    if again:
        write_video(noise(3), path, spec, metadata={}, beside=beside)
    before = beside.path.read_bytes() if again else None
    replace, rename, failed = os.replace, Path.rename, []

    def fails(one: Any, two: Any) -> Any:
        if Path(two) == place and not failed:
            failed.append(two)
            raise PermissionError(1, "not permitted")
        return (replace if name == "a.mp4" or Path(two).suffix == ".json" else rename)(one, two)

    monkeypatch.setattr(os, "replace", fails)
    monkeypatch.setattr(Path, "rename", fails)
    monkeypatch.setattr("s2video.system.files._exchange", lambda a, b: False)  # as on systems that cannot
    with pytest.raises(PermissionError):
        write_video(noise(5), path, spec, metadata={}, beside=beside)
    monkeypatch.undo()
    assert (beside.path.read_bytes() if beside.path.exists() else None) == before
    assert pair(path, place) == ("pair" if again else "neither")


KILLED = """
import os, sys
from pathlib import Path
from s2video.system import files
replace, left = os.replace, [1]
def killed(one, two):
    if left[0] == 0:
        os._exit(9)
    left[0] -= 1
    replace(one, two)
os.replace = killed
path = Path(sys.argv[1])
with files.atomic_path(path, files.Beside(path.with_suffix(".json"), lambda made: {"sha256": files.sha256(made)})) as t:
    t.write_bytes(b"new")
"""


@pytest.mark.parametrize("again", [False, True])
def test_a_kill_between_the_two_renames_leaves_no_video_that_its_sidecar_calls_good(
    again: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.mp4"
    if again:
        path.write_bytes(b"old")
        path.with_suffix(".json").write_text(json.dumps(digest_of(path)))
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False)
    assert killed.returncode == 9 and path.with_suffix(".json").exists()
    assert (path.read_bytes() if path.exists() else None) == (b"old" if again else None)
    assert not path.exists() or pair(path, path) == "mixed", "the digest tells"


def test_a_changed_video_is_shown_without_the_words_of_its_sidecar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "bad"):
        made_video(tmp_path / f"{name}.mp4", prompt=f"a {name} wall")
    replaced(tmp_path / "bad.mp4")
    shutil.rmtree(tmp_path / "other")
    assert main(["page", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    assert "a good wall" in page and "a bad wall" not in page and "bad.mp4" in page
    assert "its sidecar exists, the video is changed since it was written" in page
    words = [str(tmp_path / "good.mp4"), str(tmp_path / "bad.mp4"), "-o", str(tmp_path / "both.png")]
    capsys.readouterr()
    assert main(["sheet", *words]) == 0
    err = capsys.readouterr().err
    assert err.count("it gets no prompt and seed") == 1 and "bad.mp4: changed" in err


def test_the_largest_grid_of_masks_is_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_video(tmp_path / "clip.mp4")
    path = tmp_path / "clip.json"
    values = json.loads(path.read_text())
    values["num_blocks"] = values["num_steps"] = 10_000
    path.write_text(json.dumps(values | {"record_sha256": None}))
    assert main(["inspect", str(path)]) == 1
    out = capsys.readouterr().out
    assert "of 10000 blocks: too many to draw" in out and len(out) < 10_000


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("config", "guidance", "num_draws"), 10**9),
        (("config", "sampling", "num_inference_steps"), 10**9),
        (("config", "sampling", "num_frames"), 10**12),
        (("config", "sampling", "width"), 10**12),
        (("resumed_after_step",), -1),
        (("resumed_after_step",), 10**9),
        (("latents", "shape"), [1, 4, 2, 8, 10**30]),
        (("seed",), 10**30),
        (("mesh", "world_size"), 10**30),
        (("output", "bytes"), 10**30),
        (("num_blocks",), 10**9),
        (("num_steps",), 10**9),
    ],
)
def test_numbers_in_a_sidecar_have_bounds(
    keys: tuple[str, ...], value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_video(tmp_path / "clip.mp4")
    path = tmp_path / "clip.json"
    values = json.loads(path.read_text())
    part = values
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path.write_text(json.dumps(values))
    assert main(["inspect", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and keys[-1] in err
