"""Trace which modules a call's data goes through, and count the crossings and the returns.

    python tools/data_way.py            # a table
    python tools/data_way.py --list     # also each crossing, in order
    python tools/data_way.py --json

Three calls are traced, each in a process of its own, with a short video of the embedded model (32 x 32 pixels, 5
frames, 2 steps): `make_video` is `s2video generate` from its main(), `load` is `s2video.load` with settings, and
`reproduce` is `s2video reproduce`.

A crossing is a call of a function of one module by a function of another one. The caller is the nearest function of the
package up the stack, so calls through torch or the standard library count too. Taking the next value of a generator is
a call. Each pair of caller and callee counts once, at its first occurrence, so steps and blocks are not counted again.
Calls inside a module, and calls while a module is imported, do not count. A comprehension belongs to the function
around it. Calls in other threads come after those of the main thread, thread by thread, so the order is the same in
every run; the first function of a thread has no caller.

    modules    number of modules that take part
    crossings  number of pairs of caller and callee
    returns    number of crossings, in order, to a module that was visited and left before
    folders    number of the package's folders that take part; a module of its top level is a folder of its own
    back       number of pairs of folders, in order, whose second was visited before: each pair counts once

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

PACKAGE = Path(s2video.__file__).resolve().parent
SIZE = {"width": 32, "height": 32, "num_frames": 5, "num_inference_steps": 2}
_COUNTS = ("modules", "crossings", "returns", "folders", "back")
_INNER_SCOPE = re.compile(r"(\.<locals>)?\.<(listcomp|setcomp|dictcomp|genexpr)>")


class Place(NamedTuple):
    """A function of the package."""

    module: str
    function: str

    def __str__(self) -> str:
        return f"{self.module}:{self.function}"


@dataclass(frozen=True)
class Way:
    """The trace of one call.

    Attributes:
        entry: the first function of the package that ran.
        modules: in order of their first visit.
        crossings: pairs of caller and callee, in different modules, in order of their first occurrence.
    """

    name: str
    entry: Place
    modules: tuple[str, ...]
    crossings: tuple[tuple[Place, Place], ...]

    def is_return(self) -> list[bool]:
        """Return for each crossing whether it goes to a module that was visited and left before."""
        seen, last, found = {self.entry.module}, self.entry.module, []
        for caller, callee in self.crossings:
            seen.add(caller.module)
            found.append(callee.module in seen and callee.module != last)
            seen.add(callee.module)
            last = callee.module
        return found

    def folders(self) -> tuple[int, int]:
        """Return the number of folders, and how many pairs of folders, each counted once, lead back to one."""
        pairs = dict.fromkeys((a.module.split(".")[0], b.module.split(".")[0]) for a, b in self.crossings)
        pairs = {pair: None for pair in pairs if pair[0] != pair[1]}
        visited = {self.entry.module.split(".")[0]}.union(*pairs)
        return len(visited), len(pairs) - (len(visited) - 1)

    def row(self) -> tuple[str, int, int, int, int, int]:
        """Return name, modules, crossings, returns, folders and ways back to one."""
        return self.name, len(self.modules), len(self.crossings), sum(self.is_return()), *self.folders()


class Tracer:
    """Records calls of functions of the package while `on` is active, by thread."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[tuple[Place | None, Place], None]] = {}  # by thread, in order
        self._places: dict[CodeType, Place | None] = {}

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Trace this thread, and threads that start inside the `with`."""
        self._calls[threading.get_ident()] = {}
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def way(self, name: str) -> Way:
        """Return the calls so far: those of the main thread, then those of the others, thread by thread."""
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
                    return  # a module is being imported
                caller = caller or place
            above = above.f_back
        if callee.function != "<module>":
            self._calls.setdefault(threading.get_ident(), {})[caller, callee] = None

    def _place(self, code: CodeType) -> Place | None:
        """Return the function of the package that `code` belongs to; None for all other code."""
        if code not in self._places:
            self._places[code] = _find_place(code)
        return self._places[code]


def _find_place(code: CodeType) -> Place | None:
    path = Path(code.co_filename)
    if not path.is_relative_to(PACKAGE) or path.suffix != ".py":
        return None
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return Place(module, _INNER_SCOPE.sub("", code.co_qualname))


def make_video(folder: Path) -> Callable[[], object]:
    """Prepare `s2video generate`, which writes the video that `reproduce` needs."""
    config = folder / "config.yaml"
    sampling = json.dumps({**SIZE, "max_sequence_length": 64})  # JSON is YAML
    config.write_text(f"model: {{path: shapes-wan, device: cpu}}\nsampling: {sampling}\n", encoding="utf-8")
    arguments = ["--config", str(config), "--prompt", "a red circle", "--output", str(folder / "x.mp4"), "--plain"]
    return lambda: _run_main("generate", *arguments)


def load(folder: Path) -> Callable[[], object]:
    """Prepare `s2video.load` with settings, some by section and some by dotted name."""
    load_model = s2video.load
    return lambda: load_model("shapes-wan", sampling=SIZE, **{"model.device": "cpu", "guidance.s2_scale": 0.5})


def reproduce(folder: Path) -> Callable[[], object]:
    """Prepare `s2video reproduce` of the video that `make_video` wrote."""
    return lambda: _run_main("reproduce", str(folder / "x.mp4"), "--plain")


CALLS = {"make_video": make_video, "load": load, "reproduce": reproduce}


def _run_main(*arguments: str) -> None:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = s2video_main(list(arguments))
    if code != 0:
        raise RuntimeError(f"s2video {arguments[0]} ended with exit code {code}: {output.getvalue()}")


def trace(name: str, folder: Path) -> Way:
    """Run the call `name` in this process and return its trace. `folder` holds the files of earlier calls."""
    call, tracer = CALLS[name](folder), Tracer()
    with tracer.on():
        call()
    return tracer.way(name)


def trace_all() -> list[Way]:
    """Trace each call in a process of its own, because the caches of one would shorten the way of the next."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ways = []
        for name in CALLS:
            with context.Pool(1) as pool:
                ways.append(pool.apply(trace, (name, Path(folder))))
        return ways


def as_table(ways: list[Way]) -> str:
    """Return a row of numbers for each call."""
    rows = [("call", *_COUNTS), *(tuple(map(str, way.row())) for way in ways)]
    return "\n".join(f"{row[0]:12}" + "".join(f"{cell:>11}" for cell in row[1:]) for row in rows)


def as_list(way: Way) -> str:
    """Return the crossings in order; `<` marks returns."""
    lines = [f"{way.name}: enters at {way.entry}"]
    for number, ((caller, callee), is_return) in enumerate(zip(way.crossings, way.is_return(), strict=True), 1):
        lines.append(f"{number:5} {'<' if is_return else ' '} {caller} -> {callee}")
    return "\n".join(lines)


def as_json(ways: list[Way]) -> str:
    """Return one JSON object, by the name of the call."""
    found = {}
    for way in ways:
        pairs = [[str(caller), str(callee)] for caller, callee in way.crossings]
        counts = dict(zip(_COUNTS, way.row()[1:], strict=True))
        found[way.name] = {**counts, "entry": str(way.entry), "visited": list(way.modules), "path": pairs}
    return json.dumps(found, indent=2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--list", action="store_true", help="also print each crossing, in order")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()
    try:
        ways = trace_all()
    except RuntimeError as error:
        print(f"data_way: error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(as_json(ways))
        return 0
    print(as_table(ways))
    if arguments.list:
        print("", *map(as_list, ways), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
