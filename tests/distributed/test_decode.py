"""Tests of decoding on 2 to 4 ranks: strips equal one rank up to rounding, tiles equal diffusers' tiling."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import tiny_hunyuan
import tiny_hunyuan15
import torch
from diffusers import AutoencoderKLHunyuanVideo15
from ranks import RankError, RankPool
from tiny import RESIDUAL_Z_DIM, Z_DIM, build_vae, job, tiny_config
from torch import Tensor

from s2video.config.run import RunConfig, build_config
from s2video.decoding.decoder import DecodeMode, FrameDecoder
from s2video.decoding.whole import decode_frames, denormalize, to_frames
from s2video.engine.engine import Engine
from s2video.engine.make_video import make_video
from s2video.errors import S2VideoError
from s2video.geometry import LatentShape
from s2video.media.video import probe_video
from s2video.parallel.halo import fill_halos
from s2video.parallel.mesh import Mesh
from s2video.parallel.traffic import count_traffic

Ranks = Callable[[int], RankPool]
Form = Literal["plain", "residual", "hunyuan", "hunyuan15"]

_VAES = {}  # of this process


def tiny_vae(form: Form):
    if form not in _VAES:
        _VAES[form] = build(form)
    return _VAES[form]


def build(form: Form):
    if form in ("plain", "residual"):
        return build_vae(residual=form == "residual")
    return (tiny_hunyuan if form == "hunyuan" else tiny_hunyuan15).build_vae()


def random_latents(form: Form, *shape: int) -> Tensor:
    channels = {"residual": RESIDUAL_Z_DIM, "hunyuan15": tiny_hunyuan15.CHANNELS}.get(form, Z_DIM)
    return torch.randn(1, channels, *shape, generator=torch.Generator().manual_seed(0))


def padded_strip(mesh: Mesh, whole: Tensor, lengths: list[int], dim: int, width: int) -> Tensor:
    start = sum(lengths[: mesh.world.rank])
    strip = whole.narrow(dim, start, lengths[mesh.world.rank])
    padding = [0, 0, 0, 0]
    padding[2 * (-1 - dim) : 2 * (-dim)] = [width, width]
    padded = torch.nn.functional.pad(strip, padding)
    fill_halos(padded, dim, width, mesh.world)
    return padded


@pytest.mark.parametrize(("lengths", "width"), [([2, 5], 2), ([1, 3, 1], 1), ([4, 2, 3, 2], 2)])
@pytest.mark.parametrize("dim", [-2, -1])
def test_halos_are_the_rows_beside_a_strip_and_zero_outside(
    ranks: Ranks, lengths: list[int], width: int, dim: int
) -> None:
    shape = [2, 3, 4, 4]
    shape[dim] = sum(lengths)
    whole = torch.randn(shape)
    edges = list(shape)
    edges[dim] = width
    padded = torch.cat([torch.zeros(edges), whole, torch.zeros(edges)], dim)
    for rank, strip in enumerate(ranks(len(lengths)).run(padded_strip, whole, lengths, dim, width)):
        assert torch.equal(strip, padded.narrow(dim, sum(lengths[:rank]), lengths[rank] + 2 * width))


def decode(mesh: Mesh, form: Form, latents: Tensor, mode: DecodeMode) -> tuple[list[Tensor], int, int]:
    """Return the chunks, whether this rank has a VAE, and the bytes that it sent."""
    loaded = []

    def load():
        loaded.append(form)
        return tiny_vae(form)

    vae_class = type(tiny_vae(form)).__name__
    shape = LatentShape(*latents.shape[2:])
    decoder = FrameDecoder(mode, mesh, shape, vae_class=vae_class, load_vae=load, timeout_seconds=60)
    with count_traffic() as traffic:
        chunks = list(decoder(latents))
    assert not any(name in vars(m) for m in tiny_vae(form).modules() for name in ("forward", "_conv_forward"))
    return chunks, len(loaded), traffic.total


SHAPES = [
    (2, (3, 5, 4), 2),  # uneven rows
    (3, (2, 4, 7), 3),  # columns
    (3, (2, 2, 2), 2),  # more ranks than rows
    (4, (3, 6, 5), 4),
]


@pytest.mark.parametrize("form", ["plain", "residual"])
@pytest.mark.parametrize(("world_size", "shape", "decoding"), SHAPES)
def test_strips_give_the_whole_picture(
    ranks: Ranks, form: Form, world_size: int, shape: tuple[int, int, int], decoding: int
) -> None:
    latents = random_latents(form, *shape)
    alone = list(decode_frames(tiny_vae(form), latents))
    (chunks, *_), *others = answers = ranks(world_size).run(decode, form, latents, "sharded")
    assert [chunk.shape for chunk in chunks] == [chunk.shape for chunk in alone]
    torch.testing.assert_close(torch.cat(chunks), torch.cat(alone), atol=1e-4, rtol=0)
    assert all(not chunks for chunks, *_ in others)
    assert [loaded for _, loaded, _ in answers] == [1] * decoding + [0] * (world_size - decoding)
    assert all((sent > 0) == bool(loaded) for _, loaded, sent in answers)


def decode_by_tiles(mesh: Mesh, form: Form, latents: Tensor, height: int, width: int) -> list[Tensor]:
    """Use tiles of height x width px that overlap by 1/4; with HunyuanVideo 1.0, also by two of four latent frames."""
    vae = tiny_vae(form)
    before = dict(vars(vae))
    try:
        _set_tiles(vae, height, width)
        vae_class = type(vae).__name__
        shape = LatentShape(*latents.shape[2:])
        decoder = FrameDecoder("tiled", mesh, shape, vae_class=vae_class, load_vae=lambda: vae, timeout_seconds=60)
        return list(decoder(latents))
    finally:
        vars(vae).update(before)


def _set_tiles(vae, height: int, width: int) -> None:
    if isinstance(vae, AutoencoderKLHunyuanVideo15):
        vae.enable_tiling(height, width, height // 16, width // 16)
        return
    vae.enable_tiling(
        tile_sample_min_height=height,
        tile_sample_min_width=width,
        tile_sample_stride_height=height * 3 // 4,
        tile_sample_stride_width=width * 3 // 4,
    )


def tiled_by_diffusers(form: Form, latents: Tensor, height: int, width: int) -> Tensor:
    vae = build(form)
    _set_tiles(vae, height, width)
    with torch.no_grad():
        return to_frames(vae.decode(denormalize(vae, latents), return_dict=False)[0])


TILED = [
    ("plain", (2, 9, 7), 32, 64),
    ("residual", (2, 9, 7), 128, 64),
    ("residual", (3, 4, 4), 64, 64),  # no larger than a tile, so decoded whole
    ("hunyuan", (2, 9, 7), 32, 64),
    ("hunyuan", (8, 5, 4), 32, 32),  # tiles in time: 5, 5, 2 latent frames, the last of which adds nothing
    ("hunyuan", (7, 4, 3), 32, 32),
    ("hunyuan", (1, 2, 2), 32, 32),
    ("hunyuan15", (2, 9, 7), 64, 128),
    ("hunyuan15", (3, 4, 4), 64, 64),
]


@pytest.mark.parametrize(("form", "shape", "height", "width"), TILED)
def test_tiles_give_what_diffusers_tiling_gives(
    form: Form, shape: tuple[int, int, int], height: int, width: int
) -> None:
    latents = random_latents(form, *shape)
    expected = tiled_by_diffusers(form, latents, height, width)
    chunks = decode_by_tiles(Mesh(torch.device("cpu")), form, latents, height, width)
    assert torch.equal(torch.cat(chunks), expected)


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize(
    ("form", "shape", "height", "width"),
    [
        ("residual", (2, 9, 7), 64, 128),
        ("plain", (2, 5, 4), 32, 32),  # two tiles
        ("hunyuan", (6, 5, 4), 32, 32),
        ("hunyuan15", (2, 5, 4), 64, 64),
    ],
)
def test_dealt_tiles_give_the_same(
    ranks: Ranks, world_size: int, form: Form, shape: tuple[int, int, int], height: int, width: int
) -> None:
    latents = random_latents(form, *shape)
    expected = tiled_by_diffusers(form, latents, height, width)
    chunks, *others = ranks(world_size).run(decode_by_tiles, form, latents, height, width)
    assert len(chunks) > 1 or form == "hunyuan15"  # its tiles are as long as the video
    torch.testing.assert_close(torch.cat(chunks), expected, atol=1e-6, rtol=0)
    assert others == [[]] * (world_size - 1)


def leave_early(mesh: Mesh, latents: Tensor, mode: DecodeMode, num_chunks: int) -> None:
    vae = tiny_vae("residual")
    shape, vae_class = LatentShape(*latents.shape[2:]), type(vae).__name__
    decoder = FrameDecoder(mode, mesh, shape, vae_class=vae_class, load_vae=lambda: vae, timeout_seconds=60)
    frames = decoder(latents)
    for _ in range(num_chunks):
        next(frames, None)
    frames.close()


@pytest.mark.parametrize(
    ("world_size", "mode"), [(2, "sharded"), (3, "sharded"), (2, "tiled"), (3, "tiled"), (2, "serial")]
)
def test_ranks_end_when_the_reader_leaves(ranks: Ranks, world_size: int, mode: DecodeMode) -> None:
    """All ranks end at once (otherwise the pool times out). Two latent rows leave a third rank idle."""
    with pytest.raises(RankError) as caught:
        ranks(world_size).run(leave_early, random_latents("residual", 4, 2, 2), mode, 2, timeout=50)
    assert caught.value.kinds == [None] + ["FollowUpError"] * (world_size - 1)
    assert all("rank 0 stopped before the last frame" in message for message in caught.value.messages[1:])


def make(mesh: Mesh | None, config: RunConfig, output: Path) -> Path | None:
    return make_video(Engine(config, mesh), job(config, output))


@pytest.mark.parametrize(("world_size", "mode"), [(2, "auto"), (3, "tiled"), (2, "serial")])
def test_a_job_of_several_ranks_is_whole(
    ranks: Ranks, tiny_checkpoint: Path, tmp_path: Path, world_size: int, mode: DecodeMode
) -> None:
    values = tiny_config(tiny_checkpoint).model_dump(mode="json")
    values["parallel"]["decode"] = mode
    output = tmp_path / "clip.mp4"
    written = ranks(world_size).run(make, build_config(values), output)
    assert written == [output] + [None] * (world_size - 1)
    info = probe_video(output)
    assert (info.width, info.height, info.num_frames) == (112, 80, 17)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.json", "clip.mp4"]


def make_without_encoder(mesh: Mesh, config: RunConfig, output: Path, monkeypatched: str) -> None:
    engine = Engine(config, mesh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGEIO_FFMPEG_EXE", monkeypatched)
        make_video(engine, job(config, output))


def test_an_encoder_that_fails_ends_all_ranks(ranks: Ranks, tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\necho 'No space left on device' >&2\nexit 1\n")
    broken.chmod(0o755)
    values = tiny_config(tiny_checkpoint).model_dump(mode="json")
    values["sampling"] |= {"num_frames": 61, "num_inference_steps": 2}  # more than the pipe and the queue hold
    made = tmp_path / "made"
    with pytest.raises(RankError) as caught:
        ranks(3).run(make_without_encoder, build_config(values), made / "clip.mp4", str(broken), timeout=100)
    assert caught.value.kinds == ["S2VideoError", "FollowUpError", "FollowUpError"]
    messages = caught.value.messages
    assert messages[0] is not None and "No space left on device" in messages[0]
    assert all(message is not None and "rank 0 stopped" in message for message in messages[1:])
    assert [path.name for path in made.iterdir()] == ["clip.latents.safetensors"]


def decode_a_second_one(mesh: Mesh, latents: Tensor) -> tuple[str, Tensor, Tensor]:
    decode = FrameDecoder(
        "sharded",
        mesh,
        LatentShape(*latents.shape[2:]),
        vae_class="AutoencoderKLWan",
        load_vae=lambda: tiny_vae("plain"),
        timeout_seconds=60,
    )
    first = decode._chunks(latents)
    chunks = [next(first)]
    try:
        next(decode._chunks(latents))
    except S2VideoError as error:
        refused = str(error)
    chunks += first
    again = list(decode._chunks(latents))
    main = [part if part is not None else torch.empty(0) for part in (*chunks, *again)]
    return refused, torch.cat(main[: len(chunks)]), torch.cat(main[len(chunks) :])


def test_ranks_decode_one_video_at_a_time(ranks: Ranks) -> None:
    """Strips need the convolutions of all ranks; a second video is refused, and the first goes on unharmed."""
    latents = random_latents("plain", 3, 6, 6)
    for rank, (refused, first, again) in enumerate(ranks(2).run(decode_a_second_one, latents)):
        assert "expected one video at a time" in refused and torch.equal(first, again)
        assert (len(first) > 0) == (rank == 0)
