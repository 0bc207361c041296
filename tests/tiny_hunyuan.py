"""HunyuanVideo checkpoints in miniature, with random weights, in the folder format of the real ones.

Five heads and 175 tokens, and prompts of different lengths: nothing divides by 2 or by 3.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import (
    DEFAULT_PROMPT_TEMPLATE as IMAGE_PROMPT_TEMPLATE,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import MAX_SEQUENCE_LENGTH, PROMPT, SIZE
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlamaTokenizerFast,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from s2video.config.run import RunConfig, build_config
from s2video.models.base import Conditioning
from s2video.models.images import Images

NUM_DUAL, NUM_SINGLE = 2, 3
NUM_BLOCKS = NUM_DUAL + NUM_SINGLE
TEXT_DIM, POOLED_DIM = 32, 24


def build_transformer(**changes: Any) -> HunyuanVideoTransformer3DModel:
    torch.manual_seed(0)
    settings = {
        "num_attention_heads": 5,
        "attention_head_dim": 12,
        "num_layers": NUM_DUAL,
        "num_single_layers": NUM_SINGLE,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": TEXT_DIM,
        "pooled_projection_dim": POOLED_DIM,
        "rope_axes_dim": (4, 4, 4),
    }
    return HunyuanVideoTransformer3DModel(**{**settings, **changes}).eval().requires_grad_(False)


def build_vae() -> AutoencoderKLHunyuanVideo:
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
    return vae.eval().requires_grad_(False)


def build_llama_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, as Llama 3's. A token for each word that it knows: before the prompt, the template of text-to-video
    takes 95, as many as the pipeline cuts off, and that of image-to-video 102, which is one fewer."""
    special = ["<|begin_of_text|>", "<|eot_id|>", "<pad>", "<|start_header_id|>", "<|end_header_id|>", "<image>"]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    templates = (DEFAULT_PROMPT_TEMPLATE, IMAGE_PROMPT_TEMPLATE)
    tokenizer.train_from_iterator([template["template"].format(PROMPT) for template in templates], trainer)
    tokenizer.post_processor = TemplateProcessing(single=f"{special[0]} $A", special_tokens=[(special[0], 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], pad_token="<pad>")


def build_clip_tokenizer() -> CLIPTokenizer:
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])


def build_text_components(*, sees_images: bool = False) -> dict[str, Any]:
    """Where LLaMA `sees_images`, these have 24 x 24 patches of 2 x 2 pixels, as many as in earnest."""
    torch.manual_seed(0)
    tokenizer, tokenizer_2 = build_llama_tokenizer(), build_clip_tokenizer()
    width = {"num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 3}
    llama = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_DIM, num_key_value_heads=2, initializer_range=0.1, **width
    )
    vision = CLIPVisionConfig(
        image_size=48, patch_size=2, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2
    )
    llava = LlavaConfig(
        vision_config=vision,
        text_config=llama,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer_2),
        hidden_size=POOLED_DIM,
        bos_token_id=tokenizer_2.bos_token_id,
        eos_token_id=tokenizer_2.eos_token_id,
        pad_token_id=tokenizer_2.pad_token_id,
        **width,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": (LlavaForConditionalGeneration(llava) if sees_images else LlamaModel(llama)).eval(),
        "tokenizer_2": tokenizer_2,
        "text_encoder_2": CLIPTextModel(clip).eval(),
    }


def build_checkpoint(folder: Path) -> Path:
    """model_index.json names LlamaTokenizerFast for the byte-level tokenizer, as that of the real checkpoint does."""
    components = build_text_components()
    pipeline = HunyuanVideoPipeline(
        **components,
        transformer=build_transformer(),
        vae=build_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
    pipeline.register_to_config(tokenizer=("transformers", LlamaTokenizerFast.__name__))
    pipeline.save_pretrained(folder)
    return folder


def build_image_checkpoint(folder: Path) -> Path:
    """Image-to-video. Parts of Llava have the names that they had when the real checkpoint was published."""
    pipeline = HunyuanVideoImageToVideoPipeline(
        **build_text_components(sees_images=True),
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
        transformer=build_transformer(image_condition_type="token_replace"),
        vae=build_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
    pipeline.register_to_config(tokenizer=("transformers", LlamaTokenizerFast.__name__))
    pipeline.save_pretrained(folder)
    file = folder / "text_encoder" / "model.safetensors"
    tensors = {
        name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def tiny_config(checkpoint: Path, **guidance: Any) -> RunConfig:
    """Guidance-distilled: no uncond pass unless asked for."""
    return build_config(
        {
            "model": {"path": str(checkpoint), "device": "cpu"},
            "sampling": {**SIZE, "num_inference_steps": 4, "max_sequence_length": MAX_SEQUENCE_LENGTH},
            "guidance": {"drop_ratio": 0.3, "cfg_scale": 1.0, "window": (0.2, 0.8), **guidance},
        }
    )


def image(seed: int = 0) -> Image.Image:
    """Of the size of a video, of smooth random colours."""
    colours = torch.randint(0, 256, (4, 5, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(colours.numpy()).resize((SIZE["width"], SIZE["height"]))


IMAGES = Images(image())


def reference(checkpoint: Path, config: RunConfig, prompt: str, negative: str, seed: int, **images: Any) -> Tensor:
    """The latents of diffusers' own pipeline, with the right tokenizer: by itself it would take the one named."""
    pipeline = DiffusionPipeline.from_pretrained(checkpoint, tokenizer=build_llama_tokenizer(), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt=prompt,
        **images,
        negative_prompt=negative,
        **SIZE,
        num_inference_steps=config.sampling.num_inference_steps,
        true_cfg_scale=config.guidance.cfg_scale,
        guidance_scale=config.guidance.embedded_scale,
        generator=torch.Generator().manual_seed(seed),
        max_sequence_length=config.sampling.max_sequence_length,
        output_type="latent",
    ).frames


def image_reference(*run: Any) -> Tensor:
    return reference(*run, image=IMAGES.first)


def conditioning(transformer: HunyuanVideoTransformer3DModel, seed: int) -> Conditioning:
    """Prompts of different lengths; padding holds numbers too, which must not be used."""
    given_frames = int(transformer.config.image_condition_type == "token_replace")
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(2, 12, TEXT_DIM, generator=generator)
    pooled = torch.randn(2, POOLED_DIM, generator=generator)
    return Conditioning(text, (5 + seed % 2, 9), pooled, guidance=6.0, given_frames=given_frames)


def forward(
    transformer: HunyuanVideoTransformer3DModel, latents: Tensor, timestep: Tensor, told: Conditioning
) -> Tensor:
    """With all padding and a mask."""
    assert told.text_lengths is not None and told.pooled is not None and told.guidance is not None
    mask = (torch.arange(told.text.shape[1]) < torch.tensor(told.text_lengths)[:, None]).to(latents.dtype)
    guidance = torch.full_like(timestep, told.guidance * 1000.0)
    return transformer(latents, timestep, told.text, mask, told.pooled, guidance, return_dict=False)[0]
