"""Weights in files of other programs: every format of every component gives what the folder gives, or is refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import original_names as original
import pytest
import tiny
import torch
import yaml
from diffusers import AutoencoderKLWan
from families import FAMILIES
from original_names import State
from safetensors.torch import load_file
from tiny import PROMPT
from tiny_hunyuan import tiny_config as hunyuan_config
from tiny_wan22 import a14b_config, build_a14b
from torch import Tensor
from wide_wan import CPU, Q8, Wide, gguf_of, wide_transformer

from s2video.cli.main import main
from s2video.config.sections import ParallelConfig
from s2video.engine.decode_latents import decode_latents
from s2video.engine.engine import Engine
from s2video.errors import InputError
from s2video.models.checkpoint import Checkpoint, open_checkpoint
from s2video.models.loading import load_conditioners, load_transformer
from s2video.models.parts import place_transformer
from s2video.parallel.mesh import Mesh
from s2video.records.sidecar import save_latents
from s2video.records.sidecar_model import read_sidecar


def f16(state: State) -> State:
    return {name: value.half() for name, value in state.items()}


def file_of(names: Callable[[State], State], prefix: str = "") -> Callable[[State, Path], Path]:
    return lambda state, folder: original.write(names(state), folder / "x.safetensors", prefix)


def same(state: State) -> State:
    return state


def one_for_all(state: State, folder: Path) -> Path:
    """ComfyUI's whole models hold the tensors of all components."""
    named = {f"model.diffusion_model.{name}": value for name, value in original.wan_transformer(state).items()}
    return original.write({**named, "first_stage_model.x": torch.ones(1)}, folder / "x.safetensors")


EXACT: dict[tuple[str, str], Callable[[State, Path], Path]] = {
    ("transformer", "diffusers' names"): file_of(same),
    ("transformer", "original names"): file_of(original.wan_transformer),
    ("transformer", "diffusion_model."): file_of(original.wan_transformer, "diffusion_model."),
    ("transformer", "model.diffusion_model."): file_of(original.wan_transformer, "model.diffusion_model."),
    ("transformer", "whole model of ComfyUI"): one_for_all,
    ("transformer", "shards"): lambda state, folder: original.write_shards(
        original.wan_transformer(state), folder, index=False
    ),
    ("transformer", "index"): lambda state, folder: (
        original.write_shards(original.wan_transformer(state), folder).parent / "model.safetensors.index.json"
    ),
    ("transformer", "folder"): lambda state, folder: original.write_shards(state, folder / "t", index=False).parent,
    ("transformer", "GGUF F32"): gguf_of(original.wan_transformer, "wan", gguf.GGMLQuantizationType.F32),
    ("vae", "diffusers' names"): file_of(same),
    ("vae", "original names"): file_of(original.wan_vae),
    ("vae", "first_stage_model."): file_of(original.wan_vae, "first_stage_model."),
    ("text_encoder", "transformers' names"): file_of(same),
    ("text_encoder", "original names"): file_of(original.wan_t5),
    ("text_encoder", "with its tokenizer"): lambda state, folder: original.write(
        {**state, "spiece_model": torch.ones(9, dtype=torch.uint8)}, folder / "x.safetensors"
    ),
    ("text_encoder", "shards"): lambda state, folder: original.write_shards(state, folder, index=False),
    ("text_encoder", "GGUF F32"): gguf_of(original.llama_cpp_t5, "t5encoder", gguf.GGMLQuantizationType.F32),
}


@pytest.mark.parametrize(("component", "form"), EXACT)
def test_every_format_gives_what_the_folder_gives(wide: Wide, component: str, form: str, tmp_path: Path) -> None:
    """All weights bitwise; latents and frames within rounding, because MKL's last bits depend on memory addresses."""
    file = EXACT[component, form](wide.states[component], tmp_path)
    loaded = wide.loaded(component, **{component: str(file)}).state_dict()
    expected = wide.loaded(component).state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)
    latents, frames = wide.made(**{component: str(file)})
    torch.testing.assert_close(latents, wide.latents, atol=1e-4, rtol=0)
    assert (frames is None) == (component != "vae")
    if frames is not None:
        torch.testing.assert_close(frames, wide.frames, atol=1e-4, rtol=0)


def test_half_precision_is_that_of_a_folder_in_half_precision(wide: Wide, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(wide.folder, tmp_path / "wan"))
    halves = f16(wide.states["transformer"])
    original.write(halves, copy / "transformer" / "diffusion_pytorch_model.safetensors")
    file = original.write(original.wan_transformer(halves), tmp_path / "x.safetensors")
    expected = Engine(wide.config().patched({"model.path": str(copy)})).sample([PROMPT], [3])
    torch.testing.assert_close(wide.made(transformer=str(file))[0], expected, atol=1e-4, rtol=0)
    assert (expected - wide.latents).abs().max() > 2e-4


QUANTIZED: dict[tuple[str, str], tuple[Callable[[State, Path], Path], float]] = {
    # the largest error allowed, relative to the norm of the latents: about twice what was measured
    ("transformer", "fp8_scaled"): (file_of(lambda s: original.fp8_scaled(original.wan_transformer(s))), 0.04),
    ("transformer", "fp8_scaled, by row"): (
        file_of(lambda s: original.fp8_scaled(original.wan_transformer(s), by_row=True), "diffusion_model."),
        0.04,
    ),
    ("transformer", "fp8, comfy_quant"): (
        file_of(lambda s: original.fp8_scaled(original.wan_transformer(s), form="weight_scale")),
        0.04,
    ),
    ("transformer", "GGUF Q8_0"): (gguf_of(original.wan_transformer, "wan", Q8), 0.01),
    ("transformer", "GGUF Q8_0, in rows of 256"): (
        gguf_of(original.wan_transformer, "wan", Q8, rows_of_256=True),
        0.01,
    ),
    ("transformer", "GGUF Q4_0"): (gguf_of(original.wan_transformer, "wan", gguf.GGMLQuantizationType.Q4_0), 0.2),
    ("text_encoder", "fp8_scaled"): (file_of(original.fp8_scaled), 0.03),
    ("text_encoder", "GGUF Q8_0"): (gguf_of(original.llama_cpp_t5, "t5encoder", Q8), 0.01),
}


@pytest.mark.parametrize(("component", "form"), QUANTIZED)
def test_quantized_files_are_dequantized_by_their_scales(wide: Wide, component: str, form: str, tmp_path: Path) -> None:
    """The error is that of the format: without the scales, the latents would be off by more than their own norm."""
    make, limit = QUANTIZED[component, form]
    latents, _ = wide.made(**{component: str(make(wide.states[component], tmp_path))})
    error = float((latents - wide.latents).norm() / wide.latents.norm())
    print(f"{component}, {form}: {error:.4f}")
    assert 0 < error < limit


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_read_block_by_block(wide: Wide, kind: str, tmp_path: Path) -> None:
    """Any part of a tensor is the same part of the whole, as the gguf package dequantizes it."""
    from s2video.models.layout import read_layout
    from s2video.models.weight_files import read_weight_file

    number = gguf.GGMLQuantizationType[kind]
    blocks = original.random_blocks((6, 768), number, seed=1)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "wan")
    writer.add_tensor("other", torch.ones(3).numpy())
    writer.add_tensor("layer.weight", blocks, raw_dtype=number)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    whole = torch.from_numpy(gguf.quants.dequantize(blocks, number))
    assert whole.shape == (6, 768) and torch.isfinite(whole).all() and whole.std() > 0
    file = read_weight_file(tmp_path / "x.gguf", "x")
    layout = read_layout([file], "transformer", "None", {}, ["layer.weight", "other"])
    assert torch.equal(layout.tensor("layer.weight"), whole)
    for start, stop in ((0, 1), (255, 257), (700, 2900), (4607, 4608)):
        assert torch.equal(layout.read("layer.weight", start, stop), whole.flatten()[start:stop])


@pytest.mark.parametrize("form", ["original names", "fp8_scaled", "GGUF Q8_0"])
def test_parts_are_those_of_the_whole(wide: Wide, form: str, tmp_path: Path) -> None:
    """Streamed weights, bitwise; `test_single_files_on_ranks` has sharded ones."""
    make = EXACT.get(("transformer", form)) or QUANTIZED["transformer", form][0]
    file = make(wide.states["transformer"], tmp_path)
    checkpoint = open_checkpoint(*wide.config(transformer=str(file)).model.source)
    whole = load_transformer(checkpoint, torch.bfloat16, CPU)
    streamed, weights = place_transformer(checkpoint, torch.bfloat16, Mesh(CPU), ParallelConfig(weights="streamed"))
    expected = dict(whole.named_parameters())
    for name, parameter in streamed.named_parameters():
        if not name.startswith("blocks."):
            assert torch.equal(parameter, expected[name]) and parameter.dtype == expected[name].dtype
    for index in range(2):
        with weights.block(index):
            for name, parameter in streamed.blocks[index].named_parameters():
                assert torch.equal(parameter, expected[f"blocks.{index}.{name}"]), name


def test_each_transformer_of_wan_22_has_its_own_file(tmp_path: Path) -> None:
    folder = build_a14b(tmp_path / "wan")
    config = a14b_config(folder).patched({"sampling.num_inference_steps": 3})
    expected = Engine(config).sample([PROMPT], [3])
    files = {}
    for name in ("transformer", "transformer_2"):
        state = load_transformer(Checkpoint(folder), torch.float32, CPU, name).state_dict()
        files[f"model.{name}"] = str(original.write(original.wan_transformer(state), tmp_path / f"{name}.safetensors"))
        for path in (folder / name).glob("*.safetensors"):
            path.unlink()  # not needed any more
    for offload in (False, True):
        changed = config.patched({**files, "model.offload_experts": offload})
        torch.testing.assert_close(Engine(changed).sample([PROMPT], [3]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", ["original names", "GGUF"])
def test_hunyuan_video(tiny_hunyuan_checkpoint: Path, form: str, tmp_path: Path) -> None:
    """Joined matrices are split, and halves change places, as Tencent's files need it."""
    state = load_transformer(Checkpoint(tiny_hunyuan_checkpoint), torch.float32, CPU).state_dict()
    make = file_of if form == "original names" else lambda names: gguf_of(names, "hyvid", gguf.GGMLQuantizationType.F32)
    file = make(original.hunyuan_transformer)(state, tmp_path)
    config = hunyuan_config(tiny_hunyuan_checkpoint)
    got = Engine(config.patched({"model.transformer": str(file)})).sample([PROMPT], [3])
    torch.testing.assert_close(got, Engine(config).sample([PROMPT], [3]), atol=1e-4, rtol=0)


ORIGINAL = {"WanTransformer3DModel": original.wan_transformer}
ORIGINAL["HunyuanVideoTransformer3DModel"] = original.hunyuan_transformer
ORIGINAL["MiniMaxH3Transformer3DModel"] = original.minimax_h3_transformer


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_takes_its_transformer_from_a_file(
    name: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """In its original names, where diffusers converts them; else in diffusers' names, and the others are refused."""
    folder = checkpoint_of(name)
    expected = load_transformer(Checkpoint(folder), torch.float32, CPU)
    state, names = expected.state_dict(), ORIGINAL.get(type(expected).__name__, same)
    file = original.write(names(state), tmp_path / "x.safetensors", "diffusion_model.")
    found = load_transformer(open_checkpoint(str(folder), files=(("transformer", str(file)),)), torch.float32, CPU)
    assert all(torch.equal(value, state[key]) for key, value in found.state_dict().items())
    if names is same:
        file = original.write(
            {f"double_blocks.0.{key}": value for key, value in state.items()}, tmp_path / "y.safetensors"
        )
        with pytest.raises(InputError, match=r"missing.*not of this model"):
            load_transformer(open_checkpoint(str(folder), files=(("transformer", str(file)),)), torch.float32, CPU)


@pytest.mark.parametrize("form", ["plain", "scaled"])
@pytest.mark.parametrize("name", ["hunyuan-video", "hunyuan-video-image", "hunyuan-video-1.5"])
def test_text_encoders_of_other_families(
    name: str, form: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """LLaMA with the prefix of its language model, LLaVA and Qwen2.5-VL as their folders have them."""
    folder = checkpoint_of(name)
    expected = load_conditioners(Checkpoint(folder), torch.float32)["text_encoder"].state_dict()
    stored = load_file(folder / "text_encoder" / "model.safetensors")
    if name == "hunyuan-video":
        stored = {f"model.{key}": value for key, value in stored.items()}
    file = original.write(stored if form == "plain" else original.fp8_scaled(stored), tmp_path / "x.safetensors")
    opened = open_checkpoint(str(folder), files=(("text_encoder", str(file)),))
    found = load_conditioners(opened, torch.float32)["text_encoder"].state_dict()
    assert found.keys() == expected.keys()
    for key, value in found.items():
        if form == "plain":
            assert torch.equal(value, expected[key]), key
        else:
            assert (value - expected[key]).norm() <= 0.05 * expected[key].norm(), key


def test_the_vae_of_wan_22(tmp_path: Path) -> None:
    vae = tiny.build_vae(residual=True)
    from s2video.models.conversion import converter_for, trace

    state = dict(vae.state_dict())
    named = original.wan22_vae(state)
    convert = converter_for("AutoencoderKLWan", vae.config)
    assert convert is not None
    rows = trace({name: len(value) for name, value in named.items()}, convert, "x")
    assert rows.keys() == state.keys()
    for name, (run,) in rows.items():
        assert torch.equal(named[run.source][run.first : run.last], state[name])


def test_a_component_folder_of_other_files(wide: Wide, tmp_path: Path) -> None:
    """A folder of the checkpoint is read in the same ways: shards without an index, fp8_scaled, a variant."""
    copy = Path(shutil.copytree(wide.folder, tmp_path / "wan"))
    state = wide.states["transformer"]
    folder, plain = copy / "transformer", copy / "transformer" / "diffusion_pytorch_model.safetensors"

    def latents(**model: Any) -> Tensor:
        config = wide.config(**model).patched({"model.path": str(copy)})
        return Engine(config).sample([PROMPT], [3])

    def are_those_of_the_plain_file(latents: Tensor) -> bool:
        return torch.allclose(latents, wide.latents, atol=1e-4, rtol=0)

    plain.unlink()
    original.write_shards(state, folder, "diffusion_pytorch_model", index=False)
    assert are_those_of_the_plain_file(latents())
    original.write_shards(state, folder, "diffusion_pytorch_model")
    original.write({name: value + 1 for name, value in state.items()}, plain)  # diffusers takes the shards
    assert are_those_of_the_plain_file(latents())
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    original.write(state, folder / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(InputError, match=r"got only those of variant fp16; set model\.variant"):
        latents()
    assert are_those_of_the_plain_file(latents(variant="fp16"))
    with pytest.raises(InputError, match=r"variant: expected weight files with \.bf16 in their names.*got none"):
        Checkpoint(wide.folder, "bf16").check()
    original.write(original.fp8_scaled(state), plain)
    (folder / "diffusion_pytorch_model.fp16.safetensors").unlink()
    error = (latents() - wide.latents).norm() / wide.latents.norm()
    assert 0 < error < 0.04


def test_files_count_by_their_contents(wide: Wide, tmp_path: Path) -> None:
    """Their places do not matter, their bytes do; the checkpoint's own weights of that component do not count."""
    state = original.wan_transformer(wide.states["transformer"])
    first = original.write(state, tmp_path / "a.safetensors")

    def digests(file: Path) -> dict[str, str]:
        checkpoint = open_checkpoint(*wide.config(transformer=str(file)).model.source)
        return checkpoint.weight_digests()

    before = digests(first)
    assert set(before) == {
        "text_encoder/model.safetensors",
        "transformer/file 1 of 1",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert digests(first.rename(tmp_path / "b.safetensors")) == before
    state["head.head.bias"] = state["head.head.bias"] + 1
    assert digests(original.write(state, tmp_path / "b.safetensors")) != before


def test_a_line_and_the_sidecar_say_what_was_loaded(
    wide: Wide, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = original.fp8_scaled(original.wan_transformer(wide.states["transformer"]))
    file = original.write(state, tmp_path / "x.safetensors", "diffusion_model.")
    lora = tiny.random_lora(wide_transformer()) | {"transformer.blocks.7.attn1.to_q.diff_b": torch.ones(256)}
    original.write(lora, tmp_path / "lora.safetensors")
    config = tmp_path / "x.yaml"
    settings = wide.config(transformer=str(file), lora=[{"path": str(tmp_path / "lora.safetensors"), "scale": 0.5}])
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    command = ["generate", "--config", str(config), "--prompt", PROMPT, "--output", str(tmp_path / "a.mp4")]
    assert main(command) == 0
    said = capsys.readouterr().err
    assert re.search(
        r"transformer: prefixed names; \d+ fp8 tensors with scales, dequantized; original names, conv", said
    )
    line = f"LoRA lora.safetensors on transformer: {len(lora) - 1} of {len(lora)} tensors applied; not applied: 1 of "
    assert line in said
    sidecar = read_sidecar(tmp_path / "a.json")
    assert set(sidecar.conversions) == {"transformer"} and "F8_E4M3" in sidecar.conversions["transformer"]
    assert sidecar.loras[0].applied == len(lora) - 1 and sidecar.loras[0].scale == 0.5
    assert sidecar.loras[0].not_applied == {
        "of layers that this model lacks": ("transformer.blocks.7.attn1.to_q.diff_b",)
    }
    assert "transformer/file 1 of 1" in sidecar.weights
    assert main(["inspect", str(tmp_path / "a.mp4")]) == 0
    shown = capsys.readouterr().out
    assert "fp8 tensors with scales, dequantized" in shown
    assert f"{len(lora) - 1} of {len(lora)} tensors on transformer, scale 0.5; not applied: 1 of layers" in shown


def test_decoding_needs_none_of_the_files_of_denoising(wide: Wide, tmp_path: Path) -> None:
    file = original.write(wide.states["transformer"], tmp_path / "x.safetensors")
    vae = original.write(original.wan_vae(wide.states["vae"]), tmp_path / "vae.safetensors")
    config = wide.config(transformer=str(file), vae=str(vae)).patched({"prompt": PROMPT})
    save_latents(wide.latents, tmp_path / "a.latents.safetensors", {"config": config.model_dump(mode="json")})
    file.unlink()
    written = decode_latents(
        tmp_path / "a.latents.safetensors", tmp_path / "a.mp4", own={"model.path": str(wide.folder)}
    )
    assert written.stat().st_size > 0


def nvfp4(state: State) -> State:
    made = original.fp8_scaled(state, form="weight_scale")
    return made | {name + "_2": torch.ones(()) for name in made if name.endswith("weight_scale")}


def blockwise(state: State) -> State:
    made = original.fp8_scaled(state, form="weight_scale")
    return {name: torch.ones(2, 2) if name.endswith("weight_scale") else value for name, value in made.items()}


def without_one(state: State) -> State:
    return {
        name: value for name, value in original.wan_transformer(state).items() if "blocks.1.self_attn.k" not in name
    }


def twice(state: State, folder: Path) -> Path:
    original.write_shards(state, folder, index=False)
    original.write(state, folder / "model-00002-of-00003.safetensors")
    return folder / "model-00001-of-00003.safetensors"


def pointer(state: State, folder: Path) -> Path:
    (folder / "x.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    return folder / "x.safetensors"


def pickle(state: State, folder: Path) -> Path:
    torch.save({"a": torch.ones(1)}, folder / "x.pth")
    return folder / "x.pth"


def damaged_gguf(state: State, folder: Path) -> Path:
    path = gguf_of(original.wan_transformer, "wan", Q8)(state, folder)
    path.write_bytes(path.read_bytes()[:-40])
    return path


def lost_shard(state: State, folder: Path) -> Path:
    first = original.write_shards(state, folder, index=False)
    (folder / "model-00003-of-00003.safetensors").unlink()
    return first


REFUSED: dict[str, tuple[str, Callable[[State, Path], Path], str]] = {
    "a VAE": ("transformer", file_of(lambda s: original.wan_vae(AutoencoderKLWan(base_dim=8).state_dict())), "missing"),
    "a T5": ("vae", file_of(lambda s: original.wan_t5(tiny.tiny_text_encoder().state_dict())), "missing"),
    "a tensor is missing": ("transformer", file_of(without_one), r"2 missing \(blocks\.1\.attn1\.to_k\.\w+, "),
    "another width": ("transformer", file_of(lambda s: tiny.build_transformer().state_dict()), "of another shape"),
    "nvfp4": ("transformer", file_of(nvfp4), "weight_scale.*not supported"),
    "blocks of fp8": ("transformer", file_of(blockwise), r"expected one scale, or one for each of \d+ rows"),
    "a tensor twice": ("transformer", twice, "is in .* too; keep one"),
    "an LFS pointer": ("transformer", pointer, "run git lfs pull"),
    "a pickle": ("transformer", pickle, "a pickle can contain code"),
    "a cut GGUF": ("transformer", damaged_gguf, "not a GGUF file, or an incomplete or damaged one"),
    "a lost shard": ("transformer", lost_shard, r"model-00003-of-00003\.safetensors: expected a weight file, got none"),
    "no file": ("text_encoder", lambda s, folder: folder / "no.safetensors", r"^model\.text_encoder: expected a"),
    "a second transformer": ("transformer_2", file_of(same), r"^model\.transformer_2: expected null"),
    "a VAE as T5": ("text_encoder", file_of(lambda s: AutoencoderKLWan(base_dim=8).state_dict()), "missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_loaded_is_refused_in_one_line(wide: Wide, case: str, tmp_path: Path) -> None:
    component, make, said = REFUSED[case]
    file = make(wide.states["transformer"], tmp_path)
    with pytest.raises(InputError, match=said) as caught:
        Engine(wide.config(**{component: str(file)}))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            file_of(original.wan_transformer),
            r"Wan's original names \(\d+ tensors\), for model\.transformer",
        ),
        (gguf_of(original.wan_transformer, "wan", Q8), r"original names \(\d+ tensors, GGUF\)"),
        (pickle, "a pickle"),
        (file_of(lambda s: tiny.random_lora(tiny.build_transformer())), r"a LoRA \(\d+ tensors\), for model\.lora"),
    ],
    ids=["original", "gguf", "pickle", "lora"],
)
def test_a_file_as_model_path_is_told_what_it_is(
    wide: Wide, make: Callable[[State, Path], Path], said: str, tmp_path: Path
) -> None:
    file = make(wide.states["transformer"], tmp_path)
    for path in (file, tmp_path):  # a file, and a folder of an original repository
        with pytest.raises(InputError, match=rf"^model\.path: .*{said}.*set model\.path to") as caught:
            open_checkpoint(str(path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "transformer/config.json"])
def test_pointers_among_small_files(wide: Wide, name: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(wide.folder, tmp_path / "wan"))
    (copy / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(InputError, match=rf"{name}: .*git lfs pull"):
        open_checkpoint(str(copy))


def test_a_component_as_model_path(wide: Wide) -> None:
    with pytest.raises(InputError, match=rf"a component of one; set model\.path to {wide.folder}$"):
        open_checkpoint(str(wide.folder / "transformer"))


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
@pytest.mark.parametrize("method", ["bitsandbytes", "quanto"])
def test_quantized_checkpoints_name_their_library(wide: Wide, component: str, method: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(wide.folder, tmp_path / "wan"))
    path = copy / component / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"quantization_config": {"quant_method": method, "load_in_4bit": True}}))
    with pytest.raises(InputError, match=rf"quantized by {method}: expected .*{method} to be installed") as caught:
        Engine(wide.config().patched({"model.path": str(copy)}))
    assert "\n" not in str(caught.value)
