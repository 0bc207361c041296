"""A run's folder as one HTML page that needs nothing else: videos, prompts, seeds, settings, masks, failures.

No scripts, nothing from a network. All that comes from outside is escaped. Videos are part of the page up to a size,
and links beyond it.
"""

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from ..batch.run_file import RESERVED
from ..batch.store import find_stores
from ..errors import InputError
from ..records.sidecar_model import MadeVideo, Sidecar
from ..system.files import atomic_path
from .sheet import strip

POSTER_WIDTH = 640  # px
SMALL = 256  # px; narrower videos are shown with their pixels as squares
_KINDS = {".mp4": "video/mp4", ".webm": "video/webm"}  # what browsers play


class Failure(NamedTuple):
    """A video that was not made, and why."""

    name: str
    error: str


def read_failures(folder: Path) -> list[Failure]:
    """Those that the state of a batch lists, of all its shards; none where there is no batch in the folder."""
    if not any(folder.glob(f"{RESERVED}*sqlite")):
        return []
    records = [record for store in find_stores(folder) for record in store.records()]
    return [Failure(r.name, f"{r.place}: {r.error}") for r in records if r.state == "failed"]


def write_page(
    videos: Sequence[MadeVideo], failures: Sequence[Failure], path: Path, *, title: str, embed_below: int = 8_000_000
) -> None:
    """Write the page. A video that is not there although its sidecar is counts as failed.

    Args:
        embed_below: bytes; a video file below this size is part of the page, others are linked, relative to it.

    Raises:
        InputError: nothing to show, or a path that cannot be used.
    """
    gone = [video for video in videos if not video.path.exists()]
    videos = [video for video in videos if video.path.exists()]
    failures = [*failures, *(Failure(video.path.name, "its sidecar is there, the video is not") for video in gone)]
    if not videos and not failures:
        raise InputError(f"no videos for {path}: expected a folder in which videos lie beside their sidecars")
    settings = [_settings(video.sidecar) for video in videos]
    shared = _shared(settings)
    cards = [
        _card(video, {key: value for key, value in own.items() if key not in shared}, path, embed_below)
        for video, own in zip(videos, settings, strict=True)
    ]
    style = files("s2video").joinpath("assets/page.css").read_text(encoding="utf-8")
    failed = f", {len(failures)} failed" if failures else ""
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>",
        f'<h1>{escape(title)}</h1>\n<p class="soft">{_counted(len(videos), "video")}{failed}</p>',
        *(["<h2>Failed</h2>", *map(_failure, failures)] if failures else []),
        *(["<h2>Videos</h2>", '<div class="videos">', *cards, "</div>"] if videos else []),
        *([f"<h2>Settings of all videos</h2>\n{_table(shared)}"] if shared else []),
        "</body>\n</html>\n",
    ]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def mask_picture(sidecar: Sidecar) -> str:
    """SVG: blocks from the bottom up, steps to the right, a mark for every block that a sub pass left out."""
    steps, blocks = sidecar.steps_taken, sidecar.num_blocks
    marks = sorted({(mask.step, block) for mask in sidecar.masks for block in mask.dropped})
    drawn = "".join(f"M{step}.1 {blocks - 1 - block}.1h.8v.8h-.8z" for step, block in marks)
    label = f"{len(marks)} times a block was left out, in {steps} steps of {blocks} blocks"
    return (
        f'<svg viewBox="0 0 {steps} {blocks}" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<rect width="{steps}" height="{blocks}"/><path d="{drawn}"/></svg>'
    )


def _settings(sidecar: Sidecar) -> dict[str, str]:
    """All that decides and describes a video, beside what is shown in another way."""
    shown = {"prompt", "image", "last_image", "output.path", "sampling.seed"}
    values = {key: value for key, value in _flat(sidecar.config.model_dump(mode="json")) if key not in shown}
    values |= {f"mesh.{key}": value for key, value in sidecar.mesh.model_dump().items()}
    values |= {f"machine.{key}": value for key, value in sidecar.machine.model_dump().items()}
    values |= {f"version of {name}": version for name, version in sidecar.versions.items()}
    return {key: "–" if value is None or value == "" else str(value) for key, value in values.items()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shared(settings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    if not settings:
        return {}
    first, *others = settings
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def _card(video: MadeVideo, own: Mapping[str, str], page: Path, embed_below: int) -> str:
    sidecar = video.sidecar
    seeds = f"seed {sidecar.seed}"
    if sidecar.masks and sidecar.mask_seed != sidecar.seed:
        seeds += f", masks {sidecar.mask_seed}"
    masks = '<p class="soft">no S²-Guidance</p>'
    if sidecar.masks:
        masks = f'<p class="soft">blocks left out: blocks upwards, steps to the right</p>\n{mask_picture(sidecar)}'
    record = {f"seconds: {key.removesuffix('_seconds')}": f"{value:g}" for key, value in sidecar.timings.items()}
    record |= {f"image {number}": image.path for number, image in enumerate(sidecar.images, 1)}
    record |= {"SHA-256 of the file": sidecar.output.sha256, "SHA-256 of the latents": sidecar.latents.sha256}
    return "\n".join(
        [
            "<article>",
            _picture(video, page, embed_below),
            f"<h3>{escape(sidecar.prompt)}</h3>",
            f'<p class="soft">{seeds} · {_link(video.path, page, video.path.name)}</p>',
            *([_table(own)] if own else []),
            masks,
            f"<details><summary>Record</summary>{_table(record)}</details>",
            "</article>",
        ]
    )


def _picture(video: MadeVideo, page: Path, embed_below: int) -> str:
    path, size = video.path, video.sidecar.config.sampling
    look = ' class="small"' if size.width < SMALL else ""
    shape = f'width="{size.width}" height="{size.height}"{look}'
    kind = _KINDS.get(path.suffix)
    if kind is not None and path.stat().st_size < embed_below:
        return f'<video controls loop muted playsinline {shape} src="{_data(kind, path.read_bytes())}"></video>'
    still = io.BytesIO()
    strip(path, columns=1, width=min(POSTER_WIDTH, size.width)).save(still, "JPEG", quality=85)
    poster = _data("image/jpeg", still.getvalue())
    if kind is None:
        return f'<img class="still" alt="first frame" src="{poster}">'
    source = escape(_relative(path, page))
    return f'<video controls loop muted playsinline preload="none" {shape} poster="{poster}" src="{source}"></video>'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _relative(path: Path, page: Path) -> str:
    """A link that works wherever the folder is moved to, whatever letters are in the names."""
    return quote(Path(os.path.relpath(path.absolute(), page.absolute().parent)).as_posix())


def _link(path: Path, page: Path, text: str) -> str:
    return f'<a href="{escape(_relative(path, page))}">{escape(text)}</a>'


def _failure(failure: Failure) -> str:
    return f'<div class="failure"><h3>{escape(failure.name)}</h3><pre>{escape(failure.error)}</pre></div>'


def _table(rows: Mapping[str, str]) -> str:
    cells = "\n".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in rows.items())
    return f"<table>\n{cells}\n</table>"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
