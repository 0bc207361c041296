"""`sampling.scheduler` and `sampling.sigmas`: diffusers' schedulers by name, their noise, and S²'s window over them."""

from pathlib import Path
from typing import Any, get_args

import diffusers
import pytest
import tiny
import torch
from diffusers import WanPipeline
from tiny import MAX_SEQUENCE_LENGTH, PROMPT, tiny_config
from tiny_hunyuan import tiny_config as hunyuan_config
from torch import Tensor

from s2video.config.run import RunConfig
from s2video.config.sections import SchedulerName
from s2video.engine.engine import Engine
from s2video.engine.statement import Batch, latents_statement
from s2video.errors import InputError
from s2video.models.checkpoint import Checkpoint
from s2video.models.limits import check_request
from s2video.planning.cards import CARDS
from s2video.planning.plan import plan_for

LCM, HEUN, EULER = (f"FlowMatch{name}" for name in ("LCMScheduler", "HeunDiscreteScheduler", "EulerDiscreteScheduler"))
SIZE = {"width": 32, "height": 32, "num_frames": 5}


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine(config_of(tiny_checkpoint))


def config_of(checkpoint: Path, **sampling: Any) -> RunConfig:
    return tiny_config(checkpoint).patched({"sampling": {**SIZE, "num_inference_steps": 4, **sampling}})


def sampled(engine: Engine, seed: int = 3, s2_scale: float = 0.25, **sampling: Any) -> Tensor:
    config = engine.config.patched({"sampling": sampling, "guidance.s2_scale": s2_scale})
    return engine.with_config(config).sample([PROMPT], [seed])


def reference(engine: Engine, scheduler: Any) -> Tensor:
    pipe = WanPipeline.from_pretrained(engine.checkpoint.folder, dtype=torch.float32)
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    latents: Tensor = pipe(
        PROMPT,
        **SIZE,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(3),
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        output_type="latent",
    ).frames
    return latents


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        (EULER, {}, {"shift": 3.0}),
        (EULER, {"use_karras_sigmas": True}, {"shift": 3.0}),
        (HEUN, {}, {"shift": 3.0}),
        ("UniPCMultistepScheduler", {"solver_order": 3}, FLOW),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, FLOW),
        ("DEISMultistepScheduler", {}, FLOW),
    ],
)
def test_a_named_scheduler_is_that_of_the_pipeline(
    engine: Engine, name: str, options: dict[str, Any], theirs: dict[str, Any]
) -> None:
    """Bitwise, with the checkpoint's own shift of 3."""
    expected = reference(engine, getattr(diffusers, name)(**theirs, **options))
    assert torch.equal(sampled(engine, s2_scale=0.0, scheduler=name, scheduler_options=options), expected)


def test_every_name_can_be_sampled_and_differs_from_the_others(engine: Engine) -> None:
    made = {name: sampled(engine, scheduler=name) for name in get_args(SchedulerName)}
    for name, latents in made.items():
        assert torch.isfinite(latents).all(), name
        near = [other for other, found in made.items() if other != name and torch.allclose(found, latents, atol=1e-4)]
        assert not near or {name, *near} <= {"UniPCMultistepScheduler", *near}, (name, near)


@pytest.mark.parametrize("name", [LCM, EULER])
def test_noise_that_a_scheduler_adds_depends_on_the_seed_alone(engine: Engine, name: str) -> None:
    """Whatever the state of torch's own generator, and in a batch as alone."""
    options = {"stochastic_sampling": True} if name == EULER else {}
    setting = {"scheduler": name, "scheduler_options": options}
    first = sampled(engine, **setting)
    torch.manual_seed(1)
    torch.rand(5)
    assert torch.equal(sampled(engine, **setting), first)
    plain = sampled(engine, scheduler=EULER)
    assert (first - plain).abs().max() > 1e-2
    config = engine.config.patched({"sampling": setting, "guidance.mask_seed": 3})
    pair = engine.with_config(config).sample([PROMPT, PROMPT], [5, 3])
    torch.testing.assert_close(pair[1:], first, atol=1e-4, rtol=0)
    assert (pair[:1] - first).abs().max() > 1e-2


@pytest.mark.parametrize("name", [None, EULER, LCM, "UniPCMultistepScheduler"])
def test_sigmas_are_those_before_the_shift(engine: Engine, name: str | None) -> None:
    given = [1.0, 0.9, 0.6, 0.2]
    config = engine.config.patched({"sampling": {"scheduler": name, "sigmas": given, "flow_shift": 5.0}})
    scheduler = engine.with_config(config)._timed_scheduler()
    expected = torch.tensor([5 * s / (1 + 4 * s) for s in given])
    torch.testing.assert_close(scheduler.sigmas[:4], expected, atol=1e-5, rtol=0)
    assert scheduler.sigmas[4] == 0 and len(scheduler.timesteps) == 4
    assert (sampled(engine, scheduler=name, sigmas=given) - sampled(engine, scheduler=name)).abs().max() > 1e-2


def test_masks_follow_the_steps_that_the_scheduler_takes(engine: Engine) -> None:
    """Heun takes 2n - 1 steps; the window is a part of those, or of the noise levels."""
    config = engine.config.patched({"sampling.scheduler": HEUN, "guidance.window": [0.0, 0.5]})
    masks = engine.with_config(config).mask_schedule([3])
    assert masks.num_steps == 7 == config.sampling.expected_steps
    assert [record["step"] for record in masks.records()] == [0, 1, 2, 3]
    changes = {"sampling.sigmas": [0.3, 0.2, 0.1, 0.05], "guidance.window": [0.0, 0.5], "guidance.window_in": "noise"}
    late = engine.with_config(engine.config.patched({**changes, "sampling.scheduler": EULER})).mask_schedule([3])
    early = engine.with_config(engine.config.patched({"sampling.scheduler": EULER, **changes, "sampling.sigmas": None}))
    assert [record["step"] for record in late.records()] != [r["step"] for r in early.mask_schedule([3]).records()]


def test_ranks_compare_scheduler_options_and_sigmas(engine: Engine) -> None:
    def statement(**sampling: Any) -> dict[str, Any]:
        other = engine.with_config(engine.config.patched({"sampling": sampling}))
        return latents_statement(
            other.config,
            Batch([PROMPT], [3], "", 3),
            images=None,
            loras={},
            latent_shape=other.latent_shape,
            scheduler=other._timed_scheduler(),
        )

    plain = statement()
    assert not any(key.startswith(("sampling.scheduler", "sampling.sigmas")) for key in plain)  # as in older records
    for changes in (
        {"scheduler": EULER},
        {"scheduler": "UniPCMultistepScheduler", "scheduler_options": {"solver_order": 3}},
        {"sigmas": [0.9, 0.8, 0.7, 0.6]},
    ):
        assert statement(**changes) != plain


def test_hunyuan_video_with_a_scheduler_that_takes_no_sigmas(tiny_hunyuan_checkpoint: Path) -> None:
    config = hunyuan_config(tiny_hunyuan_checkpoint).patched({"sampling.num_inference_steps": 2})
    made = [Engine(config.patched({"sampling.scheduler": name})).sample([PROMPT], [3]) for name in (HEUN, EULER)]
    assert torch.isfinite(made[0]).all() and (made[0] - made[1]).abs().max() > 1e-3


def test_plans_count_the_steps_of_heun(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint(tiny_checkpoint)
    plans = [
        plan_for(config_of(tiny_checkpoint, scheduler=name), 1, CARDS["H100"], checkpoint) for name in (EULER, HEUN)
    ]
    assert plans[1].num_steps == 7 and plans[0].num_steps == 4


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"scheduler": "DDIMScheduler"}, "sampling.scheduler: expected .*FlowMatchLCMScheduler"),
        (
            {"scheduler": EULER, "scheduler_options": {"solver_order": 3}},
            "use_beta_sigmas.*got 'solver_order'",
        ),
        ({"scheduler": EULER, "scheduler_options": {"shift": 3}}, r"got 'shift'; sampling\.flow_shift sets it"),
        (
            {"scheduler": EULER, "scheduler_options": {"num_train_timesteps": 3}},
            "got 'num_train_timesteps'; leave it out",
        ),
        (
            {"scheduler": "UniPCMultistepScheduler", "scheduler_options": {"solver_type": "x"}},
            "does not take these values",
        ),
        ({"scheduler_options": {"solver_order": 3}}, "expected none without sampling.scheduler"),
        ({"scheduler": HEUN, "sigmas": [1.0, 0.5, 0.3, 0.2]}, "expected null for FlowMatchHeun"),
        ({"sigmas": [1.0, 0.5]}, "as many sigmas as num_inference_steps, got 2 and 4"),
        ({"sigmas": [0.5, 1.0, 0.3, 0.2]}, "descending order"),
        ({"sigmas": [2.0, 1.0, 0.3, 0.2]}, "sigmas"),
    ],
)
def test_what_a_scheduler_cannot_do_is_refused_before_models_are_loaded(
    tiny_checkpoint: Path, sampling: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        check_request(config_of(tiny_checkpoint, **sampling), Checkpoint(tiny_checkpoint).info)
    assert "\n" not in str(caught.value)


def test_tiny_checkpoint_has_the_shift_that_is_assumed_above() -> None:
    assert tiny.build_scheduler().config.flow_shift == 3.0
