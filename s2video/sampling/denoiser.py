"""One step's guided prediction for the sampler: masks, predictions, guidance."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config.guidance import GuidanceConfig
from ..guidance.equations import Predictions, combine, needs_uncond, scale_of_push
from ..guidance.forecasts import Forecasts
from ..guidance.masks import MaskSchedule
from ..models.base import Conditioning, ImageConditioning
from ..models.experts import Experts
from ..parallel.mesh import Mesh
from .forward import Lockstep, predict
from .guiders import OtherGuidance
from .passes import step_passes


class Denoiser:
    """Maps (latents, timestep, step) to the guided prediction, as `sample` calls it.

    Args:
        experts: the transformers.
        guidance: settings of CFG, S² or another method, with scales, masks and window.
        dtype: dtype of the transformer's input.
        masks: masks of S² for every step, and how often passes are computed.
        cond: conditioning of the prompt.
        uncond: conditioning of the negative prompt; None if no step needs it.
        images: image conditioning.
    """

    def __init__(
        self,
        experts: Experts,
        mesh: Mesh,
        guidance: GuidanceConfig,
        *,
        dtype: torch.dtype,
        masks: MaskSchedule,
        cond: Conditioning,
        uncond: Conditioning | None,
        images: ImageConditioning,
    ) -> None:
        self._experts = experts
        self._mesh = mesh
        self._guidance = guidance
        self._schedule = masks
        self._other = None if guidance.method == "s2" else OtherGuidance(guidance, masks.num_steps)
        self._passes = () if masks.reuse.is_exact else step_passes(guidance, masks)
        self._forecasts = Forecasts(masks.reuse)
        self._s2_scales: list[tuple[int, Tensor]] = []
        self._dtype = dtype
        self._cond = images.added_to(cond)
        self._uncond = None if uncond is None else images.added_to(uncond)
        self._images = images

    def __call__(self, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        """Return the guided prediction, float32, for noisy latents of the same shape [B, C, T, H, W]."""
        if self._schedule.reuse.is_exact:
            predictions = self.predictions(latents, timestep, self._masks(step))
        else:
            predictions = self._completed(latents, timestep, step)
        return self.guide(predictions, timestep, step)

    def _completed(self, latents: Tensor, timestep: Tensor, step: int) -> Predictions:
        """Return the predictions of a step, of which some are forecast. All ranks skip the same passes."""
        if step == self._schedule.restart:
            self._forecasts.clear()
        passes, computed = self._passes[step], None
        if passes.cond == "computed":
            masks = self._masks(step) if passes.sub == "computed" else ()
            with_uncond = passes.uncond == "computed"
            computed = self.predictions(latents, timestep, masks, with_uncond=with_uncond)
        return self._forecasts.complete(passes, self._schedule.levels[step], computed)

    def predictions(
        self, latents: Tensor, timestep: Tensor, masks: Sequence[Sequence[int]], *, with_uncond: bool = True
    ) -> Predictions:
        """Return the network's predictions: cond, uncond if λ ≠ 1, and a sub prediction for each mask.

        Args:
            with_uncond: False leaves uncond out. With a branch axis, all ranks then share the tokens of cond.
        """
        guidance = self._guidance
        index = self._experts.index_at(timestep)
        expert = self._experts.take_turn(index)
        return predict(
            expert.model,
            self._images.model_input(latents.to(self._dtype)),
            timestep.expand(latents.shape[0], *timestep.shape),
            mesh=self._mesh if with_uncond else self._mesh.undivided(),
            cond=self._cond,
            uncond=self._uncond if with_uncond and needs_uncond(guidance.cfg_scales[index]) else None,
            masks=masks,
            lockstep=Lockstep(expert.weights, guidance.share_prefix, guidance.batch_branches),
        )

    def guide(self, predictions: Predictions, timestep: Tensor, step: int) -> Tensor:
        """Return the guided prediction, float32, from the predictions of one step; call it for the steps in order."""
        guidance = self._guidance
        cfg_scale = guidance.cfg_scales[self._experts.index_at(timestep)]
        if self._other is not None:
            return self._other.combine(predictions, step, cfg_scale=cfg_scale)
        s2_scale: float | Tensor = guidance.s2_scale
        if guidance.s2_push is not None and predictions.subs:
            s2_scale = scale_of_push(predictions, guidance.s2_push)
            self._s2_scales.append((step, s2_scale))
        return combine(
            predictions,
            cfg_scale=cfg_scale,
            s2_scale=s2_scale,
            form=guidance.form,
            rescale=guidance.rescale,
        )

    def _masks(self, step: int) -> Sequence[tuple[int, ...]]:
        return self._schedule.step(step) if self._other is None else self._other.masks(step)

    def state(self) -> dict[str, Any]:
        """Return what the guidance carries from step to step: numbers and tensors by name; empty for S² and CFG.

        With reuse, these are the predictions that forecasts start from; with `s2_push`, the ω of the steps so far.
        """
        state = self._forecasts.state() | ({} if self._other is None else self._other.state())
        if self._s2_scales:
            steps, scales = zip(*self._s2_scales, strict=True)
            state |= {"s2_scales.steps": list(steps), "s2_scales": list(scales)}
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned after an earlier step."""
        self._forecasts.load_state(state)
        self._s2_scales = list(zip(state.get("s2_scales.steps", ()), state.get("s2_scales", ()), strict=True))
        if self._other is not None:
            self._other.load_state(state)

    def s2_scales(self) -> list[tuple[int, list[float]]]:
        """Return (step, ω of each video) for the steps so far in which `s2_push` decided it."""
        return [(step, scales.tolist()) for step, scales in self._s2_scales]
