"""Tests of `model.quantization: gguf`: weights that stay as a GGUF file stores them, and what is refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import original_names as original
import pytest
import tiny_hunyuan
import torch
from compiled_graphs import counted_graphs
from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor
from safetensors.torch import save_file
from tiny import PROMPT, random_lora
from tiny_wan22 import a14b_config, build_a14b
from torch import Tensor, nn
from wide_wan import CPU, Q8, Wide, gguf_of, wide_transformer

from s2video.engine.engine import Engine
from s2video.errors import InputError
from s2video.models.checkpoint import Checkpoint, open_checkpoint
from s2video.models.conversion import Rows
from s2video.models.gguf_weights import check_gguf
from s2video.models.layout import Layout, read_layout
from s2video.models.limits import check_request
from s2video.models.loading import load_transformer
from s2video.models.quantization import require_quantizer
from s2video.models.weight_files import read_weight_file
from s2video.planning.cards import CARDS
from s2video.planning.memory import weight_bytes
from s2video.planning.plan import make_plan

KEPT = {"quantization": "gguf"}


@pytest.fixture(scope="module")
def file(wide: Wide, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The transformer of `wide`, in Wan's own names and Q8_0."""
    return str(gguf_of(original.wan_transformer, "wan", Q8)(wide.states["transformer"], tmp_path_factory.mktemp("q8")))


@pytest.fixture(scope="module")
def dequantized(wide: Wide, file: str) -> Tensor:
    return wide.made(transformer=file)[0]


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def test_latents_are_those_of_dequantised_weights(wide: Wide, file: str, dequantized: Tensor) -> None:
    """diffusers multiplies scales in float16, and loading does in float32: the difference is its rounding."""
    engine = Engine(wide.config(transformer=file, **KEPT), progress="none")
    got = engine.sample([PROMPT], [3])
    assert 0 < relative_error(got, dequantized) < 2e-4 < 2e-3 < relative_error(dequantized, wide.latents)
    said = engine.checkpoint.conversions["transformer"]  # which the sidecar records
    assert "linear layers of blocks kept as stored, by diffusers 0." in said and "Q8_0" in said
    assert torch.equal(Engine(wide.config(transformer=file, **KEPT), progress="none").sample([PROMPT], [3]), got)


@pytest.mark.parametrize("rows_of_256", [False, True])
def test_blocks_alone_keep_their_matrices(wide: Wide, rows_of_256: bool, tmp_path: Path) -> None:
    """All of them, with the bytes of the file; every other parameter is that of a model that is dequantised."""
    make = gguf_of(original.wan_transformer, "wan", Q8, rows_of_256=rows_of_256)
    path = str(make(wide.states["transformer"], tmp_path))
    config = wide.config(transformer=path, **KEPT).patched({"model.dtype": "bfloat16"})
    checkpoint = open_checkpoint(*config.model.source)
    expected = dict(load_transformer(checkpoint, torch.bfloat16, CPU).named_parameters())
    model = load_transformer(checkpoint, torch.bfloat16, CPU, quantization="gguf")
    linear = {f"{path}.weight" for path, module in model.blocks.named_modules(prefix="blocks") if _is_linear(module)}
    parameters = dict(model.named_parameters())
    assert parameters.keys() == expected.keys() and linear
    for name, parameter in parameters.items():
        if name in linear:
            assert isinstance(parameter, GGUFParameter) and parameter.dtype == torch.uint8
            error = relative_error(dequantize_gguf_tensor(parameter).float(), expected[name].float())
            assert error < 0.003  # bfloat16's rounding
        else:
            assert torch.equal(parameter, expected[name]) and parameter.dtype == expected[name].dtype
    plan = make_plan(config, 1, CARDS["cpu"])
    saved = sum(expected[name].nbytes - parameters[name].nbytes for name in linear)
    plain = weight_bytes(plan.best.degrees, replace(plan.step, weight_bytes=None))
    assert plain - weight_bytes(plan.best.degrees, plan.step) == pytest.approx(saved, rel=0.05)
    assert saved > 0.4 * sum(expected[name].nbytes for name in linear)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_rows_of_k_quants_are_kept(kind: str, tmp_path: Path) -> None:
    """Also of a matrix that is put together from parts of another one, in another order."""
    number = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "wan")
    writer.add_tensor("x.weight", original.random_blocks((6, 768), number, seed=1), raw_dtype=number)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    whole = read_layout([read_weight_file(tmp_path / "x.gguf", "x")], "transformer", "None", {}, ["x.weight"])
    turned = Layout(whole._stored, {"y.weight": [Rows("x.weight", 4, 6), Rows("x.weight", 0, 3)]}, [])
    for layout, name, num_rows in ((whole, "x.weight", 6), (turned, "y.weight", 5)):
        stored = layout.packed(name)
        assert stored is not None and stored[0] == kind and len(stored[1]) == num_rows
        got = dequantize_gguf_tensor(GGUFParameter(stored[1], quant_type=number))
        assert relative_error(got.float(), layout.tensor(name)) < 2e-3  # float16's rounding


def test_with_compiled_blocks_and_lora(wide: Wide, file: str, dequantized: Tensor, tmp_path: Path) -> None:
    """Pairs of matrices are added beside the weights, and one graph serves all blocks, masks and steps."""
    pairs, difference = tmp_path / "pairs.safetensors", tmp_path / "difference.safetensors"
    save_file(random_lora(wide_transformer()), pairs)
    save_file({"blocks.1.attn1.to_q.diff": torch.ones(256, 256)}, difference)
    lora = [{"path": str(pairs)}]
    expected, _ = wide.made(transformer=file, lora=lora)
    plain, _ = wide.made(transformer=file, lora=lora, **KEPT)
    assert relative_error(plain, expected) < 1e-3 < relative_error(plain, dequantized)
    with counted_graphs() as graphs:
        compiled, _ = wide.made(transformer=file, lora=lora, compile="blocks", **KEPT)
    assert torch.equal(compiled, plain) and len(graphs) == 1
    with pytest.raises(InputError, match=r"got quantized ones, .* leave model\.quantization out"):
        wide.made(transformer=file, lora=[{"path": str(difference)}], **KEPT)


@pytest.mark.parametrize("setting", [{"parallel.weights": "fsdp"}, {"parallel.weights": "streamed"}])
def test_what_cannot_be_combined_is_refused_first(wide: Wide, file: str, setting: dict[str, Any]) -> None:
    config = wide.config(transformer=file, **KEPT).patched(setting)
    with pytest.raises(InputError, match=r"gguf needs parallel\.weights replicated"):
        check_request(config, open_checkpoint(str(wide.folder)).info)


def test_files_that_keep_nothing_are_refused(
    wide: Wide, file: str, checkpoint_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = gguf_of(original.wan_transformer, "wan", gguf.GGMLQuantizationType.F32)
    for model, message in (
        ({}, r"needs quantised weights in a GGUF file, got safetensors; set model\.transformer to such a file"),
        ({"transformer": str(plain(wide.states["transformer"], tmp_path))}, "in a GGUF file, got F32; set"),
    ):
        for attempt in (lambda c: Engine(c, progress="none"), lambda c: make_plan(c, 1, CARDS["cpu"])):
            with pytest.raises(InputError, match=message):
                attempt(wide.config(**model, **KEPT))
    two = a14b_config(build_a14b(tmp_path / "two"))
    with pytest.raises(InputError, match=r"got safetensors; set model\.transformer"):
        Engine(two.patched({"model.quantization": "gguf"}), progress="none")
    files = open_checkpoint(*wide.config(transformer=file).model.source).files("transformer")
    with pytest.raises(InputError, match="single files, got HunyuanVideo15Transformer3DModel; leave it out"):
        check_gguf(files, "transformer", "HunyuanVideo15Transformer3DModel")
    next(iter(files[0].tensors.values()))["dtype"] = "IQ3_S"
    with pytest.raises(InputError, match="types that diffusers can compute with, got IQ3_S"):
        check_gguf(files, "transformer", "WanTransformer3DModel")
    with pytest.raises(InputError, match=r"needs the bytes of a GGUF file, got none; set model\.transformer"):
        make_plan(wide.config(**KEPT).patched({"model.path": "Wan-AI/Wan2.1-T2V-14B-Diffusers"}), 1, CARDS["cpu"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"gguf needs gguf, which is not installed; pip install 's2video\[gguf\]'"):
        require_quantizer(wide.config(transformer=file, **KEPT), "cpu", [None])


def test_two_transformers(tmp_path: Path) -> None:
    """Each from its own file, and in CPU memory while the other one is active."""
    folder = build_a14b(tmp_path / "wan")
    config = a14b_config(folder).patched({"sampling.num_inference_steps": 3, "model.quantization": "gguf"})
    files = {}
    for name in ("transformer", "transformer_2"):
        state = load_transformer(Checkpoint(folder), torch.float32, CPU, name).state_dict()
        (tmp_path / name).mkdir()
        files[f"model.{name}"] = str(gguf_of(original.wan_transformer, "wan", Q8)(state, tmp_path / name))
    made = Engine(config.patched(files), progress="none").sample([PROMPT], [3])
    plain = Engine(config.patched({**files, "model.quantization": None}), progress="none").sample([PROMPT], [3])
    assert 0 < relative_error(made, plain) < 1e-3
    offloaded = config.patched({**files, "model.offload_experts": True})
    assert torch.equal(Engine(offloaded, progress="none").sample([PROMPT], [3]), made)


def test_joined_matrices_of_hunyuan_video(tiny_hunyuan_checkpoint: Path, tmp_path: Path) -> None:
    """Tencent's names: rows of one matrix become several, and halves change places. A narrow model keeps nothing."""
    folder = Path(shutil.copytree(tiny_hunyuan_checkpoint, tmp_path / "wide"))
    wide = tiny_hunyuan.build_transformer(num_attention_heads=4, attention_head_dim=16, rope_axes_dim=(4, 6, 6))
    wide.save_pretrained(folder / "transformer")
    config = tiny_hunyuan.tiny_config(folder).patched({"sampling.num_inference_steps": 2})
    file = gguf_of(original.hunyuan_transformer, "hyvid", Q8)(wide.state_dict(), tmp_path)
    plain = Engine(config.patched({"model.transformer": str(file)}), progress="none")
    kept = Engine(config.patched({"model.transformer": str(file), "model.quantization": "gguf"}), progress="none")
    assert 0 < relative_error(kept.sample([PROMPT], [3]), plain.sample([PROMPT], [3])) < 2e-4
    narrow = load_transformer(Checkpoint(tiny_hunyuan_checkpoint), torch.float32, CPU).state_dict()
    file = gguf_of(original.hunyuan_transformer, "hyvid", Q8)(narrow, tmp_path)
    checkpoint = open_checkpoint(str(tiny_hunyuan_checkpoint), files=(("transformer", str(file)),))
    with pytest.raises(InputError, match="whose rows are whole blocks of GGUF, got none in the file"):
        load_transformer(checkpoint, torch.float32, CPU, quantization="gguf")
