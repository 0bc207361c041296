"""The table of docs/models.md: every published model that has a config, and what `s2video plan` says of it.

    python tools/models_table.py

Nothing is measured, and no checkpoint is read: sizes are the published ones.
"""

from pathlib import Path

from s2video.config.run import read_config
from s2video.planning.cards import CARDS
from s2video.planning.plan import Plan, make_plan
from s2video.planning.step import GIGA

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SPECIAL = {
    "wan2.1-t2v-1.3b-480p": "12 heads: any number of ranks shares them, evenly or not",
    "wan2.1-t2v-14b-720p": "the paper's second model",
    "wan2.1-t2v-1.3b-480p-s2-alone": "S² in place of CFG; not tried on these weights",
    "wan2.1-t2v-14b-720p-s2-alone": "the same",
    "wan2.1-t2v-14b-lightx2v": "the same model with a distilled LoRA, in four steps: λ = 1",
    "wan2.1-t2v-14b-causvid": "the same with another distilled LoRA, in eight steps: λ = 1",
    "wan2.1-i2v-14b-480p": "CLIP image tokens in cross-attention; the image's latents and a mask beside the noise",
    "wan2.1-i2v-14b-720p": "the same at 720p",
    "wan2.1-flf2v-14b-720p": "the same with a last image",
    "wan2.1-vace-1.3b-480p": "control video, mask, references: 15 blocks of control, never dropped, beside the 30",
    "wan2.1-vace-14b-720p": "the same, with 8 beside the 40",
    "wan2.2-t2v-a14b": "two transformers, one for high noise, one below a boundary; λ for each",
    "wan2.2-t2v-a14b-lightning": "the same, distilled to four steps: λ = 1",
    "wan2.2-t2v-a14b-lightning-lora": "the published model with that LoRA for each transformer",
    "wan2.2-i2v-a14b": "two transformers; the image's latents and a mask beside the noise, no image tokens",
    "wan2.2-ti2v-5b": "from text or from an image; a timestep for each token; VAE of 16 x 16 pixels a cell",
    "hunyuanvideo-720p": "dual and single blocks, text travels with the video; embedded guidance in place of uncond",
    "hunyuanvideo-i2v-720p": "the same; LLaMA sees the image; the first frame's tokens are modulated apart",
    "hunyuanvideo-1.5-t2v-480p": "dual blocks only; Qwen2.5-VL and, for text in quotes, ByT5; VAE of 16 x 16 pixels",
    "hunyuanvideo-1.5-t2v-720p": "the same at 720p",
    "hunyuanvideo-1.5-i2v-480p": "the same, with SigLIP image tokens, and the image's latents beside the noise",
    "hunyuanvideo-1.5-i2v-720p": "the same at 720p",
    "minimax-h3-768p": "sound is made with the picture: rows of both in one sequence; no uncond; Qwen3-VL",
}
# whose checkpoint is of the size of another one
SIZED_AS = {"wan2.2-t2v-a14b-lightning": "Wan-AI/Wan2.2-T2V-A14B-Diffusers"}
HEAD = (
    "| config | what is special | blocks | tokens | passes a step | S² | GB: 1 GPU | each of 8 | each of 8, fsdp |",
    "|---|---|---|---|---|---|---|---|---|",
)


def table() -> str:
    """Markdown: a row for each of SPECIAL."""
    return "\n".join((*HEAD, *map(row, SPECIAL)))


def row(name: str) -> str:
    """A star marks memory that an H100 of 80 GB does not have."""
    alone, without = planned(name, 1), planned(name, 1, "guidance.s2_push=null", "guidance.s2_scale=0")
    cells = (
        f"[`{name}`](../configs/{name}.yaml)",
        SPECIAL[name],
        str(alone.step.model.num_blocks),
        str(alone.step.num_tokens),
        f"{without.best.forecast.passes:.2f}",
        f"{alone.best.forecast.passes:.2f}",
        memory(alone),
        memory(planned(name, 8)),
        # a LoRA is added to whole weights only
        "–" if read_config(CONFIGS / f"{name}.yaml").model.lora else memory(planned(name, 8, "parallel.weights=fsdp")),
    )
    return f"| {' | '.join(cells)} |"


def planned(name: str, world_size: int, *overrides: str) -> Plan:
    if name in SIZED_AS:
        overrides = (*overrides, f"model.path={SIZED_AS[name]}")
    return make_plan(read_config(CONFIGS / f"{name}.yaml", overrides), world_size, CARDS["H100"])


def memory(plan: Plan) -> str:
    return f"{plan.best.forecast.memory_bytes / GIGA:.0f}" + ("" if plan.best.fits else " *")


if __name__ == "__main__":
    print(table())
