"""The VAE classes that can be decoded, by their names in diffusers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


WAN_VAE = "AutoencoderKLWan"


HUNYUAN15_VAE = "AutoencoderKLHunyuanVideo15"
