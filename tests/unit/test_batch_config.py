"""Tests of run files and lists of shots: expansion, refusals, and their messages."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2video.batch import run_file as batch_config
from s2video.batch.run_file import Batch, RunFile, load_batch
from s2video.config.run import RunConfig
from s2video.errors import InputError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHOTS: dict[str, Any] = {"shots": ["a red circle", "a blue square"], "folder": "out"}


def load(folder: Path, values: Mapping[str, Any] | str, *overrides: str) -> Batch:
    path = folder / "run.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(dict(values)), encoding="utf-8")
    return load_batch(path, overrides)


def load_file(folder: Path, name: str, content: str, **more: Any) -> Batch:
    (folder / name).write_text(content, encoding="utf-8")
    return load(folder, {"shots": name, "folder": "out", **more})


def refusal(folder: Path, values: Mapping[str, Any] | str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(folder, values, *overrides)
    return str(caught.value)


def test_shots_times_sweep_times_seeds_in_this_order(tmp_path: Path) -> None:
    sweep = {"guidance.s2_scale": [0, 0.5], "sampling.width": [64, 80]}
    batch = load(tmp_path, {**SHOTS, "sweep": sweep, "seeds": 2, "sampling": {"seed": 3}})
    made = [
        (job.config.prompt, job.config.guidance.s2_scale, job.config.sampling.width, job.config.sampling.seed)
        for job in batch.jobs
    ]
    assert made == [
        (prompt, scale, width, seed)
        for prompt in SHOTS["shots"]
        for scale in (0, 0.5)
        for width in (64, 80)
        for seed in (3, 4)
    ]
    assert batch.jobs[0].name == "001_s2_scale-0_width-64_s3.mp4"
    assert batch.jobs[-1].config.output.path == "out/002_s2_scale-0.5_width-80_s4.mp4"
    assert batch.problems == ()


def test_a_shot_sets_what_it_likes(tmp_path: Path) -> None:
    shot = {"shot": "b", "negative_prompt": "blur", "guidance.cfg_scale": 2, "sampling": {"seed": 9, "width": 80}}
    batch = load(tmp_path, {"prompt": "p", "shots": [shot], "sampling": {"height": 96, "width": 96}, "folder": "out"})
    (job,) = batch.jobs
    assert (job.name, job.where) == ("b_s9.mp4", f"{tmp_path / 'run.yaml'}, shot 1")
    assert (job.config.prompt, job.config.negative_prompt, job.config.guidance.cfg_scale) == ("p", "blur", 2.0)
    assert (job.config.sampling.width, job.config.sampling.height, job.config.sampling.seed) == (80, 96, 9)


def test_the_base_is_checkpointed_unless_it_says_otherwise(tmp_path: Path) -> None:
    def every(values: dict[str, Any]) -> float | None:
        return load(tmp_path, {**SHOTS, **values}).jobs[0].config.checkpoint.every_seconds

    assert every({}) == 300
    assert every({"checkpoint": {"every_seconds": 20}}) == 20
    assert every({"checkpoint": {"every_seconds": None}}) is None


def test_overrides_reach_the_run_file_and_its_base(tmp_path: Path) -> None:
    batch = load(tmp_path, SHOTS, "seeds=2", "guidance.s2_scale=1e-1", "parallel=auto")
    assert len(batch.jobs) == 4
    assert batch.jobs[0].config.guidance.s2_scale == 0.1
    assert batch.jobs[0].config.parallel.degrees == "auto"
    assert "did you mean 'sweep'" in refusal(tmp_path, SHOTS, "swep={}")


def test_the_folder_is_named_after_the_run_file(tmp_path: Path) -> None:
    assert load(tmp_path, {"shots": ["a"]}).folder == Path("runs/run")


def test_lines_of_text(tmp_path: Path) -> None:
    batch = load_file(tmp_path, "s.txt", "on\n\n  010 \na: b\n")
    assert [job.config.prompt for job in batch.jobs] == ["on", "010", "a: b"]
    assert batch.jobs[1].where.endswith("s.txt, line 3")


def test_lines_of_json(tmp_path: Path) -> None:
    lines = ['{"prompt": "a", "guidance.s2_scale": 1e-4, "sampling": {"seed": 2}}', "", '"b"']
    batch = load_file(tmp_path, "s.jsonl", "\n".join(lines))
    assert [(j.config.prompt, j.config.guidance.s2_scale, j.config.sampling.seed) for j in batch.jobs] == [
        ("a", 1e-4, 2),
        ("b", 0.25, 0),
    ]


def test_cells_of_a_table(tmp_path: Path) -> None:
    """Text is verbatim, other cells are YAML, empty ones set nothing, and a cell can contain line breaks."""
    text = 'shot,prompt,sampling.seed,guidance.s2_scale,model.revision\n010,on,5,1e-4,\nb,"x, ""y""\nz",,,1e5\n'
    batch = load_file(tmp_path, "s.csv", text)
    first, second = batch.jobs
    assert (first.name, first.config.prompt, first.config.guidance.s2_scale) == ("010_s5.mp4", "on", 1e-4)
    assert (second.config.prompt, second.config.sampling.seed) == ('x, "y"\nz', 0)
    assert (first.config.model.revision, second.config.model.revision) == (None, "1e5")


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        ("s.jsonl", '{"prompt": "a"', ["s.jsonl, line 1", "expected JSON"]),
        ("s.jsonl", '{"prompt": "a", "prompt": "b"}', ["given twice"]),
        ("s.jsonl", "3", ["expected a prompt or a mapping", "3"]),
        ("s.jsonl", '{"promt": "a"}', ["did you mean 'prompt'"]),
        ("s.jsonl", '{"prompt": 12}', ["prompt: expected text", "quote it"]),
        ("s.jsonl", '{"prompt": "a", "guidance": 3}', ["unknown key 'guidance'"]),
        ("s.csv", "prompt,sampling.seed\na,010\n", ["s.csv, line 2", "010 as 8"]),
        ("s.csv", "prompt,sampling.seed\na,on\n", ["sampling.seed: expected a whole number"]),
        ("s.csv", "prompt,sampling.seed\na\n", ["expected 2 cells"]),
        ("s.csv", "prompt,seed\na,1\n", ["did you mean 'sampling.seed'"]),
        ("s.csv", "prompt,sampling.width\na,-3\n", ["sampling.width", "> 0"]),
    ],
)
def test_a_bad_shot_is_named_with_its_place(tmp_path: Path, name: str, content: str, fragments: list[str]) -> None:
    batch = load_file(tmp_path, name, content)
    assert batch.jobs == ()
    (problem,) = batch.problems
    assert "\n" not in problem
    for fragment in fragments:
        assert fragment in problem


def test_all_bad_shots_are_named_and_the_good_ones_stand(tmp_path: Path) -> None:
    shots = [{"prompt": "a", "guidance.s2_scale": -1}, "b", {"shot": "c"}, {"prompt": "d", "output.path": "x.mp4"}]
    batch = load(tmp_path, {"shots": shots, "folder": "out"})
    assert [job.config.prompt for job in batch.jobs] == ["b"]
    assert [problem.split(": ")[1].split(" ")[0] for problem in batch.problems] == [
        "output.path",
        "guidance.s2_scale",
        "prompt",
    ]


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        ({}, ["shots"]),
        ({"shots": []}, ["shots: expected a list of shots"]),
        ({"shots": "s.xml"}, [".jsonl, .csv, .txt", "s.xml"]),
        ({"shots": "nowhere.csv"}, ["nowhere.csv", "does not exist"]),
        ({**SHOTS, "seeds": 0}, ["seeds", ">= 1"]),
        ({**SHOTS, "seeds": 10**6}, ["at most 100000", "2000000"]),
        ({**SHOTS, "sweep": {"guidance.s2_scael": [1]}}, ["did you mean 'guidance.s2_scale'"]),
        ({**SHOTS, "sweep": {"guidance.s2_scale": 1}}, ["expected a list of values"]),
        ({**SHOTS, "sweep": {"model.device": ["cpu"]}}, ["model.device: has one value for the whole batch"]),
        ({**SHOTS, "output": {"path": "x.mp4"}}, ["output.path", "folder and name"]),
        ({**SHOTS, "fields": {"a b": 1}}, ["fields"]),
        ({**SHOTS, "guidance": {"cfg_scale": "strong"}}, ["guidance.cfg_scale"]),
        ("shots: [a]\noverlap: on\n", ["overlap: expected 'auto', 'always' or 'never'", "True"]),
        ("shots: [a]\nseeds: 010\n", ["010 as 8"]),
        ("shots: [a]\nshots: [b]\n", ["given twice"]),
    ],
)
def test_a_bad_run_file_is_refused_whole(tmp_path: Path, values: Mapping[str, Any] | str, fragments: list[str]) -> None:
    said = refusal(tmp_path, values)
    assert "\n" not in said
    for fragment in fragments:
        assert fragment in said


@pytest.mark.parametrize(
    ("more", "fragment"),
    [
        ({"sweep": {"prompt": ["x"]}}, "prompt: expected one value, got one here and one in sweep"),
        ({"name": "{shto}.mp4"}, "unknown field 'shto'"),
        ({"name": "../{shot}.mp4"}, 'begins with "."'),
        ({"name": "batch.{shot}.mp4"}, "which the batch uses itself"),
        ({"name": "{version:03d}.mp4", "fields": {"version": "x"}}, "name"),
    ],
)
def test_shots_that_cannot_be_named_or_contradict(tmp_path: Path, more: dict[str, Any], fragment: str) -> None:
    batch = load(tmp_path, {**SHOTS, **more})
    assert len(batch.problems) == 2
    assert all(fragment in problem for problem in batch.problems)


def test_seeds_and_a_sweep_of_seeds_are_one_problem(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.yaml: expected seeds or a sweep of sampling\.seed, got both"):
        load(tmp_path, {**SHOTS, "sweep": {"sampling.seed": [1]}, "seeds": 2})


def test_names_end_as_their_format_wants(tmp_path: Path) -> None:
    shots = ["a", {"prompt": "b", "output.codec": "prores"}, {"prompt": "c", "output.codec": "exr"}]
    batch = load(tmp_path, {"shots": shots, "folder": "out"})
    assert [job.name for job in batch.jobs] == ["001_s0.mp4", "002_s0.mov", "003_s0.exr"]
    batch = load(tmp_path, {"shots": shots, "folder": "out", "name": "{shot}.mov"})
    assert [job.name for job in batch.jobs] == ["001.mov", "002.mov"]
    assert "ends in .exr" in batch.problems[0]


def test_videos_in_one_place_are_refused(tmp_path: Path) -> None:
    """Also if they would collide only on a file system that ignores case, or by their sidecars."""
    shots = [{"shot": "A", "prompt": "x"}, {"shot": "a", "prompt": "y"}, {"shot": "b", "prompt": "z"}]
    (problem,) = load(tmp_path, {"shots": shots, "name": "{shot}.mp4", "folder": "out"}).problems
    assert "a.mp4 would overwrite A.mp4" in problem and "shot 2" in problem and "shot 1" in problem


def test_names_follow_the_format(tmp_path: Path) -> None:
    shots = ["x", {"prompt": "y", "output.codec": "dnxhr"}, {"prompt": "z", "output.codec": "exr"}]
    batch = load(tmp_path, {"shots": shots, "folder": "out"})
    assert [job.name for job in batch.jobs] == ["001_s0.mp4", "002_s0.mov", "003_s0.exr"]
    assert batch.problems == ()


@pytest.mark.parametrize(
    ("more", "fragment"),
    [
        ({"name": "{shot}.mp4", "output": {"codec": "prores"}}, "ends in .mov"),
        ({"output": {"codec": "png", "timecode": "01:00:00:00"}}, "cannot hold a timecode"),
        ({"name": "{shot}.avi"}, "ends in .mp4, .mov, .png or .exr"),
    ],
)
def test_formats_that_do_not_fit(tmp_path: Path, more: dict[str, Any], fragment: str) -> None:
    problems = load(tmp_path, {**SHOTS, **more}).problems
    assert len(problems) == 2 and all(fragment in problem and "shot" in problem for problem in problems)


def test_names_are_made_in_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Mapping[str, object]] = []

    def output_path(folder: Path, template: str, fields: Mapping[str, object]) -> Path:
        seen.append(fields)
        return folder / f"{len(seen)}.mp4"

    monkeypatch.setattr(batch_config, "output_path", output_path)
    shots = [{"shot": "a", "prompt": "x", "fields.version": 2}]
    values = {"shots": shots, "fields": {"show": "abc", "version": 1}, "sweep": {"guidance.s2_scale": [0.5]}}
    batch = load(tmp_path, values)
    assert [job.name for job in batch.jobs] == ["1.mp4"]
    expected = {
        "run": "run",
        "shot": "a",
        "prompt": "x",
        "variant": "_s2_scale-0.5",
        "index": 1,
        "seed": 0,
        "take": 1,
        "ext": "mp4",
    }
    assert seen == [{**expected, "s2_scale": 0.5, "show": "abc", "version": 2}]


def test_the_example_tells_every_setting_of_a_run_file(tmp_path: Path) -> None:
    path = CONFIGS / "batch-shapes.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(RunFile.model_fields) - set(RunConfig.model_fields) <= set(values)
    batch = load_batch(path)
    assert len(batch.jobs) == 8 and batch.problems == ()


def test_jobs_are_plain_json(tmp_path: Path) -> None:
    """The store needs this."""
    job = load(tmp_path, {**SHOTS, "output": {"fps": "24000/1001"}}).jobs[0]
    assert RunConfig.model_validate(json.loads(job.config.model_dump_json())) == job.config


@pytest.mark.parametrize("separator", [";", "\t"])
def test_another_separator_than_the_comma_is_named(tmp_path: Path, separator: str) -> None:
    with pytest.raises(InputError, match=r"expected columns separated by commas, got the separator"):
        load_file(tmp_path, "s.csv", f"shot{separator}prompt\na{separator}b\n")


def test_a_key_that_only_names_files_is_led_to_fields(tmp_path: Path) -> None:
    (problem,) = load(tmp_path, {"shots": [{"prompt": "a", "lens": 35}]}).problems
    assert problem.endswith("unknown key 'lens': expected a setting, or fields.lens for a field that only names files")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("steps", "sampling.num_inference_steps"),
        ("sampling.steps", "sampling.num_inference_steps"),
        ("guidance_scale", "guidance.cfg_scale"),
        ("frames", "sampling.num_frames"),
    ],
)
def test_names_of_other_programs_are_understood(tmp_path: Path, key: str, meant: str) -> None:
    (problem,) = load(tmp_path, {"shots": [{"prompt": "a", key: 3}]}).problems
    assert f"did you mean {meant!r}?" in problem
    assert f"did you mean {meant!r}?" in refusal(tmp_path, {**SHOTS, **({key: 3} if "." not in key else {"steps": 3})})
