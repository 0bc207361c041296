"""Stages 2 and 3 of `shapes-wan`: latents of many clips, then text encoder and transformer together on them.

Flow matching as Wan samples it: x_σ = (1 − σ)·x₀ + σ·ε, the network predicts ε − x₀, its timestep is 1000·σ.

Dimension letters: N clips of the data set, B clips of a batch, C channels, T, H, W latent frames, rows, columns.
"""

import itertools
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import UMT5EncoderModel

from .loop import TrainState, autocast, train
from .text import TEXT_CONFIG, build_text_encoder, build_tokenizer, encode
from .world import Scene, caption, render, sample_scene, variants

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
# One clip in two is drawn in a family: clips that differ in one attribute of one shape and share all else, noise and σ
# included. What the loss says of everything else is then the same in each of them and cancels in the gradient of the
# word that differs. Without families the model learnt colours and sizes, and after 5,650 steps still no shapes: between
# a small circle and a small square, the latents differ 12 times less than between a blue and a red circle.
FAMILY_SHARE = 0.5
FAMILY_ATTRIBUTES = {"shape": 0.6, "direction": 0.2, "size": 0.1, "color": 0.1}
FAMILY_SIZE = 4

Family = list[Scene]


def training_scene(seed: int, index: int) -> Scene:
    rng = random.Random(f"{seed}-clip-{index}")
    return sample_scene(rng, num_things=2 if rng.random() < TWO_THINGS else 1)


def training_family(seed: int, index: int) -> Family:
    """2 to `FAMILY_SIZE` scenes that differ in one attribute of one thing."""
    rng = random.Random(f"{seed}-family-{index}")
    while True:
        scene = sample_scene(rng, num_things=rng.randint(1, 2))
        (attribute,) = rng.choices(list(FAMILY_ATTRIBUTES), list(FAMILY_ATTRIBUTES.values()))
        family = variants(scene, rng.randrange(len(scene.things)), attribute, rng)
        if len(family) >= 2:
            return rng.sample(family, min(FAMILY_SIZE, len(family)))


def training_families(seed: int, num_clips: int) -> list[Family]:
    """As many families as have at least `num_clips` clips together."""
    families: list[Family] = []
    total = 0
    while total < num_clips:
        families.append(training_family(seed, len(families)))
        total += len(families[-1])
    return families


@torch.no_grad()
def encode_clips(vae: AutoencoderKLWan, scenes: Sequence[Scene], path: Path, *, device: str) -> Tensor:
    """Posterior means of the scenes' clips, [N, 16, 5, 8, 8] float16, kept at `path` for the next start."""
    if path.exists():
        latents = load_file(path)["latents"]
        if len(latents) >= len(scenes):
            return latents[: len(scenes)]
    chunks = []
    for start in tqdm(range(0, len(scenes), ENCODE_BATCH), desc=path.stem, mininterval=5.0):
        video, _ = render(list(scenes[start : start + ENCODE_BATCH]))
        with autocast(device):
            chunks.append(vae.encode(video.to(device)).latent_dist.mean.to("cpu", torch.float16))
    latents = torch.cat(chunks)
    save_file({"latents": latents}, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)
    return latents


@dataclass(frozen=True)
class Batch:
    """Clips with their captions; clips of one family share a number in `families` [B]."""

    latents: Tensor
    captions: list[str]
    families: Tensor


@dataclass(frozen=True)
class DataSet:
    """Latents [N, C, T, H, W] of single clips (a family of one each) first, of families after them."""

    latents: Tensor
    families: list[Family]
    num_singles: int

    def batches(self, *, seed: int, start: int, num_steps: int, batch_size: int) -> Iterator[Batch]:
        starts = [0, *itertools.accumulate(len(family) for family in self.families)]
        for step in range(start, num_steps):
            rng = random.Random(f"{seed}-batch-{step}")
            indices: list[int] = []
            captions: list[str] = []
            numbers: list[int] = []
            while len(indices) < batch_size:
                together = len(indices) < FAMILY_SHARE * batch_size and self.num_singles < len(self.families)
                low, high = (self.num_singles, len(self.families)) if together else (0, self.num_singles)
                number = rng.randrange(low, high)
                empty, words = rng.random() < EMPTY_CAPTIONS, rng.random()
                for k, scene in enumerate(self.families[number]):
                    indices.append(starts[number] + k)
                    captions.append("" if empty else caption(scene, random.Random(words)))
                    numbers.append(number)
            yield Batch(
                self.latents[indices[:batch_size]].float(), captions[:batch_size], torch.tensor(numbers[:batch_size])
            )


def train_transformer(
    data: DataSet,
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
    mean, std = (x.view(1, -1, 1, 1, 1).to(device) for x in (mean, std))

    def loss(batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        clean = (batch.latents.to(device) - mean) / std
        generator = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
        _, first = torch.unique_consecutive(batch.families, return_inverse=True)  # a family shares its noise and its σ
        noise = torch.randn(clean.shape, generator=generator, device=device)[first.to(device)]
        logit = LOGIT_MEAN + LOGIT_STD * torch.randn(len(clean), generator=generator, device=device)[first.to(device)]
        sigma = logit.sigmoid().view(-1, 1, 1, 1, 1)
        noisy = (1 - sigma) * clean + sigma * noise
        with autocast(device, on_cpu=False):  # measured: 1.2 times slower there, for the norms fall back
            text = encode(models["text_encoder"], tokenizer, batch.captions)
            output = transformer(noisy, 1000 * sigma.flatten(), text, return_dict=False)[0]
        return (output.float() - (noise - clean)).square().mean(), {}

    batches = data.batches(seed=seed, start=state.step, num_steps=num_steps, batch_size=batch_size)
    train(state, batches, loss, name="transformer")
    return state.averaged().eval(), state
