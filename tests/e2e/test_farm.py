"""Tests of job bundles: checked and run by the command line of Open Job Description, without a farm."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from s2video.cli.main import main
from s2video.config.run import RunConfig
from s2video.fleet.farm import read_job, requirements
from s2video.system.files import sha256
from s2video.system.processes import kill_tree

REPOSITORY = Path(__file__).parents[2]
OPENJD = Path(sys.executable).with_name("openjd")
PROMPT = "a large red circle moving left on a gray background"


def openjd(*arguments: str, log: Path) -> "subprocess.Popen[bytes]":
    # unbuffered: what it has said is in the log at once
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as said:
        return subprocess.Popen([OPENJD, *arguments], stdout=said, stderr=said, env=environment)


def run_file(folder: Path, shots: Sequence[object], **settings: object) -> Path:
    path = folder / "run.yaml"
    values = {"model": {"path": "shapes-wan", "device": "cpu"}, "folder": str(folder / "out"), "shots": list(shots)}
    path.write_text(json.dumps({**values, **settings}))
    return path


def test_a_bundle_is_checked_run_killed_and_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shots = [{"shot": name, "prompt": PROMPT} for name in ("killed", "undisturbed")]
    file = run_file(tmp_path, shots, sampling={"num_inference_steps": 40}, checkpoint={"every_seconds": 0.01})
    bundle, template, out = tmp_path / "bundle", str(tmp_path / "bundle/template.json"), tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    assert main(["farm", str(file), "-o", "bundle"]) == 0
    assert capsys.readouterr().out == "bundle/template.json\n"
    assert sorted(path.name for path in bundle.iterdir()) == ["job-000001.json", "job-000002.json", "template.json"]
    monkeypatch.chdir("/")
    assert openjd("check", template, log=tmp_path / "check.txt").wait() == 0, (tmp_path / "check.txt").read_text()

    first, log = openjd("run", template, log=tmp_path / "first.txt"), tmp_path / "first.txt"
    point = out / "killed_s0.checkpoint.safetensors"
    try:
        while not point.exists():  # it is denoising
            assert first.poll() is None, log.read_text()
            time.sleep(0.02)
    finally:
        kill_tree(first.pid)
    assert not (out / "killed_s0.mp4").exists(), "it was killed too late to show anything"

    again = openjd("run", template, log=tmp_path / "again.txt")
    assert again.wait() == 0, (tmp_path / "again.txt").read_text()
    said = (tmp_path / "again.txt").read_text()
    assert said.count("resuming after step") == 1 and said.count("openjd_progress: 100") == 2, said
    assert "openjd_status: denoising step" in said
    assert sha256(out / "killed_s0.mp4") == sha256(out / "undisturbed_s0.mp4")
    assert not list(out.glob("*.safetensors"))

    # afterwards the batch knows them, and makes none again
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    monkeypatch.setattr("s2video.cli.batch._is_rank", lambda: True)  # in this process
    assert main(["batch", str(file)]) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert main(["status", str(out), "--exit-code"]) == 0


def test_a_task_that_cannot_be_made_says_why_to_the_farm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["farm", str(run_file(tmp_path, [PROMPT])), "-o", str(tmp_path / "bundle")]) == 0
    job = tmp_path / "bundle/job-000001.json"
    places = ["--output-folder", str(tmp_path / "out"), "--working-folder", str(tmp_path)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/001_s0.mp4").write_text("somebody else's")
    capsys.readouterr()
    assert main(["task", str(tmp_path / "bundle"), "1", *places]) == 2
    said = capsys.readouterr().out
    assert said.startswith("openjd_fail: ") and "001_s0.mp4" in said and said.count("\n") == 1
    for broken in ("{}", '{"name": "../x.mp4", "config": {}}', '{"name": "x.mp4", "config": {"steps": 3}}', "[", ""):
        job.write_text(broken)
        assert main(["task", str(tmp_path / "bundle"), "1", *places]) == 2
        assert capsys.readouterr().out.startswith(f"openjd_fail: {job}: {'unknown key' if 'steps' in broken else ''}")
    assert main(["task", str(tmp_path / "bundle"), "7", *places]) == 2
    assert main(["task", str(tmp_path / "bundle"), "1", *places[:3], str(tmp_path / "nowhere")]) == 2


def test_machines_are_asked_for_by_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shots = [PROMPT, {"prompt": PROMPT, "sampling.width": 128, "sampling.height": 128}, PROMPT]
    bundle = tmp_path / "bundle"
    assert main(["farm", str(run_file(tmp_path, shots)), "-o", str(bundle), "--nproc", "2"]) == 0
    steps = json.loads((bundle / "template.json").read_text())["steps"]
    ranges = [step["parameterSpace"]["taskParameterDefinitions"][0]["range"] for step in steps]
    needs = [{each["name"]: each["min"] for each in step["hostRequirements"]["amounts"]} for step in steps]
    assert ranges == ["1-2", "3-3"] and [each["amount.worker.vcpu"] for each in needs] == [2, 2]
    assert needs[0]["amount.worker.memory"] < needs[1]["amount.worker.memory"]  # more pixels
    assert [read_job(bundle, number).config.sampling.width for number in (1, 2, 3)] == [64, 64, 128]
    assert subprocess.run([OPENJD, "check", str(bundle / "template.json")], capture_output=True).returncode == 0
    assert "2 kinds of machines" in capsys.readouterr().err


def test_gpus_are_asked_for_with_the_memory_of_each() -> None:
    config = RunConfig.model_validate({"model": {"path": "x", "device": "cuda"}})
    amounts = requirements(config, 4, 30_000)["amounts"]
    assert amounts == [{"name": "amount.worker.gpu", "min": 4}, {"name": "amount.worker.gpu.memory", "min": 30_000}]
    assert requirements(config, 4, None)["amounts"] == amounts[:1]  # a model that the planner does not know


@pytest.mark.parametrize(("arguments", "message"), [(["--nproc", "0"], "--nproc: expected a value >= 1, got 0")])
def test_what_a_farm_cannot_be_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["farm", str(run_file(tmp_path, [PROMPT])), "-o", str(tmp_path / "bundle"), *arguments]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "bundle").exists()


def test_a_bundle_replaces_only_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, bundle = run_file(tmp_path, [PROMPT, PROMPT]), tmp_path / "bundle"
    assert main(["farm", str(file), "-o", "/"]) == 2
    for shots in ([PROMPT, PROMPT], [PROMPT]):
        run_file(tmp_path, shots)
        assert main(["farm", str(file), "-o", str(bundle)]) == 0
        assert len(list(bundle.glob("job-*.json"))) == len(shots)
    (bundle / "notes.txt").write_text("mine")
    assert main(["farm", str(file), "-o", str(bundle)]) == 2
    assert "expected only files of a bundle in this folder, got 'notes.txt'" in capsys.readouterr().err
    assert (bundle / "notes.txt").read_text() == "mine"
