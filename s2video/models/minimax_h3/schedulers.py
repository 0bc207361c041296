"""The two schedulers of MiniMax-H3, one of the picture and one of the sound, as one that the sampler can use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...decoding.sound import join_sound, split_sound
from ...errors import InputError
from ...geometry import SoundShape


class PairedScheduler:
    """Steps the picture and the sound of packed latents, each with its own scheduler of diffusers.

    A timestep is a pair, of picture and sound, so `timesteps` is [N, 2]; it stays on the CPU, where rows are planned.
    What changes from step to step is the step's number alone, so that a resume point can keep it.

    Args:
        picture, sound: schedulers of diffusers, of the same class and before `set_timesteps`.
        shape: of the sound.
    """

    __slots__ = ("__dict__", "_picture", "_shape", "_sound")  # what is not in __dict__ is no state (`records.resume`)

    def __init__(self, picture: Any, sound: Any, shape: SoundShape) -> None:
        self._picture, self._sound, self._shape = picture, sound, shape
        self._step_index: int | None = None
        self.timesteps = torch.empty(0, 2)

    @property
    def config(self) -> dict[str, Any]:
        """The settings of both; those of the sound begin with "audio_"."""
        settings = {"": self._picture.config, "audio_": self._sound.config}
        return {
            f"{kind}{key}": value
            for kind, config in settings.items()
            for key, value in config.items()
            if not key.startswith("_")
        }

    @property
    def sigmas(self) -> Tensor:
        """Noise levels of the picture, one more than there are steps."""
        sigmas: Tensor = self._picture.sigmas
        return sigmas

    def set_timesteps(self, num_inference_steps: int, device: object = None) -> None:
        """Set the timesteps of both: one fewer than `num_inference_steps`, which counts the end of the last step.

        Raises:
            InputError: the two have not the same number of steps.
        """
        for scheduler in (self._picture, self._sound):
            scheduler.set_timesteps(num_inference_steps)
        lengths = len(self._picture.timesteps), len(self._sound.timesteps)
        if lengths[0] != lengths[1]:
            raise InputError(
                f"sampling.num_inference_steps: expected as many steps of the picture as of the sound, got "
                f"{lengths[0]} and {lengths[1]}, because steps that round to the same noise level are merged; use "
                "fewer steps, or a smaller sampling.flow_shift"
            )
        self.timesteps = torch.stack((self._picture.timesteps, self._sound.timesteps), dim=1)
        self._step_index = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        self._step_index = begin_index

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Return the latents after one step, as the only item of a tuple."""
        index = 0 if self._step_index is None else self._step_index
        predicted, before = split_sound(model_output, self._shape), split_sound(sample, self._shape)
        after = []
        for scheduler, prediction, latents, time in zip(
            (self._picture, self._sound), predicted, before, timestep, strict=True
        ):
            scheduler._step_index = index
            after.append(scheduler.step(prediction, time, latents, return_dict=False)[0])
        self._step_index = index + 1
        return (join_sound(*after),)
