"""Tests of MiniMax-H3 beyond the matrix: S² as in Eq. 4, rows of two kinds, decoding, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.modular_pipelines.minimax_h3.decoders import MiniMaxH3AudioDecodeStep, MiniMaxH3VideoDecodeStep
from einops import rearrange
from tiny_minimax_h3 import (
    CHANNELS,
    LATENT_FRAMES,
    NUM_BLOCKS,
    SIZE,
    SOUND,
    SOUND_CHANNELS,
    build_sound_vae,
    build_vae,
    denoising_pipeline,
    run_pipeline,
    tiny_config,
)

import s2video
from s2video.config.run import read_config
from s2video.decoding.decoder import FrameDecoder
from s2video.decoding.kinds import MINIMAX_H3_VAE
from s2video.decoding.sound import decode_sound, join_sound, split_sound
from s2video.engine.engine import Engine
from s2video.errors import InputError
from s2video.geometry import FrameGrid, LatentShape
from s2video.models.checkpoint import ASSETS, Checkpoint
from s2video.models.limits import check_request
from s2video.parallel.mesh import Mesh

PROMPT = "a small red circle moving left on a gray background"
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def folder(checkpoint_of: Callable[[str], Path]) -> Path:
    return checkpoint_of("minimax-h3")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(tiny_config(folder), progress="none")


@pytest.mark.parametrize("s2_scale", [0.25, 2.0])
def test_it_is_the_pipeline_with_s2(folder: Path, engine: Engine, s2_scale: float) -> None:
    """D = cond − ω (sub − cond) for picture and sound, to the bit, as `enable` does it in diffusers' blocks."""
    settings: dict[str, Any] = {"s2_scale": s2_scale, "drop_count": 2, "window": (0.0, 1.0), "mask_seed": 5}
    got = engine.with_guidance(**settings).sample([PROMPT], [3])
    pipeline = denoising_pipeline(folder)
    s2video.enable(pipeline, **settings)
    assert torch.equal(got, run_pipeline(pipeline, folder, engine.config, PROMPT, 3))
    without = engine.with_guidance(s2_scale=0.0).sample([PROMPT], [3])
    for part, same in zip(split_sound(got, SOUND), split_sound(without, SOUND), strict=True):
        assert (part - same).abs().max() > 1e-3


def test_a_batch_is_its_members(engine: Engine) -> None:
    """Prompts of different lengths: the shorter one's padding changes nothing, and its time starts at its own end."""
    prompts = [PROMPT, "blue"]
    batch = engine.sample(prompts, [3, 4], mask_seed=1)
    for i in range(2):
        alone = engine.sample(prompts[i : i + 1], [3 + i], mask_seed=1)
        torch.testing.assert_close(batch[i : i + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("changes", [{"parallel.weights": "streamed"}, {"model.dtype": "bfloat16"}])
def test_other_weights(folder: Path, engine: Engine, changes: dict[str, Any]) -> None:
    """Streamed blocks give the same bits. In bfloat16, inputs and heads stay in float32, and so do the latents."""
    got = Engine(tiny_config(folder).patched(changes), progress="none").sample([PROMPT], [3])
    expected = engine.sample([PROMPT], [3])
    assert got.dtype == torch.float32
    if "parallel.weights" in changes:
        assert torch.equal(got, expected)
    else:
        assert 0 < (got - expected).abs().mean() < 0.02


def test_picture_and_sound_share_one_tensor() -> None:
    """What is left of the last frame is zero; no other number of frames can be taken for this one."""
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(2, CHANNELS, 37, 2, 10, generator=generator)
    rows = torch.randn(2, 414, SOUND_CHANNELS, generator=generator)
    packed = join_sound(video, rows)
    assert packed.shape == (2, CHANNELS, LATENT_FRAMES, 2, 10)
    assert all(map(torch.equal, split_sound(packed, SOUND), (video, rows)))
    assert packed.count_nonzero() == video.numel() + rows.numel()
    for total in (LATENT_FRAMES - 1, LATENT_FRAMES + 1, 37):
        with pytest.raises(ValueError, match="a picture and its sound"):
            SOUND.latent_frames(total, CHANNELS * 2 * 10)
    for cells in (24 * 48 * 84, 24 * 2 * 2, 480):
        totals = [frames + SOUND.carriers(frames, cells) for frames in range(37, 103, 5)]
        assert [SOUND.latent_frames(total, cells) for total in totals] == list(range(37, 103, 5))


def test_frames_and_latent_frames() -> None:
    grid = SOUND.frames
    assert [(grid.latents(n), grid.frames(grid.latents(n))) for n in (124, 345)] == [(37, 124), (102, 345)]
    assert [grid.at_least(n) for n in (0, 124, 125, 345)] == [124, 124, 141, 345]
    assert [grid.nearest(n) for n in (1, 130, 134, 900)] == [124, 124, 141, 345]
    causal = FrameGrid.causal(4)
    assert [(causal.latents(n), causal.at_least(n), causal.nearest(n)) for n in (1, 17, 20)] == [
        (1, 1, 1),
        (5, 17, 17),
        (5, 21, 21),
    ]


@pytest.mark.parametrize("tile", [None, 96])
def test_frames_are_those_of_the_pipeline(tile: int | None) -> None:
    """Clip by clip, with blended tiles or as one tile."""
    vae = build_vae()
    if tile is not None:
        vae.enable_tiling(tile, tile, 32, 32)
    latents = torch.randn(1, CHANNELS, 12, 10, 14, generator=torch.Generator().manual_seed(0))
    pipeline = MiniMaxH3VideoDecodeStep().init_pipeline()
    pipeline.update_components(vae=vae)
    expected = pipeline(latents=latents, output_type="pt", output="videos")[0].permute(0, 2, 3, 1)
    decoder = FrameDecoder(
        "auto",
        Mesh(torch.device("cpu")),
        LatentShape(12, 10, 14),
        vae_class=MINIMAX_H3_VAE,
        load_vae=lambda: vae,
        timeout_seconds=60,
    )
    chunks = list(decoder(latents))
    assert [len(chunk) for chunk in chunks] == [17, 17, 5]
    assert torch.equal(torch.cat(chunks), expected)


def test_sound_is_that_of_the_pipeline() -> None:
    vae = build_sound_vae()
    rows = torch.randn(1, 414, SOUND_CHANNELS, generator=torch.Generator().manual_seed(0))
    pipeline = MiniMaxH3AudioDecodeStep().init_pipeline()
    pipeline.update_components(audio_vae=vae)
    expected = pipeline(audio_latents=rearrange(rows, "1 (c a) d -> c d a", c=2), output=["audio", "sampling_rate"])
    got = decode_sound(vae, rows, channels=2)
    assert torch.equal(got.samples, expected["audio"][0]) and got.rate == expected["sampling_rate"] == 4000
    assert got.samples.shape == (2, 20700) and got.samples.std() > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guidance.cfg_scale": 5}, "guidance.cfg_scale: expected 1 for this checkpoint"),
        ({"output.fps": 16}, "output.fps: expected 24, because this model makes sound for that rate, got 16"),
        ({"sampling.num_frames": 81}, "5 more than a multiple of 17, from 124 to 345, got 81; the nearest is 124"),
        (
            {"sampling.num_frames": 107},
            "sampling.num_frames: expected 5 more than a multiple of 17, from 124 to 345, got 107",
        ),
        ({"sampling.num_frames": 362}, "from 124 to 345, got 362; the nearest is 345"),
        ({"sampling.width": 144}, "sampling.width: expected a multiple of 32, got 144"),
        ({"sampling.num_inference_steps": 1}, "sampling.num_inference_steps: expected at least 2"),
        ({"sampling.scheduler": "UniPCMultistepScheduler"}, "sampling.scheduler: expected null for this checkpoint"),
        (
            {"sampling.sigmas": [1.0, 0.7, 0.4, 0.1]},
            "sampling.sigmas: expected null for this checkpoint, which has a scheduler for the picture and one for the",
        ),
        ({"parallel.branch": 2}, "guidance.cfg_scale 1 makes no uncond prediction"),
        ({"parallel.decode": "sharded"}, "parallel.decode: sharded needs AutoencoderKLWan"),
    ],
)
def test_what_it_cannot_do(folder: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        check_request(tiny_config(folder).patched(changes), Checkpoint(folder).info)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_another_sound_allows_another_rate(folder: Path) -> None:
    config = tiny_config(folder).patched({"output.fps": 16, "output.audio": "sound.wav"})
    check_request(config, Checkpoint(folder).info)


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("vae/config.json", {"clip_length": 9}, "clip_length: expected 17"),
        ("vae/config.json", {"spatial_downsample_factors": [2, 2, 2, 1]}, "expected a product of 16.* got 8"),
        ("transformer/config.json", {"patch_size": [1, 1, 1]}, r"patch_size: expected \[1, 2, 2\]"),
        ("audio_vae/config.json", {"latents_std": None}, "latents_std: expected .* finite numbers? above 0"),
        (
            "modular_model_index.json",
            {"vae": ["diffusers", MINIMAX_H3_VAE, {"subfolder": "other"}]},
            "vae: expected the subfolder 'vae', got 'other'",
        ),
        ("modular_model_index.json", {"transformer": ["diffusers", "X", {}]}, "transformer: expected MiniMaxH3Transf"),
    ],
)
def test_other_checkpoints_are_refused(
    folder: Path, tmp_path: Path, file: str, changes: dict[str, Any], said: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=said):
        checkpoint = Checkpoint(copy)
        checkpoint.check()
        _ = checkpoint.info


def test_a_text_encoder_with_too_few_layers_is_refused(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    encoder = build_short_encoder()
    with pytest.raises(InputError, match=r"expected more than 50 layers.* got 50"):
        checkpoint.family.build_pipeline({"text_encoder": encoder, "tokenizer": None}, None)


def build_short_encoder() -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(config=SimpleNamespace(text_config=SimpleNamespace(num_hidden_layers=50)))


def test_what_the_checkpoint_says(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    checkpoint.check()
    info = checkpoint.info
    assert (info.num_blocks, info.latent_channels, info.sound, info.has_uncond) == (NUM_BLOCKS, CHANNELS, SOUND, False)
    assert info.latent_shape(num_frames=124, height=SIZE["height"], width=SIZE["width"]) == LatentShape(37, 2, 10)
    assert info.num_tokens(LatentShape(37, 2, 10)) == 599
    weighted = {"text_encoder", "transformer", "vae", "audio_vae"}
    assert {file.name.split("/")[0] for file in checkpoint.weights()} == weighted
    assert {"modular_model_index.json", "audio_scheduler/scheduler_config.json"} <= checkpoint.settings_digests().keys()


def test_the_config_is_what_the_pipeline_takes_unasked() -> None:
    """The canvas of 16:9, and the least number of frames."""
    from diffusers.modular_pipelines.minimax_h3.modular_pipeline import resolve_canvas_size

    config = read_config(CONFIGS / "minimax-h3-768p.yaml")
    info = Checkpoint(ASSETS / "published" / "MiniMaxAI--MiniMax-H3").info
    check_request(config, info)
    sampling = config.sampling
    assert (sampling.height, sampling.width) == resolve_canvas_size(16, 9, 32, 768, 768 * 1344)
    assert sampling.num_frames == info.frames.at_least(0) == 124
    assert config.output.fps == 24 and config.guidance.cfg_scale == 1
