"""No component runs on random weights: names and shapes of its files are held against its module."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file, save_file
from torch import Tensor

from s2video.errors import InputError
from s2video.models import loading
from s2video.models.checkpoint import Checkpoint
from s2video.models.loading import load_conditioners, load_sound_vae, load_transformer, load_vae

CPU = torch.device("cpu")


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "wan"))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def load(checkpoint: Path, component: str) -> object:
    opened = Checkpoint(checkpoint)
    if component.startswith("transformer"):
        return load_transformer(opened, torch.float32, CPU, component)
    if component == "audio_vae":
        return load_sound_vae(opened, CPU)
    return load_vae(opened, torch.float32, CPU) if component == "vae" else load_conditioners(opened, torch.float32)


def last_of_layer(tensors: dict[str, Tensor]) -> str:
    return next(name for name in sorted(tensors) if re.search(r"\.\d+\.", name) and tensors[name].ndim > 1)


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors[last_of_layer(tensors)]


def rename(tensors: dict[str, Tensor]) -> None:
    name = last_of_layer(tensors)
    tensors[re.sub(r"(\.\d+\.)", r"\1other.", name, count=1)] = tensors.pop(name)


def reshape(tensors: dict[str, Tensor]) -> None:
    name = last_of_layer(tensors)
    tensors[name] = tensors[name][:1].clone()


def add_layer(tensors: dict[str, Tensor]) -> None:
    name = last_of_layer(tensors)
    tensors[re.sub(r"\.\d+\.", ".77.", name, count=1)] = tensors[name].clone()


@pytest.mark.parametrize("component", ["text_encoder", "transformer", "vae"])
@pytest.mark.parametrize(
    ("change", "said"),
    [(drop, "1 missing"), (rename, "1 missing"), (reshape, "1 of another shape"), (add_layer, "1 not of this model")],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(
    copy: Path, component: str, change: Callable[[dict[str, Tensor]], None], said: str
) -> None:
    rewrite(copy / component, change)
    with pytest.raises(InputError, match=said) as caught:
        load(copy, component)
    assert component in str(caught.value) and "\n" not in str(caught.value)


def test_a_message_names_the_first_and_counts_the_rest(copy: Path) -> None:
    def rename_all(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[f"net.{name}"] = tensors.pop(name)

    rewrite(copy / "transformer", rename_all)
    with pytest.raises(InputError, match=r"missing \(.*, .*, .* and \d+ more\).*not of this model") as caught:
        load(copy, "transformer")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("component", ["text_encoder", "transformer"])
@pytest.mark.parametrize("scale", ["weight_scale_2", "weight_scale_inv", "weight.absmax"])
def test_scales_of_other_formats_are_refused_by_name(copy: Path, component: str, scale: str) -> None:
    def quantize(tensors: dict[str, Tensor]) -> None:
        name = last_of_layer(tensors)
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[name.removesuffix("weight") + scale] = torch.ones(())
        tensors["scaled_fp8"] = torch.ones((), dtype=torch.float8_e4m3fn)

    rewrite(copy / component, quantize)
    with pytest.raises(InputError, match=f"quantized format with scales of its own.*{scale}"):
        load(copy, component)


def test_whole_numbers_are_no_weights(copy: Path) -> None:
    def quantize(tensors: dict[str, Tensor]) -> None:
        name = last_of_layer(tensors)
        tensors[name] = tensors[name].to(torch.int8)

    rewrite(copy / "transformer", quantize)
    with pytest.raises(InputError, match=r"1 not floating-point numbers \(.* \(I8\)\)"):
        load(copy, "transformer")


def test_extra_tensors_that_the_class_ignores_are_accepted(copy: Path) -> None:
    rewrite(copy / "text_encoder", lambda tensors: tensors.update({"lm_head.weight": torch.ones(2, 2)}))
    rewrite(copy / "transformer", lambda tensors: tensors.update({"blocks.0.attn2.norm_added_q.weight": torch.ones(2)}))
    load(copy, "text_encoder")
    load(copy, "transformer")


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_component_of_every_family_is_checked(name: str, tmp_path: Path) -> None:
    folder = FAMILIES[name].build_checkpoint(tmp_path / name)
    components = Checkpoint(folder).family.weighted
    for component in components:
        load(folder, component)
    for component in reversed(components):  # encoders are loaded together, and the first one that is spoilt is named
        rewrite(folder / component, drop)
        with pytest.raises(InputError, match=rf"/{component}: .*1 missing"):
            load(folder, component)


@pytest.mark.parametrize("component", ["transformer", "vae"])
def test_quantized_weights_that_lack_a_tensor_are_not_filled_at_random(
    component: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers of quantized weights are not compared, because only diffusers knows their names; its report is read."""
    monkeypatch.setattr(loading, "quantized_by", lambda checkpoint, component: "some method")
    load(copy, component)
    rewrite(copy / component, drop)
    refused = rf"{component}: (expected the tensors .* 1 missing \(|its files cannot be used)"
    with pytest.raises(InputError, match=refused):
        load(copy, component)
