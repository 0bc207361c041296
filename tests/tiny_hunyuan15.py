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
from torch import Tensor
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

from s2video.config.run import RunConfig, build_config
from s2video.models.base import Conditioning
from s2video.models.images import Images

NUM_BLOCKS = 5
TEXT_DIM, GLYPH_DIM, IMAGE_DIM = 32, 24, 20
NUM_TEXT, NUM_GLYPHS, NUM_IMAGE = 12, 8, 9
CHANNELS = 4
SIZE = {"width": 112, "height": 80, "num_frames": 17}  # latents and tokens 5 x 5 x 7
MAX_SEQUENCE_LENGTH = 64
GLYPHS = f'{PROMPT}, below it "S2" and “video”'
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_transformer(**changes: Any) -> HunyuanVideo15Transformer3DModel:
    """From `target_size` and an image of this size, the pipeline chooses the same size for the video."""
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
    model = HunyuanVideo15Transformer3DModel(**{**settings, **changes}).eval().requires_grad_(False)
    for block in model.transformer_blocks:
        block.attn.add_v_proj.weight *= 10  # or so few tokens of text would hardly be seen among those of the video
    return model


def build_vae() -> AutoencoderKLHunyuanVideo15:
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo15(latent_channels=CHANNELS, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1)
    return vae.eval().requires_grad_(False)


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


def build_checkpoint(folder: Path) -> Path:
    HunyuanVideo15Pipeline(
        **build_text_components(), transformer=build_transformer(task_type="t2v"), **_build_others()
    ).save_pretrained(folder)
    return folder


def build_image_checkpoint(folder: Path) -> Path:
    pipeline = HunyuanVideo15ImageToVideoPipeline(
        **build_text_components(), **build_image_components(), transformer=build_transformer(), **_build_others()
    )
    pipeline.register_to_config(feature_extractor=("transformers", "SiglipImageProcessor"))  # as published
    pipeline.save_pretrained(folder)
    return folder


def _build_others() -> dict[str, Any]:
    return {
        "vae": build_vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }


def tiny_config(checkpoint: Path, **guidance: Any) -> RunConfig:
    return build_config(
        {
            "model": {"path": str(checkpoint), "device": "cpu"},
            "sampling": {**SIZE, "num_inference_steps": 4, "max_sequence_length": MAX_SEQUENCE_LENGTH},
            "guidance": {"drop_ratio": 0.3, "cfg_scale": 6.0, "window": (0.2, 0.8), **guidance},
        }
    )


def image(seed: int = 0) -> Image.Image:
    """Of the size of a video, of smooth random colours."""
    colours = torch.randint(0, 256, (4, 5, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(colours.numpy()).resize((SIZE["width"], SIZE["height"]))


IMAGES = Images(image())


def reference(checkpoint: Path, config: RunConfig, prompt: str, negative: str, seed: int) -> Tensor:
    """The latents of diffusers' own pipeline."""
    return _run(HunyuanVideo15Pipeline.from_pretrained(checkpoint), config, prompt, negative, seed, **SIZE)


def image_reference(checkpoint: Path, config: RunConfig, prompt: str, negative: str, seed: int) -> Tensor:
    """With an image for which the pipeline chooses the size that the run has."""
    # named, since without torchvision diffusers would find no SiglipImageProcessor
    extractor = SiglipImageProcessorPil.from_pretrained(checkpoint / "feature_extractor")
    pipeline = HunyuanVideo15ImageToVideoPipeline.from_pretrained(checkpoint, feature_extractor=extractor)
    given = {"image": IMAGES.first, "num_frames": SIZE["num_frames"]}
    return _run(pipeline, config, prompt, negative, seed, **given)


def _run(pipeline: Any, config: RunConfig, prompt: str, negative: str, seed: int, **given: Any) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.tokenizer_max_length = config.sampling.max_sequence_length
    pipeline.guider = ClassifierFreeGuidance(guidance_scale=config.guidance.cfg_scale)
    return pipeline(
        prompt=prompt,
        negative_prompt=negative,
        **given,
        num_inference_steps=config.sampling.num_inference_steps,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).frames


def conditioning(
    transformer: HunyuanVideo15Transformer3DModel,
    seed: int,
    lengths: tuple[int, int] = (5, 9),
    glyphs: tuple[int, int] = (6, 0),
) -> Conditioning:
    """Padding holds numbers too, which must not be used."""
    generator = torch.Generator().manual_seed(seed)
    text, text_2, image = (
        torch.randn(2, *shape, generator=generator)
        for shape in ((NUM_TEXT, TEXT_DIM), (NUM_GLYPHS, GLYPH_DIM), (NUM_IMAGE, IMAGE_DIM))
    )
    has_image = transformer.config.task_type == "i2v"
    return Conditioning(text, lengths, image=image if has_image else None, text_2=text_2, text_2_lengths=glyphs)


def forward(
    transformer: HunyuanVideo15Transformer3DModel, latents: Tensor, timestep: Tensor, told: Conditioning
) -> Tensor:
    """With all padding and masks, and features of zero where there is no image."""
    assert told.text_lengths is not None and told.text_2 is not None and told.text_2_lengths is not None
    dtype = transformer.dtype
    image = torch.zeros(2, NUM_IMAGE, IMAGE_DIM) if told.image is None else told.image
    return transformer(
        latents.to(dtype),
        timestep.to(dtype),
        told.text.to(dtype),
        (torch.arange(NUM_TEXT) < torch.tensor(told.text_lengths)[:, None]).to(dtype),
        encoder_hidden_states_2=told.text_2.to(dtype),
        encoder_attention_mask_2=(torch.arange(NUM_GLYPHS) < torch.tensor(told.text_2_lengths)[:, None]).to(dtype),
        image_embeds=image.to(dtype),
        return_dict=False,
    )[0]
