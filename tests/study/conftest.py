"""A small study, made once in this process with the embedded model; and videos of plain colours, made without one."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browsers import browser, chromium
from study_helpers import PROMPTS, StudyRun, write_clip

from s2video.cli.main import main

__all__ = ["browser", "chromium"]  # fixtures


@pytest.fixture(scope="session")
def made_study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyRun]:
    """Two prompts x (cfg, s2, strong); no test changes it."""
    root = tmp_path_factory.mktemp("study")
    file = root / "mine.yaml"
    prompts = "".join(f"  - {prompt!r}\n" for prompt in PROMPTS)
    file.write_text(
        "model: {path: shapes-wan, device: cpu}\n"
        "sampling: {num_frames: 9, num_inference_steps: 3, max_sequence_length: 64, seed: 5}\n"
        f"folder: {root / 'out'}\n"
        f"prompts:\n{prompts}"
        "settings:\n"
        "  cfg: {guidance.s2_scale: 0}\n"
        "  s2:\n"
        "  strong: {guidance: {s2_scale: 2.0, drop_count: 3}}\n",
        encoding="utf-8",
    )

    def study(*arguments: object) -> int:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("s2video.cli.batch._is_rank", lambda: True)  # this process makes the videos
            return main(["study", *map(str, arguments)])

    assert study(file, "--plain") == 0
    yield StudyRun(file, root / "out", study)


@pytest.fixture
def study_copy(made_study: StudyRun, tmp_path: Path) -> StudyRun:
    """A copy that a test can change; its study file still names the folder of the original."""
    shutil.copytree(made_study.folder, tmp_path / "out")
    return StudyRun(made_study.file, tmp_path / "out", made_study.study)


@pytest.fixture(scope="session")
def plain_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders cfg and mine of 8 clips of 4 prompts, without sidecars; those of mine are brighter."""
    root = tmp_path_factory.mktemp("plain")
    for gain, name in enumerate(("cfg", "mine")):
        for prompt in range(4):
            for take in range(2):
                level = 0.3 + 0.1 * prompt + 0.02 * take + 0.1 * gain * (1 + prompt)
                frames = torch.full((3, 32, 32, 3), level).clamp(0, 1)
                frames[:, ::4] = 0.1
                write_clip(root / name / f"prompt {prompt}-{take}.mp4", frames)
    return root


@pytest.fixture
def elsewhere(plain_clips: Path, tmp_path: Path) -> dict[str, Path]:
    """The folders of `plain_clips`, for a test to change."""
    shutil.copytree(plain_clips, tmp_path / "elsewhere")
    return {name: tmp_path / "elsewhere" / name for name in ("cfg", "mine")}
