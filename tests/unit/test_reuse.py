"""Tests of reuse: which passes are computed, exact forecasts, counted work, and what is refused."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s2video.config.guidance import GuidanceConfig, ReuseConfig
from s2video.config.run import build_config
from s2video.errors import InputError
from s2video.guidance.equations import Predictions
from s2video.guidance.forecasts import Forecasts, History
from s2video.guidance.masks import dropped_blocks
from s2video.guidance.reuse import PRESETS, Preset, ReuseSpec, plan_passes
from s2video.models.base import BlockContext, Conditioning, ImageConditioning, TokenState
from s2video.models.checkpoint import open_checkpoint
from s2video.models.experts import Expert, Experts
from s2video.models.limits import check_request
from s2video.parallel.attention import AttentionPlan
from s2video.parallel.mesh import Mesh
from s2video.parallel.weights import WHOLE
from s2video.planning.work import SubWork
from s2video.sampling.denoiser import Denoiser
from s2video.sampling.passes import step_passes

MARKS = {"computed": "#", "forecast": "o", "none": "."}


def drawn(spec: ReuseSpec, num_steps: int, *, restart: int | None = None, has_uncond: bool = True) -> list[str]:
    """Return cond, uncond and sub as text, a letter for each step."""
    active = [0.1 <= (step + 0.5) / num_steps <= 0.9 for step in range(num_steps)]
    passes = plan_passes(
        spec,
        levels=[1 - step / num_steps for step in range(num_steps)],
        active=active,
        has_uncond=[has_uncond] * num_steps,
        restart=restart,
    )
    return ["".join(MARKS[how] for how in kind) for kind in zip(*passes, strict=True)]


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("exact", ["#" * 20, "#" * 20, "..################.."]),
        ("deviation", ["#" * 20, "#" * 20, "..#o#o#o#o.........."]),
        ("light", ["#" * 20, "####o#o#o#o#o#o#o#o#", "..#o#o#o#o#o#o#o#o.."]),
        ("fast", ["####o#o#o#o#o#o#o#o#", "####o#o#o#o#o#o#o#o#", "..#oo#o#o#.........."]),
    ],
)
def test_presets(preset: Preset, expected: list[str]) -> None:
    """sub waits for a step that computes cond, as in step 4 of fast."""
    assert drawn(PRESETS[preset], 20) == expected


def test_nothing_is_forecast_from_another_transformer() -> None:
    cond, uncond, sub = drawn(PRESETS["fast"], 20, restart=7)
    assert cond == uncond == "####o#o##o#o#o#o#o#o"  # two steps, to extrapolate from, before the next forecast
    assert sub == "..#oo#o#oo.........."
    assert drawn(ReuseSpec(2, 2, 2, order=0), 20, restart=7)[0] == "####o#o#o#o#o#o#o#o#"


def test_before_there_are_two_points_nothing_is_forecast() -> None:
    cond, uncond, _ = drawn(ReuseSpec(3, 3, 3, start=0), 16)
    assert (cond, uncond) == ("###oo#oo#oo#oo#o", "##ooo#oo#oo#oo#o")  # cond's third for the first sub
    # a scheduler with two evaluations at one level (Heun) has one point after the first two steps
    passes = plan_passes(
        ReuseSpec(2, 2, 2, start=0), levels=[1, 0.9, 0.9, 0.8, 0.8, 0.7], active=[False] * 6, has_uncond=[True] * 6
    )
    assert "".join(MARKS[step.cond] for step in passes) == "##o#o#"


def test_without_uncond_there_is_none_to_forecast() -> None:
    assert drawn(PRESETS["fast"], 20, has_uncond=False)[1] == "." * 20


def test_the_first_sub_has_its_cond() -> None:
    """S² begins when the window begins, even if cond would be forecast there."""
    passes = plan_passes(
        ReuseSpec(4, 4, 4, start=0),
        levels=[1 - step / 20 for step in range(20)],
        active=[step >= 3 for step in range(20)],
        has_uncond=[True] * 20,
    )
    assert passes[3] == ("computed", "forecast", "computed") and passes[2].sub == "none"


# forecasts


def test_a_line_is_forecast_to_the_bit() -> None:
    """In numbers that float32 holds exactly; order 0 holds the last value."""
    slope, offset = torch.tensor([3.0, -2.0, 0.5]), torch.tensor([1.0, 8.0, -0.25])
    line, constant = History(1), History(0)
    for level in (1.0, 0.75, 0.5):
        line.add(level, offset + level * slope)
        constant.add(level, offset + level * slope)
    assert torch.equal(line.forecast(0.125), offset + 0.125 * slope)
    assert torch.equal(constant.forecast(0.125), offset + 0.5 * slope)


def test_a_second_value_at_a_level_replaces_the_first() -> None:
    history = History(1)
    for level, value in ((1.0, 4.0), (0.5, 7.0), (0.5, 3.0)):
        history.add(level, torch.tensor([value]))
    assert history.forecast(0.0).item() == 2.0


def test_of_several_draws_the_mean_is_kept() -> None:
    forecasts = Forecasts(PRESETS["light"])
    cond, uncond = torch.full((1, 2), 5.0), torch.full((1, 2), 1.0)
    subs = (torch.full((1, 2), 7.0), torch.full((1, 2), 4.0))
    plans = plan_passes(PRESETS["light"], levels=[1.0, 0.5], active=[True] * 2, has_uncond=[True] * 2)
    forecasts.complete(plans[0], 1.0, Predictions(cond, uncond, subs))
    made = forecasts.complete(plans[1]._replace(sub="forecast"), 0.5, Predictions(cond * 2, uncond))
    assert torch.equal(made.subs[0], cond * 2 + 0.5)


def test_a_state_continues_to_the_bit() -> None:
    spec = PRESETS["fast"]
    forecasts, again = Forecasts(spec), Forecasts(spec)
    generator = torch.Generator().manual_seed(0)
    passes = plan_passes(spec, levels=[1, 0.9, 0.8, 0.7], active=[True] * 4, has_uncond=[True] * 4)
    for level in (1.0, 0.9, 0.8):
        cond, uncond, sub = (torch.randn(1, 3, generator=generator) for _ in range(3))
        forecasts.complete(passes[0], level, Predictions(cond, uncond, (sub,)))
    again.load_state(forecasts.state())
    forecast = passes[0]._replace(cond="forecast", uncond="forecast", sub="forecast")
    before, after = (f.complete(forecast, 0.7, None) for f in (forecasts, again))
    assert before.uncond is not None and after.uncond is not None
    assert torch.equal(before.cond, after.cond) and torch.equal(before.uncond, after.uncond)
    assert torch.equal(before.subs[0], after.subs[0])


# with a model whose predictions are linear in the noise level


class LinearModel:
    """A block model whose predictions do not depend on the latents: a + bσ; every dropped block adds 0.01 of it."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks, self.runs = num_blocks, 0

    def num_tokens(self, latents: Tensor) -> int:
        return latents[0, 0].numel()

    def prepare(self, latents: Tensor, timestep: Tensor, text: Conditioning, plan: AttentionPlan) -> BlockContext:
        level = timestep / 1000
        return BlockContext(text.text, level, level, None, plan, tuple(latents.shape[2:]))

    def embed(self, latents: Tensor, context: BlockContext) -> TokenState:
        return TokenState(torch.zeros(latents.shape))

    def run_block(self, index: int, state: TokenState, context: BlockContext) -> TokenState:
        self.runs += 1
        return TokenState(state.video + 1)

    def project(self, state: TokenState, context: BlockContext) -> Tensor:
        """The text is the slope."""
        dropped = self.num_blocks - state.video
        return context.text.mean() * context.time + 0.5 + 0.01 * dropped

    def stack(self, contexts: tuple[BlockContext, ...]) -> BlockContext:
        raise NotImplementedError


def run(guidance: GuidanceConfig, num_blocks: int = 12, num_steps: int = 20) -> tuple[list[Tensor], int, Denoiser]:
    """Return the guided predictions of all steps, the number of blocks run, and the denoiser."""
    levels = tuple(1 - 0.9 * step / num_steps for step in range(num_steps))
    masks = guidance.mask_schedule(num_blocks=num_blocks, seed=4, num_steps=num_steps, levels=levels)
    model: Any = LinearModel(num_blocks)
    denoiser = Denoiser(
        Experts([Expert(model, WHOLE, nn.Module())]),
        Mesh(torch.device("cpu")),
        guidance,
        dtype=torch.float32,
        masks=masks,
        cond=Conditioning(torch.tensor([[[3.0]]])),
        uncond=Conditioning(torch.tensor([[[-1.0]]])),
        images=ImageConditioning(),
    )
    latents = torch.zeros(1, 1, 1, 2, 2)
    made = [denoiser(latents, torch.tensor(1000 * level), step) for step, level in enumerate(levels)]
    return made, model.runs, denoiser


@pytest.mark.parametrize("method", ["s2", "slg", "apg"])
@pytest.mark.parametrize("preset", ["light", "fast"])
def test_predictions_linear_in_the_noise_level_are_exact(method: str, preset: str) -> None:
    """cond, uncond and their difference are lines, and each sub differs from cond by a constant."""
    settings: dict[str, Any] = {"method": method, "slg": {"layers": [3], "start": 0.1, "stop": 0.9}}
    exact, all_runs, _ = run(GuidanceConfig(**settings))
    until = {"sub_until": 1.0} if method == "s2" else {}  # other methods have windows of their own
    thinned, runs, _ = run(GuidanceConfig(**settings, reuse={"preset": preset, **until}))
    torch.testing.assert_close(thinned, exact, atol=2e-5, rtol=1e-5)
    assert runs <= 0.8 * all_runs


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("num_blocks", [12, 30, 40, 60])
def test_counted_passes_are_arithmetic(preset: Preset, num_blocks: int) -> None:
    """Blocks run: all for each computed cond and uncond, and from the first dropped one on for each computed sub."""
    guidance = GuidanceConfig(reuse={"preset": preset})
    _, runs, _ = run(guidance, num_blocks, num_steps=30)
    cond, uncond, sub = drawn(PRESETS[preset], 30)
    subs = [
        num_blocks - min(mask) - len(mask)
        for step, mark in enumerate(sub)
        if mark == "#"
        for mask in [dropped_blocks(guidance.mask_spec(), num_blocks=num_blocks, seed=4, step=step)]
    ]
    assert runs == (cond.count("#") + uncond.count("#")) * num_blocks + sum(subs)
    counts = {"exact": (30, 30, 24), "deviation": (30, 30, 6), "light": (30, 18, 12), "fast": (18, 18, 6)}
    assert (cond.count("#"), uncond.count("#"), len(subs)) == counts[preset]


@pytest.mark.parametrize(
    ("preset", "blocks", "dropped", "over_cfg"),
    [
        ("exact", 30, 3, 1.26),
        ("light", 30, 3, 0.93),
        ("light", 40, 4, 0.94),
        ("light", 60, 6, 0.951),
        ("fast", 30, 3, 0.665),
        ("fast", 40, 4, 0.67),
        ("fast", 60, 6, 0.676),
        ("deviation", 30, 3, 1.065),
    ],
)
def test_expected_cost_of_a_run(preset: Preset, blocks: int, dropped: int, over_cfg: float) -> None:
    guidance = GuidanceConfig(reuse={"preset": preset}, drop_count=dropped)
    cond, uncond, sub = drawn(guidance.reuse.spec(), 30)
    passes = SubWork.expected(guidance.mask_spec(), blocks).passes
    cost = cond.count("#") + uncond.count("#") + sub.count("#") * passes
    assert cost / 60 == pytest.approx(over_cfg, abs=5e-4)


def test_only_drawn_masks_are_recorded() -> None:
    guidance = GuidanceConfig(reuse={"preset": "fast"})
    masks = guidance.mask_schedule(num_blocks=12, seed=0, num_steps=20, levels=tuple(1 - i / 20 for i in range(20)))
    steps = [record["step"] for record in masks.records()]
    assert steps == [step for step, passes in enumerate(step_passes(guidance, masks)) if passes.sub == "computed"]
    assert steps == [2, 5, 7, 9]


# settings


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("light", PRESETS["light"]),
        ({"preset": "fast"}, PRESETS["fast"]),
        ({}, ReuseSpec()),
        ({"sub_every": 3}, ReuseSpec(sub_every=3)),
        ({"preset": "fast", "order": 0, "start": 0.5}, ReuseSpec(2, 2, 2, start=0.5, sub_until=0.5, order=0)),
    ],
)
def test_a_preset_and_the_fields_behind_it(settings: Any, expected: ReuseSpec) -> None:
    assert ReuseConfig.model_validate(settings).spec() == expected
    config = build_config({"guidance": {"reuse": settings}})
    assert config.patched({"guidance.s2_scale": 0.5}).guidance.reuse.spec() == expected


@pytest.mark.parametrize(
    ("guidance", "said"),
    [
        ({"reuse": "quick"}, "guidance.reuse.preset: expected 'exact', 'deviation', 'light' or 'fast', got 'quick'"),
        ({"reuse": {"cond_every": 2}}, "expected uncond_every >= cond_every, 2, got 1"),
        ({"reuse": {"preset": "fast", "sub_every": 1}}, "expected sub_every >= cond_every, 2, got 1"),
        ({"reuse": {"order": 2}}, "guidance.reuse.order"),
        ({"reuse": {"sub_every": 0}}, "guidance.reuse.sub_every: expected a value >= 1, got 0"),
        ({"reuse": "deviation", "method": "apg"}, "apg has no sub pass"),
    ],
)
def test_refused_settings(guidance: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        build_config({"guidance": guidance})
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("reuse", "steps", "is_refused"), [("light", 15, True), ("light", 16, False), ("exact", 4, False)]
)
def test_few_steps_are_refused(reuse: str, steps: int, is_refused: bool) -> None:
    config = build_config({"guidance": {"reuse": reuse}, "sampling": {"num_inference_steps": steps}})
    info = open_checkpoint("shapes-wan").info
    if not is_refused:
        check_request(config, info)
        return
    with pytest.raises(InputError, match=r"expected at least 16 sampling\.num_inference_steps, got 15.*or reuse exact"):
        check_request(config, info)


def test_the_sequence_is_the_same_for_every_caller() -> None:
    """A function of (settings, steps): two calls agree, and no earlier call matters."""
    first: Sequence[str] = drawn(PRESETS["fast"], 50)
    drawn(PRESETS["light"], 17)
    assert drawn(PRESETS["fast"], 50) == first
