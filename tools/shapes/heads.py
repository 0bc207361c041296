"""Linear heads that only training has: what each word, and each place of the picture, belongs to.

Flow matching alone says little about which word goes with which shape: with two shapes in a caption, the small text
encoder learnt to name sizes, colours, forms and directions, and left open whose they are. These heads ask for it: of
each token of a phrase, that phrase's attributes; of each latent patch, the attributes of the shape that covers most
of it. The second is the idea of representation alignment (REPA, arXiv 2410.06940) with the renderer as the teacher.

Dimension letters: N clips of the data set, B clips of a batch, L text tokens, P latent patches, D channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .world import COLORS, DIRECTIONS, HEIGHT, NUM_FRAMES, SHAPES, SIZES, WIDTH, Scene, Thing, coverage

VALUES = {"color": tuple(COLORS), "shape": SHAPES, "size": tuple(SIZES), "direction": tuple(DIRECTIONS)}
IGNORED = -100  # cross entropy's own mark for what is not asked
PATCH_PIXELS = 16  # edge of a latent patch: VAE 8 times, patches of 2
PATCH_FRAMES = 4  # of a latent frame but the first
SAMPLE_EVERY = 4  # pixels
MIN_COVERAGE = 0.03  # share of a patch from which on it belongs to a shape


def phrase_labels(caption: str, length: int) -> dict[str, list[int]]:
    """For each token of a caption, [L], the attributes of its phrase and `phrase`, which one it is.

    A token is a word. "and", the background's words and what follows the caption's end are `IGNORED`, and so are
    attributes that the phrase leaves open.
    """
    labels = {name: [IGNORED] * length for name in (*VALUES, "phrase")}
    start = 0
    things = caption.partition(" on a ")[0]
    for number, phrase in enumerate(things.split(" and ") if things else ()):
        words = phrase.split()
        span = range(start, min(start + len(words), length))
        for name, values in VALUES.items():
            for word in words:
                if word in values:
                    for at in span:
                        labels[name][at] = values.index(word)
        for at in span:
            labels["phrase"][at] = number
        start += len(words) + 1
    return labels


def patch_owners(scenes: Sequence[Scene]) -> Tensor:
    """Which thing covers most of each latent patch: [N, P] uint8, 0 for none, 1 for the first, P in Wan's order."""
    shares = torch.stack([_shares(scene) for scene in scenes])
    most, which = shares.max(dim=1)
    return torch.where(most >= MIN_COVERAGE, which + 1, 0).to(torch.uint8)


def _shares(scene: Scene) -> Tensor:
    """Share of each patch that each of two things covers, [2, P], from every fourth pixel; 0 for a missing one."""
    across = torch.arange(SAMPLE_EVERY / 2, WIDTH, SAMPLE_EVERY)
    down = torch.arange(SAMPLE_EVERY / 2, HEIGHT, SAMPLE_EVERY).view(-1, 1)
    frames = torch.arange(NUM_FRAMES).float().view(-1, 1, 1)
    shares = torch.zeros(2, NUM_FRAMES, len(down), len(across))
    for number, thing in enumerate(scene.things):
        dx, dy = DIRECTIONS[thing.direction]
        shares[number] = coverage(thing, across - thing.x - dx * frames, down - thing.y - dy * frames)
    # the first latent frame is one frame alone: repeated, it weighs as much as the four of any other
    shares = torch.cat([shares[:, :1].expand(-1, PATCH_FRAMES - 1, -1, -1), shares], dim=1)
    window = (PATCH_FRAMES, PATCH_PIXELS // SAMPLE_EVERY, PATCH_PIXELS // SAMPLE_EVERY)
    return F.avg_pool3d(shares[:, None], window).flatten(1)


def _index(thing: Thing, name: str) -> int:
    return VALUES[name].index(getattr(thing, name))


class WordHeads(nn.Module):
    """Reads a phrase's attributes, and which phrase it is, from each of its tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(dim, len(values)) for name, values in VALUES.items()})
        self.heads["phrase"] = nn.Linear(dim, 2)

    def forward(self, text: Tensor, captions: Sequence[str]) -> Tensor:
        """Mean cross entropy over the heads.

        Args:
            text: the encoder's states, [B, L, D].
        """
        labels = [phrase_labels(caption, text.shape[1]) for caption in captions]
        targets = {name: torch.tensor([row[name] for row in labels], device=text.device) for name in self.heads}
        return _mean_cross_entropy(self.heads, text, targets)


class PlaceHeads(nn.Module):
    """Reads the attributes of the shape at each place from a block's output; "none" is a colour of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(dim, len(values) + (name == "color")) for name, values in VALUES.items()}
        )

    def forward(self, states: Tensor, scenes: Sequence[Scene], owners: Tensor) -> Tensor:
        """Mean cross entropy over the heads.

        Args:
            states: a block's output, [B, P, D].
            owners: of `patch_owners`, [B, P].
        """
        targets = {}
        for name, values in VALUES.items():
            none = len(values) if name == "color" else IGNORED
            table = torch.full((len(scenes), 3), none)
            for row, scene in enumerate(scenes):
                for number, thing in enumerate(scene.things):
                    table[row, number + 1] = _index(thing, name)
            targets[name] = table.gather(1, owners.long()).to(states.device)
        return _mean_cross_entropy(self.heads, self.norm(states), targets)


def _mean_cross_entropy(heads: nn.ModuleDict, states: Tensor, targets: dict[str, Tensor]) -> Tensor:
    losses = []
    for name, head in heads.items():
        if (targets[name] != IGNORED).any():
            losses.append(F.cross_entropy(head(states).transpose(1, 2).float(), targets[name], ignore_index=IGNORED))
    return torch.stack(losses).mean() if losses else states.new_zeros(())
