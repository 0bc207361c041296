"""The most bytes of tensors on a pretended GPU against the plan's numbers, for steps and for decoding."""

import pytest
from fake_cuda.cases import decode, guided_steps, planned
from fake_cuda.device import fake_gpu
from fake_cuda.published import published_engine
from fake_cuda.ranks import fake_mesh
from PIL import Image
from shapes.caption_encoder import build_tokenizer

from s2video.models.control import Control
from s2video.planning.memory import activation_bytes, weight_bytes
from s2video.planning.step import Degrees


@pytest.mark.parametrize(
    ("model", "degrees", "weights"),
    [
        ("wan2.1-t2v-14b-720p", Degrees(1, 1, 1), "replicated"),
        ("wan2.1-t2v-14b-720p", Degrees(8, 1, 1), "replicated"),
        ("wan2.1-t2v-14b-720p", Degrees(4, 2, 1), "replicated"),
        ("wan2.1-t2v-14b-720p", Degrees(2, 2, 2), "replicated"),
        ("wan2.1-t2v-14b-720p", Degrees(1, 8, 1), "fsdp"),
        ("wan2.1-t2v-14b-720p", Degrees(1, 1, 1), "streamed"),
        ("wan2.1-vace-14b-720p", Degrees(1, 1, 1), "replicated"),
        ("wan2.1-vace-14b-720p", Degrees(2, 2, 2), "replicated"),
        ("wan2.1-vace-14b-720p", Degrees(1, 1, 1), "streamed"),
        ("wan2.2-ti2v-5b", Degrees(1, 1, 1), "replicated"),
        ("wan2.2-ti2v-5b", Degrees(1, 4, 2), "replicated"),
        ("hunyuanvideo-720p", Degrees(1, 1, 1), "replicated"),
        ("hunyuanvideo-720p", Degrees(1, 8, 1), "replicated"),
        ("hunyuanvideo-1.5-t2v-480p", Degrees(1, 8, 1), "replicated"),
        ("minimax-h3-768p", Degrees(1, 8, 1), "replicated"),
    ],
    ids=str,
)
def test_steps_need_what_is_planned(model: str, degrees: Degrees, weights: str) -> None:
    """Within 10 %. Each list has four blocks: sharded and streamed weights have two of them on the device at a time."""
    given = {name: degree for name, degree in degrees._asdict().items() if degree > 1}
    with (
        fake_mesh(**given) as mesh,
        fake_gpu() as watchdog,
        published_engine(model, mesh, num_blocks=4, **{"parallel.weights": weights}) as engine,
    ):
        steps = guided_steps(engine, 1)
        step, loaded = planned(engine, mesh.world.size), watchdog.live
        watchdog.reset_peak()
        steps()
        expected = weight_bytes(degrees, step) + activation_bytes(degrees, step)
        assert expected == pytest.approx(watchdog.peak, rel=0.1)
        if weights != "fsdp":  # which gathers blocks only when a step begins
            assert activation_bytes(degrees, step) == pytest.approx(watchdog.peak - loaded, rel=0.1)


@pytest.mark.parametrize(
    ("model", "num_ranks", "mode"),
    [
        ("wan2.1-t2v-1.3b-480p", 1, "serial"),
        ("wan2.1-t2v-1.3b-480p", 8, "tiled"),
        ("wan2.2-ti2v-5b", 8, "sharded"),
        ("hunyuanvideo-1.5-t2v-480p", 8, "tiled"),
    ],
)
def test_decoding_needs_what_is_planned(model: str, num_ranks: int, mode: str) -> None:
    """Within 10 %. After three latent frames, the feature caches of Wan's VAE are full."""
    with (
        fake_mesh(ulysses=num_ranks) as mesh,
        fake_gpu() as watchdog,
        published_engine(model, mesh, **{"parallel.decode": mode}) as engine,
    ):
        decoding = decode(engine, 3)
        step, loaded = planned(engine, num_ranks), watchdog.live
        watchdog.reset_peak()
        decoding()
        assert not watchdog.faults, watchdog.faults
        assert step.decoding_bytes == pytest.approx(watchdog.peak - loaded, rel=0.1)


@pytest.mark.parametrize("has_mask", [True, False])
def test_encoding_control_needs_what_is_planned(has_mask: bool) -> None:
    """Within 10 %: control video and mask through Wan's encoder; without a mask, there are more tensors of ones."""
    few = {"sampling.num_frames": 17, "model.offload_text_encoder": True}
    tokenizers = {"tokenizer": build_tokenizer()}
    with (
        fake_mesh() as mesh,
        fake_gpu() as watchdog,
        published_engine("wan2.1-vace-1.3b-480p", mesh, tokenizers=tokenizers, **few) as engine,
    ):
        sampling = engine.config.sampling
        frame = Image.new("RGB", (sampling.width, sampling.height))
        frames = (frame,) * sampling.num_frames
        control = Control(frames, tuple(frame.convert("L") for frame in frames) if has_mask else ())
        latents, loaded = engine._noise([0]), watchdog.live
        watchdog.reset_peak()
        engine._encoders.images(control, latents, engine.config)
        assert planned(engine, 1).image_encoding_bytes == pytest.approx(watchdog.peak - loaded, rel=0.1)
