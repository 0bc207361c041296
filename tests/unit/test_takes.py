"""Several files of one take: made in one run or decoded later, each with a sidecar that is its own."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sidecar_helpers import made_video
from video_helpers import SPEC, noise

import s2video
from s2video.api import TextToVideo
from s2video.cli.main import main
from s2video.config.run import RunConfig, build_config
from s2video.engine.engine import Engine
from s2video.engine.make_video import make_video
from s2video.engine.space import least_space
from s2video.errors import InputError, S2VideoError
from s2video.media.output_paths import OutputPaths
from s2video.media.video import Target, read_video, write_videos
from s2video.records.replacing import check_replacing
from s2video.records.sidecar_model import find_sidecar, read_sidecar, videos_in
from s2video.system.claims import Claims, check_unclaimed

ALSO = ["h264", {"name": "{name}_proxy.{ext}", "codec": "h264", "crf": 40}, {"name": "frames/{name}.exr"}]


@pytest.fixture(scope="module")
def engine() -> Engine:
    loaded = s2video.load("shapes-wan", sampling={"num_frames": 5, "num_inference_steps": 1}, **{"model.device": "cpu"})
    assert isinstance(loaded, TextToVideo)
    return loaded._engine


def job(engine: Engine, output: Path, **changes: Any) -> RunConfig:
    named = {"prompt": "a red circle", "sampling.seed": 1, "output.path": str(output), "output.keep_latents": True}
    return engine.config.patched(named | changes)


@pytest.fixture(scope="module")
def made(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the take `a`, a ProRes master with three more files, and the take `b`, an MP4."""
    folder = tmp_path_factory.mktemp("takes")
    make_video(engine, job(engine, folder / "a.mov", **{"output.also": ALSO, "output.timecode": "01:00:00:00"}))
    make_video(engine, job(engine, folder / "b.mp4", **{"sampling.seed": 2}))
    return folder


@pytest.fixture
def takes(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "takes")


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


FILES = ["a.mov", "a.mp4", "a_proxy.mp4", "frames/a"]
SIDECARS = ["a.json", "a.mp4.json", "a_proxy.mp4.json", "frames/a.exr.json"]


def test_one_run_writes_all_files_each_with_a_sidecar(takes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exrs = [f"frames/a/a.{number}.exr" for number in range(1001, 1006)]
    of_b = ["b.json", "b.latents.safetensors", "b.mp4"]
    assert names(takes) == sorted([*FILES[:3], *exrs, *SIDECARS, "a.latents.safetensors", *of_b])
    codecs, crfs = ["prores", "h264", "h264", "exr"], [18, 18, 40, 18]
    for file, sidecar, codec, crf in zip(FILES, SIDECARS, codecs, crfs, strict=True):
        assert find_sidecar(takes / file) == takes / sidecar
        record = read_sidecar(takes / sidecar)
        assert record.output.name == Path(file).name and record.config.output.crf == crf
        assert record.config.output.codec == codec
        assert record.take == (None if file == "a.mov" else "a") and record.decoded is None
        assert record.latents == read_sidecar(takes / "a.json").latents
        assert main(["inspect", str(takes / file)]) == 0
        assert ("take            a\n" in capsys.readouterr().out) == (file != "a.mov")
    assert len(read_sidecar(takes / "a.json").config.output.also) == 3


def test_the_files_show_the_same_frames_in_their_own_quality(takes: Path) -> None:
    frames = [read_video(takes / name).float() for name in ("a.mov", "a.mp4", "a_proxy.mp4")]
    assert frames[0].shape == frames[1].shape == frames[2].shape
    assert (frames[0] - frames[1]).abs().mean() < 4
    assert (takes / "a_proxy.mp4").stat().st_size < (takes / "a.mp4").stat().st_size


@pytest.mark.parametrize("name", FILES)
def test_a_change_of_one_file_is_found_in_that_one_alone(name: str, takes: Path) -> None:
    file = takes / name
    with (file / "a.1003.exr" if file.is_dir() else file).open("ab") as opened:
        opened.write(b"\0")
    assert {other: main(["inspect", str(takes / other)]) for other in FILES} == {
        other: 1 if other == name else 0 for other in FILES
    }


def test_a_file_of_an_earlier_take_is_found(engine: Engine, takes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_video(engine, job(engine, takes / "a.mov", **{"sampling.seed": 3}))
    assert main(["inspect", str(takes / "a.mov")]) == 0
    assert main(["inspect", str(takes / "a.mp4")]) == 1
    assert "a.mp4: of an earlier take: " in capsys.readouterr().err


def test_a_folder_is_decoded_and_keeps_its_masters(takes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: (takes / name).read_bytes() for name in names(takes)}
    (takes / "b.mov").write_bytes(b"")
    words = ["decode", str(takes), "--codec", "dnxhr"]
    assert main([*words, "--output", str(takes / "small" / "{name}.mov")]) == 2
    assert "dnxhr: expected at least 256x120 px" in capsys.readouterr().err and not (takes / "small").exists()
    words = ["decode", str(takes / "b.mp4"), str(takes), "--output", str(takes / "new" / "{name}.{ext}")]
    assert main([*words, "--also", "png"]) == 0
    printed = capsys.readouterr().out.split()
    assert printed == [str(takes / "new" / name) for name in ("b.mp4", "b", "a.mp4", "a")]
    for path in printed:
        assert main(["inspect", path]) == 0
        assert "decoded later" in capsys.readouterr().out
    record = read_sidecar(takes / "new" / "a.mp4.json")
    assert (record.take, record.seed, record.config.output.timecode) == ("a", 1, "01:00:00:00")
    assert record.latents == read_sidecar(takes / "a.json").latents
    assert torch.equal(read_video(takes / "new" / "b.mp4"), read_video(takes / "b.mp4"))
    assert {name: (takes / name).read_bytes() for name in before} == before


def test_decode_resumes_and_replaces_by_the_one_rule(takes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["decode", str(takes / "b.latents.safetensors"), "--codec", "prores"]
    assert main(words) == 0
    video, stamp = takes / "b.mov", (takes / "b.mov").stat().st_mtime_ns
    assert find_sidecar(video).name == "b.mov.json" and find_sidecar(takes / "b.mp4").name == "b.json"
    assert main([*words, "--resume"]) == 0 and video.stat().st_mtime_ns == stamp
    capsys.readouterr()
    assert main(words) == 0 and video.stat().st_mtime_ns != stamp
    assert "b.mov, which s2video made with seed 2, will be replaced" in capsys.readouterr().err
    with video.open("ab") as file:
        file.write(b"mine")
    assert main(words) == 2 and "changed since it was written" in capsys.readouterr().err
    assert main([*words, "--resume", "--overwrite"]) == 0 and main(["inspect", str(video)]) == 0


def test_decode_never_replaces_what_appeared_meanwhile(
    takes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from s2video.engine.decoders import load_vae

    def loaded(*arguments: Any) -> Any:
        (takes / "b.mov").write_bytes(b"mine")
        return load_vae(*arguments)

    monkeypatch.setattr("s2video.engine.decoders.load_vae", loaded)
    assert main(["decode", str(takes / "b.mp4"), "--codec", "prores"]) == 1
    assert "another program wrote this file" in capsys.readouterr().err
    assert (takes / "b.mov").read_bytes() == b"mine" and not (takes / "b.mov.json").exists()


def test_headers_say_what_was_decoded_with(takes: Path, tmp_path: Path) -> None:
    config, output = tmp_path / "config.yaml", tmp_path / "v1.2"
    config.write_text("model: {path: shapes-wan, device: cpu}\noutput: {fps: 12}\n", encoding="utf-8")
    output.mkdir()
    words = ["--config", str(config), "--codec", "png", "--output", str(output)]
    assert main(["decode", str(takes / "b.mp4"), *words]) == 0
    with Image.open(output / "b" / "b.1001.png") as image:
        assert image.text["FrameRate"] == "12"  # type: ignore[attr-defined]


def test_a_decoded_file_is_made_again_from_its_sidecar(takes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", str(takes / "b.json"), "--output", str(takes / "b.mov")]) == 0
    assert main(["reproduce", str(takes / "b.mov"), "--device", "cpu", "--plain"]) == 0
    said = capsys.readouterr().out
    assert "the latents are the same to the bit" in said and "the frames of the file are the same to the bit" in said


def test_a_master_that_failed_is_decoded_as_the_master(takes: Path) -> None:
    for name in ("b.mp4", "b.json"):
        (takes / name).unlink()
    assert main(["decode", str(takes / "b.latents.safetensors")]) == 0
    assert main(["inspect", str(takes / "b.mp4")]) == 0 and not (takes / "b.mp4.json").exists()
    assert read_sidecar(takes / "b.json").take is None


@pytest.mark.parametrize("at", ["facts", "values"])
def test_latents_that_were_changed_are_not_decoded(at: str, takes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = takes / "b.latents.safetensors"
    content = bytearray(path.read_bytes())
    position = content.index(b"a red circle") if at == "facts" else len(content) - 2
    content[position] ^= 1
    path.write_bytes(content)
    assert main(["decode", str(path), "--output", str(takes / "new.mov")]) == 2
    assert "changed since it was written" in capsys.readouterr().err and not (takes / "new.mov").exists()
    assert main(["inspect", str(takes / "b.mp4")]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["{takes}", "--output", "{takes}/one.mov"],
            "expected a name with {name}, or a folder, for 2 files",
        ),
        (["{takes}/a.mov", "--output", "{takes}/x.png", "--also", "exr"], "x.exr and x.png would both be x; give one"),
        (["{takes}/a.mov", "--also", "vp9"], "expected a codec (h264, h265, prores, dnxhr, png, exr), or a name such"),
        (["{takes}/a.mov", "--also", "../{name}.mp4"], "'..' begins with \".\""),
        (["{takes}/frames"], "expected a folder with files X.latents.safetensors, got none"),
        (
            ["{takes}/no.mov"],
            "expected a .safetensors file, a video with its sidecar, or a folder with some",
        ),
        (["{takes}", "{takes}", "--output", "{takes}/{ext}.{name}"], "expected a name that ends in .mp4"),
    ],
)
def test_what_decode_cannot_do_is_said_before_anything_is_made(
    words: list[str], said: str, takes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(takes)
    assert main(["decode", *(word.replace("{takes}", str(takes)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and names(takes) == before


def test_takes_without_latents_are_named(takes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (takes / "b.latents.safetensors").unlink()
    assert main(["decode", str(takes), "--codec", "png", "--output", str(takes / "png")]) == 2
    assert "expected a name that ends in .png" in capsys.readouterr().err  # the folder must be there
    (takes / "png").mkdir()
    assert main(["decode", str(takes), "--codec", "png", "--output", str(takes / "png")]) == 0
    assert "1 finished videos have no latents, and are left out: b.mp4" in capsys.readouterr().err
    assert main(["decode", str(takes / "b.mp4")]) == 2 and "s2video reproduce" in capsys.readouterr().err


def test_a_take_gets_one_copy_and_a_missing_one_a_line(takes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (takes / "b.mp4").unlink()
    words = ["-o", str(takes / "x"), "--height", "64"]
    assert main(["copies", str(takes), *words]) == 0
    captured = capsys.readouterr()
    assert captured.out.split() == [str(takes / "x" / "a_review.mp4")]
    assert "b.mp4 is missing; it gets no copy" in captured.err
    assert main(["copies", str(takes / "frames" / "a"), *words]) == 0  # its sidecar is a.exr.json


def test_resume_makes_a_missing_file_again(engine: Engine, takes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = job(engine, takes / "a.mov", **{"output.also": ALSO, "output.timecode": "01:00:00:00"})
    stamp = (takes / "a.mov").stat().st_mtime_ns
    make_video(engine, wanted, resume=True)
    assert (takes / "a.mov").stat().st_mtime_ns == stamp
    (takes / "a_proxy.mp4").unlink()
    make_video(engine, wanted, resume=True)
    assert main(["inspect", str(takes / "a_proxy.mp4")]) == 0


def test_no_file_appears_if_one_of_them_fails(tmp_path: Path) -> None:
    targets = [
        Target(tmp_path / "x.mp4", SPEC, {}),
        Target(tmp_path / "x.exr", replace(SPEC, codec="exr"), {}),
        Target(tmp_path / "x.mov", replace(SPEC, codec="prores", ffmpeg=tmp_path / "none"), {}),
    ]
    with pytest.raises(S2VideoError, match="cannot start"):
        write_videos(noise(3), targets)
    assert names(tmp_path) == []


def test_a_file_that_is_not_ours_is_kept_before_the_run(tmp_path: Path) -> None:
    config = build_config({"output": {"path": str(tmp_path / "x.mov"), "also": ["h264", "{name}_p.mp4"]}})
    files = OutputPaths.of(config)
    assert check_replacing(files) is None
    for path in (files.copies[1].video, files.copies[0].sidecar):
        path.write_bytes(b"mine")
        with pytest.raises(InputError, match=rf"{path.name}: expected no file"):
            check_replacing(files)
        path.unlink()
    made_video(tmp_path / "x.mp4")  # a master of this name, which the run replaces by one of its files
    replaced = check_replacing(files)
    assert replaced is not None and "x.mp4, which s2video made" in replaced.sentence
    with pytest.raises(InputError, match=r"got that of x\.mp4, which would lose it"):
        check_replacing(OutputPaths(tmp_path / "x.mov"))


def test_two_processes_never_make_one_of_the_files(tmp_path: Path) -> None:
    config = build_config({"output": {"path": str(tmp_path / "x.mov"), "also": ["{name}_p.mp4"]}})
    script = "import sys; from pathlib import Path; from s2video.media.output_paths import OutputPaths\n"
    script += "from s2video.system.claims import Claims\nclaims = Claims(OutputPaths(Path(sys.argv[1])).locks)\n"
    script += "print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(tmp_path / "x_p.mp4")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        locks = OutputPaths.of(config).locks
        for attempt in (lambda: check_unclaimed(locks), lambda: Claims(locks)):
            with pytest.raises(InputError, match=r"x_p\.mp4: process .* is making this video"):
                attempt()
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".lock")]


def test_room_is_counted_for_every_file(engine: Engine, tmp_path: Path) -> None:
    info = engine.checkpoint.info
    alone, both = (
        least_space(job(engine, tmp_path / "x.mov", **{"output.also": also}), info)[0]
        for also in ([], ["png", "exr"][:1])
    )
    assert both - alone == 64 * 64 * 5 // 16


def test_sidecars_are_found_by_old_and_new_names(tmp_path: Path) -> None:
    older = made_video(tmp_path / "x.mp4", seed=1)
    other = made_video(tmp_path / "y.mov", seed=2)
    shutil.move(other.path, tmp_path / "x.mov")
    values = json.loads((tmp_path / "y.json").read_text()) | {"take": "x"}
    values["output"]["name"] = "x.mov"
    (tmp_path / "x.mov.json").write_text(json.dumps(values))
    (tmp_path / "y.json").unlink()
    assert find_sidecar(tmp_path / "x.mp4") == tmp_path / "x.json"
    assert find_sidecar(tmp_path / "x.mov") == find_sidecar(tmp_path / "x.mov.json") == tmp_path / "x.mov.json"
    assert [video.path.name for video in videos_in(tmp_path)] == ["x.mp4", "x.mov"]
    assert find_sidecar(tmp_path / "x.mov.json") == tmp_path / "x.mov.json" and older.path.exists()
    (tmp_path / "x.mov.json").write_text("{")
    assert find_sidecar(tmp_path / "x.mov") == tmp_path / "x.json"  # as in older versions, and inspect says so
    # the master x.mov.mp4 has the name of the other's sidecar, and names itself
    made_video(tmp_path / "x.mov.mp4", seed=3)
    assert find_sidecar(tmp_path / "x.mov") == tmp_path / "x.json"
    assert find_sidecar(tmp_path / "x.mov.mp4") == tmp_path / "x.mov.json"
