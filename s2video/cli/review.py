"""The commands for videos that are there: inspect | reproduce | compare | sheet | page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, S2VideoError, memory_reported
from ..media.checks import check_output, check_report, check_spec
from ..media.output_paths import OutputPaths
from ..media.signature import is_signed
from ..models.checkpoint import Checkpoint, open_checkpoint
from ..models.limits import check_request
from ..records.integrity import UNCHANGED, is_as_written, problems, video_of, video_state
from ..records.replacing import check_inputs_kept, check_replacing, check_unsigned, inputs_of, sentences
from ..records.sidecar_model import find_sidecar, is_sequence, read_sidecar, sidecar_schema, videos_in
from ..system import ranks
from ..system.claims import check_unclaimed
from ..system.progress import Style
from ..system.shutdown import Termination
from ..system.terminal import show, show_json, show_path
from .arguments import add_command, add_overwrite_argument, path_argument, say, whole_number

if TYPE_CHECKING:
    from ..batch.picks import JudgedTake
    from ..config.run import RunConfig
    from ..records.sidecar_model import Sidecar
    from ..review.captions import Caption

MAX_COLUMNS = 200  # frames of each video in a sheet


def add_commands(commands: Any) -> None:
    """Add the parsers to those of the other commands."""
    inspect = add_command(
        commands,
        "inspect",
        "Print how a video was made, and whether its file has changed (then the exit code is 1)",
        examples="s2video inspect runs/x.mp4\ns2video inspect runs/x.mp4 --json",
    )
    inspect.add_argument(
        "file", type=path_argument, nargs="?", metavar="FILE", help="a video, its sidecar, or its latents"
    )
    inspect.add_argument("--json", action="store_true", help="the sidecar as it is")
    inspect.add_argument("--schema", action="store_true", help="the JSON Schema of all sidecars instead")
    inspect.set_defaults(run=_inspect)

    reproduce = add_command(
        commands,
        "reproduce",
        "Make a video again, and compare the two",
        examples="s2video reproduce runs/x.mp4\ns2video launch --nproc 2 reproduce runs/x.mp4",
    )
    add_reproduce_arguments(reproduce)
    reproduce.set_defaults(run=_reproduce)

    compare = add_command(
        commands,
        "compare",
        "Put two videos into one file",
        examples="s2video compare cfg.mp4 s2.mp4 --mode wipe -o both.mp4",
    )
    compare.add_argument(
        "videos", type=path_argument, nargs=2, metavar="VIDEO", help="video files, or folders of frames"
    )
    compare.add_argument(
        "--mode",
        choices=["side", "wipe", "sheet"],
        default="side",
        help="side by side, a moving line, or one picture",
    )
    compare.add_argument("--labels", nargs=2, metavar=("A", "B"), help="captions; without it, the files' names")
    compare.add_argument(
        "-o", "--output", type=path_argument, required=True, metavar="X.mp4", help="X.png or X.jpg with --mode sheet"
    )
    _add_font_argument(compare)
    add_overwrite_argument(compare)
    compare.set_defaults(run=_compare)

    sheet = add_command(
        commands, "sheet", "Put frames of many videos into one picture", examples="s2video sheet runs -o runs/sheet.png"
    )
    sheet.add_argument(
        "videos", type=path_argument, nargs="+", metavar="RUN_OR_VIDEO", help="folders of runs, or videos"
    )
    sheet.add_argument("--columns", type=whole_number, default=6, metavar="N", help="frames of each video")
    sheet.add_argument("-o", "--output", type=path_argument, required=True, metavar="X.png", help="or X.jpg")
    _add_font_argument(sheet)
    add_overwrite_argument(sheet)
    sheet.set_defaults(run=_sheet)

    page = add_command(commands, "page", "Make one HTML page of a run", examples="s2video page runs")
    page.add_argument(
        "folder", type=path_argument, metavar="RUN", help="a folder of videos and sidecars, or of a batch"
    )
    page.add_argument(
        "-o", "--output", type=path_argument, metavar="X.html", help="without it, index.html in that folder"
    )
    page.add_argument("--title", help="without it, the folder's name")
    page.add_argument("--embed-below", type=float, default=8.0, metavar="MB", help="larger videos are linked")
    add_overwrite_argument(page)
    page.set_defaults(run=_page)


def add_reproduce_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=path_argument, metavar="FILE", help="a video, its sidecar, or its latents")
    parser.add_argument(
        "--output", type=path_argument, metavar="X.mp4", help="write the video too; without it, latents are compared"
    )
    add_overwrite_argument(parser)
    parser.add_argument("--model", metavar="PATH", help="where the model is now; a Hub id is downloaded")
    parser.add_argument("--ffmpeg", metavar="PATH", help="the ffmpeg to use; without it, the one of imageio-ffmpeg")
    parser.add_argument("--audio", metavar="A", help="a file with sound for the video; without it, it is silent")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], help="without it, as in the sidecar")
    parser.add_argument("--plain", action="store_true", help="lines instead of a progress bar")


def check_reproduce(arguments: argparse.Namespace, *, world_size: int) -> tuple[Sidecar, RunConfig, Checkpoint]:
    """Check all of a reproduction that can be checked without torch: its sidecar, job and checkpoint.

    Raises:
        InputError: something that cannot be used.
        S2VideoError: the video is not the one that was made.
    """
    from ..review.reproduce import check_images_again, job_again

    path = find_sidecar(arguments.file)
    sidecar = read_sidecar(path)
    if ranks.is_main_rank():
        _check_file(arguments.file, path, sidecar)
    own = {
        "model.path": arguments.model,
        "model.device": arguments.device,
        "output.ffmpeg": arguments.ffmpeg,
        "output.audio": arguments.audio,
    }
    job, notes = job_again(sidecar, world_size=world_size, own=own, source=path)
    for key, note in notes.items():
        if arguments.output is not None or not key.startswith("output."):
            say(note)
    if arguments.output is not None:
        files = OutputPaths(arguments.output)
        check_output(files)
        video = path.with_name(sidecar.output.name)
        read = {
            "the video to reproduce": video,
            "the sidecar": path,
            "FILE": arguments.file,
        }
        check_unclaimed(files.locks)
        check_inputs_kept(files.all, inputs_of(job) | read)
        replaced = check_replacing(files, overwrite=arguments.overwrite)
        for note in sentences([] if replaced is None else [replaced]):
            say(note)
        check_spec(job.output.spec(arguments.output), job.sampling.width, job.sampling.height)
    may_download = arguments.model is not None
    checkpoint = open_checkpoint(*job.model.source, may_download=may_download)
    check_request(job, checkpoint.info, world_size=world_size)
    check_images_again(sidecar)
    return sidecar, job, checkpoint


def _inspect(arguments: argparse.Namespace) -> int:
    if arguments.schema:
        show_json(json.dumps(sidecar_schema(), indent=2, ensure_ascii=False))
        return 0
    if arguments.file is None:
        raise InputError("inspect: name a video, its sidecar X.json, or its X.latents.safetensors")

    from ..review.inspect import credentials_line, describe, describe_credentials

    is_alone = not arguments.json and _has_no_sidecar(arguments.file)
    if is_alone and (said := describe_credentials(arguments.file)) is not None:
        show(said)
        return 0
    path = find_sidecar(arguments.file)
    sidecar = read_sidecar(path)
    video = video_of(arguments.file, path, sidecar)
    signed = None if sidecar.credentials is None else credentials_line(video)
    if arguments.json:
        show_json(path.read_text(encoding="utf-8"))
    else:
        show(describe(sidecar, video, credentials=signed))
    found = [*problems(path, sidecar, video)]
    if signed is not None and video.exists() and not signed.startswith("valid"):
        found.append(f"{video}: credentials: {signed}")
    if found:
        raise S2VideoError("; ".join(found))
    return 0


def _has_no_sidecar(file: Path) -> bool:
    try:
        find_sidecar(file)
    except InputError:
        return file.is_file()
    return False


def _check_file(file: Path, path: Path, sidecar: Sidecar) -> None:
    """Raise S2VideoError if a video has changed. Say what else is not as it was written, but is made again."""
    video = video_of(file, path, sidecar)
    if not is_as_written(path):
        say(f"{path}: changed since it was written; what it says now is made")
    if not video.exists():
        say(f"{video} is missing: only the latents are compared")
    elif (state := video_state(sidecar.output, video)) != UNCHANGED:
        raise S2VideoError(f"not reproduced: {video}: {state}; move it away to compare the latents of {path} only")


def _reproduce(arguments: argparse.Namespace) -> int:
    sidecar, job, checkpoint = check_reproduce(arguments, world_size=ranks.world_size())
    video = video_of(arguments.file, find_sidecar(arguments.file), sidecar)

    from ..engine.engine import Engine
    from ..parallel.mesh import init_mesh
    from ..planning.fits import advice_for
    from ..review.reproduce import judge, make_again

    progress: Style = "plain" if arguments.plain else "auto"
    with (
        Termination().handled() as termination,
        init_mesh(job.parallel, job.model.device) as mesh,
        memory_reported(lambda: advice_for(job, mesh.world.size, mesh.device, "generate")),
    ):
        engine = Engine(job, mesh, checkpoint=checkpoint, progress=progress, termination=termination)
        compared = video if mesh.is_main and video.exists() else None
        remade = make_again(engine, sidecar, arguments.output, video=compared)
    if remade is not None:
        if arguments.output is not None:
            show_path(OutputPaths(arguments.output).video)
        show(judge(sidecar, remade))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    left, right = (_existing(video, sequence=True) for video in arguments.videos)
    _check_report(arguments.output, arguments, arguments.videos)
    titles = arguments.labels or [path.stem for path in arguments.videos]
    captions = (_caption(left, titles[0]), _caption(right, titles[1]))
    if arguments.mode == "sheet":
        from ..review.sheet import contact_sheet

        contact_sheet(list(zip(arguments.videos, captions, strict=True)), arguments.output, font=arguments.font)
    else:
        from ..review.compare import compare_videos

        compare_videos(left, right, arguments.output, captions, mode=arguments.mode, font=arguments.font)
    show_path(arguments.output)
    return 0


def _sheet(arguments: argparse.Namespace) -> int:
    from ..review.sequences import FRAMES, other_videos
    from ..review.sheet import contact_sheet
    from ..review.takes import takes_at

    if not 1 <= arguments.columns <= MAX_COLUMNS:
        raise InputError(f"--columns: expected a value from 1 to {MAX_COLUMNS}, got {arguments.columns}")
    videos: list[Path] = []
    folders: dict[Path, None] = {}
    for path in arguments.videos:
        is_run = path.is_dir() and not is_sequence(path)
        folders[path if is_run else path.parent] = None
        if is_run:
            made = videos_in(path)
            others = other_videos(path, [video.path for video in made])
            frames_only = not made and any(file.suffix in FRAMES for file in path.iterdir())
            # a row for each take, and not for each file of it
            masters = [video.path for video in made if video.sidecar.take is None]
            videos += [path] if frames_only else [*masters, *others]
        else:
            videos.append(_existing(path, sequence=True))
    _check_report(arguments.output, arguments, videos)
    takes = {video: take for folder in folders for video, take in takes_at(folder).items()}
    captioned = [(video, _caption(video, video.stem, takes.get(video.resolve()))) for video in videos]
    contact_sheet(captioned, arguments.output, columns=arguments.columns, font=arguments.font)
    show_path(arguments.output)
    return 0


def _page(arguments: argparse.Namespace) -> int:
    from ..review.page import read_failures, write_page
    from ..review.sequences import other_videos
    from ..review.takes import takes_at

    folder: Path = arguments.folder
    if not folder.is_dir():
        raise InputError(f"{folder}: expected the folder of a run, found none")
    output = arguments.output or folder / "index.html"
    title = arguments.title or folder.resolve().name
    if not 0 <= arguments.embed_below <= 1e6:
        raise InputError(f"--embed-below: expected megabytes from 0 to 1e6, got {arguments.embed_below}")
    embed_below = round(arguments.embed_below * 1e6)
    videos = videos_in(folder)
    others = list(other_videos(folder, [video.path for video in videos]))
    _check_report(output, arguments, [*(video.path for video in videos), *others])
    write_page(
        videos,
        read_failures(folder),
        output,
        title=title,
        embed_below=embed_below,
        others=others,
        takes=takes_at(folder),
    )
    show_path(output)
    return 0


def _add_font_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--font", type=path_argument, metavar="F.ttf", help="font for captions with letters other than ASCII"
    )


def _existing(video: Path, *, sequence: bool = False) -> Path:
    if not (video.is_file() or (sequence and video.is_dir())):
        raise InputError(f"{video}: expected a video file, found none")
    return video


def _check_report(output: Path, arguments: argparse.Namespace, videos: Sequence[Path]) -> None:
    """Check that a sheet, a page or a comparison can be written. Raises InputError."""
    check_report(output)
    read = {f"the input {video}": video for video in videos}
    check_inputs_kept((output,), read | {"--font": getattr(arguments, "font", None)})
    check_unsigned(output, is_signed, overwrite=arguments.overwrite)


def _caption(video: Path, title: str, take: JudgedTake | None = None) -> Caption:
    """Return what is written above a video: prompt and seed only where a sidecar has them of this very file.

    Args:
        take: what it is in its batch.
    """
    from ..review.captions import Caption

    try:
        sidecar = read_sidecar(find_sidecar(video))
    except InputError:
        return Caption(title)
    if (state := video_state(sidecar.output, video)) != UNCHANGED:
        say(f"{video}: {state}; it gets no prompt and seed from its sidecar")
        return Caption(title)
    shown = title if take is None else f"{take.title}: {title}"
    return Caption(shown, f"seed {sidecar.seed}: {sidecar.prompt}")
