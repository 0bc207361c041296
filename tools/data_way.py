"""Traces how a call's data goes through the modules of the package, and counts the crossings.

    python tools/data_way.py            a table
    python tools/data_way.py --list     and each crossing, in order
    python tools/data_way.py --json

Three calls are traced, each in a process of its own, with the embedded model in miniature (32 x 32 pixels, 5 frames,
2 steps): `make_video`, which is `s2video generate` from the entry of its main(); `load`, which is `s2video.load` with
settings; and `reproduce`, which is `s2video reproduce`.

What is counted: a call of a function of one module from a function of another one. The caller is the nearest function
of the package up the stack, so calls by way of torch or the standard library count too; to take the next value of a
generator is a call of it. Every pair of caller and callee counts once, where it first occurs, so steps and blocks do
not count again. What runs while a module is imported is left out, and so are calls inside one module. Comprehensions
belong to the function around them. What other threads do comes after what the main thread does, thread by thread, so
that the order is the same in every run; a thread has no caller.

    modules    how many modules take part
    crossings  how many pairs of caller and callee there are
    returns    how many of them, in order, go to a module that was visited before and left

Exit codes: 0 done, 1 a call failed.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import s2video
from s2video.cli.main import main as s2video_main

PACKAGE = Path(s2video.__file__).parent
SIZE = {"width": 32, "height": 32, "num_frames": 5, "num_inference_steps": 2}
_OWN_NO_NAME = re.compile(r"(\.<locals>)?\.<(listcomp|setcomp|dictcomp|genexpr)>")


class Place(NamedTuple):
    """A function of the package."""

    module: str
    function: str

    def __str__(self) -> str:
        return f"{self.module}:{self.function}"


@dataclass(frozen=True)
class Way:
    """What one call was traced to do.

    Attributes:
        entry: the first function of the package.
        modules: in the order in which they were visited first.
        crossings: pairs of caller and callee, in different modules, in the order in which they occurred first.
    """

    name: str
    entry: Place
    modules: tuple[str, ...]
    crossings: tuple[tuple[Place, Place], ...]

    def is_return(self) -> list[bool]:
        """Of each crossing, whether it goes to a module that was visited before and left."""
        seen, last, found = {self.entry.module}, self.entry.module, []
        for caller, callee in self.crossings:
            seen.add(caller.module)
            found.append(callee.module in seen and callee.module != last)
            seen.add(callee.module)
            last = callee.module
        return found

    def row(self) -> tuple[str, int, int, int]:
        """Name, modules, crossings, returns."""
        return self.name, len(self.modules), len(self.crossings), sum(self.is_return())


class Tracer:
    """Inside `on`, notes the calls of functions of the package, thread by thread."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[tuple[Place | None, Place], None]] = {}  # by thread, in order
        self._places: dict[CodeType, Place | None] = {}

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Trace this thread, and those that start meanwhile."""
        self._calls[threading.get_ident()] = {}
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def way(self, name: str) -> Way:
        """All that was noted: the main thread's calls, and then those of the others, thread by thread."""
        calls = list(dict.fromkeys(call for calls_of_one in self._calls.values() for call in calls_of_one))
        modules = dict.fromkeys(callee.module for _, callee in calls)
        crossings = [(a, b) for a, b in calls if a is not None and a.module != b.module]
        return Way(name, calls[0][1], tuple(modules), tuple(crossings))

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or (callee := self._place(frame.f_code)) is None:
            return
        caller, above = None, frame.f_back
        while above is not None:
            if (place := self._place(above.f_code)) is not None:
                if place.function == "<module>":
                    return  # while it is imported
                caller = caller or place
            above = above.f_back
        if callee.function != "<module>":
            self._calls.setdefault(threading.get_ident(), {})[caller, callee] = None

    def _place(self, code: CodeType) -> Place | None:
        """The function of the package that `code` is, or belongs to; None for all other code."""
        if code not in self._places:
            self._places[code] = _find_place(code)
        return self._places[code]


def _find_place(code: CodeType) -> Place | None:
    path = Path(code.co_filename)
    if not path.is_relative_to(PACKAGE) or path.suffix != ".py":
        return None
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return Place(module, _OWN_NO_NAME.sub("", code.co_qualname))


def make_video(folder: Path) -> Callable[[], object]:
    """`s2video generate`; leaves the video that `reproduce` needs."""
    config = folder / "config.yaml"
    sampling = json.dumps({**SIZE, "max_sequence_length": 64})  # JSON is YAML
    config.write_text(f"model: {{path: shapes-wan, device: cpu}}\nsampling: {sampling}\n", encoding="utf-8")
    arguments = ["--config", str(config), "--prompt", "a red circle", "--output", str(folder / "x.mp4"), "--plain"]
    return lambda: _run_main("generate", *arguments)


def load(folder: Path) -> Callable[[], object]:
    """`s2video.load` with settings, one by section and one by dotted name."""
    load_model = s2video.load
    return lambda: load_model("shapes-wan", sampling=SIZE, **{"model.device": "cpu", "guidance.s2_scale": 0.5})


def reproduce(folder: Path) -> Callable[[], object]:
    """`s2video reproduce` of the video that `make_video` left."""
    return lambda: _run_main("reproduce", str(folder / "x.mp4"), "--plain")


CALLS = {"make_video": make_video, "load": load, "reproduce": reproduce}


def _run_main(*arguments: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = s2video_main(list(arguments))
    if code != 0:
        raise SystemExit(f"s2video {arguments[0]} ended with {code}: {said.getvalue()}")


def trace(name: str, folder: Path) -> Way:
    """Make the call `name` in this process, traced. What has to be there before lies in `folder`."""
    call, tracer = CALLS[name](folder), Tracer()
    with tracer.on():
        call()
    return tracer.way(name)


def trace_all() -> list[Way]:
    """Each call in a process of its own: what one of them keeps in caches would shorten the way of the next."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ways = []
        for name in CALLS:
            with context.Pool(1) as pool:
                ways.append(pool.apply(trace, (name, Path(folder))))
        return ways


def as_table(ways: list[Way]) -> str:
    """Three rows of numbers."""
    rows = [("call", "modules", "crossings", "returns"), *(tuple(map(str, way.row())) for way in ways)]
    return "\n".join(f"{a:12}{b:>9}{c:>11}{d:>9}" for a, b, c, d in rows)


def as_list(way: Way) -> str:
    """The crossings in order; `<` marks those that return."""
    lines = [f"{way.name}: enters at {way.entry}"]
    for number, ((caller, callee), is_return) in enumerate(zip(way.crossings, way.is_return(), strict=True), 1):
        lines.append(f"{number:5} {'<' if is_return else ' '} {caller} -> {callee}")
    return "\n".join(lines)


def as_json(ways: list[Way]) -> str:
    """One JSON object, by the name of the call."""
    found = {}
    for way in ways:
        _, modules, crossings, returns = way.row()
        pairs = [[str(caller), str(callee)] for caller, callee in way.crossings]
        counts = {"modules": modules, "crossings": crossings, "returns": returns}
        found[way.name] = {**counts, "entry": str(way.entry), "visited": list(way.modules), "path": pairs}
    return json.dumps(found, indent=2)


def main() -> int:
    """Trace the three calls and print what was found."""
    parser = argparse.ArgumentParser(description="How data goes through the modules.", allow_abbrev=False)
    parser.add_argument("--list", action="store_true", help="each crossing too, in order")
    parser.add_argument("--json", action="store_true", help="one JSON object instead")
    arguments = parser.parse_args()
    ways = trace_all()
    if arguments.json:
        print(as_json(ways))
        return 0
    print(as_table(ways))
    if arguments.list:
        print("", *map(as_list, ways), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
