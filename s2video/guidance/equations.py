"""The equations of S²-Guidance (arXiv 2508.12880), which combine a network's predictions into the guided one.

`uncond` = D(x_t|∅), `cond` = D(x_t|c), `sub` = D̂(x_t|c, m), the same network and condition without the blocks of mask
m. `cfg_scale` is the paper's λ, `s2_scale` its ω. Works with any parametrisation that is affine in the denoised sample
(velocity, noise, sample), like classifier-free guidance.
"""

from typing import Literal, NamedTuple

import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg
from torch import Tensor

Form = Literal["deviation", "original"]


class Predictions(NamedTuple):
    """The network's predictions in one step, each [B, C, T, H, W].

    `uncond` is None if there is no such pass (λ = 1, guidance-distilled models). `subs` has one prediction for each
    mask drawn, and none outside the window.
    """

    cond: Tensor
    uncond: Tensor | None = None
    subs: tuple[Tensor, ...] = ()


def combine(
    predictions: Predictions,
    *,
    cfg_scale: float,
    s2_scale: float | Tensor,
    form: Form = "deviation",
    rescale: float = 0.0,
) -> Tensor:
    """Return the guided prediction, in float32.

    Eq. 1, CFG:       D = uncond + λ(cond − uncond);  without an uncond pass D = cond, which is λ = 1
    Eq. 3, naive S²:  D − (ω/N) Σᵢ (subᵢ − cond)
    Eq. 4, S²:        D − ω(sub − cond), the case N = 1
    Eq. 20, 25 (`form="original"`, preprint v1 and v2):  D − (ω/N) Σᵢ subᵢ, which shrinks the prediction by 1 − ω

    Args:
        cfg_scale: λ ≥ 0. Has no effect without an uncond prediction.
        s2_scale: ω ≥ 0, or one for each sample, float32 [B], from `scale_of_push`. The number 0 gives bitwise CFG.
        rescale: fraction, in [0, 1], of the result that is scaled to cond's standard deviation per sample (diffusers'
            `guidance_rescale`).
    """
    cond = predictions.cond.float()
    if predictions.uncond is None:
        guided = cond
    else:
        uncond = predictions.uncond.float()
        guided = uncond + cfg_scale * (cond - uncond)
    if isinstance(s2_scale, Tensor):
        s2_scale = s2_scale.view(-1, *(1,) * (cond.ndim - 1))
    if predictions.subs and (isinstance(s2_scale, Tensor) or s2_scale):
        weight = s2_scale / len(predictions.subs)
        for sub in predictions.subs:
            guided = guided - weight * (sub.float() - cond if form == "deviation" else sub.float())
    if rescale:
        guided = rescale_noise_cfg(guided, cond, guidance_rescale=rescale)
    return guided


def scale_of_push(predictions: Predictions, push: float) -> Tensor:
    """Return the ω of each sample with which S² moves the prediction by `push` times the norm of cond, float32 [B].

    ω = push · |cond| / |d|, where d is the mean of sub − cond over the draws. If d = 0, there is nothing to push along,
    and ω = 0. There must be a sub prediction. Norms are over whole predictions, which every rank has, and are sums by
    halves: elementwise additions in a fixed order, so that ranks get the same bits whatever their threads and devices.
    """
    cond = predictions.cond.float()
    norm = _norm(mean_deviation(predictions))
    scale = push * _norm(cond) / norm
    return torch.where(norm == 0, torch.zeros_like(scale), scale)


def mean_deviation(predictions: Predictions) -> Tensor:
    """Return the mean of sub − cond over the draws, float32 [B, C, T, H, W]. There must be a sub prediction."""
    cond, subs = predictions.cond.float(), predictions.subs
    total = subs[0].float() - cond
    for sub in subs[1:]:
        total = total + (sub.float() - cond)
    return total / len(subs)


def _norm(values: Tensor) -> Tensor:
    """Return the norm of each sample: [B, ...] -> [B]."""
    sums = values.flatten(1).square()
    while (count := sums.shape[1]) > 1:
        half = count // 2
        halves = sums[:, :half] + sums[:, half : 2 * half]
        sums = torch.cat((halves, sums[:, 2 * half :]), dim=1) if count % 2 else halves
    return sums[:, 0].sqrt()


def needs_uncond(cfg_scale: float) -> bool:
    """Return whether an uncond pass is needed. With λ = 1 its prediction would be multiplied by zero."""
    return cfg_scale != 1
