"""Names of VAE classes in diffusers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


WAN_VAE = "AutoencoderKLWan"


HUNYUAN15_VAE = "AutoencoderKLHunyuanVideo15"
