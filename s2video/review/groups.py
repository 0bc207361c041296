"""Settings of videos: which ones they share, which ones differ, and which videos belong next to each other."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..records.sidecar_model import MadeVideo, Sidecar

_SHOWN_ELSEWHERE = frozenset({"prompt", "image", "last_image", "output.path", "sampling.seed"})

Settings = dict[str, str]


def settings_of(sidecar: Sidecar) -> Settings:
    """Return all that decides how a video looks, by dotted names, except what names it: prompt, images, path, seed."""
    values = {k: v for k, v in _flat(sidecar.config.model_dump(mode="json")) if k not in _SHOWN_ELSEWHERE}
    values |= {f"mesh.{key}": value for key, value in sidecar.mesh.model_dump().items()}
    values |= {f"machine.{key}": value for key, value in sidecar.machine.model_dump().items()}
    values |= {f"version of {name}": version for name, version in sidecar.versions.items()}
    return {key: "–" if value is None or value == "" else str(value) for key, value in values.items()}


def split_settings(settings: Sequence[Settings]) -> tuple[Settings, list[Settings]]:
    """Return the settings that all have in common, and for each the others."""
    if not settings:
        return {}, []
    first = settings[0]
    shared = {key: value for key, value in first.items() if all(other.get(key) == value for other in settings)}
    return shared, [{key: value for key, value in one.items() if key not in shared} for one in settings]


def group_videos(videos: Sequence[MadeVideo]) -> list[list[MadeVideo]]:
    """Put videos together that have the same prompt, images, seed and size but other settings.

    Returns:
        Groups of two videos or more, and single videos as groups of one, in the order in which they begin in `videos`.
        Within a group, lower values come first, so that s2_scale 0 is on the left. Videos that have all settings in
        common stay single.
    """
    groups: dict[object, list[MadeVideo]] = {}
    for video in videos:
        groups.setdefault(_subject(video.sidecar), []).append(video)
    found: list[list[MadeVideo]] = []
    for group in groups.values():
        _, differing = split_settings([settings_of(video.sidecar) for video in group])
        if any(differing):
            order = sorted(range(len(group)), key=lambda number: _rank(differing[number]))
            found.append([group[number] for number in order])
        else:
            found += [[video] for video in group]
    return found


def _subject(sidecar: Sidecar) -> tuple[object, ...]:
    size = sidecar.config.sampling
    images = *(image.digest for image in sidecar.images), *(part.sha256 for part in sidecar.control)
    return sidecar.prompt, images, sidecar.seed, size.width, size.height


def _rank(differing: Settings) -> list[tuple[float, str]]:
    """Return a key to sort by: numbers by value, other text after them."""
    return [_number(value) for _, value in sorted(differing.items())]


def _number(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return math.inf, value


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
