"""What a batch that is started again keeps, makes and refuses; and two batches in one folder."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from sidecar_helpers import made_video
from tiny import MAX_SEQUENCE_LENGTH, PROMPT, SIZE

from s2video.batch.checks import check_folder
from s2video.batch.fates import Again, Fate, fate_of, shortened
from s2video.batch.run_file import BatchJob
from s2video.batch.store import Entry, Record, Store
from s2video.cli.main import main
from s2video.config.run import RunConfig
from s2video.errors import InputError
from s2video.system.files import sha256
from s2video.system.locks import held_lock

CONFIG = RunConfig().patched({"prompt": "a"})


class Case:
    """A job `x.mp4` of a batch in `folder`, and what its state says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job = BatchJob("x.mp4", "shot 1", CONFIG.patched({"output.path": str(folder / "x.mp4")}))
        entry = Entry("x.mp4", "shot 1", "", self.job.config.model_dump_json(), "k", None)
        facts = {"attempts": 1, "owner": "r", "started": 1.0, "seconds": 1.0, "error": None}
        self.done = Record(**vars(entry), state="done", **facts)
        self.digests: dict[str, str] = {}

    def make(self) -> None:
        made_video(self.folder / "x.mp4")
        self.digests = {name: sha256(self.folder / name) for name in ("x.mp4", "x.json")}

    def fate(self, old: Record | None, *, key: str = "k", may_replace: bool = False, **wanted: bool) -> Fate:
        return fate_of(
            self.job,
            key,
            old,
            folder=self.folder,
            digests=self.digests,
            may_replace=may_replace,
            wanted=Again(**wanted),
        )


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    yield Case(tmp_path)


def test_a_job_that_is_done_is_kept_or_made_again(case: Case) -> None:
    case.make()
    assert case.fate(case.done) == Fate()
    assert case.fate(case.done, force=True) == Fate("--force")
    (case.folder / "x.json").unlink()
    assert case.fate(case.done) == Fate("x.json is missing or has changed", is_damaged=True)
    (case.folder / "x.mp4").write_bytes(b"")
    assert case.fate(case.done) == Fate("x.mp4, x.json is missing or has changed", is_damaged=True)
    (case.folder / "x.mp4").unlink()
    assert case.fate(case.done, key="other") == Fate("something that determines its pixels has changed")


def test_a_video_of_other_settings_is_never_replaced_unasked(case: Case) -> None:
    case.make()
    old = replace(case.done, config=case.job.config.patched({"sampling.num_inference_steps": 7}).model_dump_json())
    problem = case.fate(old, key="other").problem
    assert problem is not None and problem.startswith(
        "shot 1: x.mp4 was made from other settings (sampling.num_inference_steps): give it a new name or version"
    )
    assert "(prompt)" in (case.fate(replace(old, config=RunConfig().model_dump_json()), key="other").problem or "")
    assert "(a file that is read" in (case.fate(case.done, key="other").problem or "")
    again = "something that determines its pixels has changed"
    assert case.fate(old, key="other", overwrite=True) == Fate(again)
    assert case.fate(old, key="other", keep_changed=True) == Fate(is_kept=True)


def test_a_video_that_somebody_changed_is_never_replaced_unasked(case: Case) -> None:
    case.make()
    (case.folder / "x.mp4").write_bytes(b"graded")
    assert "x.mp4 was changed since it was made: move it" in (case.fate(case.done).problem or "")
    assert case.fate(case.done, overwrite=True) == Fate("x.mp4 is missing or has changed", is_damaged=True)
    assert case.fate(case.done, force=True) == Fate("--force")


def test_a_file_that_is_no_work_of_the_batch_is_never_replaced_unasked(case: Case) -> None:
    waiting = replace(case.done, state="waiting")
    (case.folder / "x.mp4").write_bytes(b"mine")
    for old in (None, waiting, replace(waiting, state="failed")):
        assert "shot 1: output " in (case.fate(old).problem or "")
        replaced = case.fate(old, overwrite=True).replaced
        assert replaced is not None and "--overwrite" in replaced.sentence
        assert case.fate(old, may_replace=True).problem is None
    assert case.fate(replace(waiting, state="failed"), may_replace=True, retry_failed=True) == Fate("--retry-failed")
    case.make()
    assert case.fate(None).problem is None


def test_what_may_be_replaced_is_remembered_until_the_job_is_done(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create()
    entries = [Entry(name, "here", "", "{}", "k", None) for name in "abc"]
    store.put(entries, frozenset("a"), frozenset("b"))
    assert Store(tmp_path).replaceable() == {"a", "b"}
    store.draw("r")
    store.finish("a", "r", {})
    store.put([entries[0], entries[2]], frozenset())
    assert store.replaceable() == set()


def test_many_problems_are_few_lines() -> None:
    assert shortened(["a", "b", "a"]) == ["a", "b"]
    assert shortened(map(str, range(30)), most=2) == ["0", "1", "and 28 more of this kind"]


# Two batches in one folder


def test_another_run_file_in_the_folder_is_refused(tmp_path: Path) -> None:
    folder, first, second = tmp_path / "out", tmp_path / "a.yaml", tmp_path / "b.yaml"
    for path in (first, second):
        path.write_text("")
    check_folder(folder, None, first)
    store = Store(folder)
    store.create()
    check_folder(folder, None, second)  # of an older version, or before the first start
    store.set_run_file(first)
    check_folder(folder, None, first)
    with pytest.raises(InputError, match=r"expected the run file .*a\.yaml, whose videos are made here, got .*b\.yaml"):
        check_folder(folder, None, second)
    first.unlink()  # renamed
    check_folder(folder, None, second)
    store.set_run_file(second)
    moved = tmp_path.rename(tmp_path.with_name("moved"))  # both together
    check_folder(moved / "out", None, moved / "b.yaml")
    (moved / "a.yaml").write_text("")
    with pytest.raises(InputError, match=r"expected the run file .*moved/b\.yaml"):
        check_folder(moved / "out", None, moved / "a.yaml")


def test_one_shard_of_one_is_the_whole_batch(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = {**SIZE, "num_inference_steps": 2, "max_sequence_length": MAX_SEQUENCE_LENGTH}
    values = {"model": {"path": str(tiny_checkpoint), "device": "cpu"}, "sampling": sampling, "shots": [PROMPT, "b"]}
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({**values, "folder": str(tmp_path / "out")}))
    store = Store(tmp_path / "out")
    store.create()
    with held_lock(store.lock_path):
        for words in ([], ["--shard", "1/1"]):
            assert main(["batch", str(file), *words]) == 2
            assert "another process is making this batch" in capsys.readouterr().err
        assert main(["batch", str(file), "--shard", "1/2"]) == 2
        assert "expected 1 shards, because batch.sqlite is here, got 2" in capsys.readouterr().err
    (tmp_path / "out" / "001_s0.mp4").write_bytes(b"mine")
    for words in ([], ["--dry-run"]):
        assert main(["batch", str(file), *words]) == 2
        said = capsys.readouterr().err.splitlines()
        assert "got one without its sidecar 001_s0.json" in said[-2] and "1 videos may not be replaced" in said[-1]
    assert (tmp_path / "out" / "001_s0.mp4").read_bytes() == b"mine"
    assert main(["batch", str(file), "--dry-run", "--overwrite"]) == 0
    assert "001_s0.mp4 will be replaced (--overwrite)" in capsys.readouterr().err
