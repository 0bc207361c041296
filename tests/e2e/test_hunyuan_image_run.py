"""HunyuanVideo from an image and a prompt: against diffusers' own pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_hunyuan import (
    IMAGES,
    MAX_SEQUENCE_LENGTH,
    PROMPT,
    SIZE,
    build_text_components,
    image,
    image_reference,
    tiny_config,
)
from torch import Tensor

from s2video.engine.engine import Engine
from s2video.errors import StoppedError
from s2video.models.checkpoint import Checkpoint
from s2video.models.family import Prompts
from s2video.models.images import Images
from s2video.models.loading import load_conditioners, load_vae
from s2video.models.registry import read_costs
from s2video.models.weight_files import read_json
from s2video.records.resume import ResumePoint
from s2video.system.shutdown import Termination


@pytest.fixture(scope="module")
def engine(tiny_hunyuan_image_checkpoint: Path) -> Engine:
    return Engine(tiny_config(tiny_hunyuan_image_checkpoint, s2_scale=0.0))


def test_true_cfg_instead_of_embedded_guidance_is_that_of_the_pipeline(engine: Engine) -> None:
    """Uncond sees a black image, and more tokens of it. With both kinds of guidance, or one: see the matrix."""
    guided = engine.with_guidance(cfg_scale=3.0, embedded_scale=1.0)
    got = guided.sample([PROMPT], [3], negative_prompt="blue", images=IMAGES)
    expected = image_reference(engine.checkpoint.folder, guided.config, PROMPT, "blue", 3)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_the_first_frame_is_the_image(engine: Engine) -> None:
    """Its latents are the mode of what the VAE says, whatever is drawn; an image of another size is fitted first."""
    vae = load_vae(engine.checkpoint, torch.float32, torch.device("cpu"))
    pixels = torch.from_numpy(np.array(IMAGES.first)).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    expected = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    guided = engine.with_guidance(s2_scale=0.25, cfg_scale=3.0)
    for seed in (3, 4):
        got = guided.sample([PROMPT], [seed], images=IMAGES)[:, :, :1]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    large = Images(IMAGES.first.resize((2 * SIZE["width"], 3 * SIZE["height"])))
    fitted = large.fitted(SIZE["width"], SIZE["height"])
    assert torch.equal(engine.sample([PROMPT], [3], images=large), engine.sample([PROMPT], [3], images=fitted))


def test_image_prompt_and_guidance_matter(engine: Engine) -> None:
    def later_frames(engine: Engine, prompt: str, images: Images) -> Tensor:
        return engine.sample([prompt], [3], images=images)[:, :, 1:]

    base = later_frames(engine, PROMPT, IMAGES)
    assert not torch.allclose(base, later_frames(engine, "blue", IMAGES), atol=1e-2)
    assert not torch.allclose(base, later_frames(engine, PROMPT, Images(image(1))), atol=1e-2)
    assert not torch.allclose(base, later_frames(engine.with_guidance(s2_scale=0.25), PROMPT, IMAGES), atol=1e-3)
    nothing_dropped = engine.with_guidance(s2_scale=0.25, drop_count=0)
    assert torch.equal(base, later_frames(nothing_dropped, PROMPT, IMAGES))


def test_a_batch_is_its_members(engine: Engine) -> None:
    """One of the prompts is cut off: the pipeline itself could not encode both together."""
    prompts = ["blue", "moving, " * MAX_SEQUENCE_LENGTH]
    batch = engine.sample(prompts, [3, 4], mask_seed=1, images=IMAGES)
    for i in range(2):
        alone = engine.sample(prompts[i : i + 1], [3 + i], mask_seed=1, images=IMAGES)
        torch.testing.assert_close(batch[i : i + 1], alone, atol=1e-5, rtol=0)


def test_llava_loads_whole_from_names_as_published(tiny_hunyuan_image_checkpoint: Path) -> None:
    """The checkpoint's file says vision_tower.vision_model, and language_model beside the head."""
    expected = build_text_components(sees_images=True)["text_encoder"].state_dict()
    got = load_conditioners(Checkpoint(tiny_hunyuan_image_checkpoint), torch.float32)["text_encoder"].state_dict()
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def test_plans_count_the_text_with_its_image(tiny_hunyuan_image_checkpoint: Path) -> None:
    family = Checkpoint(tiny_hunyuan_image_checkpoint).family
    pipeline = family.build_pipeline(load_conditioners(Checkpoint(tiny_hunyuan_image_checkpoint), torch.float32), None)
    costs = read_costs(read_json(tiny_hunyuan_image_checkpoint / "transformer" / "config.json"))
    with torch.no_grad():
        text, *_ = family.encode(pipeline, Prompts([PROMPT], MAX_SEQUENCE_LENGTH, torch.device("cpu"), IMAGES))
    assert text.shape[1] == costs.num_text(MAX_SEQUENCE_LENGTH)


class TermAtOnce(Termination):
    @property
    def requested(self) -> bool:
        return True


def test_what_is_taken_up_is_not_mixed_with_the_image_again(engine: Engine, tmp_path: Path) -> None:
    def point(engine: Engine, *, resume: bool) -> ResumePoint:
        path = tmp_path / "x.checkpoint"
        return ResumePoint(path, engine.mesh, engine.digests.of_denoising, every_seconds=None, resume=resume)

    stopped = Engine(engine.config, termination=TermAtOnce())
    with pytest.raises(StoppedError, match="after step 1 of 4"):
        stopped.sample([PROMPT], [3], images=IMAGES, resume_point=point(stopped, resume=False))
    got = engine.sample([PROMPT], [3], images=IMAGES, resume_point=point(engine, resume=True))
    assert torch.equal(got, engine.sample([PROMPT], [3], images=IMAGES))
