"""Other guidance methods, for comparison with S², implemented by diffusers' guiders.

CFG-Zero* (arXiv 2503.18886), APG (2410.02416), and SLG, which with whole blocks dropped is also STG's residual form
(2411.18664). All formulas are in the guiders: they decide whether a step needs a prediction with dropped blocks, and
combine the predictions. Knows no model.
"""

from collections.abc import Mapping
from typing import Any

from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeZeroStarGuidance, SkipLayerGuidance
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer
from torch import Tensor

from ..config.guidance import GuidanceConfig
from ..guidance.equations import Predictions


class OtherGuidance:
    """The guider of `guidance.method`, for one run of denoising.

    Args:
        guidance: settings whose method is not s2.
        num_steps: of the run; windows are parts of it.
    """

    def __init__(self, guidance: GuidanceConfig, num_steps: int) -> None:
        common = {"guidance_scale": guidance.cfg_scale, "guidance_rescale": guidance.rescale}
        self._num_steps = num_steps
        self._layers: tuple[int, ...] = ()
        self._guider: Any
        if guidance.method == "cfg_zero_star":
            zero = guidance.cfg_zero_star
            self._guider = ClassifierFreeZeroStarGuidance(zero_init_steps=zero.zero_init_steps, **common)
        elif guidance.method == "apg":
            apg = guidance.apg
            self._guider = AdaptiveProjectedGuidance(
                adaptive_projected_guidance_momentum=apg.momentum,
                adaptive_projected_guidance_rescale=apg.rescale,
                eta=apg.eta,
                **common,
            )
            if apg.momentum is not None:
                self._guider.momentum_buffer = MomentumBuffer(apg.momentum)
        else:
            assert guidance.method == "slg"
            slg = guidance.slg
            self._layers = slg.layers
            self._guider = SkipLayerGuidance(
                skip_layer_guidance_scale=slg.scale,
                skip_layer_guidance_start=slg.start,
                skip_layer_guidance_stop=slg.stop,
                skip_layer_guidance_layers=list(slg.layers),
                **common,
            )

    def masks(self, step: int) -> tuple[tuple[int, ...], ...]:
        """Return the mask of this step's additional prediction; empty if the guider needs none."""
        self._begin(step)
        return (self._layers,) if self._layers and self._guider._is_slg_enabled() else ()

    def combine(self, predictions: Predictions, step: int, *, cfg_scale: float | None = None) -> Tensor:
        """Return the guided prediction of this step, in float32. Call once per step, in order.

        Args:
            predictions: predictions with one sub prediction for each of `masks(step)`.
            cfg_scale: λ of this step; None for that of the settings.
        """
        if cfg_scale is not None:
            self._guider.guidance_scale = cfg_scale
        self._begin(step)
        values = (predictions.cond, predictions.uncond, *predictions.subs)
        names = self._guider._input_predictions  # in this order
        pred: Tensor = self._guider.forward(
            **{name: None if p is None else p.float() for name, p in zip(names, values, strict=False)}
        ).pred
        return pred

    def state(self) -> dict[str, Any]:
        """Return what the guider carries from step to step: numbers and tensors by name; empty for most methods."""
        buffer = getattr(self._guider, "momentum_buffer", None)
        return {} if buffer is None else {"momentum": buffer.running_average}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned after an earlier step."""
        if "momentum" in state:
            self._guider.momentum_buffer.running_average = state["momentum"]

    def _begin(self, step: int) -> None:
        self._guider.set_state(step=step, num_inference_steps=self._num_steps, timestep=None)
