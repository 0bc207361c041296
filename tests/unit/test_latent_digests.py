"""Tests of tools/latent_digests.py: equal latents have equal digests, others differ, other environments are refused."""

import json
from pathlib import Path

import latent_digests
import pytest
from latent_digests import CASES, Case


def test_the_cases_cover_every_family_and_worlds_of_two_and_three() -> None:
    assert {case.family for case in CASES.values()} == set(latent_digests.FAMILIES)
    assert {case.world_size for case in CASES.values()} == {1, 2, 3}


def test_digests_follow_the_latents(tmp_path: Path) -> None:
    """Streamed weights give the same bits, another λ does not."""
    cases = {
        "plain": Case("wan"),
        "streamed": Case("wan", parallel={"weights": "streamed"}),
        "other": Case("wan", {"cfg_scale": 2.0}),
    }
    digests = dict(latent_digests.make_digests(cases, tmp_path))
    assert digests["plain"] == digests["streamed"] != digests["other"]
    assert all(len(digest) == 64 for digest in digests.values())


def test_the_command_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {"a": "1" * 64, "b": "2" * 64}
    monkeypatch.setattr(latent_digests, "make_digests", lambda cases, folder: iter(made.items()))
    file = tmp_path / "before.json"
    assert latent_digests.main(["-o", str(file)]) == 0
    assert latent_digests.main(["--against", str(file)]) == 0
    assert capsys.readouterr().out.endswith("all 2 are the same\n")
    made["b"] = "3" * 64
    assert latent_digests.main(["--against", str(file)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"b: expected {'2' * 64}, got {'3' * 64}"


def test_other_circumstances_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latent_digests, "make_digests", None)
    here = latent_digests.find_circumstances()
    file = tmp_path / "before.json"
    file.write_text(json.dumps({"circumstances": {**here, "torch": "1.0"}, "digests": {}}))
    assert latent_digests.main(["--against", str(file)]) == 2
    expected = f"latent_digests: error: {file} cannot be compared here: torch: expected 1.0, got {here['torch']}\n"
    assert capsys.readouterr().err == expected
    file.write_text("[]")
    assert latent_digests.main(["--against", str(file)]) == 2
    assert "expected a file that -o wrote" in capsys.readouterr().err


def test_the_kept_file_has_every_case() -> None:
    kept = Path(latent_digests.__file__).with_name("results") / "latents-0aa2795.json"
    assert json.loads(kept.read_text(encoding="utf-8"))["digests"].keys() == CASES.keys()
