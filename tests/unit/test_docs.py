"""Tests of the commands in README and docs: the real parsers accept them, their files exist, and tests run them.

A command that needs special equipment or much time says so in a comment, such as "# needs published weights, 8 GPUs"
or "# takes minutes". The tests in RUN_BY run all other kinds.
"""

import argparse
import ast
import inspect
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.run
from doc_commands import DOCUMENTS, ROOT, Command, blocks, commands
from test_architecture import FLOORS

import s2video
from s2video.batch.run_file import load_batch
from s2video.cli import main as cli
from s2video.errors import InputError
from s2video.models.recipes import load_config
from s2video.planning.cards import CARDS
from s2video.planning.plan import make_plan
from s2video.planning.tables import as_table

OURS = ("s2video", "python", ".venv/bin/python", "bash", "torchrun", "sbatch")
FOREIGN = ("pip", "uv", "git", "unzip", "vbench", "cp", "ln", "env", "openjd")
EMBEDDED = {"shapes-wan": "shapes", "shapes-wan-24": "shapes-24"}  # models in the package, and their configs
SCRIPTS_OF_OTHERS = ("static_filter.py",)  # VBench's
WRITING = ("--output", "-o", "--json", "--figures", ">")  # these need not exist
RUN_BY = {
    "s2video generate": ("tests/e2e/test_generate.py", '"generate"'),
    "s2video batch": ("tests/e2e/test_batch.py", '"batch"'),
    "s2video status": ("tests/e2e/test_batch.py", '"status"'),
    "s2video pick": ("tests/editorial/test_versions.py", '"pick"'),
    "s2video timeline": ("tests/editorial/test_timelines.py", '"timeline"'),
    "s2video copies": ("tests/editorial/test_copies.py", '"copies"'),
    "s2video decode": ("tests/e2e/test_generate.py", '"decode"'),
    "s2video inspect": ("tests/unit/test_sidecar.py", '"inspect"'),
    "s2video reproduce": ("tests/unit/test_reproduce.py", '"reproduce"'),
    "s2video compare": ("tests/unit/test_compare.py", '"compare"'),
    "s2video sheet": ("tests/unit/test_compare.py", '"sheet"'),
    "s2video page": ("tests/unit/test_page.py", '"page"'),
    "s2video study": ("tests/study/conftest.py", '"study"'),
    "s2video models": ("tests/unit/test_catalog.py", '"models"'),
    "s2video config": ("tests/unit/test_catalog.py", '"config"'),
    "s2video plan": ("tests/unit/test_plan.py", '"plan"'),
    "s2video selftest": ("tests/distributed/test_selftest.py", "selftest"),
    "s2video serve": ("tests/server/running.py", '"serve"'),
    "s2video farm": ("tests/e2e/test_farm.py", '"farm"'),
    "s2video launch": ("tests/e2e/test_multinode.py", '"launch"'),
    "python -m": ("tests/unit/test_architecture.py", '"-m"'),
    "python tools/bench.py": ("tests/unit/test_bench.py", "bench.main("),
    "python tools/study_report.py": ("tests/unit/test_study.py", "study_report.main("),
    "python tools/toy.py": ("tests/unit/test_toys.py", "toy.main("),
    "python tools/evaluate.py": ("tests/unit/test_evaluate.py", "main("),
    "python tools/vbench.py": ("tests/unit/test_vbench.py", "main("),
    "python tools/models_table.py": ("tests/unit/test_models_table.py", "table()"),
    "python tools/plugin_table.py": ("tests/unit/test_plugin_matrix.py", "table()"),
    "python tools/config_reference.py": ("tests/unit/test_config_reference.py", "reference()"),
}


def inline() -> Iterator[Command]:
    """Yield commands within sentences that have at least one option."""
    for document in DOCUMENTS:
        text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text):
            words = span.split()
            if words and words[0] in OURS and "--" in span:
                yield Command(document.relative_to(ROOT).as_posix(), tuple(shlex.split(span)), "")


COMMANDS = list(commands())


def parse(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> list[argparse.Namespace]:
    """Parse a command with the real parsers, which raise if it is invalid."""
    program, *arguments = words
    if program == "s2video":
        parsed = cli.build_parser().parse_args(arguments)
        if parsed.command != "launch":
            return [parsed]
        task = {"t2v": "generate", "i2v": "generate"}.get(parsed.task, parsed.task)
        return [parsed, cli.build_parser().parse_args([task, *parsed.arguments])]
    if program == "torchrun":
        launched = torch.distributed.run.get_args_parser().parse_args(arguments)
        called = re.search(r'main\(\["(\w+)"', (ROOT / launched.training_script).read_text(encoding="utf-8"))
        assert called is not None
        return [launched, cli.build_parser().parse_args([called[1], *launched.training_script_args])]
    if program == "sbatch":
        own = [word for word in arguments if not word.startswith("--array=")]
        assert own[0] == "launch/slurm/batch.sbatch"
        return [cli.build_parser().parse_args(["batch", *own[1:]])]
    script = arguments[0]
    if program != "bash" and script not in ("-m", *SCRIPTS_OF_OTHERS):
        parse_by_script(script, arguments[1:], monkeypatch)
    return []


class Parsed(Exception):
    pass


def parse_by_script(script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script up to the end of its argument parser."""
    if "ArgumentParser" not in (ROOT / script).read_text(encoding="utf-8"):
        assert not [argument for argument in arguments if argument.startswith("-")], f"{script} takes no options"
        return
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, given: list[str] | None = None) -> None:
        parse_args(self, given)
        raise Parsed

    with monkeypatch.context() as patched, pytest.raises(Parsed):
        patched.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patched.setattr(sys, "argv", [script, *(a for a in arguments if not a.startswith(">"))])
        runpy.run_path(str(ROOT / script), run_name="__main__")


def test_the_reader_finds_commands_in_all_their_places() -> None:
    heads = {(command.document, command.words[:2]) for command in COMMANDS}
    assert ("README.md", ("bash", "launch/demo.sh")) in heads
    assert ("docs/quickstart.md", ("s2video", "plan")) in heads
    assert ("docs/evidence/protocol.md", ("python", "tools/vbench.py")) in heads
    assert any(command.words[-2:] == ("--output", "fox.mp4") and command.is_marked for command in COMMANDS)
    assert [c.words[1] for c in inline() if "tools/bench.py" in c.words]


@pytest.mark.parametrize(
    "line",
    [
        "s2video generate --model shapes-wan --scale 3",
        "s2video launch --nproc 2 t2v --model shapes-wan --scale 3",
        "s2video plan --model shapes-wan",
        "s2video models --model shapes-wan",
        "s2video render",
        "python tools/vbench.py prepare --information x",
        "python tools/models_table.py --json",
        "torchrun --nproc-per-node 2 launch/t2v.py --config configs/shapes.yaml --scale 3",
        "sbatch --array=1-2 launch/slurm/batch.sbatch --scale 3",
    ],
)
def test_what_the_parsers_do_not_take_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((InputError, SystemExit, AssertionError)):
        parse(tuple(line.split()), monkeypatch)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.document}: {' '.join(command.words)[:60]}")
def test_commands(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert command.words[0] in OURS + FOREIGN, "a program that this test does not know"
    if command.words[0] in FOREIGN:
        assert command.is_marked, "say in a comment what it needs"
        return
    ours = ("configs/", "launch/", "tools/", "examples/", "tests/")
    read = [word for before, word in pairwise(command.words) if before not in WRITING]
    assert [word for word in read if word.startswith(ours) and not Path(word).exists()] == []
    for parsed in parse(command.words, monkeypatch):
        check_needs(command, parsed)
    if not command.is_marked:
        assert command.kind in RUN_BY, (
            "say in a comment what it needs or how long it takes, or name the test that runs it"
        )
        test, evidence = RUN_BY[command.kind]
        assert evidence in (ROOT / test).read_text(encoding="utf-8")


def check_needs(command: Command, parsed: argparse.Namespace) -> None:
    """Models and settings exist; commands that need published weights or many GPUs say so."""
    task, overrides = getattr(parsed, "command", None), getattr(parsed, "set", ())
    path = getattr(parsed, "run_file", None) or getattr(parsed, "config", None)
    model = getattr(parsed, "model", None)
    if task == "batch" and path and Path(path).parts[0] == "configs":
        assert not load_batch(Path(path), overrides).problems
    elif task in ("generate", "plan") and (model or path) and Path(model or path).parent.name in ("", "configs"):
        name = EMBEDDED.get(model, str(model or path))
        settings = load_config(ROOT / name if name.startswith("configs/") else name, overrides)
        assert settings.model.path in EMBEDDED or task == "plan" or "published weights" in command.comment
        assert task == "plan" or parsed.prompt or parsed.prompt_file or settings.prompt, "it needs a prompt"
    if str(getattr(parsed, "nproc", "")) == "8" or str(getattr(parsed, "nproc_per_node", "")) == "8":
        assert "GPUs" in command.comment


@pytest.mark.parametrize(
    "command", list(inline()), ids=lambda command: f"{command.document}: {' '.join(command.words)[:60]}"
)
def test_commands_within_sentences_have_known_options(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their arguments can be placeholders."""
    monkeypatch.chdir(ROOT)
    program, *arguments = command.words
    if program != "s2video":
        if "pytest" not in arguments:
            parse(command.words, monkeypatch)
        return
    (subparsers,) = (a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    known = set(subparsers.choices[arguments[0]]._option_string_actions)
    if arguments[0] == "launch":
        known |= set(subparsers.choices["generate"]._option_string_actions)
    assert {word for word in arguments if word.startswith("--")} <= known


def test_other_blocks_hold_no_commands() -> None:
    for document in DOCUMENTS:
        for language, lines in blocks(document.read_text(encoding="utf-8")):
            assert language in ("", "sh", "python", "yaml", "indented")
            assert language in ("sh", "indented") or not [
                line for line in lines if line.split()[:1] in ([p] for p in OURS)
            ]


def python_blocks() -> list[tuple[str, str]]:
    return [
        (document.relative_to(ROOT).as_posix(), "\n".join(lines))
        for document in DOCUMENTS
        for language, lines in blocks(document.read_text(encoding="utf-8"))
        if language == "python"
    ]


@pytest.mark.parametrize(("document", "source"), python_blocks())
def test_python_calls_us_as_we_are(document: str, source: str) -> None:
    """Every call of `s2video.x(...)` has arguments that x takes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id == "s2video":
                keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg is not None}
                inspect.signature(getattr(s2video, node.func.attr)).bind(*node.args, **keywords)


def test_examples_of_the_plugin_run() -> None:
    """Run the examples that need no published weights; each makes 17 frames with the embedded model."""
    sources = [source for document, source in python_blocks() if document == "docs/plugin.md"]
    runnable = [source for source in sources if "# needs published weights" not in source]
    assert len(runnable) == 2 < len(sources)
    for source in runnable:
        names: dict[str, Any] = {}
        exec(compile(source, "docs/plugin.md", "exec"), names)
        (frames,) = names["frames"]
        assert len(frames) == 17


def links(document: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files that a document links to, with the heading after "#" if there is one."""
    for target in re.findall(r"\]\(([^):]+)\)", document.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        yield (document.parent / name).resolve() if name else document, anchor


def anchors(document: Path) -> set[str]:
    """Return the headings of a document in the form of link anchors."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for path, anchor in links(document):
        assert path.exists(), path
        assert not anchor or anchor in anchors(path), f"{path.name}#{anchor}"


@pytest.mark.parametrize("index", ["README.md", "docs/README.md"])
def test_both_indexes_link_to_every_page(index: str) -> None:
    assert set(DOCUMENTS) <= {path for path, _ in links(ROOT / index)} | {ROOT / "README.md", ROOT / index}


PATH = re.compile(r"(?<![\w/.-])(?:s2video|tests|tools|launch|examples|configs|docs)/[\w./-]*\w/?")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    """Names in capitals, as in NAME.yaml, are placeholders, and so are patterns with a star."""
    text = re.sub(r"\S*\*\S*", "", document.read_text(encoding="utf-8"))
    named = {path for path in PATH.findall(text) if not re.search(r"[A-Z]{4}", path.replace("README", ""))}
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_the_plan_in_the_docs_is_current() -> None:
    """To update: s2video plan --model wan2.1-t2v-14b-720p --world 8, into docs/distribution.md"""
    plan = make_plan(load_config("wan2.1-t2v-14b-720p"), 8, CARDS["H100"])
    assert f"```\n{as_table(plan)}\n```" in (ROOT / "docs/distribution.md").read_text(encoding="utf-8")


def test_the_folders_in_the_docs_are_in_the_order_of_imports() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+/?)` \|", text.split("## Other folders")[0], re.MULTILINE)
    assert [row.removesuffix(".py").removesuffix("/") for row in rows] == FLOORS
