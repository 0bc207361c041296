"""Tests of what an engine reports to the watch."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from tiny import PROMPT, tiny_config

from s2video.engine.engine import Engine
from s2video.parallel.mesh import Mesh
from s2video.parallel.watch import Watch


@dataclass
class Reported(Watch):
    """A watch that keeps what it was told."""

    told: list[tuple[str, int | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def report(self, phase: str, step: int | None = None, num_steps: int | None = None) -> None:
        self.told.append((phase, step))


def test_steps_have_an_end(tiny_checkpoint: Path) -> None:
    """With NCCL a step has a time limit, but an engine can rest between two videos for as long as its user likes."""
    watch = Reported()
    engine = Engine(tiny_config(tiny_checkpoint), Mesh(torch.device("cpu"), watch=watch), progress="none")
    engine.sample([PROMPT], [0])
    steps = [step for phase, step in watch.told if phase == "denoising"]
    assert steps == list(range(1, engine.config.sampling.num_inference_steps + 1))
    assert watch.told[-1] == ("denoised", None)
