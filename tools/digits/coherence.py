"""What a few passes tell of a network: sizes and angles of the differences that guidance adds up."""

import torch
from torch import Tensor

from s2video.guidance.masks import MaskSpec, dropped_blocks

from .data import CLASSES, Digits
from .transformer import NO_CLASS, DigitTransformer

LEVELS = (0.8, 0.65, 0.5, 0.35, 0.2)
SAMPLES, MASKS = 100, 8


@torch.inference_mode()
def coherence(network: DigitTransformer, held_out: Digits) -> dict[str, float]:
    """Return means over five noise levels, 100 real images and eight masks that drop one block.

    Keys: `cfg` |cond − uncond| / |cond|, `deviation` |sub − cond| / |cond|, `between_masks` the cosine of two masks'
    deviations, `with_uncond` the cosine of sub − cond and uncond − cond, `common` the share of a deviation's square
    that its mean over samples of a class explains.
    """
    images, labels = held_out.images[:SAMPLES], held_out.labels[:SAMPLES]
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {}
    spec, blocks = MaskSpec(drop_count=1), network.shape.blocks
    masks = [dropped_blocks(spec, num_blocks=blocks, seed=1, step=index) for index in range(MASKS)]
    for level in LEVELS:
        t = torch.full((SAMPLES,), level)
        x = (1 - level) * images + level * torch.randn(images.shape, generator=generator)
        cond = network(x, t, labels).flatten(1)
        uncond = network(x, t, torch.full_like(labels, NO_CLASS)).flatten(1)
        deviations = torch.stack([network(x, t, labels, mask).flatten(1) - cond for mask in masks])  # [masks, B, 256]
        for name, value in _numbers(cond, uncond, deviations, labels, masks).items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _numbers(
    cond: Tensor, uncond: Tensor, deviations: Tensor, labels: Tensor, masks: list[tuple[int, ...]]
) -> dict[str, float]:
    unit = torch.nn.functional.normalize(deviations, dim=-1)
    pairs = [(unit[a] * unit[b]).sum(-1).mean() for a in range(MASKS) for b in range(a) if masks[a] != masks[b]]
    away = torch.nn.functional.normalize(uncond - cond, dim=-1)
    means = torch.stack([deviations[:, labels == label].mean(1) for label in range(CLASSES)], 1)  # [masks, 10, 256]
    return {
        "cfg": float(((cond - uncond).norm(dim=1) / cond.norm(dim=1)).mean()),
        "deviation": float((deviations.norm(dim=-1) / cond.norm(dim=1)).mean()),
        "between_masks": float(torch.stack(pairs).mean()),
        "with_uncond": float((unit * away).sum(-1).mean()),
        "common": float(means[:, labels].square().sum() / deviations.square().sum()),
    }
