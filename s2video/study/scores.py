"""Scores of a study's videos that other programs computed: a CSV file, or the result file of VBench.

Knows names of files, not pixels.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from ..config.text import show
from ..errors import InputError
from ..system.json_reader import read_json
from ..system.terminal import printable
from ..system.text_file import read_text_file
from .clips import Study

Key = tuple[str, str]  # name of a clip, and its setting
Scores = dict[str, dict[Key, float]]  # measure -> clip and setting -> value


class _Row(NamedTuple):
    where: str
    video: str
    measure: str
    value: float


def read_scores(path: Path, study: Study, *, setting: str | None = None) -> Scores:
    """Return the scores of a file, by measure.

    Args:
        path: a .csv file with the columns video, measure and value, or a .json file as VBench writes it: dimension ->
            [mean, [{video_path, video_results}, ...]]. A video is named by its path, of which the last parts count.
        setting: the setting that all of the file's videos belong to; None: their paths tell it.

    Raises:
        InputError: a file that cannot be read, a video that is not in the study or is not told apart, or a repetition.
    """
    readers = {".csv": _csv_rows, ".json": _vbench_rows}
    if path.suffix.lower() not in readers:
        raise InputError(f"--scores {path}: expected a .csv file, or the .json file of VBench, got {path.name!r}")
    if setting is not None and setting not in study.settings:
        raise InputError(f"--scores {setting}={path}: expected one of {', '.join(study.settings)}, got {setting!r}")
    find = _Finder(study, setting)
    scores: Scores = {}
    for row in readers[path.suffix.lower()](path):
        key = find(row)
        values = scores.setdefault(row.measure, {})
        if key in values:
            raise InputError(f"{row.where}: expected one {row.measure} of {row.video}, got two; keep one")
        values[key] = row.value
    if not scores:
        raise InputError(f"--scores {path}: expected scores of videos, got none; check the file")
    return scores


class _Finder:
    """Finds the clip and the setting that a path means, by its last parts."""

    def __init__(self, study: Study, setting: str | None) -> None:
        self._setting = setting
        self._by_stem: dict[str, list[tuple[Key, tuple[str, ...]]]] = {}
        for clip, name, video in study.videos():
            if setting in (None, name):
                parts = (*video.path.absolute().parts[:-2], name)  # a folder is known by its setting too
                self._by_stem.setdefault(video.path.stem, []).append(((clip.name, name), parts))
                self._by_stem[video.path.stem].append(((clip.name, name), video.path.absolute().parts[:-1]))

    def __call__(self, row: _Row) -> Key:
        path = PurePath(row.video)
        found = self._by_stem.get(path.stem, self._by_stem.get(path.name, []))
        if not found:
            raise InputError(f"{row.where}: expected a video of the study, got {row.video[:80]!r}; check its name")
        if len({key for key, _ in found}) == 1:
            return found[0][0]
        common = [_common_end(path.parts[:-1], parts) for _, parts in found]
        best = {key for (key, _), count in zip(found, common, strict=True) if count == max(common)}
        if len(best) > 1:
            raise InputError(
                f"{row.where}: expected a path that tells the setting of {row.video[:80]!r}, such as "
                f"{found[0][0][1]}/{path.name}, got one that several settings have; or pass SETTING=FILE"
            )
        return best.pop()


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many parts two paths have in common, from the end."""
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


def _csv_rows(path: Path) -> Iterator[_Row]:
    reader = csv.DictReader(read_text_file(path, "--scores").splitlines(), skipinitialspace=True)
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        if not {"video", "measure", "value"} <= set(header):
            raise InputError(
                f"--scores {path}: expected a header with video, measure and value, got {', '.join(header)[:80]!r}"
            )
        reader.fieldnames = header
        for row in reader:
            where = f"--scores {path}, line {reader.line_num}"
            if not row["video"] or not row["measure"] or row["value"] is None:
                raise InputError(f"{where}: expected a video, a measure and a value, got an empty cell; fill it in")
            yield _Row(where, row["video"].strip(), row["measure"].strip(), _number(row["value"].strip(), where))
    except csv.Error as error:
        raise InputError(f"--scores {path}: expected CSV, got an error ({error}); correct the file") from None


def _vbench_rows(path: Path) -> Iterator[_Row]:
    content = read_json(path, remedy="pass VBench's *_eval_results.json, or a .csv file")
    if not isinstance(content, dict):
        raise InputError(f"--scores {path}: expected VBench's dimensions, got {show(content)}; check the file")
    for dimension, result in content.items():
        where = f"--scores {path}, {str(dimension)[:60]}"
        videos = result[1] if isinstance(result, list) and len(result) == 2 else None
        if not isinstance(videos, list):
            raise InputError(f"{where}: expected [mean, list of videos], as VBench writes it, got {show(result)}")
        for entry in videos:
            if not isinstance(entry, Mapping) or not isinstance(entry.get("video_path"), str):
                raise InputError(f"{where}: expected video_path and video_results, got {show(entry)}")
            yield _Row(where, entry["video_path"], printable(dimension), _number(entry.get("video_results"), where))


def _number(value: Any, where: str) -> float:
    """Return a finite number; VBench gives some results as true and false."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: expected a number, got {show(value)}; correct the file")
    return number
