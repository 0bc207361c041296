"""Costs of Wan VACE's transformers, from config.json. Dimension letters as in `models.costs`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..costs import Share, Work, linear
from ..wan.costs import WanCosts

_DEFAULT_LAYERS = (0, 5, 10, 15, 20, 25, 30, 35)  # of diffusers' constructor


@dataclass(frozen=True)
class WanVaceCosts(WanCosts):
    """Costs of `WanVACETransformer3DModel`.

    Attributes:
        control_channels: C_control.
        hints_at: indices of the blocks after which a hint is added.
    """

    control_channels: int
    hints_at: tuple[int, ...] = _DEFAULT_LAYERS

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> WanVaceCosts:
        plain = WanCosts.from_config({**config, "image_dim": None})
        return cls(
            **asdict(plain),
            hints_at=tuple(config.get("vace_layers", _DEFAULT_LAYERS)),
            control_channels=config.get("vace_in_channels", 96),
        )

    def embed(self, tokens: int, num_text: int) -> Work:
        """Return the FLOPs of the embedders, with those of the control's patches."""
        work = super().embed(tokens, num_text)
        control = 2 * self.width * tokens * math.prod(self.patch_size) * self.control_channels
        return work._replace(linear=work.linear + control)

    def control_block(self, number: int, share: Share, num_text: int) -> Work:
        """Return the FLOPs of a control block: those of a block, and a projection of the hint; the first has two."""
        work = self.block(0, share, num_text)
        projections = 2 if number == 0 else 1
        return work._replace(linear=work.linear + projections * 2 * share.tokens * self.width**2)

    def control_parameters(self, number: int) -> int:
        return self.block_parameters(0) + (2 if number == 0 else 1) * linear(self.width, self.width)

    def root_parameters(self) -> int:
        patches = linear(math.prod(self.patch_size) * self.control_channels, self.width)
        return super().root_parameters() + patches
