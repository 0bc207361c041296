"""Tests of tools/data_way.py: crossings that return, and the trace of a real call."""

import json
from pathlib import Path
from typing import Any

import data_way
import pytest
from data_way import Place, Tracer, Way

from s2video.cli.main import main
from s2video.engine.engine import Engine
from s2video.guidance.masks import dropped_blocks
from s2video.media.video import write_video
from s2video.sampling.sampler import sample


def name_below_package(thing: Any) -> str:
    return str(thing.__module__).removeprefix("s2video.")


def places(*modules: str) -> tuple[Place, ...]:
    return tuple(Place(module, "f") for module in modules)


def test_a_return_goes_to_a_module_that_was_left() -> None:
    a, b, c = places("a", "b", "c")
    way = Way("x", a, ("a", "b", "c"), ((a, b), (a, c), (c, b), (b, a), (c, a)))
    assert way.is_return() == [False, False, True, True, False], "the last one goes to where the data already is"
    assert way.row() == ("x", 3, 5, 2, 3, 3)
    assert data_way.as_list(way).splitlines()[3].split() == ["3", "<", "c:f", "->", "b:f"]
    assert json.loads(data_way.as_json([way]))["x"]["returns"] == 2
    assert data_way.as_table([way]).splitlines()[1].split() == ["x", "3", "5", "2", "3", "3"]


def test_a_call_is_traced(tmp_path: Path) -> None:
    """The trace has each pair of modules once, and ends with the `with` block."""
    call, tracer = data_way.make_video(tmp_path), Tracer()
    with tracer.on():
        call()
    way = tracer.way("make_video")
    call()
    assert tracer.way("make_video") == way
    assert way.entry == Place(name_below_package(main), "main") and way.modules[0] == way.entry.module
    assert {name_below_package(thing) for thing in (Engine, sample, dropped_blocks, write_video)} <= set(way.modules)
    assert len(set(way.crossings)) == len(way.crossings) and all(a.module != b.module for a, b in way.crossings)
    assert not [place for pair in way.crossings for place in pair if "<genexpr>" in place.function]


def test_a_call_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="s2video reproduce ended with exit code 2"):
        data_way.reproduce(tmp_path)()
