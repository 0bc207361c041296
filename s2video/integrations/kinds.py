"""The pipelines that `enable` knows, and the few facts about each that its calls do not show.

Which call is cond is found when the pipeline runs: by the name that it gives to the call, by the halves of a call for
both, or by the prompt's embeddings. What cannot be seen is how the pipeline combines its predictions.
"""

from dataclasses import dataclass
from typing import Any, Literal

from ..models.registry import FAMILIES


@dataclass(frozen=True)
class PipelineKind:
    """What `enable` has to know about a pipeline class.

    Attributes:
        place: where ω(sub − cond) is subtracted. "step": from what the scheduler is given, for pipelines that give it
            the combined prediction, in the transformer's shape. "calls": from each prediction of the step, cond, uncond
            and others, for pipelines that cut, convert or mask predictions, or have other schedulers. Their combination
            has weights that sum to one, so it moves by the same amount. All of them call cond before the others.
        one_call: one call computes uncond and cond. Then neither can be left out alone.
        steps: what tells the step. "scheduler": its step index. "row": the row of timesteps, one for each frame, of
            diffusion forcing, where each frame has a copy of the scheduler.
        all_cond: every call is cond, because the model is guidance-distilled and its pipeline has no other calls.
    """

    place: Literal["step", "calls"] = "step"
    one_call: bool = False
    steps: Literal["scheduler", "row"] = "scheduler"
    all_cond: bool = False


_STEP = PipelineKind()
_CALLS = PipelineKind(place="calls")
_BOTH = PipelineKind(one_call=True)
_BOTH_CALLS = PipelineKind(place="calls", one_call=True)
_ROWS = PipelineKind(place="calls", steps="row")

_KINDS = {
    # video
    "WanVACEPipeline": _STEP,
    "WanAnimatePipeline": _STEP,
    "WanVideoToVideoPipeline": _STEP,
    "HunyuanVideoImageToVideoPipeline": _CALLS,
    "HunyuanSkyreelsImageToVideoPipeline": _STEP,
    "SkyReelsV2Pipeline": _STEP,
    "SkyReelsV2ImageToVideoPipeline": _STEP,
    "SkyReelsV2DiffusionForcingPipeline": _ROWS,
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": _ROWS,
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": _ROWS,
    "LTX2Pipeline": _BOTH_CALLS,
    "LTX2ImageToVideoPipeline": _BOTH_CALLS,
    "MiniMaxH3ModularPipeline": PipelineKind(place="calls", all_cond=True),
    "HunyuanVideoFramepackPipeline": _STEP,
    "HeliosPipeline": _STEP,
    "HeliosPyramidPipeline": _STEP,
    "ChronoEditPipeline": _STEP,
    "CogVideoXPipeline": _BOTH,
    "CogVideoXImageToVideoPipeline": _BOTH,
    "MochiPipeline": _BOTH,
    "Kandinsky5T2VPipeline": _STEP,
    "Kandinsky5I2VPipeline": _CALLS,
    "Kandinsky6TI2VAPipeline": _CALLS,
    "LTXPipeline": _BOTH,
    "LTXImageToVideoPipeline": _BOTH_CALLS,
    "AllegroPipeline": _BOTH,
    "SanaVideoPipeline": _BOTH,
    "SanaImageToVideoPipeline": _BOTH_CALLS,
    "Cosmos2_5_PredictBasePipeline": _CALLS,
    "MotifVideoPipeline": _STEP,
    # images
    "FluxPipeline": _STEP,
    "StableDiffusion3Pipeline": _BOTH,
    "Flux2Pipeline": _CALLS,
    "Flux2KleinPipeline": _CALLS,
    "QwenImagePipeline": _STEP,
    "ZImagePipeline": _BOTH_CALLS,
    "ChromaPipeline": _STEP,
}


def known_pipelines() -> dict[str, PipelineKind]:
    """Return the pipeline classes that can be enabled: those of registered families, and others of diffusers."""
    return {family.pipeline: _STEP for family in FAMILIES} | _KINDS


def transformers(pipe: Any) -> list[Any]:
    """Return the transformers that a pipeline has now."""
    names = [name for name in pipe.components if name.startswith("transformer")]
    found = (getattr(pipe, name, None) for name in names)
    return list(dict.fromkeys(module for module in found if module is not None))  # one can be in both places
