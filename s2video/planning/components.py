"""The memory of everything besides the transformer: VAE, text and image encoders; and how the transformer's weights are
stored. Knows no mesh and no card.

The numbers per pixel are peaks of the project's code on fake tensors of the published sizes, as in `memory`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..config.run import RunConfig
from ..decoding.kinds import HUNYUAN15_VAE, MINIMAX_H3_VAE, VAES
from ..errors import InputError
from ..geometry import LatentShape
from ..models.checkpoint import Checkpoint
from ..models.costs import all_parameters
from ..models.gguf_weights import GGUF, bytes_per_weight
from ..models.quantization import METHODS
from ..models.registry import read_costs
from ..models.weight_files import read_json

_TILE, _STRIDE = 256, 192  # pixels of a tile's side and from tile to tile, in diffusers' VAEs


@dataclass(frozen=True)
class Components:
    """The VAE and the encoders of a checkpoint in a run.

    Args:
        is_published: the checkpoint is a folder of published values, without weights.
    """

    config: RunConfig
    checkpoint: Checkpoint
    is_published: bool

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """The parameters of the VAEs, of all text encoders together, and of the image encoder, if any."""
        if self.is_published:
            values = read_json(self.checkpoint.folder / "parameters.json")
            return {name: int(count) for name, count in values.items()}
        weighted = self.checkpoint.family.weighted
        own = ("vae", "audio_vae", "image_encoder")
        sizes = {name: self.checkpoint.num_parameters(name) for name in weighted if name in own}
        encoders = (self.checkpoint.num_parameters(name) for name in weighted if name.startswith("text_encoder"))
        return sizes | {"text_encoder": sum(encoders)}

    @property
    def weight_bytes(self) -> float | None:
        """The bytes of one parameter of a transformer's blocks if they are quantised, otherwise None."""
        name = self.config.model.quantization
        if name == GGUF:
            return self._gguf_bytes()
        if name is not None:
            return METHODS[name].weight_bytes
        values = self.checkpoint.config("transformer").values
        if values.get("quantization_config") is None or "transformer" in self.checkpoint.named:
            return None
        costs = read_costs(values, self.checkpoint.config("transformer").path)
        root = costs.root_parameters() * item_bytes(self.config.model.dtype)
        stored = sum(file.path.stat().st_size for file in self.checkpoint.files("transformer"))
        return max(stored - root, 0) / sum(all_parameters(costs))

    def _gguf_bytes(self) -> float:
        model = self.config.model
        if self.is_published and model.transformer is None:
            raise InputError(
                "model.quantization: gguf needs the bytes of a GGUF file, got none; set model.transformer to one"
            )
        named = Checkpoint(self.checkpoint.folder, model.variant, model.source.files)
        return bytes_per_weight(named.files("transformer"), "transformer", item_bytes(model.dtype))

    @property
    def vae_bytes(self) -> float:
        """The weights of the VAE, and of that of the sound, which is in float32."""
        return self._sizes["vae"] * item_bytes(self.config.model.vae_dtype) + 4 * self._sizes.get("audio_vae", 0)

    @property
    def _image_encoder_bytes(self) -> float:
        return self._sizes.get("image_encoder", 0) * item_bytes(self.config.model.image_encoder_dtype)

    @property
    def encoder_bytes(self) -> float:
        """The weights of text and image encoders while they encode. If offloaded, one is on the device at a time."""
        model = self.config.model
        # if streamed, one layer at a time is on the device
        text = 0 if model.stream_text_encoder else self._sizes["text_encoder"] * item_bytes(model.text_encoder_dtype)
        images = self._image_encoder_bytes
        return max(text, images) if model.offload_text_encoder else text + images

    @property
    def image_encoding_bytes(self) -> float:
        """The memory to encode the first image, 0 if the checkpoint takes none.

        Wan's encoder gets a whole video, of which all frames but the images are gray: 37 numbers for each pixel and
        channel, and a copy of the video. TI2V and HunyuanVideo encode the image alone: 13 and 7.5. Control is a whole
        video, of which VACE holds that and the mask in float32, and each once more for what is kept and what is made.
        """
        info, sampling = self.checkpoint.info, self.config.sampling
        if not info.encodes_pictures:
            return 0.0
        pixels, size = sampling.width * sampling.height, item_bytes(self.config.model.vae_dtype)
        vae = self.checkpoint.config("vae").values
        if not VAES[info.vae_class].is_causal:
            numbers = 7.5 * vae.get("block_out_channels", [128])[0]
        elif info.time_per_token:
            numbers = 13 * vae.get("base_dim", 96) / (vae.get("patch_size") or 1) ** 2
        elif info.control_layers:
            numbers = 37 * vae.get("base_dim", 96) + 12 * sampling.num_frames
        else:
            numbers = 37 * vae.get("base_dim", 96) + 3 * sampling.num_frames
        return numbers * pixels * size + self._image_encoder_bytes

    def decoding_bytes(self, shape: LatentShape, world_size: int) -> float:
        """Return the peak that the first decoding rank needs in addition to the VAE's weights.

        Wan's decoder, one latent frame at a time, needs 51 numbers for each pixel and channel of its widest stage, 84
        in the residual form of TI2V: for the whole picture, a strip of its longer side, or a tile. Every other tile of
        a rank keeps 20 (24) in its feature cache. HunyuanVideo's, always with tiles, needs 9.2 for each of a tile's 17
        frames, or 6.9 in version 1.5, where a tile has all frames. The first rank also holds two copies of the frames
        that are decoded together.
        """
        sampling, vae = self.config.sampling, self.checkpoint.config("vae").values
        size, mode = item_bytes(self.config.model.vae_dtype), self.config.parallel.decode
        pixels, kind = sampling.width * sampling.height, VAES[self.checkpoint.info.vae_class]
        tile = min(pixels, _TILE**2)
        if self.checkpoint.info.vae_class == MINIMAX_H3_VAE:
            return _transformer_decoding(vae, tile, pixels, size)
        if not kind.is_causal:
            frames = sampling.num_frames if kind.tile_frames is None else min(sampling.num_frames, kind.tile_frames)
            numbers = 6.9 if self.checkpoint.info.vae_class == HUNYUAN15_VAE else 9.2
            channels = vae.get("block_out_channels", [128])[0]
            return (numbers * channels * tile + 2 * 3 * pixels) * frames * size
        channels = (vae.get("decoder_base_dim") or vae.get("base_dim", 96)) / (vae.get("patch_size") or 1) ** 2
        numbers, cached = (84, 24) if vae.get("is_residual") else (51, 20)
        if mode == "tiled":
            num_tiles = math.ceil(sampling.width / _STRIDE) * math.ceil(sampling.height / _STRIDE)
            others = math.ceil(num_tiles / world_size) - 1 if pixels > tile else 0
            frames = 2 * 3 * pixels * self.checkpoint.info.temporal_factor
            return ((numbers + others * cached) * channels * tile + frames) * size
        longer_side = max(shape.height, shape.width)
        num_ranks = 1 if mode == "serial" else min(world_size, longer_side)
        return numbers * channels * pixels * math.ceil(longer_side / num_ranks) / longer_side * size


def _transformer_decoding(vae: Mapping[str, Any], tile: int, pixels: int, size: int) -> float:
    """Return the peak of MiniMax-H3's decoder, a transformer over seven latent frames of a tile, on the first rank.

    For each token and channel, its feed-forward holds 18 numbers: the state, what is normalized, values and gates (8),
    a factor and their product (4 each). When tiles are put together, there are six clips of 28 frames: the tiles, which
    overlap, the blended ones, rows and the whole of them, and the clip before; and its 17 frames in float32.
    """
    width = vae.get("decoder_num_attention_heads", 32) * vae.get("decoder_attention_head_dim", 64)
    clip = 3 * 28 * pixels * size
    return max(18 * width * (7 * tile // 16**2) * size + 2 * clip, 6 * clip + 3 * 17 * 4 * pixels)


def item_bytes(dtype: str) -> int:
    """Return the bytes of one number."""
    return 4 if dtype == "float32" else 2
