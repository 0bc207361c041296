"""Tests of Wan 2.2: two transformers, each with its own λ, and one timestep per token; λ = 1 with S²."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import WanPipeline
from families import FAMILIES
from tiny import MAX_SEQUENCE_LENGTH, NUM_BLOCKS, PROMPT, RESIDUAL_Z_DIM, job
from tiny_wan22 import BOUNDARY_RATIO, TI2V_SIZE
from torch import Tensor, nn

from s2video.config.run import RunConfig, build_config
from s2video.engine.decode_latents import decode_latents
from s2video.engine.engine import Engine
from s2video.engine.make_video import make_video
from s2video.errors import InputError
from s2video.guidance.masks import step_masks
from s2video.media.video import probe_video
from s2video.models import experts as experts_module
from s2video.models.checkpoint import Checkpoint
from s2video.models.experts import Expert, Experts
from s2video.models.limits import check_request
from s2video.parallel.offload import Copied
from s2video.parallel.weights import WHOLE
from s2video.sampling import denoiser as denoising

CheckpointOf = Callable[[str], Path]
A14B, TI2V, TI2V_WITH_IMAGE = "wan2.2-t2v", "wan2.2-ti2v", "wan2.2-ti2v, with an image"


def changed(config: RunConfig, section: str, **values: Any) -> RunConfig:
    dumped = config.model_dump(mode="json")
    dumped[section] |= values
    return build_config(dumped)


# values of checkpoints, and refusals


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_bounds(checkpoint_of: CheckpointOf) -> None:
    a14b, ti2v = (Checkpoint(checkpoint_of(name)).info for name in (A14B, TI2V))
    assert (a14b.boundary_ratio, a14b.num_blocks, a14b.image) == (BOUNDARY_RATIO, NUM_BLOCKS, "none")
    assert (ti2v.boundary_ratio, ti2v.image, ti2v.last_image) == (None, "optional", "none")
    assert (ti2v.spatial_factor, ti2v.latent_channels, ti2v.time_per_token) == (16, RESIDUAL_Z_DIM, True)
    assert ti2v == Checkpoint(checkpoint_of(TI2V_WITH_IMAGE)).info
    names = [json.loads((checkpoint_of(n) / "model_index.json").read_text()) for n in (TI2V, TI2V_WITH_IMAGE)]
    assert [name["_class_name"] for name in names] == ["WanPipeline", "WanImageToVideoPipeline"]


def test_both_transformers_count(checkpoint_of: CheckpointOf) -> None:
    digests = Checkpoint(checkpoint_of(A14B)).weight_digests()
    assert {name.split("/")[0] for name in digests} == {"text_encoder", "transformer", "transformer_2", "vae"}
    assert len(set(digests.values())) == len(digests)


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "fewer blocks": (
        lambda folder: edit_json(folder / "transformer_2/config.json", num_layers=5),
        "transformer_2: num_blocks: expected 6 as in transformer, got 5",
    ),
    "other patches": (
        lambda folder: edit_json(folder / "transformer_2/config.json", patch_size=[1, 4, 4]),
        r"transformer_2: patch_size: expected \(1, 2, 2\) .* got \(1, 4, 4\)",
    ),
    "no boundary": (
        lambda folder: edit_json(folder / "model_index.json", boundary_ratio=None),
        "boundary_ratio: expected a number from 0 to 1.* got None",
    ),
    "a boundary outside": (
        lambda folder: edit_json(folder / "model_index.json", boundary_ratio=875),
        "boundary_ratio: expected a number from 0 to 1.* got 875",
    ),
    "a boundary for one": (
        lambda folder: edit_json(folder / "model_index.json", transformer_2=[None, None]),
        "boundary_ratio: expected null without transformer_2, got 0.875",
    ),
    "the second one missing": (
        lambda folder: shutil.rmtree(folder / "transformer_2"),
        "expected a folder transformer_2/",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_no_pair_is_refused(checkpoint_of: CheckpointOf, tmp_path: Path, name: str) -> None:
    spoil, message = SPOILT[name]
    folder = Path(shutil.copytree(checkpoint_of(A14B), tmp_path / "a14b"))
    spoil(folder)
    with pytest.raises(InputError, match=message):
        Checkpoint(folder).check()
        _ = Checkpoint(folder).info


@pytest.mark.parametrize(
    ("family", "section", "values", "message"),
    [
        ("wan", "guidance", {"cfg_scale_2": 3.0}, r"guidance\.cfg_scale_2: expected null .* got 3"),
        ("wan", "model", {"offload_experts": True}, r"model\.offload_experts: expected .* two transformers"),
        (A14B, "parallel", {"weights": "streamed"}, r"model\.offload_experts: .* replicated, .* got streamed"),
        (
            A14B,
            "parallel",
            {"weights": "fsdp"},
            r"model\.offload_experts: .* replicated, .* got fsdp; set it to false$",
        ),
        (A14B, "guidance", {"cfg_scale": 1.0}, r"parallel\.branch: .*guidance\.cfg_scale 1 makes no uncond"),
        (A14B, "guidance", {"cfg_scale_2": 1.0}, r"parallel\.branch: .*guidance\.cfg_scale_2 1 makes no uncond"),
        (TI2V, "sampling", {"height": 176}, r"sampling\.height: expected a multiple of 32, got 176"),
    ],
)
def test_settings_that_make_no_sense(
    checkpoint_of: CheckpointOf, family: str, section: str, values: dict[str, Any], message: str
) -> None:
    folder = checkpoint_of(family)
    config = FAMILIES[family].config(folder, cfg_scale_2=3.0) if family == A14B else FAMILIES[family].config(folder)
    check_request(config, Checkpoint(folder).info)
    if family == A14B:
        config = changed(changed(config, "model", offload_experts=section == "parallel"), "parallel", branch=2)
    with pytest.raises(InputError, match=message):
        check_request(changed(config, section, **values), Checkpoint(folder).info, world_size=2)


# the active transformer


def pair(device: torch.device | None, boundary: float) -> Experts:
    model: Any = None
    modules = {"high": nn.Linear(1, 1), "low": nn.Linear(1, 1)}
    return Experts([Expert(model, WHOLE, module) for module in modules.values()], boundary=boundary, device=device)


def test_one_leaves_before_the_other_comes_once_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device may not hold both."""
    log: list[str] = []
    names = iter(("high", "low"))

    class Logged(Copied):
        def __init__(self, module: nn.Module, device: torch.device) -> None:
            super().__init__(module, device, pins_from=0)
            self.name = next(names)

        def bring(self) -> None:
            log.extend([] if self._is_here else [f"{self.name} comes"])
            super().bring()

        def release(self) -> None:
            log.extend([f"{self.name} leaves"] if self._is_here else [])
            super().release()

    monkeypatch.setattr(experts_module, "keep_on_cpu", Logged)
    experts = pair(torch.device("cpu"), 875.0)
    for expected in (
        ["high comes", "high leaves", "low comes"],
        ["low leaves", "high comes", "high leaves", "low comes"],
    ):
        for timestep in (1000, 875, 874, 10):
            module = experts.take_turn(experts.index_at(torch.tensor(timestep))).module
            assert [p.numel() for p in module.parameters()] == [1, 1]
        assert log == expected
        log.clear()
    pair(None, 875.0).take_turn(1)
    assert log == []


@pytest.mark.parametrize("boundary", [875.0, 875.1])
def test_turns_are_compared_as_diffusers_does_it(boundary: float) -> None:
    """875.1 is slightly smaller as float32 than as a Python float, but not below the boundary."""
    experts = pair(None, boundary)
    for timestep in (torch.tensor(boundary), torch.tensor(875), torch.tensor(874.9), torch.tensor(900)):
        assert experts.index_at(timestep) == (0 if timestep >= boundary else 1)
    assert experts.index_at(torch.tensor(boundary)) == 0


def test_offloading_changes_no_bit(checkpoint_of: CheckpointOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are packed and copied as on a GPU."""
    config = FAMILIES[A14B].config(checkpoint_of(A14B))
    monkeypatch.setattr(experts_module, "keep_on_cpu", lambda module, device: Copied(module, device, pins_from=0))
    engine = Engine(changed(config, "model", offload_experts=True))
    first, again = (engine.sample([PROMPT], [3]) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(first, Engine(config).sample([PROMPT], [3]))


# Eq. 4 by hand


def by_hand(folder: Path, config: RunConfig, seed: int) -> Tensor:
    """Sample with diffusers' modules and scheduler, and shorter block lists for sub."""
    pipeline = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    cond, uncond = (
        pipeline.encode_prompt([text], do_classifier_free_guidance=False, max_sequence_length=MAX_SEQUENCE_LENGTH)[0]
        for text in (PROMPT, "")
    )
    guidance, num_steps = config.guidance, config.sampling.num_inference_steps
    latents = torch.randn(1, 16, 5, 10, 14, generator=torch.Generator().manual_seed(seed))
    pipeline.scheduler.set_timesteps(num_steps)
    for step, timestep in enumerate(pipeline.scheduler.timesteps):
        model, cfg_scale = pipeline.transformer, guidance.cfg_scale
        if pipeline.config.boundary_ratio is not None and timestep < pipeline.config.boundary_ratio * 1000:
            model, cfg_scale = pipeline.transformer_2, guidance.cfg_scale_2 or guidance.cfg_scale
        times, blocks = timestep.expand(1), model.blocks
        prediction = of_cond = model(latents, times, cond, return_dict=False)[0]
        if cfg_scale != 1:
            of_uncond = model(latents, times, uncond, return_dict=False)[0]
            prediction = of_uncond + cfg_scale * (of_cond - of_uncond)
        for mask in step_masks(guidance.mask_spec(), num_blocks=NUM_BLOCKS, seed=seed, step=step, num_steps=num_steps):
            model.blocks = nn.ModuleList(block for index, block in enumerate(blocks) if index not in mask)
            of_sub = model(latents, times, cond, return_dict=False)[0]
            model.blocks = blocks
            prediction = prediction - guidance.s2_scale * (of_sub - of_cond)
        latents = pipeline.scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize(
    ("family", "scales", "num_steps", "with_uncond"),
    [
        ("wan", (1.0, None), 4, [False] * 4),
        (A14B, (1.0, None), 4, [False] * 4),
        (A14B, (3.0, 1.0), 6, [True] * 2 + [False] * 4),
        (A14B, (1.0, 3.0), 6, [False] * 2 + [True] * 4),
        (A14B, (3.0, None), 6, [True] * 6),
    ],
    ids=["few-steps", "few-steps-of-two", "uncond-first", "uncond-second", "one-scale-for-both"],
)
def test_eq_4_with_the_scale_of_each(
    checkpoint_of: CheckpointOf,
    family: str,
    scales: tuple[float, float | None],
    num_steps: int,
    with_uncond: list[bool],
) -> None:
    """λ = 1, for models distilled to few steps, makes no uncond pass, and S² is still active."""
    folder = checkpoint_of(family)
    config = FAMILIES[family].config(folder, cfg_scale=scales[0], **({"cfg_scale_2": scales[1]} if scales[1] else {}))
    config = changed(config, "sampling", num_inference_steps=num_steps)
    config = changed(config, "guidance", cfg_scale_2=scales[1])
    predict, made = denoising.predict, []

    def spied(*args: Any, uncond: Any, **kwargs: Any) -> Any:
        made.append(uncond is not None)
        return predict(*args, uncond=uncond, **kwargs)

    with torch.no_grad():
        expected = by_hand(folder, config, 3)
    with mock.patch.object(denoising, "predict", spied):
        engine = Engine(config)
        got = engine.sample([PROMPT], [3])
    assert made == with_uncond
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert (got - engine.with_guidance(s2_scale=0.0).sample([PROMPT], [3])).abs().max() > 1e-2


# through the whole engine


@pytest.mark.parametrize(
    ("family", "dtypes"),
    [
        ("wan", {"dtype": "bfloat16", "text_encoder_dtype": "float16", "vae_dtype": "float32"}),
        (A14B, {"dtype": "float16", "text_encoder_dtype": "bfloat16", "vae_dtype": "float32"}),
        (TI2V_WITH_IMAGE, {"dtype": "bfloat16", "text_encoder_dtype": "float16", "vae_dtype": "bfloat16"}),
    ],
)
def test_each_component_has_its_own_dtype(checkpoint_of: CheckpointOf, family: str, dtypes: dict[str, str]) -> None:
    tiny = FAMILIES[family]
    config = tiny.config(checkpoint_of(family))
    wide, narrow = (
        Engine(changed(config, "model", **dtype)).sample([PROMPT], [3], images=tiny.images) for dtype in ({}, dtypes)
    )
    error = (narrow - wide).norm() / wide.norm()
    assert 1e-5 < error < 0.05
    frames = torch.cat(list(Engine(changed(config, "model", **dtypes)).decode(narrow)))
    assert frames.shape[0] == config.sampling.num_frames and frames.isfinite().all()


def test_the_residual_vae_from_latents_to_files(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    config = changed(FAMILIES[TI2V].config(checkpoint_of(TI2V)), "sampling", num_inference_steps=1)
    video = make_video(Engine(config), job(config, tmp_path / "clip.mp4", keep_latents=True))
    assert video is not None
    again = decode_latents(tmp_path / "clip.latents.safetensors", tmp_path / "again.mp4")
    for info in map(probe_video, (video, again)):
        assert (info.width, info.height, info.num_frames) == tuple(TI2V_SIZE.values())
