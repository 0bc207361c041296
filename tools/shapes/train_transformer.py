"""Stages 2 and 3 of an embedded model: latents of many clips, then text encoder and transformer together on them.

Flow matching as Wan samples it: x_σ = (1 − σ)·x₀ + σ·ε, the network predicts ε − x₀, its timestep is 1000·σ.

Dimension letters: N clips of the data set, B clips of a batch, C channels, T, H, W latent frames, rows, columns.
"""

import itertools
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import UMT5EncoderModel

from s2video.errors import InputError

from .caption_encoder import TEXT_CONFIG, build_text_encoder, build_tokenizer, encode
from .designs import Design
from .heads import PlaceHeads, WordHeads, patch_owners
from .loop import TrainState, autocast, train
from .world import Scene, caption, render, sample_scene, variants

TRANSFORMER_CONFIG = dict(
    patch_size=(1, 2, 2),
    in_channels=16,
    out_channels=16,
    text_dim=TEXT_CONFIG["d_model"],
    freq_dim=256,
    cross_attn_norm=True,
    rope_max_seq_len=1024,
)
EMPTY_CAPTIONS = 0.1
TWO_THINGS = 0.65  # share of clips with two shapes: the harder half needs more of the data
# σ is logit-normal with its median at 0.83: layout and motion are decided above 0.8, and what is left below is easy
LOGIT_MEAN, LOGIT_STD = 1.6, 1.2
ENCODE_BATCH, OWNERS_BATCH = 16, 64
# Three clips in four are drawn in a family: clips that differ in one attribute of one shape and share all else, noise
# and σ included. What the loss says of everything else is then the same in each of them and cancels in the gradient of
# the word that differs. Without families the model learnt colours and sizes, and after 5,650 steps still no shapes:
# between a small circle and a small square, the latents differ 12 times less than between a blue and a red circle.
FAMILY_SHARE = 0.75
FAMILY_ATTRIBUTES = {"shape": 0.55, "direction": 0.3, "size": 0.1, "color": 0.05}
FAMILY_SIZE = 4
TWO_THINGS_IN_FAMILIES = 0.75
WORDS_WEIGHT, PLACES_WEIGHT = 0.1, 0.1  # of the heads' losses beside flow matching's, which is near 0.2
WORDS_BATCH, WORDS_LEARNING_RATE = 64, 1e-3

Family = list[Scene]


def training_scene(seed: int, index: int) -> Scene:
    rng = random.Random(f"{seed}-clip-{index}")
    return sample_scene(rng, num_things=2 if rng.random() < TWO_THINGS else 1)


def training_family(seed: int, index: int) -> Family:
    """2 to `FAMILY_SIZE` scenes that differ in one attribute of one thing."""
    rng = random.Random(f"{seed}-family-{index}")
    while True:
        scene = sample_scene(rng, num_things=2 if rng.random() < TWO_THINGS_IN_FAMILIES else 1)
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
        try:
            latents = load_file(path)["latents"]
        except (SafetensorError, KeyError) as error:
            raise InputError(f"{path}: expected latents, got a damaged file ({error}); remove it") from None
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
    """Clips with their captions; clips of one family share a number in `families` [B]. `owners`: as `patch_owners`."""

    latents: Tensor
    scenes: list[Scene]
    owners: Tensor
    captions: list[str]
    families: Tensor


@dataclass(frozen=True)
class DataSet:
    """Latents [N, C, T, H, W] of single clips (a family of one each) first, of families after them.

    `owners` [N, P]: as `patch_owners` has them.
    """

    latents: Tensor
    owners: Tensor
    families: list[Family]
    num_singles: int

    @classmethod
    def create(cls, latents: Tensor, singles: Sequence[Scene], families: Sequence[Family]) -> "DataSet":
        """Latents of `singles` first, then of the families' scenes, in this order."""
        scenes = [*singles, *(scene for family in families for scene in family)]
        starts = tqdm(range(0, len(scenes), OWNERS_BATCH), desc="owners", mininterval=5.0)
        owners = torch.cat([patch_owners(scenes[start : start + OWNERS_BATCH]) for start in starts])
        return cls(latents, owners, [[scene] for scene in singles] + list(families), num_singles=len(singles))

    def batches(self, *, seed: int, start: int, num_steps: int, batch_size: int) -> Iterator[Batch]:
        starts = [0, *itertools.accumulate(len(family) for family in self.families)]
        for step in range(start, num_steps):
            rng = random.Random(f"{seed}-batch-{step}")
            indices: list[int] = []
            scenes: list[Scene] = []
            captions: list[str] = []
            numbers: list[int] = []
            while len(indices) < batch_size:
                together = len(indices) < FAMILY_SHARE * batch_size and self.num_singles < len(self.families)
                low, high = (self.num_singles, len(self.families)) if together else (0, self.num_singles)
                number = rng.randrange(low, high)
                empty, words = rng.random() < EMPTY_CAPTIONS, rng.random()
                for k, scene in enumerate(self.families[number]):
                    indices.append(starts[number] + k)
                    scenes.append(scene)
                    captions.append("" if empty else caption(scene, random.Random(words)))
                    numbers.append(number)
            indices = indices[:batch_size]
            yield Batch(
                self.latents[indices].float(),
                scenes[:batch_size],
                self.owners[indices],
                captions[:batch_size],
                torch.tensor(numbers[:batch_size]),
            )


@dataclass(frozen=True)
class Recipe:
    """How text encoder and transformer are trained.

    Attributes:
        word_steps: steps of the text encoder alone, before all others.
        num_steps: steps of both together.
        batch_size: clips in a step of both.
        init: a pipeline folder whose weights to start from; None starts from random ones.
        compiles: compile the transformer's blocks, which needs a C++ compiler; on a CPU, with attention in products.
    """

    design: Design
    seed: int
    word_steps: int
    num_steps: int
    batch_size: int
    learning_rate: float
    device: str
    init: Path | None = None
    compiles: bool = False


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of the latents per channel, [C]."""

    mean: Tensor
    std: Tensor


def build_models(recipe: Recipe) -> nn.ModuleDict:
    """Return text encoder and transformer, from random weights or from `recipe.init`, and the heads of training."""
    torch.manual_seed(recipe.seed)
    transformer = WanTransformer3DModel(**TRANSFORMER_CONFIG, **recipe.design.transformer)
    text_encoder = build_text_encoder()
    if recipe.init is not None:
        transformer = WanTransformer3DModel.from_pretrained(recipe.init, subfolder="transformer", dtype=torch.float32)
        text_encoder = UMT5EncoderModel.from_pretrained(recipe.init, subfolder="text_encoder", dtype=torch.float32)
    inner = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    return nn.ModuleDict(
        {
            "text_encoder": text_encoder,
            "transformer": transformer,
            "words": WordHeads(text_encoder.config.d_model),
            "places": PlaceHeads(inner),
        }
    ).to(recipe.device)


def train_words(models: nn.ModuleDict, work: Path, recipe: Recipe) -> None:
    """Train text encoder and its heads alone, on captions without clips, so that words know their phrase early."""
    tokenizer = build_tokenizer()
    state = TrainState.create(
        nn.ModuleDict({name: models[name] for name in ("text_encoder", "words")}),
        work / "words.pt",
        num_steps=recipe.word_steps,
        learning_rate=WORDS_LEARNING_RATE,
        weight_decay=0.01,
    )

    def captions() -> Iterator[list[str]]:
        for step in range(state.step, recipe.word_steps):
            rng = random.Random(f"{recipe.seed}-words-{step}")
            scenes = [training_scene(recipe.seed, rng.randrange(1_000_000)) for _ in range(WORDS_BATCH)]
            yield [caption(scene, rng) for scene in scenes]

    def loss(batch: list[str], step: int) -> tuple[Tensor, dict[str, float]]:
        return models["words"](encode(models["text_encoder"], tokenizer, batch), batch), {}

    train(state, captions(), loss, name="words")


def train_transformer(
    data: DataSet, normalization: Normalization, work: Path, recipe: Recipe
) -> tuple[nn.ModuleDict, TrainState]:
    """Train text encoder and transformer; return them with averaged weights, and the state of the training."""
    models = build_models(recipe)
    train_words(models, work, recipe)
    if recipe.compiles:
        models["transformer"].compile_repeated_blocks()
    state = TrainState.create(
        models,
        work / "transformer.pt",
        num_steps=recipe.num_steps,
        learning_rate=recipe.learning_rate,
        weight_decay=0.01,
        ema_decay=0.998,
        hidden=lambda name: "block" in name and "relative_attention_bias" not in name,
    )
    batches = data.batches(seed=recipe.seed, start=state.step, num_steps=recipe.num_steps, batch_size=recipe.batch_size)
    train(state, batches, TransformerLoss(models, normalization, recipe), name="transformer")
    return state.averaged().eval(), state


def _attention(query: Tensor, key: Tensor, value: Tensor, **settings: object) -> Tensor:
    """Attention in two products: with 80 tokens of 24 channels, torch's kernel for CPUs took a third of a step."""
    if settings.get("attn_mask") is not None or settings.get("is_causal"):
        raise ValueError("expected Wan's attention, which has no mask")
    return torch.softmax(query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2), dim=-1) @ value


class TransformerLoss:
    """The loss of one step: flow matching, and the heads of words and of places."""

    def __init__(self, models: nn.ModuleDict, normalization: Normalization, recipe: Recipe) -> None:
        self._models = models
        self._seed, self._device = recipe.seed, recipe.device
        self._in_products = recipe.compiles and recipe.device == "cpu"
        self._mean, self._std = (
            x.view(1, -1, 1, 1, 1).to(recipe.device) for x in (normalization.mean, normalization.std)
        )
        self._tokenizer = build_tokenizer()
        self._hidden: list[Tensor] = []  # what the heads of places read
        models["transformer"].blocks[recipe.design.places_block].register_forward_hook(
            lambda block, inputs, output: self._hidden.append(output)
        )

    def __call__(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch, and its parts for the log."""
        models = self._models
        clean = (batch.latents.to(self._device) - self._mean) / self._std
        noise, sigma = self._draw(batch, clean, step)
        noisy = (1 - sigma) * clean + sigma * noise
        with autocast(self._device, on_cpu=False):  # measured: 1.2 times slower on a CPU, because the norms fall back
            text = encode(models["text_encoder"], self._tokenizer, batch.captions)
            with patch.object(F, "scaled_dot_product_attention", _attention) if self._in_products else nullcontext():
                output = models["transformer"](noisy, 1000 * sigma.flatten(), text, return_dict=False)[0]
            words = models["words"](text, batch.captions)
            places = models["places"](self._hidden.pop(), batch.scenes, batch.owners)
        flow = (output.float() - (noise - clean)).square().mean()
        values = {"flow": flow.item(), "words": words.item(), "places": places.item()}
        return flow + WORDS_WEIGHT * words + PLACES_WEIGHT * places, values

    def _draw(self, batch: Batch, clean: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return noise and σ, [B, 1, 1, 1, 1], of a step. A family shares both."""
        generator = torch.Generator(self._device).manual_seed(self._seed * 1_000_003 + step)
        first = torch.unique_consecutive(batch.families, return_inverse=True)[1].to(self._device)
        noise = torch.randn(clean.shape, generator=generator, device=self._device)[first]
        logit = LOGIT_MEAN + LOGIT_STD * torch.randn(len(clean), generator=generator, device=self._device)[first]
        return noise, logit.sigmoid().view(-1, 1, 1, 1, 1)
