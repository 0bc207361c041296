"""Ranks compare the values of every file of their checkpoints, and the list of their videos."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import RankError, RankPool
from safetensors.torch import load_file, save_file
from tiny import PROMPT, tiny_config

from s2video.cli.main import main
from s2video.config.run import RunConfig
from s2video.engine.engine import Engine
from s2video.engine.statement import jobs_statement
from s2video.errors import AgreementError
from s2video.models.checkpoint import Checkpoint
from s2video.parallel import agreement
from s2video.parallel.agreement import require_agreement
from s2video.parallel.mesh import Mesh
from s2video.parallel.same_files import value_digests

Ranks = Callable[[int], RankPool]


def negated(folder: Path, component: str) -> None:
    file = next((folder / component).glob("*.safetensors"))
    save_file({name: -tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


def edited(folder: Path, name: str, key: str, value: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


DIFFERENCES: dict[str, tuple[Callable[[Path], None], str]] = {
    "transformer": (lambda folder: negated(folder, "transformer"), "weights of transformer/"),
    "VAE": (lambda folder: negated(folder, "vae"), "weights of vae/"),
    "text encoder": (lambda folder: negated(folder, "text_encoder"), "weights of text_encoder/"),
    "eps": (lambda folder: edited(folder, "transformer/config.json", "eps", 0.1), "file transformer/config.json"),
    "boundary": (lambda folder: edited(folder, "model_index.json", "boundary_ratio", 0.5), "file model_index.json"),
    "scheduler": (
        lambda folder: edited(folder, "scheduler/scheduler_config.json", "flow_shift", 2.0),
        "file scheduler/scheduler_config.json",
    ),
    "tokenizer": (
        lambda folder: edited(folder, "tokenizer/tokenizer_config.json", "model_max_length", 7),
        "file tokenizer/tokenizer_config.json",
    ),
}


def compare(mesh: Mesh, folders: list[Path]) -> dict[str, str]:
    """What an engine compares, without loading the models."""
    checkpoint = Checkpoint(folders[min(mesh.world.rank, len(folders) - 1)])
    files = {file.name: file for file in checkpoint.weights()}
    identities = {name: (file.path, file.identity) for name, file in files.items()}
    values = value_digests(identities, lambda name: files[name].sha256, mesh.world)
    settings = {f"file {name}": value for name, value in checkpoint.settings_digests().items()}
    require_agreement({f"weights of {name}": value for name, value in values.items()} | settings, mesh.world)
    return values


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_another_value_on_one_rank_is_named(
    ranks: Ranks, tiny_checkpoint: Path, tmp_path: Path, difference: str
) -> None:
    change, named = DIFFERENCES[difference]
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    change(other)
    with pytest.raises(RankError) as caught:
        ranks(2).run(compare, [tiny_checkpoint, other])
    assert caught.value.kinds == ["AgreementError"] * 2 and len(set(caught.value.messages)) == 1
    message = caught.value.messages[0]
    assert message is not None and named in message and "rank 0:" in message and "rank 1:" in message
    assert message.count("(rank") == 1, "nothing else differs"


def test_the_same_values_in_two_folders_agree(ranks: Ranks, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A copy is hashed; the same file is not, because the file system tells that it is the same."""
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    for values in ranks(2).run(compare, [tiny_checkpoint, copy]):
        assert all(len(value) == 64 for value in values.values())
    for values in ranks(2).run(compare, [tiny_checkpoint]):
        assert set(values.values()) == {"the same file"}


def sample(mesh: Mesh, configs: list[RunConfig]) -> torch.Tensor:
    return Engine(configs[mesh.world.rank], mesh).sample([PROMPT], [3])


def test_an_engine_stops_before_the_first_step(ranks: Ranks, tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    negated(other, "transformer")
    edited(other, "transformer/config.json", "eps", 0.1)
    with pytest.raises(RankError) as caught:
        ranks(2).run(sample, [tiny_config(tiny_checkpoint), tiny_config(other)])
    assert caught.value.kinds == ["AgreementError"] * 2
    assert "file transformer/config.json" in str(caught.value) and "weights of transformer/" in str(caught.value)


def jobs_differ(mesh: Mesh, jobs: list[list[RunConfig]], resume: list[bool]) -> None:
    rank = mesh.world.rank
    require_agreement(jobs_statement(jobs[rank], resume=resume[rank]), mesh.world)


def test_ranks_with_other_videos_stop(ranks: Ranks) -> None:
    one = RunConfig(prompt="a")
    two = one.patched({"sampling.seed": 1})
    for jobs, resume, named in (
        ([[one], [one, two]], [False, False], "number of videos (rank 0: 1; rank 1: 2)"),
        ([[one, two], [one, one]], [False, False], "seed of video 2 (rank 0: 1; rank 1: 0)"),
        ([[one], [one.patched({"prompt": "b"})]], [False, False], "prompt of video 1"),
        ([[one], [one]], [True, False], "--resume (rank 0: true; rank 1: false)"),
    ):
        with pytest.raises(RankError) as caught:
            ranks(2).run(jobs_differ, jobs, resume)
        assert named in str(caught.value.messages[0])


def test_generate_compares_the_videos_before_it_loads_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compared: list[dict[str, Any]] = []

    def refuses(statement: dict[str, Any], axis: Any) -> str:
        compared.append(statement)
        raise AgreementError("expected the same job on all ranks")

    monkeypatch.setattr(agreement, "require_agreement", refuses)
    words = ["generate", "--model", "shapes-wan", "--prompt", "a", "--num-videos", "2", "--seed", "4"]
    assert main([*words, "--output", str(tmp_path / "x.mp4")]) == 1
    assert "expected the same job" in capsys.readouterr().err and not list(tmp_path.iterdir())
    (statement,) = compared
    assert statement["number of videos"] == 2 and statement["seed of video 2"] == 5
