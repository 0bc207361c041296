"""Every format of LoRA files, against weights that are merged by hand: forward within 1e-5."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_hunyuan
import tiny_wan_i2v
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from s2video.config.sections import LoraConfig
from s2video.errors import InputError
from s2video.models.lora import AppliedLora, load_loras

State = dict[str, Tensor]
RANK = 3
SCALE = 0.7
GENERATOR = torch.Generator().manual_seed(7)
# diffusers' names of some layers of the Wan miniature -> Wan's original names
WAN = {
    "blocks.0.attn1.to_q": "blocks.0.self_attn.q",
    "blocks.0.attn1.to_out.0": "blocks.0.self_attn.o",
    "blocks.3.attn2.to_k": "blocks.3.cross_attn.k",
    "blocks.5.ffn.net.0.proj": "blocks.5.ffn.0",
    "blocks.5.ffn.net.2": "blocks.5.ffn.2",
}


def noise(*shape: int) -> Tensor:
    return 0.2 * torch.randn(shape, generator=GENERATOR)


@dataclass
class Change:
    """A file, and what it adds to parameters at scale 1, by diffusers' names. `left_out`: tensors that do not fit."""

    file: State
    added: State
    left_out: int = 0
    metadata: dict[str, str] | None = None


def pairs(model: nn.Module, form: Callable[[str, str], str], alpha: float | None = None, layers: Any = WAN) -> Change:
    """Pairs for each layer; `form(layer's diffusers name, "A" | "B" | "alpha")` is the key."""
    file, added = {}, {}
    for name in layers:
        weight = model.get_parameter(f"{name}.weight")
        down, up = noise(RANK, weight.shape[1]), noise(weight.shape[0], RANK)
        file |= {form(name, "A"): down, form(name, "B"): up}
        if alpha is not None:
            file[form(name, "alpha")] = torch.tensor(alpha)
        added[f"{name}.weight"] = (1.0 if alpha is None else alpha / RANK) * up @ down
    return Change(file, added)


def peft(prefix: str, adapter: str = "") -> Callable[[str, str], str]:
    ends = {"A": f".lora_A{adapter}.weight", "B": f".lora_B{adapter}.weight", "alpha": ".alpha"}
    return lambda name, role: prefix + name + ends[role]


def original(prefix: str, *, kohya: bool = True, adapter: str = "") -> Callable[[str, str], str]:
    ends = {"A": ".lora_down.weight", "B": ".lora_up.weight"} if kohya else {}
    ends = {"A": f".lora_A{adapter}.weight", "B": f".lora_B{adapter}.weight", "alpha": ".alpha"} | ends
    return lambda name, role: prefix + WAN[name] + ends[role]


def underscored(name: str, role: str) -> str:
    ends = {"A": ".lora_down.weight", "B": ".lora_up.weight", "alpha": ".alpha"}
    return "lora_unet_" + WAN[name].replace(".", "_") + ends[role]


def underscored_diffusers(name: str, role: str) -> str:
    return underscored(name, role).replace(WAN[name].replace(".", "_"), name.replace(".", "_"))


def attention_only(model: nn.Module) -> Change:
    return pairs(model, underscored, 1.0, [name for name in WAN if "attn" in name])


def saved_by_diffusers(model: nn.Module) -> Change:
    """diffusers writes the strength into the header."""
    change = pairs(model, peft("transformer."))
    change.added = {name: value * 5 / RANK for name, value in change.added.items()}
    settings = {"transformer.r": RANK, "transformer.lora_alpha": 5, "transformer.target_modules": ["to_q"]}
    change.metadata = {"lora_adapter_metadata": json.dumps(settings)}
    return change


def dora(
    key: str, prefix: str, names: Callable[[str], str], *, by_column: bool = False
) -> Callable[[nn.Module], Change]:
    def make(model: nn.Module) -> Change:
        change = pairs(model, lambda name, role: f"{prefix}{names(name)}.lora_{role}.weight")
        for name in WAN:
            weight = model.get_parameter(f"{name}.weight")
            moved = weight + change.added[f"{name}.weight"]
            magnitude = noise(weight.shape[1] if by_column else weight.shape[0]).abs() + 0.5
            shape = (1, -1) if by_column else (-1, 1)
            change.file[f"{prefix}{names(name)}.{key}"] = magnitude.view(shape).contiguous()
            norm = moved.norm(dim=0 if by_column else 1, keepdim=True)
            change.added[f"{name}.weight"] = magnitude.view(shape) * moved / norm - weight
        return change

    return make


def loha(model: nn.Module) -> Change:
    file, added = {}, {}
    for name, theirs in WAN.items():
        rows, width = model.get_parameter(f"{name}.weight").shape
        parts = {"w1_a": noise(rows, RANK), "w1_b": noise(RANK, width), "w2_a": noise(rows, RANK)}
        parts["w2_b"] = noise(RANK, width)
        file |= {f"lycoris_{theirs.replace('.', '_')}.hada_{part}": value for part, value in parts.items()}
        file[f"lycoris_{theirs.replace('.', '_')}.alpha"] = torch.tensor(6.0)
        added[f"{name}.weight"] = 6 / RANK * (parts["w1_a"] @ parts["w1_b"]) * (parts["w2_a"] @ parts["w2_b"])
    return Change(file, added)


def lokr(*, factored: bool) -> Callable[[nn.Module], Change]:
    def make(model: nn.Module) -> Change:
        file, added = {}, {}
        for name, theirs in WAN.items():
            rows, width = model.get_parameter(f"{name}.weight").shape
            small = noise(4, 4)
            left, right = noise(rows // 4, RANK), noise(RANK, width // 4)
            prefix = f"diffusion_model.{theirs}"
            file[f"{prefix}.lokr_w1"] = small
            file[f"{prefix}.alpha"] = torch.tensor(6.0)
            if factored:
                file |= {f"{prefix}.lokr_w2_a": left, f"{prefix}.lokr_w2_b": right}
            else:
                file[f"{prefix}.lokr_w2"] = left @ right
            added[f"{name}.weight"] = (6 / RANK if factored else 1) * torch.kron(small, left @ right)
        return Change(file, added)

    return make


def distilled(model: nn.Module) -> Change:
    """Differences beside pairs, as distilled LoRAs have them, of everything that is not a matrix of a block."""
    change = pairs(model, original("diffusion_model."), 3.0)
    changed = {
        "diffusion_model.blocks.0.self_attn.q.diff_b": "blocks.0.attn1.to_q.bias",
        "diffusion_model.blocks.1.self_attn.norm_q.diff": "blocks.1.attn1.norm_q.weight",
        "diffusion_model.blocks.2.norm3.diff": "blocks.2.norm2.weight",
        "diffusion_model.blocks.2.norm3.diff_b": "blocks.2.norm2.bias",
        "diffusion_model.blocks.2.diff_m": "blocks.2.scale_shift_table",
        "diffusion_model.blocks.3.modulation.diff": "blocks.3.scale_shift_table",
        "diffusion_model.head.diff_m": "scale_shift_table",
        "diffusion_model.head.head.diff": "proj_out.weight",
        "diffusion_model.head.head.diff_b": "proj_out.bias",
        "diffusion_model.patch_embedding.diff": "patch_embedding.weight",
        "diffusion_model.patch_embedding.diff_b": "patch_embedding.bias",
        "diffusion_model.time_projection.1.diff_b": "condition_embedder.time_proj.bias",
        "diffusion_model.text_embedding.0.diff": "condition_embedder.text_embedder.linear_1.weight",
        "diffusion_model.time_embedding.2.diff_b": "condition_embedder.time_embedder.linear_2.bias",
    }
    for key, name in changed.items():
        change.added[name] = change.file[key] = noise(*model.get_parameter(name).shape)
    return change


def differences_in_diffusers_names(model: nn.Module) -> Change:
    change = pairs(model, peft(""), 2.0)
    for name in ("patch_embedding.weight", "blocks.1.norm2.weight", "blocks.1.norm2.bias", "blocks.1.attn1.to_q.bias"):
        layer, _, kind = name.rpartition(".")
        change.added[name] = noise(*model.get_parameter(name).shape)
        change.file[f"{layer}.diff" + ("_b" if kind == "bias" else "")] = change.added[name]
    return change


def of_image_to_video(model: nn.Module) -> Change:
    """On a text-to-video model: image layers that it lacks, and a patch embedding of more channels."""
    change = distilled(model)
    width = model.get_parameter("blocks.0.attn1.to_q.weight").shape[0]
    for block in range(2):
        for layer in ("k_img", "v_img"):
            change.file[f"diffusion_model.blocks.{block}.cross_attn.{layer}.lora_down.weight"] = noise(RANK, width)
            change.file[f"diffusion_model.blocks.{block}.cross_attn.{layer}.lora_up.weight"] = noise(width, RANK)
    change.file["diffusion_model.img_emb.proj.1.diff_b"] = noise(width)
    change.file["diffusion_model.blocks.0.cross_attn.norm_k_img.diff"] = noise(width)
    change.file["diffusion_model.patch_embedding.diff"] = noise(width, 36, 1, 2, 2)
    del change.added["patch_embedding.weight"]
    change.left_out = 8 + 2 + 1
    return change


def with_tensors_of_others(model: nn.Module) -> Change:
    change = pairs(model, original("diffusion_model.", kohya=False))
    change.file |= {
        "text_encoder.x.lora_A.weight": noise(2, 2),
        "diffusion_model.blocks.0.self_attn.q.strange": noise(1),
    }
    change.left_out = 2
    return change


FORMATS: dict[str, Callable[[nn.Module], Change]] = {
    "diffusers": lambda m: pairs(m, peft("transformer.")),
    "diffusers, no prefix": lambda m: pairs(m, peft("")),
    "diffusers, alpha": lambda m: pairs(m, peft("transformer."), 1.0),
    "diffusers, saved with settings": saved_by_diffusers,
    "PEFT": lambda m: pairs(m, peft("base_model.model.")),
    "PEFT, adapter's name": lambda m: pairs(m, peft("base_model.model.transformer.", ".default")),
    "ComfyUI": lambda m: pairs(m, original("diffusion_model.", kohya=False)),
    "ComfyUI, alpha": lambda m: pairs(m, original("diffusion_model."), 8.0),
    "DiffSynth": lambda m: pairs(m, original("", kohya=False, adapter=".default")),
    "musubi": lambda m: pairs(m, underscored, 1.0),
    "musubi, no alpha": lambda m: pairs(m, underscored),
    "musubi, attention only": attention_only,
    "kohya, diffusers' names": lambda m: pairs(m, underscored_diffusers, 2.0),
    "DoRA, PEFT": dora("lora_magnitude_vector", "transformer.", lambda name: name),
    "DoRA, ComfyUI": dora("dora_scale", "diffusion_model.", WAN.__getitem__),
    "DoRA, by column": dora("dora_scale", "diffusion_model.", WAN.__getitem__, by_column=True),
    "LoHa": loha,
    "LoKr": lokr(factored=False),
    "LoKr, factored": lokr(factored=True),
    "distilled": distilled,
    "differences, diffusers' names": differences_in_diffusers_names,
    "image-to-video on text-to-video": of_image_to_video,
    "tensors of others": with_tensors_of_others,
}


def applied(model: nn.Module, change: Change, path: Path, scale: float = SCALE) -> AppliedLora:
    state = {key: value.contiguous() for key, value in change.file.items()}
    save_file(state, path / "x.safetensors", metadata=change.metadata)
    (found,) = load_loras(model, [LoraConfig(path=str(path), scale=scale)], "transformer", "WanPipeline")
    return found


def merge(model: nn.Module, change: Change, scale: float = SCALE) -> nn.Module:
    for name, value in change.added.items():
        model.get_parameter(name).data += scale * value
    return model


def output(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, model.config.in_channels, 2, 4, 4, generator=generator)
    text = torch.randn(1, 8, 128, generator=generator)
    image = torch.randn(1, 5, model.config.image_dim, generator=generator) if model.config.image_dim else None
    time = torch.tensor([300])
    with torch.no_grad():
        result: Tensor = model(latents, time, text, image, return_dict=False)[0]
    return result


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_as_merged_by_hand(form: str, tmp_path: Path) -> None:
    ours = tiny.build_transformer()
    before = output(ours)
    change = FORMATS[form](ours)
    found = applied(ours, change, tmp_path)
    expected = output(merge(tiny.build_transformer(), change))
    assert (expected - before).abs().max() > 1e-2
    torch.testing.assert_close(output(ours), expected, atol=1e-5, rtol=1e-5)
    assert found.num_tensors == len(change.file) and found.num_applied == len(change.file) - change.left_out


def test_no_difference_is_too_small_to_be_seen(tmp_path: Path) -> None:
    """Each kind of difference of a distilled LoRA changes the output by itself, so none of them was dropped above."""
    whole = distilled(tiny.build_transformer())
    plain = output(tiny.build_transformer())
    for name, value in whole.added.items():
        alone = merge(tiny.build_transformer(), Change({}, {name: value}))
        assert (output(alone) - plain).abs().max() > 1e-4, name


def test_what_was_not_applied_is_said(tmp_path: Path) -> None:
    ours = tiny.build_transformer()
    change = of_image_to_video(ours)
    found = applied(ours, change, tmp_path)
    line = found.line()
    assert line.startswith(f"LoRA x.safetensors on transformer: {len(change.file) - 11} of {len(change.file)} tensors")
    assert re.search(r"not applied: 1 of another shape \(diffusion_model\.patch_embedding\.diff\)", line)
    assert re.search(r"not applied: 10 of layers that this model lacks \(.*, .*, .* and 7 more\)", line)
    record = found.record()
    assert record["tensors"] - record["applied"] == sum(map(len, record["not_applied"].values())) == 11
    assert "\n" not in line
    other = tiny.build_transformer()
    assert "not applied" not in applied(other, pairs(other, peft("")), tmp_path).line()


def test_text_to_video_on_image_to_video(tmp_path: Path) -> None:
    ours, merged = (tiny_wan_i2v.KINDS["wan-i2v"].build_transformer() for _ in range(2))
    layers = [name for name in WAN if int(name.split(".")[1]) < len(ours.blocks)]
    change = pairs(ours, original("diffusion_model."), 1.0, layers)
    applied(ours, change, tmp_path)
    torch.testing.assert_close(output(ours), output(merge(merged, change)), atol=1e-5, rtol=1e-5)


def hunyuan(form: Callable[[str, str], str]) -> Callable[[nn.Module], Change]:
    """Joined layers in Tencent's names: rows of B are those of the layers that diffusers splits them into."""
    joined = {
        "double_blocks.0.img_attn_qkv": [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"],
        "double_blocks.1.txt_attn_qkv": [f"transformer_blocks.1.attn.add_{x}_proj" for x in "qkv"],
        "double_blocks.1.img_attn_proj": ["transformer_blocks.1.attn.to_out.0"],
        "double_blocks.0.txt_mlp.fc1": ["transformer_blocks.0.ff_context.net.0.proj"],
        "double_blocks.0.img_mod.linear": ["transformer_blocks.0.norm1.linear"],
        "single_blocks.1.linear1": [
            *(f"single_transformer_blocks.1.attn.to_{x}" for x in "qkv"),
            "single_transformer_blocks.1.proj_mlp",
        ],
        "single_blocks.2.linear2": ["single_transformer_blocks.2.proj_out"],
    }

    def make(model: nn.Module) -> Change:
        file, added = {}, {}
        for theirs, ours in joined.items():
            weights = [model.get_parameter(f"{name}.weight") for name in ours]
            down, up = noise(RANK, weights[0].shape[1]), noise(sum(map(len, weights)), RANK)
            file |= {form(theirs, "A"): down, form(theirs, "B"): up, form(theirs, "alpha"): torch.tensor(1.5)}
            parts = (up @ down / 2).split([len(weight) for weight in weights])
            added |= {f"{name}.weight": part for name, part in zip(ours, parts, strict=True)}
        return Change(file, added)

    return make


HUNYUAN_ENDS = {"A": ".lora_down.weight", "B": ".lora_up.weight", "alpha": ".alpha"}
HUNYUAN = {
    "ComfyUI": hunyuan(lambda name, role: "diffusion_model." + name + HUNYUAN_ENDS[role]),
    "musubi": hunyuan(lambda name, role: "lora_unet_" + name.replace(".", "_") + HUNYUAN_ENDS[role]),
    "PEFT": hunyuan(lambda name, role: f"transformer.{name}" + peft("")("", role)),
}


@pytest.mark.parametrize("form", HUNYUAN)
def test_hunyuan_video_in_its_original_names(form: str, tmp_path: Path) -> None:
    ours, merged = tiny_hunyuan.build_transformer(), tiny_hunyuan.build_transformer()
    change = HUNYUAN[form](ours)
    found = applied(ours, change, tmp_path)
    assert found.num_applied == found.num_tensors
    conditioning = tiny_hunyuan.conditioning(ours, 1)
    latents = torch.randn(2, 16, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    outputs = [
        tiny_hunyuan.forward(model, latents, torch.tensor([300, 300]), conditioning)
        for model in (ours, merge(merged, change), tiny_hunyuan.build_transformer())
    ]
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
    assert (outputs[0] - outputs[2]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: {k: v for k, v in f.items() if not k.endswith("hada_w2_b")}, "one of the pair"),
        (lambda f: {k: v[:2] if k.endswith("w1_b") else v for k, v in f.items()}, "of one rank"),
        (lambda f: {k: torch.ones(3) if k.endswith("alpha") else v for k, v in f.items()}, "expected one number"),
        (lambda f: {k: v / 0 if k.endswith("w1_a") else v for k, v in f.items()}, "finite values"),
        (lambda f: {k: v[:-4] if k.endswith("_a") else v for k, v in f.items()}, "expected size as in the model"),
    ],
)
def test_damaged_products_are_refused(damage: Callable[[State], State], said: str, tmp_path: Path) -> None:
    model = tiny.build_transformer()
    with pytest.raises(InputError, match=rf"^model\.lora: .*{said}") as caught:
        applied(model, Change(damage(loha(model).file), {}), tmp_path)
    assert "\n" not in str(caught.value)


def test_two_files_on_the_same_layers(tmp_path: Path) -> None:
    """A difference below a pair: both count."""
    ours, merged = tiny.build_transformer(), tiny.build_transformer()
    first, second = pairs(ours, peft("")), loha(ours)
    for number, change in enumerate((first, second)):
        save_file({key: value.contiguous() for key, value in change.file.items()}, tmp_path / f"{number}.safetensors")
    loras = [LoraConfig(path=str(tmp_path / f"{number}.safetensors"), scale=SCALE) for number in range(2)]
    load_loras(ours, loras, "transformer", "WanPipeline")
    expected = output(merge(merge(merged, first), second))
    torch.testing.assert_close(output(ours), expected, atol=1e-5, rtol=1e-5)
