"""Tests of the sizes, options and names that a format takes."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from s2video.errors import InputError
from s2video.media.formats import FORMATS, Codec, VideoSpec, codec_for, frame_name, is_frame_name, place_of, suffix_of
from s2video.media.video import write_video

FPS = Fraction(24000, 1001)


@pytest.mark.parametrize(
    ("codec", "width", "height", "message"),
    [
        ("h264", 31, 32, "an even width and height above 0, got 31x32"),
        ("h265", 32, 31, "an even width and height"),
        ("h265", 14, 16, "h265: expected at least 16x16 px"),
        ("prores", 33, 32, "an even width above 0"),
        ("dnxhr", 240, 136, "dnxhr: expected at least 256x120 px, got 240x136 px"),
        ("dnxhr", 264, 120, "multiple of 16"),
        ("png", 0, 1, "a width and height above 0"),
    ],
)
def test_sizes_that_a_format_does_not_take(codec: Codec, width: int, height: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write_video(
            [torch.zeros(1, height, width, 3)],
            tmp_path / f"x{FORMATS[codec].suffix}",
            VideoSpec(FPS, codec=codec),
            metadata={},
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("codec", "width", "height"),
    [("h264", 2, 2), ("h265", 16, 16), ("prores", 2, 1), ("dnxhr", 256, 120), ("png", 1, 1), ("exr", 1, 1)],
)
def test_the_smallest_picture_that_a_format_takes(codec: Codec, width: int, height: int, tmp_path: Path) -> None:
    path = tmp_path / f"x{FORMATS[codec].suffix}"
    info = write_video([torch.rand(2, height, width, 3)], path, VideoSpec(FPS, codec=codec), metadata={})
    assert (info.width, info.height, info.num_frames) == (width, height, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "png", "timecode": "01:00:00:00"}, "cannot hold a timecode"),
        ({"codec": "png", "audio": Path("a.wav")}, "cannot hold sound"),
        ({"codec": "exr", "audio": Path("a.wav")}, "cannot hold sound"),
        ({"codec": "h264", "timecode": "01:00:00"}, "HH:MM:SS:FF"),
        ({"codec": "exr", "timecode": "01:00:00:00", "fps": Fraction(50)}, "at most 30 frames per second"),
        ({"codec": "exr", "start_number": -1}, "start number"),
    ],
)
def test_wishes_that_do_not_fit_each_other(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        VideoSpec(**{"fps": FPS, **options})


@pytest.mark.parametrize(
    ("name", "codec", "expected"),
    [
        ("x.mp4", "auto", "h264"),
        ("x.mov", "auto", "prores"),
        ("x.png", "auto", "png"),
        ("x.exr", "auto", "exr"),
        ("x.mp4", "h265", "h265"),
        ("x.v2.mov", "dnxhr", "dnxhr"),
    ],
)
def test_the_codec_of_a_name(name: str, codec: Codec, expected: Codec) -> None:
    assert codec_for(Path(name), codec) == expected
    assert suffix_of(codec) == (".mp4" if codec == "auto" else Path(name).suffix)


@pytest.mark.parametrize(
    ("name", "codec", "message"),
    [
        ("x.avi", "auto", ".mp4, .mov, .png or .exr, got 'x.avi'"),
        ("x.MP4", "auto", "got 'x.MP4'"),
        ("x", "auto", "got 'x'"),
        (".exr", "auto", "expected a name"),
        ("..exr", "auto", "a name before the suffix"),
        ("...exr", "exr", "a name before the suffix"),
        ("x.mp4", "prores", r"ends in \.mov, for codec prores"),
        ("x.mov", "h265", r"ends in \.mp4"),
    ],
)
def test_names_that_do_not_fit(name: str, codec: Codec, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        codec_for(Path(name), codec)


def test_names_of_frames() -> None:
    path = Path("runs/shot.v2.exr")
    assert place_of(path) == Path("runs/shot.v2") and place_of(Path("a.mov")) == Path("a.mov")
    names = [frame_name(path, number) for number in (0, 1001, 12345)]
    assert names == ["shot.v2.0000.exr", "shot.v2.1001.exr", "shot.v2.12345.exr"]
    assert all(is_frame_name(path, name) for name in names)
    strangers = ["shot.v2.exr", "shot.v2.001.exr", "shotxv2.1001.exr", "shot.v2.1001.png", "a.shot.v2.1001.exr"]
    assert not any(is_frame_name(path, name) for name in [*strangers, "shot.v2.1001.exr\n", "shot.v2.١٠٠١.exr"])
