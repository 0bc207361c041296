"""What has changed never counts: `--resume` and `decode` make it again, and `reproduce` compares every frame."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage_helpers import FILE_DAMAGE, flipped
from video_helpers import SPEC, noise

import s2video
from s2video.api import TextToVideo
from s2video.cli.main import main
from s2video.config.run import RunConfig, build_config
from s2video.engine.engine import Engine
from s2video.engine.make_video import make_video
from s2video.errors import InputError, S2VideoError
from s2video.media import video as video_module
from s2video.media.output_paths import OutputPaths
from s2video.media.video import read_video, write_video
from s2video.records.sidecar_model import read_sidecar, record_digest
from s2video.records.targets import sidecar_beside
from s2video.review.frames import compare_frames
from s2video.review.reproduce import job_again, judge, make_again


@pytest.fixture(scope="module")
def engine() -> Engine:
    loaded = s2video.load("shapes-wan", sampling={"num_frames": 1, "num_inference_steps": 1}, **{"model.device": "cpu"})
    assert isinstance(loaded, TextToVideo)
    return loaded._engine


def job(engine: Engine, output: Path, **changes: Any) -> RunConfig:
    named = {"prompt": "a red circle", "sampling.seed": 1, "output.path": str(output)}
    return engine.config.patched(named | changes)


def content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b"".join(f.read_bytes() for f in sorted(path.iterdir()))


@pytest.mark.parametrize("damage", [*FILE_DAMAGE.values(), "latents"], ids=[*FILE_DAMAGE.keys(), "latents"])
def test_resume_makes_again_what_is_not_as_it_was(
    damage: Any, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = job(engine, tmp_path / "clip.mp4", **{"output.keep_latents": True})
    make_video(engine, wanted)
    video, latents, made = tmp_path / "clip.mp4", tmp_path / "clip.latents.safetensors", None
    made = video.read_bytes(), latents.read_bytes()
    before = video.stat().st_mtime_ns
    make_video(engine, wanted, resume=True)
    assert video.stat().st_mtime_ns == before and "made again" not in capsys.readouterr().err
    if damage == "latents":
        flipped(latents)
    else:
        damage(video)
    make_video(engine, wanted, resume=True)
    err = capsys.readouterr().err
    assert "clip.mp4: made again: " in err and ("changed since" in err or "missing" in err)
    assert video.read_bytes() == made[0] and latents.read_bytes() == made[1]
    assert main(["inspect", str(video)]) == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sampling.seed": 2}, "seed was 2, now it is 1"),
        ({"prompt": "a blue circle"}, 'prompt was "a blue circle"'),
        ({"negative_prompt": "noise"}, 'negative_prompt was "noise"'),
        ({"guidance.s2_scale": 0.5}, "guidance.s2_scale was 0.5"),
        ({"output.fps": 12}, "output.fps was"),
        ({"output.codec": "h265"}, 'output.codec was "h265"'),
        ({"sampling.flow_shift": 4.0}, "sampling.flow_shift was 4.0"),
    ],
)
def test_resume_keeps_no_video_of_another_job(
    changes: dict[str, Any], named: str, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = job(engine, tmp_path / "clip.mp4", **changes)
    make_video(engine.with_config(other), other)
    wanted = job(engine, tmp_path / "clip.mp4")
    make_video(engine, wanted, resume=True)
    assert named in capsys.readouterr().err
    sidecar = read_sidecar(tmp_path / "clip.json")
    assert (sidecar.seed, sidecar.prompt, sidecar.config.guidance) == (1, "a red circle", wanted.guidance)


def test_resume_keeps_no_video_of_other_settings_files(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are equal, but a config.json of the checkpoint was another, such as its eps."""
    wanted = job(engine, tmp_path / "clip.mp4")
    names = engine.checkpoint.settings_digests()
    assert {"model_index.json", "transformer/config.json", "vae/config.json"} <= names.keys()
    monkeypatch.setattr(engine.checkpoint, "settings_digests", lambda: names | {"transformer/config.json": "0" * 64})
    make_video(engine, wanted)
    monkeypatch.undo()
    make_video(engine, wanted, resume=True)
    assert "model_files: transformer/config.json is another" in capsys.readouterr().err


def test_resume_keeps_no_video_with_other_sound(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = tmp_path / "a.wav"
    write_sound(sound, 440)
    wanted = job(engine, tmp_path / "clip.mp4", **{"output.audio": str(sound)})
    make_video(engine, wanted)
    make_video(engine, wanted, resume=True)
    assert "made again" not in capsys.readouterr().err
    write_sound(sound, 880)
    make_video(engine, wanted, resume=True)
    assert "audio_sha256 was" in capsys.readouterr().err


def test_sound_that_changes_meanwhile_is_not_recorded_as_another(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = tmp_path / "a.wav"
    write_sound(sound, 440)
    decode = Engine.decode

    def changing(self: Engine, latents: torch.Tensor, **options: Any) -> Any:
        write_sound(sound, 880)
        return decode(self, latents, **options)

    monkeypatch.setattr(Engine, "decode", changing)
    with pytest.raises(InputError, match=r"output\.audio: .* changed while the video was made"):
        make_video(engine, job(engine, tmp_path / "clip.mp4", **{"output.audio": str(sound)}))
    assert not (tmp_path / "clip.mp4").exists() and not (tmp_path / "clip.json").exists()


def write_sound(path: Path, hertz: int) -> None:
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        times = torch.arange(8000) / 8000
        file.writeframes((torch.sin(times * hertz * 6.28) * 8000).to(torch.int16).numpy().tobytes())


def test_decode_renews_the_sidecar_of_the_video_that_it_replaces(engine: Engine, tmp_path: Path) -> None:
    make_video(engine, job(engine, tmp_path / "clip.mp4", **{"output.keep_latents": True}))
    latents = tmp_path / "clip.latents.safetensors"
    (tmp_path / "clip.mp4").unlink()
    assert main(["decode", str(latents)]) == 0
    assert main(["inspect", str(tmp_path / "clip.mp4")]) == 0


def test_decode_does_not_replace_a_video_of_other_latents(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_video(engine, job(engine, tmp_path / "clip.mp4"))
    other = job(engine, tmp_path / "other.mp4", **{"output.keep_latents": True, "sampling.seed": 2})
    make_video(engine, other)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    words = ["decode", str(tmp_path / "other.latents.safetensors"), "--output", str(tmp_path / "clip.mp4")]
    assert main(words) == 2
    assert "choose another name" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_save_replaces_video_and_sidecar_together(engine: Engine, tmp_path: Path) -> None:
    video = TextToVideo(engine)("a red circle", seed=1)
    video.save(tmp_path / "clip.mp4")
    video.save(tmp_path / "clip.mp4", crf=40)
    assert main(["inspect", str(tmp_path / "clip.mp4")]) == 0
    with pytest.raises(InputError):
        video.save(tmp_path / "clip.mp4", crf=99)
    assert main(["inspect", str(tmp_path / "clip.mp4")]) == 0


@pytest.fixture(scope="module")
def clip(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 9 frames with its sidecar."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    wanted = job(engine, path, **{"sampling.num_frames": 9})
    make_video(engine.with_config(wanted), wanted)
    return path


@pytest.fixture(scope="module")
def second(engine: Engine, clip: Path) -> Engine:
    """The models as `reproduce` loads them."""
    sidecar = read_sidecar(clip.with_suffix(".json"))
    return Engine(job_again(sidecar, world_size=1).config, checkpoint=engine.checkpoint)


def again(engine: Engine, video: Path) -> str:
    sidecar = read_sidecar(video.with_suffix(".json"))
    config = job_again(sidecar, world_size=1).config
    remade = make_again(engine.with_config(config), sidecar, None, video=video)
    assert remade is not None
    return judge(sidecar, remade)


def with_other_frames(clip: Path, folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """The video as a wrong decoder would have made it: right latents, and a sidecar of the wrong frames."""
    frames = change(read_video(clip).float() / 255)
    facts = json.loads(clip.with_suffix(".json").read_text())
    path = folder / "clip.mp4"
    spec = build_config(facts["config"]).output.spec(path)
    write_video([frames], path, spec, metadata={}, beside=sidecar_beside(OutputPaths(path).master, lambda: facts))
    assert main(["inspect", str(path)]) == 0, "file and sidecar belong together"
    return path


def test_reproduce_compares_the_frames_too(second: Engine, clip: Path) -> None:
    assert "the frames of the file are the same to the bit" in again(second, clip)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames: frames[:-1], "has 8 frames, and its latents decode to 9"),
        (lambda frames: frames[[*range(9), 8]], "has 10 frames, and its latents decode to 9"),
        (lambda frames: frames[[0, 1, 2, 3, 4, 4, 5, 6, 7]], r"frame \d of"),
        (lambda frames: torch.cat([frames[:6], frames[6:].flip(1)]), r"frame \d of"),
        (lambda frames: frames[:, :32], "has 64x32 px"),
    ],
)
def test_reproduce_finds_wrong_frames_of_right_latents(
    change: Callable[[torch.Tensor], torch.Tensor], message: str, second: Engine, clip: Path, tmp_path: Path
) -> None:
    with pytest.raises(S2VideoError, match=f"not reproduced: .*{message}"):
        again(second, with_other_frames(clip, tmp_path, change))


def test_another_encoder_writes_frames_that_agree(clip: Path, tmp_path: Path) -> None:
    """Another quality is another encoder here; a picture that moved by eight pixels is not."""
    frames = read_video(clip).float() / 255
    write_video([frames], tmp_path / "other.mp4", SPEC, metadata={})
    assert "agree" in compare_frames(clip, tmp_path / "other.mp4", to_the_bit=False)
    write_video([frames.roll(8, dims=2)], tmp_path / "moved.mp4", SPEC, metadata={})
    with pytest.raises(S2VideoError, match="expected at most 24"):
        compare_frames(clip, tmp_path / "moved.mp4", to_the_bit=False)


@pytest.mark.parametrize("codec", ["png", "exr"])
def test_frames_of_sequences_are_compared(codec: str, tmp_path: Path) -> None:
    spec = video_module.VideoSpec(SPEC.fps, codec=codec)
    for name, change in (("a", 0.0), ("b", 0.0), ("c", 0.5)):
        frames = [frame * (1 - change * (number == 2)) for number, frame in enumerate(noise(4))]
        write_video(frames, tmp_path / f"{name}.{codec}", spec, metadata={})
    assert "to the bit" in compare_frames(tmp_path / "a", tmp_path / "b", to_the_bit=True)
    with pytest.raises(S2VideoError, match="frame 2 of"):
        compare_frames(tmp_path / "a", tmp_path / "c", to_the_bit=False)


def test_reproduce_says_what_it_cannot_compare(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("clip.mp4", "clip.json"):
        shutil.copy(clip.with_name(name), tmp_path / name)
    flipped(tmp_path / "clip.mp4")
    assert main(["reproduce", str(tmp_path / "clip.json"), "--plain"]) == 1
    assert "clip.mp4: changed since it was written" in capsys.readouterr().err
    (tmp_path / "clip.mp4").unlink()
    assert main(["reproduce", str(tmp_path / "clip.json"), "--plain"]) == 0
    out, err = capsys.readouterr()
    assert "is missing: only the latents are compared" in err and "frames" not in out


@pytest.mark.parametrize(
    "edit",
    [
        lambda values: values.update(model="elsewhere"),
        lambda values: values["config"]["model"].update(path="elsewhere"),
        lambda values: values.update(seed=2),
        lambda values: values.update(prompt="a blue circle"),
        lambda values: values.update(negative_prompt="noise"),
        lambda values: values["config"]["guidance"].update(mask_seed=4),
        lambda values: values["masks"].pop(),
        lambda values: values["masks"][0].update(dropped=[1, 2]),
        lambda values: values.update(mask_seed=5),
        lambda values: values["config"]["guidance"].update(drop_ratio=0.3),
        lambda values: values["model_files"].update({"transformer/config.json": "0" * 64}),
    ],
)
def test_a_sidecar_that_contradicts_itself_or_the_model_is_not_reproduced(
    edit: Callable[[dict[str, Any]], Any], second: Engine, clip: Path, tmp_path: Path
) -> None:
    path = tmp_path / "clip.json"
    values = json.loads(clip.with_suffix(".json").read_text())
    edit(values)
    values["record_sha256"] = record_digest(values)
    path.write_text(json.dumps(values))
    shutil.copy(clip, tmp_path / "clip.mp4")
    with pytest.raises(InputError, match=r"expected .* and config\.|contradicts itself|is not the one that made"):
        again(second, tmp_path / "clip.mp4")
