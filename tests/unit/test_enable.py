"""Tests of `enable(pipe)` with Wan: Eq. 4, the engine's video, complete restoration. All pipelines: the matrix."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    UniPCMultistepScheduler,
    WanPipeline,
    WanVideoToVideoPipeline,
)
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanBlocks
from tiny import NUM_BLOCKS, PROMPT, random_lora, tiny_config
from tiny_pipelines import BUILDERS, build_hunyuan_video_15, stable_diffusion_3, wan
from tiny_wan22 import a14b_config
from torch import Tensor, nn

import s2video
from s2video.engine.engine import Engine
from s2video.errors import InputError

SCALE, SEED = 0.4, 5
Run = Callable[[], Tensor]


def run(pipe: Any, arguments: dict[str, Any], num_steps: int = 6) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    done = pipe(
        **arguments,
        num_inference_steps=num_steps,
        output_type="latent",
        generator=torch.Generator().manual_seed(7),
        return_dict=False,
    )
    latents: Tensor = done[0]
    return latents


def watch_steps(pipe: Any) -> list[Tensor]:
    """Record the inputs of the scheduler from now on."""
    given: list[Tensor] = []
    step = pipe.scheduler.step

    def recorded(model_output: Tensor, *arguments: Any, **keywords: Any) -> Any:
        given.append(model_output)
        return step(model_output, *arguments, **keywords)

    pipe.scheduler.step = recorded
    return given


def without_blocks(transformer: nn.Module, dropped: set[int]) -> nn.Module:
    """Return a copy with a shorter block list."""
    shortened = copy.deepcopy(transformer)
    shortened.blocks = nn.ModuleList(block for i, block in enumerate(shortened.blocks) if i not in dropped)
    return shortened


@pytest.mark.parametrize("family", BUILDERS)
def test_one_step_is_equation_4(tiny_checkpoint: Path, family: str) -> None:
    """The scheduler gets CFG − ω(sub − cond), bitwise, where sub is the transformer with shorter block lists."""
    pipe, arguments = BUILDERS[family](tiny_checkpoint)
    calls: list[tuple[Any, Any]] = []
    transformer = getattr(pipe, "transformer_2", None) or pipe.transformer
    forward = transformer.forward
    transformer.forward = lambda *a, **k: calls.append((a, k)) or forward(*a, **k)
    plain = watch_steps(pipe)
    run(pipe, arguments, num_steps=1)
    del transformer.forward, pipe.scheduler.__dict__["step"]
    first, keywords = calls[0]  # cond is called first
    with torch.no_grad():
        cond = transformer(*first, **keywords)[0]
        sub = without_blocks(transformer, {2, 4})(*first, **keywords)[0]
    assert not torch.equal(cond, sub)

    guided = watch_steps(pipe)
    s2video.enable(pipe, s2_scale=SCALE, drop_count=2, never_drop=(0, 1, 3, 5), window=(0, 1))
    run(pipe, arguments, num_steps=1)
    assert torch.equal(guided[0], plain[0] - SCALE * (sub - cond))


def test_enable_and_engine_make_the_same_video(tiny_checkpoint: Path) -> None:
    pipe, arguments = wan(tiny_checkpoint)
    guidance = {"cfg_scale": 5.0, "s2_scale": SCALE, "num_draws": 2, "mask_seed": SEED}
    expected = Engine(tiny_config(tiny_checkpoint, **guidance)).sample([PROMPT], [7])
    untouched = run(pipe, arguments)
    s2video.enable(pipe, s2_scale=SCALE, drop_ratio=0.3, num_draws=2, mask_seed=SEED)
    got = run(pipe, arguments)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert (got - untouched).abs().max() > 1e-3
    assert torch.equal(got, run(pipe, arguments))  # no state is kept between videos


def test_without_cfg(tiny_checkpoint: Path) -> None:
    """λ = 1 makes no uncond call, and S² is still active."""
    pipe, arguments = wan(tiny_checkpoint)
    guidance = {"cfg_scale": 1.0, "s2_scale": SCALE, "mask_seed": SEED}
    s2video.enable(pipe, s2_scale=SCALE, drop_ratio=0.3, mask_seed=SEED)
    got = run(pipe, {**arguments, "guidance_scale": 1.0})
    torch.testing.assert_close(
        got, Engine(tiny_config(tiny_checkpoint, **guidance)).sample([PROMPT], [7]), atol=1e-5, rtol=0
    )


@pytest.fixture
def pipe_and_arguments(tiny_checkpoint: Path) -> tuple[Any, dict[str, Any]]:
    return wan(tiny_checkpoint)


def state_of(pipe: Any) -> tuple[Any, ...]:
    transformer = pipe.transformer
    return (
        type(transformer),
        type(transformer.blocks),
        [id(block) for block in transformer.blocks],
        [name for name in transformer.__dict__ if "s2video" in name],
        "step" in pipe.scheduler.__dict__,
        [name for name, _ in transformer.named_modules()],
        sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in transformer.modules()),
    )


def test_disable_leaves_nothing_behind(pipe_and_arguments: tuple[Any, dict[str, Any]]) -> None:
    pipe, arguments = pipe_and_arguments
    before, untouched = state_of(pipe), run(pipe, arguments)
    s2video.enable(pipe, s2_scale=SCALE)
    assert type(pipe.transformer).__name__ == "WanTransformer3DModel" and isinstance(pipe.transformer, before[0])
    run(pipe, arguments, num_steps=2)
    s2video.disable(pipe)
    assert state_of(pipe) == before
    assert torch.equal(run(pipe, arguments), untouched)
    s2video.disable(pipe)  # a second call has no effect
    s2video.enable(pipe, s2_scale=0)
    assert torch.equal(run(pipe, arguments), untouched)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [0, NUM_BLOCKS + 2], ids=["in-cond", "in-sub"])
def test_an_interrupted_call_leaves_nothing_behind(
    pipe_and_arguments: tuple[Any, dict[str, Any]], error: type[BaseException], call: int
) -> None:
    pipe, arguments = pipe_and_arguments
    before, untouched = state_of(pipe), run(pipe, arguments)
    s2video.enable(pipe, s2_scale=SCALE, window=(0, 1))
    calls = 0

    def fails(module: nn.Module, inputs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            raise error

    hooks = [block.register_forward_pre_hook(fails) for block in pipe.transformer.blocks]
    with pytest.raises(error):
        run(pipe, arguments)
    for hook in hooks:
        hook.remove()
    assert [id(block) for block in pipe.transformer.blocks] == before[2]
    s2video.disable(pipe)
    assert state_of(pipe) == before
    assert torch.equal(run(pipe, arguments), untouched)


def test_a_step_that_was_interrupted_leaves_nothing_to_the_next_video(
    pipe_and_arguments: tuple[Any, dict[str, Any]],
) -> None:
    """Its sub prediction was made, but its scheduler was not stepped; the next video's first step has no S²."""
    pipe, arguments = pipe_and_arguments
    s2video.enable(pipe, s2_scale=SCALE, window=(0.2, 0.8))
    expected = run(pipe, arguments)
    uncond_calls = 0

    def fails(module: nn.Module, inputs: Any, keywords: Any, output: Any) -> None:
        nonlocal uncond_calls
        uncond_calls += module.__dict__["_s2video"].context == "uncond"
        if uncond_calls == 3:
            raise KeyboardInterrupt

    hook = pipe.transformer.register_forward_hook(fails, with_kwargs=True)
    with pytest.raises(KeyboardInterrupt):
        run(pipe, arguments)
    hook.remove()
    assert pipe.__dict__["_s2video"].pushed is None
    assert torch.equal(run(pipe, arguments), expected)


def test_another_scheduler_is_followed(pipe_and_arguments: tuple[Any, dict[str, Any]]) -> None:
    pipe, arguments = pipe_and_arguments
    old = pipe.scheduler
    s2video.enable(pipe, s2_scale=SCALE)
    run(pipe, arguments, num_steps=2)
    pipe.scheduler = UniPCMultistepScheduler.from_config(old.config, flow_shift=5.0)
    exchanged = run(pipe, arguments)
    assert "step" not in old.__dict__
    fresh = WanPipeline(**{**pipe.components, "scheduler": UniPCMultistepScheduler.from_config(pipe.scheduler.config)})
    s2video.disable(pipe)
    s2video.enable(fresh, s2_scale=SCALE)
    assert torch.equal(run(fresh, arguments), exchanged)


def test_one_transformer_in_both_places(pipe_and_arguments: tuple[Any, dict[str, Any]]) -> None:
    """As one that is in the first place alone, and it is left as it was."""
    pipe, arguments = pipe_and_arguments
    before = state_of(pipe)
    s2video.enable(pipe, s2_scale=SCALE)
    expected = run(pipe, arguments)
    s2video.disable(pipe)
    both = WanPipeline(**{**pipe.components, "transformer_2": pipe.transformer}, boundary_ratio=0.5)
    s2video.enable(both, s2_scale=SCALE)
    assert torch.equal(run(both, arguments), expected)
    s2video.disable(both)
    assert state_of(pipe) == before


def test_another_transformer_is_guided_by_the_next_call(pipe_and_arguments: tuple[Any, dict[str, Any]]) -> None:
    pipe, arguments = pipe_and_arguments
    s2video.enable(pipe, s2_scale=SCALE)
    expected = run(pipe, arguments, num_steps=4)
    own = pipe.transformer
    pipe.transformer = copy.deepcopy(own)
    assert torch.equal(run(pipe, arguments, num_steps=4), expected)
    pipe.register_modules(transformer=copy.deepcopy(own))
    assert torch.equal(run(pipe, arguments, num_steps=4), expected)
    pipe.transformer = torch.compile(own, backend="eager")
    with pytest.raises(InputError, match="expected an uncompiled transformer"):
        run(pipe, arguments, num_steps=4)
    s2video.disable(pipe)
    pipe.transformer = own
    assert not torch.equal(run(pipe, arguments, num_steps=4), expected)


def test_pipelines_that_share_a_transformer_keep_their_own_settings(
    pipe_and_arguments: tuple[Any, dict[str, Any]],
) -> None:
    """Enabling or disabling one changes nothing for the other, or for one that was never enabled."""
    pipe, arguments = pipe_and_arguments
    plain, other = (WanPipeline(**pipe.components) for _ in range(2))
    untouched = run(plain, arguments, num_steps=4)
    s2video.enable(pipe, s2_scale=SCALE)
    expected = run(pipe, arguments, num_steps=4)
    s2video.enable(other, s2_scale=2 * SCALE)
    assert torch.equal(run(pipe, arguments, num_steps=4), expected)
    assert not torch.equal(run(other, arguments, num_steps=4), expected)
    assert torch.equal(run(plain, arguments, num_steps=4), untouched)
    s2video.disable(plain)
    s2video.disable(other)
    assert torch.equal(run(pipe, arguments, num_steps=4), expected)
    assert torch.equal(run(other, arguments, num_steps=4), untouched)


def test_other_pipelines_are_made_from_an_enabled_one(pipe_and_arguments: tuple[Any, dict[str, Any]]) -> None:
    pipe, arguments = pipe_and_arguments
    untouched = run(pipe, arguments, num_steps=4)
    s2video.enable(pipe, s2_scale=SCALE)
    expected = run(pipe, arguments, num_steps=4)
    assert WanVideoToVideoPipeline.from_pipe(pipe).transformer is pipe.transformer
    assert torch.equal(run(WanPipeline.from_pipe(pipe), arguments, num_steps=4), untouched)
    assert torch.equal(run(type(pipe).from_pipe(pipe), arguments, num_steps=4), untouched)
    assert torch.equal(run(pipe, arguments, num_steps=4), expected)


@pytest.mark.parametrize("calls_before", [0, 1], ids=["always", "from-the-second-call-on"])
def test_blocks_that_another_wrapper_runs_are_noticed(
    pipe_and_arguments: tuple[Any, dict[str, Any]], calls_before: int
) -> None:
    """A step cache of another package that runs its own list of blocks would make sub equal to cond."""
    pipe, arguments = pipe_and_arguments
    transformer, calls = pipe.transformer, 0
    blocks, forward = transformer.blocks, transformer.forward

    def cached(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        given = transformer._modules["blocks"]
        transformer._modules["blocks"] = blocks if calls > calls_before else given
        try:
            return forward(*arguments, **keywords)
        finally:
            transformer._modules["blocks"] = given

    transformer.forward = cached
    s2video.enable(pipe, s2_scale=SCALE, window=(0, 1))
    with pytest.raises(InputError, match="expected the transformer to run each of its blocks"):
        run(pipe, arguments, num_steps=2)
    assert transformer.blocks is blocks


@pytest.mark.parametrize(
    "level",
    [
        {"offload_type": "leaf_level"},
        {"offload_type": "block_level", "num_blocks_per_group": 1},
        {"offload_type": "block_level", "num_blocks_per_group": 3},
    ],
    ids=["leaves", "blocks", "groups-of-three"],
)
def test_with_group_offload(
    pipe_and_arguments: tuple[Any, dict[str, Any]], tmp_path: Path, level: dict[str, Any]
) -> None:
    """Offload to disk, where weights that are not loaded before use have wrong values."""
    pipe, arguments = pipe_and_arguments
    s2video.enable(pipe, s2_scale=SCALE, drop_count=2, window=(0, 1))
    expected = run(pipe, arguments, num_steps=4)
    s2video.disable(pipe)
    pipe.transformer.enable_group_offload(torch.device("cpu"), offload_to_disk_path=str(tmp_path), **level)
    for parameter in pipe.transformer.blocks.parameters():
        parameter.data.zero_()
    s2video.enable(pipe, s2_scale=SCALE, drop_count=2, window=(0, 1))
    torch.testing.assert_close(run(pipe, arguments, num_steps=4), expected, atol=1e-5, rtol=0)


def test_a_lora_may_come_later(pipe_and_arguments: tuple[Any, dict[str, Any]]) -> None:
    pipe, arguments = pipe_and_arguments
    s2video.enable(pipe, s2_scale=SCALE)
    without = run(pipe, arguments)
    lora = random_lora(pipe.transformer)
    pipe.transformer.load_lora_adapter(lora)
    after = run(pipe, arguments)
    s2video.disable(pipe)
    s2video.enable(pipe, s2_scale=SCALE)
    assert torch.equal(run(pipe, arguments), after)
    assert (after - without).abs().max() > 1e-2
    assert any("lora" in name for name, _ in pipe.transformer.named_modules())


def test_compiled_blocks_are_not_compiled_again_for_another_mask(
    pipe_and_arguments: tuple[Any, dict[str, Any]],
) -> None:
    pipe, arguments = pipe_and_arguments
    s2video.enable(pipe, s2_scale=SCALE, window=(0, 1))
    expected = run(pipe, arguments)
    torch._dynamo.reset()
    for block in pipe.transformer.blocks:
        block.compile(backend="eager", fullgraph=True)
    run(pipe, arguments, num_steps=1)
    with torch._dynamo.config.patch(error_on_recompile=True):
        got = run(pipe, arguments)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_unknown_pipelines_are_refused() -> None:
    with pytest.raises(InputError, match=r"expected one of WanPipeline, .* got Linear"):
        s2video.enable(nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"got WanModularPipeline, which takes a guider; .*S2Guidance"):
        s2video.enable(WanBlocks().init_pipeline())


def test_a_pipeline_whose_guider_does_it_already_is_refused() -> None:
    pipe, arguments = build_hunyuan_video_15()
    s2video.enable(pipe, s2_scale=SCALE, window=(0, 1))
    pipe.guider = s2video.S2Guidance(5.0, start=0.0, stop=1.0)
    with pytest.raises(InputError, match="got the guider S2Guidance"):
        run(pipe, arguments, num_steps=1)
    with pytest.raises(InputError, match="got the guider S2Guidance"):
        s2video.enable(pipe)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"s2_scale": -1.0}, "s2_scale"),
        ({"window": (0.9, 0.1)}, "window"),
        ({"drop_count": NUM_BLOCKS}, "at most 5"),
    ],
)
def test_settings_out_of_bounds_are_refused(
    pipe_and_arguments: tuple[Any, dict[str, Any]], wrong: dict[str, Any], message: str
) -> None:
    before = state_of(pipe_and_arguments[0])
    with pytest.raises(InputError, match=message):
        s2video.enable(pipe_and_arguments[0], **wrong)
    assert state_of(pipe_and_arguments[0]) == before


def test_a_transformer_compiled_or_sharded_as_a_whole_is_refused(
    pipe_and_arguments: tuple[Any, dict[str, Any]],
) -> None:
    transformer = pipe_and_arguments[0].transformer
    transformer.compile(backend="eager")
    with pytest.raises(InputError, match="compile_repeated_blocks"):
        s2video.enable(pipe_and_arguments[0])
    transformer._compiled_call_impl = None
    transformer._parallel_config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=2))
    with pytest.raises(InputError, match="enable_parallelism"):
        s2video.enable(pipe_and_arguments[0])


# reuse, and S² by its push


def counted(transformer: nn.Module) -> list[int]:
    """Count the blocks that run from now on."""
    runs = [0]
    for block in transformer.blocks:
        block.register_forward_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
    return runs


@pytest.mark.parametrize("reuse", ["deviation", "light", "fast", {"sub_every": 3, "sub_until": 0.8}], ids=str)
def test_reuse_makes_the_engine_s_video(tiny_checkpoint: Path, reuse: Any) -> None:
    """With fewer blocks run; a second video does not continue from the first one's predictions."""
    pipe, arguments = wan(tiny_checkpoint)
    guidance = {"cfg_scale": 5.0, "s2_push": 0.1, "mask_seed": SEED, "reuse": reuse}
    config = tiny_config(tiny_checkpoint, **guidance).patched({"sampling.num_inference_steps": 16})
    expected = Engine(config).sample([PROMPT], [7])
    runs = counted(pipe.transformer)
    s2video.enable(pipe, s2_push=0.1, drop_ratio=0.3, mask_seed=SEED, reuse=reuse)
    got = run(pipe, arguments, num_steps=16)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
    first = runs[0]
    assert torch.equal(got, run(pipe, arguments, num_steps=16)) and runs[0] == 2 * first
    masks = Engine(config).mask_schedule([7])
    full = sum((p.cond == "computed") + (p.uncond == "computed") for p in Engine(config).passes(masks))
    assert first == full * NUM_BLOCKS + sum(
        NUM_BLOCKS - min(mask) - len(mask) for step in range(16) for mask in masks.step(step)
    )
    if not isinstance(reuse, str):
        return
    s2video.enable(pipe, drop_ratio=0.3, mask_seed=SEED)
    assert not torch.equal(got, run(pipe, arguments, num_steps=16))


def test_reuse_with_two_transformers(checkpoint_of: Callable[[str], Path]) -> None:
    """Forecasts start again at the turn, as in the engine."""
    folder = checkpoint_of("wan2.2-t2v")
    config = a14b_config(folder, reuse="fast", mask_seed=SEED).patched({"sampling.num_inference_steps": 16})
    pipe = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    s2video.enable(pipe, drop_ratio=0.3, mask_seed=SEED, reuse="fast")
    got = run(pipe, {**wan(folder)[1], "guidance_scale_2": 2.0}, num_steps=16)
    torch.testing.assert_close(got, Engine(config, progress="none").sample([PROMPT], [7]), atol=2e-5, rtol=0)


def test_a_large_scale_is_warned_about(tiny_checkpoint: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Where it multiplies the errors of forecasts, and nowhere else."""
    pipe, arguments = wan(tiny_checkpoint)
    for reuse, scale, count in (("light", 5.0, 1), ("light", 3.0, 0), ("deviation", 5.0, 0)):
        s2video.enable(pipe, reuse=reuse)
        recwarn.clear()
        run(pipe, {**arguments, "guidance_scale": scale}, num_steps=16)
        said = [str(warning.message) for warning in recwarn if "reuse deviation is safer" in str(warning.message)]
        assert len(said) == count and all("enable: guidance.reuse light at cfg_scale 5" in line for line in said)


def test_reuse_is_refused_where_it_cannot_be(tiny_checkpoint: Path) -> None:
    pipe, arguments = wan(tiny_checkpoint)
    s2video.enable(pipe, reuse="fast")
    with pytest.raises(InputError, match="expected at least 16 steps, got 6"):
        run(pipe, arguments)
    both, _ = stable_diffusion_3()
    with pytest.raises(InputError, match="cond and uncond in one call, got light"):
        s2video.enable(both, reuse="light")
    s2video.enable(both, reuse="deviation")
    with pytest.raises(InputError, match=r"s2_scale 0\.5 and s2_push 0\.1"):
        s2video.enable(pipe, s2_scale=0.5, s2_push=0.1)
