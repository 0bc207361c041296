"""One step's guided prediction for the sampler: masks, predictions, guidance. Knows no schedule and no files."""

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
    """Maps (latents, timestep, step) to the guided prediction, as `sample` asks for it.

    Args:
        experts: the transformers.
        guidance: CFG and S², with their scales, masks and window.
        dtype: of what the transformer sees.
        masks: of S², for every step.
        memory: see `Rival`.
        cond: what the prompt says.
        uncond: what the negative prompt says; None where no step needs it.
        given: what images fix.
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
        self._rival = None if guidance.method == "s2" else Rival(guidance, masks.num_steps, memory)
        self._dtype = dtype
        self._cond = given.told(cond)
        self._uncond = None if uncond is None else given.told(uncond)
        self._given = given

    def __call__(self, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        """Noisy latents [B, C, T, H, W] -> the guided prediction, float32 of that shape."""
        return self.guide(self.predictions(latents, timestep, self._masks(step)), timestep, step)

    def predictions(self, latents: Tensor, timestep: Tensor, masks: Sequence[Sequence[int]]) -> Predictions:
        """What the network says of these latents: cond, uncond where λ ≠ 1, and a sub prediction for each mask."""
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
        """The guided prediction, float32, from those of one step; steps come in order."""
        guidance = self._guidance
        cfg_scale = guidance.cfg_scales[self._experts.index_at(timestep)]
        if self._rival is not None:
            return self._rival.combine(predictions, step, cfg_scale=cfg_scale)
        return combine(
            predictions,
            cfg_scale=cfg_scale,
            s2_scale=guidance.s2_scale,
            form=guidance.form,
            rescale=guidance.rescale,
        )

    def _masks(self, step: int) -> Sequence[tuple[int, ...]]:
        return self._schedule.step(step) if self._rival is None else self._rival.masks(step)
