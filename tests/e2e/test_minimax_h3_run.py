"""MiniMax-H3's videos as files: the sound that is made with the picture, in every kind of format."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_minimax_h3 import SAMPLE_RATE, SIZE, tiny_config

import s2video
from s2video.cli.main import main
from s2video.config.run import RunConfig
from s2video.engine.decode_latents import decode_latents
from s2video.engine.engine import Engine
from s2video.engine.make_video import denoise, make_video
from s2video.errors import InputError, StoppedError
from s2video.records.sidecar import load_latents
from s2video.records.sidecar_model import Sidecar, find_sidecar, read_sidecar

PROMPT = "a small red circle moving left on a gray background"
NUM_SAMPLES = 248_000  # 124 frames at 24 a second, at 48 kHz


@pytest.fixture(scope="module")
def engine(checkpoint_of: Callable[[str], Path]) -> Engine:
    return Engine(tiny_config(checkpoint_of("minimax-h3"), s2_scale=0.25), progress="none")


def job(engine: Engine, path: Path, **output: object) -> RunConfig:
    return engine.config.patched({"prompt": PROMPT, "sampling.seed": 3, "output": {"path": str(path), **output}})


@pytest.fixture(scope="module")
def made(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MP4, a MOV and a sequence of one take, and its latents."""
    path = tmp_path_factory.mktemp("h3") / "clip.mp4"
    made = make_video(engine, job(engine, path, keep_latents=True, also=["prores", "png"]))
    assert made == path
    return path


def sound_of(path: Path) -> tuple[NDArray[np.float32], str]:
    """Return samples [2, N] and the codec."""
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        assert (stream.rate, stream.channels) == (48_000, 2)
        parts = [frame.to_ndarray() for frame in container.decode(audio=0)]
        codec = stream.codec_context.name
    samples = np.concatenate([p if p.shape[0] == 2 else p.reshape(-1, 2).T for p in parts], axis=1)
    return samples.astype(np.float32) / (1 if samples.dtype.kind == "f" else 2**31), codec


def record_of(path: Path) -> Sidecar:
    return read_sidecar(find_sidecar(path))


def test_every_format_has_the_sound(engine: Engine, made: Path) -> None:
    """AAC in MP4, PCM in MOV, and a WAV file with the frames of a sequence, all as long as the picture."""
    own = engine.sound(load_latents(made.with_suffix(".latents.safetensors")).latents)
    assert own is not None and own.rate == SAMPLE_RATE
    folder = made.with_suffix("")
    assert len(list(folder.glob("clip.*.png"))) == SIZE["num_frames"] and len(list(folder.iterdir())) == 125
    pcm, codec = sound_of(folder / "clip.wav")
    assert pcm.shape == (2, NUM_SAMPLES) and codec == "pcm_s24le"
    for path, codec in ((made, "aac"), (made.with_suffix(".mov"), "pcm_s24le")):
        samples, name = sound_of(path)
        assert name == codec and abs(samples.shape[1] - NUM_SAMPLES) <= (0 if codec != "aac" else 2048)
        length = min(samples.shape[1], NUM_SAMPLES)
        for channel in range(2):
            assert np.corrcoef(samples[channel, :length], pcm[channel, :length])[0, 1] > (
                0.9 if codec == "aac" else 0.999
            )
    step = 48_000 // SAMPLE_RATE
    for channel in range(2):
        expected = own.samples[channel, : NUM_SAMPLES // step].numpy()
        assert np.corrcoef(pcm[channel, ::step][: len(expected)], expected)[0, 1] > 0.95


def test_sidecars_say_whose_sound_it_is(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (made, made.with_suffix(".mov"), made.with_suffix("")):
        sidecar = record_of(path)
        assert sidecar.sound == "model" and sidecar.audio_sha256 is None
        assert any(name.startswith("audio_vae/") for name in sidecar.weights)
        assert main(["inspect", str(path)]) == 0
        said = capsys.readouterr().out
        assert "sound           of the model" in said and "unchanged" in said


def test_saved_latents_have_the_sound(made: Path, tmp_path: Path) -> None:
    """The same samples in another master, and, if the user names a sound, that one."""
    latents = made.with_suffix(".latents.safetensors")
    again = decode_latents(latents, tmp_path / "again.mov")
    for before, after in zip(sound_of(made.with_suffix(".mov"))[0], sound_of(again)[0], strict=True):
        assert np.array_equal(before, after)
    assert record_of(again).sound == "model"
    named = {"output.audio": str(made.with_suffix("") / "clip.wav")}
    other = decode_latents(latents, tmp_path / "other.mov", own=named)
    assert record_of(other).sound is None and record_of(other).audio_sha256 is not None
    with pytest.raises(InputError, match=r"output\.fps: expected 24"):
        decode_latents(latents, tmp_path / "slow.mov", own={"output.fps": 12})
    assert not (tmp_path / "slow.mov").exists()


def test_a_run_is_continued_to_the_bit(engine: Engine, made: Path, tmp_path: Path) -> None:
    """The scheduler of each modality goes on where it was."""
    path = tmp_path / "clip.mp4"
    with pytest.raises(StoppedError, match="after step 2 of 3"):
        denoise(engine, job(engine, path), on_step=lambda done, total: done < 2)
    denoised = denoise(engine, job(engine, path), resume=True)
    assert denoised is not None and denoised.facts["num_steps"] == 3 and denoised.claim is not None
    with denoised.claim:
        whole = load_latents(made.with_suffix(".latents.safetensors")).latents
        assert torch.equal(denoised.latents, whole)


def test_from_python(engine: Engine, made: Path, tmp_path: Path) -> None:
    settings = engine.config.model_dump(mode="json", exclude={"prompt", "image", "last_image"})
    model = s2video.load(engine.config.model.path, **{key: settings[key] for key in ("sampling", "guidance", "output")})
    video = model(PROMPT, seed=3)
    assert video.sound is not None and video.sound.samples.shape == (2, 20_700)
    path = video.save(tmp_path / "a.mov")
    for before, after in zip(sound_of(made.with_suffix(".mov"))[0], sound_of(path)[0], strict=True):
        assert np.array_equal(before, after)
    with pytest.raises(InputError, match=r"output\.fps: expected 24"):
        video.save(tmp_path / "b.mov", fps=12)


def test_it_is_reproduced(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", str(made)]) == 0
    assert "reproduced" in capsys.readouterr().out
