"""A MiniMax-H3 checkpoint in miniature, with random weights, in the folder format of the real one.

Five heads, wider together than the state, and 599 rows of sound and picture: nothing divides by 2 or by 3. Channels of
latents are those of the real model, because diffusers' blocks have them for a default.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLMiniMaxH3,
    AutoencoderKLMiniMaxH3Audio,
    MiniMaxH3Scheduler,
    MiniMaxH3Transformer3DModel,
)
from diffusers.modular_pipelines.minimax_h3.before_denoise import (
    MiniMaxH3PrepareLayoutStep,
    MiniMaxH3SetTimestepsStep,
    patchify_video_latents,
)
from diffusers.modular_pipelines.minimax_h3.encoders import MiniMaxH3TextEncoderStep
from diffusers.modular_pipelines.minimax_h3.modular_blocks_minimax_h3 import MiniMaxH3CoreDenoiseStep
from einops import rearrange
from tiny_hunyuan15 import build_tokenizer
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from s2video.config.run import RunConfig, build_config
from s2video.decoding.sound import join_sound, split_sound
from s2video.models.base import Conditioning
from s2video.models.minimax_h3.shape import sound_shape

NUM_BLOCKS = 5
TEXT_DIM, NUM_TEXT = 32, 7
CHANNELS, SOUND_CHANNELS = 24, 32
SOUND = sound_shape(SOUND_CHANNELS)
SIZE = {"width": 160, "height": 32, "num_frames": 124}  # latents 37 x 2 x 10, tokens 37 x 1 x 5, and 2 x 207 of sound
LATENT_FRAMES = 37 + 28  # the sound in 28 more of 24 x 2 x 10 numbers
MAX_SEQUENCE_LENGTH = 64
SAMPLE_RATE = 4000


def build_transformer(num_blocks: int = NUM_BLOCKS) -> MiniMaxH3Transformer3DModel:
    torch.manual_seed(0)
    model = MiniMaxH3Transformer3DModel(
        num_attention_heads=5,
        attention_head_dim=12,
        hidden_size=40,
        num_layers=num_blocks,
        num_refiner_layers=1,
        ffn_dim=56,
        text_dim=TEXT_DIM,
        freq_dim=16,
        time_embed_hidden_dim=24,
        time_embed_dim=20,
        rope_freq_dim=2,
    )
    for block in model.transformer_blocks:
        block.adaln_proj.linear.weight.data *= 3  # or blocks would do little
    return model.eval().requires_grad_(False)


def build_vae() -> AutoencoderKLMiniMaxH3:
    torch.manual_seed(0)
    vae = AutoencoderKLMiniMaxH3(
        block_out_channels=(8, 8, 8, 8),
        spatial_downsample_factors=(2, 2, 2, 2),
        temporal_downsample_factors=(1, 2, 2, 1),
        layers_per_block=1,
        norm_num_groups=4,
        decoder_num_layers=2,
        decoder_num_attention_heads=2,
        decoder_attention_head_dim=8,
        decoder_num_register_tokens=2,
        decoder_ffn_mult=2,
        latents_mean=[0.05 * i for i in range(CHANNELS)],
        latents_std=[0.5 + 0.02 * i for i in range(CHANNELS)],
    )
    for block in vae.decoder.transformer_blocks:
        for scale in (block.scale1, block.scale2):  # zero, so that blocks would do nothing
            scale.data += 0.5
    return vae.eval().requires_grad_(False)


def build_sound_vae() -> AutoencoderKLMiniMaxH3Audio:
    """100 samples a latent, which is 4000 a second."""
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", "`torch.nn.utils.weight_norm` is deprecated", FutureWarning)
    vae = AutoencoderKLMiniMaxH3Audio(
        encoder_dim=2,
        encoder_rates=(2, 2, 5, 5),
        latent_dim=64,
        num_attention_heads=2,
        decoder_dim=32,
        decoder_rates=(5, 5, 2, 2),
        decoder_kernel_sizes=(9, 9, 4, 4),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3),),
        sampling_rate=SAMPLE_RATE,
        latents_mean=[0.03 * i for i in range(SOUND_CHANNELS)],
        latents_std=[1.0 - 0.01 * i for i in range(SOUND_CHANNELS)],
    )
    return vae.eval().requires_grad_(False)


def build_text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen3VLForConditionalGeneration:
    """With the least number of layers, of which the transformer reads the last but one's output."""
    torch.manual_seed(0)
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_DIM,
            "intermediate_size": 32,
            "num_hidden_layers": 51,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "initializer_range": 0.1,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": TEXT_DIM,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        **{"image_token_id": 0, "video_token_id": 1, "vision_start_token_id": 2, "vision_end_token_id": 2},
    )
    return Qwen3VLForConditionalGeneration(config).eval()


def build_checkpoint(folder: Path) -> Path:
    tokenizer = build_tokenizer()
    components = {
        "tokenizer": tokenizer,
        "text_encoder": build_text_encoder(tokenizer),
        "transformer": build_transformer(),
        "vae": build_vae(),
        "audio_vae": build_sound_vae(),
        "scheduler": MiniMaxH3Scheduler(shift=12.0),
        "audio_scheduler": MiniMaxH3Scheduler(shift=3.0),
    }
    index: dict[str, Any] = {"_class_name": "MiniMaxH3ModularPipeline", "_blocks_class_name": "MiniMaxH3Blocks"}
    for name, component in components.items():
        component.save_pretrained(folder / name)
        library = "diffusers" if "diffusers" in type(component).__module__ else "transformers"
        index[name] = [library, type(component).__name__, {"subfolder": name, "type_hint": None}]
    (folder / "modular_model_index.json").write_text(json.dumps(index))
    return folder


def tiny_config(checkpoint: Path, **guidance: Any) -> RunConfig:
    return build_config(
        {
            "model": {"path": str(checkpoint), "device": "cpu"},
            "sampling": {**SIZE, "num_inference_steps": 4, "max_sequence_length": MAX_SEQUENCE_LENGTH},
            "guidance": {"drop_ratio": 0.3, "cfg_scale": 1.0, "window": (0.2, 0.8), **guidance},
            "output": {"fps": 24},
        }
    )


class TextOnly:
    """In place of the processor, which needs torchvision: it only says that no token is of an image."""

    def create_mm_token_type_ids(self, input_ids: list[list[int]]) -> list[list[int]]:
        return [[0] * len(ids) for ids in input_ids]


def encoded_prompt(checkpoint: Path, prompt: str) -> dict[str, Any]:
    """What diffusers' block of the text encoder makes of a prompt."""
    pipeline = MiniMaxH3TextEncoderStep().init_pipeline()
    pipeline.update_components(
        tokenizer=Qwen2Tokenizer.from_pretrained(checkpoint / "tokenizer"),
        text_encoder=Qwen3VLForConditionalGeneration.from_pretrained(checkpoint / "text_encoder").eval(),
        processor=TextOnly(),
    )
    return dict(pipeline(prompt=prompt, output=["prompt_embeds", "text_token_tags"]))


def denoising_pipeline(checkpoint: Path) -> Any:
    """diffusers' own chain of blocks from embeddings to latents of picture and sound."""
    pipeline = MiniMaxH3CoreDenoiseStep().init_pipeline()
    pipeline.update_components(
        transformer=MiniMaxH3Transformer3DModel.from_pretrained(checkpoint / "transformer").eval(),
        **{name: MiniMaxH3Scheduler.from_pretrained(checkpoint / name) for name in ("scheduler", "audio_scheduler")},
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_pipeline(pipeline: Any, checkpoint: Path, config: RunConfig, prompt: str, seed: int) -> Tensor:
    """The latents of picture and sound that diffusers' blocks make, as the engine keeps them."""
    made = pipeline(
        **encoded_prompt(checkpoint, prompt),
        **SIZE,
        num_inference_steps=config.sampling.num_inference_steps,
        generator=torch.Generator().manual_seed(seed),
        output=["latents", "audio_latents"],
    )
    return join_sound(made["latents"], rearrange(made["audio_latents"], "c d a -> 1 (c a) d"))


def reference(checkpoint: Path, config: RunConfig, prompt: str, negative: str, seed: int) -> Tensor:
    return run_pipeline(denoising_pipeline(checkpoint), checkpoint, config, prompt, seed)


def conditioning(transformer: MiniMaxH3Transformer3DModel, seed: int) -> Conditioning:
    return Conditioning(torch.randn(2, NUM_TEXT, TEXT_DIM, generator=torch.Generator().manual_seed(seed)))


def forward(transformer: MiniMaxH3Transformer3DModel, latents: Tensor, timestep: Tensor, told: Conditioning) -> Tensor:
    """With the layout that diffusers' blocks plan; picture and sound are at two different times."""
    picture, rows = split_sound(latents, SOUND)
    shape = picture.shape[2:]
    patch = tuple(transformer.config.patch_size)
    num_text = told.text.shape[1]
    positions, tags, of_video, of_sound, of_text, *_ = MiniMaxH3PrepareLayoutStep.build_packed_sequence(
        torch.ones(num_text, dtype=torch.long), *shape, SOUND.num_latents(shape[0]), patch, 2, 2, 0
    )
    at_video, at_sound = (float(time) for time in timestep[0])
    times, time_indices = MiniMaxH3SetTimestepsStep.build_row_timesteps(
        of_video, of_sound, 0, 0, num_text, at_video, at_sound, 1.0, 1.0
    )
    video, sound = transformer(
        hidden_states=patchify_video_latents(picture, patch).unflatten(0, (len(picture), -1)),
        audio_hidden_states=rows,
        encoder_hidden_states=told.text,
        timestep=times,
        timestep_indices=time_indices,
        token_tags=tags,
        position_ids=positions,
        video_indices=of_video,
        audio_indices=of_sound,
        text_indices=of_text,
        return_dict=False,
    )
    grid = {"t": shape[0], "h": shape[1] // 2, "w": shape[2] // 2, "ph": 2, "pw": 2}
    return join_sound(rearrange(video, "b (t h w) (c ph pw) -> b c t (h ph) (w pw)", **grid), sound)
