"""The table of docs/evidence/gpu.md: it is that of the stored run, and the plan is right within 10 %."""

from pathlib import Path

import fake_cuda_run
from fake_cuda_run import MESHES, known_models, read_rows, table

from s2video.planning.step import Degrees

ROOT = Path(fake_cuda_run.__file__).resolve().parents[1]
ROWS = read_rows(ROOT / "tools" / "results" / "fake-cuda.jsonl")


def test_the_document_shows_what_was_run() -> None:
    """To update: python tools/fake_cuda_run.py --show tools/results/fake-cuda.jsonl, into the document."""
    assert table(ROWS) in (ROOT / "docs" / "evidence" / "gpu.md").read_text(encoding="utf-8")


def test_every_peak_is_the_plans_within_a_tenth() -> None:
    for row in ROWS:
        assert abs(row["planned"] / row["peak"] - 1) < 0.1, row
        assert not row["faults"], row
        assert row["what"] != "step" or not (row["syncs"] or row["uploads"]), row


def test_every_mesh_and_every_way_to_place_weights_has_rows() -> None:
    steps = {(row["weights"], row["degrees"]) for row in ROWS if row["what"] == "step"}
    for given in MESHES:
        degrees = Degrees(*(given.get(name, 1) for name in ("ring", "ulysses", "branch")))
        assert ("replicated", str(degrees)) in steps
    assert {"fsdp", "streamed"} <= {weights for weights, _ in steps}
    assert {row["model"] for row in ROWS} <= set(known_models())
