"""What the toy computes and weighs, from config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from s2video.models.costs import Derived, Share, Work, linear


@dataclass(frozen=True)
class ToyCosts(Derived):
    num_blocks: int
    head_dim: int
    mlp_width: int
    in_channels: int
    out_channels: int
    text_dim: int
    num_heads: int = 1
    patch_size: tuple[int, int, int] = (1, 1, 1)
    joint_text = False
    num_single = 0
    time_per_token = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ToyCosts":
        width, channels = config["width"], config["in_channels"]
        return cls(config["num_layers"], width, width, channels, channels, config["text_dim"])

    def embed(self, tokens: int, num_text: int) -> Work:
        return Work(2 * self.width * (tokens * self.in_channels + num_text * self.text_dim + 1))

    def block(self, index: int, share: Share, num_text: int) -> Work:
        return Work(2 * share.tokens * self.width**2)

    def project(self, tokens: int) -> Work:
        return Work(2 * tokens * self.width * self.out_channels)

    def block_parameters(self, index: int) -> int:
        return linear(self.width, self.width)

    def root_parameters(self) -> int:
        inputs = linear(self.in_channels, self.width) + linear(self.text_dim, self.width) + linear(1, self.width)
        return inputs + linear(self.width, self.out_channels)
