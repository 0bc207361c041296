"""Training of the digit transformers, and of the classifier in whose features distances are measured."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from s2video.system.files import atomic_path

from .data import CLASSES, SIDE, Digits
from .transformer import NO_CLASS, DigitTransformer, Shape

BATCH, LEARNING_RATE, NO_CLASS_SHARE, AVERAGING = 128, 4e-3, 0.1, 0.998
CHECKPOINT_EVERY = 500  # steps


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        steps: of Adam with batches of 128, cosine decay to a tenth. The loss still falls at 1,500.
        stochastic_depth: probability with which a block other than the first is left out of a training step.
    """

    shape: Shape = field(default_factory=Shape)
    steps: int = 1500
    stochastic_depth: float = 0.0


def train(
    recipe: Recipe, digits: Digits, seed: int, folder: Path, log: Callable[[str], None], *, compiled: bool = False
) -> DigitTransformer:
    """Return the trained network, a running mean of the weights; from `folder`, where it or a checkpoint is there.

    The mean after a fifth of the steps is kept as well: it is the weak twin of autoguidance.
    """
    torch.manual_seed(seed)
    network = DigitTransformer(recipe.shape)
    if (folder / "network.safetensors").is_file():
        return restore(network, folder / "network.safetensors")
    average = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    checkpoint = folder / "checkpoint.pt"
    start = _load_checkpoint(checkpoint, network, average, optimizer)
    if compiled:
        network.compile_blocks()
    mean = 0.0
    for step in range(start, recipe.steps):
        loss = _step(network, optimizer, recipe, digits, seed, step)
        _follow(average, network, step)
        mean = loss if step == start else 0.98 * mean + 0.02 * loss
        if step + 1 == recipe.steps // 5:
            _save(average.state_dict(), folder / "weak.safetensors")
        if (step + 1) % CHECKPOINT_EVERY == 0:
            log(f"step {step + 1} of {recipe.steps}, loss {mean:.4f}")
            _save_checkpoint(checkpoint, network, average, optimizer, step + 1)
    _save(average.state_dict(), folder / "network.safetensors")
    checkpoint.unlink(missing_ok=True)
    return average.eval().requires_grad_(False)


def restore(network: nn.Module, path: Path) -> nn.Module:
    """Load weights into a network of their shape, for inference."""
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)


def _load_checkpoint(path: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Adam) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    network.load_state_dict(state["network"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _save_checkpoint(
    path: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Adam, step: int
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"network": network.state_dict(), "average": average.state_dict(), "step": step}
    with atomic_path(path) as temporary:
        torch.save(state | {"optimizer": optimizer.state_dict()}, temporary)


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, step: int) -> None:
    """Move the running mean towards the weights; early it is the mean of few steps."""
    share = 1 - min(AVERAGING, (step + 1) / (step + 10))
    for kept, new in zip(average.parameters(), network.parameters(), strict=True):
        kept.lerp_(new, share)


def _step(
    network: DigitTransformer, optimizer: torch.optim.Adam, recipe: Recipe, digits: Digits, seed: int, step: int
) -> float:
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)  # a resumed run draws what one run would
    rows = torch.randint(len(digits), (BATCH,), generator=generator)
    images, labels = digits.images[rows], digits.labels[rows].clone()
    labels[torch.rand(BATCH, generator=generator) < NO_CLASS_SHARE] = NO_CLASS
    t = torch.sigmoid(torch.randn(BATCH, generator=generator))
    noise = torch.randn(images.shape, generator=generator)
    level = t.view(-1, 1, 1, 1)
    left_out = torch.rand(recipe.shape.blocks, generator=generator) < recipe.stochastic_depth
    dropped = {index for index in range(1, recipe.shape.blocks) if left_out[index]}
    loss = F.mse_loss(network((1 - level) * images + level * noise, t, labels, dropped), noise - images)
    done = step / recipe.steps
    warmup = min(1.0, (step + 1) / 100)
    optimizer.param_groups[0]["lr"] = LEARNING_RATE * warmup * (0.55 + 0.45 * math.cos(math.pi * done))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return loss.item()


class Classifier(nn.Module):
    """A small convolutional network. Its 64 features before the last layer are those in which distances are taken."""

    FEATURES = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(32 * (SIDE // 4) ** 2, self.FEATURES),
            nn.GELU(),
        )
        self.head = nn.Linear(self.FEATURES, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [N, 64] and logits [N, 10] of images [N, 1, 16, 16]."""
        features = self.body(images)
        return features, self.head(features)


def train_classifier(digits: Digits, path: Path, *, steps: int = 3000) -> Classifier:
    """Return the classifier, trained with shifts by up to one pixel; from `path`, where it is there already."""
    torch.manual_seed(0)
    classifier = Classifier()
    if path.is_file():
        return restore(classifier, path)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(digits), (128,), generator=generator)
        down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
        images = digits.images[rows].roll((down, right), (2, 3))
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - 0.95 * step / steps)
        loss = F.cross_entropy(classifier(images)[1], digits.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    _save(classifier.state_dict(), path)
    return classifier.eval().requires_grad_(False)


def _save(state: dict[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
