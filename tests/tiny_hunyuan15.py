"""A HunyuanVideo 1.5 checkpoint in miniature, with random weights, in the folder format of the real one.

Five heads and 175 tokens, and prompts of different lengths: nothing divides by 2 or by 3.
"""

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from PIL import Image
from tiny import PROMPT
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    ByT5Tokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2Tokenizer,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from s2video.config import RunConfig, build_config

NUM_BLOCKS = 5
TEXT_DIM, GLYPH_DIM, IMAGE_DIM, NUM_IMAGE = 32, 24, 20, 9
CHANNELS = 4
SIZE = {"width": 112, "height": 80, "num_frames": 17}  # latents and tokens 5 x 5 x 7
MAX_SEQUENCE_LENGTH = 64
GLYPHS = f'{PROMPT}, below it "S2" and “video”'
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_transformer(**changes: Any) -> HunyuanVideo15Transformer3DModel:
    """Where images are of this size, the pipeline chooses that of the video from `target_size`."""
    torch.manual_seed(0)
    settings = {
        "in_channels": 2 * CHANNELS + 1,
        "out_channels": CHANNELS,
        "num_attention_heads": 5,
        "attention_head_dim": 12,
        "num_layers": NUM_BLOCKS,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": TEXT_DIM,
        "text_embed_2_dim": GLYPH_DIM,
        "image_embed_dim": IMAGE_DIM,
        "rope_axes_dim": (4, 4, 4),
        "target_size": 96,
    }
    return HunyuanVideo15Transformer3DModel(**{**settings, **changes}).eval().requires_grad_(False)


def build_vae() -> AutoencoderKLHunyuanVideo15:
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo15(latent_channels=CHANNELS, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1)
    return vae.eval().requires_grad_(False)


def build_image() -> Image.Image:
    pixels = torch.randint(256, (80, 112, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def build_tokenizer() -> Qwen2Tokenizer:
    """Byte-level, as Qwen's, with a token for each word that it knows: the template takes 114 before the prompt, of
    which the pipeline cuts off 108."""
    system = inspect.signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds).parameters["system_message"].default
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    learned = Tokenizer(BPE())
    learned.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    learned.train_from_iterator([system, PROMPT], trainer)
    model = json.loads(learned.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        eos_token=special[2],
        additional_special_tokens=special[1:2],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "right"  # as published
    return tokenizer


def build_text_components() -> dict[str, Any]:
    torch.manual_seed(0)
    tokenizer, tokenizer_2 = build_tokenizer(), ByT5Tokenizer()
    qwen = Qwen2_5_VLTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_DIM,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    )
    byt5 = T5Config(vocab_size=len(tokenizer_2), d_model=GLYPH_DIM, d_kv=6, d_ff=48, num_layers=1, num_heads=4)
    return {
        "tokenizer": tokenizer,
        "text_encoder": Qwen2_5_VLTextModel(qwen).eval(),
        "tokenizer_2": tokenizer_2,
        "text_encoder_2": T5EncoderModel(byt5).eval(),
    }


def build_image_components() -> dict[str, Any]:
    torch.manual_seed(0)
    siglip = SiglipVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=24,
        patch_size=8,
    )
    return {
        "image_encoder": SiglipVisionModel(siglip).eval(),
        "feature_extractor": SiglipImageProcessorPil(size={"height": 24, "width": 24}),
    }


def build_checkpoint(folder: Path, *, image_to_video: bool = False) -> Path:
    kind = HunyuanVideo15ImageToVideoPipeline if image_to_video else HunyuanVideo15Pipeline
    kind(
        **build_text_components(),
        **(build_image_components() if image_to_video else {}),
        transformer=build_transformer(task_type="i2v" if image_to_video else "t2v"),
        vae=build_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    ).save_pretrained(folder)
    return folder


def tiny_config(checkpoint: Path, **guidance: Any) -> RunConfig:
    return build_config(
        {
            "model": {"path": str(checkpoint), "device": "cpu"},
            "sampling": {**SIZE, "num_inference_steps": 4, "max_sequence_length": MAX_SEQUENCE_LENGTH},
            "guidance": {"drop_ratio": 0.3, "cfg_scale": 6.0, "window": (0.2, 0.8), **guidance},
        }
    )
