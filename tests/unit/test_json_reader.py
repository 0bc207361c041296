"""JSON from outside: bounds, and one InputError for every failure, wherever it is read."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sidecar_helpers import made_video

from s2video.batch.shots import read_shots
from s2video.cli.main import main
from s2video.errors import InputError
from s2video.models.checkpoint import Checkpoint
from s2video.models.weight_files import read_header
from s2video.records.sidecar_model import read_sidecar, videos_in
from s2video.system import json_reader
from s2video.system.json_reader import MAX_DEPTH, MAX_DIGITS, parse_json, read_json

HOSTILE = {
    "deep lists": "[" * 100_000 + "]" * 100_000,
    "deep mappings": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "deep, not closed": '[{"a":' * 100_000,
    "somewhat deep": "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
    "digits": "9" * 5000,
    "more digits than a float": "9" * (MAX_DIGITS + 1),
    "negative digits": '{"schema": -' + "9" * 400 + "}",
    "cut off": '{"schema": 1',
    "a raw control character": '{"schema": "\x1b"}',
    "nothing": "",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_refused(text: str) -> None:
    for content in (text, text.encode()):
        with pytest.raises(InputError, match=r"^x: expected JSON .*; check the file$|^x: expected JSON, but"):
            parse_json(content, "x")


def test_what_is_read() -> None:
    values = {"a": [1, -2.5, None, True, "猫\u2028"], "b": 10 ** (MAX_DIGITS - 1)}
    assert parse_json(json.dumps(values), "x") == values
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(deep, "x")) == deep
    assert parse_json('{"a": 1, "a": 2}', "x") == {"a": 2}
    with pytest.raises(InputError, match="given twice"):
        parse_json('{"a": 1, "a": 2}', "x", refuse_repeated_keys=True)


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(InputError, match="cannot be read"):
        read_json(path)
    path.write_bytes(b'"\xff"')
    with pytest.raises(InputError, match="utf-8"):
        read_json(path)
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(InputError, match="at most 33554432 bytes"):
        read_json(path)
    os.mkfifo(tmp_path / "pipe")
    for strange in (tmp_path / "pipe", tmp_path, Path("x" * 5000)):
        with pytest.raises(InputError, match=r"cannot be read \("):
            read_json(strange)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_every_reader_refuses_them(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sidecar = tmp_path / "x.json"
    sidecar.write_text(text, encoding="utf-8")
    assert main(["inspect", str(sidecar)]) == 2
    assert videos_in(tmp_path) == []
    (tmp_path / "wan").mkdir()
    (tmp_path / "wan" / "model_index.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="model_index"):
        Checkpoint(tmp_path / "wan")
    save_file({"latents": torch.zeros(1, 4, 1, 2, 2)}, tmp_path / "x.safetensors", {"s2video": text})
    assert main(["decode", str(tmp_path / "x.safetensors"), "--output", str(tmp_path / "y.mp4")]) == 2
    assert capsys.readouterr().err.count("s2video: error: ") == 2
    content = text.encode()
    (tmp_path / "z.safetensors").write_bytes(len(content).to_bytes(8, "little") + content)
    with pytest.raises(InputError, match="damaged"):
        read_header(tmp_path / "z.safetensors")
    if text:
        (tmp_path / "shots.jsonl").write_text(text, encoding="utf-8")
        (shot,) = read_shots(tmp_path / "shots.jsonl")
        assert len(shot.problems) == 1


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": 4}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, True]}},
        {"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}},
        {"a": {"dtype": 1, "shape": [1], "data_offsets": [0, 4]}},
        {"a": 5},
        [],
        7,
    ],
)
def test_headers_of_another_form(header: object, tmp_path: Path) -> None:
    content = json.dumps(header).encode()
    (tmp_path / "z.safetensors").write_bytes(len(content).to_bytes(8, "little") + content + b"\0" * 4)
    with pytest.raises(InputError, match="damaged"):
        read_header(tmp_path / "z.safetensors")


@pytest.mark.parametrize("weight_map", [5, "x", ["a"], {"a": 1}, {"a": "../x"}, {"a": "/etc/passwd"}, {"a": ""}, {}])
def test_an_index_names_files_next_to_it(weight_map: object, tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint(tiny_checkpoint)
    index = tiny_checkpoint / "transformer" / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    try:
        with pytest.raises(InputError, match=r"weight_map|expected weights as \.safetensors"):
            checkpoint.files("transformer")
    finally:
        index.unlink()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output.name": "../x"}, "output.name"),
        ({"output.name": "/etc/passwd"}, "output.name"),
        ({"output.name": ".."}, "output.name"),
        ({"output.name": ""}, "output.name"),
        ({"masks": [{"step": 0, "draw": 0, "dropped": [10**6]}]}, "masks: expected masks of"),
        ({"masks": [{"step": 10**9, "draw": 0, "dropped": [1]}]}, "masks: expected masks of"),
        ({"masks": [{"step": 0, "draw": 0, "dropped": [1]}] * 2}, "masks: expected one mask for each step and draw"),
        ({"num_steps": 10**9}, "num_steps"),
        ({"num_blocks": 10**9}, "num_blocks"),
        ({"config.sampling.num_inference_steps": 10**9}, "num_inference_steps"),
        ({"latents.probes": [0.5] * 63}, "probes"),
        ({"images": [{"path": "x", "digest": "0" * 64}] * 3}, "images"),
    ],
)
def test_sidecars_that_would_lead_astray(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    made_video(tmp_path / "clip.mp4")
    path = tmp_path / "clip.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target[section]
        target[last] = value
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_sidecar(path)
    for command in (["inspect", str(path)], ["reproduce", str(path)], ["page", str(tmp_path)]):
        assert main(command) == 2


@pytest.mark.parametrize("name", ["a\\b.mp4", "...mp4", "a..b.mp4", " .mp4", "猫.mp4", ".hidden"])
def test_names_that_stay(name: str, tmp_path: Path) -> None:
    video = made_video(tmp_path / "clip.mp4").sidecar
    assert type(video).model_validate(video.as_json() | {"output": video.output.model_dump() | {"name": name}})


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"config": None}, "config: expected a mapping of keys, got null"),
        ({"config": []}, "config: expected a mapping"),
        ({"config": {}, "prompt": 5}, "prompt: expected text, got 5"),
        ({"config": {}, "prompt": "a\0"}, "prompt: expected text without stray bytes or NUL"),
        ({"config": {}, "seed": "\x1b"}, "seed"),
        ([], "mapping"),
    ],
)
def test_latents_with_other_facts(
    facts: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.latents.safetensors"
    save_file({"latents": torch.zeros(1, 16, 1, 8, 8)}, path, {"s2video": json.dumps(facts)})
    assert main(["decode", str(path), "--output", str(tmp_path / "y.mp4")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "latents",
    [torch.zeros(1, 16, 0, 8, 8), torch.zeros(1, 0, 1, 8, 8), torch.zeros(1, 16, 1, 8, 8, dtype=torch.int64)],
)
def test_latents_without_frames_or_fractions(latents: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "x.latents.safetensors"
    save_file({"latents": latents}, path, {"s2video": '{"config": {}}'})
    assert main(["decode", str(path), "--output", str(tmp_path / "y.mp4")]) == 2


def test_nothing_else_reads_json() -> None:
    """`json.loads` elsewhere only reads what this process, or another rank of it, wrote."""
    package = Path(json_reader.__file__).parents[1]
    found = {p.relative_to(package).as_posix() for p in package.rglob("*.py") if "json.loads(" in p.read_text("utf-8")}
    assert found == {
        "editorial/fcp_xml.py",
        "fleet/farm.py",
        "system/json_reader.py",
        "parallel/watch.py",
        "records/resume.py",
        "server/jobs.py",
        "server/queue.py",
        "system/roster.py",
    }
