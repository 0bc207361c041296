"""Tests of failures in every format: one clear line, the old file is kept, nothing else is left."""

import resource
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from torch import Tensor
from video_helpers import noise

from s2video.config.run import RunConfig, build_config
from s2video.engine.job import plan_jobs
from s2video.errors import InputError, S2VideoError
from s2video.media.checks import LONGEST_SUFFIX, check_output, check_spec
from s2video.media.exr import ExrSequence
from s2video.media.formats import FORMATS, Codec, VideoSpec, place_of
from s2video.media.output_paths import OutputPaths
from s2video.media.video import write_video
from s2video.records.targets import container_metadata
from s2video.system.files import atomic_path

FPS = Fraction(24)
SEQUENCES: list[Codec] = ["png", "exr"]


def program(folder: Path, script: str) -> Path:
    """Write a shell script that replaces ffmpeg; $real in it is the real one."""
    path = folder / "my ffmpeg"
    path.write_text(f"#!/bin/sh\nreal='{imageio_ffmpeg.get_ffmpeg_exe()}'\n{script}\n")
    path.chmod(0o755)
    return path


def path_of(codec: Codec, folder: Path) -> Path:
    return folder / "out" / f"clip{FORMATS[codec].suffix}"


def size_of(codec: Codec) -> dict[str, int]:
    return {"width": 256, "height": 128} if codec == "dnxhr" else {"width": 80, "height": 48}


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("codec", SEQUENCES)
def test_an_older_sequence_is_replaced_whole(tmp_path: Path, codec: Codec) -> None:
    path = path_of(codec, tmp_path)
    write_video(noise(5), path, VideoSpec(FPS, codec=codec, start_number=1), metadata={})
    write_video(noise(2), path, VideoSpec(FPS, codec=codec, start_number=9999), metadata={})
    suffix = FORMATS[codec].suffix
    assert everything_in(tmp_path / "out") == ["clip", f"clip/clip.10000{suffix}", f"clip/clip.9999{suffix}"]


@pytest.mark.parametrize("codec", FORMATS)
@pytest.mark.parametrize("error", [RuntimeError("decoder broke"), KeyboardInterrupt()])
def test_frames_that_end_in_an_error_leave_the_old_video(tmp_path: Path, codec: Codec, error: BaseException) -> None:
    def then() -> Iterator[Tensor]:
        yield from noise(3, **size_of(codec))
        raise error

    path = path_of(codec, tmp_path)
    write_video(noise(1, **size_of(codec)), path, VideoSpec(FPS, codec=codec), metadata={})
    before = everything_in(tmp_path)
    with pytest.raises(type(error)):
        write_video(then(), path, VideoSpec(FPS, codec=codec), metadata={})
    assert everything_in(tmp_path) == before


def full_disk_spec(codec: Codec, folder: Path, monkeypatch: pytest.MonkeyPatch) -> VideoSpec:
    """An ffmpeg whose files cannot grow beyond a few KiB, as on a full disk."""
    if FORMATS[codec].encoder:
        ffmpeg = program(folder, 'trap "" XFSZ; ulimit -f 4; exec "$real" "$@"')
        return VideoSpec(FPS, codec=codec, ffmpeg=ffmpeg)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    send = ExrSequence.send

    def send_with_a_limit(sequence: ExrSequence, pixels: np.ndarray) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
        try:
            send(sequence, pixels)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(ExrSequence, "send", send_with_a_limit)
    return VideoSpec(FPS, codec=codec)


@pytest.mark.parametrize("codec", FORMATS)
def test_a_full_disk(tmp_path: Path, codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = full_disk_spec(codec, tmp_path, monkeypatch)
    with pytest.raises(S2VideoError, match=r"File too large|cannot write clip\.1001\.exr"):
        write_video(noise(30, **size_of(codec)), path_of(codec, tmp_path), spec, metadata={})
    assert everything_in(tmp_path / "out") == []


@pytest.mark.parametrize("codec", [codec for codec, format in FORMATS.items() if format.encoder])
def test_an_ffmpeg_without_the_encoder(tmp_path: Path, codec: Codec) -> None:
    encoder = FORMATS[codec].encoder
    ffmpeg = program(tmp_path, f'"$real" "$@" | grep -v " {encoder} "')
    with pytest.raises(InputError, match=f"has no encoder {encoder}; choose another output.codec"):
        check_spec(VideoSpec(FPS, codec=codec, ffmpeg=ffmpeg), 256, 128)
    check_spec(VideoSpec(FPS, codec=codec), 256, 128)


@pytest.mark.parametrize(
    ("script", "message"), [("exit 1", "does not list its encoders"), (None, "check the path in output.ffmpeg")]
)
def test_what_is_no_ffmpeg(tmp_path: Path, script: str | None, message: str) -> None:
    ffmpeg = tmp_path / "absent" if script is None else program(tmp_path, script)
    with pytest.raises(InputError, match=message):
        check_spec(VideoSpec(FPS, ffmpeg=ffmpeg), 64, 64)
    with pytest.raises(S2VideoError, match="ffmpeg"):
        write_video(noise(2), tmp_path / "x.mp4", VideoSpec(FPS, ffmpeg=ffmpeg), metadata={})


def test_the_ffmpeg_that_is_named_is_the_one_that_runs(tmp_path: Path) -> None:
    ffmpeg = program(tmp_path, f'echo ran >> "{tmp_path}/log"; exec "$real" "$@"')
    write_video(noise(2), tmp_path / "x.mp4", VideoSpec(FPS, ffmpeg=ffmpeg), metadata={})
    assert (tmp_path / "log").read_text() == "ran\n"


def test_an_ffmpeg_that_drops_a_frame_of_a_sequence(tmp_path: Path) -> None:
    ffmpeg = program(tmp_path, 'for last; do :; done; "$real" "$@"; f=${last#file:}; rm "${f%/*}/"*.1002.png')
    with pytest.raises(S2VideoError, match=r"wrote 2 frames .* expected 3"):
        write_video(noise(3), tmp_path / "out" / "x.png", VideoSpec(FPS, codec="png", ffmpeg=ffmpeg), metadata={})
    assert everything_in(tmp_path / "out") == []


def test_without_openimageio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "OpenImageIO", None)
    monkeypatch.setattr("s2video.media.exr.find_spec", lambda name: None)
    spec = VideoSpec(FPS, codec="exr")
    with pytest.raises(InputError, match=r"pip install 's2video\[exr\]'"):
        check_spec(spec, 64, 64)
    with pytest.raises(InputError, match=r"pip install 's2video\[exr\]'"):
        write_video(noise(2), tmp_path / "out" / "x.exr", spec, metadata={})
    assert everything_in(tmp_path / "out") == []


def test_sound_that_there_is_not(tmp_path: Path) -> None:
    write_video(noise(2), tmp_path / "silent.mp4", VideoSpec(FPS), metadata={})
    (tmp_path / "text.wav").write_text("la la la")
    for name, message in [("silent.mp4", "no sound track"), ("text.wav", "cannot read"), ("absent.wav", "cannot read")]:
        spec = VideoSpec(FPS, audio=tmp_path / name)
        with pytest.raises(InputError, match=f"output.audio: .*{message}|output.audio: {message}"):
            check_spec(spec, 64, 64)
        with pytest.raises(S2VideoError, match="ffmpeg ended with status"):
            write_video(noise(2), tmp_path / "out" / "x.mp4", spec, metadata={})
    assert everything_in(tmp_path / "out") == []


@pytest.mark.parametrize("codec", SEQUENCES)
def test_a_folder_with_other_things_in_it_is_refused_before_any_frame(tmp_path: Path, codec: Codec) -> None:
    path = path_of(codec, tmp_path)
    place_of(path).mkdir(parents=True)
    (place_of(path) / "plan.doc").touch()
    frames = noise(2)
    for attempt in (
        lambda: check_output(OutputPaths(path)),
        lambda: write_video(frames, path, VideoSpec(FPS, codec=codec), metadata={}),
    ):
        with pytest.raises(InputError, match=r"expected only frames of that sequence in this folder, got 'plan\.doc'"):
            attempt()
    assert len(list(frames)) == 2


# Values of the config


def settings(**output: object) -> dict[str, object]:
    return {"output": output}


def test_the_config_reaches_the_writer() -> None:
    output = build_config(
        settings(fps="24000/1001", crf=7, timecode="01:00:00:00", audio="a.wav", ffmpeg="bin/ffmpeg", start_number=1)
    ).output
    assert output.spec(Path("x.mov")) == VideoSpec(
        Fraction(24000, 1001), 7, "prores", "01:00:00:00", Path("a.wav"), 1, Path("bin/ffmpeg")
    )
    assert build_config({}).output.spec(Path("x.mp4")) == VideoSpec(Fraction(16))
    assert build_config(settings(codec="h265")).output.spec(Path("x.mp4")).codec == "h265"


def test_settings_that_stand_beside_a_video_name_its_codec() -> None:
    config = build_config({})
    assert config.output.codec == "auto"
    assert config.for_output(Path("x.mov")).output.codec == "prores"
    assert config.for_output(Path("x.exr")).output.path == config.output.path


@pytest.mark.parametrize("values", [{"codec": "divx"}, {"start_number": -1}, {"timecode": 45000}, {"audio": 3}])
def test_settings_of_the_wrong_kind(values: dict[str, object]) -> None:
    (name,) = values
    with pytest.raises(InputError, match=f"output.{name}"):
        build_config(settings(**values))


def test_templates_as_output() -> None:
    output = {"path": "/r/{index:02d}_{prompt}_s{seed}.{ext}", "codec": "exr"}
    config = RunConfig().patched({"sampling.seed": 3, "output": output})
    jobs = plan_jobs(config, ["A red circle", "a/b"], 2)
    names = ["00_a-red-circle_s3.exr", "01_a-red-circle_s4.exr", "02_a-b_s3.exr", "03_a-b_s4.exr"]
    assert [job.output.path for job in jobs] == [f"/r/{name}" for name in names]
    (single,) = plan_jobs(RunConfig().patched({"output.path": "{prompt}.{ext}"}), ["x"])
    assert single.output.path == "x.mp4"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("{prompt}.{ext}", r"would have the name .*a\.mp4 \(number 0 and 1\): put \{seed\}"),
        ("{show}.mp4", "unknown field 'show'"),
        ("{seed}.avi", "expected a name that ends in"),
        ("{seed.mp4", "expected '}'"),
    ],
)
def test_templates_that_do_not_work(output: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_jobs(RunConfig().patched({"output.path": output}), ["a"], 2)


@pytest.mark.parametrize("letter", ["a", "é"])
def test_names_leave_room_for_those_of_the_files_next_to_them(tmp_path: Path, letter: str) -> None:
    stem = letter * ((255 - len(LONGEST_SUFFIX)) // len(letter.encode()))
    check_output(OutputPaths(tmp_path / f"{stem}.mp4"))
    for path in OutputPaths(tmp_path / f"{stem}.mp4").all:
        with atomic_path(path) as temporary:
            temporary.touch()
    with pytest.raises(InputError, match=r"expected at most 232 bytes before the suffix, got 23[34]; shorten"):
        check_output(OutputPaths(tmp_path / f"{stem}{letter}.mp4"))
    with pytest.raises(InputError, match="shorten"):
        check_output(OutputPaths(tmp_path / "missing" / f"{stem}{letter}.exr"))


def test_no_file_next_to_a_video_has_a_longer_suffix() -> None:
    names = [path.name for path in OutputPaths(Path("x.mp4")).all]
    assert max(map(len, names)) == len("x" + LONGEST_SUFFIX) and "x" + LONGEST_SUFFIX in names


@pytest.mark.parametrize("codec", ["h264", "exr"])
def test_a_prompt_of_any_length_fits_into_the_container(tmp_path: Path, codec: Codec) -> None:
    texts = container_metadata({"prompt": "é" * 100_000, "model": "m", "seed": 1}, codec)
    longest = max(texts.values(), key=len)
    assert longest.endswith("é…") and 7_990 < len(longest.encode()) <= 8_000
    write_video(
        noise(2, **size_of(codec)), path_of(codec, tmp_path), VideoSpec(Fraction(16), codec=codec), metadata=texts
    )
