"""What is compared, decided before the first run: networks, screening grid, cells and the rule for the verdict.

docs/evidence/mnist.md states the same in words. A change here after results exist makes those results exploratory.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from .guided import Method
from .training import Recipe
from .transformer import Shape

TRAINING_SEEDS = (0, 1, 2)
SCREENING_NOISE, FINAL_NOISE = 1, 2  # best settings are chosen on one noise and measured on the other
SCREENING_COUNT, FINAL_COUNT = 2000, 10_000

NETWORKS = {
    "plain": Recipe(),
    "stochastic depth": Recipe(stochastic_depth=0.15),
    "deeper": Recipe(Shape(blocks=24, width=24)),
    "longer": Recipe(steps=6000),
}

LAMBDAS = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 3.0)
PUSHES = (0.0, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
# λ and push that are best for the plain network are far from it for the one that is trained longer. Its own screening
# and cells were added when its results showed this, so they are exploratory.
OWN = "longer"
OWN_LAMBDAS = (1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4)
OWN_PUSHES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2)
LEAST_GAIN = 3.0  # per cent of the Fréchet distance


@dataclass(frozen=True)
class Cell:
    """A method, and the one that it is held against at the same noise.

    Attributes:
        against: name of another cell of the list.
        on_all: whether it runs on every network; the others run on the plain one.
    """

    name: str
    method: Method
    against: str = ""
    on_all: bool = False

    def record(self) -> dict[str, Any]:
        """Return the cell as JSON."""
        return {"name": self.name, "against": self.against, **asdict(self.method)}


class Best(NamedTuple):
    """The settings of the least distance on the screening's noise.

    Attributes:
        cfg: λ, without push.
        s2: λ and push, with a push above 0.
        alone: the push at λ 1, likewise.
    """

    cfg: float
    s2: tuple[float, float]
    alone: float


def screening(lambdas: Sequence[float] = LAMBDAS, pushes: Sequence[float] = PUSHES) -> list[Method]:
    """Return every λ with every push, S² with one block dropped: what the best settings are chosen from."""
    return [Method(cfg_scale=scale, push=push) for scale in lambdas for push in pushes]


def final_cells(chosen: Best) -> list[Cell]:
    """Return the cells that are measured with 10,000 samples on three training seeds, twelve in all."""
    low = Method(push=chosen.alone)
    best = Method(cfg_scale=chosen.s2[0], push=chosen.s2[1])
    return [
        Cell("cond", Method(), on_all=True),
        Cell("S² alone", low, "cond", on_all=True),
        Cell("S² alone, other's deviation", replace(low, direction="other"), "cond", on_all=True),
        Cell("autoguidance alone", replace(low, direction="weak"), "cond"),
        Cell("S² alone, two blocks", replace(low, drop_count=2), "S² alone"),
        Cell("S² alone, four masks", replace(low, num_draws=4), "S² alone"),
        Cell("S² alone, window in noise", replace(low, window_in="noise", window=(0.3, 0.9)), "S² alone"),
        Cell("best CFG", Method(cfg_scale=chosen.cfg), "cond", on_all=True),
        Cell("best S²", best, "best CFG", on_all=True),
        Cell("best S², other's deviation", replace(best, direction="other"), "best CFG"),
        Cell("S² at best CFG", Method(cfg_scale=chosen.cfg, push=0.05), "best CFG"),
        Cell(
            "best CFG, 22 steps", Method(cfg_scale=chosen.cfg, steps=22), "best CFG"
        ),  # as many evaluations as best S²
    ]


def own_cells(own: Best) -> list[Cell]:
    """Return the exploratory cells of the network `OWN`, measured as the final ones are."""
    best = Method(cfg_scale=own.s2[0], push=own.s2[1])
    return [
        Cell("own best CFG", Method(cfg_scale=own.cfg), "cond"),
        Cell("own best S²", best, "own best CFG"),
        Cell("own best S² alone", Method(push=own.alone), "own best CFG"),
        Cell("own best S², other's deviation", replace(best, direction="other"), "own best CFG"),
        Cell("own best CFG, 22 steps", Method(cfg_scale=own.cfg, steps=22), "own best CFG"),
        Cell("cond, 27 steps", Method(steps=27), "cond"),  # as many evaluations as S² alone
    ]


def explored(chosen: Best) -> list[Cell]:
    """Return further cells, measured as the screening is, with 2,000 samples: no verdict rests on them."""
    best, alone = Method(cfg_scale=chosen.s2[0], push=chosen.s2[1]), Method(push=chosen.alone)
    return [
        Cell("best S²", best),
        *(
            Cell(f"best S², reuse {name}", replace(best, reuse=name), "best S²")
            for name in ("deviation", "light", "fast")
        ),
        Cell("best S², two blocks", replace(best, drop_count=2), "best S²"),
        Cell("best S², four masks", replace(best, num_draws=4), "best S²"),
        Cell("best S², window in noise", replace(best, window_in="noise", window=(0.3, 0.9)), "best S²"),
        Cell("S² alone", alone),
        Cell("S² alone, reuse deviation", replace(alone, reuse="deviation"), "S² alone"),
        Cell("S² alone, every second deviation", replace(alone, reuse="light"), "S² alone"),
        *(Cell(f"autoguidance, push {push:g}", Method(push=push, direction="weak")) for push in PUSHES[1:]),
        *(Cell(f"other's deviation, push {push:g}", Method(push=push, direction="other")) for push in PUSHES[1:]),
    ]


def helps(changes: list[tuple[float, float, float]]) -> bool:
    """Return the rule's verdict for the changes (value, low, high) of a network's training seeds, in per cent.

    S² helps where the distance falls by at least 3 % with the interval below 0, in every seed.
    """
    return bool(changes) and all(value <= -LEAST_GAIN and high < 0 for value, _, high in changes)
