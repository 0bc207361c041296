"""Weights of miniatures under the names and in the formats of other programs, written out by hand.

Nothing here uses diffusers' converters, which the tests hold against it.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]


def _renamed(state: State, pairs: list[tuple[str, str]]) -> State:
    """Each name with the first replacement whose pattern is found in it, applied in order."""
    made = {}
    for name, value in state.items():
        for pattern, by in pairs:
            name = re.sub(pattern, by, name)
        made[name] = value
    return made


def wan_transformer(state: State) -> State:
    """Wan-AI's own names of a Wan transformer."""
    pairs = [
        (r"^scale_shift_table$", "head.modulation"),
        (r"^(vace_blocks\.\d+)\.proj_in\.", r"\1.before_proj."),
        (r"^(vace_blocks\.\d+)\.proj_out\.", r"\1.after_proj."),
        (r"\.scale_shift_table$", ".modulation"),
        (r"^proj_out\.", "head.head."),
        (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
        (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
        (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
        (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
        (r"^condition_embedder\.time_proj", "time_projection.1"),
        (r"^condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
        (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
        (r"^condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
        (r"^condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
        (r"\.norm2\.", ".norm3."),
        (r"\.attn1\.", ".self_attn."),
        (r"\.attn2\.", ".cross_attn."),
        (r"\.to_([qkv])\.", r".\1."),
        (r"\.to_out\.0\.", ".o."),
        (r"\.add_([kv])_proj\.", r".\1_img."),
        (r"\.norm_added_k\.", ".norm_k_img."),
        (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
        (r"\.ffn\.net\.2\.", ".ffn.2."),
    ]
    return _renamed(state, pairs)


def minimax_h3_transformer(state: State) -> State:
    """MiniMax's names, with Q, K and V joined, and the gate of the feed-forward before its values."""
    joined = dict(state)
    for name in [name for name in state if name.endswith(".attn.to_q.weight")]:
        layer = name.removesuffix("to_q.weight")
        joined[f"{layer}qkv_proj.weight"] = torch.cat([joined.pop(f"{layer}to_{kind}.weight") for kind in "qkv"])
    for name in [name for name in state if name.endswith(".ff.net.0.proj.weight")]:
        values, gates = joined[name].chunk(2)
        joined[name] = torch.cat((gates, values))
    pairs = [
        (r"^transformer_blocks\.", "blocks."),
        (r"^token_refiner\.refiner_blocks\.", "token_refiner.blocks."),
        (r"^time_embedder\.linear_1\.", "time_embedder.proj_in."),
        (r"^time_embedder\.linear_2\.", "time_embedder.proj_out."),
        (r"^proj_in\.", "video_patch_proj."),
        (r"^audio_proj_in\.", "audio_patch_proj."),
        (r"^context_embedder\.", "condition_proj."),
        (r"^norm_out\.norm\.", "final_layer.norm."),
        (r"^norm_out\.linear\.", "final_layer.adaln_proj.linear."),
        (r"^proj_out\.", "final_layer.video_out."),
        (r"^audio_proj_out\.", "final_layer.audio_out."),
        (r"\.norm_([qk])\.", r".\1_norm."),
        (r"\.to_out\.0\.", ".out_proj."),
        (r"\.ff\.net\.0\.proj\.", ".mlp.fc1."),
        (r"\.ff\.net\.2\.", ".mlp.fc2."),
    ]
    return _renamed(joined, pairs)


def hunyuan_transformer(state: State) -> State:
    """Tencent's own names of a HunyuanVideo transformer, with Q, K and V (and the MLP) joined."""
    joined = dict(state)

    def join(new: str, names: list[str]) -> None:
        for kind in ("weight", "bias"):
            parts = [joined.pop(f"{name}.{kind}", None) for name in names]
            if parts[0] is not None:
                joined[f"{new}.{kind}"] = torch.cat([part for part in parts if part is not None])

    for name in [name for name in state if name.endswith((".attn.to_q.weight", ".attn.add_q_proj.weight"))]:
        prefix = name.rpartition(".attn.")[0]
        if "refiner" in name:
            join(f"{prefix}.self_attn_qkv", [f"{prefix}.attn.to_{x}" for x in "qkv"])
        elif name.startswith("single_"):
            join(f"{prefix}.linear1", [*(f"{prefix}.attn.to_{x}" for x in "qkv"), f"{prefix}.proj_mlp"])
        elif "add_q_proj" in name:
            join(f"{prefix}.txt_attn_qkv", [f"{prefix}.attn.add_{x}_proj" for x in "qkv"])
        else:
            join(f"{prefix}.img_attn_qkv", [f"{prefix}.attn.to_{x}" for x in "qkv"])
    for kind in ("weight", "bias"):
        scale, shift = joined.pop(f"norm_out.linear.{kind}").chunk(2)
        joined[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    pairs = [
        (r"^x_embedder\.", "img_in."),
        (r"^time_text_embed\.timestep_embedder\.linear_1", "time_in.mlp.0"),
        (r"^time_text_embed\.timestep_embedder\.linear_2", "time_in.mlp.2"),
        (r"^time_text_embed\.guidance_embedder\.linear_1", "guidance_in.mlp.0"),
        (r"^time_text_embed\.guidance_embedder\.linear_2", "guidance_in.mlp.2"),
        (r"^time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
        (r"^time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
        (r"^proj_out\.", "final_layer.linear."),
        (r"^context_embedder\.time_text_embed\.timestep_embedder\.linear_1", "txt_in.t_embedder.mlp.0"),
        (r"^context_embedder\.time_text_embed\.timestep_embedder\.linear_2", "txt_in.t_embedder.mlp.2"),
        (r"^context_embedder\.time_text_embed\.text_embedder", "txt_in.c_embedder"),
        (r"^context_embedder\.proj_in", "txt_in.input_embedder"),
        (
            r"^context_embedder\.token_refiner\.refiner_blocks\.(\d+)\.norm_out\.linear",
            r"txt_in.individual_token_refiner.blocks.\1.adaLN_modulation.1",
        ),
        (r"^context_embedder\.token_refiner\.refiner_blocks", "txt_in.individual_token_refiner.blocks"),
        (r"(individual_token_refiner.*)\.attn\.to_out\.0", r"\1.self_attn_proj"),
        (r"(individual_token_refiner.*)\.ff\.net\.0\.proj", r"\1.mlp.fc1"),
        (r"(individual_token_refiner.*)\.ff\.net\.2", r"\1.mlp.fc2"),
        (r"^transformer_blocks\.", "double_blocks."),
        (r"(double_blocks\.\d+)\.attn\.norm_q", r"\1.img_attn_q_norm"),
        (r"(double_blocks\.\d+)\.attn\.norm_k", r"\1.img_attn_k_norm"),
        (r"(double_blocks\.\d+)\.attn\.norm_added_q", r"\1.txt_attn_q_norm"),
        (r"(double_blocks\.\d+)\.attn\.norm_added_k", r"\1.txt_attn_k_norm"),
        (r"(double_blocks\.\d+)\.attn\.to_out\.0", r"\1.img_attn_proj"),
        (r"(double_blocks\.\d+)\.attn\.to_add_out", r"\1.txt_attn_proj"),
        (r"(double_blocks\.\d+)\.norm1\.linear", r"\1.img_mod.linear"),
        (r"(double_blocks\.\d+)\.norm1_context\.linear", r"\1.txt_mod.linear"),
        (r"(double_blocks\.\d+)\.ff\.net\.0\.proj", r"\1.img_mlp.fc1"),
        (r"(double_blocks\.\d+)\.ff\.net\.2", r"\1.img_mlp.fc2"),
        (r"(double_blocks\.\d+)\.ff_context\.net\.0\.proj", r"\1.txt_mlp.fc1"),
        (r"(double_blocks\.\d+)\.ff_context\.net\.2", r"\1.txt_mlp.fc2"),
        (r"^single_transformer_blocks\.", "single_blocks."),
        (r"(single_blocks\.\d+)\.attn\.norm_q", r"\1.q_norm"),
        (r"(single_blocks\.\d+)\.attn\.norm_k", r"\1.k_norm"),
        (r"(single_blocks\.\d+)\.proj_out", r"\1.linear2"),
        (r"(single_blocks\.\d+)\.norm\.linear", r"\1.modulation.linear"),
    ]
    return _renamed(joined, pairs)


def wan_vae(state: State) -> State:
    """Wan-AI's own names of the VAE of Wan 2.1 (three residual blocks a level of the decoder, two of the encoder)."""
    pairs = [
        (r"^quant_conv\.", "conv1."),
        (r"^post_quant_conv\.", "conv2."),
        (r"\.conv_in\.", ".conv1."),
        (r"\.norm_out\.", ".head.0."),
        (r"\.conv_out\.", ".head.2."),
        (r"\.mid_block\.resnets\.0\.", ".middle.0."),
        (r"\.mid_block\.attentions\.0\.", ".middle.1."),
        (r"\.mid_block\.resnets\.1\.", ".middle.2."),
        (r"\.down_blocks\.", ".downsamples."),
        *_RESNET,
    ]
    made = _renamed(state, pairs)
    levels = re.compile(r"^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.")
    return {
        levels.sub(
            lambda m: f"decoder.upsamples.{4 * int(m[1]) + (int(m[3]) if m[2] == 'resnets' else 3)}.", name
        ): value
        for name, value in made.items()
    }


def wan22_vae(state: State) -> State:
    """Wan-AI's own names of the VAE of Wan 2.2 5B, whose levels are nested."""
    num_down = 1 + max(int(m[1]) for name in state if (m := re.search(r"down_blocks\.\d+\.resnets\.(\d+)", name)))
    num_up = 1 + max(int(m[1]) for name in state if (m := re.search(r"up_blocks\.\d+\.resnets\.(\d+)", name)))
    pairs = [
        (r"\.down_blocks\.(\d+)\.resnets\.", r".downsamples.\1.downsamples."),
        (r"\.down_blocks\.(\d+)\.downsampler\.", rf".downsamples.\1.downsamples.{num_down}."),
        (r"\.up_blocks\.(\d+)\.resnets\.", r".upsamples.\1.upsamples."),
        (r"\.up_blocks\.(\d+)\.upsampler\.", rf".upsamples.\1.upsamples.{num_up}."),
    ]
    return wan_vae(_renamed(state, pairs))


_RESNET = [
    (r"(samples\.[\d.a-z]*\d|middle\.[02]|resnets\.\d+)\.norm1\.", r"\1.residual.0."),
    (r"(samples\.[\d.a-z]*\d|middle\.[02]|resnets\.\d+)\.conv1\.", r"\1.residual.2."),
    (r"(samples\.[\d.a-z]*\d|middle\.[02]|resnets\.\d+)\.norm2\.", r"\1.residual.3."),
    (r"(samples\.[\d.a-z]*\d|middle\.[02]|resnets\.\d+)\.conv2\.", r"\1.residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
]


def wan_t5(state: State) -> State:
    """Wan-AI's own names of its text encoder."""
    return _t5(state, "blocks", 0, {"shared.weight": "token_embedding.weight", _FINAL: "norm.weight"})


def llama_cpp_t5(state: State) -> State:
    """llama.cpp's names of a T5 encoder, as in GGUF files."""
    return _t5(state, "enc.blk", 1, {"shared.weight": "token_embd.weight", _FINAL: "enc.output_norm.weight"})


_FINAL = "encoder.final_layer_norm.weight"
_T5_LAYERS = {
    "layer.0.SelfAttention.q": ("attn.q", "attn_q"),
    "layer.0.SelfAttention.k": ("attn.k", "attn_k"),
    "layer.0.SelfAttention.v": ("attn.v", "attn_v"),
    "layer.0.SelfAttention.o": ("attn.o", "attn_o"),
    "layer.0.SelfAttention.relative_attention_bias": ("pos_embedding.embedding", "attn_rel_b"),
    "layer.0.layer_norm": ("norm1", "attn_norm"),
    "layer.1.layer_norm": ("norm2", "ffn_norm"),
    "layer.1.DenseReluDense.wi_0": ("ffn.gate.0", "ffn_gate"),
    "layer.1.DenseReluDense.wi_1": ("ffn.fc1", "ffn_up"),
    "layer.1.DenseReluDense.wo": ("ffn.fc2", "ffn_down"),
}


def _t5(state: State, blocks: str, which: int, others: dict[str, str]) -> State:
    made = {}
    for name, value in state.items():
        match = re.fullmatch(r"encoder\.block\.(\d+)\.(.+)\.weight", name)
        if match is not None:
            made[f"{blocks}.{match[1]}.{_T5_LAYERS[match[2]][which]}.weight"] = value
        elif name in others:
            made[others[name]] = value
    return made


def fp8_scaled(state: State, *, by_row: bool = False, form: str = "scale_weight") -> State:
    """ComfyUI's fp8_scaled: matrices in fp8, each with a scale, and what its kernels use besides."""
    made: State = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if form == "scale_weight" else {}
    for name, value in state.items():
        if value.ndim != 2 or not name.endswith(".weight") or min(value.shape) < 8:
            made[name] = value
            continue
        largest = value.abs().amax(dim=1, keepdim=True) if by_row else value.abs().max()
        scale = (largest.float() / 448).clamp(min=1e-12)
        layer = name.removesuffix("weight")
        made[name] = (value.float() / scale).to(torch.float8_e4m3fn)
        made[layer + form] = scale
        if form == "scale_weight":
            made[layer + "scale_input"] = torch.ones(1)
        else:
            text = json.dumps({"format": "float8_e4m3fn"}).encode()
            made[layer + "comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
    return made


def write(state: State, path: Path, prefix: str = "") -> Path:
    save_file({prefix + name: value.contiguous().clone() for name, value in state.items()}, path)
    return path


def write_shards(state: State, folder: Path, stem: str = "model", *, index: bool = True) -> Path:
    """Three shards, with an index or without. Returns the first one."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(state)
    weight_map = {}
    for number in range(3):
        file = f"{stem}-{number + 1:05}-of-00003.safetensors"
        write({name: state[name] for name in names[number::3]}, folder / file)
        weight_map |= dict.fromkeys(names[number::3], file)
    if index:
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder / f"{stem}-00001-of-00003.safetensors"


Quantize = Callable[[str, Tensor], gguf.GGMLQuantizationType]


def write_gguf(state: State, path: Path, arch: str, quantize: Quantize, *, rows_of_256: bool = False) -> Path:
    """As ComfyUI-GGUF's converter writes it; `rows_of_256`: tensors in another shape, which is noted."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    for name, value in state.items():
        kind = quantize(name, value)
        data = value.float().numpy()
        if rows_of_256 and data.ndim > 1 and data.size % 256 == 0:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", [int(n) for n in data.shape])
            data = data.reshape(-1, 256)
        writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_blocks(shape: tuple[int, ...], kind: gguf.GGMLQuantizationType, seed: int) -> np.ndarray:
    """Blocks of a quantized matrix with sensible scales: `[rows, bytes of a row]`."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
    scale = np.frombuffer(np.float16(0.002).tobytes(), np.uint8)
    places = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}[kind.name]
    for place in places:
        blocks[:, :, place : place + 2] = scale
    return blocks.reshape(shape[0], -1)
