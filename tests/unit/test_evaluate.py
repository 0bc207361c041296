"""Tests of tools/evaluate.py with fake engines that render captions correctly or wrongly: the figures must show it."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import torch
from PIL import Image
from shapes import report
from shapes.world import COLORS, HELD_OUT, Scene, render
from shapes_helpers import next_color, understand
from torch import Tensor

from s2video.errors import InputError, NumericalError


@dataclass(frozen=True)
class FakeSampler:
    """A sampler that renders captions, with wrong colours if `wrong_when(guidance)`."""

    wrong_when: Any = lambda guidance: False
    guidance: dict[str, float] = field(default_factory=lambda: {"cfg_scale": 5.0, "s2_scale": 0.25})
    calls: list[dict[str, Any]] = field(default_factory=list)

    def with_guidance(self, **changes: float) -> "FakeSampler":
        return replace(self, guidance=self.guidance | changes)

    def sample(self, prompts: Sequence[str], seeds: Sequence[int], *, mask_seed: int | None = None) -> Tensor:
        self.calls.append({"prompts": list(prompts), "seeds": list(seeds), "mask_seed": mask_seed, **self.guidance})
        scenes = [understand(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        if self.wrong_when(self.guidance):
            scenes = [Scene(tuple(map(next_color, scene.things)), scene.background) for scene in scenes]
        return render(scenes)[0]

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        assert latents.shape[0] == 1
        frames = (latents[0].permute(1, 2, 3, 0) + 1) / 2
        yield frames[:1]
        yield from frames[1:].split(4)


def run(sampler: FakeSampler, folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    output = folder / "runs" / "eval.json"
    common = ["--config", "unused.yaml", "--captions", "6", "--grid-captions", "3", "--batch", "4"]
    code = evaluate.main(
        [*common, "--output", str(output), *arguments],
        lambda config, overrides: (sampler, {"config": {"of": "a fake"}}),
    )
    return code, json.loads(output.read_text())


def test_right_engine_has_everything_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampler = FakeSampler()
    code, figures = run(sampler, tmp_path, "--check", "--cfg-scales", "4", "2")
    assert code == 0
    assert figures["config"] == {"of": "a fake"} and figures["settings"]["captions"] == 6
    assert figures["cfg_scale"] == 2, "of equal scales the smallest"
    assert all(bar["met"] and bar["reached"] == 1 for bar in figures["bars"])
    assert [(row["method"], row["num_things"]) for row in figures["summary"]] == [
        ("CFG", 1), ("S²", 1), ("S² − CFG", 1), ("CFG", 2), ("S²", 2), ("S² − CFG", 2),
    ]  # fmt: skip
    for row in figures["summary"]:
        expected = 0 if "−" in row["method"] else 1
        assert all(row[name] == expected for name in report.COLUMNS) and row["interval"] == [expected, expected]
    printed = capsys.readouterr().out
    assert "bar: CFG, things 2, all attributes at least 75 %: 100.0 %, met" in printed
    assert "not met" not in printed
    assert list((tmp_path / "runs").iterdir()) == [tmp_path / "runs" / "eval.json"]


def test_wrong_colors_are_told_from_right_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CFG is right at λ = 4 only, S² everywhere, so the grid must choose 4, and a run at 2 must show the difference."""
    sampler = FakeSampler(lambda g: g["s2_scale"] == 0 and g["cfg_scale"] != 4)
    code, figures = run(sampler, tmp_path, "--cfg-scales", "1", "4", "6", "--num-things", "1", "--check")
    assert figures["cfg_scale"] == 4
    assert [row["cfg_scale"] for row in figures["grid"]] == [1, 4, 6]
    assert [row["all"] for row in figures["grid"]] == pytest.approx([0.8, 1, 0.8])
    assert code == 1, "two things were not measured"
    assert [bar["reached"] for bar in figures["bars"]] == [1, 1, None]

    code, figures = run(sampler, tmp_path, "--cfg-scales", "2", "--num-things", "1", "--check")
    assert code == 1 and figures["grid"] == []
    cfg, s2, difference = figures["summary"]
    assert cfg["color"] == 0 and cfg["shape"] == 1 and cfg["all"] == pytest.approx(0.8) and cfg["perfect"] == 0
    assert s2["all"] == 1 and difference["color"] == 1 and difference["all"] == pytest.approx(0.2)
    assert difference["interval"] == pytest.approx([0.2, 0.2])
    assert [bar["met"] for bar in figures["bars"]] == [False, False, False]
    printed = capsys.readouterr().out
    assert "the weakest attribute at least 75 %: 0.0 %, not met" in printed and "+20.0" in printed
    assert run(sampler, tmp_path, "--cfg-scales", "2", "--num-things", "1")[0] == 0, "no --check, no exit code"


def test_grid_and_report_are_apart_and_methods_are_paired(tmp_path: Path) -> None:
    sampler = FakeSampler()
    _, figures = run(sampler, tmp_path, "--cfg-scales", "1", "2", "--s2-scale", "0.5", "--seed", "3")
    grid_calls, report_calls = sampler.calls[:4], sampler.calls[4:]
    assert [len(call["prompts"]) for call in sampler.calls] == [3] * 4 + [4, 2] * 4
    assert all(call["s2_scale"] == 0 for call in grid_calls)
    assert [call["s2_scale"] for call in report_calls] == [0, 0, 0.5, 0.5] * 2
    assert all(call["mask_seed"] == call["seeds"][0] for call in sampler.calls)
    for kind in ("prompts", "seeds"):
        grid = {value for call in grid_calls for value in call[kind]}
        measured = {value for call in report_calls for value in call[kind]}
        assert not grid & measured
        assert len(measured) == 12, "captions and seeds differ within a set"
        assert [call[kind] for call in report_calls[0:2]] == [call[kind] for call in report_calls[2:4]]
    for call in sampler.calls:
        for prompt in call["prompts"]:
            assert all(thing.key in HELD_OUT for thing in understand(prompt, 0).things)
    clips = figures["report"][0]["clips"]
    assert clips[0]["caption"] == report_calls[0]["prompts"][0] and clips[0]["seed"] == report_calls[0]["seeds"][0]
    assert clips[0]["scores"]["objects.0.color"] is True and clips[0]["read"]["objects"][0]["color"] in COLORS

    again = FakeSampler()
    run(again, tmp_path, "--cfg-scales", "1", "2", "--s2-scale", "0.5", "--seed", "3")
    assert again.calls == sampler.calls
    other = FakeSampler()
    run(other, tmp_path, "--cfg-scales", "1", "2", "--s2-scale", "0.5", "--seed", "4")
    assert (
        other.calls[0]["prompts"] != sampler.calls[0]["prompts"]
        and other.calls[0]["seeds"] != sampler.calls[0]["seeds"]
    )


def test_trained_combinations_in_place_of_held_out_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampler = FakeSampler()
    code, _ = run(sampler, tmp_path, "--trained", "--cfg-scales", "2")
    things = [thing for call in sampler.calls for p in call["prompts"] for thing in understand(p, 0).things]
    assert code == 0 and things and not any(thing.key in HELD_OUT for thing in things)
    assert "6 trained captions for each" in capsys.readouterr().out


def test_captions_repeat_only_when_all_are_used() -> None:
    taken = frozenset(
        clip.caption for clip in evaluate.draw_clips("grid", count=16, num_things=1, seed=0, first_seed=0)
    )
    assert len(taken) == 16
    clips = evaluate.draw_clips("report", count=60, num_things=1, seed=0, first_seed=100, taken=taken)
    captions = [clip.caption for clip in clips]
    assert len(set(captions[:56])) == 56 and not taken & set(captions), (
        "72 captions of one held-out thing, 16 are taken"
    )
    assert len({clip.seed for clip in clips}) == 60
    everything = frozenset(captions) | taken
    with pytest.raises(InputError, match="--grid-captions"):
        evaluate.draw_clips("report", count=1, num_things=1, seed=0, first_seed=0, taken=everything)


def test_bootstrap_interval_has_the_width_of_theory() -> None:
    values = np.arange(400) % 2 * 1.0
    low, high = report.interval(values, seed=0)
    half_width = 1.96 * 0.5 / 20
    assert low == pytest.approx(0.5 - half_width, abs=0.01) and high == pytest.approx(0.5 + half_width, abs=0.01)
    assert report.interval(values, seed=0) == (low, high)


def test_sheet_shows_the_first_captions(tmp_path: Path) -> None:
    """CFG draws wrong colours, S² the right ones; the rows of CFG are above those of S²."""
    sheet = tmp_path / "sheets" / "eval.png"
    sampler = FakeSampler(lambda g: g["s2_scale"] == 0)
    run(sampler, tmp_path, "--cfg-scales", "2", "--num-things", "1", "--captions", "3", "--sheet", str(sheet))
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    cell_width = pixels.shape[1] // 3
    assert cell_width > 4 * 2 * 64 and pixels.shape[0] > 2 * 2 * 64
    for index, prompt in enumerate(sampler.calls[0]["prompts"]):
        cell = pixels[:, index * cell_width : (index + 1) * cell_width]
        (thing,) = understand(prompt, 0).things
        wrong, right = (_rows_of_color(cell, name) for name in (next_color(thing).color, thing.color))
        assert len(wrong) > 20 and len(right) > 20 and wrong.max() < right.min(), prompt


def _rows_of_color(pixels: np.ndarray, name: str) -> np.ndarray:
    target = (np.array(COLORS[name]) * 255).round()
    return np.flatnonzero((np.abs(pixels - target).max(axis=-1) <= 1).any(axis=1))


@pytest.mark.parametrize(
    "arguments",
    [["--captions", "0"], ["--cfg-scales", "nan"], ["--cfg-scales", "-1"], ["--num-things", "3"], ["--seed", "-1"]],
)
def test_bad_arguments_exit_with_2(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(FakeSampler(), tmp_path, *arguments)
    assert caught.value.code == 2 and arguments[0] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_failures_of_the_run_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(config: Path, overrides: Sequence[str]) -> Any:
        raise InputError(f"config file {config} does not exist: check the path")

    def broken(config: Path, overrides: Sequence[str]) -> Any:
        raise NumericalError("NaN at step 3")

    arguments = ["--config", "no.yaml", "--output", str(tmp_path / "eval.json")]
    assert evaluate.main(arguments, missing) == 2
    assert evaluate.main(arguments, broken) == 1
    assert evaluate.main(["--config", "no.yaml", "--output", str(tmp_path)], missing) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0:2] for line in lines] == [["evaluate", " error"]] * 3
    assert "no.yaml" in lines[0] and "step 3" in lines[1] and str(tmp_path) in lines[2]
    assert not list(tmp_path.iterdir())


def test_real_engine_is_driven_as_it_is(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The model is untrained, so results are arbitrary, but the whole path from config to figures must run."""
    config = tmp_path / "tiny.yaml"
    config.write_text(f"model: {{path: {json.dumps(str(tiny_checkpoint))}, device: cpu}}\n")
    output = tmp_path / "eval.json"
    small = ["--captions", "2", "--batch", "2", "--cfg-scales", "2", "--num-things", "1"]
    short = ["--set", "sampling.num_inference_steps=2", "--set", "sampling.max_sequence_length=16"]
    torch.manual_seed(0)
    assert evaluate.main(["--config", str(config), "--output", str(output), *small, *short]) == 0
    figures = json.loads(output.read_text())
    assert figures["weights"] and figures["versions"]["torch"] == torch.__version__
    assert figures["config"]["sampling"]["num_inference_steps"] == 2
    assert [len(group["clips"]) for group in figures["report"]] == [2, 2]


@pytest.mark.parametrize(
    ("tool", "package"),
    [
        ("evaluate", "scipy"),
        ("study", "matplotlib"),
        ("study_report", "matplotlib"),
        ("toy", "matplotlib"),
    ],
)
def test_a_missing_extra_is_named(tool: str, package: str) -> None:
    """It is named before anything runs, even before the arguments are parsed."""
    path = Path(evaluate.__file__).with_name(f"{tool}.py")
    blocked = (
        f"import sys, runpy; sys.modules[{package!r}] = None; sys.argv = [{str(path)!r}]; "
        f"sys.path.insert(0, {str(path.parent)!r}); runpy.run_path({str(path)!r}, run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == ""
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"{tool}: error: {package} is not installed. Install the extra `tools`: pip install")
    assert "Traceback" not in ended.stderr
