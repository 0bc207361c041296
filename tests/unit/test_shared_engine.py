"""One loaded engine in several hands: calls and streams in turns, in threads, and inside each other's steps."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import s2video
from s2video.api import TextToVideo, Video

PROMPTS = ("a large red circle moving left on a gray background", "a small blue square on a white background")


@pytest.fixture(scope="module")
def engine() -> TextToVideo:
    sampling = {"num_frames": 13, "num_inference_steps": 2, "width": 32, "height": 32}
    loaded = s2video.load("shapes-wan", sampling=sampling, **{"model.device": "cpu"})
    assert isinstance(loaded, TextToVideo)
    return loaded


@pytest.fixture(scope="module")
def alone(engine: TextToVideo) -> list[Video]:
    """Each video, made while nothing else is."""
    return [engine(prompt, seed=seed) for seed, prompt in enumerate(PROMPTS)]


def test_a_call_between_the_chunks_of_a_stream(engine: TextToVideo, alone: list[Video]) -> None:
    stream = engine.stream(PROMPTS[0], seed=0)
    chunks = [next(stream), next(stream)]
    between = engine(PROMPTS[1], seed=1)
    chunks += stream
    assert torch.equal(torch.cat(chunks), alone[0].frames)
    assert torch.equal(between.frames, alone[1].frames)


def test_streams_in_turns(engine: TextToVideo, alone: list[Video]) -> None:
    streams = [engine.stream(prompt, seed=seed) for seed, prompt in enumerate(PROMPTS)]
    turns = zip(*streams, strict=True)
    for made, chunks in zip(alone, zip(*turns, strict=True), strict=True):
        assert torch.equal(torch.cat(chunks), made.frames)


def test_a_stream_that_is_closed_leaves_the_others_as_they_are(engine: TextToVideo, alone: list[Video]) -> None:
    first, second = (engine.stream(prompt, seed=seed) for seed, prompt in enumerate(PROMPTS))
    chunks = [next(second)]
    next(first)
    first.close()
    assert torch.equal(torch.cat([*chunks, *second]), alone[1].frames)


@pytest.mark.parametrize("call", ["__call__", "stream"])
def test_threads(call: str, engine: TextToVideo, alone: list[Video]) -> None:
    start = threading.Barrier(4)

    def make(number: int) -> Tensor:
        start.wait()
        prompt, seed = PROMPTS[number % 2], number % 2
        return (
            engine(prompt, seed=seed).frames if call == "__call__" else torch.cat([*engine.stream(prompt, seed=seed)])
        )

    with ThreadPoolExecutor(4) as pool:
        for number, frames in enumerate(pool.map(make, range(4))):
            assert torch.equal(frames, alone[number % 2].frames)


def test_an_engine_that_is_called_in_its_own_step(engine: TextToVideo, alone: list[Video]) -> None:
    inner: list[Video] = []

    def on_step(done: int, total: int) -> None:
        inner.append(engine(PROMPTS[1], seed=1))

    assert torch.equal(engine(PROMPTS[0], seed=0, on_step=on_step).frames, alone[0].frames)
    assert [torch.equal(video.frames, alone[1].frames) for video in inner] == [True, True]


def test_a_call_that_fails_lets_the_others_go_on(engine: TextToVideo, alone: list[Video]) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyError("mine")

    def attempt(function: Callable[[int, int], None]) -> None:
        with pytest.raises(KeyError):
            engine(PROMPTS[1], on_step=function)

    thread = threading.Thread(target=attempt, args=(fail,))
    thread.start()
    assert torch.equal(engine(PROMPTS[0], seed=0).frames, alone[0].frames)
    thread.join()
    assert torch.equal(engine(PROMPTS[1], seed=1).frames, alone[1].frames)
