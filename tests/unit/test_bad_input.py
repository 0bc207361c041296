"""Invalid input: exit code 2, one line, no traceback, nothing written, no process started."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import MAX_SEQUENCE_LENGTH, NUM_BLOCKS, SIZE

from s2video.cli.main import main
from s2video.system import launcher

GENERATE = ("generate",)
LAUNCH = ("launch", "--nproc", "2", "t2v")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


class Workspace:
    """A folder with a valid config, which each case makes invalid."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder = folder
        self.checkpoint = checkpoint
        self.config = folder / "config.yaml"
        self.output = folder / "out" / "video.mp4"
        self.values: dict[str, Any] = {
            "model": {"path": str(checkpoint), "device": "cpu"},
            "prompt": "a red circle",
            "sampling": {**SIZE, "num_inference_steps": 2, "max_sequence_length": MAX_SEQUENCE_LENGTH},
        }
        self.write_config(yaml.safe_dump(self.values))

    def write_config(self, text: str) -> None:
        self.config.write_text(text, encoding="utf-8")

    def file(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.write_bytes(content)
        return str(path)

    def damaged_checkpoint(self, damage: Callable[[Path], None]) -> list[str]:
        copy = self.folder / "checkpoint"
        shutil.copytree(self.checkpoint, copy)
        damage(copy)
        return ["--set", f"model.path={copy}"]

    def snapshot(self) -> dict[str, int]:
        return {str(p.relative_to(self.folder)): p.stat().st_size for p in self.folder.rglob("*") if p.is_file()}


@pytest.fixture
def workspace(tmp_path: Path, tiny_checkpoint: Path) -> Workspace:
    return Workspace(tmp_path, tiny_checkpoint)


def setting(*overrides: str) -> Callable[[Workspace], list[str]]:
    return lambda _: [word for override in overrides for word in ("--set", override)]


def words(*arguments: str) -> Callable[[Workspace], list[str]]:
    return lambda _: list(arguments)


def config_text(text: str) -> Callable[[Workspace], list[str]]:
    def case(workspace: Workspace) -> list[str]:
        workspace.write_config(text)
        return []

    return case


def no_config(workspace: Workspace) -> list[str]:
    workspace.config.unlink()
    return []


def config_with(**values: Any) -> Callable[[Workspace], list[str]]:
    def case(workspace: Workspace) -> list[str]:
        workspace.write_config(yaml.safe_dump({**workspace.values, **values}))
        return []

    return case


def output(path: str) -> Callable[[Workspace], list[str]]:
    return lambda workspace: ["--output", str(workspace.folder / path)]


def prompt_file(content: bytes) -> Callable[[Workspace], list[str]]:
    return lambda workspace: ["--prompt-file", workspace.file("prompts.txt", content)]


def checkpoint(damage: Callable[[Path], None]) -> Callable[[Workspace], list[str]]:
    return lambda workspace: workspace.damaged_checkpoint(damage)


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


NO_TENSORS = b"\x02" + b"\0" * 7 + b"{}"  # a complete safetensors file without tensors


def lora(content: bytes, more: str = "scale: 1") -> Callable[[Workspace], list[str]]:
    return lambda workspace: [
        "--set",
        f"model.lora=[{{path: {workspace.file('lora.safetensors', content)}, {more}}}]",
    ]


PICTURE = Path(__file__).parents[2] / "docs" / "images" / "shapes.png"
CASES: dict[str, tuple[Callable[[Workspace], list[str]], list[str]]] = {
    # LoRA
    "LoRA of no file": (setting("model.lora=[{path: no/such.safetensors}]"), ["model.lora", "no/such.safetensors"]),
    "LoRA of no folder": (setting("model.lora=[{path: ./none}]"), ["model.lora", "expected a folder", "got './none'"]),
    "LoRA without path": (setting("model.lora=[{scale: 1}]"), ["model.lora.0", "expected path"]),
    "LoRA that is no list": (setting("model.lora=x"), ["model.lora", "expected a list"]),
    "LoRA scale no number": (setting("model.lora=[{path: x, scale: strong}]"), ["model.lora.0.scale", "number"]),
    "LoRA damaged": (lora(b"\0" * 20), ["lora.safetensors", "safetensors file"]),
    "LoRA cut off": (lora(b"\x02" + b"\0" * 7 + b"{}x"), ["lora.safetensors", "expected 10 bytes, got 11"]),
    "LoRA of a second transformer": (
        lora(NO_TENSORS, "component: transformer_2"),
        ["expected component transformer", "got transformer_2"],
    ),
    "LoRA with sharded weights": (
        lambda workspace: [*lora(NO_TENSORS)(workspace), *setting("parallel.weights=fsdp")(workspace)],
        ["model.lora", "replicated", "fsdp"],
    ),
    # other guidance
    "unknown method": (setting("guidance.method=cfg++"), ["guidance.method", "'s2', 'cfg_zero_star', 'apg' or 'slg'"]),
    "S² and another": (setting("guidance.method=apg", "guidance.s2_scale=0.4"), ["method is apg", "s2_scale 0.4"]),
    "older S² and another": (setting("guidance.method=apg", "guidance.form=original"), ["method is apg", "original"]),
    "zeros that are rescaled": (
        setting("guidance.method=cfg_zero_star", "guidance.rescale=0.5"),
        ["guidance", "expected rescale 0, got 0.5", "zero_init_steps"],
    ),
    "SLG without layers": (setting("guidance.method=slg"), ["guidance", "slg.layers"]),
    "SLG layers outside": (
        setting("guidance.method=slg", f"guidance.slg.layers=[{NUM_BLOCKS}]"),
        ["guidance.slg.layers", f"0 to {NUM_BLOCKS - 1}", f"got {NUM_BLOCKS}"],
    ),
    "SLG window": (setting("guidance.slg.start=0.5"), ["guidance.slg", "start <= stop", "got start 0.5 and stop 0.2"]),
    # arguments
    "no such option": (words("--promt", "x"), ["--promt"]),
    "option without value": (words("--seed"), ["--seed"]),
    "seed not whole": (words("--seed", "1.5"), ["--seed", "1.5"]),
    "seed negative": (words("--seed", "-1"), ["sampling.seed", ">= 0"]),
    "seed too big": (words("--seed", str(2**63)), ["sampling.seed", "<"]),
    "last seed too big": (words("--seed", str(2**63 - 1), "--num-videos", "2"), ["--num-videos", "seed"]),
    "no videos": (words("--num-videos", "0"), ["--num-videos", ">= 1"]),
    "prompt and prompt file": (words("--prompt", "x", "--prompt-file", "y"), ["not allowed with"]),
    "empty prompt": (words("--prompt", "  "), ["empty prompt"]),
    "prompt not text": (words("--prompt", "caf\udce9"), ["prompt", "text"]),
    "negative prompt not text": (words("--negative-prompt", "\udce9"), ["negative_prompt", "text"]),
    "prompt file missing": (words("--prompt-file", "/nowhere/prompts.txt"), ["--prompt-file", "No such file"]),
    "prompt file a folder": (lambda w: ["--prompt-file", str(w.folder)], ["--prompt-file", "directory"]),
    "prompt file empty": (prompt_file(b"\n  \n"), ["--prompt-file", "empty"]),
    "prompt file not UTF-8": (prompt_file(b"a caf\xe9\n"), ["--prompt-file", "UTF-8"]),
    "prompt file with NUL": (prompt_file(b"a\0b\n"), ["--prompt-file", "NUL"]),
    # output
    "output a folder": (
        lambda w: ["--output", str(_made(w.folder / "folder.mp4"))],
        ["expected a regular file or none, got a folder"],
    ),
    "output under a file": (output("config.yaml/video.mp4"), ["output", "Not a directory"]),
    "output folder not writable": (words("--output", "/proc/s2video/video.mp4"), ["output", "cannot be written"]),
    "output name too long": (output("x" * 300 + ".mp4"), ["output", "too long"]),
    "output not MP4": (output("video.avi"), [".mp4", "video.avi"]),
    "output without suffix": (output("video"), [".mp4"]),
    "codec unknown": (words("--codec", "divx"), ["--codec", "h265"]),
    "codec and suffix": (words("--codec", "prores"), [".mov", "video.mp4"]),
    "codec and suffix in the config": (setting("output.codec=png"), [".png", "video.mp4"]),
    "picture too small": (
        lambda w: ["--codec", "dnxhr", "--output", str(w.output.with_suffix(".mov"))],
        ["dnxhr: expected at least 256x120 px"],
    ),
    "no such sound": (words("--set", "output.audio=/nowhere.wav"), ["output.audio", "/nowhere.wav"]),
    "sound in a sequence": (
        lambda w: ["--set", "output.audio=a.wav", "--output", str(w.output.with_suffix(".exr"))],
        ["cannot hold sound"],
    ),
    "timecode not quoted": (setting("output.timecode=10:00:00:00"), ["10:00:00:00 as", "quote it"]),
    "timecode impossible": (setting("output.timecode='01:00:00:16'"), ["at most 23:59:59:15"]),
    "folder of another": (
        lambda w: ["--output", str(_filled(w.folder / "x").with_suffix(".exr"))],
        ["x: expected only frames of that sequence in this folder, got 'plan.doc'"],
    ),
    "output template": (output("{promt}.{ext}"), ["unknown field 'promt'", "did you mean 'prompt'"]),
    "output empty": (words("--output", ""), ["output.path"]),
    # config file
    "config missing": (no_config, ["does not exist"]),
    "config empty": (config_text(""), ["is empty"]),
    "config a list": (config_text("[1, 2]"), ["expected a mapping"]),
    "config with a tab": (config_text("model:\n\tpath: x"), ["line 2", "tabs"]),
    "config not YAML": (config_text("prompt: ["), ["not usable as YAML"]),
    "unknown key": (config_with(zzz=1), ["unknown key 'zzz'"]),
    "near-miss key": (config_with(guidance={"s2_scael": 1}), ["did you mean 'guidance.s2_scale'"]),
    "near-miss override": (setting("guidence.s2_scale=1"), ["did you mean 'guidance.s2_scale'"]),
    "override without value": (setting("guidance.s2_scale"), ["key=value"]),
    "section not a mapping": (config_with(guidance=3), ["guidance: expected a mapping"]),
    "prompt a number": (config_with(prompt=12), ["prompt: expected text", "quote it"]),
    "prompt a switch": (setting("prompt=on"), ["prompt: expected text", "quote it"]),
    "no prompt": (config_with(prompt=None), ["no prompt"]),
    # values
    "width not whole": (setting("sampling.width=64.5"), ["sampling.width: expected a whole number"]),
    "steps a switch": (setting("sampling.num_inference_steps=true"), ["expected a whole number"]),
    "no steps": (setting("sampling.num_inference_steps=0"), ["sampling.num_inference_steps", ">= 1"]),
    "zero frames": (setting("sampling.num_frames=0"), ["sampling.num_frames", ">= 1"]),
    "ω NaN": (setting("guidance.s2_scale=.nan"), ["guidance.s2_scale: expected a finite number"]),
    "ω infinite": (setting("guidance.s2_scale=.inf"), ["guidance.s2_scale: expected a finite number"]),
    "ω negative": (setting("guidance.s2_scale=-0.1"), ["guidance.s2_scale", ">= 0"]),
    "λ text": (setting("guidance.cfg_scale=strong"), ["guidance.cfg_scale: expected a number"]),
    "form unknown": (setting("guidance.form=naive"), ["'deviation' or 'original'"]),
    "window reversed": (setting("guidance.window=[0.9, 0.1]"), ["guidance.window", "ascending"]),
    "window outside": (setting("guidance.window=[0.1, 1.1]"), ["guidance.window.1", "<= 1"]),
    "no draws": (setting("guidance.num_draws=0"), ["guidance.num_draws", ">= 1"]),
    "flow shift zero": (setting("sampling.flow_shift=0"), ["sampling.flow_shift", "> 0"]),
    "dtype unknown": (setting("model.dtype=fp16"), ["model.dtype", "'float16'"]),
    "backend unknown": (setting("parallel.backend=mpi"), ["parallel.backend", "'gloo'"]),
    "fps zero": (setting("output.fps=0"), ["output.fps"]),
    "fps text": (setting("output.fps=fast"), ["output.fps"]),
    "crf too large": (setting("output.crf=99"), ["output.crf", "<= 51"]),
    # beyond the limits of the model or the ranks
    "width not a multiple": (setting("sampling.width=100"), ["sampling.width", "multiple of 16", "96 and 112"]),
    "height too small": (setting("sampling.height=8"), ["sampling.height", "nearest is 16"]),
    "width beyond the positions": (setting("sampling.width=1040"), ["sampling.width", "at most 1024"]),
    "frames not a multiple": (setting("sampling.num_frames=16"), ["sampling.num_frames", "13 and 17"]),
    "frames beyond the positions": (setting("sampling.num_frames=257"), ["sampling.num_frames", "at most 253"]),
    "never_drop outside": (setting(f"guidance.never_drop=[{NUM_BLOCKS}]"), ["never_drop", f"0 to {NUM_BLOCKS - 1}"]),
    "band outside": (setting(f"guidance.band=[1, {NUM_BLOCKS}]"), ["guidance.band", f"0 to {NUM_BLOCKS - 1}"]),
    "drop_count too large": (setting(f"guidance.drop_count={NUM_BLOCKS}"), ["drop_count", f"at most {NUM_BLOCKS - 1}"]),
    "ulysses not the world": (setting("parallel.ulysses=3"), ["ulysses 3", "number of ranks"]),
    "ring not the world": (setting("parallel.ring=3"), ["ring 3", "number of ranks"]),
    "ring zero": (setting("parallel.ring=0"), ["parallel.ring", ">= 1"]),
    "nccl on the CPU": (setting("parallel.backend=nccl"), ["nccl", "cpu"]),
    "decode mode unknown": (setting("parallel.decode=strips"), ["parallel.decode", "'sharded'"]),
    "attention backend unknown": (setting("model.attention_backend=fast"), ["attention_backend", "native"]),
    # images
    "image where none is taken": (words("--image", str(PICTURE)), ["image: expected none"]),
    "image in the config": (config_with(image=str(PICTURE)), ["image: expected none"]),
    "last image alone": (words("--last-image", "x.png"), ["last_image", "--image"]),
    "image a number": (setting("image=3"), ["image: expected text"]),
    # checkpoint
    "checkpoint missing": (setting("model.path=/nowhere/model"), ["/nowhere/model"]),
    "checkpoint a word": (setting("model.path=shapes"), ["shapes"]),
    "checkpoint an empty folder": (
        lambda w: ["--set", f"model.path={_made(w.folder / 'empty')}"],
        ["model_index.json"],
    ),
    "component missing": (checkpoint(lambda c: shutil.rmtree(c / "vae")), ["vae"]),
    "config.json missing": (checkpoint(lambda c: (c / "vae/config.json").unlink()), ["config.json"]),
    "config.json corrupt": (checkpoint(lambda c: truncate(c / "transformer/config.json", 20)), ["config.json"]),
    "config.json not an object": (checkpoint(lambda c: _write(c / "vae/config.json", "[]")), ["config.json"]),
    "config.json with a wrong value": (
        checkpoint(lambda c: edit_json(c / "transformer/config.json", num_layers="six")),
        ["num_layers", "'six'"],
    ),
    "patch size wrong": (
        checkpoint(lambda c: edit_json(c / "transformer/config.json", patch_size=[2, 2])),
        ["patch_size"],
    ),
    "another pipeline": (checkpoint(lambda c: edit_json(c / "model_index.json", _class_name="FluxPipeline")), ["Flux"]),
    "second transformer missing": (
        checkpoint(lambda c: edit_json(c / "model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"])),
        ["expected a folder transformer_2/"],
    ),
    "boundary of a single transformer": (
        checkpoint(lambda c: edit_json(c / "model_index.json", boundary_ratio=0.875)),
        ["boundary_ratio", "expected null", "got 0.875"],
    ),
    "scale of a second transformer": (
        setting("guidance.cfg_scale_2=3"),
        ["guidance.cfg_scale_2: expected null", "got 3"],
    ),
    "a single transformer offloaded": (setting("model.offload_experts=true"), ["model.offload_experts", "streamed"]),
    "weights missing": (checkpoint(lambda c: (c / WEIGHTS).unlink()), ["transformer", "safetensors"]),
    "weights empty": (checkpoint(lambda c: truncate(c / WEIGHTS, 0)), [WEIGHTS]),
    "weights cut off": (checkpoint(lambda c: truncate(c / WEIGHTS, 5000)), [WEIGHTS]),
    "weights short of a byte": (checkpoint(lambda c: truncate(c / WEIGHTS, -1)), [WEIGHTS]),
    "weights not safetensors": (checkpoint(lambda c: _write(c / WEIGHTS, "version https://git-lfs")), [WEIGHTS]),
}


def _filled(folder: Path) -> Path:
    (_made(folder) / "plan.doc").touch()
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 40


def test_nothing_is_wrong_with_the_unspoilt_workspace(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workspace itself is valid, so the cases below fail for their own reason."""
    started: list[list[str]] = []
    monkeypatch.setattr("s2video.cli.generate.launch", lambda plan, arguments: started.append(arguments) or 0)
    assert main([*LAUNCH, "--config", str(workspace.config), "--output", str(workspace.output)]) == 0
    assert started == [["generate", "--config", str(workspace.config), "--output", str(workspace.output)]]


@pytest.mark.parametrize("command", [GENERATE, LAUNCH], ids=["generate", "launch"])
@pytest.mark.parametrize("name", CASES)
def test_bad_input(
    name: str,
    command: tuple[str, ...],
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_process(*arguments: object, **options: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(launcher.subprocess, "Popen", no_process)
    spoil, fragments = CASES[name]
    arguments = spoil(workspace)
    output = [] if "--output" in arguments else ["--output", str(workspace.output)]
    before = workspace.snapshot()

    code = main([*command, "--config", str(workspace.config), *output, *arguments])

    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("s2video: error: ")
    assert captured.err.count("\n") == 1 and captured.err.endswith("\n")
    assert "Traceback" not in captured.err
    for fragment in fragments:
        assert fragment in captured.err
    assert workspace.snapshot() == before
    assert not workspace.output.parent.exists()


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "required"),
        (["genrate"], "genrate"),
        (["generate", "--config", "shape"], "did you mean shapes"),
        (["launch", "t2v"], "--nproc"),
        (["generate", "--set", "sampling.width=32", "sampling.height=32"], "write --set before each KEY=VALUE"),
        (["launch", "--nproc", "two", "t2v"], "--nproc"),
        (["launch", "--nproc", "2", "v2v"], "v2v"),
        (["launch", "--nproc", "2", "i2v", "--model", "qqq"], "expected a name from s2video models"),
        (["launch", "--nproc", "0", "t2v", "--config", "x"], "--nproc"),
        (["launch", "--nproc", "2", "--nnodes", "2", "t2v", "--config", "x"], "--rdzv-endpoint"),
        *(
            (["launch", "--nproc", "2", "--nnodes", "2", "--rdzv-endpoint", junk, "selftest"], "expected HOST:PORT")
            for junk in ("", ":1", "a b:1", "http://host:1", "host:port", "host:70000", "host:1:2", "host\n:1", "::1")
        ),
        (["launch", "--nproc", "1000000000", "selftest"], "expected values from 1 to 1024 and 10000"),
        (["launch", "--nproc", "2", "--nnodes", "1000000000", "selftest"], "expected values from 1 to 1024 and 10000"),
        (["launch", "--nproc", "2", "--node-rank", "1", "t2v", "--config", "x"], "--node-rank"),
        (["decode"], "LATENTS"),
        (["decode", "/nowhere/x.latents.safetensors"], "no such file"),
        (["decode", __file__], ".safetensors"),
    ],
)
def test_bad_command_line(arguments: list[str], fragment: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("s2video: error: ") and error.count("\n") == 1
    assert fragment in error


def test_latents_that_cannot_be_decoded(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    latents = workspace.file("x.latents.safetensors", b"not safetensors")
    before = workspace.snapshot()
    assert main(["decode", latents]) == 2
    error = capsys.readouterr().err
    assert error.startswith("s2video: error: ") and error.count("\n") == 1
    assert workspace.snapshot() == before


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_under_torchrun_one_rank_speaks(
    rank: str, lines: int, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2")]:
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("s2video.cli.main.follow_launcher", lambda: None)  # the tests' parent launches no ranks
    assert main(["generate", "--config", str(workspace.config), "--set", "sampling.width=100"]) == 2
    assert capsys.readouterr().err.count("\n") == lines


@pytest.mark.parametrize("command", [GENERATE, LAUNCH], ids=["generate", "launch"])
def test_exit_code_of_the_process(command: tuple[str, ...], workspace: Workspace) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    finished = subprocess.run(
        [sys.executable, "-m", "s2video", *command, "--config", str(workspace.config), "--set", "s2_scale=1"],
        capture_output=True,
        text=True,
        cwd=workspace.folder,
        env=environment,
        timeout=120,
    )
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("s2video: error: ") and finished.stderr.count("\n") == 1
    assert "guidance.s2_scale" in finished.stderr


def test_an_unknown_backend_in_the_environment(workspace: Workspace) -> None:
    """diffusers fails at it while it is imported, whatever the command."""
    finished = subprocess.run(
        [sys.executable, "-m", "s2video", "selftest"],
        capture_output=True,
        text=True,
        cwd=workspace.folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "DIFFUSERS_ATTN_BACKEND": "fast"},
        timeout=120,
    )
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1
    assert "DIFFUSERS_ATTN_BACKEND: expected" in finished.stderr and "got 'fast'" in finished.stderr


def test_an_image_is_read_before_a_model_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("s2video.cli.generate.open_checkpoint", lambda *_: pytest.fail("the model is opened"))
    assert main(["generate", "--model", "wan2.1-i2v-14b-480p", "--prompt", "a", "--image", "/nowhere.png"]) == 2
    assert "image /nowhere.png: cannot be read" in capsys.readouterr().err
