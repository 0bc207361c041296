"""Tests of Wan VACE beyond the matrix of families: hints, sharing them, `enable`, weights, LoRA, and refusals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import original_names as original
import pytest
import tiny_vace
import torch
from diffusers import WanVACEPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import NUM_BLOCKS, PROMPT, SIZE, random_lora
from tiny_vace import HINTS_AT, KINDS, UNCONTROLLED
from tiny_wan_i2v import image

import s2video
from s2video.config.named import named_config
from s2video.config.run import RunConfig
from s2video.engine.engine import Engine
from s2video.errors import InputError, StoppedError
from s2video.integrations.blocks import Forks
from s2video.models.checkpoint import Checkpoint, open_checkpoint
from s2video.models.control import Control
from s2video.models.images import Images
from s2video.models.limits import check_inputs, check_request
from s2video.models.loading import load_transformer
from s2video.models.stages import stages_of
from s2video.models.wan_vace.blocks import WanVaceBlockModel
from s2video.parallel.mesh import Mesh
from s2video.planning.cards import CARDS
from s2video.planning.plan import make_plan
from s2video.records.resume import ResumePoint
from s2video.sampling.forward import predict

NEGATIVE = "blue, large"
KIND = KINDS["wan-vace"]
CPU = torch.device("cpu")
PIXELS = SIZE["width"], SIZE["height"]


@pytest.fixture(scope="module")
def folder(checkpoint_of: Callable[[str], Path]) -> Path:
    return checkpoint_of("wan-vace")


def short(config: RunConfig, **changes: Any) -> RunConfig:
    return config.patched({"sampling.num_inference_steps": 2, **changes})


def test_without_control_it_is_the_pipeline_without_control(folder: Path) -> None:
    config = short(UNCONTROLLED.config(folder, s2_scale=0.0, cfg_scale=3.0))
    got = Engine(config).sample([PROMPT], [3], negative_prompt=NEGATIVE)
    assert torch.equal(got, UNCONTROLLED.reference(folder, config, PROMPT, NEGATIVE, 3))


@pytest.mark.parametrize("last", [None, image(2)], ids=["first", "first and last"])
def test_images_are_frames_that_are_kept(folder: Path, last: Image.Image | None) -> None:
    """As in the example of diffusers' pipeline."""
    grey, size = Image.new("RGB", PIXELS, (128, 128, 128)), SIZE["num_frames"]
    video, mask = [grey] * size, [Image.new("L", PIXELS, 255)] * size
    video[0], mask[0] = image(1), Image.new("L", PIXELS, 0)
    if last is not None:
        video[-1], mask[-1] = last, mask[0]
    kind = tiny_vace.Kind(Control(tuple(video), tuple(mask)))
    config = short(kind.config(folder, s2_scale=0.0, cfg_scale=1.0))
    got = Engine(config).sample([PROMPT], [3], images=Images(image(1), last))
    assert torch.equal(got, kind.reference(folder, config, PROMPT, NEGATIVE, 3))


def test_each_part_of_control_and_its_scale_count(folder: Path) -> None:
    control = KIND.control
    assert control is not None
    parts = {
        "all": control,
        "no mask": control._replace(mask=()),
        "no references": control._replace(references=()),
        "references alone": Control(references=control.references),
        "one reference": control._replace(references=control.references[:1]),
    }
    config = short(KIND.config(folder, s2_scale=0.0, cfg_scale=1.0))
    made = {name: Engine(config).sample([PROMPT], [3], images=part) for name, part in parts.items()}
    made["another scale"] = Engine(config.patched({"control.scale": 0.5})).sample([PROMPT], [3], images=control)
    assert len({latents.shape for latents in made.values()}) == 1  # references leave no frames
    values = list(made.values())
    assert all(not torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])


def test_enable_and_engine_make_the_same_video(folder: Path) -> None:
    """In both, hints are added after dropped blocks."""
    guidance = {"cfg_scale": 4.0, "s2_scale": 0.4, "num_draws": 2, "mask_seed": 5, "window": (0, 1)}
    config = short(KIND.config(folder, **guidance))
    expected = Engine(config).sample([PROMPT], [3], negative_prompt=NEGATIVE, images=KIND.control)
    pipe = WanVACEPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    s2video.enable(pipe, s2_scale=0.4, drop_ratio=0.3, num_draws=2, mask_seed=5, window=(0, 1))
    sampling = config.sampling
    got = pipe(
        PROMPT,
        NEGATIVE,
        **KIND.arguments(),
        width=sampling.width,
        height=sampling.height,
        num_frames=sampling.num_frames,
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
        max_sequence_length=sampling.max_sequence_length,
        output_type="latent",
    ).frames
    torch.testing.assert_close(got[:, :, 2:], expected, atol=1e-5, rtol=0)  # combined in another order


def test_sub_computes_no_hint_and_a_dropped_block_keeps_its_own() -> None:
    """To the bit the predictions of a module with nothing in the blocks' place, and those of `enable`."""
    transformer = tiny_vace.build_transformer()
    model, calls = WanVaceBlockModel(transformer), []
    for number, block in enumerate(transformer.vace_blocks):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    latents = torch.randn(2, 16 + tiny_vace.CONTROL_CHANNELS, 5, 10, 14, generator=torch.Generator().manual_seed(1))
    cond = tiny_vace.conditioning(transformer, 2)
    time = torch.tensor([700.0, 700.0])
    masks = [tuple(HINTS_AT), (0, 1)]
    made = predict(model, latents, time, mesh=Mesh(CPU), cond=cond, masks=masks)
    assert calls == [0, 1, 2]
    for mask, sub in zip(masks, made.subs, strict=True):
        reference = tiny_vace.build_transformer()
        for index in mask:
            tiny_vace.leave_out(reference, "blocks", index)
        assert torch.equal(sub, tiny_vace.forward(reference, latents, time, cond))
    plugin = Forks(tiny_vace.build_transformer(), masks)
    with plugin.recording():
        assert torch.equal(tiny_vace.forward(plugin._transformer, latents, time, cond), made.cond)
    for mask, sub in zip(masks, made.subs, strict=True):
        with plugin.replaying(mask):
            assert torch.equal(tiny_vace.forward(plugin._transformer, latents, time, cond), sub)


def test_stages_are_the_blocks_with_control_before_those_that_take_a_hint(folder: Path) -> None:
    assert [block for block, hint in stages_of(4, (1, 3)) if hint is None] == [0, 1, 2, 3]
    names = Checkpoint(folder).family.block_names(tiny_vace.build_transformer())
    assert names[:5] == ["vace_blocks.0", "blocks.0", "blocks.1", "vace_blocks.1", "blocks.2"]
    assert len(names) == NUM_BLOCKS + len(HINTS_AT)


def test_streamed_weights_make_the_same_video(folder: Path) -> None:
    config = short(KIND.config(folder, cfg_scale=1.0, window=(0, 1)))
    whole, streamed = (
        Engine(config.patched({"parallel.weights": kind})).sample([PROMPT], [3], images=KIND.control)
        for kind in ("replicated", "streamed")
    )
    assert torch.equal(whole, streamed)


def test_an_interrupted_run_continues_with_its_references(folder: Path, tmp_path: Path) -> None:
    """The resume point holds their frames, the result does not; with fewer references it is refused."""
    config = KIND.config(folder, cfg_scale=1.0)

    def run(control: Control | None, stop_after: int = 99, **resume: bool) -> torch.Tensor:
        engine = Engine(config)
        point = ResumePoint(tmp_path / "x.safetensors", engine.mesh, engine.digests.of_denoising, **resume)
        on_step: Callable[[int, int], object] = lambda done, total: done < stop_after  # noqa: E731
        return engine.sample([PROMPT], [3], images=control, resume_point=point, on_step=on_step)

    whole = run(KIND.control)
    with pytest.raises(StoppedError, match="step 2 of 4"):
        run(KIND.control, stop_after=2)
    assert KIND.control is not None
    with pytest.raises(InputError, match="images"):
        run(KIND.control._replace(references=KIND.control.references[:1]), resume=True)
    assert torch.equal(run(KIND.control, resume=True), whole) and whole.shape[2] == 5


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_single_file_in_the_original_names(folder: Path, tmp_path: Path, prefix: str) -> None:
    state = load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
    file = original.write(original.wan_transformer(state), tmp_path / "vace.safetensors", prefix)
    opened = open_checkpoint(str(folder), files=(("transformer", str(file)),))
    loaded = load_transformer(opened, torch.float32, CPU).state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)


def test_a_lora_reaches_both_kinds_of_blocks(folder: Path, tmp_path: Path) -> None:
    tensors = random_lora(tiny_vace.build_transformer())
    assert {name.split(".")[1] for name in tensors} == {"blocks", "vace_blocks"}
    save_file(tensors, tmp_path / "lora.safetensors")
    config = short(KIND.config(folder, s2_scale=0.0, cfg_scale=1.0))
    engine = Engine(config.patched({"model.lora": [{"path": str(tmp_path / "lora.safetensors"), "scale": 0.5}]}))
    assert engine.loras[0].num_applied == len(tensors)
    pipe = WanVACEPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(tensors, adapter_name="one")
    pipe.set_adapters("one", 0.5)
    expected = pipe(
        PROMPT,
        **KIND.arguments(),
        width=config.sampling.width,
        height=config.sampling.height,
        num_frames=config.sampling.num_frames,
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(3),
        max_sequence_length=config.sampling.max_sequence_length,
        output_type="latent",
    ).frames
    assert torch.equal(engine.sample([PROMPT], [3], images=KIND.control), expected[:, :, 2:])


def test_a_plan_counts_references_and_control() -> None:
    """A reference is a latent frame; sub runs no control: of 30 blocks and 15 of control it saves a third of a pass."""
    alone, with_two, without_s2 = (
        make_plan(named_config("wan2.1-vace-1.3b-480p").patched(changes), 1, CARDS["H100"])
        for changes in ({}, {"control.references": ["a.png", "b.png"]}, {"guidance.s2_scale": 0})
    )
    assert (alone.step.num_tokens, with_two.step.num_tokens) == (21 * 1560, 23 * 1560)
    assert alone.step.image_encoding_bytes > 6e9
    sub = alone.best.forecast.passes - without_s2.best.forecast.passes
    assert without_s2.best.forecast.passes == 2
    assert sub == pytest.approx(0.8 * 0.65 * 30 / 45, rel=0.02)  # window, share after the fork, control


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vace_layers": [1, 3]}, "vace_layers: expected indices of the 6 blocks, ascending, the first 0"),
        ({"vace_layers": [0, 3, 2]}, "ascending"),
        ({"vace_layers": [0, 9]}, "got \\[0, 9\\]"),
        ({"vace_layers": "all"}, "got all"),
        ({"vace_in_channels": 32}, "vace_in_channels: expected 96"),
        ({"image_dim": 1280}, "image_dim: expected null"),
    ],
    ids=str,
)
def test_other_kinds_of_control_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "vace"))
    path = copy / "transformer/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InputError, match=message) as caught:
        _ = Checkpoint(copy).info
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("wan", {"control.video": "x.mp4"}, "control: expected none for this checkpoint"),
        ("wan", {"control.scale": 0.5}, "control.scale: expected 1 for this checkpoint"),
        ("wan-vace", {"image": "x.png", "control.references": ["y.png"]}, "image: expected none together with control"),
        ("wan-vace", {"control.scale": [1, 2]}, "control.scale: expected a number, or 3, .* got 2"),
        ("wan-vace", {"control.references": ["a.png"] * 4, "sampling.num_frames": 241}, "expected at most 237"),
    ],
)
def test_what_checkpoints_take(
    checkpoint_of: Callable[[str], Path], family: str, changes: dict[str, Any], message: str
) -> None:
    info = Checkpoint(checkpoint_of(family)).info
    config = UNCONTROLLED.config(checkpoint_of(family)).patched({"control.scale": 1.0})
    check_request(config, info)
    check_inputs(info, config)
    with pytest.raises(InputError, match=message):
        check_request(config.patched(changes), info)
        check_inputs(info, config.patched(changes))
