"""Whether the models that may stay loaded together fit into a GPU, by the planner's cost model."""

from __future__ import annotations

from ..errors import InputError
from ..planning.cards import Card
from ..planning.memory import memory_of
from ..planning.plan import plan_for
from ..planning.step import GIGA
from .video_request import Models


def crowding(models: Models, loaded: int, *, world_size: int, card: Card) -> str | None:
    """Return a warning if the largest models do not fit together; None if they do, or that is not known.

    Each model counts with the mesh that suits it best, and the largest need of a job at the model's own size is added.

    Args:
        loaded: number of models that stay loaded.
        world_size: ranks of a replica.
    """
    if card.memory_gb is None:
        return None
    weights, most = [], 0.0
    for config in models.configs.values():
        try:
            plan = plan_for(config, world_size, card, models.open(*config.model.source))
        except InputError:
            continue  # this model's cost is not known
        memory = memory_of(plan.best.degrees, plan.step)
        weights.append(memory.transformers + memory.vae)
        most = max(most, memory.phases[memory.phase])
    needed = (sum(sorted(weights, reverse=True)[:loaded]) + most) / GIGA
    if len(weights) < 2 or needed <= card.memory_gb:
        return None
    return (
        f"--loaded {loaded}: the largest models need about {needed:.0f} GB of a GPU together, and it has "
        f"{card.memory_gb:.0f}; some will be loaded again and again, so a smaller number may be faster"
    )
