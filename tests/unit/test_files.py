"""Tests that files and folders are written completely or not at all."""

import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from s2video.errors import InputError
from s2video.system import files
from s2video.system.files import atomic_folder, atomic_path, remove_leftovers, write_json


def test_the_final_name_appears_only_after_the_block(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "clip.mp4"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".mp4"
        assert not temporary.exists()
        temporary.write_bytes(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert os.listdir(target.parent) == ["clip.mp4"]


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_failing_block_leaves_the_old_file_and_nothing_else(tmp_path: Path, exception: type[BaseException]) -> None:
    target = tmp_path / "clip.mp4"
    target.write_bytes(b"old")
    with pytest.raises(exception), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise exception
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["clip.mp4"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "clip.mp4"):
        pass
    assert os.listdir(tmp_path) == []


def test_two_writers_of_one_name_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "clip.mp4"
    with atomic_path(target) as first, atomic_path(target) as second:
        assert first != second
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert target.read_bytes() == b"first"  # the inner block, `second`, ended earlier
    assert os.listdir(tmp_path) == ["clip.mp4"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    with atomic_path(tmp_path / "clip") as temporary:
        temporary.write_bytes(b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "clip")}
    assert len(modes) == 1


@pytest.mark.parametrize("name", ["a" * 251 + ".mp4", "🎬" * 62 + ".mp4", "二" * 83 + ".json"])
def test_names_of_the_longest_legal_length_work(tmp_path: Path, name: str) -> None:
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_bytes(b"x")
    assert os.listdir(tmp_path) == [name]


def test_paths_that_cannot_be_written_are_refused_before_the_block(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    folder = tmp_path / "folder.mp4"
    folder.mkdir()
    refused = [
        file / "clip.mp4",  # a file where a folder should be
        file / "deeper" / "clip.mp4",
        folder,
        Path("/dev/null"),  # a rename as root would replace the device
        Path("/proc/s2video/clip.mp4"),  # not even root can create files there
        tmp_path / ("a" * 300 + ".mp4"),
    ]
    for target in refused:
        with pytest.raises(InputError, match="cannot write") as caught, atomic_path(target):
            pytest.fail("the block must not start")
        assert str(target) in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.mp4"]
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_json_is_readable_utf8_with_a_newline_at_its_end(tmp_path: Path) -> None:
    obj = {"prompt": "小さな赤い円 “²”\n", "masks": [{"step": 3, "dropped": [4, 9]}]}
    write_json(tmp_path / "x.json", obj)
    text = (tmp_path / "x.json").read_bytes().decode("utf-8")
    assert json.loads(text) == obj
    assert "小さな赤い円" in text
    assert text.endswith("}\n")
    assert '\n  "masks"' in text


@pytest.mark.parametrize(("obj", "error"), [({"x": float("nan")}, ValueError), ({"x": object()}, TypeError)])
def test_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path, obj: object, error: type[Exception]) -> None:
    target = tmp_path / "x.json"
    write_json(target, 1)
    with pytest.raises(error):
        write_json(target, obj)
    assert target.read_text() == "1\n"
    assert os.listdir(tmp_path) == ["x.json"]


def temporary_name(path: Path) -> str:
    with suppress(RuntimeError), atomic_path(path) as temporary:
        raise RuntimeError
    return temporary.name


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    long = "x" * 40
    paths = [tmp_path / name for name in ("a.mp4", f"{long}.json", "a.latents.safetensors")]
    leftovers = [temporary_name(path) for path in paths]
    # another suffix, another video with the same beginning, and what is not ours
    others = [temporary_name(tmp_path / name) for name in ("a.mov", "b.mp4", f"{long}y.json")]
    others += ["a.mp4", ".a.0123abcd.mp4", f"{leftovers[0]}.mp4", leftovers[0].removeprefix(".")]
    for name in leftovers + others:
        (tmp_path / name).write_text("")
    folder = tmp_path / temporary_name(tmp_path / "s")
    folder.mkdir()
    (folder / "s.1001.png").write_text("")
    remove_leftovers([*paths, tmp_path / "s", tmp_path / "nowhere" / "a.mp4"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


# Folders


def is_ours(name: str) -> bool:
    return name.endswith(".exr")


def fill(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(str(folder))


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_appears_whole_after_the_block(tmp_path: Path) -> None:
    target = tmp_path / "new" / "shot"
    with atomic_folder(target, is_ours) as temporary:
        assert temporary.parent == target.parent and temporary.name.startswith(".")
        fill(temporary, "1.exr", "2.exr")
        assert not target.exists()
    assert contents(tmp_path) == ["new/shot/1.exr", "new/shot/2.exr"]


def test_a_folder_replaces_an_older_one_whole(tmp_path: Path) -> None:
    fill(tmp_path / "shot", "1.exr", "2.exr", "3.exr")
    with atomic_folder(tmp_path / "shot", is_ours) as temporary:
        fill(temporary, "1.exr")
        assert contents(tmp_path / "shot") == ["1.exr", "2.exr", "3.exr"]
    assert contents(tmp_path) == ["shot/1.exr"]
    assert (tmp_path / "shot" / "1.exr").read_text() == str(temporary)
    assert os.listdir(tmp_path) == ["shot"]


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failing_block_leaves_the_old_folder(tmp_path: Path, exception: type[BaseException]) -> None:
    fill(tmp_path / "shot", "1.exr")
    with pytest.raises(exception), atomic_folder(tmp_path / "shot", is_ours) as temporary:
        fill(temporary, "1.exr", "2.exr")
        raise exception
    assert contents(tmp_path) == ["shot/1.exr"] and os.listdir(tmp_path) == ["shot"]
    assert (tmp_path / "shot" / "1.exr").read_text() == str(tmp_path / "shot")


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "shot", "1.exr")
    rename = Path.rename

    def refuse_the_new_one(path: Path, target: Path) -> Path:
        if (path / "2.exr").exists():
            raise PermissionError(1, "Operation not permitted")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)  # as on systems that cannot
    with pytest.raises(PermissionError), atomic_folder(tmp_path / "shot", is_ours) as temporary:
        fill(temporary, "2.exr")
    assert contents(tmp_path) == ["shot/1.exr"] and os.listdir(tmp_path) == ["shot"]


def test_an_older_folder_is_never_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Linux, where names can be exchanged."""
    fill(tmp_path / "shot", "1.exr")
    rename, seen = Path.rename, []

    def watched(path: Path, target: Path) -> Path:
        seen.append(contents(tmp_path / "shot"))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)
    with atomic_folder(tmp_path / "shot", is_ours) as temporary:
        fill(temporary, "2.exr")
    assert seen == [["2.exr"]]  # when the old folder gets another hidden name
    assert contents(tmp_path) == ["shot/2.exr"] and os.listdir(tmp_path) == ["shot"]


def test_a_folder_with_other_things_in_it_is_never_replaced(tmp_path: Path) -> None:
    fill(tmp_path / "shot", "1.exr", "thesis.doc")
    (tmp_path / "nested" / "1.exr").mkdir(parents=True)
    fill(tmp_path, "file")
    for name in ("shot", "nested", "file", "file/shot"):
        with pytest.raises(InputError, match="cannot write"), atomic_folder(tmp_path / name, is_ours):
            pytest.fail("the block must not start")
    fill(tmp_path / "late", "1.exr")
    with pytest.raises(InputError, match=r"'notes\.txt'"), atomic_folder(tmp_path / "late", is_ours) as temporary:
        fill(temporary, "1.exr", "2.exr")
        fill(tmp_path / "late", "notes.txt")
    assert contents(tmp_path) == ["file", "late/1.exr", "late/notes.txt", "shot/1.exr", "shot/thesis.doc"]


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "shot").mkdir()
    with atomic_folder(tmp_path / "shot", is_ours) as temporary:
        fill(temporary, "1.exr")
    assert contents(tmp_path) == ["shot/1.exr"]


def test_kill_9_leaves_the_old_folder(tmp_path: Path) -> None:
    fill(tmp_path / "shot", "1.exr")
    script = (
        "import pathlib, sys, os, signal\n"
        "from s2video.system.files import atomic_folder\n"
        "with atomic_folder(pathlib.Path(sys.argv[1]), lambda name: True) as folder:\n"
        "    (folder / '2.exr').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "shot")], env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert contents(tmp_path / "shot") == ["1.exr"]
    assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == ["shot"]
