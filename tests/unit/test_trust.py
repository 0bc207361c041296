"""A data file never starts a program, chooses where to write, or has something downloaded; see docs/security.md."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from sidecar_helpers import made_video

from s2video.batch.shots import _is_text
from s2video.cli.main import main
from s2video.config.marks import settings_that_name
from s2video.config.run import RunConfig
from s2video.config.text import dotted_keys
from s2video.errors import InputError
from s2video.models.checkpoint import Checkpoint, open_checkpoint
from s2video.models.loading import load_conditioners, load_scheduler, load_vae
from s2video.records.sidecar import save_latents
from s2video.records.trust import config_from_file

NO_NAMES = {
    "prompt",
    "negative_prompt",
    "output.timecode",
    "output.reel",
    "output.shot",
    "output.version",
}  # stays text


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that leaves a trace when something starts it."""
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\ntouch '{tmp_path}/started'\nexit 1\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of the Hub's client that may use the network; each fails as it does without one."""
    calls: list[dict[str, Any]] = []

    def snapshot_download(path: str, **options: Any) -> str:
        if not options.get("local_files_only"):
            calls.append({"path": path, **options})
        raise huggingface_hub.errors.LocalEntryNotFoundError("not here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def foreign_latents(path: Path, **changes: Any) -> Path:
    config = RunConfig(prompt="x").patched(changes).model_dump(mode="json")
    save_latents(torch.zeros(1, 16, 1, 8, 8), path, {"prompt": "x", "seed": 1, "config": config})
    return path


def test_every_text_setting_says_what_it_names() -> None:
    """A new setting of type text has to choose: a mark in `config/sections.py`, or a line in NO_NAMES."""
    assert {key for key in dotted_keys(RunConfig) if _is_text(key)} == NO_NAMES | {
        key for key, kind in settings_that_name().items() if kind not in ("lora", "targets", "files")
    }


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".png"])
def test_latents_start_no_program(program: Path, tmp_path: Path, suffix: str) -> None:
    latents = foreign_latents(tmp_path / "x.latents.safetensors", **{"output.ffmpeg": str(program)})
    main(["decode", str(latents), "--output", str(tmp_path / f"y{suffix}")])
    assert not (tmp_path / "started").exists()


def test_the_ffmpeg_of_the_user_counts(program: Path, tmp_path: Path) -> None:
    latents = foreign_latents(tmp_path / "x.latents.safetensors")
    assert main(["decode", str(latents), "--output", str(tmp_path / "y.mp4"), "--ffmpeg", str(program)]) == 2
    assert (tmp_path / "started").exists()


def test_a_sidecar_starts_no_program(program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_video(tmp_path / "clip.mp4")
    edit_config(tmp_path / "clip.json", {"output.ffmpeg": str(program), "model.path": str(tmp_path / "no-model")})
    assert main(["reproduce", str(tmp_path / "clip.json"), "--output", str(tmp_path / "y.mp4")]) == 2
    assert not (tmp_path / "started").exists()
    assert "output.ffmpeg" in capsys.readouterr().err


def edit_config(path: Path, changes: dict[str, Any]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    values["config"] = RunConfig.model_validate(values["config"]).patched(changes).model_dump(mode="json")
    values["model"] = values["config"]["model"]["path"]
    path.write_text(json.dumps(values), encoding="utf-8")


def test_nothing_is_downloaded_unless_the_user_names_it(
    tmp_path: Path, no_download: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    latents = foreign_latents(tmp_path / "x.latents.safetensors", **{"model.path": "evil/model"})
    made_video(tmp_path / "clip.mp4")
    edit_config(tmp_path / "clip.json", {"model.path": "evil/model", "model.revision": "refs/pr/1"})
    decode = ["decode", str(latents), "--output", str(tmp_path / "y.mp4")]
    for command in (decode, ["reproduce", str(tmp_path / "clip.json")]):
        assert main(command) == 2
        assert no_download == [] and "--model evil/model" in capsys.readouterr().err
        assert main([*command, "--model", "good/model"]) == 2
        (call,) = no_download
        assert (call["path"], call["revision"]) == ("good/model", None)
        no_download.clear()


def test_what_is_left_of_a_foreign_config(tmp_path: Path) -> None:
    changes = {
        "output": {"ffmpeg": "/bin/x", "audio": "/etc/passwd", "path": "/etc/cron.d/x.mp4", "crf": 7},
        "model.attention_backend": "flash_hub",
    }
    config, notes = config_from_file(RunConfig().patched(changes), "x.json")
    assert (config.output.ffmpeg, config.output.audio, config.output.path) == (None, None, "out.mp4")
    assert config.model.attention_backend is None and config.output.crf == 7
    assert set(notes) == {"output.ffmpeg", "output.audio", "model.attention_backend"}
    config, notes = config_from_file(RunConfig().patched(changes), "x.json", {"output.audio": "mine.wav"})
    assert config.output.audio == "mine.wav" and "output.audio" not in notes
    assert config_from_file(RunConfig().patched({"model.attention_backend": "native"}), "x")[0].model.attention_backend


@pytest.mark.parametrize("path", ["evil/lora", "/dev/zero", "gone.safetensors", "~nobody/x", "x" * 5000])
@pytest.mark.parametrize("key", ["model.lora", "image"])
def test_inputs_are_files_on_this_machine(path: str, key: str) -> None:
    value: Any = [{"path": path}] if key == "model.lora" else path
    with pytest.raises(InputError, match=rf"x\.json: {key}: expected a file or a folder on this machine"):
        config_from_file(RunConfig().patched({key: value}), "x.json")


def copy_with(checkpoint: Path, folder: Path, file: str, changes: dict[str, Any]) -> Path:
    copied = Path(shutil.copytree(checkpoint, folder))
    values = json.loads((copied / file).read_text(encoding="utf-8"))
    (copied / file).write_text(json.dumps(values | changes), encoding="utf-8")
    return copied


@pytest.mark.parametrize("name", ["DiffusionPipeline", "AutoModel", "utils", "NoSuchScheduler", "__version__"])
def test_a_checkpoint_names_no_class_but_a_scheduler(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    changes = {"scheduler": ["diffusers", name]}
    checkpoint = Checkpoint(copy_with(tiny_checkpoint, tmp_path / "wan", "model_index.json", changes))
    with pytest.raises(InputError, match="scheduler: expected a scheduler of diffusers"):
        load_scheduler(checkpoint)


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": {"": "evil/kernel:attention"}},
        {"text_config": {"_attn_implementation_internal": "evil/kernel"}},
        {"_experts_implementation": "evil/kernel"},
    ],
)
def test_a_checkpoint_downloads_no_kernel(changes: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_with(tiny_checkpoint, tmp_path / "wan", "text_encoder/config.json", changes)
    with pytest.raises(InputError, match="for which code would be downloaded"):
        open_checkpoint(str(folder))
    plain = {"_attn_implementation": "sdpa", "_name_or_path": "google/umt5-xxl"}
    open_checkpoint(str(copy_with(tiny_checkpoint, tmp_path / "plain", "text_encoder/config.json", plain)))


def test_weights_of_other_formats_are_not_loaded(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Pickles that stand next to the safetensors files, and would leave a trace when something loaded them."""

    class Trace:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "started",)

    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "wan"))
    for component, name in (("vae", "diffusion_pytorch_model.bin"), ("text_encoder", "pytorch_model.bin")):
        (folder / component / name).write_bytes(pickle.dumps(Trace()))
    load_vae(Checkpoint(folder), torch.float32, torch.device("cpu"))
    load_conditioners(Checkpoint(folder), torch.float32)
    assert not (tmp_path / "started").exists()
