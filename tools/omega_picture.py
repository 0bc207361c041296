"""Draws what ω does: the middle frame of a clip for growing ω, and where it differs from ω = 0.

    python tools/omega_picture.py -o docs/images/omega.png

The embedded model; in a row, the same noise and the same masks. Below each row of frames, the absolute
difference from the first column, three times as bright. Exit codes: 0 done, 2 the input cannot be used.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from s2video.engine.engine import Engine
from s2video.errors import InputError
from s2video.models.recipes import load_model_config
from s2video.system.files import atomic_path

PROMPT = "a large green triangle moving up and a small yellow circle moving right on a black background"
OMEGAS, BRIGHTER = (0.0, 0.25, 1.0, 2.0), 3
SCALE, GAP, LABEL, HEADING = 3, 4, 132, 26  # SCALE: px per pixel; the others in px


def frames(engine: Engine, scale: float, seed: int) -> list[Tensor]:
    """Return the middle frame [H, W, 3], in [0, 1], for each ω."""
    made = []
    for omega in OMEGAS:
        changed = engine.with_guidance(cfg_scale=scale, s2_scale=omega)
        video = torch.cat(list(changed.decode(changed.sample([PROMPT], [seed], mask_seed=seed))))
        made.append(video[len(video) // 2].cpu())
    return made


def draw(rows: dict[int, list[Tensor]]) -> Image.Image:
    """Return the picture of the frames of each seed."""
    side = rows[next(iter(rows))][0].shape[0] * SCALE + GAP
    sheet = Image.new("RGB", (LABEL + len(OMEGAS) * side, HEADING + 2 * len(rows) * side), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(findfont("DejaVu Sans"), 14)  # it has Greek letters
    for column, omega in enumerate(OMEGAS):
        pen.text((LABEL + column * side + side // 2, HEADING // 2), f"ω = {omega:g}", "black", font, anchor="mm")
    for row, (seed, made) in enumerate(rows.items()):
        top = HEADING + 2 * row * side
        pen.text((8, top + side // 2), f"seed {seed}", "black", font, anchor="lm")
        pen.text((8, top + side + side // 2), f"difference\nfrom ω = 0, × {BRIGHTER}", "black", font, anchor="lm")
        for column, frame in enumerate(made):
            left = LABEL + column * side
            sheet.paste(_enlarged(frame), (left, top))
            sheet.paste(_enlarged((frame - made[0]).abs() * BRIGHTER), (left, top + side))
    return sheet


def _enlarged(frame: Tensor) -> Image.Image:
    pixels = (frame.clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    return Image.fromarray(pixels).resize((frame.shape[1] * SCALE, frame.shape[0] * SCALE), Image.Resampling.NEAREST)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.png")
    parser.add_argument("--scale", type=float, default=1.0, help="λ; 1 is S² alone, without CFG")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="a pair of rows each")
    args = parser.parse_args(argv)
    try:
        engine = Engine(load_model_config("shapes-wan", {}).config, progress="none")
        picture = draw({seed: frames(engine, args.scale, seed) for seed in args.seeds})
        with atomic_path(args.output) as temporary:
            picture.save(temporary, format="PNG", optimize=True)
    except InputError as error:
        print(f"omega_picture: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
