"""From the command line to files: one rank in this process, two and three ranks under torchrun."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import jsonschema
import OpenImageIO
import pytest
import torch
import yaml
from diffusers import FlowMatchHeunDiscreteScheduler
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import NUM_BLOCKS, PROMPT, tiny_config

from s2video.cli.main import main
from s2video.guidance.equations import Predictions
from s2video.guidance.masks import step_masks
from s2video.media.video import probe_video, read_video
from s2video.models.checkpoint import Checkpoint
from s2video.records.sidecar import latents_record
from s2video.sampling import denoiser as denoising
from s2video.sampling.forward import predict

REPOSITORY = Path(__file__).parents[2]
STEPS = 6


def write_config(checkpoint: Path, folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config(checkpoint).model_dump(mode="json")), encoding="utf-8")
    return path


@pytest.fixture
def config_file(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return write_config(tiny_checkpoint, tmp_path)


def generate(config_file: Path, output: Path, *arguments: str) -> int:
    words = ["generate", "--config", str(config_file), "--output", str(output), "--plain", *arguments]
    return main(words)


def test_one_video_with_all_its_files(
    config_file: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "made" / "clip.mp4"
    assert generate(config_file, output, "--prompt", PROMPT, "--seed", "5", "--keep-latents") == 0
    assert capsys.readouterr().out.strip() == str(output)
    assert sorted(p.name for p in output.parent.iterdir()) == ["clip.json", "clip.latents.safetensors", "clip.mp4"]

    info = probe_video(output)
    assert (info.width, info.height, info.num_frames, info.fps) == (112, 80, 17, 16)
    assert info.metadata["title"] == PROMPT and "seed 5" in info.metadata["comment"]

    sidecar = json.loads(output.with_suffix(".json").read_text())
    assert sidecar["prompt"] == PROMPT and sidecar["seed"] == 5
    spec = tiny_config(tiny_checkpoint).guidance.mask_spec()
    expected = [
        {"step": step, "draw": 0, "dropped": list(mask)}
        for step in range(STEPS)
        for mask in step_masks(spec, num_blocks=NUM_BLOCKS, seed=5, step=step, num_steps=STEPS)
    ]
    assert sidecar["masks"] == expected and [m["step"] for m in expected] == [1, 2, 3, 4]
    assert sidecar["weights"] == Checkpoint(tiny_checkpoint).weight_digests()
    assert sidecar["config"]["guidance"]["s2_scale"] == 0.25
    mesh = {"world_size": 1, "ring": 1, "ulysses": 1, "branch": 1, "backend": None, "device": "cpu"}
    assert sidecar["mesh"] == mesh
    assert sidecar["versions"]["torch"] == torch.__version__
    assert sidecar["timings"]["denoise_seconds"] > 0
    jsonschema.validate(sidecar, json.loads((REPOSITORY / "docs" / "sidecar.schema.json").read_text()))
    with safe_open(output.with_name("clip.latents.safetensors"), framework="pt") as file:
        assert sidecar["latents"] == latents_record(file.get_tensor("latents")).model_dump(mode="json")
    assert sidecar["output"]["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()

    with safe_open(output.with_name("clip.latents.safetensors"), framework="pt") as file:
        assert list(file.keys()) == ["latents"]
        assert file.get_tensor("latents").shape == (1, 16, 5, 10, 14)


def test_the_sidecar_lists_the_masks_that_were_drawn(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a scheduler that takes more steps than it was asked for: Heun's takes 2n − 1."""
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "heun")
    FlowMatchHeunDiscreteScheduler(shift=3.0).save_pretrained(checkpoint / "scheduler")
    index = json.loads((checkpoint / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchHeunDiscreteScheduler"]
    (checkpoint / "model_index.json").write_text(json.dumps(index))
    drawn: list[tuple[int, ...]] = []

    def spying(*arguments: Any, **keywords: Any) -> Predictions:
        drawn.extend(tuple(mask) for mask in keywords["masks"])
        return predict(*arguments, **keywords)

    monkeypatch.setattr(denoising, "predict", spying)
    output = tmp_path / "clip.mp4"
    assert generate(write_config(checkpoint, tmp_path), output, "--prompt", PROMPT, "--seed", "5") == 0
    sidecar = json.loads(output.with_suffix(".json").read_text())
    assert sidecar["num_steps"] == 2 * STEPS - 1
    assert [tuple(mask["dropped"]) for mask in sidecar["masks"]] == drawn
    assert max(mask["step"] for mask in sidecar["masks"]) >= STEPS  # the bug was seen from there on
    assert main(["inspect", str(output)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith("block ")]
    assert {len(row.split()[-1]) for row in rows} == {2 * STEPS - 1}
    assert main(["page", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 0
    assert f'viewBox="0 0 {2 * STEPS - 1} {NUM_BLOCKS}"' in (tmp_path / "page.html").read_text()


def test_decode_makes_the_same_video(config_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "clip.mp4"
    assert generate(config_file, output, "--prompt", PROMPT, "--keep-latents") == 0
    again = tmp_path / "again.mp4"
    assert main(["decode", str(tmp_path / "clip.latents.safetensors"), "--output", str(again)]) == 0
    assert torch.equal(read_video(output), read_video(again))
    assert probe_video(again).metadata["title"] == PROMPT


def test_a_sequence_goes_the_same_way(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """generate, --resume and decode, with a sequence in the place of the file."""
    made = tmp_path / "made"
    arguments = ["--prompt", PROMPT, "--seed", "5", "--keep-latents", "--set", "sampling.num_inference_steps=2"]
    arguments += ["--set", "output.timecode='01:00:00:00'"]
    assert generate(config_file, made / "s{seed}.{ext}", *arguments, "--codec", "exr") == 0
    assert capsys.readouterr().out.strip() == str(made / "s5")
    assert sorted(p.name for p in made.iterdir()) == ["s5", "s5.json", "s5.latents.safetensors"]
    frames = sorted((made / "s5").iterdir())
    assert [p.name for p in frames] == [f"s5.{number}.exr" for number in range(1001, 1018)]
    header = OpenImageIO.ImageInput.open(str(frames[0])).spec()
    assert (header.getattribute("prompt"), header.getattribute("seed")) == (PROMPT, "5")
    assert json.loads((made / "s5.json").read_text())["config"]["output"]["codec"] == "exr"

    before = [p.stat().st_mtime_ns for p in frames]
    assert generate(config_file, made / "s5.exr", *arguments, "--resume") == 0
    assert [p.stat().st_mtime_ns for p in frames] == before
    assert generate(config_file, made / "s5.mp4", *arguments, "--resume") == 2
    assert "s5.json: expected no file, or the sidecar of s5.mp4, got that of s5" in capsys.readouterr().err

    latents = str(made / "s5.latents.safetensors")
    assert main(["decode", latents, "--output", str(tmp_path / "again.exr")]) == 0
    for path, again in zip(frames, sorted((tmp_path / "again").iterdir()), strict=True):
        first, second = (OpenImageIO.ImageInput.open(str(name)).read_image(OpenImageIO.HALF) for name in (path, again))
        assert (first == second).all()
    assert main(["decode", latents, "--codec", "png"]) == 2  # would be the same folder
    assert "s5.1001.exr" in capsys.readouterr().err and sorted((made / "s5").iterdir()) == frames


def test_many_videos_are_named_and_seeded_in_order(config_file: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n\na large blue square\n", encoding="utf-8")
    output = tmp_path / "made" / "clip.mp4"
    arguments = ["--prompt-file", str(prompts), "--num-videos", "2", "--seed", "8", "--set", "sampling.num_frames=1"]
    assert generate(config_file, output, *arguments, "--set", "sampling.num_inference_steps=2") == 0
    made = [json.loads((output.parent / f"clip-{i:03d}.json").read_text()) for i in range(4)]
    assert [(m["prompt"], m["seed"]) for m in made] == [
        (prompt, seed) for prompt in (PROMPT, "a large blue square") for seed in (8, 9)
    ]
    assert len(list(output.parent.glob("*.mp4"))) == 4 and not list(output.parent.glob("*.safetensors"))


def test_latents_survive_a_failed_decode(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **more: object) -> None:
        raise RuntimeError("decoder out of order")

    monkeypatch.setattr("s2video.engine.make_video.write_videos_meanwhile", broken)
    with pytest.raises(RuntimeError, match="out of order"):
        generate(config_file, tmp_path / "made" / "clip.mp4", "--prompt", PROMPT)
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["clip.latents.safetensors"]


def test_nan_names_the_step_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint whose file is whole and whose numbers are not."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "wan"))
    file = next((folder / "transformer").glob("*.safetensors"))
    weights = load_file(file)
    weights["proj_out.bias"][0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    code = generate(write_config(folder, tmp_path), tmp_path / "made" / "clip.mp4", "--prompt", PROMPT)
    assert code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("s2video: error: step 1 of 6") and "NaN or infinite" in lines[-1]
    assert not (tmp_path / "made").exists() or not list((tmp_path / "made").iterdir())


def torchrun(world_size: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    command += ["launch/t2v.py", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.mark.parametrize("world_size", [2, 3])
def test_torchrun_makes_the_video_of_one_rank(config_file: Path, tmp_path: Path, world_size: int) -> None:
    """Latents within 1e-4 of one rank's; the files are written once, by the main rank."""
    arguments = ["--config", str(config_file), "--prompt", PROMPT, "--seed", "5", "--keep-latents"]
    done = torchrun(world_size, *arguments, "--output", str(tmp_path / "many" / "clip.mp4"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "many" / "clip.mp4")]
    assert done.stderr.count(f"step {STEPS}/{STEPS}") == 1
    assert main(["generate", *arguments, "--output", str(tmp_path / "one" / "clip.mp4")]) == 0
    latents = []
    for folder in ("one", "many"):
        with safe_open(tmp_path / folder / "clip.latents.safetensors", framework="pt") as file:
            latents.append(file.get_tensor("latents"))
    torch.testing.assert_close(latents[1], latents[0], atol=1e-4, rtol=0)
    sidecars = [json.loads((tmp_path / folder / "clip.json").read_text()) for folder in ("one", "many")]
    assert sidecars[1]["mesh"] == {
        "world_size": world_size,
        "ring": 1,
        "ulysses": world_size,
        "branch": 1,
        "backend": "gloo",
        "device": "cpu",
    }
    assert sidecars[0]["masks"] == sidecars[1]["masks"]


def test_bad_input_under_bare_torchrun(config_file: Path, tmp_path: Path) -> None:
    """The workers exit with 2, one of them says why; torchrun's own report comes after that line."""
    done = torchrun(2, "--config", str(config_file), "--prompt", PROMPT, "--set", "guidance.s2_scal=1")
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("s2video: error:")]
    assert len(ours) == 1 and "guidance.s2_scale" in ours[0]
    assert "exitcode  : 2" in done.stderr
    assert not list(tmp_path.glob("*.mp4"))


def has_sound(path: Path) -> bool:
    return b"mp4a" in path.read_bytes()  # the box of an AAC track


def test_decode_takes_sound_from_the_user_alone(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = tmp_path / "a.wav"
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        file.writeframes(b"\0\1" * 8000)
    arguments = ["--prompt", PROMPT, "--keep-latents", "--set", f"output.audio={sound}"]
    assert generate(config_file, tmp_path / "clip.mp4", *arguments) == 0
    assert has_sound(tmp_path / "clip.mp4")
    latents, again = str(tmp_path / "clip.latents.safetensors"), tmp_path / "again.mp4"
    capsys.readouterr()
    assert main(["decode", latents, "--output", str(again)]) == 0
    assert not has_sound(again)
    assert capsys.readouterr().err.count("so that sound is left out; --audio adds one") == 1
    assert main(["decode", latents, "--output", str(again), "--audio", str(sound), "--overwrite"]) == 0
    assert has_sound(again)
    assert "left out" not in capsys.readouterr().err
