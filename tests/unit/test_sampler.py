import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from s2video.errors import NumericalError
from s2video.sampling.sampler import sample

UNIPC = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
EULER = FlowMatchEulerDiscreteScheduler(shift=3.0)


@pytest.mark.parametrize("scheduler", [UNIPC, EULER])
def test_a_perfect_denoiser_lands_on_the_data(scheduler: UniPCMultistepScheduler) -> None:
    """x_σ = (1 − σ)x₀ + σε with one x₀, so the velocity is (x − x₀)/σ and every solver must end at x₀."""
    target = torch.full((1, 4, 2, 3, 3), 0.5)
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(12)
    scheduler.set_begin_index(0)
    seen: list[tuple[int, int]] = []

    def denoise(latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        return (latents - target) / scheduler.sigmas[step]

    result = sample(denoise, noise, scheduler, on_step=lambda done, total, _: seen.append((done, total)))
    torch.testing.assert_close(result, target, atol=2e-3, rtol=0)
    assert seen == [(i + 1, 12) for i in range(12)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_stops_at_its_step(bad: float) -> None:
    EULER.set_timesteps(6)
    EULER.set_begin_index(0)
    calls = []

    def denoise(latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        calls.append(step)
        prediction = torch.zeros_like(latents)
        if step == 2:
            prediction[0, 0, 0, 0, 0] = bad
        return prediction

    with pytest.raises(NumericalError, match=r"step 3 of 6 \(timestep .*NaN or infinite"):
        sample(denoise, torch.zeros(1, 4, 2, 3, 3), EULER)
    assert calls == [0, 1, 2]
