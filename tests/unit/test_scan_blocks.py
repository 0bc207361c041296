"""Tests of tools/scan_blocks.py on a tiny checkpoint, and of the engine's hook that it uses."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import scan_blocks
import torch
from json_lines import read_lines
from tiny import NUM_BLOCKS, PROMPT, tiny_config
from torch import Tensor

from s2video.engine.engine import Engine
from s2video.errors import InputError
from s2video.guidance.equations import Predictions
from s2video.sampling.denoiser import Denoiser


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine(tiny_config(tiny_checkpoint, s2_scale=0.0), progress="none")


def test_around_stands_in_the_denoiser_s_place(engine: Engine) -> None:
    """It gets every step's latents; requesting predictions does not change the result, bitwise."""
    seen: list[tuple[int, float]] = []

    def look(denoiser: Denoiser, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        found = denoiser.predictions(latents, timestep, [(1,), (2, 3)])
        assert len(found.subs) == 2 and found.uncond is not None and found.cond.shape == latents.shape
        seen.append((step, float(timestep)))
        return denoiser(latents, timestep, step)

    plain = engine.sample([PROMPT], [1])
    assert torch.equal(engine.sample([PROMPT], [1], around=look), plain)
    assert [step for step, _ in seen] == list(range(6)) and sorted(seen, key=lambda s: -s[1]) == seen
    still = engine.sample([PROMPT], [1], around=lambda denoiser, latents, timestep, step: torch.zeros_like(latents))
    assert not torch.allclose(still, plain), "what it returns is the prediction"


def test_guide_and_predictions_are_the_denoiser(tiny_checkpoint: Path) -> None:
    """The guide is S², from predictions with the masks of the step."""
    engine = Engine(tiny_config(tiny_checkpoint, drop_count=5, band=[1, 5], window=[0, 1]), progress="none")

    def by_hand(denoiser: Denoiser, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        return denoiser.guide(denoiser.predictions(latents, timestep, [range(1, 6)]), timestep, step)

    assert torch.equal(engine.sample([PROMPT], [1], around=by_hand), engine.sample([PROMPT], [1]))


def test_effects_are_distances_from_cond(engine: Engine) -> None:
    expected: list[float] = []

    def third(denoiser: Denoiser, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        if step == 4:
            found: Predictions = denoiser.predictions(latents, timestep, [(3,)])
            expected.append(float((found.subs[0] - found.cond).norm() / found.cond.norm()))
        return denoiser(latents, timestep, step)

    latents = engine.sample([PROMPT], [2], around=third)
    effects, same = scan_blocks.effects_on_prediction(engine, PROMPT, 2, steps=[1, 4], together=4)
    assert torch.equal(latents, same)
    assert effects.shape == (2, NUM_BLOCKS) and (effects > 0).all()
    assert effects[1, 3].item() == pytest.approx(expected[0], rel=1e-5)


def test_a_block_is_left_out_of_cond_in_every_step(engine: Engine) -> None:
    """λ = 0 is only uncond, which keeps all blocks; λ = 1 is only cond."""
    base = engine.with_guidance(cfg_scale=0.0).sample([PROMPT], [2])
    assert torch.equal(scan_blocks.without_block(engine.with_guidance(cfg_scale=0.0), PROMPT, 2, 3), base)
    cond = engine.with_guidance(cfg_scale=1.0)
    changed = scan_blocks.without_block(cond, PROMPT, 2, 3)
    assert scan_blocks.relative_distance(changed, cond.sample([PROMPT], [2])) > 1e-3


def test_the_rule() -> None:
    assert scan_blocks.critical_blocks([9.0, 1.0, 1.2, 0.8, 2.5], 2.0) == [0, 4]
    assert scan_blocks.critical_blocks([9.0, 1.0, 1.2, 0.8, 2.5], 3.0) == [0]
    assert scan_blocks.critical_blocks([1.0, 1.1, 0.9], 2.0) == []
    assert scan_blocks.spread_steps(30, 5) == [3, 9, 15, 21, 27]
    assert scan_blocks.spread_steps(3, 5) == [0, 1, 2]


def test_the_command(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, output, prompts = tmp_path / "c.yaml", tmp_path / "blocks.jsonl", tmp_path / "prompts.txt"
    config.write_text(f"model: {{path: {json.dumps(str(tiny_checkpoint))}, device: cpu}}\n")
    prompts.write_text(f"{PROMPT}\n\n")
    short = ["--set", "sampling.num_inference_steps=2", "--set", "sampling.max_sequence_length=16"]
    arguments = ["--config", str(config), "--output", str(output), *short]
    assert scan_blocks.main([*arguments, "--prompts", str(prompts), "--no-results", "--factor", "0.9"]) == 0
    figures, blocks = read_lines(output)
    assert figures["prompts"] == [PROMPT] and figures["weights"] and figures["steps"] == [0, 1]
    assert all(row["result"] is None and len(row["prediction_by_step"]) == 2 for row in blocks)
    assert figures["never_drop"] == scan_blocks.critical_blocks([row["prediction"] for row in blocks], 0.9)
    assert f"guidance.never_drop: {figures['never_drop']}" in capsys.readouterr().out

    assert scan_blocks.main(arguments) == 2
    assert scan_blocks.main([*arguments, "--prompts", str(tmp_path / "none")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "--captions" in errors[0] and "none" in errors[1]


def test_captions_are_judged(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config, output = tmp_path / "c.yaml", tmp_path / "blocks.jsonl"
    config.write_text(f"model: {{path: {json.dumps(str(tiny_checkpoint))}, device: cpu}}\n")
    short = ["--set", "sampling.num_inference_steps=1", "--set", "sampling.max_sequence_length=16"]
    assert scan_blocks.main(["--config", str(config), "--output", str(output), "--captions", "1", *short]) == 0
    figures, blocks = read_lines(output)
    assert all(0 <= row["attributes_right"] <= 1 and row["result"] >= 0 for row in blocks)
    assert figures["attributes_right"] is not None


def test_prompts_have_to_come_from_somewhere() -> None:
    nothing = Namespace(captions=0, prompts=None)
    assert scan_blocks.choose_prompts(nothing, "a cat") == ([], ["a cat"])
    with pytest.raises(InputError, match="expected prompts"):
        scan_blocks.choose_prompts(nothing, None)
    clips, prompts = scan_blocks.choose_prompts(Namespace(captions=3, prompts=None), None)
    assert [len(clip.scene.things) for clip in clips] == [1, 1, 2] and prompts == [clip.caption for clip in clips]
