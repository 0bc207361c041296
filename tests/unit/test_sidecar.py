"""Tests of the sidecar: its model, its published schema, and its records of latents and files."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from sidecar_helpers import NUM_BLOCKS, STEPS, made_video

import s2video
from s2video.cli.main import main
from s2video.config.run import RunConfig
from s2video.engine.statement import rank_statement
from s2video.errors import InputError
from s2video.records.sidecar import latents_record, machine_settings
from s2video.records.sidecar_model import find_sidecar, read_sidecar, sidecar_schema, videos_in
from s2video.review.inspect import describe

SCHEMA = Path(s2video.__file__).parents[1] / "docs" / "sidecar.schema.json"


def test_the_published_schema_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    """To update: s2video inspect --schema > docs/sidecar.schema.json"""
    assert main(["inspect", "--schema"]) == 0
    assert capsys.readouterr().out == SCHEMA.read_text(encoding="utf-8")


def test_sidecars_follow_the_schema_and_come_back_as_they_were(tmp_path: Path) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    video = made_video(tmp_path / "clip.mp4", never_drop=[0, 1], band=[1, 4], num_draws=2)
    values = json.loads((tmp_path / "clip.json").read_text(encoding="utf-8"))
    jsonschema.validate(values, schema)
    assert read_sidecar(tmp_path / "clip.json") == video.sidecar
    assert values["output"]["sha256"] == hashlib.sha256(video.path.read_bytes()).hexdigest()
    assert values["output"]["bytes"] == video.path.stat().st_size


@pytest.mark.parametrize(
    "spoil",
    [
        lambda values: values.update(seed=-1),
        lambda values: values.update(colour="red"),
        lambda values: values.pop("latents"),
        lambda values: values["output"].update(sha256="A" * 64),
        lambda values: values["config"]["guidance"].update(s2_scale="much"),
        lambda values: values["config"]["sampling"].update(width=0),
    ],
)
def test_schema_and_model_refuse_the_same(tmp_path: Path, spoil: Callable[[dict[str, Any]], Any]) -> None:
    made_video(tmp_path / "clip.mp4")
    path = tmp_path / "clip.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    spoil(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, sidecar_schema())
    with pytest.raises(InputError, match=r"clip\.json"):
        read_sidecar(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "key `schema`"),
        ('{"prompt": "x"}', "key `schema`"),
        ('{"schema": 2}', "expected schema 1"),
    ],
)
def test_files_that_are_no_sidecars(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_sidecar(tmp_path / "x.json")


def test_latents_are_kept_as_a_digest_and_64_values() -> None:
    latents = torch.randn(1, 4, 3, 6, 10, generator=torch.Generator().manual_seed(0))
    record = latents_record(latents.transpose(3, 4).contiguous().transpose(3, 4))
    values = latents.flatten().tolist()
    assert record.shape == (1, 4, 3, 6, 10)
    assert record.sha256 == hashlib.sha256(struct.pack(f"<{len(values)}f", *values)).hexdigest()
    positions = [int(hashlib.sha256(f"{k}".encode()).hexdigest()[:16], 16) % len(values) for k in range(64)]
    assert list(record.probes) == [values[position] for position in positions]
    assert len(set(positions)) > 50 and {position % 10 for position in positions} == set(range(10))
    assert latents_record(latents + 1e-3).sha256 != record.sha256


def test_the_digest_of_a_sequence_is_that_of_its_checksums(tmp_path: Path) -> None:
    video = made_video(tmp_path / "clip.png")
    assert video.path == tmp_path / "clip" and video.sidecar.output.name == "clip"
    frames = sorted(video.path.iterdir())
    listing = "".join(f"{hashlib.sha256(frame.read_bytes()).hexdigest()}  {frame.name}\n" for frame in frames)
    assert len(frames) == 5
    assert video.sidecar.output.sha256 == hashlib.sha256(listing.encode()).hexdigest()
    assert video.sidecar.output.bytes == sum(frame.stat().st_size for frame in frames)
    assert find_sidecar(video.path) == tmp_path / "clip.json"


def test_where_sidecars_are_found(tmp_path: Path) -> None:
    video = made_video(tmp_path / "in" / "a.b.mp4")
    (tmp_path / "in" / "a.b.latents.safetensors").write_bytes(b"")
    expected = tmp_path / "in" / "a.b.json"
    for name in ("a.b.mp4", "a.b.json", "a.b.latents.safetensors"):
        assert find_sidecar(tmp_path / "in" / name) == expected
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    (tmp_path / "lonely.mp4").write_bytes(b"")
    assert videos_in(tmp_path) == [video]
    with pytest.raises(InputError, match=r"expected its sidecar lonely\.json next to it"):
        find_sidecar(tmp_path / "lonely.mp4")
    with pytest.raises(InputError, match="got no file"):
        find_sidecar(tmp_path / "none.mp4")


def test_inspect_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [{"path": "/shots/first.png", "digest": "0" * 64}]
    video = made_video(tmp_path / "clip.mp4", s2_scale=0.5, images=images)
    assert main(["inspect", str(video.path)]) == 0
    out = capsys.readouterr().out
    for expected in (
        "a red wall",
        "/shots/first.png",
        "noise 7",
        "s2_scale 0.5",
        "unchanged (sha256",
        video.sidecar.latents.sha256,
    ):
        assert expected in out
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("block ")]
    assert [int(row[1]) for row in rows] == list(range(NUM_BLOCKS))
    drawn = {(step, int(row[1])) for row in rows for step, cell in enumerate(row[2]) if cell == "1"}
    assert all(len(row[2]) == STEPS for row in rows)
    assert drawn == {(mask.step, block) for mask in video.sidecar.masks for block in mask.dropped} != set()


def test_inspect_tells_whether_the_file_has_changed(tmp_path: Path) -> None:
    video = made_video(tmp_path / "clip.mp4", s2_scale=0)
    assert "none: no S²-Guidance" in describe(video.sidecar, video.path)
    video.path.write_bytes(video.path.read_bytes() + b"\0")
    assert "changed since it was written" in describe(video.sidecar, video.path)
    video.path.unlink()
    assert "missing" in describe(video.sidecar, video.path)


def test_inspect_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_video(tmp_path / "clip.mp4", prompt="猫 \\ é")
    assert main(["inspect", "--json", str(tmp_path / "clip.mp4")]) == 0
    assert capsys.readouterr().out == (tmp_path / "clip.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [[], ["none.mp4"]])
def test_nothing_to_inspect(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_sidecar_is_no_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = find_sidecar(made_video(tmp_path / "x.mp4").path)
    for words in (["generate", "--config", str(path)], ["batch", str(path)]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert f"got a sidecar; s2video reproduce {path}" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("device", "allowed", "override", "expected"),
    [
        ("cpu", True, None, False),
        ("cuda", True, None, True),
        ("cuda", True, "0", False),
        ("cuda", True, "1", True),
        ("cuda", False, None, False),
    ],
)
def test_tf32_is_recorded(
    monkeypatch: pytest.MonkeyPatch, device: str, allowed: bool, override: str | None, expected: bool
) -> None:
    """float32 on a GPU has 10 bits in convolutions, unless torch or NVIDIA's libraries are told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    if override is not None:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", override)
    settings = machine_settings(torch.device(device), "native")
    assert settings == {"attention": "native", "tf32": expected}
    assert rank_statement(RunConfig(), {}, {}, settings)["machine.tf32"] is expected
