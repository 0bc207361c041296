"""Two videos beside each other, with captions."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from video_helpers import GREEN, SPEC, assert_tagged_bt709, bt709, noise, solid, stored_planes

from s2video import video
from s2video.errors import InputError
from s2video.video import VideoSpec, probe_video, read_video, side_by_side, write_video


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    left, right = folder / "left.mp4", folder / "right.mp4"
    spec = VideoSpec(Fraction(24000, 1001), crf=0)
    dots = torch.rand(1, 64, 64, 1, generator=torch.Generator().manual_seed(0)).round().expand(5, 64, 64, 3)
    write_video([dots], left, spec, metadata={})
    write_video([solid(GREEN, num_frames=5)], right, spec, metadata={})
    return left, right


def test_side_by_side(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    path = tmp_path / "both.mp4"
    info = side_by_side(*pair, path)
    assert info == probe_video(path)
    assert (info.num_frames, info.fps) == (5, Fraction(24000, 1001))
    assert_tagged_bt709(path)
    luma = stored_planes(path)[0]
    bar = luma.shape[0] - 384
    assert luma.shape == (bar + 384, 384 + 8 + 384)
    # Each pixel of 64x64 is a square of 6x6 with hard edges.
    squares = luma[bar:, :384].reshape(64, 6, 64, 6).transpose(0, 2, 1, 3)
    sources = stored_planes(pair[0])[0]
    assert np.abs(squares[..., 1:-1, 1:-1].mean(axis=(2, 3)) - sources).max() < 12
    assert np.abs(luma[bar + 4 : -4, 396:-4] - bt709(GREEN)[0]).max() <= 3
    # White letters on black over each video, near its middle.
    for start in (0, 392):
        caption = luma[: bar - 4, start : start + 384]
        assert caption.max() > 200
        columns = np.flatnonzero((caption > 100).any(axis=0))
        assert columns.min() + columns.max() == pytest.approx(383, abs=8)
        assert caption[:, [0, -1]].max() < 30


def test_captions_stand_for_the_whole_video(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    side_by_side(*pair, tmp_path / "both.mp4")
    frames = read_video(tmp_path / "both.mp4")[:, :48].float()
    torch.testing.assert_close(frames[-1], frames[0], atol=40, rtol=0)
    assert frames[-1].max() > 200


def test_large_videos_keep_their_size(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    write_video(noise(2, height=400, width=320), clip, SPEC, metadata={})
    info = side_by_side(clip, clip, tmp_path / "both.mp4", labels=("a", "x" * 200))
    assert info.width == 320 + 8 + 320
    assert info.height == 400 + 50


@pytest.mark.parametrize(
    ("num_frames", "height", "width", "name"),
    [(5, 32, 64, "height"), (5, 64, 32, "width"), (4, 64, 64, "num_frames"), (5, 64, 64, "fps")],
)
def test_videos_that_do_not_match(
    tmp_path: Path, pair: tuple[Path, Path], num_frames: int, height: int, width: int, name: str
) -> None:
    write_video(noise(num_frames, height, width), tmp_path / "other.mp4", SPEC, metadata={})
    with pytest.raises(InputError, match=f"the same {name}"):
        side_by_side(pair[0], tmp_path / "other.mp4", tmp_path / "both.mp4")
    assert os.listdir(tmp_path) == ["other.mp4"]


def test_captions_the_font_does_not_have(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="ω"):
        side_by_side(*pair, tmp_path / "both.mp4", labels=("CFG", "ω"))
    assert os.listdir(tmp_path) == []


def test_the_caption_is_raised_where_it_should_be() -> None:
    assert video._label_runs("S²-Guidance") == [("S", False), ("2", True), ("-Guidance", False)]
