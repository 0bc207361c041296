"""The whole engine on one rank against diffusers' own `WanPipeline`, and against itself."""

from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from tiny import MAX_SEQUENCE_LENGTH, PROMPT, SIZE, tiny_config

from s2video.config.run import build_config
from s2video.engine.engine import Engine
from s2video.errors import InputError


def reference(checkpoint: Path, cfg_scale: float, seed: int, steps: int = 6, scheduler: object = None) -> torch.Tensor:
    pipeline = WanPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipeline.scheduler = scheduler
    return pipeline(
        PROMPT,
        **SIZE,
        num_inference_steps=steps,
        guidance_scale=cfg_scale,
        generator=torch.Generator().manual_seed(seed),
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        output_type="latent",
    ).frames


@pytest.mark.parametrize("cfg_scale", [5.0, 1.0])
def test_without_s2_it_is_wan_pipeline_to_the_bit(tiny_checkpoint: Path, cfg_scale: float) -> None:
    engine = Engine(tiny_config(tiny_checkpoint, s2_scale=0.0, cfg_scale=cfg_scale))
    assert torch.equal(engine.sample([PROMPT], [3]), reference(tiny_checkpoint, cfg_scale, seed=3))


def test_with_flow_matching_euler_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The checkpoint's own scheduler is used, of whatever class, and `flow_shift` reaches it."""
    folder = tmp_path / "wan"
    pipeline = WanPipeline.from_pretrained(tiny_checkpoint, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0))
    pipeline.save_pretrained(folder)
    values = tiny_config(folder, s2_scale=0.0).model_dump(mode="json")
    values["sampling"]["flow_shift"] = 4.0
    got = Engine(build_config(values)).sample([PROMPT], [3])
    assert torch.equal(got, reference(folder, 5.0, seed=3, scheduler=FlowMatchEulerDiscreteScheduler(shift=4.0)))


def test_same_seed_same_bits_and_another_seed_another_video(tiny_checkpoint: Path) -> None:
    config = tiny_config(tiny_checkpoint)
    first, second = (Engine(config).sample([PROMPT], [3]) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, Engine(config).sample([PROMPT], [4]))


def test_guidance_settings_matter(tiny_checkpoint: Path) -> None:
    engine = Engine(tiny_config(tiny_checkpoint))
    base = engine.sample([PROMPT], [3])
    for change in ({"s2_scale": 0.0}, {"mask_seed": 9}, {"drop_count": 1}, {"window": (0.4, 0.6)}, {"num_draws": 2}):
        assert not torch.equal(base, engine.with_guidance(**change).sample([PROMPT], [3])), change
    with pytest.raises(InputError, match=r"guidance\.s2_scale"):
        engine.with_guidance(s2_scal=1)
    # S² with nothing dropped is CFG, to the bit: sub − cond is zero
    nothing = engine.with_guidance(drop_count=0).sample([PROMPT], [3])
    assert torch.equal(nothing, engine.with_guidance(s2_scale=0.0).sample([PROMPT], [3]))
    assert torch.equal(base, engine.with_guidance(share_prefix=False).sample([PROMPT], [3]))


def test_a_batch_is_its_members(tiny_checkpoint: Path) -> None:
    engine = Engine(tiny_config(tiny_checkpoint))
    prompts, seeds = [PROMPT, "a large blue square moving up"], [3, 4]
    batch = engine.sample(prompts, seeds, mask_seed=1)
    for i in range(2):
        alone = engine.sample(prompts[i : i + 1], seeds[i : i + 1], mask_seed=1)
        torch.testing.assert_close(batch[i : i + 1], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("field", "value"), [("height", 72), ("num_frames", 16)])
def test_sizes_are_checked_from_python_too(tiny_checkpoint: Path, field: str, value: int) -> None:
    values = tiny_config(tiny_checkpoint).model_dump(mode="json")
    values["sampling"][field] = value
    with pytest.raises(InputError, match=f"sampling.{field}: expected .* got {value}"):
        Engine(build_config(values))
