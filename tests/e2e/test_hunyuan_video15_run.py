"""HunyuanVideo 1.5 from a prompt with text in quotes, and from an image; its frames."""

from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideo15Pipeline
from tiny_hunyuan15 import GLYPHS, IMAGES, PROMPT, image, image_reference, reference, tiny_config

from s2video.engine.engine import Engine
from s2video.models.images import Images

NEGATIVE = 'blue, large, "no"'


@pytest.fixture(scope="module")
def engine(tiny_hunyuan15_checkpoint: Path) -> Engine:
    return Engine(tiny_config(tiny_hunyuan15_checkpoint, s2_scale=0.0))


@pytest.fixture(scope="module")
def image_engine(tiny_hunyuan15_image_checkpoint: Path) -> Engine:
    return Engine(tiny_config(tiny_hunyuan15_image_checkpoint, s2_scale=0.0))


def test_glyphs_are_read_as_the_pipelines_read_them(engine: Engine, image_engine: Engine) -> None:
    """Up to rounding: padding is trimmed, not masked."""
    for run, images, expected in ((engine, None, reference), (image_engine, IMAGES, image_reference)):
        got = run.sample([GLYPHS], [3], negative_prompt=NEGATIVE, images=images)
        torch.testing.assert_close(
            got, expected(run.checkpoint.folder, run.config, GLYPHS, NEGATIVE, 3), atol=1e-5, rtol=0
        )


def test_frames_are_those_of_the_pipeline(tiny_hunyuan15_checkpoint: Path, engine: Engine) -> None:
    pipeline = HunyuanVideo15Pipeline.from_pretrained(tiny_hunyuan15_checkpoint)
    latents = torch.randn(1, 4, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    expected = pipeline.video_processor.postprocess_video(expected.detach(), output_type="np")
    assert torch.equal(torch.cat(list(engine.decode(latents))), torch.from_numpy(expected[0]))


def test_prompts_images_and_s2_matter(engine: Engine, image_engine: Engine) -> None:
    base = engine.sample([GLYPHS], [3])
    assert not torch.allclose(base, engine.sample(["blue"], [3]), atol=1e-2)
    assert not torch.allclose(base, engine.with_guidance(s2_scale=0.25).sample([GLYPHS], [3]), atol=1e-3)
    assert torch.equal(base, engine.with_guidance(s2_scale=0.25, drop_count=0).sample([GLYPHS], [3]))
    videos = [image_engine.sample([PROMPT], [3], images=Images(image(seed))) for seed in (0, 1)]
    assert not torch.allclose(*videos, atol=1e-2)


@pytest.mark.parametrize("has_image", [False, True])
def test_a_batch_is_its_members(request: pytest.FixtureRequest, has_image: bool) -> None:
    """Prompts of different lengths, with and without glyphs: the shorter one's padding changes nothing."""
    engine: Engine = request.getfixturevalue("image_engine" if has_image else "engine")
    images = IMAGES if has_image else None
    prompts = [GLYPHS, "blue"]
    batch = engine.sample(prompts, [3, 4], mask_seed=1, images=images)
    for i in range(2):
        alone = engine.sample(prompts[i : i + 1], [3 + i], mask_seed=1, images=images)
        torch.testing.assert_close(batch[i : i + 1], alone, atol=1e-5, rtol=0)
