"""Tests of what a study makes: seeds, settings, and the run file of its batch."""

from collections import defaultdict
from pathlib import Path

import pytest

from s2video.batch.run_file import load_batch
from s2video.cli.main import main
from s2video.config.run import RunConfig
from s2video.errors import InputError
from s2video.study.design import Design, read_design, read_manifest, write_manifest, write_run_file

TWO = "prompts: [a red wall, a blue wall]\n"


def design_of(folder: Path, text: str) -> Design:
    path = folder / "s.yaml"
    path.write_text(f"folder: {folder / 'out'}\n{text}", encoding="utf-8")
    return read_design(path)


def jobs_of(design: Design) -> dict[str, RunConfig]:
    batch = load_batch(write_run_file(design, design.folder))
    assert not batch.problems and batch.folder == design.folder.absolute()
    return {job.name: job.config for job in batch.jobs}


def test_pairs_share_noise_and_masks_and_no_two_clips_do(tmp_path: Path) -> None:
    design = design_of(
        tmp_path, TWO + "seeds: 3\nsettings: {cfg: {guidance.s2_scale: 0}, s2: {}, fast: {guidance.reuse: fast}}\n"
    )
    jobs = jobs_of(design)
    assert len(jobs) == design.num_videos == 18
    seeds = defaultdict(set)
    for name, config in jobs.items():
        seeds[Path(name).name].add((config.sampling.seed, config.guidance.mask_seed, config.prompt))
    assert all(len(found) == 1 for found in seeds.values())
    each = [next(iter(found)) for found in seeds.values()]
    assert len({noise for noise, _, _ in each}) == len({masks for _, masks, _ in each}) == len(each) == 6
    assert {masks for _, masks, _ in each}.isdisjoint(noise for noise, _, _ in each)
    assert {name.split("/")[0]: config.guidance.reuse.preset for name, config in jobs.items()}["fast"] == "fast"
    assert [name for name, _ in design.clips()] == ["001-1", "001-2", "001-3", "002-1", "002-2", "002-3"]


def test_a_study_can_grow_without_changing_a_clip(tmp_path: Path) -> None:
    small = jobs_of(design_of(tmp_path, TWO))
    more = "seeds: 2\nsettings: {cfg: {guidance.s2_scale: 0}, s2: , x: {guidance.cfg_scale: 3}}\n"
    large = jobs_of(design_of(tmp_path, f"prompts: [a red wall, a blue wall, a third]\n{more}"))
    assert small.items() <= large.items() and len(large) == 18


def test_without_settings_cfg_and_s2_are_compared(tmp_path: Path) -> None:
    design = design_of(tmp_path, TWO)
    found = {name.split("/")[0]: config.guidance for name, config in jobs_of(design).items()}
    assert list(design.settings) == ["cfg", "s2"]
    assert not found["cfg"].uses_s2 and found["s2"].uses_s2
    same = {"s2_scale", "mask_seed"}
    assert found["cfg"].model_dump(exclude=same) == found["s2"].model_dump(exclude=same)
    alone = design_of(tmp_path, TWO + "guidance: {cfg_scale: 1, s2_push: 0.1}\n")
    assert list(alone.settings) == ["plain", "s2"]
    assert not jobs_of(alone)["plain/001-1.mp4"].guidance.uses_s2
    other = design_of(tmp_path, TWO + "guidance: {method: apg}\n")
    assert jobs_of(other)["s2/001-1.mp4"].guidance.uses_s2


def test_prompts_can_have_settings_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,sampling.num_frames\na red wall,9\na blue wall,\n")
    jobs = jobs_of(design_of(tmp_path, "prompts: p.csv\n"))
    assert [jobs[f"s2/00{n}-1.mp4"].sampling.num_frames for n in (1, 2)] == [9, 17]


def test_files_that_hold_the_same_are_not_written_again(tmp_path: Path) -> None:
    design = design_of(tmp_path, TWO)
    for _ in range(2):
        write_run_file(design, design.folder)
        write_manifest(design)
    before = {path: path.stat().st_ino for path in design.folder.iterdir()}
    write_run_file(design, design.folder)
    write_manifest(design)
    assert {path: path.stat().st_ino for path in design.folder.iterdir()} == before and len(before) == 3
    manifest = read_manifest(design.folder)
    assert list(manifest.settings) == ["cfg", "s2"] and manifest.clips[1].prompt == "a blue wall"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "prompts: expected a list of prompts"),
        ("prompts: 3\n", "prompts: expected a list of prompts"),
        ("prompts: [a, 4]\n", "shot 2: expected a prompt or a mapping"),
        (TWO + "settings: {a: {guidance.s2_scale: 0}}\n", "expected at least two to compare, got a"),
        (TWO + "settings: {a: {}, A: {}}\n", "differ in more than case"),
        (TWO + "settings: {a/b: {}, c: {}}\n", "expected names of up to 40 letters"),
        (TWO + "settings: {a: 3, c: {}}\n", "a: expected the settings that it changes"),
        (TWO + "settings: [a]\n", "settings: expected names and what each changes"),
        (TWO + "settings: {a: {}, b: {guidance.s2_scal: 1}}\n", "settings.b: unknown key 'guidance.s2_scal'"),
        (
            TWO + "settings: {a: {}, b: {guidance.s2_scale: -1}}\n",
            "settings.b: guidance.s2_scale: expected a value >= 0",
        ),
        (TWO + "settings: {a: {}, b: {sampling.seed: 1}}\n", "settings.b: sampling.seed: a study sets it"),
        (TWO + "settings: {a: {}, b: {prompt: x}}\n", "settings.b: prompt: expected the same under every setting"),
        (TWO + "guidance: {mask_seed: 3}\n", "guidance.mask_seed: expected null"),
        (TWO + "output: {codec: prores}\n", "output.codec: expected auto or h264"),
        (TWO + "output: {path: x.mp4}\n", "output.path"),
        (TWO + "seeds: 0\n", "seeds: expected a value >= 1"),
        (f"prompts: [{'a, ' * 60}]\nseeds: 1000\n", "expected at most 100000 videos, got 120000"),
        (TWO + "seed: 3\n", "unknown key 'seed'"),
        ("prompts: [{prompt: a, sampling.seed: 3}]\n", "sampling.seed: a study sets it"),
        ("prompts: [{prompt: a, guidance.s2_scale: 3}]\n", "expected one value, got one here and one in settings"),
        ("prompts: [{sampling.num_frames: 9}]\n", "expected a prompt, got none"),
        ("prompts: none.txt\n", "none.txt does not exist"),
    ],
)
def test_bad_study_files(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.yaml").write_text(f"folder: {tmp_path / 'out'}\n{text}")
    assert main(["study", str(tmp_path / "s.yaml")]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "missing settings have" not in line]
    assert len(lines) == 1 and message in lines[0] and captured.out == ""
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_cannot_serve_is_found_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(f"folder: {tmp_path / 'out'}\n{TWO}sampling: {{width: 70}}\n")
    assert main(["study", str(tmp_path / "s.yaml")]) == 2
    error = capsys.readouterr().err
    assert "study.shots.jsonl, line 1: " in error and "70" in error and "nothing was started" in error
    assert not (tmp_path / "out").exists()


def test_the_folder_of_another_batch_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "batch.sqlite").write_bytes(b"")
    (tmp_path / "s.yaml").write_text(f"folder: {tmp_path / 'out'}\n{TWO}")
    assert main(["study", str(tmp_path / "s.yaml")]) == 2
    assert "got that of a batch" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["batch.sqlite"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a study file, --prompts FILE"),
        (["--model", "shapes-wan"], "expected a study file, --prompts FILE"),
        (["{}/s.yaml", "--seeds", "2"], "--seeds:"),
        (["{}/s.yaml", "--setting", "a"], "--setting:"),
        (["{}/s.yaml", "--videos", "a=b", "c=d"], "got both"),
        (["--videos", "a=b"], "expected two or more NAME=FOLDER"),
        (["--videos", "a=b", "a=c"], "expected two or more NAME=FOLDER"),
        (["--videos", "ab", "c=d"], "expected NAME=FOLDER"),
        (["--videos", "a={}", "b={}", "--minutes", "3"], "--minutes: expected a study file"),
        (["{}", "--dry-run"], "--dry-run: expected a study file"),
        (["{}/nowhere"], "found neither"),
        (["{}"], "expected study.json of a study, or two or more folders"),
        (["--prompts", "{}/p.txt", "--setting", "a", "x=1"], "unknown key 'x'"),
        (["--prompts", "{}/p.txt", "--setting", "a/b", "--setting", "c"], "expected names of up to 40"),
        (["--prompts", "{}/p.txt", "--setting", "a", "--setting", "a"], "expected each name once"),
        (["--prompts", "{}/p.txt", "--minutes", "-1"], "--minutes: expected minutes above 0"),
        (["{}", "--replicas", "2"], "--replicas: expected a study file"),
        (["{}/s.yaml", "--base", "x"], "--base: expected one of cfg, s2, got 'x'"),
        (["{}/s.yaml", "--votes", "{}/v.json"], "v.json: expected a file, found none"),
        (["{}/s.yaml", "--scores", "cfg={}/v.csv"], "v.csv: expected a file, found none"),
        (["{}/s.yaml", "--scores", "a=" + 300 * "x"], "too long"),
        (["{}/s.yaml", "--clip", "{}"], "config.json: expected a file, found none"),
        (["--prompts", "{}/p.txt", "--seeds", "0"], "--seeds: expected a number from 1"),
    ],
)
def test_arguments_that_cannot_be_used(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "s.yaml").write_text(TWO)
    (tmp_path / "p.txt").write_text("a red wall\n")
    monkeypatch.chdir(tmp_path)
    assert main(["study", *(argument.replace("{}", str(tmp_path)) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.txt", "s.yaml"]


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("s2video.cli.study.ranks.launched_by_torchrun", lambda: True)
    with pytest.raises(InputError, match="expected no torchrun"):
        from s2video.cli.main import build_parser

        arguments = build_parser().parse_args(["study", "x.yaml"])
        arguments.run(arguments)
