"""Stages 2 and 3 of `shapes-wan`: latents of many clips, then text encoder and transformer together on them.

Flow matching as Wan samples it: x_σ = (1 − σ)·x₀ + σ·ε, the network predicts ε − x₀, its timestep is 1000·σ.

Dimension letters: N clips of the data set, B clips of a batch, C channels, T, H, W latent frames, rows, columns.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import UMT5EncoderModel

from .loop import TrainState, autocast, train
from .text import TEXT_CONFIG, build_text_encoder, build_tokenizer, encode
from .world import Scene, caption, render, sample_scene

TRANSFORMER_CONFIG = dict(
    patch_size=(1, 2, 2),
    num_attention_heads=4,
    attention_head_dim=32,
    in_channels=16,
    out_channels=16,
    text_dim=TEXT_CONFIG["d_model"],
    freq_dim=256,
    ffn_dim=512,
    num_layers=12,
    cross_attn_norm=True,
    rope_max_seq_len=1024,
)
EMPTY_CAPTIONS = 0.1
TWO_THINGS = 0.65  # share of clips with two shapes: the harder half needs more of the data
# σ is logit-normal with its median at 0.83: layout and motion are decided above 0.8, and what is left below is easy
LOGIT_MEAN, LOGIT_STD = 1.6, 1.2
ENCODE_BATCH = 16


def training_scene(seed: int, index: int) -> Scene:
    rng = random.Random(f"{seed}-clip-{index}")
    return sample_scene(rng, num_things=2 if rng.random() < TWO_THINGS else 1)


@torch.no_grad()
def encode_clips(vae: AutoencoderKLWan, work: Path, *, seed: int, num_clips: int, device: str) -> Tensor:
    """Posterior means of all training clips, [N, 16, 5, 8, 8] float16, kept at `work/latents.safetensors`."""
    path = work / "latents.safetensors"
    if path.exists():
        latents = load_file(path)["latents"]
        if len(latents) >= num_clips:
            return latents[:num_clips]
    chunks = []
    for start in tqdm(range(0, num_clips, ENCODE_BATCH), desc="latents", mininterval=5.0):
        video, _ = render([training_scene(seed, i) for i in range(start, min(start + ENCODE_BATCH, num_clips))])
        with autocast(device):
            chunks.append(vae.encode(video.to(device)).latent_dist.mean.to("cpu", torch.float16))
    latents = torch.cat(chunks)
    save_file({"latents": latents}, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)
    return latents


def batches(
    latents: Tensor, scenes: list[Scene], *, seed: int, start: int, num_steps: int, batch_size: int
) -> Iterator[tuple[Tensor, list[str]]]:
    for step in range(start, num_steps):
        rng = random.Random(f"{seed}-batch-{step}")
        indices = [rng.randrange(len(scenes)) for _ in range(batch_size)]
        captions = ["" if rng.random() < EMPTY_CAPTIONS else caption(scenes[i], rng) for i in indices]
        yield latents[indices].float(), captions


def train_transformer(
    latents: Tensor,
    mean: Tensor,
    std: Tensor,
    work: Path,
    *,
    seed: int,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    device: str,
    init: Path | None = None,
) -> tuple[nn.ModuleDict, TrainState]:
    """Text encoder and transformer with their averaged weights, and the state.

    Args:
        mean, std: of the latents per channel, [C].
        init: a pipeline folder whose weights to start from; None starts from random ones.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    transformer, text_encoder = WanTransformer3DModel(**TRANSFORMER_CONFIG), build_text_encoder()
    if init is not None:
        transformer = WanTransformer3DModel.from_pretrained(init, subfolder="transformer", dtype=torch.float32)
        text_encoder = UMT5EncoderModel.from_pretrained(init, subfolder="text_encoder", dtype=torch.float32)
    models = nn.ModuleDict({"text_encoder": text_encoder, "transformer": transformer}).to(device)
    state = TrainState.create(
        models,
        work / "transformer.pt",
        num_steps=num_steps,
        learning_rate=learning_rate,
        weight_decay=0.01,
        ema_decay=0.998,
        hidden=lambda name: "block" in name and "relative_attention_bias" not in name,
    )
    scenes = [training_scene(seed, i) for i in range(len(latents))]
    mean, std = (x.view(1, -1, 1, 1, 1).to(device) for x in (mean, std))

    def loss(batch: tuple[Tensor, list[str]], step: int) -> tuple[Tensor, dict[str, float]]:
        clips, captions = batch
        clean = (clips.to(device) - mean) / std
        generator = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        logit = LOGIT_MEAN + LOGIT_STD * torch.randn(len(clean), generator=generator, device=device)
        sigma = logit.sigmoid().view(-1, 1, 1, 1, 1)
        noisy = (1 - sigma) * clean + sigma * noise
        with autocast(device, on_cpu=False):  # measured: 1.2 times slower there, for the norms fall back
            text = encode(models["text_encoder"], tokenizer, captions)
            output = transformer(noisy, 1000 * sigma.flatten(), text, return_dict=False)[0]
        return (output.float() - (noise - clean)).square().mean(), {}

    data = batches(latents, scenes, seed=seed, start=state.step, num_steps=num_steps, batch_size=batch_size)
    train(state, data, loss, name="transformer")
    return state.averaged().eval(), state
