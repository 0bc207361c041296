"""The guided prediction of one step, from masks, predictions and guidance. Knows no schedule and no files."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..config.sections import GuidanceConfig
from ..guidance.equations import Predictions, combine, needs_uncond
from ..guidance.masks import MaskSchedule
from ..models.base import Conditioning, Given
from ..models.experts import Experts
from ..parallel.mesh import Mesh
from .forward import predict
from .guiders import Rival


class Denoiser:
    """The `denoise` function for `sample`: maps (latents, timestep, step) to the guided prediction.

    Args:
        experts: the transformers.
        guidance: settings of CFG, S² or another method, with scales, masks and window.
        dtype: dtype of the transformer's input.
        masks: masks of S² for every step.
        memory: see `Rival`.
        cond: conditioning of the prompt.
        uncond: conditioning of the negative prompt; None if no step needs it.
        given: image conditioning.
    """

    def __init__(
        self,
        experts: Experts,
        mesh: Mesh,
        guidance: GuidanceConfig,
        *,
        dtype: torch.dtype,
        masks: MaskSchedule,
        memory: Any,
        cond: Conditioning,
        uncond: Conditioning | None,
        given: Given,
    ) -> None:
        self._experts = experts
        self._mesh = mesh
        self._guidance = guidance
        self._schedule = masks
        self._other_method = None if guidance.method == "s2" else Rival(guidance, masks.num_steps, memory)
        self._dtype = dtype
        self._cond = given.told(cond)
        self._uncond = None if uncond is None else given.told(uncond)
        self._given = given

    def __call__(self, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        """Return the guided prediction for noisy latents [B, C, T, H, W], float32 of the same shape."""
        return self.guide(self.predictions(latents, timestep, self._masks(step)), timestep, step)

    def predictions(self, latents: Tensor, timestep: Tensor, masks: Sequence[Sequence[int]]) -> Predictions:
        """Return the network's predictions: cond, uncond if λ ≠ 1, and one sub prediction for each mask."""
        guidance = self._guidance
        index = self._experts.index_at(timestep)
        expert = self._experts.take_turn(index)
        return predict(
            expert.model,
            self._given.model_input(latents.to(self._dtype)),
            timestep.expand(latents.shape[0]),
            mesh=self._mesh,
            cond=self._cond,
            uncond=self._uncond if needs_uncond(guidance.cfg_scales[index]) else None,
            masks=masks,
            weights=expert.weights,
            share_prefix=guidance.share_prefix,
            batch_branches=guidance.batch_branches,
        )

    def guide(self, predictions: Predictions, timestep: Tensor, step: int) -> Tensor:
        """Return the guided prediction of one step, in float32. Call once per step, in order."""
        guidance = self._guidance
        cfg_scale = guidance.cfg_scales[self._experts.index_at(timestep)]
        if self._other_method is not None:
            return self._other_method.combine(predictions, step, cfg_scale=cfg_scale)
        return combine(
            predictions,
            cfg_scale=cfg_scale,
            s2_scale=guidance.s2_scale,
            form=guidance.form,
            rescale=guidance.rescale,
        )

    def _masks(self, step: int) -> Sequence[tuple[int, ...]]:
        return self._schedule.step(step) if self._other_method is None else self._other_method.masks(step)
