"""Checkpoints and LoRAs from strangers: what their files say is bounded before it is built, and refused in one line."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import build_transformer, random_lora

from s2video.config.sections import LoraConfig
from s2video.errors import InputError, S2VideoError
from s2video.models import loading
from s2video.models.checkpoint import Checkpoint
from s2video.models.foreign import MAX_LAYERS, MAX_VALUES, check_bounds, check_encoder, one_line
from s2video.models.lora import load_loras
from s2video.models.registry import read_costs
from s2video.models.weight_files import read_header


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint whose JSON can be changed; its weights are links."""
    folder = tmp_path / "wan"
    shutil.copytree(tiny_checkpoint, folder, copy_function=lambda a, b: Path(b).symlink_to(a))
    for path in folder.rglob("*.json"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), encoding="utf-8")


def open_all(folder: Path) -> None:
    """Everything that reads JSON of a checkpoint, as a run does it, and no weights of transformer and VAE."""
    checkpoint = Checkpoint(folder)
    checkpoint.check()
    assert checkpoint.info.num_blocks
    for component in (*checkpoint.transformers, "vae"):
        loading.check_component(checkpoint, component)
    read_costs(checkpoint.config("transformer").values, checkpoint.config("transformer").path)
    loading.load_scheduler(checkpoint)
    loading.load_conditioners(checkpoint, torch.float32)


def test_a_good_one(copy: Path) -> None:
    open_all(copy)


JUNK: dict[str, tuple[str, dict[str, Any]]] = {
    "class a list": ("model_index.json", {"_class_name": ["WanPipeline"]}),
    "class a number": ("model_index.json", {"_class_name": 7}),
    "no class": ("model_index.json", {"_class_name": None}),
    "component a mapping": ("model_index.json", {"vae": {"a": 1}}),
    "component empty": ("model_index.json", {"transformer": []}),
    "scheduler missing": ("model_index.json", {"scheduler": None}),
    "scheduler a number": ("model_index.json", {"scheduler": ["diffusers", 5]}),
    "scheduler unknown": ("model_index.json", {"scheduler": ["diffusers", "NoScheduler"]}),
    "boundary a word": ("model_index.json", {"boundary_ratio": "x"}),
    "layers": ("transformer/config.json", {"num_layers": 10**9}),
    "layers by one": ("transformer/config.json", {"num_layers": MAX_LAYERS + 1}),
    "layers below 0": ("transformer/config.json", {"num_layers": -5}),
    "layers a word": ("transformer/config.json", {"num_layers": "x"}),
    "layers a list": ("transformer/config.json", {"num_layers": [1]}),
    "heads of any size": ("transformer/config.json", {"attention_head_dim": 10**15}),
    "infinite": ("transformer/config.json", {"eps": float("inf")}),
    "not a number": ("transformer/config.json", {"eps": float("nan")}),
    "transformer's class": ("transformer/config.json", {"_class_name": ["x"]}),
    "positions": ("transformer/config.json", {"rope_max_seq_len": 10**9}),
    "patch of a word": ("transformer/config.json", {"patch_size": "x"}),
    "patch of two": ("transformer/config.json", {"patch_size": [1, 2]}),
    "channels a word": ("transformer/config.json", {"in_channels": "x"}),
    "VAE blocks": ("vae/config.json", {"num_res_blocks": 10**9}),
    "VAE factors": ("vae/config.json", {"dim_mult": "x"}),
    "VAE lists": ("vae/config.json", {"dim_mult": [1] * MAX_VALUES}),
    "VAE means": ("vae/config.json", {"latents_mean": None}),
    "VAE too few means": ("vae/config.json", {"latents_mean": [0.0]}),
    "VAE deviation 0": ("vae/config.json", {"latents_std": [0.0] * 16}),
    "VAE width": ("vae/config.json", {"base_dim": [3]}),
    "text layers": ("text_encoder/config.json", {"num_layers": 10**9}),
    "text vocabulary": ("text_encoder/config.json", {"vocab_size": 10**7}),
    "text vocabulary beyond": ("text_encoder/config.json", {"vocab_size": 10**12}),
    "text width a word": ("text_encoder/config.json", {"d_model": "x"}),
    "text heads 0": ("text_encoder/config.json", {"num_heads": 0}),
    "text type unknown": ("text_encoder/config.json", {"model_type": "no-such", "d_kv": "x"}),
    "scheduler's own": ("scheduler/scheduler_config.json", {"num_train_timesteps": "x"}),
    "scheduler's size": ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}),
    "scheduler's kind": ("scheduler/scheduler_config.json", {"beta_schedule": "x", "use_flow_sigmas": False}),
}


@pytest.mark.parametrize(("file", "changes"), JUNK.values(), ids=JUNK.keys())
def test_json_of_another_kind(file: str, changes: dict[str, Any], copy: Path) -> None:
    edit(copy / file, **changes)
    start = time.monotonic()
    with pytest.raises(InputError, match=str(copy)) as caught:
        open_all(copy)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800
    assert time.monotonic() - start < 60  # 10⁹ layers would take days


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"junk"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b'{"model": {"type": "Unigram", "vocab": [["a", "x"]]}}'),
        ("tokenizer.json", b"[" * 100_000),
        ("tokenizer_config.json", b'{"added_tokens_decoder": 5}'),
        ("tokenizer_config.json", b'{"extra_special_tokens": 5, "eos_token": [1]}'),
        ("special_tokens_map.json", b"[]"),
    ],
)
def test_junk_in_a_tokenizer(name: str, content: bytes, copy: Path) -> None:
    (copy / "tokenizer" / name).unlink(missing_ok=True)
    (copy / "tokenizer" / name).write_bytes(content)
    with pytest.raises(InputError, match="tokenizer"):
        loading.load_tokenizer(Checkpoint(copy))


def test_nested_bounds() -> None:
    for values in ({"a": {"num_hidden_layers": 513}}, {"a": [{"max_position_embeddings": 2**30}]}, {"a": [[1e300]]}):
        with pytest.raises(InputError, match=r"x: .*: expected at most"):
            check_bounds(values, Path("x"))
    check_bounds({"num_layers": 60, "rope_theta": 1e7, "eos_token_id": [151645], "a": None, "b": True}, Path("x"))


def test_an_encoder_gets_no_memory_that_its_files_do_not_fill(tiny_checkpoint: Path) -> None:
    """The files' parameters decide, so that nothing is filled at random before anyone sees that it is missing."""
    checkpoint = Checkpoint(tiny_checkpoint)
    kind, folder = transformers.UMT5EncoderModel, tiny_checkpoint / "text_encoder"
    check_encoder(kind, folder, checkpoint.num_parameters("text_encoder"))
    larger = transformers.UMT5Config.from_pretrained(folder, vocab_size=10**8, d_model=10**6)  # 400 TB

    class Kind(transformers.UMT5EncoderModel):  # type: ignore[misc]
        class config_class:
            from_pretrained = staticmethod(lambda folder: larger)

    with pytest.raises(InputError, match="expected about 1000"):
        check_encoder(Kind, folder, checkpoint.num_parameters("text_encoder"))


def test_only_what_files_cause_becomes_an_input_error(tiny_checkpoint: Path) -> None:
    class PanicException(BaseException):
        pass

    def load(checkpoint: Checkpoint, error: BaseException, component: str = "vae") -> None:
        raise error

    checkpoint, wrapped = Checkpoint(tiny_checkpoint), one_line("transformer")(load)
    for error in (ValueError("a\nb"), KeyError(), PanicException("x"), RecursionError(), OSError()):
        with pytest.raises(InputError, match=r"vae: its files cannot be used \("):
            wrapped(checkpoint, error)
    for passed in (MemoryError(), torch.OutOfMemoryError(), S2VideoError(), KeyboardInterrupt(), SystemExit()):
        with pytest.raises(type(passed)):
            wrapped(checkpoint, passed)


def header_of(tensors: dict[str, Any], size: int) -> bytes:
    content = json.dumps(tensors).encode()
    return len(content).to_bytes(8, "little") + content + b"\0" * size


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("tensors", "size"),
    [
        ({"a": entry([2], 0, 4)}, 4),
        ({"a": entry([1], 0, 4, "F99")}, 4),
        ({"a": entry([0], 0, 0, "0")}, 0),
        ({"a": entry([10**12, 10**12], 0, 4)}, 4),
        ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, 4),
        ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, 12),
        ({"a": entry([1], 4, 8)}, 8),
        ({"a": entry([1], 8, 4)}, 8),
        ({"a": entry([1], 0, 4), "__metadata__": {"x": 5}}, 4),
        ({"a": entry([1], 0, 4), "__metadata__": []}, 4),
    ],
)
def test_headers_whose_numbers_do_not_fit(tensors: dict[str, Any], size: int, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(header_of(tensors, size))
    with pytest.raises(InputError, match="damaged"):
        read_header(tmp_path / "x.safetensors")


def test_headers_that_are_read(tmp_path: Path) -> None:
    tensors = {
        "a": torch.zeros(3, dtype=torch.bfloat16),
        "b": torch.zeros(2, 0),
        "c": torch.zeros(5, dtype=torch.bool),
        "d": torch.zeros(2, dtype=torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    read_header(tmp_path / "x.safetensors")
    assert load_file(tmp_path / "x.safetensors").keys() == tensors.keys()
    one = b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    repeated = b"{" + one + b", " + one + b"}"
    (tmp_path / "x.safetensors").write_bytes(len(repeated).to_bytes(8, "little") + repeated + b"\0" * 4)
    with pytest.raises(InputError, match="damaged"):
        read_header(tmp_path / "x.safetensors")


LAYER = "transformer.blocks.0.attn1.to_q"
A, B = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"


def without(key: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def changed(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., dict[str, torch.Tensor]]:
    return lambda state: {name: change(value) if name == key else value for name, value in state.items()}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed(B, lambda b: torch.cat([b, b], 1)), "of one rank"),
        (changed(A, lambda a: torch.cat([a, a])), "of one rank"),
        (lambda state: {A: state[A][:0], B: state[B][:, :0]}, "rank r > 0"),
        (changed(A, lambda a: a[None]), "two matrices"),
        (changed(A, lambda a: a.flatten()), "two matrices"),
        (without(A), "one of the pair"),
        (without(B), "one of the pair"),
        (changed(A, lambda a: a * float("nan")), "NaN"),
        (changed(B, lambda b: b / 0), "infinite"),
        (changed(A, lambda a: a[:, :-1]), "expected size"),
        (lambda state: {A: state[A][None], B: state[B][None]}, "expected"),
        (lambda state: {}, "expected"),
    ],
)
def test_loras_that_are_refused(
    damage: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], message: str, tmp_path: Path
) -> None:
    transformer = build_transformer()
    state = damage(random_lora(transformer))
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=rf"^model\.lora: .*x\.safetensors: .*{message}") as caught:
        load_loras(transformer, [LoraConfig(path=str(tmp_path / "x.safetensors"))], "transformer", "WanPipeline")
    assert "\n" not in str(caught.value)
