"""Files appear whole or not at all."""

import json
import os
import stat
from pathlib import Path

import pytest

from s2video.errors import InputError
from s2video.files import atomic_path, remove_leftovers, write_json


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
        Path("/proc/s2video/clip.mp4"),  # nobody can create files there, not even root
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


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    long = "x" * 40
    leftovers = [".a.0123abcd.mp4", f".{long[:32]}.0123abcd.json", ".a.latents.0123abcd.safetensors"]
    others = ["a.mp4", ".b.0123abcd.mp4", ".a.0123abcd.mov", ".a.0123abc.mp4", ".a.mp4", f".{long}.0123abcd.json"]
    for name in leftovers + others:
        (tmp_path / name).write_text("")
    (tmp_path / ".s.0123abcd").mkdir()
    (tmp_path / ".s.0123abcd" / "s.1001.png").write_text("")
    paths = ["a.mp4", f"{long}.json", "a.latents.safetensors", "s"]
    remove_leftovers([*(tmp_path / name for name in paths), tmp_path / "nowhere" / "a.mp4"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
