"""The equations of S²-Guidance (arXiv 2508.12880), which combine a network's predictions into the guided one.

`uncond` = D(x_t|∅), `cond` = D(x_t|c), `sub` = D̂(x_t|c, m), the same network and condition without the blocks of mask
m. `cfg_scale` is the paper's λ, `s2_scale` its ω. Works with any parametrisation that is affine in the denoised sample
(velocity, noise, sample), like classifier-free guidance.
"""

from typing import Literal, NamedTuple

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
    predictions: Predictions, *, cfg_scale: float, s2_scale: float, form: Form = "deviation", rescale: float = 0.0
) -> Tensor:
    """Return the guided prediction, in float32.

    Eq. 1, CFG:       D = uncond + λ(cond − uncond);  without an uncond pass D = cond, which is λ = 1
    Eq. 3, naive S²:  D − (ω/N) Σᵢ (subᵢ − cond)
    Eq. 4, S²:        D − ω(sub − cond), the case N = 1
    Eq. 20, 25 (`form="original"`, preprint v1 and v2):  D − (ω/N) Σᵢ subᵢ, which shrinks the prediction by 1 − ω

    Args:
        cfg_scale: λ ≥ 0. Has no effect without an uncond prediction.
        s2_scale: ω ≥ 0. 0 gives bitwise CFG.
        rescale: fraction, in [0, 1], of the result that is scaled to cond's standard deviation per sample (diffusers'
            `guidance_rescale`).
    """
    cond = predictions.cond.float()
    if predictions.uncond is None:
        guided = cond
    else:
        uncond = predictions.uncond.float()
        guided = uncond + cfg_scale * (cond - uncond)
    if s2_scale and predictions.subs:
        weight = s2_scale / len(predictions.subs)
        for sub in predictions.subs:
            guided = guided - weight * (sub.float() - cond if form == "deviation" else sub.float())
    if rescale:
        guided = rescale_noise_cfg(guided, cond, guidance_rescale=rescale)
    return guided


def needs_uncond(cfg_scale: float) -> bool:
    """Return whether an uncond pass is needed. With λ = 1 its prediction would be multiplied by zero."""
    return cfg_scale != 1
