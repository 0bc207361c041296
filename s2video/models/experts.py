"""The transformers of a checkpoint, each with its own part of the denoising. Most checkpoints have one.

Wan 2.2 A14B has two: one for high noise, and one that takes over below a boundary. Knows no sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..parallel.weights import BlockWeights
from .base import BlockModel


@dataclass(frozen=True)
class Expert:
    """One transformer and what brings its blocks' weights."""

    model: BlockModel
    weights: BlockWeights


class Experts:
    """One or two transformers of the same number of blocks.

    Args:
        boundary: the timestep below which the second takes over; None where there is one.
    """

    def __init__(self, experts: Sequence[Expert], *, boundary: float | None = None) -> None:
        assert (len(experts) == 2) == (boundary is not None)
        self._experts = tuple(experts)
        self._boundary = boundary

    @property
    def num_blocks(self) -> int:
        return self._experts[0].model.num_blocks

    def index_at(self, timestep: float) -> int:
        """Whose turn it is."""
        return int(self._boundary is not None and timestep < self._boundary)

    def __getitem__(self, index: int) -> Expert:
        return self._experts[index]
