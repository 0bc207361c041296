"""`tools/bench.py --device cuda` on a pretended GPU: every section runs, and writes its rows at once."""

from pathlib import Path

import bench
import pytest
from benches.report_file import read_report
from fake_cuda.bench import faults_of, run_bench

# in miniature, gpu-wan-14b is gpu-wan again
SECTIONS = [name for name in bench.SECTIONS if name.startswith("gpu") and name != "gpu-wan-14b"]


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_of_a_gpu_runs(tmp_path: Path, name: str) -> None:
    """In miniature, with CUDA's generator, events, allocator statistics, streams and pinned memory."""
    file = tmp_path / "report.jsonl"
    few = ["--quick", "--minutes", "6", "--masks", "1", "--repeats", "1"]
    code, watchdog = run_bench([*few, "--sections", name, "--json", str(file)])
    written = read_report(file)
    assert code == 0 and written["sections"][name]["rows"]
    assert written["device"] == "pretended H100"
    assert not (faults := faults_of(watchdog)), faults


def test_peak_memory_of_a_step_is_the_plans(tmp_path: Path) -> None:
    """At the published width and number of tokens: the section's figure is the allocator's over the plan's."""
    file = tmp_path / "report.jsonl"
    code, _ = run_bench(["--sections", "gpu-memory", "--json", str(file)])
    (row,) = read_report(file)["sections"]["gpu-memory"]["rows"]
    assert code == 0 and 0.3 < row["ratio"] < 0.9  # the plan's is of all blocks, and there are three here
