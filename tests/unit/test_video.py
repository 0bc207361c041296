"""Videos: size, rate, colours, metadata, streaming, and what is left when something fails."""

import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from torch import Tensor

from s2video import video
from s2video.errors import InputError, NumericalError, S2VideoError
from s2video.video import VideoSpec, probe_video, read_video, side_by_side, write_video

SPEC = VideoSpec(Fraction(16))
LOSSLESS = VideoSpec(Fraction(16), crf=0)

RED, GREEN, BLUE, WHITE, BLACK, GRAY = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 0, 0), (0.5, 0.5, 0.5)
COLOURS = [RED, GREEN, BLUE, WHITE, BLACK, GRAY, (1, 1, 0), (0, 1, 1), (1, 0, 1), (0.9, 0.4, 0.1), (0.1, 0.3, 0.2)]
PATCH = 32  # px


def noise(num_frames: int, height: int = 32, width: int = 48) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_frames):
        yield torch.rand(1, height, width, 3, generator=generator)


def solid(colour: Iterable[float], num_frames: int = 1, height: int = 64, width: int = 64) -> Tensor:
    return torch.tensor(list(colour), dtype=torch.float32).expand(num_frames, height, width, 3)


def bt709(colour: Iterable[float]) -> np.ndarray:
    """Y', Cb, Cr codes before rounding, by the matrix written out in ITU-R BT.709 and its 8-bit limited range."""
    matrix = [[0.2126, 0.7152, 0.0722], [-0.114572, -0.385428, 0.5], [0.5, -0.454153, -0.045847]]
    return np.array([16, 128, 128]) + np.array([219, 224, 224]) * (np.array(matrix) @ np.array(list(colour)))


def stored_planes(path: Path) -> list[np.ndarray]:
    """Y', Cb and Cr of the first frame as they are stored, without any conversion."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert frame.format.name == "yuv420p"
    raw, height, width = frame.to_ndarray().reshape(-1), frame.height, frame.width
    y, cb, cr = np.split(raw.astype(np.int64), [height * width, height * width * 5 // 4])
    return [y.reshape(height, width), cb.reshape(height // 2, width // 2), cr.reshape(height // 2, width // 2)]


def patches() -> Tensor:
    """[1, PATCH, PATCH * n, 3]: one square of each of `COLOURS` in a row."""
    return torch.cat([solid(colour, height=PATCH, width=PATCH) for colour in COLOURS], dim=2)


def patch_codes(path: Path) -> np.ndarray:
    """[n, 3]: the median codes in the middle of each patch."""
    columns = []
    for plane in stored_planes(path):
        side = plane.shape[0]
        middle = slice(side // 4, side - side // 4)
        columns.append([np.median(plane[middle, i * side :][:, middle]) for i in range(len(COLOURS))])
    return np.array(columns).T


def assert_colours_are_bt709(path: Path) -> None:
    expected = np.array([bt709(colour) for colour in COLOURS])
    np.testing.assert_allclose(patch_codes(path), expected, atol=2)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen]:
    """Every process that was started."""
    processes: list[subprocess.Popen] = []
    start = subprocess.Popen.__init__

    def remember(process: subprocess.Popen, *args: object, **kwargs: object) -> None:
        start(process, *args, **kwargs)
        processes.append(process)

    monkeypatch.setattr(subprocess.Popen, "__init__", remember)
    return processes


@pytest.fixture
def fake_ffmpeg(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a shell script in the place of ffmpeg; $real in it is the real one, $last the output file."""

    def install(script: str) -> None:
        real = imageio_ffmpeg.get_ffmpeg_exe()
        path = tmp_path_factory.mktemp("bin") / "ffmpeg"
        path.write_text(f"#!/bin/sh\nreal='{real}'\nfor last; do :; done\nlast=${{last#file:}}\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))

    return install


# What is written can be read


@pytest.mark.parametrize("fps", [Fraction(16), Fraction(24000, 1001), Fraction(2997, 100)])
@pytest.mark.parametrize("num_frames", [1, 17])
def test_size_count_and_rate_read_back_with_decord(tmp_path: Path, fps: Fraction, num_frames: int) -> None:
    import decord

    path = tmp_path / "clip.mp4"
    info = write_video(noise(num_frames), path, VideoSpec(fps), metadata={})
    reader = decord.VideoReader(str(path))
    assert len(reader) == num_frames
    assert reader[0].shape == (32, 48, 3)
    assert reader.get_avg_fps() == pytest.approx(float(fps), rel=1e-6)
    assert info == probe_video(path)
    assert (info.path, info.width, info.height, info.num_frames, info.fps) == (path, 48, 32, num_frames, fps)


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


def test_decord_and_pyav_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.mp4"
    write_video(noise(7), path, SPEC, metadata={})
    with_decord = read_video(path)
    monkeypatch.setitem(sys.modules, "decord", None)  # makes the import fail, as where decord has no wheel
    torch.testing.assert_close(read_video(path), with_decord, atol=1, rtol=0)


def test_pyav_reads_what_decord_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusal(Exception):
        pass

    def refuse(*args: object, **kwargs: object) -> None:
        raise Refusal

    path = tmp_path / "clip.mp4"
    write_video(noise(3), path, SPEC, metadata={})
    monkeypatch.setitem(sys.modules, "decord", SimpleNamespace(VideoReader=refuse, DECORDError=Refusal))
    assert read_video(path).shape == (3, 32, 48, 3)


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


def assert_tagged_bt709(path: Path) -> None:
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        for source in (container.streams.video[0].codec_context, frame):
            tags = [int(getattr(source, name)) for name in ("color_primaries", "color_trc", "colorspace")]
            assert tags == [1, 1, 1]  # ITU-T H.273: 1 is BT.709 in all three
            assert int(source.color_range) == 1  # limited
    info = probe_video(path)
    assert (info.primaries, info.transfer, info.matrix, info.color_range) == ("bt709", "bt709", "bt709", "tv")


def test_all_four_colour_tags_are_set(tmp_path: Path) -> None:
    write_video(noise(2), tmp_path / "clip.mp4", SPEC, metadata={})
    assert_tagged_bt709(tmp_path / "clip.mp4")


def test_values_are_rounded_once_and_not_truncated(tmp_path: Path) -> None:
    grays = torch.linspace(0, 1, 512)
    write_video([grays[None, None, :, None].expand(1, 2, 512, 3)], tmp_path / "clip.mp4", LOSSLESS, metadata={})
    exact = np.array([bt709((gray,) * 3)[0] for gray in grays.tolist()])
    stored = stored_planes(tmp_path / "clip.mp4")[0]
    assert np.abs(stored - exact).max() < 0.501
    assert np.abs(np.floor(exact) - exact).max() > 0.9  # what truncation would give


def test_colour_is_sited_on_the_left_column(tmp_path: Path) -> None:
    edge = torch.cat([solid(RED, height=8, width=8), solid(BLUE, height=8, width=8)], dim=2)
    write_video([edge], tmp_path / "clip.mp4", LOSSLESS, metadata={})
    stored = stored_planes(tmp_path / "clip.mp4")[1][0]
    left, right = bt709(RED)[1], bt709(BLUE)[1]
    # Samples 0 to 3 lie on columns 0 to 6, all red; sample 4 on column 8, the first blue one, with red to its left.
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


# Failures


def then(error: BaseException) -> Iterator[Tensor]:
    yield from noise(5)
    raise error


def without_picture(value: float) -> Iterator[Tensor]:
    yield from noise(3)
    chunk = torch.cat(list(noise(4)))
    chunk[2, 5, 7, 1] = value
    yield chunk


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        (lambda: then(RuntimeError("decoder broke")), RuntimeError, "decoder broke"),
        (lambda: then(BrokenPipeError("another pipe")), BrokenPipeError, "another pipe"),
        (lambda: then(KeyboardInterrupt()), KeyboardInterrupt, "^$"),
        (lambda: then(SystemExit(143)), SystemExit, "143"),
        (lambda: without_picture(float("nan")), NumericalError, "frame 5 has NaN"),
        (lambda: without_picture(float("-inf")), NumericalError, "frame 5 has NaN"),
        (lambda: [*noise(3), *noise(1, height=34)], InputError, "frame 3 is 48x34 px, .* are 48x32 px"),
        (lambda: [*noise(3), solid(RED)[0]], InputError, r"got torch.float32 \[64, 64, 3\] after 3 frames"),
        (lambda: [*noise(3), "frame"], InputError, "got str after 3 frames"),
        (lambda: [solid(RED).double()], InputError, r"got torch.float64 \[1, 64, 64, 3\]"),
        (lambda: [torch.zeros(1, 64, 64, 4)], InputError, r"\[1, 64, 64, 4\]"),
        (lambda: noise(3, width=47), InputError, "even width .* got 47x32"),
        (lambda: noise(3, height=31), InputError, "even width .* got 48x31"),
        (lambda: noise(3, height=0), InputError, "got 48x0"),
        (lambda: [], InputError, "no frames"),
        (lambda: [torch.zeros(0, 64, 64, 3)], InputError, "no frames"),
    ],
)
def test_bad_frames_leave_nothing(
    tmp_path: Path,
    started: list[subprocess.Popen],
    frames: Callable[[], Iterable[Tensor]],
    error: type[BaseException],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        write_video(frames(), tmp_path / "clip.mp4", SPEC, metadata={})
    assert os.listdir(tmp_path) == []
    assert all(process.returncode is not None for process in started)


def test_an_interrupt_in_the_midst_leaves_the_old_file(tmp_path: Path, started: list[subprocess.Popen]) -> None:
    def producer() -> Iterator[Tensor]:
        yield from noise(3)
        signal.raise_signal(signal.SIGINT)
        yield from noise(3)

    (tmp_path / "clip.mp4").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_video(producer(), tmp_path / "clip.mp4", SPEC, metadata={})
    assert (tmp_path / "clip.mp4").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["clip.mp4"]
    assert started[-1].returncode == -signal.SIGKILL


@pytest.mark.parametrize("num_frames_after", [0, 200])
def test_ffmpeg_killed_from_outside(tmp_path: Path, started: list[subprocess.Popen], num_frames_after: int) -> None:
    def producer() -> Iterator[Tensor]:
        yield from noise(3)
        os.kill(started[-1].pid, signal.SIGKILL)
        yield from noise(num_frames_after)

    with pytest.raises(S2VideoError, match="ffmpeg ended with status -9"):
        write_video(producer(), tmp_path / "clip.mp4", SPEC, metadata={})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo first >&2; echo 'Unknown encoder libx264' >&2; exit 8", "status 8: first\nUnknown encoder libx264"),
        ("exit 3", "status 3: it gave no reason"),
        ("cat > /dev/null; exit 0", "ended well but left no video"),
        # Writes fail as on a full disk: no file may grow beyond a few KiB, and the signal for that is ignored.
        ("trap '' XFSZ; ulimit -f 8; exec \"$real\" \"$@\"", "File too large"),
    ],
)
def test_ffmpeg_that_fails(
    tmp_path: Path,
    started: list[subprocess.Popen],
    fake_ffmpeg: Callable[[str], None],
    script: str,
    message: str,
) -> None:
    fake_ffmpeg(script)
    with pytest.raises(S2VideoError, match=message):
        write_video(noise(60), tmp_path / "clip.mp4", SPEC, metadata={})
    assert os.listdir(tmp_path) == []
    assert all(process.returncode is not None for process in started)


def test_a_file_with_fewer_frames_is_not_accepted(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, fake_ffmpeg: Callable[[str], None]
) -> None:
    short = tmp_path_factory.mktemp("other") / "short.mp4"
    write_video(noise(2), short, SPEC, metadata={})
    fake_ffmpeg(f"cat > /dev/null; cp '{short}' \"$last\"")
    with pytest.raises(S2VideoError, match="wrote 2 frames .* expected 3"):
        write_video(noise(3), tmp_path / "clip.mp4", SPEC, metadata={})
    assert os.listdir(tmp_path) == []


def test_a_talkative_ffmpeg_does_not_block(tmp_path: Path, fake_ffmpeg: Callable[[str], None]) -> None:
    fake_ffmpeg("yes 'a line of complaint' | head -c 1000000 >&2; exec \"$real\" \"$@\"")
    assert write_video(noise(3), tmp_path / "clip.mp4", SPEC, metadata={}).num_frames == 3


def test_no_ffmpeg_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nowhere"))
    with pytest.raises(S2VideoError, match="cannot start ffmpeg"):
        write_video(noise(3), tmp_path / "clip.mp4", SPEC, metadata={})
    assert os.listdir(tmp_path) == []


def test_a_path_that_cannot_be_written_is_refused_before_any_frame(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    frames = noise(2)
    with pytest.raises(InputError, match="cannot write"):
        write_video(frames, tmp_path / "file" / "clip.mp4", SPEC, metadata={})
    assert len(list(frames)) == 2


@pytest.mark.parametrize(
    ("fps", "crf"),
    [(Fraction(0), 18), (Fraction(-16), 18), (Fraction(1_001_001), 18), (Fraction(29.97), 18), (16, -1), (16, 52)],
)
def test_specs_that_ffmpeg_cannot_keep(fps: Fraction, crf: int) -> None:
    with pytest.raises(InputError, match="expected a"):
        VideoSpec(Fraction(fps), crf)


# Two beside each other


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
    ("other", "name"),
    [((5, 32, 64, SPEC), "height"), ((5, 64, 32, SPEC), "width"), ((4, 64, 64, SPEC), "num_frames")],
)
def test_videos_that_do_not_match(
    tmp_path: Path, pair: tuple[Path, Path], other: tuple[int, int, int, VideoSpec], name: str
) -> None:
    num_frames, height, width, spec = other
    write_video(noise(num_frames, height, width), tmp_path / "other.mp4", spec, metadata={})
    with pytest.raises(InputError, match=f"the same {name}"):
        side_by_side(pair[0], tmp_path / "other.mp4", tmp_path / "both.mp4")
    assert os.listdir(tmp_path) == ["other.mp4"]


def test_captions_the_font_does_not_have(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="ω"):
        side_by_side(*pair, tmp_path / "both.mp4", labels=("CFG", "ω"))
    assert os.listdir(tmp_path) == []


def test_side_by_side_failing_leaves_nothing(
    tmp_path: Path, pair: tuple[Path, Path], fake_ffmpeg: Callable[[str], None]
) -> None:
    fake_ffmpeg("exit 3")
    with pytest.raises(S2VideoError, match="status 3"):
        side_by_side(*pair, tmp_path / "both.mp4")
    assert os.listdir(tmp_path) == []


def test_the_caption_is_raised_where_it_should_be() -> None:
    assert video._label_runs("S²-Guidance") == [("S", False), ("2", True), ("-Guidance", False)]
