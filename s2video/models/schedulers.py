"""Schedulers that a config names in place of the checkpoint's, and noise levels that it sets itself.

Only schedulers of diffusers for flow matching, which both families of models are trained for. Imports diffusers inside
functions, because the command line checks other input first.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..config.sections import SamplingConfig
from ..errors import InputError

if TYPE_CHECKING:
    import torch

_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}  # of schedulers that have other uses, too
_OF_THE_MODEL = frozenset(
    {"self", "num_train_timesteps", "prediction_type", "use_flow_sigmas", "use_dynamic_shifting", "invert_sigmas"}
    | {
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "rescale_betas_zero_snr",
        "variance_type",
        "solver_p",
    }
    | {"timestep_spacing", "steps_offset", "thresholding", "dynamic_thresholding_ratio", "sample_max_value", "tau_func"}
    | {"clip_sample", "clip_sample_range", "mu", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"}
    | {"time_shift_type", "scale_factors", "upscale_mode", "shift", "flow_shift", "lambda_min_clipped"}
)


def check_scheduler(sampling: SamplingConfig) -> None:
    """Raise InputError for options that the named scheduler does not have, or noise levels that it cannot take."""
    if sampling.scheduler is None:
        if sampling.scheduler_options:
            raise InputError(
                f"sampling.scheduler_options: expected none without sampling.scheduler, got "
                f"{', '.join(sampling.scheduler_options)}; name a scheduler"
            )
        return
    named_scheduler(sampling, num_train_timesteps=1000, shift=None)
    if sampling.sigmas is not None:
        check_sigmas(_class_of(sampling))


def check_sigmas(kind: Any) -> None:
    """Raise InputError unless a class of schedulers takes noise levels."""
    if "sigmas" not in inspect.signature(kind.set_timesteps).parameters:
        raise InputError(
            f"sampling.sigmas: expected null for {kind.__name__}, which sets its own noise levels; leave it out, or "
            "set sampling.scheduler to FlowMatchEulerDiscreteScheduler"
        )


def choose_scheduler(own: Any, sampling: SamplingConfig) -> Any:
    """Return the scheduler that a config names, or the checkpoint's `own`.

    A named one keeps the checkpoint's shift, unless the config sets another.

    Raises:
        InputError: if the named scheduler does not have an option, or none takes the config's noise levels.
    """
    chosen = own
    if sampling.scheduler is not None:
        shift = own.config.get("flow_shift", own.config.get("shift"))
        chosen = named_scheduler(sampling, num_train_timesteps=own.config.num_train_timesteps, shift=shift)
    if sampling.sigmas is not None:
        check_sigmas(type(chosen))
    return chosen


def named_scheduler(sampling: SamplingConfig, *, num_train_timesteps: int, shift: float | None) -> Any:
    """Return a new scheduler of the class that a config names. Raises InputError for options that it does not have."""
    kind = _class_of(sampling)
    known = inspect.signature(kind.__init__).parameters
    options = sorted(known.keys() - _OF_THE_MODEL)
    for option in sampling.scheduler_options:
        if option not in options:
            instead = "sampling.flow_shift sets it" if option in ("shift", "flow_shift") else "leave it out"
            raise InputError(
                f"sampling.scheduler_options: expected some of {', '.join(options)} for {sampling.scheduler}, got "
                f"{option!r}; {instead}"
            )
    shift = shift if sampling.flow_shift is None else sampling.flow_shift
    fixed = {name: value for name, value in _FLOW.items() if name in known}
    fixed |= {name: shift for name in ("flow_shift", "shift") if name in known and shift is not None}
    try:
        return kind(num_train_timesteps=num_train_timesteps, **fixed, **sampling.scheduler_options)
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"sampling.scheduler_options: {sampling.scheduler} does not take these values ({reason}); change them"
        ) from None


def _class_of(sampling: SamplingConfig) -> Any:
    import diffusers

    assert sampling.scheduler is not None
    return getattr(diffusers, sampling.scheduler)


def set_steps(
    scheduler: Any, sampling: SamplingConfig, by_pipeline: Callable[[Any, int, Any], None], device: torch.device
) -> None:
    """Set the steps of a scheduler: those of `sampling.sigmas`, before its shift, or as the model's pipeline does.

    Args:
        by_pipeline: `Family.set_timesteps`.
    """
    if sampling.sigmas is None:
        by_pipeline(scheduler, sampling.num_inference_steps, device)
        return
    import numpy as np

    try:
        scheduler.set_timesteps(sigmas=np.array(sampling.sigmas), device=device)
    except ValueError as error:  # such as UniPC without flow matching
        raise InputError(
            f"sampling.sigmas: {type(scheduler).__name__}, the checkpoint's scheduler, does not take them ({error}); "
            "name another in sampling.scheduler"
        ) from None


def step_noise(scheduler: Any, seeds: Sequence[int]) -> Callable[[int], list[torch.Generator]] | None:
    """Return what gives generators for the noise that a scheduler adds in a step, one for each video; None without.

    They depend on a video's seed and the step alone, so all ranks add the same noise, and a resumed run the same as an
    uninterrupted one.
    """
    if "generator" not in inspect.signature(scheduler.step).parameters:
        return None
    import torch

    def generators(step: int) -> list[torch.Generator]:
        words = (hashlib.sha256(f"noise of step {step}, seed {seed}".encode()).digest()[:8] for seed in seeds)
        return [torch.Generator().manual_seed(int.from_bytes(word, "big") >> 1) for word in words]

    return generators
