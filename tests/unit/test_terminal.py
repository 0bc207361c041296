"""Text from outside reaches a terminal without control characters."""

import ast
import json
from pathlib import Path

import pytest
from sidecar_helpers import made_video

import s2video
from s2video.batch.plan import describe as describe_batch
from s2video.batch.run_file import BatchJob
from s2video.batch.status import Status, as_json, as_text
from s2video.batch.store import Entry, Record
from s2video.cli.main import main
from s2video.config.run import RunConfig
from s2video.records.sidecar_model import Sidecar, read_sidecar
from s2video.review.inspect import describe
from s2video.system.progress import Progress
from s2video.system.terminal import printable, printable_json, printable_lines

EVIL = "\x1b]0;x\x07\x1b[2J\x9b31m\x7f\r\u202egnp.exe\u2066\u2028"
PACKAGE = Path(s2video.__file__).parent


def is_harmless(text: str) -> bool:
    return all(letter == "\n" or printable(letter) == letter for letter in text)


def test_control_characters_become_visible_and_other_text_stays() -> None:
    assert printable(EVIL + "\n") == (r"\x1b]0;x\x07\x1b[2J\x9b31m\x7f\r\u202egnp.exe\u2066\u2028\n")
    assert printable("S² 猫 é – عربي") == "S² 猫 é – عربي"
    assert printable(b"\xff.mp4".decode("utf-8", "surrogateescape")) == r"\udcff.mp4"
    assert printable_lines("a\nb\x1b") == "a\nb\\x1b"


def test_errors_and_notes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text(f"model: {{path: {json.dumps(EVIL)}}}\n", encoding="utf-8")
    commands = (
        ["inspect", EVIL],
        ["generate", "--model", EVIL],
        ["generate", "--config", str(config), "--prompt", "x"],
        ["generate", "--set", f"{EVIL}=1"],
        ["decode", EVIL],
        ["status", EVIL],
        ["batch", EVIL],
        [EVIL],
    )
    for command in commands:
        assert main(command) == 2
        said = capsys.readouterr().err
        assert is_harmless(said) and said.count("\n") >= 1


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_video(tmp_path / "clip.mp4")
    path = tmp_path / "clip.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["prompt"] = values["config"]["prompt"] = values["machine"]["device"] = EVIL + "\nvideo: as it was written"
    values["versions"] = {EVIL: EVIL}
    path.write_text(json.dumps(values, ensure_ascii=False).replace(", ", ",\r\t"), encoding="utf-8")
    sidecar = read_sidecar(path)
    said = describe(sidecar, tmp_path / "clip.mp4")
    assert is_harmless(said)
    assert [line for line in said.splitlines() if line.startswith("video:")] == []
    assert main(["inspect", str(path), "--json"]) == 1  # the sidecar was changed
    printed = capsys.readouterr().out
    assert is_harmless(printed) and Sidecar.model_validate(json.loads(printed)) == sidecar
    plain = json.dumps({"a": "b é"}, indent=2, ensure_ascii=False)
    assert printable_json(plain) == plain


def test_status_and_dry_run() -> None:
    entry = Entry(EVIL, EVIL, "", "", "", None)
    ended = {"attempts": 1, "owner": EVIL, "started": None, "seconds": None, "error": EVIL + "\nb"}
    record = Record(**vars(entry), state="failed", **ended)
    status = Status(Path(EVIL), (record,), 0, 0, None)
    assert is_harmless(as_text(status)) and as_text(status).count("\n") == 1
    assert is_harmless(as_json(status))
    job = BatchJob("x", "y", RunConfig(prompt=EVIL).patched({"output.path": EVIL, "model.device": "cpu"}))
    assert is_harmless(describe_batch([job], [None], ["make"], replicas=1, world_size=1))


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(EVIL, "plain") as progress:
        progress(1, 1)
    assert is_harmless(capsys.readouterr().err)


def test_nothing_else_prints() -> None:
    """New output goes through `system/terminal.py`."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == {"system/terminal.py"}
