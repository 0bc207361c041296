"""A study as one HTML page: its pairs side by side without their names, for voting, and then the results.

Collects what the page shows; `review/templates/study.html` shows it, with the player of all pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..media.signature import sign
from ..media.video import probe_video
from ..review.html import relative_link, render
from ..review.page import Failure, Media, Size, media_of
from ..system.files import atomic_path
from ..system.terminal import printable
from .clips import Study
from .results import Results
from .scores import Scores
from .text import NONE, cost_cells, digits_of, lines_of, number
from .votes import Pair, pairs_of

EMBED_MEGABYTES = 100.0  # of all videos of a page together


class Side(NamedTuple):
    """One video of a pair as the player takes it; `name` is its side, and the setting is not shown."""

    name: str
    media: Media
    named: Mapping[str, str]


@dataclass(frozen=True)
class ShownPair:
    """A pair with all that is said about it once its names are shown."""

    pair: Pair
    sides: tuple[Side, Side]
    links: tuple[tuple[str, str], tuple[str, str]]  # of each side: setting, URL of the file
    values: Sequence[tuple[str, str, str]]  # measure, left, right

    @property
    def is_wipeable(self) -> bool:
        """Whether one can be wiped over the other."""
        first, second = (side.media for side in self.sides)
        return first.plays and second.plays and (first.width, first.height) == (second.width, second.height)


def write_study_page(
    study: Study,
    scores: Scores,
    results: Results,
    path: Path,
    *,
    failures: Sequence[Failure] = (),
    embed_megabytes: float = EMBED_MEGABYTES,
) -> None:
    """Write the page.

    Args:
        embed_megabytes: videos are part of the page if all of them together are smaller; otherwise they are linked,
            relative to the page.

    Raises:
        InputError: a video that cannot be read.
    """
    pairs = list(pairs_of(study))
    shown_files = [pair.clip.videos[name].path for pair in pairs for name in (pair.left, pair.right)]
    is_embedded = sum(file.stat().st_size for file in shown_files) <= embed_megabytes * 1e6
    embed_below = 2**62 if is_embedded else 0
    shown = [_shown(pair, scores, path, embed_below) for pair in pairs]
    text = render(
        "study.html",
        title=study.title,
        study=study,
        pairs=shown,
        results=results,
        costs=[(cost.setting, str(cost.videos), *cost_cells(cost)) for cost in results.costs],
        tables={setting: lines_of(results, setting) for setting in study.others},
        changes={name: _said(changes) for name, changes in study.changes.items()},
        failures=failures,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        sign(temporary)


def _shown(pair: Pair, scores: Scores, page: Path, embed_below: int) -> ShownPair:
    sides, links = [], []
    for side, setting in (("left", pair.left), ("right", pair.right)):
        path = pair.clip.videos[setting].path
        info = probe_video(path)
        size = Size(info.width, info.height, info.num_frames, float(info.fps or 1), has_sound=False)
        sides.append(Side(side, media_of(path, size, page, embed_below), {}))
        links.append((setting, relative_link(path, page)))
    values = []
    for measure, found in scores.items():
        two = [found.get((pair.clip.name, setting)) for setting in (pair.left, pair.right)]
        if None not in two:
            digits = digits_of([value for value in two if value is not None]) + 1
            values.append((measure, number(two[0], digits), number(two[1], digits)))
    return ShownPair(pair, (sides[0], sides[1]), (links[0], links[1]), values)


def _said(changes: Mapping[str, Any]) -> dict[str, str]:
    return {printable(key): NONE if value is None else printable(value) for key, value in changes.items()}
