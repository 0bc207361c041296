"""Tests of LoRA in the engine: equal to diffusers' pipelines with the same files, and refusals."""

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import HunyuanVideoPipeline, WanPipeline
from peft import LoraConfig as LoraAdapter
from safetensors.torch import save_file
from tiny import MAX_SEQUENCE_LENGTH, PROMPT, SIZE, build_transformer, random_lora, tiny_config
from tiny_hunyuan import build_transformer as build_hunyuan_transformer
from tiny_wan22 import a14b_config, build_a14b
from torch import Tensor, nn

from s2video.cli.main import main
from s2video.config.run import build_config
from s2video.config.sections import LoraConfig
from s2video.engine.engine import Engine
from s2video.errors import InputError
from s2video.models import lora
from s2video.models.checkpoint import Checkpoint
from s2video.models.limits import check_request


def original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename to Wan's original names, as in most published files, with an alpha that halves the change."""
    names = {"attn1": "self_attn", "attn2": "cross_attn", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}
    made = {}
    for key, value in state.items():
        for ours, theirs in names.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
        key = (
            key.replace("transformer.", "diffusion_model.").replace("lora_A", "lora_down").replace("lora_B", "lora_up")
        )
        made[key] = value
        if "lora_down" in key:
            made[key.replace("lora_down.weight", "alpha")] = torch.tensor(value.shape[0] / 2)
    return made


def hunyuan_original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename to HunyuanVideo's original names of the dual blocks' projections, with Q, K and V in one tensor."""
    made = {}
    for key, value in state.items():
        if ".to_q." in key and "single" not in key and "refiner" not in key:
            new = key.replace("transformer.transformer_blocks.", "double_blocks.").replace(
                ".attn.to_q.", ".img_attn_qkv."
            )
            made[new] = value if "lora_A" in new else value.repeat(3, 1)
    return made


def unchanged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


@pytest.mark.parametrize(
    ("pipeline", "build", "name"),
    [
        (WanPipeline, build_transformer, unchanged),
        (WanPipeline, build_transformer, original_names),
        (HunyuanVideoPipeline, build_hunyuan_transformer, unchanged),
        (HunyuanVideoPipeline, build_hunyuan_transformer, hunyuan_original_names),
    ],
)
def test_published_files_are_read_as_the_pipeline_reads_them(
    pipeline: Any, build: Callable[[], nn.Module], name: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    """All layers and values equal those of `load_lora_weights`."""
    ours, theirs = build(), build()
    state = name(random_lora(ours))
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "x.safetensors")
    lora.load_loras(ours, [LoraConfig(path=str(tmp_path))], "transformer", pipeline.__name__)
    nothing = dict.fromkeys(set(inspect.signature(pipeline.__init__).parameters) - {"self"})
    pipe = pipeline(**{**nothing, "transformer": theirs})
    pipe.load_lora_weights(str(tmp_path / "x.safetensors"), adapter_name="lora_1")
    got, wanted = ours.state_dict(), theirs.state_dict()
    assert got.keys() == wanted.keys() and any("lora_A" in key for key in got)
    assert all(torch.equal(got[key], wanted[key]) for key in got)
    assert not any(parameter.requires_grad for parameter in ours.parameters())


@pytest.fixture
def lora_file(tmp_path: Path) -> Path:
    path = tmp_path / "one.safetensors"
    save_file(random_lora(build_transformer()), path)
    return path


def reference(checkpoint: Path, loras: dict[Path, float]) -> Tensor:
    pipe = WanPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    for path in loras:
        pipe.load_lora_weights(str(path), adapter_name=path.stem)
    pipe.set_adapters([path.stem for path in loras], list(loras.values()))
    return latents_of(pipe)


def latents_of(pipe: Any, **scales: float) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    latents: Tensor = pipe(
        PROMPT,
        **SIZE,
        num_inference_steps=6,
        guidance_scale=5.0,
        **scales,
        generator=torch.Generator().manual_seed(3),
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        output_type="latent",
    ).frames
    return latents


def test_the_engine_makes_what_the_pipeline_makes(tiny_checkpoint: Path, lora_file: Path) -> None:
    """Bitwise, with two LoRAs of different ranks, layers and scales."""
    second = lora_file.with_name("two.safetensors")
    save_file(random_lora(build_transformer(), layers="ffn", rank=3, seed=1), second)
    loras = {lora_file: 0.7, second: -0.5}
    given = [{"path": str(path), "scale": scale} for path, scale in loras.items()]
    got = Engine(tiny_config(tiny_checkpoint, lora=given, s2_scale=0.0)).sample([PROMPT], [3])
    assert torch.equal(got, reference(tiny_checkpoint, loras))
    for others in ([], given[:1], [given[0], {**given[1], "scale": 0.5}]):
        other = Engine(tiny_config(tiny_checkpoint, lora=others, s2_scale=0.0)).sample([PROMPT], [3])
        assert (other - got).abs().max() > 1e-2, others


@pytest.mark.parametrize("offload_experts", [False, True])
def test_each_transformer_of_wan_22_has_its_own(lora_file: Path, tmp_path: Path, offload_experts: bool) -> None:
    second = lora_file.with_name("two.safetensors")
    save_file(random_lora(build_transformer(), seed=1), second)
    folder = build_a14b(tmp_path / "wan")
    lora = [{"path": str(lora_file)}, {"path": str(second), "component": "transformer_2", "scale": 0.5}]
    config = a14b_config(folder, lora=lora, s2_scale=0.0)
    model = config.model.model_copy(update={"offload_experts": offload_experts})
    pipe = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.load_lora_weights(str(lora_file), adapter_name="one")
    pipe.load_lora_weights(str(second), adapter_name="two", load_into_transformer_2=True)
    pipe.transformer_2.set_adapters("two", 0.5)
    got = Engine(config.model_copy(update={"model": model})).sample([PROMPT], [3])
    assert torch.equal(got, latents_of(pipe, guidance_scale_2=2.0))


def test_a_file_that_the_transformer_saved(tiny_checkpoint: Path, lora_file: Path, tmp_path: Path) -> None:
    """`save_lora_adapter` writes keys without the transformer's name, and the LoRA's own scale as metadata."""
    transformer = build_transformer()
    transformer.add_adapter(LoraAdapter(r=2, lora_alpha=5, target_modules=["to_q"], init_lora_weights=False))
    transformer.save_lora_adapter(tmp_path / "saved", weight_name="x.safetensors")
    ours = build_transformer()
    lora.load_loras(ours, [LoraConfig(path=str(tmp_path / "saved"))], "transformer", "WanPipeline")
    layer = ours.blocks[0].attn1.to_q
    assert layer.scaling == {"lora_1": 2.5}
    expected = transformer.blocks[0].attn1.to_q.lora_A["default"].weight
    assert torch.equal(layer.lora_A["lora_1"].weight, expected)


def test_the_files_decide_the_video_and_their_places_do_not(tiny_checkpoint: Path, lora_file: Path) -> None:
    """--resume keeps a video if only the LoRA's path changed; another scale makes another video."""
    config = lora_file.with_name("tiny.yaml")
    config.write_text(yaml.safe_dump(tiny_config(tiny_checkpoint).model_dump(mode="json")), encoding="utf-8")
    video = lora_file.with_name("clip.mp4")
    command = ["generate", "--config", str(config), "--output", str(video), "--prompt", PROMPT, "--resume"]
    command += ["--set", "sampling.num_frames=1", "--set", "sampling.num_inference_steps=1"]

    def made(path: Path, scale: float) -> int:
        assert main([*command, "--set", f"model.lora=[{{path: {path}, scale: {scale}}}]"]) == 0
        return video.stat().st_mtime_ns

    first = made(lora_file, 1.0)
    moved = lora_file.rename(lora_file.with_name("moved.safetensors"))
    assert made(moved, 1.0) == first
    second = made(moved, 0.5)
    assert second > first
    save_file(random_lora(build_transformer(), seed=2), moved)
    assert made(moved, 0.5) > second


def test_the_file_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected one \.safetensors file, got none"):
        lora.find_lora(str(tmp_path))
    for name in ("b.safetensors", "pytorch_lora_weights.safetensors"):
        save_file({"x": torch.zeros(1)}, tmp_path / name)
    assert lora.find_lora(str(tmp_path)).name == "pytorch_lora_weights.safetensors"
    (tmp_path / "pytorch_lora_weights.safetensors").rename(tmp_path / "c.safetensors")
    with pytest.raises(InputError, match=r"got b\.safetensors, c\.safetensors; name the file"):
        lora.find_lora(str(tmp_path))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "expected layers of .*got none"),
        ({"transformer.layers.0.to_q.lora_A.weight": torch.zeros(2, 60)}, r"expected layers of .*got layers\.0\.to_q"),
        ({"diffusion_model.x": torch.zeros(1)}, r"expected layers of .*got diffusion_model\.x"),
        (random_lora(build_hunyuan_transformer()), "expected layers of"),
        (random_lora(nn.ModuleDict({"proj_out": nn.Linear(40, 64)}), layers=""), "expected size 60.*got 40"),
        (random_lora(nn.ModuleDict({"proj_out": nn.Linear(60, 62)}), layers=""), "expected size 64.*got 62"),
    ],
    ids=["empty", "other-names", "broken", "other-model", "other-input", "other-output"],
)
def test_files_of_something_else_are_refused(state: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=message):
        lora.load_loras(build_transformer(), [LoraConfig(path=str(tmp_path))], "transformer", "WanPipeline")


def test_pipelines_without_lora_are_refused(tiny_hunyuan15_checkpoint: Path, lora_file: Path) -> None:
    values = tiny_config(tiny_hunyuan15_checkpoint).model_dump(mode="json")
    values["model"]["lora"] = [{"path": str(lora_file)}]
    with pytest.raises(InputError, match="loads no LoRA for this checkpoint's pipeline"):
        check_request(build_config(values), Checkpoint(tiny_hunyuan15_checkpoint).info)


def test_without_peft(tiny_checkpoint: Path, lora_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    with pytest.raises(InputError, match=r"expected peft.*s2video\[lora\]"):
        Engine(tiny_config(tiny_checkpoint, lora=[{"path": str(lora_file)}]))
