"""Tests of a replica that decodes one job while it denoises the next: order on the GPU, and memory for one job only."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from s2video.batch import replica as module
from s2video.batch.gpu_room import GpuRoom
from s2video.batch.replica import _Options, _Replica
from s2video.batch.store import Entry, Store
from s2video.config.run import RunConfig
from s2video.config.sections import ParallelConfig
from s2video.errors import InputError
from s2video.models.checkpoint import open_checkpoint
from s2video.parallel.mesh import Axis, Mesh
from s2video.system.shutdown import Termination

CPU = torch.device("cpu")
ALONE = Mesh(CPU)
MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
OF_CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory")


class Scene:
    """A replica of a store with jobs, in which doubles denoise and decode.

    Attributes:
        events: what happened, in order, as "denoise a" or "finish a".
        refuses: events that run out of memory once, while another job runs too.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, names: str, mesh: Mesh, **model: Any) -> None:
        self.events: list[str] = []
        self.refuses: set[str] = set()
        self.error: Exception = MEMORY
        self.store = Store(folder)
        self.store.create()
        configs = {
            name: RunConfig.model_validate(
                {"prompt": name, "model": model, "output": {"path": str(folder / f"{name}.mp4")}}
            )
            for name in names
        }
        self.store.put(
            [
                Entry(name=n, place="", models="", config=c.model_dump_json(), key=n, work=None)
                for n, c in configs.items()
            ],
            frozenset(),
        )
        self.replica = _Replica(
            self.store, "r1", mesh, ParallelConfig(), open_checkpoint, _Options("always", "none", Termination())
        )
        opened = open_checkpoint("shapes-wan")
        monkeypatch.setattr(
            self.replica,
            "_engine_for",
            lambda job, _: SimpleNamespace(config=job, can_decode_alone=True, checkpoint=opened),
        )
        monkeypatch.setattr(self.replica, "_record_files", self._record)
        monkeypatch.setattr(module, "denoise", self._denoise)
        monkeypatch.setattr(module, "finish", self._finish)

    def _act(self, event: str) -> None:
        self.events.append(event)
        if event in self.refuses:
            self.refuses.remove(event)
            raise self.error

    def _denoise(self, engine: Any, job: RunConfig, **_: Any) -> Any:
        self._act(f"denoise {job.prompt}")
        return SimpleNamespace(engine=engine)

    def _finish(self, denoised: Any, alone: bool = False) -> None:
        self._act(f"finish {denoised.engine.config.prompt}{' beside' if alone else ''}")

    def _record(self, record: Any, job: RunConfig) -> None:
        assert self.store.finish(record.name, "r1", {record.name: "0" * 64})

    @property
    def states(self) -> list[tuple[str, str]]:
        return [(record.name, record.state) for record in self.store.records()]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scene]:
    def make(names: str = "ab", mesh: Mesh = ALONE, **model: Any) -> Scene:
        return Scene(tmp_path, monkeypatch, names, mesh, **model)

    return make


@pytest.mark.parametrize("error", [MEMORY, OF_CPU])
def test_a_decoding_without_memory_is_made_again_alone(scene: Callable[..., Scene], error: Exception) -> None:
    scene_ = scene()
    scene_.error = error
    scene_.refuses.add("finish a beside")
    scene_.replica.make_jobs()
    assert sorted(scene_.events[:3]) == ["denoise a", "denoise b", "finish a beside"]
    assert scene_.events[3:] == ["finish a", "finish b"]
    assert scene_.states == [("a", "done"), ("b", "done")]


def test_a_denoising_without_memory_is_made_again_alone(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene_ = scene()
    real = scene_._denoise

    def denoise(engine: Any, job: RunConfig, **options: Any) -> Any:
        if job.prompt == "b" and "denoise b" not in scene_.events:
            scene_.refuses.add("denoise b")
        return real(engine, job, **options)

    monkeypatch.setattr(module, "denoise", denoise)
    scene_.replica.make_jobs()
    assert scene_.events.count("denoise b") == 2
    assert scene_.events.index("finish a beside") < len(scene_.events) - 2  # `a` was ready before the second try
    assert scene_.states == [("a", "done"), ("b", "done")]


def test_a_job_without_memory_alone_has_failed(scene: Callable[..., Scene]) -> None:
    scene_ = scene()
    scene_.refuses.add("denoise a")
    scene_.replica.make_jobs()
    assert scene_.states == [("a", "failed"), ("b", "done")]
    assert "out of memory" in str(scene_.store.records()[0].error)


def test_a_job_without_memory_is_recorded_with_settings_that_fit(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the plan's numbers for the job and the card, as `generate` says it."""
    card = SimpleNamespace(total_memory=24e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    scene_ = scene("a", Mesh(torch.device("cuda", 0)), path="Wan-AI/Wan2.1-T2V-14B-Diffusers", dtype="bfloat16")
    record = scene_.store.draw("r1")
    assert record is not None
    scene_.replica._record_failure(record, MEMORY)
    said = str(scene_.store.records()[0].error)
    assert "by the plan, it fits into 24 GB with --set " in said and " --set parallel.weights=streamed (" in said


@pytest.mark.parametrize(("backend", "overlaps"), [("_native_math", False), ("native", True)])
def test_a_backend_that_switches_kernels_of_all_threads_runs_alone(
    scene: Callable[..., Scene], backend: str, overlaps: bool
) -> None:
    scene_ = scene(attention_backend=backend)
    scene_.replica.make_jobs()
    assert ("finish a beside" in scene_.events) is overlaps
    assert scene_.states == [("a", "done"), ("b", "done")]


@pytest.mark.parametrize(
    ("backend", "error", "ends"),
    [
        ("nccl", MEMORY, True),
        ("nccl", RuntimeError("shape"), True),
        ("nccl", InputError("no image"), False),
        ("nccl", OSError("disk full"), False),
        ("gloo", MEMORY, False),
    ],
)
def test_a_replica_ends_where_nccl_may_be_out_of_step(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch, backend: str, error: Exception, ends: bool
) -> None:
    scene_ = scene("a", Mesh(CPU, world=Axis("world", 2), backend=backend))
    monkeypatch.setattr(module, "any_rank", lambda flag, axis, device: flag)
    record = scene_.store.draw("r1")
    assert record is not None

    def act() -> None:
        raise error

    if ends:
        with pytest.raises(type(error)):
            scene_.replica._together(record, act)
    else:
        assert scene_.replica._together(record, act) is None
    assert scene_.states == [("a", "failed")]


class Streams:
    """A double of CUDA's streams that records their calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self._current = threading.local()
        streams = self

        class Stream:
            def __init__(self, device: object = None) -> None:
                self.name = f"stream of {threading.current_thread().name}"

            def record_event(self) -> str:
                streams.calls.append(f"record on {self.name}")
                return "event"

            def wait_event(self, event: str) -> None:
                streams.calls.append(f"{self.name} waits for {event}")

        default = Stream()
        default.name = "default stream"
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self._current, "value", stream))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: getattr(self._current, "value", default))

    def note(self, what: str) -> None:
        stream: Any = torch.cuda.current_stream(CPU)
        self.calls.append(f"{what} on {stream.name}")


def test_the_thread_has_its_own_stream_behind_the_latents(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the default stream, each copy of frames to the CPU would wait for the other job's whole step."""
    streams, scene_ = Streams(monkeypatch), scene()
    real_denoise, real_finish = scene_._denoise, scene_._finish

    def denoise(*arguments: Any, **more: Any) -> Any:
        streams.note(f"denoise {arguments[1].prompt}")
        return real_denoise(*arguments, **more)

    def finish(denoised: Any, alone: bool = False) -> None:
        streams.note(f"finish {denoised.engine.config.prompt}")
        real_finish(denoised, alone)

    monkeypatch.setattr(module, "denoise", denoise)
    monkeypatch.setattr(module, "finish", finish)
    room = GpuRoom(CPU)
    room._is_gpu = True  # its only use of the device is through the doubles
    monkeypatch.setattr(room, "measured", GpuRoom(CPU).measured)
    monkeypatch.setattr(scene_.replica, "_room", room)
    scene_.replica.make_jobs()
    of_a = [call for call in streams.calls if "denoise b" not in call and "finish b" not in call]
    assert of_a == [
        "denoise a on default stream",
        "record on default stream",
        "stream of decoder_0 waits for event",
        "finish a on stream of decoder_0",
    ]
    assert "denoise b on default stream" in streams.calls and streams.calls[-1] == "finish b on default stream"


def test_a_peak_is_that_of_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of branches or more draws need more memory, so a peak without them says nothing."""
    room = GpuRoom(CPU)
    room._is_gpu = True
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=100))
    config = RunConfig()
    for what in ("denoising", "decoding"):
        with room.measured(what, config):
            pass
    assert room.holds(decoding=config, denoising=config)
    for changes in (
        {"num_draws": 3},
        {"batch_branches": True},
        {"cfg_scale": 1.0},
        {"s2_scale": 0.0},
        {"reuse": "light"},  # which keeps predictions
    ):
        assert not room.holds(decoding=config, denoising=config.patched({"guidance": changes})), changes
    assert room.holds(decoding=config, denoising=config.patched({"guidance": {"cfg_scale": 6.0}}))


@pytest.mark.parametrize(
    "changes",
    [
        {"model.path": "Wan-AI/Wan2.1-T2V-14B-Diffusers"},
        {"model.vae_dtype": "bfloat16"},
        {"parallel.decode": "tiled"},
        {"sampling.max_sequence_length": 64},
    ],
    ids=str,
)
def test_a_peak_is_that_of_its_models(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    """A batch may have jobs of several models, in groups, whose videos have one size."""
    room = GpuRoom(CPU)
    room._is_gpu = True
    for name, value in (("memory_allocated", 0), ("reset_peak_memory_stats", None), ("max_memory_allocated", 10)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=100))
    config = RunConfig()
    other = config.patched(changes)
    for what in ("denoising", "decoding"):
        with room.measured(what, config):
            pass
    assert room.holds(decoding=config, denoising=config)
    assert not room.holds(decoding=other, denoising=other)
