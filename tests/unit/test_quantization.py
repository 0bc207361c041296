"""Tests of quantised weights: their error, what they combine with, what is refused, and what a plan counts."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_graphs import counted_graphs
from families import FAMILIES
from safetensors.torch import save_file
from tiny import PROMPT, build_transformer, random_lora, tiny_config
from torch import Tensor, nn

from s2video.config.run import RunConfig
from s2video.engine.engine import Engine
from s2video.errors import InputError, S2VideoError
from s2video.models.checkpoint import Checkpoint, open_checkpoint
from s2video.models.limits import check_request
from s2video.models.loading import load_transformer
from s2video.models.quantization import diffusers_settings, require_quantized, require_quantizer
from s2video.planning.cards import CARDS
from s2video.planning.memory import weight_bytes
from s2video.planning.plan import make_plan

CPU = torch.device("cpu")
STEPS = {"sampling.num_inference_steps": 2}


def tiny(folder: Path, quantization: str | None = "int8", **changes: Any) -> RunConfig:
    config = tiny_config(folder, window=(0.0, 1.0), lora=changes.pop("lora", ()))
    return config.patched({**STEPS, "model.dtype": "bfloat16", "model.quantization": quantization, **changes})


def sample(config: RunConfig) -> Tensor:
    return Engine(config, progress="none").sample([PROMPT], [3])


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def plain(tiny_checkpoint: Path) -> Tensor:
    return sample(tiny(tiny_checkpoint, None))


@pytest.mark.parametrize(("method", "most"), [("int8", 0.02), ("int8_dynamic", 0.03), ("fp8", 0.08)])
def test_latents_change_by_the_error_of_the_weights(
    tiny_checkpoint: Path, plain: Tensor, method: str, most: float
) -> None:
    engine = Engine(tiny(tiny_checkpoint, method), progress="none")
    got = engine.sample([PROMPT], [3])
    assert 1e-4 < relative_error(got, plain) < most
    assert "torchao 0." in engine.checkpoint.conversions["transformer"]  # which the sidecar records
    if method == "int8":
        with counted_graphs() as graphs:
            compiled = sample(tiny(tiny_checkpoint, method, **{"model.compile": "blocks"}))
        assert torch.equal(compiled, got) and len(graphs) == 1


@pytest.mark.parametrize("name", ["wan", "wan-vace", "hunyuan-video", "hunyuan-video-1.5"])
def test_all_linear_layers_of_blocks_and_no_others(checkpoint_of: Callable[[str], Path], name: str) -> None:
    checkpoint = Checkpoint(checkpoint_of(name))
    model = load_transformer(checkpoint, torch.bfloat16, CPU, quantization="int8")
    lists = (*checkpoint.family.block_lists, *checkpoint.family.control_lists)
    inside = tuple(f"{blocks}." for blocks in lists)
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert (type(module.weight) is not nn.Parameter) == path.startswith(inside), path


def test_a_checkpoint_that_is_quantised_already(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """It has the same weights as one that is quantised while it is loaded; the plan counts the bytes of its files."""
    for part in tiny_checkpoint.iterdir():
        if part.name != "transformer":
            (tmp_path / part.name).symlink_to(part)
    model = load_transformer(Checkpoint(tiny_checkpoint), torch.bfloat16, CPU, quantization="int8")
    model.save_pretrained(tmp_path / "transformer")
    assert torch.equal(sample(tiny(tmp_path, None)), sample(tiny(tiny_checkpoint)))
    with pytest.raises(InputError, match="expected null for a checkpoint that is quantised by torchao, got fp8"):
        Engine(tiny(tmp_path, "fp8"), progress="none")
    stored = make_plan(tiny(tmp_path, None), 1, CARDS["cpu"]).step.weight_bytes
    assert stored is not None and 1.0 < stored < 1.5  # with names and scales, which are large in a small file


def test_a_plan_counts_quantised_bytes(tiny_checkpoint: Path) -> None:
    plan = make_plan(tiny(tiny_checkpoint), 1, CARDS["cpu"])
    model = load_transformer(Checkpoint(tiny_checkpoint), torch.bfloat16, CPU, quantization="int8")
    weights = [module.weight for module in model.blocks.modules() if isinstance(module, nn.Linear)]
    counted = weight_bytes(plan.best.degrees, plan.step)
    plain = weight_bytes(plan.best.degrees, replace(plan.step, weight_bytes=None))
    assert plain - counted == pytest.approx(sum(weight.numel() for weight in weights), rel=0.1)
    assert "prediction of time is that of plain ones" in plan.note


def test_with_lora(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Pairs of matrices are added beside quantised weights; a difference cannot be added to them."""
    pairs, difference = tmp_path / "pairs.safetensors", tmp_path / "difference.safetensors"
    save_file(random_lora(build_transformer()), pairs)
    save_file({"blocks.1.attn1.to_q.diff": torch.ones(60, 60)}, difference)
    expected = sample(tiny(tiny_checkpoint, None, lora=[{"path": str(pairs)}]))
    got = sample(tiny(tiny_checkpoint, lora=[{"path": str(pairs)}]))
    assert 1e-4 < relative_error(got, expected) < 0.02
    with pytest.raises(InputError, match="expected plain weights, got quantized ones"):
        sample(tiny(tiny_checkpoint, lora=[{"path": str(difference)}]))


@pytest.mark.parametrize(
    ("quantization", "setting", "message"),
    [
        ("int8", {"parallel.weights": "fsdp"}, "needs parallel.weights replicated, .* got fsdp"),
        ("fp8", {"parallel.weights": "streamed"}, "needs parallel.weights replicated, .* got streamed"),
        ("int8", {"model.transformer": "x.gguf"}, "got model.transformer; leave one of the two out"),
    ],
)
def test_what_cannot_be_combined_is_refused_first(
    tiny_checkpoint: Path, quantization: str, setting: dict[str, Any], message: str
) -> None:
    config = tiny(tiny_checkpoint, quantization, **setting)
    with pytest.raises(InputError, match=message):
        check_request(config, open_checkpoint(str(tiny_checkpoint)).info)
    if "parallel.weights" in setting:
        with pytest.raises(InputError, match=message):
            make_plan(config, 2, CARDS["cpu"])


def test_experts_in_cpu_memory_refuse_bitsandbytes(checkpoint_of: Callable[[str], Path]) -> None:
    folder = checkpoint_of("wan2.2-t2v")
    config = FAMILIES["wan2.2-t2v"].config(folder).patched({"model.offload_experts": True})
    info = open_checkpoint(str(folder)).info
    check_request(config.patched({"model.quantization": "int8"}), info)
    with pytest.raises(InputError, match="bnb_nf4 keeps weights on the GPU"):
        check_request(config.patched({"model.quantization": "bnb_nf4"}), info)


def test_what_this_machine_lacks_is_said(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="fp8_dynamic needs a GPU, got a CPU; choose int8"):
        Engine(tiny(tiny_checkpoint, "fp8_dynamic"), progress="none")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for method, advice in (("int8", "s2video.quant"), ("bnb_nf4", "pip install bitsandbytes")):
        with pytest.raises(InputError, match=f"which is not installed; .*{advice}"):
            require_quantizer(tiny(tiny_checkpoint, method), "cuda", [None])


def test_an_older_gpu_is_refused_first(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))
    require_quantizer(tiny(tiny_checkpoint, "fp8"), "cuda", [None])
    with pytest.raises(InputError, match=r"fp8_dynamic needs a GPU of compute capability 8\.9 or newer, got 8\.6"):
        require_quantizer(tiny(tiny_checkpoint, "fp8_dynamic"), "cuda", [None])


def test_plain_weights_are_not_taken_for_quantised_ones() -> None:
    """diffusers leaves weights as they are if a device map places them on the CPU."""
    with pytest.raises(S2VideoError, match="got plain weights"):
        require_quantized(list(build_transformer().blocks), "int8")


@pytest.mark.parametrize(("name", "field"), [("bnb_int8", "load_in_8bit"), ("bnb_nf4", "load_in_4bit")])
def test_the_settings_of_bitsandbytes(monkeypatch: pytest.MonkeyPatch, name: str, field: str) -> None:
    """They are diffusers' own; nothing else of bitsandbytes runs without a GPU."""
    import diffusers

    given: dict[str, Any] = {}
    monkeypatch.setattr(diffusers, "BitsAndBytesConfig", lambda **settings: given.update(settings))
    diffusers_settings(name, ("blocks",), torch.bfloat16)
    assert given[field] is True and set(given) <= {
        "load_in_8bit",
        "load_in_4bit",
        "bnb_4bit_quant_type",
        "bnb_4bit_compute_dtype",
    }


def test_importing_diffusers_prints_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import s2video; from diffusers import TorchAoConfig, WanPipeline"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Failed to load" not in done.stderr and "<enum" not in done.stderr and "torchao" not in done.stderr
