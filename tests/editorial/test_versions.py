"""Versions of shots in one batch, and what was picked and rejected."""

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from editing import EditRun

from s2video.batch.picks import FILE, decide, read_picks, read_takes, shots_of
from s2video.batch.run_file import load_batch
from s2video.batch.store import Entry, Store
from s2video.batch.takes import Take, staying, version_of
from s2video.cli.main import main
from s2video.errors import InputError

FIRST = ["sh010_s0.mp4", "sh020_s0.mp4", "sh030_s0.mp4"]
SECOND = "sh020_v002_s0.mp4"


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("sh*.*"))}


def listed(folder: Path) -> dict[str, str]:
    lines = (folder / "batch.sha256").read_text().splitlines()
    return {name: value for value, name in (line.split("  ") for line in lines)}


def write(tmp_path: Path, **values: Any) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"shots": ["a", "b"], "folder": str(tmp_path / "out")} | values), encoding="utf-8")
    return path


def test_another_version_leaves_the_first_with_state_and_checksums(made_run: EditRun) -> None:
    store = Store(made_run.folder)
    states = {record.name: record.state for record in store.records()}
    assert states == dict.fromkeys([*FIRST, SECOND], "done")
    assert listed(made_run.folder) == digests(made_run.folder)
    first, second = (json.loads((made_run.folder / f"{n}.json").read_text()) for n in ("sh020_s0", "sh020_v002_s0"))
    assert (first["config"]["guidance"]["s2_scale"], second["config"]["guidance"]["s2_scale"]) == (0.25, 0.5)
    assert first["latents"]["sha256"] != second["latents"]["sha256"]
    takes = [(t.take.shot, t.take.version, t.name) for t in read_takes(made_run.folder)]
    assert takes == [("sh010", 1, FIRST[0]), ("sh020", 1, FIRST[1]), ("sh020", 2, SECOND), ("sh030", 1, FIRST[2])]


def test_later_starts_make_nothing_and_forget_no_version(edit_run: EditRun) -> None:
    before = digests(edit_run.folder)
    assert edit_run.batch() == 0
    assert edit_run.batch("--version", "2", "--only", "sh020", "--set", "guidance.s2_scale=0.5") == 0
    assert edit_run.batch("--only", "sh0[13]0") == 0
    assert digests(edit_run.folder) == before == listed(edit_run.folder)
    assert len(Store(edit_run.folder).records()) == 4


def test_a_shot_that_left_the_run_file_leaves_the_state_with_all_versions(edit_run: EditRun) -> None:
    values = yaml.safe_load(edit_run.file.read_text())
    values["shots"] = [shot for shot in values["shots"] if shot["shot"] != "sh020"]
    edit_run.file.write_text(yaml.safe_dump(values))
    assert edit_run.batch() == 0
    assert sorted(record.name for record in Store(edit_run.folder).records()) == [FIRST[0], FIRST[2]]
    assert (edit_run.folder / SECOND).exists()


def test_a_version_of_other_settings_is_not_replaced(edit_run: EditRun, capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(edit_run.folder)
    assert edit_run.batch("--version", "2", "--only", "sh020", "--set", "guidance.s2_scale=0.75") == 2
    assert "sh020_v002_s0.mp4 was made from other settings (guidance.s2_scale)" in capsys.readouterr().err
    assert digests(edit_run.folder) == before


def test_names_of_versions(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert [job.name for job in load_batch(path, version=3).jobs] == ["001_v003_s0.mp4", "002_v003_s0.mp4"]
    assert [job.name for job in load_batch(path, version=1).jobs] == [job.name for job in load_batch(path).jobs]
    path = write(tmp_path, name="{shot}-v{version}.{ext}", fields={"version": 1})
    assert [job.name for job in load_batch(path, version=2, only=["002"]).jobs] == ["002-v2.mp4"]
    with pytest.raises(InputError, match=r"name: expected the field version, which --version sets, got '{shot}.{ext}'"):
        load_batch(write(tmp_path, name="{shot}.{ext}"), version=2)


def test_only_some_shots_have_the_numbers_of_the_whole(tmp_path: Path) -> None:
    shots = [{"shot": "a", "prompt": "a"}, {"shot": "b", "prompt": "b", "wrong": 1}, {"shot": "c1", "prompt": "c"}]
    path = write(tmp_path, shots=shots, seeds=2, name="{index}_{shot}_{seed}.{ext}")
    (first, second) = load_batch(path, only=["c*"]).jobs
    assert (first.name, second.name) == ("5_c1_0.mp4", "6_c1_1.mp4")
    assert first.take == Take("c1", 3, 1, 4)
    assert load_batch(path, only=["a"]).problems == () and load_batch(path).problems
    with pytest.raises(InputError, match=r"--only: no shot is called 'c12'; did you mean 'c1'\?"):
        load_batch(path, only=["a", "c12"])


@pytest.mark.parametrize(
    ("value", "version"), [(2, 2), ("2", 2), ("v002", 2), ("V3", 3), ("final", None), (0, None), (None, None)]
)
def test_versions_in_fields(value: Any, version: int | None) -> None:
    assert version_of(value) == version


def test_what_stays_in_the_state() -> None:
    texts = {name: Take(name[0], 1, int(name[1])).as_text() for name in ("a1", "a2", "b1", "c1")}
    known = [*texts.items(), ("old", "")]
    assert staying(known, [Take("a", 1, 3)], {"a", "b"}, partial=False) == {"a1", "a2", "b1"}
    assert staying(known, [Take("a", 1, 2)], {"a", "b"}, partial=True) == {"a1", "b1", "c1", "old"}


def test_a_state_of_an_older_version_gets_its_takes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create()
    store.put([Entry(f"{name}.mp4", "here", "", "{}", "k", None) for name in "ab"], frozenset())
    with sqlite3.connect(store.path) as state:
        state.execute("ALTER TABLE jobs DROP COLUMN take")
    assert [t.take for t in read_takes(tmp_path)] == [Take("a", 1, 1, 0), Take("b", 2, 1, 1)]
    store.create()
    store.put([Entry("a.mp4", "here", "", "{}", "k", None, Take("a", 1, 2).as_text())], frozenset())
    assert [t.take.version for t in read_takes(tmp_path)] == [2]
    with sqlite3.connect(store.path) as state:
        state.execute("UPDATE jobs SET take = '{}'")
    with pytest.raises(InputError, match=r"the take of a.mp4: expected shot, shot_number, version, number"):
        read_takes(tmp_path)


# Picks


def test_picks_and_rejections(edit_run: EditRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = edit_run.folder

    def used() -> list[str | None]:
        return [shot.used.name if shot.used else None for shot in shots_of(read_takes(folder))]

    assert used() == [FIRST[0], SECOND, FIRST[2]]  # the newest version
    assert main(["pick", str(folder), "sh020_s0", "--note", "calmer"]) == 0
    assert used() == FIRST
    assert "> sh020  v001  sh020_s0.mp4  picked: calmer" in capsys.readouterr().out
    assert main(["pick", str(folder), "sh020_v002"]) == 0  # in place of the first
    assert used()[1] == SECOND and list(read_picks(folder)) == [SECOND]
    assert main(["pick", str(edit_run.file), "sh020_v002", "--reject"]) == 0
    assert used()[1] == FIRST[1]
    assert main(["pick", str(folder), "sh030_s0.mp4", "--reject"]) == 0
    assert used()[2] is None
    capsys.readouterr()
    assert main(["status", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "shot     sh020  v001 (1 done), v002 (1 done); sh020_v002_s0.mp4 rejected" in said and "sh010" not in said
    assert main(["status", str(folder), "--json"]) == 0
    jobs = {job["name"]: job for job in json.loads(capsys.readouterr().out)["jobs"]}
    assert [jobs[SECOND][key] for key in ("shot", "version", "verdict", "is_used")] == ["sh020", 2, "rejected", False]
    assert main(["pick", str(folder), "sh020_v002", "sh030_s0", "--clear"]) == 0
    assert read_picks(folder) == {} and used() == [FIRST[0], SECOND, FIRST[2]]


def test_a_pick_knows_that_its_video_was_made_again(edit_run: EditRun) -> None:
    decide(edit_run.folder, ["sh010_s0"], "picked")
    assert not read_takes(edit_run.folder)[0].is_stale
    with sqlite3.connect(edit_run.folder / "batch.sqlite") as state:
        state.execute("UPDATE files SET sha256 = '0' WHERE path = 'sh010_s0.json'")
    assert not read_takes(edit_run.folder)[0].is_stale  # only its sidecar, which tells seconds
    with sqlite3.connect(edit_run.folder / "batch.sqlite") as state:
        state.execute("UPDATE files SET sha256 = '0' WHERE path = 'sh010_s0.mp4'")
    assert read_takes(edit_run.folder)[0].words == "picked (made again since)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sh040"], "no video of this batch is called 'sh040'"),
        (["sh020_v002_s1"], "did you mean 'sh020_v002_s0'?"),
        (["sh020"], "begins the names of sh020_s0.mp4, sh020_v002_s0.mp4"),
        (["sh020_s0", "sh020_v002_s0"], "expected one take of each shot, got several of sh020"),
        (["--reject"], "expected names of takes, got none"),
        (["sh010_s0", "--clear", "--note", "why"], "--note: expected a pick or --reject, got --clear"),
    ],
)
def test_picks_that_are_refused(
    made_run: EditRun, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pick", str(made_run.folder), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (made_run.folder / FILE).exists()


def test_a_video_that_is_not_made_is_not_picked(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create()
    store.put([Entry("a.mp4", "here", "", "{}", "k", None)], frozenset())
    with pytest.raises(InputError, match=r"expected videos that are made, but a.mp4 is not"):
        decide(tmp_path, ["a"], "picked")
    (tmp_path / FILE).write_text('{"schema": 1, "picks": {"a.mp4": {"verdict": "perhaps"}}}')
    with pytest.raises(InputError, match=r"a.mp4: expected verdict, content, note, time as text"):
        read_takes(tmp_path)
