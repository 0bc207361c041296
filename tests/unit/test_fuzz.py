"""Damaged input for every boundary, with fixed random numbers. `tools/fuzz.py` does the same for longer."""

import json
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import fuzz
import pytest
from fuzzing.editorial_targets import editorial_targets
from fuzzing.file_targets import file_targets
from fuzzing.mutations import HOSTILE, dumped, mutate_bytes, mutate_json, mutate_tensors, mutate_words
from fuzzing.server_targets import server_targets
from fuzzing.study_targets import study_targets
from fuzzing.text_targets import text_targets
from fuzzing.trial import Finding, Target, clean, try_input
from safetensors.torch import save
from torch import zeros

from s2video.errors import InputError

WORK = 250.0  # milliseconds of each target, by its usual cost; all targets together take about ten seconds
LONGEST = 60  # seconds of one input, on a machine with much else to do


@contextmanager
def ended_after(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"an input took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_every_boundary_answers_in_one_line(tmp_path: Path) -> None:
    """Each input ends in a result or an InputError: no other exception, no long wait, no memory without bound."""
    found, tried = [], {}
    for target in [*text_targets(), *server_targets(), *study_targets(), *editorial_targets(), *file_targets()]:
        rng = random.Random(f"suite {target.name}")
        inputs = [*target.seeds[:3]]
        inputs += [target.mutate(rng.choice(target.seeds), rng) for _ in range(max(3, round(WORK / target.cost)))]
        kinds = []
        for data in inputs:
            clean(tmp_path)
            with ended_after(LONGEST):
                outcome = try_input(target, data, tmp_path)
            kinds.append(outcome.kind)
            if outcome.is_finding:
                found.append(f"{target.name}: {outcome.kind}: {outcome.signature}\n{outcome.detail}\n{data[:500]!r}")
        tried[target.name] = kinds
    assert not found, f"{len(found)} findings\n" + "\n\n".join(found[:5])
    assert sum(map(len, tried.values())) > 1000
    for name, kinds in tried.items():
        assert "accepted" in kinds, name  # otherwise its inputs do not get far
        assert "refused" in kinds or name == "font", name  # FreeType draws nearly anything


def nothing(data: bytes, rng: random.Random) -> bytes:
    return data


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (None, "accepted"),
        (InputError("x: expected 1, got 2"), "refused"),
        (InputError("a\n" * 10), "message"),
        (Finding("wrong"), "message"),
        (ValueError("x"), "crash"),
        (MemoryError(), "crash"),
        (RecursionError(), "crash"),
    ],
)
def test_what_is_a_finding(error: Exception | None, kind: str, tmp_path: Path) -> None:
    def run(data: bytes, folder: Path) -> None:
        if error is not None:
            raise error

    outcome = try_input(Target("t", (b"x",), run, nothing), b"x", tmp_path)
    assert outcome.kind == kind and outcome.is_finding == (kind not in ("accepted", "refused"))


def test_memory_and_time_are_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([0, 1 << 31])
    monkeypatch.setattr("fuzzing.trial.peak", lambda: next(peaks, 0))
    target = Target("t", (b"x",), lambda data, folder: None, nothing)
    assert try_input(target, b"x", tmp_path).kind == "memory"
    monkeypatch.setattr("fuzzing.trial.MAX_SECONDS", -1.0)
    assert try_input(target, b"x", tmp_path).kind == "slow"


def test_changes_are_repeatable_and_change_something() -> None:
    text = dumped({"a": [1, "b", None], "c": {"d": 2.5}})
    tensors = save({"x": zeros(2)}, {"s2video": '{"a": 1}'})
    words = mutate_words(["--seed", "3"])
    for data, mutate in ((b"abc" * 50, mutate_bytes), (text, mutate_json), (tensors, mutate_tensors)):
        made = [mutate(data, random.Random(seed)) for seed in range(100)]
        assert made == [mutate(data, random.Random(seed)) for seed in range(100)]
        assert len(set(made)) > 60
    lines = {words(b'["generate", "--seed", "1"]', random.Random(seed)) for seed in range(100)}
    assert len(lines) > 40 and all(isinstance(json.loads(line), list) for line in lines)
    assert all(isinstance(dumped(value), bytes) for value in HOSTILE)


def test_a_run_is_resumed_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--folder", str(tmp_path / "fuzz"), "--targets", "path", "rate and timecode"]
    assert fuzz.main([*words, "--minutes", "0.05", "--seed", "1"]) == 0
    first = json.loads((tmp_path / "fuzz" / "report.json").read_text("utf-8"))
    assert first["targets"]["path"]["inputs"] > 50 and first["findings"] == []
    assert list((tmp_path / "fuzz" / "corpus" / "path").iterdir())
    fuzz.write_finding(tmp_path / "fuzz", "path", b"longer", fuzz.Outcome("crash", "E x.py:f", "trace"))
    fuzz.write_finding(tmp_path / "fuzz", "path", b"x", fuzz.Outcome("crash", "E x.py:f", "trace"))
    (finding,) = (tmp_path / "fuzz" / "findings").glob("*.input")
    assert finding.read_bytes() == b"x"
    assert fuzz.main([*words, "--minutes", "0.05", "--seed", "2"]) == 1
    second = json.loads((tmp_path / "fuzz" / "report.json").read_text("utf-8"))
    assert second["inputs"] > first["inputs"] and second["findings"] == [finding.stem]
    assert fuzz.main([*words, "--again"]) == 0  # it is mended: the input is a good path
    assert not finding.exists()
    assert "0 findings" in capsys.readouterr().out
    assert not (tmp_path / "fuzz" / "current").exists()
