"""Boundaries where text becomes settings: YAML, tables of shots, prompts, the command line, the environment."""

import contextlib
import io
import json
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

from fuzzing.mutations import dumped, mutate_bytes, mutate_json, mutate_words
from fuzzing.trial import Finding, Target
from s2video.batch.checks import find_problems
from s2video.batch.run_file import load_batch
from s2video.cli import batch as batch_commands
from s2video.cli import generate as generate_commands
from s2video.cli.main import main
from s2video.config.run import RunConfig, build_config, parse_override
from s2video.config.text import dotted_keys, read_fraction
from s2video.engine.job import plan_jobs, read_prompt_file
from s2video.errors import InputError
from s2video.media.naming import render_name
from s2video.media.timecode import Timecode
from s2video.models.checkpoint import open_checkpoint
from s2video.models.limits import check_request
from s2video.models.recipes import load_config_with_note
from s2video.planning.cards import read_card
from s2video.system import json_reader, ranks
from s2video.system.files import user_path

CONFIG = """model: {path: shapes-wan, device: cpu}
prompt: "a large red circle moving left on a gray background"
sampling: {width: 64, height: 64, num_frames: 17, num_inference_steps: 4, seed: 7}
guidance:
  s2_scale: 0.25
  window: [0.1, 0.9]
  never_drop: [0]
parallel: {ulysses: null, branch: 1}
output: {path: out.mp4, fps: 23.976, timecode: "01:00:00:00"}
"""
RUN_FILE = """model: {path: shapes-wan}
sampling: &size {num_inference_steps: 2}
folder: out
shots:
  - a red circle
  - {prompt: a blue square, shot: two, guidance.drop_ratio: 0.2, fields.version: 3}
  - &third {prompt: a green triangle, sampling: {seed: 5}}
sweep: {guidance.s2_scale: [0, 0.25]}
seeds: 2
name: "{shot}{variant}_s{seed}.{ext}"
fields: {show: abc}
"""
TABLES = {
    "shots.csv": 'prompt,shot,guidance.s2_scale,output.fps\na red circle,one,0.5,24\n"a, b",two,,23.976\n',
    "shots.jsonl": '{"prompt": "a red circle", "sampling.seed": 3}\n"a blue square"\n'
    '{"prompt": "x", "guidance": {"s2_scale": 0.1}}\n',
    "shots.txt": "a red circle\n\na blue square\n",
}
CARD = "base: H100\nname: mine\nintra_gbs: 200\nmemory_gb: 80\n"


def texts(*values: str) -> tuple[bytes, ...]:
    return tuple(value.encode() for value in values)


def config_file(data: bytes, folder: Path) -> Any:
    path = folder / "config.yaml"
    path.write_bytes(data)
    config = load_config_with_note(str(path)).config
    for job in plan_jobs(config, [config.prompt or "a prompt"], 1):
        check_request(job, open_checkpoint("shapes-wan").info, world_size=1)
        job.output.spec(Path(job.output.path))
    return config


def set_option(data: bytes, folder: Path) -> Any:
    key, _, text = data.decode("utf-8", "surrogateescape").partition("=")
    return build_config({}).patched(parse_override(f"{key}={text}"))


def run_file(data: bytes, folder: Path) -> Any:
    (folder / "run.yaml").write_bytes(data)
    return _batch(folder / "run.yaml")


def shots(name: str) -> Callable[[bytes, Path], Any]:
    def run(data: bytes, folder: Path) -> Any:
        (folder / name).write_bytes(data)
        (folder / "run.yaml").write_text(f"shots: {name}\nmodel: {{path: shapes-wan}}\nfolder: out\n", "utf-8")
        return _batch(folder / "run.yaml")

    return run


def _batch(path: Path) -> Any:
    """What a dry run does before it loads a tokenizer; problems of single shots are as good as an InputError."""
    with contextlib.chdir(path.parent):
        batch = load_batch(path)
        problems = [*batch.problems, *find_problems(batch.jobs[:20], open_checkpoint, world_size=1, images=True)]
    if problems:
        raise InputError(problems[0])
    return batch


def prompt_file(data: bytes, folder: Path) -> Any:
    (folder / "prompts.txt").write_bytes(data)
    return plan_jobs(build_config({}), read_prompt_file(folder / "prompts.txt"), 2)


def card(data: bytes, folder: Path) -> Any:
    (folder / "card.yaml").write_bytes(data)
    return read_card(str(folder / "card.yaml"), [])


def rate_and_timecode(data: bytes, folder: Path) -> Any:
    rate, _, timecode = data.decode("utf-8", "replace").partition(" ")
    try:
        fps = read_fraction(rate)
    except ValueError as error:
        raise InputError(str(error)) from None
    if not fps > 0:
        raise Finding(f"a rate of {fps}")
    found = Timecode.parse(timecode, Fraction(fps))
    if str(found) != timecode:
        raise Finding(f"{timecode!r} became {found}")
    return found


def name_template(data: bytes, folder: Path) -> Any:
    template, _, prompt = data.decode("utf-8", "surrogateescape").partition("\n")
    made = render_name(template, {"prompt": prompt, "seed": 7, "shot": prompt, "ext": "mp4", "scale": 0.25})
    if made.is_absolute() or ".." in made.parts:
        raise Finding(f"{template!r} became {made}")
    return made


def path(data: bytes, folder: Path) -> Any:
    found = user_path(data.decode("utf-8", "surrogateescape"), "output")
    found.exists()  # no OSError for its name
    return found


def json_text(data: bytes, folder: Path) -> Any:
    value = json_reader.parse_json(data, "x")
    json.dumps(value)  # no RecursionError later
    return value


def environment(data: bytes, folder: Path) -> Any:
    values = json_reader.parse_json(data, "x")
    if not isinstance(values, dict):
        raise InputError("not an environment")
    made = {str(k): str(v) for k, v in values.items()}
    made = {k: v for k, v in made.items() if k and "=" not in k and "\0" not in k + v and _is_encodable(k + v)}
    with mock.patch.dict(os.environ, made, clear=True):
        ranks.speaks_for_host(), ranks.shown_rank(), ranks.host(), ranks.attempt()
        if ranks.launched_by_torchrun():
            ranks.check()
        return ranks.rank(), ranks.world_size(), ranks.local_world_size()


def _is_encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def command_line(data: bytes, folder: Path) -> Any:
    """Commands as far as they go without weights: generation, torchrun and supervision are not started."""
    line = [str(word).replace("FOLDER", str(folder)) for word in json.loads(data)]
    for name, text in {"config.yaml": CONFIG, "run.yaml": RUN_FILE, **TABLES}.items():
        (folder / name).write_text(text, "utf-8")
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.dict(os.environ, {"HOME": str(folder), "HF_HUB_OFFLINE": "1"}),
        mock.patch.object(generate_commands, "generate", lambda *_, **__: 0),
        mock.patch.object(generate_commands, "launch", lambda *_, **__: 0),
        mock.patch.object(batch_commands, "supervise", lambda *_, **__: None),
        mock.patch.object(batch_commands, "register", lambda *_, **__: None),
    ):
        try:
            code = main(line)
        except SystemExit as end:  # --help and --version
            code = int(end.code or 0)
    said = err.getvalue()
    if code not in (0, 2) or "Traceback" in said or max(map(len, said.splitlines()), default=0) > 4000:
        raise Finding(f"exit code {code}: {said[-2000:]}")
    if code == 2:
        raise InputError(said.strip().splitlines()[-1] if said.strip() else "")
    return "done"


LINES: Sequence[Sequence[str]] = [
    [
        "generate",
        "--model",
        "shapes-wan",
        "--prompt",
        "p",
        "--output",
        "v.mp4",
        "--seed",
        "3",
        "--set",
        "output.fps=24",
    ],
    [
        "generate",
        "--config",
        "config.yaml",
        "--num-videos",
        "2",
        "--output",
        "{prompt}_s{seed}.{ext}",
        "--codec",
        "png",
    ],
    ["generate", "--prompt-file", "shots.txt", "--negative-prompt", "n", "--keep-latents", "--resume", "--plain"],
    ["launch", "--nproc", "2", "--nnodes", "1", "--node-rank", "0", "t2v", "--model", "shapes-wan", "--prompt", "p"],
    ["launch", "--nproc", "2", "--rdzv-endpoint", "localhost:29500", "selftest", "--device", "cpu"],
    ["batch", "run.yaml", "--dry-run", "--set", "sampling.seed=3", "--shard", "1/2"],
    ["batch", "--config", "run.yaml", "--replicas", "2", "--nproc", "1", "--force", "--retry-failed", "--plain"],
    ["status", "out", "--json"],
    ["status", "run.yaml"],
    [
        "plan",
        "--model",
        "wan2.1-t2v-14b-720p",
        "--world",
        "8",
        "--card",
        "H200",
        "--set-card",
        "intra_gbs=200",
        "--json",
    ],
    ["plan", "--config", "config.yaml", "--world", "2"],
    ["config", "guidance.s2_scale"],
    ["models", "--json"],
    ["inspect", "config.yaml", "--json"],
    ["decode", "x.latents.safetensors", "--output", "x.mov", "--codec", "prores", "--audio", "a.wav"],
    ["reproduce", "config.yaml", "--output", "v.mp4", "--device", "cpu", "--model", "shapes-wan"],
    ["compare", "a.mp4", "b.mp4", "--mode", "wipe", "--labels", "A", "B", "-o", "c.mp4"],
    ["sheet", "FOLDER", "--columns", "3", "-o", "sheet.png"],
    ["page", "FOLDER", "-o", "p.html", "--title", "t", "--embed-below", "1.5"],
]


def text_targets() -> list[Target]:
    words = sorted(
        {word for line in LINES for word in line} | {"--help", "--version", "i2v", "--last-image", "--image"}
    )
    environments = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "29500"}
    overrides = [f"{key}=1" for key in dotted_keys(RunConfig)]
    return [
        Target("config", texts(CONFIG, "{}", "model: {path: wan2.1-t2v-1.3b-480p}"), config_file, mutate_bytes, 12),
        Target("config values", (_as_json(CONFIG),), config_file, mutate_json, 12),
        Target("--set", texts(*overrides, "output.fps=24000/1001", "model.lora=[{path: x}]"), set_option, mutate_bytes),
        Target("run file", texts(RUN_FILE, "shots: shots.csv"), run_file, mutate_bytes, 20),
        Target("run file values", (_as_json(RUN_FILE),), run_file, mutate_json, 20),
        *(Target(name, texts(text), shots(name), mutate_bytes, 15) for name, text in TABLES.items()),
        Target("prompt file", texts("a red circle\n\na blue square\n", "\ufeffx\r\ny"), prompt_file, mutate_bytes, 8),
        Target("card", texts(CARD), card, mutate_bytes),
        Target(
            "rate and timecode",
            texts("24 01:00:00:00", "30000/1001 00:01:00;02", "16 23:59:59:15"),
            rate_and_timecode,
            mutate_bytes,
        ),
        Target(
            "name template",
            texts("{shot}_s{seed:04d}.{ext}\na red circle", "a/{prompt:.10}\nx"),
            name_template,
            mutate_bytes,
        ),
        Target("path", texts("a/b.mp4", "~/x.mp4", "/tmp/x.png"), path, mutate_bytes),
        Target("JSON", (_as_json(RUN_FILE), b"[[1, 2.5e3], null]"), json_text, mutate_json),
        Target("environment", (dumped(environments | {"MASTER_ADDR": "localhost"}),), environment, mutate_json),
        Target("command line", tuple(dumped(list(line)) for line in LINES), command_line, mutate_words(words), 60),
    ]


def _as_json(text: str) -> bytes:
    import yaml

    return dumped(yaml.safe_load(text))
