"""Digests of large files are computed once, and neither a name nor anybody else's cache is believed."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from s2video.errors import InputError
from s2video.system import file_digests
from s2video.system.file_digests import FileIdentity, cache_folder, file_digest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_digests, "LEAST_BYTES", 4)
    monkeypatch.setattr(file_digests, "SETTLED_SECONDS", 0.0)
    return cache_folder()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"some weights")
    return path


def right(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def forge(entry: Path) -> None:
    """Make an entry say another digest."""
    values = json.loads(entry.read_text())
    entry.write_text(json.dumps(values | {"sha256": "ab" * 32}))


def test_a_file_is_hashed_once(cache: Path, weights: Path) -> None:
    assert file_digest(weights) == right(weights)
    (entry,) = cache.iterdir()
    forge(entry)
    assert file_digest(weights) == "ab" * 32, "the cache answers"
    assert oct(entry.stat().st_mode)[-3:] == "600" and oct(cache.stat().st_mode)[-3:] == "700"


def test_another_content_has_another_identity(cache: Path, weights: Path) -> None:
    """The same size and the same time of modification, which a program can set."""
    before = weights.stat()
    forge_after = file_digest(weights)
    weights.write_bytes(b"same weights")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = weights.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert file_digest(weights) == right(weights) != forge_after


@pytest.mark.parametrize("what", ["folder writable", "entry writable", "entry is a link", "folder is a link", "owner"])
def test_a_cache_that_others_can_write_is_not_believed(
    what: str, cache: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_digest(weights)
    (entry,) = cache.iterdir()
    forge(entry)
    if what == "folder writable":
        cache.chmod(0o777)
    elif what == "entry writable":
        entry.chmod(0o666)
    elif what == "entry is a link":
        entry.rename(tmp_path / "elsewhere")
        entry.symlink_to(tmp_path / "elsewhere")
    elif what == "folder is a link":
        cache.rename(tmp_path / "elsewhere")
        cache.symlink_to(tmp_path / "elsewhere")
    else:
        monkeypatch.setattr(os, "geteuid", lambda: entry.stat().st_uid + 1)
    assert file_digest(weights) == right(weights)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"sha256": 1}', b"[" * 100_000, b'{"identity": [], "sha256": ""}']
)
def test_a_damaged_entry_is_no_entry(content: bytes, cache: Path, weights: Path) -> None:
    file_digest(weights)
    (entry,) = cache.iterdir()
    entry.write_bytes(content)
    assert file_digest(weights) == right(weights)


def test_a_file_that_has_just_changed_is_not_cached(
    cache: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two contents within one tick of the clock have the same identity."""
    monkeypatch.setattr(file_digests, "SETTLED_SECONDS", 3600.0)
    file_digest(weights)
    assert not cache.exists()


def test_without_a_place_for_a_cache_files_are_hashed(
    cache: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert file_digest(weights) == right(weights)


def test_the_cache_does_not_grow_without_end(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_digests, "MAX_ENTRIES", 3)
    for number in range(6):
        (tmp_path / f"{number}").write_bytes(b"weights %d" % number)
        file_digest(tmp_path / f"{number}")
    assert len(list(cache.iterdir())) == 3


def test_a_file_that_is_another_now_is_refused(cache: Path, weights: Path) -> None:
    identity = FileIdentity.of(weights)
    weights.write_bytes(b"other weights")
    with pytest.raises(InputError, match="changed while it was in use"):
        file_digest(weights, identity)
    weights.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        file_digest(weights)
