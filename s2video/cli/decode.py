"""The command `decode`: videos of saved latents, of one file or of whole folders."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..config.output import CopyConfig
from ..config.run import RunConfig
from ..errors import InputError, memory_reported
from ..media.checks import check_file
from ..media.formats import FORMATS, Codec, codec_for, suffix_of
from ..media.naming import find_collisions, named_after
from ..media.output_paths import OutputPaths, VideoFile
from ..models.recipes import load_config
from ..records.integrity import saved_latents
from ..records.replacing import Replaced, check_inputs_kept, check_replacing_video, sentences, was_interrupted
from ..records.sidecar_model import find_sidecar, is_sequence, read_sidecar, videos_in
from ..system import ranks
from ..system.claims import check_unclaimed
from ..system.files import is_hidden
from ..system.shutdown import Termination
from ..system.terminal import show_path
from .arguments import (
    add_also_argument,
    add_codec_arguments,
    add_command,
    add_overwrite_argument,
    optional_path,
    path_argument,
    say,
)

_LATENTS = ".latents.safetensors"


class _Source(NamedTuple):
    """Latents, and the first file to make of them."""

    latents: Path
    output: Path


def add_commands(commands: Any) -> None:
    """Add the parser to those of the other commands."""
    decode = add_command(
        commands,
        "decode",
        "Make videos of saved latents, in any format",
        examples="s2video decode runs/x.latents.safetensors --output runs/x.mov --also h264\n"
        "s2video decode runs --output 'dailies/{name}.mov'",
    )
    decode.add_argument(
        "latents",
        type=path_argument,
        nargs="+",
        metavar="LATENTS",
        help="X.latents.safetensors of a --keep-latents run, its video, or a folder with some",
    )
    files = decode.add_argument_group("files")
    files.add_argument(
        "--output",
        type=path_argument,
        metavar="X.mp4",
        help="or .mov, .png, .exr, or a folder; of several latents: with {name} and {ext}; without it, next to LATENTS",
    )
    add_also_argument(files)
    add_codec_arguments(files)
    files.add_argument("--audio", metavar="A", help="a file with sound; without it, the one of --config")
    add_overwrite_argument(files)
    files.add_argument("--resume", action="store_true", help="skip videos that are whole, and of these latents")
    either = decode.add_argument_group("model and settings").add_mutually_exclusive_group()
    either.add_argument("--config", metavar="C", help="config to decode with; without it, the one in LATENTS")
    either.add_argument("--model", metavar="M", help="folder or Hub id; without it, that of LATENTS, if it is here")
    decode.set_defaults(run=_decode)


def _decode(arguments: argparse.Namespace) -> int:
    codec: Codec | Literal["auto"] = arguments.codec or "auto"
    also = RunConfig().patched({"output.also": arguments.also}, "command line").output.also
    sources = _sources(arguments.latents, arguments.output, codec)
    replaced = _check_outputs(sources, codec, also, arguments)
    config = None if arguments.config is None else load_config(arguments.config)
    own = {
        "model.path": arguments.model,
        "output.ffmpeg": arguments.ffmpeg,
        "output.audio": arguments.audio,
        "output.credentials": arguments.credentials,
        "output.credentials_key": arguments.credentials_key,
    }
    if ranks.world_size() != 1:
        raise InputError("decode runs in one process: start it without torchrun")

    from ..engine.decode_latents import decode_all, plan_decoding
    from ..engine.space import check_decoding_space

    with Termination().handled(), memory_reported():
        plans = [
            plan_decoding(source.latents, source.output, config, codec=codec, also=also, own=own, say=say)
            for source in sources
        ]
        check_decoding_space(plans)
        for note in () if arguments.resume else sentences(replaced):
            say(note)
        for videos in decode_all(plans, resume=arguments.resume):
            for video in videos:
                show_path(video)
    return 0


def _sources(paths: Sequence[Path], output: Path | None, codec: Codec | Literal["auto"]) -> list[_Source]:
    """Return all latents that the arguments mean, each with its output. Raises InputError."""
    found = list(dict.fromkeys(latents for path in paths for latents in _latents(path)))
    sources = [_Source(latents, _output(latents, output, codec)) for latents in found]
    if len(sources) > 1 and output is not None and len({source.output for source in sources}) == 1:
        raise InputError(
            f"--output {output}: expected a name with {{name}}, or a folder, for {len(sources)} files of latents; "
            "{name} becomes the name of each"
        )
    return sources


def _latents(path: Path) -> Iterator[Path]:
    """Yield the latents that an argument means: a file, that of a finished take, or all in a folder."""
    if path.is_dir() and not is_sequence(path):
        yield from _latents_in(path)
    elif path.suffix == ".safetensors":
        if not path.is_file():
            raise InputError(
                f"latents {path}: no such file: expected the X.latents.safetensors of a --keep-latents run"
            )
        yield path
    else:
        try:
            sidecar = find_sidecar(path)
        except InputError:
            got = repr(path.name) if path.exists() else "no such file"
            raise InputError(
                f"latents {path}: expected a .safetensors file, a video with its sidecar, or a folder with some, got "
                f"{got}"
            ) from None
        record = read_sidecar(sidecar)
        latents = saved_latents(sidecar.with_name(record.output.name), record)
        if not latents.is_file():
            raise InputError(
                f"latents {path}: expected {latents.name} next to it, got none: its run did not keep them "
                f"(--keep-latents); s2video reproduce {path} --output makes it again"
            )
        yield latents


def _latents_in(folder: Path) -> Iterator[Path]:
    found = [path for path in sorted(folder.rglob(f"*{_LATENTS}")) if not is_hidden(path, folder)]
    takes = [video for video in videos_in(folder) if video.sidecar.take is None]
    without = [video.path.name for video in takes if not saved_latents(video.path, video.sidecar).is_file()]
    if not found:
        more = f": its {len(without)} finished videos were made without --keep-latents" if without else ""
        raise InputError(f"latents {folder}: expected a folder with files X{_LATENTS}, got none{more}")
    if without:
        names = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
        say(f"{folder}: {len(without)} finished videos have no latents, and are left out: {names}")
    yield from found


def _output(latents: Path, output: Path | None, codec: Codec | Literal["auto"]) -> Path:
    name, extension = latents.name.removesuffix(".safetensors").removesuffix(".latents"), suffix_of(codec)[1:]
    if output is None:
        return latents.with_name(f"{name}.{extension}")
    if output.is_dir() and output.suffix not in {format.suffix for format in FORMATS.values()}:
        return output / f"{name}.{extension}"
    return output.parent / named_after(output.name, name, extension)


def _check_outputs(
    sources: Sequence[_Source],
    codec: Codec | Literal["auto"],
    also: tuple[CopyConfig, ...],
    arguments: argparse.Namespace,
) -> list[Replaced]:
    """Check all files that will be written, and return those that will be replaced. Raises InputError."""
    read = {"--audio": optional_path(arguments.audio), "--config": optional_path(arguments.config)}
    read |= {f"LATENTS {source.latents}": source.latents for source in sources}
    outputs = [_files(source.output, codec, also) for source in sources]
    collisions = find_collisions([path for file in files for path in (file.video, file.sidecar)] for files in outputs)
    for first, later, path in collisions:
        raise InputError(
            f"--output: {sources[first].latents} and {sources[later].latents} would both make {path}; "
            "put {name} into it, or decode them into two folders"
        )
    check_inputs_kept([path for files in outputs for file in files for path in (file.video, file.sidecar)], read)
    replaced = []
    for source, files in zip(sources, outputs, strict=True):
        for file in files:
            check_file(file)
        check_unclaimed(OutputPaths(files[0].output, tuple(file.output for file in files[1:])).locks)
        # an interrupted run has left its latents, and may have left the video of an earlier one
        interrupted = was_interrupted(OutputPaths(source.output)) and source.latents.parent == source.output.parent
        replaced += [
            check_replacing_video(file, overwrite=arguments.overwrite, was_interrupted=interrupted) for file in files
        ]
    return [each for each in replaced if each is not None]


def _files(output: Path, codec: Codec | Literal["auto"], also: tuple[CopyConfig, ...]) -> list[VideoFile]:
    settings = RunConfig().output.fitted(output, codec).model_copy(update={"also": also})
    codec_for(output, codec)
    return [VideoFile.copy(Path(each.path)) for each in (settings, *settings.copies())]
