"""Tests of `s2video models` and `s2video config`: names and settings."""

import json

import pytest

from s2video.cli.main import main
from s2video.config.named import config_names
from s2video.config.reference import settings_of
from s2video.config.run import RunConfig
from s2video.planning.catalog import Entry, as_table, list_models


@pytest.fixture(scope="module")
def entries() -> dict[str, Entry]:
    return {entry.name: entry for entry in list_models()}


def test_every_config_is_listed(entries: dict[str, Entry], capsys: pytest.CaptureFixture[str]) -> None:
    own = {"shapes": "shapes-wan", "shapes-24": "shapes-wan-24"}  # names of the embedded models
    names = [own.get(name, name) for name in config_names()]
    assert list(entries) == names
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["models"]
    assert [model["name"] for model in listed] == names
    assert main(["models"]) == 0
    assert capsys.readouterr().out.strip() == as_table(list(entries.values()))


def test_what_models_take_and_need(entries: dict[str, Entry]) -> None:
    assert entries["shapes-wan"][1:6] == ("shapes-wan", ("text",), "64x64x17", 30, 12)
    assert entries["shapes-wan-24"][1:6] == ("shapes-wan-24", ("text",), "64x64x17", 30, 24)
    assert entries["wan2.1-flf2v-14b-720p"].inputs == ("text", "image", "last image")
    assert entries["wan2.2-ti2v-5b"].inputs == ("text", "image?")
    large, small = (entries[name].memory_gb or 0 for name in ("wan2.1-t2v-14b-720p", "wan2.1-t2v-1.3b-480p"))
    assert large > 2 * small > 10
    assert entries["wan2.2-t2v-a14b-lightning"].memory_gb is None  # a user's model whose files are missing


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("guidance.s2_scale", ["guidance.s2_scale: number ≥ 0; default 0.25", "ω"]),
        ("sampling", ["sampling.width: whole number > 0 and ≤ 65536; default 64", "sampling.num_inference_steps"]),
        ("prompt", ["prompt: text or null; default null"]),
    ],
)
def test_settings_are_explained(key: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", key]) == 0
    said = capsys.readouterr().out
    assert all(part in said for part in expected)
    assert all(line.startswith((key, "    ")) for line in said.splitlines())


def test_all_settings_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config"]) == 0
    said = capsys.readouterr().out.splitlines()
    keys = [setting.key for setting in settings_of(RunConfig)]
    assert [line.split(":")[0] for line in said if not line.startswith(" ")] == keys and len(keys) > 60
    assert main(["config", "guidance.s2_scal"]) == 2
    assert "did you mean 'guidance.s2_scale'?" in capsys.readouterr().err
