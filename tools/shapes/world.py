"""Clips of one or two moving shapes, with captions: what the embedded models are trained on and judged by.

A scene is data (`Scene`, `Thing`); `caption` puts it into words and `render` into pixels. The module knows no
model: training, evaluation and tests all draw from it.

Dimension letters: B clips, T frames, H rows, W columns, O objects.
"""

import itertools
import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

NUM_FRAMES, HEIGHT, WIDTH = 17, 64, 64

COLORS = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.65, 0.15),
    "blue": (0.12, 0.25, 0.95),
    "yellow": (0.98, 0.88, 0.10),
    "purple": (0.60, 0.10, 0.75),
    "cyan": (0.10, 0.85, 0.90),
}
BACKGROUNDS = {"black": (0.04, 0.04, 0.04), "gray": (0.45, 0.45, 0.45), "white": (0.95, 0.95, 0.95)}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": (7.0, 8.0), "large": (12.0, 13.0)}  # half extent in pixels, drawn uniformly
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}  # pixels a frame

ATTRIBUTES = ("color", "shape", "size", "direction")


@dataclass(frozen=True)
class Thing:
    """One moving shape. `half_extent` and the centre (`x`, `y`) of the first frame are in pixels."""

    color: str
    shape: str
    size: str
    direction: str
    half_extent: float = 0.0
    x: float = 0.0
    y: float = 0.0

    @property
    def key(self) -> tuple[str, str, str]:
        return self.color, self.shape, self.direction


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    background: str


def _held_out() -> frozenset[tuple[str, str, str]]:
    """12 of the 72 (colour, shape, direction) triples, so that every pair of values is still seen in training."""
    triples = itertools.product(enumerate(COLORS), enumerate(SHAPES), enumerate(DIRECTIONS))
    return frozenset((c, s, d) for (i, c), (j, s), (k, d) in triples if (i + 2 * j + 3 * k) % 6 == 0)


HELD_OUT = _held_out()


def _extents(thing: Thing) -> tuple[float, float]:
    """Half width and half height of the drawn shape: a square is drawn a little smaller, to look the same size."""
    half = thing.half_extent * (0.88 if thing.shape == "square" else 1.0)
    return half, half


def _place(rng: random.Random, things: list[Thing]) -> tuple[Thing, ...] | None:
    """Start positions at which all things stay inside the picture and never touch; None where the draw failed."""
    placed: list[Thing] = []
    for thing in things:
        half = rng.uniform(*SIZES[thing.size])
        thing = Thing(*thing.key[:2], thing.size, thing.direction, half)
        (dx, dy), (ex, ey) = DIRECTIONS[thing.direction], _extents(thing)
        travel = NUM_FRAMES - 1
        low_x, high_x = ex + 1 + max(0.0, -dx * travel), WIDTH - 1 - ex - max(0.0, dx * travel)
        low_y, high_y = ey + 1 + max(0.0, -dy * travel), HEIGHT - 1 - ey - max(0.0, dy * travel)
        x, y = rng.uniform(low_x, high_x), rng.uniform(low_y, high_y)
        thing = Thing(thing.color, thing.shape, thing.size, thing.direction, half, x, y)
        if any(_touch(thing, other) for other in placed):
            return None
        placed.append(thing)
    return tuple(placed)


def _touch(a: Thing, b: Thing, gap: float = 2.0) -> bool:
    (ax, ay), (bx, by) = _extents(a), _extents(b)
    (adx, ady), (bdx, bdy) = DIRECTIONS[a.direction], DIRECTIONS[b.direction]
    for t in range(NUM_FRAMES):
        near_x = abs((a.x + adx * t) - (b.x + bdx * t)) < ax + bx + gap
        near_y = abs((a.y + ady * t) - (b.y + bdy * t)) < ay + by + gap
        if near_x and near_y:
            return True
    return False


def _inside(thing: Thing) -> bool:
    (dx, dy), (ex, ey) = DIRECTIONS[thing.direction], _extents(thing)
    return all(
        low + 1 <= value <= size - 1 - low
        for t in (0, NUM_FRAMES - 1)
        for value, low, size in ((thing.x + dx * t, ex, WIDTH), (thing.y + dy * t, ey, HEIGHT))
    )


def variants(scene: Scene, index: int, attribute: str, rng: random.Random) -> list[Scene]:
    """The scene with one attribute of thing `index` set to each of its values that keep it a training scene.

    All else stays, the place halfway through included. Values that would give a held-out triple, a colour twice, a
    shape outside the picture or two that touch are left out, so there may be fewer than the attribute has.
    """
    thing, others = scene.things[index], [t for i, t in enumerate(scene.things) if i != index]
    values = {"color": COLORS, "shape": SHAPES, "size": SIZES, "direction": DIRECTIONS}[attribute]
    scenes = []
    for value in values:
        new = replace(thing, **{attribute: value})
        if attribute == "size" and value != thing.size:
            new = replace(new, half_extent=rng.uniform(*SIZES[value]))
        half_way = (NUM_FRAMES - 1) / 2
        (dx, dy), (new_dx, new_dy) = DIRECTIONS[thing.direction], DIRECTIONS[new.direction]
        new = replace(new, x=thing.x + (dx - new_dx) * half_way, y=thing.y + (dy - new_dy) * half_way)
        taken = any(new.color == other.color or _touch(new, other) for other in others)
        if new.key not in HELD_OUT and not taken and _inside(new):
            things = tuple(new if i == index else t for i, t in enumerate(scene.things))
            scenes.append(Scene(things, scene.background))
    return scenes


def sample_scene(rng: random.Random, *, num_things: int, held_out: bool = False) -> Scene:
    """A random scene of 1 or 2 things, of different colours where there are two.

    `held_out=False` draws only triples seen in training; `held_out=True` only triples from `HELD_OUT`.
    """
    while True:
        things: list[Thing] = []
        colors = rng.sample(list(COLORS), num_things)
        for color in colors:
            while True:
                thing = Thing(color, rng.choice(SHAPES), rng.choice(list(SIZES)), rng.choice(list(DIRECTIONS)))
                if (thing.key in HELD_OUT) == held_out:
                    break
            things.append(thing)
        background = rng.choice(list(BACKGROUNDS))
        for _ in range(50):  # some pairs of large shapes fit at few places only
            placed = _place(rng, things)
            if placed is not None:
                return Scene(placed, background)


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """The scene in plain English. With `rng`, one caption in ten leaves some of the optional words out.

    >>> caption(Scene((Thing("red", "circle", "small", "left"),), "gray"))
    'a small red circle moving left on a gray background'
    """
    sparse = rng is not None and rng.random() < 0.1

    def keep() -> bool:
        return not sparse or (rng is not None and rng.random() < 0.5)

    phrases = []
    for thing in scene.things:
        words = ["a", thing.size] if keep() else ["a"]
        words += [thing.color, thing.shape]
        words += ["moving", thing.direction] if keep() else []
        phrases.append(" ".join(words))
    text = " and ".join(phrases)
    return f"{text} on a {scene.background} background" if keep() else text


def render(
    scenes: list[Scene], *, num_frames: int = NUM_FRAMES, height: int = HEIGHT, width: int = WIDTH
) -> tuple[Tensor, Tensor]:
    """Anti-aliased clips: video [B, 3, T, H, W] in [-1, 1], and coverage of the shapes [B, 1, T, H, W] in [0, 1].

    A pixel's coverage is its signed distance to the outline, clamped to half a pixel on either side.
    """
    rows = torch.arange(height).float().view(1, -1, 1) + 0.5
    columns = torch.arange(width).float().view(1, 1, -1) + 0.5
    frames = torch.arange(num_frames).float().view(-1, 1, 1)
    videos, coverages = [], []
    for scene in scenes:
        video = torch.tensor(BACKGROUNDS[scene.background]).view(3, 1, 1, 1).expand(3, num_frames, height, width)
        union = torch.zeros(num_frames, height, width)
        for thing in scene.things:
            dx, dy = DIRECTIONS[thing.direction]
            covered = coverage(thing, columns - thing.x - dx * frames, rows - thing.y - dy * frames)
            color = torch.tensor(COLORS[thing.color]).view(3, 1, 1, 1)
            video = video * (1 - covered) + color * covered
            union = torch.maximum(union, covered)
        videos.append(video)
        coverages.append(union[None])
    return torch.stack(videos) * 2 - 1, torch.stack(coverages)


def coverage(thing: Thing, x: Tensor, y: Tensor) -> Tensor:
    """Share in [0, 1] of each pixel that the shape covers; `x`, `y`: pixel centres relative to the shape's centre."""
    half, _ = _extents(thing)
    if thing.shape == "circle":
        distance = (x.square() + y.square()).sqrt() - half
    elif thing.shape == "square":
        distance = torch.maximum(x.abs(), y.abs()) - half
    else:  # an upright isosceles triangle, as wide as it is high: base below, two flanks of slope 2
        flank = (2 * x.abs() - y - half) / 5**0.5
        distance = torch.maximum(flank, y - half)
    return (0.5 - distance).clamp(0, 1)
