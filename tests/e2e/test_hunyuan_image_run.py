"""HunyuanVideo from an image and a prompt: against diffusers' own pipeline."""

from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoImageToVideoPipeline
from tiny_hunyuan import (
    MAX_SEQUENCE_LENGTH,
    PROMPT,
    SIZE,
    build_llama_tokenizer,
    build_text_components,
    tiny_config,
    tiny_images,
)
from torch import Tensor

from s2video.models.images import Images
from s2video.pipeline import Engine

NEGATIVE = "blue, large"


@pytest.fixture(scope="module")
def pipeline(tiny_hunyuan_image_checkpoint: Path) -> HunyuanVideoImageToVideoPipeline:
    """With the right tokenizer: by itself it would take the one that model_index.json names."""
    pipeline = HunyuanVideoImageToVideoPipeline.from_pretrained(
        tiny_hunyuan_image_checkpoint, tokenizer=build_llama_tokenizer(), dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def engine(tiny_hunyuan_image_checkpoint: Path) -> Engine:
    return Engine(tiny_config(tiny_hunyuan_image_checkpoint, s2_scale=0.0))


@pytest.fixture(scope="module")
def images() -> Images:
    return tiny_images()


@pytest.mark.parametrize(("cfg_scale", "embedded_scale"), [(1.0, 6.0), (3.0, 6.0), (3.0, 1.0)])
def test_without_s2_it_is_the_pipeline(
    pipeline: HunyuanVideoImageToVideoPipeline,
    engine: Engine,
    images: Images,
    cfg_scale: float,
    embedded_scale: float,
) -> None:
    """Up to rounding: padding is trimmed, not masked. Uncond sees a black image, and more tokens of it."""
    expected = pipeline(
        images.first,
        PROMPT,
        negative_prompt=NEGATIVE,
        **SIZE,
        num_inference_steps=4,
        true_cfg_scale=cfg_scale,
        guidance_scale=embedded_scale,
        generator=torch.Generator().manual_seed(3),
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        output_type="latent",
    ).frames
    guided = engine.with_guidance(cfg_scale=cfg_scale, embedded_scale=embedded_scale)
    got = guided.sample([PROMPT], [3], negative_prompt=NEGATIVE, images=images)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_the_first_frame_is_the_image(
    pipeline: HunyuanVideoImageToVideoPipeline, engine: Engine, images: Images
) -> None:
    """Its latents are the mode of what the VAE says, whatever is drawn; an image of another size is fitted first."""
    pixels = pipeline.video_processor.preprocess(images.first).unsqueeze(2)
    with torch.no_grad():
        expected = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
    guided = engine.with_guidance(s2_scale=0.25, cfg_scale=3.0)
    for seed in (3, 4):
        assert torch.equal(guided.sample([PROMPT], [seed], images=images)[:, :, :1], expected)
    double = Images(images.first.resize((2 * SIZE["width"], 3 * SIZE["height"])))
    fitted = Images(double.fitted(SIZE["width"], SIZE["height"]).first)
    assert torch.equal(engine.sample([PROMPT], [3], images=double), engine.sample([PROMPT], [3], images=fitted))


def test_image_prompt_and_guidance_matter(engine: Engine, images: Images) -> None:
    def later_frames(engine: Engine, prompt: str, images: Images) -> Tensor:
        return engine.sample([prompt], [3], images=images)[:, :, 1:]

    base = later_frames(engine, PROMPT, images)
    assert not torch.allclose(base, later_frames(engine, "blue", images), atol=1e-2)
    assert not torch.allclose(base, later_frames(engine, PROMPT, tiny_images(1)), atol=1e-2)
    assert not torch.allclose(base, later_frames(engine.with_guidance(s2_scale=0.25), PROMPT, images), atol=1e-3)
    nothing_dropped = engine.with_guidance(s2_scale=0.25, drop_count=0)
    assert torch.equal(base, later_frames(nothing_dropped, PROMPT, images))


def test_a_batch_is_its_members(engine: Engine, images: Images) -> None:
    """One of the prompts is cut off: the pipeline itself could not encode both together."""
    prompts = ["blue", "moving, " * MAX_SEQUENCE_LENGTH]
    batch = engine.sample(prompts, [3, 4], mask_seed=1, images=images)
    for i in range(2):
        alone = engine.sample(prompts[i : i + 1], [3 + i], mask_seed=1, images=images)
        torch.testing.assert_close(batch[i : i + 1], alone, atol=1e-5, rtol=0)


def test_llava_loads_whole_from_names_as_published(pipeline: HunyuanVideoImageToVideoPipeline) -> None:
    """The checkpoint's file says vision_tower.vision_model, and language_model beside the head."""
    expected, got = build_text_components(image=True)["text_encoder"], pipeline.text_encoder
    assert expected.state_dict().keys() == got.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(got.state_dict()[name], tensor), name
