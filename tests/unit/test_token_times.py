"""Tests of a timestep for each token (Wan 2.2 TI2V 5B), of which one is kept if all are equal."""

from collections.abc import Callable

import pytest
import torch
from tiny import build_transformer
from torch import Tensor

from s2video.models.base import Conditioning
from s2video.models.wan import blocks
from s2video.models.wan.blocks import WanBlockModel
from s2video.parallel.attention import AttentionPlan
from s2video.parallel.mesh import Mesh, SequenceAxes
from s2video.sampling.forward import predict

CPU = torch.device("cpu")
LATENTS = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = 3 * 4 * 4


@pytest.fixture(scope="module")
def model() -> WanBlockModel:
    return WanBlockModel(build_transformer(), time_per_token=True)


def conditioning(given_frames: int) -> Conditioning:
    text = torch.randn(1, 8, 128, generator=torch.Generator().manual_seed(1))
    return Conditioning(text, given_frames=given_frames)


def prediction(model: WanBlockModel, given_frames: int = 0) -> Tensor:
    with torch.no_grad():
        made = predict(
            model, LATENTS, torch.tensor([731]), mesh=Mesh(CPU), cond=conditioning(given_frames), masks=[(2,)]
        )
    return torch.cat((made.cond, *made.subs))


@pytest.mark.parametrize(
    ("is_gpu", "given_frames", "expected"), [(True, 0, 1), (True, 1, TOKENS), (False, 0, TOKENS), (False, 1, TOKENS)]
)
def test_one_time_is_kept_where_all_are_equal(
    model: WanBlockModel, monkeypatch: pytest.MonkeyPatch, is_gpu: bool, given_frames: int, expected: int
) -> None:
    monkeypatch.setattr(blocks, "has_equal_rows", lambda device: is_gpu)
    plan = AttentionPlan.even(SequenceAxes(), TOKENS)
    with torch.no_grad():
        context = model.prepare(LATENTS, torch.tensor([731]), conditioning(given_frames), plan)
    assert context.time.shape[:3] == (1, expected, 6) and context.time_out.shape[1] == expected
    assert context.time.untyped_storage().nbytes() == context.time.nbytes  # the others are not kept in memory


def test_one_time_gives_what_equal_times_give(model: WanBlockModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: blocks use each row by itself."""
    per_token = prediction(model)
    monkeypatch.setattr(blocks, "has_equal_rows", lambda device: True)
    keep: dict[str, Callable[[Tensor], Tensor]] = {"one": blocks.first_row, "all": lambda x: x[:, :1].expand_as(x)}
    found = {}
    for name, function in keep.items():
        monkeypatch.setattr(blocks, "first_row", function)
        found[name] = prediction(model)
    assert torch.equal(found["one"], found["all"])
    torch.testing.assert_close(found["one"], per_token, atol=1e-5, rtol=0)  # MKL's rows can differ in the last bit
