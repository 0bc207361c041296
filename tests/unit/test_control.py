"""Tests of control from files: frames of videos and folders, masks, references, notes and refusals; records of it."""

import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageOps
from tiny import PROMPT, SIZE
from tiny_vace import UNCONTROLLED, frames, soft_mask
from tiny_wan_i2v import image

import s2video
from s2video.cli.main import main
from s2video.config.run import RunConfig
from s2video.errors import InputError
from s2video.media.ffmpeg import bundled_ffmpeg
from s2video.media.formats import VideoSpec
from s2video.media.video import probe_video, video_frames, write_video
from s2video.models.control import read_control, read_pictures
from s2video.records.identity import job_key
from s2video.records.sidecar_model import read_sidecar
from s2video.records.trust import config_from_file

COUNT = SIZE["num_frames"]
PIXELS = SIZE["width"], SIZE["height"]


def config(**control: Any) -> RunConfig:
    return RunConfig().patched({"sampling": SIZE, "control": control})


def saved(folder: Path, pictures: tuple[Image.Image, ...], first: int = 1) -> Path:
    """A folder of frames whose numbers have no leading zeros."""
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures, first):
        picture.save(folder / f"frame{number}.png")
    (folder / ".hidden.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("left out")
    return folder


def encoded(path: Path, pictures: tuple[Image.Image, ...]) -> Path:
    tensor = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).float() / 255
    write_video([tensor], path, VideoSpec(Fraction(24), crf=0), metadata={})
    return path


def equal(got: tuple[Image.Image, ...], expected: tuple[Image.Image, ...]) -> bool:
    return [f.tobytes() for f in got] == [f.tobytes() for f in expected] and {f.size for f in got} == {PIXELS}


def test_folders_of_frames_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    video, mask = saved(tmp_path / "v", frames(1)), saved(tmp_path / "m", soft_mask(1))
    reference = tmp_path / "face.png"
    image(3, (40, 90)).save(reference)
    got = read_control(config(video=str(video), mask=str(mask), references=[str(reference)] * 2))
    assert equal(got.video, frames(1)) and equal(got.mask, soft_mask(1)) and got.notes == ()
    assert {picture.mode for picture in got.mask} == {"L"}
    assert [picture.size for picture in got.references] == [(40, 90)] * 2
    assert got.fitted(*PIXELS) == got


def test_a_video_file_and_one_mask_for_all_frames(tmp_path: Path) -> None:
    video = encoded(tmp_path / "v.mp4", frames(1, COUNT + 2))
    soft_mask(1)[0].save(tmp_path / "m.png")
    got = read_control(config(video=str(video), mask=str(tmp_path / "m.png")))
    assert equal(got.mask, soft_mask(1)[:1] * COUNT)
    shown = np.stack([np.asarray(frame).astype(int) for frame in got.video])
    expected = np.stack([np.asarray(frame).astype(int) for frame in frames(1)])
    assert shown.shape == expected.shape and abs(shown - expected).mean() < 4  # colours at half resolution
    assert got.notes == (f"control.video: {video} has more than {COUNT} frames; the rest is not used",)


@pytest.mark.parametrize("degrees", [90, -90, 180])
def test_a_camera_s_rotation_is_applied(tmp_path: Path, degrees: int) -> None:
    """As by ffmpeg itself."""
    video, turned = encoded(tmp_path / "v.mp4", frames(1, 1)), tmp_path / "turned.mp4"
    ffmpeg = [str(bundled_ffmpeg()), "-loglevel", "error"]
    subprocess.run([*ffmpeg, "-display_rotation", str(degrees), "-i", video, "-c", "copy", turned], check=True)
    raw = [*ffmpeg, "-i", turned, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    expected = np.frombuffer(subprocess.run(raw, check=True, capture_output=True).stdout, np.uint8)
    (got,) = video_frames(turned)
    assert got.shape == ((112, 80, 3) if degrees != 180 else (80, 112, 3))
    assert abs(got.astype(int) - expected.reshape(got.shape)).mean() < 4


def test_frames_of_another_size_are_fitted_and_masks_in_the_same_way(tmp_path: Path) -> None:
    wide = tuple(image(n, (300, 80)) for n in range(COUNT))
    video = saved(tmp_path / "v", wide)
    edge = Image.new("L", (150, 40), 0)
    edge.paste(255, (75, 0, 150, 40))
    edge.save(tmp_path / "m.png")
    got = read_control(config(video=str(video), mask=str(tmp_path / "m.png")))
    assert got.video[0] == wide[0].crop((94, 0, 206, 80)) and got.mask[0].size == PIXELS
    assert set(got.mask[0].tobytes()) <= set(range(256)) and got.mask[0].getpixel((20, 9)) == 0
    assert got.mask[0] == ImageOps.fit(edge, PIXELS, Image.Resampling.BILINEAR)
    assert got.mask[0].getpixel((90, 9)) == 255


REFUSED: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "missing": (lambda f: {"video": str(f / "x.mp4")}, r"control\.video: no video file at .*x\.mp4; expected a video"),
    "text": (lambda f: {"video": str(f / "text.mp4")}, r"control\.video: cannot read .*text\.mp4 as a video"),
    "an empty folder": (lambda f: {"video": str(f / "empty")}, "expected a folder of images .* got none in it"),
    "too few": (
        lambda f: {"video": str(saved(f / "few", frames(1, 5)))},
        r"control\.video .*few: expected at least 17 frames \(sampling\.num_frames\), got 5; take a longer one",
    ),
    "one image": (lambda f: {"video": str(f / "one.png")}, "expected at least 17 frames .* got 1"),
    "two sizes": (
        lambda f: {"video": str(saved(f / "sizes", (*frames(1, 3), image(1, (32, 32)))))},
        "expected frames of 112x80 px like the first one, got 32x32",
    ),
    "a short mask": (
        lambda f: {"video": str(saved(f / "v", frames(1))), "mask": str(saved(f / "m", soft_mask(1, 4)))},
        r"control\.mask .*m: expected at least 17 frames",
    ),
    "a mask of another shape": (
        lambda f: {"video": str(saved(f / "w", frames(1))), "mask": str(f / "square.png")},
        r"control\.mask .*: expected the shape of control\.video, 112x80 px, .* got 32x32",
    ),
    "a reference": (
        lambda f: {"references": [str(f / "none.png")]},
        r"control\.references .*none\.png: cannot be read",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    image(1).save(tmp_path / "one.png")
    Image.new("L", (32, 32)).save(tmp_path / "square.png")
    make, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as caught:
        read_control(config(**make(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ({"mask": "m.png"}, "control: expected a video with the mask, got none"),
        ({"references": "a.png"}, "control.references: expected a list"),
        ({"references": ["a.png"] * 17}, "control.references"),
        ({"scale": []}, "control.scale"),
        ({"scale": "strong"}, "control.scale"),
        ({"video": ""}, "control.video"),
    ],
    ids=str,
)
def test_unusable_settings(control: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        config(**control)
    assert "\n" not in str(caught.value)


def test_python_takes_control_as_a_section(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    video = saved(tmp_path / "v", frames(1, 5))
    small = {"num_frames": 5, "num_inference_steps": 1, "max_sequence_length": 16}
    engine = s2video.load(checkpoint_of("wan-vace"), sampling={**SIZE, **small}, guidance={"s2_scale": 0.0})
    made = [engine(PROMPT, control=control) for control in ({"video": str(video)}, {})]
    assert [len(one.facts["control"]) for one in made] == [1, 0] and made[0].frames.shape[0] == 5
    assert not torch.equal(made[0].latents, made[1].latents)
    with pytest.raises(InputError, match="at least 9 frames"):
        engine.stream(PROMPT, control={"video": str(video)}, sampling={"num_frames": 9})


def test_one_scale_stands_for_all(tmp_path: Path) -> None:
    assert config(scale=0.5).control.scales(3) == (0.5,) * 3 and config(scale=[1, 2]).control.scales(2) == (1.0, 2.0)
    assert read_pictures(RunConfig()) is None


def test_a_job_is_another_one_with_other_files(tmp_path: Path) -> None:
    """Names of files do not count, contents do; without control, keys are those of earlier versions."""
    video = saved(tmp_path / "v", frames(1, 2))
    with_video = config(video=str(video))
    key = job_key(with_video, {})
    assert job_key(config(), {}) != key == job_key(with_video, {})
    frames(2, 1)[0].save(video / "frame2.png")
    assert job_key(with_video, {}) != key


def test_a_record_may_name_only_what_is_here(tmp_path: Path) -> None:
    video = saved(tmp_path / "v", frames(1, 2))
    named = config(video=str(video), references=["owner/name"])
    with pytest.raises(InputError, match=r"control\.references: expected a file or a folder on this machine"):
        config_from_file(named, "x.json")
    assert config_from_file(config(video=str(video)), "x.json").config.control.video == str(video)


@pytest.fixture(scope="module")
def made(checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a run with control of all kinds; its video is there."""
    folder = tmp_path_factory.mktemp("control")
    saved(folder / "v", frames(1, 7))
    soft_mask(1)[0].save(folder / "m.png")
    image(7, (60, 90)).save(folder / "face.png")
    values = UNCONTROLLED.config(checkpoint_of("wan-vace"), cfg_scale=1.0).model_dump(mode="json")
    values["sampling"] |= {"num_inference_steps": 2, "num_frames": 5}
    (folder / "config.yaml").write_text(yaml.safe_dump(values | {"control": {"scale": 0.8}}))
    arguments = ["--config", str(folder / "config.yaml"), "--prompt", PROMPT, "--seed", "3", "--plain"]
    arguments += ["--control-video", str(folder / "v"), "--control-mask", str(folder / "m.png")]
    arguments += ["--reference", str(folder / "face.png"), "--output", str(folder / "x.mp4"), "--keep-latents"]
    assert main(["generate", *arguments]) == 0
    return arguments


def output_of(made: list[str]) -> Path:
    return Path(made[made.index("--output") + 1])


def test_the_sidecar_names_control_and_the_video_has_no_frame_of_references(made: list[str]) -> None:
    output = output_of(made)
    info, sidecar = probe_video(output), read_sidecar(output.with_suffix(".json"))
    assert (info.width, info.height, info.num_frames) == (112, 80, 5)
    assert sidecar.latents.shape == (1, 16, 2, 10, 14)
    folder = output.parent
    assert [(part.kind, part.path, part.frames) for part in sidecar.control] == [
        ("video", str(folder / "v"), 5),
        ("mask", str(folder / "m.png"), 5),
        ("reference", str(folder / "face.png"), 1),
    ]
    assert sidecar.config.control.scale == (0.8,)


def test_a_file_is_read_again_and_compared(made: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = output_of(made)
    assert main(["inspect", str(output)]) == 0
    assert f"video {output.parent / 'v'}, mask" in capsys.readouterr().out
    assert main(["reproduce", str(output)]) == 0
    assert "the same to the bit" in capsys.readouterr().out
    assert main(["decode", str(output.with_suffix(".latents.safetensors")), "--output", str(tmp_path / "y.mp4")]) == 0
    assert probe_video(tmp_path / "y.mp4").num_frames == 5
    before = output.stat().st_mtime_ns
    assert main(["generate", *made, "--resume"]) == 0 and output.stat().st_mtime_ns == before
    capsys.readouterr()
    image(8, (60, 90)).save(output.parent / "face.png")
    assert main(["reproduce", str(output)]) == 2
    assert "control, reference" in capsys.readouterr().err
    assert main(["generate", *made, "--resume"]) == 0 and output.stat().st_mtime_ns != before
    assert "control was" in capsys.readouterr().err
    clip = str(encoded(tmp_path / "clip.mp4", frames(1, 5)))
    assert main(["generate", *made, "--control-video", clip, "--output", clip, "--overwrite"]) == 2
    assert "this is the file of control.video" in capsys.readouterr().err


def test_bad_files_end_before_a_model_is_loaded(made: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *made, "--control-mask", "none.mp4"]) == 2
    assert "control.mask: no video file at none.mp4" in capsys.readouterr().err


def test_a_batch_takes_control_by_shot(made: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = output_of(made).parent
    values = yaml.safe_load((folder / "config.yaml").read_text())
    for key in ("prompt", "image", "last_image", "output"):
        values.pop(key, None)
    shots = [
        {"prompt": PROMPT, "control.video": str(folder / "v")},
        {"prompt": PROMPT, "control.video": str(folder / "v"), "control.mask": str(folder / "none.png")},
    ]
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump(values | {"shots": shots, "folder": str(tmp_path / "out")}))
    assert main(["batch", str(run), "--dry-run"]) == 2
    assert "shot 2: control.mask" in capsys.readouterr().err
    run.write_text(yaml.safe_dump(values | {"shots": shots[:1], "folder": str(tmp_path / "out")}))
    assert main(["batch", str(run), "--dry-run"]) == 0
