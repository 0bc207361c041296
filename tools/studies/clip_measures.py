"""What is measured of one clip beside its features. Knows pixels, scenes and the detector, no model.

Dimension letters: T frames, H rows, W columns.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from shapes.detector import Found, Reading, match, read_scene, score
from shapes.world import ATTRIBUTES, COLORS, Scene
from torch import Tensor

CORE = 0.35  # of a thing's half extent: a disc that lies inside each of the shapes
REACH, MARGIN = 1.5, 2.0  # half extents and pixels around a thing's centre, beyond which all is background


def measure_clip(scene: Scene, frames: Tensor) -> dict[str, Any]:
    """Scores and measures of a clip [T, H, W, 3] in [0, 1] that should show `scene`; None where there is nothing.

    "scores": of `detector.score`; "swapped": see `swapped`; "flicker", "static_flicker": mean absolute difference of
    successive frames, of all pixels and of those where no thing ever is, in [0, 1] (VBench's temporal flickering is
    1 − flicker); "saturation": chroma of the things' pixels over that of the colours they were read as;
    "num_extra": things too many.
    """
    reading = read_scene(frames.permute(3, 0, 1, 2) * 2 - 1, len(scene.things))
    pixels = frames.numpy()
    background = ~_near(reading.objects, pixels.shape[1:3])
    return {
        "scores": score(scene, reading),
        "swapped": swapped(scene, reading),
        "flicker": flicker(pixels),
        "static_flicker": flicker(pixels, background) if background.any() else None,
        "saturation": saturation(pixels, reading.objects),
        "num_extra": reading.num_extra,
    }


def swapped(scene: Scene, reading: Reading) -> dict[str, bool]:
    """Of two things: for each attribute in which they differ, whether each has the other's value. Else empty."""
    if len(scene.things) != 2:
        return {}
    seen = match(scene, reading)
    values = {name: [getattr(thing, name) for thing in scene.things] for name in ATTRIBUTES}
    return {
        name: [getattr(found, name, None) for found in seen] == [second, first]
        for name, (first, second) in values.items()
        if first != second
    }


def flicker(pixels: np.ndarray, where: np.ndarray | None = None) -> float:
    """Mean absolute difference of successive frames of [T, H, W, 3]; `where` [H, W] says at which pixels."""
    differences = np.abs(np.diff(pixels, axis=0))
    return float((differences if where is None else differences[:, where]).mean())


def saturation(pixels: np.ndarray, objects: Sequence[Found]) -> float | None:
    """Chroma (largest less smallest of R, G, B) in the middle of each thing over its named colour's; their mean."""
    ratios = []
    for found in objects:
        if found.color is None:
            continue
        chroma = np.concatenate(
            [
                np.ptp(pixels[frame][_disc(pixels.shape[1:3], x, y, CORE * found.half_extent)], axis=-1)
                for frame, x, y in found.track
            ]
        )
        if len(chroma):
            ratios.append(chroma.mean() / np.ptp(COLORS[found.color]))
    return float(np.mean(ratios)) if ratios else None


def _near(objects: Sequence[Found], size: tuple[int, ...]) -> np.ndarray:
    """Pixels [H, W] near a thing in any frame."""
    near = np.zeros(size, bool)
    for found in objects:
        for _, x, y in found.track:
            near |= _disc(size, x, y, REACH * found.half_extent + MARGIN)
    return near


def _disc(size: tuple[int, ...], x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[: size[0], : size[1]]
    return (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2
