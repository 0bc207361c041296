"""Tests of recipes: the same one by name, Hub id or folder, and from the command line, a file or Python."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2video.batch.run_file import load_batch
from s2video.cli.arguments import read_model_arguments
from s2video.cli.main import build_parser
from s2video.config.named import config_names, find_config, named_config
from s2video.config.run import RunConfig
from s2video.errors import InputError
from s2video.models.checkpoint import ASSETS
from s2video.models.recipes import find_recipe, load_config, load_model_config

LARGE = "Wan-AI/Wan2.1-T2V-14B-Diffusers"


def settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that a recipe sets."""
    values = config.model_dump(mode="json", exclude={"prompt", "checkpoint"})
    for key in ("path", "shot"):  # a job of a batch has a shot of its own
        del values["output"][key]
    del values["model"]["path"]
    return values


def from_command_line(*words: str) -> RunConfig:
    return read_model_arguments(build_parser().parse_args(["generate", *words]))


def in_yaml(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def published(folder: Path, model: str) -> Path:
    return Path(shutil.copytree(ASSETS / "published" / model.replace("/", "--"), folder / "local"))


@pytest.mark.parametrize(
    ("model", "name"), [("shapes-wan", "shapes"), ("shapes-wan-24", "shapes-24"), (LARGE, "wan2.1-t2v-14b-720p")]
)
def test_every_way_to_a_model_takes_the_same_settings(model: str, name: str, tmp_path: Path) -> None:
    expected = settings(named_config(name))
    file = in_yaml(tmp_path / "c.yaml", {"model": {"path": model}})
    run = in_yaml(tmp_path / "run.yaml", {"model": {"path": model}, "shots": ["a"]})
    assert settings(from_command_line("--model", model)) == expected
    assert settings(from_command_line("--model", name)) == expected
    assert settings(from_command_line("--config", name)) == expected
    assert settings(from_command_line("--config", str(file))) == expected
    assert settings(load_config(file)) == expected
    assert settings(load_model_config(model, {}).config) == expected
    assert settings(load_batch(run).jobs[0].config) == expected


def test_a_local_copy_is_recognised_by_what_it_holds(tmp_path: Path) -> None:
    folder = published(tmp_path, LARGE)
    assert find_recipe(str(folder)) == "wan2.1-t2v-14b-720p"
    assert load_model_config(str(folder), {}).config.sampling.width == 1280
    assert find_recipe(str(shutil.copytree(ASSETS / "shapes-wan", tmp_path / "copy"))) == "shapes"
    assert find_recipe(str(shutil.copytree(ASSETS / "shapes-wan-24", tmp_path / "other"))) == "shapes-24"
    config = (folder / "transformer" / "config.json").read_text().replace('"num_layers": 40', '"num_layers": 39')
    (folder / "transformer" / "config.json").write_text(config)
    assert find_recipe(str(folder)) is None


def test_what_a_file_sets_wins(tmp_path: Path) -> None:
    file = in_yaml(tmp_path / "c.yaml", {"model": {"path": "shapes-wan"}, "guidance": {"cfg_scale": 7}})
    config = load_config(file, ["guidance.s2_scale=0.5"])
    assert (config.guidance.cfg_scale, config.guidance.s2_scale) == (7, 0.5)
    assert config.sampling.max_sequence_length == named_config("shapes").sampling.max_sequence_length


def test_a_line_says_where_settings_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "unknown"
    folder.mkdir()
    for words, said in (
        ((), "using the embedded model, shapes-wan"),
        (("--model", LARGE), "settings of the config wan2.1-t2v-14b-720p"),
        (
            ("--config", str(in_yaml(tmp_path / "c.yaml", {"prompt": "a"}))),
            "missing settings have the values of the config shapes",
        ),
        (("--model", str(folder)), "no config exists for this model, so it uses the defaults 64x64 px"),
    ):
        from_command_line(*words)
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    for words in (("--model", "shapes"), ("--config", "shapes"), ("--config", str(find_config("shapes")))):
        from_command_line(*words)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "wan2.1-t2v-14b"), "did you mean .*wan2.1-t2v-14b-720p"),
        (("--config", "shape"), "did you mean shapes"),
        (("--config", "qqq"), "see s2video models"),
        (("--model", "shapes", "--config", "shapes"), "not allowed with"),
    ],
)
def test_names_that_are_not_known(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_command_line(*words)


def test_every_config_is_complete() -> None:
    """Its own recipe adds no settings."""
    for name in config_names():
        assert settings(load_config(find_config(name))) == settings(named_config(name)), name
