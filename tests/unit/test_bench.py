"""Tests of tools/bench.py: arithmetic, counts, table, and every section at small sizes. They assert no times."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import bench
import pytest
import torch
from benches import decoding_cost, growth, many_videos, overhead, step, weight_fetching, whole_runs
from benches.report_file import read_report, write_report
from benches.rows import Row, Section, counted, measured, table
from benches.workloads import CPU, Options, apart, random_model, s2_over_cfg, scaled_step, scaled_wan, wan_step

from s2video.batch.run_file import load_batch
from s2video.config.run import read_config
from s2video.parallel.mesh import Mesh

QUICK = Options(masks=2, repeats=2, quick=True)
GPU_SECTIONS = [name for name in bench.SECTIONS if name.startswith("gpu")]
DOCUMENT = Path(bench.__file__).resolve().parents[1] / "docs" / "evidence" / "cost.md"


@pytest.mark.parametrize(("num_blocks", "shared"), [(30, 1.325), (40, 1.35), (60, 1.38)])
def test_expected_cost(num_blocks: int, shared: float) -> None:
    """With d of L blocks dropped, never the first, the first dropped block is 1 + (L − 1 − d)/(d + 1) on average."""
    dropped = num_blocks // 10
    first = 1 + (num_blocks - 1 - dropped) / (dropped + 1)
    assert s2_over_cfg(num_blocks) == pytest.approx(1 + (num_blocks - first - dropped) / (2 * num_blocks))
    assert s2_over_cfg(num_blocks) == pytest.approx(shared, abs=0.005)
    assert s2_over_cfg(num_blocks, share_prefix=False) == pytest.approx(1.45)


def test_cost_of_masks() -> None:
    assert s2_over_cfg(30, [(4, 16, 18)]) == pytest.approx(1 + 23 / 60)
    assert s2_over_cfg(30, [(4, 16, 18), (29,)]) == pytest.approx(1 + 23 / 120)
    assert s2_over_cfg(30, [(4, 16, 18)], share_prefix=False) == pytest.approx(1 + 27 / 60)


def test_a_row_has_the_median_of_the_turns_ratios() -> None:
    """It is not the ratio of medians, because both were slow in the third turn."""
    row = measured("x", [3.0, 2.0, 50.0, 2.0, 1.0], [2.0, 2.0, 40.0, 1.0, 1.0], "1")
    assert (row.ratio, row.spread) == (1.25, (1.0, 1.5))
    assert measured("x", [3.0], [2.0], "1").spread == (1.5, 1.5)


def test_the_table_has_a_line_for_what_was_not_run() -> None:
    section = Section([Row("a / b", 1.25, (1.0, 1.5), "1.2"), counted("bytes", 1.0, "1 (5 MiB)")])
    assert table({"second": section.as_json()}, {"first": "The first", "second": "The second"}).splitlines()[2:] == [
        "| The first | not run | | |",
        "| a / b | 1.250 | 1.000 to 1.500 | 1.2 |",
        "| bytes | 1.000 | counted | 1 (5 MiB) |",
    ]


def test_live_bytes() -> None:
    outside = torch.ones(500)
    with step.LiveBytes() as memory:
        first = outside + 1  # 2000 bytes
        second = first.view(5, 100) * 2  # 4000
        del first
        third = outside.view(50, 10).t()  # of another process
        second = second.add_(1)
    assert (memory.peak, memory.live, third.shape) == (4000, 2000, (10, 50))


@pytest.mark.parametrize("mask", [(1,), (3,), (1, 3), (5,)])
def test_memory_grows_by_one_state(mask: tuple[int, ...]) -> None:
    """It holds the sub branch's state; the fork's state is freed when cond advances."""
    one = scaled_step(quick=True)
    state = one.model.num_tokens(one.latents) * 24 * 4
    assert step.peak_bytes(lambda: one([mask]), CPU) - step.peak_bytes(lambda: one(), CPU) == state


def test_memory_of_a_step() -> None:
    section = step.in_memory(QUICK)
    raw, (row,) = section.raw, section.rows
    assert raw["peak_beside_weights"]["s2"] - raw["peak_beside_weights"]["cfg"] == raw["state"] == 6 * 24 * 4
    assert row.ratio - 1 == pytest.approx(raw["state"] / (raw["weights"] + raw["peak_beside_weights"]["cfg"]))


def test_flops_are_those_of_the_blocks_that_run() -> None:
    """They are two whole passes, one block's FLOPs per block of the sub branch, and the sub branch's projection."""
    one = scaled_step(quick=True)
    cfg, *subs = step.count_flops(one, [(), ((5,),), ((4,),), ((1,),), ((1, 5),)])
    block = subs[1] - subs[0]
    assert [count - subs[0] for count in subs] == [0, block, 4 * block, 3 * block]
    assert 0 < subs[0] - cfg < block
    for masks in (
        ((2, 4),),
        ((3,),),
        ((1, 2, 3, 5),),
    ):  # counted again, because another mask with as many blocks gives other FLOPs
        (count,) = step.count_flops(one, [masks])
        assert count - subs[0] == (6 - masks[0][0] - len(masks[0])) * block


def test_flops_of_a_run() -> None:
    section = step.in_flops(QUICK)
    raw = section.raw["tiny Wan"]
    assert len(raw["s2_by_step"]) == 10 and raw["s2_by_step"][0] == raw["cfg"] < max(raw["s2_by_step"])
    assert section.rows[1].ratio == pytest.approx(sum(raw["s2_by_step"]) / raw["cfg"] / 10)
    assert section.rows[1].ratio < section.rows[0].ratio  # the first and the last step are CFG


def test_seconds_of_a_step_by_way_repeat_and_mask() -> None:
    section = step.by_the_clock(QUICK)
    times = section.raw["Wan 1.3B scaled down"]["seconds"]
    assert {way: torch.tensor(t).shape for way, t in times.items()} == dict.fromkeys(
        ("cfg", "shared", "recomputed"), (2, 2)
    )
    rows = step.step_rows("x", 6, [(1,), (3,)], {"cfg": [[2, 2]], "shared": [[2, 3]], "recomputed": [[3, 3]]})
    assert [row.ratio for row in rows] == [1.25, 1.5]
    assert "1.250 for the masks drawn, 1.167 expected" in rows[0].held_against


def test_whole_runs() -> None:
    section = whole_runs.runs(QUICK)
    assert [len(draws) for draws in section.raw["masks"]] == [1, 1, 1]  # all three steps are in the window
    assert section.raw["seconds"].keys() == {"s2", "cfg"}
    assert whole_runs.against_diffusers(QUICK).raw["bitwise_equal"]


def test_parts_of_a_step_add_up() -> None:
    section = overhead.bench(replace(QUICK, repeats=1))
    for row, (found,) in zip(section.rows, section.raw.values(), strict=True):
        assert all(taken >= 0 for taken in found.values()) and found["blocks"] > 0 and found["rest"] > 0
        assert row.ratio == pytest.approx(1 - found["blocks"] / sum(found.values()))
    assert section.raw["shapes-wan (12 blocks)"][0]["scheduler"] > 0 and "guidance" in section.rows[1].held_against


def test_runs_with_reuse() -> None:
    """Of 16 steps with 6 blocks: light computes cond in all, uncond in 9 and sub in 6; fast cond and uncond in 9."""
    section = whole_runs.with_reuse(replace(QUICK, repeats=1))
    exact, deviation, light, fast = (float(row.held_against.split()[0]) for row in section.rows)
    assert exact > 1 > light > fast and deviation > 1
    assert 25 / 32 < light < 31 / 32 and 18 / 32 < fast < 21 / 32
    assert set(section.raw["seconds"]) == {"cfg", "exact", "deviation", "light", "fast"}


def test_streamed_weights(tmp_path: Path) -> None:
    size = weight_fetching.save_transformer(tmp_path, scaled_wan(quick=True))
    section = weight_fetching.streamed(tmp_path, (1, 4, 6), 1)
    assert section.raw["bitwise_equal"]
    assert section.rows[0].ratio == 3
    assert size == sum(p.nbytes for p in random_model(scaled_wan(quick=True)).parameters())
    # in a new process, because one that held more memory before would not grow
    assert 0 < apart("weight_fetching.load_peak", folder=str(tmp_path), kind="streamed")[0] < 2**30


def test_decoding_takes_memory_above_the_base() -> None:
    size = {"num_frames": 9, "height": 64, "width": 64}
    assert apart("decoding_cost.peak", environment=decoding_cost.GIVE_BACK, **size)[0] > 2**20


def test_the_loop_over_diffusers(tmp_path: Path) -> None:
    many_videos.diffusers_loop(Mesh(CPU), str(tmp_path), 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["0.mp4"]


def test_batch_and_processes_make_the_same_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(many_videos, "run_s2video", lambda *arguments: calls.append(arguments))
    many_videos.as_batch(tmp_path, 3, 2)
    many_videos.as_processes(tmp_path, 3, 2)
    jobs = load_batch(Path(calls[0][1])).jobs
    configs = []
    for call in calls[1:]:
        given = dict(zip(call[1::2], call[2::2], strict=True))
        configs.append(
            read_config(Path(given["--config"]), [f"prompt={given['--prompt']}", f"sampling.seed={given['--seed']}"])
        )
    assert len(jobs) == 3 and {config.guidance.s2_scale for config in configs} == {0.0}
    assert [job.config.prompt for job in jobs] == [config.prompt for config in configs] == many_videos.PROMPTS[:3]
    assert [job.config.sampling for job in jobs] == [config.sampling for config in configs]


@pytest.mark.parametrize("name", GPU_SECTIONS)
def test_a_gpu_section_in_miniature(name: str) -> None:
    section = bench.SECTIONS[name].run(QUICK)
    assert section.rows and all(math.isfinite(row.ratio) and row.ratio > 0 for row in section.rows)
    json.dumps(section.as_json())
    if name == "gpu-decode":
        assert section.raw["tiny"]["difference"] == 0
    if name == "gpu-dtype":
        assert 1e-4 < section.rows[0].ratio < 0.1
    if name == "gpu-backends":
        assert "native" in section.raw["seconds"]
        assert section.raw["seconds"].keys() | section.raw["absent"].keys() == set(bench.gpu.BACKENDS)


def test_random_models_keep_float32_where_the_class_does() -> None:
    model = random_model(scaled_wan(quick=True), dtype=torch.bfloat16)
    assert model.blocks[0].scale_shift_table.dtype == torch.float32
    assert model.blocks[0].ffn.net[2].weight.dtype == model.proj_out.weight.dtype == torch.bfloat16
    again = random_model(scaled_wan(quick=True), dtype=torch.bfloat16)
    assert torch.equal(model.proj_out.weight, again.proj_out.weight)
    assert wan_step(model, (1, 4, 6)).latents.dtype == torch.bfloat16


def test_a_report_and_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.jsonl"
    bench.main(["--quick", "--threads", "1", "--sections", "memory", "gpu-dtype", "--json", str(file)])
    printed = capsys.readouterr().out
    report = read_report(file)
    expected = {"command", "date", "machine", "device", "cpus", "threads", "quick", "versions", "sections"}
    assert report.keys() == expected and report["threads"] == 1
    assert report["versions"].keys() >= {"torch", "diffusers", "python"}
    assert report["sections"].keys() == {"memory", "gpu-dtype"}
    for section in report["sections"].values():
        assert section.keys() == {"rows", "raw"}
        assert all(row.keys() == asdict(counted("", 1, "")).keys() for row in section["rows"])
    shown = bench.show([file]).splitlines()
    assert len(shown) == 2 + len(bench.SECTIONS)
    assert [line for line in shown if "not run" not in line] == printed.splitlines()[:4]


def test_of_several_reports_the_last_counts(tmp_path: Path) -> None:
    for name, ratio in (("a.jsonl", 1.0), ("b.jsonl", 2.0)):
        section: dict[str, Any] = Section([counted("bytes", ratio, "")]).as_json()
        write_report(tmp_path / name, {"sections": {"traffic": section}})
    assert "| bytes | 2.000 |" in bench.show([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections", "gpu-wan"], "--device cuda, got cpu"),
        (["--sections", "nothing"], "invalid choice"),
        (["--device", "cuda"], "torch finds no GPU here"),
        (["--json", "report.json"], "ends in .jsonl"),
    ],
)
def test_what_cannot_be_run(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        bench.parse(arguments)
    assert message in capsys.readouterr().err


def test_the_document_shows_what_was_measured() -> None:
    """To update: python tools/bench.py --show FILE …, into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    files = [DOCUMENT.parents[2] / word for word in text.split("--show ")[1].splitlines()[0].split()]
    assert bench.show(files) in text
    assert not any(read_report(file)["quick"] for file in files)


def test_a_run_that_is_cut_off_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a GPU, sections run in the order of their value until the time is over; a failing one stops no other."""
    seconds, run = [0.0], []

    def section(name: str, takes: float) -> bench.Entry:
        def measure(options: Options) -> Section:
            run.append(name)
            seconds[0] += takes
            if name == "gpu-wan":
                raise RuntimeError("CUDA out of memory\nmore")
            return Section([counted(name, 1.0, "1")])

        return bench.Entry(f"title of {name}", measure)

    file = tmp_path / "report.jsonl"
    for name in GPU_SECTIONS:
        monkeypatch.setitem(bench.SECTIONS, name, section(name, 100))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(bench.time, "monotonic", lambda: seconds[0])
    assert bench.main(["--device", "cuda", "--minutes", "6", "--json", str(file)]) == 1
    assert run == ["gpu-selftest", "gpu-wan", "gpu-backends", "gpu-decode"]
    assert list(read_report(file)["sections"]) == ["gpu-selftest", "gpu-backends", "gpu-decode"]
    said = capsys.readouterr()
    assert (
        "gpu-wan: failed: RuntimeError: CUDA out of memory" in said.err
        and "gpu-weights: not run, 6 minutes" in said.err
    )
    assert "| title of gpu-memory | not run | | |" in said.out


def test_growth(tmp_path: Path) -> None:
    """Rounds and jobs of both stores, and captions of both lengths, in turns."""
    section = growth.bench(QUICK)
    assert [len(times) for times in section.raw["seconds"].values()] == [2] * 6
    assert len(section.rows) == 3 and all(row.ratio > 0 for row in section.rows)
