"""The transformers of a checkpoint, each with its own part of the denoising. Most checkpoints have one.

Wan 2.2 A14B has two: one for high noise, and one that takes over below a boundary. Knows no sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..parallel.weights import BlockWeights
from .base import BlockModel


@dataclass(frozen=True)
class Expert:
    """One transformer, and what brings its blocks' weights.

    Attributes:
        module: that of which `model` is a view.
    """

    model: BlockModel
    weights: BlockWeights
    module: nn.Module


class Experts:
    """One or two transformers of the same number of blocks.

    Args:
        boundary: the timestep below which the second takes over; None where there is one.
        device: where the one is brought whose turn it is, while the other rests on the CPU; None: all stay where they
            are.
    """

    def __init__(
        self, experts: Sequence[Expert], *, boundary: float | None = None, device: torch.device | None = None
    ) -> None:
        assert (len(experts) == 2) == (boundary is not None)
        self._experts = tuple(experts)
        self._boundary = boundary
        self._device = device
        self._present: int | None = None  # on the device; None: not known yet

    @property
    def num_blocks(self) -> int:
        return self._experts[0].model.num_blocks

    def index_at(self, timestep: Tensor) -> int:
        """Whose turn it is. The scheduler's own timestep is compared, as diffusers does it: precision counts."""
        return int(self._boundary is not None and not timestep >= self._boundary)

    def take_turn(self, index: int) -> Expert:
        """That one, ready to run."""
        expert = self._experts[index]
        if self._device is not None and self._present != index:
            for other in self._experts:
                if other is not expert:  # it leaves first, for there may be no room for both
                    other.module.to("cpu")
            expert.module.to(self._device)
            self._present = index
        return expert
