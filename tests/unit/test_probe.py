"""Tests of `s2video probe`: its figures are those of predictions made by hand, its rules, and its files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import NUM_BLOCKS, PROMPT, tiny_config
from torch import Tensor

from s2video.cli.main import main
from s2video.engine.engine import Engine
from s2video.guidance.equations import Predictions
from s2video.probe.advice import suggest_count, suggest_never_drop, suggest_reuse, verdict
from s2video.probe.measure import CountFigures, Figures, ForecastFigures, point_steps, probe, probe_masks
from s2video.sampling.denoiser import Denoiser


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine(tiny_config(tiny_checkpoint).patched({"sampling.num_frames": 5}), progress="none")


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


def test_guide_and_predictions_are_the_denoiser(engine: Engine) -> None:
    """The guide is S², from predictions with the masks of the step."""
    engine = engine.with_guidance(drop_count=5, band=[1, 5], window=[0, 1])

    def by_hand(denoiser: Denoiser, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        return denoiser.guide(denoiser.predictions(latents, timestep, [range(1, 6)]), timestep, step)

    assert torch.equal(engine.sample([PROMPT], [1], around=by_hand), engine.sample([PROMPT], [1]))


def test_figures_are_those_of_predictions_made_by_hand(engine: Engine) -> None:
    """Steps 2, 3 and 4 of plain CFG, with every block dropped alone; the settings of S² do not matter."""
    kept: dict[int, Predictions] = {}

    def keep(denoiser: Denoiser, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        kept[step] = denoiser.predictions(latents, timestep, [(block,) for block in range(NUM_BLOCKS)])
        return denoiser(latents, timestep, step)

    plain = engine.with_guidance(s2_scale=0.0)
    seed = engine.config.sampling.seed
    plain.sample([PROMPT], [seed], around=keep)
    figures = probe(engine, [PROMPT], points=1, draws=3, images=None)
    assert figures is not None and figures.steps == ((2, 3, 4),)

    def deviation(step: int, block: int) -> Tensor:
        return (kept[step].subs[block] - kept[step].cond).flatten()

    cond, uncond = kept[4].cond.flatten(), kept[4].uncond
    assert uncond is not None
    for block in figures.blocks:
        d = deviation(4, block.block)
        others = [deviation(4, other) for other in range(NUM_BLOCKS) if other != block.block]
        cosines = [float(torch.cosine_similarity(d, other, dim=0)) for other in others]
        assert block.effect == pytest.approx(float(d.norm() / cond.norm()), rel=1e-4)
        assert block.to_others == pytest.approx(sum(cosines) / len(cosines), abs=1e-4)
        towards = torch.cosine_similarity(d, uncond.flatten() - cond, dim=0)
        assert block.to_uncond == pytest.approx(float(towards), abs=1e-4)
        for held, step in ((block.held_1, 3), (block.held_2, 2)):
            assert held == pytest.approx(float((d - deviation(step, block.block)).norm() / d.norm()), rel=1e-4)
    assert figures.difference_effect == pytest.approx(float((cond - uncond.flatten()).norm() / cond.norm()), rel=1e-4)
    assert figures.cond.held_1 == pytest.approx(float((cond - kept[3].cond.flatten()).norm() / cond.norm()), rel=1e-4)
    before, newer, last = plain.mask_schedule([seed]).levels[2:5]
    weight = (last - newer) / (newer - before)
    line = kept[3].cond + weight * (kept[3].cond - kept[2].cond)
    assert figures.cond.linear == pytest.approx(float((cond - line.flatten()).norm() / cond.norm()), rel=1e-4)
    assert {count.dropped for count in figures.counts} == {1, 2}


def test_without_uncond_there_is_nothing_to_compare_with(engine: Engine) -> None:
    figures = probe(engine.with_guidance(cfg_scale=1.0), [PROMPT], points=1, draws=2, images=None)
    assert figures is not None and figures.difference is None and figures.blocks[0].to_uncond is None
    assert suggest_count(figures).value == 2


def test_points_are_steps_in_a_row_of_one_transformer() -> None:
    assert point_steps(30, 3) == ((4, 5, 6), (14, 15, 16), (24, 25, 26))
    assert point_steps(3, 3) == ((0, 1, 2),)
    assert point_steps(6, 3) == ((0, 1, 2), (3, 4, 5))
    assert point_steps(2, 3) == ()
    assert point_steps(30, 3, restart=15) == ((4, 5, 6), (15, 16, 17), (24, 25, 26))
    assert point_steps(30, 3, restart=2) == ((4, 5, 6), (14, 15, 16), (24, 25, 26))


def test_masks_are_those_of_s2(engine: Engine) -> None:
    masks = probe_masks(engine.config, NUM_BLOCKS, 3)
    assert masks["blocks"] == [(block,) for block in range(NUM_BLOCKS)] and set(masks) == {"blocks", "1", "2"}
    assert all(len(set(masks[name])) == 3 and all(0 not in mask for mask in masks[name]) for name in ("1", "2"))


# rules

FIGURES = Figures(
    cfg_scale=2.0,
    steps=((1, 2, 3),),
    blocks=(),
    counts=(
        CountFigures(1, effect=0.1, cosine=0.3, common=0.3, apart=0.12, held_1=0.14, held_2=0.26),
        CountFigures(2, effect=0.2, cosine=0.1, common=0.1, apart=0.24, held_1=0.14, held_2=0.26),
        CountFigures(3, effect=0.3, cosine=0.6, common=0.6, apart=0.3, held_1=0.14, held_2=0.26),
    ),
    cond=ForecastFigures(0.035, 0.07, 0.028),
    difference=ForecastFigures(0.21, 0.4, 0.16),
    difference_effect=0.16,
)


def test_critical_blocks_stay() -> None:
    assert suggest_never_drop([9.0, 1.0, 1.2, 0.8, 2.5]).value == [0, 4]
    assert suggest_never_drop([1.0, 1.1, 0.9]).value == [0]
    assert suggest_never_drop([1.0, 9.0, 0.9, 1.1]).value == [0, 1]


@pytest.mark.parametrize(("limit", "count"), [(0.16, 1), (0.25, 2), (0.5, 2), (0.05, 1), (None, 2)])
def test_as_many_blocks_as_uncond_is_far(limit: float | None, count: int) -> None:
    suggestion = suggest_count(replace(FIGURES, difference_effect=limit))
    assert suggestion.value == count and ("little room" in suggestion.why) == (limit == 0.05)


@pytest.mark.parametrize(
    ("cfg_scale", "push", "preset"),
    [(2.0, 0.06, "fast"), (2.0, 0.03, "light"), (5.0, 0.05, "deviation"), (1.0, 0.03, "fast"), (1.0, 0.02, "light")],
)
def test_reuse_costs_less_than_the_luck_of_the_mask(cfg_scale: float, push: float, preset: str) -> None:
    """At λ = 2 and push 0.06: luck 0.072; held 0.0084; cond − uncond 0.0256; cond 0.028."""
    figures = replace(FIGURES, cfg_scale=cfg_scale)
    assert suggest_reuse(figures, FIGURES.counts[0], push).value == preset


def test_a_deviation_that_changes_as_much_as_masks_differ_is_not_held() -> None:
    restless = replace(FIGURES.counts[0], held_1=1.3)
    assert suggest_reuse(FIGURES, restless, 0.05).value == "exact"


def test_the_verdict_is_about_the_largest_count() -> None:
    assert "mostly in one direction" in verdict(FIGURES)
    assert "mostly by chance" in verdict(replace(FIGURES, counts=FIGURES.counts[:2]))


# the command


def test_the_command(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, record, picture = tmp_path / "c.yaml", tmp_path / "p.json", tmp_path / "p.png"
    config.write_text(f"model: {{path: {json.dumps(str(tiny_checkpoint))}, device: cpu}}\n")
    short = ["--set", "sampling.num_inference_steps=4", "--set", "sampling.max_sequence_length=16"]
    arguments = ["probe", "--config", str(config), "--prompt", PROMPT, *short, "--set", "sampling.num_frames=1"]
    assert main([*arguments, "--points", "1", "--draws", "2", "--json", str(record), "--picture", str(picture)]) == 0
    said = capsys.readouterr().out
    assert "guidance.never_drop: [0" in said and "guidance.reuse: " in said and "block 5" in said
    made = json.loads(record.read_text())
    assert made["prompts"] == [PROMPT] and len(made["figures"]["blocks"]) == NUM_BLOCKS and made["weights"]
    assert [s["setting"].removeprefix("guidance.") for s in made["suggestions"]] == [
        *("never_drop", "drop_count", "s2_push", "reuse")
    ]
    with Image.open(picture) as image:
        assert image.size[0] >= 400
    for wrong, message in (
        (["--draws", "1"], "--draws: expected a number >= 2, got 1"),
        (["--set", "sampling.num_inference_steps=2"], "expected at least 3"),
        (["--json", str(tmp_path)], str(tmp_path)),
    ):
        assert main([*arguments, *wrong]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
