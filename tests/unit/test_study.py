"""Tests of tools/study.py and its report: plan, stored results, and resuming to the same result."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import study
import study_report
import torch
from PIL import Image
from shapes.world import Scene, render
from shapes_helpers import next_color, understand
from studies.cells import Cell, Counts, Take, cost_ratio, evaluations, make_plan, mask_seed_of, seed_of
from studies.clip_file import Records, read_records
from studies.markdown import tables
from studies.summary import summarize, value_of
from studies.summary_file import read_summary
from tiny import NUM_BLOCKS, PROMPT, tiny_config
from torch import Tensor

from s2video.config.run import GuidanceConfig, RunConfig, build_config, read_config
from s2video.engine.engine import Engine
from s2video.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = read_config(ROOT / "configs" / "shapes.yaml")
SCALE = CONFIG.guidance.cfg_scale
DEPTH = 12
COUNTS = ["--captions", "1", "--side-captions", "1", "--reference", "1", "--seeds", "2"]


@dataclass
class FakeSampler:
    """A sampler that renders captions, with wrong colours if `wrong_when(config)`. Can fail after some calls."""

    config: RunConfig = CONFIG
    num_blocks: int = DEPTH
    wrong_when: Any = lambda config: False
    calls: list[tuple[list[str], list[int], int | None]] = field(default_factory=list)
    breaks_after: int | None = None

    def with_config(self, config: RunConfig) -> "FakeSampler":
        return replace(self, config=config)  # `calls` is shared

    def sample(self, prompts: Sequence[str], seeds: Sequence[int], *, mask_seed: int | None = None) -> Tensor:
        if len(self.calls) == self.breaks_after:
            raise KeyboardInterrupt
        self.calls.append((list(prompts), list(seeds), mask_seed))
        scenes = [understand(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        if self.wrong_when(self.config):
            scenes = [Scene(tuple(map(next_color, scene.things)), scene.background) for scene in scenes]
        return render(scenes)[0]

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        yield (latents[0].permute(1, 2, 3, 0) + 1) / 2


def run(sampler: FakeSampler, work: Path, *arguments: str, weights: str = "w") -> int:
    facts = {"config": CONFIG.model_dump(mode="json"), "weights": {"transformer": weights}, "versions": {}}
    return study.main(["--config", "x", "--work", str(work), *COUNTS, *arguments], lambda path, sets: (sampler, facts))


def contents(work: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(work.glob("*.jsonl"))}


# The plan


def test_every_cell_is_a_config_and_has_one_name() -> None:
    plan = make_plan(CONFIG, DEPTH, seeds=2, slg_layers=[4])
    assert set(plan) == {"truth", *study.PARTS}
    cells: dict[str, Cell] = {}
    for points in plan.values():
        for point in points:
            assert cells.setdefault(point.cell.name, point.cell) == point.cell
            point.cell.config(CONFIG)
    settings = {
        json.dumps([c.config(CONFIG).model_dump(mode="json"), c.clips, c.takes, c.renders]) for c in cells.values()
    }
    assert len(settings) == len(cells), "nothing is made twice"
    sizes = {part: len(points) for part, points in plan.items()}
    assert sizes == {
        "truth": 2, "main": 9, "naive": 3, "grid": 24, "drop": 5, "first": 3, "window": 6, "masks": 5, "seeds": 5,
    }  # fmt: skip


def test_cells_are_what_they_are_called() -> None:
    plan = make_plan(CONFIG, DEPTH, seeds=2, slg_layers=[4])
    main = {point.at: point.cell.config(CONFIG) for point in plan["main"]}
    assert main["cond"].guidance.cfg_scale == 1 and not main["cond"].guidance.uses_s2
    assert not main["cfg"].guidance.uses_s2 and main["s2"].guidance == CONFIG.guidance
    alone = [main[name].guidance for name in ("s2-alone", "s2-alone-strong")]
    assert [(one.cfg_scale, one.s2_scale) for one in alone] == [(1, CONFIG.guidance.s2_scale), (1, 1)]
    assert main["cfg-longer"].sampling.num_inference_steps == 35, "1.167 times 30"
    assert main["slg"].guidance.slg.layers == (4,) and main["cfg-zero-star"].guidance.method == "cfg_zero_star"
    drop = {point.at: point.cell.config(CONFIG).guidance for point in plan["drop"]}
    assert not drop[0].uses_s2
    assert [drop[n].mask_spec().count(DEPTH) for n in (1, 2, 3, 4)] == [1, 2, 3, 4]
    first = {point.at: point.cell.config(CONFIG).guidance for point in plan["first"]}["first"]
    assert first.mask_spec().eligible(DEPTH) == (0,) and first.mask_spec().count(DEPTH) == 1
    assert [point.cell.takes for point in plan["masks"]] == [(Take(0, i),) for i in range(5)]
    assert [point.cell.takes for point in plan["seeds"]] == [(Take(i, 0),) for i in range(5)]
    grid = {tuple(point.at): point.cell.name for point in plan["grid"]}
    assert grid[SCALE, 0.25] == "side" and grid[SCALE, 0.0] == plan["naive"][0].cell.name == plan["drop"][0].cell.name


def test_a_config_without_s2_is_refused() -> None:
    for guidance in ({"s2_scale": 0.0}, {"cfg_scale": 1.0}, {"method": "apg"}):
        with pytest.raises(InputError, match="the study varies CFG and S²"):
            make_plan(build_config({"guidance": guidance}), DEPTH, seeds=1, slg_layers=[4])


def test_clips_and_seeds_do_not_meet() -> None:
    counts = Counts(captions=4, side_captions=2, reference=3)
    main = counts.clips("main")
    assert [len(clip.scene.things) for clip in main] == [1] * 4 + [2] * 4
    assert counts.clips("side") == [*main[:2], *main[4:6]], "side begins where main begins"
    takes = [Take(noise, masks) for noise in range(5) for masks in range(5)]
    noises = {seed_of(clip, take) for clip in main for take in takes}
    masks = {mask_seed_of(clip, take) for clip in main for take in takes}
    assert len(noises) == len(masks) == 8 * 5 and not noises & masks


@pytest.mark.parametrize(
    "guidance",
    [
        {"cfg_scale": 1.0, "s2_scale": 0.0},
        {"s2_scale": 0.0},
        {"s2_scale": 0.25, "num_draws": 2},
        {"s2_scale": 0.25, "share_prefix": False},
        {"method": "slg", "slg": {"layers": [2, 4], "start": 0.0, "stop": 0.7}},
    ],
)
def test_evaluations_are_what_the_engine_runs(guidance: dict[str, Any], tiny_checkpoint: Path) -> None:
    config = tiny_config(tiny_checkpoint, **guidance)
    engine = Engine(config, progress="none")
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    for block in engine._experts.take_turn(0).module.blocks:
        block.register_forward_hook(count)
    engine.sample([PROMPT], [3], mask_seed=11)
    expected = evaluations(config.guidance, num_blocks=NUM_BLOCKS, num_steps=6, mask_seed=11)
    assert runs / NUM_BLOCKS == pytest.approx(expected)


def test_the_expected_cost_is_the_mean_over_masks() -> None:
    spec = {"num_blocks": DEPTH, "num_steps": 30}
    drawn = [evaluations(CONFIG.guidance, mask_seed=seed, **spec) for seed in range(300)]
    plain = evaluations(GuidanceConfig(s2_scale=0.0), mask_seed=0, **spec)
    assert plain == 60
    assert sum(drawn) / len(drawn) / plain == pytest.approx(cost_ratio(CONFIG.guidance, DEPTH, CONFIG), abs=0.01)


# The cells' files


def test_a_stopped_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(FakeSampler(), whole, "--parts", "main") == 0
    for calls in (0, 3, 6):
        with pytest.raises(KeyboardInterrupt):
            run(FakeSampler(breaks_after=calls), stopped, "--parts", "main")
    last = max(stopped.glob("main-*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    last.write_bytes(last.read_bytes()[:-7])  # killed while a line was written
    assert run(FakeSampler(), stopped, "--parts", "main") == 0
    assert contents(stopped) == contents(whole)
    again = FakeSampler()
    assert run(again, stopped, "--parts", "main") == 0
    assert again.calls == [], "nothing is left to do"


def test_a_change_is_refused_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(FakeSampler(), tmp_path, "--parts", "naive") == 0
    before = contents(tmp_path)
    assert run(FakeSampler(), tmp_path, "--parts", "naive", weights="other") == 2
    assert "weights.transformer" in capsys.readouterr().err
    assert run(FakeSampler(), tmp_path, "--parts", "naive", "--batch", "5") == 2
    assert "(batch)" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_file_without_a_whole_header_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "cell.jsonl"
    path.write_text('{"cell": ')
    assert read_records(path) is None and read_records(tmp_path / "none.jsonl") is None
    records = Records(path, {"cell": (1, 2)})
    records.add([{"index": 0, "text": "λ\u2028"}])
    assert read_records(path) == ({"cell": [1, 2]}, [{"index": 0, "text": "λ\u2028"}])
    assert Records(path, {"cell": [1, 2]}).rows == records.rows


def test_masks_are_a_clip_s_own_unless_they_are_shared(tmp_path: Path) -> None:
    own, shared = FakeSampler(), FakeSampler()
    run(own, tmp_path / "own", "--parts", "masks")
    run(shared, tmp_path / "shared", "--parts", "masks", "--mask-batch", "2")
    assert [len(prompts) for prompts, _, _ in own.calls] == [1] * 10
    assert len({mask_seed for _, _, mask_seed in own.calls}) == 10
    assert len({tuple(seeds) for _, seeds, _ in own.calls}) == 2, "one noise for each clip"
    assert [len(prompts) for prompts, _, _ in shared.calls] == [2] * 5
    _, rows = read_records(tmp_path / "shared" / "side.jsonl") or ({}, [])
    assert rows[0]["mask_seed"] == rows[1]["mask_seed"] and rows[0]["seed"] != rows[1]["seed"]


def test_the_real_engine_is_driven_as_it_is(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(f"model: {{path: {json.dumps(str(tiny_checkpoint))}, device: cpu}}\n")
    short = ["sampling.num_inference_steps=2", "sampling.max_sequence_length=16"]
    arguments = ["--config", str(config), "--work", str(tmp_path / "w"), *COUNTS, "--parts", "naive"]
    assert study.main([*arguments, *(word for item in short for word in ("--set", item))]) == 0
    header, rows = read_records(tmp_path / "w" / "side-num_draws-4.jsonl") or ({}, [])
    assert header["weights"] and header["versions"]["torch"] == torch.__version__
    assert len(rows) == 2 and all(len(row["features"]) == 64 for row in rows)


# The report


def test_the_report_shows_who_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only plain CFG has wrong colours, so differences must show this, and the ground truth is 100 %."""
    work, figures, output = tmp_path / "work", tmp_path / "figures", tmp_path / "results" / "study.jsonl.gz"
    sampler = FakeSampler(wrong_when=lambda c: c.guidance.method == "s2" and not c.guidance.uses_s2)
    assert run(sampler, work, "--parts", "main", "naive", "drop", "first", "window", "masks", "seeds") == 0
    arguments = ["--work", str(work), "--output", str(output), "--figures", str(figures), "--resamples", "50"]
    assert study_report.main(arguments) == 0
    summary = read_summary(output)
    main = {entry["at"]: entry for entry in summary["parts"]["main"]}
    assert main["cfg"]["1"]["mean"]["color"] == [0, 0, 0] and main["truth"]["1"]["mean"]["perfect"] == [1, 1, 1]
    assert main["s2"]["both"]["difference"]["color"] == [1, 1, 1]
    assert main["s2"]["1"]["difference"]["all"] == pytest.approx([0.2] * 3)
    assert main["s2"]["both"]["evaluations"] == pytest.approx(70, abs=4) and main["cfg"]["both"]["evaluations"] == 60
    assert {"frechet"} <= main["s2"]["both"]["mean"].keys()
    assert main["s2-alone"]["2"]["less_cond"]["color"] == [1, 1, 1], "cond alone has wrong colours, too"
    assert main["s2-alone"]["both"]["less_cond"]["frechet"][0] != 0 and "less_cond" not in main["s2"]["1"]
    assert summary["spread"]["masks"]["all"]["of_means"] == 0
    assert all("both" not in entry for entry in summary["parts"]["grid"] if entry["at"][0] != SCALE)

    printed = capsys.readouterr().out
    before = output.read_bytes()
    assert study_report.main(["--show", str(output)]) == 0
    assert printed.startswith(capsys.readouterr().out)
    assert study_report.main(arguments) == 0
    assert output.read_bytes() == before, "the same bytes every time"
    assert "| S² | +100.0 (+100.0 to +100.0) |" in printed and "| not run yet |" in printed
    assert "**The same: looks less cond's**\n\n| method | Fréchet |" in printed
    drawn = {path.name for path in figures.iterdir()}
    assert drawn == {"study-pareto.png", "study-settings.png", "study-spread.png", "study-frames.png"}
    with Image.open(work / "stills" / "main-s2" / "001.png") as still:
        assert still.size == (4 * 64, 64)


def test_the_grid_is_held_against_its_own_scale_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only CFG at λ = 5 has wrong colours: S² at 5 gains nothing over CFG at the config's λ, but all over CFG at 5."""
    sampler = FakeSampler(wrong_when=lambda c: c.guidance.cfg_scale == 5 and not c.guidance.uses_s2)
    assert run(sampler, tmp_path / "work", "--parts", "grid") == 0
    output = tmp_path / "study.jsonl"
    arguments = ["--output", str(output), "--figures", str(tmp_path / "figures"), "--resamples", "5"]
    assert study_report.main(["--work", str(tmp_path / "work"), *arguments]) == 0
    grid = {tuple(entry["at"]): entry["both"] for entry in read_summary(output)["parts"]["grid"]}
    strong, plain = grid[5.0, 0.25], grid[5.0, 0.0]
    assert strong["difference"]["color"] == [0, 0, 0] and plain["difference"]["color"] == [-1, -1, -1]
    assert strong["same_scale"]["color"] == [1, 1, 1] and "same_scale" not in plain
    assert grid[SCALE, 0.25]["same_scale"] == grid[SCALE, 0.25]["difference"]
    assert re.search(r"^\| 5 \| \+\d", capsys.readouterr().out, re.MULTILINE)


def test_what_is_not_whole_has_no_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path / "o.jsonl"), "--figures", str(tmp_path / "f"), "--resamples", "5"]
    assert study_report.main(["--work", str(tmp_path), *arguments]) == 2
    assert "tools/study.py" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        run(FakeSampler(breaks_after=1), tmp_path / "w", "--parts", "naive")
    assert study_report.main(["--work", str(tmp_path / "w"), *arguments]) == 0
    naive = read_summary(tmp_path / "o.jsonl")["parts"]["naive"]
    assert [entry["made"] for entry in naive] == [2, 0, 0]
    assert "both" in naive[0] and "both" not in naive[1]
    assert "not run yet" in capsys.readouterr().out


@pytest.mark.parametrize(("page", "results", "made"), [("video", "study", 15), ("second-model", "study-24", 11)])
def test_the_pages_have_the_tables_of_their_result_files(
    page: str, results: str, made: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """To update: python tools/study_report.py --show tools/results/RESULTS.jsonl.gz, into the page."""
    text = (ROOT / "docs" / "evidence" / f"{page}.md").read_text(encoding="utf-8")
    assert study_report.main(["--show", str(ROOT / "tools" / "results" / f"{results}.jsonl.gz")]) == 0
    shown = [table.strip() for table in capsys.readouterr().out.split("\n\n**")]
    whole = [table for table in shown if "Not run yet." not in table]
    assert len(whole) == made and [table for table in whole if table not in text] == []


def test_what_the_report_cannot_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_text("{}")
    assert study_report.main(["--show", str(broken)]) == 2
    assert "expected a result file in JSON Lines" in capsys.readouterr().err
    for arguments in ([], ["--output", "x.json", "--figures", "x"]):
        with pytest.raises(SystemExit):
            study_report.main(arguments)
    assert "expected --output and --figures, or --show" in (errors := capsys.readouterr().err)
    assert "ends in .jsonl or .jsonl.gz, got 'x.json'" in errors


def test_the_page_has_a_place_for_every_table(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(FakeSampler(breaks_after=0), tmp_path, "--parts", "naive")
    titles = re.findall(r"^\*\*.+\*\*$", tables(summarize(tmp_path, resamples=2)), re.MULTILINE)
    page = (ROOT / "docs" / "evidence" / "video.md").read_text(encoding="utf-8")
    assert len(titles) == 15 and [title for title in titles if f"\n{title}\n" not in page] == []


def test_values_that_do_not_exist_are_not_zero() -> None:
    row = {"swapped": {"color": True}, "saturation": None, "scores": {"all": 0.5}, "flicker": 0.1}
    assert value_of(row, "swapped color") == 1 and value_of(row, "all") == 0.5 and value_of(row, "flicker") == 0.1
    assert value_of(row, "swapped shape") != value_of(row, "swapped shape"), "NaN"
    assert value_of(row, "saturation") != value_of(row, "saturation")
