"""Tests of videos: size, frame rate, colours, metadata, streaming."""

import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from torch import Tensor
from video_helpers import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    LOSSLESS,
    RED,
    SPEC,
    WHITE,
    assert_tagged_bt709,
    bt709,
    noise,
    solid,
    stored_planes,
)

from s2video.errors import InputError
from s2video.media import video
from s2video.media.video import VideoSpec, probe_video, read_video, write_video

COLOURS = [RED, GREEN, BLUE, WHITE, BLACK, GRAY, (1, 1, 0), (0, 1, 1), (1, 0, 1), (0.9, 0.4, 0.1), (0.1, 0.3, 0.2)]
PATCH = 32  # px


def patches() -> Tensor:
    """Return [1, PATCH, PATCH * n, 3]: a row with a square of each of `COLOURS`."""
    return torch.cat([solid(colour, height=PATCH, width=PATCH) for colour in COLOURS], dim=2)


def patch_codes(path: Path) -> np.ndarray:
    """Return [n, 3]: the median codes in the middle of each patch."""
    columns = []
    for plane in stored_planes(path):
        side = plane.shape[0]
        middle = slice(side // 4, side - side // 4)
        columns.append([np.median(plane[middle, i * side :][:, middle]) for i in range(len(COLOURS))])
    return np.array(columns).T


def assert_colours_are_bt709(path: Path) -> None:
    expected = np.array([bt709(colour) for colour in COLOURS])
    np.testing.assert_allclose(patch_codes(path), expected, atol=2)


# Reading back


@pytest.mark.parametrize("fps", [Fraction(16), Fraction(24000, 1001), Fraction(2997, 100)])
@pytest.mark.parametrize("num_frames", [1, 17])
def test_size_count_and_rate_read_back_with_decord(tmp_path: Path, fps: Fraction, num_frames: int) -> None:
    import decord

    path = tmp_path / "clip.mp4"
    info = write_video(noise(num_frames), path, VideoSpec(fps), metadata={})
    reader = decord.VideoReader(str(path))
    assert len(reader) == num_frames
    assert reader[0].shape == (48, 80, 3)
    assert reader.get_avg_fps() == pytest.approx(float(fps), rel=1e-6)
    assert info == probe_video(path)
    assert (info.path, info.width, info.height, info.num_frames, info.fps) == (path, 80, 48, num_frames, fps)


def test_chunks_of_any_length_make_the_same_file(tmp_path: Path) -> None:
    whole = torch.cat(list(noise(9)))
    chunkings = {"one.mp4": [whole], "uneven.mp4": whole.split([1, 4, 4]), "each.mp4": whole.split(1)}
    for name, chunks in chunkings.items():
        write_video(chunks, tmp_path / name, SPEC, metadata={})
    assert len({(tmp_path / name).read_bytes() for name in chunkings}) == 1


def test_reading_gives_the_frames_in_order(tmp_path: Path) -> None:
    colours = [RED, WHITE, BLUE, BLACK, GREEN]
    write_video([solid(colour) for colour in colours], tmp_path / "clip.mp4", SPEC, metadata={})
    frames = read_video(tmp_path / "clip.mp4")
    assert frames.dtype == torch.uint8
    assert frames.shape == (5, 64, 64, 3)
    expected = 255 * torch.tensor(colours, dtype=torch.float32)
    torch.testing.assert_close(frames.float().mean(dim=(1, 2)), expected, atol=5, rtol=0)


def ramps(num_frames: int, height: int, width: int) -> Iterator[Tensor]:
    """Return smooth colours that change from frame to frame."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    for number in range(num_frames):
        yield torch.stack([(x + number / num_frames) % 1, y, x * y], dim=-1)[None]


@pytest.mark.parametrize("frames", [noise, ramps])
def test_decord_and_pyav_read_the_same_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: Callable[[int, int, int], Iterator[Tensor]]
) -> None:
    """Every frame, in order and bitwise, with B-frames and 17 frames in one file."""
    path = tmp_path / "clip.mp4"
    write_video(frames(17, 48, 80), path, SPEC, metadata={})
    with_decord = video._read_with_decord(path)
    assert with_decord is not None
    monkeypatch.setitem(sys.modules, "decord", None)  # makes the import fail, as on platforms without a wheel of decord
    without = read_video(path)
    assert without.shape == (17, 48, 80, 3) and without.dtype == torch.uint8
    torch.testing.assert_close(without, torch.from_numpy(with_decord), atol=0, rtol=0)


@pytest.mark.parametrize("kind", [RuntimeError, None])  # decord raises this and its own kind
def test_pyav_reads_what_decord_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception] | None
) -> None:
    class Refusal(Exception):
        pass

    def refuse(*args: object, **kwargs: object) -> None:
        raise kind or Refusal

    path = tmp_path / "clip.mp4"
    write_video(noise(3), path, SPEC, metadata={})
    monkeypatch.setitem(sys.modules, "decord", SimpleNamespace(VideoReader=refuse, DECORDError=Refusal))
    assert read_video(path).shape == (3, 48, 80, 3)


def test_narrow_videos_are_read(tmp_path: Path) -> None:
    write_video(noise(3, width=48), tmp_path / "clip.mp4", SPEC, metadata={})  # decord reads padding as a channel
    assert read_video(tmp_path / "clip.mp4").shape == (3, 48, 48, 3)


@pytest.mark.parametrize("read", [read_video, probe_video])
def test_files_that_are_no_video(tmp_path: Path, read: Callable[[Path], object]) -> None:
    text, sound = tmp_path / "text.mp4", tmp_path / "sound.mp4"
    text.write_text("not a video")
    make_sound = ["-f", "lavfi", "-i", "anullsrc", "-t", "0.1", str(sound)]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *make_sound], check=True)
    for path in (text, sound, tmp_path / "missing.mp4", tmp_path):
        with pytest.raises(InputError, match=path.name):
            read(path)


# Colours


def test_colours_are_bt709_in_limited_range(tmp_path: Path) -> None:
    write_video([patches()] * 3, tmp_path / "clip.mp4", SPEC, metadata={})
    assert_colours_are_bt709(tmp_path / "clip.mp4")
    assert patch_codes(tmp_path / "clip.mp4")[COLOURS.index(GREEN), 0] == pytest.approx(173, abs=1)


def test_the_colour_check_rejects_what_ffmpeg_writes_by_default(tmp_path: Path) -> None:
    picture = (255 * patches()[0]).round().byte().numpy()
    height, width, _ = picture.shape
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-i", "-"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, "-pix_fmt", "yuv420p", tmp_path / "bt601.mp4"]
    subprocess.run(command, input=picture.tobytes(), check=True)
    assert patch_codes(tmp_path / "bt601.mp4")[COLOURS.index(GREEN), 0] == pytest.approx(145, abs=1)
    with pytest.raises(AssertionError):
        assert_colours_are_bt709(tmp_path / "bt601.mp4")
    assert probe_video(tmp_path / "bt601.mp4").matrix == "unknown"


def test_all_four_colour_tags_are_set(tmp_path: Path) -> None:
    write_video(noise(2), tmp_path / "clip.mp4", SPEC, metadata={})
    assert_tagged_bt709(tmp_path / "clip.mp4")


def test_values_are_rounded_once_and_not_truncated(tmp_path: Path) -> None:
    grays = torch.linspace(0, 1, 512)
    write_video([grays[None, None, :, None].expand(1, 2, 512, 3)], tmp_path / "clip.mp4", LOSSLESS, metadata={})
    exact = np.array([bt709((gray,) * 3)[0] for gray in grays.tolist()])
    stored = stored_planes(tmp_path / "clip.mp4")[0]
    assert np.abs(stored - exact).max() < 0.501
    assert np.abs(np.floor(exact) - exact).max() > 0.9  # the result of truncation


def test_colour_is_sited_on_the_left_column(tmp_path: Path) -> None:
    edge = torch.cat([solid(RED, height=8, width=8), solid(BLUE, height=8, width=8)], dim=2)
    write_video([edge], tmp_path / "clip.mp4", LOSSLESS, metadata={})
    stored = stored_planes(tmp_path / "clip.mp4")[1][0]
    left, right = bt709(RED)[1], bt709(BLUE)[1]
    # Samples 0 to 3 are at columns 0 to 6, all red; sample 4 is at column 8, the first blue one, with red to its left.
    expected = np.round([left] * 4 + [0.25 * left + 0.75 * right] + [right] * 3)
    np.testing.assert_array_equal(stored, expected)


def test_values_outside_the_range_are_clamped(tmp_path: Path) -> None:
    write_video([solid((1.5, -0.5, 2.0)), solid((1, 0, 1))], tmp_path / "clip.mp4", LOSSLESS, metadata={})
    frames = read_video(tmp_path / "clip.mp4")
    torch.testing.assert_close(frames[0], frames[1], atol=0, rtol=0)


# Metadata


AWKWARD = {
    "title": "a \"quoted\" 'title'; with = signs, # and \\ and 100 %d",
    "comment": "seed=9223372036854775807; 小さな赤い円\nzwei Zeilen\r\n\ttab \U0001f3ac e\u0301 ²",
    "description": "-i\n;FFMETADATA1\n[CHAPTER]\n",
}


@pytest.mark.parametrize("extra", [{}, {"s2video_seed": "7", "com.example.key-1": " ω=0.25; \n"}])
def test_metadata_survives(tmp_path: Path, extra: dict[str, str]) -> None:
    metadata = {**AWKWARD, **extra, "artist": "x" * 100_000, "genre": ""}
    info = write_video(noise(2), tmp_path / "clip.mp4", SPEC, metadata=metadata)
    stored = {key: info.metadata.get(key) for key in metadata}
    assert stored == {**metadata, "genre": None}


@pytest.mark.parametrize(
    "metadata",
    [{"a=b": "x"}, {"": "x"}, {"clé": "x"}, {"title": "\0"}, {"title": "\ud800"}, {"title": "é" * 50_001}],
)
def test_metadata_that_cannot_be_stored_is_refused_before_any_frame(tmp_path: Path, metadata: dict[str, str]) -> None:
    frames = noise(2)
    with pytest.raises(InputError, match="metadata"):
        write_video(frames, tmp_path / "clip.mp4", SPEC, metadata=metadata)
    assert len(list(frames)) == 2
    assert os.listdir(tmp_path) == []


# Streaming


def test_frames_go_to_the_file_as_they_come(tmp_path: Path) -> None:
    written, alive = [], []

    def producer() -> Iterator[Tensor]:
        chunks: list[weakref.ref[Tensor]] = []
        for chunk in noise(250, height=96, width=128):
            alive.append(sum(reference() is not None for reference in chunks))
            chunks.append(weakref.ref(chunk))
            written.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
            yield chunk

    write_video(producer(), tmp_path / "clip.mp4", SPEC, metadata={})
    assert max(alive) <= 2
    # A full pipe makes the producer wait, so ffmpeg lags by its own queues only, which are a fixed number of frames.
    assert written[-1] > (tmp_path / "clip.mp4").stat().st_size / 2
