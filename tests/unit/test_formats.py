"""Tests of every format: one clip of patches and a ramp is written in each, and read back."""

import struct
import wave
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import OpenImageIO
import pytest
import torch
from video_helpers import BLACK, BLUE, GRAY, GREEN, RED, WHITE, assert_tagged_bt709, bt709, stored_planes

from s2video.media.formats import FORMATS, Codec, VideoSpec, place_of
from s2video.media.video import VideoInfo, probe_video, write_video

COLOURS = [RED, GREEN, BLUE, WHITE, BLACK, GRAY, (0.9, 0.4, 0.1), (0.1, 0.3, 0.2)]
PATCH = 32  # px
WIDTH, HEIGHT = PATCH * len(COLOURS), 128
RAMP = (torch.arange(WIDTH) + torch.arange(64)[:, None] / 64) / WIDTH  # [64, WIDTH]: 16384 grays, smooth both ways
FPS, NUM_FRAMES = Fraction(24000, 1001), 7
TEXTS = {"title": 'a "title"; 小さな', "comment": "seed 7"}
SAMPLE_RATE, TONE_SECONDS = 48000, 0.125  # shorter than the pictures, which last 0.29 s
CONTAINERS: list[Codec] = ["h264", "h265", "prores", "dnxhr"]
SEQUENCES: list[Codec] = ["png", "exr"]


class Clip(NamedTuple):
    codec: Codec
    path: Path
    info: VideoInfo

    def frame_paths(self) -> list[Path]:
        return sorted(place_of(self.path).iterdir())


def picture() -> torch.Tensor:
    """Return [HEIGHT, WIDTH, 3]: a row of patches, 64 px high, above a ramp."""
    patches = torch.tensor(COLOURS, dtype=torch.float32).repeat_interleave(PATCH, dim=0).expand(64, WIDTH, 3)
    return torch.cat([patches, RAMP[..., None].expand(64, WIDTH, 3)])


def tone(path: Path, seconds: float) -> Path:
    """Write a loud 16-bit WAV file."""
    samples = (20000 * np.sin(np.arange(round(seconds * SAMPLE_RATE)) * 0.05)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.tobytes())
    return path


def spec(codec: Codec, **others: object) -> VideoSpec:
    return VideoSpec(FPS, codec=codec, **others)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[Codec, Clip]:
    folder = tmp_path_factory.mktemp("clips")
    sound = tone(folder / "tone.wav", TONE_SECONDS)
    frames = picture().expand(NUM_FRAMES, HEIGHT, WIDTH, 3)
    made = {}
    for codec, format in FORMATS.items():
        options = {
            "timecode": "01:02:03:22" if format.has_timecode else None,
            "audio": sound if format.sound else None,
        }
        path = folder / f"{codec} %d clip{format.suffix}"
        made[codec] = Clip(codec, path, write_video(frames.split(3), path, spec(codec, **options), metadata=TEXTS))
    return made


@pytest.fixture
def clip(clips: dict[Codec, Clip], request: pytest.FixtureRequest) -> Clip:
    return clips[request.param]


def each(codecs: list[Codec]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("clip", codecs, indirect=True)


def stored_rgb(clip: Clip, index: int = 0) -> np.ndarray:
    """Return the stored values of a sequence, [HEIGHT, WIDTH, 3]."""
    path = clip.frame_paths()[index]
    if clip.codec == "exr":
        image = OpenImageIO.ImageInput.open(str(path))
        assert image.spec().channelnames == ("R", "G", "B") and str(image.spec().format) == "half"
        return image.read_image(OpenImageIO.HALF)
    with av.open(f"file:{path}") as container:
        frame = next(container.decode(video=0))
    assert frame.format.name == "rgb48be"
    return frame.to_ndarray().astype(np.int64)


def middles(plane: np.ndarray) -> np.ndarray:
    """Return the median of the middle of each patch, for each channel."""
    rows, side = plane.shape[0] // 2, plane.shape[1] // len(COLOURS)
    inner = [
        plane[rows // 4 : rows * 3 // 4, i * side + side // 4 : (i + 1) * side - side // 4] for i in range(len(COLOURS))
    ]
    return np.array([np.median(patch, axis=(0, 1)) for patch in inner])


# The pictures


@each(CONTAINERS)
def test_it_is_what_it_says(clip: Clip) -> None:
    kinds = {
        "h264": ("h264", "avc1", "yuv420p"),
        "h265": ("hevc", "hvc1", "yuv420p10le"),
        "prores": ("prores", "apch", "yuv422p10le"),  # apch: 422 HQ
        "dnxhr": ("dnxhd", "AVdh", "yuv422p10le"),  # AVdh: DNxHR
    }
    with av.open(str(clip.path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.codec_tag, codec.pix_fmt) == kinds[clip.codec]
        if clip.codec == "dnxhr":
            assert "HQX" in str(codec.profile)


@each(CONTAINERS)
def test_patches_are_bt709(clip: Clip) -> None:
    scale = 1 if clip.codec == "h264" else 4
    expected = scale * np.array([bt709(colour) for colour in COLOURS])
    found = np.array([middles(plane) for plane in stored_planes(clip.path)]).T
    tolerance = {"h264": 2, "h265": 4, "prores": 2, "dnxhr": 2}[clip.codec]
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_patches_of_png_are_the_values_themselves(clips: dict[Codec, Clip]) -> None:
    assert np.abs(stored_rgb(clips["png"]) - 65535 * picture().double().numpy()).max() < 0.51


def test_patches_of_exr_are_the_light_of_an_srgb_display(clips: dict[Codec, Clip]) -> None:
    values = picture().double().numpy()
    light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    np.testing.assert_allclose(stored_rgb(clips["exr"]), light, rtol=2**-11, atol=2**-24)


@each(["h265", "prores", "dnxhr"])
def test_a_ramp_keeps_its_levels_at_ten_bits(clip: Clip) -> None:
    luma = stored_planes(clip.path)[0][64:]
    error = luma - (4 * 16 + 4 * 219 * RAMP.numpy())
    assert len(np.unique(luma)) > 600  # 877 codes exist; 8 bits have 220 for luma and 256 for RGB
    assert np.abs(error).max() < 3
    assert abs(error.mean()) < 0.1  # truncation would make it 0.5 too dark


@each(SEQUENCES)
def test_a_ramp_keeps_its_levels_in_sequences(clip: Clip) -> None:
    """The ramp keeps 16384 grays, but fewer in half floats, which are 1/2048 apart below 1."""
    assert len(np.unique(stored_rgb(clip)[64:])) > {"png": 16000, "exr": 4000}[clip.codec]


@pytest.mark.parametrize("codec", FORMATS)
def test_frames_in_any_order_of_memory(tmp_path: Path, codec: Codec) -> None:
    """A decoder's frames are views of [3, H, W]."""
    suffix = FORMATS[codec].suffix
    planes = torch.rand(3, 2, 128, 256, generator=torch.Generator().manual_seed(0))
    frames = planes.permute(1, 2, 3, 0)
    view, copy = (
        Clip(codec, path, write_video([chunk], path, spec(codec), metadata={}))
        for path, chunk in ((tmp_path / f"view{suffix}", frames), (tmp_path / f"copy{suffix}", frames.contiguous()))
    )
    files = [clip.frame_paths() if codec in SEQUENCES else [clip.path] for clip in (view, copy)]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


# Tags and metadata


@each(CONTAINERS)
def test_number_of_frames_and_rate(clip: Clip) -> None:
    with av.open(str(clip.path)) as container:
        (stream,) = container.streams.video
        assert sum(1 for _ in container.decode(stream)) == NUM_FRAMES
        assert (stream.average_rate, stream.base_rate) == (FPS, FPS)
    assert (clip.info.num_frames, clip.info.fps, clip.info.width, clip.info.height) == (NUM_FRAMES, FPS, WIDTH, HEIGHT)
    assert clip.info == probe_video(clip.path)


@each(SEQUENCES)
def test_a_file_a_frame_from_1001_on(clip: Clip) -> None:
    stem, suffix = clip.path.stem, clip.path.suffix
    assert [path.name for path in clip.frame_paths()] == [f"{stem}.{1001 + i}{suffix}" for i in range(NUM_FRAMES)]
    assert (clip.info.path, clip.info.num_frames, clip.info.fps) == (clip.path, NUM_FRAMES, FPS)
    assert not clip.path.exists()


@each(CONTAINERS)
def test_all_four_colour_tags(clip: Clip) -> None:
    assert_tagged_bt709(clip.path)


def test_png_is_tagged_srgb(clips: dict[Codec, Clip]) -> None:
    with av.open(f"file:{clips['png'].frame_paths()[-1]}") as container:
        frame = next(container.decode(video=0))
        tags = (frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range)
        assert [int(tag) for tag in tags] == [1, 13, 0, 2]  # BT.709, sRGB, RGB, full
    assert b"sRGB" in clips["png"].frame_paths()[0].read_bytes()[:200]


def exr_header(path: Path) -> dict[str, tuple[str, bytes]]:
    """Return attribute -> (type, value) as stored; OpenImageIO renames some of them."""
    data, at, found = path.read_bytes(), 8, {}
    while data[at]:
        name, kind = data[at : at + 512].split(b"\0")[:2]
        at += len(name) + len(kind) + 2
        (size,) = struct.unpack_from("<i", data, at)
        found[name.decode()] = (kind.decode(), data[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def test_exr_headers(clips: dict[Codec, Clip]) -> None:
    labels = [0x01020322, 0x01020323, 0x01020400, 0x01020401, 0x01020402, 0x01020403, 0x01020404]
    for label, path in zip(labels, clips["exr"].frame_paths(), strict=True):
        header = exr_header(path)
        assert header["framesPerSecond"] == ("rational", struct.pack("<iI", 24000, 1001))
        assert header["timeCode"] == ("timecode", struct.pack("<II", label, 0))
        assert header["colorInteropID"] == ("string", b"lin_rec709_scene")
        kind, xy = header["chromaticities"]
        assert kind == "chromaticities"
        np.testing.assert_allclose(
            np.frombuffer(xy, "<f4"), (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329), atol=1e-6
        )
        assert {key: header[key][1].decode() for key in TEXTS} == TEXTS
        assert "capDate" not in header


@each(CONTAINERS)
def test_timecode(clip: Clip) -> None:
    with av.open(str(clip.path)) as container:
        (track,) = container.streams.data
        assert track.metadata["timecode"] == container.streams.video[0].metadata["timecode"] == "01:02:03:22"
    assert b"tmcd" in clip.path.read_bytes()


@pytest.mark.parametrize(
    ("fps", "timecode"),
    [("30000/1001", "00:59:59;28"), ("60000/1001", "00:01:00;04"), ("12", "00:00:01:11"), ("100", "23:59:59:99")],
)
def test_timecode_at_other_rates(tmp_path: Path, fps: str, timecode: str) -> None:
    path = tmp_path / "a.mov"
    info = write_video(
        [picture()[None]], path, VideoSpec(Fraction(fps), codec="prores", timecode=timecode), metadata={}
    )
    assert info.fps == Fraction(fps)
    with av.open(str(path)) as container:
        assert container.streams.video[0].metadata["timecode"] == timecode


@each(CONTAINERS)
def test_texts(clip: Clip) -> None:
    assert {key: clip.info.metadata.get(key) for key in TEXTS} == TEXTS


def test_the_whole_matrix(clips: dict[Codec, Clip]) -> None:
    """Print the table of docs/studio.md: pytest -s -k whole_matrix tests/unit/test_formats.py"""
    print("\n| codec | stored as | patches: largest error | ramp: levels | ramp: largest, mean error |")
    print("|---|---|---|---|---|")
    for codec, clip in clips.items():
        if codec in SEQUENCES:
            exact = picture().double().numpy()
            unit, kind = 1.0, "half floats"
            if codec == "png":
                exact, kind = 65535 * exact, "16-bit RGB"
            else:
                exact, unit = np.where(exact <= 0.04045, exact / 12.92, ((exact + 0.055) / 1.055) ** 2.4), 2**-11
            difference = (stored_rgb(clip) - exact) / unit
            patches, ramp, levels = difference[:64], difference[64:], len(np.unique(stored_rgb(clip)[64:]))
        else:
            planes = stored_planes(clip.path)
            scale, kind = (
                (1, "8-bit 4:2:0") if codec == "h264" else (4, "10-bit 4:2:0" if codec == "h265" else "10-bit 4:2:2")
            )
            patches = np.array([middles(plane) for plane in planes]).T - scale * np.array([bt709(c) for c in COLOURS])
            ramp = planes[0][64:] - scale * (16 + 219 * RAMP.numpy())
            levels = len(np.unique(planes[0][64:]))
        errors = f"{np.abs(patches).max():.2f} | {levels} | {np.abs(ramp).max():.2f}, {ramp.mean():+.3f}"
        print(f"| {codec} | {kind} | {errors} |")
        assert (levels > 256) == (codec != "h264")
        assert abs(ramp.mean()) < 0.1 and np.abs(patches).max() < 4


# Sound


def heard(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        assert stream.rate == SAMPLE_RATE
        chunks = [frame.to_ndarray() for frame in container.decode(stream)]
        assert stream.codec_context.name == ("aac" if path.suffix == ".mp4" else "pcm_s24le")
    chunks = [chunk.reshape(1, -1) if chunk.dtype == np.int32 else chunk / 1.0 for chunk in chunks]
    samples = np.concatenate(chunks, axis=1)[0].astype(float)
    return samples / (2**31 if path.suffix == ".mov" else 1)


@each(CONTAINERS)
def test_short_sound_is_followed_by_silence(clip: Clip) -> None:
    samples = heard(clip.path)
    exact = round(NUM_FRAMES / FPS * SAMPLE_RATE)
    slack = 1024 if clip.codec in ("h264", "h265") else 0  # AAC has blocks of 1024 samples
    assert exact <= len(samples) <= exact + slack
    end = round(TONE_SECONDS * SAMPLE_RATE)
    assert np.abs(samples[1024 : end - 1024]).max() > 0.5
    assert np.abs(samples[end + 2048 :]).max() < 1e-3


@pytest.mark.parametrize("codec", ["h265", "prores"])
@pytest.mark.parametrize("num_frames", [1, 30])
def test_long_sound_ends_with_the_pictures(tmp_path: Path, codec: Codec, num_frames: int) -> None:
    path = tmp_path / f"clip{FORMATS[codec].suffix}"
    sound = tone(tmp_path / "tone.wav", 5)
    frames = torch.zeros(num_frames, 32, 32, 3)
    info = write_video([frames], path, spec(codec, audio=sound), metadata=TEXTS)
    assert (info.num_frames, info.fps) == (num_frames, FPS)
    samples = heard(path)
    exact = round(num_frames / FPS * SAMPLE_RATE)
    assert exact <= len(samples) <= exact + (1024 if codec == "h265" else 0)
    assert np.abs(samples[exact // 2 : exact]).max() > 0.5
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([path.name, "tone.wav"])
