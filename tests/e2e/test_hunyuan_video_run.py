"""HunyuanVideo from a prompt: against diffusers' own pipeline, and to an MP4 under torchrun."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import HunyuanVideoPipeline
from tiny_hunyuan import MAX_SEQUENCE_LENGTH, NUM_BLOCKS, NUM_DUAL, PROMPT, SIZE, build_llama_tokenizer, tiny_config

from s2video.config.run import build_config
from s2video.engine.engine import Engine
from s2video.guidance.masks import step_masks
from s2video.media.video import probe_video

REPOSITORY = Path(__file__).parents[2]
NEGATIVE = "blue, large"


@pytest.fixture(scope="module")
def pipeline(tiny_hunyuan_checkpoint: Path) -> HunyuanVideoPipeline:
    """With the right tokenizer: by itself it would take the one that model_index.json names."""
    tokenizer = build_llama_tokenizer()
    pipeline = HunyuanVideoPipeline.from_pretrained(tiny_hunyuan_checkpoint, tokenizer=tokenizer, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def engine(tiny_hunyuan_checkpoint: Path) -> Engine:
    return Engine(tiny_config(tiny_hunyuan_checkpoint, s2_scale=0.0))


@pytest.mark.parametrize(("cfg_scale", "embedded_scale"), [(1.0, 6.0), (1.0, 2.5), (3.0, 6.0), (3.0, 1.0)])
def test_without_s2_it_is_hunyuan_video_pipeline(
    pipeline: HunyuanVideoPipeline, engine: Engine, cfg_scale: float, embedded_scale: float
) -> None:
    """Embedded guidance, true CFG beside it, or instead. Up to rounding: padding is trimmed, not masked."""
    expected = pipeline(
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
    got = guided.sample([PROMPT], [3], negative_prompt=NEGATIVE)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_frames_are_those_of_the_pipeline(pipeline: HunyuanVideoPipeline, engine: Engine) -> None:
    latents = engine.sample([PROMPT], [3])[:, :, :2]
    expected = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    expected = pipeline.video_processor.postprocess_video(expected.detach(), output_type="np")
    assert torch.equal(torch.cat(list(engine.decode(latents))), torch.from_numpy(expected[0]))


def test_embedded_guidance_needs_no_uncond_pass(pipeline: HunyuanVideoPipeline, engine: Engine) -> None:
    """D = cond − ω(sub − cond), sub being the network without the blocks of the mask.

    One step, from sigma 1 to 0, takes the prediction from the noise: what it leaves is combined by the same formula.
    """
    values = engine.with_guidance(s2_scale=0.25, window=(0.0, 1.0)).config.model_dump(mode="json")
    values["sampling"]["num_inference_steps"] = 1
    config = build_config(values)
    got = engine.with_config(config).sample([PROMPT], [3])
    (mask,) = step_masks(config.guidance.mask_spec(), num_blocks=NUM_BLOCKS, seed=3, step=0, num_steps=1)
    assert mask
    shortened = copy.copy(pipeline)
    shortened.transformer = copy.deepcopy(pipeline.transformer)
    for index in reversed(mask):
        if index < NUM_DUAL:
            del shortened.transformer.transformer_blocks[index]
        else:
            del shortened.transformer.single_transformer_blocks[index - NUM_DUAL]
    cond, sub = (
        network(
            PROMPT,
            **SIZE,
            num_inference_steps=1,
            guidance_scale=config.guidance.embedded_scale,
            generator=torch.Generator().manual_seed(3),
            max_sequence_length=MAX_SEQUENCE_LENGTH,
            output_type="latent",
        ).frames
        for network in (pipeline, shortened)
    )
    torch.testing.assert_close(got, cond - 0.25 * (sub - cond), atol=1e-5, rtol=0)
    assert (got - cond).abs().max() > 1e-3


def test_prompts_and_guidance_matter(engine: Engine) -> None:
    base = engine.sample([PROMPT], [3])
    assert not torch.allclose(base, engine.sample(["blue"], [3]), atol=1e-2)
    assert not torch.allclose(base, engine.with_guidance(embedded_scale=1.0).sample([PROMPT], [3]), atol=1e-2)
    sub = engine.with_guidance(s2_scale=0.25).sample([PROMPT], [3])
    assert not torch.allclose(base, sub, atol=1e-3)
    # without an uncond pass too, S² with nothing dropped is the model alone, to the bit
    assert torch.equal(base, engine.with_guidance(s2_scale=0.25, drop_count=0).sample([PROMPT], [3]))


def test_a_batch_is_its_members(engine: Engine) -> None:
    """Prompts of different lengths: the shorter one's padding changes nothing."""
    prompts = [PROMPT, "blue"]
    batch = engine.sample(prompts, [3, 4], mask_seed=1)
    for i in range(2):
        alone = engine.sample(prompts[i : i + 1], [3 + i], mask_seed=1)
        torch.testing.assert_close(batch[i : i + 1], alone, atol=1e-5, rtol=0)


def test_torchrun_makes_a_video(tiny_hunyuan_checkpoint: Path, tmp_path: Path) -> None:
    config_file, output = tmp_path / "tiny.yaml", tmp_path / "made" / "clip.mp4"
    config = tiny_config(tiny_hunyuan_checkpoint).model_dump(mode="json")
    config_file.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "launch/t2v.py"]
    command += ["--config", str(config_file), "--prompt", PROMPT, "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(output)]
    info = probe_video(output)
    assert (info.width, info.height, info.num_frames) == (112, 80, 17)
    sidecar = json.loads(output.with_suffix(".json").read_text())
    assert sidecar["mesh"]["world_size"] == 2 and sidecar["mesh"]["ulysses"] == 2
    assert len(sidecar["weights"]) == 4
    dropped = [mask["dropped"] for mask in sidecar["masks"]]
    assert dropped and all(0 < min(blocks) <= max(blocks) < NUM_BLOCKS for blocks in dropped)
