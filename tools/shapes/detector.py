"""Reads colour, shape, size, direction and background back from the pixels of a clip, by arithmetic alone.

`read_scene` looks at pixels only: it knows the palette and the shapes of `world`, but no caption and no model.
`score` holds such a reading against the scene that a caption describes.

How: the background is the median colour; a pixel belongs to a palette colour if it lies on the second half of the
straight line from the background to that colour, so that anti-aliased and blurred edges (which lie on the first
half, where lines to other colours are near) name no third colour; connected pixels of one colour are blobs; blobs
are linked to tracks over the frames; each track is measured in every frame and the frames vote.

Dimension letters: T frames, H rows, W columns, K blobs of one clip.
"""

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tools_extra import tools_extra
from torch import Tensor

from .world import ATTRIBUTES, BACKGROUNDS, COLORS, DIRECTIONS, SHAPES, SIZES, Scene, Thing, render

with tools_extra():
    from scipy import ndimage
    from scipy.optimize import linear_sum_assignment

MIN_COVERAGE = 0.5  # how far from the background to the palette colour a pixel must be to count as that colour
MIN_CONTRAST = 0.2  # distance in RGB (0 to 1) from the background at which a thing can be told from it
MIN_AREA = 24  # pixels of a blob; the smallest thing of the world covers 98
MIN_PRESENCE = 0.4  # share of the frames in which a thing must be seen
MIN_OVERLAP = 0.7  # soft IoU with the best shape; below it, the blob is no shape
MIN_DISPLACEMENT = 4.0  # pixels over the clip; things of the world go 16
MIN_STRAIGHTNESS = 2.0  # how much farther a thing must go along one axis than along the other
MAX_JUMP = 8.0  # pixels between two sightings that may still be the same thing
MAX_GAP = 3  # frames for which a thing may be out of sight
BLURS = (0.0, 1.0)  # standard deviations in pixels at which a shape is compared: generated clips are a little soft
FORBIDDEN = 1e6  # cost of a link that is none
MARGIN = 3  # pixels around a blob in which its soft edge is looked for

MIDDLE_SIZE = (SIZES["small"][1] * SIZES["large"][0]) ** 0.5
SIZE_LIMITS = (SIZES["small"][0] / 1.5, SIZES["large"][1] * 1.5)  # half extents that are still a small or a large thing

# A frame's neighbours in a [T, H, W] volume are in the same frame only.
IN_FRAME = np.zeros((3, 3, 3), bool)
IN_FRAME[1] = ndimage.generate_binary_structure(2, 1)

# Half extent of a shape of area 1, and how far its centroid lies below its centre, in half extents.
# A square is drawn with 0.88 of its half extent; a triangle's centroid is a third of its height above the base.
HALF_OF_UNIT_AREA = {"circle": np.pi**-0.5, "square": 0.5 / 0.88, "triangle": 0.5**0.5}
CENTROID_BELOW = {"circle": 0.0, "square": 0.0, "triangle": 1 / 3}


@dataclass(frozen=True)
class Found:
    """One thing as seen. An attribute is None where the pixels say none of the world's values.

    `half_extent` is in pixels; `displacement` is (x, y) in pixels from its first to its last sighting; `track` holds
    (frame, x, y) of its centre; `area` is its mean area in pixels; `overlap` is the soft IoU (0 to 1) with the best
    shape; `presence` is the share of frames in which it was seen.
    """

    color: str | None
    shape: str | None
    size: str | None
    direction: str | None
    half_extent: float
    displacement: tuple[float, float]
    track: tuple[tuple[int, float, float], ...]
    area: float
    overlap: float
    presence: float


@dataclass(frozen=True)
class Reading:
    """What a clip shows. `num_extra` counts lasting things beyond the number asked for."""

    background: str | None
    objects: tuple[Found, ...]
    num_extra: int


@dataclass
class _Blob:
    """One connected component of one colour in one frame; `weight` [H, W] is its soft coverage."""

    frame: int
    color: str | None
    area: float
    x: float
    y: float
    weight: np.ndarray


@dataclass
class _Track:
    blobs: list[_Blob] = field(default_factory=list)

    @property
    def total_area(self) -> float:
        return sum(blob.area for blob in self.blobs)


def read_scene(video: Tensor, num_things: int) -> Reading:
    """The background and the `num_things` most visible things of a clip.

    `video` is [3, T, H, W] in [-1, 1], as `world.render` makes it. Fewer things come back where fewer are there;
    of more things those with the largest area, summed over the frames, come back.
    """
    if video.ndim != 4 or video.shape[0] != 3:
        raise ValueError(f"video must be [3, T, H, W], got {tuple(video.shape)}")
    pixels = (video.detach().float().cpu().numpy().transpose(1, 2, 3, 0) + 1) / 2
    num_frames = len(pixels)
    ground = np.median(pixels.reshape(num_frames, -1, 3), axis=1)
    tracks = _link(_find_blobs(pixels, ground), num_frames)
    lasting = [track for track in tracks if len(track.blobs) >= MIN_PRESENCE * num_frames]
    lasting.sort(key=lambda track: -track.total_area)
    return Reading(
        background=_vote(_nearest_background(color) for color in ground),
        objects=tuple(_measure(track, num_frames) for track in lasting[:num_things]),
        num_extra=max(0, len(lasting) - num_things),
    )


def _vote(names: Iterable[Hashable]) -> Any:
    """The most frequent value; of equals, the first seen."""
    return Counter(names).most_common(1)[0][0]


def _nearest_background(color: np.ndarray) -> str | None:
    """The background's name, or None if `color` is nearer to the colour of a thing."""
    palette = BACKGROUNDS | COLORS
    name = min(palette, key=lambda name: float(np.linalg.norm(color - palette[name])))
    return name if name in BACKGROUNDS else None


def _find_blobs(pixels: np.ndarray, ground: np.ndarray) -> list[_Blob]:
    """All blobs of a clip; `pixels` is [T, H, W, 3] in [0, 1], `ground` [T, 3] the background's colour."""
    names, nearest = _nearest_lines(pixels, ground)
    parts: list[tuple[str | None, np.ndarray]] = []  # colour, flat pixel indices
    for index, name in enumerate(names):
        if np.count_nonzero(nearest == index) < MIN_AREA:
            continue
        components, count = ndimage.label(ndimage.binary_fill_holes(nearest == index, IN_FRAME), IN_FRAME)
        inside = np.flatnonzero(components)
        order = np.argsort(components.flat[inside], kind="stable")
        sizes = np.bincount(components.flat[inside], minlength=count + 1)[1:]
        parts += [(name, part) for part in np.split(inside[order], np.cumsum(sizes)[:-1]) if len(part) >= MIN_AREA]
    parts.sort(key=lambda part: -len(part[1]))  # a patch of another colour inside a blob belongs to the blob

    labels = np.zeros(pixels.shape[:3], np.int32)
    colors: list[str | None] = []
    for name, part in parts:
        free = part[labels.flat[part] == 0]
        if len(free) >= MIN_AREA:
            colors.append(name)
            labels.flat[free] = len(colors)
    if not colors:
        return []
    # A pixel within MARGIN of blobs belongs to the nearest of its frame: soft edges, without the neighbour's.
    distance, places = ndimage.distance_transform_edt(labels == 0, sampling=(1e6, 1, 1), return_indices=True)
    owners = np.where(distance <= MARGIN, labels[tuple(places)], 0)
    boxes = ndimage.find_objects(labels)
    return [
        _describe(color, box[0].start, labels[box[0].start] == k, owners[box[0].start] == k, pixels, ground)
        for k, (color, box) in enumerate(zip(colors, boxes, strict=True), start=1)
    ]


def _nearest_lines(pixels: np.ndarray, ground: np.ndarray) -> tuple[list[str | None], np.ndarray]:
    """Names of the lines from the background to each palette colour, and the nearest line of each pixel [T, H, W].

    -1 marks pixels on the background's half of their line. Lines to black, gray and white have the name None.
    """
    palette: list[tuple[str | None, tuple[float, float, float]]] = [
        *COLORS.items(),
        *((None, color) for color in BACKGROUNDS.values()),
    ]
    num_frames, height, width, _ = pixels.shape
    lines = np.asarray([color for _, color in palette], np.float32) - ground[:, None]  # [T, L, 3]
    lengths = np.square(lines).sum(-1)[:, None]  # squared, [T, 1, L]
    offsets = (pixels - ground[:, None, None]).reshape(num_frames, -1, 3)
    products = offsets @ lines.transpose(0, 2, 1)  # [T, H·W, L]
    shares = (products / np.maximum(lengths, 1e-9)).clip(0, 1)
    residuals = shares * (shares * lengths - 2 * products)  # squared distance from the line, less |offset|²
    residuals += np.where(lengths < MIN_CONTRAST**2, np.inf, 0)
    nearest = residuals.argmin(-1)
    reach = np.take_along_axis(shares, nearest[..., None], -1)[..., 0]
    labels = np.where(reach >= MIN_COVERAGE, nearest, -1).reshape(num_frames, height, width)
    return [name for name, _ in palette], labels


def _describe(
    color: str | None, frame: int, mask: np.ndarray, owned: np.ndarray, pixels: np.ndarray, ground: np.ndarray
) -> _Blob:
    """Soft coverage, area and centroid of a blob: how far each pixel has gone from the background to its own colour."""
    core = ndimage.binary_erosion(mask, iterations=2)
    image = pixels[frame] - ground[frame]
    line = np.median(image[core if core.any() else mask], axis=0)
    weight = np.where(owned, image @ line / np.square(line).sum(), 0).clip(-1, 2)
    area = max(float(weight.sum()), 1.0)
    height, width = mask.shape
    x = float(weight.sum(0) @ (np.arange(width) + 0.5)) / area
    y = float(weight.sum(1) @ (np.arange(height) + 0.5)) / area
    return _Blob(frame, color, area, x, y, weight.clip(0, 1))


def _link(blobs: list[_Blob], num_frames: int) -> list[_Track]:
    """Blobs of successive frames that are most likely the same thing: near, and alike in colour and area."""
    tracks: list[_Track] = []
    for frame in range(num_frames):
        here = [blob for blob in blobs if blob.frame == frame]
        open_tracks = [track for track in tracks if frame - track.blobs[-1].frame <= 1 + MAX_GAP]
        costs = np.array([[_cost(track.blobs[-1], blob) for blob in here] for track in open_tracks])
        linked: set[int] = set()
        if costs.size:
            for row, column in zip(*linear_sum_assignment(costs), strict=True):
                if costs[row, column] < FORBIDDEN:
                    open_tracks[row].blobs.append(here[column])
                    linked.add(int(column))
        tracks += [_Track([blob]) for column, blob in enumerate(here) if column not in linked]
    return tracks


def _cost(last: _Blob, blob: _Blob) -> float:
    """In pixels: the distance, plus what a change of colour or a doubled area is worth."""
    distance = math.hypot(blob.x - last.x, blob.y - last.y)
    if distance > MAX_JUMP:
        return FORBIDDEN
    return distance + 4.0 * (blob.color != last.color) + 4.0 * abs(math.log2(blob.area / last.area))


def _measure(track: _Track, num_frames: int) -> Found:
    """The attributes of a track, each from all its frames."""
    blobs = track.blobs
    fits = {shape: [_fit(shape, blob) for blob in blobs] for shape in SHAPES}
    overlaps = {shape: _mean_overlap(fits[shape], blobs) for shape in SHAPES}
    shape = max(SHAPES, key=lambda name: overlaps[name])
    half = float(np.median([thing.half_extent for thing in fits[shape]]))
    span = blobs[-1].frame - blobs[0].frame
    frames = [blob.frame for blob in blobs]
    dx = _slope(frames, [blob.x for blob in blobs]) * span
    dy = _slope(frames, [blob.y for blob in blobs]) * span
    low, high = SIZE_LIMITS
    return Found(
        color=_vote(blob.color for blob in blobs),
        shape=shape if overlaps[shape] >= MIN_OVERLAP else None,
        size=("small" if half < MIDDLE_SIZE else "large") if low <= half <= high else None,
        direction=_direction(dx, dy),
        half_extent=half,
        displacement=(dx, dy),
        track=tuple((blob.frame, thing.x, thing.y) for blob, thing in zip(blobs, fits[shape], strict=True)),
        area=track.total_area / len(blobs),
        overlap=overlaps[shape],
        presence=len(blobs) / num_frames,
    )


def _fit(shape: str, blob: _Blob) -> Thing:
    """The thing of this shape with the blob's area and centroid; a blur moves neither."""
    half = HALF_OF_UNIT_AREA[shape] * blob.area**0.5
    return Thing("red", shape, "small", "left", half, blob.x, blob.y - CENTROID_BELOW[shape] * half)


def _mean_overlap(things: list[Thing], blobs: list[_Blob]) -> float:
    """Soft IoU of the blobs with the renderer's coverage of `things`, averaged over the frames, at the better blur."""
    height, width = blobs[0].weight.shape
    _, coverage = render([Scene((thing,), "black") for thing in things], num_frames=1, height=height, width=width)
    seen = np.stack([blob.weight for blob in blobs])
    overlaps = []
    for blur in BLURS:
        drawn = ndimage.gaussian_filter(coverage[:, 0, 0].numpy(), (0, blur, blur))
        overlaps.append(np.mean(np.minimum(drawn, seen).sum((1, 2)) / np.maximum(drawn, seen).sum((1, 2))))
    return float(max(overlaps))


def _slope(frames: list[int], places: list[float]) -> float:
    """Pixels a frame, as the median over all pairs of frames (Theil-Sen): single bad frames do not count."""
    pairs = itertools.combinations(zip(frames, places, strict=True), 2)
    slopes = [(q - p) / (j - i) for (i, p), (j, q) in pairs]
    return float(np.median(slopes)) if slopes else 0.0


def _direction(dx: float, dy: float) -> str | None:
    """The direction of a displacement, or None if it is too short or too oblique to be one."""
    near, far = sorted((abs(dx), abs(dy)))
    if far < MIN_DISPLACEMENT or far < MIN_STRAIGHTNESS * near:
        return None
    return max(DIRECTIONS, key=lambda name: dx * DIRECTIONS[name][0] + dy * DIRECTIONS[name][1])


def match(scene: Scene, reading: Reading) -> tuple[Found | None, ...]:
    """What was found for each of the caption's things: so that most attributes are right, among equals most colours."""

    def rights(order: tuple[Found | None, ...]) -> tuple[int, int]:
        judged = [_judge(thing, seen) for thing, seen in zip(scene.things, order, strict=True)]
        return sum(sum(row.values()) for row in judged), sum(row["color"] for row in judged)

    found: list[Found | None] = [*reading.objects, *[None] * len(scene.things)]
    return max(itertools.permutations(found, len(scene.things)), key=rights)


def score(scene: Scene, reading: Reading) -> dict[str, bool | float]:
    """Which attributes of `scene` the reading has right.

    "background" and "objects.0.color", "objects.0.shape", … (in the caption's order) are right or wrong; "color",
    "shape", "size" and "direction" are shares of the things, "all" is the share of all attributes with the background,
    and "perfect" says whether that is 1. Found things are given to the caption's things by `match`; a thing that was
    not found has all its attributes wrong.
    """
    best = [_judge(thing, seen) for thing, seen in zip(scene.things, match(scene, reading), strict=True)]
    result: dict[str, bool | float] = {"background": scene.background == reading.background}
    result |= {f"objects.{i}.{name}": right for i, row in enumerate(best) for name, right in row.items()}
    rights = list(result.values())
    result |= {name: sum(row[name] for row in best) / len(best) for name in ATTRIBUTES}
    result["all"] = sum(rights) / len(rights)
    result["perfect"] = all(rights)
    return result


def _judge(thing: Thing, seen: Found | None) -> dict[str, bool]:
    return {name: seen is not None and getattr(thing, name) == getattr(seen, name) for name in ATTRIBUTES}
