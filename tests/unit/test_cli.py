"""Tests of the command line with valid input: plans, output names, and starting and stopping of ranks."""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import s2video
from s2video.cli.main import build_parser, main
from s2video.config.named import find_config
from s2video.config.run import RunConfig
from s2video.engine.job import plan_jobs, read_prompt_file
from s2video.errors import InputError
from s2video.media.checks import check_output
from s2video.media.output_paths import OutputPaths
from s2video.system import launcher
from s2video.system.launcher import LaunchPlan, launch, torchrun_command

GROUPED = ("generate", "decode", "batch", "timeline", "pick", "copies", "farm", "task")


def test_version_names_the_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"s2video {s2video.__version__} (torch 2.") and "diffusers 0.42" in out


def test_a_command_has_the_parser_that_it_has_among_all() -> None:
    def parsers(command: str = "") -> dict[str, argparse.ArgumentParser]:
        (action,) = (a for a in build_parser(command)._actions if isinstance(a, argparse._SubParsersAction))
        return dict(action.choices)

    everything = parsers()
    assert len(everything) == 23 and parsers("unknown").keys() == parsers("--help").keys() == everything.keys()
    for command, parser in everything.items():
        own = parsers(command)
        assert own[command].format_help() == parser.format_help()
        assert {p.get_default("run").__module__ for p in own.values()} == {parser.get_default("run").__module__}


def test_making_a_video_imports_nothing_of_batches_and_servers(tmp_path: Path) -> None:
    code = (
        "import sys; from s2video.cli.main import main; code = main(['generate', '--config', 'none.yaml']);"
        "print(code, [name for name in sys.modules if name.split('.')[:2] in ("
        "*(['s2video', room] for room in ('batch', 'editorial', 'fleet', 'server', 'study')), ['sqlite3'])])"
    )
    root = str(Path(s2video.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert finished.stdout.split("\n")[0] == "2 []"


def test_launch_shows_the_arguments_of_generate(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["launch", "--nproc", "8", "t2v", "--help"])
    assert stopped.value.code == 0
    assert "--keep-latents" in capsys.readouterr().out


def test_bad_input_is_answered_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from s2video.cli.main import main; code = main(['generate', '--config', 'none.yaml']);"
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules); print(code, sorted(heavy))"
    )
    root = str(Path(s2video.__file__).parents[1])
    finished = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert finished.stdout.split("\n")[0] == "2 []"


def test_one_video_keeps_its_name_and_more_are_numbered() -> None:
    config = RunConfig().patched({"sampling.seed": 5, "output.path": "runs/x.mp4"})
    assert plan_jobs(config, ["a"]) == (config.patched({"prompt": "a"}),)
    planned = plan_jobs(config, ["a", "b"], 2)
    assert [(job.prompt, job.sampling.seed, job.output.path) for job in planned] == [
        ("a", 5, "runs/x-000.mp4"),
        ("a", 6, "runs/x-001.mp4"),
        ("b", 5, "runs/x-002.mp4"),
        ("b", 6, "runs/x-003.mp4"),
    ]


def test_prompt_file_skips_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa red circle\r\n\n  一只猫  \n".encode())
    assert read_prompt_file(path) == ["a red circle", "一只猫"]


def test_checking_an_output_leaves_no_trace(tmp_path: Path) -> None:
    check_output(OutputPaths(tmp_path / "new" / "folder" / "x.mp4"))
    (tmp_path / "old.mp4").write_bytes(b"old")
    check_output(OutputPaths(tmp_path / "old.mp4"))
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("old.mp4", b"old")]


def test_torchrun_is_told_of_the_ranks() -> None:
    one = torchrun_command(LaunchPlan(8), ["generate", "--seed", "1"])
    assert one[1:3] == ["-m", "torch.distributed.run"]
    assert one[3:] == ["--nproc-per-node", "8", "--standalone", "-m", "s2video", "generate", "--seed", "1"]
    several = torchrun_command(LaunchPlan(8, nnodes=2, node_rank=1, rdzv_endpoint="host:1234"), ["generate"])
    assert "--standalone" not in several
    for option, value in [("--nnodes", "2"), ("--node-rank", "1"), ("--rdzv-endpoint", "host:1234")]:
        assert several[several.index(option) + 1] == value
    assert LaunchPlan(8, nnodes=2).world_size == 16


def run_instead(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(launcher, "torchrun_command", lambda plan, arguments: [sys.executable, "-c", code])


@pytest.mark.parametrize(("code", "expected"), [("pass", 0), ("raise SystemExit(7)", 7)])
def test_launch_returns_the_exit_code(monkeypatch: pytest.MonkeyPatch, code: str, expected: int) -> None:
    run_instead(monkeypatch, code)
    assert launch(LaunchPlan(2), []) == expected


def test_a_workers_own_exit_code_comes_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun would return 1. The exit code of the first worker that ends counts."""
    run_instead(
        monkeypatch,
        "from s2video.system.launcher import report_exit_code as say; say(2); say(1); raise SystemExit(1)",
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(s2video.__file__).parents[1]))
    assert launch(LaunchPlan(2), []) == 2


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_are_passed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals, expected: int
) -> None:
    ready, seen = tmp_path / "ready", tmp_path / "seen"
    run_instead(
        monkeypatch,
        "import signal, sys, time, pathlib\n"
        "def stop(number, frame):\n"
        f"    pathlib.Path({str(seen)!r}).write_text(str(number)); sys.exit(9)\n"
        f"signal.signal({int(number)}, stop)\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)\n",
    )

    def send_when_ready() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    sender = threading.Thread(target=send_when_ready)
    sender.start()
    assert launch(LaunchPlan(2), []) == expected
    sender.join()
    assert seen.read_text() == str(int(number))
    assert signal.getsignal(number) == before


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """An example is `s2video inspect X | head`."""
    gone, pipe = os.pipe()
    os.close(gone)
    command = [sys.executable, "-m", "s2video", "inspect", "--schema"]
    finished = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True)
    os.close(pipe)
    assert (finished.returncode, finished.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["genrate"], "unknown command 'genrate'; did you mean 'generate'?"),
        (["x"], "unknown command 'x'; expected one of generate, launch, decode, "),
        (["status", "nowhere"], "nowhere: expected the folder of a batch or its run file, got none"),
        (
            ["generate", "--prompt", "a", "--model", "~/no model"],
            "model: expected a checkpoint's folder, got '~/no model'",
        ),
    ],
)
def test_one_line_says_what_is_wrong(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "replica" not in error


def test_config_says_what_models_set_instead(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "guidance.cfg_scale"]) == 0
    assert "2.0 in the config of shapes\n" in capsys.readouterr().out
    assert main(["config", "guidance"]) == 0
    assert "These are general defaults" in capsys.readouterr().out


def test_the_config_of_the_embedded_model_has_its_name_too() -> None:
    assert find_config("shapes-wan") == find_config("shapes")


def test_an_unknown_codec_is_one_problem() -> None:
    with pytest.raises(
        InputError, match=r"output\.codec: expected 'h264', .* 'exr' or 'auto', got 'proress'"
    ) as caught:
        RunConfig().patched({"output.codec": "proress"})
    assert str(caught.value).count("got") == 1


def test_the_help_of_every_command_is_whole() -> None:
    """Each argument says what it is, and where there are many, they are in groups; no default is an empty text."""
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, parser in commands.choices.items():
        if name == "replica":  # for the program itself
            continue
        shown = parser.format_help()
        assert "(default: )" not in shown and "()" not in shown, name
        own = [action for action in parser._actions if not isinstance(action, argparse._SubParsersAction)]
        assert [action.dest for action in own if not action.help] == [], name
        options = [action.dest for action in parser._optionals._group_actions if action.dest != "help"]
        assert name not in GROUPED or len(options) <= 2, f"{name}: {options}"


@pytest.mark.parametrize("module", ["torch", "OpenImageIO"])
def test_a_process_ends_without_a_last_search_for_cycles(module: str) -> None:
    """Among the objects of torch, diffusers and transformers it takes a second, and finds nothing that matters.

    OpenImageIO, which writes EXR, would print a long list of leaks without it.
    """
    lines = (
        "import atexit, gc; from s2video.cli.main import main; atexit.register(lambda: print(gc.get_freeze_count()))"
    )
    command = [sys.executable, "-c", f"import {module}; {lines}; main(['models', '--json'])"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (int(finished.stdout.splitlines()[-1]) > 1000) == (module == "torch")
    assert finished.stderr == ""
