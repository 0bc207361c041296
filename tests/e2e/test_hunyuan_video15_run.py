"""HunyuanVideo 1.5 from a prompt, or an image and a prompt: against diffusers' own pipelines."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ClassifierFreeGuidance, HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline
from PIL import Image
from tiny_hunyuan15 import GLYPHS, MAX_SEQUENCE_LENGTH, PROMPT, SIZE, build_image, tiny_config

from s2video.models.images import Images
from s2video.models.loading import load_conditioners
from s2video.pipeline import Engine

NEGATIVE = "blue, large"


def load(kind: Any, folder: Path) -> Any:
    # named, since without torchvision diffusers would find no SiglipImageProcessor
    conditioners = load_conditioners(folder, torch.float32)
    named = {name: part for name, part in conditioners.items() if name == "feature_extractor"}
    pipeline = kind.from_pretrained(folder, dtype=torch.float32, **named)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.tokenizer_max_length = MAX_SEQUENCE_LENGTH
    return pipeline


@pytest.fixture(scope="module")
def pipeline(tiny_hunyuan15_checkpoint: Path) -> HunyuanVideo15Pipeline:
    return load(HunyuanVideo15Pipeline, tiny_hunyuan15_checkpoint)


@pytest.fixture(scope="module")
def engine(tiny_hunyuan15_checkpoint: Path) -> Engine:
    return Engine(tiny_config(tiny_hunyuan15_checkpoint, s2_scale=0.0))


@pytest.fixture(scope="module")
def image_engine(tiny_hunyuan15_i2v_checkpoint: Path) -> Engine:
    return Engine(tiny_config(tiny_hunyuan15_i2v_checkpoint, s2_scale=0.0))


@pytest.mark.parametrize(("prompt", "cfg_scale"), [(PROMPT, 6.0), (GLYPHS, 6.0), (GLYPHS, 1.0)])
def test_without_s2_it_is_the_text_to_video_pipeline(
    pipeline: HunyuanVideo15Pipeline, engine: Engine, prompt: str, cfg_scale: float
) -> None:
    """Up to rounding: padding is trimmed, not masked."""
    pipeline.guider = ClassifierFreeGuidance(guidance_scale=cfg_scale)
    expected = pipeline(
        prompt,
        negative_prompt=NEGATIVE,
        **SIZE,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).frames
    got = engine.with_guidance(cfg_scale=cfg_scale).sample([prompt], [3], negative_prompt=NEGATIVE)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_without_s2_it_is_the_image_to_video_pipeline(
    tiny_hunyuan15_i2v_checkpoint: Path, image_engine: Engine
) -> None:
    """With an image for which the pipeline chooses the size that we ask for."""
    image = build_image()
    expected = load(HunyuanVideo15ImageToVideoPipeline, tiny_hunyuan15_i2v_checkpoint)(
        image,
        GLYPHS,
        negative_prompt=NEGATIVE,
        num_frames=SIZE["num_frames"],
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).frames
    got = image_engine.sample([GLYPHS], [3], negative_prompt=NEGATIVE, images=Images(image))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_frames_are_those_of_the_pipeline(pipeline: HunyuanVideo15Pipeline, engine: Engine) -> None:
    latents = engine.sample([PROMPT], [3])[:, :, :2]
    expected = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    expected = pipeline.video_processor.postprocess_video(expected.detach(), output_type="np")
    assert torch.equal(torch.cat(list(engine.decode(latents))), torch.from_numpy(expected[0]))


def test_prompts_glyphs_and_s2_matter(engine: Engine) -> None:
    base = engine.sample([GLYPHS], [3])
    assert not torch.allclose(base, engine.sample(["blue"], [3]), atol=1e-2)
    assert not torch.allclose(base, engine.sample([GLYPHS.replace('"', "'")], [3]), atol=1e-2)
    assert not torch.allclose(base, engine.with_guidance(s2_scale=0.25).sample([GLYPHS], [3]), atol=1e-3)
    assert torch.equal(base, engine.with_guidance(s2_scale=0.25, drop_count=0).sample([GLYPHS], [3]))


def test_images_matter(image_engine: Engine) -> None:
    image = build_image()
    turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    videos = [image_engine.sample([PROMPT], [3], images=Images(which)) for which in (image, turned)]
    assert not torch.allclose(*videos, atol=1e-2)


@pytest.mark.parametrize("has_image", [False, True])
def test_a_batch_is_its_members(request: pytest.FixtureRequest, has_image: bool) -> None:
    """Prompts of different lengths, with and without glyphs: the shorter one's padding changes nothing."""
    engine: Engine = request.getfixturevalue("image_engine" if has_image else "engine")
    images = Images(build_image()) if has_image else None
    prompts = [GLYPHS, "blue"]
    batch = engine.sample(prompts, [3, 4], mask_seed=1, images=images)
    for i in range(2):
        alone = engine.sample(prompts[i : i + 1], [3 + i], mask_seed=1, images=images)
        torch.testing.assert_close(batch[i : i + 1], alone, atol=1e-5, rtol=0)
