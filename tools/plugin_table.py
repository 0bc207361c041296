"""The tables of docs/plugin.md and docs/models.md on S² in diffusers: from the rows of the test matrices.

    python tools/plugin_table.py           # writes both
    python tools/plugin_table.py --check   # ends with 1 if one of them is not current

A pipeline has a row if `tests/unit/test_plugin_matrix.py` holds it against Eq. 4; nothing else gets one.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from tiny_matrix import MINIATURES, Miniature  # noqa: E402

from s2video.models.registry import FAMILIES  # noqa: E402

FOUND = {
    "name": "name of the call",
    "halves": "half of one call",
    "embeddings": "embeddings",
    "every": "every call",
}
PLACES = {False: "the scheduler's input", True: "each prediction"}

# model -> its pipelines
MODELS = {
    "Wan 2.1, 2.2": ("WanPipeline", "WanImageToVideoPipeline"),
    "Wan VACE": ("WanVACEPipeline",),
    "Wan Animate": ("WanAnimatePipeline",),
    "Wan, video to video": ("WanVideoToVideoPipeline",),
    "HunyuanVideo 1.0": ("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline"),
    "SkyReels-V1": ("HunyuanSkyreelsImageToVideoPipeline",),
    "HunyuanVideo 1.5": ("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline"),
    "SkyReels-V2": (
        "SkyReelsV2Pipeline",
        "SkyReelsV2ImageToVideoPipeline",
        "SkyReelsV2DiffusionForcingPipeline",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
    ),
    "LTX-2": ("LTX2Pipeline", "LTX2ImageToVideoPipeline"),
    "MiniMax-H3": ("MiniMaxH3ModularPipeline",),
    "HunyuanVideo FramePack": ("HunyuanVideoFramepackPipeline",),
    "Helios": ("HeliosPipeline", "HeliosPyramidPipeline"),
    "ChronoEdit": ("ChronoEditPipeline",),
    "CogVideoX": ("CogVideoXPipeline", "CogVideoXImageToVideoPipeline"),
    "Mochi": ("MochiPipeline",),
    "Kandinsky 5": ("Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline"),
    "Kandinsky 6": ("Kandinsky6TI2VAPipeline",),
    "LTX-Video": ("LTXPipeline", "LTXImageToVideoPipeline"),
    "Allegro": ("AllegroPipeline",),
    "SANA-Video": ("SanaVideoPipeline", "SanaImageToVideoPipeline"),
    "Cosmos 2.5": ("Cosmos2_5_PredictBasePipeline",),
    "Motif-Video": ("MotifVideoPipeline",),
    "Flux": ("FluxPipeline",),
    "Flux 2": ("Flux2Pipeline", "Flux2KleinPipeline"),
    "Stable Diffusion 3, 3.5": ("StableDiffusion3Pipeline",),
    "Qwen-Image": ("QwenImagePipeline",),
    "Z-Image": ("ZImagePipeline",),
    "Chroma": ("ChromaPipeline",),
}
# model -> its pipelines with a guider, in `tests/tiny_guided.py` or `tests/unit/test_guider.py`
GUIDERS = {
    "Wan 2.1, 2.2": ("WanModularPipeline", "Wan22ModularPipeline", "WanImage2VideoModularPipeline"),
    "Wan VACE": ("Wan22VaceModularPipeline",),
    "Wan Animate 2": ("WanAnimate2ModularPipeline",),
    "HunyuanVideo 1.5": (
        "HunyuanVideo15Pipeline",
        "HunyuanVideo15ImageToVideoPipeline",
        "HunyuanVideo15ModularPipeline",
    ),
    "LTX-2": ("LTX2ModularPipeline",),
    "Helios": ("HeliosModularPipeline", "HeliosPyramidModularPipeline"),
    "LTX-Video": ("LTXModularPipeline",),
    "Motif-Video": ("MotifVideoPipeline",),
    "Flux 2": ("Flux2KleinModularPipeline",),
    "Stable Diffusion 3, 3.5": ("StableDiffusion3ModularPipeline",),
    "Qwen-Image": ("QwenImageModularPipeline",),
    "Z-Image": ("ZImageModularPipeline",),
}


def pipelines_table() -> str:
    """Return the table of docs/plugin.md: a row for each pipeline of the matrix."""
    head = ("| pipeline | cond is found by | subtracted from | lists of blocks |", "|---|---|---|---|")
    return "\n".join((*head, *(_pipeline_row(name, MINIATURES[name]) for names in MODELS.values() for name in names)))


def _pipeline_row(name: str, row: Miniature) -> str:
    lists = ", ".join(f"`{name}`" for name in row.returns)
    return f"| `{name}` | {FOUND[row.found]} | {PLACES[row.is_moved]} | {lists} |"


def guiders_table() -> str:
    """Return the other table of docs/plugin.md: the pipelines with a guider."""
    rows = (f"| {model} | {', '.join(f'`{name}`' for name in names)} |" for model, names in GUIDERS.items())
    return "\n".join(("| model | pipelines with `S2Guidance` |", "|---|---|", *rows))


def models_table() -> str:
    """Return the table of docs/models.md: what each model was held against, in each of three ways to use it."""
    engine = {family.pipeline for family in FAMILIES}
    rows = []
    for model in dict.fromkeys((*MODELS, *GUIDERS)):
        names = MODELS.get(model, ())
        used = "diffusers' latents, its forward, 2 and 3 ranks" if engine & set(names) else "–"
        rows.append(f"| {model} | {used} | {_counted(names)} | {_counted(GUIDERS.get(model, ()))} |")
    return "\n".join(("| model | engine | `enable` | `S2Guidance` |", "|---|---|---|---|", *rows))


def _counted(pipelines: Sequence[str]) -> str:
    return f"Eq. 4, {len(pipelines)} pipeline{'s' * (len(pipelines) > 1)}" if pipelines else "–"


PLUGIN, MODELS_PAGE = ROOT / "docs" / "plugin.md", ROOT / "docs" / "models.md"
TABLES = ((PLUGIN, pipelines_table), (PLUGIN, guiders_table), (MODELS_PAGE, models_table))


def replaced(text: str, table: str) -> str:
    """Return a document with this table in the place of the one with the same head."""
    head = table.split("\n", 1)[0]
    start = text.index(head)
    return text[:start] + table + text[text.index("\n\n", start) :]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    old = []
    for path, table in TABLES:
        text = path.read_text(encoding="utf-8")
        if table() not in text:
            old.append(path)
            if not check:
                path.write_text(replaced(text, table()), encoding="utf-8")
    for path in old:
        print(f"{path.relative_to(ROOT)}: {'not current' if check else 'written'}")
    return int(bool(old) and check)


if __name__ == "__main__":
    sys.exit(main())
