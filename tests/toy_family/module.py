"""The toy's transformer, which would be diffusers' own class: each block adds an MLP of tokens, text and time."""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn


class ToyBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Linear(width, width)

    def forward(self, hidden_states: Tensor, text: Tensor, time: Tensor) -> Tensor:
        return hidden_states + torch.tanh(self.mlp(hidden_states) + text.mean(1, keepdim=True) + time[:, None])


class ToyTransformer3DModel(ModelMixin, ConfigMixin):
    """Latents [B, C, T, H, W], timestep [B], text [B, M, D_text] -> [B, C, T, H, W]; a token is a latent cell."""

    @register_to_config
    def __init__(self, in_channels: int = 16, width: int = 8, text_dim: int = 128, num_layers: int = 4) -> None:
        super().__init__()
        self.embedder = nn.Linear(in_channels, width)
        self.text_embedder = nn.Linear(text_dim, width)
        self.time_embedder = nn.Linear(1, width)
        self.blocks = nn.ModuleList(ToyBlock(width) for _ in range(num_layers))
        self.head = nn.Linear(width, in_channels)

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Any:
        frames, height, width = hidden_states.shape[2:]
        text, time = self.text_embedder(encoder_hidden_states), self.time_embedder(timestep[:, None] / 1000)
        tokens = self.embedder(rearrange(hidden_states, "b c t h w -> b (t h w) c"))
        for block in self.blocks:
            tokens = block(tokens, text, time)
        sizes = {"t": frames, "h": height, "w": width}
        return (rearrange(self.head(tokens), "b (t h w) c -> b c t h w", **sizes),)
