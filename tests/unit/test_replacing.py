"""A file is replaced only if s2video made it and it has not been changed since; what a command reads never is."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from sidecar_helpers import made_video
from tiny import MAX_SEQUENCE_LENGTH, SIZE

from s2video.cli.generate import Checked, check_generate
from s2video.cli.main import build_parser, main
from s2video.config.run import RunConfig
from s2video.engine.space import least_space
from s2video.errors import InputError, S2VideoError
from s2video.media.output_paths import OutputPaths, VideoFile
from s2video.media.signature import is_signed, sign
from s2video.models.checkpoint import open_checkpoint
from s2video.records.replacing import check_inputs_kept, check_replacing, check_replacing_video, sentences
from s2video.records.sidecar import save_latents
from s2video.system.claims import Claim, check_unclaimed
from s2video.system.files import size

LATENTS = torch.zeros(1, 2, 1, 2, 2)


def latents_of_a_run(path: Path, *, keep: bool) -> None:
    save_latents(LATENTS, path, {"config": {"output": {"keep_latents": keep}}})


def test_a_video_of_s2video_is_replaced_and_that_is_said(tmp_path: Path) -> None:
    for name in ("x.mp4", "y.png"):
        path = tmp_path / name
        assert check_replacing(OutputPaths(path)) is None
        video = made_video(path).path
        replaced = check_replacing(OutputPaths(path))
        assert replaced is not None and list(sentences([replaced])) == [
            f"{video}, which s2video made with seed 7, will be replaced"
        ]


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


REFUSED: dict[str, tuple[Callable[[OutputPaths], object], str]] = {
    "a video of another program": (
        lambda files: files.video.write_bytes(b"mine"),
        r"expected no file, or an unchanged video of s2video, got one without its sidecar x\.json",
    ),
    "a video that was changed": (
        lambda files: (made_video(files.output), change(files.video)),
        r"x\.mp4: .* got one that is changed since it was written: expected \d+ bytes",
    ),
    "a video that lost its sidecar": (
        lambda files: (made_video(files.output), files.sidecar.unlink()),
        r"got one without its sidecar",
    ),
    "another JSON file": (
        lambda files: files.sidecar.write_text('{"mine": 1}'),
        r"x\.json: expected no file, or the sidecar of x\.mp4, got another one",
    ),
    "the sidecar of another video": (
        lambda files: made_video(files.output.with_suffix(".mov")),
        r"got that of x\.mov, which would lose it",
    ),
    "latents of another program": (
        lambda files: files.latents.write_bytes(b"mine"),
        r"x\.latents\.safetensors: expected no file, or one of s2video",
    ),
    "a resume point of another program": (
        lambda files: files.resume_point.write_bytes(b"mine"),
        r"x\.checkpoint\.safetensors: expected no file, or one of s2video",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_ours_or_was_changed_is_refused(tmp_path: Path, case: str) -> None:
    spoil, message = REFUSED[case]
    files = OutputPaths(tmp_path / "x.mp4")
    spoil(files)
    with pytest.raises(InputError, match=message) as caught:
        check_replacing(files)
    assert str(caught.value).endswith("choose another name, or replace it with --overwrite")
    check_replacing(files, overwrite=True)


def test_what_is_empty_or_of_an_interrupted_run_is_replaced(tmp_path: Path) -> None:
    files = OutputPaths(tmp_path / "x.mp4")
    for path in (files.video, files.sidecar, files.latents):
        path.touch()
    assert check_replacing(files) is None
    files.sidecar.unlink()
    files.video.write_bytes(b"older")
    latents_of_a_run(files.latents, keep=True)
    with pytest.raises(InputError, match="without its sidecar"):
        check_replacing(files)
    latents_of_a_run(files.latents, keep=False)
    replaced = check_replacing(files)
    assert replaced is not None and "interrupted" in replaced.sentence


def test_a_decoded_file_leaves_the_sidecar_of_another_format(tmp_path: Path) -> None:
    made_video(tmp_path / "x.mov")
    files = OutputPaths(tmp_path / "x.mp4")
    assert check_replacing_video(VideoFile.copy(files.output)) is None
    files.video.write_bytes(b"mine")
    with pytest.raises(InputError, match="without its sidecar"):
        check_replacing_video(VideoFile.copy(files.output))


def test_inputs_are_found_under_any_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    read = tmp_path / "folder" / "x.wav"
    read.touch()
    (tmp_path / "hard.wav").hardlink_to(read)
    (tmp_path / "soft.wav").symlink_to(read)
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for name in ("folder/x.wav", "folder/../folder/x.wav", "hard.wav", "soft.wav", "link/x.wav"):
        with pytest.raises(InputError, match=r"is the file of output\.audio, which is read"):
            check_inputs_kept([tmp_path / "new.mp4", tmp_path / name], {"image": None, "output.audio": read})
    with pytest.raises(InputError, match=r"is the file of model\.path"):
        check_inputs_kept([read], {"model.path": tmp_path / "folder"})
    with pytest.raises(InputError, match=r"holds the file of image"):  # a sequence, and its frame as the first image
        check_inputs_kept([tmp_path / "folder"], {"image": read})
    check_inputs_kept([tmp_path / "folder" / "new.json", tmp_path / "none"], {"model.path": tmp_path / "folder"})


@pytest.fixture
def check(tmp_path: Path, tiny_checkpoint: Path) -> Callable[..., Checked]:
    """`generate` with the config mine.yaml, as far as it goes without torch."""
    sampling = {**SIZE, "num_inference_steps": 2, "max_sequence_length": MAX_SEQUENCE_LENGTH}
    values = {"model": {"path": str(tiny_checkpoint), "device": "cpu"}, "prompt": "a", "sampling": sampling}
    for name in ("mine.yaml", "mine.json"):
        (tmp_path / name).write_text(yaml.safe_dump(values) if name.endswith("yaml") else json.dumps(values))

    def checked(*words: str, config: str = "mine.yaml") -> Checked:
        arguments = build_parser().parse_args(["generate", "--config", str(tmp_path / config), *words])
        return check_generate(arguments, world_size=1)

    return checked


def test_generate_keeps_the_rule(check: Callable[..., Checked], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine\.json: expected a new name, but this is the file of --config"):
        check("--output", str(tmp_path / "mine.mp4"), "--overwrite", config="mine.json")
    sound = tmp_path / "sound.mp4"
    sound.write_bytes(b"sound")
    with pytest.raises(InputError, match=r"is the file of output\.audio"):
        check("--output", str(sound), "--overwrite", "--set", f"output.audio={sound}")
    with pytest.raises(InputError, match="without its sidecar"):
        check("--output", str(sound))
    assert check("--output", str(sound), "--overwrite").notes == (f"{sound} will be replaced (--overwrite)",)
    for number in range(5):
        made_video(tmp_path / f"v-{number:03d}.mp4")
    five = ["--output", str(tmp_path / "v.mp4"), "--num-videos", "5"]
    assert check(*five).notes[0].startswith("5 videos will be replaced: ") and len(check(*five).notes) == 1
    assert check(*five, "--resume").notes == ()


def test_another_process_that_makes_the_video_is_found_before_the_model_is_loaded(
    check: Callable[..., Checked], tmp_path: Path
) -> None:
    files = OutputPaths(tmp_path / "x.mp4")
    with (
        Claim(files.lock, files.all),
        pytest.raises(InputError, match=r"x\.mp4: process \d+ on .* is making this video"),
    ):
        check("--output", str(files.output))
    check("--output", str(files.output))


@pytest.mark.parametrize("suffix", [".json", ".latents.safetensors", ".checkpoint.safetensors", ".mp4"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a device", "link to nothing"])
def test_what_would_be_found_after_hours_is_found_at_once(
    check: Callable[..., Checked], tmp_path: Path, suffix: str, kind: str
) -> None:
    path = (tmp_path / "x.mp4").with_suffix(suffix)
    {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link to a device": lambda: path.symlink_to("/dev/null"),
        "link to nothing": lambda: path.symlink_to(tmp_path / "nothing"),
    }[kind]()
    for words in ([], ["--overwrite"]):
        with pytest.raises(InputError, match=rf"cannot write .*x{suffix}: expected a regular file or none, got a "):
            check("--output", str(tmp_path / "x.mp4"), *words)


def test_a_disk_that_is_full_is_found_at_once(
    check: Callable[..., Checked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr("s2video.engine.space.shutil.disk_usage", lambda path: free)
    check("--output", str(tmp_path / "new" / "x.mp4"))
    many = ["--output", str(tmp_path / "new" / "x.mp4"), "--num-videos", "100", "--keep-latents"]
    with pytest.raises(InputError, match=r"expected at least \d\.\d MB free, a low estimate .* got 0\.1 MB; free some"):
        check(*many)
    monkeypatch.undo()
    check(*many)


def test_low_estimates_are_low(tmp_path: Path) -> None:
    config = RunConfig().patched({"output.path": str(tmp_path / "x.mp4"), "sampling.num_frames": 5})
    info = open_checkpoint("shapes-wan").info
    for suffix in (".mp4", ".mov", ".png", ".exr"):
        job = config.patched({"output.path": str(tmp_path / f"x{suffix}")})
        made = made_video(Path(job.output.path)).path
        kept, peak = least_space(job, info)
        assert 0 <= kept <= size(made) and peak - kept == 4 * 16 * 2 * 8 * 8
        shutil.rmtree(made) if made.is_dir() else made.unlink()
        (tmp_path / "x.json").unlink()


def test_reproduce_does_not_replace_what_it_reproduces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_video(tmp_path / "b.mp4")
    (tmp_path / "deeper").mkdir()
    for output in (tmp_path / "b.mp4", tmp_path / "deeper" / ".." / "b.mp4", tmp_path / "b.mov"):
        assert main(["reproduce", str(tmp_path / "b.mp4"), "--output", str(output), "--overwrite"]) == 2
        assert "which is read; choose another output path" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".html", ".mp4"])
def test_signatures(tmp_path: Path, suffix: str) -> None:
    from PIL import Image

    path = tmp_path / f"x{suffix}"
    if suffix in (".png", ".jpg"):
        Image.effect_noise((16, 16), 50).save(path)
        before = Image.open(path).tobytes()
    elif suffix == ".mp4":
        made_video(path)
    else:
        path.write_text("<p>a</p>\n")
    assert not is_signed(path)
    sign(path)
    assert is_signed(path)
    if suffix in (".png", ".jpg"):
        assert Image.open(path).tobytes() == before
    signed = path.read_bytes()
    for at in (len(signed) // 3, len(signed) - 1):
        path.write_bytes(signed[:at] + bytes([signed[at] ^ 1]) + signed[at + 1 :])
        assert not is_signed(path)
    path.write_bytes(signed + b"more")
    assert not is_signed(path)


def test_reports_are_replaced_only_if_they_are_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = made_video(tmp_path / "run" / "x.mp4").path
    for command, output in (
        (["page", str(video.parent)], video.parent / "index.html"),
        (["sheet", str(video)], tmp_path / "sheet.png"),
        (["compare", str(video), str(video)], tmp_path / "both.mp4"),
    ):
        output.write_bytes(b"mine")
        words = [*command, "-o", str(output)]
        assert main(words) == 2
        assert "got another one; choose another name, or replace it with --overwrite" in capsys.readouterr().err
        assert output.read_bytes() == b"mine"
        assert main([*words, "--overwrite"]) == 0
        assert main(words) == 0
        change(output)
        assert main(words) == 2
        capsys.readouterr()


# Claims


def test_a_claim_is_held_by_one_process_and_ends_with_it(tmp_path: Path) -> None:
    files = OutputPaths(tmp_path / "new" / "x.mp4")
    check_unclaimed({files.lock: files.all})
    script = "import sys, time; from pathlib import Path; from s2video.media.output_paths import OutputPaths\n"
    script += "from s2video.system.claims import Claim\nfiles = OutputPaths(Path(sys.argv[1]))\n"
    script += "claim = Claim(files.lock, files.all); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", script, str(files.output)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    for attempt in (lambda: check_unclaimed({files.lock: files.all}), lambda: Claim(files.lock, files.all)):
        with pytest.raises(InputError, match=rf"x\.mp4: process {holder.pid} on .* is making this video; wait for it"):
            attempt()
    leftover = files.video.with_name(".x.00000000.mp4")
    leftover.touch()  # not a temporary name of this video
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert files.lock.exists()
    check_unclaimed({files.lock: files.all})
    with Claim(files.lock, files.all):
        assert files.lock.exists()
    assert os.listdir(files.lock.parent) == [leftover.name]


def test_a_file_that_another_program_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    files = OutputPaths(tmp_path / "x.mp4")
    files.video.write_bytes(b"older")
    with Claim(files.lock, files.all) as claim:
        claim.check_unchanged(files.video, "")
        files.video.unlink()
        claim.check_unchanged(files.video, "")
        files.video.write_bytes(b"mine")
        with pytest.raises(S2VideoError, match=r"another program wrote this file while the video was made; decode it"):
            claim.check_unchanged(files.video, "decode it")
