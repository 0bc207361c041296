"""The engines that a replica keeps: how many, which one goes, and what happens when memory runs out (with doubles)."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from s2video.batch import replica as module
from s2video.batch.engines import Engines
from s2video.batch.plan import models_of
from s2video.batch.replica import _Options, _Replica
from s2video.batch.store import Entry, Store
from s2video.config.run import RunConfig
from s2video.config.sections import ParallelConfig
from s2video.models.checkpoint import open_checkpoint
from s2video.parallel.mesh import Mesh
from s2video.system.shutdown import Termination

ALONE = Mesh(torch.device("cpu"))
JOBS = {name: RunConfig.model_validate({"prompt": name, "model": {"path": f"/{name}"}}) for name in "abc"}


def _engines(most: int, loaded: list[str]) -> Engines:
    def build(job: RunConfig, mesh: Mesh) -> Any:
        assert mesh is ALONE
        loaded.append(str(job.prompt))
        return SimpleNamespace(config=job)

    return Engines(most, ALONE, ParallelConfig(), build, lambda: None)


@pytest.mark.parametrize(
    ("most", "asked", "loaded", "kept"),
    [(1, "aabab", "abab", "b"), (2, "abababc", "abc", "bc"), (2, "abacab", "abcb", "ab"), (3, "abcabc", "abc", "abc")],
)
def test_the_least_recently_used_one_makes_room(most: int, asked: str, loaded: str, kept: str) -> None:
    seen: list[str] = []
    engines = _engines(most, seen)
    for name in asked:
        assert engines.of(JOBS[name], name).config is JOBS[name]
    assert "".join(seen) == loaded and "".join(engines.groups) == kept


def test_one_that_goes_is_gone_before_the_next_is_loaded() -> None:
    """Two models need not fit at once where one may stay."""
    engines: Engines
    there: list[list[str]] = []

    def build(job: RunConfig, mesh: Mesh) -> Any:
        there.append(engines.groups)
        return SimpleNamespace()

    engines = Engines(2, ALONE, ParallelConfig(), build, lambda: None)
    for name in "abc":
        engines.of(JOBS[name], name)
    assert there == [[], ["a"], ["b"]]


def test_a_model_that_fails_to_load_leaves_the_others() -> None:
    def build(job: RunConfig, mesh: Mesh) -> Any:
        if job.prompt == "c":
            raise OSError("gone")
        return SimpleNamespace()

    engines = Engines(3, ALONE, ParallelConfig(), build, lambda: None)
    engines.of(JOBS["a"], "a")
    with pytest.raises(OSError):
        engines.of(JOBS["c"], "c")
    assert engines.groups == ["a"] and engines.have_others("c") and not engines.have_others("a")


@pytest.mark.parametrize(("loaded", "outcome"), [(2, "done"), (1, "failed")])
def test_other_models_make_room_when_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: int, outcome: str
) -> None:
    """The second model runs out of memory while the first is there too, or (with one at a time) for its own size."""
    store = Store(tmp_path)
    store.create()
    jobs = {name: JOBS[name].patched({"output.path": str(tmp_path / f"{name}.mp4")}) for name in "ab"}
    store.put(
        [Entry(n, "", models_of(job), job.model_dump_json(), n, None) for n, job in jobs.items()],
        frozenset(),
    )
    options = _Options("never", "none", Termination(), loaded=loaded)
    replica = _Replica(store, "r1", ALONE, ParallelConfig(), open_checkpoint, options)
    built: list[str] = []
    monkeypatch.setattr(replica, "_resolved", lambda job: job)

    def load(job: RunConfig, mesh: Mesh) -> Any:
        built.append(str(job.prompt))
        return SimpleNamespace(config=job, can_decode_alone=True)

    tries: list[str] = []

    def denoise(engine: Any, job: RunConfig, **_: Any) -> Any:
        tries.append(str(job.prompt))
        if job.prompt == "b" and (loaded == 1 or len(replica._engines.groups) > 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return SimpleNamespace(engine=engine)

    monkeypatch.setattr(replica._engines, "_build", load)
    monkeypatch.setattr(module, "denoise", denoise)
    monkeypatch.setattr(module, "finish", lambda denoised, alone=False: None)
    monkeypatch.setattr(
        replica, "_record_files", lambda record, job: store.finish(record.name, "r1", {record.name: "0" * 64})
    )
    replica.make_jobs()
    assert {record.name: record.state for record in store.records()} == {"a": "done", "b": outcome}
    assert built == ["a", "b"] and tries == (["a", "b", "b"] if loaded == 2 else ["a", "b"])
