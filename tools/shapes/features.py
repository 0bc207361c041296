"""A small network that looks at clips, and the Fréchet distance between two sets of clips as it sees them.

It is trained on the renderer's clips alone, to name for each colour whether such a thing is there, with its shape,
size and direction, and the background; the clip's features are what its last convolution says, on average over all
places. Weights and the network's accuracy are kept in features.safetensors. It never sees a generated clip in training,
and knows no captions.

Dimension letters: B clips, N clips of a set, T frames, H rows, W columns, D features.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from s2video.system.files import atomic_path

from .loop import TrainState, train
from .world import ATTRIBUTES, BACKGROUNDS, COLORS, DIRECTIONS, SHAPES, SIZES, Scene, render, sample_scene

WEIGHTS = Path(__file__).with_suffix(".safetensors")
LAYERS = ((16, 7, (2, 4, 4)), (32, 3, (2, 2, 2)), (64, 3, (2, 1, 1)), (64, 3, (1, 1, 1)))  # channels, side, stride
NUM_FEATURES = LAYERS[-1][0]
# A colour is a name for a thing, for things of a scene differ in it. What is asked of each:
ANSWERS = {"shape": tuple(SHAPES), "size": tuple(SIZES), "direction": tuple(DIRECTIONS)}
NOTHING = -100  # the target of what is not there: `cross_entropy` leaves it out


class FeatureNetwork(nn.Module):
    """Clips [B, 3, T, H, W] in [-1, 1] -> features [B, 64]: the mean over all places of the last convolution."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for wider, side, stride in LAYERS:
            layers.append(nn.Conv3d(channels, wider, (3, side, side), stride, (1, side // 2, side // 2)))
            layers += [nn.GroupNorm(4, wider), nn.GELU()]
            channels = wider
        self.convolutions = nn.Sequential(*layers)
        self.seek = nn.Conv3d(channels, len(COLORS), 1)  # where the thing of each colour is
        self.answers = nn.Linear(channels, sum(map(len, ANSWERS.values())))
        self.background = nn.Linear(channels, len(BACKGROUNDS))

    def forward(self, video: Tensor) -> Tensor:
        return self.convolutions(video).mean(dim=(2, 3, 4))

    def answer(self, video: Tensor) -> dict[str, Tensor]:
        """Logits: "present" [B, 6], "shape", "size" and "direction" [B, 6, values], "background" [B, 3]."""
        places = self.convolutions(video)
        sought = self.seek(places).flatten(2)
        seen = sought.softmax(dim=-1) @ places.flatten(2).transpose(1, 2)  # [B, 6, 64]
        answers = self.answers(seen).split([len(values) for values in ANSWERS.values()], dim=-1)
        return {
            "present": sought.amax(dim=-1),
            "background": self.background(places.mean(dim=(2, 3, 4))),
            **dict(zip(ANSWERS, answers, strict=True)),
        }


def targets(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """What `answer` ought to say: indices of values, NOTHING where there is no such thing; "present" is 0 or 1."""
    colors = list(COLORS)
    wanted = {name: torch.full((len(scenes), len(colors)), NOTHING) for name in ANSWERS}
    present = torch.zeros(len(scenes), len(colors))
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            column = colors.index(thing.color)
            present[row, column] = 1
            for name, values in ANSWERS.items():
                wanted[name][row, column] = values.index(getattr(thing, name))
    backgrounds = torch.tensor([list(BACKGROUNDS).index(scene.background) for scene in scenes])
    return {"present": present, "background": backgrounds, **wanted}


def accuracy(network: FeatureNetwork, scenes: Sequence[Scene], *, batch: int = 50) -> dict[str, float]:
    """Shares of right answers: of backgrounds, of colours (all six right), and of each attribute of the things."""
    rights: dict[str, list[Tensor]] = {name: [] for name in ("background", *ATTRIBUTES)}
    for start in range(0, len(scenes), batch):
        some = list(scenes[start : start + batch])
        with torch.no_grad():
            said, wanted = network.answer(render(some)[0]), targets(some)
        rights["background"].append(said["background"].argmax(-1) == wanted["background"])
        rights["color"].append(((said["present"] > 0) == wanted["present"].bool()).all(dim=1))
        for name in ANSWERS:
            there = wanted[name] != NOTHING
            rights[name].append(said[name].argmax(-1)[there] == wanted[name][there])
    return {name: float(torch.cat(right).float().mean()) for name, right in rights.items()}


def training_scenes(seed: int, step: int, count: int) -> list[Scene]:
    """A pure function of its arguments; every triple of attributes is drawn, those that are held out included."""
    rng = random.Random(f"{seed}-features-{step}")
    return [sample_scene(rng, num_things=rng.choice((1, 2)), held_out=rng.random() < 0.3) for _ in range(count)]


def train_features(work: Path, *, seed: int, num_steps: int, batch: int, learning_rate: float) -> FeatureNetwork:
    """The network, trained on the CPU, or taken up again from `work`."""
    torch.manual_seed(seed)
    network = FeatureNetwork()
    state = TrainState.create(
        network, work / "features.pt", num_steps=num_steps, learning_rate=learning_rate, weight_decay=0.01
    )

    def batches() -> Iterator[list[Scene]]:
        for step in range(state.step, num_steps):
            yield training_scenes(seed, step, batch)

    def loss(scenes: list[Scene], step: int) -> tuple[Tensor, dict[str, float]]:
        said, wanted = network.answer(render(scenes)[0]), targets(scenes)
        total = F.binary_cross_entropy_with_logits(said["present"], wanted["present"])
        total = total + F.cross_entropy(said["background"], wanted["background"])
        for name in ANSWERS:
            total = total + F.cross_entropy(said[name].flatten(0, 1), wanted[name].flatten(), ignore_index=NOTHING)
        return total, {}

    train(state, batches(), loss, name="features")
    return network.eval()


def save_features(network: FeatureNetwork, path: Path, facts: dict[str, str]) -> None:
    """Weights in half precision, with `facts` as metadata."""
    with atomic_path(path) as temporary:
        save_file({name: value.half() for name, value in network.state_dict().items()}, temporary, metadata=facts)


def load_features(path: Path = WEIGHTS) -> FeatureNetwork:
    network = FeatureNetwork()
    with safe_open(path, "pt") as file:
        network.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    return network.eval().requires_grad_(False)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) of two sets of features [N, D], as if they were Gaussian."""
    return FrechetReference(first).distance(second)


class FrechetReference:
    """One side of the distance, prepared once: features [N, D], at least two of them."""

    def __init__(self, features: np.ndarray) -> None:
        self._mean = features.mean(axis=0)
        covariance = np.cov(features, rowvar=False)
        values, vectors = np.linalg.eigh(covariance)
        self._root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
        self._trace = float(np.trace(covariance))

    def distance(self, features: np.ndarray, weights: np.ndarray | None = None) -> float:
        """To these features [N, D]; `weights` [N] count how often each is in the set, None: once."""
        mean = np.average(features, axis=0, weights=weights)
        covariance = np.cov(features, rowvar=False, fweights=weights)
        # tr (Σ₁Σ₂)^½ is the sum of the roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is symmetric
        shared = np.sqrt(np.linalg.eigvalsh(self._root @ covariance @ self._root).clip(0)).sum()
        apart = np.square(mean - self._mean).sum()
        return float(apart + self._trace + np.trace(covariance) - 2 * shared)
