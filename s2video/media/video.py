"""Streaming writer of video files and frame sequences, and reader of video files.

Colours: RGB in [0, 1] becomes Y'CbCr with the BT.709 matrix in limited range, and all four colour tags of the file
agree. PNG stores the values as sRGB, EXR as linear light. Knows neither models nor latents.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, NumericalError, S2VideoError
from ..system.files import Beside, atomic_folder, atomic_path
from .colour import pixels
from .exr import ExrSequence
from .ffmpeg import TAG_BT709, TAG_SRGB, Ffmpeg, raw_input
from .formats import VideoSpec, codec_for, is_in_sequence, place_of, sound_name
from .png_text import add_texts

MAX_METADATA_BYTES = 100_000  # Linux allows at most 128 KiB in one argument of a program
# Keys that MP4 has its own names for. Any other key makes ffmpeg store all of them as free-form keys.
STANDARD_METADATA = frozenset({"title", "artist", "comment", "description", "synopsis", "copyright", "genre", "album"})
USE_BUNDLED = "use the ffmpeg of imageio-ffmpeg (unset IMAGEIO_FFMPEG_EXE)"
SAMPLE_RATE = 48_000  # Hz, for every sound track
_WAV = ("-c:a", "pcm_s24le", "-f", "wav")  # next to the frames of a sequence

# Colour tags are code points of ITU-T H.273; the names are ffmpeg's.
PRIMARIES = {1: "bt709", 2: "unknown", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 9: "bt2020", 12: "smpte432"}
TRANSFERS = {1: "bt709", 2: "unknown", 4: "gamma22", 6: "smpte170m", 8: "linear", 13: "iec61966-2-1", 16: "smpte2084"}
MATRICES = {0: "gbr", 1: "bt709", 2: "unknown", 5: "bt470bg", 6: "smpte170m", 9: "bt2020nc"}
RANGES = {0: "unknown", 1: "tv", 2: "pc"}


@dataclass(frozen=True)
class VideoInfo:
    """The properties of a video file or sequence.

    Colour tags have ffmpeg's names ("bt709", "tv"); a missing tag is "unknown".
    """

    path: Path
    width: int
    height: int
    num_frames: int
    fps: Fraction
    primaries: str
    transfer: str
    matrix: str
    color_range: str
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Target:
    """One file, or one folder of files, to encode frames to.

    path: must have the suffix of the format. The file appears under this name only when it is complete. A sequence
        X.exr appears in the same way, as the folder X with the files X.1001.exr, X.1002.exr, …
    metadata: text for the container. Keys are letters, digits, "_", "." and "-"; empty texts are left out. If all keys
        are names that MP4 defines (title, comment, ...), every player shows them. With any other key, all are stored in
        a form that fewer players show. Headers of EXR and PNG have each under its key.
    beside: a JSON file that gets its final name together with the video, see `atomic_path`.
    sound: a file with the model's own sound, for a spec without `audio`: the sound track, or X.wav in the folder of a
        sequence, cut or padded to the length of the video.
    """

    path: Path
    spec: VideoSpec
    metadata: Mapping[str, str]
    beside: Beside | None = None
    sound: Path | None = None


def write_video(
    frames: Iterable[Tensor],
    path: Path,
    spec: VideoSpec,
    *,
    metadata: Mapping[str, str],
    beside: Beside | None = None,
) -> VideoInfo:
    """Encode frames to one file, or to one folder of files; see `write_videos` and `Target`."""
    return write_videos(frames, [Target(path, spec, metadata, beside)])[0]


def write_videos(frames: Iterable[Tensor], targets: Sequence[Target]) -> list[VideoInfo]:
    """Encode the same frames to each of some files or folders of files, one chunk at a time.

    Args:
        frames: float32 tensors [t, H, W, 3], RGB in [0, 1] (values outside are clamped); t may differ, and the formats
            must take H and W. Each chunk is taken after the previous one was encoded, so memory does not grow with the
            length.
        targets: all are complete before the first gets its final name; the first target gets it last.

    Raises:
        InputError: a path, metadata or frames cannot be used.
        NumericalError: a frame has NaN or infinite values.
        S2VideoError: an encoder failed.
    After any exception before the first rename, all paths are unchanged, and no temporary file or process is left.
    """
    for target in targets:
        codec_for(target.path, target.spec.codec)
        _metadata_arguments(target.metadata)  # raises before any frame is made
    with ExitStack() as outputs:
        temporaries = [outputs.enter_context(_atomic_output(target)) for target in targets]
        singles = _single_frames(frames, [target.spec for target in targets])
        first = next(singles, None)
        if first is None:
            raise InputError(f"expected at least one frame for {targets[0].path}, got none")
        height, width, _ = first.shape
        num_frames = 0
        with ExitStack() as encoders:
            sends = [
                encoders.enter_context(_encoder(temporary, target, (width, height)))
                for temporary, target in zip(temporaries, targets, strict=True)
            ]
            kinds = {target.spec.format.pixel_format for target in targets}
            for frame in chain([first], singles):
                as_stored = {kind: pixels(frame, kind) for kind in kinds}
                for send, target in zip(sends, targets, strict=True):
                    send(as_stored[target.spec.format.pixel_format])
                num_frames += 1
        written = []
        for temporary, target in zip(temporaries, targets, strict=True):
            sound = target.spec.audio or target.sound
            if sound is not None:
                _add_sound(temporary, target, sound, num_frames)
            written.append(_checked(temporary, target.path, target.spec, width, height, num_frames))
        return written


def probe_video(path: Path) -> VideoInfo:
    """Read size, frame rate, tags and metadata of a video file, and count its frames without decoding them.

    Raises:
        InputError: `path` is missing, or not a video file.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        num_frames = sum(packet.size > 0 and not packet.is_discard for packet in container.demux(stream))
        return VideoInfo(
            path=path,
            width=codec.width,
            height=codec.height,
            num_frames=num_frames,
            fps=Fraction(stream.average_rate or 0),
            primaries=PRIMARIES.get(codec.color_primaries, str(codec.color_primaries)),
            transfer=TRANSFERS.get(codec.color_trc, str(codec.color_trc)),
            matrix=MATRICES.get(codec.colorspace, str(codec.colorspace)),
            color_range=RANGES.get(codec.color_range, str(codec.color_range)),
            metadata=dict(container.metadata),
        )


def read_video(path: Path) -> Tensor:
    """Decode a whole video file to RGB, uint8 [T, H, W, 3].

    Raises:
        InputError: `path` is missing, or not a video file.
    """
    if not path.is_file():
        raise InputError(f"no video file at {path}")
    frames = _read_with_decord(path)
    return torch.from_numpy(_read_with_pyav(path) if frames is None else frames)


def video_frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Decode a video file frame by frame: RGB, uint8 [H, W, 3], turned as its camera says in steps of 90°.

    Raises:
        InputError: `path` is missing, or not a video file.
    """
    if not path.is_file():
        raise InputError(f"no video file at {path}")
    with _opened(path) as container:
        for frame in container.decode(video=0):
            pixels = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
            yield np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))  # counter-clockwise, both


def _metadata_arguments(metadata: Mapping[str, str]) -> list[str | bytes]:
    arguments: list[str | bytes] = []
    for key, text in metadata.items():
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
            raise InputError(f'metadata key {key!r}: expected letters, digits, "_", "." and "-" only')
        try:
            encoded = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"metadata {key!r}: expected text that UTF-8 can encode, got {error.reason}") from error
        if b"\0" in encoded or len(encoded) > MAX_METADATA_BYTES:
            raise InputError(
                f"metadata {key!r}: expected at most {MAX_METADATA_BYTES} bytes without NUL, got {len(encoded)} bytes"
            )
        arguments += ["-metadata", key.encode() + b"=" + encoded]
    if not metadata.keys() <= STANDARD_METADATA:
        arguments += ["-movflags", "+use_metadata_tags"]
    return arguments


def _single_frames(chunks: Iterable[Tensor], specs: Sequence[VideoSpec]) -> Iterator[Tensor]:
    """Cut chunks [t, H, W, 3] into checked frames [H, W, 3]."""
    index, size = 0, None
    for chunk in chunks:
        if not (isinstance(chunk, Tensor) and chunk.dtype == torch.float32 and chunk.ndim == 4 and chunk.shape[3] == 3):
            got = f"{chunk.dtype} {list(chunk.shape)}" if isinstance(chunk, Tensor) else type(chunk).__name__
            raise InputError(f"expected frames as float32 tensors [t, H, W, 3], got {got} after {index} frames")
        for spec in specs:
            spec.check_size(chunk.shape[2], chunk.shape[1])
        size = size or chunk.shape[1:3]
        if chunk.shape[1:3] != size:
            raise InputError(
                f"frame {index}: expected {size[1]}x{size[0]} px like the frames before it, got "
                f"{chunk.shape[2]}x{chunk.shape[1]} px"
            )
        for frame in chunk.detach():
            if not bool(torch.isfinite(frame).all()):
                raise NumericalError(f"frame {index} has NaN or infinite values and cannot be written")
            yield frame
            index += 1


@contextmanager
def _encoder(temporary: Path, target: Target, size: tuple[int, int]) -> Iterator[Callable[[NDArray[Any]], None]]:
    """Yield a function that encodes one frame's pixels. All frames are written when the block succeeds."""
    path, spec = target.path, target.spec
    if spec.format.encoder is None:
        yield ExrSequence(temporary, path, spec, target.metadata).send
        return
    file, tag, texts = f"file:{temporary}", TAG_BT709, _metadata_arguments(target.metadata)
    if spec.format.is_sequence:
        # % is special in ffmpeg's sequence names
        file = f"file:{temporary / path.stem}".replace("%", "%%") + f".%04d{path.suffix}"
        tag, texts = TAG_SRGB, []
    source = [*raw_input(spec.format.pixel_format, *size, spec.fps), "-vf", tag]
    with Ffmpeg([*source, *spec.encoder_arguments(), *texts, *spec.container_arguments(), file], spec.ffmpeg) as ffmpeg:
        yield ffmpeg.send
    for frame in temporary.iterdir() if spec.format.is_sequence else ():
        add_texts(frame, target.metadata)


def _add_sound(video: Path, target: Target, sound: Path, num_frames: int) -> None:
    """Add the sound track to a finished video file, or a WAV file to a finished sequence, with exactly the same length.

    This is a second pass because with `-shortest` in one pass ffmpeg ends the sound before or after the pictures (seen
    in 9.0).
    """
    spec = target.spec
    num_samples = round(num_frames / spec.fps * SAMPLE_RATE)
    length = f"aresample={SAMPLE_RATE},apad,atrim=end_sample={num_samples}"
    if spec.format.is_sequence:
        track = [
            "-map",
            "0:a:0",
            "-map_metadata",
            "-1",
            "-af",
            length,
            *_WAV,
            f"file:{video / sound_name(target.path)}",
        ]
        with Ffmpeg(["-i", f"file:{sound}", *track], spec.ffmpeg):
            return  # ffmpeg reads files only, and ends by itself
    assert spec.format.sound is not None
    inputs = ["-i", f"file:{video}", "-i", f"file:{sound}", "-map", "0:v", "-map", "1:a:0", "-map_metadata", "-1"]
    copied = ["-c:v", "copy", "-af", length, *spec.format.sound]
    with atomic_path(video) as temporary:
        texts = _metadata_arguments(target.metadata)
        with Ffmpeg([*inputs, *copied, *texts, *spec.container_arguments(), f"file:{temporary}"], spec.ffmpeg):
            pass  # ffmpeg reads files only, and ends by itself


def _atomic_output(target: Target) -> AbstractContextManager[Path]:
    if target.spec.format.is_sequence:
        return atomic_folder(place_of(target.path), partial(is_in_sequence, target.path), target.beside)
    return atomic_path(target.path, target.beside)


def _checked(temporary: Path, path: Path, spec: VideoSpec, width: int, height: int, num_frames: int) -> VideoInfo:
    """Return the properties of the finished file under its final name. Raise S2VideoError if they are not as sent."""
    try:
        info = _probe_sequence(temporary, spec) if spec.format.is_sequence else probe_video(temporary)
    except InputError as error:
        raise S2VideoError(f"ffmpeg succeeded but wrote no video for {path}; {USE_BUNDLED}") from error
    if (info.width, info.height, info.num_frames) != (width, height, num_frames):
        raise S2VideoError(
            f"ffmpeg wrote {info.num_frames} frames of {info.width}x{info.height} px for {path}, "
            f"expected {num_frames} of {width}x{height}; {USE_BUNDLED}"
        )
    return replace(info, path=path)


def _probe_sequence(folder: Path, spec: VideoSpec) -> VideoInfo:
    frames = sorted(file for file in folder.iterdir() if file.suffix == spec.format.suffix)
    if not frames:
        raise InputError(f"no frames in {folder}")
    return replace(probe_video(frames[-1]), num_frames=len(frames), fps=spec.fps)


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    """Open a container that has a video stream. Raise InputError for any error in the file."""
    try:
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            if not container.streams.video:
                raise InputError(f"{path} has no video stream")
            if container.streams.video[0].codec_context is None:
                raise InputError(f"{path}: expected a video in a known codec, got one that FFmpeg has no decoder for")
            yield container
    except av.FFmpegError as error:
        raise InputError(f"cannot read {path} as a video: {error.strerror}") from error


def _read_with_decord(path: Path) -> NDArray[np.uint8] | None:
    """Return frames [T, H, W, 3], or None if decord is not installed or cannot read the file."""
    try:
        import decord
    except (ImportError, OSError):  # arm64 has no wheels; OSError is a wheel without its libraries
        return None
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        frames: NDArray[np.uint8] = reader.get_batch(range(len(reader))).asnumpy()
        return frames
    except (decord.DECORDError, RuntimeError):
        return None


def _read_with_pyav(path: Path) -> NDArray[np.uint8]:
    frames = list(video_frames(path))
    if not frames:
        raise InputError(f"{path} has no frames")
    return np.stack(frames)
