"""Studies that are made: resumed, grown, stopped by time, with failures, and by replicas of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from study_helpers import PROMPTS, StudyRun

from s2video.batch.run_file import load_batch
from s2video.records.sidecar_model import read_sidecar

SMALL = ["--model", "shapes-wan", "--set", "sampling.num_frames=5", "--set", "sampling.num_inference_steps=2"]


@pytest.fixture
def grown(tmp_path: Path, made_study: StudyRun, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`grown(prompts, arguments...)`: make a study of these prompts in one folder, and return what was said."""

    def make(prompts: list[str], *arguments: object, expect: int = 0) -> str:
        (tmp_path / "p.txt").write_text("\n".join(prompts))
        capsys.readouterr()
        given = ["--prompts", tmp_path / "p.txt", "--folder", tmp_path / "out", *SMALL, *arguments]
        assert made_study.study(*given) == expect
        captured = capsys.readouterr()
        return captured.err + captured.out

    return make


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.mp4")}


def test_an_unchanged_call_makes_nothing_and_writes_the_page(
    made_study: StudyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    page = made_study.folder / "study.html"
    before, text = files(made_study.folder), page.read_bytes()
    page.unlink()
    assert made_study.study(made_study.file) == 0
    assert "0 of 6 videos to make" in capsys.readouterr().err
    assert files(made_study.folder) == before and page.read_bytes() == text and len(before) == 6


def test_videos_of_a_pair_differ_by_the_setting_alone(made_study: StudyRun) -> None:
    for clip in ("001-1", "002-1"):
        found = [read_sidecar(made_study.folder / name / f"{clip}.json") for name in ("cfg", "s2", "strong")]
        assert len({(sidecar.seed, sidecar.prompt) for sidecar in found}) == 1
        assert found[1].mask_seed == found[2].mask_seed and not found[0].masks
        assert len({sidecar.latents.sha256 for sidecar in found}) == 3
    first, second = (read_sidecar(made_study.folder / "s2" / f"00{n}-1.json") for n in (1, 2))
    assert first.masks != second.masks and first.seed != second.seed


def test_only_what_is_missing_is_made(grown: Callable[..., str], tmp_path: Path) -> None:
    said = grown(PROMPTS[:1], "--dry-run")
    assert "1 prompt x 2 settings (cfg, s2): 2 videos" in said and "2 to make on 1 x 1 ranks: " in said
    assert "by the cost model" in said and not (tmp_path / "out").exists()
    assert "missing settings" not in grown(PROMPTS[:1])
    run_file = load_batch(tmp_path / "out" / "study.batch.yaml")
    assert {job.config.checkpoint.every_seconds for job in run_file.jobs} == {300}
    before = files(tmp_path / "out")
    said = grown(PROMPTS, "--dry-run")
    assert "4 videos" in said and "2 to make" in said and "by the clips that are made" in said
    said = grown(PROMPTS, "--setting", "cfg", "guidance.s2_scale=0", "--setting", "s2")
    assert "2 of 4 videos to make" in said and before.items() <= files(tmp_path / "out").items()
    (tmp_path / "out" / "s2" / "002-1.mp4").unlink()
    assert "1 of 4 videos to make" in grown(PROMPTS) and len(files(tmp_path / "out")) == 4


def test_a_setting_that_has_changed_is_not_made_again_unasked(grown: Callable[..., str], tmp_path: Path) -> None:
    grown(PROMPTS[:1], "--setting", "a", "guidance.s2_scale=0", "--setting", "b", "guidance.s2_scale=1")
    before, manifest = files(tmp_path / "out"), (tmp_path / "out" / "study.json").read_bytes()
    changed = ["--setting", "a", "guidance.s2_scale=0", "--setting", "b", "guidance.s2_scale=2"]
    said = grown(PROMPTS[:1], *changed, expect=2)
    assert "b/001-1.mp4 was made from other settings (guidance.s2_scale)" in said
    assert (tmp_path / "out" / "study.json").read_bytes() == manifest, "it says how the videos were made"
    said = grown(PROMPTS[:1], *changed, "--keep-changed")
    assert "b/001-1.mp4" in said and files(tmp_path / "out") == before
    assert "001-1: the videos of b were made before its settings were changed" in said
    assert "were made before" not in grown(PROMPTS[:1], *changed, "--overwrite")
    after = files(tmp_path / "out")
    assert after["a/001-1.mp4"] == before["a/001-1.mp4"] and after["b/001-1.mp4"] != before["b/001-1.mp4"]


def test_a_setting_that_fails_is_on_the_page(grown: Callable[..., str], tmp_path: Path) -> None:
    """λ of 1e300 makes infinite latents."""
    said = grown(
        PROMPTS[:1],
        "--setting",
        "cfg",
        "guidance.s2_scale=0",
        "--setting",
        "huge",
        "guidance.cfg_scale=1e300",
        expect=1,
    )
    assert "1 of 2 videos failed" in said and "1 of 1 videos of huge are missing" in said
    page = (tmp_path / "out" / "study.html").read_text()
    assert "huge/001-1.mp4" in page and "NaN or infinite" in page


def test_replicas_of_their_own_and_a_limit_of_time(tmp_path: Path) -> None:
    """Standard output holds the answer alone, whatever the replicas print."""
    (tmp_path / "p.txt").write_text(PROMPTS[0])

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        given = ["study", "--prompts", "p.txt", "--folder", "out", *SMALL, "--set", "model.device=cpu", "--json"]
        return subprocess.run(
            [sys.executable, "-m", "s2video", *given, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            capture_output=True,
            text=True,
        )

    stopped = run("--minutes", "0.0001")
    assert stopped.returncode == 3, stopped.stderr
    assert "minutes are over" in stopped.stderr and "no video is complete yet" in stopped.stderr
    assert not files(tmp_path / "out") and (tmp_path / "out" / "study.json").is_file()
    done = run()
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [cost["videos"] for cost in answer["costs"]] == [1, 1] and len(files(tmp_path / "out")) == 2
    assert answer["costs"][0]["passes"] == 4 and answer["costs"][0]["seconds"] > 0
