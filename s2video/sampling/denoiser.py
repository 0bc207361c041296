"""One step's guided prediction for the sampler: masks, predictions, guidance."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config.sections import GuidanceConfig
from ..guidance.equations import Predictions, combine, needs_uncond
from ..guidance.masks import MaskSchedule
from ..models.base import Conditioning, ImageConditioning
from ..models.experts import Experts
from ..parallel.mesh import Mesh
from .forward import Lockstep, predict
from .guiders import OtherGuidance


class Denoiser:
    """Maps (latents, timestep, step) to the guided prediction, as `sample` calls it.

    Args:
        experts: the transformers.
        guidance: settings of CFG, S² or another method, with scales, masks and window.
        dtype: dtype of the transformer's input.
        masks: masks of S² for every step.
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
        self._dtype = dtype
        self._cond = images.added_to(cond)
        self._uncond = None if uncond is None else images.added_to(uncond)
        self._images = images

    def __call__(self, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        """Return the guided prediction, float32, for noisy latents of the same shape [B, C, T, H, W]."""
        return self.guide(self.predictions(latents, timestep, self._masks(step)), timestep, step)

    def predictions(self, latents: Tensor, timestep: Tensor, masks: Sequence[Sequence[int]]) -> Predictions:
        """Return the network's predictions: cond, uncond if λ ≠ 1, and a sub prediction for each mask."""
        guidance = self._guidance
        index = self._experts.index_at(timestep)
        expert = self._experts.take_turn(index)
        return predict(
            expert.model,
            self._images.model_input(latents.to(self._dtype)),
            timestep.expand(latents.shape[0]),
            mesh=self._mesh,
            cond=self._cond,
            uncond=self._uncond if needs_uncond(guidance.cfg_scales[index]) else None,
            masks=masks,
            lockstep=Lockstep(expert.weights, guidance.share_prefix, guidance.batch_branches),
        )

    def guide(self, predictions: Predictions, timestep: Tensor, step: int) -> Tensor:
        """Return the guided prediction, float32, from the predictions of one step; call it for the steps in order."""
        guidance = self._guidance
        cfg_scale = guidance.cfg_scales[self._experts.index_at(timestep)]
        if self._other is not None:
            return self._other.combine(predictions, step, cfg_scale=cfg_scale)
        return combine(
            predictions,
            cfg_scale=cfg_scale,
            s2_scale=guidance.s2_scale,
            form=guidance.form,
            rescale=guidance.rescale,
        )

    def _masks(self, step: int) -> Sequence[tuple[int, ...]]:
        return self._schedule.step(step) if self._other is None else self._other.masks(step)

    def state(self) -> dict[str, Any]:
        """Return what the guidance carries from step to step: numbers and tensors by name; empty for S² and CFG."""
        return {} if self._other is None else self._other.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned after an earlier step."""
        if self._other is not None:
            self._other.load_state(state)
