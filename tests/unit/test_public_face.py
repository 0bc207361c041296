"""Tests of the public names of s2video: their discovery, and that examples and docs need no others."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import s2video

ROOT = Path(s2video.__file__).resolve().parents[1]
PUBLIC = """
    AgreementError BatchVideo Engine InputError NumericalError RunConfig S2Guidance S2VideoError Sidecar
    StoppedError TextToVideo Video __version__ build_config decode_latents disable enable find_checkpoint
    init_mesh load load_config read_sidecar run_batch videos_in write_page
"""


def test_the_names_do_not_change_unnoticed() -> None:
    assert sorted(s2video.__all__) == sorted(PUBLIC.split())
    assert set(PUBLIC.split()) <= set(dir(s2video))
    assert all(getattr(s2video, name) is not None for name in PUBLIC.split())
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = s2video.nothing


def test_names_can_be_completed_before_torch_is_imported() -> None:
    code = (
        "import rlcompleter, sys, s2video; dir(s2video); assert not {'torch', 'diffusers'} & sys.modules.keys();"
        "print(rlcompleter.Completer({'s2video': s2video}).attr_matches('s2video.en'))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr
    assert "s2video.enable(" in finished.stdout


DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("examples/*.py"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_examples_and_docs_need_nothing_else(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"^\s*(?:from|import) s2video\.\S+", text, re.MULTILINE) == []
    assert set(re.findall(r"\bs2video\.(\w+)", text)) <= set(PUBLIC.split())
