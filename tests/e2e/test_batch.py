"""Batches of real videos: killed, stopped, failing, changed, on several replicas and ranks."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from batch_run import REPOSITORY, Run, check_sums, children, digest, kill_all, make_batch
from PIL import Image
from tiny import PROMPT

from s2video.batch import replica as batch
from s2video.batch.run_file import load_batch
from s2video.cli.main import main
from s2video.config.run import RunConfig
from s2video.engine.engine import Engine
from s2video.engine.make_video import Denoised, denoise, finish, make_video
from s2video.system.shutdown import Termination

OVERFLOW = 1e300  # as cfg_scale: the latents become infinite in the first step


@pytest.fixture
def run(tmp_path: Path, tiny_checkpoint: Path) -> Iterator[Run]:
    made = Run(tmp_path, tiny_checkpoint)
    yield made
    for process in made.processes:
        kill_all(process)


@pytest.fixture
def here(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run.main` makes the videos in this process, as the one rank of a torchrun would."""
    monkeypatch.setattr("s2video.cli.batch._is_rank", lambda: True)
    return run


def test_killed_at_random_moments(run: Run) -> None:
    """Eight videos are whole, distinct, and those of an undisturbed run; tools/chaos.py kills more often."""
    run.write(shots=[PROMPT, "a large blue square"], seeds=4, checkpoint={"every_seconds": 0.05})
    forks = multiprocessing.get_context("forkserver")  # which has imported torch, so that a start takes no seconds
    forks.set_forkserver_preload(["s2video.batch.replica", "s2video.cli.batch"])
    moments = random.Random(7)
    typical = 0.5  # seconds of a video, as far as it is known
    for start in range(4):
        before = len(run.events("drawn"))
        maker = forks.Process(target=make_batch, args=(run.file, run.log))
        maker.start()
        run.wait_until(lambda before=before: len(run.events("drawn")) > before, maker.is_alive)
        time.sleep(moments.uniform(0, 1.2 * typical))
        assert maker.is_alive(), f"all was done before start {start}: {run.said()}"
        maker.kill()
        maker.join()
        taken = sorted(record.seconds for record in run.store.records() if record.seconds is not None)
        typical = taken[len(taken) // 2] if taken else typical
    maker = forks.Process(target=make_batch, args=(run.file, run.log))
    maker.start()
    maker.join()
    assert maker.exitcode == 0, run.said()

    assert set(run.states().values()) == {"done"} and len(run.states()) == 8
    assert run.files() == sorted(f"{s}_s{i}.{end}" for s in ("001", "002") for i in range(4) for end in ("json", "mp4"))
    check_sums(run)
    digests = {name: digest(run.folder / name) for name in run.states()}
    assert len(set(digests.values())) == 8
    done = [event["job"] for event in run.events("done")]
    assert sorted(done) == sorted(set(done))  # but for a kill between state and log, all of them
    jobs = load_batch(run.file).jobs
    engine = Engine(jobs[0].config, progress="none")
    for job in jobs[::7]:
        undisturbed = run.file.parent / "undisturbed" / job.name
        make_video(engine, job.config.patched({"output.path": str(undisturbed)}))
        assert digest(undisturbed) == digests[job.name]


def test_kill_of_all_processes_at_once(run: Run) -> None:
    """As the command line starts them: what was running waits, and is made by the next start."""
    run.write(seeds=3)
    process = run.start()
    run.wait_until(lambda: run.events("drawn"), lambda: process.poll() is None)
    kill_all(process)
    assert run.start().wait() == 0, run.said()
    assert list(run.states().values()) == ["done"] * 3
    assert [record.attempts for record in run.records().values()] == [1] * 3
    check_sums(run)


def test_one_of_two_replicas_is_killed(run: Run) -> None:
    # long enough that one of them has not made all six before the other has loaded its models
    run.write(seeds=6, sampling={**run.values["sampling"], "num_inference_steps": 800})
    process = run.start("--replicas", "2")
    run.wait_until(
        lambda: len({event["replica"] for event in run.events("drawn")}) == 2, lambda: process.poll() is None
    )
    victim = run.events("drawn")[-1]["replica"]
    (pid,) = (p for p in children(process.pid) if victim.encode() in Path(f"/proc/{p}/cmdline").read_bytes())
    os.kill(pid, signal.SIGKILL)
    assert process.wait() == 0, run.said()
    assert set(run.states().values()) == {"done"}
    assert f"{victim} was killed by SIGKILL" in run.said()
    check_sums(run)


def test_sigterm_stops_at_a_steps_end_and_the_next_start_resumes(run: Run) -> None:
    run.write(seeds=2, sampling={**run.values["sampling"], "num_inference_steps": 200})
    process = run.start()
    run.wait_until(lambda: run.log.exists() and "step 20/200" in run.said(), lambda: process.poll() is None)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert "stopped with 0 of 2 videos done; run the same command to continue" in run.said()
    assert run.files() == ["001_s0.checkpoint.safetensors"]
    assert [(r.state, r.attempts) for r in run.records().values()] == [("waiting", 0)] * 2
    assert run.start().wait() == 0
    assert json.loads((run.folder / "001_s0.json").read_text())["resumed_after_step"] >= 20
    assert run.files() == [f"001_s{i}.{end}" for i in range(2) for end in ("json", "mp4")]


def test_a_failing_shot_is_recorded_and_the_batch_goes_on(here: Run, capsys: pytest.CaptureFixture[str]) -> None:
    here.write(shots=["a", {"shot": "bad", "prompt": "b", "guidance.cfg_scale": OVERFLOW}, "c"])
    assert here.main() == 1
    assert here.states() == {"001_s0.mp4": "done", "bad_s0.mp4": "failed", "003_s0.mp4": "done"}
    said = capsys.readouterr().err
    assert "failed: bad_s0.mp4: " in said and "1 of 3 videos failed: s2video status" in said
    assert "infinit" in (here.records()["bad_s0.mp4"].error or "")
    assert here.files() == ["001_s0.json", "001_s0.mp4", "003_s0.json", "003_s0.mp4"]

    assert here.main() == 1  # still failed, and not tried again
    assert [event["job"] for event in here.events("drawn")].count("bad_s0.mp4") == 1
    assert here.main("--retry-failed") == 1
    assert [event["job"] for event in here.events("drawn")].count("bad_s0.mp4") == 2
    here.write(shots=["a", {"shot": "bad", "prompt": "b"}, "c"])
    assert here.main() == 0
    assert [event["job"] for event in here.events("drawn")].count("001_s0.mp4") == 1


@pytest.mark.parametrize("half", ["denoise", "finish"])
@pytest.mark.parametrize("overlap", ["always", "never"])
def test_errors_belong_to_their_job(
    here: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], half: str, overlap: str
) -> None:
    """Also those of the thread that decodes one job beside the next one."""
    threads: list[str] = []

    def failing_denoise(engine: Engine, job: RunConfig, **options: Any) -> Denoised | None:
        if half == "denoise" and job.sampling.seed == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return denoise(engine, job, **options)

    def failing_finish(denoised: Denoised, *, alone: bool = False) -> Path | None:
        threads.append("decoder" if alone else "main")
        if half == "finish" and denoised.engine.config.sampling.seed == 1:
            raise OSError("no encoder today")
        return finish(denoised, alone=alone)

    monkeypatch.setattr(batch, "denoise", failing_denoise)
    monkeypatch.setattr(batch, "finish", failing_finish)
    here.write(seeds=3, overlap=overlap)
    assert here.main() == 1
    assert list(here.states().values()) == ["done", "failed", "done"]
    expected = {"denoise": "the GPU is out of memory", "finish": "OSError: no encoder today"}
    assert expected[half] in (here.records()["001_s1.mp4"].error or "")
    assert "Traceback" in here.events("failed")[0]["traceback"]
    assert "Traceback" not in capsys.readouterr().err
    assert set(threads[:-1]) == ({"decoder"} if overlap == "always" else {"main"})


def test_models_are_loaded_and_texts_encoded_once(here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs with other models stand together behind those of the first."""
    loaded: list[str] = []
    encoded: list[str] = []

    class CountedEngine(Engine):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            loaded.append(self.config.model.dtype)
            encode = self._encoders._encode_text._encode
            self._encoders._encode_text._encode = lambda prompts: (encoded.extend(prompts.texts), encode(prompts))[1]

    monkeypatch.setattr(batch, "Engine", CountedEngine)
    other = {"prompt": "b", "model.dtype": "bfloat16"}
    here.write(shots=["a", other, "b", {"shot": "again", "prompt": "a"}], sweep={"guidance.s2_scale": [0, 0.25]})
    assert here.main() == 0
    assert loaded == ["float32", "bfloat16"]
    assert sorted(encoded) == ["", "", "a", "b", "b"]


def test_what_changed_is_made_again_if_asked_and_nothing_else(here: Run, capsys: pytest.CaptureFixture[str]) -> None:
    here.write(shots=["a", "b"], seeds=2)
    assert here.main() == 0
    made = {name: (here.folder / name).stat().st_mtime_ns for name in here.files()}

    def again(*arguments: str) -> list[str]:
        assert here.main(*arguments) == 0
        check_sums(here)
        now = {name: (here.folder / name).stat().st_mtime_ns for name in here.files()}
        changed = [name for name in now if name.endswith("mp4") and now[name] != made[name]]
        made.update(now)
        return changed

    assert again() == []
    here.write(shots=["a", "another"])
    assert here.main() == 2
    assert "002_s0.mp4 was made from other settings (prompt)" in capsys.readouterr().err
    assert again("--keep-changed") == []
    assert "made from other settings, and left as they are: 002_s0.mp4, 002_s1.mp4" in capsys.readouterr().err
    assert here.main() == 2  # and not forgotten
    assert again("--overwrite") == ["002_s0.mp4", "002_s1.mp4"]
    (here.folder / "001_s1.mp4").write_bytes(b"graded")
    (here.folder / "002_s0.json").unlink()
    assert here.main() == 2
    assert "001_s1.mp4 was changed since it was made" in capsys.readouterr().err
    (here.folder / "001_s1.mp4").write_bytes(b"")
    assert again() == ["001_s1.mp4", "002_s0.mp4"]
    assert again("--set", "model.offload_text_encoder=false") == []  # leaves no trace in the pixels
    assert again("--set", "output.crf=30", "--overwrite") == sorted(here.states())
    here.write(output={"crf": 30})
    assert again("--force") == sorted(here.states())
    with here.store._transaction() as connection:  # killed after the file was there, before the store knew
        connection.execute("UPDATE jobs SET state = 'running', owner = 'gone', lease_until = 0.0")
    assert again() == []


def test_a_sequence_is_checked_frame_by_frame(here: Run) -> None:
    here.write(output={"codec": "png"})
    assert here.main() == 0
    assert here.states() == {"001_s0.png": "done"}
    assert here.files() == ["001_s0", "001_s0.json"]
    assert sorted(path.name for path in (here.folder / "001_s0").iterdir()) == [
        f"001_s0.{n}.png" for n in range(1001, 1006)
    ]
    check_sums(here)
    assert here.main() == 0
    assert len(here.events("drawn")) == 1
    (here.folder / "001_s0" / "001_s0.1003.png").unlink()
    assert here.main() == 0
    assert len(here.events("drawn")) == 2
    check_sums(here)


def test_a_missing_image_fails_alone_and_is_made_when_it_is_there(
    here: Run, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "there.png")
    shots = [{"prompt": "a", "image": str(tmp_path / name)} for name in ("missing.png", "there.png")]
    sampling = {**here.values["sampling"], "max_sequence_length": 512}  # the only one that this family takes
    here.write(shots=shots, model={"path": str(checkpoint_of("wan-i2v")), "device": "cpu"}, sampling=sampling)
    assert here.main() == 1
    assert here.states() == {"001_s0.mp4": "failed", "002_s0.mp4": "done"}
    assert "missing.png: cannot be read" in (here.records()["001_s0.mp4"].error or "")
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "missing.png")
    assert here.main() == 0
    Image.new("RGB", (32, 32), "green").save(tmp_path / "there.png")
    assert here.main() == 2  # a video of the old image is there
    assert here.main("--overwrite") == 0
    assert [event["job"] for event in here.events("drawn")] == ["001_s0.mp4", "002_s0.mp4", "001_s0.mp4", "002_s0.mp4"]


def test_what_writes_the_format_is_asked_for_before_anything_starts(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.write(shots=[PROMPT, "another"], output={"codec": "dnxhr"})
    assert run.main() == 2
    assert capsys.readouterr().err.count("dnxhr: expected at least 256x120 px") == 2
    run.write(output={"ffmpeg": "/nowhere/ffmpeg"})
    assert run.main("--dry-run") == 2
    assert capsys.readouterr().err.count("cannot start ffmpeg") == 2
    assert not run.folder.exists()


def test_a_dry_run_tells_all_and_writes_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.write(shots=["a", "b"], sweep={"guidance.s2_scale": [0, 0.25]})
    assert run.main("--dry-run", "--replicas", "2") == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 5
    assert (
        f"{run.folder}/001_s2_scale-0_s0.mp4" in out[0] and "32x32x5, 4 steps, seed 0" in out[0] and " s  a" in out[0]
    )
    assert "4 videos" in out[-1] and "2 x 1 x cpu" in out[-1] and "rough guess" in out[-1]
    assert not run.folder.exists()


def test_a_dry_run_names_prompts_that_are_too_long(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.write(shots=["a", "red " * 900], seeds=2)
    assert run.main("--dry-run") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("s2video: warning: ") and "shot 2: prompt: the model reads" in line


def test_all_bad_shots_are_listed_before_anything_starts(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [{"prompt": "b", "sampling.width": 100}, {"prompt": "c", "guidance.s2_scale": -1}, {"shot": "d"}]
    missing = {"prompt": "e", "model.path": "/nowhere/model"}
    run.write(shots=["a", *bad, missing], folder="/proc/s2video")
    assert run.main() == 2
    lines = capsys.readouterr().err.splitlines()
    told = [
        "shot 3: guidance.s2_scale",
        "shot 4: prompt: expected text",
        "shot 1: output",
        "shot 2: sampling.width",
        "shot 5: model.path",
    ]
    assert len(lines) == len(told) + 1
    for fragment, line in zip(told, lines, strict=False):
        assert fragment in line
    assert lines[-1].startswith("s2video: error: 5 problems with the shots")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "one run file"),
        (["RUN", "--shard", "3/2"], "--shard"),
        (["RUN", "--shard", "0/2"], "--shard"),
        (["RUN", "--replicas", "0"], "--replicas"),
        (["RUN", "--config", "RUN"], "one run file"),
        (["nowhere.yaml"], "does not exist"),
    ],
)
def test_a_bad_command_line(run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], fragment: str) -> None:
    run.write()
    assert main(["batch", *(str(run.file) if word == "RUN" else word for word in arguments)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and fragment in said


def test_a_batch_is_made_by_one_process_at_a_time(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.write()
    run.store.create()
    holder = "import sys, time; from pathlib import Path; from s2video.system.locks import held_lock\n"
    holder += "with held_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(run.store.lock_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    run.processes.append(process)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"held\n"
    assert run.main() == 2
    assert "another process is making this batch" in capsys.readouterr().err


def test_two_ranks_under_torchrun_go_on_after_a_failure(run: Run) -> None:
    """And end with 1: torchrun tells of the failure in its own way, we in ours."""
    run.write(shots=[{"shot": "bad", "prompt": "b", "guidance.cfg_scale": OVERFLOW}, "a", "c"])
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    code = run.start(command=(*torchrun, str(REPOSITORY / "launch" / "batch.py"), "--config")).wait()
    assert code == 1
    assert run.states() == {"bad_s0.mp4": "failed", "002_s0.mp4": "done", "003_s0.mp4": "done"}
    assert "1 of 3 videos failed" in run.said()
    assert json.loads((run.folder / "003_s0.json").read_text())["mesh"]["world_size"] == 2
    check_sums(run)


@pytest.fixture
def slurm(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run batch.sbatch as a task of an array: (ID, MIN, MAX, COUNT, more variables)."""
    srun = run.file.parent / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text('#!/bin/sh\nwhile case "$1" in --*) true;; *) false;; esac; do shift; done\nexec "$@"\n')
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{srun.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHON", sys.executable)

    def submit(*task: int, **more: str) -> "subprocess.CompletedProcess[str]":
        names = ("ID", "MIN", "MAX", "COUNT")
        array = {f"SLURM_ARRAY_TASK_{name}": str(number) for name, number in zip(names, task, strict=True)}
        return subprocess.run(
            ["bash", str(REPOSITORY / "launch" / "slurm" / "batch.sbatch"), str(run.file)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **array, **more},
            cwd=run.file.parent,
        )

    return submit


def test_the_slurm_script_makes_a_shard(
    run: Run, slurm: Callable[..., "subprocess.CompletedProcess[str]"], capsys: pytest.CaptureFixture[str]
) -> None:
    run.write(seeds=3)
    finished = slurm(2, 1, 2, 2)
    assert finished.returncode == 0, finished.stderr
    assert run.files() == ["001_s1.json", "001_s1.mp4"]
    assert (run.folder / "batch.2-of-2.sqlite").exists()
    assert main(["status", str(run.file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["done"] == 1


def test_one_task_of_an_array_is_submitted_again(
    run: Run, slurm: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    """Slurm then counts one task; the shard is the same only if the user says of how many."""
    run.write(seeds=3)
    refused = slurm(2, 2, 2, 1)
    assert refused.returncode == 2 and "submit with SHARDS=N" in refused.stderr and not run.folder.exists()
    assert slurm(2, 2, 2, 1, SHARDS="3").returncode == 0
    assert run.files() == ["001_s1.json", "001_s1.mp4"]
    wrong = slurm(1, 1, 1, 1)
    assert wrong.returncode == 2 and "expected 3 shards, because batch.2-of-3.sqlite is here, got 1" in wrong.stderr
    assert run.files() == ["001_s1.json", "001_s1.mp4"]


def test_state_of_another_number_of_shards_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.write(seeds=2)
    run.folder.mkdir()
    (run.folder / "batch.sqlite").touch()
    assert run.main("--shard", "1/2") == 2
    assert "expected 1 shards" in capsys.readouterr().err
    (run.folder / "batch.sqlite").rename(run.folder / "batch.2-of-4.sqlite")
    for arguments in ((), ("--shard", "1/2")):
        assert run.main(*arguments) == 2
        assert "use --shard I/4, or another folder" in capsys.readouterr().err


def test_a_stop_while_one_job_is_decoded_beside_another(here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoding ends well; the denoising stops with a checkpoint."""
    stops: list[bool] = []

    class StopsInSecondJob(Termination):
        @property
        def requested(self) -> bool:
            return bool(stops)

    def stopping_denoise(engine: Engine, job: RunConfig, **options: Any) -> Denoised | None:
        if job.sampling.seed == 1:
            stops.append(True)
        return denoise(engine, job, **options)

    monkeypatch.setattr(batch, "Termination", StopsInSecondJob)
    monkeypatch.setattr(batch, "denoise", stopping_denoise)
    here.write(seeds=3)
    assert here.main() == 143
    assert list(here.states().values()) == ["done", "waiting", "waiting"]
    assert here.files() == ["001_s0.json", "001_s0.mp4", "001_s1.checkpoint.safetensors"]
    stops.clear()
    monkeypatch.setattr(batch, "denoise", denoise)
    assert here.main() == 0
    assert json.loads((here.folder / "001_s1.json").read_text())["resumed_after_step"] == 1
    check_sums(here)
