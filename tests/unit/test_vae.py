import gc
import weakref
from typing import Any

import pytest
import torch
from tiny import build_vae

from s2video.decoding import whole
from s2video.decoding.whole import decode_frames, denormalize, to_frames


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("num_latent_frames", [1, 2, 5])
def test_streamed_is_whole_to_the_bit(residual: bool, num_latent_frames: int) -> None:
    vae = build_vae(residual=residual)
    latents = torch.randn(1, vae.config.z_dim, num_latent_frames, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = vae.decode(denormalize(vae, latents), return_dict=False)[0]
    chunks = list(decode_frames(vae, latents))
    assert [len(c) for c in chunks] == [1] + [4] * (num_latent_frames - 1)
    height, width = (64, 96) if residual else (32, 48)
    assert all(c.dtype == torch.float32 and c.shape[1:] == (height, width, 3) for c in chunks)
    expected = (expected[0].permute(1, 2, 3, 0) / 2 + 0.5).clamp(0, 1)
    assert torch.equal(torch.cat(chunks), expected)


def test_denormalize_undoes_the_training_scale() -> None:
    vae = build_vae()
    raw = torch.randn(1, 16, 2, 4, 4)
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
    torch.testing.assert_close(denormalize(vae, (raw - mean) / std), raw)


def test_features_belong_to_a_call_and_are_freed_when_its_reader_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = build_vae()
    caches: list[list[Any]] = []
    new_cache = whole.new_cache
    monkeypatch.setattr(whole, "new_cache", lambda vae: caches.append(new_cache(vae)) or caches[-1])
    frames = decode_frames(vae, torch.randn(1, 16, 3, 4, 4))
    next(frames), next(frames)
    features = [weakref.ref(entry) for entry in caches[0] if isinstance(entry, torch.Tensor)]
    assert features and not any(getattr(vae, "_feat_map", [])), "others may use the VAE meanwhile"
    caches.clear()
    frames.close()
    gc.collect()
    assert all(feature() is None for feature in features)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_bits_on_the_way_out(dtype: torch.dtype) -> None:
    """Adding 0.5 in half precision would make steps of 1/256 (bfloat16): bands in dark and in flat areas."""
    decoded = torch.linspace(-0.25, 0.25, 999).to(dtype)
    frames = to_frames(decoded.view(1, 1, 1, 1, -1).expand(1, 3, 1, 1, -1))
    assert frames.dtype == torch.float32
    assert torch.equal(frames[0, 0, :, 0], decoded.float() / 2 + 0.5)
    assert len(frames[0, 0, :, 0].unique()) == len(decoded.unique())
