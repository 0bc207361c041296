"""The nodes that ComfyUI lists."""

from typing import Any

import comfy.model_management
import comfy.utils
from comfy_api.latest import ComfyExtension, InputImpl, io

from .guidance import S2Error, Settings, guide
from .masks import MaskSpec
from .server import make_video

_LARGEST_SEED = 2**64 - 1


class S2Guidance(io.ComfyNode):
    """Adds S²-Guidance to a model: MODEL in, MODEL out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="S2Guidance",
            display_name="S²-Guidance",
            category="sampling/guidance",
            description="Runs the model once more with a few random blocks left out, and pushes the result away from "
            "that prediction (arXiv 2508.12880). Works with CFG, and at CFG 1.",
            inputs=[
                io.Model.Input("model"),
                io.Float.Input(
                    "s2_scale",
                    default=0.25,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="ω, the strength. 0: off.",
                ),
                io.Float.Input(
                    "drop_ratio",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Fraction of blocks to leave out.",
                ),
                io.Int.Input(
                    "drop_count", default=0, min=0, max=1000, tooltip="Number of blocks to leave out. 0: by drop_ratio."
                ),
                io.String.Input(
                    "never_drop",
                    default="0",
                    tooltip="Blocks that are never left out, such as 0, 29.",
                ),
                io.Float.Input(
                    "window_start", default=0.1, min=0.0, max=1.0, step=0.01, tooltip="Fraction of the steps before S²."
                ),
                io.Float.Input(
                    "window_end",
                    default=0.9,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Fraction of the steps at S²'s end.",
                ),
                io.Int.Input(
                    "num_draws",
                    default=1,
                    min=1,
                    max=16,
                    tooltip="Masks per step. Each costs a pass.",
                ),
                io.Int.Input(
                    "mask_seed",
                    default=0,
                    min=0,
                    max=_LARGEST_SEED,
                    control_after_generate=True,
                    tooltip="Masks' seed.",
                ),
                io.Int.Input(
                    "steps_before",
                    default=0,
                    min=0,
                    max=10000,
                    optional=True,
                    tooltip="Steps that another sampler did before, as start_at_step of KSampler (Advanced).",
                ),
                io.Int.Input(
                    "total_steps",
                    default=0,
                    min=0,
                    max=10000,
                    optional=True,
                    tooltip="Steps of all samplers together, as steps of KSampler (Advanced). 0: none follows.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        s2_scale: float,
        never_drop: str,
        mask_seed: int,
        steps_before: int = 0,
        total_steps: int = 0,
        **mask: Any,
    ) -> io.NodeOutput:
        """Return a copy of the model to which S² is added.

        Raises:
            S2Error: an input is out of its range; the message names it.
        """
        patched = model.clone()
        settings = Settings(s2_scale, _spec(never_drop=never_drop, **mask), mask_seed, steps_before, total_steps)
        patched.set_model_sampler_post_cfg_function(guide(settings))
        return io.NodeOutput(patched)


class S2Server(io.ComfyNode):
    """Makes a video on a server of s2video, which may have several GPUs, and returns it as VIDEO."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="S2VideoServer",
            display_name="S²-Guidance on a server",
            category="sampling/guidance",
            description="Sends the prompt to `s2video serve`, on this machine or another one, and waits for the video. "
            "A key comes from the environment variable S2VIDEO_API_KEY.",
            inputs=[
                io.String.Input("server", default="http://127.0.0.1:8000", tooltip="Address of s2video serve."),
                io.String.Input("prompt", multiline=True),
                io.String.Input("negative_prompt", multiline=True, default=""),
                io.String.Input("model", default="", tooltip="One of the server's names. Empty: its first."),
                io.Int.Input("width", default=832, min=16, max=8192, step=16),
                io.Int.Input("height", default=480, min=16, max=8192, step=16),
                io.Float.Input("seconds", default=5.0, min=0.05, max=3600.0, step=0.05),
                io.Int.Input("steps", default=30, min=1, max=1000),
                io.Float.Input("cfg_scale", default=5.0, min=0.0, max=100.0, step=0.1, tooltip="λ; 1 is no CFG."),
                io.Float.Input("s2_scale", default=0.25, min=0.0, max=10.0, step=0.01, tooltip="ω; 0 is no S²."),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=True),
            ],
            outputs=[io.Video.Output()],
        )

    @classmethod
    def execute(cls, server: str, **asked: Any) -> io.NodeOutput:
        """Return the video.

        Raises:
            ServerError: the server refused the request, failed, or does not answer.
        """
        fields = {
            "prompt": asked["prompt"],
            "negative_prompt": asked["negative_prompt"],
            "size": f"{asked['width']}x{asked['height']}",
            "seconds": asked["seconds"],
            "seed": asked["seed"],
            "sampling": {"num_inference_steps": asked["steps"]},
            "guidance": {"cfg_scale": asked["cfg_scale"], "s2_scale": asked["s2_scale"]},
        }
        if asked["model"]:
            fields["model"] = asked["model"]
        bar = comfy.utils.ProgressBar(100)
        check = comfy.model_management.throw_exception_if_processing_interrupted
        return io.NodeOutput(InputImpl.VideoFromFile(make_video(server, fields, bar.update_absolute, check)))


class S2Extension(ComfyExtension):
    """Tells ComfyUI the nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the nodes."""
        return [S2Guidance, S2Server]


async def comfy_entrypoint() -> S2Extension:
    """Return the extension; ComfyUI calls this when it loads the pack."""
    return S2Extension()


def _spec(
    *, drop_ratio: float, drop_count: int, never_drop: str, window_start: float, window_end: float, num_draws: int
) -> MaskSpec:
    if window_start > window_end:
        raise S2Error(
            f"S2Guidance: expected window_start ≤ window_end, got {window_start} and {window_end}; exchange them"
        )
    return MaskSpec(
        drop_ratio=drop_ratio,
        drop_count=drop_count or None,
        never_drop=_indices(never_drop),
        # Sliders give 0.30000000000000004 for 0.3, and masks are drawn by exact decimals.
        window=(round(window_start, 4), round(window_end, 4)),
        num_draws=num_draws,
    )


def _indices(text: str) -> tuple[int, ...]:
    parts = text.replace(",", " ").split()
    if not all(part.isdecimal() and len(part) < 6 for part in parts):
        raise S2Error(f"S2Guidance: expected block numbers from 0 in never_drop, such as 0, 1, 29, got {text[:80]!r}")
    return tuple(sorted({int(part) for part in parts}))
